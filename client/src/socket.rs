//! Sockets in the directory of a desktop. Their address has 107 bytes at most, and the directory's path may be longer.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Listens on a socket of this name. The caller has the directory for itself, so that one that is there is a leftover.
///
/// # Errors
/// What the file system says.
pub(crate) fn listen(directory: &Path, name: &str) -> io::Result<UnixListener> {
    with_short_path(directory, name, |path| {
        let _ = std::fs::remove_file(path);
        UnixListener::bind(path)
    })
}

/// Connects to it.
///
/// # Errors
/// What the file system or the socket says: `NotFound` or `ConnectionRefused` when nobody listens.
pub(crate) fn connect(directory: &Path, name: &str) -> io::Result<UnixStream> {
    with_short_path(directory, name, |path| UnixStream::connect(path))
}

/// The kernel follows a descriptor's name.
fn with_short_path<T>(
    directory: &Path,
    name: &str,
    open: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let directory = File::open(directory)?;
    open(&Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_may_have_a_long_path_and_a_leftover_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("d".repeat(200));
        std::fs::create_dir(&long).unwrap();
        assert_eq!(connect(&long, "socket").unwrap_err().kind(), io::ErrorKind::NotFound);
        drop(listen(&long, "socket").unwrap());
        assert_eq!(connect(&long, "socket").unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let listener = listen(&long, "socket").unwrap();
        connect(&long, "socket").unwrap();
        listener.accept().unwrap();
    }
}
