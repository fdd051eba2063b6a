//! The index file: which chunk each slot held. A hint: every chunk is checked against its id when a process first
//! reads it, so a stale, torn or foreign record can only cost a fetch.
//!
//! A header of 4 KiB, then 64 bytes a slot:
//!
//! | at | len | field     | values                                       |
//! |----|-----|-----------|----------------------------------------------|
//! |  0 | 32  | chunk     | the id of what the slot holds; zeros: empty  |
//! | 32 |  4  | flags     | bit 0: pinned                                |
//! | 36 |  4  | used      | when it was last read, in insertions         |
//! | 40 |  4  | slot      | this slot's position                         |
//! | 44 | 16  | reserved  | 0                                            |
//! | 60 |  4  | checksum  | CRC-32 of bytes 0 to 59                      |
//!
//! Header:
//!
//! | at   | len | field           | values                                    |
//! |------|-----|-----------------|-------------------------------------------|
//! |    0 |  8  | magic           | `SATCACH\x1a`                             |
//! |    8 |  2  | version         | 1                                         |
//! |   10 |  1  | chunk_size_log2 | bytes per slot                            |
//! |   16 | 32  | owner           | whose cache it is                         |
//! | 4092 |  4  | checksum        | CRC-32 of bytes 0 to 4091                 |

use chunk_format::{ChunkId, ChunkSize, ID_BYTES};

pub(super) const HEADER_BYTES: usize = 4096;
pub(super) const RECORD_BYTES: usize = 64;

const MAGIC: &[u8; 8] = b"SATCACH\x1a";
const VERSION: u16 = 1;
const PINNED: u32 = 1;

/// What the index says of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) chunk: ChunkId,
    pub(super) pinned: bool,
    pub(super) used: u32,
}

impl Record {
    pub(super) const EMPTY: Self = Self { chunk: ChunkId::ZERO, pinned: false, used: 0 };

    pub(super) fn encode(&self, slot: u32) -> [u8; RECORD_BYTES] {
        let mut bytes = [0; RECORD_BYTES];
        bytes[..ID_BYTES].copy_from_slice(self.chunk.as_bytes());
        bytes[32..36].copy_from_slice(&(if self.pinned { PINNED } else { 0 }).to_le_bytes());
        bytes[36..40].copy_from_slice(&self.used.to_le_bytes());
        bytes[40..44].copy_from_slice(&slot.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..RECORD_BYTES - 4]);
        bytes[RECORD_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The record, or `None` when the slot is empty or the bytes are not this slot's record.
    pub(super) fn decode(bytes: &[u8; RECORD_BYTES], slot: u32) -> Option<Self> {
        let checksum = crc32fast::hash(&bytes[..RECORD_BYTES - 4]).to_le_bytes();
        let chunk = ChunkId::from_bytes(bytes[..ID_BYTES].try_into().ok()?);
        let valid =
            bytes[RECORD_BYTES - 4..] == checksum && bytes[40..44] == slot.to_le_bytes() && !chunk.is_zero();
        let number = |at: usize| Some(u32::from_le_bytes(bytes[at..at + 4].try_into().ok()?));
        valid.then_some(Self { chunk, pinned: number(32)? & PINNED != 0, used: number(36)? })
    }
}

pub(super) fn encode_header(chunk_size: ChunkSize, owner: &[u8; 32]) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..10].copy_from_slice(&VERSION.to_le_bytes());
    bytes[10] = chunk_size.log2();
    bytes[16..48].copy_from_slice(owner);
    let checksum = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
    bytes[HEADER_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_at_its_own_slot_only() {
        let record = Record { chunk: ChunkId::of(b"a"), pinned: true, used: 9 };
        let bytes = record.encode(5);
        assert_eq!(Record::decode(&bytes, 5), Some(record));
        assert_eq!(Record::decode(&bytes, 6), None);
        assert_eq!(Record::decode(&Record::EMPTY.encode(5), 5), None);
        assert_eq!(Record::decode(&[0; RECORD_BYTES], 0), None);
        for at in 0..RECORD_BYTES {
            let mut flipped = bytes;
            flipped[at] ^= 2;
            assert_eq!(Record::decode(&flipped, 5), None, "byte {at}");
        }
    }
}
