//! Where versions are committed to: the image server, or one in memory for tests.

use bytes::Bytes;
use chunk_format::{ChunkId, ManifestId, Namespace, PackId, SegmentId, Signature, Subject};
use futures_util::future::BoxFuture;

use crate::remote::{LeaseInfo, Placing, PresentIn, Remote, RemoteError, VersionInfo};

#[cfg(any(test, feature = "simulate"))]
mod memory;

#[cfg(any(test, feature = "simulate"))]
pub use memory::MemoryServer;

/// Why a version was not committed.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Another version was committed on the same parent first. Nothing was changed.
    #[error("the head has moved on to version {}, made on {}", head.sequence, head.machine)]
    HeadMoved {
        /// The head now.
        head: Box<VersionInfo>,
    },
    /// Another machine holds the desktop's lease. Nothing was changed.
    #[error("desktop is in use on {}", lease.machine)]
    LeaseHeld {
        /// The lease.
        lease: Box<LeaseInfo>,
    },
    /// The server knows no such image or desktop, which the version is not the first of. Nothing was changed.
    #[error("the server does not know what this is a version of")]
    Gone,
    /// The request failed; the version may or may not be committed.
    #[error("{0}")]
    Remote(#[from] RemoteError),
}

/// The calls a publish or a sync makes. Each may be repeated without harm.
pub trait Upstream: Send + Sync + 'static {
    /// Which of these chunks are lacking; in the order given.
    fn missing_chunks<'a>(
        &'a self,
        place: &'a PresentIn,
        ids: &'a [ChunkId],
    ) -> BoxFuture<'a, Result<Vec<bool>, RemoteError>>;

    /// Which of these segments are lacking; in the order given.
    fn missing_segments<'a>(
        &'a self,
        place: &'a PresentIn,
        ids: &'a [SegmentId],
    ) -> BoxFuture<'a, Result<Vec<bool>, RemoteError>>;

    /// Whether a version was removed with its desktop.
    fn is_removed(&self, version: ManifestId) -> BoxFuture<'_, Result<bool, RemoteError>>;

    /// Uploads a pack.
    fn put_pack<'a>(
        &'a self,
        namespace: &'a Namespace,
        id: PackId,
        pack: Bytes,
    ) -> BoxFuture<'a, Result<(), RemoteError>>;

    /// Uploads a framed segment whose chunks are all there.
    fn put_segment<'a>(
        &'a self,
        place: &'a PresentIn,
        id: SegmentId,
        frame: Vec<u8>,
    ) -> BoxFuture<'a, Result<(), RemoteError>>;

    /// Commits a version on its parent, if that is still the head, or as the first of a fork.
    fn commit<'a>(
        &'a self,
        subject: &'a Subject,
        placing: Placing<'a>,
        manifest: Vec<u8>,
        signature: &'a Signature,
    ) -> BoxFuture<'a, Result<VersionInfo, CommitError>>;

    /// The newest version; none when there is no such image or desktop.
    fn head<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Option<VersionInfo>, RemoteError>>;
}

impl Upstream for Remote {
    fn missing_chunks<'a>(
        &'a self,
        place: &'a PresentIn,
        ids: &'a [ChunkId],
    ) -> BoxFuture<'a, Result<Vec<bool>, RemoteError>> {
        Box::pin(Self::missing_chunks(self, place, ids))
    }

    fn missing_segments<'a>(
        &'a self,
        place: &'a PresentIn,
        ids: &'a [SegmentId],
    ) -> BoxFuture<'a, Result<Vec<bool>, RemoteError>> {
        Box::pin(Self::missing_segments(self, place, ids))
    }

    fn is_removed(&self, version: ManifestId) -> BoxFuture<'_, Result<bool, RemoteError>> {
        Box::pin(async move { Ok(self.removed(version).await?.is_some()) })
    }

    fn put_pack<'a>(
        &'a self,
        namespace: &'a Namespace,
        id: PackId,
        pack: Bytes,
    ) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(Self::put_pack(self, namespace, id, pack))
    }

    fn put_segment<'a>(
        &'a self,
        place: &'a PresentIn,
        id: SegmentId,
        frame: Vec<u8>,
    ) -> BoxFuture<'a, Result<(), RemoteError>> {
        Box::pin(Self::put_segment(self, place, id, frame))
    }

    fn commit<'a>(
        &'a self,
        subject: &'a Subject,
        placing: Placing<'a>,
        manifest: Vec<u8>,
        signature: &'a Signature,
    ) -> BoxFuture<'a, Result<VersionInfo, CommitError>> {
        Box::pin(async move {
            let error = match Self::commit(self, subject, placing, manifest, signature).await {
                Ok(version) => return Ok(version),
                Err(error) => error,
            };
            if let RemoteError::Refused { code, details, .. } = &error
                && code == "head_moved"
            {
                if details["head"].is_null() {
                    return Err(CommitError::Gone);
                }
                if let Ok(head) = serde_json::from_value(details["head"].clone()) {
                    return Err(CommitError::HeadMoved { head });
                }
            }
            if let RemoteError::Refused { code, details, .. } = &error
                && code == "lease_held"
                && let Ok(lease) = serde_json::from_value(details["lease"].clone())
            {
                return Err(CommitError::LeaseHeld { lease });
            }
            Err(error.into())
        })
    }

    fn head<'a>(&'a self, subject: &'a Subject) -> BoxFuture<'a, Result<Option<VersionInfo>, RemoteError>> {
        Box::pin(async move {
            match self.versions(subject, 1, None).await {
                Ok(versions) => Ok(versions.into_iter().next()),
                Err(error) if error.code() == Some("not_found") => Ok(None),
                Err(error) => Err(error),
            }
        })
    }
}
