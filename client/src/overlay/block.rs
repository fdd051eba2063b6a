//! Blocks: the unit of copy-on-write.

use std::ops::Range;

/// Bytes per block: a page, and the block of the file systems guests use, so that nearly every write is whole blocks.
pub const BLOCK_BYTES: u64 = 4096;

/// Position of a block on its disk, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockIndex(pub u64);

impl BlockIndex {
    /// The block that holds a byte of the disk.
    pub fn containing(offset_bytes: u64) -> Self {
        Self(offset_bytes / BLOCK_BYTES)
    }

    /// Offset of the block's first byte on the disk.
    pub fn offset_bytes(self) -> u64 {
        self.0 * BLOCK_BYTES
    }
}

/// The blocks a byte range touches, partly or wholly.
pub fn blocks_touching(bytes: &Range<u64>) -> Range<u64> {
    if bytes.is_empty() {
        return 0..0;
    }
    bytes.start / BLOCK_BYTES..bytes.end.div_ceil(BLOCK_BYTES)
}

/// The blocks that lie wholly in a byte range.
pub fn blocks_inside(bytes: &Range<u64>) -> Range<u64> {
    let start = bytes.start.div_ceil(BLOCK_BYTES);
    start..(bytes.end / BLOCK_BYTES).max(start)
}

/// Where a block's content is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// Below: not written since this overlay began.
    Base,
    /// In this overlay's data file.
    Data,
    /// Nowhere: written or discarded as zeros.
    Zero,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_bytes_touch_and_hold_blocks() {
        assert_eq!(blocks_touching(&(0..1)), 0..1);
        assert_eq!(blocks_touching(&(4095..4097)), 0..2);
        assert_eq!(blocks_touching(&(10..10)), 0..0);
        assert_eq!(blocks_inside(&(0..8192)), 0..2);
        assert_eq!(blocks_inside(&(1..8191)), 1..1);
        assert_eq!(blocks_inside(&(1..8192)), 1..2);
    }
}
