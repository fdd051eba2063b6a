//! Sending again what the server has lost of a desktop's newest version, where this machine has it.
//!
//! Nothing is committed: the version stays as it is, and can be read again.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chunk_format::{ChunkId, Namespace, SegmentId, SegmentIndex};

use super::thorough::{Kept, here};
use super::{Frozen, SyncError, SyncReport, Syncer, Trust};
use crate::desktop::OpenDesktop;
use crate::disk::{Disk, View};
use crate::upload::{Patience, SegmentWork};

/// How long the server may take to say what it lacks.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// What the server had lost of a desktop's newest version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LostSegments {
    /// Segments that were sent again.
    pub sent: u64,
    /// Segments that are not, or not all, on this machine.
    pub left: u64,
}

impl Syncer {
    /// Commits everything that was written before the call, as [`Syncer::sync`] does, then sends what the server has lost of the
    /// desktop. That this failed is no failure of the sync.
    ///
    /// # Errors
    /// [`SyncError`].
    pub async fn sync_whole(
        &self,
        desktop: &OpenDesktop,
        note: Option<String>,
    ) -> Result<SyncReport, SyncError> {
        let mut report = self.sync(desktop, note).await?;
        match self.send_what_is_lost(desktop).await {
            Ok(lost) => report.lost = lost,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "what the server has lost of this desktop was not sent again");
            }
        }
        Ok(report)
    }

    /// Sends the segments of the desktop's newest version that the server has lost, with all their chunks, as far as they are
    /// on this machine.
    ///
    /// # Errors
    /// [`SyncError`].
    pub async fn send_what_is_lost(&self, desktop: &OpenDesktop) -> Result<LostSegments, SyncError> {
        let _one_at_a_time = desktop.syncing.lock().await;
        if desktop.is_read_only() || desktop.is_head_lost() {
            return Ok(LostSegments::default());
        }
        let below = |disk: &Arc<Disk>| View { overlays: Vec::new(), base: Arc::clone(&disk.view().base) };
        let views = desktop.disks.iter().map(below).collect();
        let head = desktop.store.version(desktop.store.record().head)?;
        let head = Frozen { head, views, through_generation: 0, without_system: false };
        // Nobody waits for this: the next sync asks again.
        let asking = Self { patience: Patience { attempts: 1, ..self.patience }, ..self.clone() };
        let asked = tokio::time::timeout(ASK_TIMEOUT, asking.lost_segments(desktop, &head)).await;
        let Ok(lost) = asked else { return Ok(LostSegments::default()) };
        let lost = match lost {
            Ok(lost) => lost,
            // Nobody may have lost anything.
            Err(error) => {
                tracing::debug!(%error, "the server did not say what it has lost");
                return Ok(LostSegments::default());
            }
        };
        // What was removed, and erased since, is not brought back.
        if lost.is_empty() || self.upstream.is_removed(head.head.id).await? {
            return Ok(LostSegments::default());
        }
        let (work, _kept) = self.plan_again(desktop, &head, &lost).await?;
        let sent: HashSet<SegmentId> = self
            .upload(desktop, &head, work, Trust::Nothing)
            .await?
            .iter()
            .map(|done| done.segment.id())
            .collect();
        Ok(LostSegments { sent: sent.len() as u64, left: (lost.len() - sent.len()) as u64 })
    }

    /// The segments of the owner's own that the server does not have.
    async fn lost_segments(
        &self,
        desktop: &OpenDesktop,
        head: &Frozen,
    ) -> Result<BTreeSet<SegmentId>, SyncError> {
        let is_own = |id: &&SegmentId| matches!(desktop.origins.namespace_of(id), Namespace::User(_));
        let disks = &head.head.manifest.disks;
        let own: BTreeSet<SegmentId> = disks
            .iter()
            .flat_map(|disk| &disk.segments)
            .filter(|id| !id.is_zero())
            .filter(is_own)
            .copied()
            .collect();
        let own: Vec<SegmentId> = own.into_iter().collect();
        if own.is_empty() {
            return Ok(BTreeSet::new());
        }
        let missing = self.missing_segments(desktop, head, &own).await?;
        Ok(own.into_iter().zip(missing).filter_map(|(id, missing)| missing.then_some(id)).collect())
    }

    /// The lost segments that are here with all chunks that are lost, too.
    async fn plan_again(
        &self,
        desktop: &OpenDesktop,
        head: &Frozen,
        lost: &BTreeSet<SegmentId>,
    ) -> Result<(Vec<SegmentWork>, Kept), SyncError> {
        let (mut plan, mut planned) = (Vec::new(), HashSet::new());
        for (disk, view) in head.views.iter().enumerate() {
            for (index, segment) in (0..).map(SegmentIndex).zip(view.base.segments()) {
                if !lost.contains(&segment.id) || !planned.insert(segment.id) {
                    continue;
                }
                if let Ok(before) = desktop.fetcher.segment_if_there_is(segment).await {
                    let (positions, zeroed) = (Vec::new(), Vec::new());
                    plan.push(SegmentWork { disk, index, before: Some(before), positions, zeroed });
                }
            }
        }
        let chunks = self.lacking_chunks(desktop, &plan).await?;
        // The only copy there may be: it is not evicted while it is sent.
        let kept = Kept::of(&desktop.cache, &chunks);
        let here = here(&desktop.cache, chunks.clone()).await;
        plan.retain_mut(|work| {
            let Some(before) = &mut work.before else { return false };
            let lost = (0..before.chunks().len()).filter(|at| chunks.contains(&before.chunks()[*at]));
            work.positions = lost.collect();
            let is_here = work.positions.iter().all(|at| here.contains(&before.chunks()[*at]));
            // Sent as if they had been zeros before.
            is_here && work.positions.iter().all(|at| before.set(*at, ChunkId::ZERO).is_ok())
        });
        Ok((plan, kept))
    }
}
