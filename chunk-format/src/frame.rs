//! A payload as it is stored: compressed where that helps, raw where it does not.
//!
//! | at | len | field   | values                                  |
//! |----|-----|---------|-----------------------------------------|
//! |  0 |  1  | coding  | 0 raw, 1 zstd                           |
//! |  1 |  …  | payload | the bytes, or one zstd frame of them    |
//!
//! Chunks, segments and locators are all stored as frames. What a frame holds is checked by the id that named it.

use zstd::bulk::{Compressor, Decompressor};

use crate::error::FormatError;
use crate::id::ChunkId;

const CODING_RAW: u8 = 0;
const CODING_ZSTD: u8 = 1;

/// zstd level of stored frames: level 3 keeps two cores ahead of a fast disk; higher ones gain a few per cent.
const LEVEL: i32 = 3;

/// The longest frame of a payload: the raw coding, one byte more than the payload.
pub const fn frame_len_max(payload_bytes: usize) -> usize {
    payload_bytes + 1
}

/// Turns payloads into frames. Keeps zstd's working memory between calls: one per thread.
pub struct FrameEncoder {
    zstd: Compressor<'static>,
}

impl FrameEncoder {
    /// Makes an encoder at the level all stored frames use.
    ///
    /// # Errors
    /// `Compress` when zstd cannot get its memory.
    pub fn new() -> Result<Self, FormatError> {
        let zstd = Compressor::new(LEVEL).map_err(compress_error)?;
        Ok(Self { zstd })
    }

    /// Encodes one payload: zstd when that is smaller, raw otherwise.
    ///
    /// # Errors
    /// `Compress` when zstd fails for another reason than the result being no smaller.
    pub fn encode(&mut self, payload: &[u8]) -> Result<Vec<u8>, FormatError> {
        let mut frame = Vec::new();
        self.encode_to(payload, &mut frame)?;
        Ok(frame)
    }

    /// Appends the frame of one payload and returns its length in bytes.
    ///
    /// # Errors
    /// As [`FrameEncoder::encode`].
    pub fn encode_to(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<usize, FormatError> {
        let start = out.len();
        out.resize(start + 1 + zstd::zstd_safe::compress_bound(payload.len()), 0);
        let body = &mut out[start + 1..];
        let compressed = self.zstd.compress_to_buffer(payload, body).map_err(compress_error)?;
        if compressed < payload.len() {
            out[start] = CODING_ZSTD;
            out.truncate(start + 1 + compressed);
        } else {
            out.truncate(start);
            out.push(CODING_RAW);
            out.extend_from_slice(payload);
        }
        Ok(out.len() - start)
    }
}

/// Turns frames back into payloads; memory and output are bounded by the caller's buffer, whatever the frame says.
pub struct FrameDecoder {
    zstd: Decompressor<'static>,
}

impl FrameDecoder {
    /// Makes a decoder; it keeps zstd's working memory between calls: one per thread.
    ///
    /// # Errors
    /// `Decompress` when zstd cannot get its memory.
    pub fn new() -> Result<Self, FormatError> {
        let zstd = Decompressor::new().map_err(|e| decompress_error("frame", e))?;
        Ok(Self { zstd })
    }

    /// Decodes a chunk's frame into a buffer of exactly the chunk size and checks it against its id.
    ///
    /// # Errors
    /// `Decompress` when the frame does not fill the buffer exactly; `IdMismatch` when it is another chunk. The
    /// buffer's content is then meaningless.
    pub fn decode_chunk(&mut self, frame: &[u8], id: ChunkId, chunk: &mut [u8]) -> Result<(), FormatError> {
        self.decode_exact("chunk", frame, chunk)?;
        id.verify(chunk)
    }

    /// Decodes a frame that must fill `payload` exactly. Nothing is said of its content: check its id.
    ///
    /// # Errors
    /// `Truncated`, `Field` (unknown coding) or `Decompress`.
    pub fn decode_exact(
        &mut self,
        what: &'static str,
        frame: &[u8],
        payload: &mut [u8],
    ) -> Result<(), FormatError> {
        let (coding, body) = split_coding(what, frame)?;
        let len = match coding {
            CODING_RAW if body.len() == payload.len() => {
                payload.copy_from_slice(body);
                body.len()
            }
            CODING_RAW => body.len(),
            _ => self.zstd.decompress_to_buffer(body, payload).map_err(|e| decompress_error(what, e))?,
        };
        if len != payload.len() {
            let reason = format!("it holds {len} bytes, not {}", payload.len());
            return Err(FormatError::Decompress { what, reason });
        }
        Ok(())
    }

    /// Decodes a frame of unknown payload length, of at most `limit_bytes`.
    ///
    /// # Errors
    /// `Truncated`, `Field` (unknown coding), `TooLong` or `Decompress`.
    pub fn decode_bounded(
        &mut self,
        what: &'static str,
        frame: &[u8],
        limit_bytes: usize,
    ) -> Result<Vec<u8>, FormatError> {
        let (coding, body) = split_coding(what, frame)?;
        if coding == CODING_RAW {
            if body.len() > limit_bytes {
                let (len_bytes, limit_bytes) = (body.len() as u64, limit_bytes as u64);
                return Err(FormatError::TooLong { what, len_bytes, limit_bytes });
            }
            return Ok(body.to_vec());
        }
        let mut payload = vec![0; limit_bytes];
        let len =
            self.zstd.decompress_to_buffer(body, &mut payload).map_err(|e| decompress_error(what, e))?;
        payload.truncate(len);
        Ok(payload)
    }
}

fn split_coding<'a>(what: &'static str, frame: &'a [u8]) -> Result<(u8, &'a [u8]), FormatError> {
    match frame.split_first() {
        Some((&coding @ (CODING_RAW | CODING_ZSTD), body)) => Ok((coding, body)),
        Some((coding, _)) => Err(FormatError::field(what, "coding", coding, "0 (raw) or 1 (zstd)")),
        None => Err(FormatError::Truncated { what, len_bytes: 0, needed_bytes: 1 }),
    }
}

fn compress_error(source: std::io::Error) -> FormatError {
    FormatError::Compress { what: "frame", reason: source.to_string() }
}

fn decompress_error(what: &'static str, source: std::io::Error) -> FormatError {
    FormatError::Decompress { what, reason: source.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[0]
            })
            .collect()
    }

    #[test]
    fn a_payload_that_does_not_shrink_is_stored_raw() {
        let payload = noise(4096);
        let frame = FrameEncoder::new().unwrap().encode(&payload).unwrap();
        assert_eq!(frame.len(), frame_len_max(payload.len()));
        assert_eq!(frame[0], CODING_RAW);
        let mut decoded = vec![0; 4096];
        FrameDecoder::new().unwrap().decode_exact("chunk", &frame, &mut decoded).unwrap();
        assert_eq!(decoded, payload);
    }

    #[test]
    fn a_frame_that_holds_too_much_or_too_little_is_refused() {
        let frame = FrameEncoder::new().unwrap().encode(&[5; 8192]).unwrap();
        let mut decoder = FrameDecoder::new().unwrap();
        for len in [0, 4096, 8191, 8193, 1 << 20] {
            assert!(decoder.decode_exact("chunk", &frame, &mut vec![0; len]).is_err(), "{len}");
        }
        assert!(decoder.decode_bounded("chunk", &frame, 8191).is_err());
        assert_eq!(decoder.decode_bounded("chunk", &frame, 10_000).unwrap(), [5; 8192]);
    }

    #[test]
    fn a_bomb_is_stopped_at_the_callers_limit() {
        let bomb = FrameEncoder::new().unwrap().encode(&vec![0; 64 << 20]).unwrap();
        assert!(bomb.len() < 16_384);
        let mut chunk = vec![0; 65_536];
        let error = FrameDecoder::new().unwrap().decode_exact("chunk", &bomb, &mut chunk).unwrap_err();
        assert!(matches!(error, FormatError::Decompress { .. }), "{error}");
    }

    #[test]
    fn another_chunk_under_this_id_is_refused() {
        let frame = FrameEncoder::new().unwrap().encode(&[1; 4096]).unwrap();
        let error = FrameDecoder::new()
            .unwrap()
            .decode_chunk(&frame, ChunkId::of(&[2; 4096]), &mut [0; 4096])
            .unwrap_err();
        assert!(matches!(error, FormatError::IdMismatch { .. }), "{error}");
    }

    #[test]
    fn unknown_coding_and_empty_frames_are_refused() {
        let mut decoder = FrameDecoder::new().unwrap();
        assert!(matches!(
            decoder.decode_exact("chunk", &[], &mut []).unwrap_err(),
            FormatError::Truncated { needed_bytes: 1, .. }
        ));
        assert!(matches!(
            decoder.decode_exact("chunk", &[2, 0], &mut [0]).unwrap_err(),
            FormatError::Field { field: "coding", .. }
        ));
    }
}
