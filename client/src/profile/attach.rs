//! Attaches a profile to a published version: its boot stream first, then the signed profile that names it.

use std::sync::Arc;

use bytes::Bytes;
use chunk_format::{BootStream, FormatError, ManifestId, Name, Namespace, Profile, ProfileEntry, SecretKey};

use crate::remote::{Remote, RemoteError};

/// Why a profile was not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// It could not be written down.
    #[error("{0}")]
    Format(#[from] FormatError),
    /// The server did not take it.
    #[error("{0}")]
    Remote(#[from] RemoteError),
}

/// Attaches profiles to an image's versions.
pub struct Attacher<'a> {
    /// The server.
    pub remote: &'a Remote,
    /// The image.
    pub image: &'a Name,
    /// The publisher's key.
    pub key: &'a Arc<SecretKey>,
}

/// An attached profile.
#[derive(Clone, Copy, Debug)]
pub struct Attached {
    /// Its chunks.
    pub chunks: usize,
    /// Bytes of the boot stream.
    pub stream_bytes: u64,
    /// Objects of the boot stream.
    pub streams: usize,
}

impl Attacher<'_> {
    /// Uploads the stream and the profile. Doing it again changes nothing.
    ///
    /// # Errors
    /// [`AttachError`].
    pub async fn attach(
        &self,
        manifest: ManifestId,
        entries: Vec<ProfileEntry>,
        streams: Vec<(BootStream, Bytes)>,
    ) -> Result<Attached, AttachError> {
        let namespace = Namespace::Image(self.image.clone());
        let described: Vec<BootStream> = streams.iter().map(|(stream, _)| *stream).collect();
        for (stream, bytes) in streams {
            self.remote.put_stream(&namespace, stream.id, bytes).await?;
        }
        let attached = Attached {
            chunks: entries.len(),
            stream_bytes: described.iter().map(|stream| u64::from(stream.len_bytes)).sum(),
            streams: described.len(),
        };
        let bytes = Profile { manifest, entries, streams: described }.encode()?;
        let signature = self.key.sign(&bytes);
        self.remote.put_profile(self.image, manifest, bytes, &signature).await?;
        Ok(attached)
    }
}
