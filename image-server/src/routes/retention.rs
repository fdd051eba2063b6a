//! What a desktop's owner keeps of it: `GET`, `PUT` and `DELETE /v1/desktops/DESKTOP/retention`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use serde::Serialize;

use super::desktops;
use crate::app::App;
use crate::database::{commit, retention};
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams};
use crate::limits::MAX_POLICY_JSON_BYTES;
use crate::retention::Policy;
use crate::routes::json::fresh;

/// The policy in force.
#[derive(Serialize)]
struct PolicyJson {
    policy: Policy,
    /// Whether it is the desktop's own, and not the server's.
    own: bool,
}

pub(super) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let mut snapshot = app.database.snapshot().await?;
    let series = desktops::find(&mut snapshot, &caller, &path.get("desktop")?).await?;
    let own = retention::policy(&mut *snapshot, Some(series.id)).await?;
    let policy = match own {
        Some(policy) => policy,
        None => retention::policy(&mut *snapshot, None).await?.unwrap_or_default(),
    };
    Ok(fresh(PolicyJson { policy, own: own.is_some() }))
}

pub(super) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let policy =
        app.read_json_within(caller.user_id, "a policy", MAX_POLICY_JSON_BYTES, &headers, body).await?;
    set(&app, &caller, &path, Some(policy)).await
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    set(&app, &caller, &path, None).await
}

async fn set(
    app: &App,
    caller: &Caller,
    path: &PathParams,
    policy: Option<Policy>,
) -> Result<Response, ApiError> {
    let mut tx = app.database.begin().await?;
    let series = desktops::find(&mut tx, caller, &path.get("desktop")?).await?;
    retention::set_policy(&mut tx, Some(series.id), policy).await?;
    let server = retention::policy(&mut *tx, None).await?.unwrap_or_default();
    commit(tx).await?;
    Ok(fresh(PolicyJson { policy: policy.unwrap_or(server), own: policy.is_some() }))
}
