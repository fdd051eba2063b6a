//! The file system a mount shows: one directory with a file for each disk. Logic only; [`fuse`] translates.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use crate::disk::{Disk, DiskError};
use crate::overlay::OverlayError;

pub mod fuse;

/// Inode of the directory.
pub const ROOT: u64 = 1;
const FIRST_FILE: u64 = 2;

/// Why an operation failed, as far as errno tells things apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsError {
    /// There is no such file.
    NotFound,
    /// Files can be neither made nor removed here.
    ReadOnlyDirectory,
    /// A disk's size does not change.
    FixedSize,
    /// Past the end of the disk.
    NoSpace,
    /// Nothing of that kind at or after the offset.
    NoSuchExtent,
    /// A mode this file system does not know.
    Unsupported,
    /// The disk failed; the log says how.
    Io,
}

/// What `stat` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The inode.
    pub inode: u64,
    /// Whether it is the directory.
    pub is_directory: bool,
    /// Size, bytes.
    pub size_bytes: u64,
    /// Space taken on this machine for what was written, bytes.
    pub allocated_bytes: u64,
}

/// What `fallocate` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Room: there always is.
    Reserve,
    /// Zeros.
    Zero,
}

/// The files of a mount.
#[derive(Debug)]
pub struct DesktopFs {
    files: Vec<(String, Arc<Disk>)>,
    mounted: SystemTime,
    is_taken_away: AtomicBool,
}

impl DesktopFs {
    /// Shows these disks, each as `ROLE.raw`.
    pub fn new(disks: &[Arc<Disk>]) -> Self {
        let files = disks.iter().map(|disk| (format!("{}.raw", disk.role()), Arc::clone(disk))).collect();
        Self { files, mounted: SystemTime::now(), is_taken_away: AtomicBool::new(false) }
    }

    /// Has every request from now on fail, of those who have a file open, too.
    pub fn take_away(&self) {
        self.is_taken_away.store(true, Ordering::SeqCst);
    }

    /// When the mount began: the time of every file.
    pub fn mounted(&self) -> SystemTime {
        self.mounted
    }

    /// The inode of a name in the directory.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn lookup(&self, name: &str) -> Result<u64, FsError> {
        let at = self.files.iter().position(|(file, _)| file == name).ok_or(FsError::NotFound)?;
        Ok(FIRST_FILE + at as u64)
    }

    /// What `stat` shows.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn attributes(&self, inode: u64) -> Result<Attributes, FsError> {
        if inode == ROOT {
            return Ok(Attributes { inode, is_directory: true, size_bytes: 4096, allocated_bytes: 0 });
        }
        let disk = self.disk(inode)?;
        let allocated_bytes =
            disk.view().overlays.iter().filter_map(|overlay| overlay.allocated_bytes().ok()).sum();
        Ok(Attributes { inode, is_directory: false, size_bytes: disk.size().bytes(), allocated_bytes })
    }

    /// The directory: names and inodes.
    pub fn entries(&self) -> impl Iterator<Item = (&str, u64)> {
        (FIRST_FILE..).zip(&self.files).map(|(inode, (name, _))| (name.as_str(), inode))
    }

    /// The disk behind a file.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn disk(&self, inode: u64) -> Result<&Arc<Disk>, FsError> {
        if self.is_taken_away.load(Ordering::Relaxed) {
            return Err(FsError::Io);
        }
        let at = inode.checked_sub(FIRST_FILE).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.files.get(at)).map(|(_, disk)| disk).ok_or(FsError::NotFound)
    }

    /// How much of a read or write lies on the disk.
    pub fn clamp(disk: &Disk, offset: u64, len: usize) -> usize {
        let left = disk.size().bytes().saturating_sub(offset);
        len.min(usize::try_from(left).unwrap_or(usize::MAX))
    }

    /// The first byte at or after an offset that may hold data (`want_data`) or surely reads as zeros.
    ///
    /// # Errors
    /// `NoSuchExtent` past the end, or when only zeros follow and data is wanted.
    pub fn seek(disk: &Disk, offset: u64, want_data: bool) -> Result<u64, FsError> {
        let size = disk.size().bytes();
        let mut at = offset;
        while at < size {
            let (is_hole, len) = disk.extent(at);
            if is_hole != want_data {
                return Ok(at);
            }
            at += len.max(1);
        }
        // The end of a file counts as a hole.
        if want_data || offset >= size { Err(FsError::NoSuchExtent) } else { Ok(size) }
    }

    /// What an `fallocate` mode asks for.
    ///
    /// # Errors
    /// `Unsupported`.
    pub fn allocation(mode: i32) -> Result<Allocation, FsError> {
        // From linux/falloc.h.
        const KEEP_SIZE: i32 = 0x01;
        const PUNCH_HOLE: i32 = 0x02;
        const ZERO_RANGE: i32 = 0x10;
        match mode & !KEEP_SIZE {
            0 => Ok(Allocation::Reserve),
            PUNCH_HOLE | ZERO_RANGE => Ok(Allocation::Zero),
            _ => Err(FsError::Unsupported),
        }
    }
}

impl From<&DiskError> for FsError {
    fn from(error: &DiskError) -> Self {
        match error {
            DiskError::OutOfRange { .. } | DiskError::Overlay(OverlayError::Full { .. }) => Self::NoSpace,
            DiskError::NotWritable | DiskError::Overlay(_) | DiskError::Fetch { .. } => Self::Io,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocation_modes_are_those_of_the_kernel() {
        assert_eq!(DesktopFs::allocation(0), Ok(Allocation::Reserve));
        assert_eq!(DesktopFs::allocation(0x01 | 0x02), Ok(Allocation::Zero));
        assert_eq!(DesktopFs::allocation(0x10), Ok(Allocation::Zero));
        assert_eq!(DesktopFs::allocation(0x08), Err(FsError::Unsupported), "collapse range");
    }
}
