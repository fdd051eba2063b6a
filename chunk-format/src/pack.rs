//! Packs: immutable files of frames, the unit of upload and storage.
//!
//! ```text
//! header (16)  frames, back to back  table (36 each)  trailer (64)
//! ```
//!
//! Header:
//!
//! | at | len | field           | values                                        |
//! |----|-----|-----------------|-----------------------------------------------|
//! |  0 |  8  | magic           | `SATPACK\x1a`                                 |
//! |  8 |  2  | version         | 1                                             |
//! | 10 |  1  | chunk_size_log2 | 12 to 22: every frame holds one whole chunk   |
//! | 11 |  5  | reserved        | 0                                             |
//!
//! Table entry, in the order of the frames; a frame starts where the one before it ends:
//!
//! | at | len | field     | values                                 |
//! |----|-----|-----------|----------------------------------------|
//! |  0 | 32  | chunk id  | once in a pack, never the zero chunk's |
//! | 32 |  4  | frame_len | bytes, 2 to chunk size + 1             |
//!
//! Trailer, the last 64 bytes:
//!
//! | at | len | field           | values                                                     |
//! |----|-----|-----------------|------------------------------------------------------------|
//! |  0 |  8  | frames_len      | bytes of all frames                                        |
//! |  8 |  4  | chunks          | entries in the table, 1 to [`pack_chunks_max`]             |
//! | 12 |  2  | version         | 1                                                          |
//! | 14 |  1  | chunk_size_log2 | as in the header                                           |
//! | 15 |  9  | reserved        | 0                                                          |
//! | 24 | 32  | checksum        | SHA-256 of the table and of trailer bytes 0 to 23          |
//! | 56 |  8  | magic           | `SATPEND\x1a`                                              |
//!
//! Numbers are little-endian. The pack's id is the SHA-256 of the whole file.

use std::collections::HashSet;
use std::ops::Range;

use crate::digest::sha256;
use crate::error::FormatError;
use crate::frame::{FrameDecoder, FrameEncoder, frame_len_max};
use crate::id::{ChunkId, ID_BYTES, PackId, is_zero};
use crate::reader::Reader;
use crate::units::ChunkSize;

const WHAT: &str = "pack";
const HEADER_MAGIC: &[u8; 8] = b"SATPACK\x1a";
const TRAILER_MAGIC: &[u8; 8] = b"SATPEND\x1a";
const VERSION: u16 = 1;
const ENTRY_BYTES: usize = ID_BYTES + 4;
const CHECKED_TRAILER_BYTES: usize = 24;

/// Bytes before the first frame.
pub const PACK_HEADER_BYTES: usize = 16;
/// Bytes after the table.
pub const PACK_TRAILER_BYTES: usize = 64;
/// The size at which a writer ends a pack, bytes: 50 packs for a 700 MB image.
pub const PACK_TARGET_BYTES: usize = 16 << 20;
/// The longest pack anyone accepts, bytes. A pack at its target plus one raw chunk of the largest size and a full
/// table stays below it.
pub const MAX_PACK_BYTES: usize = 32 << 20;
/// The most chunks in a pack of any chunk size; keeps the table under 600 KiB.
pub const MAX_PACK_CHUNKS: usize = 16_384;
/// The most bytes the chunks of one pack may have together: what checking an upload can cost, however well it compresses.
pub const MAX_PACK_PAYLOAD_BYTES: usize = 1 << 30;

/// The most chunks in a pack of this chunk size: [`MAX_PACK_CHUNKS`] and [`MAX_PACK_PAYLOAD_BYTES`] both hold.
pub fn pack_chunks_max(chunk_size: ChunkSize) -> usize {
    MAX_PACK_CHUNKS.min(MAX_PACK_PAYLOAD_BYTES / chunk_size.bytes())
}

/// One frame's place in its pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackEntry {
    /// The chunk the frame holds.
    pub chunk: ChunkId,
    /// Offset of the frame in the pack file, bytes.
    pub offset: u32,
    /// Length of the frame, bytes.
    pub frame_len: u32,
}

impl PackEntry {
    /// Where the frame lies in the pack file.
    pub fn range(&self) -> Range<usize> {
        let start = self.offset as usize;
        start..start.saturating_add(self.frame_len as usize)
    }
}

/// Writes a pack in memory, frame by frame.
pub struct PackBuilder {
    chunk_size: ChunkSize,
    bytes: Vec<u8>,
    entries: Vec<PackEntry>,
    chunks: HashSet<ChunkId>,
}

/// A finished pack.
#[derive(Debug)]
pub struct SealedPack {
    /// The pack's name.
    pub id: PackId,
    /// The pack file.
    pub bytes: Vec<u8>,
    /// What is in it, in file order.
    pub entries: Vec<PackEntry>,
}

impl PackBuilder {
    /// Starts an empty pack for chunks of one size.
    pub fn new(chunk_size: ChunkSize) -> Self {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(HEADER_MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.push(chunk_size.log2());
        bytes.extend_from_slice(&[0; 5]);
        Self { chunk_size, bytes, entries: Vec::new(), chunks: HashSet::new() }
    }

    /// Adds one chunk under the id the caller computed for it; one that is there already is not added again.
    ///
    /// # Errors
    /// `Field` for the zero chunk, a chunk of another size, or a full pack; `Compress` when zstd fails. The pack is then
    /// as it was.
    pub fn add(&mut self, id: ChunkId, chunk: &[u8], encoder: &mut FrameEncoder) -> Result<(), FormatError> {
        if id.is_zero() || is_zero(chunk) {
            return Err(FormatError::field(WHAT, "chunk", "the zero chunk", "a stored chunk"));
        }
        if chunk.len() != self.chunk_size.bytes() {
            return Err(FormatError::field(WHAT, "chunk", chunk.len(), self.chunk_size.bytes()));
        }
        if self.chunks.contains(&id) {
            return Ok(());
        }
        if self.is_full() {
            return Err(FormatError::field(
                WHAT,
                "chunks",
                self.entries.len(),
                "below its limits before adding",
            ));
        }
        let offset = u32_field("offset", self.bytes.len())?;
        let frame_len = u32_field("frame_len", encoder.encode_to(chunk, &mut self.bytes)?)?;
        self.entries.push(PackEntry { chunk: id, offset, frame_len });
        self.chunks.insert(id);
        Ok(())
    }

    /// Whether the pack has reached its target size and must be sealed.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= PACK_TARGET_BYTES || self.entries.len() >= pack_chunks_max(self.chunk_size)
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of the frames so far, with the header.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Writes table and trailer and names the pack. `None` when it is empty: there are no empty packs.
    pub fn seal(mut self) -> Option<SealedPack> {
        let chunks = u32::try_from(self.entries.len()).ok().filter(|chunks| *chunks > 0)?;
        let frames_len = (self.bytes.len() - PACK_HEADER_BYTES) as u64;
        let table_start = self.bytes.len();
        for entry in &self.entries {
            self.bytes.extend_from_slice(entry.chunk.as_bytes());
            self.bytes.extend_from_slice(&entry.frame_len.to_le_bytes());
        }
        self.bytes.extend_from_slice(&frames_len.to_le_bytes());
        self.bytes.extend_from_slice(&chunks.to_le_bytes());
        self.bytes.extend_from_slice(&VERSION.to_le_bytes());
        self.bytes.push(self.chunk_size.log2());
        self.bytes.extend_from_slice(&[0; 9]);
        let checksum = sha256(&self.bytes[table_start..]);
        self.bytes.extend_from_slice(&checksum);
        self.bytes.extend_from_slice(TRAILER_MAGIC);
        Some(SealedPack { id: PackId::of(&self.bytes), bytes: self.bytes, entries: self.entries })
    }
}

/// The last 64 bytes of a pack, read but not yet checked against the table: tells how much to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackTrailer {
    chunk_size: ChunkSize,
    chunks: u32,
    frames_len: u64,
}

impl PackTrailer {
    /// Reads the trailer off the end of `tail`, the last bytes of a pack file of `pack_len` bytes.
    ///
    /// # Errors
    /// `Truncated`, `BadMagic`, `UnsupportedVersion`, `TooLong`, or `Field` when a value is out of range or the parts
    /// do not add up to the file's length.
    pub fn decode(tail: &[u8], pack_len: u64) -> Result<Self, FormatError> {
        if pack_len > MAX_PACK_BYTES as u64 {
            let limit_bytes = MAX_PACK_BYTES as u64;
            return Err(FormatError::TooLong { what: WHAT, len_bytes: pack_len, limit_bytes });
        }
        let Some(start) = tail.len().checked_sub(PACK_TRAILER_BYTES) else {
            let needed_bytes = (PACK_HEADER_BYTES + PACK_TRAILER_BYTES) as u64;
            return Err(FormatError::Truncated { what: WHAT, len_bytes: tail.len() as u64, needed_bytes });
        };
        let trailer = &tail[start..];
        Reader::new(WHAT, &trailer[PACK_TRAILER_BYTES - 8..]).magic(TRAILER_MAGIC)?;
        let mut reader = Reader::new(WHAT, trailer);
        let frames_len = reader.u64()?;
        let chunks = reader.u32()?;
        reader.version(VERSION)?;
        let chunk_size = ChunkSize::from_log2(reader.u8()?)?;
        if reader.array::<9>()? != [0; 9] {
            return Err(FormatError::field(WHAT, "reserved", "not zero", "zero"));
        }
        let chunks_max = pack_chunks_max(chunk_size);
        if chunks == 0 || chunks as usize > chunks_max {
            return Err(FormatError::field(WHAT, "chunks", chunks, format!("1 to {chunks_max}")));
        }
        let rest = (PACK_HEADER_BYTES + chunks as usize * ENTRY_BYTES + PACK_TRAILER_BYTES) as u64;
        if frames_len.checked_add(rest) != Some(pack_len) {
            let expected =
                format!("what is left of {pack_len} bytes after {rest} of header, table and trailer");
            return Err(FormatError::field(WHAT, "frames_len", frames_len, expected));
        }
        Ok(Self { chunk_size, chunks, frames_len })
    }

    /// Bytes of table and trailer: the tail to hand to [`PackFooter::decode`].
    pub fn footer_len(&self) -> usize {
        self.chunks as usize * ENTRY_BYTES + PACK_TRAILER_BYTES
    }
}

/// A pack's table, checked: every frame lies inside the pack, none overlaps another, no chunk is there twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackFooter {
    /// Bytes per chunk in this pack.
    pub chunk_size: ChunkSize,
    /// The frames, in file order.
    pub entries: Vec<PackEntry>,
}

impl PackFooter {
    /// Reads table and trailer off the end of `tail`, the last bytes of a pack file of `pack_len` bytes.
    ///
    /// # Errors
    /// As [`PackTrailer::decode`], `Checksum`, or `Field` when an entry is out of range or names a chunk again.
    pub fn decode(tail: &[u8], pack_len: u64) -> Result<Self, FormatError> {
        let trailer = PackTrailer::decode(tail, pack_len)?;
        let Some(start) = tail.len().checked_sub(trailer.footer_len()) else {
            let (len_bytes, needed_bytes) = (tail.len() as u64, trailer.footer_len() as u64);
            return Err(FormatError::Truncated { what: WHAT, len_bytes, needed_bytes });
        };
        let footer = &tail[start..];
        let (checked, sealed) = footer.split_at(footer.len() - PACK_TRAILER_BYTES + CHECKED_TRAILER_BYTES);
        if sha256(checked) != sealed[..ID_BYTES] {
            return Err(FormatError::Checksum { what: "pack table" });
        }
        let mut reader = Reader::new(WHAT, checked);
        let mut entries = Vec::with_capacity(trailer.chunks as usize);
        let mut seen = HashSet::with_capacity(trailer.chunks as usize);
        let mut offset = PACK_HEADER_BYTES as u64;
        for _ in 0..trailer.chunks {
            let chunk = ChunkId::from_bytes(reader.array()?);
            let frame_len = reader.u32()?;
            if chunk.is_zero() {
                return Err(FormatError::field(WHAT, "chunk id", "the zero chunk", "a stored chunk"));
            }
            if !seen.insert(chunk) {
                return Err(FormatError::field(WHAT, "chunk id", chunk, "in the table once"));
            }
            let longest = frame_len_max(trailer.chunk_size.bytes());
            if frame_len < 2 || frame_len as usize > longest {
                return Err(FormatError::field(WHAT, "frame_len", frame_len, format!("2 to {longest}")));
            }
            entries.push(PackEntry { chunk, offset: u32_field("offset", offset)?, frame_len });
            offset += u64::from(frame_len);
        }
        if offset - PACK_HEADER_BYTES as u64 != trailer.frames_len {
            let sum = offset - PACK_HEADER_BYTES as u64;
            return Err(FormatError::field(
                WHAT,
                "frames_len",
                trailer.frames_len,
                format!("{sum}, the sum of all frames"),
            ));
        }
        Ok(Self { chunk_size: trailer.chunk_size, entries })
    }

    /// Reads the table of a whole pack file, with its header.
    ///
    /// # Errors
    /// As [`PackFooter::decode`] and for a header that contradicts the trailer.
    pub fn decode_pack(pack: &[u8]) -> Result<Self, FormatError> {
        let footer = Self::decode(pack, pack.len() as u64)?;
        footer.check_header(pack)?;
        Ok(footer)
    }

    /// Checks a pack file's first [`PACK_HEADER_BYTES`] against this footer.
    ///
    /// # Errors
    /// `Truncated`, `BadMagic`, `UnsupportedVersion` or `Field`.
    pub fn check_header(&self, head: &[u8]) -> Result<(), FormatError> {
        let mut reader = Reader::new(WHAT, head);
        reader.magic(HEADER_MAGIC)?;
        reader.version(VERSION)?;
        let log2 = reader.u8()?;
        if log2 != self.chunk_size.log2() {
            return Err(FormatError::field(WHAT, "chunk_size_log2", log2, self.chunk_size.log2()));
        }
        if reader.array::<5>()? != [0; 5] {
            return Err(FormatError::field(WHAT, "reserved", "not zero", "zero"));
        }
        Ok(())
    }

    /// Decodes and re-hashes every frame of a whole pack file: what a server does before an upload counts.
    ///
    /// # Errors
    /// The first frame's `Decompress` or `IdMismatch`.
    pub fn verify_frames(&self, pack: &[u8], decoder: &mut FrameDecoder) -> Result<(), FormatError> {
        let mut chunk = vec![0; self.chunk_size.bytes()];
        for entry in &self.entries {
            let Some(frame) = pack.get(entry.range()) else {
                let (len_bytes, needed_bytes) = (pack.len() as u64, entry.range().end as u64);
                return Err(FormatError::Truncated { what: WHAT, len_bytes, needed_bytes });
            };
            decoder.decode_chunk(frame, entry.chunk, &mut chunk)?;
        }
        Ok(())
    }
}

fn u32_field(field: &'static str, value: impl TryInto<u32> + Copy + ToString) -> Result<u32, FormatError> {
    value.try_into().map_err(|_| FormatError::field(WHAT, field, value, "below 4 GiB"))
}

#[cfg(test)]
mod tests;
