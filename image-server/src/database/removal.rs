//! Desktops that were removed: out of every listing, with all their versions, until they are taken back or pruned.

use chunk_format::{ManifestId, Name, Namespace, PublicKey};
use sqlx::SqliteExecutor;

use super::namespaces::NamespaceId;
use super::versions::SeriesId;
use super::{Connection, DatabaseError, failed, number, parsed};

/// A desktop that was removed.
#[derive(Clone, Debug)]
pub(crate) struct RemovedSeries {
    pub(crate) id: SeriesId,
    /// The user it is of.
    pub(crate) owner: Name,
    /// The name it had.
    pub(crate) name: Name,
    pub(crate) removed_ms: i64,
    /// Versions whose content is kept.
    pub(crate) versions: u64,
}

/// Takes a desktop out of all listings, and forgets who holds it and how its starts went; answers how many versions it has. What
/// machines stand on is kept for them as before.
pub(crate) async fn remove(
    connection: &mut Connection,
    series: SeriesId,
    now_ms: i64,
) -> Result<u64, DatabaseError> {
    for forget in ["DELETE FROM leases WHERE series_id = ?", "DELETE FROM starts WHERE series_id = ?"] {
        sqlx::query(forget)
            .bind(series)
            .execute(&mut *connection)
            .await
            .map_err(failed("forget a desktop"))?;
    }
    // No two have one name: of a desktop that was removed, made again under its name, and removed again, either.
    sqlx::query(
        "UPDATE series SET removed_ms = ?1, removed_name = name, name = 'removed-' || id || '-' || ?1
         WHERE id = ?2 AND removed_ms IS NULL",
    )
    .bind(now_ms)
    .bind(series)
    .execute(&mut *connection)
    .await
    .map_err(failed("remove a desktop"))?;
    let versions: i64 =
        sqlx::query_scalar("SELECT count(*) FROM versions WHERE series_id = ? AND pruned_ms IS NULL")
            .bind(series)
            .fetch_one(connection)
            .await
            .map_err(failed("count versions"))?;
    number("count", versions)
}

/// Gives a desktop that was removed its name back, which must be free.
pub(crate) async fn take_back(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
) -> Result<(), DatabaseError> {
    sqlx::query("UPDATE series SET name = removed_name, removed_ms = NULL, removed_name = NULL WHERE id = ?")
        .bind(series)
        .execute(executor)
        .await
        .map(drop)
        .map_err(failed("take a desktop back"))
}

/// Forgets what machines stand on of a desktop: of one of them, or of all.
pub(crate) async fn forget_standings(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
    key: Option<&PublicKey>,
) -> Result<(), DatabaseError> {
    sqlx::query("DELETE FROM standings WHERE series_id = ?1 AND (?2 IS NULL OR holder_key = ?2)")
        .bind(series)
        .bind(key.map(|key| &key.as_bytes()[..]))
        .execute(executor)
        .await
        .map(drop)
        .map_err(failed("forget where machines stand"))
}

/// All that were removed and whose newest version is kept, the last one first. Of one whose newest was pruned only what others need
/// is left.
pub(crate) async fn list(executor: impl SqliteExecutor<'_>) -> Result<Vec<RemovedSeries>, DatabaseError> {
    let rows: Vec<(SeriesId, String, String, i64, i64)> = sqlx::query_as(
        "SELECT series.id, namespaces.name, removed_name, removed_ms, count(versions.id) FROM series
         JOIN namespaces ON namespaces.id = namespace_id
         JOIN versions ON versions.series_id = series.id AND pruned_ms IS NULL
         WHERE removed_ms IS NOT NULL AND (
           SELECT newest.pruned_ms FROM versions AS newest WHERE newest.series_id = series.id
           ORDER BY newest.sequence DESC LIMIT 1) IS NULL
         GROUP BY series.id ORDER BY removed_ms DESC, series.id DESC",
    )
    .fetch_all(executor)
    .await
    .map_err(failed("list removed desktops"))?;
    rows.into_iter()
        .map(|(id, owner, name, removed_ms, versions)| {
            Ok(RemovedSeries {
                id,
                owner: parsed("user", &owner)?,
                name: parsed("series name", &name)?,
                removed_ms,
                versions: number("count", versions)?,
            })
        })
        .collect()
}

/// The desktop that was removed with a version, be that one pruned since, and when.
pub(crate) async fn of_version(
    executor: impl SqliteExecutor<'_>,
    namespace: &Namespace,
    version: ManifestId,
) -> Result<Option<(Name, i64)>, DatabaseError> {
    let found: Option<(String, i64)> = sqlx::query_as(
        "SELECT removed_name, removed_ms FROM versions
         JOIN series ON series.id = series_id JOIN namespaces ON namespaces.id = series.namespace_id
         WHERE manifest = ? AND kind = ? AND namespaces.name = ? AND removed_ms IS NOT NULL",
    )
    .bind(&version.as_bytes()[..])
    .bind(namespace.kind())
    .bind(namespace.name().as_str())
    .fetch_optional(executor)
    .await
    .map_err(failed("look for a removed version"))?;
    found.map(|(name, removed_ms)| Ok((parsed("series name", &name)?, removed_ms))).transpose()
}

/// Whether a name is free in a namespace.
pub(crate) async fn is_free(
    executor: impl SqliteExecutor<'_>,
    namespace: NamespaceId,
    name: &Name,
) -> Result<bool, DatabaseError> {
    sqlx::query_scalar("SELECT NOT EXISTS (SELECT 1 FROM series WHERE namespace_id = ? AND name = ?)")
        .bind(namespace)
        .bind(name.as_str())
        .fetch_one(executor)
        .await
        .map_err(failed("look up a series"))
}
