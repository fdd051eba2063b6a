//! Boot streams: the chunks of a profile once more, compressed together in the order of first touch.
//!
//! A stream is cut into objects. Each is one zstd frame whose content is its chunks, one after the other, nothing
//! between them. The chunks of the stream before it, the last 32 MiB of them, are the frame's raw content dictionary
//! (RFC 8878, section 5), so that what repeats across objects is stored once, and whoever has the earlier chunks can
//! begin at any object.
//!
//! What is cut from an object is checked by the chunks' ids, as from anywhere else.

use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, DParameter, ErrorCode, InBuffer, OutBuffer, Strategy, compress_bound,
    get_error_name,
};

use crate::error::FormatError;

const WHAT: &str = "boot stream";

/// How many of the bytes before an object its frame may refer to.
pub const STREAM_HISTORY_BYTES: usize = 32 << 20;
/// The longest object of a boot stream anyone accepts, bytes: [`STREAM_CONTENT_BYTES`] of what cannot be compressed, such as a
/// kernel's initial RAM disk, and what zstd adds to that.
pub const MAX_STREAM_BYTES: usize = 17 << 20;
/// The chunks in one object, bytes, that writers aim at: some MiB when compressed.
pub const STREAM_CONTENT_BYTES: usize = 16 << 20;

/// The most chunks in one object anyone accepts, bytes: a reader holds them while it decodes.
pub const MAX_STREAM_CONTENT_BYTES: usize = 64 << 20;

/// Room behind the history, in objects: moving the history to the front takes a fourth as long as decoding an object, and
/// nothing is decoded meanwhile.
const OBJECTS_BEHIND_HISTORY: usize = 4;

/// log2 of the window, which holds the history: 32 MiB.
const WINDOW_LOG: u32 = STREAM_HISTORY_BYTES.trailing_zeros();
/// zstd level: written once by the publisher, read by everyone.
const LEVEL: i32 = 19;

/// Compresses the content of one object. `history` are the bytes of the stream before it, of which the last
/// [`STREAM_HISTORY_BYTES`] are used. Takes seconds: some MB/s.
///
/// # Errors
/// `Compress` when zstd cannot get its memory; `TooLong` when the object would be over [`MAX_STREAM_BYTES`] or its content
/// is over [`MAX_STREAM_CONTENT_BYTES`].
pub fn encode_stream_object(history: &[u8], content: &[u8]) -> Result<Vec<u8>, FormatError> {
    check_content(content.len() as u64)?;
    let mut zstd = CCtx::try_create()
        .ok_or_else(|| FormatError::Compress { what: WHAT, reason: "no memory".to_owned() })?;
    for parameter in [
        CParameter::CompressionLevel(LEVEL),
        CParameter::WindowLog(WINDOW_LOG),
        CParameter::Strategy(Strategy::ZSTD_btultra2),
        CParameter::EnableLongDistanceMatching(true),
        CParameter::ContentSizeFlag(true),
        CParameter::ChecksumFlag(false),
    ] {
        zstd.set_parameter(parameter).map_err(compress_error)?;
    }
    zstd.ref_prefix(last_history(history)).map_err(compress_error)?;
    let mut object = Vec::with_capacity(compress_bound(content.len()));
    zstd.compress2(&mut object, content).map_err(compress_error)?;
    if object.len() > MAX_STREAM_BYTES {
        let (len_bytes, limit_bytes) = (object.len() as u64, MAX_STREAM_BYTES as u64);
        return Err(FormatError::TooLong { what: WHAT, len_bytes, limit_bytes });
    }
    object.shrink_to_fit();
    Ok(object)
}

/// The part of a stream's bytes that the next object may refer to.
fn last_history(bytes: &[u8]) -> &[u8] {
    bytes.get(bytes.len().saturating_sub(STREAM_HISTORY_BYTES)..).unwrap_or(bytes)
}

/// The bytes of a stream while it is decoded: what the next object may refer to, and behind it, with nothing between them, room
/// for that object. One buffer serves the whole stream, so that its memory is asked for once.
pub struct StreamWindow {
    bytes: Vec<u8>,
    /// How many of them, from the first, hold chunks.
    filled: usize,
}

impl StreamWindow {
    /// Begins after `history`, of which the last [`STREAM_HISTORY_BYTES`] are kept.
    pub fn after(history: &[u8]) -> Self {
        let history = last_history(history);
        // Zeroed pages, which cost nothing before they are written.
        let mut bytes = vec![0; STREAM_HISTORY_BYTES + OBJECTS_BEHIND_HISTORY * STREAM_CONTENT_BYTES];
        bytes[..history.len()].copy_from_slice(history);
        Self { bytes, filled: history.len() }
    }

    /// Begins to decode an object of `content_bytes`.
    ///
    /// # Errors
    /// `Decompress` when zstd cannot get its memory; `TooLong` when the content is over [`MAX_STREAM_CONTENT_BYTES`].
    pub fn decode(&mut self, content_bytes: usize) -> Result<StreamDecoder<'_>, FormatError> {
        check_content(content_bytes as u64)?;
        let history_bytes = self.filled.min(STREAM_HISTORY_BYTES);
        if self.bytes.len() - self.filled < content_bytes {
            self.bytes.copy_within(self.filled - history_bytes..self.filled, 0);
            self.filled = history_bytes;
            self.bytes.resize(self.bytes.len().max(history_bytes + content_bytes), 0);
        }
        let (before, room) = self.bytes.split_at_mut(self.filled);
        let mut zstd =
            DCtx::try_create().ok_or_else(|| decompress_error("zstd cannot get its memory".to_owned()))?;
        zstd.set_parameter(DParameter::WindowLogMax(WINDOW_LOG)).map_err(decode_error)?;
        // Decodes in place: without it, zstd keeps a window of its own and copies everything out of it.
        zstd.set_parameter(DParameter::StableOutBuffer(true)).map_err(decode_error)?;
        zstd.ref_prefix(&before[before.len() - history_bytes..]).map_err(decode_error)?;
        let content = &mut room[..content_bytes];
        Ok(StreamDecoder { zstd, content, decoded: 0, filled: &mut self.filled, ended: false })
    }
}

/// Decodes one object as it arrives. Its memory is bounded by the window, whatever the object says.
pub struct StreamDecoder<'window> {
    zstd: DCtx<'window>,
    content: &'window mut [u8],
    decoded: usize,
    filled: &'window mut usize,
    ended: bool,
}

impl StreamDecoder<'_> {
    /// Takes the next bytes of the object.
    ///
    /// # Errors
    /// `Decompress` when they are damaged, hold more than the object's content, or go on after its end.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), FormatError> {
        let mut input = InBuffer::around(bytes);
        while !self.ended {
            let before = (input.pos(), self.decoded);
            let mut output = OutBuffer::around_pos(&mut *self.content, self.decoded);
            let hint = self.zstd.decompress_stream(&mut output, &mut input).map_err(decode_error)?;
            self.decoded = output.pos();
            self.ended = hint == 0;
            if !self.ended && before == (input.pos(), self.decoded) {
                break;
            }
        }
        match (input.pos() < bytes.len(), self.ended) {
            (false, _) => Ok(()),
            (true, true) => Err(decompress_error("bytes follow the zstd frame".to_owned())),
            (true, false) => Err(decompress_error("it holds more than its chunks".to_owned())),
        }
    }

    /// What was decoded of the object up to here.
    pub fn content(&self) -> &[u8] {
        &self.content[..self.decoded]
    }

    /// Checks that the object was whole, after which the next one may refer to it.
    ///
    /// # Errors
    /// `Decompress`.
    pub fn finish(self) -> Result<(), FormatError> {
        let left_bytes = self.content.len() - self.decoded;
        if !self.ended || left_bytes > 0 {
            return Err(decompress_error(format!("it is cut short: {left_bytes} bytes lack")));
        }
        *self.filled += self.decoded;
        Ok(())
    }
}

fn check_content(len_bytes: u64) -> Result<(), FormatError> {
    let limit_bytes = MAX_STREAM_CONTENT_BYTES as u64;
    match len_bytes <= limit_bytes {
        true => Ok(()),
        false => {
            Err(FormatError::TooLong { what: "content of a boot stream's object", len_bytes, limit_bytes })
        }
    }
}

fn compress_error(code: ErrorCode) -> FormatError {
    FormatError::Compress { what: WHAT, reason: get_error_name(code).to_owned() }
}

fn decode_error(code: ErrorCode) -> FormatError {
    decompress_error(get_error_name(code).to_owned())
}

fn decompress_error(reason: String) -> FormatError {
    FormatError::Decompress { what: WHAT, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seed: u32, len: usize) -> Vec<u8> {
        let mut state = seed;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                b"etaoin shrdlu\n"[state as usize >> 16 & 7]
            })
            .collect()
    }

    fn decode(history: &[u8], object: &[u8], len: usize, step: usize) -> Result<Vec<u8>, FormatError> {
        let mut window = StreamWindow::after(history);
        let mut decoder = window.decode(len)?;
        for part in object.chunks(step) {
            decoder.push(part)?;
        }
        let content = decoder.content().to_vec();
        decoder.finish()?;
        Ok(content)
    }

    #[test]
    fn an_object_that_holds_too_much_is_refused_before_memory_is_taken() {
        let (over, mut window) = (MAX_STREAM_CONTENT_BYTES + 1, StreamWindow::after(&[]));
        assert!(matches!(window.decode(over), Err(FormatError::TooLong { .. })));
        assert!(window.decode(over - 1).is_ok());
    }

    #[test]
    fn what_cannot_be_compressed_fits_too() {
        assert!(compress_bound(STREAM_CONTENT_BYTES) <= MAX_STREAM_BYTES);
    }

    #[test]
    fn an_object_is_decoded_from_pieces_of_any_length() {
        let content = text(1, 300_000);
        let object = encode_stream_object(&[], &content).unwrap();
        for step in [1, 7, 1000, object.len()] {
            assert_eq!(decode(&[], &object, content.len(), step).unwrap(), content, "{step}");
        }
    }

    #[test]
    fn what_the_history_holds_is_not_stored_again() {
        let history = text(2, 2 << 20);
        let content = history[..1 << 20].to_vec();
        let alone = encode_stream_object(&[], &content).unwrap();
        let object = encode_stream_object(&history, &content).unwrap();
        assert!(object.len() * 20 < alone.len(), "{} {}", object.len(), alone.len());
        assert_eq!(decode(&history, &object, content.len(), 4096).unwrap(), content);
        assert!(decode(&[], &object, content.len(), 4096).is_err());
    }

    #[test]
    fn objects_that_are_cut_or_go_on_or_hold_too_much_are_refused() {
        let content = text(3, 100_000);
        let object = encode_stream_object(&[], &content).unwrap();
        assert!(decode(&[], &object[..object.len() - 1], content.len(), 512).is_err());
        let mut longer = object.clone();
        longer.push(0);
        assert!(decode(&[], &longer, content.len(), 512).is_err());
        let twice = [object.as_slice(), &object].concat();
        assert!(decode(&[], &twice, content.len() * 2, 512).is_err());
        assert!(decode(&[], &object, content.len() - 1, 512).is_err());
        assert!(decode(&[], &object, content.len() + 1, 512).is_err());
        assert!(decode(&[], b"not zstd at all", 10, 512).is_err());
    }

    #[test]
    fn a_window_slides_over_a_stream_that_is_longer() {
        let objects: Vec<Vec<u8>> = (0..9).map(|seed| text(seed % 4, 15 << 20)).collect();
        let (mut history, mut window) = (Vec::new(), StreamWindow::after(&[]));
        for content in &objects {
            let zstd = |history: &[u8]| {
                let mut zstd = CCtx::create();
                zstd.set_parameter(CParameter::WindowLog(WINDOW_LOG)).unwrap();
                zstd.set_parameter(CParameter::EnableLongDistanceMatching(true)).unwrap();
                zstd.ref_prefix(last_history(history)).unwrap();
                let mut object = Vec::with_capacity(compress_bound(content.len()));
                zstd.compress2(&mut object, content).unwrap();
                object
            };
            let mut decoder = window.decode(content.len()).unwrap();
            zstd(&history).chunks(1 << 20).for_each(|piece| decoder.push(piece).unwrap());
            assert!(decoder.content() == content);
            decoder.finish().unwrap();
            history.extend_from_slice(content);
        }
    }

    #[test]
    fn an_object_that_does_not_hold_leaves_the_window_as_it_was() {
        let (first, second) = (text(4, 100_000), text(5, 100_000));
        let mut window = StreamWindow::after(&first);
        let object = encode_stream_object(&first, &second).unwrap();
        for cut in [0, 10, object.len() - 1] {
            let mut decoder = window.decode(second.len()).unwrap();
            let _ = decoder.push(&object[..cut]);
            assert!(decoder.finish().is_err());
        }
        let mut decoder = window.decode(second.len()).unwrap();
        decoder.push(&object).unwrap();
        assert!(decoder.content() == second);
        decoder.finish().unwrap();
    }

    #[test]
    fn a_frame_that_asks_for_a_larger_window_is_refused() {
        // A zstd header with a window descriptor of 64 MiB and no content size.
        let header = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 16 << 3, 0x01, 0x00, 0x00];
        assert!(decode(&[], &header, 0, 512).is_err());
    }
}
