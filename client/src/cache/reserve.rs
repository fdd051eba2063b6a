//! Disk space that is set aside while there is some: on a disk that is full to its last block, a sync writes down with it what
//! then frees more.
//!
//! It is a file of nothing, really allocated, that no record names: losing it loses nothing, and a crash leaves it as long as it
//! was or shorter.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};

/// Less than this is given up at once.
const LEAST_BYTES: u64 = 64 << 10;

/// The reserve of one cache's disk.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    /// Held while its length changes.
    changing: Mutex<()>,
}

impl Reserve {
    /// The reserve in a directory, which may have none.
    pub(super) fn in_directory(dir: &Path) -> Self {
        Self { path: dir.join("reserve"), changing: Mutex::default() }
    }

    /// Sets space aside until there are so many bytes of it.
    ///
    /// # Errors
    /// What the file system says, also when it cannot set space aside; there is as much of it then as before.
    pub(super) fn fill_up(&self, bytes: u64) -> io::Result<()> {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&self.path)?;
        let before = file.metadata()?;
        if before.len() >= bytes && before.blocks() * 512 >= bytes {
            return Ok(());
        }
        // Not to the last block and back: somebody may be writing there.
        let lacking_bytes = bytes.saturating_sub(before.blocks() * 512);
        let disk = fstatvfs(&file)?;
        if disk.f_bavail.saturating_mul(disk.f_frsize) < lacking_bytes {
            self.cut(&file, before.len());
            return Err(io::ErrorKind::StorageFull.into());
        }
        let filled = fallocate(&file, FallocateFlags::empty(), 0, bytes).and_then(|()| {
            // A second time it may have been given up in part.
            rustix::fs::fsync(&file)
        });
        if let Err(error) = filled {
            // Some of it may be allocated.
            self.cut(&file, before.len());
            return Err(error.into());
        }
        Ok(())
    }

    /// Gives half of it up, so that what is done in several steps finds room in each; how many bytes that is.
    pub(super) fn give_up(&self) -> u64 {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(file) = OpenOptions::new().write(true).open(&self.path) else { return 0 };
        let Ok(before) = file.metadata().map(|found| found.len()) else { return 0 };
        let half = before / 2;
        self.cut(&file, if half < LEAST_BYTES { 0 } else { half });
        // What could not be cut is not given up, however often it is asked for.
        file.metadata().map_or(0, |left| before.saturating_sub(left.len()))
    }

    fn cut(&self, file: &File, len: u64) {
        // Synced, since a file system may keep what was freed from others until then. What fails leaves it as it is.
        let cut = file.set_len(len).and_then(|()| file.sync_all());
        let removed = if len == 0 { std::fs::remove_file(&self.path) } else { Ok(()) };
        if let Err(error) = cut.and(removed) {
            tracing::warn!(%error, "the space set aside was not given up");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;

    #[test]
    fn what_is_set_aside_is_allocated_and_given_up_by_halves_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::in_directory(dir.path());
        assert_eq!(reserve.give_up(), 0);
        reserve.fill_up(1 << 20).unwrap();
        reserve.fill_up(1 << 20).unwrap();
        let allocated = || std::fs::metadata(&reserve.path).unwrap().blocks() * 512;
        assert!(allocated() >= 1 << 20);
        assert_eq!(reserve.give_up(), 512 << 10);
        assert!(allocated() <= 512 << 10);
        reserve.fill_up(1 << 20).unwrap();
        assert!(allocated() >= 1 << 20);
        let given: Vec<u64> =
            std::iter::from_fn(|| Some(reserve.give_up()).filter(|given| *given > 0)).collect();
        assert_eq!(given.iter().sum::<u64>(), 1 << 20);
        assert!(!reserve.path.exists());
    }

    #[test]
    fn what_cannot_be_cut_is_not_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::in_directory(dir.path());
        let sealed = memfd_create("reserve", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&sealed, 1 << 20).unwrap();
        fcntl_add_seals(&sealed, SealFlags::SHRINK).unwrap();
        let path = format!("/proc/self/fd/{}", sealed.as_raw_fd());
        std::os::unix::fs::symlink(path, &reserve.path).unwrap();
        assert_eq!(reserve.give_up(), 0);
    }

    #[test]
    fn what_there_is_no_room_for_is_not_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::in_directory(dir.path());
        assert!(reserve.fill_up(1 << 60).is_err());
        assert!(!reserve.path.exists());
        reserve.fill_up(1 << 20).unwrap();
        assert!(reserve.fill_up(1 << 60).is_err());
        assert_eq!(std::fs::metadata(&reserve.path).unwrap().len(), 1 << 20);
    }
}
