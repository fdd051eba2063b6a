//! File systems made by e2fsprogs, read back.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::*;
use crate::image;

/// A directory with a file system made of another; `None` on a machine without e2fsprogs.
pub(crate) struct Made {
    pub(crate) directory: tempfile::TempDir,
}

impl Made {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("tree")).unwrap();
        Self { directory }
    }

    pub(crate) fn tree(&self) -> PathBuf {
        self.directory.path().join("tree")
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    /// Makes the file system; false on a machine without e2fsprogs.
    pub(crate) fn make(&self, size_bytes: u64, options: &[&str]) -> bool {
        File::create(self.disk()).unwrap().set_len(size_bytes).unwrap();
        let mut command = Command::new("mkfs.ext4");
        command.args(["-q", "-F", "-d"]).arg(self.tree()).args(options).arg(self.disk()).env("PATH", PATH);
        run(&mut command)
    }

    pub(crate) fn debugfs(&self, script: &str) -> bool {
        let commands = self.directory.path().join("commands");
        fs::write(&commands, script).unwrap();
        run(Command::new("debugfs").args(["-w", "-f"]).arg(commands).arg(self.disk()).env("PATH", PATH))
    }

    pub(crate) fn image(&self) -> Arc<dyn DiskImage> {
        image::open(&self.disk(), true).unwrap().image
    }

    pub(crate) fn open(&self) -> Result<Option<FileSystem>, FilesError> {
        let image = self.image();
        let area = 0..image.size_bytes();
        FileSystem::open(image, area)
    }
}

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// False when there is no such program; panics when it fails.
fn run(command: &mut Command) -> bool {
    let Ok(output) = command.stdin(Stdio::null()).output() else { return false };
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    true
}

/// Compares a directory of the file system with one of this machine, all the way down.
fn assert_same(fs: &FileSystem, inode: &Inode, real: &Path) {
    let metadata = fs::symlink_metadata(real).unwrap();
    let shown = real.display();
    assert_eq!(u32::from(inode.permissions), metadata.permissions().mode() & 0o7777, "{shown}");
    assert_eq!((inode.uid, inode.gid), (metadata.uid(), metadata.gid()), "{shown}");
    assert_eq!(inode.modified.seconds, metadata.mtime(), "{shown}");
    match inode.kind {
        FileKind::File => {
            let expected = fs::read(real).unwrap();
            assert_eq!(inode.size_bytes, expected.len() as u64, "{shown}");
            assert!(fs.read_whole(inode, u64::MAX).unwrap() == expected, "{shown}");
            let mut part = [0; 3000];
            let at = inode.size_bytes / 2;
            let read = fs.read(inode, at, &mut part).unwrap();
            assert!(expected[usize::try_from(at).unwrap()..].starts_with(&part[..read]), "{shown}");
        }
        FileKind::Symlink => {
            let expected = fs::read_link(real).unwrap();
            assert_eq!(fs.target(inode).unwrap(), expected.as_os_str().as_encoded_bytes(), "{shown}");
        }
        FileKind::Directory => {
            let mut names: Vec<_> = fs.entries(inode).unwrap().into_iter().map(|entry| entry.name).collect();
            names.retain(|name| name != b"lost+found");
            names.sort();
            let listed =
                fs::read_dir(real).unwrap().map(|entry| entry.unwrap().file_name().into_encoded_bytes());
            let mut expected: Vec<_> = listed.collect();
            expected.sort();
            assert_eq!(names, expected, "{shown}");
            for name in names {
                let child = fs.lookup(inode, &name).unwrap().unwrap();
                let name = String::from_utf8(name).unwrap();
                assert_same(fs, &fs.inode(child).unwrap(), &real.join(name));
            }
        }
        other => panic!("{shown}: {other:?}"),
    }
}

/// The lowest byte of a number.
fn low(number: usize) -> u8 {
    number.to_le_bytes()[0]
}

fn fill(tree: &Path) {
    let noise = |len: usize| (0..len).map(|at| low(at * 7919 + at / 251)).collect::<Vec<u8>>();
    fs::create_dir_all(tree.join("a/b/c")).unwrap();
    fs::create_dir(tree.join("many")).unwrap();
    for number in 0..600 {
        fs::write(tree.join(format!("many/a file with a long name, number {number:05}")), [low(number)])
            .unwrap();
    }
    fs::write(tree.join("empty"), "").unwrap();
    fs::write(tree.join("a/short"), "hello\n").unwrap();
    fs::write(tree.join("a/b/long"), noise(3_000_001)).unwrap();
    fs::set_permissions(tree.join("a/short"), fs::Permissions::from_mode(0o4751)).unwrap();
    let sparse = File::create(tree.join("a/b/c/sparse")).unwrap();
    for at in 0..40 {
        sparse.write_all_at(&noise(5000), at * 100_000).unwrap();
    }
    sparse.set_len(9_000_000).unwrap();
    symlink("a/short", tree.join("link")).unwrap();
    symlink(format!("/{}", "very/long/".repeat(20)), tree.join("long link")).unwrap();
}

#[test]
fn what_mkfs_was_given_is_read_back() {
    for options in [
        &["-b", "4096"] as &[&str],
        &["-b", "1024", "-O", "^has_journal"],
        &["-b", "1024", "-O", "^extents,^64bit,^metadata_csum"],
        &["-b", "4096", "-O", "inline_data", "-I", "256"],
    ] {
        let made = Made::new();
        if !options.contains(&"inline_data") {
            fill(&made.tree());
        } else {
            fs::write(made.tree().join("short"), "inside the inode").unwrap();
        }
        if !made.make(48 << 20, options) {
            return;
        }
        let fs = made.open().unwrap().unwrap();
        assert!(!fs.was_in_use());
        let root = fs.root().unwrap();
        for entry in fs.entries(&root).unwrap().iter().filter(|entry| entry.name != b"lost+found") {
            let real = made.tree().join(std::str::from_utf8(&entry.name).unwrap());
            assert_same(&fs, &fs.inode(entry.inode).unwrap(), &real);
        }
        if !options.contains(&"inline_data") {
            let short = fs.resolve(b"/link", true).unwrap();
            assert_eq!(fs.read_whole(&short, 100).unwrap(), b"hello\n");
            assert_eq!(fs.resolve(b"link", false).unwrap().kind, FileKind::Symlink);
            assert!(matches!(fs.resolve(b"/a/none", true), Err(FilesError::NotFound { .. })));
            assert!(matches!(fs.resolve(b"/empty/x", true), Err(FilesError::NotADirectory { .. })));
        }
    }
}

#[test]
fn a_file_with_many_extents_is_read_back() {
    let made = Made::new();
    let mut expected = Vec::new();
    let file = File::create(made.tree().join("holes")).unwrap();
    // Every other block: more extents than the inode and one block have room for.
    for at in 0..3000 {
        file.write_all_at(&[low(at) | 1; 1024], at as u64 * 2048).unwrap();
        expected.extend_from_slice(&[low(at) | 1; 1024]);
        expected.extend_from_slice(&[0; 1024]);
    }
    expected.truncate(expected.len() - 1024);
    if !made.make(32 << 20, &["-b", "1024"]) {
        return;
    }
    let fs = made.open().unwrap().unwrap();
    let inode = fs.resolve(b"/holes", true).unwrap();
    assert!(fs.read_whole(&inode, u64::MAX).unwrap() == expected);
}

/// Writes a transaction into the journal by debugfs and leaves it there.
#[test]
fn what_is_in_the_journal_is_read_as_if_it_were_in_place() {
    for options in
        [&["-b", "1024"] as &[&str], &["-b", "4096"], &["-b", "1024", "-O", "^metadata_csum,^64bit"]]
    {
        let made = Made::new();
        let block_bytes: usize = options[1].parse().unwrap();
        fs::write(made.tree().join("kept"), vec![b'k'; 3 * block_bytes]).unwrap();
        fs::write(made.tree().join("file"), vec![b'o'; 3 * block_bytes]).unwrap();
        if !made.make(16 << 20, options) {
            return;
        }
        let fs = made.open().unwrap().unwrap();
        let place = |path: &[u8]| fs.run(&fs.resolve(path, true).unwrap(), 1).unwrap().physical.unwrap();
        let (block, kept) = (place(b"/file"), place(b"/kept"));
        let content = |name: &str, bytes: Vec<u8>| {
            let path = made.directory.path().join(name);
            fs::write(&path, bytes).unwrap();
            path.display().to_string()
        };
        // The second begins as blocks of the journal do, and must be escaped.
        let mut magic = vec![b'n'; block_bytes];
        magic[..4].copy_from_slice(&[0xc0, 0x3b, 0x39, 0x98]);
        let (first, second) = (content("1", vec![b'x'; block_bytes]), content("2", magic.clone()));
        let script = format!(
            "jo\njw -b {block},{kept} {first}\njc\njo\njw -r {kept}\njc\njo\njw -b {block} {second}\njc\n"
        );
        // Two blocks are given to the first transaction.
        fs::write(&first, vec![b'x'; 2 * block_bytes]).unwrap();
        made.debugfs(&script);
        let fs = made.open().unwrap().unwrap();
        assert!(fs.was_in_use());
        assert_eq!(fs.journal_blocks(), 1);
        let read = |path: &[u8]| fs.read_whole(&fs.resolve(path, true).unwrap(), 1 << 20).unwrap();
        let mut expected = vec![b'o'; 3 * block_bytes];
        expected[block_bytes..2 * block_bytes].copy_from_slice(&magic);
        assert!(read(b"/file") == expected, "{options:?}");
        assert!(read(b"/kept") == vec![b'k'; 3 * block_bytes], "a revoked block came back, {options:?}");
        // e2fsck comes to the same.
        let _ = Command::new("e2fsck").args(["-fy"]).arg(made.disk()).env("PATH", PATH).output().unwrap();
        let fs = made.open().unwrap().unwrap();
        assert!(!fs.was_in_use());
        assert!(
            fs.read_whole(&fs.resolve(b"/file", true).unwrap(), 1 << 20).unwrap() == expected,
            "{options:?}"
        );
    }
}

#[test]
fn a_superblock_in_the_journal_counts() {
    let made = Made::new();
    if !made.make(16 << 20, &["-b", "1024"]) {
        return;
    }
    let grown = made.open().unwrap().unwrap().size_bytes();
    let mut superblock = fs::read(made.disk()).unwrap()[1024..2048].to_vec();
    superblock[120..128].copy_from_slice(b"journal\0");
    let content = made.directory.path().join("superblock");
    fs::write(&content, superblock).unwrap();
    made.debugfs(&format!("jo\njw -b 1 {}\njc\n", content.display()));
    // The disk says that it is smaller, as before it grew.
    let file = File::options().write(true).open(made.disk()).unwrap();
    file.write_all_at(&16_383_u32.to_le_bytes(), 1024 + 4).unwrap();
    let fs = made.open().unwrap().unwrap();
    assert!(fs.was_in_use());
    assert_eq!(fs.size_bytes(), grown);
}

/// A file `/loop` of 16 GiB whose map names one block again and again; false on a machine without e2fsprogs.
pub(crate) fn make_loop(made: &Made) -> bool {
    fs::write(made.tree().join("loop"), [1; 1024]).unwrap();
    fs::write(made.tree().join("map"), [2; 1024]).unwrap();
    if !made.make(2 << 20, &["-b", "1024", "-N", "1024", "-O", "^extents,^64bit,^metadata_csum,^has_journal"])
    {
        return false;
    }
    let fs = made.open().unwrap().unwrap();
    let map = fs.run(&fs.resolve(b"/map", true).unwrap(), 0).unwrap().physical.unwrap();
    let number = u32::try_from(map).unwrap().to_le_bytes();
    let file = File::options().write(true).open(made.disk()).unwrap();
    file.write_all_at(&number.repeat(256), map * 1024).unwrap();
    made.debugfs(&format!(
        "set_inode_field /loop block[TIND] {map}\nset_inode_field /loop size {}\n",
        16_u64 << 30
    ))
}

#[test]
fn a_file_is_not_read_on_past_what_its_file_system_has() {
    let made = Made::new();
    if !make_loop(&made) {
        return;
    }
    let fs = made.open().unwrap().unwrap();
    let inode = fs.resolve(b"/loop", true).unwrap();
    let mut effort = Effort::of(&[&fs]);
    let (mut at, mut steps) = (0, 0);
    let ended = loop {
        let run = fs.run(&inode, at).unwrap();
        at += run.blocks;
        steps += 1;
        if let Err(error) = effort.spend(&inode, 1024) {
            break error;
        }
    };
    assert!(matches!(ended, FilesError::Damaged { .. }), "{ended}");
    assert!(steps < 40_000);
}

#[test]
fn holes_of_listed_blocks_are_passed_over_at_once() {
    let made = Made::new();
    let sparse = File::create(made.tree().join("sparse")).unwrap();
    sparse.write_all_at(&[1; 1024], 20 << 20).unwrap();
    if !made.make(32 << 20, &["-b", "1024", "-O", "^extents,^64bit,^metadata_csum"]) {
        return;
    }
    let fs = made.open().unwrap().unwrap();
    let inode = fs.resolve(b"/sparse", true).unwrap();
    let (mut at, mut runs) = (0, Vec::new());
    while at * 1024 < inode.size_bytes {
        let run = fs.run(&inode, at).unwrap();
        at += run.blocks;
        runs.push(run);
    }
    // Twelve in the inode, one of the single list, two up to the block in the lists of lists, the block.
    assert!(runs.len() <= 16, "{runs:?}");
    assert_eq!(runs.iter().filter(|run| run.physical.is_some()).count(), 1);
    assert_eq!(at * 1024, inode.size_bytes);
}

#[test]
fn an_area_too_small_for_a_superblock_has_none() {
    let made = Made::new();
    fs::write(made.disk(), [0; 4096]).unwrap();
    for bytes in [1, 1024, 2047] {
        assert!(FileSystem::open(made.image(), 1024..1024 + bytes).unwrap().is_none());
    }
}

#[test]
fn broken_file_systems_end_in_errors() {
    let made = Made::new();
    fill(&made.tree());
    if !made.make(48 << 20, &["-b", "1024"]) {
        return;
    }
    let bytes = fs::read(made.disk()).unwrap();
    let mut state = 1_u64;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    for _ in 0..40 {
        let mut broken = bytes.clone();
        // Superblock, descriptors, inode tables and the first directories.
        for _ in 0..60 {
            let at = 1024 + random(300 << 10);
            broken[usize::try_from(at).unwrap()] ^= u8::try_from(random(256)).unwrap();
        }
        fs::write(made.disk(), &broken).unwrap();
        // An error, or a tree that ends: never a panic, never without end.
        let Ok(Some(fs)) = made.open() else { continue };
        let Ok(root) = fs.root() else { continue };
        let mut todo = vec![root];
        for _ in 0..200 {
            let Some(inode) = todo.pop() else { break };
            let entries = fs.entries(&inode).unwrap_or_default();
            todo.extend(entries.iter().filter_map(|entry| fs.inode(entry.inode).ok()));
            let mut part = vec![0; 10_000];
            let _ = fs.read(&inode, inode.size_bytes / 2, &mut part);
            let _ = fs.target(&inode);
        }
    }
}
