//! Holds `docs/format.md` to its word: a reader in Python, which shares no code with this library, finds the same in the
//! golden store. Skipped, with the reason, where Python or zstd is not installed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use chunk_format::{
    ChunkId, ChunkIndex, Disk, FrameDecoder, Locator, Manifest, ManifestId, PackFooter, Profile, ProfileId,
    SEGMENT_CHUNKS, Segment, Signature, StreamId, StreamWindow, Subject,
};

const NOTHING_TO_READ_WITH: i32 = 77;

fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// What the Python reader says of a store; `None` when it cannot run here.
fn read_independently(store: &Path) -> Option<Output> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/independent_reader.py");
    let output = match Command::new("python3").arg(script).arg(store).output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            skipped("python3 is not installed");
            return None;
        }
        output => output.unwrap(),
    };
    if output.status.code() == Some(NOTHING_TO_READ_WITH) {
        skipped(String::from_utf8_lossy(&output.stderr).trim());
        return None;
    }
    Some(output)
}

/// Says so past the test harness, which shows what a test prints only when it fails.
fn skipped(reason: &str) {
    let line = format!("independent_reader: SKIPPED: {reason}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}

/// The golden store as this library reads it, in the Python reader's words.
fn report() -> String {
    let mut report = String::new();
    let read = |name: &str| fs::read(golden_dir().join(name)).unwrap();
    for name in ["pack-1.bin", "pack-raw-1.bin"] {
        for entry in PackFooter::decode_pack(&read(name)).unwrap().entries {
            writeln!(report, "{name} {} {}+{}", entry.chunk, entry.offset, entry.frame_len).unwrap();
        }
    }
    for name in ["manifest-image-1.json", "manifest-desktop-1.json"] {
        let bytes = read(name);
        let key = signer(name, &bytes);
        writeln!(report, "{name} {} signed by {key}", ManifestId::of(&bytes)).unwrap();
        let manifest = Manifest::decode(&bytes).unwrap();
        let (kind, whose) = match &manifest.subject {
            Subject::Image { image } => ("image", image),
            Subject::Desktop { owner, .. } => ("desktop", owner),
        };
        writeln!(report, "{kind} {whose} sequence {}", manifest.sequence).unwrap();
        for disk in &manifest.disks {
            report_disk(&mut report, disk);
        }
    }
    let bytes = read("profile-1.bin");
    let key = signer("profile-1.bin", &bytes);
    writeln!(report, "profile-1.bin {} signed by {key}", ProfileId::of(&bytes)).unwrap();
    let profile = Profile::decode(&bytes).unwrap();
    writeln!(report, "profile of {}", profile.manifest).unwrap();
    for entry in &profile.entries {
        writeln!(report, "touch {} {}", entry.disk, entry.chunk).unwrap();
    }
    for stream in &profile.streams {
        writeln!(report, "stream {} {} {}", stream.id, stream.len_bytes, stream.entries).unwrap();
    }
    let mut window = StreamWindow::after(&[]);
    for name in ["stream-1.bin", "stream-2.bin"] {
        let object = read(name);
        let mut decoder = window.decode(8192).unwrap();
        decoder.push(&object).unwrap();
        let content = ChunkId::of(decoder.content());
        decoder.finish().unwrap();
        writeln!(report, "{name} {} holds {content}", StreamId::of(&object)).unwrap();
    }
    report
}

fn signer(name: &str, bytes: &[u8]) -> String {
    let signature = Signature::decode(&fs::read(golden_dir().join(format!("{name}.sig"))).unwrap()).unwrap();
    signature.verify("golden file", bytes).unwrap();
    signature.key.to_string()
}

fn report_disk(report: &mut String, disk: &Disk) {
    let (role, size, chunk_bytes) = (disk.role, disk.size.bytes(), disk.chunk_size.bytes());
    writeln!(report, "disk {role} size {size} chunk {chunk_bytes} segments {}", disk.segments.len()).unwrap();
    let pack = fs::read(golden_dir().join("pack-1.bin")).unwrap();
    let mut decoder = FrameDecoder::new().unwrap();
    let mut content = vec![0; usize::try_from(size).unwrap().next_multiple_of(chunk_bytes)];
    for (segment_at, id) in disk.segments.iter().enumerate().filter(|(_, id)| !id.is_zero()) {
        let frame = fs::read(golden_dir().join("segment-1.bin")).unwrap();
        let segment = Segment::decode(&frame, *id, &mut decoder).unwrap();
        let frame = fs::read(golden_dir().join("locator-1.bin")).unwrap();
        let locator = Locator::decode(&frame, *id, &mut decoder).unwrap();
        locator.check_frame_lens(disk.chunk_size).unwrap();
        for (position, chunk) in segment.chunks().iter().enumerate().filter(|(_, chunk)| !chunk.is_zero()) {
            let place = locator.place(position).unwrap();
            let pack_ref = locator.pack(&place).unwrap();
            let index = segment_at * SEGMENT_CHUNKS + position;
            let (offset, len) = (place.offset as usize, place.frame_len as usize);
            let slot = &mut content[index * chunk_bytes..][..chunk_bytes];
            decoder.decode_chunk(&pack[offset..offset + len], *chunk, slot).unwrap();
            writeln!(
                report,
                "chunk {index} {chunk} {}/packs/{} {offset}+{len}",
                pack_ref.namespace, pack_ref.pack
            )
            .unwrap();
        }
    }
    content.truncate(usize::try_from(size).unwrap());
    writeln!(report, "disk {role} sha256 {}", ChunkId::of(&content)).unwrap();
}

#[test]
fn a_reader_that_shares_no_code_finds_the_same() {
    let Some(output) = read_independently(&golden_dir()) else { return };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), report());
}

#[test]
fn the_worked_example_in_the_specification_is_true() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/format.md")).unwrap();
    let example = page.split("## Reading a byte of a disk").nth(1).unwrap().split("\n## ").next().unwrap();
    let read = |name: &str| fs::read(golden_dir().join(name)).unwrap();
    let manifest = Manifest::decode(&read("manifest-image-1.json")).unwrap();
    let (offset, disk) = (9000, &manifest.disks[0]);
    let (segment_at, position) = ChunkIndex::containing(offset, disk.chunk_size).in_segment();
    let segment_id = disk.segments[segment_at.0 as usize];
    let mut decoder = FrameDecoder::new().unwrap();
    let segment = Segment::decode(&read("segment-1.bin"), segment_id, &mut decoder).unwrap();
    let locator = Locator::decode(&read("locator-1.bin"), segment_id, &mut decoder).unwrap();
    let place = locator.place(position).unwrap();
    let mut chunk = vec![0; disk.chunk_size.bytes()];
    let frame = &read("pack-1.bin")[place.offset as usize..][..place.frame_len as usize];
    decoder.decode_chunk(frame, segment.chunks()[position], &mut chunk).unwrap();
    for fact in [
        ManifestId::of(&read("manifest-image-1.json")).to_string(),
        signer("manifest-image-1.json", &read("manifest-image-1.json")),
        segment_id.to_string(),
        segment.chunks()[position].to_string(),
        locator.pack(&place).unwrap().pack.to_string(),
        format!("bytes={}-{}", place.offset, place.offset + place.frame_len - 1),
        format!("{} bytes, coding 1", read("segment-1.bin").len()),
        format!("{} bytes, which decompress", read("locator-1.bin").len()),
        format!("is {:#04x}", chunk[usize::try_from(offset).unwrap() % chunk.len()]),
    ] {
        assert!(example.contains(&fact), "{fact}");
    }
    let desktop = String::from_utf8(read("manifest-desktop-1.json")).unwrap();
    assert!(page.contains(&desktop), "the example of a manifest is the golden one");
}

#[test]
fn that_reader_refuses_a_changed_byte() {
    let store = Path::new(env!("CARGO_TARGET_TMPDIR")).join("changed-golden-store");
    let _ = fs::remove_dir_all(&store);
    fs::create_dir_all(&store).unwrap();
    for entry in fs::read_dir(golden_dir()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, store.join(path.file_name().unwrap())).unwrap();
    }
    // In the text of a note, in a chunk's noise, in compressed ids, in the segment a locator names, in a chunk index.
    for (name, at) in [
        ("manifest-image-1.json", 360),
        ("pack-1.bin", 2000),
        ("segment-1.bin", 60),
        ("locator-1.bin", 30),
        ("profile-1.bin", 140),
    ] {
        let good = fs::read(store.join(name)).unwrap();
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(store.join(name), &bad).unwrap();
        let Some(output) = read_independently(&store) else { return };
        assert_eq!(output.status.code(), Some(1), "{name}: {}", String::from_utf8_lossy(&output.stdout));
        fs::write(store.join(name), &good).unwrap();
    }
    let Some(output) = read_independently(&store) else { return };
    assert!(output.status.success(), "the store is as it was");
}
