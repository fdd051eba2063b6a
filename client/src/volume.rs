//! Files whose durability is explicit.
//!
//! Everything the client must not lose goes through a [`Volume`]: a directory of files where nothing is durable before
//! the call that says so. [`DirVolume`] is a real directory. `SimulatedVolume` (feature `simulate`) holds back and
//! tears what was not synced, so that tests can cut the power at every sync.

use std::io;
use std::sync::Arc;

mod dir;
#[cfg(any(test, feature = "simulate"))]
mod simulated;

pub use dir::DirVolume;
#[cfg(any(test, feature = "simulate"))]
pub use simulated::{PowerCut, SimulatedVolume};

/// What the names of files end with that are not yet in their place.
pub(crate) const UNFINISHED: &str = ".new";

/// Whether there was no space: on the disk, or for this user.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// A flat directory of files.
pub trait Volume: Send + Sync + 'static {
    /// Makes a new file of zeros; its name is durable after [`Volume::sync_names`].
    ///
    /// # Errors
    /// `AlreadyExists`, or what the file system says.
    fn create(&self, name: &str, len_bytes: u64) -> io::Result<Arc<dyn VolumeFile>>;

    /// Opens a file for reading and writing; for reading alone on a file system where nothing may be written.
    ///
    /// # Errors
    /// `NotFound`, or what the file system says.
    fn open(&self, name: &str) -> io::Result<Arc<dyn VolumeFile>>;

    /// Reads a whole small file.
    ///
    /// # Errors
    /// `NotFound`, `InvalidData` when it is longer than `limit_bytes`, or what the file system says.
    fn read(&self, name: &str, limit_bytes: usize) -> io::Result<Vec<u8>>;

    /// Puts a file in place of the one of this name, at once and durably: after a power cut there is the old file or
    /// the new one, and after this call has returned the new one.
    ///
    /// # Errors
    /// What the file system says; then the old file is there, or the new one, and a power cut may take that back.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Removes a file; no error when there is none.
    ///
    /// # Errors
    /// What the file system says.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// The names of all files.
    ///
    /// # Errors
    /// What the file system says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes created and removed names durable.
    ///
    /// # Errors
    /// What the file system says.
    fn sync_names(&self) -> io::Result<()>;
}

/// An open file of a [`Volume`].
pub trait VolumeFile: Send + Sync {
    /// Fills the buffer from an offset; past the end is an error.
    ///
    /// # Errors
    /// `UnexpectedEof`, or what the file system says.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all bytes at an offset. Not durable before [`VolumeFile::sync_data`].
    ///
    /// # Errors
    /// What the file system says; `StorageFull` when there is no space.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Turns a range into zeros and gives its space back. Not durable before [`VolumeFile::sync_data`].
    ///
    /// # Errors
    /// What the file system says.
    fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()>;

    /// Makes all finished writes and punches durable. After an error nothing is known of the unsynced ones, and
    /// a repeated call may lie: the file must not be trusted for more than it held at the last successful sync.
    ///
    /// # Errors
    /// What the file system says.
    fn sync_data(&self) -> io::Result<()>;

    /// Has the kernel drop what it keeps of the file in memory, so that reads find what the disk holds: after a failed
    /// [`VolumeFile::sync_data`], it may keep what never got there.
    fn forget_cached(&self) {}

    /// Length of the file, bytes.
    ///
    /// # Errors
    /// What the file system says.
    fn len_bytes(&self) -> io::Result<u64>;

    /// Bytes of disk space the file takes.
    ///
    /// # Errors
    /// What the file system says.
    fn allocated_bytes(&self) -> io::Result<u64>;
}
