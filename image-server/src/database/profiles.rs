//! Boot profiles and the objects of their streams.

use chunk_format::{Namespace, ProfileId, Signature, StreamId};
use sqlx::SqliteExecutor;

use super::namespaces::NamespaceId;
use super::versions::VersionRowId;
use super::{Connection, DatabaseError, failed, id_bytes, number, parsed};

/// A row of `profiles`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub(crate) struct ProfileRowId(pub(crate) i64);

/// A row of `streams`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub(crate) struct StreamRowId(pub(crate) i64);

/// A profile of a version.
#[derive(Clone, Debug)]
pub(crate) struct ProfileRow {
    pub(crate) row: ProfileRowId,
    pub(crate) version: VersionRowId,
    pub(crate) profile: ProfileId,
    pub(crate) signature: Signature,
}

/// An object of a boot stream.
#[derive(Clone, Debug)]
pub(crate) struct StreamRow {
    pub(crate) row: StreamRowId,
    pub(crate) namespace: NamespaceId,
    pub(crate) stream: StreamId,
    pub(crate) len_bytes: u64,
}

/// Notes an object of a boot stream, or takes back that it was condemned; false when it was there.
pub(crate) async fn insert_stream(
    connection: &mut Connection,
    namespace: NamespaceId,
    stream: StreamId,
    len_bytes: u32,
    now_ms: i64,
) -> Result<bool, DatabaseError> {
    let known = sqlx::query(
        "UPDATE streams SET condemned_ms = NULL, created_ms = ? WHERE namespace_id = ? AND stream = ?",
    )
    .bind(now_ms)
    .bind(namespace)
    .bind(&stream.as_bytes()[..])
    .execute(&mut *connection)
    .await
    .map_err(failed("note a stream's use"))?;
    if known.rows_affected() > 0 {
        return Ok(false);
    }
    sqlx::query("INSERT INTO streams (namespace_id, stream, len_bytes, created_ms) VALUES (?, ?, ?, ?)")
        .bind(namespace)
        .bind(&stream.as_bytes()[..])
        .bind(len_bytes)
        .bind(now_ms)
        .execute(connection)
        .await
        .map(|_| true)
        .map_err(failed("add a stream"))
}

/// The length of an object of a boot stream, if it is there and not condemned.
pub(crate) async fn stream_len(
    executor: impl SqliteExecutor<'_>,
    namespace: &Namespace,
    stream: StreamId,
) -> Result<Option<u64>, DatabaseError> {
    let len: Option<i64> = sqlx::query_scalar(
        "SELECT len_bytes FROM streams JOIN namespaces ON namespaces.id = namespace_id
         WHERE stream = ? AND kind = ? AND name = ? AND condemned_ms IS NULL",
    )
    .bind(&stream.as_bytes()[..])
    .bind(namespace.kind())
    .bind(namespace.name().as_str())
    .fetch_optional(executor)
    .await
    .map_err(failed("look up a stream"))?;
    len.map(|len| number("stream length", len)).transpose()
}

/// Whether an object of a boot stream is there, be it condemned.
pub(crate) async fn stream_exists(
    executor: impl SqliteExecutor<'_>,
    namespace: &Namespace,
    stream: StreamId,
) -> Result<bool, DatabaseError> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM streams JOIN namespaces ON namespaces.id = namespace_id
         WHERE stream = ? AND kind = ? AND name = ?)",
    )
    .bind(&stream.as_bytes()[..])
    .bind(namespace.kind())
    .bind(namespace.name().as_str())
    .fetch_one(executor)
    .await
    .map_err(failed("look up a stream"))
}

/// Makes a profile the one of its version; false when it was already.
pub(crate) async fn attach(
    connection: &mut Connection,
    version: VersionRowId,
    profile: ProfileId,
    signature: &Signature,
    now_ms: i64,
) -> Result<bool, DatabaseError> {
    if current(&mut *connection, version).await? == Some(profile) {
        return Ok(false);
    }
    sqlx::query(
        "INSERT OR REPLACE INTO profiles (version_id, profile, signature, created_ms) VALUES (?, ?, ?, ?)",
    )
    .bind(version)
    .bind(&profile.as_bytes()[..])
    .bind(signature.to_string())
    .bind(now_ms)
    .execute(connection)
    .await
    .map(|_| true)
    .map_err(failed("attach a profile"))
}

/// The profile of a version.
pub(crate) async fn current(
    executor: impl SqliteExecutor<'_>,
    version: VersionRowId,
) -> Result<Option<ProfileId>, DatabaseError> {
    let id: Option<Vec<u8>> =
        sqlx::query_scalar("SELECT profile FROM profiles WHERE version_id = ? ORDER BY id DESC LIMIT 1")
            .bind(version)
            .fetch_optional(executor)
            .await
            .map_err(failed("look up a profile"))?;
    id.map(|id| Ok(ProfileId::from_bytes(id_bytes("profile id", &id)?))).transpose()
}

/// Whether a profile is the one of its version, and that version was not pruned.
pub(crate) async fn is_current(
    executor: impl SqliteExecutor<'_>,
    profile: ProfileRowId,
) -> Result<bool, DatabaseError> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM profiles JOIN versions ON versions.id = version_id AND pruned_ms IS NULL
         WHERE profiles.id = ? AND NOT EXISTS (
           SELECT 1 FROM profiles AS later WHERE later.version_id = profiles.version_id AND later.id > profiles.id))",
    )
    .bind(profile)
    .fetch_one(executor)
    .await
    .map_err(failed("look up a profile"))
}

/// Whether a profile is, or was, one of a version of this namespace.
pub(crate) async fn exists(
    executor: impl SqliteExecutor<'_>,
    namespace: &Namespace,
    profile: ProfileId,
) -> Result<bool, DatabaseError> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT 1 FROM profiles JOIN versions ON versions.id = version_id
         JOIN series ON series.id = series_id JOIN namespaces ON namespaces.id = series.namespace_id
         WHERE profile = ? AND kind = ? AND namespaces.name = ?)",
    )
    .bind(&profile.as_bytes()[..])
    .bind(namespace.kind())
    .bind(namespace.name().as_str())
    .fetch_one(executor)
    .await
    .map_err(failed("look up a profile"))
}

/// Profiles of versions that were not pruned, in the order of their rows, after this one.
pub(crate) async fn list_after(
    executor: impl SqliteExecutor<'_>,
    after: ProfileRowId,
    limit: u32,
) -> Result<Vec<ProfileRow>, DatabaseError> {
    let rows: Vec<(ProfileRowId, VersionRowId, Vec<u8>, String)> = sqlx::query_as(
        "SELECT profiles.id, version_id, profile, profiles.signature FROM profiles
         JOIN versions ON versions.id = version_id AND pruned_ms IS NULL
         WHERE profiles.id > ? ORDER BY profiles.id LIMIT ?",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list profiles"))?;
    rows.into_iter()
        .map(|(row, version, id, signature)| {
            let profile = ProfileId::from_bytes(id_bytes("profile id", &id)?);
            Ok(ProfileRow { row, version, profile, signature: parsed("signature", &signature)? })
        })
        .collect()
}

/// Objects of boot streams in the order of their rows, after this one.
pub(crate) async fn list_streams_after(
    executor: impl SqliteExecutor<'_>,
    after: StreamRowId,
    limit: u32,
) -> Result<Vec<StreamRow>, DatabaseError> {
    let rows: Vec<(StreamRowId, NamespaceId, Vec<u8>, i64)> = sqlx::query_as(
        "SELECT id, namespace_id, stream, len_bytes FROM streams
         WHERE id > ? AND condemned_ms IS NULL ORDER BY id LIMIT ?",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list streams"))?;
    rows.into_iter()
        .map(|(row, namespace, id, len_bytes)| {
            let stream = StreamId::from_bytes(id_bytes("stream id", &id)?);
            Ok(StreamRow { row, namespace, stream, len_bytes: number("stream length", len_bytes)? })
        })
        .collect()
}

/// How many profiles and objects of streams there are.
pub(crate) async fn count(executor: impl SqliteExecutor<'_>) -> Result<u64, DatabaseError> {
    let count: i64 =
        sqlx::query_scalar("SELECT (SELECT count(*) FROM profiles) + (SELECT count(*) FROM streams)")
            .fetch_one(executor)
            .await
            .map_err(failed("count profiles"))?;
    number("count", count)
}
