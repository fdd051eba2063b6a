//! Carries a profile over to the next version.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chunk_format::{ChunkId, ChunkIndex, Profile, ProfileEntry, SEGMENT_CHUNKS};

use crate::disk::Base;
use crate::fetch::{FetchError, Fetcher};

/// Why a profile could not be carried over.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The chunk ids of a version could not be had.
    #[error("cannot read the chunks of a version")]
    Segments(#[from] FetchError),
}

/// Two versions of an image.
pub struct Mapper<'a> {
    /// Fetches their segments.
    pub fetcher: &'a Fetcher,
    /// The disks of the version the profile was recorded on.
    pub old: &'a [Arc<Base>],
    /// The disks of the version it is for.
    pub new: &'a [Arc<Base>],
}

impl Mapper<'_> {
    /// The entries of a profile as they are on the new version, in the same order: a chunk where it went, or else what
    /// stands in its place.
    ///
    /// # Errors
    /// [`MapError`].
    pub async fn map(&self, profile: &Profile) -> Result<Vec<ProfileEntry>, MapError> {
        let old = self.ids(self.old).await?;
        let new = self.ids(self.new).await?;
        let mut places: HashMap<ChunkId, ProfileEntry> = HashMap::new();
        for (entry, id) in &new {
            places.entry(*id).or_insert(*entry);
        }
        let new: HashMap<ProfileEntry, ChunkId> = new.into_iter().collect();
        let old: HashMap<ProfileEntry, ChunkId> = old.into_iter().collect();
        let mut mapped = Vec::with_capacity(profile.entries.len());
        let mut seen = HashSet::new();
        for entry in &profile.entries {
            let id = old.get(entry);
            let same_place = new.get(entry).map(|_| *entry);
            let place = match id {
                Some(id) if new.get(entry) == Some(id) => same_place,
                Some(id) => places.get(id).copied().or(same_place),
                None => same_place,
            };
            if let Some(place) = place.filter(|place| seen.insert(*place)) {
                mapped.push(place);
            }
        }
        Ok(mapped)
    }

    /// The stored chunks of a version, and where they are.
    async fn ids(&self, disks: &[Arc<Base>]) -> Result<Vec<(ProfileEntry, ChunkId)>, MapError> {
        let mut ids = Vec::new();
        for (disk, base) in (0u8..).zip(disks) {
            for (index, segment) in (0u64..).zip(base.segments()) {
                if segment.id.is_zero() {
                    continue;
                }
                let chunks = self.fetcher.segment(segment).await?.chunks();
                ids.extend((0u64..).zip(chunks).filter(|(_, id)| !id.is_zero()).map(|(at, id)| {
                    let chunk = ChunkIndex(index * SEGMENT_CHUNKS as u64 + at);
                    (ProfileEntry { disk, chunk }, *id)
                }));
            }
        }
        Ok(ids)
    }
}
