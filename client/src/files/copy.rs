//! Copies files out of any version into the file system of a desktop that does not run.
//!
//! The bytes are staged on this machine first, so that nothing is touched before all of them are here. Then e2fsprogs
//! writes to the desktop's disk: `e2fsck -p` replays the journal, `debugfs` writes, level by level of the tree, and
//! `e2fsck` looks at the result. While `debugfs` writes the file system says that it must be checked, so that a crash in
//! the middle leaves one that the guest's own check, or the next copy, puts in order.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;

use chunk_format::DiskRole;
use serde::Serialize;

use super::{DiskFiles, Effort, Entry, FileKind, FileSystem, FilesError, Inode, InodeNumber, shown};
use crate::image::DiskImage;

/// The deepest directory that is copied.
const MAX_DEPTH: usize = 256;
/// Files of one copy.
const MAX_ITEMS: usize = 1 << 20;
const STEP_BYTES: usize = 1 << 20;
/// The longest line that `debugfs` is given. It reads so many bytes at a time (`BUFSIZ`, 1,024 with musl) and takes what
/// is left of a longer line for a command of its own, among them `!`, which is the shell's.
const MAX_LINE_BYTES: usize = 1000;
/// Bytes that are kept of what a program says.
const MAX_SAID_BYTES: usize = 2000;
/// Where the programs may be beside the places of ordinary users.
const MORE_PATHS: &str = "/usr/sbin:/sbin";

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
    /// Bytes there is room for.
    room_bytes: u64,
}

/// Takes a file or directory out of a file system into an empty directory of this machine. What has more bytes than
/// `room_bytes`, the size of the disk it is for, is refused.
///
/// # Errors
/// `Files`, `Uncopyable`, `Staging`.
pub fn stage(fs: &FileSystem, path: &[u8], directory: &Path, room_bytes: u64) -> Result<Staged, CopyError> {
    let inode = fs.resolve(path, true)?;
    let refused = |reason| CopyError::Uncopyable { path: shown(path), reason };
    let name = path.split(|byte| *byte == b'/').rfind(|name| !name.is_empty()).unwrap_or(b"root").to_vec();
    if matches!(name.as_slice(), b"." | b"..") {
        return Err(refused("its path does not end in a name"));
    }
    let (copied, seen) = (Copied::default(), HashSet::new());
    let mut stager = Stager { fs, directory, copied, items: 0, seen, room_bytes };
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

    /// Writes a file's bytes, without its holes.
    fn write(&mut self, inode: &Inode, staged: &Path, path: &[u8]) -> Result<(), CopyError> {
        let failed = |source| CopyError::Staging { path: staged.to_owned(), source };
        let file = File::create_new(staged).map_err(failed)?;
        file.set_len(inode.size_bytes).map_err(failed)?;
        let (mut at, mut buf) = (0, vec![0; STEP_BYTES]);
        let mut effort = Effort::of(&[self.fs]);
        while at < inode.size_bytes {
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

/// No line of `debugfs` ends in it.
fn is_plain(name: &[u8]) -> bool {
    !name.iter().any(|byte| byte.is_ascii_control())
}

/// `debugfs` takes it for one command.
fn fits_line(line: &[u8]) -> bool {
    line.len() <= MAX_LINE_BYTES && is_plain(line)
}

/// A word of a line of `debugfs`.
fn quoted(text: &[u8]) -> Vec<u8> {
    let inner = text.iter().flat_map(|byte| if *byte == b'"' { b"\"\"".to_vec() } else { vec![*byte] });
    [b"\"".to_vec(), inner.collect(), b"\"".to_vec()].concat()
}

fn write_line(staged: &Path, name: &[u8]) -> Vec<u8> {
    [b"write".to_vec(), quoted(staged.as_os_str().as_encoded_bytes()), quoted(name)].join(&b' ')
}

fn link_line(name: &[u8], target: &[u8]) -> Vec<u8> {
    [b"symlink".to_vec(), quoted(name), quoted(target)].join(&b' ')
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
        let checked = check(&["-p"], &device)?;
        if checked.code.is_none_or(|code| code > 1) {
            return Err(CopyError::Tool { program: "e2fsck", said: checked.said });
        }
        let fs = self.open()?;
        let (parent, name, place) = self.place(&fs, staged, path)?;
        check_free(&fs, parent, &name, &staged.item, &place, force)?;
        let mut outcome = Ok(());
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
            let done = edit(&commands, &device)?;
            if done.code != Some(0) || !done.said.is_empty() {
                outcome = Err(CopyError::NotWritten { path: place.clone(), said: done.said });
                break;
            }
            level = self.next_level(&level)?;
        }
        // Not `-p` alone, which believes the file system when it says that it is in order.
        let mended = check(&["-f", "-p"], &device)?;
        let looked = check(&["-f", "-n"], &device)?;
        if mended.code.is_none_or(|code| code > 1) || looked.code != Some(0) {
            return Err(CopyError::Tool {
                program: "e2fsck",
                said: format!("{}{}", mended.said, looked.said),
            });
        }
        outcome?;
        let fs = self.open()?;
        verify(&fs, parent, &name, &staged.item)?;
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
    say(format!("cd <{directory}>").as_bytes())?;
    let is_directory = matches!(item.content, Content::Directory(_));
    let stays = is_directory && there.as_ref().is_some_and(|there| there.kind == FileKind::Directory);
    if there.is_some() && !stays {
        say(&[b"rm ", here.as_slice()].concat())?;
    }
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

/// What a program has done.
struct Outcome {
    code: Option<i32>,
    said: String,
}

/// Runs `e2fsck`; it says most on its standard output, and why it gives up at the end.
fn check(options: &[&str], device: &OsString) -> Result<Outcome, CopyError> {
    let mut command = Command::new("e2fsck");
    command.args(options).arg(device);
    let mut said = Vec::new();
    let status = run("e2fsck", command, true, |part| {
        said.extend_from_slice(part);
        said.drain(..said.len().saturating_sub(MAX_SAID_BYTES));
    })?;
    Ok(Outcome { code: status.code(), said: lines(&said) })
}

/// Runs a script of `debugfs`. It goes on after a command that failed, and ends well: that it said something on its
/// standard error beside its name is the only sign. What it said first tells why.
fn edit(commands: &Path, device: &OsString) -> Result<Outcome, CopyError> {
    let mut flag = OsString::from("-f");
    flag.push(commands);
    let mut command = Command::new("debugfs");
    command.arg("-w").arg(flag).arg(device);
    let mut said = Vec::new();
    let status = run("debugfs", command, false, |part| {
        let room = MAX_SAID_BYTES.saturating_sub(said.len()).min(part.len());
        said.extend_from_slice(&part[..room]);
    })?;
    Ok(Outcome { code: status.code(), said: lines(&said) })
}

/// Runs a program, and hands out what it says on its standard error, and its standard output if that counts.
fn run(
    program: &'static str,
    mut command: Command,
    output_counts: bool,
    mut hear: impl FnMut(&[u8]),
) -> Result<ExitStatus, CopyError> {
    let failed = |source| CopyError::NoTool { program, source };
    let path = std::env::var("PATH").unwrap_or_default();
    let (mut said, speaker) = io::pipe().map_err(failed)?;
    let output = if output_counts { speaker.try_clone().map_err(failed)?.into() } else { Stdio::null() };
    let command = command
        .env("PATH", format!("{path}:{MORE_PATHS}"))
        .env("LC_ALL", "C")
        .env("DEBUGFS_PAGER", "cat")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(speaker);
    let mut child = command.spawn().map_err(failed)?;
    // Else it would never end: this program would still have its other end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut part = [0; 4096];
    loop {
        match said.read(&mut part) {
            Ok(0) => break,
            Ok(read) => hear(&part[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(error));
            }
        }
    }
    child.wait().map_err(failed)
}

/// What a program said in one line, without its name and version.
fn lines(said: &[u8]) -> String {
    let lines = said.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| !line.is_empty() && !is_banner(line));
    lines.map(shown).collect::<Vec<_>>().join("; ")
}

/// Whether a line is the one by which a program of e2fsprogs begins: `debugfs 1.47.0 (5-Feb-2023)`.
fn is_banner(line: &[u8]) -> bool {
    let rest = line.strip_prefix(b"debugfs ").or_else(|| line.strip_prefix(b"e2fsck "));
    rest.is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit) && rest.ends_with(b")"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::files::ext4::tests::Made;

    const ROOM: u64 = 64 << 20;

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
        let staged = stage(&source, b"/d", work.path(), ROOM).unwrap();
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
        assert!(stage(&source, b"/d", work.path(), ROOM).is_err(), "staged over what was staged");
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
        let copied = stage(&source, path, work.path(), ROOM)
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
        assert!(is_banner(b"debugfs 1.47.0 (5-Feb-2023)") && !is_banner(b"debugfs: no such file"));
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
        let error = stage(&source, b"/large", work.path(), 4 << 20).unwrap_err();
        assert!(error.to_string().contains("no room"), "{error}");
        let work = tempfile::tempdir().unwrap();
        let staged = stage(&source, b"/large", work.path(), ROOM).unwrap();
        let error = target(&to, &disk).write(&staged, b"/", false, work.path()).unwrap_err();
        assert!(matches!(error, CopyError::NotWritten { .. }), "{error}");
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
}
