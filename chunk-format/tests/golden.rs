//! Pins the formats to the bytes in `tests/golden/`, one file for each structure and format version.
//!
//! Together the files are a small store: a signed image of one disk, a desktop on top of it, and the objects they name.
//! Structures without compression must encode to these very bytes. Those stored as zstd frames must decode from them, and
//! hold the same bytes inside the frame when encoded now: zstd's own output may change with its version.
//!
//! A file that is missing is written by `SATCHEL_WRITE_GOLDEN=1 cargo test -p chunk-format --test golden`; one that is
//! there is never overwritten.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::path::PathBuf;

use chunk_format::{
    Architecture, Base, BootFacts, BootStream, ChunkId, ChunkIndex, ChunkPlace, ChunkSize, Disk, DiskRole,
    DiskSize, Features, Firmware, FrameDecoder, FrameEncoder, Locator, MAX_LOCATOR_BYTES, Manifest,
    ManifestId, PackBuilder, PackFooter, PackId, PackRef, Profile, ProfileEntry, SEGMENT_BYTES,
    SEGMENT_CHUNKS, SecretKey, Segment, SegmentId, Signature, StreamId, StreamWindow, Subject,
    encode_stream_object,
};

const CHUNK_BYTES: usize = 4096;

const CHANGED: &str = "differs from what this code writes or reads. The bytes of a released format version never change: \
     a change of format needs a new version number and a new golden file beside this one \
     (docs/format.md, \"Versions and features\")";

/// The bytes of a golden file; written first from `current` when it is missing and writing is asked for.
fn golden(name: &str, current: &[u8]) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if !path.exists() && std::env::var_os("SATCHEL_WRITE_GOLDEN").is_some() {
        fs::write(&path, current).unwrap();
    }
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn assert_pinned(name: &str, current: &[u8]) {
    assert!(golden(name, current) == current, "tests/golden/{name} {CHANGED}");
}

/// Checks a golden frame: decoded now, it holds the bytes that a new frame holds.
fn assert_frame_pinned(name: &str, current: &[u8]) -> Vec<u8> {
    let frame = golden(name, current);
    let mut decoder = FrameDecoder::new().unwrap();
    let pinned = decoder.decode_bounded("golden frame", &frame, MAX_LOCATOR_BYTES);
    let current = decoder.decode_bounded("new frame", current, MAX_LOCATOR_BYTES).unwrap();
    assert!(pinned.is_ok_and(|pinned| pinned == current), "tests/golden/{name} {CHANGED}");
    frame
}

/// Bytes that do not compress, the same at every run.
fn noise(len: usize) -> Vec<u8> {
    (0..len as u64).flat_map(|number| *ChunkId::of(&number.to_le_bytes()).as_bytes()).take(len).collect()
}

fn text(line: &str, len: usize) -> Vec<u8> {
    line.bytes().cycle().take(len).collect()
}

/// The image's disk: text, zeros, noise, and a last chunk of which the disk has all but one sector.
fn chunks() -> [Vec<u8>; 4] {
    let mut last = text("the last chunk\n", CHUNK_BYTES - 512);
    last.resize(CHUNK_BYTES, 0);
    [text("the first chunk\n", CHUNK_BYTES), vec![0; CHUNK_BYTES], noise(CHUNK_BYTES), last]
}

fn segment() -> Segment {
    Segment::new(chunks().iter().map(|chunk| ChunkId::of_chunk(chunk)).collect()).unwrap()
}

fn pack_of(chunks: &[Vec<u8>]) -> Vec<u8> {
    let mut encoder = FrameEncoder::new().unwrap();
    let mut builder = PackBuilder::new(ChunkSize::new(CHUNK_BYTES as u64).unwrap());
    for chunk in chunks {
        builder.add(ChunkId::of_chunk(chunk), chunk, &mut encoder).unwrap();
    }
    builder.seal().unwrap().bytes
}

fn stored_chunks() -> Vec<Vec<u8>> {
    let [first, _, third, last] = chunks();
    vec![first, third, last]
}

/// The locator that fits the golden pack, whatever zstd now makes of its chunks.
fn locator() -> Locator {
    let pack = golden("pack-1.bin", &pack_of(&stored_chunks()));
    let entries = PackFooter::decode_pack(&pack).unwrap().entries;
    let mut places = vec![None; SEGMENT_CHUNKS];
    for (at, id) in segment().chunks().iter().enumerate() {
        let entry = entries.iter().find(|entry| entry.chunk == *id);
        places[at] =
            entry.map(|entry| ChunkPlace { pack: 0, offset: entry.offset, frame_len: entry.frame_len });
    }
    let pack = PackRef {
        namespace: "image/debian".parse().unwrap(),
        pack: PackId::of(&pack),
        pack_len: u32::try_from(pack.len()).unwrap(),
    };
    Locator::new(segment().id(), vec![pack], places).unwrap()
}

fn system_disk() -> Disk {
    Disk {
        role: DiskRole::System,
        size: DiskSize::new(4 * CHUNK_BYTES as u64 - 512).unwrap(),
        chunk_size: ChunkSize::new(CHUNK_BYTES as u64).unwrap(),
        segments: vec![segment().id()],
    }
}

fn image() -> Manifest {
    Manifest {
        features: Features { compatible: vec!["example".to_owned()], ..Features::default() },
        subject: Subject::Image { image: "debian".parse().unwrap() },
        base: None,
        parent: None,
        sequence: 1,
        created_ms: 1_764_000_000_000,
        machine: "build-7".to_owned(),
        note: Some("Debian 12, \"bookworm\" – März".to_owned()),
        disks: vec![system_disk()],
        boot: BootFacts { firmware: Firmware::Bios, architecture: Architecture::X86_64 },
        system_mode: None,
    }
}

fn desktop() -> Manifest {
    Manifest {
        features: Features::default(),
        subject: Subject::Desktop { owner: "alice".parse().unwrap(), desktop: "work".parse().unwrap() },
        base: Some(Base {
            image: "debian".parse().unwrap(),
            channel: Some("stable".parse().unwrap()),
            publisher: key().public(),
            version: ManifestId::of(&image().encode().unwrap()),
        }),
        parent: Some(ManifestId::of(b"the version before this one")),
        sequence: 2,
        created_ms: 1_764_000_060_000,
        machine: "laptop".to_owned(),
        note: None,
        disks: vec![
            system_disk(),
            Disk {
                role: DiskRole::Home,
                size: DiskSize::new(64 << 20).unwrap(),
                chunk_size: ChunkSize::DEFAULT,
                segments: vec![SegmentId::ZERO],
            },
        ],
        boot: BootFacts { firmware: Firmware::Uefi, architecture: Architecture::X86_64 },
        system_mode: None,
    }
}

fn profile() -> Profile {
    let entry = |chunk| ProfileEntry { disk: 0, chunk: ChunkIndex(chunk) };
    Profile {
        manifest: ManifestId::of(&image().encode().unwrap()),
        entries: vec![entry(0), entry(3), entry(2)],
        streams: vec![
            BootStream { id: StreamId::of(b"first stream"), len_bytes: 100, entries: 2 },
            BootStream { id: StreamId::of(b"second stream"), len_bytes: 4000, entries: 1 },
        ],
    }
}

/// The key that signs everything golden.
fn key() -> SecretKey {
    SecretKey::from_bytes(&[7; 32])
}

#[test]
fn frame_raw() {
    let frame = FrameEncoder::new().unwrap().encode(&noise(100)).unwrap();
    assert_pinned("frame-raw-1.bin", &frame);
}

#[test]
fn frame_zstd() {
    let payload = text("the first chunk\n", CHUNK_BYTES);
    let frame = golden("frame-zstd-1.bin", &FrameEncoder::new().unwrap().encode(&payload).unwrap());
    assert_eq!(frame[0], 1, "coding");
    let mut decoded = vec![0; CHUNK_BYTES];
    let result = FrameDecoder::new().unwrap().decode_chunk(&frame, ChunkId::of(&payload), &mut decoded);
    assert!(result.is_ok(), "tests/golden/frame-zstd-1.bin {CHANGED}: {result:?}");
}

#[test]
fn pack_decodes() {
    let bytes = golden("pack-1.bin", &pack_of(&stored_chunks()));
    let footer = PackFooter::decode_pack(&bytes).unwrap();
    footer.verify_frames(&bytes, &mut FrameDecoder::new().unwrap()).unwrap();
    let ids: Vec<_> = footer.entries.iter().map(|entry| entry.chunk).collect();
    let expected: Vec<_> = stored_chunks().iter().map(|chunk| ChunkId::of(chunk)).collect();
    assert!(ids == expected, "tests/golden/pack-1.bin {CHANGED}");
}

#[test]
fn pack_of_raw_frames_encodes() {
    assert_pinned("pack-raw-1.bin", &pack_of(&[noise(CHUNK_BYTES)]));
}

#[test]
fn segment_frame() {
    let frame = segment().encode(&mut FrameEncoder::new().unwrap()).unwrap();
    let frame = assert_frame_pinned("segment-1.bin", &frame);
    let decoded = Segment::decode(&frame, segment().id(), &mut FrameDecoder::new().unwrap()).unwrap();
    assert_eq!(decoded, segment());
    assert_eq!(segment().id(), SegmentId::of(&inside(&frame)));
    assert_eq!(inside(&frame).len(), SEGMENT_BYTES);
}

fn inside(frame: &[u8]) -> Vec<u8> {
    FrameDecoder::new().unwrap().decode_bounded("golden frame", frame, MAX_LOCATOR_BYTES).unwrap()
}

#[test]
fn locator_frame() {
    let frame = locator().encode(&mut FrameEncoder::new().unwrap()).unwrap();
    let frame = assert_frame_pinned("locator-1.bin", &frame);
    let decoded = Locator::decode(&frame, segment().id(), &mut FrameDecoder::new().unwrap()).unwrap();
    assert_eq!(decoded, locator());
}

#[test]
fn manifests() {
    for (name, manifest) in [("manifest-image-1.json", image()), ("manifest-desktop-1.json", desktop())] {
        assert_pinned(name, &manifest.encode().unwrap());
        assert_eq!(Manifest::decode(&golden(name, b"")).unwrap(), manifest, "{name}");
    }
}

#[test]
fn profile_bytes() {
    assert_pinned("profile-1.bin", &profile().encode().unwrap());
    assert_eq!(Profile::decode(&golden("profile-1.bin", b"")).unwrap(), profile());
}

/// The chunks of two objects of a stream: the second holds again most of the first.
fn stream_contents() -> [Vec<u8>; 2] {
    let first = [noise(CHUNK_BYTES), text("the first chunk\n", CHUNK_BYTES)].concat();
    let mut again = noise(CHUNK_BYTES);
    again[CHUNK_BYTES / 2] ^= 1;
    [first, [again, text("the last chunk\n", CHUNK_BYTES)].concat()]
}

#[test]
fn stream_objects_decode() {
    let [first, second] = stream_contents();
    for (name, history, content) in [("stream-1.bin", &[][..], &first), ("stream-2.bin", &first, &second)] {
        let object = golden(name, &encode_stream_object(history, content).unwrap());
        let mut window = StreamWindow::after(history);
        let mut decoder = window.decode(content.len()).unwrap();
        let pushed = decoder.push(&object);
        let is_the_same = decoder.content() == content;
        let outcome = pushed.and_then(|()| decoder.finish());
        assert!(outcome.is_ok() && is_the_same, "tests/golden/{name} {CHANGED}: {outcome:?}");
    }
    assert!(golden("stream-2.bin", b"").len() < 200, "the second object refers to the first");
}

#[test]
fn signatures() {
    let signed = [
        ("manifest-image-1.json", image().encode().unwrap()),
        ("manifest-desktop-1.json", desktop().encode().unwrap()),
        ("profile-1.bin", profile().encode().unwrap()),
    ];
    for (name, bytes) in signed {
        let name = format!("{name}.sig");
        assert_pinned(&name, &key().sign(&bytes).encode());
        let signature = Signature::decode(&golden(&name, b"")).unwrap();
        signature.verify("golden file", &bytes).unwrap();
        assert_eq!(signature.key, key().public());
    }
}
