//! Fetches what the next start on another golden version will touch, while nobody waits for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use chunk_format::{ChunkId, ChunkIndex, DiskRole, SEGMENT_CHUNKS};

use crate::desktop::{OpenDesktop, Version};
use crate::disk::Base;
use crate::fetch::{Class, FetchError, Wish};
use crate::profile::fetch_profile;

/// Chunks asked for at once.
const BATCH: usize = 256;

/// Fetches of a golden version what its recorded start touches, and what has changed of all that is here of the present one, in
/// the background of everything else. Answers how many chunks came.
///
/// # Errors
/// [`FetchError`]; what came stays.
pub(super) async fn fetch_ahead(desktop: &OpenDesktop, golden: &Version) -> Result<u64, Arc<FetchError>> {
    let Some(described) = golden.manifest.disk(DiskRole::System) else { return Ok(0) };
    let image = golden.manifest.subject.namespace();
    let next = Base::new(described, |_| image.clone());
    let mut wanted = changed(desktop, &next).await?;
    match fetch_profile(desktop.fetcher(), golden).await {
        Ok(found) => {
            let entries = found.profile.entries.iter().filter(|entry| entry.disk == 0);
            wanted.extend(entries.map(|entry| entry.chunk));
            desktop.profiles.keep(&found);
        }
        Err(error) => tracing::debug!(%error, "the next version has no profile"),
    }
    let wanted: Vec<ChunkIndex> = wanted.into_iter().collect();
    let mut came = 0;
    for batch in wanted.chunks(BATCH) {
        let mut missing = Vec::with_capacity(batch.len());
        for chunk in batch {
            if is_missing(desktop, &next, *chunk).await? {
                missing.push(*chunk);
            }
        }
        let wishes = desktop.fetcher().want(&next, &missing, Class::Background).await.map_err(Arc::new)?;
        for (chunk, wish) in missing.iter().zip(wishes) {
            if let Wish::Flight(flight) = wish {
                desktop.fetcher().land(&next, *chunk, &flight).await?;
                came += 1;
            }
        }
    }
    Ok(came)
}

async fn is_missing(desktop: &OpenDesktop, base: &Base, chunk: ChunkIndex) -> Result<bool, FetchError> {
    let Some((segment, at)) = base.segment_of(chunk).filter(|(segment, _)| !segment.id.is_zero()) else {
        return Ok(false);
    };
    let id = desktop.fetcher().segment(segment).await?.chunks().get(at).copied().unwrap_or(ChunkId::ZERO);
    Ok(!id.is_zero() && !desktop.cache().contains(&id))
}

/// The chunks of a base that differ from the present system disk's, where those are here: what was read once is read again.
async fn changed(desktop: &OpenDesktop, next: &Base) -> Result<BTreeSet<ChunkIndex>, FetchError> {
    let mut changed = BTreeSet::new();
    let Some(disk) = desktop.disk(DiskRole::System) else { return Ok(changed) };
    let present = Arc::clone(&disk.view().base);
    for (index, (new, old)) in (0u64..).zip(next.segments().iter().zip(present.segments())) {
        if new.id == old.id || new.id.is_zero() || old.id.is_zero() {
            continue;
        }
        let (new, old) = (desktop.fetcher().segment(new).await?, desktop.fetcher().segment(old).await?);
        let first = index * SEGMENT_CHUNKS as u64;
        let pairs = (first..).zip(new.chunks().iter().zip(old.chunks()));
        changed.extend(
            pairs
                .filter(|(_, (new, old))| new != old && desktop.cache().contains(old))
                .map(|(chunk, _)| ChunkIndex(chunk)),
        );
    }
    Ok(changed)
}
