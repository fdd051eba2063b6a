//! What the machines that write a desktop stand on. Unlike the lease, which one machine has, every machine has its own: the
//! one that lost the lease may still hold work on the version it was heard of last.

use chunk_format::PublicKey;
use sqlx::SqliteExecutor;

use super::versions::{SeriesId, VersionRowId};
use super::{DatabaseError, failed};

/// How long a machine that is not heard of any more keeps the version it stands on: half a year.
pub(crate) const KEPT_MS: i64 = 180 * 24 * 60 * 60 * 1000;

/// Notes what the machine with a key stands on. The latest time stays: a clock that is behind does not make a machine one that
/// was not heard of for long.
pub(crate) async fn put(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
    machine: &PublicKey,
    version: VersionRowId,
    now_ms: i64,
) -> Result<(), DatabaseError> {
    sqlx::query(
        "INSERT INTO standings (series_id, holder_key, version_id, seen_ms) VALUES (?, ?, ?, ?)
         ON CONFLICT (series_id, holder_key)
         DO UPDATE SET version_id = excluded.version_id, seen_ms = max(seen_ms, excluded.seen_ms)",
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
    sqlx::query("UPDATE standings SET seen_ms = max(seen_ms, ?) WHERE series_id = ? AND holder_key = ?")
        .bind(now_ms)
        .bind(series)
        .bind(&machine.as_bytes()[..])
        .execute(executor)
        .await
        .map(drop)
        .map_err(failed("note that a machine was heard of"))
}

#[cfg(test)]
mod tests {
    use chunk_format::SecretKey;

    use super::*;
    use crate::database::Database;

    const SERIES: SeriesId = SeriesId(1);

    #[tokio::test]
    async fn a_clock_that_is_set_back_does_not_make_a_machine_unheard_of() {
        let temp = tempfile::tempdir().unwrap();
        let database = Database::create(&temp.path().join("database.sqlite")).await.unwrap();
        let mut tx = database.begin().await.unwrap();
        // What the rows refer to does not matter here.
        sqlx::raw_sql("PRAGMA defer_foreign_keys = ON").execute(&mut *tx).await.unwrap();
        let machine = SecretKey::from_bytes(&[1; 32]).public();
        put(&mut *tx, SERIES, &machine, VersionRowId(1), 5000).await.unwrap();
        heard(&mut *tx, SERIES, &machine, 6000).await.unwrap();
        heard(&mut *tx, SERIES, &machine, 70).await.unwrap();
        put(&mut *tx, SERIES, &machine, VersionRowId(2), 80).await.unwrap();
        let found: (VersionRowId, i64) =
            sqlx::query_as("SELECT version_id, seen_ms FROM standings").fetch_one(&mut *tx).await.unwrap();
        assert_eq!(found, (VersionRowId(2), 6000));
    }
}
