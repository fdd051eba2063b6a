//! Whether a file system can carry a state directory: those of sticks and of shares often cannot.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::volume::{UNFINISHED, is_full};

/// The length of a file that takes no space where files may have holes, bytes.
const SPARSE_BYTES: u64 = 1 << 20;

/// A file that is removed again, however its test ends.
struct Probe(PathBuf);

impl Probe {
    fn new(directory: &Path, what: &str) -> Self {
        let probe = Self(directory.join(format!("probe-{what}.{}{UNFINISHED}", std::process::id())));
        // Of a process of the same number that was killed.
        let _ = std::fs::remove_file(&probe.0);
        probe
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What the file system of a directory does not have that is needed. On a full disk nothing is found to lack.
///
/// # Errors
/// What the file system says to a new file.
pub(super) fn lacks(directory: &Path) -> io::Result<Vec<&'static str>> {
    let mut lacks = Vec::new();
    let probe = Probe::new(directory, "file");
    let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&probe.0) {
        Err(error) if is_full(&error) => return Ok(lacks),
        file => file?,
    };
    if file.metadata()?.mode() & 0o077 != 0 {
        lacks.push("permissions, so that tokens and keys would be for everyone");
    }
    let grown = file.set_len(SPARSE_BYTES).and_then(|()| file.metadata());
    if grown.is_ok_and(|grown| grown.blocks() * 512 >= SPARSE_BYTES) {
        lacks.push("holes in files, so that an empty disk would take all of its size");
    }
    let probe = Probe::new(directory, "socket");
    // The path of a socket is short, as the kernel has it: where this one is too long says nothing.
    let bound = UnixListener::bind(&probe.0);
    if bound.is_err_and(|error| !is_full(&error) && error.kind() != io::ErrorKind::InvalidInput) {
        lacks.push("sockets, by which commands find a desktop that is mounted");
    }
    Ok(lacks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_of_linux_lacks_nothing_and_keeps_nothing_of_the_test() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(lacks(directory.path()).unwrap(), Vec::<&str>::new());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
