//! Listing the versions of a series.

use std::collections::HashMap;

use axum::response::Response;

use crate::database::versions::{self, Listed, SeriesId, VersionRowId};
use crate::database::{Connection, DatabaseError};
use crate::http::error::ApiError;
use crate::http::params::QueryParams;
use crate::limits::MAX_LISTED_VERSIONS;
use crate::routes::json::{GoldenJson, VersionJson, VersionsJson, fresh};

/// Which versions a listing is asked for.
pub(super) struct Page {
    limit: u32,
    before: Option<i64>,
    listed: Listed,
}

impl Page {
    /// Reads `limit`, `before` and `pruned`. More than there may be at a time is asked for as many as there may be.
    pub(super) fn new(query: &QueryParams) -> Result<Self, ApiError> {
        query.only(&["limit", "before", "pruned"])?;
        let limit = query.number("limit")?.and_then(|limit| u32::try_from(limit).ok());
        let limit = limit.unwrap_or(MAX_LISTED_VERSIONS).min(MAX_LISTED_VERSIONS);
        let listed = if query.flag("pruned")? { Listed::All } else { Listed::Kept };
        Ok(Self { limit, before: query.number("before")?, listed })
    }

    /// The page's versions, newest first, each with the golden version it stands on.
    pub(super) async fn answer(
        &self,
        connection: &mut Connection,
        series: SeriesId,
    ) -> Result<Response, ApiError> {
        let rows = versions::list(&mut *connection, series, self.before, self.limit, self.listed).await?;
        let mut known: HashMap<VersionRowId, Option<GoldenJson>> = HashMap::new();
        let mut listed = Vec::with_capacity(rows.len());
        for row in rows {
            let base = row.base;
            let mut version = VersionJson::from(row);
            if let Some(base) = base {
                version.golden = match known.get(&base) {
                    Some(golden) => golden.clone(),
                    None => {
                        let golden = golden(connection, base).await?;
                        known.insert(base, golden.clone());
                        golden
                    }
                };
            }
            listed.push(version);
        }
        Ok(fresh(VersionsJson { versions: listed }))
    }
}

async fn golden(connection: &mut Connection, row: VersionRowId) -> Result<Option<GoldenJson>, ApiError> {
    let Some(version) = versions::get(&mut *connection, row).await? else { return Ok(None) };
    let (_, image) = versions::series_of(connection, row).await?;
    Ok(Some(GoldenJson { image, id: version.id, sequence: version.sequence }))
}

/// A series without versions is never written.
pub(super) fn no_versions(series: &str) -> ApiError {
    let found = format!("a series {series} without versions");
    DatabaseError::Value { what: "series", found }.into()
}
