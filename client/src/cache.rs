//! The cache: chunks that were fetched once, decoded, in fixed slots of one file, so that a hit is one `pread`.
//!
//! Nothing in it is trusted: the first read of a chunk in each process checks it against its id, and what does not
//! match is a miss. So the cache needs no syncs and survives crashes, full disks and bit rot as nothing worse than a
//! slower disk. It is bounded, evicts what was read longest ago, keeps what is pinned, and yields its space to the
//! overlay when the disk runs full.

use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use chunk_format::{ChunkId, ChunkSize};
use rustix::fs::{FallocateFlags, FlockOperation, StatVfs, fallocate, flock, fstatvfs};

mod loose;
mod record;
mod reserve;
mod slot;

pub use slot::SlotRef;

use crate::volume::is_full;
use loose::Loose;
use record::{HEADER_BYTES, RECORD_BYTES, Record, encode_header};
use reserve::Reserve;
use slot::{Reading, Slot};

/// The cache leaves this share of the disk alone, so that the overlay never fails for its sake.
const DISK_SHARE_KEPT_FREE: u64 = 20;
/// The most that is kept free, bytes, however large the disk.
const KEPT_FREE_MAX_BYTES: u64 = 2 << 30;
/// How large a cache may be of which nobody says it.
pub const DEFAULT_LIMIT_BYTES: u64 = 20 << 30;
/// Insertions between two looks at the free space of the disk.
const SPACE_CHECK_INTERVAL: u32 = 64;

/// What can go wrong with opening the cache; later errors are misses.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// A file operation failed.
    #[error("cannot open the cache file {}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// There is no cache of this desktop.
    #[error("there is no cache of this desktop in {}", path.display())]
    NotThere {
        /// Where it would be.
        path: PathBuf,
    },
    /// Another process uses this cache.
    #[error("the cache {} is in use by another process", path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
}

/// How large a cache may be, and whose it is.
#[derive(Clone, Copy, Debug)]
pub struct CacheConfig {
    /// Bytes per slot.
    pub chunk_size: ChunkSize,
    /// Most bytes of chunks to keep; at least one slot, and all that is pinned. Without it a cache stays as large as it is, and
    /// has [`DEFAULT_LIMIT_BYTES`] at least.
    pub limit_bytes: Option<u64>,
    /// Whose cache it is; one of another owner is begun anew.
    pub owner: [u8; 32],
}

/// How it is found out whether a chunk is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// By the index, which a power cut may leave with chunks that never got to the disk.
    Index,
    /// By the bytes, which are read and checked unless this process has done so.
    Bytes,
}

/// How a read went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheRead {
    /// The buffer holds the bytes.
    Hit,
    /// The chunk is not, or no longer, there.
    Miss,
    /// What was there did not match its id and is gone now.
    Corrupt,
}

/// Counts since the cache was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Slots that hold a chunk.
    pub occupied: u64,
    /// Slots there are.
    pub slots: u64,
    /// Slots whose chunk is never evicted.
    pub pinned: u64,
    /// Chunks evicted.
    pub evicted: u64,
    /// Chunks found not to match their id.
    pub corrupt: u64,
    /// Chunks not kept for want of space.
    pub refused: u64,
    /// Chunks kept before anyone asked for them that were read later.
    pub foreseen: u64,
    /// Chunks kept before anyone asked for them that were evicted unread.
    pub wasted: u64,
    /// Chunks kept before anyone asked for them that nobody has read yet.
    pub unread: u64,
}

/// What keeping some chunks would take of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that those which lack take.
    pub needed_bytes: u64,
    /// Bytes that there are for them: what is free, and what other chunks take that may go.
    pub free_bytes: u64,
}

/// A bounded store of decoded chunks.
///
/// Reads take no lock; `index` guards which slot is whose, is held over no I/O but punching, and is taken last.
pub struct Cache {
    chunk_size: ChunkSize,
    data: File,
    index_file: File,
    slots: Box<[Slot]>,
    index: Mutex<Index>,
    /// Held while the index is written; taken before `index`.
    saving: Mutex<()>,
    /// Counts insertions: the clock by which "longest ago" is told.
    tick: AtomicU32,
    evicted: AtomicU64,
    corrupt: AtomicU64,
    refused: AtomicU64,
    foreseen: AtomicU64,
    wasted: AtomicU64,
    /// What is here may be the only copy there is.
    is_sole: AtomicBool,
    /// Set aside for when nothing is left here to be given back.
    reserve: Reserve,
}

struct Index {
    by_id: HashMap<ChunkId, u32>,
    records: Vec<Record>,
    /// Slots to use next, from the end.
    free: Vec<u32>,
    /// Slots whose chunk may go.
    loose: Loose,
    /// Slots emptied while someone was still reading them.
    condemned: Vec<u32>,
    /// Slots whose record on disk is out of date.
    unsaved: Vec<u32>,
    /// No more of the disk is to be taken.
    tight: bool,
}

impl Index {
    /// Pins what a slot holds, or lets go of it; whether that is a change.
    fn set_pinned(&mut self, slot: u32, pinned: bool) -> bool {
        let record = &mut self.records[slot as usize];
        if record.pinned == pinned {
            return false;
        }
        record.pinned = pinned;
        if pinned {
            self.loose.remove(slot);
        } else {
            self.loose.add(slot);
        }
        self.unsaved.push(slot);
        true
    }

    /// Forgets what a slot held.
    fn forget(&mut self, slot: u32) {
        let record = std::mem::replace(&mut self.records[slot as usize], Record::EMPTY);
        self.by_id.remove(&record.chunk);
        self.loose.remove(slot);
        self.unsaved.push(slot);
    }
}

impl Cache {
    /// Opens the cache in a directory, or begins one; shrinks or grows it to the configured size. What is pinned is not cut off.
    ///
    /// # Errors
    /// `Open`, or `InUse` when another process has it open.
    pub fn open(dir: &Path, config: &CacheConfig) -> Result<Self, CacheError> {
        let (data_path, index_path) = (dir.join("cache.data"), dir.join("cache.index"));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let open = |path: &Path| {
            options.open(path).map_err(|source| CacheError::Open { path: path.to_owned(), source })
        };
        let (data, index_file) = (open(&data_path)?, open(&index_path)?);
        lock_file(&index_file, &index_path)?;
        let index_failed = |source| CacheError::Open { path: index_path.clone(), source };
        let data_failed = |source| CacheError::Open { path: data_path.clone(), source };
        let header = encode_header(config.chunk_size, &config.owner);
        let mut found = vec![0; HEADER_BYTES];
        if index_file.read_exact_at(&mut found, 0).is_err() || found != header {
            data.set_len(0).map_err(data_failed)?;
            index_file.set_len(0).map_err(index_failed)?;
        }
        let data_bytes = data.metadata().map_err(data_failed)?.len();
        let found = stored_records(&index_file, data_bytes, config.chunk_size).map_err(index_failed)?;
        let slots = slots_for(config, found.len() as u64, pinned_end(&found));
        index_file
            .set_len((HEADER_BYTES + slots as usize * RECORD_BYTES) as u64)
            .and_then(|()| index_file.write_all_at(&header, 0))
            .map_err(index_failed)?;
        data.set_len(u64::from(slots) * config.chunk_size.bytes_u64()).map_err(data_failed)?;
        Ok(Self::of_files(dir, (data, index_file), config.chunk_size, slots, &found))
    }

    /// Opens a cache that is there, to read what it holds: it keeps its size, whatever that is, and begins no other.
    ///
    /// # Errors
    /// `NotThere`, also when it is of another owner; `InUse`, `Open`.
    pub fn open_as_it_is(dir: &Path, chunk_size: ChunkSize, owner: &[u8; 32]) -> Result<Self, CacheError> {
        let (data_path, index_path) = (dir.join("cache.data"), dir.join("cache.index"));
        let not_there = || CacheError::NotThere { path: dir.to_owned() };
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let open = |path: &Path| match options.open(path) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_there()),
            Err(source) => Err(CacheError::Open { path: path.to_owned(), source }),
        };
        let (data, index_file) = (open(&data_path)?, open(&index_path)?);
        lock_file(&index_file, &index_path)?;
        let failed = |source| CacheError::Open { path: index_path.clone(), source };
        let mut found = vec![0; HEADER_BYTES];
        if index_file.read_exact_at(&mut found, 0).is_err() || found != encode_header(chunk_size, owner) {
            return Err(not_there());
        }
        let data_bytes =
            data.metadata().map_err(|source| CacheError::Open { path: data_path, source })?.len();
        let found = stored_records(&index_file, data_bytes, chunk_size).map_err(failed)?;
        let slots = u32::try_from(found.len()).unwrap_or(0);
        Ok(Self::of_files(dir, (data, index_file), chunk_size, slots, &found))
    }

    /// What a cache in a directory was last noted to hold; nothing when there is none, or it is of another owner. Takes no lock, for
    /// who only looks is to be in nobody's way: a process that has it open may have gone on since.
    ///
    /// # Errors
    /// `Open`.
    pub fn noted(
        dir: &Path,
        chunk_size: ChunkSize,
        owner: &[u8; 32],
    ) -> Result<HashSet<ChunkId>, CacheError> {
        let (data_path, index_path) = (dir.join("cache.data"), dir.join("cache.index"));
        let (data, index) = match (File::open(&data_path), File::open(&index_path)) {
            (Ok(data), Ok(index)) => (data, index),
            (Err(error), _) | (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(HashSet::new());
            }
            (Err(source), _) => return Err(CacheError::Open { path: data_path, source }),
            (_, Err(source)) => return Err(CacheError::Open { path: index_path, source }),
        };
        let mut header = vec![0; HEADER_BYTES];
        if index.read_exact_at(&mut header, 0).is_err() || header != encode_header(chunk_size, owner) {
            return Ok(HashSet::new());
        }
        let records = data.metadata().and_then(|data| stored_records(&index, data.len(), chunk_size));
        let records = records.map_err(|source| CacheError::Open { path: index_path, source })?;
        let records = (0u32..).zip(&records).filter_map(|(slot, stored)| Record::decode(stored, slot));
        Ok(records.map(|record| record.chunk).collect())
    }

    /// A cache of so many slots, with what the records say that they hold.
    fn of_files(
        dir: &Path,
        (data, index_file): (File, File),
        chunk_size: ChunkSize,
        slots: u32,
        found: &[[u8; RECORD_BYTES]],
    ) -> Self {
        let mut cache = Self {
            chunk_size,
            data,
            index_file,
            slots: (0..slots).map(|_| Slot::default()).collect(),
            index: Mutex::new(Index {
                by_id: HashMap::new(),
                records: vec![Record::EMPTY; slots as usize],
                free: Vec::new(),
                loose: Loose::of_slots(slots as usize),
                condemned: Vec::new(),
                unsaved: Vec::new(),
                tight: false,
            }),
            saving: Mutex::new(()),
            tick: AtomicU32::new(1),
            evicted: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            foreseen: AtomicU64::new(0),
            wasted: AtomicU64::new(0),
            is_sole: AtomicBool::new(false),
            reserve: Reserve::in_directory(dir),
        };
        cache.load(found);
        cache
    }

    fn load(&mut self, found: &[[u8; RECORD_BYTES]]) {
        let index = self.index.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut newest = 0;
        for (slot, stored) in (0u32..).zip(found).take(self.slots.len()) {
            let Some(record) = Record::decode(stored, slot) else { continue };
            if index.by_id.contains_key(&record.chunk) {
                continue;
            }
            self.slots[slot as usize].occupy(false, false, record.used);
            index.by_id.insert(record.chunk, slot);
            index.records[slot as usize] = record;
            if !record.pinned {
                index.loose.add(slot);
            }
            newest = newest.max(record.used);
        }
        // Lowest slots first: neighbours in time become neighbours in the file.
        let slots = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        index.free = (0..slots).rev().filter(|slot| index.records[*slot as usize].chunk.is_zero()).collect();
        *self.tick.get_mut() = newest.wrapping_add(1);
    }

    /// Where a chunk is, if it is there.
    pub fn lookup(&self, id: &ChunkId) -> Option<SlotRef> {
        let index = self.lock();
        let slot = *index.by_id.get(id)?;
        Some(SlotRef { slot, generation: self.slots[slot as usize].generation() })
    }

    /// Reads part of a chunk. `id` is the chunk looked up: its first read in this process is checked against it.
    pub fn read(&self, at: SlotRef, id: &ChunkId, within: usize, buf: &mut [u8]) -> CacheRead {
        let Some(slot) = self.slots.get(at.slot as usize) else { return CacheRead::Miss };
        let Some(reading) = slot.enter(at.generation, self.tick.load(Ordering::Relaxed)) else {
            return CacheRead::Miss;
        };
        if reading.is_first() {
            self.foreseen.fetch_add(1, Ordering::Relaxed);
        }
        let offset = u64::from(at.slot) * self.chunk_size.bytes_u64();
        if reading.is_verified() {
            return match self.data.read_exact_at(buf, offset + within as u64) {
                Ok(()) => CacheRead::Hit,
                Err(_) => self.condemn(at.slot, id),
            };
        }
        let Some(chunk) = self.read_checked(&reading, at.slot, id) else { return CacheRead::Corrupt };
        let Some(part) = within.checked_add(buf.len()).and_then(|end| chunk.get(within..end)) else {
            return CacheRead::Miss;
        };
        buf.copy_from_slice(part);
        CacheRead::Hit
    }

    /// Reads a whole chunk that was not read in this process, and checks it; one that does not match is gone then.
    fn read_checked(&self, reading: &Reading<'_>, slot: u32, id: &ChunkId) -> Option<Vec<u8>> {
        let mut chunk = vec![0; self.chunk_size.bytes()];
        let read = self.data.read_exact_at(&mut chunk, u64::from(slot) * self.chunk_size.bytes_u64());
        if read.is_err() || ChunkId::of_chunk(&chunk) != *id {
            self.condemn(slot, id);
            return None;
        }
        reading.set_verified();
        Some(chunk)
    }

    /// Reads a whole chunk, if it is there and right.
    pub fn read_whole(&self, id: &ChunkId) -> Option<Vec<u8>> {
        let at = self.lookup(id)?;
        let mut chunk = vec![0; self.chunk_size.bytes()];
        (self.read(at, id, 0, &mut chunk) == CacheRead::Hit).then_some(chunk)
    }

    /// Keeps a chunk whose bytes are known to match its id. `None` when there is no place for it.
    pub fn insert(&self, id: ChunkId, chunk: &[u8]) -> Option<SlotRef> {
        self.keep(id, chunk, false)
    }

    /// Keeps a chunk that was fetched before anyone asked for it, as [`Cache::insert`] does.
    pub fn insert_unread(&self, id: ChunkId, chunk: &[u8]) -> Option<SlotRef> {
        self.keep(id, chunk, true)
    }

    fn keep(&self, id: ChunkId, chunk: &[u8], unread: bool) -> Option<SlotRef> {
        if chunk.len() != self.chunk_size.bytes() || id.is_zero() {
            return None;
        }
        let tick = self.tick.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let slot = {
            let mut index = self.lock();
            if let Some(slot) = index.by_id.get(&id) {
                self.slots[*slot as usize].set_used(tick);
                return Some(SlotRef { slot: *slot, generation: self.slots[*slot as usize].generation() });
            }
            if tick.is_multiple_of(SPACE_CHECK_INTERVAL) {
                index.tight = self.disk_is_tight();
            }
            self.take_slot(&mut index)
        };
        let Some(slot) = slot else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        // Nobody reads an unoccupied slot, and only we have it off the free list.
        let written = self.data.write_all_at(chunk, u64::from(slot) * self.chunk_size.bytes_u64());
        let mut index = self.lock();
        if written.is_err() || index.by_id.contains_key(&id) {
            index.tight |= written.is_err();
            index.free.push(slot);
            if written.is_err() {
                self.refused.fetch_add(1, Ordering::Relaxed);
                return None;
            }
            let slot = *index.by_id.get(&id)?;
            return Some(SlotRef { slot, generation: self.slots[slot as usize].generation() });
        }
        index.by_id.insert(id, slot);
        index.records[slot as usize] = Record { chunk: id, pinned: false, used: tick };
        index.unsaved.push(slot);
        let generation = self.slots[slot as usize].occupy(true, unread, tick);
        index.loose.add(slot);
        Some(SlotRef { slot, generation })
    }

    /// Pins or unpins chunks that are there; returns how many of them are.
    pub fn set_pinned(&self, ids: impl Iterator<Item = ChunkId>, pinned: bool) -> u64 {
        let mut index = self.lock();
        let mut found = 0;
        for id in ids {
            let Some(slot) = index.by_id.get(&id).copied() else { continue };
            found += 1;
            index.set_pinned(slot, pinned);
        }
        found
    }

    /// Pins those of some chunks that are there and not pinned; returns which.
    pub fn pin_more(&self, ids: &HashSet<ChunkId>) -> Vec<ChunkId> {
        let mut index = self.lock();
        let mut pinned = Vec::new();
        for id in ids {
            let Some(slot) = index.by_id.get(id).copied() else { continue };
            if index.set_pinned(slot, true) {
                pinned.push(*id);
            }
        }
        pinned
    }

    /// Lets go of all that is pinned but these chunks.
    pub fn unpin_all_but(&self, kept: &HashSet<ChunkId>) {
        let mut index = self.lock();
        for slot in (0u32..).take(self.slots.len()) {
            if !kept.contains(&index.records[slot as usize].chunk) {
                index.set_pinned(slot, false);
            }
        }
    }

    /// Has some chunks go before all others, unless they are pinned or read again: they are not needed any more, as far as is known.
    /// Not while what is here may be the only copy there is.
    pub fn let_go_first(&self, ids: &HashSet<ChunkId>) {
        if ids.is_empty() || self.is_sole() {
            return;
        }
        let mut index = self.lock();
        for id in ids {
            let Some(slot) = index.by_id.get(id).copied() else { continue };
            // Before the first insertion.
            self.slots[slot as usize].set_used(0);
            index.unsaved.push(slot);
        }
        index.loose.search_anew();
    }

    /// Whether a chunk is there; its content was not looked at.
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.lock().by_id.contains_key(id)
    }

    /// Whether a chunk is there, as far as it is looked at. Does not count as a use of it.
    pub fn has(&self, id: &ChunkId, look: Look) -> bool {
        let Some(at) = self.lookup(id) else { return false };
        if look == Look::Index {
            return true;
        }
        let Some(slot) = self.slots.get(at.slot as usize) else { return false };
        let Some(reading) = slot.enter(at.generation, slot.used()) else { return false };
        reading.is_verified() || self.read_checked(&reading, at.slot, id).is_some()
    }

    /// How many of these chunks are there.
    pub fn count(&self, ids: &[ChunkId]) -> u64 {
        let index = self.lock();
        ids.iter().filter(|id| index.by_id.contains_key(*id)).count() as u64
    }

    /// Whether what is here may be the only copy there is.
    pub fn is_sole(&self) -> bool {
        self.is_sole.load(Ordering::SeqCst)
    }

    /// Says whether what is here may be the only copy there is: disk space is not given back then.
    pub fn set_sole(&self, is_sole: bool) {
        self.is_sole.store(is_sole, Ordering::SeqCst);
    }

    /// Gives up to this many bytes of disk space back, of the chunks read longest ago; returns how many.
    pub fn give_back(&self, bytes: u64) -> u64 {
        if self.is_sole() {
            return 0;
        }
        let wanted = usize::try_from(bytes.div_ceil(self.chunk_size.bytes_u64())).unwrap_or(usize::MAX);
        let mut index = self.lock();
        index.tight = true;
        let emptied: Vec<u32> = std::iter::from_fn(|| self.evict(&mut index)).take(wanted).collect();
        for slot in &emptied {
            let offset = u64::from(*slot) * self.chunk_size.bytes_u64();
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // Where holes are not supported the space stays taken, and the overlay's write fails as it would have.
            let _ = fallocate(&self.data, flags, offset, self.chunk_size.bytes_u64());
        }
        let given = emptied.len() as u64 * self.chunk_size.bytes_u64();
        // At the front: used last, so that the space stays free as long as it can.
        index.free.splice(0..0, emptied);
        given
    }

    /// Sets disk space aside, until there are so many bytes of it: in place of what can be fetched again, if need be. Where there
    /// is no room for it, nor where the file system cannot, there is none.
    pub fn keep_reserve(&self, bytes: u64) {
        let kept = match self.reserve.fill_up(bytes) {
            Err(error) if is_full(&error) && self.give_back(bytes) > 0 => self.reserve.fill_up(bytes),
            kept => kept,
        };
        if let Err(error) = kept {
            tracing::info!(%error, "no disk space is set aside for when the disk is full");
        }
    }

    /// Gives up some of the disk space set aside; how many bytes.
    pub fn give_up_reserve(&self) -> u64 {
        self.reserve.give_up()
    }

    /// Looks how much space the disk has left, for whoever is about to keep a lot: it may have more than when it was last looked.
    pub fn look_for_space(&self) {
        let is_tight = self.disk_is_tight();
        self.lock().tight = is_tight;
    }

    /// Whether the disk has room for these chunks, beside what is left alone of it. Where that cannot be told there is.
    pub fn room_for(&self, wanted: &HashSet<ChunkId>) -> Room {
        let chunk_bytes = self.chunk_size.bytes_u64();
        let here = {
            let index = self.lock();
            wanted.iter().filter(|id| index.by_id.contains_key(*id)).count() as u64
        };
        let taken_bytes = self.data.metadata().map_or(u64::MAX, |found| found.blocks() * 512);
        let told = fstatvfs(&self.data).ok().filter(|disk| disk.f_blocks > 0);
        let left_bytes = told.map_or(u64::MAX, |disk| {
            disk.f_bavail.saturating_mul(disk.f_frsize).saturating_sub(bytes_kept_free(&disk))
        });
        Room {
            needed_bytes: (wanted.len() as u64 - here) * chunk_bytes,
            free_bytes: left_bytes.saturating_add(taken_bytes.saturating_sub(here * chunk_bytes)),
        }
    }

    /// Writes the index: a hint for the next process. Called now and then, and on drop.
    ///
    /// # Errors
    /// What the file system says; the cache goes on all the same.
    pub fn save_index(&self) -> io::Result<()> {
        // Whoever comes second counts on what the first is writing.
        let _one_at_a_time = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let records: Vec<(u32, Record)> = {
            let mut index = self.lock();
            let mut slots = std::mem::take(&mut index.unsaved);
            slots.sort_unstable();
            slots.dedup();
            slots
                .into_iter()
                .map(|slot| {
                    let used = self.slots[slot as usize].used();
                    (slot, Record { used, ..index.records[slot as usize] })
                })
                .collect()
        };
        let saved = records.chunk_by(|a, b| a.0 + 1 == b.0).try_for_each(|run| {
            let bytes: Vec<u8> = run.iter().flat_map(|(slot, record)| record.encode(*slot)).collect();
            self.index_file.write_all_at(&bytes, (HEADER_BYTES + run[0].0 as usize * RECORD_BYTES) as u64)
        });
        if saved.is_err() {
            self.lock().unsaved.extend(records.iter().map(|(slot, _)| slot));
        }
        saved
    }

    /// Makes what it holds durable, and whatever else is on its file system: the segments beside it as well.
    ///
    /// # Errors
    /// What the file system says.
    pub fn sync(&self) -> io::Result<()> {
        self.save_index()?;
        Ok(rustix::fs::syncfs(&self.data)?)
    }

    /// Counts since the cache was opened.
    pub fn stats(&self) -> CacheStats {
        let index = self.lock();
        CacheStats {
            occupied: index.by_id.len() as u64,
            slots: self.slots.len() as u64,
            pinned: index.records.iter().filter(|record| record.pinned).count() as u64,
            evicted: self.evicted.load(Ordering::Relaxed),
            corrupt: self.corrupt.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            foreseen: self.foreseen.load(Ordering::Relaxed),
            wasted: self.wasted.load(Ordering::Relaxed),
            unread: self.slots.iter().filter(|slot| slot.is_unread()).count() as u64,
        }
    }

    /// Whether it holds no chunk.
    pub fn is_empty(&self) -> bool {
        self.lock().by_id.is_empty()
    }

    /// Bytes per slot.
    pub fn chunk_size(&self) -> ChunkSize {
        self.chunk_size
    }

    fn condemn(&self, slot: u32, id: &ChunkId) -> CacheRead {
        let mut index = self.lock();
        if index.by_id.get(id) == Some(&slot) {
            index.forget(slot);
            index.condemned.push(slot);
            self.slots[slot as usize].condemn();
            self.corrupt.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(chunk = %id, "a cached chunk does not match its id; it will be fetched again");
        }
        CacheRead::Corrupt
    }

    fn take_slot(&self, index: &mut Index) -> Option<u32> {
        if !index.condemned.is_empty() {
            let (idle, busy) =
                index.condemned.drain(..).partition(|slot| self.slots[*slot as usize].is_idle());
            index.condemned = busy;
            index.free.extend::<Vec<u32>>(idle);
        }
        // On a tight disk an unused slot would take more of it: reuse the oldest one instead.
        let reused = if index.free.is_empty() || index.tight { self.evict(index) } else { None };
        reused.or_else(|| index.free.pop())
    }

    /// Empties the slot that was read longest ago of those that nobody reads, and returns it.
    fn evict(&self, index: &mut Index) -> Option<u32> {
        let used = |slot: u32| self.slots[slot as usize].used();
        for is_found in [true, false] {
            if !is_found {
                index.loose.search(self.tick.load(Ordering::Relaxed), used);
            }
            while let Some(slot) = index.loose.next(used) {
                let is_unread = self.slots[slot as usize].is_unread();
                if self.slots[slot as usize].vacate() {
                    self.wasted.fetch_add(u64::from(is_unread), Ordering::Relaxed);
                    self.evicted.fetch_add(1, Ordering::Relaxed);
                    index.forget(slot);
                    return Some(slot);
                }
            }
        }
        None
    }

    fn disk_is_tight(&self) -> bool {
        fstatvfs(&self.data)
            .is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) < bytes_kept_free(&disk))
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What of a disk is left alone, bytes.
fn bytes_kept_free(disk: &StatVfs) -> u64 {
    (disk.f_blocks / DISK_SHARE_KEPT_FREE).saturating_mul(disk.f_frsize).min(KEPT_FREE_MAX_BYTES)
}

/// The records of an index file, whatever they hold: as many as the data has slots for, however long the index is.
fn stored_records(
    index_file: &File,
    data_bytes: u64,
    chunk_size: ChunkSize,
) -> io::Result<Vec<[u8; RECORD_BYTES]>> {
    let records_bytes = index_file.metadata()?.len().saturating_sub(HEADER_BYTES as u64);
    let count = (records_bytes / RECORD_BYTES as u64).min(data_bytes / chunk_size.bytes_u64());
    let mut records = vec![[0; RECORD_BYTES]; usize::try_from(count).map_err(io::Error::other)?];
    index_file.read_exact_at(records.as_flattened_mut(), HEADER_BYTES as u64)?;
    Ok(records)
}

/// How many slots a cache gets that has `found` now, of which the first `pinned_end` must stay.
fn slots_for(config: &CacheConfig, found: u64, pinned_end: u64) -> u32 {
    let of_bytes = |bytes: u64| bytes / config.chunk_size.bytes_u64();
    let wanted = config.limit_bytes.map_or_else(|| found.max(of_bytes(DEFAULT_LIMIT_BYTES)), of_bytes);
    u32::try_from(wanted.max(pinned_end).max(1)).unwrap_or(u32::MAX).min(u32::MAX / 2)
}

/// The number of slots up to the last one that holds something pinned.
fn pinned_end(records: &[[u8; RECORD_BYTES]]) -> u64 {
    let is_pinned =
        |(slot, stored): (u32, _)| Record::decode(stored, slot).is_some_and(|record| record.pinned);
    let pinned: Vec<bool> = (0..).zip(records).map(is_pinned).collect();
    pinned.iter().rposition(|pinned| *pinned).map_or(0, |last| last as u64 + 1)
}

fn lock_file(index_file: &File, path: &Path) -> Result<(), CacheError> {
    match flock(index_file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(CacheError::InUse { path: path.to_owned() }),
        Err(error) => Err(CacheError::Open { path: path.to_owned(), source: error.into() }),
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        if let Err(error) = self.save_index() {
            tracing::warn!(%error, "the cache's index was not saved; some chunks will be fetched again");
        }
    }
}

#[cfg(test)]
mod tests;
