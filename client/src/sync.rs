//! Sync: turns what was written since the head into a new version and commits it.
//!
//! Freeze, upload, note, commit, fold. Each step may be the last one before a crash, and the next sync goes on from
//! what it finds: frozen generations are uploaded again (what arrived is not sent twice), a noted version is
//! committed again (a commit that already happened answers the same), a committed one is folded. Only the server's
//! compare-and-swap moves the head; work that it refuses becomes a fork, with the same steps from the note on. The disks stay in use throughout; the guest waits for the freeze alone. The order
//! of every durable step is in `docs/semantics.md`.

mod changes;
pub mod guest;
mod lost;
mod stranded;
mod thorough;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chunk_format::{
    ChunkId, ChunkIndex, DiskRole, Features, FormatError, Manifest, ManifestId, Name, SEGMENT_CHUNKS,
    SecretKey, Segment, SegmentId, SegmentIndex, Subject, check_note,
};
use futures_util::future::FutureExt;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::runtime::Handle;

use crate::cache::Cache;
use crate::desktop::{DesktopError, OpenDesktop, Pending, Version, with_room};
use crate::disk::{BaseChunk, BaseSegment, Disk, View};
use crate::fetch::{Class, FetchError, Fetcher};
use crate::fork::{ForkReason, Forked, forked};
use crate::overlay::Overlay;
use crate::remote::{Placing, PresentIn, RemoteError, VersionInfo};
use crate::source::FailureKind;
use crate::upload::{
    LookedFor, Pace, Patience, ReadChunk, SegmentDone, SegmentWork, Upload, UploadError, UploadProgress,
};
use crate::upstream::{CommitError, Upstream};
use crate::volume::is_full;
use changes::{Change, changes, is_written_over};
use guest::Guest;
pub use lost::LostSegments;

/// Why a sync did not finish. What was written is safe on this machine, and the next sync goes on.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The desktop was opened to be looked at.
    #[error("this desktop was opened read-only: what is written is thrown away at the end")]
    ReadOnly,
    /// The server has lost content that is not on this machine either.
    #[error(
        "the server has lost {what} of version {sequence}, which is not on this machine: what was changed here is kept, and \
         cannot be synced without that"
    )]
    Lost {
        /// What, in words.
        what: String,
        /// The version they belong to.
        sequence: u64,
    },
    /// The work may not be the desktop's next version, and no name for a fork of it is free.
    #[error("{reason}, and no fork could be begun: what was changed here is kept on this machine")]
    NotForked {
        /// Why it may not be the next version.
        reason: ForkReason,
    },
    /// A version was asked for that only its note tells from the one below, and it may not be the desktop's next: a fork of it would
    /// be one of nothing.
    #[error("no version was made: {reason}, and there is no work on this machine that is not synced")]
    NothingToFork {
        /// Why it may not be the next version.
        reason: ForkReason,
    },
    /// The desktop's files failed.
    #[error("{0}")]
    Desktop(#[from] DesktopError),
    /// What lies below a changed block could not be read.
    #[error("cannot read what lies below the changes")]
    Fetch(#[from] FetchError),
    /// The upload failed.
    #[error("{0}")]
    Upload(#[from] UploadError),
    /// The commit failed; the next sync finds out whether it happened.
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// The new version could not be written down.
    #[error("{0}")]
    Format(#[from] FormatError),
}

/// Segments that lie below changes are asked for so many at once.
const SEGMENT_REQUESTS: usize = 32;
/// The same of chunks.
const CHUNK_REQUESTS: usize = 32;

/// Digits of a version's id in the name of a fork: more of them as long as the name is taken.
pub(crate) const FORK_DIGITS: [usize; 4] = [4, 8, 16, 24];

/// What a sync needs.
#[derive(Clone)]
pub struct Syncer {
    /// The server.
    pub upstream: Arc<dyn Upstream>,
    /// Signs the versions made on this machine.
    pub key: Arc<SecretKey>,
    /// What to call this machine in the history.
    pub machine: String,
    /// Told how far it is.
    pub progress: Arc<UploadProgress>,
    /// Threads that read, hash and compress.
    pub threads: usize,
    /// How requests that fail are repeated.
    pub patience: Patience,
    /// The time, milliseconds since 1970 UTC, for people.
    pub now_ms: fn() -> u64,
    /// Whoever runs a guest on the disks.
    pub guest: Option<Arc<dyn Guest>>,
    /// How it leaves room for others; none when somebody waits for it.
    pub pace: Option<Arc<Pace>>,
}

/// What a sync did.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct SyncReport {
    /// The version the desktop is at now, when one was committed.
    pub version: Option<VersionInfo>,
    /// Chunks that were written to, or zeroed.
    pub dirty_chunks: u64,
    /// Chunks the server lacked.
    pub new_chunks: u64,
    /// Bytes sent: packs, segments, and the version itself.
    pub sent_bytes: u64,
    /// Whether a guest's file systems were quiet in the instant the version is of.
    #[serde(default)]
    pub held_still: bool,
    /// The fork that the work went to, since it may not be the desktop's next version.
    #[serde(default)]
    pub fork: Option<Forked>,
    /// What the server had lost of the version; looked for when somebody waits for the sync.
    #[serde(default)]
    pub lost: LostSegments,
}

impl SyncReport {
    /// Whether the work went to a fork that nobody was told of before.
    pub fn begins_fork(&self) -> bool {
        self.fork.as_ref().is_some_and(|fork| fork.reason.is_some())
    }
}

impl Syncer {
    /// Commits everything that was written to the desktop before the call. With a note, there is a version that bears it even
    /// if nothing was written.
    ///
    /// # Errors
    /// [`SyncError`].
    pub async fn sync(&self, desktop: &OpenDesktop, note: Option<String>) -> Result<SyncReport, SyncError> {
        let _one_at_a_time = desktop.syncing.lock().await;
        if desktop.is_read_only() {
            return Err(SyncError::ReadOnly);
        }
        // Before it is in the record, which is durable.
        note.as_deref().map_or(Ok(()), check_note)?;
        let mut report = SyncReport::default();
        let waiting = desktop.store.uncommitted_note()?;
        if let Some(pending) = desktop.store.record().pending {
            let resumed = self.resume(desktop, pending, &mut report).await;
            unless_of_nothing(desktop, resumed, note.as_deref())?;
        }
        // Left frozen by a sync that did not finish; then what came after it.
        if desktop.store.record().generations.len() > 1 {
            let committed = self.commit_frozen(desktop, &mut report).await;
            unless_of_nothing(desktop, committed, note.as_deref())?;
        }
        // Asked for once more, because it could not be sent: by now it was.
        let is_made = note.is_some() && note == waiting && !desktop.has_changes();
        if desktop.has_changes() || desktop.is_head_lost() || (note.is_some() && !is_made) {
            let freezing = desktop.prepare_freeze(note.as_deref())?;
            let still = match &self.guest {
                Some(guest) => guest.hold_still().await,
                None => None,
            };
            report.held_still = still.is_some();
            freezing.freeze();
            drop(still);
            self.commit_frozen(desktop, &mut report).await?;
        }
        desktop.keep_reserve();
        report.new_chunks = self.progress.new_chunks.load(Ordering::Relaxed);
        report.sent_bytes = self.progress.sent_bytes.load(Ordering::Relaxed);
        Ok(report)
    }

    /// Commits a noted version again: it may have been committed before the answer was lost.
    async fn resume(
        &self,
        desktop: &OpenDesktop,
        pending: Pending,
        report: &mut SyncReport,
    ) -> Result<(), SyncError> {
        let head = desktop.store.version(desktop.store.record().head)?;
        let version = desktop.store.version(pending.manifest)?;
        match self.commit_or_fork(desktop, &head, version, pending.through_generation, report).await {
            Ok((version, committed)) => fold(desktop, &version, &HashMap::new(), committed).await,
            // Uploaded anew below.
            Err(error) if error.is_of_lost_objects() => {
                Ok(with_room(&desktop.cache, || desktop.store.clear_pending())?)
            }
            Err(error) => Err(error),
        }
    }

    /// Uploads all generations but the one in use as one version, commits and folds it. It bears the note that was kept for it.
    async fn commit_frozen(&self, desktop: &OpenDesktop, report: &mut SyncReport) -> Result<(), SyncError> {
        let record = desktop.store.record();
        // Not by the record alone: it may name one more, of a freeze that failed while that was written down.
        let in_use = desktop.generation_in_use().or(record.generations.last().copied());
        let frozen = record.generations.iter().copied().filter(|generation| Some(*generation) < in_use);
        let Some(through_generation) = frozen.max() else { return Ok(()) };
        let note = record.note.filter(|note| note.through_generation <= through_generation);
        let note = note.map(|note| note.text);
        let head = desktop.store.version(record.head)?;
        head.manifest.check_writable()?;
        let frozen: Vec<View> =
            desktop.disks.iter().map(|disk| frozen_view(desktop, disk, through_generation)).collect();
        flush(&desktop.cache, &frozen).await?;
        let frozen = Frozen { head, views: frozen, through_generation, without_system: false };
        let work = self.plan(desktop, &frozen).await?;
        report.dirty_chunks += work.iter().map(|work| frozen.chunks_of(work)).sum::<u64>();
        if desktop.is_head_lost() {
            let (work, _kept) = self.plan_thoroughly(desktop, &frozen, work).await?;
            self.send(desktop, &frozen, work, Trust::Nothing, note, report).await?;
            desktop.set_head_lost(false);
            return Ok(());
        }
        match self.send(desktop, &frozen, work, Trust::Head, note.clone(), report).await {
            Err(error) if error.is_of_lost_objects() => {
                tracing::warn!(%error, "the server lacks what it had: all of this version that it lacks is sent");
                let work = self.plan(desktop, &frozen).await?;
                let (work, _kept) = self.plan_thoroughly(desktop, &frozen, work).await?;
                self.send(desktop, &frozen, work, Trust::Nothing, note, report).await
            }
            sent => sent,
        }
    }

    /// Uploads segments, commits the version they make, and folds it.
    async fn send(
        &self,
        desktop: &OpenDesktop,
        frozen: &Frozen,
        work: Vec<SegmentWork>,
        trust: Trust,
        note: Option<String>,
        report: &mut SyncReport,
    ) -> Result<(), SyncError> {
        let Frozen { head, through_generation, .. } = frozen;
        let through_generation = *through_generation;
        let done = self.upload(desktop, frozen, work, trust).await?;
        let manifest = self.next_manifest(head, &done, note);
        if manifest.disks == head.manifest.disks && manifest.note.is_none() && trust == Trust::Head {
            // Written over with what was there before: nothing to commit.
            let committed = Pending { manifest: head.id, through_generation };
            return fold(desktop, head, &HashMap::new(), committed).await;
        }
        let bytes = manifest.encode()?;
        let version = Version::decode(bytes.clone(), self.key.sign(&bytes))?;
        with_room(&desktop.cache, || desktop.store.set_pending(&version, through_generation))?;
        let (version, committed) =
            self.commit_or_fork(desktop, head, version, through_generation, report).await?;
        let loaded = done
            .into_iter()
            .map(|done| (done.segment.id(), done.segment))
            .filter(|(id, _)| !id.is_zero())
            .map(|(id, segment)| (id, BaseSegment::loaded(segment, desktop.origins.namespace_of(&id))))
            .collect();
        fold(desktop, &version, &loaded, committed).await
    }

    /// The segments the frozen overlays change, with the chunks to read of each.
    async fn plan(&self, desktop: &OpenDesktop, frozen: &Frozen) -> Result<Vec<SegmentWork>, SyncError> {
        let views = frozen.views.iter().enumerate();
        let changed = views.flat_map(|(disk, view)| {
            changes(view).map(move |(index, change)| self.plan_segment(desktop, frozen, disk, index, change))
        });
        let planning: Vec<_> = changed.map(FutureExt::boxed).collect();
        let progress = &self.progress;
        progress.changed_segments.fetch_add(planning.len() as u64, Ordering::Relaxed);
        // Out of the way of others when nobody waits for it.
        let at_once = if self.pace.is_some() { 1 } else { SEGMENT_REQUESTS };
        let planned = stream::iter(planning).buffered(at_once).inspect(|_| {
            progress.planned_segments.fetch_add(1, Ordering::Relaxed);
        });
        planned.try_filter_map(|work| std::future::ready(Ok(work))).try_collect().await
    }

    /// What there is to do for a segment, if anything; what lies below one that is zeros now is not asked for.
    async fn plan_segment(
        &self,
        desktop: &OpenDesktop,
        frozen: &Frozen,
        disk: usize,
        index: SegmentIndex,
        change: Change,
    ) -> Result<Option<SegmentWork>, SyncError> {
        let Change::Chunks { positions, mut zeroed } = change else {
            return Ok(Some(SegmentWork::of_zeros(disk, index)));
        };
        let segment = frozen.views.get(disk).and_then(|view| view.base.segments().get(index.0 as usize));
        let Some(segment) = segment else { return Ok(None) };
        let before = match segment.id.is_zero() {
            true => None,
            false => Some(self.segment_below(desktop, frozen, segment).await?),
        };
        zeroed.retain(|at| before.as_ref().is_some_and(|before| !before.chunks()[*at].is_zero()));
        let is_changed = !positions.is_empty() || !zeroed.is_empty();
        Ok(is_changed.then_some(SegmentWork { disk, index, before, positions, zeroed }))
    }

    /// A segment of the version below. One that the server has lost is told, not waited for: a sync that hangs says
    /// nothing, and holds up all that come after it.
    async fn segment_below(
        &self,
        desktop: &OpenDesktop,
        frozen: &Frozen,
        segment: &BaseSegment,
    ) -> Result<Segment, SyncError> {
        loop {
            let kind = match desktop.fetcher.segment_if_there_is(segment).await {
                Err(FetchError::NotToBeHad { source, .. }) => source.kind,
                found => return Ok(found?),
            };
            // The last word may be a mirror's, which has what it likes: the server's own counts, and that it answers.
            let missing = self.missing_segments(desktop, frozen, &[segment.id]).await?;
            if missing.contains(&true) || matches!(kind, FailureKind::NotFound | FailureKind::Damaged) {
                let sequence = frozen.head.manifest.sequence;
                return Err(SyncError::Lost { what: format!("segment {}", segment.id), sequence });
            }
        }
    }

    /// Which of these segments the server does not have where readers look for them; in the order given.
    async fn missing_segments(
        &self,
        desktop: &OpenDesktop,
        frozen: &Frozen,
        ids: &[SegmentId],
    ) -> Result<Vec<bool>, RemoteError> {
        let (place, elsewhere) = (place(desktop), frozen.segments_elsewhere(desktop));
        let looked_for = LookedFor { place: &place, elsewhere: &elsewhere };
        looked_for.missing(&*self.upstream, self.patience, ids).await
    }

    async fn upload(
        &self,
        desktop: &OpenDesktop,
        frozen: &Frozen,
        work: Vec<SegmentWork>,
        trust: Trust,
    ) -> Result<Vec<SegmentDone>, SyncError> {
        let known: HashSet<SegmentId> = match trust {
            Trust::Head => {
                frozen.head.manifest.disks.iter().flat_map(|disk| &disk.segments).copied().collect()
            }
            Trust::Nothing => HashSet::new(),
        };
        let upload = Upload {
            upstream: Arc::clone(&self.upstream),
            place: place(desktop),
            chunk_size: desktop.cache.chunk_size(),
            known_segments: Arc::new(known),
            segments_elsewhere: frozen.segments_elsewhere(desktop),
            progress: Arc::clone(&self.progress),
            threads: self.threads,
            patience: self.patience,
            pace: self.pace.clone(),
        };
        let disks = frozen
            .views
            .iter()
            .cloned()
            .map(|view| {
                let (cache, fetcher) = (Arc::clone(&desktop.cache), desktop.fetcher.clone());
                Disk::new(view, cache, fetcher, desktop.runtime.clone())
            })
            .collect();
        let reader = FrozenDisks {
            disks,
            cache: Arc::clone(&desktop.cache),
            fetcher: desktop.fetcher.clone(),
            runtime: desktop.runtime.clone(),
        };
        Ok(upload.run(work, Arc::new(reader)).await?)
    }

    fn next_manifest(&self, head: &Version, done: &[SegmentDone], note: Option<String>) -> Manifest {
        let mut disks = head.manifest.disks.clone();
        for done in done {
            let disk = disks.get_mut(done.disk);
            if let Some(id) = disk.and_then(|disk| disk.segments.get_mut(done.index.0 as usize)) {
                *id = done.segment.id();
            }
        }
        Manifest {
            features: Features::default(),
            parent: Some(head.id),
            sequence: head.manifest.sequence + 1,
            created_ms: (self.now_ms)(),
            machine: self.machine.clone(),
            note,
            disks,
            ..head.manifest.clone()
        }
    }

    /// Commits a noted version, or what it holds as a fork; answers what was committed, and its note.
    async fn commit_or_fork(
        &self,
        desktop: &OpenDesktop,
        head: &Version,
        mut version: Version,
        through_generation: u64,
        report: &mut SyncReport,
    ) -> Result<(Version, Pending), SyncError> {
        let mut first_reason = None;
        let mut candidate = version.clone();
        let mut digits = FORK_DIGITS.into_iter();
        loop {
            let refused = match self.commit(desktop, head, &candidate).await {
                Ok(committed) => {
                    report.version = Some(committed);
                    let known = report.fork.take().and_then(|fork| fork.reason);
                    let of = desktop.store.record().desktop;
                    report.fork = fork_in(&candidate, &of).map(|fork| Forked {
                        fork: fork.clone(),
                        of: of.clone(),
                        reason: first_reason.or(known),
                    });
                    let pending = Pending { manifest: candidate.id, through_generation };
                    return Ok((candidate, pending));
                }
                // Moved by this machine itself, and by nobody since: the answer was lost, and work went on below.
                Err(CommitError::HeadMoved { head })
                    if desktop.store.record().renewal == Some(head.id)
                        && first_reason.is_none()
                        && candidate.manifest.parent != Some(head.id) =>
                {
                    version = self.after_renewal(&version, head.id)?;
                    with_room(&desktop.cache, || desktop.store.set_pending(&version, through_generation))?;
                    candidate = version.clone();
                    continue;
                }
                Err(CommitError::HeadMoved { head }) => {
                    ForkReason::HeadMoved { sequence: head.sequence, machine: head.machine.clone() }
                }
                Err(CommitError::LeaseHeld { lease }) => {
                    ForkReason::LeaseHeld { machine: lease.machine.clone() }
                }
                Err(CommitError::Gone) => ForkReason::Gone,
                Err(CommitError::Remote(error)) => return Err(error.into()),
            };
            if first_reason.is_none()
                && version.manifest.note.is_some()
                && version.manifest.disks == head.manifest.disks
                && !desktop.is_head_lost()
                && self.is_gone_on_from(head, &refused).await?
            {
                let committed = Pending { manifest: head.id, through_generation };
                fold(desktop, head, &HashMap::new(), committed).await?;
                return Err(SyncError::NothingToFork { reason: refused });
            }
            let reason = first_reason.get_or_insert(refused);
            // A fork that is refused has a name that is taken: the next has another.
            let Some(digits) = digits.next() else {
                return Err(SyncError::NotForked { reason: reason.clone() });
            };
            candidate = forked(&version, digits, &self.key)?;
            with_room(&desktop.cache, || desktop.store.set_pending(&candidate, through_generation))?;
        }
    }

    /// Whether the desktop that work is refused for has the version below it in its history, and a state like that is none to keep.
    async fn is_gone_on_from(&self, head: &Version, refused: &ForkReason) -> Result<bool, RemoteError> {
        match refused {
            ForkReason::LeaseHeld { .. } => Ok(true),
            ForkReason::HeadMoved { sequence, .. } if *sequence > head.manifest.sequence => {
                Ok(!self.upstream.is_removed(head.id).await?)
            }
            ForkReason::HeadMoved { .. } | ForkReason::Gone => Ok(false),
        }
    }

    /// The same version as the one after a renewal of this machine's that it does not stand on: it undoes that.
    fn after_renewal(&self, version: &Version, renewal: ManifestId) -> Result<Version, FormatError> {
        let sequence = version.manifest.sequence + 1;
        let manifest = Manifest { parent: Some(renewal), sequence, ..version.manifest.clone() };
        let bytes = manifest.encode()?;
        Version::decode(bytes.clone(), self.key.sign(&bytes))
    }

    async fn commit(
        &self,
        desktop: &OpenDesktop,
        head: &Version,
        version: &Version,
    ) -> Result<VersionInfo, CommitError> {
        let own = desktop.store.record().desktop;
        // Where the server may have lost the fork the work began on, it goes to one of the desktop itself.
        let of = match &head.manifest.subject {
            Subject::Desktop { desktop: of, .. } if !desktop.is_head_lost() => of,
            _ => &own,
        };
        let begins = head.manifest.subject != version.manifest.subject;
        let placing = Placing { channel: None, fork_of: begins.then_some(of) };
        let commit = || {
            self.upstream.commit(
                &version.manifest.subject,
                placing,
                version.bytes.clone(),
                &version.signature,
            )
        };
        let committed = self.patience.retry(commit).await?;
        self.progress.sent_bytes.fetch_add(version.bytes.len() as u64, Ordering::Relaxed);
        Ok(committed)
    }
}

/// What a sync commits: disks as they were when their generations up to one were frozen.
struct Frozen {
    /// The version below.
    head: Version,
    views: Vec<View>,
    through_generation: u64,
    /// Only for the other disks: the system disk of another golden version takes the place of this one.
    without_system: bool,
}

impl Frozen {
    /// Whether nothing of a disk is sent.
    fn leaves_out(&self, role: DiskRole) -> bool {
        self.without_system && role == DiskRole::System
    }

    /// How many chunks some work changes.
    fn chunks_of(&self, work: &SegmentWork) -> u64 {
        match self.views.get(work.disk) {
            Some(view) if work.is_of_zeros() => {
                let chunks = view.base.size().chunks(view.base.chunk_size());
                chunks.saturating_sub(work.index.first_chunk().0).min(SEGMENT_CHUNKS as u64)
            }
            _ => (work.positions.len() + work.zeroed.len()) as u64,
        }
    }

    /// Segments that count as there when only the image has them: readers know them by the golden version below.
    fn segments_elsewhere(&self, desktop: &OpenDesktop) -> Arc<HashSet<SegmentId>> {
        match self.without_system {
            true => Arc::default(),
            false => desktop.origins.segments_of_image(),
        }
    }
}

/// What a server is believed to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    /// All of the version that was committed last.
    Head,
    /// Nothing that was not asked for.
    Nothing,
}

impl SyncError {
    /// Whether the server lacks what it had: it was set back to an older state, or something was pruned.
    fn is_of_lost_objects(&self) -> bool {
        let (Self::Remote(error) | Self::Upload(UploadError::Remote(error))) = self else { return false };
        matches!(error.code(), Some("segments_missing" | "chunks_missing"))
    }
}

/// A checkpoint of nothing that was kept for later is let go where another machine was first, unless somebody asks for one and there
/// is nothing else to make it of.
fn unless_of_nothing(
    desktop: &OpenDesktop,
    synced: Result<(), SyncError>,
    note: Option<&str>,
) -> Result<(), SyncError> {
    match synced {
        Err(SyncError::NothingToFork { reason }) if note.is_none() || desktop.has_changes() => {
            tracing::warn!(%reason, "a checkpoint of this machine that changes nothing is not made");
            Ok(())
        }
        synced => synced,
    }
}

/// Where a desktop's objects may be on its server.
fn place(desktop: &OpenDesktop) -> PresentIn {
    PresentIn { namespace: desktop.origins.owner.clone(), also: Some(desktop.origins.image.clone()) }
}

/// The fork that a version belongs to; none when it is the desktop's own.
fn fork_in<'a>(version: &'a Version, own: &Name) -> Option<&'a Name> {
    match &version.manifest.subject {
        Subject::Desktop { desktop, .. } if desktop != own => Some(desktop),
        _ => None,
    }
}

async fn fold(
    desktop: &OpenDesktop,
    version: &Version,
    loaded: &HashMap<SegmentId, BaseSegment>,
    committed: Pending,
) -> Result<(), SyncError> {
    if desktop.store.record().pinned {
        desktop.pin_new(version, loaded);
        // What the overlays hold is said to be here after a power cut, too: the cache and the segments have it from here on.
        make_durable(&desktop.cache).await?;
    }
    // Durable first: from here on a crash finds the version below and the overlays gone.
    let folded = with_room(&desktop.cache, || desktop.store.fold(committed));
    let record = desktop.store.record();
    let through = committed.through_generation;
    // A record whose replacement failed may have been replaced all the same: the disks go by what it says.
    if record.head == version.id && record.generations.iter().all(|generation| *generation > through) {
        // Nothing may come between the record and the disks, not even that nobody waits for this any more.
        desktop.stand_on(version, loaded, through);
        desktop.let_go_of_old().await;
    }
    Ok(folded?)
}

async fn make_durable(cache: &Arc<Cache>) -> Result<(), SyncError> {
    let syncing = Arc::clone(cache);
    match tokio::task::spawn_blocking(move || syncing.sync()).await {
        Ok(Ok(())) => Ok(()),
        // The index finds no room: what it lacks is fetched again, and overlays that are kept would take more.
        Ok(Err(error)) if is_full(&error) => {
            tracing::warn!(%error, "what was synced is not durable in the cache yet");
            Ok(())
        }
        Ok(Err(source)) => {
            let (action, file) = ("make durable", "the cache".to_owned());
            Err(DesktopError::Io { action, file, source }.into())
        }
        Err(_) => Err(UploadError::Stopped.into()),
    }
}

/// Makes frozen overlays durable before they are read for upload: after a power cut this machine must hold what the
/// server holds, or folding would change the disk under a guest that has started again.
async fn flush(cache: &Arc<Cache>, frozen: &[View]) -> Result<(), SyncError> {
    let overlays: Vec<Arc<Overlay>> = frozen.iter().flat_map(|view| view.overlays.iter().cloned()).collect();
    let cache = Arc::clone(cache);
    let flush = move || overlays.iter().try_for_each(|overlay| with_room(&cache, || Ok(overlay.flush()?)));
    match tokio::task::spawn_blocking(flush).await {
        Ok(flushed) => Ok(flushed?),
        // It is not known what was made durable.
        Err(_) => Err(UploadError::Stopped.into()),
    }
}

/// A disk as it was when its generations up to one were frozen; as it lies below, when what is written to it is volatile.
fn frozen_view(desktop: &OpenDesktop, disk: &Disk, through_generation: u64) -> View {
    let view = disk.view();
    let overlays = view
        .overlays
        .iter()
        .filter(|overlay| !desktop.is_volatile(disk) && overlay.identity().generation <= through_generation)
        .cloned()
        .collect();
    View { overlays, base: Arc::clone(&view.base) }
}

/// Frozen disks as an upload reads them.
struct FrozenDisks {
    disks: Vec<Disk>,
    cache: Arc<Cache>,
    fetcher: Fetcher,
    runtime: Handle,
}

impl ReadChunk for FrozenDisks {
    fn read_chunk(
        &self,
        disk: usize,
        chunk: ChunkIndex,
        buf: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let disk = self.disks.get(disk).ok_or("there is no such disk")?;
        let start = chunk.offset_bytes(self.cache.chunk_size());
        let len = usize::try_from(disk.size().bytes().saturating_sub(start))?.min(buf.len());
        let (inside, padding) = buf.split_at_mut(len);
        padding.fill(0);
        match disk.begin_read(start, inside)? {
            None => Ok(()),
            Some(pending) => Ok(self.runtime.block_on(disk.finish_read(pending, inside))?),
        }
    }

    /// Fetches what lies below chunks that were written in part, many at once: each is waited for when it is read.
    fn expect(&self, chunks: &[(usize, ChunkIndex)]) {
        let views: Vec<Arc<View>> = self.disks.iter().map(|disk| disk.view()).collect();
        let is_lacking = |view: &View, chunk: ChunkIndex| match view.base.chunk(chunk) {
            BaseChunk::Zero => false,
            BaseChunk::Known(id, _) => !self.cache.contains(id) && !is_written_over(view, chunk),
            BaseChunk::Unloaded => !is_written_over(view, chunk),
        };
        let views = chunks.iter().filter_map(|(disk, chunk)| Some((views.get(*disk)?, *chunk)));
        let fetches: Vec<_> = views
            .filter(|(view, chunk)| is_lacking(view, *chunk))
            .map(|(view, chunk)| self.fetcher.chunk(&view.base, chunk, Class::Waiting).boxed())
            .collect();
        // What fails is told by the read of it.
        self.runtime.block_on(
            stream::iter(fetches).buffer_unordered(CHUNK_REQUESTS).for_each(|_| std::future::ready(())),
        );
    }

    /// Keeps what is about to lie below: after the fold it is read from the cache, not from the network.
    fn seen(&self, id: &ChunkId, chunk: &[u8]) {
        self.cache.insert(*id, chunk);
    }

    /// Kept as what is fetched is: without a network the next opening needs it.
    fn renewed(&self, segment: &Segment) {
        self.fetcher.keep(segment);
    }
}

#[cfg(test)]
mod apart;
#[cfg(test)]
pub(crate) mod tests;
