//! Free space is not data: what was deleted before an image was published is not in it.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use satchel_tests::disk::{BLOCK_BYTES, Content, assert_same};
use satchel_tests::{Client, Mount, Publication, require};

const DELETED_BYTES: u64 = 6 << 20;

/// Runs a program of e2fsprogs that must succeed; what it said.
#[track_caller]
fn run(program: &str, arguments: &[&str], disk: &Path) -> String {
    let output = Command::new(program).args(arguments).arg(disk).output().expect("e2fsprogs are there");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A disk of 64 MiB with one file system, in which one file is kept and one was deleted.
fn used_disk(machine: &Client, name: &str, options: &[&str]) -> (PathBuf, PathBuf) {
    let tree = machine.directory().join(format!("{name}.tree"));
    std::fs::create_dir(&tree).expect("a directory can be made");
    Content::new(1).write_to(&tree.join("kept"), 3 << 20);
    Content::new(2).write_to(&tree.join("deleted"), DELETED_BYTES);
    let disk = machine.directory().join(name);
    std::fs::File::create(&disk).and_then(|file| file.set_len(64 << 20)).expect("a file can be made");
    let tree_name = tree.to_str().expect("a temporary path is text");
    run("mkfs.ext4", &[["-q", "-F", "-d", tree_name].as_slice(), options].concat(), &disk);
    run("debugfs", &["-w", "-R", "rm deleted"], &disk);
    (disk, tree.join("kept"))
}

/// The free blocks of a file system as `dumpe2fs` lists them, in bytes.
fn free_by_dumpe2fs(disk: &Path) -> Vec<Range<u64>> {
    let listed = run("dumpe2fs", &[], disk);
    let block_bytes: u64 = listed
        .lines()
        .find_map(|line| line.strip_prefix("Block size:")?.trim().parse().ok())
        .expect("dumpe2fs tells the block size");
    let lists = listed.lines().filter_map(|line| line.trim_start().strip_prefix("Free blocks: "));
    let runs = lists.flat_map(|list| list.split(", ")).filter(|run| !run.is_empty()).map(|run| {
        let (first, last) = run.split_once('-').unwrap_or((run, run));
        let number = |text: &str| text.trim().parse::<u64>().expect("dumpe2fs lists numbers");
        number(first) * block_bytes..(number(last) + 1) * block_bytes
    });
    runs.collect()
}

fn published(publisher: &Client, disk: &Path, arguments: &[&str]) -> (serde_json::Value, String) {
    let words =
        ["--json".as_ref(), "publish".as_ref(), disk.as_os_str(), "--image".as_ref(), "files".as_ref()];
    let output = publisher.satchel(words.into_iter().chain(arguments.iter().map(AsRef::as_ref))).ok();
    (output.json(), output.stderr)
}

fn mounted(published: &Publication, name: &str) -> (Client, Mount) {
    let laptop = published.machine(name);
    laptop.create(name, "files", Some("0"));
    let mount = laptop.mount(name);
    (laptop, mount)
}

#[test]
fn deleted_files_are_not_published_and_all_others_are() {
    require!(fuse, tool("mkfs.ext4"), tool("debugfs"), tool("dumpe2fs"));
    let server = Publication::new(80, 1 << 20);
    for (name, options) in [
        ("usual", [].as_slice()),
        ("small-blocks", &["-b", "1024"]),
        ("old", &["-O", "^64bit,^metadata_csum,^flex_bg,^extent,^has_journal,^resize_inode"]),
        ("lazy", &["-b", "1024", "-E", "lazy_itable_init=1", "-O", "uninit_bg,^metadata_csum"]),
    ] {
        let (disk, kept) = used_disk(&server.publisher, name, options);
        let (report, said) = published(&server.publisher, &disk, &[]);
        assert!(!said.contains("is published as it is"), "{name}: {said}");
        let left_out = report["free_bytes"].as_u64().expect("a number");
        assert!(left_out >= DELETED_BYTES / 3, "{name}: {report}");
        let (laptop, mount) = mounted(&server, name);
        let (before, after) = (std::fs::read(&disk).unwrap(), std::fs::read(mount.system()).unwrap());
        let free = free_by_dumpe2fs(&disk);
        let mut zeroed = 0;
        for (at, (before, after)) in (0..).zip(before.chunks(1024).zip(after.chunks(1024))) {
            let at = at * 1024;
            if before != after {
                assert!(
                    free.iter().any(|free| free.contains(&at)),
                    "{name}: byte {at} is in use and changed"
                );
                assert!(after.iter().all(|byte| *byte == 0), "{name}: byte {at} is something else");
                zeroed += 1024;
            }
        }
        assert!(zeroed >= DELETED_BYTES / 2, "{name}: only {zeroed} bytes of what was deleted are gone");
        run("e2fsck", &["-f", "-n"], &mount.system());
        let dumped = laptop.directory().join("kept");
        run("debugfs", &["-R", &format!("dump kept {}", dumped.display())], &mount.system());
        assert_same(&kept, &dumped);
        mount.unmount();

        // All of it when asked to.
        let (report, _) = published(&server.publisher, &disk, &["--keep-free"]);
        assert_eq!(report["free_bytes"], 0);
        let (_laptop, mount) = mounted(&server, &format!("{name}-whole"));
        assert_same(&disk, &mount.system());
        mount.unmount();
    }
}

#[test]
fn nothing_is_left_out_of_a_file_system_that_is_not_sound() {
    require!(fuse, tool("mkfs.ext4"), tool("debugfs"));
    let server = Publication::new(81, 1 << 20);
    for (name, command, reason) in [
        ("dirty", "ssv state 0", "it was not unmounted cleanly"),
        ("recovering", "feature needs_recovery", "it was not unmounted cleanly"),
        ("orphaned", "ssv last_orphan 12", "it has files that are still to be deleted"),
        ("disagreeing", "freeb 9000 3", "its block bitmaps and its counts do not agree"),
    ] {
        let (disk, _) = used_disk(&server.publisher, name, &["-O", "^metadata_csum"]);
        run("debugfs", &["-w", "-R", command], &disk);
        if name == "disagreeing" {
            run("debugfs", &["-w", "-R", "set_bg 0 free_blocks_count 77"], &disk);
        }
        let (report, said) = published(&server.publisher, &disk, &[]);
        assert_eq!(report["free_bytes"], 0, "{name}");
        assert!(said.contains("is published as it is") && said.contains(reason), "{name}: {said}");
        let (_laptop, mount) = mounted(&server, name);
        assert_same(&disk, &mount.system());
        mount.unmount();
    }
}

#[test]
fn free_space_within_partitions_is_found() {
    require!(fuse, tool("mkfs.ext4"), tool("debugfs"), tool("sgdisk"));
    let server = Publication::new(82, 1 << 20);
    let (inner, _) = used_disk(&server.publisher, "inner", &[]);
    let disk = server.publisher.directory().join("partitioned.raw");
    std::fs::File::create(&disk).and_then(|file| file.set_len(80 << 20)).unwrap();
    let label = ["-n", "1:2048:4095", "-t", "1:ef02", "-n", "2:4096:135167", "-t", "2:8304"];
    run("sgdisk", &label, &disk);
    let mut dd = Command::new("dd");
    dd.arg(format!("if={}", inner.display())).arg(format!("of={}", disk.display()));
    dd.args(["bs=1M", "seek=2", "conv=notrunc,sparse", "status=none"]);
    assert!(dd.status().expect("dd can be run").success());
    let (report, said) = published(&server.publisher, &disk, &[]);
    assert!(report["free_bytes"].as_u64().is_some_and(|bytes| bytes >= DELETED_BYTES / 3), "{report} {said}");
    let (_laptop, mount) = mounted(&server, "work");
    let whole = std::fs::read(mount.system()).unwrap();
    let found = mount.directory().join("system.raw");
    assert_eq!(found, mount.system());
    let part = server.publisher.directory().join("part.raw");
    std::fs::write(&part, &whole[2 << 20..66 << 20]).unwrap();
    run("e2fsck", &["-f", "-n"], &part);
    // Both tables are as they were.
    let original = std::fs::read(&disk).unwrap();
    assert!(whole[..2 << 20] == original[..2 << 20]);
    assert!(whole[whole.len() - 33 * 512..] == original[whole.len() - 33 * 512..]);
    assert_eq!(whole.len() % BLOCK_BYTES, 0);
    mount.unmount();
}
