//! Writes a golden version out as a tree of files: for a stick, a static host, or a place without a network.
//!
//! The tree is that of the data plane, so that any number of images and versions share a directory, and what is there
//! already is not fetched again. Every file is checked before it gets its name.
//!
//! Packs and streams come first, then what says where in them chunks lie, then the manifest, with a sync between them: a stick
//! that is pulled out at any instant has its earlier versions as whole as they were.

mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
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

use self::tree::Tree;
use crate::desktop::Version;
use crate::source::{ChunkSource, FailureKind, Object, ObjectPath, SourceError, damaged, get_whole};
use crate::volume::is_full;

/// Objects fetched at once.
const REQUESTS: usize = 4;
/// Small objects fetched at once: each costs a round trip and little more.
const SMALL_REQUESTS: usize = 16;
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// The longest that a source is left alone, whatever it says: somebody waits for the export.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

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
    /// The disk that is written to has too little space.
    #[error(
        "{} has no room for all of it: {} MiB more are needed, and {} MiB are free",
        directory.display(),
        needed_bytes.div_ceil(1 << 20),
        free_bytes >> 20
    )]
    NoRoom {
        /// Where it was to be written.
        directory: PathBuf,
        /// Bytes that what lacks there takes.
        needed_bytes: u64,
        /// Bytes that are free there.
        free_bytes: u64,
    },
    /// zstd could not get its memory.
    #[error("{0}")]
    Decoder(#[from] FormatError),
}

impl ExportError {
    /// Whether what is written to is full, or would be.
    pub fn is_want_of_room(&self) -> bool {
        match self {
            Self::NoRoom { .. } => true,
            Self::Io { source, .. } => is_full(source),
            _ => false,
        }
    }
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
    source: Arc<dyn ChunkSource>,
    tree: Tree,
    progress: &'a ExportProgress,
    /// Whether packs and streams that are there are read and compared with their ids.
    checks: bool,
}

/// What is written once everything it refers to is there.
struct Late {
    path: ObjectPath,
    bytes: Vec<u8>,
}

/// A profile, its file and its signature, and what points to them.
struct Pointed {
    profile: Profile,
    parts: [Late; 2],
    pointer: Late,
}

impl<'a> Exporter<'a> {
    /// Has versions written to a directory from a source. Large files that are there in their length are taken for whole, unless
    /// `checks` says to read them.
    pub fn new(
        source: Arc<dyn ChunkSource>,
        directory: PathBuf,
        checks: bool,
        progress: &'a ExportProgress,
    ) -> Self {
        Self { source, tree: Tree::new(directory), progress, checks }
    }

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
        let (locators, late): (Vec<Locator>, Vec<Late>) =
            self.small(&namespace, &segments).await?.into_iter().unzip();
        let mut packs: BTreeMap<PackId, PackRef> = BTreeMap::new();
        for locator in &locators {
            packs.extend(locator.packs().iter().map(|pack| (pack.pack, pack.clone())));
        }
        let (profile, pointed_at, pointer) = match self.profile(version, &namespace).await? {
            Some(Pointed { profile, parts, pointer }) => (Some(profile), Vec::from(parts), Some(pointer)),
            None => (None, Vec::new(), None),
        };
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
        self.check_room(&large).await?;
        let files = (large.len() + 2 * locators.len() + 2) as u64 + if profile.is_some() { 3 } else { 0 };
        let fetches: Vec<_> = large.into_iter().map(|(path, len)| self.large(path, len).boxed()).collect();
        futures_util::stream::iter(fetches)
            .buffer_unordered(REQUESTS)
            .try_for_each(|()| std::future::ready(Ok(())))
            .await?;
        self.tree.sync().await?;
        self.place(late.into_iter().chain(pointed_at)).await?;
        // The manifest last: where it is, everything it needs is.
        let signature =
            Late { path: path(Object::ManifestSignature(version.id)), bytes: version.signature.encode() };
        let manifest = Late { path: path(Object::Manifest(version.id)), bytes: version.bytes.to_vec() };
        self.place(pointer.into_iter().chain([signature, manifest])).await?;
        Ok(Exported { files, bytes, has_profile: profile.is_some() })
    }

    /// Checks that there is room for those packs and streams that are not there, before any is fetched.
    async fn check_room(&self, large: &[(ObjectPath, u64)]) -> Result<(), ExportError> {
        let Some(space) = self.tree.space().await else { return Ok(()) };
        let mut needed_bytes = 0;
        for (path, len) in large {
            if self.tree.len_bytes(path).await != Some(*len) {
                needed_bytes += len.next_multiple_of(space.block_bytes);
            }
        }
        if needed_bytes <= space.free_bytes {
            return Ok(());
        }
        Err(ExportError::NoRoom {
            directory: self.tree.directory().to_owned(),
            needed_bytes,
            free_bytes: space.free_bytes,
        })
    }

    /// Writes what refers to what is there, and makes it durable. What is the same is left alone: a name that is given anew can be
    /// lost.
    async fn place(&self, late: impl Iterator<Item = Late>) -> Result<(), ExportError> {
        for Late { path, bytes } in late {
            if self.tree.read(&path, bytes.len()).await.is_none_or(|there| there != bytes) {
                self.tree.write(&path, bytes).await?;
            }
        }
        self.tree.sync().await
    }

    /// Segments, which are written, and their locators, which are to be.
    async fn small(
        &self,
        namespace: &Namespace,
        segments: &BTreeSet<SegmentId>,
    ) -> Result<Vec<(Locator, Late)>, ExportError> {
        let fetches: Vec<_> = segments
            .iter()
            .map(|id| {
                async {
                    let path = |object| ObjectPath { namespace: namespace.clone(), object };
                    let (segment, locator) = (path(Object::Segment(*id)), path(Object::Locator(*id)));
                    let check =
                        |frame: &[u8]| Segment::decode(frame, *id, &mut FrameDecoder::new()?).map(drop);
                    let there = self.tree.read(&segment, frame_len_max(SEGMENT_BYTES)).await;
                    if there.is_none_or(|frame| check(&frame).is_err()) {
                        let frame = self.fetch(&segment, frame_len_max(SEGMENT_BYTES), check).await?;
                        self.tree.write(&segment, frame).await?;
                    }
                    // A locator may have changed since.
                    let bytes = self
                        .fetch(&locator, frame_len_max(MAX_LOCATOR_BYTES), |frame| {
                            Locator::decode(frame, *id, &mut FrameDecoder::new()?).map(drop)
                        })
                        .await?;
                    let decoded = Locator::decode(&bytes, *id, &mut FrameDecoder::new()?)?;
                    Ok::<_, ExportError>((decoded, Late { path: locator, bytes }))
                }
                .boxed()
            })
            .collect();
        futures_util::stream::iter(fetches).buffer_unordered(SMALL_REQUESTS).try_collect().await
    }

    /// The version's profile, if it has one, which is to be written.
    async fn profile(
        &self,
        version: &Version,
        namespace: &Namespace,
    ) -> Result<Option<Pointed>, ExportError> {
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
        let decoded = Profile::decode(&profile)?;
        let parts = [(object, profile), (signed, signature)].map(|(path, bytes)| Late { path, bytes });
        Ok(Some(Pointed { profile: decoded, parts, pointer: Late { path: pointer, bytes } }))
    }

    /// A pack or stream: kept when a file of its length is there, and holds when that is looked at.
    async fn large(&self, path: ObjectPath, len: u64) -> Result<(), ExportError> {
        let limit = MAX_PACK_BYTES.max(MAX_STREAM_BYTES);
        let check = |bytes: &[u8]| match &path.object {
            Object::Pack(id) => id.verify(bytes),
            Object::Stream(id) => id.verify(bytes),
            _ => Ok(()),
        };
        let is_there = match self.checks {
            true => self.tree.read(&path, limit).await.is_some_and(|bytes| check(&bytes).is_ok()),
            false => self.tree.len_bytes(&path).await == Some(len),
        };
        if !is_there {
            let bytes = self.fetch(&path, limit, check).await?;
            self.tree.write(&path, bytes).await?;
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
                    // As the source says, but not for less than one that says nothing.
                    let said = error.retry_after.unwrap_or(pause);
                    tokio::time::sleep(said.max(pause).min(LONGEST_PAUSE)).await;
                    (attempt, pause) = (attempt + 1, pause * 2);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Mutex;

    use futures_util::future::BoxFuture;
    use tokio::time::Instant;

    use super::*;
    use crate::source::ObjectBody;

    /// A source that has too much to do, says for how long it is to be left alone, and notes when it is asked.
    struct Busy {
        retry_after: Duration,
        asked: Arc<Mutex<Vec<Instant>>>,
    }

    impl ChunkSource for Busy {
        fn origin(&self) -> String {
            "a".to_owned()
        }

        fn get<'a>(
            &'a self,
            _: &'a ObjectPath,
            _: Option<Range<u64>>,
        ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
            self.asked.lock().unwrap().push(Instant::now());
            Box::pin(std::future::ready(Err(SourceError {
                origin: "a".to_owned(),
                object: "b".to_owned(),
                kind: FailureKind::Unreachable,
                retry_after: Some(self.retry_after),
                cause: "busy".into(),
            })))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_says_when_to_come_back_is_asked_neither_without_a_pause_nor_after_hours() {
        for (said, least, most) in [
            (Duration::ZERO, FIRST_PAUSE, LONGEST_PAUSE),
            (LONGEST_PAUSE / 2, LONGEST_PAUSE / 2, LONGEST_PAUSE / 2),
            (Duration::from_secs(86_400), LONGEST_PAUSE, LONGEST_PAUSE),
        ] {
            let asked = Arc::<Mutex<Vec<Instant>>>::default();
            let source = Busy { retry_after: said, asked: Arc::clone(&asked) };
            let (directory, progress) = (tempfile::tempdir().unwrap(), ExportProgress::default());
            let exporter = Exporter::new(Arc::new(source), directory.path().to_owned(), false, &progress);
            let namespace = "image/debian".parse().unwrap();
            let path = ObjectPath { namespace, object: Object::Pack(PackId::of(b"a")) };
            assert!(exporter.fetch(&path, 1 << 20, |_| Ok(())).await.is_err());
            let asked = asked.lock().unwrap();
            assert_eq!(asked.len(), ATTEMPTS as usize);
            let pauses = asked.windows(2).map(|pair| pair[1] - pair[0]);
            let tick = Duration::from_millis(2);
            let are_right = pauses.clone().all(|pause| (least..=most + tick).contains(&pause));
            assert!(are_right, "{:?} after {said:?} were said", pauses.collect::<Vec<_>>());
        }
    }
}
