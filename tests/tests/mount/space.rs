//! Holes are seen by those who look for them, and what is discarded takes no space.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{SeekFrom, seek};
use satchel_tests::disk::assert_same;
use satchel_tests::model::open_for_writing;
use satchel_tests::{Client, Model, Publication, Zeroing, require};

use super::IMAGE_BYTES;

const CHUNK_BYTES: u64 = 65_536;

/// Bytes of disk space a file takes.
fn allocated_bytes(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap_or_else(|error| panic!("cannot stat {}: {error}", path.display())).blocks()
        * 512
}

/// Bytes of disk space that what was written to a desktop takes.
fn overlay_bytes(machine: &Client) -> u64 {
    let entries = std::fs::read_dir(machine.desktop_directory("work")).expect("the desktop has a directory");
    entries
        .map(|entry| entry.expect("a directory can be read").path())
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("overlay-")))
        .map(|path| allocated_bytes(&path))
        .sum()
}

/// The ranges of data that `lseek` finds.
fn data_ranges(disk: &Path) -> Vec<(u64, u64)> {
    let disk = super::open(disk);
    let (mut ranges, mut at) = (Vec::new(), 0);
    while let Ok(start) = seek(&disk, SeekFrom::Data(at)) {
        at = seek(&disk, SeekFrom::Hole(start)).expect("there is a hole at the end");
        ranges.push((start, at));
    }
    ranges
}

#[test]
fn holes_are_where_nothing_is() {
    require!(fuse);
    let published = Publication::new(50, IMAGE_BYTES);
    let mount = published.machine_with_desktop("laptop").mount("work");
    assert_eq!(data_ranges(&mount.home()), [], "a new home disk");
    let disk = open_for_writing(&mount.home());
    let mut model = Model::zeros(16 << 20);
    model.write(&disk, 1 << 20, &[1; 8192]);
    model.write(&disk, (5 << 20) + 100, &[2; 100]);
    assert_eq!(data_ranges(&mount.home()), [(1 << 20, (1 << 20) + 8192), (5 << 20, (5 << 20) + 4096)]);
    model.zero(&disk, 1 << 20, 4096, Zeroing::Punch);
    assert_eq!(data_ranges(&mount.home())[0], ((1 << 20) + 4096, (1 << 20) + 8192));
    model.assert_in(&mount.home());
    drop(disk);

    // Of the image, whole chunks of zeros are holes once they are known to be.
    published.content.assert_in(&mount.system());
    let ranges = data_ranges(&mount.system());
    for chunk in 0..IMAGE_BYTES / CHUNK_BYTES {
        let (start, end) = (chunk * CHUNK_BYTES, (chunk + 1) * CHUNK_BYTES);
        let content = published.content.bytes(start, usize::try_from(CHUNK_BYTES).unwrap());
        let is_data = ranges.iter().any(|(from, to)| *from < end && start < *to);
        assert_eq!(is_data, content.iter().any(|byte| *byte != 0), "chunk {chunk}: {ranges:?}");
    }
    mount.unmount();
}

#[test]
fn copies_of_a_disk_are_as_sparse_as_it_is() {
    require!(fuse, tool("qemu-img"));
    let published = Publication::new(51, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mount = laptop.mount("work");
    let disk = open_for_writing(&mount.home());
    let mut model = Model::zeros(16 << 20);
    model.write(&disk, 2 << 20, &[3; 1 << 20]);
    drop(disk);
    let copy = laptop.directory().join("copy.raw");
    for way in ["auto", "always"] {
        let copied = Command::new("cp")
            .arg(format!("--sparse={way}"))
            .arg(mount.home())
            .arg(&copy)
            .status()
            .expect("cp can be run");
        assert!(copied.success());
        assert_same(&mount.home(), &copy);
        let bytes = allocated_bytes(&copy);
        assert!(
            (1 << 20..3 << 19).contains(&bytes),
            "cp --sparse={way} took {bytes} bytes for 1 MiB of data"
        );
    }
    let mapped = Command::new("qemu-img")
        .args(["map", "--output=json", "--image-opts"])
        .arg(format!("driver=raw,file.driver=file,file.filename={}", mount.home().display()))
        .output()
        .expect("qemu-img can be run");
    let map: serde_json::Value = serde_json::from_slice(&mapped.stdout).expect("qemu-img prints JSON");
    let data: Vec<(u64, u64)> = map
        .as_array()
        .expect("a map is a list")
        .iter()
        .filter(|extent| extent["data"] == true)
        .map(|extent| (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap()))
        .collect();
    assert_eq!(data, [(2 << 20, 1 << 20)], "{map}");
    mount.unmount();
}

#[test]
fn what_is_discarded_gives_its_space_back() {
    require!(fuse);
    const WRITTEN_BYTES: u64 = 12 << 20;
    let published = Publication::new(52, 1 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let mount = laptop.mount("work");
    let empty = overlay_bytes(&laptop);
    let disk = open_for_writing(&mount.home());
    let mut model = Model::zeros(16 << 20);
    model.write(&disk, 0, &vec![9; usize::try_from(WRITTEN_BYTES).unwrap()]);
    disk.sync_all().unwrap();
    let full = overlay_bytes(&laptop);
    assert!(full >= empty + WRITTEN_BYTES, "{full} bytes after writing, {empty} before");
    let shown = allocated_bytes(&mount.home());
    assert!(shown >= WRITTEN_BYTES, "the file shows {shown} bytes");
    model.zero(&disk, 0, WRITTEN_BYTES - 4096, Zeroing::Punch);
    disk.sync_all().unwrap();
    let left = overlay_bytes(&laptop);
    assert!(left <= empty + (64 << 10), "{left} bytes after discarding, {full} before, {empty} at first");
    model.assert_in(&mount.home());
    drop(disk);
    mount.unmount();
}

#[test]
fn a_sync_gives_the_space_of_what_it_sent_back() {
    require!(fuse);
    let published = Publication::new(53, 1 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let mount = laptop.mount("work");
    let empty = overlay_bytes(&laptop);
    let disk = open_for_writing(&mount.home());
    let mut model = Model::zeros(16 << 20);
    model.write(&disk, 0, &vec![9; 8 << 20]);
    let _ = laptop.sync("work");
    let left = overlay_bytes(&laptop);
    assert!(left <= empty + (64 << 10), "{left} bytes after a sync, {empty} at first");
    model.assert_in(&mount.home());
    drop(disk);
    mount.unmount();
}
