//! Locators: where each chunk of a segment lies.
//!
//! Identity is in segments, location is here: unsigned and rewritable, since a wrong place only yields bytes that do
//! not have the chunk's id. Stored as a frame of:
//!
//! | len      | field           | values                                                         |
//! |----------|-----------------|----------------------------------------------------------------|
//! | 8        | magic           | `SATLOCA\x1a`                                                  |
//! | 2        | version         | 1                                                              |
//! | 32       | segment         | the segment's id                                               |
//! | 2        | packs           | entries in the pack table, at most 1,024                       |
//! | packs x  | pack table      | u8 name_len, u8 kind (0 image, 1 user), name, 32 id, u32 len   |
//! | 1024 x 2 | pack of chunk   | position in the pack table; 0xffff: not stored (zero chunk), gap and length then 0 |
//! | 1024 x 4 | gap of chunk    | frame offset minus the end of the frame before it in that pack, modulo 2^32 |
//! | 1024 x 4 | length of chunk | bytes of the frame, 2 to 4,194,305 (4 MiB + 1)                 |
//!
//! Columns, and gaps instead of offsets, because neighbours on disk are neighbours in a pack: the gaps are nearly all
//! zero and vanish in the frame's compression.
//!
//! A locator does not know its disk's chunk size; its reader does, and checks the lengths against it with
//! [`Locator::check_frame_lens`] before it fetches anything.

use crate::error::FormatError;
use crate::frame::{FrameDecoder, FrameEncoder, frame_len_max};
use crate::id::{PackId, SegmentId};
use crate::namespace::{MAX_NAME_BYTES, Name, Namespace};
use crate::pack::{MAX_PACK_BYTES, PACK_HEADER_BYTES};
use crate::reader::Reader;
use crate::segment::SEGMENT_CHUNKS;
use crate::units::ChunkSize;

const WHAT: &str = "locator";
const MAGIC: &[u8; 8] = b"SATLOCA\x1a";
const VERSION: u16 = 1;
const NOT_STORED: u16 = 0xffff;
const MAX_PACKS: usize = SEGMENT_CHUNKS;
const MIN_FRAME_BYTES: u32 = 2;

/// The longest locator before it is framed, bytes: every chunk in a pack of its own, every name of full length.
pub const MAX_LOCATOR_BYTES: usize =
    8 + 2 + 32 + 2 + MAX_PACKS * (2 + MAX_NAME_BYTES + 32 + 4) + SEGMENT_CHUNKS * (2 + 4 + 4);

/// A pack as a locator names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackRef {
    /// Whose pack it is: the root it is fetched under.
    pub namespace: Namespace,
    /// The pack.
    pub pack: PackId,
    /// Bytes of the whole pack file.
    pub pack_len: u32,
}

/// Where one chunk's frame lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkPlace {
    /// Position of the pack in [`Locator::packs`].
    pub pack: u16,
    /// Offset of the frame in the pack file, bytes.
    pub offset: u32,
    /// Length of the frame, bytes.
    pub frame_len: u32,
}

/// The places of one segment's chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locator {
    segment: SegmentId,
    packs: Vec<PackRef>,
    places: Vec<Option<ChunkPlace>>,
}

impl Locator {
    /// Puts a locator together; `places` has an entry for each of the 1,024 chunks, `None` for zero chunks.
    ///
    /// # Errors
    /// `Field` when a count is off or a place lies outside its pack.
    pub fn new(
        segment: SegmentId,
        packs: Vec<PackRef>,
        places: Vec<Option<ChunkPlace>>,
    ) -> Result<Self, FormatError> {
        if packs.len() > MAX_PACKS {
            return Err(FormatError::field(WHAT, "packs", packs.len(), format!("at most {MAX_PACKS}")));
        }
        if places.len() != SEGMENT_CHUNKS {
            return Err(FormatError::field(WHAT, "places", places.len(), SEGMENT_CHUNKS));
        }
        for pack in &packs {
            if pack.pack_len as usize > MAX_PACK_BYTES {
                return Err(FormatError::field(
                    WHAT,
                    "pack length",
                    pack.pack_len,
                    format!("at most {MAX_PACK_BYTES}"),
                ));
            }
        }
        for place in places.iter().flatten() {
            check_place(place, &packs)?;
        }
        Ok(Self { segment, packs, places })
    }

    /// Checks that no frame is longer than one of a chunk of this size can be: a locator is not signed, and what it
    /// says must not decide how much is fetched.
    ///
    /// # Errors
    /// `Field` naming the first frame that is too long.
    pub fn check_frame_lens(&self, chunk_size: ChunkSize) -> Result<(), FormatError> {
        let longest = frame_len_max(chunk_size.bytes());
        match self.places.iter().flatten().find(|place| place.frame_len as usize > longest) {
            None => Ok(()),
            Some(place) => {
                let expected = format!("at most {longest} for chunks of {} bytes", chunk_size.bytes());
                Err(FormatError::field(WHAT, "length of chunk", place.frame_len, expected))
            }
        }
    }

    /// The segment whose chunks these are.
    pub fn segment(&self) -> SegmentId {
        self.segment
    }

    /// The packs the places refer to.
    pub fn packs(&self) -> &[PackRef] {
        &self.packs
    }

    /// The pack a place is in.
    pub fn pack(&self, place: &ChunkPlace) -> Option<&PackRef> {
        self.packs.get(usize::from(place.pack))
    }

    /// Where the chunk at this position of the segment lies; `None` for a zero chunk and past the end.
    pub fn place(&self, at: usize) -> Option<ChunkPlace> {
        self.places.get(at).copied().flatten()
    }

    /// The locator as it is stored.
    ///
    /// # Errors
    /// `Compress` when zstd fails.
    pub fn encode(&self, encoder: &mut FrameEncoder) -> Result<Vec<u8>, FormatError> {
        let mut out = Vec::with_capacity(16_384);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(self.segment.as_bytes());
        out.extend_from_slice(&u16::try_from(self.packs.len()).unwrap_or(u16::MAX).to_le_bytes());
        for pack in &self.packs {
            let name = pack.namespace.name().as_str();
            out.push(u8::try_from(name.len()).unwrap_or(u8::MAX));
            out.push(match pack.namespace {
                Namespace::Image(_) => 0,
                Namespace::User(_) => 1,
            });
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(pack.pack.as_bytes());
            out.extend_from_slice(&pack.pack_len.to_le_bytes());
        }
        for place in &self.places {
            out.extend_from_slice(&place.map_or(NOT_STORED, |place| place.pack).to_le_bytes());
        }
        let mut ends = vec![0u32; self.packs.len()];
        for place in &self.places {
            let gap = place.map_or(0, |place| {
                let end = &mut ends[usize::from(place.pack)];
                let gap = place.offset.wrapping_sub(*end);
                *end = place.offset.wrapping_add(place.frame_len);
                gap
            });
            out.extend_from_slice(&gap.to_le_bytes());
        }
        for place in &self.places {
            out.extend_from_slice(&place.map_or(0, |place| place.frame_len).to_le_bytes());
        }
        encoder.encode(&out)
    }

    /// Reads a stored locator; any input is safe to pass.
    ///
    /// # Errors
    /// `Truncated`, `TooLong`, `Decompress`, `BadMagic`, `UnsupportedVersion`, or `Field` naming what is out of range
    /// (a place outside its pack, another segment than asked for).
    pub fn decode(frame: &[u8], segment: SegmentId, decoder: &mut FrameDecoder) -> Result<Self, FormatError> {
        let bytes = decoder.decode_bounded(WHAT, frame, MAX_LOCATOR_BYTES)?;
        let mut reader = Reader::new(WHAT, &bytes);
        reader.magic(MAGIC)?;
        reader.version(VERSION)?;
        let found = SegmentId::from_bytes(reader.array()?);
        if found != segment {
            return Err(FormatError::field(WHAT, "segment", found, segment));
        }
        let packs = Self::decode_packs(&mut reader)?;
        let mut chunk_packs = Reader::new(WHAT, reader.take(SEGMENT_CHUNKS * 2)?);
        let mut gaps = Reader::new(WHAT, reader.take(SEGMENT_CHUNKS * 4)?);
        let mut lengths = Reader::new(WHAT, reader.take(SEGMENT_CHUNKS * 4)?);
        reader.end()?;

        let mut ends = vec![0u32; packs.len()];
        let mut places = Vec::with_capacity(SEGMENT_CHUNKS);
        for _ in 0..SEGMENT_CHUNKS {
            let (pack, gap, frame_len) = (chunk_packs.u16()?, gaps.u32()?, lengths.u32()?);
            if pack == NOT_STORED {
                if gap != 0 || frame_len != 0 {
                    let found = format!("gap {gap} and length {frame_len}");
                    return Err(FormatError::field(WHAT, "place", found, "0 and 0 for a chunk not stored"));
                }
                places.push(None);
                continue;
            }
            let Some(end) = ends.get_mut(usize::from(pack)) else {
                return Err(FormatError::field(
                    WHAT,
                    "pack of chunk",
                    pack,
                    format!("below {}", packs.len()),
                ));
            };
            let offset = end.wrapping_add(gap);
            *end = offset.wrapping_add(frame_len);
            places.push(Some(ChunkPlace { pack, offset, frame_len }));
        }
        Self::new(segment, packs, places)
    }

    fn decode_packs(reader: &mut Reader<'_>) -> Result<Vec<PackRef>, FormatError> {
        let count = usize::from(reader.u16()?);
        if count > MAX_PACKS {
            return Err(FormatError::field(WHAT, "packs", count, format!("at most {MAX_PACKS}")));
        }
        let mut packs = Vec::with_capacity(count);
        for _ in 0..count {
            let name_len = usize::from(reader.u8()?);
            let kind = reader.u8()?;
            let name = String::from_utf8_lossy(reader.take(name_len)?).parse::<Name>()?;
            let namespace = match kind {
                0 => Namespace::Image(name),
                1 => Namespace::User(name),
                _ => return Err(FormatError::field(WHAT, "kind", kind, "0 (image) or 1 (user)")),
            };
            let pack = PackId::from_bytes(reader.array()?);
            packs.push(PackRef { namespace, pack, pack_len: reader.u32()? });
        }
        Ok(packs)
    }
}

fn check_place(place: &ChunkPlace, packs: &[PackRef]) -> Result<(), FormatError> {
    let Some(pack) = packs.get(usize::from(place.pack)) else {
        return Err(FormatError::field(WHAT, "pack of chunk", place.pack, format!("below {}", packs.len())));
    };
    let end = u64::from(place.offset) + u64::from(place.frame_len);
    let starts_in_frames = place.offset as usize >= PACK_HEADER_BYTES;
    let longest = frame_len_max(ChunkSize::MAX.bytes());
    if place.frame_len < MIN_FRAME_BYTES || place.frame_len as usize > longest {
        let expected = format!("{MIN_FRAME_BYTES} to {longest}");
        return Err(FormatError::field(WHAT, "length of chunk", place.frame_len, expected));
    }
    if !starts_in_frames || end > u64::from(pack.pack_len) {
        let found = format!("{} bytes at {}", place.frame_len, place.offset);
        return Err(FormatError::field(
            WHAT,
            "place",
            found,
            format!("inside a pack of {} bytes", pack.pack_len),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
