use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;
use crate::files::ext4::tests::Made;

const ROOM: u64 = 64 << 20;

fn target(made: &Made, device: &Path) -> Target<'static> {
    let device: &'static Path = Box::leak(device.to_owned().into_boxed_path());
    Target {
        device,
        disk: made.image(),
        role: DiskRole::Home,
        of: "work".to_owned(),
        stop: CancellationToken::new(),
    }
}

#[test]
fn a_tree_is_copied_with_its_modes_owners_and_times() {
    let from = Made::new();
    fs::create_dir_all(from.tree().join("d/<2>/e")).unwrap();
    fs::write(from.tree().join("d/a \"b\" c"), vec![7; 100_000]).unwrap();
    fs::write(from.tree().join("d/<2>/e/f"), "deep").unwrap();
    fs::set_permissions(from.tree().join("d/<2>/e/f"), fs::Permissions::from_mode(0o4711)).unwrap();
    symlink("some where/<5>", from.tree().join("d/link")).unwrap();
    let to = Made::new();
    fs::create_dir(to.tree().join("home")).unwrap();
    fs::write(to.tree().join("home/old"), "old").unwrap();
    if !from.make(16 << 20, &["-b", "1024"]) || !to.make(16 << 20, &["-b", "4096"]) {
        return;
    }
    from.debugfs("set_inode_field /d/link uid 77777\nset_inode_field /d/<2>/e/f mtime @1700000000\n");
    let source = from.open().unwrap().unwrap();
    let work = tempfile::tempdir().unwrap();
    let staged = stage(&source, b"/d", work.path(), ROOM, &CancellationToken::new()).unwrap();
    let disk = to.disk();
    let target = target(&to, &disk);
    let scripts = tempfile::tempdir().unwrap();
    let copied = target.write(&staged, b"/home", false, scripts.path()).unwrap();
    assert_eq!((copied.files, copied.directories, copied.links, copied.bytes), (2, 3, 1, 100_004));
    let fs = to.open().unwrap().unwrap();
    for path in [&b"/d"[..], b"/d/a \"b\" c", b"/d/<2>/e/f", b"/d/link", b"/d/<2>"] {
        let there = fs.resolve(&[b"/home", path].concat(), false).unwrap();
        let was = source.resolve(path, false).unwrap();
        let facts = |inode: &Inode| {
            (inode.kind, inode.permissions, inode.uid, inode.gid, inode.modified, inode.accessed)
        };
        assert_eq!(facts(&there), facts(&was), "{}", shown(path));
    }
    let read = |path: &[u8]| fs.read_whole(&fs.resolve(path, true).unwrap(), 1 << 20).unwrap();
    assert_eq!(read(b"/home/d/a \"b\" c"), vec![7; 100_000]);
    assert_eq!(read(b"/home/old"), b"old");
    // Again: only with force, and what is refused writes nothing.
    let before = fs::read(&disk).unwrap();
    let again = target.write(&staged, b"/home", false, scripts.path()).unwrap_err();
    assert!(matches!(again, CopyError::Exists { .. }), "{again}");
    target.write(&staged, b"/nowhere/d", false, scripts.path()).unwrap_err();
    assert!(fs::read(&disk).unwrap() == before, "the disk was written to");
    target.write(&staged, b"/home", true, scripts.path()).unwrap();
    assert!(
        stage(&source, b"/d", work.path(), ROOM, &CancellationToken::new()).is_err(),
        "staged over what was staged"
    );
}

#[test]
fn what_cannot_be_written_down_is_refused() {
    assert!(is_plain(b"a name") && is_plain("Łódź".as_bytes()));
    assert!(!is_plain(b"a\nname") && !is_plain(b"\x1b[2J"));
}

/// A disk whose tree a test has filled, what of it is staged, and a disk to copy to.
fn copied(from: &Made, path: &[u8]) -> Option<Result<(Made, Copied), CopyError>> {
    let to = Made::new();
    if !from.make(16 << 20, &["-b", "4096"]) || !to.make(16 << 20, &["-b", "1024"]) {
        return None;
    }
    let work = tempfile::tempdir().unwrap();
    let source = from.open().unwrap().unwrap();
    let disk = to.disk();
    let copied = stage(&source, path, work.path(), ROOM, &CancellationToken::new())
        .and_then(|staged| target(&to, &disk).write(&staged, b"/", false, work.path()));
    Some(copied.map(|copied| (to, copied)))
}

#[test]
fn names_that_mean_something_to_debugfs_are_names() {
    let names: [&[u8]; 12] = [
        b"-p",
        b"#x",
        b"!touch owned",
        b" blanks ",
        b"%s",
        b"~",
        b"back\\slash",
        b"'q'",
        b"\"",
        b"<2>",
        b"\xff\xfe",
        &[b'"'; 255],
    ];
    let from = Made::new();
    fs::create_dir(from.tree().join("d")).unwrap();
    for name in names {
        let name = std::ffi::OsStr::from_bytes(name);
        fs::create_dir(from.tree().join("d").join(name)).unwrap();
        fs::write(from.tree().join("d").join(name).join(name), name.as_bytes()).unwrap();
        fs::create_dir(from.tree().join("d").join(name).join("links")).unwrap();
        symlink(name, from.tree().join("d").join(name).join("links/link")).unwrap();
    }
    let Some(copied) = copied(&from, b"/d") else { return };
    let (to, copied) = copied.unwrap();
    assert_eq!((copied.files, copied.directories, copied.links), (12, 25, 12));
    let fs = to.open().unwrap().unwrap();
    for name in names {
        let file = fs.resolve(&[b"/d/", name, b"/", name].concat(), false).unwrap();
        assert_eq!(fs.read_whole(&file, 1000).unwrap(), name);
        let link = fs.resolve(&[b"/d/", name, b"/links/link"].concat(), false).unwrap();
        assert_eq!(fs.target(&link).unwrap(), name);
    }
}

#[test]
fn a_line_too_long_for_debugfs_is_refused_and_nothing_of_it_is_run() {
    let from = Made::new();
    let owned = from.directory.path().join("owned");
    let name = "n".repeat(255);
    let command = format!("!touch {} #", owned.display());
    // With 8,192 or 1,024 bytes a read, the rest begins with the command.
    for buffer_bytes in [8192, 1024] {
        let room = buffer_bytes - 1 - "symlink \"\" \"".len() - name.len();
        let fill = format!("{}{}", "\"".repeat(room / 2), "x".repeat(room % 2));
        let tree = from.tree().join(buffer_bytes.to_string());
        fs::create_dir(&tree).unwrap();
        symlink(format!("{fill}{command}"), tree.join(&name)).unwrap();
    }
    for path in [&b"/8192"[..], b"/1024"] {
        let Some(copied) = copied(&from, path) else { return };
        let error = copied.err().unwrap();
        assert!(matches!(error, CopyError::Uncopyable { .. }), "{error}");
        assert!(!owned.exists());
    }
}

#[test]
fn what_debugfs_says_is_an_error_though_it_ends_well() {
    let made = Made::new();
    if !made.make(16 << 20, &["-b", "1024"]) {
        return;
    }
    let script = made.directory.path().join("script");
    let device = made.disk().into_os_string();
    fs::write(&script, "mkdir a\n").unwrap();
    assert_eq!(edit(&script, &device).unwrap().said, "");
    fs::write(&script, "mkdir a\nmkdir b\n").unwrap();
    let done = edit(&script, &device).unwrap();
    assert_eq!(done.code, Some(0));
    assert!(done.said.contains("already exists"), "{}", done.said);
}

#[test]
fn a_disk_without_room_says_so() {
    let from = Made::new();
    fs::write(from.tree().join("large"), vec![1; 5 << 20]).unwrap();
    let to = Made::new();
    if !from.make(16 << 20, &["-b", "1024"]) || !to.make(4 << 20, &["-b", "1024"]) {
        return;
    }
    let source = from.open().unwrap().unwrap();
    let (work, disk) = (tempfile::tempdir().unwrap(), to.disk());
    let error = stage(&source, b"/large", work.path(), 4 << 20, &CancellationToken::new()).unwrap_err();
    assert!(error.to_string().contains("no room"), "{error}");
    let work = tempfile::tempdir().unwrap();
    let staged = stage(&source, b"/large", work.path(), ROOM, &CancellationToken::new()).unwrap();
    let error = target(&to, &disk).write(&staged, b"/", false, work.path()).unwrap_err();
    assert!(matches!(error, CopyError::Full { .. }), "{error}");
}

#[test]
fn a_path_without_a_name_and_a_deep_tree_are_refused() {
    let from = Made::new();
    fs::create_dir_all(from.tree().join(["d"; MAX_DEPTH + 2].join("/"))).unwrap();
    for path in [&b"/d/.."[..], b"/d/.", b"/d"] {
        let Some(copied) = copied(&from, path) else { return };
        let error = copied.err().unwrap();
        assert!(matches!(error, CopyError::Uncopyable { .. }), "{error}");
    }
}

#[test]
fn a_copy_that_is_told_to_stop_writes_nothing() {
    let from = Made::new();
    fs::write(from.tree().join("letter"), "new").unwrap();
    let to = Made::new();
    fs::write(to.tree().join("letter"), "old").unwrap();
    if !from.make(16 << 20, &["-b", "1024"]) || !to.make(16 << 20, &["-b", "1024"]) {
        return;
    }
    let source = from.open().unwrap().unwrap();
    let (work, disk) = (tempfile::tempdir().unwrap(), to.disk());
    let staged = stage(&source, b"/letter", work.path(), ROOM, &CancellationToken::new()).unwrap();
    let target = target(&to, &disk);
    target.stop.cancel();
    let error = target.write(&staged, b"/letter", true, work.path()).unwrap_err();
    assert!(matches!(error, CopyError::Interrupted), "{error}");
    let fs = to.open().unwrap().unwrap();
    let letter = fs.resolve(b"/letter", false).unwrap();
    assert_eq!(fs.read_whole(&letter, 100).unwrap(), b"old");
}

#[test]
fn what_is_told_to_stop_is_not_taken_out_and_where_there_is_no_room_is_said() {
    let from = Made::new();
    fs::write(from.tree().join("letter"), vec![7; 3 << 20]).unwrap();
    let to = Made::new();
    fs::write(to.tree().join("fill"), vec![1; 13 << 20]).unwrap();
    if !from.make(16 << 20, &["-b", "1024"]) || !to.make(16 << 20, &["-b", "1024"]) {
        return;
    }
    let source = from.open().unwrap().unwrap();
    let (work, disk) = (tempfile::tempdir().unwrap(), to.disk());
    let stop = CancellationToken::new();
    let staged = stage(&source, b"/letter", work.path(), ROOM, &stop).unwrap();
    let error = target(&to, &disk).write(&staged, b"/letter", false, work.path()).unwrap_err();
    assert!(matches!(&error, CopyError::Full { role: DiskRole::Home, path } if path == "/letter"), "{error}");
    stop.cancel();
    let other = tempfile::tempdir().unwrap();
    let error = stage(&source, b"/letter", other.path(), ROOM, &stop).unwrap_err();
    assert!(matches!(error, CopyError::Interrupted), "{error}");
}
