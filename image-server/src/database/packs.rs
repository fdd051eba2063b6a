//! Packs that were checked and count.

use chunk_format::{ChunkSize, Namespace, PackEntry, PackId};
use sqlx::{QueryBuilder, Sqlite, SqliteExecutor};

use super::namespaces::NamespaceId;
use super::{Connection, DatabaseError, failed, id_bytes, number};

/// Rows of `chunks` written by one statement; five values each stay far below SQLite's 32,766.
const CHUNKS_PER_STATEMENT: usize = 256;

/// A row of `packs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub(crate) struct PackRowId(pub(crate) i64);

/// A pack as the database knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackRow {
    pub(crate) row: PackRowId,
    pub(crate) namespace: NamespaceId,
    pub(crate) pack: PackId,
    pub(crate) len_bytes: u32,
    pub(crate) chunk_size: ChunkSize,
}

/// Row, namespace, id, length and chunk size of a pack.
pub(super) type PackColumns = (PackRowId, NamespaceId, Vec<u8>, i64, i64);

/// Reads the row of a pack.
pub(super) fn stored_pack((row, namespace, id, len, log2): PackColumns) -> Result<PackRow, DatabaseError> {
    Ok(PackRow {
        row,
        namespace,
        pack: PackId::from_bytes(id_bytes("pack id", &id)?),
        len_bytes: number("pack length", len)?,
        chunk_size: chunk_size(log2)?,
    })
}

/// Whether a namespace has this pack, be it condemned.
pub(crate) async fn exists(
    executor: impl SqliteExecutor<'_>,
    namespace: &Namespace,
    pack: PackId,
) -> Result<bool, DatabaseError> {
    sqlx::query_scalar::<_, i64>(
        "SELECT 1 FROM packs JOIN namespaces ON namespaces.id = namespace_id WHERE kind = ? AND name = ? AND pack = ?",
    )
    .bind(namespace.kind())
    .bind(namespace.name().as_str())
    .bind(&pack.as_bytes()[..])
    .fetch_optional(executor)
    .await
    .map(|found| found.is_some())
    .map_err(failed("look up a pack"))
}

/// Adds a pack, or takes back that it was condemned or lost, and its chunks; false when it was there. A chunk that another
/// pack brought stays where it is, unless that one is lost.
pub(crate) async fn insert(
    connection: &mut Connection,
    namespace: NamespaceId,
    pack: PackId,
    len_bytes: u64,
    chunk_size: ChunkSize,
    entries: &[PackEntry],
    now_ms: i64,
) -> Result<bool, DatabaseError> {
    // Whoever sends a pack again is about to need it: its age begins anew.
    let touched: Option<PackRowId> = sqlx::query_scalar(
        "UPDATE packs SET created_ms = ?, lost_ms = NULL
         WHERE namespace_id = ? AND pack = ? AND condemned_ms IS NULL RETURNING id",
    )
    .bind(now_ms)
    .bind(namespace)
    .bind(&pack.as_bytes()[..])
    .fetch_optional(&mut *connection)
    .await
    .map_err(failed("note a pack's use"))?;
    let row = match touched {
        Some(row) => row,
        None => add(connection, namespace, pack, len_bytes, chunk_size, now_ms).await?,
    };
    // Also of a pack that was there: chunks whose rows named another pack went with that one.
    add_chunks(connection, namespace, row, entries).await?;
    Ok(touched.is_none())
}

async fn add(
    connection: &mut Connection,
    namespace: NamespaceId,
    pack: PackId,
    len_bytes: u64,
    chunk_size: ChunkSize,
    now_ms: i64,
) -> Result<PackRowId, DatabaseError> {
    sqlx::query_scalar(
        "INSERT INTO packs (namespace_id, pack, len_bytes, chunk_size_log2, created_ms, is_counted)
         VALUES (?, ?, ?, ?, ?, 0)
         ON CONFLICT (namespace_id, pack)
         DO UPDATE SET condemned_ms = NULL, lost_ms = NULL, is_counted = 0, created_ms = excluded.created_ms
         RETURNING id",
    )
    .bind(namespace)
    .bind(&pack.as_bytes()[..])
    .bind(i64::try_from(len_bytes).unwrap_or(i64::MAX))
    .bind(chunk_size.log2())
    .bind(now_ms)
    .fetch_one(connection)
    .await
    .map_err(failed("add a pack"))
}

async fn add_chunks(
    connection: &mut Connection,
    namespace: NamespaceId,
    row: PackRowId,
    entries: &[PackEntry],
) -> Result<(), DatabaseError> {
    // In the order of the primary key: neighbours share pages.
    let mut sorted: Vec<&PackEntry> = entries.iter().collect();
    sorted.sort_unstable_by_key(|entry| entry.chunk);
    for batch in sorted.chunks(CHUNKS_PER_STATEMENT) {
        let mut statement: QueryBuilder<Sqlite> =
            QueryBuilder::new("INSERT INTO chunks (namespace_id, chunk, pack_id, offset_bytes, frame_len) ");
        statement.push_values(batch, |mut values, entry| {
            values
                .push_bind(namespace)
                .push_bind(&entry.chunk.as_bytes()[..])
                .push_bind(row)
                .push_bind(entry.offset)
                .push_bind(entry.frame_len);
        });
        statement.push(
            " ON CONFLICT (namespace_id, chunk) DO UPDATE
              SET pack_id = excluded.pack_id, offset_bytes = excluded.offset_bytes, frame_len = excluded.frame_len
              WHERE pack_id IN (SELECT id FROM packs WHERE lost_ms IS NOT NULL)",
        );
        // Only the full batch's statement is worth keeping: the others have a length of their own.
        statement
            .build()
            .persistent(batch.len() == CHUNKS_PER_STATEMENT)
            .execute(&mut *connection)
            .await
            .map_err(failed("add chunks"))?;
    }
    Ok(())
}

/// Whether a namespace has this pack, and it is not condemned.
pub(crate) async fn is_live(
    executor: impl SqliteExecutor<'_>,
    namespace: &Namespace,
    pack: PackId,
) -> Result<bool, DatabaseError> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM packs JOIN namespaces ON namespaces.id = namespace_id
         WHERE kind = ? AND name = ? AND pack = ? AND condemned_ms IS NULL)",
    )
    .bind(namespace.kind())
    .bind(namespace.name().as_str())
    .bind(&pack.as_bytes()[..])
    .fetch_one(executor)
    .await
    .map_err(failed("look up a pack"))
}

/// How many of these packs are gone or condemned.
pub(crate) async fn count_gone(
    executor: impl SqliteExecutor<'_>,
    packs: &[PackRowId],
) -> Result<usize, DatabaseError> {
    let live: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM packs WHERE id IN (SELECT value FROM json_each(?)) AND condemned_ms IS NULL",
    )
    .bind(rows_json(packs))
    .fetch_one(executor)
    .await
    .map_err(failed("look up packs"))?;
    Ok(packs.len().saturating_sub(number("count", live)?))
}

/// Whether one of these packs is lost.
pub(crate) async fn any_lost(
    executor: impl SqliteExecutor<'_>,
    packs: &[PackRowId],
) -> Result<bool, DatabaseError> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM packs
                        WHERE id IN (SELECT value FROM json_each(?)) AND lost_ms IS NOT NULL)",
    )
    .bind(rows_json(packs))
    .fetch_one(executor)
    .await
    .map_err(failed("look up packs"))
}

/// Notes that these packs are lost, unless they were sent again since a time; the number and the bytes of those that were not
/// lost before. Their chunks still count as lying there for what is made of them, and not any more for what need not be sent.
pub(crate) async fn lose(
    executor: impl SqliteExecutor<'_>,
    packs: &[PackRowId],
    since_ms: i64,
    now_ms: i64,
) -> Result<(u64, u64), DatabaseError> {
    let lost: Vec<i64> = sqlx::query_scalar(
        "UPDATE packs SET lost_ms = ? WHERE id IN (SELECT value FROM json_each(?))
           AND condemned_ms IS NULL AND lost_ms IS NULL AND created_ms < ? RETURNING len_bytes",
    )
    .bind(now_ms)
    .bind(rows_json(packs))
    .bind(since_ms)
    .fetch_all(executor)
    .await
    .map_err(failed("note lost packs"))?;
    let bytes = lost.iter().map(|len| u64::try_from(*len).unwrap_or(0)).fold(0, u64::saturating_add);
    Ok((lost.len() as u64, bytes))
}

/// Whether the rows of a pack's chunks stay as they were at a time: it is neither condemned nor lost, nor was sent again since.
pub(crate) async fn keeps_rows(
    executor: impl SqliteExecutor<'_>,
    pack: PackRowId,
    since_ms: i64,
) -> Result<bool, DatabaseError> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM packs
                        WHERE id = ? AND condemned_ms IS NULL AND lost_ms IS NULL AND created_ms < ?)",
    )
    .bind(pack)
    .bind(since_ms)
    .fetch_one(executor)
    .await
    .map_err(failed("look up a pack"))
}

/// Packs that are lost and not condemned.
pub(crate) async fn list_lost(executor: impl SqliteExecutor<'_>) -> Result<Vec<PackRow>, DatabaseError> {
    let rows: Vec<PackColumns> = sqlx::query_as(
        "SELECT id, namespace_id, pack, len_bytes, chunk_size_log2 FROM packs
         WHERE lost_ms IS NOT NULL AND condemned_ms IS NULL ORDER BY id",
    )
    .fetch_all(executor)
    .await
    .map_err(failed("list lost packs"))?;
    rows.into_iter().map(stored_pack).collect()
}

/// Rows as one value to bind.
pub(super) fn rows_json(packs: &[PackRowId]) -> String {
    let rows: Vec<String> = packs.iter().map(|pack| pack.0.to_string()).collect();
    format!("[{}]", rows.join(","))
}

/// Packs that are not condemned, in the order of their rows, after this one.
pub(crate) async fn list_after(
    executor: impl SqliteExecutor<'_>,
    after: PackRowId,
    limit: u32,
) -> Result<Vec<PackRow>, DatabaseError> {
    let rows: Vec<PackColumns> = sqlx::query_as(
        "SELECT id, namespace_id, pack, len_bytes, chunk_size_log2 FROM packs
         WHERE id > ? AND condemned_ms IS NULL ORDER BY id LIMIT ?",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list packs"))?;
    rows.into_iter().map(stored_pack).collect()
}

/// Whether there is any pack that is not condemned.
pub(crate) async fn any_counts(executor: impl SqliteExecutor<'_>) -> Result<bool, DatabaseError> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM packs WHERE condemned_ms IS NULL)")
        .fetch_one(executor)
        .await
        .map_err(failed("look for packs"))
}

/// How many packs there are that are not condemned, and their bytes.
pub(crate) async fn totals(executor: impl SqliteExecutor<'_>) -> Result<(u64, u64), DatabaseError> {
    let (count, bytes): (i64, i64) =
        sqlx::query_as("SELECT count(*), coalesce(sum(len_bytes), 0) FROM packs WHERE condemned_ms IS NULL")
            .fetch_one(executor)
            .await
            .map_err(failed("count packs"))?;
    Ok((number("count", count)?, number("sum of lengths", bytes)?))
}

/// Reads a stored chunk size.
pub(crate) fn chunk_size(log2: i64) -> Result<ChunkSize, DatabaseError> {
    let stored = u8::try_from(log2).ok().and_then(|log2| ChunkSize::from_log2(log2).ok());
    stored.ok_or_else(|| DatabaseError::Value { what: "chunk size", found: format!("2^{log2}") })
}
