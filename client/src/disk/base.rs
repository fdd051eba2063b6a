//! What lies below the overlays: one disk of a version, its segments loaded as they are touched.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chunk_format::{
    ChunkId, ChunkIndex, ChunkSize, Disk, DiskRole, DiskSize, Locator, Namespace, SEGMENT_CHUNKS, Segment,
    SegmentId, SegmentIndex,
};
use tokio::sync::OnceCell;

use crate::cache::SlotRef;

/// One disk of a version: immutable but for what is loaded of it.
#[derive(Debug)]
pub struct Base {
    role: DiskRole,
    size: DiskSize,
    chunk_size: ChunkSize,
    segments: Vec<BaseSegment>,
}

/// A segment's place in a base. The same segment may stand in several bases; what is loaded of it is shared.
#[derive(Clone, Debug)]
pub struct BaseSegment {
    /// The segment.
    pub id: SegmentId,
    /// Whose it is: the root it is fetched under.
    pub namespace: Namespace,
    loaded: Arc<Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    chunks: OnceCell<SegmentChunks>,
    location: Mutex<Location>,
}

#[derive(Debug, Default)]
struct Location {
    located: Arc<OnceCell<Arc<Located>>>,
    /// Which source's locator was forgotten last.
    misled_by: Option<usize>,
}

/// Where the chunks of a segment lie, as one source says: nobody vouches for it.
#[derive(Debug)]
pub struct Located {
    /// What it says.
    pub locator: Locator,
    /// Which source it came from, in the order of preference.
    pub source: usize,
}

/// The chunk ids of a segment, and where the cache last had each chunk.
#[derive(Debug)]
pub struct SegmentChunks {
    segment: Segment,
    slots: Box<[SlotHint]>,
}

/// What a base knows of a chunk without asking anyone.
pub enum BaseChunk<'a> {
    /// All zeros.
    Zero,
    /// This chunk, with the hint where the cache has it.
    Known(&'a ChunkId, &'a SlotHint),
    /// Its segment is not loaded yet.
    Unloaded,
}

/// Where the cache last had a chunk: saves the lookup.
#[derive(Debug, Default)]
pub struct SlotHint(AtomicU64);

impl SlotHint {
    /// The hint, if there is one.
    pub fn get(&self) -> Option<SlotRef> {
        SlotRef::from_bits(self.0.load(Ordering::Acquire))
    }

    /// Sets or clears the hint.
    pub fn set(&self, slot: Option<SlotRef>) {
        self.0.store(slot.map_or(0, SlotRef::to_bits), Ordering::Release);
    }
}

impl SegmentChunks {
    fn new(segment: Segment) -> Self {
        Self { segment, slots: (0..SEGMENT_CHUNKS).map(|_| SlotHint::default()).collect() }
    }
}

impl BaseSegment {
    /// A segment of which nothing is loaded.
    pub fn new(id: SegmentId, namespace: Namespace) -> Self {
        Self { id, namespace, loaded: Arc::default() }
    }

    /// A segment whose chunks are known.
    pub fn loaded(segment: Segment, namespace: Namespace) -> Self {
        let id = segment.id();
        let loaded =
            Loaded { chunks: OnceCell::new_with(Some(SegmentChunks::new(segment))), ..Loaded::default() };
        Self { id, namespace, loaded: Arc::new(loaded) }
    }

    /// The segment's chunk ids, if they are loaded.
    pub fn segment(&self) -> Option<&Segment> {
        self.loaded.chunks.get().map(|chunks| &chunks.segment)
    }

    /// The segment's chunk ids, if they are loaded or `take` has them.
    pub fn segment_or_take(&self, take: impl FnOnce() -> Option<Segment>) -> Option<&Segment> {
        if self.segment().is_none()
            && let Some(segment) = take()
        {
            // Who else loaded it meanwhile has the same.
            let _ = self.loaded.chunks.set(SegmentChunks::new(segment));
        }
        self.segment()
    }

    /// The segment's chunk ids; loads them at the first call, once however many call.
    ///
    /// # Errors
    /// What `load` says.
    pub async fn segment_or_load<E, F: Future<Output = Result<Segment, E>>>(
        &self,
        load: impl FnOnce() -> F,
    ) -> Result<&Segment, E> {
        let chunks =
            self.loaded.chunks.get_or_try_init(|| async { load().await.map(SegmentChunks::new) }).await?;
        Ok(&chunks.segment)
    }

    /// Whether the segment's locator is loaded.
    pub fn is_located(&self) -> bool {
        self.lock_location().located.initialized()
    }

    /// The segment's locator; loads it at the first call, once however many call. `load` is told which source's was wrong.
    ///
    /// # Errors
    /// What `load` says.
    pub async fn locator_or_load<E, F: Future<Output = Result<Located, E>>>(
        &self,
        load: impl FnOnce(Option<usize>) -> F,
    ) -> Result<Arc<Located>, E> {
        let (located, misled_by) = {
            let location = self.lock_location();
            (Arc::clone(&location.located), location.misled_by)
        };
        located.get_or_try_init(|| async { load(misled_by).await.map(Arc::new) }).await.cloned()
    }

    /// Forgets a locator by which a chunk was not to be found; the next one comes from another source, if there is one.
    pub fn forget_locator(&self, wrong: &Arc<Located>) {
        let mut location = self.lock_location();
        // Who found out before may have led to another one by now.
        if location.located.get().is_some_and(|located| Arc::ptr_eq(located, wrong)) {
            *location = Location { located: Arc::default(), misled_by: Some(wrong.source) };
        }
    }

    fn lock_location(&self) -> MutexGuard<'_, Location> {
        self.loaded.location.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Base {
    /// Takes a disk of a manifest; `namespace_of` says whose each segment is.
    pub fn new(disk: &Disk, namespace_of: impl Fn(&SegmentId) -> Namespace) -> Self {
        let segments = disk.segments.iter().map(|id| BaseSegment::new(*id, namespace_of(id))).collect();
        Self { role: disk.role, size: disk.size, chunk_size: disk.chunk_size, segments }
    }

    /// The same disk with some segments replaced; shares what is loaded of the others.
    #[must_use]
    pub fn with_segments(&self, replaced: impl IntoIterator<Item = (SegmentIndex, BaseSegment)>) -> Self {
        let mut segments = self.segments.clone();
        for (index, segment) in replaced {
            if let Some(place) = segments.get_mut(index.0 as usize) {
                *place = segment;
            }
        }
        Self { role: self.role, size: self.size, chunk_size: self.chunk_size, segments }
    }

    /// What the disk is for.
    pub fn role(&self) -> DiskRole {
        self.role
    }

    /// The disk's size.
    pub fn size(&self) -> DiskSize {
        self.size
    }

    /// Bytes per chunk.
    pub fn chunk_size(&self) -> ChunkSize {
        self.chunk_size
    }

    /// The disk's segments.
    pub fn segments(&self) -> &[BaseSegment] {
        &self.segments
    }

    /// The segment a chunk is in, and the chunk's position there; `None` past the end.
    pub fn segment_of(&self, chunk: ChunkIndex) -> Option<(&BaseSegment, usize)> {
        let (segment, at) = chunk.in_segment();
        Some((self.segments.get(segment.0 as usize)?, at))
    }

    /// What is known of a chunk without asking anyone; zeros past the end.
    pub fn chunk(&self, chunk: ChunkIndex) -> BaseChunk<'_> {
        let Some((segment, at)) = self.segment_of(chunk) else { return BaseChunk::Zero };
        if segment.id.is_zero() {
            return BaseChunk::Zero;
        }
        let Some(chunks) = segment.loaded.chunks.get() else { return BaseChunk::Unloaded };
        match (chunks.segment.chunks().get(at), chunks.slots.get(at)) {
            (Some(id), Some(hint)) if !id.is_zero() => BaseChunk::Known(id, hint),
            _ => BaseChunk::Zero,
        }
    }
}
