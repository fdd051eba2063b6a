//! The map: where each block's content is, two bits a block.
//!
//! On disk, after the header, one 512-byte sector for each 1,984 blocks:
//!
//! | at  | len | field    | values                                                              |
//! |-----|-----|----------|---------------------------------------------------------------------|
//! |   0 | 496 | states   | 2 bits a block, lowest first: 0 base, 1 data, 2 zero                |
//! | 496 |  4  | sector   | this sector's position                                              |
//! | 500 |  8  | nonce    | the overlay's                                                       |
//! | 508 |  4  | checksum | CRC-32 of bytes 0 to 507                                            |
//!
//! A sector of zeros only was never written: all base. Disks write 512-byte sectors whole, so after a power cut each
//! sector is as before or as after; a mixture of old and new sectors is harmless, because a state only reaches the
//! disk after the data it promises.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::OverlayError;
use super::block::BlockState;

/// Bytes of a map sector: the unit disks write whole.
pub(super) const SECTOR_BYTES: usize = 512;

const BLOCKS_PER_WORD: u64 = 32;
const WORDS_PER_SECTOR: usize = 62;
const STATE_BYTES: usize = WORDS_PER_SECTOR * 8;

/// The states of all blocks, in memory. Reads and writes take no lock.
pub(super) struct BlockMap {
    blocks: u64,
    words: Box<[AtomicU64]>,
    /// One bit a sector: changed since it was last collected for writing.
    changed: Box<[AtomicU64]>,
    /// How many are between setting a state and marking its sector.
    marking: AtomicUsize,
}

/// A sector's bytes as collected for writing.
pub(super) struct MapSector {
    pub(super) at: usize,
    pub(super) bytes: [u8; SECTOR_BYTES],
}

impl BlockMap {
    pub(super) fn new(blocks: u64) -> Self {
        let sectors = Self::sectors(blocks);
        Self {
            blocks,
            words: (0..sectors * WORDS_PER_SECTOR).map(|_| AtomicU64::new(0)).collect(),
            changed: (0..sectors.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            marking: AtomicUsize::new(0),
        }
    }

    /// Sectors that describe this many blocks.
    pub(super) fn sectors(blocks: u64) -> usize {
        let per_sector = BLOCKS_PER_WORD * WORDS_PER_SECTOR as u64;
        usize::try_from(blocks.div_ceil(per_sector)).unwrap_or(usize::MAX)
    }

    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The state of a block; base past the end.
    pub(super) fn get(&self, block: u64) -> BlockState {
        let (word, shift) = position(block);
        let bits = self.words.get(word).map_or(0, |word| word.load(Ordering::Acquire) >> shift & 0b11);
        state_of(bits)
    }

    /// The state of a block and how many blocks from it on, up to `end`, have the same.
    pub(super) fn run(&self, block: u64, end: u64) -> (BlockState, u64) {
        let state = self.get(block);
        let pattern = bits_of(state) * 0x5555_5555_5555_5555;
        let mut at = block + 1;
        while at < end {
            let (word, shift) = position(at);
            let Some(word) = self.words.get(word) else { break };
            let differing = (word.load(Ordering::Acquire) ^ pattern) >> shift;
            let same = u64::from(differing.trailing_zeros()) / 2;
            let left_in_word = BLOCKS_PER_WORD - at % BLOCKS_PER_WORD;
            at += same.min(left_in_word);
            if same < left_in_word {
                break;
            }
        }
        (state, at.min(end) - block)
    }

    /// Sets the state of a range of blocks. The sectors of what has another state from now on are marked when this returns, whoever
    /// changed it: who writes what somebody else is about to mark may flush before that.
    pub(super) fn set(&self, blocks: std::ops::Range<u64>, state: BlockState) {
        let mut block = blocks.start;
        let end = blocks.end.min(self.blocks);
        while block < end {
            let (word, shift) = position(block);
            let count = (BLOCKS_PER_WORD - block % BLOCKS_PER_WORD).min(end - block);
            let mask = (if count == BLOCKS_PER_WORD { u64::MAX } else { (1 << (count * 2)) - 1 }) << shift;
            let value = (bits_of(state) * 0x5555_5555_5555_5555) & mask;
            let sector = word / WORDS_PER_SECTOR;
            if self.words[word].load(Ordering::SeqCst) & mask == value {
                // Whoever made it so has counted itself before, and counts itself out after its mark.
                if self.marking.load(Ordering::SeqCst) > 0 {
                    self.mark(sector);
                }
            } else {
                self.marking.fetch_add(1, Ordering::SeqCst);
                let change = |old: u64| Some(old & !mask | value);
                let _ = self.words[word].fetch_update(Ordering::SeqCst, Ordering::SeqCst, change);
                // After the state, so that a collector that misses the state finds the mark next time.
                self.mark(sector);
                self.marking.fetch_sub(1, Ordering::SeqCst);
            }
            block += count;
        }
    }

    fn mark(&self, sector: usize) {
        self.changed[sector / 64].fetch_or(1 << (sector % 64), Ordering::SeqCst);
    }

    /// Takes copies of the changed sectors and clears their marks.
    pub(super) fn collect_changed(&self, nonce: u64) -> Vec<MapSector> {
        let mut sectors = Vec::new();
        for (group, marks) in self.changed.iter().enumerate() {
            if marks.load(Ordering::SeqCst) == 0 {
                continue;
            }
            // Cleared before copying: a state set meanwhile is marked again.
            let mut marks = marks.swap(0, Ordering::SeqCst);
            while marks != 0 {
                let at = group * 64 + marks.trailing_zeros() as usize;
                marks &= marks - 1;
                sectors.push(MapSector { at, bytes: self.encode_sector(at, nonce) });
            }
        }
        sectors
    }

    /// Marks sectors that were collected as changed: they were not written after all.
    pub(super) fn mark_changed(&self, sectors: &[MapSector]) {
        sectors.iter().for_each(|sector| self.mark(sector.at));
    }

    fn encode_sector(&self, at: usize, nonce: u64) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        let words = &self.words[at * WORDS_PER_SECTOR..(at + 1) * WORDS_PER_SECTOR];
        for (target, word) in bytes.chunks_exact_mut(8).zip(words) {
            target.copy_from_slice(&word.load(Ordering::SeqCst).to_le_bytes());
        }
        let sector = u32::try_from(at).unwrap_or(u32::MAX);
        bytes[STATE_BYTES..STATE_BYTES + 4].copy_from_slice(&sector.to_le_bytes());
        bytes[STATE_BYTES + 4..STATE_BYTES + 12].copy_from_slice(&nonce.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..SECTOR_BYTES - 4]);
        bytes[SECTOR_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Takes a sector's states from its bytes on disk.
    pub(super) fn load_sector(&self, sector: &MapSector, nonce: u64, file: &str) -> Result<(), OverlayError> {
        let bytes = &sector.bytes;
        if chunk_format::is_zero(bytes) {
            return Ok(());
        }
        let damaged = |reason: &str| OverlayError::Damaged {
            file: file.to_owned(),
            reason: format!("sector {} of its map {reason}", sector.at),
        };
        let (states, tail) = bytes.split_at(STATE_BYTES);
        if crc32fast::hash(&bytes[..SECTOR_BYTES - 4]).to_le_bytes() != tail[12..] {
            return Err(damaged("has a wrong checksum"));
        }
        if tail[..4] != u32::try_from(sector.at).unwrap_or(u32::MAX).to_le_bytes()
            || tail[4..12] != nonce.to_le_bytes()
        {
            return Err(damaged("belongs to another place"));
        }
        let words = &self.words[sector.at * WORDS_PER_SECTOR..];
        for (word, stored) in words.iter().zip(states.as_chunks::<8>().0) {
            let value = u64::from_le_bytes(*stored);
            if value & value >> 1 & 0x5555_5555_5555_5555 != 0 {
                return Err(damaged("holds an unknown block state"));
            }
            word.store(value, Ordering::Release);
        }
        Ok(())
    }
}

fn position(block: u64) -> (usize, u64) {
    (usize::try_from(block / BLOCKS_PER_WORD).unwrap_or(usize::MAX), block % BLOCKS_PER_WORD * 2)
}

fn bits_of(state: BlockState) -> u64 {
    match state {
        BlockState::Base => 0,
        BlockState::Data => 1,
        BlockState::Zero => 2,
    }
}

fn state_of(bits: u64) -> BlockState {
    match bits {
        0 => BlockState::Base,
        1 => BlockState::Data,
        _ => BlockState::Zero,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state() -> impl Strategy<Value = BlockState> {
        prop_oneof![Just(BlockState::Base), Just(BlockState::Data), Just(BlockState::Zero)]
    }

    proptest! {
        #[test]
        fn behaves_as_an_array_of_states(
            writes in prop::collection::vec((0u64..5000, 1u64..3000, state()), 1..20),
        ) {
            let blocks = 5000;
            let map = BlockMap::new(blocks);
            let mut model = vec![BlockState::Base; 5000];
            for (start, len, state) in writes {
                let end = (start + len).min(blocks);
                map.set(start..end, state);
                for block in start..end {
                    model[usize::try_from(block).unwrap()] = state;
                }
            }
            let mut at = 0;
            while at < blocks {
                let (state, len) = map.run(at, blocks);
                let from = usize::try_from(at).unwrap();
                let to = usize::try_from(at + len).unwrap();
                prop_assert!(model[from..to].iter().all(|other| *other == state));
                prop_assert!(to == model.len() || model[to] != state);
                at += len;
            }

            let reloaded = BlockMap::new(blocks);
            for sector in map.collect_changed(9) {
                reloaded.load_sector(&sector, 9, "map").unwrap();
            }
            for block in 0..blocks {
                prop_assert_eq!(reloaded.get(block), map.get(block));
            }
            prop_assert!(map.collect_changed(9).is_empty());
        }
    }

    #[test]
    fn a_damaged_or_foreign_sector_is_refused() {
        let map = BlockMap::new(4000);
        map.set(2000..2100, BlockState::Data);
        let sector = map.collect_changed(9).pop().unwrap();
        assert_eq!(sector.at, 1);
        assert!(map.load_sector(&MapSector { at: 0, bytes: sector.bytes }, 9, "map").is_err());
        assert!(map.load_sector(&MapSector { at: 1, bytes: sector.bytes }, 8, "map").is_err());
        for byte in 0..SECTOR_BYTES {
            let mut bytes = sector.bytes;
            bytes[byte] ^= 4;
            assert!(map.load_sector(&MapSector { at: 1, bytes }, 9, "map").is_err(), "{byte}");
        }
        map.load_sector(&sector, 9, "map").unwrap();
    }

    #[test]
    fn setting_the_same_state_again_changes_nothing_to_write() {
        let map = BlockMap::new(100);
        map.set(5..6, BlockState::Data);
        assert_eq!(map.collect_changed(1).len(), 1);
        map.set(5..6, BlockState::Data);
        assert!(map.collect_changed(1).is_empty());
    }

    /// Two write the same block at once, and the second one flushes when it is done.
    #[test]
    fn a_state_that_somebody_else_sets_is_marked_when_who_finds_it_goes_on() {
        const ROUNDS: u64 = 20_000;
        let map = BlockMap::new(ROUNDS);
        let (at, ready) = (AtomicU64::new(0), AtomicU64::new(0));
        let mut lost = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for block in 0..ROUNDS {
                    ready.fetch_add(1, Ordering::SeqCst);
                    while at.load(Ordering::SeqCst) == block {
                        std::hint::spin_loop();
                    }
                    map.set(block..block + 1, BlockState::Data);
                }
            });
            let flushed = BlockMap::new(ROUNDS);
            for block in 0..ROUNDS {
                while ready.load(Ordering::SeqCst) == block {
                    std::hint::spin_loop();
                }
                at.fetch_add(1, Ordering::SeqCst);
                map.set(block..block + 1, BlockState::Data);
                for sector in map.collect_changed(9) {
                    flushed.load_sector(&sector, 9, "map").unwrap();
                }
                if flushed.get(block) != BlockState::Data {
                    lost.push(block);
                }
            }
        });
        assert_eq!(lost, [0; 0]);
    }
}
