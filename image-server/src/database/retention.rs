//! How many versions are kept, and which must be.

use std::collections::HashSet;

use chunk_format::{ManifestId, Name, Namespace};
use sqlx::SqliteExecutor;

use super::standings;
use super::versions::{SeriesId, VersionRowId};
use super::{Connection, DatabaseError, failed, id_bytes, number, parsed};
use crate::retention::Policy;

/// A series and whose it is.
#[derive(Clone, Debug)]
pub(crate) struct OwnedSeries {
    pub(crate) id: SeriesId,
    pub(crate) namespace: Namespace,
    /// Also of one that was removed, when it has another.
    pub(crate) name: Name,
    pub(crate) removed_ms: Option<i64>,
}

/// A version as retention looks at it.
#[derive(Clone, Debug)]
pub(crate) struct KeptVersion {
    pub(crate) row: VersionRowId,
    pub(crate) id: ManifestId,
    pub(crate) sequence: u64,
    pub(crate) committed_ms: i64,
    pub(crate) note: Option<String>,
}

/// The policy of a series itself, or the server's own.
pub(crate) async fn policy(
    executor: impl SqliteExecutor<'_>,
    series: Option<SeriesId>,
) -> Result<Option<Policy>, DatabaseError> {
    let row: Option<(i64, i64, i64, i64)> = sqlx::query_as(
        "SELECT keep_last, keep_hourly, keep_daily, keep_weekly FROM retention WHERE coalesce(series_id, 0) = ?",
    )
    .bind(series.map_or(0, |series| series.0))
    .fetch_optional(executor)
    .await
    .map_err(failed("look up a retention policy"))?;
    let read = |value| number("number of versions to keep", value);
    row.map(|(last, hourly, daily, weekly)| {
        Ok(Policy {
            keep_last: read(last)?,
            keep_hourly: read(hourly)?,
            keep_daily: read(daily)?,
            keep_weekly: read(weekly)?,
        })
    })
    .transpose()
}

/// Sets the policy of a series, or the server's own; none takes it away.
pub(crate) async fn set_policy(
    connection: &mut Connection,
    series: Option<SeriesId>,
    policy: Option<Policy>,
) -> Result<(), DatabaseError> {
    sqlx::query("DELETE FROM retention WHERE coalesce(series_id, 0) = ?")
        .bind(series.map_or(0, |series| series.0))
        .execute(&mut *connection)
        .await
        .map_err(failed("forget a retention policy"))?;
    let Some(policy) = policy else { return Ok(()) };
    sqlx::query(
        "INSERT INTO retention (series_id, keep_last, keep_hourly, keep_daily, keep_weekly) VALUES (?, ?, ?, ?, ?)",
    )
    .bind(series)
    .bind(policy.keep_last)
    .bind(policy.keep_hourly)
    .bind(policy.keep_daily)
    .bind(policy.keep_weekly)
    .execute(connection)
    .await
    .map(drop)
    .map_err(failed("set a retention policy"))
}

/// All series: desktops first, because they keep golden versions.
pub(crate) async fn all_series(executor: impl SqliteExecutor<'_>) -> Result<Vec<OwnedSeries>, DatabaseError> {
    let rows: Vec<(SeriesId, String, String, String, Option<i64>)> = sqlx::query_as(
        "SELECT series.id, kind, namespaces.name, coalesce(removed_name, series.name), removed_ms FROM series
         JOIN namespaces ON namespaces.id = namespace_id ORDER BY kind = 'image', namespaces.name, series.name",
    )
    .fetch_all(executor)
    .await
    .map_err(failed("list series"))?;
    rows.into_iter()
        .map(|(id, kind, namespace, name, removed_ms)| {
            let namespace = parsed("namespace", &format!("{kind}/{namespace}"))?;
            Ok(OwnedSeries { id, namespace, name: parsed("series name", &name)?, removed_ms })
        })
        .collect()
}

/// The versions of a series that were not pruned, newest first.
pub(crate) async fn kept_versions(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
) -> Result<Vec<KeptVersion>, DatabaseError> {
    type Stored = (VersionRowId, Vec<u8>, i64, i64, Option<String>);
    let rows: Vec<Stored> = sqlx::query_as(
        "SELECT id, manifest, sequence, committed_ms, note FROM versions
         WHERE series_id = ? AND pruned_ms IS NULL ORDER BY sequence DESC",
    )
    .bind(series)
    .fetch_all(executor)
    .await
    .map_err(failed("list versions"))?;
    rows.into_iter()
        .map(|(row, id, sequence, committed_ms, note)| {
            let id = ManifestId::from_bytes(id_bytes("version id", &id)?);
            Ok(KeptVersion { row, id, sequence: number("sequence", sequence)?, committed_ms, note })
        })
        .collect()
}

/// Versions that something else than their own series needs: what a channel names, what a version that is kept stands
/// on, what a fork began on, what the machine with a lease stands on, and what any machine that was heard of within
/// [`standings::KEPT_MS`] stands on, with the golden version below: what it wrote there is lost without them.
pub(crate) async fn needed_versions(
    connection: &mut Connection,
    now_ms: i64,
) -> Result<HashSet<VersionRowId>, DatabaseError> {
    let mut needed: HashSet<VersionRowId> = HashSet::new();
    let sources = [
        "SELECT version_id FROM channels",
        "SELECT previous_version_id FROM channels WHERE previous_version_id IS NOT NULL",
        "SELECT version_id FROM leases",
        "SELECT DISTINCT base_version_id FROM versions WHERE base_version_id IS NOT NULL AND pruned_ms IS NULL",
        "SELECT origin.id FROM versions JOIN versions AS origin ON origin.manifest = versions.parent
         WHERE origin.series_id != versions.series_id AND versions.pruned_ms IS NULL",
        "SELECT version_id FROM standings WHERE seen_ms >= ?1",
        "SELECT base_version_id FROM standings JOIN versions ON versions.id = version_id
         WHERE seen_ms >= ?1 AND base_version_id IS NOT NULL",
    ];
    for source in sources {
        let rows: Vec<VersionRowId> = sqlx::query_scalar(source)
            .bind(now_ms.saturating_sub(standings::KEPT_MS))
            .fetch_all(&mut *connection)
            .await
            .map_err(failed("look for versions that are needed"))?;
        needed.extend(rows);
    }
    Ok(needed)
}

/// Marks a version as kept no longer.
pub(crate) async fn prune(
    executor: impl SqliteExecutor<'_>,
    version: VersionRowId,
    now_ms: i64,
) -> Result<(), DatabaseError> {
    sqlx::query("UPDATE versions SET pruned_ms = ? WHERE id = ? AND pruned_ms IS NULL")
        .bind(now_ms)
        .bind(version)
        .execute(executor)
        .await
        .map(drop)
        .map_err(failed("prune a version"))
}
