//! The block engine: one virtual disk, read and written by offset.
//!
//! A read looks through the overlays, newest first, then at the base version: all zeros, in the cache, or to be
//! fetched. A write goes to the newest overlay and never needs the network, unless it covers part of a 4 KiB block
//! that is not here. FUSE is the engine's first export; the engine knows nothing of it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use chunk_format::{ChunkIndex, ChunkSize, DiskRole, DiskSize};
use tokio::runtime::Handle;

mod base;
mod readahead;
mod touches;

pub use base::{Base, BaseChunk, BaseSegment, Located, SegmentChunks, SlotHint};
pub use touches::Touches;

use crate::cache::{Cache, CacheRead};
use crate::fetch::{Class, FetchError, Fetcher, Wish};
use crate::overlay::{
    BLOCK_BYTES, BlockIndex, BlockState, Overlay, OverlayError, blocks_inside, blocks_touching,
};
use readahead::Readahead;

/// Space asked of the cache when the overlay's disk is full, bytes.
pub(crate) const SPACE_STEP_BYTES: u64 = 64 << 20;

/// Why a disk could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The request reaches past the end of the disk.
    #[error("bytes {start} to {end} are not on a disk of {size} bytes")]
    OutOfRange {
        /// First byte.
        start: u64,
        /// The byte after the last one.
        end: u64,
        /// Bytes of the disk.
        size: u64,
    },
    /// There is no layer to write to: the disk is only read.
    #[error("the disk takes no writes")]
    NotWritable,
    /// The overlay could not be read or written.
    #[error("{0}")]
    Overlay(#[from] OverlayError),
    /// A chunk could not be had.
    #[error("cannot read chunk {chunk} of the {role} disk")]
    Fetch {
        /// The disk.
        role: DiskRole,
        /// The chunk.
        chunk: ChunkIndex,
        /// Why.
        #[source]
        source: Arc<FetchError>,
    },
}

/// What a disk is made of at an instant.
#[derive(Clone, Debug)]
pub struct View {
    /// The layers written since the base version, newest first; writes go to the first. None when the disk is only read.
    pub overlays: Vec<Arc<Overlay>>,
    /// The version below.
    pub base: Arc<Base>,
}

/// Counts since the disk was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Bytes read.
    pub read_bytes: u64,
    /// Reads.
    pub reads: u64,
    /// Reads that had to wait for a fetch.
    pub missed_reads: u64,
    /// Time reads waited for fetches, microseconds, summed over reads.
    pub stall_us: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes zeroed or discarded.
    pub zeroed_bytes: u64,
    /// Flushes.
    pub flushes: u64,
}

#[derive(Debug, Default)]
struct Counters {
    read_bytes: AtomicU64,
    reads: AtomicU64,
    missed_reads: AtomicU64,
    stall_us: AtomicU64,
    written_bytes: AtomicU64,
    zeroed_bytes: AtomicU64,
    flushes: AtomicU64,
}

/// A part of a read that is not here.
#[derive(Debug)]
struct Miss {
    chunk: ChunkIndex,
    within: usize,
    buf: Range<usize>,
}

/// A read that must wait for fetches; [`Disk::finish_read`] completes it.
#[derive(Debug)]
pub struct PendingRead {
    view: Arc<View>,
    misses: Vec<Miss>,
}

/// A write that must first learn the rest of a block; [`Disk::write`] completes it.
#[derive(Debug)]
pub struct NeedsFetch;

/// One virtual disk.
///
/// Lock order: `gate` before anything inside an overlay or the cache. Several disks' gates are taken in the order of
/// their roles.
pub struct Disk {
    role: DiskRole,
    size: DiskSize,
    chunk_size: ChunkSize,
    view: ArcSwap<View>,
    /// Shared by whole-block writes; exclusive for what must see no write in the middle: changing the view, and
    /// writing part of a block.
    gate: RwLock<()>,
    cache: Arc<Cache>,
    fetcher: Fetcher,
    runtime: Handle,
    readahead: Mutex<Readahead>,
    touches: OnceLock<Arc<Touches>>,
    counters: Counters,
}

impl Disk {
    /// Puts a disk together.
    pub fn new(view: View, cache: Arc<Cache>, fetcher: Fetcher, runtime: Handle) -> Self {
        Self {
            role: view.base.role(),
            size: view.base.size(),
            chunk_size: view.base.chunk_size(),
            view: ArcSwap::from_pointee(view),
            gate: RwLock::new(()),
            cache,
            fetcher,
            runtime,
            readahead: Mutex::default(),
            touches: OnceLock::new(),
            counters: Counters::default(),
        }
    }

    /// What the disk is for.
    pub fn role(&self) -> DiskRole {
        self.role
    }

    /// The disk's size.
    pub fn size(&self) -> DiskSize {
        self.size
    }

    /// What the disk is made of now.
    pub fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Counts since the disk was opened.
    pub fn stats(&self) -> DiskStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskStats {
            read_bytes: load(&self.counters.read_bytes),
            reads: load(&self.counters.reads),
            missed_reads: load(&self.counters.missed_reads),
            stall_us: load(&self.counters.stall_us),
            written_bytes: load(&self.counters.written_bytes),
            zeroed_bytes: load(&self.counters.zeroed_bytes),
            flushes: load(&self.counters.flushes),
        }
    }

    /// Begins to note which chunks of the base are read, and in which order.
    pub fn note_touches(&self) -> Arc<Touches> {
        Arc::clone(self.touches.get_or_init(Arc::default))
    }

    /// Reads what is here; `Some` when parts must be fetched, whose places in the buffer are then not yet filled.
    /// Never waits for the network.
    ///
    /// # Errors
    /// `OutOfRange`, `Overlay`.
    pub fn begin_read(&self, offset: u64, buf: &mut [u8]) -> Result<Option<PendingRead>, DiskError> {
        let range = self.check_range(offset, buf.len() as u64)?;
        self.counters.reads.fetch_add(1, Ordering::Relaxed);
        self.counters.read_bytes.fetch_add(buf.len() as u64, Ordering::Relaxed);
        let view = self.view.load();
        let misses = self.read_view(&view, range.clone(), buf)?;
        self.read_ahead(&view, range, &misses);
        if misses.is_empty() {
            return Ok(None);
        }
        self.counters.missed_reads.fetch_add(1, Ordering::Relaxed);
        Ok(Some(PendingRead { view: Arc::clone(&view), misses }))
    }

    /// Fetches what a read lacks and fills its places in the buffer.
    ///
    /// # Errors
    /// `Fetch`.
    pub async fn finish_read(&self, pending: PendingRead, buf: &mut [u8]) -> Result<(), DiskError> {
        let began = Instant::now();
        let PendingRead { view, mut misses } = pending;
        let result = loop {
            match self.fetch_misses(&view.base, misses, buf).await {
                Ok(left) if left.is_empty() => break Ok(()),
                Ok(left) => misses = left,
                Err(error) => break Err(error),
            }
        };
        let stall_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.counters.stall_us.fetch_add(stall_us, Ordering::Relaxed);
        result
    }

    /// Reads, waiting for fetches.
    ///
    /// # Errors
    /// `OutOfRange`, `Overlay`, `Fetch`.
    pub async fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), DiskError> {
        match self.begin_read(offset, buf)? {
            None => Ok(()),
            Some(pending) => self.finish_read(pending, buf).await,
        }
    }

    /// Writes; `Some` when part of a block is written whose rest is not here: nothing is written then, and
    /// [`Disk::write`] must be called instead. Never waits for the network. Not durable before [`Disk::flush`].
    ///
    /// # Errors
    /// `OutOfRange`, `Overlay`.
    pub fn begin_write(&self, offset: u64, bytes: &[u8]) -> Result<Option<NeedsFetch>, DiskError> {
        let range = self.check_range(offset, bytes.len() as u64)?;
        if self.is_whole_blocks(&range) {
            let _shared = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            self.write_blocks(offset, bytes)?;
        } else if !self.write_parts(&range, bytes, None)? {
            return Ok(Some(NeedsFetch));
        }
        self.counters.written_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(None)
    }

    /// Writes, waiting for the rest of blocks written in part. Not durable before [`Disk::flush`].
    ///
    /// # Errors
    /// `OutOfRange`, `Overlay`, `Fetch`.
    pub async fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        if self.begin_write(offset, bytes)?.is_none() {
            return Ok(());
        }
        let range = self.check_range(offset, bytes.len() as u64)?;
        while !self.write_parts(&range, bytes, Some(&self.read_edges(&range).await?))? {}
        self.counters.written_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes bytes read as zeros and gives their space back; as [`Disk::begin_write`].
    ///
    /// # Errors
    /// `OutOfRange`, `Overlay`.
    pub fn begin_zero(&self, offset: u64, len_bytes: u64) -> Result<Option<NeedsFetch>, DiskError> {
        let range = self.check_range(offset, len_bytes)?;
        self.zero_range(&range, None).map(|done| (!done).then_some(NeedsFetch))
    }

    /// Makes bytes read as zeros and gives their space back; as [`Disk::write`].
    ///
    /// # Errors
    /// `OutOfRange`, `Overlay`, `Fetch`.
    pub async fn zero(&self, offset: u64, len_bytes: u64) -> Result<(), DiskError> {
        if self.begin_zero(offset, len_bytes)?.is_none() {
            return Ok(());
        }
        let range = self.check_range(offset, len_bytes)?;
        while !self.zero_range(&range, Some(&self.read_edges(&range).await?))? {}
        Ok(())
    }

    /// Makes everything written before the call durable.
    ///
    /// # Errors
    /// `Overlay`; the disk then takes no more writes, unless it is `Full`.
    pub fn flush(&self) -> Result<(), DiskError> {
        self.counters.flushes.fetch_add(1, Ordering::Relaxed);
        // The older ones too: a frozen overlay may hold writes this flush must cover.
        let view = self.view.load_full();
        for overlay in view.overlays.iter().rev() {
            match overlay.flush() {
                Err(OverlayError::Full { .. }) if self.cache.give_back(SPACE_STEP_BYTES) > 0 => {
                    overlay.flush()?
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Whether a range reads as zeros without looking anywhere, and how many bytes from its start are alike; for
    /// skipping holes. Data that happens to be zeros may be called data.
    pub fn extent(&self, offset: u64) -> (bool, u64) {
        let size = self.size.bytes();
        let view = self.view.load();
        let mut at = offset;
        let mut first = None;
        while at < size {
            let (hole, end) = self.extent_step(&view, at);
            if *first.get_or_insert(hole) != hole {
                break;
            }
            at = end.min(size);
        }
        (first.unwrap_or(true), at.saturating_sub(offset))
    }

    /// Freezes disks at one instant: puts a new overlay on top of each. What was written before is then below, what
    /// is written after is above, on all of them alike.
    pub fn freeze(disks: Vec<(&Self, Arc<Overlay>)>) {
        let mut disks = disks;
        disks.sort_by_key(|(disk, _)| disk.role);
        let gates: Vec<_> =
            disks.iter().map(|(disk, _)| disk.gate.write().unwrap_or_else(PoisonError::into_inner)).collect();
        for (disk, overlay) in &disks {
            let view = disk.view.load_full();
            let mut overlays = vec![Arc::clone(overlay)];
            overlays.extend(view.overlays.iter().cloned());
            disk.view.store(Arc::new(View { overlays, base: Arc::clone(&view.base) }));
        }
        drop(gates);
    }

    /// Replaces the base by one that holds the overlays up to a generation, and lets go of those.
    pub fn fold(&self, base: Arc<Base>, through_generation: u64) {
        let _exclusive = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let view = self.view.load_full();
        let overlays = view
            .overlays
            .iter()
            .filter(|overlay| overlay.identity().generation > through_generation)
            .cloned()
            .collect();
        self.view.store(Arc::new(View { overlays, base }));
    }

    fn check_range(&self, offset: u64, len_bytes: u64) -> Result<Range<u64>, DiskError> {
        let size = self.size.bytes();
        match offset.checked_add(len_bytes).filter(|end| *end <= size) {
            Some(end) => Ok(offset..end),
            None => Err(DiskError::OutOfRange { start: offset, end: offset.saturating_add(len_bytes), size }),
        }
    }

    /// Whole blocks, the last one of the disk counting as whole where the disk ends.
    fn is_whole_blocks(&self, range: &Range<u64>) -> bool {
        range.start.is_multiple_of(BLOCK_BYTES)
            && (range.end.is_multiple_of(BLOCK_BYTES) || range.end == self.size.bytes())
    }

    fn read_view(&self, view: &View, range: Range<u64>, buf: &mut [u8]) -> Result<Vec<Miss>, DiskError> {
        let mut misses = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let (layer, end) = find_layer(view, at, range.end);
            let part = to_usize(at - range.start)..to_usize(end - range.start);
            match layer {
                Layer::Data(overlay) => overlay.read_data(at, &mut buf[part])?,
                Layer::Zero => buf[part].fill(0),
                Layer::Base => self.read_base(&view.base, at..end, part, buf, &mut misses),
            }
            at = end;
        }
        Ok(misses)
    }

    fn read_base(
        &self,
        base: &Base,
        range: Range<u64>,
        part: Range<usize>,
        buf: &mut [u8],
        misses: &mut Vec<Miss>,
    ) {
        let mut at = range.start;
        while at < range.end {
            let chunk = ChunkIndex::containing(at, self.chunk_size);
            let chunk_start = chunk.offset_bytes(self.chunk_size);
            let end = (chunk_start + self.chunk_size.bytes_u64()).min(range.end);
            let within = to_usize(at - chunk_start);
            let place = part.start + to_usize(at - range.start)..part.start + to_usize(end - range.start);
            if let Some(touches) = self.touches.get() {
                touches.note(chunk);
            }
            if !self.read_chunk(base, chunk, within, &mut buf[place.clone()]) {
                misses.push(Miss { chunk, within, buf: place });
            }
            at = end;
        }
    }

    /// Reads part of a base chunk if it is here.
    fn read_chunk(&self, base: &Base, chunk: ChunkIndex, within: usize, buf: &mut [u8]) -> bool {
        match base.chunk(chunk) {
            BaseChunk::Zero => {
                buf.fill(0);
                true
            }
            BaseChunk::Unloaded => false,
            BaseChunk::Known(id, hint) => {
                if let Some(slot) = hint.get()
                    && self.cache.read(slot, id, within, buf) == CacheRead::Hit
                {
                    return true;
                }
                let slot = self.cache.lookup(id);
                hint.set(slot);
                slot.is_some_and(|slot| self.cache.read(slot, id, within, buf) == CacheRead::Hit)
            }
        }
    }

    /// Fetches missing parts; answers those that must be looked at again.
    async fn fetch_misses(
        &self,
        base: &Base,
        misses: Vec<Miss>,
        buf: &mut [u8],
    ) -> Result<Vec<Miss>, DiskError> {
        let chunks: Vec<ChunkIndex> = misses.iter().map(|miss| miss.chunk).collect();
        let failed = |chunk: ChunkIndex, source| DiskError::Fetch { role: self.role, chunk, source };
        let wishes = match self.fetcher.want(base, &chunks, Class::Waiting).await {
            Ok(wishes) => wishes,
            Err(error) => {
                return Err(failed(chunks.first().copied().unwrap_or(ChunkIndex(0)), Arc::new(error)));
            }
        };
        let mut left = Vec::new();
        for (miss, wish) in misses.into_iter().zip(wishes) {
            match wish {
                Wish::Flight(flight) => {
                    let landing = self.fetcher.land(base, miss.chunk, &flight).await;
                    let bytes = landing.map_err(|error| failed(miss.chunk, error))?;
                    let part = &bytes[miss.within..miss.within + miss.buf.len()];
                    buf[miss.buf].copy_from_slice(part);
                }
                Wish::Here => {
                    if !self.read_chunk(base, miss.chunk, miss.within, &mut buf[miss.buf.clone()]) {
                        left.push(miss);
                    }
                }
            }
        }
        Ok(left)
    }

    /// Whether a missing chunk is on its way already, by a boot stream for example.
    fn is_expected(&self, view: &View, miss: &Miss) -> bool {
        match view.base.chunk(miss.chunk) {
            BaseChunk::Known(id, _) => self.fetcher.expects(id),
            BaseChunk::Zero | BaseChunk::Unloaded => false,
        }
    }

    fn read_ahead(&self, view: &Arc<View>, read: Range<u64>, misses: &[Miss]) {
        let missed = misses.iter().any(|miss| !self.is_expected(view, miss));
        // A reader that finds it taken is one of several; the others' reads tell the pattern.
        let Ok(mut readahead) = self.readahead.try_lock() else { return };
        let Some(ahead) = readahead.observe(read, missed) else { return };
        drop(readahead);
        let end = ahead.end.min(self.size.bytes());
        if ahead.start >= end {
            return;
        }
        let first = ChunkIndex::containing(ahead.start, self.chunk_size);
        let last = ChunkIndex::containing(end - 1, self.chunk_size);
        let missing: Vec<ChunkIndex> = (first.0..=last.0)
            .map(ChunkIndex)
            .filter(|chunk| match view.base.chunk(*chunk) {
                BaseChunk::Zero => false,
                BaseChunk::Unloaded => true,
                BaseChunk::Known(_, hint) => hint.get().is_none(),
            })
            .collect();
        if missing.is_empty() {
            return;
        }
        let (fetcher, base) = (self.fetcher.clone(), Arc::clone(&view.base));
        self.runtime.spawn(async move {
            // A guess that fails costs nothing: whoever needs the chunk asks again.
            let _ = fetcher.want(&base, &missing, Class::Readahead).await;
        });
    }

    fn write_blocks(&self, offset: u64, bytes: &[u8]) -> Result<(), DiskError> {
        let view = self.view.load();
        let top = view.overlays.first().ok_or(DiskError::NotWritable)?;
        match top.write(offset, bytes) {
            Err(OverlayError::Full { .. }) if self.cache.give_back(SPACE_STEP_BYTES) > 0 => {
                Ok(top.write(offset, bytes)?)
            }
            result => Ok(result?),
        }
    }

    /// Writes a range whose first or last block is partial. `edges` holds what lies below those blocks if it had to
    /// be fetched. False when it has to be.
    fn write_parts(
        &self,
        range: &Range<u64>,
        bytes: &[u8],
        edges: Option<&Edges>,
    ) -> Result<bool, DiskError> {
        let _exclusive = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let whole = self.whole_blocks_of(range);
        let mut parts = Vec::new();
        for part in [range.start..whole.start.min(range.end), whole.end.max(range.start)..range.end] {
            if part.is_empty() {
                continue;
            }
            let source = &bytes[to_usize(part.start - range.start)..to_usize(part.end - range.start)];
            // A part may span two blocks when there is no whole one between them.
            for block in blocks_touching(&part) {
                let Some(merged) = self.merge_block(BlockIndex(block), &part, source, edges)? else {
                    return Ok(false);
                };
                parts.push((block * BLOCK_BYTES, merged));
            }
        }
        for (offset, block) in &parts {
            self.write_blocks(*offset, block)?;
        }
        if !whole.is_empty() {
            let source = &bytes[to_usize(whole.start - range.start)..to_usize(whole.end - range.start)];
            self.write_blocks(whole.start, source)?;
        }
        Ok(true)
    }

    /// A block as it is now with part of it replaced; `None` when the rest is not here. The gate is held.
    fn merge_block(
        &self,
        block: BlockIndex,
        part: &Range<u64>,
        source: &[u8],
        edges: Option<&Edges>,
    ) -> Result<Option<Vec<u8>>, DiskError> {
        let start = block.offset_bytes();
        let end = (start + BLOCK_BYTES).min(self.size.bytes());
        let mut merged = vec![0; to_usize(end - start)];
        let view = self.view.load();
        if !self.read_view(&view, start..end, &mut merged)?.is_empty() {
            // On the same base, nothing written: what was fetched before is still what lies below.
            match edges
                .filter(|edges| Arc::ptr_eq(&edges.base, &view.base))
                .and_then(|edges| edges.get(block))
            {
                Some(below) => merged.copy_from_slice(below),
                None => return Ok(None),
            }
        }
        let (from, to) = (part.start.max(start), part.end.min(end));
        let replaced = &source[to_usize(from - part.start)..to_usize(to - part.start)];
        merged[to_usize(from - start)..to_usize(to - start)].copy_from_slice(replaced);
        Ok(Some(merged))
    }

    fn zero_range(&self, range: &Range<u64>, edges: Option<&Edges>) -> Result<bool, DiskError> {
        let whole = self.whole_blocks_of(range);
        for part in [range.start..whole.start.min(range.end), whole.end.max(range.start)..range.end] {
            if !part.is_empty()
                && !self.write_parts(&part, &vec![0; to_usize(part.end - part.start)], edges)?
            {
                return Ok(false);
            }
        }
        if !whole.is_empty() {
            let _shared = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            let view = self.view.load();
            let top = view.overlays.first().ok_or(DiskError::NotWritable)?;
            top.zero(whole.start / BLOCK_BYTES..whole.end.div_ceil(BLOCK_BYTES))?;
        }
        self.counters.zeroed_bytes.fetch_add(range.end - range.start, Ordering::Relaxed);
        Ok(true)
    }

    /// The bytes of a range that are whole blocks, the last one of the disk counting as whole where the disk ends.
    fn whole_blocks_of(&self, range: &Range<u64>) -> Range<u64> {
        let blocks = blocks_inside(range);
        let start = blocks.start * BLOCK_BYTES;
        if range.end == self.size.bytes() && range.end > start {
            return start..range.end;
        }
        start..(blocks.end * BLOCK_BYTES).max(start)
    }

    /// What the disk holds in the first and last block of a range, fetched if need be.
    async fn read_edges(&self, range: &Range<u64>) -> Result<Edges, DiskError> {
        let mut edges = Edges { base: Arc::clone(&self.view.load().base), blocks: Vec::new() };
        let blocks = blocks_touching(range);
        for block in [blocks.start, blocks.end.saturating_sub(1)] {
            let start = block * BLOCK_BYTES;
            let end = (start + BLOCK_BYTES).min(self.size.bytes());
            let mut bytes = vec![0; to_usize(end.saturating_sub(start))];
            self.read(start, &mut bytes).await?;
            edges.blocks.push((BlockIndex(block), bytes));
        }
        Ok(edges)
    }

    fn extent_step(&self, view: &View, at: u64) -> (bool, u64) {
        let (layer, end) = find_layer(view, at, self.size.bytes());
        match layer {
            Layer::Data(_) => (false, end),
            Layer::Zero => (true, end),
            Layer::Base => {
                let chunk = ChunkIndex::containing(at, self.chunk_size);
                let span = match view.base.segment_of(chunk) {
                    Some((segment, _)) if segment.id.is_zero() => {
                        let (index, _) = chunk.in_segment();
                        (u64::from(index.0) + 1) * self.chunk_size.segment_span_bytes()
                    }
                    _ => ChunkIndex(chunk.0 + 1).offset_bytes(self.chunk_size),
                };
                (matches!(view.base.chunk(chunk), BaseChunk::Zero), span.min(end))
            }
        }
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("role", &self.role).field("size", &self.size).finish_non_exhaustive()
    }
}

/// Blocks fetched so that part of them can be replaced.
#[derive(Debug)]
struct Edges {
    /// The base they were fetched on: on another one they may be out of date.
    base: Arc<Base>,
    blocks: Vec<(BlockIndex, Vec<u8>)>,
}

impl Edges {
    fn get(&self, block: BlockIndex) -> Option<&[u8]> {
        self.blocks.iter().find(|(at, _)| *at == block).map(|(_, bytes)| bytes.as_slice())
    }
}

enum Layer<'a> {
    Data(&'a Overlay),
    Zero,
    Base,
}

/// Where bytes from `at` on are, and up to where, at most `end`, they are all there.
fn find_layer(view: &View, at: u64, end: u64) -> (Layer<'_>, u64) {
    let block = BlockIndex::containing(at);
    let mut last = BlockIndex(end.div_ceil(BLOCK_BYTES));
    for overlay in &view.overlays {
        let (state, len) = overlay.run(block, last);
        last = BlockIndex(block.0 + len.max(1));
        let bound = last.offset_bytes().min(end);
        match state {
            BlockState::Data => return (Layer::Data(overlay), bound),
            BlockState::Zero => return (Layer::Zero, bound),
            BlockState::Base => {}
        }
    }
    (Layer::Base, last.offset_bytes().min(end))
}

fn to_usize(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
