//! Mutates what a frame holds: flipping bits of compressed bytes would hardly ever get past the decompression.

use chunk_format::FrameDecoder;
use libfuzzer_sys::fuzzer_mutate;

const PAYLOAD_LIMIT_BYTES: usize = 128 << 10;
const RAW: u8 = 0;

/// Three times of four, replaces a frame by a raw one of its payload, mutated; else mutates the frame as it is.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    if !seed.is_multiple_of(4) && max_size > 1 {
        let decoded = FrameDecoder::new()
            .and_then(|mut decoder| decoder.decode_bounded("frame", &data[..size], PAYLOAD_LIMIT_BYTES));
        if let Ok(payload) = decoded
            && payload.len() < max_size
        {
            let len = payload.len();
            data[0] = RAW;
            data[1..=len].copy_from_slice(&payload);
            return 1 + fuzzer_mutate(&mut data[1..max_size], len, max_size - 1);
        }
    }
    fuzzer_mutate(data, size, max_size)
}
