//! Copies files out of any version into the file system of a desktop that does not run.
//!
//! The bytes are staged on this machine first, so that nothing is touched before all of them are here. Then e2fsprogs
//! writes to the desktop's disk: `e2fsck -p` replays the journal, `debugfs` writes, level by level of the tree, and
//! `e2fsck` looks at the result. While `debugfs` writes the file system says that it must be checked, so that a crash in
//! the middle leaves one that the guest's own check, or the next copy, puts in order.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use chunk_format::DiskRole;
use serde::Serialize;

use super::{DiskFiles, Entry, FileKind, FileSystem, FilesError, Inode, InodeNumber, shown};
use crate::image::DiskImage;

/// The deepest directory that is copied.
const MAX_DEPTH: usize = 256;
/// Files of one copy.
const MAX_ITEMS: usize = 1 << 20;
const STEP_BYTES: usize = 1 << 20;
/// Where the programs may be beside the places of ordinary users.
const MORE_PATHS: &str = "/usr/sbin:/sbin";

/// Why files were not copied, or not all.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// One of the file systems cannot be read, or has no such file.
    #[error("{0}")]
    Files(#[from] FilesError),
    /// There is no file system to copy out of, or into.
    #[error("the {role} disk of {of} has no file system that can be used")]
    NoFileSystem {
        /// The disk.
        role: DiskRole,
        /// Whose.
        of: String,
    },
    /// Something is in the way.
    #[error("{path} is there already")]
    Exists {
        /// Its path, safe to print.
        path: String,
    },
    /// A file cannot be copied.
    #[error("{path} cannot be copied: {reason}")]
    Uncopyable {
        /// Its path, safe to print.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// The bytes could not be kept on this machine.
    #[error("cannot write {}", path.display())]
    Staging {
        /// The file or directory.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// A program of e2fsprogs is not there.
    #[error("cannot run {program}")]
    NoTool {
        /// The program.
        program: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A program of e2fsprogs refused.
    #[error("{program} cannot use the desktop's file system: {said}")]
    Tool {
        /// The program.
        program: &'static str,
        /// What it said, safe to print.
        said: String,
    },
    /// A file is not in the desktop as it should be.
    #[error("{path} was not copied: {said}")]
    NotWritten {
        /// Its path, safe to print.
        path: String,
        /// What `debugfs` said, safe to print.
        said: String,
    },
}

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// Where it is in the desktop, safe to print.
    pub path: String,
    /// Files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub links: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Devices, pipes and sockets, which are left out.
    pub skipped: u64,
}

/// A file or directory on its way.
#[derive(Debug)]
struct Item {
    name: Vec<u8>,
    inode: Inode,
    content: Content,
}

#[derive(Debug)]
enum Content {
    File(PathBuf),
    Link(Vec<u8>),
    Directory(Vec<Item>),
}

/// A tree that was taken out of a version and is on this machine.
#[derive(Debug)]
pub struct Staged {
    item: Item,
    copied: Copied,
}

struct Stager<'a> {
    fs: &'a FileSystem,
    directory: &'a Path,
    copied: Copied,
    items: usize,
    seen: HashSet<InodeNumber>,
}

/// Takes a file or directory out of a file system into an empty directory of this machine.
///
/// # Errors
/// `Files`, `Uncopyable`, `Staging`.
pub fn stage(fs: &FileSystem, path: &[u8], directory: &Path) -> Result<Staged, CopyError> {
    let inode = fs.resolve(path, true)?;
    let name = path.split(|byte| *byte == b'/').rfind(|name| !name.is_empty()).unwrap_or(b"root").to_vec();
    let mut stager = Stager { fs, directory, copied: Copied::default(), items: 0, seen: HashSet::new() };
    let item = stager.take(name, inode, &mut path.to_vec(), 0)?;
    let item = item
        .ok_or(CopyError::Uncopyable { path: shown(path), reason: "it is neither a file nor a directory" })?;
    Ok(Staged { item, copied: stager.copied })
}

impl Stager<'_> {
    /// `None` for what is left out.
    fn take(
        &mut self,
        name: Vec<u8>,
        inode: Inode,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<Option<Item>, CopyError> {
        let refused = |reason| Err(CopyError::Uncopyable { path: shown(path), reason });
        self.items += 1;
        if depth > MAX_DEPTH || self.items > MAX_ITEMS {
            return refused("it is too deep, or there are too many files");
        }
        if !is_plain(&name) {
            return refused("its name has control characters");
        }
        let content = match inode.kind {
            FileKind::File => {
                let staged = self.directory.join(self.items.to_string());
                self.write(&inode, &staged)?;
                self.copied.files += 1;
                self.copied.bytes += inode.size_bytes;
                Content::File(staged)
            }
            FileKind::Symlink => {
                let target = self.fs.target(&inode)?;
                if !is_plain(&target) {
                    return refused("it leads to a name with control characters");
                }
                self.copied.links += 1;
                Content::Link(target)
            }
            FileKind::Directory => {
                if !self.seen.insert(inode.number) {
                    return refused("it is a directory in a circle");
                }
                self.copied.directories += 1;
                let mut children = Vec::new();
                for Entry { name, inode, .. } in self.fs.entries(&inode)? {
                    let len = path.len();
                    path.push(b'/');
                    path.extend_from_slice(&name);
                    children.extend(self.take(name, self.fs.inode(inode)?, path, depth + 1)?);
                    path.truncate(len);
                }
                Content::Directory(children)
            }
            _ => {
                self.copied.skipped += 1;
                return Ok(None);
            }
        };
        Ok(Some(Item { name, inode, content }))
    }

    /// Writes a file's bytes, without its holes.
    fn write(&self, inode: &Inode, path: &Path) -> Result<(), CopyError> {
        let failed = |source| CopyError::Staging { path: path.to_owned(), source };
        let file = File::create_new(path).map_err(failed)?;
        file.set_len(inode.size_bytes).map_err(failed)?;
        let (mut at, mut buf) = (0, vec![0; STEP_BYTES]);
        while at < inode.size_bytes {
            if let Some(run) = self.fs.run_in_place(inode, at)?
                && run.physical.is_none()
            {
                at = (run.logical + run.blocks).saturating_mul(self.fs.block_bytes());
                continue;
            }
            // A step ends where a block does.
            let step = STEP_BYTES - usize::try_from(at % STEP_BYTES as u64).unwrap_or(0);
            let read = self.fs.read(inode, at, &mut buf[..step])?;
            if read == 0 {
                break;
            }
            file.write_all_at(&buf[..read], at).map_err(failed)?;
            at += read as u64;
        }
        Ok(())
    }
}

/// A line of `debugfs` holds it.
fn is_plain(name: &[u8]) -> bool {
    name.len() <= 4095 && !name.iter().any(|byte| byte.is_ascii_control())
}

/// A directory that is there, and what belongs into it, by the name it gets.
type Filling<'a> = (InodeNumber, Vec<(Vec<u8>, &'a Item)>);

/// The file system that is copied into.
pub struct Target<'a> {
    /// The disk as a file that programs can write to.
    pub device: &'a Path,
    /// The same disk, read.
    pub disk: Arc<dyn DiskImage>,
    /// What it is for.
    pub role: DiskRole,
    /// Whose it is, for messages.
    pub of: String,
}

impl Target<'_> {
    /// Writes a staged tree to a path: into the directory that is there, or under the path's last name. `scripts` is a
    /// directory for the programs' instructions.
    ///
    /// # Errors
    /// [`CopyError`]; the file system is in order all the same unless it is `Tool`.
    pub fn write(
        &self,
        staged: &Staged,
        path: &[u8],
        force: bool,
        scripts: &Path,
    ) -> Result<Copied, CopyError> {
        // Before the journal is looked at: nothing that was written is lost, and the tree is as it will be.
        let area = self.open()?.area().clone();
        let mut device = OsString::from(self.device);
        if area.start > 0 {
            device.push(format!("?offset={}", area.start));
        }
        let checked = run("e2fsck", &["-p"], &device)?;
        if checked.code.is_none_or(|code| code > 1) {
            return Err(CopyError::Tool { program: "e2fsck", said: checked.said });
        }
        let fs = self.open()?;
        let (parent, name, place) = self.place(&fs, staged, path)?;
        check_free(&fs, parent, &name, &staged.item, &place, force)?;
        let mut said = String::new();
        let mut level: Vec<Filling<'_>> = vec![(parent, vec![(name.clone(), &staged.item)])];
        while !level.is_empty() {
            let fs = self.open()?;
            let mut script = b"set_super_value state 0\n".to_vec();
            for (directory, items) in &level {
                for (name, item) in items {
                    instruct(&fs, *directory, name, item, &mut script)?;
                }
            }
            let commands = scripts.join("commands");
            let failed = |source| CopyError::Staging { path: commands.clone(), source };
            File::create(&commands).and_then(|mut file| file.write_all(&script)).map_err(failed)?;
            let mut flag = OsString::from("-f");
            flag.push(&commands);
            said = run_with("debugfs", &["-w".into(), flag], &device)?.said;
            level = self.next_level(&level, &said)?;
        }
        // Not `-p` alone, which believes the file system when it says that it is in order.
        let mended = run("e2fsck", &["-f", "-p"], &device)?;
        let looked = run("e2fsck", &["-f", "-n"], &device)?;
        if mended.code.is_none_or(|code| code > 1) || looked.code != Some(0) {
            return Err(CopyError::Tool {
                program: "e2fsck",
                said: format!("{}{}", mended.said, looked.said),
            });
        }
        let fs = self.open()?;
        verify(&fs, parent, &name, &staged.item, &said)?;
        Ok(Copied { path: place, ..staged.copied.clone() })
    }

    fn open(&self) -> Result<FileSystem, CopyError> {
        let found = DiskFiles::find(self.role, &self.disk)?;
        let area = found.largest().map(|fs| fs.area().clone());
        let opened = area.map(|area| FileSystem::open(Arc::clone(&self.disk), area)).transpose()?.flatten();
        opened.ok_or_else(|| CopyError::NoFileSystem { role: self.role, of: self.of.clone() })
    }

    /// The directory that gets a new name, the name, and the path of both, safe to print.
    fn place(
        &self,
        fs: &FileSystem,
        staged: &Staged,
        path: &[u8],
    ) -> Result<(InodeNumber, Vec<u8>, String), CopyError> {
        match fs.resolve(path, true) {
            Ok(inode) if inode.kind == FileKind::Directory => {
                let name = staged.item.name.clone();
                let place = [path.strip_suffix(b"/").unwrap_or(path), &name].join(&b'/');
                return Ok((inode.number, name, shown(&place)));
            }
            Ok(_) | Err(FilesError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let trimmed = path.strip_suffix(b"/").unwrap_or(path);
        let cut = trimmed.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let (parent, name) = trimmed.split_at(cut);
        let parent = fs.resolve(parent, true)?;
        if parent.kind != FileKind::Directory {
            return Err(FilesError::NotADirectory { path: shown(path) }.into());
        }
        if !is_plain(name) || name.is_empty() || matches!(name, b"." | b"..") || name.len() > 255 {
            return Err(CopyError::Uncopyable { path: shown(path), reason: "it is no name a file can have" });
        }
        Ok((parent.number, name.to_vec(), shown(trimmed)))
    }

    /// The directories of a level that was written, with what belongs into them.
    fn next_level<'a>(&self, level: &[Filling<'a>], said: &str) -> Result<Vec<Filling<'a>>, CopyError> {
        let fs = self.open()?;
        let mut next = Vec::new();
        for (directory, items) in level {
            let directory = fs.inode(*directory)?;
            for (name, item) in items {
                let Content::Directory(children) = &item.content else { continue };
                let written = fs.lookup(&directory, name)?.ok_or_else(|| not_written(name, said))?;
                if fs.inode(written)?.kind != FileKind::Directory {
                    return Err(not_written(name, said));
                }
                if !children.is_empty() {
                    next.push((written, children.iter().map(|child| (child.name.clone(), child)).collect()));
                }
            }
        }
        Ok(next)
    }
}

fn not_written(name: &[u8], said: &str) -> CopyError {
    CopyError::NotWritten { path: shown(name), said: said.to_owned() }
}

/// Refuses before anything is written what would have to be replaced.
fn check_free(
    fs: &FileSystem,
    directory: InodeNumber,
    name: &[u8],
    item: &Item,
    path: &str,
    force: bool,
) -> Result<(), CopyError> {
    let Some(there) = fs.lookup(&fs.inode(directory)?, name)? else { return Ok(()) };
    let there = fs.inode(there)?;
    let exists = || CopyError::Exists { path: path.to_owned() };
    match (&item.content, there.kind) {
        (Content::Directory(children), FileKind::Directory) => {
            if !force {
                return Err(exists());
            }
            children.iter().try_for_each(|child| {
                let path = format!("{path}/{}", shown(&child.name));
                check_free(fs, there.number, &child.name, child, &path, force)
            })
        }
        // A directory is not thrown away for a file.
        (_, FileKind::Directory) => Err(exists()),
        _ if force => Ok(()),
        _ => Err(exists()),
    }
}

/// What `debugfs` is to do for one file or directory. Names are never at the beginning of a word, where some characters
/// mean something.
fn instruct(
    fs: &FileSystem,
    directory: InodeNumber,
    name: &[u8],
    item: &Item,
    script: &mut Vec<u8>,
) -> Result<(), CopyError> {
    let there = fs.lookup(&fs.inode(directory)?, name)?.map(|there| fs.inode(there)).transpose()?;
    let mut say = |words: &[&[u8]]| {
        script.extend_from_slice(&words.join(&b' '));
        script.push(b'\n');
    };
    let quoted = |text: &[u8]| {
        let inner = text.iter().flat_map(|byte| if *byte == b'"' { b"\"\"".to_vec() } else { vec![*byte] });
        [b"\"".to_vec(), inner.collect(), b"\"".to_vec()].concat()
    };
    let (bare, here) = (quoted(name), quoted(&[b"./", name].concat()));
    say(&[b"cd", format!("<{directory}>").as_bytes()]);
    let is_directory = matches!(item.content, Content::Directory(_));
    let stays = is_directory && there.as_ref().is_some_and(|there| there.kind == FileKind::Directory);
    if there.is_some() && !stays {
        say(&[b"rm", &here]);
    }
    let kind: u16 = match &item.content {
        Content::File(staged) => {
            say(&[b"write", &quoted(staged.as_os_str().as_encoded_bytes()), &bare]);
            0o100_000
        }
        Content::Link(target) => {
            say(&[b"symlink", &bare, &quoted(target)]);
            0o120_000
        }
        Content::Directory(_) if stays => return Ok(()),
        Content::Directory(_) => {
            say(&[b"mkdir", &bare]);
            0o040_000
        }
    };
    let inode = &item.inode;
    let mut set = |field: &str, value: String| {
        say(&[b"set_inode_field", &here, field.as_bytes(), value.as_bytes()]);
    };
    set("mode", format!("0{:o}", kind | inode.permissions));
    set("uid", inode.uid.to_string());
    set("gid", inode.gid.to_string());
    for (field, moment) in [("atime", inode.accessed), ("mtime", inode.modified), ("ctime", inode.changed)] {
        let (base, extra) = moment.encode();
        set(field, format!("@{base}"));
        set(&format!("{field}_extra"), extra.to_string());
    }
    Ok(())
}

/// Looks whether all is there as it was staged.
fn verify(
    fs: &FileSystem,
    directory: InodeNumber,
    name: &[u8],
    item: &Item,
    said: &str,
) -> Result<(), CopyError> {
    let wrong = || not_written(name, said);
    let number = fs.lookup(&fs.inode(directory)?, name)?.ok_or_else(wrong)?;
    let written = fs.inode(number)?;
    let is_same = written.kind == item.inode.kind
        && match &item.content {
            Content::File(staged) => {
                written.size_bytes == item.inode.size_bytes
                    && written.permissions == item.inode.permissions
                    && same_bytes(fs, &written, staged)?
            }
            Content::Link(target) => fs.target(&written)? == *target,
            Content::Directory(children) => {
                for child in children {
                    verify(fs, number, &child.name, child, said)?;
                }
                true
            }
        };
    if is_same { Ok(()) } else { Err(wrong()) }
}

fn same_bytes(fs: &FileSystem, written: &Inode, staged: &Path) -> Result<bool, CopyError> {
    let failed = |source| CopyError::Staging { path: staged.to_owned(), source };
    let file = File::open(staged).map_err(failed)?;
    let (mut left, mut right) = (vec![0; STEP_BYTES], vec![0; STEP_BYTES]);
    let mut at = 0;
    while at < written.size_bytes {
        let read = fs.read(written, at, &mut left)?;
        file.read_exact_at(&mut right[..read], at).map_err(failed)?;
        if read == 0 || left[..read] != right[..read] {
            return Ok(false);
        }
        at += read as u64;
    }
    Ok(true)
}

/// What a program has done.
struct Outcome {
    code: Option<i32>,
    said: String,
}

fn run(program: &'static str, options: &[&str], device: &OsString) -> Result<Outcome, CopyError> {
    let options: Vec<OsString> = options.iter().map(OsString::from).collect();
    run_with(program, &options, device)
}

fn run_with(program: &'static str, options: &[OsString], device: &OsString) -> Result<Outcome, CopyError> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(options)
        .arg(device)
        .env("PATH", format!("{path}:{MORE_PATHS}"))
        .env("LC_ALL", "C")
        .env("DEBUGFS_PAGER", "cat")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| CopyError::NoTool { program, source })?;
    let said = [output.stdout, output.stderr].concat();
    // The end of it says why.
    let said = &said[said.len().saturating_sub(2000)..];
    let lines =
        said.split(|byte| *byte == b'\n').filter(|line| !line.is_empty() && !line.starts_with(b"debugfs"));
    let said = lines.map(shown).collect::<Vec<_>>().join("; ");
    Ok(Outcome { code: output.status.code(), said })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::files::ext4::tests::Made;

    fn target(made: &Made, device: &Path) -> Target<'static> {
        let device: &'static Path = Box::leak(device.to_owned().into_boxed_path());
        Target { device, disk: made.image(), role: DiskRole::Home, of: "work".to_owned() }
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
        let staged = stage(&source, b"/d", work.path()).unwrap();
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
        // Again: only with force.
        let again = target.write(&staged, b"/home", false, scripts.path()).unwrap_err();
        assert!(matches!(again, CopyError::Exists { .. }), "{again}");
        target.write(&staged, b"/home", true, scripts.path()).unwrap();
        assert!(stage(&source, b"/d", work.path()).is_err(), "staged over what was staged");
    }

    #[test]
    fn what_cannot_be_written_down_is_refused() {
        assert!(is_plain(b"a name") && is_plain("Łódź".as_bytes()));
        assert!(!is_plain(b"a\nname") && !is_plain(b"\x1b[2J"));
    }
}
