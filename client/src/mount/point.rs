//! The directory a desktop is mounted on.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::UnmountFlags;

/// Where Satchel itself mounts disks, in the directory of their desktop: for a machine, and to copy files into them.
pub const MACHINE_POINT: &str = "disks";
/// See [`MACHINE_POINT`].
pub const COPY_POINT: &str = "copy/disks";

/// Why a directory cannot be mounted on, or not unmounted.
#[derive(Debug, thiserror::Error)]
pub enum PointError {
    /// It cannot be looked at.
    #[error("cannot use {}", directory.display())]
    Io {
        /// The directory.
        directory: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// Something lies in it.
    #[error("{} is not an empty directory", directory.display())]
    NotEmpty {
        /// The directory.
        directory: PathBuf,
    },
    /// Something is mounted on it.
    #[error("something is mounted on {} already", directory.display())]
    Taken {
        /// The directory.
        directory: PathBuf,
    },
    /// Some program has a file in it open.
    #[error("{} is in use", directory.display())]
    Busy {
        /// The directory.
        directory: PathBuf,
    },
    /// Unmounting failed.
    #[error("cannot unmount {}: {reason}", directory.display())]
    Unmount {
        /// The directory.
        directory: PathBuf,
        /// What was said.
        reason: String,
    },
}

/// Clears away a mount whose process has died; tells whether there was one.
///
/// # Errors
/// `Unmount`, `Busy`.
pub fn clean_stale(directory: &Path) -> Result<bool, PointError> {
    // What the kernel answers for a FUSE mount without a process behind it. Asked of the file system, since it may
    // remember what its files looked like.
    match rustix::fs::statfs(directory) {
        Err(rustix::io::Errno::NOTCONN) => unmount(directory, true).map(|()| true),
        _ => Ok(false),
    }
}

/// Checks that a directory is there, empty, and nothing is mounted on it.
pub(crate) fn check(directory: &Path) -> Result<(), PointError> {
    let io = |source| PointError::Io { directory: directory.to_owned(), source };
    let here = std::fs::metadata(directory).map_err(io)?;
    let above = std::fs::metadata(directory.join("..")).map_err(io)?;
    if here.dev() != above.dev() || here.ino() == above.ino() {
        return Err(PointError::Taken { directory: directory.to_owned() });
    }
    if std::fs::read_dir(directory).map_err(io)?.next().is_some() {
        return Err(PointError::NotEmpty { directory: directory.to_owned() });
    }
    Ok(())
}

/// Unmounts a directory. With `detach`, also when programs have files in it open: they keep what they have, and the
/// mount ends with them.
///
/// # Errors
/// `Busy`, `Unmount`.
pub fn unmount(directory: &Path, detach: bool) -> Result<(), PointError> {
    let flags = if detach { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(directory, flags) {
        // Already unmounted by someone else.
        Ok(()) | Err(rustix::io::Errno::INVAL) => return Ok(()),
        Err(rustix::io::Errno::BUSY) => return Err(PointError::Busy { directory: directory.to_owned() }),
        // Only root may; for everyone else there is a helper.
        Err(rustix::io::Errno::PERM) => {}
        Err(error) => {
            return Err(PointError::Unmount {
                directory: directory.to_owned(),
                reason: io::Error::from(error).to_string(),
            });
        }
    }
    let failed = |reason| PointError::Unmount { directory: directory.to_owned(), reason };
    let output = Command::new("fusermount3")
        .arg(if detach { "-uz" } else { "-u" })
        .arg("--")
        .arg(directory)
        .stdin(Stdio::null())
        .env("LC_ALL", "C")
        .output()
        .map_err(|error| failed(format!("cannot run fusermount3 (Debian package fuse3): {error}")))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || said.contains("not mounted") || said.contains("not found in") {
        Ok(())
    } else if said.contains("busy") {
        Err(PointError::Busy { directory: directory.to_owned() })
    } else {
        Err(failed(said.trim().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_empty_directory_is_mounted_on() {
        let dir = tempfile::tempdir().unwrap();
        check(dir.path()).unwrap();
        assert!(!clean_stale(dir.path()).unwrap());
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(matches!(check(dir.path()), Err(PointError::NotEmpty { .. })));
        assert!(matches!(check(&dir.path().join("none")), Err(PointError::Io { .. })));
        assert!(matches!(check(Path::new("/proc")), Err(PointError::Taken { .. })));
    }
}
