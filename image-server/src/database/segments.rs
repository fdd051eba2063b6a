//! Segments whose chunks are all here.

use chunk_format::{ChunkSize, ID_BYTES, Namespace, SegmentId};
use sqlx::SqliteExecutor;

use super::namespaces::NamespaceId;
use super::packs::chunk_size;
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

/// Whether a namespace has this segment, and so its locator.
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

/// Adds a segment and the other namespaces its chunks lie in; false when it was there.
pub(crate) async fn insert(
    connection: &mut Connection,
    namespace: NamespaceId,
    segment: SegmentId,
    chunk_size: ChunkSize,
    sources: &[NamespaceId],
    now_ms: i64,
) -> Result<bool, DatabaseError> {
    let added = sqlx::query(
        "INSERT INTO segments (namespace_id, segment, chunk_size_log2, created_ms) VALUES (?, ?, ?, ?)
         ON CONFLICT (namespace_id, segment) DO NOTHING",
    )
    .bind(namespace)
    .bind(&segment.as_bytes()[..])
    .bind(chunk_size.log2())
    .bind(now_ms)
    .execute(&mut *connection)
    .await
    .map_err(failed("add a segment"))?
    .rows_affected()
        > 0;
    for source in sources {
        sqlx::query(
            "INSERT OR IGNORE INTO segment_sources (segment_id, namespace_id)
             SELECT id, ? FROM segments WHERE namespace_id = ? AND segment = ?",
        )
        .bind(source)
        .bind(namespace)
        .bind(&segment.as_bytes()[..])
        .execute(&mut *connection)
        .await
        .map_err(failed("note where a segment's chunks lie"))?;
    }
    Ok(added)
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

/// Segments in the order of their rows, after this one.
pub(crate) async fn list_after(
    executor: impl SqliteExecutor<'_>,
    after: SegmentRowId,
    limit: u32,
) -> Result<Vec<SegmentRow>, DatabaseError> {
    let rows: Vec<(SegmentRowId, NamespaceId, Vec<u8>, i64)> = sqlx::query_as(
        "SELECT id, namespace_id, segment, chunk_size_log2 FROM segments WHERE id > ? ORDER BY id LIMIT ?",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list segments"))?;
    rows.into_iter()
        .map(|(row, namespace, segment, log2)| {
            Ok(SegmentRow {
                row,
                namespace,
                segment: SegmentId::from_bytes(id_bytes("segment id", &segment)?),
                chunk_size: chunk_size(log2)?,
            })
        })
        .collect()
}

/// How many segments there are.
pub(crate) async fn count(executor: impl SqliteExecutor<'_>) -> Result<u64, DatabaseError> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM segments")
        .fetch_one(executor)
        .await
        .map_err(failed("count segments"))?;
    super::number("count", count)
}
