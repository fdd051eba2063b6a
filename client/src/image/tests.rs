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
    assert!(matches!(open(&file("empty", b""), false), Err(ImageError::NotADisk { .. })));
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
