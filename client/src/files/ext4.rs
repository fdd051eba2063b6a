//! Reads ext2, ext3 and ext4 file systems (Linux, Documentation/filesystems/ext4).
//!
//! Own code, because a version's disk is a list of chunk ids: telling what two versions have in common needs to know
//! in which blocks a file lies, and a desktop that was synced while it ran has a journal that must be taken into
//! account in full, which the libraries there are do not do. Nothing is written.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::{FilesError, shown};
use crate::image::DiskImage;

mod directory;
mod extents;
mod inode;
mod journal;
mod superblock;
#[cfg(test)]
pub(crate) mod tests;

pub use directory::Entry;
pub use extents::{Effort, Run};
pub use inode::{FileKind, Inode, InodeNumber, Moment};
use journal::Journal;
use superblock::Superblock;

/// Links that are followed on the way to one file, as Linux does.
const MAX_LINKS: usize = 40;
/// Names on the way to one file, links put in.
const MAX_STEPS: usize = 1024;
/// Bytes of a link's target.
const MAX_TARGET_BYTES: u64 = 4095;

/// A file system on a disk. Any number of threads may read it.
pub struct FileSystem {
    disk: Arc<dyn DiskImage>,
    area: Range<u64>,
    superblock: Superblock,
    journal: Journal,
}

impl std::fmt::Debug for FileSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileSystem")
            .field("area", &self.area)
            .field("superblock", &self.superblock)
            .finish_non_exhaustive()
    }
}

impl FileSystem {
    /// Opens the file system in an area of a disk; `None` when there is no ext2, ext3 or ext4. What is in its journal and
    /// not in its place yet is read as if it were.
    ///
    /// # Errors
    /// `Disk`, `Damaged`, or `Unsupported` naming what this program does not read.
    pub fn open(disk: Arc<dyn DiskImage>, area: Range<u64>) -> Result<Option<Self>, FilesError> {
        let mut bytes = vec![0; superblock::BYTES];
        let area_bytes = area.end.saturating_sub(area.start);
        if area_bytes < superblock::PLACE + superblock::BYTES as u64 {
            return Ok(None);
        }
        read_disk(&*disk, &area, superblock::PLACE, &mut bytes)?;
        let Some(superblock) = Superblock::decode(&bytes, area_bytes)? else {
            return Ok(None);
        };
        let mut fs = Self { disk, area, superblock, journal: Journal::default() };
        if fs.superblock.needs_recovery {
            fs.journal = Journal::load(&fs)?;
            fs.superblock = fs.journaled_superblock(bytes, area_bytes)?;
        }
        Ok(Some(fs))
    }

    /// The superblock as the journal has it: that of a file system which has just grown is there only.
    fn journaled_superblock(&self, mut bytes: Vec<u8>, area_bytes: u64) -> Result<Superblock, FilesError> {
        let block_bytes = self.superblock.block_bytes;
        self.read_blocks(superblock::PLACE / block_bytes, superblock::PLACE % block_bytes, &mut bytes)?;
        let decoded =
            Superblock::decode(&bytes, area_bytes)?.filter(|found| found.block_bytes == block_bytes);
        let decoded = decoded.ok_or_else(|| FilesError::damaged("its journal replaces its superblock"))?;
        Ok(Superblock { needs_recovery: true, ..decoded })
    }

    /// Bytes of the file system.
    pub fn size_bytes(&self) -> u64 {
        self.superblock.blocks.saturating_mul(self.superblock.block_bytes)
    }

    /// Where it lies on its disk.
    pub fn area(&self) -> &Range<u64> {
        &self.area
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> u64 {
        self.superblock.block_bytes
    }

    /// Whether it was in use when its disk was frozen or its machine stopped: its journal was not empty.
    pub fn was_in_use(&self) -> bool {
        self.superblock.needs_recovery
    }

    /// Blocks that are read from the journal.
    pub fn journal_blocks(&self) -> usize {
        self.journal.len()
    }

    /// The root directory.
    ///
    /// # Errors
    /// As [`FileSystem::inode`], and `Damaged` when it is no directory.
    pub fn root(&self) -> Result<Inode, FilesError> {
        let root = self.inode(InodeNumber::ROOT)?;
        match root.kind {
            FileKind::Directory => Ok(root),
            _ => Err(FilesError::damaged("its root is no directory")),
        }
    }

    /// Fills the buffer from a file, from an offset on; answers how much there was.
    ///
    /// # Errors
    /// `Disk`, `Damaged`, or `Unsupported` when this file is stored in a way this program does not read.
    pub fn read(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize, FilesError> {
        let left = inode.size_bytes.saturating_sub(offset);
        let len = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let buf = &mut buf[..len];
        if let Some(inline) = inode.inline_data()? {
            for (at, byte) in (offset..).zip(buf.iter_mut()) {
                *byte = usize::try_from(at).ok().and_then(|at| inline.get(at)).copied().unwrap_or(0);
            }
            return Ok(len);
        }
        let block_bytes = self.superblock.block_bytes;
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let run = self.run(inode, at / block_bytes)?;
            let run_end = (run.logical + run.blocks).saturating_mul(block_bytes);
            let part = (len - done).min(usize::try_from(run_end - at).unwrap_or(usize::MAX));
            let target = &mut buf[done..done + part];
            match run.physical {
                None => target.fill(0),
                Some(physical) => {
                    let within = at - run.logical * block_bytes;
                    self.read_blocks(physical + within / block_bytes, within % block_bytes, target)?;
                }
            }
            done += part;
        }
        Ok(len)
    }

    /// All bytes of a file of at most so many.
    ///
    /// # Errors
    /// As [`FileSystem::read`]; `Unsupported` when it is longer.
    pub fn read_whole(&self, inode: &Inode, limit_bytes: u64) -> Result<Vec<u8>, FilesError> {
        if inode.size_bytes > limit_bytes {
            let what =
                format!("a file has {} bytes; {limit_bytes} are the most that is read", inode.size_bytes);
            return Err(FilesError::unsupported(what));
        }
        let mut bytes = vec![0; usize::try_from(inode.size_bytes).unwrap_or(0)];
        self.read(inode, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// `Damaged` when it is none, or its target is empty or longer than Linux allows.
    pub fn target(&self, inode: &Inode) -> Result<Vec<u8>, FilesError> {
        if inode.kind != FileKind::Symlink || !(1..=MAX_TARGET_BYTES).contains(&inode.size_bytes) {
            return Err(FilesError::damaged(format!("inode {} is no symbolic link", inode.number)));
        }
        if let Some(target) = inode.short_target() {
            return Ok(target.to_vec());
        }
        self.read_whole(inode, MAX_TARGET_BYTES)
    }

    /// What a name of a directory stands for; `None` when there is no such name.
    ///
    /// # Errors
    /// As [`FileSystem::entries`].
    pub fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Option<InodeNumber>, FilesError> {
        let mut found = None;
        self.each_entry(directory, 0, |entry| {
            if entry.name == name {
                found = Some(entry.inode);
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// What a path stands for, from the root, links followed; of the last name only with `follow_last`.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, `TooFar`, and as [`FileSystem::read`].
    pub fn resolve(&self, path: &[u8], follow_last: bool) -> Result<Inode, FilesError> {
        let too_far = || FilesError::TooFar { path: shown(path) };
        let mut todo: Vec<Vec<u8>> = Vec::new();
        push_names(&mut todo, path);
        let mut parents = vec![self.root()?];
        let mut links = 0;
        for _ in 0..MAX_STEPS {
            let here = parents.last().ok_or_else(too_far)?;
            let Some(name) = todo.pop() else { return Ok(here.clone()) };
            if here.kind != FileKind::Directory {
                return Err(FilesError::NotADirectory { path: shown(path) });
            }
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    if parents.len() > 1 {
                        parents.pop();
                    }
                    continue;
                }
                _ => {}
            }
            let number = self.lookup(here, &name)?;
            let number = number.ok_or_else(|| FilesError::NotFound { path: shown(path) })?;
            let inode = self.inode(number)?;
            if inode.kind != FileKind::Symlink || (todo.is_empty() && !follow_last) {
                parents.push(inode);
                continue;
            }
            links += 1;
            let target = self.target(&inode)?;
            if target.starts_with(b"/") {
                parents.truncate(1);
            }
            push_names(&mut todo, &target);
            if links > MAX_LINKS || todo.len() > MAX_STEPS {
                return Err(too_far());
            }
        }
        Err(too_far())
    }

    /// Where a byte of a file lies and what follows it there; `None` when only reading tells, since it is in the inode or
    /// in the journal.
    ///
    /// # Errors
    /// As [`FileSystem::read`].
    pub fn run_in_place(&self, inode: &Inode, offset: u64) -> Result<Option<Run>, FilesError> {
        if inode.inline_data()?.is_some() {
            return Ok(None);
        }
        let mut run = self.run(inode, offset / self.superblock.block_bytes)?;
        if let Some(physical) = run.physical
            && let Some(copied) = self.journal.first_copied(physical..physical + run.blocks)
        {
            run.blocks = copied - physical;
        }
        Ok((run.blocks > 0).then_some(run))
    }

    /// Fills the buffer from blocks that follow one another, as the journal has them.
    fn read_blocks(&self, block: u64, within: u64, buf: &mut [u8]) -> Result<(), FilesError> {
        let block_bytes = self.superblock.block_bytes;
        let (mut block, mut within, mut done) = (block + within / block_bytes, within % block_bytes, 0);
        while done < buf.len() {
            // As much in one read as the journal leaves in place.
            let left = (buf.len() - done) as u64;
            let blocks = (within + left).div_ceil(block_bytes);
            let end = block.checked_add(blocks).filter(|end| *end <= self.superblock.blocks);
            let end = end.ok_or_else(|| FilesError::damaged(format!("block {block} lies outside of it")))?;
            let (from, is_escaped, until) = match self.journal.copy_of(block) {
                Some(copy) => (copy.block, copy.is_escaped, block + 1),
                None => (block, false, self.journal.first_copied(block..end).unwrap_or(end)),
            };
            let part = ((until - block) * block_bytes - within).min(left);
            let part = usize::try_from(part).unwrap_or(usize::MAX).min(buf.len() - done);
            let target = &mut buf[done..done + part];
            read_disk(&*self.disk, &self.area, from * block_bytes + within, target)?;
            if is_escaped {
                journal::unescape(within, target);
            }
            done += part;
            (block, within) = (until, 0);
        }
        Ok(())
    }
}

/// Puts the names of a path on the pile, the first one on top.
fn push_names(todo: &mut Vec<Vec<u8>>, path: &[u8]) {
    todo.extend(path.split(|byte| *byte == b'/').rev().filter(|name| !name.is_empty()).map(<[u8]>::to_vec));
}

fn read_disk(disk: &dyn DiskImage, area: &Range<u64>, offset: u64, buf: &mut [u8]) -> Result<(), FilesError> {
    let start = area.start.saturating_add(offset);
    if start.checked_add(buf.len() as u64).is_none_or(|end| end > area.end) {
        let source = io::Error::from(io::ErrorKind::UnexpectedEof);
        return Err(FilesError::Disk { offset: start, source });
    }
    disk.read_at(buf, start).map_err(|source| FilesError::Disk { offset: start, source })
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |field| u16::from_le_bytes([field[0], field[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_of(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}
