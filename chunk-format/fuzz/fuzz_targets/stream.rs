//! An object of a boot stream, in pieces, after some history.

#![no_main]

use chunk_format::StreamWindow;
use libfuzzer_sys::fuzz_target;

/// The content that is expected, as the golden objects have it.
const CONTENT_BYTES: usize = 8192;

fuzz_target!(|data: &[u8]| {
    let Some((first, object)) = data.split_first() else { return };
    let history = vec![*first; usize::from(*first) * 16];
    let mut window = StreamWindow::after(&history);
    let Ok(mut decoder) = window.decode(CONTENT_BYTES) else { return };
    let step = usize::from(*first) + 1;
    let whole = object.chunks(step).try_for_each(|piece| decoder.push(piece));
    let decoded = decoder.content().len();
    if whole.and_then(|()| decoder.finish()).is_ok() {
        assert_eq!(decoded, CONTENT_BYTES);
    }
});
