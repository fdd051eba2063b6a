//! A frame of a chunk, and of a payload whose length only the frame knows.

#![no_main]

use chunk_format::{ChunkId, FrameDecoder, FrameEncoder, frame_len_max, is_zero};
use libfuzzer_sys::fuzz_target;

const LIMIT_BYTES: usize = 64 << 10;

fuzz_target!(|data: &[u8]| {
    let mut decoder = FrameDecoder::new().unwrap();
    let Ok(payload) = decoder.decode_bounded("frame", data, LIMIT_BYTES) else {
        let mut chunk = vec![0; 4096];
        assert!(decoder.decode_exact("frame", data, &mut chunk).is_err());
        return;
    };
    assert!(payload.len() <= LIMIT_BYTES);

    let mut chunk = vec![0; payload.len()];
    let result = decoder.decode_chunk(data, ChunkId::of(&payload), &mut chunk);
    assert!(result.is_ok() != is_zero(&payload) || data.len() > frame_len_max(payload.len()));
    for len in [payload.len() + 1, payload.len().saturating_sub(1)] {
        let exact = decoder.decode_exact("frame", data, &mut vec![0; len]);
        assert!(exact.is_err() || len == payload.len());
    }

    let again = FrameEncoder::new().unwrap().encode(&payload).unwrap();
    assert_eq!(decoder.decode_bounded("frame", &again, LIMIT_BYTES).unwrap(), payload);
});
