//! What becomes of starts: `POST /v1/desktops/DESKTOP/starts` and `GET /v1/images/IMAGE/states`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use chunk_format::{ManifestId, Name, Namespace};
use serde::{Deserialize, Serialize};

use super::{desktops, images};
use crate::app::App;
use crate::clock::now_ms;
use crate::database::starts::{self, Outcome, Start, States};
use crate::database::{commit as end_transaction, versions};
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams, check_text};
use crate::limits::{MAX_MACHINE_BYTES, MAX_SAID_BYTES};
use crate::routes::json::fresh;

/// What became of a start.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Noted {
    version: ManifestId,
    outcome: Outcome,
    machine: String,
    said: Option<String>,
}

#[derive(Serialize)]
struct StatesJson {
    image: Name,
    versions: Vec<States>,
}

pub(super) async fn note(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    query.only(&[])?;
    let desktop: Name = path.get("desktop")?;
    let noted: Noted = app.read_json(caller.user_id, "what became of a start", &headers, body).await?;
    check_text("machine", &noted.machine, 0..=MAX_MACHINE_BYTES)?;
    check_text("said", noted.said.as_deref().unwrap_or_default(), 0..=MAX_SAID_BYTES)?;
    app.to_the_end((), store(app.clone(), caller, desktop, noted)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn store(app: Arc<App>, caller: Caller, desktop: Name, noted: Noted) -> Result<(), ApiError> {
    let mut tx = app.database.begin().await?;
    let series = desktops::find(&mut tx, &caller, &desktop).await?;
    // Only the image the desktop stands on is told of its starts.
    let head = versions::head(&mut *tx, series.id).await?;
    let image = match head.and_then(|head| head.base) {
        Some(base) => versions::series_of(&mut *tx, base).await?.1,
        None => return Err(super::versions::no_versions(series.name.as_str())),
    };
    let version = versions::find(&mut *tx, &Namespace::Image(image.clone()), noted.version).await?;
    let version = version.ok_or_else(|| {
        ApiError::BadRequest(format!("`version` {} is no version of image {image}", noted.version))
    })?;
    let start = Start {
        series: series.id,
        version: version.row,
        outcome: noted.outcome,
        machine: &noted.machine,
        said: noted.said.as_deref(),
        noted_ms: now_ms(),
    };
    starts::note(&mut *tx, &start).await?;
    Ok(end_transaction(tx).await?)
}

pub(super) async fn states(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let image: Name = path.get("image")?;
    let mut snapshot = app.database.snapshot().await?;
    let series = images::find(&mut snapshot, &image).await?;
    // Given back first: requests that hold one reader and want a second wait for each other.
    drop(snapshot);
    // How the users of an image get on is its publisher's business.
    caller.check_write(&app.database, &Namespace::Image(image.clone())).await?;
    let versions = starts::states(app.database.readers(), series.id).await?;
    Ok(fresh(StatesJson { image, versions }))
}
