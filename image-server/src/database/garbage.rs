//! What the garbage collector asks and tells the database. Everything here goes by batches, in the order of rows, so that no
//! transaction holds the database for long.

use std::ops::Range;

use chunk_format::{ChunkId, ID_BYTES, ManifestId, Namespace, PackId, ProfileId, SegmentId, StreamId};
use sqlx::SqliteExecutor;

use super::namespaces::NamespaceId;
use super::packs::{PackColumns, PackRow, PackRowId, stored_pack};
use super::profiles::{ProfileRowId, StreamRow, StreamRowId};
use super::segments::SegmentRowId;
use super::versions::VersionRowId;
use super::{Connection, DatabaseError, failed, id_bytes, number, parsed};

/// A segment, condemned or not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredSegment {
    pub(crate) row: SegmentRowId,
    pub(crate) namespace: NamespaceId,
    pub(crate) segment: SegmentId,
}

/// A profile and what it is a profile of.
#[derive(Clone, Debug)]
pub(crate) struct StoredProfile {
    pub(crate) row: ProfileRowId,
    pub(crate) namespace: Namespace,
    pub(crate) profile: ProfileId,
}

/// A version that was pruned.
#[derive(Clone, Debug)]
pub(crate) struct PrunedVersion {
    pub(crate) row: VersionRowId,
    pub(crate) namespace: Namespace,
    pub(crate) id: ManifestId,
}

type SegmentColumns = (SegmentRowId, NamespaceId, Vec<u8>);

fn stored_segment((row, namespace, id): SegmentColumns) -> Result<StoredSegment, DatabaseError> {
    Ok(StoredSegment { row, namespace, segment: SegmentId::from_bytes(id_bytes("segment id", &id)?) })
}

/// When what was last sent is old, in milliseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Old {
    /// What a version was committed with.
    pub(crate) committed_ms: i64,
    /// What no version was committed with yet: its upload may be under way.
    pub(crate) uncommitted_ms: i64,
}

/// Whether anything that was stored is known: a pack, or a version, be it pruned.
pub(crate) async fn knows_objects(executor: impl SqliteExecutor<'_>) -> Result<bool, DatabaseError> {
    sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM packs) OR EXISTS (SELECT 1 FROM versions)")
        .fetch_one(executor)
        .await
        .map_err(failed("look whether anything is stored"))
}

/// Segments that count and are old, after this row.
pub(crate) async fn old_segments(
    executor: impl SqliteExecutor<'_>,
    after: SegmentRowId,
    old: Old,
    limit: u32,
) -> Result<Vec<StoredSegment>, DatabaseError> {
    let rows: Vec<SegmentColumns> = sqlx::query_as(
        "SELECT id, namespace_id, segment FROM segments
         WHERE id > ? AND condemned_ms IS NULL AND created_ms <= iif(is_counted, ?, ?) ORDER BY id LIMIT ?",
    )
    .bind(after)
    .bind(old.committed_ms)
    .bind(old.uncommitted_ms)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list segments"))?;
    rows.into_iter().map(stored_segment).collect()
}

/// Segments that count and of which it is not noted which packs they keep, after this row.
pub(crate) async fn segments_without_packs(
    executor: impl SqliteExecutor<'_>,
    after: SegmentRowId,
    limit: u32,
) -> Result<Vec<StoredSegment>, DatabaseError> {
    let rows: Vec<SegmentColumns> = sqlx::query_as(
        "SELECT id, namespace_id, segment FROM segments
         WHERE id > ? AND has_packs = 0 AND condemned_ms IS NULL ORDER BY id LIMIT ?",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list segments"))?;
    rows.into_iter().map(stored_segment).collect()
}

/// Notes that all packs of a segment are noted.
pub(crate) async fn set_has_packs(
    executor: impl SqliteExecutor<'_>,
    segment: SegmentRowId,
) -> Result<(), DatabaseError> {
    sqlx::query("UPDATE segments SET has_packs = 1 WHERE id = ?")
        .bind(segment)
        .execute(executor)
        .await
        .map(drop)
        .map_err(failed("note a segment's packs"))
}

/// The row of a pack.
pub(crate) async fn pack_row(
    executor: impl SqliteExecutor<'_>,
    namespace: &Namespace,
    pack: PackId,
) -> Result<Option<PackRowId>, DatabaseError> {
    sqlx::query_scalar(
        "SELECT packs.id FROM packs JOIN namespaces ON namespaces.id = namespace_id
         WHERE kind = ? AND name = ? AND pack = ?",
    )
    .bind(namespace.kind())
    .bind(namespace.name().as_str())
    .bind(&pack.as_bytes()[..])
    .fetch_optional(executor)
    .await
    .map_err(failed("look up a pack"))
}

/// Condemns a segment.
pub(crate) async fn condemn_segment(
    executor: impl SqliteExecutor<'_>,
    segment: SegmentRowId,
    now_ms: i64,
) -> Result<(), DatabaseError> {
    sqlx::query("UPDATE segments SET condemned_ms = ? WHERE id = ? AND condemned_ms IS NULL")
        .bind(now_ms)
        .bind(segment)
        .execute(executor)
        .await
        .map(drop)
        .map_err(failed("condemn a segment"))
}

/// Packs after the first of two rows and up to the other that count, are old, and that no segment which counts needs.
pub(crate) async fn unneeded_packs(
    executor: impl SqliteExecutor<'_>,
    within: &Range<PackRowId>,
    old: Old,
    limit: u32,
) -> Result<Vec<PackRow>, DatabaseError> {
    let rows: Vec<PackColumns> = sqlx::query_as(
        "SELECT id, namespace_id, pack, len_bytes, chunk_size_log2 FROM packs
         WHERE id > ? AND id <= ? AND condemned_ms IS NULL AND created_ms <= iif(is_counted, ?, ?) AND NOT EXISTS (
           SELECT 1 FROM segment_packs JOIN segments ON segments.id = segment_id
           WHERE pack_id = packs.id AND segments.condemned_ms IS NULL)
         ORDER BY id LIMIT ?",
    )
    .bind(within.start)
    .bind(within.end)
    .bind(old.committed_ms)
    .bind(old.uncommitted_ms)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list packs"))?;
    rows.into_iter().map(stored_pack).collect()
}

/// The row of a pack so many rows on; none when there are no more.
pub(crate) async fn pack_rows_on(
    executor: impl SqliteExecutor<'_>,
    after: PackRowId,
    rows: u32,
) -> Result<Option<PackRowId>, DatabaseError> {
    sqlx::query_scalar("SELECT max(id) FROM (SELECT id FROM packs WHERE id > ? ORDER BY id LIMIT ?)")
        .bind(after)
        .bind(rows)
        .fetch_one(executor)
        .await
        .map_err(failed("list packs"))
}

/// Packs that count and are old, after this row.
pub(crate) async fn old_packs(
    executor: impl SqliteExecutor<'_>,
    after: PackRowId,
    old: Old,
    limit: u32,
) -> Result<Vec<PackRow>, DatabaseError> {
    let rows: Vec<PackColumns> = sqlx::query_as(
        "SELECT id, namespace_id, pack, len_bytes, chunk_size_log2 FROM packs
         WHERE id > ? AND condemned_ms IS NULL AND created_ms <= iif(is_counted, ?, ?) ORDER BY id LIMIT ?",
    )
    .bind(after)
    .bind(old.committed_ms)
    .bind(old.uncommitted_ms)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list packs"))?;
    rows.into_iter().map(stored_pack).collect()
}

/// The segments that count and need a pack.
pub(crate) async fn counting_segments_of(
    executor: impl SqliteExecutor<'_>,
    pack: PackRowId,
) -> Result<Vec<SegmentRowId>, DatabaseError> {
    sqlx::query_scalar(
        "SELECT segments.id FROM segment_packs JOIN segments ON segments.id = segment_id
         WHERE pack_id = ? AND condemned_ms IS NULL",
    )
    .bind(pack)
    .fetch_all(executor)
    .await
    .map_err(failed("look for a pack's segments"))
}

/// Condemns a pack: its chunks lack from here on. `chunks` are those of its table; none when that cannot be read, which
/// makes for a slow search.
pub(crate) async fn condemn_pack(
    connection: &mut Connection,
    pack: &PackRow,
    chunks: Option<&[ChunkId]>,
    now_ms: i64,
) -> Result<(), DatabaseError> {
    let forget = failed("forget a pack's chunks");
    match chunks {
        Some([]) => {}
        Some(chunks) => {
            let ids: Vec<[u8; ID_BYTES]> = chunks.iter().map(|chunk| *chunk.as_bytes()).collect();
            sqlx::query(
                "WITH RECURSIVE asked (i) AS (VALUES (0) UNION ALL SELECT i + 1 FROM asked WHERE i + 1 < ?3)
                 DELETE FROM chunks WHERE namespace_id = ?1 AND pack_id = ?4
                   AND chunk IN (SELECT substr(?2, i * 32 + 1, 32) FROM asked)",
            )
            .bind(pack.namespace)
            .bind(ids.concat())
            .bind(i64::try_from(ids.len()).unwrap_or(i64::MAX))
            .bind(pack.row)
            .execute(&mut *connection)
            .await
            .map_err(forget)?;
        }
        None => {
            sqlx::query("DELETE FROM chunks WHERE namespace_id = ? AND pack_id = ?")
                .bind(pack.namespace)
                .bind(pack.row)
                .execute(&mut *connection)
                .await
                .map_err(forget)?;
        }
    }
    sqlx::query("UPDATE packs SET condemned_ms = ? WHERE id = ? AND condemned_ms IS NULL")
        .bind(now_ms)
        .bind(pack.row)
        .execute(connection)
        .await
        .map(drop)
        .map_err(failed("condemn a pack"))
}

type ProfileColumns = (ProfileRowId, String, String, Vec<u8>);

fn stored_profile((row, kind, name, id): ProfileColumns) -> Result<StoredProfile, DatabaseError> {
    let namespace = parsed("namespace", &format!("{kind}/{name}"))?;
    Ok(StoredProfile { row, namespace, profile: ProfileId::from_bytes(id_bytes("profile id", &id)?) })
}

/// All profiles that can be read, after this row.
pub(crate) async fn profiles_after(
    executor: impl SqliteExecutor<'_>,
    after: ProfileRowId,
    limit: u32,
) -> Result<Vec<StoredProfile>, DatabaseError> {
    let rows: Vec<ProfileColumns> = sqlx::query_as(
        "SELECT profiles.id, kind, namespaces.name, profile FROM profiles
         JOIN versions ON versions.id = version_id JOIN series ON series.id = series_id
         JOIN namespaces ON namespaces.id = series.namespace_id
         WHERE profiles.id > ? ORDER BY profiles.id LIMIT ?",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list profiles"))?;
    rows.into_iter().map(stored_profile).collect()
}

/// Profiles that another one took the place of before a time.
pub(crate) async fn replaced_profiles(
    executor: impl SqliteExecutor<'_>,
    before_ms: i64,
    limit: u32,
) -> Result<Vec<StoredProfile>, DatabaseError> {
    let rows: Vec<ProfileColumns> = sqlx::query_as(
        "SELECT profiles.id, kind, namespaces.name, profile FROM profiles
         JOIN versions ON versions.id = version_id JOIN series ON series.id = series_id
         JOIN namespaces ON namespaces.id = series.namespace_id
         WHERE EXISTS (SELECT 1 FROM profiles AS later WHERE later.version_id = profiles.version_id
                       AND later.id > profiles.id AND later.created_ms <= ?)
         ORDER BY profiles.id LIMIT ?",
    )
    .bind(before_ms)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list profiles"))?;
    rows.into_iter().map(stored_profile).collect()
}

/// The profiles of a version.
pub(crate) async fn profiles_of(
    executor: impl SqliteExecutor<'_>,
    version: VersionRowId,
) -> Result<Vec<ProfileId>, DatabaseError> {
    let rows: Vec<Vec<u8>> = sqlx::query_scalar("SELECT profile FROM profiles WHERE version_id = ?")
        .bind(version)
        .fetch_all(executor)
        .await
        .map_err(failed("list profiles"))?;
    rows.iter().map(|id| Ok(ProfileId::from_bytes(id_bytes("profile id", id)?))).collect()
}

/// Removes the row of a profile.
pub(crate) async fn remove_profile(
    executor: impl SqliteExecutor<'_>,
    profile: ProfileRowId,
) -> Result<(), DatabaseError> {
    remove(executor, "DELETE FROM profiles WHERE id = ?", profile.0).await
}

/// Objects of boot streams that count and were last sent before a time, after this row.
pub(crate) async fn old_streams(
    executor: impl SqliteExecutor<'_>,
    after: StreamRowId,
    before_ms: i64,
    limit: u32,
) -> Result<Vec<StreamRow>, DatabaseError> {
    let rows: Vec<StreamColumns> = sqlx::query_as(
        "SELECT id, namespace_id, stream, len_bytes FROM streams
         WHERE id > ? AND condemned_ms IS NULL AND created_ms <= ? ORDER BY id LIMIT ?",
    )
    .bind(after)
    .bind(before_ms)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list streams"))?;
    rows.into_iter().map(stored_stream).collect()
}

type StreamColumns = (StreamRowId, NamespaceId, Vec<u8>, i64);

fn stored_stream((row, namespace, id, len): StreamColumns) -> Result<StreamRow, DatabaseError> {
    let stream = StreamId::from_bytes(id_bytes("stream id", &id)?);
    Ok(StreamRow { row, namespace, stream, len_bytes: number("stream length", len)? })
}

/// Condemns an object of a boot stream.
pub(crate) async fn condemn_stream(
    executor: impl SqliteExecutor<'_>,
    stream: StreamRowId,
    now_ms: i64,
) -> Result<(), DatabaseError> {
    sqlx::query("UPDATE streams SET condemned_ms = ? WHERE id = ? AND condemned_ms IS NULL")
        .bind(now_ms)
        .bind(stream)
        .execute(executor)
        .await
        .map(drop)
        .map_err(failed("condemn a stream"))
}

/// Versions pruned before a time whose manifests are still there.
pub(crate) async fn unpurged_versions(
    executor: impl SqliteExecutor<'_>,
    before_ms: i64,
    limit: u32,
) -> Result<Vec<PrunedVersion>, DatabaseError> {
    let rows: Vec<(VersionRowId, String, String, Vec<u8>)> = sqlx::query_as(
        "SELECT versions.id, kind, namespaces.name, manifest FROM versions
         JOIN series ON series.id = series_id JOIN namespaces ON namespaces.id = series.namespace_id
         WHERE pruned_ms <= ? AND purged_ms IS NULL ORDER BY versions.id LIMIT ?",
    )
    .bind(before_ms)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list pruned versions"))?;
    rows.into_iter()
        .map(|(row, kind, name, id)| {
            let namespace = parsed("namespace", &format!("{kind}/{name}"))?;
            Ok(PrunedVersion { row, namespace, id: ManifestId::from_bytes(id_bytes("version id", &id)?) })
        })
        .collect()
}

/// Notes that a pruned version's manifest and profiles are gone.
pub(crate) async fn purge(
    connection: &mut Connection,
    version: VersionRowId,
    now_ms: i64,
) -> Result<(), DatabaseError> {
    sqlx::query("DELETE FROM profiles WHERE version_id = ?")
        .bind(version)
        .execute(&mut *connection)
        .await
        .map_err(failed("forget a version's profiles"))?;
    sqlx::query("UPDATE versions SET purged_ms = ? WHERE id = ?")
        .bind(now_ms)
        .bind(version)
        .execute(connection)
        .await
        .map(drop)
        .map_err(failed("purge a version"))
}

/// Segments condemned before a time.
pub(crate) async fn condemned_segments(
    executor: impl SqliteExecutor<'_>,
    before_ms: i64,
    limit: u32,
) -> Result<Vec<StoredSegment>, DatabaseError> {
    let rows: Vec<SegmentColumns> = sqlx::query_as(
        "SELECT id, namespace_id, segment FROM segments WHERE condemned_ms <= ? ORDER BY condemned_ms LIMIT ?",
    )
    .bind(before_ms)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list segments"))?;
    rows.into_iter().map(stored_segment).collect()
}

/// Packs condemned before a time.
pub(crate) async fn condemned_packs(
    executor: impl SqliteExecutor<'_>,
    before_ms: i64,
    limit: u32,
) -> Result<Vec<PackRow>, DatabaseError> {
    let rows: Vec<PackColumns> = sqlx::query_as(
        "SELECT id, namespace_id, pack, len_bytes, chunk_size_log2 FROM packs
         WHERE condemned_ms <= ? ORDER BY condemned_ms LIMIT ?",
    )
    .bind(before_ms)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list packs"))?;
    rows.into_iter().map(stored_pack).collect()
}

/// Objects of boot streams condemned before a time.
pub(crate) async fn condemned_streams(
    executor: impl SqliteExecutor<'_>,
    before_ms: i64,
    limit: u32,
) -> Result<Vec<StreamRow>, DatabaseError> {
    let rows: Vec<StreamColumns> = sqlx::query_as(
        "SELECT id, namespace_id, stream, len_bytes FROM streams WHERE condemned_ms <= ? ORDER BY condemned_ms LIMIT ?",
    )
    .bind(before_ms)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list streams"))?;
    rows.into_iter().map(stored_stream).collect()
}

/// Removes the row of a segment, and what is noted of its packs.
pub(crate) async fn remove_segment(
    executor: impl SqliteExecutor<'_>,
    segment: SegmentRowId,
) -> Result<(), DatabaseError> {
    remove(executor, "DELETE FROM segments WHERE id = ?", segment.0).await
}

/// Removes the row of a pack that no chunk is said to lie in.
pub(crate) async fn remove_pack(
    executor: impl SqliteExecutor<'_>,
    pack: PackRowId,
) -> Result<(), DatabaseError> {
    remove(executor, "DELETE FROM packs WHERE id = ?", pack.0).await
}

/// Removes the row of an object of a boot stream.
pub(crate) async fn remove_stream(
    executor: impl SqliteExecutor<'_>,
    stream: StreamRowId,
) -> Result<(), DatabaseError> {
    remove(executor, "DELETE FROM streams WHERE id = ?", stream.0).await
}

async fn remove(executor: impl SqliteExecutor<'_>, sql: &'static str, row: i64) -> Result<(), DatabaseError> {
    sqlx::query(sql).bind(row).execute(executor).await.map(drop).map_err(failed("remove a row"))
}
