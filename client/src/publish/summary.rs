//! What a version changes against the one before it: what a client will fetch, files, packages. Known before the
//! version is committed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use chunk_format::{
    ChunkId, ChunkIndex, ChunkSize, DiskRole, FormatError, FrameDecoder, FrameEncoder, Locator,
    MAX_LOCATOR_BYTES, PackId, Profile, ProfileEntry, Segment, SegmentId, frame_len_max,
};
use futures_util::future::FutureExt;
use futures_util::stream::{StreamExt, TryStreamExt};
use serde::Serialize;

use crate::desktop::Version;
use crate::disk::{Base, BaseSegment};
use crate::fetch::{FetchError, Fetcher, GAP_LIMIT_BYTES, OnMissing};
use crate::files::diff::{Change, DiskSide, Fate, compare_disks};
use crate::files::packages::{PackageChanges, installed};
use crate::files::{DiskFiles, FilesError};
use crate::image::DiskImage;
use crate::past::{ChunkedDisk, Past, PastDisk, PastError, PastVersion};
use crate::profile::{BothImages, MapError, Mapper, disks_of};
use crate::source::{Object, ObjectPath};

/// Changed files that are named, the largest.
const LARGEST: usize = 10;
/// Segments and locators fetched at once.
const REQUESTS: usize = 16;

/// Why what a version changes is not known.
#[derive(Debug, thiserror::Error)]
pub enum SummaryError {
    /// A version cannot be looked at.
    #[error("{0}")]
    Past(#[from] PastError),
    /// An object of a version cannot be had.
    #[error("{0}")]
    Fetch(#[from] FetchError),
    /// A profile cannot be carried over.
    #[error("{0}")]
    Map(#[from] MapError),
    /// A file system cannot be read.
    #[error("{0}")]
    Files(#[from] FilesError),
    /// A segment cannot be written down.
    #[error("{0}")]
    Format(#[from] FormatError),
}

/// What a client fetches of a version, having all of the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct UpdateBytes {
    /// Chunks that the version before does not have, each counted once.
    pub chunks: u64,
    /// Their bytes, as they are sent.
    pub chunk_bytes: u64,
    /// Bytes of the lists that name and place them: changed segments and their locators.
    pub list_bytes: u64,
    /// Bytes of the version itself, with its signature.
    pub version_bytes: u64,
}

impl UpdateBytes {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.chunk_bytes + self.list_bytes + self.version_bytes
    }
}

/// How many files changed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FileChanges {
    /// Added.
    pub added: u64,
    /// Changed.
    pub changed: u64,
    /// Removed.
    pub removed: u64,
    /// The largest that were added or changed.
    pub largest: Vec<Change>,
}

/// What a version changes against the one before it.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The number of the version before it.
    pub previous: u64,
    /// Bytes that a client with all of the version before it fetches to have all of this one.
    pub full_bytes: u64,
    /// Of which.
    pub full: UpdateBytes,
    /// Bytes of it that a client fetches before it starts, by the profile carried over: the version, the lists of what changed, and
    /// what a start reads; none without a profile.
    pub boot_bytes: Option<u64>,
    /// What a start reads, by the profile carried over, in this order; none without a profile.
    #[serde(skip)]
    pub start: Option<Vec<ProfileEntry>>,
    /// Files; none when a file system cannot be read, or nobody asked.
    pub files: Option<FileChanges>,
    /// Debian packages; none when either version has none, or nobody asked.
    pub packages: Option<PackageChanges>,
    /// What a person should know of it.
    pub notes: Vec<String>,
}

/// What a summary is made with.
pub struct Summarizer {
    /// Reads the version before.
    pub past: Past,
    /// The profile that will be carried over, and the version it is of.
    pub profile: Option<(Version, Profile)>,
    /// Whether files and packages are looked at.
    pub with_files: bool,
}

/// A disk that is being published, by the chunks it was cut into.
pub(super) struct NewDisk {
    pub(super) image: Arc<dyn DiskImage>,
    pub(super) chunk_size: ChunkSize,
    /// The segments that are not all zeros.
    pub(super) segments: HashMap<SegmentId, Segment>,
    pub(super) order: Vec<SegmentId>,
}

impl DiskImage for NewDisk {
    fn size_bytes(&self) -> u64 {
        self.image.size_bytes()
    }

    fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        self.image.data_ranges()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.image.read_at(buf, offset)
    }
}

impl ChunkedDisk for NewDisk {
    fn chunk_size(&self) -> ChunkSize {
        self.chunk_size
    }

    fn chunk_id(&self, chunk: ChunkIndex) -> io::Result<ChunkId> {
        let (segment, at) = chunk.in_segment();
        let id = self.order.get(segment.0 as usize);
        let segment = id.and_then(|id| self.segments.get(id));
        Ok(segment.and_then(|segment| segment.chunks().get(at)).copied().unwrap_or(ChunkId::ZERO))
    }
}

/// The disk of the version before: what it has in common with the one at hand is not fetched.
struct OldDisk {
    past: Arc<PastDisk>,
    new: Arc<NewDisk>,
}

impl DiskImage for OldDisk {
    fn size_bytes(&self) -> u64 {
        self.past.size_bytes()
    }

    fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        self.past.data_ranges()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let size = self.past.chunk_size();
        if size != self.new.chunk_size {
            return self.past.read_at(buf, offset);
        }
        let mut done = 0;
        while done < buf.len() {
            let at = offset.saturating_add(done as u64);
            let chunk = ChunkIndex::containing(at, size);
            let left = size.bytes() - usize::try_from(at % size.bytes_u64()).unwrap_or(0);
            let part = left.min(buf.len() - done);
            let target = &mut buf[done..done + part];
            if self.past.chunk_id(chunk)? == self.new.chunk_id(chunk)? {
                self.new.read_at(target, at)?;
            } else {
                self.past.read_at(target, at)?;
            }
            done += part;
        }
        Ok(())
    }
}

impl ChunkedDisk for OldDisk {
    fn chunk_size(&self) -> ChunkSize {
        self.past.chunk_size()
    }

    fn chunk_id(&self, chunk: ChunkIndex) -> io::Result<ChunkId> {
        self.past.chunk_id(chunk)
    }
}

impl Summarizer {
    /// Tells what a version changes that was uploaded and is not committed.
    pub(super) async fn summarize(
        &self,
        before: &Version,
        after: &Version,
        disk: NewDisk,
    ) -> Result<Summary, SummaryError> {
        let disk = Arc::new(disk);
        let fetcher = self.past.fetcher();
        let (old, mut new) = (disks_of(before), disks_of(after));
        // What was cut a moment ago need not be fetched.
        if let Some(first) = new.first_mut() {
            let known =
                (0..).map(chunk_format::SegmentIndex).zip(first.segments()).filter_map(|(index, place)| {
                    let segment = disk.segments.get(&place.id)?.clone();
                    Some((index, BaseSegment::loaded(segment, place.namespace.clone())))
                });
            *first = Arc::new(first.with_segments(known.collect::<Vec<_>>()));
        }
        let mut places = Frames::between(fetcher, &old, &new).await?;
        places.bytes.version_bytes = (after.bytes.len() + after.signature.encode().len()) as u64;
        let (boot_bytes, start) = match &self.profile {
            None => (None, None),
            Some((recorded, profile)) => {
                let images = self.images(recorded, &disk);
                let recorded = disks_of(recorded);
                let mapped = Mapper { fetcher, old: &recorded, new: &new, images }.map(profile).await?;
                let read_bytes = places.of_entries(fetcher, &new, &mapped).await?;
                (Some(places.bytes.version_bytes + places.segment_bytes + read_bytes), Some(mapped))
            }
        };
        let mut summary = Summary {
            previous: before.manifest.sequence,
            full_bytes: places.bytes.total(),
            full: places.bytes,
            boot_bytes,
            start,
            files: None,
            packages: None,
            notes: Vec::new(),
        };
        if self.with_files
            && let Err(error) = self.add_files(before, disk, &mut summary).await
        {
            summary.notes.push(format!("the files of the versions could not be compared: {error}"));
        }
        Ok(summary)
    }

    /// The disk that is being published beside that of an earlier version; nothing where that has chunks of another size.
    fn images(&self, recorded: &Version, new: &Arc<NewDisk>) -> Vec<BothImages> {
        let disks = self.past.disks(&PastVersion::of_image(recorded.clone())).unwrap_or_default();
        let past = disks.into_iter().next().filter(|disk| disk.role() == DiskRole::System);
        let both = past.map(|past| BothImages {
            old: Arc::new(OldDisk { past, new: Arc::clone(new) }),
            new: Arc::clone(new) as Arc<dyn DiskImage>,
        });
        both.into_iter().collect()
    }

    async fn add_files(
        &self,
        before: &Version,
        new: Arc<NewDisk>,
        summary: &mut Summary,
    ) -> Result<(), SummaryError> {
        let disks = self.past.disks(&PastVersion::of_image(before.clone()))?;
        let Some(past) = disks.into_iter().find(|disk| disk.role() == DiskRole::System) else {
            return Ok(());
        };
        let old = Arc::new(OldDisk { past, new: Arc::clone(&new) });
        let look = move || -> Result<_, FilesError> {
            let side = |disk: Arc<dyn ChunkedDisk>, image: Arc<dyn DiskImage>| {
                let files = Arc::new(DiskFiles::find(DiskRole::System, &image)?);
                Ok::<_, FilesError>(DiskSide { disk, files })
            };
            let (before, after) = (side(old.clone(), old)?, side(new.clone(), new)?);
            let difference = compare_disks(Some(&before), Some(&after))?;
            let packages = |side: &DiskSide| match side.files.largest() {
                Some(fs) => installed(fs),
                None => Ok(None),
            };
            let packages = match (packages(&before), packages(&after)) {
                (Ok(Some(before)), Ok(Some(after))) => Some(PackageChanges::between(&before, &after)),
                _ => None,
            };
            Ok((difference, packages, after.files.notes()))
        };
        let (difference, packages, notes) = match tokio::task::spawn_blocking(look).await {
            Ok(found) => found?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        summary.notes.extend(notes);
        let unreadable = difference.unreadable.len();
        if unreadable > 0 {
            summary
                .notes
                .push(format!("{unreadable} files could not be compared: {}", difference.unreadable[0]));
        }
        let mut largest: Vec<Change> =
            difference.changes.into_iter().filter(|change| change.fate != Fate::Removed).collect();
        largest.sort_by_key(|change| std::cmp::Reverse(change.after_bytes));
        largest.truncate(LARGEST);
        let (added, changed, removed) = (difference.added, difference.changed, difference.removed);
        summary.files = Some(FileChanges { added, changed, removed, largest });
        summary.packages = packages;
        Ok(())
    }
}

/// The frames of chunks that one version has and another has not.
struct Frames {
    /// In which pack, from where, and how long.
    places: BTreeMap<ChunkId, (PackId, u64, u64)>,
    /// Bytes of the changed segments themselves.
    segment_bytes: u64,
    /// Bytes of their locators.
    locator_bytes: BTreeMap<SegmentId, u64>,
    bytes: UpdateBytes,
}

impl Frames {
    async fn between(fetcher: &Fetcher, old: &[Arc<Base>], new: &[Arc<Base>]) -> Result<Self, SummaryError> {
        let segments = |disks: &[Arc<Base>]| -> BTreeMap<SegmentId, BaseSegment> {
            let all = disks.iter().flat_map(|disk| disk.segments());
            all.filter(|segment| !segment.id.is_zero()).map(|segment| (segment.id, segment.clone())).collect()
        };
        let (old, mut new) = (segments(old), segments(new));
        new.retain(|id, _| !old.contains_key(id));
        let mut here: HashSet<ChunkId> = HashSet::new();
        if !new.is_empty() {
            let loads: Vec<_> = old.values().map(|segment| fetcher.segment(segment).boxed()).collect();
            let mut loads = futures_util::stream::iter(loads).buffer_unordered(REQUESTS);
            while let Some(segment) = loads.try_next().await? {
                here.extend(segment.chunks());
            }
        }
        let mut frames = Self {
            places: BTreeMap::new(),
            segment_bytes: 0,
            locator_bytes: BTreeMap::new(),
            bytes: UpdateBytes::default(),
        };
        let fetches: Vec<_> = new.values().map(|segment| placed(fetcher, segment).boxed()).collect();
        let mut fetches = futures_util::stream::iter(fetches).buffer_unordered(REQUESTS);
        while let Some(Placed { segment, locator, segment_bytes, locator_bytes }) = fetches.try_next().await?
        {
            frames.bytes.list_bytes += segment_bytes + locator_bytes;
            frames.segment_bytes += segment_bytes;
            frames.locator_bytes.insert(segment.id(), locator_bytes);
            for (at, id) in
                segment.chunks().iter().enumerate().filter(|(_, id)| !id.is_zero() && !here.contains(*id))
            {
                let Some((pack, place)) =
                    locator.place(at).and_then(|place| Some((locator.pack(&place)?.pack, place)))
                else {
                    continue;
                };
                let (start, len) = (u64::from(place.offset), u64::from(place.frame_len));
                if frames.places.insert(*id, (pack, start, len)).is_none() {
                    frames.bytes.chunks += 1;
                    frames.bytes.chunk_bytes += len;
                }
            }
        }
        Ok(frames)
    }

    /// Bytes of those that a profile names, with what lies between neighbours and is fetched along, and of what says where they are: that of each changed segment it touches.
    async fn of_entries(
        &self,
        fetcher: &Fetcher,
        disks: &[Arc<Base>],
        entries: &[ProfileEntry],
    ) -> Result<u64, SummaryError> {
        let (mut touched, mut bytes) = (HashSet::new(), 0);
        let mut wanted = BTreeSet::new();
        for entry in entries {
            let place = disks.get(usize::from(entry.disk)).and_then(|disk| disk.segment_of(entry.chunk));
            let Some((segment, at)) = place.filter(|(segment, _)| !segment.id.is_zero()) else { continue };
            if touched.insert(segment.id) {
                bytes += self.locator_bytes.get(&segment.id).copied().unwrap_or(0);
            }
            let id = fetcher.segment(segment).await?.chunks().get(at).copied().unwrap_or(ChunkId::ZERO);
            wanted.extend(self.places.get(&id).copied());
        }
        let mut before: Option<(PackId, u64)> = None;
        for (pack, start, len) in wanted {
            let gap =
                before.filter(|(last, _)| *last == pack).map_or(0, |(_, end)| start.saturating_sub(end));
            bytes += len + if gap <= GAP_LIMIT_BYTES { gap } else { 0 };
            before = Some((pack, start + len));
        }
        Ok(bytes)
    }
}

/// A segment and where its chunks are, with the bytes of each as it is sent.
struct Placed {
    segment: Segment,
    locator: Locator,
    segment_bytes: u64,
    locator_bytes: u64,
}

async fn placed(fetcher: &Fetcher, segment: &BaseSegment) -> Result<Placed, SummaryError> {
    let chunks = fetcher.segment(segment).await?.clone();
    let path = ObjectPath { namespace: segment.namespace.clone(), object: Object::Locator(segment.id) };
    let (locator, len) = fetcher
        .object(&path, frame_len_max(MAX_LOCATOR_BYTES), OnMissing::Fail, |frame| {
            Ok((Locator::decode(frame, segment.id, &mut FrameDecoder::new()?)?, frame.len()))
        })
        .await?;
    let segment_bytes = chunks.encode(&mut FrameEncoder::new()?)?.len() as u64;
    Ok(Placed { segment: chunks, locator, segment_bytes, locator_bytes: len as u64 })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use chunk_format::{Disk, DiskSize, Namespace};
    use tokio::runtime::Handle;

    use super::*;
    use crate::cache::{Cache, CacheConfig, Look};
    use crate::fetch::{FillProgress, SegmentStore};
    use crate::upstream::MemoryServer;

    fn fetcher(server: &MemoryServer, dir: &std::path::Path) -> Fetcher {
        let config = CacheConfig {
            chunk_size: ChunkSize::new(4096).unwrap(),
            limit_bytes: Some(64 << 20),
            owner: [0; 32],
        };
        let cache = Arc::new(Cache::open(dir, &config).unwrap());
        std::fs::create_dir(dir.join("segments")).unwrap();
        let segments = SegmentStore::new(dir.join("segments"));
        Fetcher::new(&Handle::current(), vec![Arc::new(server.clone())], cache, segments, OnMissing::Fail)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_an_update_takes_is_what_a_client_fetches() {
        let server = MemoryServer::default();
        let namespace: Namespace = "image/debian".parse().unwrap();
        let noise = AtomicU64::new(1);
        let block = |kind: u64| -> Vec<u8> {
            (0..4096_u64)
                .map(|at| {
                    let next = noise
                        .load(std::sync::atomic::Ordering::Relaxed)
                        .wrapping_mul(6_364_136_223_846_793_005);
                    noise.store(next.wrapping_add(kind | 1), std::sync::atomic::Ordering::Relaxed);
                    if kind.is_multiple_of(3) {
                        b'a' + (at % 20).to_le_bytes()[0]
                    } else {
                        (next >> 40).to_le_bytes()[0]
                    }
                })
                .collect()
        };
        let old: Vec<u8> = (0..3000_u64).flat_map(block).collect();
        let mut new = old.clone();
        // Scattered, in a row, moved, repeated, and zeros.
        for at in (0..1000_usize).step_by(7).chain(1500..1700).chain([2900; 1]) {
            new[at * 4096..(at + 1) * 4096].copy_from_slice(&block(at as u64));
        }
        new.copy_within(100 * 4096..101 * 4096, 2901 * 4096);
        new.copy_within(2900 * 4096..2901 * 4096, 2902 * 4096);
        new[2903 * 4096..2950 * 4096].fill(0);
        let template = Disk {
            role: DiskRole::System,
            size: DiskSize::new(new.len() as u64).unwrap(),
            chunk_size: ChunkSize::new(4096).unwrap(),
            segments: Vec::new(),
        };
        let bases = [&old, &new].map(|content| {
            let disk = server.store_disk(&namespace, &template, content);
            vec![Arc::new(Base::new(&disk, |_| namespace.clone()))]
        });
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let said = Frames::between(&fetcher(&server, dirs[0].path()), &bases[0], &bases[1]).await.unwrap();
        // A client with the old version, that knows nothing of what was loaded for the answer.
        let client = fetcher(&server, dirs[1].path());
        let fresh = |at: usize| {
            let disk = server.store_disk(&namespace, &template, [&old, &new][at]);
            vec![Arc::new(Base::new(&disk, |_| namespace.clone()))]
        };
        client.fill(&fresh(0), Look::Index, &FillProgress::default()).await.unwrap();
        let before = client.stats().fetched_bytes;
        client.fill(&fresh(1), Look::Index, &FillProgress::default()).await.unwrap();
        let fetched = client.stats().fetched_bytes - before;
        let said = said.bytes.total();
        assert!(fetched > 500_000);
        assert!(said.abs_diff(fetched) * 20 <= fetched, "{said} said, {fetched} fetched");
    }
}
