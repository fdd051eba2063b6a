//! Segments whose chunks are all here.

use std::collections::HashSet;

use chunk_format::{ChunkSize, ID_BYTES, Namespace, SegmentId};
use sqlx::SqliteExecutor;

use super::namespaces::NamespaceId;
use super::packs::{self, PackRowId, chunk_size, rows_json};
use super::{Connection, DatabaseError, failed, id_bytes};

/// A row of `segments`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub(crate) struct SegmentRowId(pub(crate) i64);

/// A segment as the database knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentRow {
    pub(crate) row: SegmentRowId,
    pub(crate) namespace: NamespaceId,
    pub(crate) segment: SegmentId,
    pub(crate) chunk_size: ChunkSize,
}

type SegmentColumns = (SegmentRowId, NamespaceId, Vec<u8>, i64);

fn stored_segment((row, namespace, id, log2): SegmentColumns) -> Result<SegmentRow, DatabaseError> {
    Ok(SegmentRow {
        row,
        namespace,
        segment: SegmentId::from_bytes(id_bytes("segment id", &id)?),
        chunk_size: chunk_size(log2)?,
    })
}

/// Whether a namespace has this segment, and so its locator, be it condemned.
pub(crate) async fn exists(
    executor: impl SqliteExecutor<'_>,
    namespace: &Namespace,
    segment: SegmentId,
) -> Result<bool, DatabaseError> {
    sqlx::query_scalar::<_, i64>(
        "SELECT 1 FROM segments JOIN namespaces ON namespaces.id = namespace_id
         WHERE kind = ? AND name = ? AND segment = ?",
    )
    .bind(namespace.kind())
    .bind(namespace.name().as_str())
    .bind(&segment.as_bytes()[..])
    .fetch_optional(executor)
    .await
    .map(|found| found.is_some())
    .map_err(failed("look up a segment"))
}

/// Whether a namespace has this segment, and it is not condemned.
pub(crate) async fn is_live(
    executor: impl SqliteExecutor<'_>,
    namespace: &Namespace,
    segment: SegmentId,
) -> Result<bool, DatabaseError> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM segments JOIN namespaces ON namespaces.id = namespace_id
         WHERE kind = ? AND name = ? AND segment = ? AND condemned_ms IS NULL)",
    )
    .bind(namespace.kind())
    .bind(namespace.name().as_str())
    .bind(&segment.as_bytes()[..])
    .fetch_one(executor)
    .await
    .map_err(failed("look up a segment"))
}

/// Where a segment's chunks lie.
pub(crate) struct Places<'a> {
    /// The other namespaces.
    pub(crate) sources: &'a [NamespaceId],
    /// The packs its locator names.
    pub(crate) packs: &'a [PackRowId],
}

/// A segment that is there when it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// There is none, or it is condemned.
    Not,
    /// It is lost: it counts, and has to be written anew.
    Lost,
    /// It can be read.
    Whole,
}

/// Adds packs to those that a segment keeps, if there is one.
pub(crate) async fn keep_packs(
    connection: &mut Connection,
    namespace: NamespaceId,
    segment: SegmentId,
    places: &Places<'_>,
    now_ms: i64,
) -> Result<Known, DatabaseError> {
    let known: Option<(SegmentRowId, bool)> = sqlx::query_as(
        "UPDATE segments SET created_ms = ? WHERE namespace_id = ? AND segment = ? AND condemned_ms IS NULL
         RETURNING id, lost_ms IS NOT NULL",
    )
    .bind(now_ms)
    .bind(namespace)
    .bind(&segment.as_bytes()[..])
    .fetch_optional(&mut *connection)
    .await
    .map_err(failed("note a segment's use"))?;
    let Some((row, is_lost)) = known else { return Ok(Known::Not) };
    add_places(connection, row, places).await?;
    Ok(if is_lost { Known::Lost } else { Known::Whole })
}

/// Notes where a segment's chunks lie, beside where they lay before.
pub(crate) async fn add_places(
    connection: &mut Connection,
    row: SegmentRowId,
    places: &Places<'_>,
) -> Result<(), DatabaseError> {
    sqlx::query(
        "INSERT OR IGNORE INTO segment_packs (segment_id, pack_id) SELECT ?, value FROM json_each(?)",
    )
    .bind(row)
    .bind(rows_json(places.packs))
    .execute(&mut *connection)
    .await
    .map_err(failed("note a segment's packs"))?;
    for source in places.sources {
        sqlx::query("INSERT OR IGNORE INTO segment_sources (segment_id, namespace_id) VALUES (?, ?)")
            .bind(row)
            .bind(source)
            .execute(&mut *connection)
            .await
            .map_err(failed("note where a segment's chunks lie"))?;
    }
    Ok(())
}

/// Adds a segment, or takes back that it was condemned or lost. Its locator is as these places say; where one of the packs is
/// lost, so is the segment.
pub(crate) async fn insert(
    connection: &mut Connection,
    namespace: NamespaceId,
    segment: SegmentId,
    chunk_size: ChunkSize,
    len_bytes: u32,
    places: &Places<'_>,
    now_ms: i64,
) -> Result<(), DatabaseError> {
    let lost_ms = packs::any_lost(&mut *connection, places.packs).await?.then_some(now_ms);
    let row: SegmentRowId = sqlx::query_scalar(
        "INSERT INTO segments
           (namespace_id, segment, chunk_size_log2, len_bytes, created_ms, lost_ms, is_counted, has_packs)
         VALUES (?, ?, ?, ?, ?, ?, 0, 1)
         ON CONFLICT (namespace_id, segment)
         DO UPDATE SET condemned_ms = NULL, lost_ms = excluded.lost_ms, is_counted = 0, has_packs = 1,
                       created_ms = excluded.created_ms, len_bytes = excluded.len_bytes
         RETURNING id",
    )
    .bind(namespace)
    .bind(&segment.as_bytes()[..])
    .bind(chunk_size.log2())
    .bind(len_bytes)
    .bind(now_ms)
    .bind(lost_ms)
    .fetch_one(&mut *connection)
    .await
    .map_err(failed("add a segment"))?;
    set_places(connection, row, places).await
}

/// Notes where a segment's chunks lie now, in place of where they lay before.
async fn set_places(
    connection: &mut Connection,
    row: SegmentRowId,
    places: &Places<'_>,
) -> Result<(), DatabaseError> {
    sqlx::query("DELETE FROM segment_packs WHERE segment_id = ?")
        .bind(row)
        .execute(&mut *connection)
        .await
        .map_err(failed("forget a segment's packs"))?;
    add_places(connection, row, places).await
}

/// Bytes of these segments and of their packs in this namespace that no version was said to have brought; they are said
/// to be brought by whoever asks.
pub(crate) async fn count_bytes(
    connection: &mut Connection,
    namespace: NamespaceId,
    segments: &[[u8; ID_BYTES]],
) -> Result<u64, DatabaseError> {
    if segments.is_empty() {
        return Ok(0);
    }
    let counted: Vec<(i64, i64)> = sqlx::query_as(
        "WITH RECURSIVE asked (i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM asked WHERE i + 1 < ?3)
         UPDATE segments SET is_counted = 1
         WHERE namespace_id = ?1 AND is_counted = 0 AND segment IN (SELECT substr(?2, i * 32 + 1, 32) FROM asked)
         RETURNING id, len_bytes",
    )
    .bind(namespace)
    .bind(segments.concat())
    .bind(i64::try_from(segments.len()).unwrap_or(i64::MAX))
    .fetch_all(&mut *connection)
    .await
    .map_err(failed("count segments"))?;
    let rows: Vec<String> = counted.iter().map(|(row, _)| row.to_string()).collect();
    let packs: Vec<i64> = sqlx::query_scalar(
        "UPDATE packs SET is_counted = 1
         WHERE is_counted = 0 AND namespace_id = ?
           AND id IN (SELECT pack_id FROM segment_packs WHERE segment_id IN (SELECT value FROM json_each(?)))
         RETURNING len_bytes",
    )
    .bind(namespace)
    .bind(format!("[{}]", rows.join(",")))
    .fetch_all(connection)
    .await
    .map_err(failed("count packs"))?;
    let lengths = counted.into_iter().map(|(_, len)| len).chain(packs);
    Ok(lengths.map(|len| u64::try_from(len).unwrap_or(0)).fold(0, u64::saturating_add))
}

/// How many of these segments have chunks of another size, in whichever of the namespaces they are found first.
pub(crate) async fn count_other_chunk_size(
    connection: &mut Connection,
    namespaces: &[NamespaceId],
    segments: &[[u8; ID_BYTES]],
    expected: ChunkSize,
) -> Result<u64, DatabaseError> {
    let mut total = 0u64;
    for namespace in namespaces {
        let other: i64 = sqlx::query_scalar(
            "WITH RECURSIVE asked (i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM asked WHERE i + 1 < ?3)
             SELECT count(*) FROM asked CROSS JOIN segments
             WHERE namespace_id = ?1 AND segment = substr(?2, i * 32 + 1, 32) AND chunk_size_log2 != ?4",
        )
        .bind(namespace)
        .bind(segments.concat())
        .bind(i64::try_from(segments.len()).unwrap_or(i64::MAX))
        .bind(expected.log2())
        .fetch_one(&mut *connection)
        .await
        .map_err(failed("compare chunk sizes"))?;
        total += u64::try_from(other).unwrap_or(0);
    }
    Ok(total)
}

/// Segments that are not condemned, in the order of their rows, after this one.
pub(crate) async fn list_after(
    executor: impl SqliteExecutor<'_>,
    after: SegmentRowId,
    limit: u32,
) -> Result<Vec<SegmentRow>, DatabaseError> {
    let rows: Vec<SegmentColumns> = sqlx::query_as(
        "SELECT id, namespace_id, segment, chunk_size_log2 FROM segments
         WHERE id > ? AND condemned_ms IS NULL ORDER BY id LIMIT ?",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list segments"))?;
    rows.into_iter().map(stored_segment).collect()
}

/// Notes that these segments are lost, unless they were sent again since a time; the number of those that were not before.
pub(crate) async fn lose(
    executor: impl SqliteExecutor<'_>,
    segments: &[SegmentRowId],
    since_ms: i64,
    now_ms: i64,
) -> Result<u64, DatabaseError> {
    let rows: Vec<String> = segments.iter().map(|segment| segment.0.to_string()).collect();
    sqlx::query(
        "UPDATE segments SET lost_ms = ? WHERE id IN (SELECT value FROM json_each(?))
           AND condemned_ms IS NULL AND lost_ms IS NULL AND created_ms < ?",
    )
    .bind(now_ms)
    .bind(format!("[{}]", rows.join(",")))
    .bind(since_ms)
    .execute(executor)
    .await
    .map(|done| done.rows_affected())
    .map_err(failed("note lost segments"))
}

/// Segments that are lost and not condemned.
pub(crate) async fn list_lost(executor: impl SqliteExecutor<'_>) -> Result<Vec<SegmentRow>, DatabaseError> {
    let rows: Vec<SegmentColumns> = sqlx::query_as(
        "SELECT id, namespace_id, segment, chunk_size_log2 FROM segments
         WHERE lost_ms IS NOT NULL AND condemned_ms IS NULL ORDER BY id",
    )
    .fetch_all(executor)
    .await
    .map_err(failed("list lost segments"))?;
    rows.into_iter().map(stored_segment).collect()
}

/// The other namespaces that hold chunks of a segment, or did.
pub(crate) async fn sources_of(
    executor: impl SqliteExecutor<'_>,
    segment: SegmentRowId,
) -> Result<Vec<NamespaceId>, DatabaseError> {
    sqlx::query_scalar("SELECT namespace_id FROM segment_sources WHERE segment_id = ? ORDER BY namespace_id")
        .bind(segment)
        .fetch_all(executor)
        .await
        .map_err(failed("look where a segment's chunks lie"))
}

/// Notes that a lost segment can be read where it was, as somebody found who looked from a time on; false when it was sent or lost
/// since.
pub(crate) async fn take_up(
    executor: impl SqliteExecutor<'_>,
    segment: SegmentRowId,
    since_ms: i64,
) -> Result<bool, DatabaseError> {
    sqlx::query("UPDATE segments SET lost_ms = NULL WHERE id = ?1 AND lost_ms < ?2 AND created_ms < ?2")
        .bind(segment)
        .bind(since_ms)
        .execute(executor)
        .await
        .map(|done| done.rows_affected() > 0)
        .map_err(failed("note that a segment is whole"))
}

/// Notes that a lost segment can be read in these places, by a locator that is about to be written; false when it is not lost any
/// more, and leads elsewhere.
pub(crate) async fn lead(
    connection: &mut Connection,
    segment: SegmentRowId,
    places: &Places<'_>,
) -> Result<bool, DatabaseError> {
    let done =
        sqlx::query("UPDATE segments SET lost_ms = NULL, has_packs = 1 WHERE id = ? AND lost_ms IS NOT NULL")
            .bind(segment)
            .execute(&mut *connection)
            .await
            .map_err(failed("note that a segment is whole"))?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    set_places(connection, segment, places).await?;
    Ok(true)
}

/// The packs that are noted of a segment.
pub(crate) struct NotedPacks {
    pub(crate) packs: HashSet<PackRowId>,
    /// Whether these are all that its locator names: not so of one that is older than the notes.
    pub(crate) are_all: bool,
}

/// The packs that a segment keeps: those its locator names, and those an earlier one named.
pub(crate) async fn packs_of(
    connection: &mut Connection,
    segment: SegmentRowId,
) -> Result<NotedPacks, DatabaseError> {
    let packs: Vec<PackRowId> = sqlx::query_scalar("SELECT pack_id FROM segment_packs WHERE segment_id = ?")
        .bind(segment)
        .fetch_all(&mut *connection)
        .await
        .map_err(failed("list a segment's packs"))?;
    let are_all: Option<bool> = sqlx::query_scalar("SELECT has_packs FROM segments WHERE id = ?")
        .bind(segment)
        .fetch_optional(connection)
        .await
        .map_err(failed("look up a segment"))?;
    Ok(NotedPacks { packs: packs.into_iter().collect(), are_all: are_all.unwrap_or(false) })
}

/// How many segments there are that are not condemned.
pub(crate) async fn count(executor: impl SqliteExecutor<'_>) -> Result<u64, DatabaseError> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM segments WHERE condemned_ms IS NULL")
        .fetch_one(executor)
        .await
        .map_err(failed("count segments"))?;
    super::number("count", count)
}
