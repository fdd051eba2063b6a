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

/// A frame of one RLE block, put together by hand: `len` times the byte 7.
fn rle_frame(window_descriptor: u8, len: u32) -> Vec<u8> {
    let mut frame = vec![CODING_ZSTD];
    frame.extend_from_slice(&ZSTD_MAGIC);
    frame.extend_from_slice(&[0b1000_0000, window_descriptor]);
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(&((len << 3) | 0b011).to_le_bytes()[..3]);
    frame.push(7);
    frame
}

fn refusal(frame: &[u8], len: usize) -> String {
    let mut decoder = FrameDecoder::new().unwrap();
    let exact = decoder.decode_exact("chunk", frame, &mut vec![0; len]).unwrap_err();
    let bounded = decoder.decode_bounded("chunk", frame, len).unwrap_err();
    assert_eq!(exact.to_string(), bounded.to_string());
    exact.to_string()
}

#[test]
fn two_zstd_frames_are_not_a_frame() {
    let mut encoder = FrameEncoder::new().unwrap();
    let (first, second) = (encoder.encode(&[1; 4096]).unwrap(), encoder.encode(&[2; 4096]).unwrap());
    let joined = [&first[..], &second[1..]].concat();
    assert!(refusal(&joined, 8192).contains("bytes follow the zstd frame"));
    assert!(refusal(&joined, 4096).contains("bytes follow the zstd frame"));
}

#[test]
fn skippable_zstd_frames_cannot_hide_bytes() {
    let frame = FrameEncoder::new().unwrap().encode(&[1; 4096]).unwrap();
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 6, 0, 0, 0][..], b"hidden"].concat();
    let before = [&[CODING_ZSTD][..], &skippable, &frame[1..]].concat();
    assert!(refusal(&before, 4096).contains("not a zstd frame"));
    let after = [&frame[..], &skippable].concat();
    assert!(refusal(&after, 4096).contains("bytes follow the zstd frame"));
    let alone = [&[CODING_ZSTD][..], &skippable].concat();
    let error = FrameDecoder::new().unwrap().decode_bounded("chunk", &alone, 4096).unwrap_err();
    assert!(error.to_string().contains("not a zstd frame"), "{error}");
}

#[test]
fn bytes_after_the_zstd_frame_are_refused() {
    let mut frame = FrameEncoder::new().unwrap().encode(&[1; 4096]).unwrap();
    frame.push(0);
    assert!(refusal(&frame, 4096).contains("bytes follow the zstd frame"));
}

#[test]
fn a_zstd_frame_must_say_its_content_size() {
    let mut compressor = Compressor::new(LEVEL).unwrap();
    compressor.include_contentsize(false).unwrap();
    let frame = [&[CODING_ZSTD][..], &compressor.compress(&[1; 4096]).unwrap()].concat();
    assert!(refusal(&frame, 4096).contains("content size"));
}

#[test]
fn a_content_size_that_is_not_true_is_refused() {
    let mut frame = rle_frame(13 << 3, 4096);
    frame[7..11].copy_from_slice(&4095u32.to_le_bytes());
    refusal(&frame, 4095);
    frame[7..11].copy_from_slice(&4097u32.to_le_bytes());
    refusal(&frame, 4097);
    frame[7..11].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = FrameDecoder::new().unwrap().decode_bounded("chunk", &frame, 4096).unwrap_err();
    assert!(matches!(error, FormatError::TooLong { len_bytes: 0xffff_ffff, .. }), "{error}");
}

#[test]
fn windows_beyond_8_mib_are_refused_whatever_the_content() {
    let mut payload = vec![0; 4096];
    let mut decoder = FrameDecoder::new().unwrap();
    decoder.decode_exact("chunk", &rle_frame(13 << 3, 4096), &mut payload).unwrap();
    assert_eq!(payload, [7; 4096]);
    for descriptor in [13 << 3 | 1, 14 << 3, 0xff] {
        assert!(refusal(&rle_frame(descriptor, 4096), 4096).contains("window"), "{descriptor}");
    }
}

#[test]
fn a_frame_that_needs_a_dictionary_is_refused() {
    let mut frame = rle_frame(13 << 3, 4096);
    frame[5] |= 1;
    frame.insert(7, 9);
    assert!(refusal(&frame, 4096).contains("dictionary"));
}

#[test]
fn a_frame_longer_than_the_raw_one_is_refused() {
    let mut frame = rle_frame(13 << 3, 16);
    let last_block = frame.split_off(11);
    for _ in 0..100 {
        frame.extend_from_slice(&[0, 0, 0]);
    }
    frame.extend_from_slice(&last_block);
    let error = FrameDecoder::new().unwrap().decode_exact("chunk", &frame, &mut [0; 16]).unwrap_err();
    assert!(matches!(error, FormatError::TooLong { limit_bytes: 17, .. }), "{error}");
}

#[test]
fn a_zero_chunk_is_never_read_from_a_frame() {
    let mut encoder = FrameEncoder::new().unwrap();
    let mut decoder = FrameDecoder::new().unwrap();
    let frame = encoder.encode(&[0; 4096]).unwrap();
    for id in [ChunkId::ZERO, ChunkId::of(&[0; 4096])] {
        assert!(decoder.decode_chunk(&frame, id, &mut [1; 4096]).is_err(), "{id}");
    }
}

#[test]
fn a_decoder_works_on_after_a_bad_frame() {
    let mut decoder = FrameDecoder::new().unwrap();
    let frame = FrameEncoder::new().unwrap().encode(&noise(100).repeat(100)).unwrap();
    for at in 1..frame.len() {
        let mut bad = frame.clone();
        bad[at] ^= 0xff;
        let _ = decoder.decode_bounded("chunk", &bad, 1 << 20);
        assert_eq!(decoder.decode_bounded("chunk", &frame, 1 << 20).unwrap(), noise(100).repeat(100));
    }
}
