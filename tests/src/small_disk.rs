//! A disk that is soon full, or cannot be written.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::client::{Output, is_mounted, unmount};
use crate::process::{forget_mount, remember_mount};

/// A file system in memory of a size that can change, or one on a disk in a file; gone when dropped. Needs root.
#[derive(Debug)]
pub struct SmallDisk {
    directory: TempDir,
}

impl SmallDisk {
    /// Makes a disk with room for `size_bytes`.
    ///
    /// # Panics
    /// When it cannot be mounted.
    #[track_caller]
    pub fn new(size_bytes: u64) -> Self {
        let directory =
            tempfile::Builder::new().prefix("satchel-small-disk-").tempdir().expect("a temporary directory");
        let options = format!("size={size_bytes},mode=0700");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "satchel-test"]).arg(directory.path());
        let _ = Output::of(&mut mount).ok();
        remember_mount(directory.path());
        Self { directory }
    }

    /// Makes a disk of so many bytes with ext4, as a stick or a laptop's disk has it.
    ///
    /// # Panics
    /// When it cannot be made or mounted.
    #[track_caller]
    pub fn ext4(size_bytes: u64) -> Self {
        let directory =
            tempfile::Builder::new().prefix("satchel-small-disk-").tempdir().expect("a temporary directory");
        let image = tempfile::NamedTempFile::new().expect("a temporary file");
        image.as_file().set_len(size_bytes).expect("a file can be sparse");
        let _ = Output::of(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(image.path())).ok();
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", "-o", "loop"]).arg(image.path()).arg(directory.path());
        let _ = Output::of(&mut mount).ok();
        remember_mount(directory.path());
        Self { directory }
    }

    /// Lets it be written, or not any more.
    ///
    /// # Panics
    /// When it cannot be mounted so.
    #[track_caller]
    pub fn set_writable(&self, is_writable: bool) {
        let options = if is_writable { "remount,rw" } else { "remount,ro" };
        let _ = Output::of(Command::new("mount").args(["-o", options]).arg(self.path())).ok();
    }

    /// Returns the directory it is mounted on.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Gives it another size; what is on it stays.
    ///
    /// # Panics
    /// When it holds more than that.
    #[track_caller]
    pub fn resize(&self, size_bytes: u64) {
        let options = format!("remount,size={size_bytes}");
        let _ = Output::of(Command::new("mount").args(["-o", &options]).arg(self.path())).ok();
    }

    /// Returns a path on it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(self.path());
        if !is_mounted(self.path()) {
            forget_mount(self.path());
        }
    }
}
