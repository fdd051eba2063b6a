//! Content for tests: packs, segments and manifests as a client would make them.

use std::ops::Range;

use chunk_format::{
    Architecture, Base, BootFacts, BootStream, ChunkId, ChunkIndex, ChunkSize, Disk, DiskRole, DiskSize,
    Features, Firmware, FrameEncoder, Manifest, ManifestId, PackBuilder, Profile, ProfileEntry,
    SEGMENT_CHUNKS, SealedPack, SecretKey, Segment, SegmentId, StreamId, Subject,
};

/// The key that signs images.
pub(crate) const PUBLISHER_KEY: u8 = 1;

/// A chunk that no other number has: half of it noise, half of it compressible.
pub(crate) fn chunk(number: u64, size: ChunkSize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(size.bytes());
    while bytes.len() < size.bytes() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes
}

/// The id of a numbered chunk.
pub(crate) fn chunk_id(number: u64) -> ChunkId {
    ChunkId::of_chunk(&chunk(number, ChunkSize::DEFAULT))
}

/// A pack of numbered chunks.
pub(crate) fn pack(numbers: Range<u64>) -> SealedPack {
    pack_of_size(numbers, ChunkSize::DEFAULT)
}

/// A pack of numbered chunks of any size.
pub(crate) fn pack_of_size(numbers: Range<u64>, size: ChunkSize) -> SealedPack {
    let mut encoder = FrameEncoder::new().unwrap();
    let mut builder = PackBuilder::new(size);
    for number in numbers {
        let chunk = chunk(number, size);
        builder.add(ChunkId::of_chunk(&chunk), &chunk, &mut encoder).unwrap();
    }
    builder.seal().unwrap()
}

/// A segment of these chunks as it is sent, and its id.
pub(crate) fn segment(chunks: Vec<ChunkId>) -> (SegmentId, Vec<u8>) {
    let segment = Segment::new(chunks).unwrap();
    (segment.id(), segment.encode(&mut FrameEncoder::new().unwrap()).unwrap())
}

/// A segment of numbered chunks.
pub(crate) fn segment_of(numbers: Range<u64>) -> (SegmentId, Vec<u8>) {
    segment(numbers.map(chunk_id).collect())
}

/// A first version of an image with one disk of these segments.
pub(crate) fn image_manifest(image: &str, segments: Vec<SegmentId>) -> Manifest {
    let size_bytes = segments.len() as u64 * SEGMENT_CHUNKS as u64 * ChunkSize::DEFAULT.bytes_u64();
    Manifest {
        features: Features::default(),
        subject: Subject::Image { image: image.parse().unwrap() },
        base: None,
        parent: None,
        sequence: 1,
        created_ms: 1_764_000_000_000,
        machine: "build-7".to_owned(),
        note: None,
        disks: vec![Disk {
            role: DiskRole::System,
            size: DiskSize::new(size_bytes).unwrap(),
            chunk_size: ChunkSize::DEFAULT,
            segments,
        }],
        boot: BootFacts { firmware: Firmware::Bios, architecture: Architecture::X86_64 },
        system_mode: None,
    }
}

/// A first version of a desktop on a golden version.
pub(crate) fn desktop_manifest(
    owner: &str,
    desktop: &str,
    image: &str,
    base: ManifestId,
    segments: Vec<SegmentId>,
) -> Manifest {
    Manifest {
        subject: Subject::Desktop { owner: owner.parse().unwrap(), desktop: desktop.parse().unwrap() },
        base: Some(Base {
            image: image.parse().unwrap(),
            channel: Some("stable".parse().unwrap()),
            version: base,
            publisher: SecretKey::from_bytes(&[PUBLISHER_KEY; 32]).public(),
        }),
        machine: "laptop-b".to_owned(),
        ..image_manifest("ignored", segments)
    }
}

/// The version after this one.
pub(crate) fn next(manifest: &Manifest, note: &str) -> Manifest {
    let parent = ManifestId::of(&manifest.encode().unwrap());
    let sequence = manifest.sequence + 1;
    Manifest { parent: Some(parent), sequence, note: Some(note.to_owned()), ..manifest.clone() }
}

/// A manifest's bytes and its signature line.
/// A profile of a version with these stream objects, and its signature.
pub(crate) fn profile(manifest: ManifestId, streams: &[&[u8]], key: u8) -> (Vec<u8>, String) {
    let entries = (0..streams.len() as u64).map(|at| ProfileEntry { disk: 0, chunk: ChunkIndex(at) });
    let streams = streams.iter().map(|bytes| BootStream {
        id: StreamId::of(bytes),
        len_bytes: u32::try_from(bytes.len()).unwrap(),
        entries: 1,
    });
    let profile = Profile { manifest, entries: entries.collect(), streams: streams.collect() };
    let bytes = profile.encode().unwrap();
    let signature = SecretKey::from_bytes(&[key; 32]).sign(&bytes).to_string();
    (bytes, signature)
}

pub(crate) fn signed(manifest: &Manifest, key: u8) -> (Vec<u8>, String) {
    let bytes = manifest.encode().unwrap();
    let signature = SecretKey::from_bytes(&[key; 32]).sign(&bytes).to_string();
    (bytes, signature)
}
