//! Opens any version of a desktop or image to be read: without its lock, beside whatever is mounted or runs, fetching
//! only what is looked at.
//!
//! What was fetched is kept in `past/NAME` of the state directory for a week after its last use; who finds one in use
//! takes the next. What this machine has written and not synced is in no version, and so not part of it.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chunk_format::{ChunkId, ChunkIndex, ChunkSize, DiskRole, FormatError, Name, Subject};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::cache::{Cache, CacheConfig, CacheError};
use crate::desktop::{DesktopStore, Origins, Version};
use crate::disk::{Base, Disk, View};
use crate::fetch::{Fetcher, LinkState, OnMissing, SegmentStore};
use crate::image::DiskImage;
use crate::remote::{Remote, RemoteError};
use crate::source::HttpSource;
use crate::state::{StateDir, StateError, make_private_dir};
use crate::versions::{
    DesktopRef, ImageRef, Select, VersionError, fetch_golden, fetch_version, find_version,
};
use crate::volume::DirVolume;

/// Most bytes of fetched chunks that are kept.
const CACHE_BYTES: u64 = 8 << 30;
/// How long what was fetched is kept.
const KEPT_FOR: Duration = Duration::from_secs(7 * 24 * 3600);
/// How many may look at the versions of one desktop at once.
const MAX_READERS: usize = 16;

/// Why a version cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum PastError {
    /// The version cannot be had, or does not hold.
    #[error("{0}")]
    Version(#[from] VersionError),
    /// The state directory failed.
    #[error("{0}")]
    State(#[from] StateError),
    /// The cache could not be opened.
    #[error("{0}")]
    Cache(#[from] CacheError),
    /// The version's disks have chunks of several sizes, which one cache cannot serve.
    #[error("the disks have chunks of different sizes, which this program does not support")]
    MixedChunkSizes,
}

/// Which version is meant: `DESKTOP` or `DESKTOP@VERSION`, or of an image, `image:NAME`, `image:NAME:CHANNEL` or
/// `image:NAME@VERSION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PastRef {
    /// A version of a desktop.
    Desktop(DesktopRef),
    /// A golden version.
    Image(ImageRef),
}

/// What comes before the name of an image, where a desktop's is expected. No name has a colon.
pub const IMAGE: &str = "image:";

impl PastRef {
    /// What it is a version of.
    pub fn of(&self) -> String {
        match self {
            PastRef::Desktop(desktop) => desktop.desktop.to_string(),
            PastRef::Image(image) => format!("{IMAGE}{}", image.image),
        }
    }
}

impl FromStr for PastRef {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        match text.strip_prefix(IMAGE) {
            Some(image) => image.parse().map(PastRef::Image),
            None => text.parse().map(PastRef::Desktop),
        }
    }
}

impl fmt::Display for PastRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PastRef::Desktop(desktop) => desktop.fmt(f),
            PastRef::Image(ImageRef { image, select: Select::Channel(channel) }) => {
                write!(f, "{IMAGE}{image}:{channel}")
            }
            PastRef::Image(ImageRef { image, select: Select::Version(version) }) => {
                write!(f, "{IMAGE}{image}@{version}")
            }
        }
    }
}

/// A version and the golden one below it.
#[derive(Clone, Debug)]
pub struct PastVersion {
    /// The version.
    pub version: Version,
    /// Whose each of its segments is.
    pub origins: Origins,
}

impl PastVersion {
    /// Finds the version that is meant. The newest of a desktop is asked of the server, or else taken from this machine.
    ///
    /// # Errors
    /// `Version`, `State`.
    pub async fn find(state: &StateDir, wanted: &PastRef) -> Result<Self, PastError> {
        match wanted {
            PastRef::Desktop(desktop) => Self::of_desktop(state, desktop).await,
            PastRef::Image(image) => {
                let (_, remote) = state.remote()?;
                Ok(Self::of_image(fetch_golden(&remote, state, image).await?))
            }
        }
    }

    async fn of_desktop(state: &StateDir, wanted: &DesktopRef) -> Result<Self, PastError> {
        let (login, remote) = state.remote()?;
        let subject = Subject::Desktop { owner: login.user.clone(), desktop: wanted.desktop.clone() };
        let found = match &wanted.version {
            None => remote.desktop(&wanted.desktop).await.map(|info| info.head).map_err(VersionError::from),
            Some(version) => find_version(&remote, &subject, version).await,
        };
        let found = match found {
            Ok(found) => found,
            Err(VersionError::Remote(error)) if error.code() == Some("not_found") => {
                return Err(VersionError::NoSuchDesktop { desktop: wanted.desktop.clone() }.into());
            }
            Err(VersionError::Remote(error @ RemoteError::Unreachable { .. }))
                if wanted.version.is_none() =>
            {
                return Self::here(state, &wanted.desktop).ok_or(VersionError::Remote(error).into());
            }
            Err(error) => return Err(error.into()),
        };
        let version = fetch_version(&remote, &subject, found.id, &found.key).await?;
        let Some(base) = &version.manifest.base else {
            let what = format!("desktop {}", wanted.desktop);
            return Err(VersionError::OtherSubject { id: version.id, what }.into());
        };
        let image = Subject::Image { image: base.image.clone() };
        let golden = fetch_version(&remote, &image, base.version, &base.publisher).await?;
        let origins = Origins::new(&version.manifest, &golden.manifest);
        Ok(Self { version, origins })
    }

    /// The version this machine has.
    fn here(state: &StateDir, desktop: &Name) -> Option<Self> {
        let volume = DirVolume::open(&state.desktop_path(desktop)).ok()?;
        let store = DesktopStore::read_only(Arc::new(volume)).ok()?;
        let record = store.record();
        let (version, golden) = (store.version(record.head).ok()?, store.version(record.base).ok()?);
        let origins = Origins::new(&version.manifest, &golden.manifest);
        Some(Self { version, origins })
    }

    /// A version of an image.
    pub fn of_image(golden: Version) -> Self {
        let origins = Origins::new(&golden.manifest, &golden.manifest);
        Self { version: golden, origins }
    }
}

/// Reads versions; one cache serves all that are opened with it, so that what they have in common is fetched once.
pub struct Past {
    cache: Arc<Cache>,
    fetcher: Fetcher,
    runtime: Handle,
}

impl Past {
    /// Prepares to read versions with chunks of a size; `name` says whose.
    ///
    /// # Errors
    /// `State`, `Cache`.
    pub fn open(
        state: &StateDir,
        remote: Remote,
        name: &str,
        chunk_size: ChunkSize,
    ) -> Result<Self, PastError> {
        let parent = state.path().join("past");
        make_private_dir(&parent)?;
        remove_unused(&parent);
        let config = CacheConfig {
            chunk_size,
            limit_bytes: Some(CACHE_BYTES),
            owner: *b"versions that are only looked at",
        };
        let mut number = 0;
        let (directory, cache) = loop {
            let directory = match number {
                0 => parent.join(name),
                number => parent.join(format!("{name}.{number}")),
            };
            for path in [&directory, &directory.join("segments"), &directory.join("cache")] {
                make_private_dir(path)?;
            }
            match Cache::open(&directory.join("cache"), &config) {
                Err(CacheError::InUse { .. }) if number < MAX_READERS => number += 1,
                cache => break (directory, cache?),
            }
        };
        let (cache, runtime) = (Arc::new(cache), Handle::current());
        let segments = SegmentStore::new(directory.join("segments"));
        let source = Arc::new(HttpSource::new(remote));
        let fetcher = Fetcher::new(&runtime, vec![source], Arc::clone(&cache), segments, OnMissing::Fail);
        Ok(Self { cache, fetcher, runtime })
    }

    /// The disks of a version.
    ///
    /// # Errors
    /// `MixedChunkSizes`.
    pub fn disks(&self, past: &PastVersion) -> Result<Vec<Arc<PastDisk>>, PastError> {
        let open = |disk: &chunk_format::Disk| {
            if disk.chunk_size != self.cache.chunk_size() {
                return Err(PastError::MixedChunkSizes);
            }
            let base = Arc::new(Base::new(disk, |segment| past.origins.namespace_of(segment)));
            let disk = LiveDisk::unwritten(&base, &self.cache, &self.fetcher, &self.runtime);
            Ok(Arc::new(PastDisk { disk, base, fetcher: self.fetcher.clone() }))
        };
        past.version.manifest.disks.iter().map(open).collect()
    }

    /// What fetches for the disks.
    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// Whether the server answers.
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.fetcher.link()
    }

    /// Stops fetching and notes what was fetched.
    pub fn close(&self) {
        self.fetcher.stop();
        if let Err(error) = self.cache.save_index() {
            tracing::warn!(%error, "the cache's index was not saved; some chunks will be fetched again");
        }
    }
}

/// A disk whose chunks have ids. Its reads wait for what must be fetched: not to be used on a thread that drives tasks.
pub trait ChunkedDisk: DiskImage {
    /// Bytes per chunk.
    fn chunk_size(&self) -> ChunkSize;

    /// The id of a chunk; that of zeros past the end.
    ///
    /// # Errors
    /// What fetching says.
    fn chunk_id(&self, chunk: ChunkIndex) -> io::Result<ChunkId>;
}

/// One disk of a version.
pub struct PastDisk {
    disk: LiveDisk,
    base: Arc<Base>,
    fetcher: Fetcher,
}

impl PastDisk {
    /// What the disk is for.
    pub fn role(&self) -> DiskRole {
        self.base.role()
    }
}

impl DiskImage for PastDisk {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        let span = self.base.chunk_size().segment_span_bytes();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        let segments = (0..).zip(self.base.segments()).filter(|(_, segment)| !segment.id.is_zero());
        for at in segments.map(|(at, _)| at) {
            let (start, end) = (at * span, ((at + 1) * span).min(self.size_bytes()));
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        Ok(ranges)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_at(buf, offset)
    }
}

impl ChunkedDisk for PastDisk {
    fn chunk_size(&self) -> ChunkSize {
        self.base.chunk_size()
    }

    fn chunk_id(&self, chunk: ChunkIndex) -> io::Result<ChunkId> {
        let Some((segment, at)) = self.base.segment_of(chunk).filter(|(segment, _)| !segment.id.is_zero())
        else {
            return Ok(ChunkId::ZERO);
        };
        let chunks = match segment.segment() {
            Some(chunks) => chunks,
            None => self.disk.runtime.block_on(self.fetcher.segment(segment)).map_err(io::Error::other)?,
        };
        Ok(chunks.chunks().get(at).copied().unwrap_or(ChunkId::ZERO))
    }
}

/// A disk read as it is at the moment, what was written to it included. Its reads wait for what must be fetched.
pub struct LiveDisk {
    /// The disk.
    pub disk: Arc<Disk>,
    /// Fetches.
    pub runtime: Handle,
}

impl LiveDisk {
    /// A disk of a version, to which nothing was written.
    pub fn unwritten(base: &Arc<Base>, cache: &Arc<Cache>, fetcher: &Fetcher, runtime: &Handle) -> Self {
        let view = View { overlays: Vec::new(), base: Arc::clone(base) };
        let disk = Disk::new(view, Arc::clone(cache), fetcher.clone(), runtime.clone());
        Self { disk: Arc::new(disk), runtime: runtime.clone() }
    }
}

impl DiskImage for LiveDisk {
    fn size_bytes(&self) -> u64 {
        self.disk.size().bytes()
    }

    fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        let (size, mut at, mut ranges) = (self.size_bytes(), 0, Vec::new());
        while at < size {
            let (is_hole, len) = self.disk.extent(at);
            let end = at.saturating_add(len.max(1)).min(size);
            if !is_hole {
                ranges.push(at..end);
            }
            at = end;
        }
        Ok(ranges)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let here =
            usize::try_from(self.size_bytes().saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let (buf, past) = buf.split_at_mut(here);
        past.fill(0);
        match self.disk.begin_read(offset.min(self.size_bytes()), buf).map_err(io::Error::other)? {
            None => Ok(()),
            Some(pending) => {
                self.runtime.block_on(self.disk.finish_read(pending, buf)).map_err(io::Error::other)
            }
        }
    }
}

/// Removes what nobody has looked at for a while.
fn remove_unused(parent: &Path) {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    for directory in entries.map(|entry| entry.path()).filter(|path| is_unused(path)) {
        if let Err(error) = std::fs::remove_dir_all(&directory) {
            tracing::debug!(path = %directory.display(), %error, "an unused cache was not removed");
        }
    }
}

fn is_unused(directory: &Path) -> bool {
    let index: PathBuf = directory.join("cache/cache.index");
    let Ok(file) = std::fs::File::open(&index) else { return false };
    let age = file.metadata().and_then(|metadata| metadata.modified());
    let age = age.ok().and_then(|modified| SystemTime::now().duration_since(modified).ok());
    age.is_some_and(|age| age > KEPT_FOR)
        && rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok()
}
