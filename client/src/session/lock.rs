//! The lock of a desktop's directory: one process has a desktop open.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use chunk_format::Name;
use rustix::fs::{FlockOperation, flock};

use super::SessionError;
use crate::volume::is_full;

/// The lock of a desktop's directory. The kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct DesktopLock {
    _file: File,
}

impl DesktopLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// `InUse`, `Lock`.
    pub fn take(directory: &Path, desktop: &Name) -> Result<Self, SessionError> {
        let path = directory.join("lock");
        let failed = |source| SessionError::Lock { path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Only for the message; who holds the lock writes its number right after taking it.
                let _ = file.take(16).read_to_string(&mut pid);
                let pid = match pid.trim() {
                    "" => "unknown".to_owned(),
                    pid => pid.to_owned(),
                };
                return Err(SessionError::InUse { desktop: desktop.clone(), pid });
            }
            Err(error) => return Err(failed(error.into())),
        }
        let pid = format!("{}\n", std::process::id());
        // In place: what is freed on a full disk is soon another's.
        let noted = file
            .rewind()
            .and_then(|()| file.write_all(pid.as_bytes()))
            .and_then(|()| file.set_len(pid.len() as u64));
        match noted {
            // The number is for a message, the lock holds without it.
            Err(error) if is_full(&error) => {}
            noted => noted.map_err(failed)?,
        }
        Ok(Self { _file: file })
    }
}
