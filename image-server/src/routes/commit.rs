//! Committing versions: `POST /v1/images/IMAGE/versions` and `POST /v1/desktops/DESKTOP/versions`.
//!
//! The same checks are made twice: before the manifest is stored, so that a refused commit leaves nothing behind, and in
//! the transaction that adds the version, so that what was checked holds at the moment it appears. The transaction has
//! the write lock from its start, and the version's sequence is unique in its series: of several commits on one parent,
//! one wins.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use chunk_format::{
    ID_BYTES, MAX_MANIFEST_BYTES, MAX_SIGNATURE_BYTES, Manifest, ManifestId, Name, Namespace, Signature,
    Subject,
};

use crate::app::App;
use crate::clock::now_ms;
use crate::database::channels::{self, ChannelMove};
use crate::database::chunks::{self, IdTable};
use crate::database::namespaces::{self, NamespaceId};
use crate::database::versions::{self, NewVersion, SeriesId, SeriesRow, VersionRow, VersionRowId};
use crate::database::{Connection, commit as end_transaction, leases, removal, segments, standings};
use crate::http::auth::Caller;
use crate::http::body::BodyReader;
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams};
use crate::routes::json::VersionJson;
use crate::storage::{Object, ObjectKey};

const SIGNATURE_HEADER: &str = "satchel-signature";

pub(super) async fn image(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    query.only(&["channel"])?;
    let channel = query.name("channel")?;
    let subject = Subject::Image { image: path.get("image")? };
    answer(app, caller, subject, Placing { channel, fork_of: None }, &headers, body).await
}

pub(super) async fn desktop(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    query.only(&["fork-of"])?;
    let fork_of = query.name("fork-of")?;
    let subject = Subject::Desktop { owner: caller.user.clone(), desktop: path.get("desktop")? };
    answer(app, caller, subject, Placing { channel: None, fork_of }, &headers, body).await
}

/// Where a version is to stand.
struct Placing {
    /// The channel that moves to it.
    channel: Option<Name>,
    /// The desktop it begins a fork of.
    fork_of: Option<Name>,
}

async fn answer(
    app: Arc<App>,
    caller: Caller,
    subject: Subject,
    placing: Placing,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let signature = signature(headers)?;
    caller.check_write(&app.database, &subject.namespace()).await?;
    let body = BodyReader::new(headers, body, "a manifest", MAX_MANIFEST_BYTES, &app.limits)?;
    let body = app.read_whole(caller.user_id, body).await?;
    let bytes = body.bytes.clone();
    let read = tokio::task::spawn_blocking(move || Commit::read(bytes, signature, subject, placing));
    let commit = read.await.map_err(ApiError::internal)??;
    let (status, version) = app.to_the_end(body, run(app.clone(), caller, commit)).await?;
    Ok((status, [(CACHE_CONTROL, "no-store")], Json(VersionJson::from(version))).into_response())
}

pub(super) fn signature(headers: &HeaderMap) -> Result<Signature, ApiError> {
    let value = headers.get(SIGNATURE_HEADER).map(|value| value.as_bytes());
    let line = value.filter(|line| line.len() <= MAX_SIGNATURE_BYTES).unwrap_or_default();
    Signature::decode(line)
        .map_err(|error| ApiError::BadRequest(format!("header `{SIGNATURE_HEADER}`: {error}")))
}

/// A manifest to be committed, consistent in itself.
struct Commit {
    id: ManifestId,
    bytes: Bytes,
    manifest: Manifest,
    signature: Signature,
    placing: Placing,
    size_bytes: i64,
    created_ms: i64,
    sequence: i64,
}

impl Commit {
    /// Checks all that needs nothing but the request. Takes a while for a long manifest.
    fn read(
        bytes: Bytes,
        signature: Signature,
        subject: Subject,
        placing: Placing,
    ) -> Result<Self, ApiError> {
        signature.verify("the manifest", &bytes).map_err(ApiError::Damaged)?;
        let manifest = Manifest::decode(&bytes).map_err(|error| ApiError::BadRequest(error.to_string()))?;
        if manifest.subject != subject {
            return Err(refuse_subject(&manifest.subject, &subject));
        }
        let size = manifest.disks.iter().try_fold(0u64, |sum, disk| sum.checked_add(disk.size.bytes()));
        let size_bytes = signed("size_bytes", size.unwrap_or(u64::MAX))?;
        let created_ms = signed("created_ms", manifest.created_ms)?;
        let sequence = signed("sequence", manifest.sequence)?;
        let id = ManifestId::of(&bytes);
        Ok(Self { id, bytes, manifest, signature, placing, size_bytes, created_ms, sequence })
    }

    fn key(&self, object: fn(ManifestId) -> Object) -> ObjectKey {
        ObjectKey { namespace: self.manifest.subject.namespace(), object: object(self.id) }
    }

    /// The distinct stored segments of a disk.
    fn segments_of(disk: &chunk_format::Disk) -> Vec<[u8; ID_BYTES]> {
        let stored = disk.segments.iter().filter(|segment| !segment.is_zero());
        let mut ids: Vec<[u8; ID_BYTES]> = stored.map(|segment| *segment.as_bytes()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

fn refuse_subject(found: &Subject, expected: &Subject) -> ApiError {
    match (found, expected) {
        (Subject::Desktop { owner, .. }, Subject::Desktop { owner: caller, .. }) if owner != caller => {
            ApiError::Forbidden(format!("the manifest is of a desktop of {owner}, the token is {caller}'s"))
        }
        _ => ApiError::BadRequest(format!(
            "manifest: `subject` is {}, the path says {}",
            describe(found),
            describe(expected)
        )),
    }
}

/// What a series is called in messages.
fn describe(subject: &Subject) -> String {
    match subject {
        Subject::Image { image } => format!("image {image}"),
        Subject::Desktop { desktop, .. } => format!("desktop {desktop}"),
    }
}

fn signed(field: &str, value: u64) -> Result<i64, ApiError> {
    i64::try_from(value).map_err(|_| ApiError::BadRequest(format!("manifest: `{field}` is too large")))
}

/// How a commit stands against what is committed already.
enum Standing {
    /// This very manifest is committed.
    Done(Box<VersionRow>),
    /// It may follow.
    Next { series: Option<SeriesRow>, fork_of: Option<SeriesId>, base: Option<VersionRowId> },
}

/// Stores the manifest and adds the version.
async fn run(app: Arc<App>, caller: Caller, commit: Commit) -> Result<(StatusCode, VersionRow), ApiError> {
    // One state of the database: a repetition could else find itself not committed yet, and then in its own way as the head.
    let mut snapshot = app.database.snapshot().await?;
    let standing = stand(&mut snapshot, &commit).await?;
    drop(snapshot);
    if let Standing::Done(version) = standing {
        return repeat(&app, &caller, &commit, *version).await;
    }

    let signature = Bytes::from(commit.signature.encode());
    let signature_key = commit.key(Object::ManifestSignature);
    app.storage.put(&commit.key(Object::Manifest), commit.bytes.clone()).await?;
    // Another commit of the same manifest, with another key, may be under way: its signature is not ours to replace
    // before it is certain that ours is the one that counts.
    let is_ours = app.storage.put_new(&signature_key, signature.clone()).await?;

    let mut tx = app.database.begin().await?;
    let (series, fork_of, base) = match stand(&mut tx, &commit).await? {
        Standing::Done(version) => {
            drop(tx);
            return repeat(&app, &caller, &commit, *version).await;
        }
        Standing::Next { series, fork_of, base } => (series, fork_of, base),
    };
    app.storage.ensure(&commit.key(Object::Manifest), commit.bytes.clone()).await?;
    match is_ours {
        true => app.storage.ensure(&signature_key, signature).await?,
        false => app.storage.put(&signature_key, signature).await?,
    }
    let stored_bytes = count_stored(&mut tx, &commit.manifest).await?;
    let now = now_ms();
    let namespace = caller.claim(&mut tx, &commit.manifest.subject.namespace()).await?;
    let series = match series {
        Some(series) => series.id,
        None => {
            let (name, key) = match &commit.manifest.subject {
                Subject::Image { image } => (image, Some(&commit.signature.key)),
                Subject::Desktop { desktop, .. } => (desktop, None),
            };
            let begun_on = commit.placing.fork_of.as_ref();
            versions::insert_series(&mut *tx, namespace, name, key, begun_on, now).await?
        }
    };
    let new = NewVersion {
        series,
        id: commit.id,
        sequence: commit.sequence,
        parent: commit.manifest.parent,
        created_ms: commit.created_ms,
        committed_ms: now,
        machine: &commit.manifest.machine,
        note: commit.manifest.note.as_deref(),
        signature: &commit.signature,
        size_bytes: commit.size_bytes,
        base,
        base_channel: commit.manifest.base.as_ref().and_then(|base| base.channel.as_ref()),
        stored_bytes: i64::try_from(stored_bytes).unwrap_or(i64::MAX),
    };
    let version = versions::insert(&mut *tx, &new).await?;
    leases::move_to(&mut *tx, series, &commit.signature.key, version.row).await?;
    if matches!(commit.manifest.subject, Subject::Desktop { .. }) {
        // A fork's machine has left the desktop the fork began on.
        for stands in [Some(series), fork_of].into_iter().flatten() {
            standings::put(&mut *tx, stands, &commit.signature.key, version.row, now).await?;
        }
    }
    if let Some(channel) = &commit.placing.channel {
        channels::set(&mut tx, series, channel, &at_once(version.row), now).await?;
    }
    end_transaction(tx).await?;
    Ok((StatusCode::CREATED, version))
}

/// Bytes that were stored for this version and that no earlier one has.
async fn count_stored(connection: &mut Connection, manifest: &Manifest) -> Result<u64, ApiError> {
    let Some(own) = namespaces::find(&mut *connection, &manifest.subject.namespace()).await? else {
        return Ok(0);
    };
    let mut bytes = 0;
    for disk in &manifest.disks {
        bytes += segments::count_bytes(&mut *connection, own.id, &Commit::segments_of(disk)).await?;
    }
    Ok(bytes)
}

/// A move that reaches all desktops.
fn at_once(version: VersionRowId) -> ChannelMove {
    ChannelMove { version, percent: 100, paused: false, rollback: None }
}

/// Answers a commit of what is committed already. The newest version may so be put on another channel; one that comes late
/// takes no channel back.
async fn repeat(
    app: &App,
    caller: &Caller,
    commit: &Commit,
    version: VersionRow,
) -> Result<(StatusCode, VersionRow), ApiError> {
    if let (Some(channel), Subject::Image { image }) = (&commit.placing.channel, &commit.manifest.subject) {
        let mut tx = app.database.begin().await?;
        let namespace = caller.claim(&mut tx, &commit.manifest.subject.namespace()).await?;
        if let Some(series) = versions::find_series(&mut *tx, namespace, image).await?
            && versions::head(&mut *tx, series.id).await?.is_some_and(|head| head.id == version.id)
        {
            channels::set(&mut tx, series.id, channel, &at_once(version.row), now_ms()).await?;
            end_transaction(tx).await?;
        }
    }
    Ok((StatusCode::OK, version))
}

/// Checks a commit against the database.
async fn stand(connection: &mut Connection, commit: &Commit) -> Result<Standing, ApiError> {
    let subject = &commit.manifest.subject;
    let namespace = subject.namespace();
    let known = versions::find(&mut *connection, &namespace, commit.id).await?;
    let is_removed =
        known.is_some() && removal::of_version(&mut *connection, &namespace, commit.id).await?.is_some();
    // One that was pruned since, or removed with its desktop, is not there to be folded onto: its machine finds that the head has
    // moved, and forks.
    if let Some(version) = known.filter(|version| version.pruned_ms.is_none() && !is_removed) {
        return Ok(Standing::Done(Box::new(version)));
    }
    let row = namespaces::find(&mut *connection, &namespace).await?.map(|row| row.id);
    let name = match subject {
        Subject::Image { image: name } | Subject::Desktop { desktop: name, .. } => name,
    };
    let series = match row {
        Some(row) => versions::find_series(&mut *connection, row, name).await?,
        None => None,
    };
    let mut head = None;
    if let Some(series) = &series {
        check_key(series, &commit.signature)?;
        head = versions::head(&mut *connection, series.id).await?;
    }
    if is_removed {
        return Err(ApiError::HeadMoved {
            subject: describe(subject),
            head: head.map(|head| Box::new(head.into())),
        });
    }
    let fork_of = match (&series, &commit.placing.fork_of) {
        (None, Some(origin)) => check_forks(&mut *connection, row, origin, commit).await?,
        _ => {
            check_follows(head, commit)?;
            None
        }
    };
    if let Some(series) = &series
        && let Some(lease) = leases::find(&mut *connection, series.id).await?
        && lease.excludes(&commit.signature.key, now_ms())
    {
        return Err(super::leases::held_error(connection, series, lease).await?);
    }

    let mut holders: Vec<NamespaceId> = row.into_iter().collect();
    let mut base_row = None;
    if let Some(base) = &commit.manifest.base {
        let image = Namespace::Image(base.image.clone());
        let version = versions::find(&mut *connection, &image, base.version).await?;
        let Some(version) = version.filter(|version| version.pruned_ms.is_none()) else {
            let (version, image) = (base.version, &base.image);
            let message = format!("manifest: `base.version` {version} is no version of image {image}");
            return Err(ApiError::BadRequest(message));
        };
        if base.publisher != version.signature.key {
            let (found, key) = (base.publisher, version.signature.key);
            let message =
                format!("manifest: `base.publisher` is {found}, but must be {key}, which signed the base");
            return Err(ApiError::BadRequest(message));
        }
        base_row = Some(version.row);
        holders.extend(namespaces::find(&mut *connection, &image).await?.map(|row| row.id));
    }
    check_segments(connection, &commit.manifest, &holders).await?;
    Ok(Standing::Next { series, fork_of, base: base_row })
}

/// An image has one publisher key for ever; a desktop any number.
fn check_key(series: &SeriesRow, signature: &Signature) -> Result<(), ApiError> {
    match series.publisher_key {
        Some(key) if key != signature.key => {
            Err(ApiError::PublisherKey { image: series.name.to_string(), key })
        }
        _ => Ok(()),
    }
}

/// The compare of compare-and-swap: the parent named must be the head.
fn check_follows(head: Option<VersionRow>, commit: &Commit) -> Result<(), ApiError> {
    if commit.manifest.parent != head.as_ref().map(|head| head.id) {
        let subject = describe(&commit.manifest.subject);
        return Err(ApiError::HeadMoved { subject, head: head.map(|head| Box::new(head.into())) });
    }
    let expected = head.map_or(1, |head| head.sequence.saturating_add(1));
    if commit.manifest.sequence != expected {
        let found = commit.manifest.sequence;
        return Err(ApiError::BadRequest(format!("manifest: `sequence` is {found}, but must be {expected}")));
    }
    Ok(())
}

/// A fork's first version follows any version of the desktop it is a fork of. One that is not known here is taken too: it
/// was made before this server was set back to an older state, and the fork is what is left of it; also of a desktop that was
/// begun after that state, and is none here.
async fn check_forks(
    connection: &mut Connection,
    namespace: Option<NamespaceId>,
    origin: &Name,
    commit: &Commit,
) -> Result<Option<SeriesId>, ApiError> {
    let series = match namespace {
        Some(namespace) => versions::find_series(&mut *connection, namespace, origin).await?,
        None => None,
    };
    let Some(parent) = commit.manifest.parent else {
        return Err(ApiError::BadRequest("manifest: a fork's first version needs a `parent`".to_owned()));
    };
    let found = versions::find(&mut *connection, &commit.manifest.subject.namespace(), parent).await?;
    if let Some(found) = found {
        // Also of one that was removed: work on it that another machine has is a fork of what it was.
        let (_, name) = versions::series_of(&mut *connection, found.row).await?;
        if name != *origin && series.is_none() {
            return Err(ApiError::no_such(format_args!("desktop {origin}")));
        }
        if name != *origin {
            return Err(ApiError::BadRequest(format!(
                "manifest: `parent` {parent} is a version of desktop {name}, not of {origin}"
            )));
        }
        let expected = found.sequence.saturating_add(1);
        if commit.manifest.sequence != expected {
            let found = commit.manifest.sequence;
            return Err(ApiError::BadRequest(format!(
                "manifest: `sequence` is {found}, but must be {expected}"
            )));
        }
    }
    Ok(series.map(|series| series.id))
}

/// Every segment must be here, and made of chunks of its disk's size.
async fn check_segments(
    connection: &mut Connection,
    manifest: &Manifest,
    holders: &[NamespaceId],
) -> Result<(), ApiError> {
    let mut missing = 0;
    for disk in &manifest.disks {
        let segments = Commit::segments_of(disk);
        missing += chunks::missing(&mut *connection, IdTable::Segments, holders, segments).await?.len();
    }
    if missing > 0 {
        return Err(ApiError::SegmentsMissing { missing });
    }
    for disk in &manifest.disks {
        let segments = Commit::segments_of(disk);
        let other =
            segments::count_other_chunk_size(&mut *connection, holders, &segments, disk.chunk_size).await?;
        if other > 0 {
            return Err(ApiError::BadRequest(format!(
                "manifest: disk {} has chunks of {} bytes, but {other} of its segments have others",
                disk.role,
                disk.chunk_size.bytes()
            )));
        }
    }
    Ok(())
}
