//! Questions for chunks by their ids, and the answers: what a machine that serves its cache speaks.
//!
//! A question is ids, 32 bytes each. An answer has for each of them, in the order asked:
//!
//! | at | len    | field  | values                                          |
//! |----|--------|--------|-------------------------------------------------|
//! |  0 | 4      | length | of the frame, little-endian; 0: it is not there |
//! |  4 | length | frame  | as in `docs/format.md`                          |
//!
//! and nothing after them. Nothing of an answer is believed: whoever asked checks each chunk against its id.

use bytes::{Buf, Bytes, BytesMut};
use chunk_format::{ChunkId, ID_BYTES};

/// Chunks that are asked for at once, at most.
pub const MAX_CHUNKS: usize = 512;
/// Chunks that are looked for at once, at most.
pub const MAX_LOOKED_FOR: usize = 65_536;

const LEN_BYTES: usize = 4;

/// A question that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadQuestion {
    /// It is not ids.
    #[error("a question has ids of {ID_BYTES} bytes; this one has {len_bytes} bytes")]
    Length {
        /// Its length.
        len_bytes: usize,
    },
    /// It is about nothing, or about too much.
    #[error("a question is about 1 to {limit} ids, not {count}")]
    Count {
        /// Ids in it.
        count: usize,
        /// The most there may be.
        limit: usize,
    },
}

/// An answer that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAnswer {
    /// A frame is longer than a chunk's can be.
    #[error("it announces a frame of {len_bytes} bytes, and a chunk's has at most {limit_bytes}")]
    TooLong {
        /// What it announces.
        len_bytes: usize,
        /// The longest frame of a chunk.
        limit_bytes: usize,
    },
    /// Something follows what was asked for.
    #[error("it goes on after the last chunk that was asked for")]
    TooMany,
}

/// What an answer says of a chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// Its frame, unchecked.
    Frame(Bytes),
    /// It is not there.
    NotHere,
}

/// Writes a question.
pub fn encode_question(ids: &[ChunkId]) -> Vec<u8> {
    ids.iter().flat_map(|id| id.as_bytes()).copied().collect()
}

/// Reads a question about at most so many ids.
///
/// # Errors
/// [`BadQuestion`].
pub fn decode_question(bytes: &[u8], limit: usize) -> Result<Vec<ChunkId>, BadQuestion> {
    let (ids, rest) = bytes.as_chunks::<ID_BYTES>();
    if !rest.is_empty() {
        return Err(BadQuestion::Length { len_bytes: bytes.len() });
    }
    if ids.is_empty() || ids.len() > limit {
        return Err(BadQuestion::Count { count: ids.len(), limit });
    }
    Ok(ids.iter().map(|id| ChunkId::from_bytes(*id)).collect())
}

/// Appends to an answer that a chunk is not there.
pub fn append_not_here(answer: &mut Vec<u8>) {
    answer.extend_from_slice(&[0; LEN_BYTES]);
}

/// Appends a chunk's frame to an answer. One longer than a length can say is no chunk's, and is not there.
pub fn append_frame(answer: &mut Vec<u8>, frame: &[u8]) {
    let Ok(len) = u32::try_from(frame.len()) else { return append_not_here(answer) };
    answer.extend_from_slice(&len.to_le_bytes());
    answer.extend_from_slice(frame);
}

/// Which ids are missing, as a bitmap: the least significant bit of the first byte first.
pub fn encode_missing(missing: &[bool]) -> Vec<u8> {
    let byte = |bits: &[bool]| (0..).zip(bits).fold(0, |byte, (at, bit)| byte | (u8::from(*bit) << at));
    missing.chunks(8).map(byte).collect()
}

/// Reads such a bitmap for so many ids; `None` when it has another length.
pub fn decode_missing(bytes: &[u8], count: usize) -> Option<Vec<bool>> {
    if bytes.len() != count.div_ceil(8) {
        return None;
    }
    Some((0..count).map(|at| bytes.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1)).collect())
}

/// What to call a question in messages: its first chunk.
pub(crate) fn name_of(ids: &[ChunkId]) -> String {
    match ids {
        [] => "no chunk".to_owned(),
        [id] => format!("chunk {id}"),
        [id, rest @ ..] => format!("chunk {id} and {} more", rest.len()),
    }
}

/// Takes an answer apart as it arrives. Keeps no more than what was pushed and is not yet taken.
#[derive(Debug)]
pub struct AnswerDecoder {
    buffer: BytesMut,
    /// Chunks the answer has yet to tell of.
    left: usize,
    frame_limit_bytes: usize,
}

impl AnswerDecoder {
    /// Prepares to read the answer to a question about `count` chunks, whose frames have at most so many bytes.
    pub fn new(count: usize, frame_limit_bytes: usize) -> Self {
        Self { buffer: BytesMut::new(), left: count, frame_limit_bytes }
    }

    /// Takes bytes that arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// What the answer says of the next chunk; `None` when it takes more bytes to know, or all was told.
    ///
    /// # Errors
    /// [`BadAnswer`]; nothing more can be read then.
    pub fn take_next(&mut self) -> Result<Option<Answered>, BadAnswer> {
        if self.left == 0 {
            return if self.buffer.is_empty() { Ok(None) } else { Err(BadAnswer::TooMany) };
        }
        let Some(len) = self.buffer.first_chunk::<LEN_BYTES>() else { return Ok(None) };
        let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
        if len > self.frame_limit_bytes {
            return Err(BadAnswer::TooLong { len_bytes: len, limit_bytes: self.frame_limit_bytes });
        }
        if self.buffer.len() - LEN_BYTES < len {
            return Ok(None);
        }
        self.buffer.advance(LEN_BYTES);
        self.left -= 1;
        Ok(Some(match len {
            0 => Answered::NotHere,
            len => Answered::Frame(self.buffer.split_to(len).freeze()),
        }))
    }

    /// Chunks the answer has yet to tell of.
    pub fn left(&self) -> usize {
        self.left
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(count: usize) -> Vec<ChunkId> {
        (0..count).map(|at| ChunkId::of(&at.to_le_bytes())).collect()
    }

    #[test]
    fn a_question_is_whole_ids_and_not_too_many() {
        let asked = ids(3);
        let bytes = encode_question(&asked);
        assert_eq!(decode_question(&bytes, 3).unwrap(), asked);
        assert_eq!(decode_question(&bytes, 2), Err(BadQuestion::Count { count: 3, limit: 2 }));
        assert_eq!(decode_question(&[], 2), Err(BadQuestion::Count { count: 0, limit: 2 }));
        assert_eq!(decode_question(&bytes[..95], 9), Err(BadQuestion::Length { len_bytes: 95 }));
    }

    #[test]
    fn a_frame_longer_than_any_chunks_is_refused_before_it_arrives() {
        let mut decoder = AnswerDecoder::new(2, 100);
        decoder.push(&101u32.to_le_bytes());
        assert_eq!(decoder.take_next(), Err(BadAnswer::TooLong { len_bytes: 101, limit_bytes: 100 }));
        let mut decoder = AnswerDecoder::new(2, 100);
        decoder.push(&u32::MAX.to_le_bytes());
        assert!(matches!(decoder.take_next(), Err(BadAnswer::TooLong { .. })));
    }

    #[test]
    fn an_answer_that_goes_on_does_not_hold() {
        let mut answer = Vec::new();
        append_frame(&mut answer, b"frame");
        append_not_here(&mut answer);
        let mut decoder = AnswerDecoder::new(1, 100);
        decoder.push(&answer);
        assert_eq!(decoder.take_next(), Ok(Some(Answered::Frame(Bytes::from_static(b"frame")))));
        assert_eq!(decoder.take_next(), Err(BadAnswer::TooMany));
    }

    #[test]
    fn an_answer_that_was_cut_tells_of_less() {
        let mut answer = Vec::new();
        append_not_here(&mut answer);
        append_frame(&mut answer, b"frame");
        for cut in 0..answer.len() {
            let mut decoder = AnswerDecoder::new(2, 100);
            decoder.push(&answer[..cut]);
            while decoder.take_next().unwrap().is_some() {}
            assert!(decoder.left() > 0, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn an_answer_is_the_same_in_whatever_pieces_it_arrives(
            frames in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 1..60)), 1..20),
            piece in 1usize..50,
        ) {
            let mut answer = Vec::new();
            for frame in &frames {
                match frame {
                    Some(frame) => append_frame(&mut answer, frame),
                    None => append_not_here(&mut answer),
                }
            }
            let mut decoder = AnswerDecoder::new(frames.len(), 60);
            let mut told = Vec::new();
            for piece in answer.chunks(piece) {
                decoder.push(piece);
                while let Some(answered) = decoder.take_next().unwrap() {
                    told.push(match answered {
                        Answered::Frame(frame) => Some(frame.to_vec()),
                        Answered::NotHere => None,
                    });
                }
            }
            prop_assert_eq!(told, frames);
            prop_assert_eq!(decoder.left(), 0);
        }

        #[test]
        fn no_bytes_break_it(bytes in prop::collection::vec(any::<u8>(), 0..200), count in 0usize..5) {
            let mut decoder = AnswerDecoder::new(count, 50);
            decoder.push(&bytes);
            while let Ok(Some(answered)) = decoder.take_next() {
                if let Answered::Frame(frame) = answered {
                    prop_assert!(!frame.is_empty() && frame.len() <= 50);
                }
            }
        }

        #[test]
        fn a_bitmap_reads_back(missing in prop::collection::vec(any::<bool>(), 0..100)) {
            let bytes = encode_missing(&missing);
            prop_assert_eq!(decode_missing(&bytes, missing.len()), Some(missing.clone()));
            prop_assert_eq!(decode_missing(&bytes, missing.len() + 8), None);
        }
    }
}
