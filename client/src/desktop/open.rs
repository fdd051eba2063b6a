//! An open desktop: its record and its disks, put together.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use chunk_format::{
    ChunkId, ChunkSize, Disk as ManifestDisk, DiskRole, Manifest, ManifestId, Namespace, Profile, Segment,
    SegmentId, SegmentIndex, SystemMode,
};
use futures_util::future::FutureExt;
use futures_util::stream::{StreamExt, TryStreamExt};
use tokio::runtime::Handle;

use super::record::Version;
use super::room::with_room;
use super::store::{DesktopError, DesktopStore, DiskLayout};
use crate::cache::{Cache, Look};
use crate::disk::{Base, BaseSegment, Disk, DiskError, View};
use crate::fetch::{BootPlan, FetchError, Fetcher, FillError, FillProgress, Filling};
use crate::overlay::Overlay;
use crate::profile::{ProfileError, ProfileStore, fetch_profile};

/// Why what a start touches is not known.
#[derive(Debug, thiserror::Error)]
pub enum LoadProfileError {
    /// The desktop's files failed.
    #[error("{0}")]
    Desktop(#[from] DesktopError),
    /// The profile cannot be had, or does not hold.
    #[error("{0}")]
    Profile(#[from] ProfileError),
}

/// Why not all of a desktop is on this machine to stay.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// It could not be noted.
    #[error("{0}")]
    Desktop(#[from] DesktopError),
    /// Not all of it could be fetched, or kept.
    #[error("{0}")]
    Fill(#[from] FillError),
}

/// Segments loaded at the start, 64 MiB of disk each, and how many at once.
const SEGMENTS_AHEAD: usize = 1024;
const SEGMENT_REQUESTS: usize = 32;

/// Set aside for the records and signatures that a sync writes, beside what grows with the disks.
const RESERVE_BYTES: u64 = 256 << 10;

/// A desktop's disks, ready to be read and written.
pub struct OpenDesktop {
    pub(crate) store: DesktopStore,
    pub(crate) disks: Vec<Arc<Disk>>,
    pub(crate) cache: Arc<Cache>,
    pub(crate) fetcher: Fetcher,
    pub(crate) runtime: Handle,
    pub(crate) origins: Origins,
    /// Where profiles are kept.
    pub(crate) profiles: ProfileStore,
    /// The profile of the golden version below, once it is known.
    pub(crate) profile: OnceLock<Arc<Profile>>,
    /// One sync at a time.
    pub(crate) syncing: tokio::sync::Mutex<()>,
    filling: Filling,
    /// The golden version that is taken up next, once it is known.
    awaited: Mutex<Option<Version>>,
    /// Whether what is written is thrown away at the end.
    is_read_only: bool,
    /// Whether what is written to the system disk is dropped at the next start.
    is_system_volatile: bool,
}

/// Whose each segment of a desktop's disks is.
#[derive(Clone, Debug)]
pub struct Origins {
    /// The desktop's owner: what the desktop changed.
    pub owner: Namespace,
    /// The image below.
    pub image: Namespace,
    image_segments: Arc<HashSet<SegmentId>>,
}

impl Origins {
    /// Tells the segments of a desktop's version from those of the golden version it stands on.
    pub fn new(head: &Manifest, base: &Manifest) -> Self {
        let image_segments = base.disks.iter().flat_map(|disk| disk.segments.iter().copied()).collect();
        Self {
            owner: head.subject.namespace(),
            image: base.subject.namespace(),
            image_segments: Arc::new(image_segments),
        }
    }

    /// The segments of the golden version: the image's.
    pub(crate) fn segments_of_image(&self) -> Arc<HashSet<SegmentId>> {
        Arc::clone(&self.image_segments)
    }

    /// Whose a segment is.
    pub fn namespace_of(&self, segment: &SegmentId) -> Namespace {
        if self.image_segments.contains(segment) { self.image.clone() } else { self.owner.clone() }
    }
}

impl OpenDesktop {
    /// Puts a desktop's disks together from its files. The caller holds the desktop's lock.
    ///
    /// # Errors
    /// [`DesktopError`].
    pub fn assemble(
        store: DesktopStore,
        cache: Arc<Cache>,
        fetcher: Fetcher,
        profiles: ProfileStore,
        runtime: Handle,
    ) -> Result<Self, DesktopError> {
        let record = store.record();
        if !record.pinned {
            // What a sync kept for its time, when it did not come to its end.
            cache.unpin_all_but(&HashSet::new());
        }
        let head = store.version(record.head)?;
        let base = store.version(record.base)?;
        let origins = Origins::new(&head.manifest, &base.manifest);
        let is_system_volatile = with_room(&cache, || begin_volatile(&store, &head.manifest))?;
        if record.generations.is_empty() {
            let mut layouts = layouts(&head.manifest);
            layouts.retain(|disk| !(is_system_volatile && disk.role == DiskRole::System));
            with_room(&cache, || store.add_generation(&layouts, None))?;
        }
        let disks = head
            .manifest
            .disks
            .iter()
            .map(|disk| {
                check_chunk_size(disk, cache.chunk_size())?;
                let overlays = store.open_overlays(DiskLayout { role: disk.role, size: disk.size })?;
                let base = Arc::new(Base::new(disk, |segment| origins.namespace_of(segment)));
                let view = View { overlays, base };
                Ok(Arc::new(Disk::new(view, Arc::clone(&cache), fetcher.clone(), runtime.clone())))
            })
            .collect::<Result<_, DesktopError>>()?;
        let opened = Self {
            store,
            disks,
            cache,
            fetcher,
            runtime,
            origins,
            profiles,
            profile: OnceLock::new(),
            syncing: tokio::sync::Mutex::default(),
            filling: Filling::default(),
            awaited: Mutex::default(),
            is_read_only: record.discard_from.is_some(),
            is_system_volatile,
        };
        opened.keep_reserve();
        Ok(opened)
    }

    /// Sets aside what a sync writes before it frees anything: new overlays, a version, records.
    pub(crate) fn keep_reserve(&self) {
        let overlays: u64 = self.disks.iter().map(|disk| Overlay::empty_bytes(disk.size())).sum();
        let head = self.store.version(self.store.record().head);
        let version_bytes = head.map_or(0, |head| head.bytes.len() as u64);
        // The version is written before the one that it takes the place of goes, and once more if it becomes a fork.
        self.cache.keep_reserve(overlays + 3 * version_bytes + RESERVE_BYTES);
    }

    /// Puts the disks together anew after the desktop moved to another version of the same chunk size. Nothing uses its disks.
    ///
    /// # Errors
    /// [`DesktopError`].
    pub fn reassembled(self) -> Result<Self, DesktopError> {
        Self::assemble(self.store, self.cache, self.fetcher, self.profiles, self.runtime)
    }

    /// The desktop's files.
    pub fn store(&self) -> &DesktopStore {
        &self.store
    }

    /// The disks, the system disk first.
    pub fn disks(&self) -> &[Arc<Disk>] {
        &self.disks
    }

    /// The disk with this role.
    pub fn disk(&self, role: DiskRole) -> Option<&Arc<Disk>> {
        self.disks.iter().find(|disk| disk.role() == role)
    }

    /// The cache below the disks.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// What fetches for the disks.
    pub fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// The profile of the golden version below: from this machine, or else from the sources. Known from then on.
    ///
    /// # Errors
    /// [`ProfileError`], also when the version has none.
    pub async fn load_profile(&self) -> Result<Arc<Profile>, LoadProfileError> {
        if let Some(profile) = self.profile.get() {
            return Ok(Arc::clone(profile));
        }
        let golden = self.store.version(self.store.record().base)?;
        let found = match self.profiles.load(&golden) {
            Some(found) => found,
            None => {
                let fetched = fetch_profile(&self.fetcher, &golden).await?;
                self.profiles.keep(&fetched);
                fetched
            }
        };
        Ok(Arc::clone(self.profile.get_or_init(|| Arc::new(found.profile))))
    }

    /// The profile of the golden version below, if it is on this machine.
    pub fn profile(&self) -> Option<Arc<Profile>> {
        if let Some(profile) = self.profile.get() {
            return Some(Arc::clone(profile));
        }
        let golden = self.store.version(self.store.record().base).ok()?;
        let found = self.profiles.load(&golden)?;
        Some(Arc::clone(self.profile.get_or_init(|| Arc::new(found.profile))))
    }

    /// Fetches what a start touches, by the profile of the golden version below.
    ///
    /// # Errors
    /// [`LoadProfileError`], also when the version has no profile.
    pub async fn fetch_for_start(&self) -> Result<(), LoadProfileError> {
        let fetch = async {
            let profile = self.load_profile().await?;
            let plan = self.boot_plan(Profile::clone(&profile))?;
            self.fetcher.fetch_boot(plan).await.map_err(ProfileError::from)?;
            Ok(())
        };
        // What they hold is needed for any read; that they come beside the profile and the stream saves their round trip.
        let (fetched, _) = tokio::join!(fetch, self.load_segments());
        fetched
    }

    async fn load_segments(&self) -> Result<(), FetchError> {
        let bases: Vec<Arc<Base>> = self.disks.iter().map(|disk| Arc::clone(&disk.view().base)).collect();
        let segments = bases.iter().flat_map(|base| base.segments()).filter(|segment| !segment.id.is_zero());
        let loads: Vec<_> =
            segments.take(SEGMENTS_AHEAD).map(|segment| self.fetcher.segment(segment).boxed()).collect();
        futures_util::stream::iter(loads)
            .buffer_unordered(SEGMENT_REQUESTS)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await
    }

    /// What to fetch for a start, by a profile of the golden version below.
    ///
    /// # Errors
    /// [`DesktopError`].
    pub fn boot_plan(&self, profile: Profile) -> Result<BootPlan, DesktopError> {
        let golden = self.store.version(self.store.record().base)?;
        let (mut recorded, mut now) = (Vec::new(), Vec::new());
        for described in &golden.manifest.disks {
            let mut base = Base::new(described, |_| self.origins.image.clone());
            let disk = self.disk(described.role).map(|disk| Arc::clone(&disk.view().base));
            if let Some(disk) = &disk {
                // What is loaded of the segments that did not change is shared.
                let same = (0..).map(SegmentIndex).zip(disk.segments().iter().zip(&described.segments));
                base = base.with_segments(
                    same.filter(|(_, (now, then))| now.id == **then)
                        .map(|(index, (now, _))| (index, now.clone())),
                );
            }
            let base = Arc::new(base);
            now.push(disk.unwrap_or_else(|| Arc::clone(&base)));
            recorded.push(base);
        }
        Ok(BootPlan { profile, namespace: self.origins.image.clone(), recorded, now })
    }

    /// Keeps what comes here of a golden version that is taken up next.
    pub(crate) fn set_awaited(&self, golden: &Version) {
        *self.lock_awaited() = Some(golden.clone());
    }

    /// Lets go of the segments and profiles here that no version needs: not the one below, nor one that is about to be
    /// committed, nor the golden one that is taken up next. Worth nothing but a fetch: what cannot be told stays.
    pub(crate) async fn let_go_of_old(&self) {
        let Some((segments, profiles)) = self.needed() else { return };
        let (fetcher, kept) = (self.fetcher.clone(), self.profiles.clone());
        let removing = move || {
            fetcher.retain_segments(&segments);
            kept.retain(&profiles);
        };
        // Waited for: what is kept from here on is none of these.
        if let Err(error) = self.runtime.spawn_blocking(removing).await {
            tracing::info!(%error, "what no version needs was not let go");
        }
    }

    /// The segments and profiles that versions here need; none when that cannot be told.
    fn needed(&self) -> Option<(HashSet<SegmentId>, HashSet<ManifestId>)> {
        let record = self.store.record();
        let awaited = self.lock_awaited();
        let mut profiles = HashSet::from([record.base]);
        let mut segments = HashSet::new();
        let mut keep = |manifest: &Manifest| {
            segments.extend(manifest.disks.iter().flat_map(|disk| disk.segments.iter().copied()));
        };
        let pending = record.pending.map(|pending| pending.manifest);
        for id in [Some(record.head), pending].into_iter().flatten() {
            match self.store.version(id) {
                Ok(version) => keep(&version.manifest),
                Err(error) => {
                    tracing::info!(error = &error as &dyn std::error::Error, "no segments are let go");
                    return None;
                }
            }
        }
        if let Some(golden) = &*awaited {
            keep(&golden.manifest);
            profiles.insert(golden.id);
        }
        Some((segments, profiles))
    }

    fn lock_awaited(&self) -> MutexGuard<'_, Option<Version>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fetches everything that is not here, as far as it is looked, in the background of everything else, and keeps it. Answers
    /// how many chunks were not here. Looked at by the bytes, all of it is durable then.
    ///
    /// # Errors
    /// [`FillError`].
    pub async fn fill(&self, look: Look) -> Result<u64, FillError> {
        let bases = || self.disks.iter().map(|disk| Arc::clone(&disk.view().base)).collect();
        let lacked = self.filling.fill(&self.fetcher, look, bases).await?;
        if lacked == 0 && look == Look::Index {
            return Ok(lacked);
        }
        // Who is told that it is here counts on it where nobody can be asked.
        let cache = Arc::clone(&self.cache);
        let synced = self.runtime.spawn_blocking(move || cache.sync()).await;
        synced.unwrap_or_else(|error| Err(std::io::Error::other(error))).map_err(FillError::NotDurable)?;
        Ok(lacked)
    }

    /// How far the fill is.
    pub fn fill_progress(&self) -> &FillProgress {
        self.filling.progress()
    }

    /// Notes that all of it is to be on this machine from now on, and has it fetched, at so many bytes a second at most. Where
    /// there is no room for all of it, and it was not noted before, it is not noted after, either.
    ///
    /// # Errors
    /// Those of `fetching`; `Desktop`.
    pub async fn pin<T>(
        &self,
        limit_bytes_per_s: Option<u64>,
        fetching: impl Future<Output = Result<T, FillError>>,
    ) -> Result<T, PinError> {
        let was_pinned = self.store.record().pinned;
        with_room(&self.cache, || self.store.set_pinned(true, limit_bytes_per_s))?;
        // Looked at before anything is fetched that would not be kept.
        let fetched = match self.check_room().await {
            Ok(()) => fetching.await,
            Err(error) => Err(error),
        };
        if fetched.as_ref().is_err_and(FillError::is_want_of_room) && !was_pinned {
            self.unpin().await?;
        }
        Ok(fetched?)
    }

    async fn check_room(&self) -> Result<(), FillError> {
        // Many at once; what fails here is asked for once more.
        let _loaded = self.load_segments().await;
        let bases: Vec<Arc<Base>> = self.disks.iter().map(|disk| Arc::clone(&disk.view().base)).collect();
        self.fetcher.check_room(&bases).await
    }

    /// Ends what fetches everything, and lets go of what was kept for good; it stays until its space is needed, for this note of it
    /// on a full disk.
    ///
    /// # Errors
    /// [`DesktopError`].
    pub async fn unpin(&self) -> Result<(), DesktopError> {
        // Noted first: what a start fills it with then does not begin after this.
        let noted = self.store.set_pinned(false, None);
        let _ended = self.filling.end().await;
        self.cache.unpin_all_but(&HashSet::new());
        match noted {
            Err(error) if error.is_full() => with_room(&self.cache, || self.store.set_pinned(false, None)),
            noted => noted,
        }
    }

    /// Whether the server does not have the version below any more: it was set back to an older state.
    pub(crate) fn is_head_lost(&self) -> bool {
        self.cache.is_sole()
    }

    /// Notes whether the server has the version below. Where it has not, what is in the cache is kept whatever the disk lacks.
    pub(crate) fn set_head_lost(&self, is_lost: bool) {
        self.cache.set_sole(is_lost);
    }

    /// Whether what is written is thrown away at the end.
    pub fn is_read_only(&self) -> bool {
        self.is_read_only
    }

    /// Whether something was written that no committed version holds.
    pub fn has_changes(&self) -> bool {
        self.disks
            .iter()
            .filter(|disk| !self.is_volatile(disk))
            .any(|disk| disk.view().overlays.iter().any(|overlay| !overlay.is_empty()))
    }

    /// Whether there is something that the next sync commits: what was written, or a checkpoint that could not be sent.
    pub fn has_work(&self) -> bool {
        let record = self.store.record();
        self.has_changes() || record.note.is_some() || record.pending.is_some()
    }

    /// Whether what is written to a disk is dropped at the next start: it is no change then.
    pub fn is_volatile(&self, disk: &Disk) -> bool {
        self.is_system_volatile && disk.role() == DiskRole::System
    }

    /// The generation that writes go to; none when no disk keeps what is written.
    pub(crate) fn generation_in_use(&self) -> Option<u64> {
        let kept = self.disks.iter().filter(|disk| !self.is_volatile(disk));
        kept.filter_map(|disk| disk.view().overlays.first().map(|top| top.identity().generation)).min()
    }

    /// Makes everything written before the call durable.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn flush(&self) -> Result<(), DiskError> {
        self.disks.iter().try_for_each(|disk| disk.flush())
    }

    /// Ends the use of a desktop: stops fetching, makes everything written durable, and notes what is in the cache.
    ///
    /// Not left to the drop of the last handle, which a task that is still winding up may hold when the process ends.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn close(&self) -> Result<(), DiskError> {
        self.fetcher.stop();
        let flushed = self.flush();
        if let Err(error) = self.cache.save_index() {
            tracing::warn!(%error, "the cache's index was not saved; some chunks will be fetched again");
        }
        self.keep_reserve();
        flushed
    }

    /// Makes ready to freeze all disks at one instant, so that the instant itself costs next to nothing.
    pub(crate) fn prepare_freeze(&self, note: Option<&str>) -> Result<Freezing<'_>, DesktopError> {
        let disks: Vec<&Disk> =
            self.disks.iter().map(AsRef::as_ref).filter(|disk| !self.is_volatile(disk)).collect();
        let layouts: Vec<DiskLayout> =
            disks.iter().map(|disk| DiskLayout { role: disk.role(), size: disk.size() }).collect();
        // Durable and named by the record before the first write can reach it.
        let overlays = with_room(&self.cache, || self.store.add_generation(&layouts, note))?;
        Ok(Freezing { disks: disks.into_iter().zip(overlays).collect() })
    }

    /// Puts the disks on a version that holds the generations up to one, and lets go of those. `loaded` are segments
    /// of it whose chunks are known.
    pub(crate) fn stand_on(
        &self,
        version: &Version,
        loaded: &HashMap<SegmentId, BaseSegment>,
        through_generation: u64,
    ) {
        let replaced = self.replaced_by(version, loaded);
        for (disk, described) in self.disks.iter().zip(&version.manifest.disks) {
            let old = Arc::clone(&disk.view().base);
            let segments = (0..).map(SegmentIndex).zip(described.segments.iter().zip(old.segments()));
            let changed = segments.filter(|(_, (id, old))| **id != old.id).map(|(index, (id, _))| {
                let known = loaded.get(id).cloned();
                (index, known.unwrap_or_else(|| BaseSegment::new(*id, self.origins.namespace_of(id))))
            });
            // A volatile overlay is in no version.
            let folded = if self.is_volatile(disk) { 0 } else { through_generation };
            disk.fold(Arc::new(old.with_segments(changed)), folded);
        }
        // Else the versions of what is written often push out of the cache what is read often.
        self.cache.let_go_first(&replaced);
    }

    /// The chunks that a version replaces, as far as it is known here. Those that another segment has as well may be among them.
    fn replaced_by(&self, version: &Version, loaded: &HashMap<SegmentId, BaseSegment>) -> HashSet<ChunkId> {
        let (mut replaced, mut brought) = (HashSet::new(), Vec::new());
        for (disk, described) in self.disks.iter().zip(&version.manifest.disks) {
            let old = Arc::clone(&disk.view().base);
            for (id, old) in described.segments.iter().zip(old.segments()).filter(|(id, old)| **id != old.id)
            {
                let zeros = id.is_zero().then(Segment::zero);
                let new = zeros.as_ref().or_else(|| loaded.get(id)?.segment());
                let (Some(old), Some(new)) = (old.segment(), new) else { continue };
                let changed = old.chunks().iter().zip(new.chunks()).filter(|(old, new)| old != new);
                for (old, new) in changed {
                    replaced.insert(*old);
                    brought.push(*new);
                }
            }
        }
        // What has only moved.
        for id in brought {
            replaced.remove(&id);
        }
        replaced
    }

    /// Keeps what a version brings that was made here, as far as it is known here; what it replaced is let go by the next fill.
    pub(crate) fn pin_new(&self, version: &Version, loaded: &HashMap<SegmentId, BaseSegment>) {
        for (disk, described) in self.disks.iter().zip(&version.manifest.disks) {
            let old = Arc::clone(&disk.view().base);
            let changed = described.segments.iter().zip(old.segments()).filter(|(id, old)| **id != old.id);
            for (id, _) in changed {
                let known = loaded.get(id).cloned();
                let segment = known.unwrap_or_else(|| BaseSegment::new(*id, self.origins.namespace_of(id)));
                if let Some(segment) = self.fetcher.segment_here(&segment) {
                    self.cache.set_pinned(segment.chunks().iter().copied(), true);
                }
            }
        }
    }
}

/// Disks about to be frozen. The record names their next generation already, and whoever reads it next takes the one below
/// for frozen: so they are frozen at the latest when this is dropped.
pub(crate) struct Freezing<'a> {
    disks: Vec<(&'a Disk, Arc<Overlay>)>,
}

impl Freezing<'_> {
    /// Freezes the disks; what is written from now on is in a new generation.
    pub(crate) fn freeze(self) {
        drop(self);
    }
}

impl Drop for Freezing<'_> {
    fn drop(&mut self) {
        Disk::freeze(std::mem::take(&mut self.disks));
    }
}

impl std::fmt::Debug for OpenDesktop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenDesktop").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Gives the system disk of a desktop that renews it an empty overlay for this start; whether it has one that is volatile.
/// What was written to the system disk before the desktop became one that renews it is kept until it is synced.
fn begin_volatile(store: &DesktopStore, head: &Manifest) -> Result<bool, DesktopError> {
    let Some(system) = head.disk(DiskRole::System).filter(|_| head.mode() == SystemMode::Renew) else {
        return Ok(false);
    };
    let layout = DiskLayout { role: system.role, size: system.size };
    if !store.is_volatile(DiskRole::System)
        && store.open_overlays(layout)?.iter().any(|overlay| !overlay.is_empty())
    {
        return Ok(false);
    }
    store.begin_volatile(layout)?;
    Ok(true)
}

pub(crate) fn layouts(manifest: &Manifest) -> Vec<DiskLayout> {
    manifest.disks.iter().map(|disk| DiskLayout { role: disk.role, size: disk.size }).collect()
}

fn check_chunk_size(disk: &ManifestDisk, cached: ChunkSize) -> Result<(), DesktopError> {
    if disk.chunk_size == cached {
        return Ok(());
    }
    Err(DesktopError::MixedChunkSizes { role: disk.role })
}
