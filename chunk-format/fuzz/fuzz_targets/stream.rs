//! An object of a boot stream, in pieces, after some history.

#![no_main]

use chunk_format::StreamDecoder;
use libfuzzer_sys::fuzz_target;

/// The content that is expected, as the golden objects have it.
const CONTENT_BYTES: u64 = 8192;

fuzz_target!(|data: &[u8]| {
    let Some((first, object)) = data.split_first() else { return };
    let history = vec![*first; usize::from(*first) * 16];
    let Ok(mut decoder) = StreamDecoder::new(&history, CONTENT_BYTES) else { return };
    let mut content = Vec::new();
    let step = usize::from(*first) + 1;
    let whole = object.chunks(step).try_for_each(|piece| decoder.push(piece, &mut content));
    if whole.and_then(|()| decoder.finish()).is_ok() {
        assert_eq!(content.len() as u64, CONTENT_BYTES);
    }
});
