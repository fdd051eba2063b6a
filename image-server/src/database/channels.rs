//! Channels: where they point, how far a move has got, and where they pointed before.

use chunk_format::{ManifestId, Name, Signature};
use sqlx::SqliteExecutor;

use super::versions::{SeriesId, VersionRowId};
use super::{Connection, DatabaseError, failed, id_bytes, number, parsed};

/// Moves of a channel that are shown.
const MOVES_SHOWN: u32 = 20;

/// A version as a channel names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) row: VersionRowId,
    pub(crate) id: ManifestId,
    pub(crate) sequence: u64,
}

/// The publisher's word that a channel goes back to an older version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rollback {
    /// The newest version of the image it knows of.
    pub(crate) newest: u64,
    pub(crate) signature: Signature,
}

/// A channel.
#[derive(Clone, Debug)]
pub(crate) struct ChannelRow {
    pub(crate) name: Name,
    pub(crate) version: Named,
    /// Where desktops stay that the move does not reach; where a rollback leads.
    pub(crate) previous: Option<Named>,
    pub(crate) percent: u8,
    pub(crate) paused: bool,
    pub(crate) moved_ms: i64,
    pub(crate) rollback: Option<Rollback>,
}

/// Where a channel is to point.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChannelMove {
    pub(crate) version: VersionRowId,
    pub(crate) percent: u8,
    pub(crate) paused: bool,
    /// For a move to an older version.
    pub(crate) rollback: Option<Rollback>,
}

/// A move of a channel, as it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MadeMove {
    pub(crate) version: ManifestId,
    pub(crate) sequence: u64,
    pub(crate) percent: u8,
    pub(crate) paused: bool,
    pub(crate) moved_ms: i64,
}

#[derive(sqlx::FromRow)]
struct StoredChannel {
    name: String,
    version_id: VersionRowId,
    manifest: Vec<u8>,
    sequence: i64,
    previous_version_id: Option<VersionRowId>,
    previous_manifest: Option<Vec<u8>>,
    previous_sequence: Option<i64>,
    percent: i64,
    paused: bool,
    moved_ms: i64,
    rollback_signature: Option<String>,
    rollback_newest: Option<i64>,
}

impl TryFrom<StoredChannel> for ChannelRow {
    type Error = DatabaseError;

    fn try_from(row: StoredChannel) -> Result<Self, DatabaseError> {
        let named = |row, id: &[u8], sequence| {
            let id = ManifestId::from_bytes(id_bytes("version id", id)?);
            Ok::<_, DatabaseError>(Named { row, id, sequence: number("sequence", sequence)? })
        };
        let previous = match (row.previous_version_id, row.previous_manifest, row.previous_sequence) {
            (Some(row), Some(id), Some(sequence)) => Some(named(row, &id, sequence)?),
            _ => None,
        };
        let rollback = match (row.rollback_signature, row.rollback_newest) {
            (Some(signature), Some(newest)) => Some(Rollback {
                newest: number("sequence", newest)?,
                signature: parsed("signature", &signature)?,
            }),
            _ => None,
        };
        Ok(Self {
            name: parsed("channel", &row.name)?,
            version: named(row.version_id, &row.manifest, row.sequence)?,
            previous,
            percent: percent(row.percent)?,
            paused: row.paused,
            moved_ms: row.moved_ms,
            rollback,
        })
    }
}

fn percent(value: i64) -> Result<u8, DatabaseError> {
    u8::try_from(value).map_err(|_| DatabaseError::Value { what: "percentage", found: value.to_string() })
}

/// A series' channels by name.
pub(crate) async fn list(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
) -> Result<Vec<ChannelRow>, DatabaseError> {
    sqlx::query_as::<_, StoredChannel>(
        "SELECT channels.*, now.manifest, now.sequence,
                before.manifest AS previous_manifest, before.sequence AS previous_sequence
         FROM channels JOIN versions AS now ON now.id = version_id
         LEFT JOIN versions AS before ON before.id = previous_version_id
         WHERE channels.series_id = ? ORDER BY channels.name",
    )
    .bind(series)
    .fetch_all(executor)
    .await
    .map_err(failed("list channels"))?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// A series' channel of this name.
pub(crate) async fn find(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
    name: &Name,
) -> Result<Option<ChannelRow>, DatabaseError> {
    Ok(list(executor, series).await?.into_iter().find(|channel| channel.name == *name))
}

/// Points a channel at a version, or changes how far its present move goes. Within the transaction that read what it
/// points at.
///
/// The version before is kept as where desktops stay that the move does not reach. While a move has not reached all, that
/// is still the version before it. A move back leaves nobody behind, and nothing to go back to.
pub(crate) async fn set(
    connection: &mut Connection,
    series: SeriesId,
    name: &Name,
    to: &ChannelMove,
    now_ms: i64,
) -> Result<(), DatabaseError> {
    let present = find(&mut *connection, series, name).await?;
    let (previous, rollback) = match &present {
        None => (None, None),
        Some(present) if present.version.row == to.version => {
            (present.previous.map(|version| version.row), to.rollback.or(present.rollback))
        }
        Some(_) if to.rollback.is_some() => (None, to.rollback),
        Some(present) => {
            let settled = present.percent == 100 && !present.paused;
            let previous = present.previous.filter(|_| !settled).unwrap_or(present.version);
            (Some(previous.row), None)
        }
    };
    sqlx::query(
        "INSERT INTO channels (series_id, name, version_id, previous_version_id, percent, paused, moved_ms,
                               rollback_signature, rollback_newest)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (series_id, name) DO UPDATE SET
             version_id = excluded.version_id, previous_version_id = excluded.previous_version_id,
             percent = excluded.percent, paused = excluded.paused, moved_ms = excluded.moved_ms,
             rollback_signature = excluded.rollback_signature, rollback_newest = excluded.rollback_newest",
    )
    .bind(series)
    .bind(name.as_str())
    .bind(to.version)
    .bind(previous)
    .bind(to.percent)
    .bind(to.paused)
    .bind(now_ms)
    .bind(rollback.map(|rollback| rollback.signature.to_string()))
    .bind(rollback.map(|rollback| i64::try_from(rollback.newest).unwrap_or(i64::MAX)))
    .execute(&mut *connection)
    .await
    .map_err(failed("move a channel"))?;
    sqlx::query(
        "INSERT INTO channel_moves (series_id, name, version_id, percent, paused, moved_ms) VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(series)
    .bind(name.as_str())
    .bind(to.version)
    .bind(to.percent)
    .bind(to.paused)
    .bind(now_ms)
    .execute(connection)
    .await
    .map(drop)
    .map_err(failed("note a channel's move"))
}

/// The latest moves of a channel, the latest first.
pub(crate) async fn moves(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
    name: &Name,
) -> Result<Vec<MadeMove>, DatabaseError> {
    let rows: Vec<(Vec<u8>, i64, i64, bool, i64)> = sqlx::query_as(
        "SELECT manifest, sequence, percent, paused, moved_ms FROM channel_moves
         JOIN versions ON versions.id = version_id
         WHERE channel_moves.series_id = ? AND name = ? ORDER BY channel_moves.id DESC LIMIT ?",
    )
    .bind(series)
    .bind(name.as_str())
    .bind(MOVES_SHOWN)
    .fetch_all(executor)
    .await
    .map_err(failed("list a channel's moves"))?;
    rows.into_iter()
        .map(|(id, sequence, share, paused, moved_ms)| {
            Ok(MadeMove {
                version: ManifestId::from_bytes(id_bytes("version id", &id)?),
                sequence: number("sequence", sequence)?,
                percent: percent(share)?,
                paused,
                moved_ms,
            })
        })
        .collect()
}
