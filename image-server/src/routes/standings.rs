//! What a machine stands on, without a lease: `PUT /v1/desktops/DESKTOP/standing`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use chunk_format::{ManifestId, PublicKey};
use serde::Deserialize;

use super::{desktops, leases};
use crate::app::App;
use crate::clock::now_ms;
use crate::database::{commit, standings};
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Standing {
    key: PublicKey,
    version: ManifestId,
}

pub(super) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    query.only(&[])?;
    let standing: Standing =
        app.read_json(caller.user_id, "what a machine stands on", &headers, body).await?;
    let mut tx = app.database.begin().await?;
    let series = desktops::find(&mut tx, &caller, &path.get("desktop")?).await?;
    let version = leases::own_version(&mut tx, &caller, standing.version).await?;
    standings::put(&mut *tx, series.id, &standing.key, version.row, now_ms()).await?;
    commit(tx).await?;
    Ok(StatusCode::NO_CONTENT)
}
