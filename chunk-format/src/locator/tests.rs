use super::*;

fn sample() -> Locator {
    let pack = |name: &str, namespace: fn(Name) -> Namespace| PackRef {
        namespace: namespace(name.parse().unwrap()),
        pack: PackId::of(name.as_bytes()),
        pack_len: 1 << 20,
    };
    let packs = vec![pack("debian", Namespace::Image), pack("alice", Namespace::User)];
    let mut places = vec![None; SEGMENT_CHUNKS];
    places[0] = Some(ChunkPlace { pack: 0, offset: 16, frame_len: 100 });
    places[1] = Some(ChunkPlace { pack: 0, offset: 116, frame_len: 200 });
    places[2] = Some(ChunkPlace { pack: 1, offset: 5000, frame_len: 300 });
    places[9] = Some(ChunkPlace { pack: 0, offset: 16, frame_len: 100 });
    places[1023] = Some(ChunkPlace { pack: 0, offset: (1 << 20) - 2, frame_len: 2 });
    Locator::new(SegmentId::of(b"s"), packs, places).unwrap()
}

#[test]
fn a_locator_reads_back_and_is_small() {
    let locator = sample();
    let frame = locator.encode(&mut FrameEncoder::new().unwrap()).unwrap();
    assert!(frame.len() < 400, "{} bytes", frame.len());
    let decoded = Locator::decode(&frame, locator.segment(), &mut FrameDecoder::new().unwrap()).unwrap();
    assert_eq!(decoded, locator);
    assert_eq!(decoded.pack(&decoded.place(2).unwrap()).unwrap().namespace.to_string(), "user/alice");
}

#[test]
fn a_locator_of_another_segment_is_refused() {
    let frame = sample().encode(&mut FrameEncoder::new().unwrap()).unwrap();
    let error =
        Locator::decode(&frame, SegmentId::of(b"other"), &mut FrameDecoder::new().unwrap()).unwrap_err();
    assert!(matches!(error, FormatError::Field { field: "segment", .. }), "{error}");
}

#[test]
fn places_outside_their_pack_are_refused() {
    let packs =
        vec![PackRef { namespace: "image/a".parse().unwrap(), pack: PackId::of(b"p"), pack_len: 1000 }];
    for (offset, frame_len) in [(16, 985), (15, 10), (16, 0), (u32::MAX, u32::MAX)] {
        let mut places = vec![None; SEGMENT_CHUNKS];
        places[5] = Some(ChunkPlace { pack: 0, offset, frame_len });
        assert!(Locator::new(SegmentId::of(b"s"), packs.clone(), places).is_err(), "{offset} {frame_len}");
    }
    let mut places = vec![None; SEGMENT_CHUNKS];
    places[0] = Some(ChunkPlace { pack: 1, offset: 16, frame_len: 10 });
    assert!(Locator::new(SegmentId::of(b"s"), packs, places).is_err());
}

fn places_with(place: ChunkPlace) -> Vec<Option<ChunkPlace>> {
    let mut places = vec![None; SEGMENT_CHUNKS];
    places[7] = Some(place);
    places
}

/// The bytes inside the sample's frame, edited and framed again: what a hostile host can serve.
fn forged(edit: impl FnOnce(&mut Vec<u8>)) -> Result<Locator, FormatError> {
    let mut decoder = FrameDecoder::new().unwrap();
    let mut encoder = FrameEncoder::new().unwrap();
    let frame = sample().encode(&mut encoder).unwrap();
    let mut bytes = decoder.decode_bounded(WHAT, &frame, MAX_LOCATOR_BYTES).unwrap();
    edit(&mut bytes);
    Locator::decode(&encoder.encode(&bytes).unwrap(), sample().segment(), &mut decoder)
}

#[test]
fn more_than_1024_packs_are_refused() {
    let pack = PackRef { namespace: "image/a".parse().unwrap(), pack: PackId::of(b"p"), pack_len: 1 << 20 };
    let places = vec![None; SEGMENT_CHUNKS];
    assert!(Locator::new(SegmentId::of(b"s"), vec![pack.clone(); 1025], places.clone()).is_err());
    Locator::new(SegmentId::of(b"s"), vec![pack; 1024], places).unwrap();
    for count in [1025u16, 0xfffe, 0xffff] {
        let error = forged(|bytes| bytes[42..44].copy_from_slice(&count.to_le_bytes())).unwrap_err();
        assert!(matches!(error, FormatError::Field { field: "packs", .. }), "{error}");
    }
}

#[test]
fn the_longest_locator_reads_back() {
    let packs: Vec<_> = (0..1024u32)
        .map(|number| PackRef {
            namespace: Namespace::User("n".repeat(MAX_NAME_BYTES).parse().unwrap()),
            pack: PackId::of(&number.to_le_bytes()),
            pack_len: 32 << 20,
        })
        .collect();
    let places = (0..1024u16)
        .map(|pack| Some(ChunkPlace { pack, offset: 16 + u32::from(pack) * 7919, frame_len: 2 }))
        .collect();
    let locator = Locator::new(SegmentId::of(b"s"), packs, places).unwrap();
    let frame = locator.encode(&mut FrameEncoder::new().unwrap()).unwrap();
    let mut decoder = FrameDecoder::new().unwrap();
    let bytes = decoder.decode_bounded(WHAT, &frame, MAX_LOCATOR_BYTES).unwrap();
    assert_eq!(bytes.len(), MAX_LOCATOR_BYTES);
    assert_eq!(Locator::decode(&frame, locator.segment(), &mut decoder).unwrap(), locator);
}

#[test]
fn lengths_no_chunk_can_have_are_refused() {
    let pack = PackRef { namespace: "image/a".parse().unwrap(), pack: PackId::of(b"p"), pack_len: 32 << 20 };
    let with_len = |frame_len| {
        let place = ChunkPlace { pack: 0, offset: 16, frame_len };
        Locator::new(SegmentId::of(b"s"), vec![pack.clone()], places_with(place))
    };
    assert!(with_len(1).is_err());
    assert!(with_len((4 << 20) + 2).is_err());
    let locator = with_len(65_538).unwrap();
    assert!(locator.check_frame_lens(ChunkSize::DEFAULT).is_err());
    locator.check_frame_lens(ChunkSize::MAX).unwrap();
    with_len(65_537).unwrap().check_frame_lens(ChunkSize::DEFAULT).unwrap();
}

#[test]
fn a_chunk_not_stored_has_no_place_beside_it() {
    let lengths_start = |bytes: &[u8]| bytes.len() - SEGMENT_CHUNKS * 4;
    let gaps_start = |bytes: &[u8]| bytes.len() - SEGMENT_CHUNKS * 8;
    assert!(forged(|_| ()).is_ok());
    for start in [lengths_start as fn(&[u8]) -> usize, gaps_start] {
        let error = forged(|bytes| {
            let at = start(bytes) + 500 * 4;
            bytes[at] = 1;
        })
        .unwrap_err();
        assert!(matches!(error, FormatError::Field { field: "place", .. }), "{error}");
    }
}

#[test]
fn a_gap_that_wraps_outside_the_pack_is_refused() {
    let error = forged(|bytes| {
        let second_gap = bytes.len() - SEGMENT_CHUNKS * 8 + 4;
        bytes[second_gap..second_gap + 4].copy_from_slice(&(u32::MAX - 120).to_le_bytes());
    })
    .unwrap_err();
    assert!(matches!(error, FormatError::Field { field: "place", .. }), "{error}");
}

#[test]
fn names_in_a_locator_are_names() {
    for bad in [&b"../.."[..], b"\xff\xfe\xfd\xfc\xfb", b"DEBIA", b"deb\0a"] {
        let error = forged(|bytes| {
            bytes.splice(44..52, [&[u8::try_from(bad.len()).unwrap(), 0][..], bad].concat());
        })
        .unwrap_err();
        assert!(matches!(error, FormatError::Field { field: "name", .. }), "{error}");
    }
    assert!(forged(|bytes| bytes[45] = 2).is_err(), "kind");
}
