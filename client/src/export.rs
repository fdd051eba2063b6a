//! Writes a golden version out as a tree of files: for a stick, a static host, or a place without a network.
//!
//! The tree is that of the data plane, so that any number of images and versions share a directory, and what is there
//! already is not fetched again. Every file is checked before it gets its name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chunk_format::{
    FormatError, FrameDecoder, Locator, MAX_LOCATOR_BYTES, MAX_PACK_BYTES, MAX_PROFILE_BYTES,
    MAX_SIGNATURE_BYTES, MAX_STREAM_BYTES, Namespace, PackId, PackRef, Profile, ProfileId, SEGMENT_BYTES,
    Segment, SegmentId, Signature, frame_len_max,
};
use futures_util::future::FutureExt;
use futures_util::stream::{StreamExt, TryStreamExt};

use crate::desktop::Version;
use crate::source::{ChunkSource, FailureKind, Object, ObjectPath, SourceError, damaged, get_whole};

/// Objects fetched at once.
const REQUESTS: usize = 4;
/// Small objects fetched at once: each costs a round trip and little more.
const SMALL_REQUESTS: usize = 16;
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Why a version was not written out. What was written stays, and the same command continues.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// An object could not be had.
    #[error("{0}")]
    Source(#[from] SourceError),
    /// A file could not be written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// zstd could not get its memory.
    #[error("{0}")]
    Decoder(#[from] FormatError),
}

/// How far an export is.
#[derive(Debug, Default)]
pub struct ExportProgress {
    /// Bytes of packs and streams in all; 0 until it is known.
    pub total_bytes: AtomicU64,
    /// Bytes that are there.
    pub done_bytes: AtomicU64,
    /// Bytes that were fetched.
    pub fetched_bytes: AtomicU64,
}

/// What an export has written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exported {
    /// Files that make up the version.
    pub files: u64,
    /// Bytes in its packs and streams.
    pub bytes: u64,
    /// Whether it has a boot profile.
    pub has_profile: bool,
}

/// Writes versions out.
pub struct Exporter<'a> {
    /// Where their objects come from.
    pub source: Arc<dyn ChunkSource>,
    /// The directory.
    pub directory: &'a Path,
    /// Told how far it is.
    pub progress: &'a ExportProgress,
}

impl Exporter<'_> {
    /// Writes a golden version out; durable when this returns.
    ///
    /// # Errors
    /// [`ExportError`].
    pub async fn export(&self, version: &Version) -> Result<Exported, ExportError> {
        let namespace = version.manifest.subject.namespace();
        let path = |object| ObjectPath { namespace: namespace.clone(), object };
        let segments: BTreeSet<SegmentId> = version
            .manifest
            .disks
            .iter()
            .flat_map(|disk| disk.segments.iter().copied())
            .filter(|segment| !segment.is_zero())
            .collect();
        let locators = self.small(&namespace, &segments).await?;
        let mut packs: BTreeMap<PackId, PackRef> = BTreeMap::new();
        for locator in &locators {
            packs.extend(locator.packs().iter().map(|pack| (pack.pack, pack.clone())));
        }
        let profile = self.profile(version, &namespace).await?;
        let streams = profile.iter().flat_map(|profile| &profile.streams);
        let mut large: Vec<(ObjectPath, u64)> = packs
            .values()
            .map(|pack| {
                let object = Object::Pack(pack.pack);
                (ObjectPath { namespace: pack.namespace.clone(), object }, u64::from(pack.pack_len))
            })
            .collect();
        large.extend(streams.map(|stream| (path(Object::Stream(stream.id)), u64::from(stream.len_bytes))));
        let bytes = large.iter().map(|(_, len)| len).sum();
        self.progress.total_bytes.store(bytes, Ordering::Relaxed);
        let files = (large.len() + 2 * locators.len() + 2) as u64 + if profile.is_some() { 3 } else { 0 };
        let fetches: Vec<_> = large.into_iter().map(|(path, len)| self.large(path, len).boxed()).collect();
        futures_util::stream::iter(fetches)
            .buffer_unordered(REQUESTS)
            .try_for_each(|()| std::future::ready(Ok(())))
            .await?;
        // The manifest last: where it is, everything it needs is.
        self.write(&path(Object::ManifestSignature(version.id)), &version.signature.encode())?;
        self.write(&path(Object::Manifest(version.id)), &version.bytes)?;
        self.sync()?;
        Ok(Exported { files, bytes, has_profile: profile.is_some() })
    }

    /// Segments and their locators.
    async fn small(
        &self,
        namespace: &Namespace,
        segments: &BTreeSet<SegmentId>,
    ) -> Result<Vec<Locator>, ExportError> {
        let fetches: Vec<_> = segments
            .iter()
            .map(|id| {
                async {
                    let path = |object| ObjectPath { namespace: namespace.clone(), object };
                    let (segment, locator) = (path(Object::Segment(*id)), path(Object::Locator(*id)));
                    if !self.file(&segment).exists() {
                        let frame = self
                            .fetch(&segment, frame_len_max(SEGMENT_BYTES), |frame| {
                                Segment::decode(frame, *id, &mut FrameDecoder::new()?).map(drop)
                            })
                            .await?;
                        self.write(&segment, &frame)?;
                    }
                    // A locator may have changed since.
                    let frame = self
                        .fetch(&locator, frame_len_max(MAX_LOCATOR_BYTES), |frame| {
                            Locator::decode(frame, *id, &mut FrameDecoder::new()?).map(drop)
                        })
                        .await?;
                    self.write(&locator, &frame)?;
                    Ok::<_, ExportError>(Locator::decode(&frame, *id, &mut FrameDecoder::new()?)?)
                }
                .boxed()
            })
            .collect();
        futures_util::stream::iter(fetches).buffer_unordered(SMALL_REQUESTS).try_collect().await
    }

    /// The version's profile, if it has one.
    async fn profile(
        &self,
        version: &Version,
        namespace: &Namespace,
    ) -> Result<Option<Profile>, ExportError> {
        let path = |object| ObjectPath { namespace: namespace.clone(), object };
        let pointer = path(Object::ManifestProfile(version.id));
        let pointed_at = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().parse::<ProfileId>();
        let bytes = match self.fetch(&pointer, 80, |bytes| pointed_at(bytes).map(drop)).await {
            Err(ExportError::Source(error)) if error.kind == FailureKind::NotFound => return Ok(None),
            bytes => bytes?,
        };
        let id = pointed_at(&bytes)?;
        let (object, signed) = (path(Object::Profile(id)), path(Object::ProfileSignature(id)));
        let profile = self.fetch(&object, MAX_PROFILE_BYTES, |bytes| id.verify(bytes)).await?;
        let signature =
            self.fetch(&signed, MAX_SIGNATURE_BYTES, |line| Signature::decode(line).map(drop)).await?;
        self.write(&object, &profile)?;
        self.write(&signed, &signature)?;
        self.write(&pointer, &bytes)?;
        Ok(Some(Profile::decode(&profile)?))
    }

    /// A pack or stream: kept when a file of its length is there.
    async fn large(&self, path: ObjectPath, len: u64) -> Result<(), ExportError> {
        let file = self.file(&path);
        if !std::fs::metadata(&file).is_ok_and(|found| found.len() == len) {
            let limit = MAX_PACK_BYTES.max(MAX_STREAM_BYTES);
            let bytes = self
                .fetch(&path, limit, |bytes| match &path.object {
                    Object::Pack(id) => id.verify(bytes),
                    Object::Stream(id) => id.verify(bytes),
                    _ => Ok(()),
                })
                .await?;
            self.write(&path, &bytes)?;
        }
        self.progress.done_bytes.fetch_add(len, Ordering::Relaxed);
        Ok(())
    }

    /// Fetches an object that `check` accepts; passing failures are tried again.
    async fn fetch(
        &self,
        path: &ObjectPath,
        limit_bytes: usize,
        check: impl Fn(&[u8]) -> Result<(), FormatError>,
    ) -> Result<Vec<u8>, ExportError> {
        let (mut attempt, mut pause) = (1, FIRST_PAUSE);
        loop {
            let fetched = match get_whole(&*self.source, path, limit_bytes).await {
                Ok(bytes) => match check(&bytes) {
                    Ok(()) => Ok(bytes),
                    Err(error) => Err(damaged(&*self.source, path, error)),
                },
                Err(error) => Err(error),
            };
            match fetched {
                Ok(bytes) => {
                    self.progress.fetched_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    return Ok(bytes);
                }
                Err(error) if error.kind == FailureKind::Unreachable && attempt < ATTEMPTS => {
                    tokio::time::sleep(error.retry_after.unwrap_or(pause)).await;
                    (attempt, pause) = (attempt + 1, pause * 2);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn file(&self, path: &ObjectPath) -> PathBuf {
        self.directory.join(path.to_string())
    }

    /// Writes a file under another name first, so that what has its name is whole.
    fn write(&self, path: &ObjectPath, bytes: &[u8]) -> Result<(), ExportError> {
        let file = self.file(path);
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| ExportError::Io { action, path, source }
        };
        let Some(parent) = file.parent() else { return Ok(()) };
        std::fs::create_dir_all(parent).map_err(failed("make the directory", parent))?;
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let partial = parent.join(format!(".{name}.partial"));
        let written = File::create(&partial).and_then(|mut out| {
            out.write_all(bytes)?;
            out.sync_data()
        });
        written.map_err(failed("write", &partial))?;
        std::fs::rename(&partial, &file).map_err(failed("rename", &partial))
    }

    /// Makes the names durable too: a stick is pulled out as soon as the command is done.
    fn sync(&self) -> Result<(), ExportError> {
        let failed = |source| ExportError::Io { action: "sync", path: self.directory.to_owned(), source };
        let directory = File::open(self.directory).map_err(failed)?;
        rustix::fs::syncfs(&directory).map_err(|error| failed(error.into()))
    }
}
