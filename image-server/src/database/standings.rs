//! What the machines that write a desktop stand on. Unlike the lease, which one machine has, every machine has its own: the
//! one that lost the lease may still hold work on the version it was heard of last.

use chunk_format::PublicKey;
use sqlx::SqliteExecutor;

use super::versions::{SeriesId, VersionRowId};
use super::{DatabaseError, failed};

/// How long a machine that is not heard of any more keeps the version it stands on: half a year.
pub(crate) const KEPT_MS: i64 = 180 * 24 * 60 * 60 * 1000;

/// Notes what the machine with a key stands on.
pub(crate) async fn put(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
    machine: &PublicKey,
    version: VersionRowId,
    now_ms: i64,
) -> Result<(), DatabaseError> {
    sqlx::query(
        "INSERT OR REPLACE INTO standings (series_id, holder_key, version_id, seen_ms) VALUES (?, ?, ?, ?)",
    )
    .bind(series)
    .bind(&machine.as_bytes()[..])
    .bind(version)
    .bind(now_ms)
    .execute(executor)
    .await
    .map(drop)
    .map_err(failed("note what a machine stands on"))
}

/// Notes that a machine was heard of, and stands where it stood.
pub(crate) async fn heard(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
    machine: &PublicKey,
    now_ms: i64,
) -> Result<(), DatabaseError> {
    sqlx::query("UPDATE standings SET seen_ms = ? WHERE series_id = ? AND holder_key = ?")
        .bind(now_ms)
        .bind(series)
        .bind(&machine.as_bytes()[..])
        .execute(executor)
        .await
        .map(drop)
        .map_err(failed("note that a machine was heard of"))
}
