//! Reading images: `GET /v1/images…`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use chunk_format::{Name, Namespace};

use super::versions::{Page, no_versions};
use crate::app::App;
use crate::database::versions::{self, SeriesRow};
use crate::database::{Connection, mirrors, namespaces};
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams};
use crate::routes::json::{ImageJson, ImagesJson, fresh};

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
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let mut snapshot = app.database.snapshot().await?;
    let series = find(&mut snapshot, &path.get("image")?).await?;
    Ok(fresh(image(&mut snapshot, series).await?))
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

async fn find(connection: &mut Connection, name: &Name) -> Result<SeriesRow, ApiError> {
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
    let channels = versions::channels(&mut *connection, series.id).await?.into_iter().collect();
    let mirrors = mirrors::list(connection, series.id).await?;
    let (image, publisher) = (series.name, series.publisher_key);
    Ok(ImageJson { image, publisher, channels, mirrors, latest: latest.into() })
}
