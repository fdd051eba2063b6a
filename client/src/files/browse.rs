//! Shows the files of a version on a directory, read-only, until it is unmounted.
//!
//! The kernel's requests are answered on threads that may wait: what is asked for may have to be fetched, and no answer
//! of one waits for another.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    MountOption, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEntry, ReplyOpen,
    ReplyStatfs, Request, Session, SessionACL,
};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::{DiskFiles, Entry, FileKind, FileSystem, FilesError, Inode, InodeNumber, Moment};
use crate::fetch::LinkState;
use crate::mount::point::{self, PointError, clean_stale, unmount};
use crate::mount::{Event, MountError};
use crate::past::Past;
use crate::signals::{EndSignal, EndSignals};

/// A version never changes.
const TTL: Duration = Duration::from_secs(3600);
const THREADS: usize = 4;
/// The root directory; what is Satchel's own follows it, and each file system has 2^32 numbers from there.
const ROOT: u64 = 1;
const BLOCK_BYTES: u32 = 4096;
/// Names of a directory that are taken at a time.
const LISTED: usize = 256;
/// What is listed before the names of a directory: itself and its parent.
const DOTS: u64 = 2;

/// A directory of Satchel's own.
#[derive(Debug)]
struct Folder {
    parent: u64,
    entries: Vec<(OsString, u64)>,
}

/// The tree that a mount shows.
#[derive(Debug)]
pub struct Tree {
    /// Inodes from [`ROOT`] on.
    folders: Vec<Folder>,
    systems: Vec<System>,
    made: SystemTime,
}

#[derive(Debug)]
struct System {
    fs: Arc<FileSystem>,
    /// The folder its root is in.
    parent: u64,
}

/// A name in a directory.
#[derive(Debug)]
struct Listed {
    name: OsString,
    inode: u64,
    kind: FileType,
    /// Where the next one is listed from.
    next: u64,
}

/// What an inode number stands for.
enum Node<'a> {
    Folder(&'a Folder),
    File(u64, &'a System, InodeNumber),
}

impl Tree {
    /// Shows each disk as a folder: the file system on it, or folders `pN` when there are several. A disk without a file
    /// system is an empty folder.
    pub fn new(disks: &[DiskFiles], made_ms: u64) -> Self {
        let made = UNIX_EPOCH + Duration::from_millis(made_ms);
        let mut tree =
            Self { folders: vec![Folder { parent: ROOT, entries: Vec::new() }], systems: Vec::new(), made };
        for disk in disks {
            let name = disk.role.as_str().to_owned();
            let found: Vec<_> = disk.readable().collect();
            match found.as_slice() {
                [(_, fs)] => tree.add_system(ROOT, name, fs),
                found => {
                    let folder = tree.add_folder(ROOT, name);
                    for (found, fs) in found {
                        tree.add_system(folder, found.folder(), fs);
                    }
                }
            }
        }
        tree
    }

    fn add_folder(&mut self, parent: u64, name: String) -> u64 {
        self.folders.push(Folder { parent, entries: Vec::new() });
        let inode = self.folders.len() as u64;
        self.add_entry(parent, name, inode);
        inode
    }

    fn add_system(&mut self, parent: u64, name: String, fs: &Arc<FileSystem>) {
        self.systems.push(System { fs: Arc::clone(fs), parent });
        let inode = (self.systems.len() as u64) << 32 | u64::from(InodeNumber::ROOT.0);
        self.add_entry(parent, name, inode);
    }

    fn add_entry(&mut self, parent: u64, name: String, inode: u64) {
        let at = usize::try_from(parent - ROOT).unwrap_or(0);
        if let Some(folder) = self.folders.get_mut(at) {
            folder.entries.push((name.into(), inode));
        }
    }

    fn node(&self, inode: u64) -> Option<Node<'_>> {
        let (system, low) = (inode >> 32, u32::try_from(inode & 0xffff_ffff).ok()?);
        match system.checked_sub(1) {
            None => {
                let at = usize::try_from(inode.checked_sub(ROOT)?).ok()?;
                self.folders.get(at).map(Node::Folder)
            }
            Some(at) => {
                let found = self.systems.get(usize::try_from(at).ok()?)?;
                Some(Node::File(system << 32, found, InodeNumber(low)))
            }
        }
    }

    fn attributes(&self, number: u64) -> Result<FileAttr, Errno> {
        match self.node(number).ok_or(Errno::ENOENT)? {
            Node::Folder(_) => Ok(FileAttr {
                ino: INodeNo(number),
                size: 4096,
                blocks: 0,
                atime: self.made,
                mtime: self.made,
                ctime: self.made,
                crtime: self.made,
                kind: FileType::Directory,
                perm: 0o500,
                nlink: 2,
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                rdev: 0,
                blksize: BLOCK_BYTES,
                flags: 0,
            }),
            Node::File(_, system, inode) => Ok(attributes(number, &system.fs.inode(inode).map_err(errno)?)),
        }
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Result<FileAttr, Errno> {
        match self.node(parent).ok_or(Errno::ENOENT)? {
            Node::Folder(folder) => {
                let found = folder.entries.iter().find(|(entry, _)| entry.as_bytes() == name);
                self.attributes(found.ok_or(Errno::ENOENT)?.1)
            }
            Node::File(base, system, inode) => {
                let directory = directory(&system.fs, inode)?;
                let found = system.fs.lookup(&directory, name).map_err(errno)?.ok_or(Errno::ENOENT)?;
                self.attributes(base | u64::from(found.0))
            }
        }
    }

    /// Some names of a directory from an offset on, itself and its parent first; none at its end.
    fn list(&self, number: u64, offset: u64) -> Result<Vec<Listed>, Errno> {
        let folder = |name: &OsStr, inode, next| Listed {
            name: name.to_owned(),
            inode,
            kind: FileType::Directory,
            next,
        };
        let node = self.node(number).ok_or(Errno::ENOENT)?;
        if offset < DOTS {
            // Who walks up passes the kernel's own memory of the tree; the number is for show.
            let parent = match &node {
                Node::Folder(folder) => folder.parent,
                Node::File(_, system, _) => system.parent,
            };
            let dots = [folder(".".as_ref(), number, 1), folder("..".as_ref(), parent, DOTS)];
            return Ok(dots.into_iter().filter(|dot| dot.next > offset).collect());
        }
        match node {
            Node::Folder(found) => {
                let entries = (DOTS + 1..).zip(&found.entries).filter(|(next, _)| *next > offset);
                Ok(entries.map(|(next, (name, inode))| folder(name, *inode, next)).collect())
            }
            Node::File(base, system, inode) => {
                let directory = directory(&system.fs, inode)?;
                let found = system.fs.entries_from(&directory, offset - DOTS, LISTED).map_err(errno)?;
                let listed = |(entry, next): (Entry, u64)| {
                    let told =
                        entry.kind.or_else(|| system.fs.inode(entry.inode).ok().map(|inode| inode.kind));
                    Listed {
                        name: OsString::from_vec(entry.name),
                        inode: base | u64::from(entry.inode.0),
                        kind: told.map_or(FileType::RegularFile, kind),
                        next: next.saturating_add(DOTS),
                    }
                };
                Ok(found.into_iter().map(listed).collect())
            }
        }
    }

    fn read(&self, number: u64, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        let Some(Node::File(_, system, inode)) = self.node(number) else { return Err(Errno::EISDIR) };
        let inode = system.fs.inode(inode).map_err(errno)?;
        match inode.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(Errno::EISDIR),
            _ => return Err(Errno::EINVAL),
        }
        let mut bytes = vec![0; len];
        let read = system.fs.read(&inode, offset, &mut bytes).map_err(errno)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    fn target(&self, number: u64) -> Result<Vec<u8>, Errno> {
        let Some(Node::File(_, system, inode)) = self.node(number) else { return Err(Errno::EINVAL) };
        let inode = system.fs.inode(inode).map_err(errno)?;
        system.fs.target(&inode).map_err(errno)
    }
}

fn directory(fs: &FileSystem, inode: InodeNumber) -> Result<Inode, Errno> {
    let inode = fs.inode(inode).map_err(errno)?;
    if inode.kind == FileKind::Directory { Ok(inode) } else { Err(Errno::ENOTDIR) }
}

fn attributes(number: u64, inode: &Inode) -> FileAttr {
    let (major, minor) = inode.device;
    FileAttr {
        ino: INodeNo(number),
        size: inode.size_bytes,
        blocks: inode.allocated_bytes / 512,
        atime: system_time(inode.accessed),
        mtime: system_time(inode.modified),
        ctime: system_time(inode.changed),
        crtime: UNIX_EPOCH,
        kind: kind(inode.kind),
        perm: inode.permissions,
        nlink: u32::from(inode.links),
        uid: inode.uid,
        gid: inode.gid,
        // As the kernel's new_encode_dev.
        rdev: minor & 0xff | major << 8 | (minor & !0xff) << 12,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharacterDevice => FileType::CharDevice,
        FileKind::Pipe => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
    }
}

/// An inode's moment is within 584 years of 1970, which `SystemTime` holds.
fn system_time(moment: Moment) -> SystemTime {
    let whole = Duration::from_secs(moment.seconds.unsigned_abs());
    let at = if moment.seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
    at + Duration::from_nanos(u64::from(moment.nanoseconds))
}

fn errno(error: FilesError) -> Errno {
    if let FilesError::NotFound { .. } = error {
        return Errno::ENOENT;
    }
    tracing::warn!(error = &error as &dyn std::error::Error, "a file of the disk cannot be read");
    match error {
        FilesError::Unsupported { .. } => Errno::EOPNOTSUPP,
        _ => Errno::EIO,
    }
}

/// The kernel's requests, each on a thread that may wait.
#[derive(Debug)]
pub struct Adapter {
    tree: Arc<Tree>,
    runtime: Handle,
}

impl Adapter {
    fn spawn(&self, work: impl FnOnce(&Tree) + Send + 'static) {
        let tree = Arc::clone(&self.tree);
        self.runtime.spawn_blocking(move || work(&tree));
    }
}

impl Filesystem for Adapter {
    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.spawn(move |tree| match tree.lookup(parent.0, &name) {
            Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
            Err(error) => reply.error(error),
        });
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.spawn(move |tree| match tree.attributes(inode.0) {
            Ok(attributes) => reply.attr(&TTL, &attributes),
            Err(error) => reply.error(error),
        });
    }

    fn readlink(&self, _request: &Request, inode: INodeNo, reply: ReplyData) {
        self.spawn(move |tree| match tree.target(inode.0) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        });
    }

    fn open(&self, _request: &Request, _inode: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match flags.acc_mode() {
            OpenAccMode::O_RDONLY => {
                reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
            _ => reply.error(Errno::EROFS),
        }
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.spawn(move |tree| match tree.read(inode.0, offset, size as usize) {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => reply.error(error),
        });
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.spawn(move |tree| {
            let mut at = offset;
            loop {
                let listed = match tree.list(inode.0, at) {
                    Ok(listed) => listed,
                    Err(error) => return reply.error(error),
                };
                let is_end = listed.is_empty();
                let is_full = listed.into_iter().any(|Listed { name, inode, kind, next }| {
                    at = next;
                    reply.add(INodeNo(inode), next, kind, name)
                });
                if is_end || is_full {
                    return reply.ok();
                }
            }
        });
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        let bytes: u64 = self.tree.systems.iter().map(|system| system.fs.size_bytes()).sum();
        reply.statfs(bytes / u64::from(BLOCK_BYTES), 0, 0, 0, 0, BLOCK_BYTES, 255, BLOCK_BYTES);
    }
}

/// Mounts a tree on a directory; [`Session::run`] then serves until it is unmounted.
///
/// # Errors
/// What the kernel or `fusermount3` says.
fn mount(tree: Tree, directory: &Path, name: &str) -> io::Result<Session<Adapter>> {
    let mut config = Config::default();
    // Without the kernel's own permission checks: nobody else sees the mount, and its files have the owners they have
    // in the desktop.
    config.mount_options = vec![
        MountOption::RO,
        MountOption::FSName(name.to_owned()),
        MountOption::Subtype("satchel".to_owned()),
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
        MountOption::NoAtime,
    ];
    config.acl = SessionACL::Owner;
    config.n_threads = Some(THREADS);
    Session::new(Adapter { tree: Arc::new(tree), runtime: Handle::current() }, directory, &config)
}

/// Serves a tree on a directory until it is unmounted or a signal arrives.
///
/// # Errors
/// [`MountError`].
pub async fn serve(
    tree: Tree,
    past: &Past,
    directory: &Path,
    name: &str,
    events: impl Fn(Event),
) -> Result<(), MountError> {
    if clean_stale(directory)? {
        events(Event::StaleMountCleared);
    }
    point::check(directory)?;
    let setup = |action| move |source| MountError::Setup { action, source };
    let mut signals = EndSignals::watch().map_err(setup("watch for signals"))?;
    let fuse = mount(tree, directory, name)
        .map_err(|source| MountError::Fuse { directory: directory.to_owned(), source })?;
    let (ended, mut unmounted) = oneshot::channel();
    std::thread::Builder::new()
        .name("fuse".to_owned())
        .spawn(move || drop(ended.send(fuse.run())))
        .map_err(setup("start a thread"))?;
    events(Event::Mounted);
    let mut link = past.link();
    let mut attempts = 0;
    let outcome = loop {
        let is_meant = tokio::select! {
            outcome = &mut unmounted => break outcome,
            signal = signals.received() => signal == EndSignal::Interrupt,
            Ok(()) = link.changed() => {
                match link.borrow_and_update().clone() {
                    LinkState::Up => events(Event::LinkUp),
                    LinkState::Down { reason, cause, .. } => events(Event::LinkDown { reason, cause }),
                }
                continue;
            }
        };
        attempts += 1;
        events(Event::Unmounting);
        // Who asks a second time means it: programs that still have a file open get errors from then on.
        let (unmounting, force) = (directory.to_owned(), attempts > 1 && is_meant);
        let result = tokio::task::spawn_blocking(move || unmount(&unmounting, force)).await;
        if force {
            past.fetcher().stop();
        }
        match result {
            Ok(Err(PointError::Busy { .. })) => events(Event::Busy),
            Ok(Err(error)) => tracing::warn!(error = &error as &dyn std::error::Error, "unmounting failed"),
            _ => {}
        }
    };
    if let Ok(Err(error)) = outcome {
        tracing::warn!(%error, "the file system ended with an error");
    }
    past.close();
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use chunk_format::DiskRole;

    use super::*;
    use crate::files::ext4::tests::Made;

    #[test]
    fn a_long_directory_is_listed_in_parts_without_a_name_lost_or_told_twice() {
        let made = Made::new();
        fs::create_dir(made.tree().join("many")).unwrap();
        for number in 0..1000 {
            fs::write(made.tree().join(format!("many/{number}")), "").unwrap();
        }
        if !made.make(16 << 20, &["-b", "1024"]) {
            return;
        }
        let tree = Tree::new(&[DiskFiles::find(DiskRole::Home, &made.image()).unwrap()], 0);
        let home = tree.lookup(ROOT, b"home").unwrap();
        let many = tree.lookup(home.ino.0, b"many").unwrap();
        for (number, count) in [(ROOT, 1), (many.ino.0, 1000)] {
            // One name an answer, as a kernel with a tiny buffer would take them.
            let (mut names, mut at) = (Vec::new(), 0);
            while let Some(listed) = tree.list(number, at).unwrap().into_iter().next() {
                assert!(listed.next > at);
                (at, names) = (listed.next, [names, vec![listed.name]].concat());
            }
            assert_eq!(names[..2], [".", ".."]);
            names.sort();
            names.dedup();
            assert_eq!(names.len(), count + 2);
        }
        assert!(tree.list(ROOT, u64::MAX).unwrap().is_empty());
        assert!(tree.list(many.ino.0, u64::MAX).unwrap().is_empty());
    }
}
