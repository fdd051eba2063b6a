//! Sources: anywhere chunks come from.
//!
//! A source holds the objects of the data plane under one path each (`image/debian/packs/<id>`). It is trusted with
//! nothing: whoever fetches checks what arrives against the id it was asked for by.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use chunk_format::{ChunkId, ChunkSize, ManifestId, Namespace, PackId, ProfileId, SegmentId, StreamId};
use futures_util::future::{BoxFuture, FutureExt, ready};
use futures_util::stream::{BoxStream, TryStreamExt};

mod address;
mod cache;
mod cache_address;
mod directory;
pub mod exchange;
mod fixed;
mod holds;
mod http;
mod limited;
mod list;
mod nobody;

pub use address::{BadSource, SourceAddress};
pub use cache::CacheSource;
pub use cache_address::{CacheAddress, CacheToken, DEFAULT_PORT};
pub use directory::DirectorySource;
pub use fixed::StaticSource;
pub use holds::has_version;
pub use http::HttpSource;
pub use limited::ImagesOnly;
pub use list::{SourceList, SourceListError};
pub use nobody::NoSource;

/// Names an object of the data plane.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectPath {
    /// Whose it is.
    pub namespace: Namespace,
    /// What it is.
    pub object: Object,
}

/// What an object is, and its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    /// A pack.
    Pack(PackId),
    /// A framed segment.
    Segment(SegmentId),
    /// The framed locator of a segment.
    Locator(SegmentId),
    /// A manifest.
    Manifest(ManifestId),
    /// The signature over a manifest.
    ManifestSignature(ManifestId),
    /// Which profile a version has: its id in text.
    ManifestProfile(ManifestId),
    /// A boot profile.
    Profile(ProfileId),
    /// The signature over a boot profile.
    ProfileSignature(ProfileId),
    /// A part of a boot stream.
    Stream(StreamId),
}

impl fmt::Display for ObjectPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.namespace)?;
        match &self.object {
            Object::Pack(id) => write!(f, "packs/{id}"),
            Object::Segment(id) => write!(f, "segments/{id}"),
            Object::Locator(id) => write!(f, "locators/{id}"),
            Object::Manifest(id) => write!(f, "manifests/{id}"),
            Object::ManifestSignature(id) => write!(f, "manifests/{id}.sig"),
            Object::ManifestProfile(id) => write!(f, "manifests/{id}.profile"),
            Object::Profile(id) => write!(f, "profiles/{id}"),
            Object::ProfileSignature(id) => write!(f, "profiles/{id}.sig"),
            Object::Stream(id) => write!(f, "streams/{id}"),
        }
    }
}

/// The bytes of an object, or of the range asked for, as they arrive.
pub type ObjectBody = BoxStream<'static, Result<Bytes, SourceError>>;

/// What is said of chunks, one after the other, as it arrives.
pub type ChunkAnswers = BoxStream<'static, Result<exchange::Answered, SourceError>>;

/// What kind of failure it was: decides whether to wait, to look elsewhere, or to say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// No connection, or it broke, or the source is overloaded: waiting may help.
    Unreachable,
    /// The source does not have the object.
    NotFound,
    /// The source will not serve us: a token or an interface version is wrong.
    Refused,
    /// It may be another in the source's place: its certificate is not the one it should be.
    Untrusted,
    /// What arrived is not what was asked for.
    Damaged,
}

/// Why an object could not be had from a source.
#[derive(Debug, thiserror::Error)]
#[error("cannot fetch {object} from {origin}")]
pub struct SourceError {
    /// The source.
    pub origin: String,
    /// The object.
    pub object: String,
    /// What kind of failure it was.
    pub kind: FailureKind,
    /// How long the source asks us to wait.
    pub retry_after: Option<Duration>,
    /// What went wrong.
    #[source]
    pub cause: Box<dyn std::error::Error + Send + Sync>,
}

/// Anywhere chunks come from.
pub trait ChunkSource: Send + Sync + 'static {
    /// What to call it in messages.
    fn origin(&self) -> String;

    /// Begins to fetch an object, or a range of it.
    fn get<'a>(
        &'a self,
        path: &'a ObjectPath,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody, SourceError>>;

    /// Whether it is worth asking for an object, or for the chunks in it.
    fn may_have(&self, _: &Object) -> bool {
        true
    }

    /// Asks whether it answers, as for a byte of an object that it was asked for in vain.
    fn probe<'a>(&'a self, path: &'a ObjectPath) -> BoxFuture<'a, Result<(), SourceError>> {
        self.get(path, Some(0..1)).map(|answer| answer.map(drop)).boxed()
    }

    /// Whether it hands chunks out by their ids: [`ChunkSource::chunks`] and [`ChunkSource::missing`] are for those that do.
    fn hands_out_chunks(&self) -> bool {
        false
    }

    /// Begins to fetch up to [`exchange::MAX_CHUNKS`] chunks of this size; what comes is about the first ones of them, in their
    /// order, and all of them when it ends without an error.
    fn chunks<'a>(
        &'a self,
        ids: &'a [ChunkId],
        _: ChunkSize,
    ) -> BoxFuture<'a, Result<ChunkAnswers, SourceError>> {
        ready(Err(self.has_objects_only(ids))).boxed()
    }

    /// Which of up to [`exchange::MAX_LOOKED_FOR`] chunks it lacks.
    fn missing<'a>(&'a self, ids: &'a [ChunkId]) -> BoxFuture<'a, Result<Vec<bool>, SourceError>> {
        ready(Err(self.has_objects_only(ids))).boxed()
    }

    /// The failure of who is asked for chunks by their ids and hands none out.
    fn has_objects_only(&self, ids: &[ChunkId]) -> SourceError {
        SourceError {
            origin: self.origin(),
            object: exchange::name_of(ids),
            kind: FailureKind::NotFound,
            retry_after: None,
            cause: "it has whole objects only".into(),
        }
    }
}

/// Fetches a whole object of at most `limit_bytes`.
///
/// # Errors
/// What the source says; `Damaged` when the object is longer.
pub async fn get_whole(
    source: &dyn ChunkSource,
    path: &ObjectPath,
    limit_bytes: usize,
) -> Result<Vec<u8>, SourceError> {
    let mut body = source.get(path, None).await?;
    let mut bytes = Vec::new();
    while let Some(part) = body.try_next().await? {
        if bytes.len() + part.len() > limit_bytes {
            return Err(damaged(source, path, format!("it is longer than {limit_bytes} bytes")));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

/// The error for an object whose bytes are not what was asked for.
pub fn damaged(
    source: &dyn ChunkSource,
    path: &ObjectPath,
    cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> SourceError {
    SourceError {
        origin: source.origin(),
        object: path.to_string(),
        kind: FailureKind::Damaged,
        retry_after: None,
        cause: cause.into(),
    }
}
