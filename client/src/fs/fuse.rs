//! The adapter between the kernel and [`DesktopFs`]. What is here is answered on the thread that asked; what must be
//! fetched leaves it, so that no miss ever blocks another request.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite,
    Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use rustix::fs::OFlags;
use tokio::runtime::Handle;

use super::{Allocation, Attributes, DesktopFs, FsError, ROOT};
use crate::disk::{Disk, DiskError};

/// Names and sizes never change while mounted.
const ATTRIBUTE_TTL: Duration = Duration::from_secs(3600);
/// Requests the kernel may have under way: a guest's whole queue.
const MAX_BACKGROUND: u16 = 128;
/// The kernel's own limit of a request, bytes.
const MAX_WRITE_BYTES: u32 = 1 << 20;
/// Space as `statfs` shows it is the disks'; they are all there is.
const STATFS_BLOCK_BYTES: u32 = 4096;

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// What `mount` shows as the source.
    pub name: String,
    /// Whether other users of this machine may use the disks.
    pub allow_other: bool,
    /// Threads that answer requests.
    pub threads: usize,
}

/// Mounts a desktop's disks on a directory; [`Session::run`] then serves until it is unmounted.
///
/// # Errors
/// What the kernel or `fusermount3` says.
pub fn mount(
    fs: Arc<DesktopFs>,
    runtime: Handle,
    directory: &Path,
    options: &MountOptions,
) -> io::Result<Session<FuseAdapter>> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(options.name.clone()),
        MountOption::Subtype("satchel".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
        MountOption::NoAtime,
    ];
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads);
    let flushers = fs.entries().map(|_| Arc::default()).collect();
    Session::new(FuseAdapter { fs, runtime, flushers }, directory, &config)
}

/// The kernel's requests, translated.
#[derive(Debug)]
pub struct FuseAdapter {
    fs: Arc<DesktopFs>,
    runtime: Handle,
    /// One for each file, in their order.
    flushers: Vec<Arc<Flusher>>,
}

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The flushes of one disk: one at a time, on the thread that asked first, for everyone who asks meanwhile.
///
/// On that thread, because handing a flush over costs a program that flushes each of its writes a good part of its time.
/// So flushes keep at most one thread a disk.
#[derive(Debug, Default)]
struct Flusher {
    /// Who waits for the next flush; none when none is under way. Held for a look, never over a flush.
    waiting: Mutex<Option<Vec<Durable>>>,
}

/// Who is answered when what was written before is durable.
#[derive(Debug)]
enum Durable {
    /// Somebody who asked for just that.
    Flush(ReplyEmpty),
    /// Somebody who wrote so many bytes to a file opened with `O_DSYNC`, or with `RWF_DSYNC`.
    Write(ReplyWrite, u32),
}

impl Durable {
    fn finish(self, result: &Result<(), DiskError>) {
        match (self, result) {
            (Self::Flush(reply), result) => finish_empty("fsync", result, reply),
            (Self::Write(reply, bytes), Ok(())) => reply.written(bytes),
            (Self::Write(reply, _), Err(error)) => reply.error(logged("fsync", error)),
        }
    }
}

impl Flusher {
    fn flush(&self, disk: &Disk, reply: Durable) {
        {
            let mut waiting = self.lock();
            if let Some(waiting) = &mut *waiting {
                return waiting.push(reply);
            }
            *waiting = Some(Vec::new());
        }
        let mut replies = vec![reply];
        while !replies.is_empty() {
            // All of these arrived before the flush begins, so it covers them.
            let result = disk.flush();
            for reply in replies.drain(..) {
                reply.finish(&result);
            }
            let mut waiting = self.lock();
            match waiting.take() {
                Some(next) if !next.is_empty() => {
                    replies = next;
                    *waiting = Some(Vec::new());
                }
                _ => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Durable>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn finish_empty(operation: &str, result: &Result<(), DiskError>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(logged(operation, error)),
    }
}

fn logged(operation: &str, error: &DiskError) -> Errno {
    tracing::error!(operation, error = error as &dyn std::error::Error, "a disk operation failed");
    errno(FsError::from(error))
}

fn errno(error: FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        FsError::ReadOnlyDirectory => Errno::EROFS,
        FsError::FixedSize => Errno::EPERM,
        FsError::NoSpace => Errno::ENOSPC,
        FsError::NoSuchExtent => Errno::ENXIO,
        FsError::Unsupported => Errno::EOPNOTSUPP,
        FsError::Io => Errno::EIO,
    }
}

impl FuseAdapter {
    fn attr(&self, attributes: Attributes) -> FileAttr {
        let Attributes { inode, is_directory, size_bytes, allocated_bytes } = attributes;
        let mounted = self.fs.mounted();
        FileAttr {
            ino: INodeNo(inode),
            size: size_bytes,
            blocks: allocated_bytes / 512,
            atime: mounted,
            mtime: mounted,
            ctime: mounted,
            crtime: mounted,
            kind: if is_directory { FileType::Directory } else { FileType::RegularFile },
            perm: if is_directory { 0o500 } else { 0o600 },
            nlink: if is_directory { 2 } else { 1 },
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
            blksize: MAX_WRITE_BYTES,
            flags: 0,
        }
    }

    fn flusher(&self, inode: INodeNo) -> Result<&Arc<Flusher>, FsError> {
        let at = self.fs.entries().position(|(_, file)| file == inode.0);
        at.and_then(|at| self.flushers.get(at)).ok_or(FsError::NotFound)
    }

    fn reply_attr(&self, inode: INodeNo, reply: ReplyAttr) {
        match self.fs.attributes(inode.0) {
            Ok(attributes) => reply.attr(&ATTRIBUTE_TTL, &self.attr(attributes)),
            Err(error) => reply.error(errno(error)),
        }
    }
}

impl Filesystem for FuseAdapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Each is a matter of speed only; an older kernel that lacks one works all the same.
        for capability in [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ] {
            let _ = config.add_capabilities(capability);
        }
        let _ = config.set_max_background(MAX_BACKGROUND);
        let _ = config.set_congestion_threshold(MAX_BACKGROUND);
        let _ = config.set_max_write(MAX_WRITE_BYTES);
        Ok(())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = match name.to_str() {
            Some(name) if parent.0 == ROOT => self.fs.lookup(name),
            _ => Err(FsError::NotFound),
        };
        match found.and_then(|inode| self.fs.attributes(inode)) {
            Ok(attributes) => reply.entry(&ATTRIBUTE_TTL, &self.attr(attributes), Generation(0)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.reply_attr(inode, reply);
    }

    fn setattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let unchanged =
            |size| self.fs.attributes(inode.0).is_ok_and(|attributes| attributes.size_bytes == size);
        if size.is_some_and(|size| !unchanged(size)) {
            return reply.error(errno(FsError::FixedSize));
        }
        self.reply_attr(inode, reply);
    }

    fn open(&self, _request: &Request, inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.fs.disk(inode.0) {
            // Past the host's page cache, which would only hold everything a second time and reorder writes; the
            // guest has its own. Writers do not wait for one another: the engine orders what must be ordered.
            Ok(_) => reply.opened(
                FileHandle(0),
                FopenFlags::FOPEN_DIRECT_IO
                    | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
                    | FopenFlags::FOPEN_NOFLUSH,
            ),
            Err(error) => reply.error(errno(error)),
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
        let disk = match self.fs.disk(inode.0) {
            Ok(disk) => disk,
            Err(error) => return reply.error(errno(error)),
        };
        let len = DesktopFs::clamp(disk, offset, size as usize);
        if len == 0 {
            // At the end and past it, which the disk itself does not know.
            return reply.data(&[]);
        }
        READ_BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            match disk.begin_read(offset, &mut buffer[..len]) {
                Ok(None) => reply.data(&buffer[..len]),
                Ok(Some(pending)) => {
                    let (disk, mut buffer) = (Arc::clone(disk), std::mem::take(buffer));
                    self.runtime.spawn(async move {
                        match disk.finish_read(pending, &mut buffer[..len]).await {
                            Ok(()) => reply.data(&buffer[..len]),
                            Err(error) => reply.error(logged("read", &error)),
                        }
                    });
                }
                Err(error) => reply.error(logged("read", &error)),
            }
        });
    }

    fn write(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let (disk, flusher) = match self.fs.disk(inode.0).and_then(|disk| Ok((disk, self.flusher(inode)?))) {
            Ok(found) => found,
            Err(error) => return reply.error(errno(error)),
        };
        let len = DesktopFs::clamp(disk, offset, data.len());
        if len == 0 && !data.is_empty() {
            return reply.error(errno(FsError::NoSpace));
        }
        let written = u32::try_from(len).unwrap_or(u32::MAX);
        // The kernel leaves it to us for files that are opened past its page cache (fuse_write_flags in fs/fuse/file.c).
        let is_durable = flags.0.cast_unsigned() & OFlags::DSYNC.bits() != 0;
        match disk.begin_write(offset, &data[..len]) {
            Ok(None) if is_durable => flusher.flush(disk, Durable::Write(reply, written)),
            Ok(None) => reply.written(written),
            Ok(Some(_)) => {
                let (disk, flusher) = (Arc::clone(disk), Arc::clone(flusher));
                let data = data[..len].to_vec();
                self.runtime.spawn(async move {
                    match disk.write(offset, &data).await {
                        Ok(()) if is_durable => {
                            let flush = move || flusher.flush(&disk, Durable::Write(reply, written));
                            tokio::task::spawn_blocking(flush);
                        }
                        Ok(()) => reply.written(written),
                        Err(error) => reply.error(logged("write", &error)),
                    }
                });
            }
            Err(error) => reply.error(logged("write", &error)),
        }
    }

    fn fsync(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        match self.fs.disk(inode.0).and_then(|disk| Ok((disk, self.flusher(inode)?))) {
            Ok((disk, flusher)) => flusher.flush(disk, Durable::Flush(reply)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn fallocate(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let asked = self.fs.disk(inode.0).and_then(|disk| Ok((disk, DesktopFs::allocation(mode)?)));
        let (disk, allocation) = match asked {
            Ok(asked) => asked,
            Err(error) => return reply.error(errno(error)),
        };
        let end = offset.saturating_add(length);
        if allocation == Allocation::Reserve {
            return match end <= disk.size().bytes() {
                true => reply.ok(),
                false => reply.error(errno(FsError::FixedSize)),
            };
        }
        let length = end.min(disk.size().bytes()).saturating_sub(offset);
        // Punching holes into a file may take its file system a while: never on a thread that reads wait for.
        let disk = Arc::clone(disk);
        self.runtime.spawn(async move {
            let result = disk.zero(offset, length).await;
            finish_empty("fallocate", &result, reply);
        });
    }

    fn lseek(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        // From unistd.h; the kernel asks for no others.
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let found = self.fs.disk(inode.0).and_then(|disk| match (u64::try_from(offset), whence) {
            (Ok(offset), SEEK_DATA) => DesktopFs::seek(disk, offset, true),
            (Ok(offset), SEEK_HOLE) => DesktopFs::seek(disk, offset, false),
            _ => Err(FsError::Unsupported),
        });
        match found {
            Ok(at) => reply.offset(i64::try_from(at).unwrap_or(i64::MAX)),
            Err(error) => reply.error(errno(error)),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if inode.0 != ROOT {
            return reply.error(errno(FsError::NotFound));
        }
        let own = [(".", ROOT), ("..", ROOT)].into_iter();
        let entries =
            own.chain(self.fs.entries()).zip(1..).skip(usize::try_from(offset).unwrap_or(usize::MAX));
        for ((name, inode), next) in entries {
            let kind = if inode == ROOT { FileType::Directory } else { FileType::RegularFile };
            if reply.add(INodeNo(inode), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _inode: INodeNo, reply: ReplyStatfs) {
        let files = self.fs.entries().count() as u64;
        let sizes = self.fs.entries().filter_map(|(_, inode)| self.fs.attributes(inode).ok());
        let bytes: u64 = sizes.map(|attributes| attributes.size_bytes).sum();
        let blocks = bytes / u64::from(STATFS_BLOCK_BYTES);
        reply.statfs(blocks, 0, 0, files, 0, STATFS_BLOCK_BYTES, 255, STATFS_BLOCK_BYTES);
    }

    fn create(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        reply.error(errno(FsError::ReadOnlyDirectory));
    }

    fn mknod(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        _rdev: u32,
        reply: ReplyEntry,
    ) {
        reply.error(errno(FsError::ReadOnlyDirectory));
    }

    fn mkdir(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        reply.error(errno(FsError::ReadOnlyDirectory));
    }

    fn unlink(&self, _request: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEmpty) {
        reply.error(errno(FsError::ReadOnlyDirectory));
    }

    fn rename(
        &self,
        _request: &Request,
        _parent: INodeNo,
        _name: &OsStr,
        _new_parent: INodeNo,
        _new_name: &OsStr,
        _flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(errno(FsError::ReadOnlyDirectory));
    }
}
