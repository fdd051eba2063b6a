//! Reading images: `GET /v1/images…`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use chunk_format::{Name, Namespace};
use sha2::{Digest, Sha256};

use super::versions::{Page, no_versions};
use crate::app::App;
use crate::database::versions::{self, SeriesRow};
use crate::database::{Connection, channels, mirrors, namespaces};
use crate::http::auth::Caller;
use crate::http::conditional::is_known;
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams};
use crate::routes::json::{ImageJson, ImagesJson, RolloutJson, fresh};

pub(super) async fn list(
    State(app): State<Arc<App>>,
    _caller: Caller,
    query: QueryParams,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let mut snapshot = app.database.snapshot().await?;
    let mut images = Vec::new();
    for series in versions::list_series(&mut *snapshot, None).await? {
        images.push(image(&mut snapshot, series).await?);
    }
    Ok(fresh(ImagesJson { images }))
}

pub(super) async fn get(
    State(app): State<Arc<App>>,
    _caller: Caller,
    path: PathParams,
    query: QueryParams,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let mut snapshot = app.database.snapshot().await?;
    let series = find(&mut snapshot, &path.get("image")?).await?;
    let body = serde_json::to_vec(&image(&mut snapshot, series).await?).map_err(ApiError::internal)?;
    // Desktops ask this again and again: nearly always nothing has changed.
    let hash: String = Sha256::digest(&body).iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let etag = format!("\"{hash}\"");
    let kept = [(CACHE_CONTROL, "no-cache".to_owned()), (ETAG, etag.clone())];
    if is_known(&headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, kept).into_response());
    }
    Ok((kept, [(CONTENT_TYPE, "application/json")], body).into_response())
}

pub(super) async fn versions(
    State(app): State<Arc<App>>,
    _caller: Caller,
    path: PathParams,
    query: QueryParams,
) -> Result<Response, ApiError> {
    let page = Page::new(&query)?;
    let mut snapshot = app.database.snapshot().await?;
    let series = find(&mut snapshot, &path.get("image")?).await?;
    page.answer(&mut snapshot, series.id).await
}

pub(super) async fn find(connection: &mut Connection, name: &Name) -> Result<SeriesRow, ApiError> {
    let namespace = Namespace::Image(name.clone());
    let row = namespaces::find(&mut *connection, &namespace).await?;
    let series = match row {
        Some(row) => versions::find_series(connection, row.id, name).await?,
        None => None,
    };
    series.ok_or_else(|| ApiError::no_such(format_args!("image {name}")))
}

async fn image(connection: &mut Connection, series: SeriesRow) -> Result<ImageJson, ApiError> {
    let latest = versions::head(&mut *connection, series.id).await?;
    let latest = latest.ok_or_else(|| no_versions(series.name.as_str()))?;
    let rows = channels::list(&mut *connection, series.id).await?;
    let channels = rows.iter().map(|row| (row.name.clone(), row.version.id)).collect();
    let rollouts = rows.into_iter().map(|row| (row.name.clone(), RolloutJson::from(row))).collect();
    let mirrors = mirrors::list(connection, series.id).await?;
    let (image, publisher) = (series.name, series.publisher_key);
    Ok(ImageJson { image, publisher, channels, rollouts, mirrors, latest: latest.into() })
}
