//! Sizes and positions that must not be mixed up.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::FormatError;
use crate::segment::SEGMENT_CHUNKS;

/// The unit disks are measured in, bytes (ATA and virtio sector).
pub const SECTOR_BYTES: u64 = 512;

/// The most segments one disk may have: 4 TiB at the default chunk size.
pub const MAX_SEGMENTS_PER_DISK: u32 = 65_536;

/// Bytes per chunk: a power of two, 4 KiB to 4 MiB; 64 KiB unless the manifest says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct ChunkSize {
    log2: u8,
}

impl ChunkSize {
    /// 64 KiB: see DESIGN notes in `docs/design/` for the measurements behind it.
    pub const DEFAULT: Self = Self { log2: 16 };
    /// The largest: 4 MiB.
    pub const MAX: Self = Self { log2: Self::MAX_LOG2 };
    const MIN_LOG2: u8 = 12;
    const MAX_LOG2: u8 = 22;

    /// Takes a size in bytes.
    ///
    /// # Errors
    /// `Field` when it is no power of two from 4 KiB to 4 MiB.
    pub fn new(bytes: u64) -> Result<Self, FormatError> {
        let log2 = u8::try_from(bytes.trailing_zeros()).unwrap_or(0);
        if !bytes.is_power_of_two() || !(Self::MIN_LOG2..=Self::MAX_LOG2).contains(&log2) {
            return Err(FormatError::field(
                "chunk size",
                "chunk_size_bytes",
                bytes,
                "a power of two from 4096 to 4194304",
            ));
        }
        Ok(Self { log2 })
    }

    /// Takes the binary logarithm of the size, as binary formats store it.
    ///
    /// # Errors
    /// `Field` when it is not from 12 to 22.
    pub fn from_log2(log2: u8) -> Result<Self, FormatError> {
        if !(Self::MIN_LOG2..=Self::MAX_LOG2).contains(&log2) {
            return Err(FormatError::field("chunk size", "chunk_size_log2", log2, "from 12 to 22"));
        }
        Ok(Self { log2 })
    }

    /// Bytes per chunk.
    pub fn bytes(self) -> usize {
        1 << self.log2
    }

    /// Bytes per chunk, for arithmetic on disk offsets.
    pub fn bytes_u64(self) -> u64 {
        1 << self.log2
    }

    /// Binary logarithm of the size.
    pub fn log2(self) -> u8 {
        self.log2
    }

    /// Bytes of disk one segment describes.
    pub fn segment_span_bytes(self) -> u64 {
        self.bytes_u64() * SEGMENT_CHUNKS as u64
    }
}

impl TryFrom<u64> for ChunkSize {
    type Error = FormatError;
    fn try_from(bytes: u64) -> Result<Self, FormatError> {
        Self::new(bytes)
    }
}

impl From<ChunkSize> for u64 {
    fn from(size: ChunkSize) -> u64 {
        size.bytes_u64()
    }
}

/// Bytes of a virtual disk: at least one sector, a multiple of 512.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct DiskSize(u64);

impl DiskSize {
    /// Takes a size in bytes.
    ///
    /// # Errors
    /// `Field` when it is zero or no multiple of 512.
    pub fn new(bytes: u64) -> Result<Self, FormatError> {
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(FormatError::field("disk", "size_bytes", bytes, "a multiple of 512 above zero"));
        }
        Ok(Self(bytes))
    }

    /// Bytes of the disk.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// Chunks that cover the disk; the last one is padded with zeros.
    pub fn chunks(self, chunk_size: ChunkSize) -> u64 {
        self.0.div_ceil(chunk_size.bytes_u64())
    }

    /// Segments that cover the disk; the last one is padded with zero chunks.
    ///
    /// # Errors
    /// `Field` above [`MAX_SEGMENTS_PER_DISK`].
    pub fn segments(self, chunk_size: ChunkSize) -> Result<u32, FormatError> {
        let segments = self.0.div_ceil(chunk_size.segment_span_bytes());
        u32::try_from(segments).ok().filter(|n| *n <= MAX_SEGMENTS_PER_DISK).ok_or_else(|| {
            let limit = u64::from(MAX_SEGMENTS_PER_DISK).saturating_mul(chunk_size.segment_span_bytes());
            FormatError::field("disk", "size_bytes", self.0, format!("at most {limit} at this chunk size"))
        })
    }
}

impl TryFrom<u64> for DiskSize {
    type Error = FormatError;
    fn try_from(bytes: u64) -> Result<Self, FormatError> {
        Self::new(bytes)
    }
}

impl From<DiskSize> for u64 {
    fn from(size: DiskSize) -> u64 {
        size.0
    }
}

/// Position of a chunk on its disk, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkIndex(pub u64);

/// Position of a segment on its disk, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentIndex(pub u32);

impl ChunkIndex {
    /// The chunk that holds a byte of the disk.
    pub fn containing(offset_bytes: u64, chunk_size: ChunkSize) -> Self {
        Self(offset_bytes >> chunk_size.log2())
    }

    /// Offset of the chunk's first byte on the disk; the end of all disks for an index beyond them.
    pub fn offset_bytes(self, chunk_size: ChunkSize) -> u64 {
        self.0.saturating_mul(chunk_size.bytes_u64())
    }

    /// The segment the chunk is in, and its position there (0 to 1023).
    pub fn in_segment(self) -> (SegmentIndex, usize) {
        let chunks = SEGMENT_CHUNKS as u64;
        // A disk has at most MAX_SEGMENTS_PER_DISK segments; saturating keeps a foreign index out of range, not wrapped.
        let segment = u32::try_from(self.0 / chunks).unwrap_or(u32::MAX);
        (SegmentIndex(segment), usize::try_from(self.0 % chunks).unwrap_or(0))
    }
}

impl SegmentIndex {
    /// The segment's first chunk.
    pub fn first_chunk(self) -> ChunkIndex {
        ChunkIndex(u64::from(self.0) * SEGMENT_CHUNKS as u64)
    }
}

impl fmt::Display for ChunkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for SegmentIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_size_takes_powers_of_two_in_range() {
        assert_eq!(ChunkSize::new(65_536).unwrap(), ChunkSize::DEFAULT);
        for bytes in [0, 1, 2048, 65_535, 8 << 20, u64::MAX] {
            assert!(ChunkSize::new(bytes).is_err(), "{bytes}");
        }
    }

    #[test]
    fn disk_size_counts_partial_chunks_and_segments() {
        let size = DiskSize::new(64 * 1024 * 1024 + 512).unwrap();
        assert_eq!(size.chunks(ChunkSize::DEFAULT), 1025);
        assert_eq!(size.segments(ChunkSize::DEFAULT).unwrap(), 2);
        assert!(DiskSize::new(0).is_err());
        assert!(DiskSize::new(1000).is_err());
        assert!(DiskSize::new(!511u64).unwrap().segments(ChunkSize::DEFAULT).is_err());
    }

    #[test]
    fn chunk_index_splits_into_segment_and_position() {
        assert_eq!(ChunkIndex(1025).in_segment(), (SegmentIndex(1), 1));
        assert_eq!(SegmentIndex(1).first_chunk(), ChunkIndex(1024));
        assert_eq!(ChunkIndex::containing(65_536, ChunkSize::DEFAULT), ChunkIndex(1));
        assert_eq!(ChunkIndex(3).offset_bytes(ChunkSize::DEFAULT), 196_608);
    }

    #[test]
    fn an_index_beyond_all_disks_stays_beyond_them() {
        assert_eq!(ChunkIndex(u64::MAX).offset_bytes(ChunkSize::DEFAULT), u64::MAX);
        assert_eq!(ChunkIndex(u64::MAX).in_segment().0, SegmentIndex(u32::MAX));
    }
}
