//! Series of versions: images and desktops.

use chunk_format::{ManifestId, Name, Namespace, PublicKey, Signature};
use sqlx::SqliteExecutor;

use super::namespaces::NamespaceId;
use super::{DatabaseError, failed, id_bytes, number, parsed, public_key};

/// A row of `series`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub(crate) struct SeriesId(pub(crate) i64);

/// A row of `versions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, sqlx::Type)]
#[sqlx(transparent)]
pub(crate) struct VersionRowId(pub(crate) i64);

/// One image's or desktop's series.
#[derive(Clone, Debug)]
pub(crate) struct SeriesRow {
    pub(crate) id: SeriesId,
    pub(crate) name: Name,
    pub(crate) publisher_key: Option<PublicKey>,
    /// The desktop it began on, when it is a fork; there may be none of this name.
    pub(crate) fork_of: Option<Name>,
}

/// A committed version: all that listings show.
#[derive(Clone, Debug)]
pub(crate) struct VersionRow {
    pub(crate) row: VersionRowId,
    pub(crate) id: ManifestId,
    pub(crate) sequence: u64,
    pub(crate) parent: Option<ManifestId>,
    pub(crate) created_ms: u64,
    pub(crate) committed_ms: i64,
    pub(crate) machine: String,
    pub(crate) note: Option<String>,
    pub(crate) signature: Signature,
    pub(crate) size_bytes: u64,
    pub(crate) base: Option<VersionRowId>,
    pub(crate) base_channel: Option<Name>,
    pub(crate) stored_bytes: Option<u64>,
    pub(crate) pruned_ms: Option<i64>,
    pub(crate) purged_ms: Option<i64>,
}

/// A version to be added.
pub(crate) struct NewVersion<'a> {
    pub(crate) series: SeriesId,
    pub(crate) id: ManifestId,
    pub(crate) sequence: i64,
    pub(crate) parent: Option<ManifestId>,
    pub(crate) created_ms: i64,
    pub(crate) committed_ms: i64,
    pub(crate) machine: &'a str,
    pub(crate) note: Option<&'a str>,
    pub(crate) signature: &'a Signature,
    pub(crate) size_bytes: i64,
    pub(crate) base: Option<VersionRowId>,
    pub(crate) base_channel: Option<&'a Name>,
    pub(crate) stored_bytes: i64,
}

#[derive(sqlx::FromRow)]
struct StoredSeries {
    id: SeriesId,
    name: String,
    publisher_key: Option<Vec<u8>>,
    fork_of: Option<String>,
}

impl TryFrom<StoredSeries> for SeriesRow {
    type Error = DatabaseError;

    fn try_from(row: StoredSeries) -> Result<Self, DatabaseError> {
        let publisher_key =
            row.publisher_key.as_deref().map(|key| public_key("publisher key", key)).transpose()?;
        Ok(Self {
            id: row.id,
            name: parsed("series name", &row.name)?,
            publisher_key,
            fork_of: row.fork_of.as_deref().map(|name| parsed("name of a desktop", name)).transpose()?,
        })
    }
}

#[derive(sqlx::FromRow)]
struct StoredVersion {
    id: VersionRowId,
    manifest: Vec<u8>,
    sequence: i64,
    parent: Option<Vec<u8>>,
    created_ms: i64,
    committed_ms: i64,
    machine: String,
    note: Option<String>,
    signature: String,
    size_bytes: i64,
    base_version_id: Option<VersionRowId>,
    base_channel: Option<String>,
    stored_bytes: Option<i64>,
    pruned_ms: Option<i64>,
    purged_ms: Option<i64>,
}

impl TryFrom<StoredVersion> for VersionRow {
    type Error = DatabaseError;

    fn try_from(row: StoredVersion) -> Result<Self, DatabaseError> {
        let id = |bytes: &[u8]| Ok(ManifestId::from_bytes(id_bytes("version id", bytes)?));
        Ok(Self {
            row: row.id,
            id: id(&row.manifest)?,
            sequence: number("sequence", row.sequence)?,
            parent: row.parent.as_deref().map(id).transpose()?,
            created_ms: number("time", row.created_ms)?,
            committed_ms: row.committed_ms,
            machine: row.machine,
            note: row.note,
            signature: parsed("signature", &row.signature)?,
            size_bytes: number("size", row.size_bytes)?,
            base: row.base_version_id,
            base_channel: row.base_channel.map(|name| parsed("channel", &name)).transpose()?,
            stored_bytes: row.stored_bytes.map(|bytes| number("size", bytes)).transpose()?,
            pruned_ms: row.pruned_ms,
            purged_ms: row.purged_ms,
        })
    }
}

/// A namespace's series of this name, unless it was removed.
pub(crate) async fn find_series(
    executor: impl SqliteExecutor<'_>,
    namespace: NamespaceId,
    name: &Name,
) -> Result<Option<SeriesRow>, DatabaseError> {
    sqlx::query_as::<_, StoredSeries>(
        "SELECT id, name, publisher_key, fork_of FROM series
         WHERE namespace_id = ? AND name = ? AND removed_ms IS NULL",
    )
    .bind(namespace)
    .bind(name.as_str())
    .fetch_optional(executor)
    .await
    .map_err(failed("look up a series"))?
    .map(TryInto::try_into)
    .transpose()
}

/// All series of the images, or all of one user, by name.
pub(crate) async fn list_series(
    executor: impl SqliteExecutor<'_>,
    owner: Option<&Namespace>,
) -> Result<Vec<SeriesRow>, DatabaseError> {
    let (kind, name) = owner.map_or(("image", None), |owner| (owner.kind(), Some(owner.name().as_str())));
    sqlx::query_as::<_, StoredSeries>(
        "SELECT series.id, series.name, publisher_key, fork_of FROM series JOIN namespaces ON namespaces.id = namespace_id
         WHERE kind = ?1 AND (?2 IS NULL OR namespaces.name = ?2) AND removed_ms IS NULL ORDER BY series.name",
    )
    .bind(kind)
    .bind(name)
    .fetch_all(executor)
    .await
    .map_err(failed("list series"))?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// Adds a series; a publisher key for an image, none for a desktop, which may be a fork of another.
pub(crate) async fn insert_series(
    executor: impl SqliteExecutor<'_>,
    namespace: NamespaceId,
    name: &Name,
    publisher_key: Option<&PublicKey>,
    fork_of: Option<&Name>,
    now_ms: i64,
) -> Result<SeriesId, DatabaseError> {
    sqlx::query_scalar(
        "INSERT INTO series (namespace_id, name, publisher_key, fork_of, created_ms) VALUES (?, ?, ?, ?, ?) RETURNING id",
    )
    .bind(namespace)
    .bind(name.as_str())
    .bind(publisher_key.map(|key| &key.as_bytes()[..]))
    .bind(fork_of.map(Name::as_str))
    .bind(now_ms)
    .fetch_one(executor)
    .await
    .map_err(failed("add a series"))
}

/// The newest version of a series.
pub(crate) async fn head(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
) -> Result<Option<VersionRow>, DatabaseError> {
    Ok(list(executor, series, None, 1, Listed::Kept).await?.pop())
}

/// Which versions a listing has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    /// Those whose content is kept.
    Kept,
    /// Those that were pruned as well.
    All,
}

/// Versions of a series below a sequence, newest first.
pub(crate) async fn list(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
    before: Option<i64>,
    limit: u32,
    listed: Listed,
) -> Result<Vec<VersionRow>, DatabaseError> {
    sqlx::query_as::<_, StoredVersion>(
        "SELECT * FROM versions WHERE series_id = ? AND sequence < ? AND (? OR pruned_ms IS NULL)
         ORDER BY sequence DESC LIMIT ?",
    )
    .bind(series)
    .bind(before.unwrap_or(i64::MAX))
    .bind(listed == Listed::All)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list versions"))?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// The first version of a series: what names a desktop for ever.
pub(crate) async fn first(
    executor: impl SqliteExecutor<'_>,
    series: SeriesId,
) -> Result<Option<VersionRow>, DatabaseError> {
    one(executor, "SELECT * FROM versions WHERE series_id = ? ORDER BY sequence LIMIT 1", series).await
}

/// A version by its row.
pub(crate) async fn get(
    executor: impl SqliteExecutor<'_>,
    row: VersionRowId,
) -> Result<Option<VersionRow>, DatabaseError> {
    one(executor, "SELECT * FROM versions WHERE id = ?", row).await
}

async fn one<'q, Id>(
    executor: impl SqliteExecutor<'_>,
    sql: &'static str,
    id: Id,
) -> Result<Option<VersionRow>, DatabaseError>
where
    Id: sqlx::Encode<'q, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite> + 'q,
{
    sqlx::query_as::<_, StoredVersion>(sql)
        .bind(id)
        .fetch_optional(executor)
        .await
        .map_err(failed("look up a version"))?
        .map(TryInto::try_into)
        .transpose()
}

/// A version by its manifest, within one namespace.
pub(crate) async fn find(
    executor: impl SqliteExecutor<'_>,
    namespace: &Namespace,
    id: ManifestId,
) -> Result<Option<VersionRow>, DatabaseError> {
    sqlx::query_as::<_, StoredVersion>(
        "SELECT versions.* FROM versions
         JOIN series ON series.id = series_id JOIN namespaces ON namespaces.id = series.namespace_id
         WHERE manifest = ? AND kind = ? AND namespaces.name = ?",
    )
    .bind(&id.as_bytes()[..])
    .bind(namespace.kind())
    .bind(namespace.name().as_str())
    .fetch_optional(executor)
    .await
    .map_err(failed("look up a version"))?
    .map(TryInto::try_into)
    .transpose()
}

/// The series a version belongs to, by the name it had if it was removed, and its namespace.
pub(crate) async fn series_of(
    executor: impl SqliteExecutor<'_>,
    version: VersionRowId,
) -> Result<(Namespace, Name), DatabaseError> {
    let (kind, namespace, name): (String, String, String) = sqlx::query_as(
        "SELECT kind, namespaces.name, coalesce(removed_name, series.name) FROM versions
         JOIN series ON series.id = series_id JOIN namespaces ON namespaces.id = series.namespace_id
         WHERE versions.id = ?",
    )
    .bind(version)
    .fetch_one(executor)
    .await
    .map_err(failed("look up a version's series"))?;
    Ok((parsed("namespace", &format!("{kind}/{namespace}"))?, parsed("series name", &name)?))
}

/// Adds a version. `UNIQUE (series_id, sequence)` lets one of several racing commits through.
pub(crate) async fn insert(
    executor: impl SqliteExecutor<'_>,
    new: &NewVersion<'_>,
) -> Result<VersionRow, DatabaseError> {
    sqlx::query_as::<_, StoredVersion>(
        "INSERT INTO versions (series_id, manifest, sequence, parent, created_ms, committed_ms, machine, note, signature,
                               size_bytes, base_version_id, base_channel, stored_bytes)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING *",
    )
    .bind(new.series)
    .bind(&new.id.as_bytes()[..])
    .bind(new.sequence)
    .bind(new.parent.as_ref().map(|parent| &parent.as_bytes()[..]))
    .bind(new.created_ms)
    .bind(new.committed_ms)
    .bind(new.machine)
    .bind(new.note)
    .bind(new.signature.to_string())
    .bind(new.size_bytes)
    .bind(new.base)
    .bind(new.base_channel.map(Name::as_str))
    .bind(new.stored_bytes)
    .fetch_one(executor)
    .await
    .map_err(failed("add a version"))?
    .try_into()
}

/// Versions of all series that were not pruned, in the order of their rows, after this one.
pub(crate) async fn list_after(
    executor: impl SqliteExecutor<'_>,
    after: VersionRowId,
    limit: u32,
) -> Result<Vec<VersionRow>, DatabaseError> {
    sqlx::query_as::<_, StoredVersion>(
        "SELECT * FROM versions WHERE id > ? AND pruned_ms IS NULL ORDER BY id LIMIT ?",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(executor)
    .await
    .map_err(failed("list versions"))?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// How many versions there are that were not pruned, of all series.
pub(crate) async fn count(executor: impl SqliteExecutor<'_>) -> Result<u64, DatabaseError> {
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM versions WHERE pruned_ms IS NULL")
        .fetch_one(executor)
        .await
        .map_err(failed("count versions"))?;
    number("count", count)
}
