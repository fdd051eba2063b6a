//! What holds for all values: what is encoded decodes to the same value, and damaged bytes are refused or, where
//! nothing is signed or hashed, at least read as a value that would encode again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod damage;
mod values;

use chunk_format::{
    ChunkId, ChunkIndex, DiskSize, FormatError, FrameDecoder, FrameEncoder, Locator, MAX_LOCATOR_BYTES,
    Manifest, ManifestId, Name, Namespace, PackFooter, PackId, Profile, ProfileId, SecretKey, Segment,
    SegmentId, Signature, StreamWindow, encode_stream_object, frame_len_max,
};
use damage::{damage, damaged};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use values::{chunk, chunk_size, id_bytes, locator, manifest, namespace, pack, payload, profile, segment};

fn check_pack(bytes: &[u8]) -> Result<PackFooter, FormatError> {
    let footer = PackFooter::decode_pack(bytes)?;
    footer.verify_frames(bytes, &mut FrameDecoder::new()?)?;
    Ok(footer)
}

proptest! {
    #[test]
    fn stream_objects_round_trip(
        history in vec(chunk(), 0..4).prop_map(|chunks| chunks.concat()),
        content in vec(chunk(), 1..4).prop_map(|chunks| chunks.concat()),
        cut in 1usize..3000,
    ) {
        let object = encode_stream_object(&history, &content).unwrap();
        let mut window = StreamWindow::after(&history);
        let mut decoder = window.decode(content.len()).unwrap();
        for part in object.chunks(cut) {
            decoder.push(part).unwrap();
        }
        prop_assert_eq!(decoder.content(), content);
        decoder.finish().unwrap();
    }

    #[test]
    fn a_damaged_stream_object_never_gives_more_than_its_content(
        content in vec(chunk(), 1..4).prop_map(|chunks| chunks.concat()),
        damage in damage(),
    ) {
        let object = damaged(&encode_stream_object(&[], &content).unwrap(), &damage);
        let mut window = StreamWindow::after(&[]);
        let mut decoder = window.decode(content.len()).unwrap();
        let pushed = decoder.push(&object);
        let decoded = decoder.content().len();
        if pushed.and_then(|()| decoder.finish()).is_ok() {
            prop_assert_eq!(decoded, content.len());
        }
    }

    #[test]
    fn frames_round_trip(payload in (0usize..20_000).prop_flat_map(|len| payload(len.max(1)))) {
        let frame = FrameEncoder::new().unwrap().encode(&payload).unwrap();
        prop_assert!(frame.len() <= frame_len_max(payload.len()));
        let mut decoder = FrameDecoder::new().unwrap();
        let mut decoded = vec![0; payload.len()];
        decoder.decode_exact("frame", &frame, &mut decoded).unwrap();
        prop_assert_eq!(&decoded, &payload);
        prop_assert_eq!(decoder.decode_bounded("frame", &frame, payload.len()).unwrap(), payload);
    }

    #[test]
    fn a_damaged_frame_never_passes_as_another_chunk(chunk in chunk(), damage in damage()) {
        let frame = FrameEncoder::new().unwrap().encode(&chunk).unwrap();
        let mut decoded = vec![0; chunk.len()];
        let bad = damaged(&frame, &damage);
        // Some bits of a zstd frame say nothing, so damage may go unnoticed; but never with other bytes as its result.
        if FrameDecoder::new().unwrap().decode_chunk(&bad, ChunkId::of(&chunk), &mut decoded).is_ok() {
            prop_assert_eq!(decoded, chunk);
        }
    }

    #[test]
    fn packs_round_trip(pack in pack()) {
        let footer = check_pack(&pack.bytes).unwrap();
        prop_assert_eq!(&footer.entries, &pack.entries);
        prop_assert_eq!(PackId::of(&pack.bytes), pack.id);
    }

    #[test]
    fn a_damaged_pack_does_not_verify(pack in pack(), damage in damage()) {
        let bad = damaged(&pack.bytes, &damage);
        let _ = check_pack(&bad);
        prop_assert!(pack.id.verify(&bad).is_err());
    }

    #[test]
    fn segments_round_trip(segment in segment()) {
        let mut decoder = FrameDecoder::new().unwrap();
        match segment.encode(&mut FrameEncoder::new().unwrap()) {
            Ok(frame) => {
                prop_assert_eq!(Segment::decode(&frame, segment.id(), &mut decoder).unwrap(), segment);
            }
            Err(_) => prop_assert!(segment.id().is_zero()),
        }
    }

    #[test]
    fn a_damaged_segment_does_not_verify(segment in segment(), damage in damage()) {
        prop_assume!(!segment.id().is_zero());
        let frame = segment.encode(&mut FrameEncoder::new().unwrap()).unwrap();
        let bad = damaged(&frame, &damage);
        if let Ok(decoded) = Segment::decode(&bad, segment.id(), &mut FrameDecoder::new().unwrap()) {
            prop_assert_eq!(decoded, segment);
        }
    }

    #[test]
    fn locators_round_trip(locator in locator()) {
        let frame = locator.encode(&mut FrameEncoder::new().unwrap()).unwrap();
        let decoded = Locator::decode(&frame, locator.segment(), &mut FrameDecoder::new().unwrap()).unwrap();
        prop_assert_eq!(decoded, locator);
    }

    #[test]
    fn a_damaged_locator_is_refused_or_encodes_again(locator in locator(), damage in damage()) {
        let (mut encoder, mut decoder) = (FrameEncoder::new().unwrap(), FrameDecoder::new().unwrap());
        let frame = locator.encode(&mut encoder).unwrap();
        let inside = decoder.decode_bounded("locator", &frame, MAX_LOCATOR_BYTES).unwrap();
        let reframed = encoder.encode(&damaged(&inside, &damage)).unwrap();
        for bad in [damaged(&frame, &damage), reframed] {
            if let Ok(decoded) = Locator::decode(&bad, locator.segment(), &mut decoder) {
                let again = decoded.encode(&mut encoder).unwrap();
                prop_assert_eq!(Locator::decode(&again, locator.segment(), &mut decoder).unwrap(), decoded);
            }
        }
    }

    #[test]
    fn manifests_round_trip(manifest in manifest()) {
        let bytes = manifest.encode().unwrap();
        prop_assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
    }

    #[test]
    fn a_damaged_manifest_does_not_verify(manifest in manifest(), damage in damage()) {
        let bytes = manifest.encode().unwrap();
        let (id, signature) = (ManifestId::of(&bytes), SecretKey::from_bytes(&[7; 32]).sign(&bytes));
        let bad = damaged(&bytes, &damage);
        prop_assert!(id.verify(&bad).is_err());
        prop_assert!(signature.verify("manifest", &bad).is_err());
        if let Ok(decoded) = Manifest::decode(&bad) {
            prop_assert_eq!(Manifest::decode(&decoded.encode().unwrap()).unwrap(), decoded);
        }
    }

    #[test]
    fn profiles_round_trip(profile in profile()) {
        let bytes = profile.encode().unwrap();
        prop_assert_eq!(Profile::decode(&bytes).unwrap(), profile);
    }

    #[test]
    fn a_damaged_profile_does_not_verify(profile in profile(), damage in damage()) {
        let bytes = profile.encode().unwrap();
        let bad = damaged(&bytes, &damage);
        prop_assert!(ProfileId::of(&bytes).verify(&bad).is_err());
        if let Ok(decoded) = Profile::decode(&bad) {
            prop_assert_eq!(decoded.encode().unwrap(), bad, "a profile has one encoding");
        }
    }

    #[test]
    fn signatures_round_trip(seed in any::<[u8; 32]>(), bytes in vec(any::<u8>(), 0..300), damage in damage()) {
        let key = SecretKey::from_bytes(&seed);
        let signature = key.sign(&bytes);
        let stored = signature.encode();
        prop_assert_eq!(Signature::decode(&stored).unwrap(), signature);
        signature.verify("bytes", &bytes).unwrap();
        if let Ok(other) = Signature::decode(&damaged(&stored, &damage)) {
            prop_assert!(other == signature || other.verify("bytes", &bytes).is_err());
        }
    }

    #[test]
    fn text_forms_round_trip(id in any::<[u8; 32]>(), namespace in namespace()) {
        let id = ChunkId::from_bytes(id);
        prop_assert_eq!(id.to_string().parse::<ChunkId>().unwrap(), id);
        prop_assert_eq!(namespace.to_string().parse::<Namespace>().unwrap(), namespace);
    }

    #[test]
    fn what_reads_as_a_name_or_an_id_is_written_the_same(text in "\\PC{0,70}|[a-z0-9._/-]{0,70}|[0-9a-f]{64}") {
        if let Ok(name) = text.parse::<Name>() {
            prop_assert_eq!(name.as_str(), &text);
            prop_assert!(!text.contains(['/', '\\', '\0']) && !text.starts_with('.'));
        }
        if let Ok(id) = text.parse::<PackId>() {
            prop_assert_eq!(id.to_string(), &text[..]);
        }
        if let Ok(namespace) = text.parse::<Namespace>() {
            prop_assert_eq!(namespace.to_string(), &text[..]);
        }
    }

    #[test]
    fn any_bytes_are_safe_to_decode(bytes in vec(any::<u8>(), 0..2000), id in id_bytes()) {
        let mut decoder = FrameDecoder::new().unwrap();
        let _ = decoder.decode_bounded("frame", &bytes, 4096);
        let _ = decoder.decode_chunk(&bytes, ChunkId::from_bytes(id), &mut [0; 4096]);
        let _ = check_pack(&bytes);
        let _ = Segment::decode(&bytes, SegmentId::from_bytes(id), &mut decoder);
        let _ = Locator::decode(&bytes, SegmentId::from_bytes(id), &mut decoder);
        let _ = Manifest::decode(&bytes);
        let _ = Profile::decode(&bytes);
        let _ = Signature::decode(&bytes);
    }

    #[test]
    fn chunks_and_segments_cover_a_disk(size in 1u64..1 << 33, chunk_size in chunk_size(), at in any::<Index>()) {
        let size = DiskSize::new(size * 512).unwrap();
        prop_assert!(size.chunks(chunk_size) * chunk_size.bytes_u64() >= size.bytes());
        prop_assert!((size.chunks(chunk_size) - 1) * chunk_size.bytes_u64() < size.bytes());
        if let Ok(segments) = size.segments(chunk_size) {
            let offset = at.index(usize::try_from(size.bytes()).unwrap()) as u64;
            let chunk = ChunkIndex::containing(offset, chunk_size);
            let (segment, position) = chunk.in_segment();
            prop_assert!(segment.0 < segments);
            prop_assert_eq!(ChunkIndex(segment.first_chunk().0 + position as u64), chunk);
            prop_assert!(chunk.offset_bytes(chunk_size) <= offset);
            prop_assert!(offset - chunk.offset_bytes(chunk_size) < chunk_size.bytes_u64());
        }
    }
}
