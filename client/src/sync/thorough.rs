//! Sending what a server should have and has not: it was set back to an older state.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use chunk_format::{ChunkId, ChunkIndex, Segment, SegmentId, SegmentIndex};

use super::changes::is_written_over;
use super::{Frozen, SyncError, Syncer, place};
use crate::cache::{Cache, Look};
use crate::desktop::OpenDesktop;
use crate::upload::SegmentWork;

/// Chunks that are not evicted as long as this is there.
pub(super) struct Kept {
    cache: Arc<Cache>,
    ids: Vec<ChunkId>,
}

impl Kept {
    pub(super) fn of(cache: &Arc<Cache>, ids: &HashSet<ChunkId>) -> Self {
        Self { cache: Arc::clone(cache), ids: cache.pin_more(ids) }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.cache.set_pinned(self.ids.iter().copied(), false);
    }
}

/// Those of some chunks that are in the cache, by their bytes: its index may name what a power cut has taken.
pub(super) async fn here(cache: &Arc<Cache>, ids: HashSet<ChunkId>) -> HashSet<ChunkId> {
    let cache = Arc::clone(cache);
    let looking = move || ids.into_iter().filter(|id| cache.has(id, Look::Bytes)).collect();
    tokio::task::spawn_blocking(looking).await.unwrap_or_default()
}

impl Syncer {
    /// The segments to send so that the server has all of a frozen state: those that changed, and those of the version below
    /// that it lacks, with every chunk of them that it lacks.
    ///
    /// What is neither here nor there is told, not waited for; and what is there is not read: where it lies is told by
    /// segments that the server has lost.
    pub(super) async fn plan_thoroughly(
        &self,
        desktop: &OpenDesktop,
        frozen: &Frozen,
        changed: Vec<SegmentWork>,
    ) -> Result<(Vec<SegmentWork>, Kept), SyncError> {
        let mut changed: HashMap<(usize, SegmentIndex), SegmentWork> =
            changed.into_iter().map(|work| ((work.disk, work.index), work)).collect();
        let lacking = self.lacking_segments(desktop, frozen).await?;
        let mut plan = Vec::new();
        for (disk, view) in frozen.views.iter().enumerate() {
            if desktop.disks.get(disk).is_none_or(|disk| frozen.leaves_out(disk.role())) {
                continue;
            }
            for (index, segment) in (0..).map(SegmentIndex).zip(view.base.segments()) {
                let mut change = changed.remove(&(disk, index));
                // Nothing of what lies below is needed.
                if let Some(zeros) = change.take_if(|change| change.is_of_zeros()) {
                    plan.push(zeros);
                    continue;
                }
                if change.is_none() && !lacking.contains(&segment.id) {
                    continue;
                }
                let before = match segment.id.is_zero() {
                    true => Segment::zero(),
                    false => self.segment_below(desktop, frozen, segment).await?,
                };
                let unchanged =
                    SegmentWork { disk, index, before: None, positions: Vec::new(), zeroed: Vec::new() };
                plan.push(SegmentWork { before: Some(before), ..change.unwrap_or(unchanged) });
            }
        }
        let lost = self.lacking_chunks(desktop, &plan).await?;
        // What is here is the only copy there may be: it is not evicted to make room for what else is read.
        let kept = Kept::of(&desktop.cache, &lost);
        let here = here(&desktop.cache, lost.clone()).await;
        let mut elsewhere = 0;
        for work in &mut plan {
            let Some(before) = &mut work.before else { continue };
            let view = frozen.views.get(work.disk);
            for at in 0..before.chunks().len() {
                let id = before.chunks()[at];
                if !lost.contains(&id) || work.zeroed.contains(&at) {
                    continue;
                }
                // Sent as if it had been zeros before, also where it was written over with what it held.
                before.set(at, ChunkId::ZERO)?;
                let is_written = work.positions.contains(&at);
                let is_read = !is_written
                    || view.is_none_or(|view| {
                        !is_written_over(view, ChunkIndex(work.index.first_chunk().0 + at as u64))
                    });
                elsewhere += usize::from(is_read && !here.contains(&id));
                if !is_written {
                    work.positions.push(at);
                }
            }
            work.positions.sort_unstable();
        }
        match elsewhere {
            0 => Ok((plan, kept)),
            chunks => {
                let sequence = frozen.head.manifest.sequence;
                Err(SyncError::Lost { what: format!("the content of {chunks} chunks"), sequence })
            }
        }
    }

    async fn lacking_segments(
        &self,
        desktop: &OpenDesktop,
        frozen: &Frozen,
    ) -> Result<Vec<SegmentId>, SyncError> {
        let mut ids: Vec<SegmentId> = frozen
            .head
            .manifest
            .disks
            .iter()
            .filter(|disk| !frozen.leaves_out(disk.role))
            .flat_map(|disk| &disk.segments)
            .filter(|id| !id.is_zero())
            .copied()
            .collect();
        ids.sort_unstable();
        ids.dedup();
        let missing = self.missing_segments(desktop, frozen, &ids).await?;
        Ok(ids.into_iter().zip(missing).filter_map(|(id, missing)| missing.then_some(id)).collect())
    }

    /// The chunks below some work that the server lacks.
    pub(super) async fn lacking_chunks(
        &self,
        desktop: &OpenDesktop,
        plan: &[SegmentWork],
    ) -> Result<HashSet<ChunkId>, SyncError> {
        let below = plan.iter().filter_map(|work| work.before.as_ref()).flat_map(|before| before.chunks());
        let ids: HashSet<ChunkId> = below.filter(|id| !id.is_zero()).copied().collect();
        let ids: Vec<ChunkId> = ids.into_iter().collect();
        let place = place(desktop);
        let missing = self.patience.retry(|| self.upstream.missing_chunks(&place, &ids)).await?;
        Ok(ids.into_iter().zip(missing).filter_map(|(id, missing)| missing.then_some(id)).collect())
    }
}
