//! A payload as it is stored: compressed where that helps, raw where it does not.
//!
//! | at | len | field   | values                                  |
//! |----|-----|---------|-----------------------------------------|
//! |  0 |  1  | coding  | 0 raw, 1 zstd                           |
//! |  1 |  …  | payload | the bytes, or one zstd frame of them    |
//!
//! Chunks, segments and locators are all stored as frames. What a frame holds is checked by the id that named it.
//!
//! A zstd payload is exactly one zstd frame: it says its content size, has no dictionary, asks for a window of at most
//! 8 MiB (what every decoder of RFC 8878 offers), and nothing stands before or after it. No frame is longer than the raw
//! one would be. So every reader, streaming or not, agrees on what a frame holds, and bytes cannot hide beside it.

use zstd::bulk::{Compressor, Decompressor};

use crate::error::FormatError;
use crate::id::{ChunkId, is_zero};

const CODING_RAW: u8 = 0;
const CODING_ZSTD: u8 = 1;

/// zstd level of stored frames: level 3 keeps two cores ahead of a fast disk; higher ones gain a few per cent.
const LEVEL: i32 = 3;
/// zstd level of frames that are sent once and kept by nobody as they are: ahead of a fast network on one core.
const SENDING_LEVEL: i32 = 1;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const ZSTD_SINGLE_SEGMENT: u8 = 1 << 5;
const ZSTD_DICTIONARY_ID: u8 = 0b11;
const MAX_WINDOW_BYTES: u64 = 8 << 20;

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

    /// Makes an encoder for frames that are sent once and kept by nobody as they are: fast, and a little longer.
    ///
    /// # Errors
    /// `Compress` when zstd cannot get its memory.
    pub fn for_sending() -> Result<Self, FormatError> {
        let zstd = Compressor::new(SENDING_LEVEL).map_err(compress_error)?;
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
    /// As [`FrameEncoder::encode`]; `out` is then as it was.
    pub fn encode_to(&mut self, payload: &[u8], out: &mut Vec<u8>) -> Result<usize, FormatError> {
        let start = out.len();
        out.resize(start + 1 + zstd::zstd_safe::compress_bound(payload.len()), 0);
        match self.zstd.compress_to_buffer(payload, &mut out[start + 1..]) {
            Ok(compressed) if compressed < payload.len() => {
                out[start] = CODING_ZSTD;
                out.truncate(start + 1 + compressed);
            }
            Ok(_) => {
                out.truncate(start);
                out.push(CODING_RAW);
                out.extend_from_slice(payload);
            }
            Err(error) => {
                out.truncate(start);
                return Err(compress_error(error));
            }
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
        let zstd = Decompressor::new().map_err(|error| decompress_error("frame", error.to_string()))?;
        Ok(Self { zstd })
    }

    /// Decodes a chunk's frame into a buffer of exactly the chunk size and checks it against its id.
    ///
    /// # Errors
    /// As [`FrameDecoder::decode_exact`]; `Field` for the zero chunk, which has a reserved id and no frame;
    /// `IdMismatch` when it is another chunk. The buffer's content is then meaningless.
    pub fn decode_chunk(&mut self, frame: &[u8], id: ChunkId, chunk: &mut [u8]) -> Result<(), FormatError> {
        self.decode_exact("chunk", frame, chunk)?;
        if is_zero(chunk) {
            return Err(FormatError::field("chunk", "bytes", "all zero", "a stored chunk's"));
        }
        id.verify(chunk)
    }

    /// Decodes a frame that must fill `payload` exactly. Nothing is said of its content: check its id.
    ///
    /// # Errors
    /// `Truncated`, `Field` (unknown coding), `TooLong` (longer than the raw frame) or `Decompress`.
    pub fn decode_exact(
        &mut self,
        what: &'static str,
        frame: &[u8],
        payload: &mut [u8],
    ) -> Result<(), FormatError> {
        let frame = Frame::split(what, frame, payload.len())?;
        if frame.payload_len != payload.len() {
            let reason = format!("it holds {} bytes, not {}", frame.payload_len, payload.len());
            return Err(FormatError::Decompress { what, reason });
        }
        self.fill(what, &frame, payload)
    }

    /// Decodes a frame of unknown payload length, of at most `limit_bytes`.
    ///
    /// # Errors
    /// `Truncated`, `Field` (unknown coding), `TooLong` (frame or payload) or `Decompress`.
    pub fn decode_bounded(
        &mut self,
        what: &'static str,
        frame: &[u8],
        limit_bytes: usize,
    ) -> Result<Vec<u8>, FormatError> {
        let frame = Frame::split(what, frame, limit_bytes)?;
        if frame.payload_len > limit_bytes {
            return Err(too_long(what, frame.payload_len, limit_bytes));
        }
        let mut payload = vec![0; frame.payload_len];
        self.fill(what, &frame, &mut payload)?;
        Ok(payload)
    }

    /// Decodes into a buffer of the length the frame promises.
    fn fill(&mut self, what: &'static str, frame: &Frame<'_>, payload: &mut [u8]) -> Result<(), FormatError> {
        if frame.coding == CODING_RAW {
            payload.copy_from_slice(frame.body);
            return Ok(());
        }
        let len = self
            .zstd
            .decompress_to_buffer(frame.body, payload)
            .map_err(|error| decompress_error(what, error.to_string()))?;
        if len != payload.len() {
            let reason = format!("it holds {len} bytes, not the {} it promises", payload.len());
            return Err(FormatError::Decompress { what, reason });
        }
        Ok(())
    }
}

/// A frame taken apart, its outside checked: what it promises is known before anything is allocated or decoded.
struct Frame<'a> {
    coding: u8,
    body: &'a [u8],
    payload_len: usize,
}

impl<'a> Frame<'a> {
    fn split(what: &'static str, frame: &'a [u8], payload_limit_bytes: usize) -> Result<Self, FormatError> {
        let Some((&coding, body)) = frame.split_first() else {
            return Err(FormatError::Truncated { what, len_bytes: 0, needed_bytes: 1 });
        };
        if body.len() > payload_limit_bytes {
            return Err(too_long(what, frame.len(), frame_len_max(payload_limit_bytes)));
        }
        let payload_len = match coding {
            CODING_RAW => body.len(),
            CODING_ZSTD => zstd_content_len(what, body)?,
            _ => return Err(FormatError::field(what, "coding", coding, "0 (raw) or 1 (zstd)")),
        };
        Ok(Self { coding, body, payload_len })
    }
}

/// Checks that bytes are one zstd frame of the kind stored here, and returns the content length it promises.
fn zstd_content_len(what: &'static str, body: &[u8]) -> Result<usize, FormatError> {
    let refused = |reason: &str| Err(decompress_error(what, reason.to_owned()));
    // The magic bytes first: skippable frames pass the size checks below with a content of nothing.
    let Some(&[descriptor, window, ..]) = body.strip_prefix(&ZSTD_MAGIC) else {
        return refused("it is not a zstd frame");
    };
    if descriptor & ZSTD_DICTIONARY_ID != 0 {
        return refused("it needs a dictionary");
    }
    if descriptor & ZSTD_SINGLE_SEGMENT == 0 && window_bytes(window) > MAX_WINDOW_BYTES {
        return refused("it needs a window of more than 8 MiB");
    }
    let Ok(Some(content)) = zstd::zstd_safe::get_frame_content_size(body) else {
        return refused("it does not say its content size");
    };
    match zstd::zstd_safe::find_frame_compressed_size(body) {
        Ok(len) if len == body.len() => {}
        Ok(_) => return refused("bytes follow the zstd frame"),
        Err(_) => return refused("the zstd frame is cut short or damaged"),
    }
    usize::try_from(content).or_else(|_| refused("its content size is beyond all limits"))
}

/// The window a zstd frame asks for, from its window descriptor (RFC 8878, section 3.1.1.1.2).
fn window_bytes(descriptor: u8) -> u64 {
    let base = 1u64 << (10 + (descriptor >> 3));
    base + base / 8 * u64::from(descriptor & 7)
}

fn too_long(what: &'static str, len: usize, limit: usize) -> FormatError {
    FormatError::TooLong { what, len_bytes: len as u64, limit_bytes: limit as u64 }
}

fn compress_error(source: std::io::Error) -> FormatError {
    FormatError::Compress { what: "frame", reason: source.to_string() }
}

fn decompress_error(what: &'static str, reason: String) -> FormatError {
    FormatError::Decompress { what, reason }
}

#[cfg(test)]
mod tests;
