//! Who may write which desktop at present.

use chunk_format::PublicKey;
use sqlx::SqliteExecutor;

use super::versions::{SeriesId, VersionRowId};
use super::{DatabaseError, failed, public_key};

/// A lease, in force or run out.
#[derive(Clone, Debug)]
pub(crate) struct LeaseRow {
    pub(crate) key: PublicKey,
    pub(crate) machine: String,
    pub(crate) version: VersionRowId,
    pub(crate) since_ms: i64,
    pub(crate) renewed_ms: i64,
    pub(crate) expires_ms: i64,
    pub(crate) wanted_machine: Option<String>,
    pub(crate) wanted_ms: Option<i64>,
    pub(crate) refusal: Option<String>,
}

/// How long a wish for a lease holds: who still waits for it says so more often.
const WISH_MS: i64 = 60_000;

impl LeaseRow {
    /// The lease without a wish that nobody has any more.
    pub(crate) fn at(mut self, now_ms: i64) -> Self {
        if self.wanted_ms.is_none_or(|wanted_ms| wanted_ms.saturating_add(WISH_MS) <= now_ms) {
            (self.wanted_machine, self.wanted_ms, self.refusal) = (None, None, None);
        }
        self
    }

    /// Whether it keeps a machine with this key from writing.
    pub(crate) fn excludes(&self, key: &PublicKey, now_ms: i64) -> bool {
        self.key != *key && self.is_in_force(now_ms)
    }

    /// Whether it has not run out.
    pub(crate) fn is_in_force(&self, now_ms: i64) -> bool {
        self.expires_ms > now_ms
    }
}

#[derive(sqlx::FromRow)]
struct StoredLease {
    holder_key: Vec<u8>,
    machine: String,
    version_id: VersionRowId,
    since_ms: i64,
    renewed_ms: i64,
    expires_ms: i64,
    wanted_machine: Option<String>,
    wanted_ms: Option<i64>,
    refusal: Option<String>,
}

/// The lease of a desktop.
pub(crate) async fn find(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
) -> Result<Option<LeaseRow>, DatabaseError> {
    let stored: Option<StoredLease> = sqlx::query_as("SELECT * FROM leases WHERE series_id = ?")
        .bind(series)
        .fetch_optional(executor)
        .await
        .map_err(failed("look up a lease"))?;
    stored
        .map(|row| {
            Ok(LeaseRow {
                key: public_key("lease holder", &row.holder_key)?,
                machine: row.machine,
                version: row.version_id,
                since_ms: row.since_ms,
                renewed_ms: row.renewed_ms,
                expires_ms: row.expires_ms,
                wanted_machine: row.wanted_machine,
                wanted_ms: row.wanted_ms,
                refusal: row.refusal,
            })
        })
        .transpose()
}

/// Writes the lease of a desktop, in place of the one there was.
pub(crate) async fn put(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
    lease: &LeaseRow,
) -> Result<(), DatabaseError> {
    sqlx::query(
        "INSERT OR REPLACE INTO leases (series_id, holder_key, machine, version_id, since_ms, renewed_ms, expires_ms,
                                        wanted_machine, wanted_ms, refusal)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(series)
    .bind(&lease.key.as_bytes()[..])
    .bind(&lease.machine)
    .bind(lease.version)
    .bind(lease.since_ms)
    .bind(lease.renewed_ms)
    .bind(lease.expires_ms)
    .bind(&lease.wanted_machine)
    .bind(lease.wanted_ms)
    .bind(&lease.refusal)
    .execute(executor)
    .await
    .map(drop)
    .map_err(failed("write a lease"))
}

/// Ends the lease of a desktop.
pub(crate) async fn remove(executor: impl SqliteExecutor<'_>, series: SeriesId) -> Result<(), DatabaseError> {
    sqlx::query("DELETE FROM leases WHERE series_id = ?")
        .bind(series)
        .execute(executor)
        .await
        .map(drop)
        .map_err(failed("end a lease"))
}

/// Notes what the holder of a desktop's lease stands on.
pub(crate) async fn move_to(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
    holder: &PublicKey,
    version: VersionRowId,
) -> Result<(), DatabaseError> {
    sqlx::query("UPDATE leases SET version_id = ? WHERE series_id = ? AND holder_key = ?")
        .bind(version)
        .bind(series)
        .bind(&holder.as_bytes()[..])
        .execute(executor)
        .await
        .map(drop)
        .map_err(failed("note what a lease stands on"))
}
