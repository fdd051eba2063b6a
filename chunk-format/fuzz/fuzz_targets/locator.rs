//! A stored locator, asked for by the segment it names.

#![no_main]

use chunk_format::{
    ChunkSize, FrameDecoder, FrameEncoder, Locator, MAX_LOCATOR_BYTES, SEGMENT_CHUNKS, SegmentId,
    frame_len_max,
};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

mod inside;

const SEGMENT_AT: usize = 10;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    inside::mutate(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let mut decoder = FrameDecoder::new().unwrap();
    let Ok(payload) = decoder.decode_bounded("locator", data, MAX_LOCATOR_BYTES) else { return };
    let segment =
        payload.get(SEGMENT_AT..).and_then(<[u8]>::first_chunk).map(|id| SegmentId::from_bytes(*id));
    let Ok(locator) = Locator::decode(data, segment.unwrap_or(SegmentId::ZERO), &mut decoder) else { return };

    let mut longest = 0;
    for place in (0..SEGMENT_CHUNKS).filter_map(|at| locator.place(at)) {
        let pack = locator.pack(&place).unwrap();
        assert!(u64::from(place.offset) + u64::from(place.frame_len) <= u64::from(pack.pack_len));
        longest = longest.max(place.frame_len as usize);
    }
    let checked = locator.check_frame_lens(ChunkSize::DEFAULT);
    assert_eq!(checked.is_ok(), longest <= frame_len_max(ChunkSize::DEFAULT.bytes()));

    let again = locator.encode(&mut FrameEncoder::new().unwrap()).unwrap();
    assert_eq!(decoder.decode_bounded("locator", &again, MAX_LOCATOR_BYTES).unwrap(), payload);
});
