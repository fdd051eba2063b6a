use std::os::unix::fs::FileExt;
use std::process::Command;

use super::*;

fn sparse_disk(dir: &Path) -> (PathBuf, Vec<u8>) {
    let path = dir.join("disk.raw");
    let mut content = vec![0; 4 << 20];
    content[1080..1082].copy_from_slice(&[0x53, 0xef]);
    content[1 << 20..(1 << 20) + 200_000].fill(7);
    content[(4 << 20) - 512..].fill(9);
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(4 << 20).unwrap();
    for range in [0..4096, 1 << 20..(1 << 20) + 200_000, (4 << 20) - 512..4 << 20] {
        file.write_all_at(&content[range.clone()], range.start as u64).unwrap();
    }
    (path, content)
}

fn read_all(image: &dyn DiskImage) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(image.size_bytes()).unwrap()];
    for range in image.data_ranges().unwrap() {
        let start = usize::try_from(range.start).unwrap();
        let end = usize::try_from(range.end).unwrap();
        image.read_at(&mut content[start..end], range.start).unwrap();
    }
    content
}

#[test]
fn an_image_that_changes_while_it_is_read_is_not_taken_for_what_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = sparse_disk(dir.path());
    let open = open(&path, false).unwrap();
    open.check_unchanged().unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_len(2 << 20).unwrap();
    let cut = open.image.read_at(&mut [0; 4096], 3 << 20).unwrap_err();
    assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
    file.set_len(4 << 20).unwrap();
    assert!(matches!(open.check_unchanged(), Err(ImageError::Changed { .. })));
}

#[test]
fn a_raw_image_is_read_around_its_holes() {
    let dir = tempfile::tempdir().unwrap();
    let (path, content) = sparse_disk(dir.path());
    let open = open(&path, false).unwrap();
    assert_eq!(open.format, "raw");
    assert_eq!(read_all(&*open.image), content);
    let data: u64 = open.image.data_ranges().unwrap().iter().map(|range| range.end - range.start).sum();
    assert!(data < 1 << 20, "{data}");
    let mut past_the_end = [1; 1024];
    open.image.read_at(&mut past_the_end, (4 << 20) - 512).unwrap();
    assert_eq!(past_the_end, *[[9; 512], [0; 512]].as_flattened());
}

#[test]
fn what_is_no_disk_is_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let text = file("notes.txt", &b"not a disk\n".repeat(1000));
    assert!(matches!(open(&text, false), Err(ImageError::NotADisk { .. })));
    assert!(matches!(open(&text, true), Err(ImageError::BadSize { .. })));
    assert!(matches!(open(&file("empty", b""), false), Err(ImageError::Unusable { .. })));
    assert!(matches!(open(&dir.path().join("none"), false), Err(ImageError::Io { .. })));
    assert!(matches!(open(dir.path(), false), Err(ImageError::NotAFile { .. })));
    let error = open(&file("a.vmdk", b"KDMV and more"), false).unwrap_err().to_string();
    assert!(error.contains("VMDK") && error.contains("qemu-img convert"), "{error}");
}

/// Makes a qcow2 with qemu-img, or says that it cannot.
fn qcow2(dir: &Path, arguments: &[&str]) -> Option<PathBuf> {
    let path = dir.join("disk.qcow2");
    let made = Command::new("qemu-img").args(arguments).arg(&path).output();
    match made {
        Ok(output) if output.status.success() => Some(path),
        Ok(output) => panic!("qemu-img: {}", String::from_utf8_lossy(&output.stderr)),
        Err(_) => {
            eprintln!("SKIPPED qcow2 test: qemu-img is not installed");
            None
        }
    }
}

#[test]
fn a_qcow2_image_reads_as_the_raw_one() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, content) = sparse_disk(dir.path());
    for compressed in [&["-c"][..], &[]] {
        let arguments = [&["convert", "-O", "qcow2"], compressed, &[raw.to_str().unwrap()]].concat();
        let Some(path) = qcow2(dir.path(), &arguments) else { return };
        let open = open(&path, false).unwrap();
        assert_eq!(open.format, "qcow2");
        assert_eq!(open.size.bytes(), 4 << 20);
        assert_eq!(read_all(&*open.image), content);
        let data: u64 = open.image.data_ranges().unwrap().iter().map(|range| range.end - range.start).sum();
        assert!(data < 1 << 20, "{data}");
    }
}

#[test]
fn a_qcow2_with_what_is_not_read_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, _) = sparse_disk(dir.path());
    for (option, said) in [("compression_type=zstd", "zstd"), ("extended_l2=on", "extended L2")] {
        let arguments = ["convert", "-O", "qcow2", "-o", option, raw.to_str().unwrap()];
        let Some(path) = qcow2(dir.path(), &arguments) else { return };
        let error = open(&path, false).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("qemu-img convert -O qcow2"), "{error}");
    }
}

#[test]
fn a_truncated_qcow2_is_refused_wherever_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, content) = sparse_disk(dir.path());
    let Some(path) = qcow2(dir.path(), &["convert", "-O", "qcow2", raw.to_str().unwrap()]) else { return };
    let whole = std::fs::read(&path).unwrap();
    for len in (0..whole.len()).step_by(whole.len() / 40) {
        std::fs::write(&path, &whole[..len]).unwrap();
        if let Ok(open) = open(&path, false) {
            assert_eq!(
                read_all(&*open.image),
                content,
                "{len} of {} bytes are taken for the whole",
                whole.len()
            );
        }
    }
}

#[test]
fn a_qcow2_that_leans_on_another_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, _) = sparse_disk(dir.path());
    let Some(path) = qcow2(dir.path(), &["create", "-f", "qcow2", "-F", "raw", "-b", raw.to_str().unwrap()])
    else {
        return;
    };
    let error = open(&path, false).unwrap_err().to_string();
    assert!(error.contains("difference"), "{error}");
}

/// Changes bytes of what describes a file system, in all kinds of ways; whatever they say, nothing is read or left out
/// that is not on the disk.
#[test]
fn a_damaged_file_system_is_looked_at_without_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.raw");
    std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
    let made = Command::new("mkfs.ext4").args(["-q", "-F", "-b", "1024"]).arg(&path).status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mkfs.ext4 is not there");
        return;
    }
    let good = std::fs::read(&path).unwrap();
    let mut known = 0;
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for _ in 0..800 {
        file.write_all_at(&good[..8192], 0).unwrap();
        for _ in 0..=random(3) {
            // The super block's fields, the group descriptors after it, and the partition table there is none of.
            let at = [1024 + random(352), 2048 + random(128), 446 + random(66)][random(3)];
            let byte = [0, 1, 0x7f, 0x80, 0xff, u8::try_from(random(256)).unwrap()][random(6)];
            file.write_all_at(&[byte], at as u64).unwrap();
        }
        let Ok(mut open) = open(&path, true) else { continue };
        let kept = open.leave_out_free().unwrap();
        let ranges = open.image.data_ranges().unwrap();
        assert!(ranges.iter().all(|range| range.start < range.end && range.end <= 16 << 20), "{ranges:?}");
        assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{ranges:?}");
        known += u32::from(kept.is_empty());
    }
    assert!(known > 100, "{known}: most of what is tried is not looked at");
}

/// A file system with blocks of 1 KiB in groups of 8 MiB, all of whose groups hold something.
fn small_groups(dir: &Path) -> Option<PathBuf> {
    let (path, tree) = (dir.join("disk.raw"), dir.join("tree"));
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("file"), vec![7; 20 << 20]).unwrap();
    std::fs::File::create(&path).unwrap().set_len(32 << 20).unwrap();
    let mut make = Command::new("mkfs.ext4");
    make.args(["-q", "-F", "-b", "1024", "-O", "^metadata_csum,^uninit_bg,^flex_bg", "-d"]).arg(&tree);
    if !make.arg(&path).status().is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: mkfs.ext4 is not there");
        return None;
    }
    // Without holes, so that what is left out is what is free and nothing else.
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, whole).unwrap();
    Some(path)
}

fn patch(path: &Path, offset: u64, bytes: &[u8]) {
    std::fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// What is left out of an image, and why what is not.
fn left_out(path: &Path) -> (u64, Vec<&'static str>) {
    let mut open = open(path, false).unwrap();
    let bytes = |open: &OpenImage| -> u64 {
        open.image.data_ranges().unwrap().iter().map(|range| range.end - range.start).sum()
    };
    let before = bytes(&open);
    let kept = open.leave_out_free().unwrap();
    (before - bytes(&open), kept.iter().map(|kept| kept.reason).collect())
}

#[test]
fn an_earlier_ext4_below_something_else_leaves_nothing_out() {
    let dir = tempfile::tempdir().unwrap();
    let Some(path) = small_groups(dir.path()) else { return };
    let good = std::fs::read(&path).unwrap();
    let signs: [(u64, &[u8]); 9] = [
        (0, b"LUKS\xba\xbe"),
        (512, b"LABELONE"),
        (1536, b"LABELONE"),
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9]),
        (4120, &[0xc6, 0x85, 0x73, 0xf6]),
        (32_768, b"JFS1"),
        (65_600, b"_BHRfS_M"),
        (131_072, &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0]),
        (261_120, &[0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c]),
    ];
    for (offset, sign) in signs {
        std::fs::write(&path, &good).unwrap();
        patch(&path, offset, sign);
        assert_eq!(left_out(&path), (0, vec!["there are signs of something else in its place"]), "{offset}");
    }
}

#[test]
fn flags_of_groups_count_only_where_descriptors_have_checksums() {
    let dir = tempfile::tempdir().unwrap();
    let Some(path) = small_groups(dir.path()) else { return };
    let (expected, kept) = left_out(&path);
    assert!(expected > 1 << 20 && kept.is_empty(), "{expected} {kept:?}");
    // The second group's bitmap is said to be unwritten, by a flag that means nothing here.
    let good = std::fs::read(&path).unwrap();
    let descriptor_bytes = if good[1024 + 96] & 0x80 != 0 { 64 } else { 32 };
    patch(&path, 2048 + descriptor_bytes + 18, &[2]);
    assert_eq!(left_out(&path), (expected, Vec::new()));
    // And by one that means something, but the group's own count denies it.
    patch(&path, 1024 + 100, &[good[1024 + 100] | 0x10]);
    assert_eq!(left_out(&path), (0, vec!["its block bitmaps and its counts do not agree"]));
}
