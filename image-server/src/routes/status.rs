//! The server itself.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::http::api_version::SUPPORTED;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::params::QueryParams;
use crate::routes::json::{ServerJson, fresh};

/// `GET /healthz`: the process answers and its database does.
pub(super) async fn health(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    app.database.ping().await?;
    Ok(([(CACHE_CONTROL, "no-store")], "ok").into_response())
}

/// `GET /v1/server`: who the server is, and who is asking.
pub(super) async fn server(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: QueryParams,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    Ok(fresh(ServerJson {
        server: app.identity,
        version: env!("CARGO_PKG_VERSION"),
        api: SUPPORTED,
        user: caller.user,
        role: caller.role,
        expires_ms: caller.expires_ms,
    }))
}
