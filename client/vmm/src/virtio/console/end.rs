//! A descriptor of the host that is read or written without ever waiting for it.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// What came of reading or writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// So many bytes went over, at least one.
    Bytes(usize),
    /// Nothing can go over now.
    Nothing,
    /// Nothing will ever go over again.
    Over,
}

/// One direction of what a port is connected to.
pub(super) struct End {
    descriptor: OwnedFd,
    socket: bool,
}

impl End {
    /// An end to read from.
    pub(super) fn input(descriptor: OwnedFd) -> io::Result<End> {
        End::new(descriptor, OFlags::RDONLY)
    }

    /// An end to write to.
    pub(super) fn output(descriptor: OwnedFd) -> io::Result<End> {
        End::new(descriptor, OFlags::WRONLY)
    }

    fn new(descriptor: OwnedFd, access: OFlags) -> io::Result<End> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&descriptor)?.st_mode);
        let socket = kind == FileType::Socket;
        let descriptor = match kind {
            FileType::Fifo | FileType::CharacterDevice => without_waiting(descriptor, access)?,
            // A socket is asked call by call, and a file never waits.
            _ => descriptor,
        };
        Ok(End { descriptor, socket })
    }

    /// Reads what is there.
    pub(super) fn read(&self, bytes: &mut [u8]) -> Moved {
        let read = if self.socket {
            rustix::net::recv(&self.descriptor, bytes, RecvFlags::DONTWAIT).map(|(length, _)| length)
        } else {
            rustix::io::read(&self.descriptor, bytes)
        };
        match read {
            Ok(0) => Moved::Over,
            Ok(length) => Moved::Bytes(length),
            Err(error) => given_up(error),
        }
    }

    /// Whether nothing is left to read and nothing will come. Only a socket can be asked without reading.
    pub(super) fn is_over(&self) -> bool {
        let peeked = rustix::net::recv(&self.descriptor, &mut [0; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK);
        match peeked.map(|(length, _)| length) {
            Ok(length) => length == 0,
            Err(error) => given_up(error) == Moved::Over,
        }
    }

    /// Writes what goes. A pipe without a reader raises a signal, which programs in Rust ignore.
    pub(super) fn write(&self, bytes: &[u8]) -> Moved {
        let written = if self.socket {
            rustix::net::send(&self.descriptor, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
        } else {
            rustix::io::write(&self.descriptor, bytes)
        };
        match written {
            Ok(0) => Moved::Nothing,
            Ok(length) => Moved::Bytes(length),
            Err(error) => given_up(error),
        }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

fn given_up(error: Errno) -> Moved {
    match error {
        Errno::AGAIN | Errno::INTR => Moved::Nothing,
        error => {
            tracing::debug!(%error, "one end of a port is over");
            Moved::Over
        }
    }
}

/// The same pipe or terminal, without waiting. Whether a descriptor waits is a matter of all who share it, the shell that
/// started this program among them, so it is opened anew where it can be. A terminal's master cannot: that would make
/// another terminal.
fn without_waiting(descriptor: OwnedFd, access: OFlags) -> io::Result<OwnedFd> {
    if rustix::pty::ptsname(&descriptor, Vec::new()).is_err() {
        let path = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
        let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        if let Ok(anew) = rustix::fs::open(path, flags, Mode::empty()) {
            return Ok(anew);
        }
    }
    let flags = rustix::fs::fcntl_getfl(&descriptor)?;
    rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
    Ok(descriptor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_that_others_share_still_makes_them_wait() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let input = End::input(read.try_clone().unwrap()).unwrap();
        assert_eq!(input.read(&mut [0; 4]), Moved::Nothing);
        assert!(!rustix::fs::fcntl_getfl(&read).unwrap().contains(OFlags::NONBLOCK));
        rustix::io::write(&write, b"ab").unwrap();
        assert_eq!(input.read(&mut [0; 4]), Moved::Bytes(2));
        drop(write);
        assert_eq!(input.read(&mut [0; 4]), Moved::Over);
    }

    #[test]
    fn a_full_pipe_takes_nothing_and_one_without_a_reader_is_over() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        let output = End::output(write).unwrap();
        while output.write(&[0; 4096]) != Moved::Nothing {}
        drop(read);
        assert_eq!(output.write(&[0; 4096]), Moved::Over);
    }

    #[test]
    fn a_file_is_read_from_where_it_stands() {
        use std::io::{Seek, Write};
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abcdef").unwrap();
        file.seek(io::SeekFrom::Start(4)).unwrap();
        let input = End::input(file.into()).unwrap();
        let mut bytes = [0; 8];
        assert_eq!(input.read(&mut bytes), Moved::Bytes(2));
        assert_eq!(&bytes[..2], b"ef");
        assert_eq!(input.read(&mut bytes), Moved::Over);
    }
}
