//! Copies files out of any version into the file system of a desktop that does not run.
//!
//! The bytes are staged on this machine first, so that nothing is touched before all of them are here. Then e2fsprogs
//! writes to the desktop's disk: `e2fsck -p` replays the journal, `debugfs` writes, level by level of the tree, and
//! `e2fsck` looks at the result. `debugfs` writes in no order and goes on after what fails: the disk is to be one whose writes are
//! thrown away unless all went well.

mod e2fsprogs;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chunk_format::DiskRole;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use e2fsprogs::{check, edit, fits_line, is_plain, link_line, quoted, write_line};

use super::{DiskFiles, Effort, Entry, FileKind, FileSystem, FilesError, Inode, InodeNumber, shown};
use crate::image::DiskImage;

/// The deepest directory that is copied.
const MAX_DEPTH: usize = 256;
/// Files of one copy.
const MAX_ITEMS: usize = 1 << 20;
const STEP_BYTES: usize = 1 << 20;
/// How `debugfs` says that there is no room: for bytes, for files, for names in a directory.
const FULL: [&str; 3] = ["Could not allocate block", "Could not allocate inode", "No free space in"];

/// Why files were not copied, or not all.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// One of the file systems cannot be read, or has no such file.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// There is no file system to copy out of, or into.
    #[error("the {role} disk of {of} has no file system that can be used")]
    NoFileSystem {
        /// The disk.
        role: DiskRole,
        /// Whose.
        of: String,
    },
    /// It was told to stop.
    #[error("interrupted; nothing was copied")]
    Interrupted,
    /// The file system that is copied into has no room.
    #[error("the file system of the {role} disk has no room for {path}; nothing was copied")]
    Full {
        /// The disk.
        role: DiskRole,
        /// The path, safe to print.
        path: String,
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
    /// A file would not be in the desktop as it should be.
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
    stop: &'a CancellationToken,
    copied: Copied,
    items: usize,
    seen: HashSet<InodeNumber>,
    /// Bytes there is room for.
    room_bytes: u64,
}

/// Takes a file or directory out of a file system into an empty directory of this machine. What has more bytes than
/// `room_bytes`, the size of the disk it is for, is refused.
///
/// # Errors
/// `Files`, `Uncopyable`, `Staging`, `Interrupted`.
pub fn stage(
    fs: &FileSystem,
    path: &[u8],
    directory: &Path,
    room_bytes: u64,
    stop: &CancellationToken,
) -> Result<Staged, CopyError> {
    let inode = fs.resolve(path, true)?;
    let refused = |reason| CopyError::Uncopyable { path: shown(path), reason };
    let name = path.split(|byte| *byte == b'/').rfind(|name| !name.is_empty()).unwrap_or(b"root").to_vec();
    if matches!(name.as_slice(), b"." | b"..") {
        return Err(refused("its path does not end in a name"));
    }
    let (copied, seen) = (Copied::default(), HashSet::new());
    let mut stager = Stager { fs, directory, stop, copied, items: 0, seen, room_bytes };
    let item = stager.take(name, inode, &mut path.to_vec(), 0)?;
    let item = item.ok_or_else(|| refused("it is neither a file nor a directory"))?;
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
        if depth > MAX_DEPTH || self.items > MAX_ITEMS {
            return refused("it is too deep, or there are too many files");
        }
        if !is_plain(&name) {
            return refused("its name has control characters");
        }
        let content = match inode.kind {
            FileKind::File => {
                let staged = self.directory.join(self.copied.files.to_string());
                if !fits_line(&write_line(&staged, &name)) {
                    return refused("the path to where Satchel keeps its state is too long for debugfs");
                }
                self.write(&inode, &staged, path)?;
                self.copied.files += 1;
                self.copied.bytes = self.copied.bytes.saturating_add(inode.size_bytes);
                Content::File(staged)
            }
            FileKind::Symlink => {
                let target = self.fs.target(&inode)?;
                if !is_plain(&target) {
                    return refused("it leads to a name with control characters");
                }
                if !fits_line(&link_line(&name, &target)) {
                    return refused("the path it leads to is too long for debugfs");
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
                let entries = self.fs.entries(&inode)?;
                self.items += entries.len();
                if self.items > MAX_ITEMS {
                    return refused("it has too many files");
                }
                for Entry { name, inode, .. } in entries {
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

    fn go_on(&self) -> Result<(), CopyError> {
        if self.stop.is_cancelled() { Err(CopyError::Interrupted) } else { Ok(()) }
    }

    /// Writes a file's bytes, without its holes.
    fn write(&mut self, inode: &Inode, staged: &Path, path: &[u8]) -> Result<(), CopyError> {
        let failed = |source| CopyError::Staging { path: staged.to_owned(), source };
        let file = File::create_new(staged).map_err(failed)?;
        file.set_len(inode.size_bytes).map_err(failed)?;
        let (mut at, mut buf) = (0, vec![0; STEP_BYTES]);
        let mut effort = Effort::of(&[self.fs]);
        self.go_on()?;
        while at < inode.size_bytes {
            self.go_on()?;
            if let Some(run) = self.fs.run_in_place(inode, at)?
                && run.physical.is_none()
            {
                effort.spend(inode, self.fs.block_bytes())?;
                at = (run.logical + run.blocks).saturating_mul(self.fs.block_bytes());
                continue;
            }
            // A step ends where a block does.
            let step = STEP_BYTES - usize::try_from(at % STEP_BYTES as u64).unwrap_or(0);
            let read = self.fs.read(inode, at, &mut buf[..step])?;
            if read == 0 {
                break;
            }
            self.room_bytes = self.room_bytes.checked_sub(read as u64).ok_or_else(|| {
                CopyError::Uncopyable { path: shown(path), reason: "there is no room for it on the disk" }
            })?;
            effort.spend(inode, read as u64)?;
            file.write_all_at(&buf[..read], at).map_err(failed)?;
            at += read as u64;
        }
        Ok(())
    }
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
    /// Ends the writing.
    pub stop: CancellationToken,
}

/// What is done for a level, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// What is in the way is removed.
    Remove,
    /// What is copied is written.
    Write,
}

impl Target<'_> {
    /// Writes a staged tree to a path: into the directory that is there, or under the path's last name. `scripts` is a
    /// directory for the programs' instructions.
    ///
    /// # Errors
    /// [`CopyError`]. What was written until then is not in order, and to be thrown away.
    pub fn write(
        &self,
        staged: &Staged,
        path: &[u8],
        force: bool,
        scripts: &Path,
    ) -> Result<Copied, CopyError> {
        // As it is, the journal read along: what is refused leaves the disk untouched.
        let fs = self.open()?;
        self.place_free(&fs, staged, path, force)?;
        let area = fs.area().clone();
        let mut device = OsString::from(self.device);
        if area.start > 0 {
            device.push(format!("?offset={}", area.start));
        }
        let checked = check(&["-p"], &device)?;
        if checked.code.is_none_or(|code| code > 1) {
            return Err(CopyError::Tool { program: "e2fsck", said: checked.said });
        }
        let fs = self.open()?;
        // What was put in order may lie elsewhere.
        let (parent, name, place) = self.place_free(&fs, staged, path, force)?;
        self.write_levels((parent, vec![(name.clone(), &staged.item)]), scripts, &device, &place)?;
        // Not `-p` alone, which believes the file system when it says that it is in order.
        let mended = check(&["-f", "-p"], &device)?;
        let looked = check(&["-f", "-n"], &device)?;
        if mended.code.is_none_or(|code| code > 1) || looked.code != Some(0) {
            return Err(CopyError::Tool {
                program: "e2fsck",
                said: format!("{}{}", mended.said, looked.said),
            });
        }
        let fs = self.open()?;
        verify(&fs, parent, &name, &staged.item)?;
        Ok(Copied { path: place, ..staged.copied.clone() })
    }

    /// Writes a directory's items, and what is in them, level by level.
    fn write_levels(
        &self,
        first: Filling<'_>,
        scripts: &Path,
        device: &OsString,
        place: &str,
    ) -> Result<(), CopyError> {
        let mut level = vec![first];
        while !level.is_empty() {
            if self.stop.is_cancelled() {
                return Err(CopyError::Interrupted);
            }
            // What is replaced goes first: its blocks may become what is written.
            for step in [Step::Remove, Step::Write] {
                let script = self.script(&level, step)?;
                if !script.is_empty() {
                    self.run(&script, scripts, device, place)?;
                }
            }
            level = self.next_level(&level)?;
        }
        Ok(())
    }

    /// What `debugfs` is to do of a step for a level.
    fn script(&self, level: &[Filling<'_>], step: Step) -> Result<Vec<u8>, CopyError> {
        let fs = self.open()?;
        let mut script = Vec::new();
        for (directory, items) in level {
            for (name, item) in items {
                instruct(&fs, *directory, name, item, step, &mut script)?;
            }
        }
        Ok(script)
    }

    fn run(&self, script: &[u8], scripts: &Path, device: &OsString, place: &str) -> Result<(), CopyError> {
        let commands = scripts.join("commands");
        let failed = |source| CopyError::Staging { path: commands.clone(), source };
        File::create(&commands).and_then(|mut file| file.write_all(script)).map_err(failed)?;
        let done = edit(&commands, device)?;
        match done.code == Some(0) && done.said.is_empty() {
            true => Ok(()),
            false if FULL.iter().any(|full| done.said.contains(full)) => {
                Err(CopyError::Full { role: self.role, path: place.to_owned() })
            }
            false => Err(CopyError::NotWritten { path: place.to_owned(), said: done.said }),
        }
    }

    fn open(&self) -> Result<FileSystem, CopyError> {
        let found = DiskFiles::find(self.role, &self.disk)?;
        let area = found.largest().map(|fs| fs.area().clone());
        let opened = area.map(|area| FileSystem::open(Arc::clone(&self.disk), area)).transpose()?.flatten();
        opened.ok_or_else(|| CopyError::NoFileSystem { role: self.role, of: self.of.clone() })
    }

    /// As [`place`](Self::place), where nothing is in the way.
    fn place_free(
        &self,
        fs: &FileSystem,
        staged: &Staged,
        path: &[u8],
        force: bool,
    ) -> Result<(InodeNumber, Vec<u8>, String), CopyError> {
        let (parent, name, place) = self.place(fs, staged, path)?;
        check_free(fs, parent, &name, &staged.item, &place, force)?;
        Ok((parent, name, place))
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
    fn next_level<'a>(&self, level: &[Filling<'a>]) -> Result<Vec<Filling<'a>>, CopyError> {
        let fs = self.open()?;
        let mut next = Vec::new();
        for (directory, items) in level {
            let directory = fs.inode(*directory)?;
            for (name, item) in items {
                let Content::Directory(children) = &item.content else { continue };
                let written = fs.lookup(&directory, name)?.ok_or_else(|| not_written(name))?;
                if fs.inode(written)?.kind != FileKind::Directory {
                    return Err(not_written(name));
                }
                if !children.is_empty() {
                    next.push((written, children.iter().map(|child| (child.name.clone(), child)).collect()));
                }
            }
        }
        Ok(next)
    }
}

fn not_written(name: &[u8]) -> CopyError {
    CopyError::NotWritten { path: shown(name), said: "it is not there as it should be".to_owned() }
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
    step: Step,
    script: &mut Vec<u8>,
) -> Result<(), CopyError> {
    let there = fs.lookup(&fs.inode(directory)?, name)?.map(|there| fs.inode(there)).transpose()?;
    let mut say = |line: &[u8]| {
        if !fits_line(line) {
            let reason = "debugfs cannot be given such a name";
            return Err(CopyError::Uncopyable { path: shown(name), reason });
        }
        script.extend_from_slice(line);
        script.push(b'\n');
        Ok(())
    };
    let here = quoted(&[b"./", name].concat());
    let is_directory = matches!(item.content, Content::Directory(_));
    let stays = is_directory && there.as_ref().is_some_and(|there| there.kind == FileKind::Directory);
    if step == Step::Remove {
        if there.is_some() && !stays {
            say(format!("cd <{directory}>").as_bytes())?;
            say(&[b"rm ", here.as_slice()].concat())?;
        }
        return Ok(());
    }
    say(format!("cd <{directory}>").as_bytes())?;
    let kind: u16 = match &item.content {
        Content::File(staged) => {
            say(&write_line(staged, name))?;
            0o100_000
        }
        Content::Link(target) => {
            say(&link_line(name, target))?;
            0o120_000
        }
        Content::Directory(_) if stays => return Ok(()),
        Content::Directory(_) => {
            say(&[b"mkdir ", here.as_slice()].concat())?;
            0o040_000
        }
    };
    let inode = &item.inode;
    let mut set = |field: &str, value: String| {
        say(&[b"set_inode_field", here.as_slice(), field.as_bytes(), value.as_bytes()].join(&b' '))
    };
    set("mode", format!("0{:o}", kind | inode.permissions))?;
    set("uid", inode.uid.to_string())?;
    set("gid", inode.gid.to_string())?;
    for (field, moment) in [("atime", inode.accessed), ("mtime", inode.modified), ("ctime", inode.changed)] {
        let (base, extra) = moment.encode();
        set(field, format!("@{base}"))?;
        set(&format!("{field}_extra"), extra.to_string())?;
    }
    Ok(())
}

/// Looks whether all is there as it was staged.
fn verify(fs: &FileSystem, directory: InodeNumber, name: &[u8], item: &Item) -> Result<(), CopyError> {
    let wrong = || not_written(name);
    let number = fs.lookup(&fs.inode(directory)?, name)?.ok_or_else(wrong)?;
    let written = fs.inode(number)?;
    let is_same = written.kind == item.inode.kind
        && match &item.content {
            Content::File(staged) => {
                written.size_bytes == item.inode.size_bytes
                    && written.permissions == item.inode.permissions
                    && (written.uid, written.gid) == (item.inode.uid, item.inode.gid)
                    && same_bytes(fs, &written, staged)?
            }
            Content::Link(target) => fs.target(&written)? == *target,
            Content::Directory(children) => {
                for child in children {
                    verify(fs, number, &child.name, child)?;
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
    let (mut at, mut effort) = (0, Effort::of(&[fs]));
    while at < written.size_bytes {
        // Where neither has bytes there is nothing to compare.
        let hole = fs.run_in_place(written, at)?.filter(|run| run.physical.is_none());
        if let Some(hole) = hole {
            let end = (hole.logical + hole.blocks).saturating_mul(fs.block_bytes());
            let data = match rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
                Ok(data) => data,
                Err(rustix::io::Errno::NXIO) => written.size_bytes,
                Err(error) => return Err(failed(error.into())),
            };
            if data > at {
                effort.spend(written, fs.block_bytes())?;
                at = end.min(data);
                continue;
            }
        }
        let read = fs.read(written, at, &mut left)?;
        effort.spend(written, read as u64)?;
        file.read_exact_at(&mut right[..read], at).map_err(failed)?;
        if read == 0 || left[..read] != right[..read] {
            return Ok(false);
        }
        at += read as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
