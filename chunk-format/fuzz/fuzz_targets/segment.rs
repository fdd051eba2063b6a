//! A stored segment, under the id its bytes have.

#![no_main]

use chunk_format::{FrameDecoder, FrameEncoder, SEGMENT_BYTES, Segment, SegmentId, is_zero};
use libfuzzer_sys::{fuzz_mutator, fuzz_target};

mod inside;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    inside::mutate(data, size, max_size, seed)
});

fuzz_target!(|data: &[u8]| {
    let mut decoder = FrameDecoder::new().unwrap();
    assert!(Segment::decode(data, SegmentId::ZERO, &mut decoder).is_err());
    let Ok(payload) = decoder.decode_bounded("segment", data, SEGMENT_BYTES) else {
        assert!(Segment::decode(data, SegmentId::of(data), &mut decoder).is_err());
        return;
    };
    let decoded = Segment::decode(data, SegmentId::of(&payload), &mut decoder);
    assert_eq!(decoded.is_ok(), payload.len() == SEGMENT_BYTES && !is_zero(&payload));
    if let Ok(segment) = decoded {
        assert_eq!(segment.id(), SegmentId::of(&payload));
        let again = segment.encode(&mut FrameEncoder::new().unwrap()).unwrap();
        assert_eq!(Segment::decode(&again, segment.id(), &mut decoder).unwrap(), segment);
    }
});
