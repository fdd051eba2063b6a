//! What of a desktop is on this machine, and so works without a network.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use chunk_format::{ChunkId, ChunkIndex, ChunkSize, DiskRole, Profile, SEGMENT_CHUNKS, Segment};
use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheError, Look};
use crate::desktop::{DesktopError, OpenDesktop};
use crate::disk::{Base, BaseSegment};
use crate::fetch::{Fetcher, SegmentStore};

/// How much of something is on this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalShare {
    /// Bytes of chunks that are stored at all, as far as it is known here.
    pub stored_bytes: u64,
    /// Those that are here.
    pub local_bytes: u64,
    /// Parts of 64 MiB of which it is not known what they hold; nothing of them is here.
    pub unknown_segments: u64,
}

impl LocalShare {
    /// Whether everything is here.
    pub fn is_whole(&self) -> bool {
        self.local_bytes == self.stored_bytes && self.unknown_segments == 0
    }

    /// Bytes that are known to lack.
    pub fn missing_bytes(&self) -> u64 {
        self.stored_bytes - self.local_bytes
    }

    /// The local share, per cent; parts of which nothing is known count as stored and lacking.
    pub fn percent(&self, segment_bytes: u64) -> f64 {
        let stored = self.stored_bytes + self.unknown_segments * segment_bytes;
        #[expect(clippy::cast_precision_loss, reason = "for show")]
        let (local, stored) = (self.local_bytes as f64, stored as f64);
        if stored == 0.0 { 100.0 } else { local * 100.0 / stored }
    }
}

/// What a start without a network would lack.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StartNeeds {
    /// How much of what a start touches is here; `None` when it was never recorded what that is.
    pub profile: Option<LocalShare>,
    /// What of it is not: bytes of a disk.
    pub missing: Vec<(DiskRole, Range<u64>)>,
    /// How much of all disks is here.
    pub disks: LocalShare,
}

impl StartNeeds {
    /// Whether a start can be expected to work.
    pub fn are_met(&self) -> bool {
        match &self.profile {
            Some(profile) => profile.is_whole(),
            None => self.disks.is_whole(),
        }
    }
}

/// Where it is looked what of a desktop is here.
pub enum Shelf<'a> {
    /// In what an open desktop reads through, as far as it is looked.
    Open {
        /// Its cache.
        cache: &'a Cache,
        /// What has its segments.
        fetcher: &'a Fetcher,
        /// How far.
        look: Look,
    },
    /// In the files of one that nobody needs to have open.
    Files {
        /// What its cache was last noted to hold.
        chunks: HashSet<ChunkId>,
        /// Its segments.
        segments: SegmentStore,
    },
}

impl<'a> Shelf<'a> {
    /// An open desktop.
    pub fn of_open(desktop: &'a OpenDesktop, look: Look) -> Self {
        Self::Open { cache: desktop.cache(), fetcher: desktop.fetcher(), look }
    }

    /// The files in a desktop's directory.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn of_files(directory: &Path, chunk_size: ChunkSize, owner: &[u8; 32]) -> Result<Self, CacheError> {
        let chunks = Cache::noted(&directory.join("cache"), chunk_size, owner)?;
        Ok(Self::Files { chunks, segments: SegmentStore::new(directory.join("segments")) })
    }

    fn segment<'b>(&self, segment: &'b BaseSegment) -> Option<&'b Segment> {
        match self {
            Self::Open { fetcher, .. } => fetcher.segment_here(segment),
            Self::Files { segments, .. } => segment.segment_or_take(|| segments.load(segment.id)),
        }
    }

    fn has(&self, id: &ChunkId) -> bool {
        match self {
            Self::Open { cache, look, .. } => cache.has(id, *look),
            Self::Files { chunks, .. } => chunks.contains(id),
        }
    }

    fn count(&self, ids: &[ChunkId]) -> u64 {
        match self {
            // Under one lock.
            Self::Open { cache, look: Look::Index, .. } => cache.count(ids),
            _ => ids.iter().filter(|id| self.has(id)).count() as u64,
        }
    }
}

/// How much of a disk's base is on this machine. Asks nobody.
pub fn of_disk(base: &Base, shelf: &Shelf<'_>) -> LocalShare {
    let chunk_bytes = base.chunk_size().bytes_u64();
    let mut share = LocalShare::default();
    let mut ids = Vec::with_capacity(SEGMENT_CHUNKS);
    for segment in base.segments().iter().filter(|segment| !segment.id.is_zero()) {
        let Some(chunks) = shelf.segment(segment) else {
            share.unknown_segments += 1;
            continue;
        };
        ids.clear();
        ids.extend(chunks.chunks().iter().copied().filter(|id| !id.is_zero()));
        share.stored_bytes += ids.len() as u64 * chunk_bytes;
        share.local_bytes += shelf.count(&ids) * chunk_bytes;
    }
    share
}

/// What a start of a desktop without a network would lack. Asks nobody.
///
/// # Errors
/// [`DesktopError`].
pub fn for_start(desktop: &OpenDesktop, look: Look) -> Result<StartNeeds, DesktopError> {
    let mut needs = StartNeeds::default();
    let profile = desktop.profile();
    // Where it is not known what a start touches, it rests on all of them.
    let look_at_all = if profile.is_some() { Look::Index } else { look };
    for disk in desktop.disks() {
        let share = of_disk(&disk.view().base, &Shelf::of_open(desktop, look_at_all));
        needs.disks.stored_bytes += share.stored_bytes;
        needs.disks.local_bytes += share.local_bytes;
        needs.disks.unknown_segments += share.unknown_segments;
    }
    let Some(profile) = profile else { return Ok(needs) };
    let plan = desktop.boot_plan(profile.as_ref().clone())?;
    let (share, missing) = of_start(&plan.profile, &plan.now, &Shelf::of_open(desktop, look));
    needs.profile = Some(share);
    needs.missing = missing;
    Ok(needs)
}

/// How much of what a start touches is here, and what of it is not. `now` are the disks as they are, by the profile's numbers of
/// them.
pub(crate) fn of_start(
    profile: &Profile,
    now: &[Arc<Base>],
    shelf: &Shelf<'_>,
) -> (LocalShare, Vec<(DiskRole, Range<u64>)>) {
    let mut share = LocalShare::default();
    let mut missing = Vec::new();
    let mut unknown = HashSet::new();
    for entry in &profile.entries {
        let Some(base) = now.get(usize::from(entry.disk)) else { continue };
        let Some((segment, at)) = base.segment_of(entry.chunk).filter(|(segment, _)| !segment.id.is_zero())
        else {
            continue;
        };
        let chunk_bytes = base.chunk_size().bytes_u64();
        match shelf.segment(segment).and_then(|chunks| chunks.chunks().get(at).copied()) {
            Some(ChunkId::ZERO) => continue,
            Some(id) => {
                share.stored_bytes += chunk_bytes;
                if shelf.has(&id) {
                    share.local_bytes += chunk_bytes;
                    continue;
                }
            }
            None => {
                share.stored_bytes += chunk_bytes;
                unknown.insert(segment.id);
            }
        }
        missing.push((base.role(), entry.chunk, chunk_bytes));
    }
    share.unknown_segments = unknown.len() as u64;
    missing.sort_unstable();
    (share, joined(&missing))
}

/// Neighbouring chunks as one range.
fn joined(chunks: &[(DiskRole, ChunkIndex, u64)]) -> Vec<(DiskRole, Range<u64>)> {
    let mut ranges: Vec<(DiskRole, Range<u64>)> = Vec::new();
    for (role, chunk, chunk_bytes) in chunks {
        let (start, end) = (chunk.0 * chunk_bytes, (chunk.0 + 1) * chunk_bytes);
        match ranges.last_mut() {
            Some((last, range)) if last == role && range.end == start => range.end = end,
            _ => ranges.push((*role, start..end)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_told_as_one_range() {
        let chunk = |at| (DiskRole::System, ChunkIndex(at), 64 << 10);
        let ranges = joined(&[chunk(1), chunk(2), chunk(4), (DiskRole::Home, ChunkIndex(5), 64 << 10)]);
        let kib = |from: u64, to: u64| from << 10..to << 10;
        assert_eq!(
            ranges,
            [
                (DiskRole::System, kib(64, 192)),
                (DiskRole::System, kib(256, 320)),
                (DiskRole::Home, kib(320, 384))
            ]
        );
    }

    #[test]
    fn shares_count_what_is_not_known_as_lacking() {
        let share = LocalShare { stored_bytes: 100, local_bytes: 50, unknown_segments: 1 };
        assert!(!share.is_whole());
        assert!((share.percent(100) - 25.0).abs() < 0.01);
        assert!((LocalShare::default().percent(100) - 100.0).abs() < 0.01);
    }
}
