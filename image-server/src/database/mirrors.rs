//! Static hosts that hold an image's objects too.

use sqlx::SqliteExecutor;

use super::versions::SeriesId;
use super::{DatabaseError, failed};

/// An image's mirrors, in the order in which they were added.
pub(crate) async fn list(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
) -> Result<Vec<String>, DatabaseError> {
    sqlx::query_scalar("SELECT url FROM mirrors WHERE series_id = ? ORDER BY id")
        .bind(series)
        .fetch_all(executor)
        .await
        .map_err(failed("list mirrors"))
}

/// Adds a mirror; nothing happens when it is there.
pub(crate) async fn add(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
    url: &str,
) -> Result<(), DatabaseError> {
    sqlx::query("INSERT INTO mirrors (series_id, url) VALUES (?, ?) ON CONFLICT (series_id, url) DO NOTHING")
        .bind(series)
        .bind(url)
        .execute(executor)
        .await
        .map(drop)
        .map_err(failed("add a mirror"))
}

/// Removes a mirror; false when it was none.
pub(crate) async fn remove(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
    url: &str,
) -> Result<bool, DatabaseError> {
    sqlx::query("DELETE FROM mirrors WHERE series_id = ? AND url = ?")
        .bind(series)
        .bind(url)
        .execute(executor)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(failed("remove a mirror"))
}
