use super::*;

fn sample() -> SealedPack {
    let mut encoder = FrameEncoder::new().unwrap();
    let mut builder = PackBuilder::new(ChunkSize::new(4096).unwrap());
    for value in 1..=3u8 {
        let chunk = vec![value; 4096];
        builder.add(ChunkId::of_chunk(&chunk), &chunk, &mut encoder).unwrap();
    }
    builder.seal().unwrap()
}

#[test]
fn a_sealed_pack_reads_back() {
    let pack = sample();
    let footer = PackFooter::decode_pack(&pack.bytes).unwrap();
    assert_eq!(footer.entries, pack.entries);
    footer.verify_frames(&pack.bytes, &mut FrameDecoder::new().unwrap()).unwrap();
    assert_eq!(pack.id, PackId::of(&pack.bytes));
}

#[test]
fn the_footer_reads_from_the_tail_alone() {
    let pack = sample();
    let len = pack.bytes.len();
    let trailer = PackTrailer::decode(&pack.bytes[len - PACK_TRAILER_BYTES..], len as u64).unwrap();
    let footer = PackFooter::decode(&pack.bytes[len - trailer.footer_len()..], len as u64).unwrap();
    assert_eq!(footer.entries, pack.entries);
    assert!(PackFooter::decode(&pack.bytes[len - trailer.footer_len() + 1..], len as u64).is_err());
}

#[test]
fn every_flipped_byte_is_found() {
    let pack = sample();
    let mut decoder = FrameDecoder::new().unwrap();
    for at in 0..pack.bytes.len() {
        let mut bytes = pack.bytes.clone();
        bytes[at] ^= 0x40;
        let found = PackFooter::decode_pack(&bytes)
            .and_then(|footer| footer.verify_frames(&bytes, &mut decoder))
            .and_then(|()| pack.id.verify(&bytes));
        assert!(found.is_err(), "byte {at}");
    }
}

#[test]
fn cut_and_padded_packs_are_refused() {
    let pack = sample().bytes;
    for len in 0..pack.len() {
        assert!(PackFooter::decode_pack(&pack[..len]).is_err(), "{len}");
    }
    let mut padded = pack.clone();
    padded.push(0);
    assert!(PackFooter::decode_pack(&padded).is_err());
    assert!(PackTrailer::decode(&pack, u64::MAX).is_err());
}

#[test]
fn the_zero_chunk_and_odd_sizes_never_enter_a_pack() {
    let mut encoder = FrameEncoder::new().unwrap();
    let mut builder = PackBuilder::new(ChunkSize::DEFAULT);
    assert!(builder.add(ChunkId::ZERO, &[0; 65_536], &mut encoder).is_err());
    assert!(builder.add(ChunkId::of(&[1]), &[1], &mut encoder).is_err());
    assert!(builder.is_empty());
    assert!(builder.seal().is_none());
}

/// The pack with its table and trailer edited and its checksum made right again: what a hostile writer can send.
fn forged(edit: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = sample().bytes;
    let footer_start = bytes.len() - (3 * ENTRY_BYTES + PACK_TRAILER_BYTES);
    edit(&mut bytes[footer_start..]);
    let checksum_at = bytes.len() - PACK_TRAILER_BYTES + CHECKED_TRAILER_BYTES;
    let checksum = sha256(&bytes[footer_start..checksum_at]);
    bytes[checksum_at..checksum_at + 32].copy_from_slice(&checksum);
    bytes
}

fn refused_field(pack: &[u8]) -> &'static str {
    match PackFooter::decode_pack(pack).unwrap_err() {
        FormatError::Field { field, .. } => field,
        other => panic!("{other}"),
    }
}

#[test]
fn a_chunk_is_in_a_pack_once() {
    let mut encoder = FrameEncoder::new().unwrap();
    let mut builder = PackBuilder::new(ChunkSize::new(4096).unwrap());
    let chunk = [7; 4096];
    builder.add(ChunkId::of(&chunk), &chunk, &mut encoder).unwrap();
    let len = builder.len_bytes();
    builder.add(ChunkId::of(&chunk), &chunk, &mut encoder).unwrap();
    assert_eq!(builder.len_bytes(), len);
    assert_eq!(builder.seal().unwrap().entries.len(), 1);

    let twice = forged(|footer| footer.copy_within(0..ID_BYTES, ENTRY_BYTES));
    assert_eq!(refused_field(&twice), "chunk id");
}

#[test]
fn the_zero_chunk_is_refused_under_either_of_its_ids() {
    let mut encoder = FrameEncoder::new().unwrap();
    let mut builder = PackBuilder::new(ChunkSize::new(4096).unwrap());
    assert!(builder.add(ChunkId::of(&[0; 4096]), &[0; 4096], &mut encoder).is_err());
    let reserved = forged(|footer| footer[..ID_BYTES].fill(0));
    assert_eq!(refused_field(&reserved), "chunk id");
}

#[test]
fn frames_that_do_not_add_up_are_refused() {
    let len_at = ID_BYTES;
    for (frame_len, field) in
        [(0u32, "frame_len"), (1, "frame_len"), (4098, "frame_len"), (u32::MAX, "frame_len")]
    {
        let pack = forged(|footer| footer[len_at..len_at + 4].copy_from_slice(&frame_len.to_le_bytes()));
        assert_eq!(refused_field(&pack), field, "{frame_len}");
    }
    let longer = forged(|footer| footer[len_at] += 1);
    assert_eq!(refused_field(&longer), "frames_len");
    let table = 3 * ENTRY_BYTES;
    let wrapped = forged(|footer| footer[table..table + 8].copy_from_slice(&u64::MAX.to_le_bytes()));
    assert_eq!(refused_field(&wrapped), "frames_len");
}

#[test]
fn a_frame_of_another_chunk_is_found_by_its_hash() {
    let pack = forged(|footer| footer[0] ^= 1);
    let footer = PackFooter::decode_pack(&pack).unwrap();
    let error = footer.verify_frames(&pack, &mut FrameDecoder::new().unwrap()).unwrap_err();
    assert!(matches!(error, FormatError::IdMismatch { .. }), "{error}");
}

#[test]
fn what_a_pack_unpacks_to_is_bounded_at_every_chunk_size() {
    assert_eq!(pack_chunks_max(ChunkSize::new(4096).unwrap()), MAX_PACK_CHUNKS);
    assert_eq!(pack_chunks_max(ChunkSize::DEFAULT), MAX_PACK_CHUNKS);
    assert_eq!(pack_chunks_max(ChunkSize::new(4 << 20).unwrap()), 256);

    let mut encoder = FrameEncoder::new().unwrap();
    let mut builder = PackBuilder::new(ChunkSize::new(4 << 20).unwrap());
    let mut chunk = vec![1; 4 << 20];
    for number in 0..256u32 {
        assert!(!builder.is_full());
        chunk[..4].copy_from_slice(&number.to_le_bytes());
        // The builder takes the caller's word for the id, so hashing a GiB is not needed here.
        builder.add(ChunkId::of(&number.to_le_bytes()), &chunk, &mut encoder).unwrap();
    }
    assert!(builder.is_full());
    let pack = builder.seal().unwrap();
    PackFooter::decode_pack(&pack.bytes).unwrap();

    let (chunks_at, len) = (pack.bytes.len() - PACK_TRAILER_BYTES + 8, pack.bytes.len() as u64);
    let mut more = pack.bytes;
    more[chunks_at..chunks_at + 4].copy_from_slice(&257u32.to_le_bytes());
    let error = PackTrailer::decode(&more, len + ENTRY_BYTES as u64).unwrap_err();
    assert!(matches!(error, FormatError::Field { field: "chunks", .. }), "{error}");
}

#[test]
fn reserved_bytes_and_other_versions_are_refused() {
    let table = 3 * ENTRY_BYTES;
    assert_eq!(refused_field(&forged(|footer| footer[table + 15] = 1)), "reserved");
    assert_eq!(refused_field(&forged(|footer| footer[table + 23] = 1)), "reserved");
    assert_eq!(refused_field(&forged(|footer| footer[table + 14] = 23)), "chunk_size_log2");
    let later = forged(|footer| footer[table + 12] = 2);
    assert!(matches!(
        PackFooter::decode_pack(&later).unwrap_err(),
        FormatError::UnsupportedVersion { found: 2, supported: 1, .. }
    ));
    let mut header = sample().bytes;
    header[11] = 1;
    assert_eq!(refused_field(&header), "reserved");
    header[11] = 0;
    header[10] = 13;
    assert_eq!(refused_field(&header), "chunk_size_log2");
}
