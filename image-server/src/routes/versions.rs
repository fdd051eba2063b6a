//! Listing the versions of a series.

use axum::response::Response;

use crate::database::versions::{self, SeriesId};
use crate::database::{Connection, DatabaseError};
use crate::http::error::ApiError;
use crate::http::params::QueryParams;
use crate::limits::MAX_LISTED_VERSIONS;
use crate::routes::json::{VersionJson, VersionsJson, fresh};

/// Which versions a listing is asked for.
pub(super) struct Page {
    limit: u32,
    before: Option<i64>,
}

impl Page {
    /// Reads `limit` and `before`. More than there may be at a time is asked for as many as there may be.
    pub(super) fn new(query: &QueryParams) -> Result<Self, ApiError> {
        query.only(&["limit", "before"])?;
        let limit = query.number("limit")?.and_then(|limit| u32::try_from(limit).ok());
        let limit = limit.unwrap_or(MAX_LISTED_VERSIONS).min(MAX_LISTED_VERSIONS);
        Ok(Self { limit, before: query.number("before")? })
    }

    /// The page's versions, newest first.
    pub(super) async fn answer(
        &self,
        connection: &mut Connection,
        series: SeriesId,
    ) -> Result<Response, ApiError> {
        let rows = versions::list(connection, series, self.before, self.limit).await?;
        Ok(fresh(VersionsJson { versions: rows.into_iter().map(VersionJson::from).collect() }))
    }
}

/// A series without versions is never written.
pub(super) fn no_versions(series: &str) -> ApiError {
    let found = format!("a series {series} without versions");
    DatabaseError::Value { what: "series", found }.into()
}
