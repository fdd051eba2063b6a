//! Segments: 1,024 chunk ids, the middle level between a manifest and its chunks.
//!
//! A segment is exactly 32 KiB: the ids in disk order, the last segment of a disk padded with the zero chunk's id. Its
//! own id is the SHA-256 of those bytes; the segment of zero chunks only has the reserved id [`SegmentId::ZERO`] and is
//! never stored. Stored as a frame, since the zero ids of a sparse disk compress away.

use std::sync::{Arc, LazyLock};

use crate::error::FormatError;
use crate::frame::{FrameDecoder, FrameEncoder};
use crate::id::{ChunkId, ID_BYTES, SegmentId};

const WHAT: &str = "segment";

/// Chunk ids in a segment.
pub const SEGMENT_CHUNKS: usize = 1024;
/// Bytes of a segment before it is framed.
pub const SEGMENT_BYTES: usize = SEGMENT_CHUNKS * ID_BYTES;

/// A disk may have thousands of them: all share these ids.
static ZERO_CHUNKS: LazyLock<Arc<[ChunkId]>> = LazyLock::new(|| [ChunkId::ZERO; SEGMENT_CHUNKS].into());

/// The ids of 1,024 neighbouring chunks. Clones share them until one is changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Segment {
    chunks: Arc<[ChunkId]>,
}

impl Segment {
    /// Takes up to 1,024 ids and pads with the zero chunk.
    ///
    /// # Errors
    /// `Field` when there are more.
    pub fn new(mut chunks: Vec<ChunkId>) -> Result<Self, FormatError> {
        if chunks.len() > SEGMENT_CHUNKS {
            return Err(FormatError::field(
                WHAT,
                "chunks",
                chunks.len(),
                format!("at most {SEGMENT_CHUNKS}"),
            ));
        }
        chunks.resize(SEGMENT_CHUNKS, ChunkId::ZERO);
        Ok(Self { chunks: chunks.into() })
    }

    /// The segment of zero chunks only.
    pub fn zero() -> Self {
        Self { chunks: Arc::clone(&ZERO_CHUNKS) }
    }

    /// The 1,024 ids.
    pub fn chunks(&self) -> &[ChunkId] {
        &self.chunks
    }

    /// Replaces the id at a position from 0 to 1,023.
    ///
    /// # Errors
    /// `Field` when `at` is 1,024 or more.
    pub fn set(&mut self, at: usize, chunk: ChunkId) -> Result<(), FormatError> {
        match self.chunks.get(at) {
            // It stays shared when this is no change.
            Some(before) if *before == chunk => Ok(()),
            Some(_) => {
                Arc::make_mut(&mut self.chunks)[at] = chunk;
                Ok(())
            }
            None => Err(FormatError::field(WHAT, "position", at, format!("below {SEGMENT_CHUNKS}"))),
        }
    }

    /// The segment's id.
    pub fn id(&self) -> SegmentId {
        if self.is_zero() { SegmentId::ZERO } else { SegmentId::of(&self.to_bytes()) }
    }

    /// The segment as it is stored.
    ///
    /// # Errors
    /// `Field` for the segment of zero chunks only, which is never stored; `Compress` when zstd fails.
    pub fn encode(&self, encoder: &mut FrameEncoder) -> Result<Vec<u8>, FormatError> {
        if self.is_zero() {
            return Err(zero_segment());
        }
        encoder.encode(&self.to_bytes())
    }

    /// Reads a stored segment and checks it against its id.
    ///
    /// # Errors
    /// `Truncated`, `TooLong`, `Decompress`, `IdMismatch`, or `Field`: an unknown coding, or the segment of zero chunks
    /// only, under whatever id.
    pub fn decode(frame: &[u8], id: SegmentId, decoder: &mut FrameDecoder) -> Result<Self, FormatError> {
        if id.is_zero() {
            return Err(zero_segment());
        }
        let mut bytes = vec![0; SEGMENT_BYTES];
        decoder.decode_exact(WHAT, frame, &mut bytes)?;
        id.verify(&bytes)?;
        let (ids, _) = bytes.as_chunks::<ID_BYTES>();
        let segment = Self { chunks: ids.iter().map(|id| ChunkId::from_bytes(*id)).collect() };
        if segment.is_zero() {
            return Err(zero_segment());
        }
        Ok(segment)
    }

    fn is_zero(&self) -> bool {
        Arc::ptr_eq(&self.chunks, &ZERO_CHUNKS) || self.chunks.iter().all(ChunkId::is_zero)
    }

    fn to_bytes(&self) -> Vec<u8> {
        self.chunks.iter().flat_map(|id| *id.as_bytes()).collect()
    }
}

fn zero_segment() -> FormatError {
    FormatError::field(WHAT, "id", "the zero segment", "a stored segment")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_reads_back_and_pads_with_zero_chunks() {
        let segment = Segment::new(vec![ChunkId::of(b"a"), ChunkId::ZERO, ChunkId::of(b"b")]).unwrap();
        let frame = segment.encode(&mut FrameEncoder::new().unwrap()).unwrap();
        assert!(frame.len() < 200, "zero ids compress away, {} bytes", frame.len());
        let decoded = Segment::decode(&frame, segment.id(), &mut FrameDecoder::new().unwrap()).unwrap();
        assert_eq!(decoded, segment);
        assert_eq!(decoded.chunks().len(), SEGMENT_CHUNKS);
    }

    #[test]
    fn clones_share_their_ids_until_one_is_changed() {
        let is_shared = |a: &Segment, b: &Segment| std::ptr::eq(a.chunks(), b.chunks());
        assert!(is_shared(&Segment::zero(), &Segment::zero()));
        let before = Segment::new(vec![ChunkId::of(b"a")]).unwrap();
        let mut after = before.clone();
        after.set(0, ChunkId::of(b"a")).unwrap();
        assert!(is_shared(&before, &after));
        after.set(1, ChunkId::of(b"b")).unwrap();
        assert!(!is_shared(&before, &after));
        assert_eq!((before.chunks()[1], after.chunks()[0]), (ChunkId::ZERO, before.chunks()[0]));
        assert_ne!(before.id(), after.id());
    }

    #[test]
    fn the_zero_segment_has_the_reserved_id_and_is_never_decoded() {
        assert_eq!(Segment::zero().id(), SegmentId::ZERO);
        assert_eq!(Segment::new(Vec::new()).unwrap(), Segment::zero());
        assert!(Segment::zero().encode(&mut FrameEncoder::new().unwrap()).is_err());
        let zeros = [0; SEGMENT_BYTES];
        let frame = FrameEncoder::new().unwrap().encode(&zeros).unwrap();
        for id in [SegmentId::ZERO, SegmentId::of(&zeros)] {
            assert!(Segment::decode(&frame, id, &mut FrameDecoder::new().unwrap()).is_err(), "{id}");
        }
    }

    #[test]
    fn another_segment_under_this_id_is_refused() {
        let frame =
            Segment::new(vec![ChunkId::of(b"a")]).unwrap().encode(&mut FrameEncoder::new().unwrap()).unwrap();
        let other = Segment::new(vec![ChunkId::of(b"b")]).unwrap().id();
        let error = Segment::decode(&frame, other, &mut FrameDecoder::new().unwrap()).unwrap_err();
        assert!(matches!(error, FormatError::IdMismatch { .. }), "{error}");
    }

    #[test]
    fn ids_beyond_the_segment_are_refused() {
        assert!(Segment::new(vec![ChunkId::ZERO; SEGMENT_CHUNKS + 1]).is_err());
        let mut segment = Segment::zero();
        assert!(segment.set(SEGMENT_CHUNKS, ChunkId::of(b"a")).is_err());
        segment.set(SEGMENT_CHUNKS - 1, ChunkId::of(b"a")).unwrap();
        assert_ne!(segment.id(), SegmentId::ZERO);
    }
}
