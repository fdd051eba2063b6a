//! Frames of a TAP interface that somebody else made: one a read, one a write (`IFF_TAP | IFF_NO_PI`, no offloads).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::frames::{Frames, LONGEST_FRAME, LinkLost};

/// An interface.
pub struct Tap {
    tap: OwnedFd,
    /// The frame the interface had no room for.
    unsent: Vec<u8>,
    frame: Box<[u8]>,
    /// The bytes of `frame` that were read and not given out.
    length: usize,
}

impl Tap {
    /// Speaks to the interface of this descriptor, and makes it non-blocking.
    ///
    /// # Errors
    /// The descriptor cannot be made so.
    pub fn new(tap: OwnedFd) -> io::Result<Tap> {
        rustix::fs::fcntl_setfl(&tap, rustix::fs::fcntl_getfl(&tap)? | OFlags::NONBLOCK)?;
        Ok(Tap { tap, unsent: Vec::new(), frame: vec![0; LONGEST_FRAME].into_boxed_slice(), length: 0 })
    }

    /// Writes one frame; whether the interface had room for it.
    fn write(&self, frame: &[u8]) -> Result<bool, LinkLost> {
        loop {
            match rustix::io::write(&self.tap, frame) {
                // A frame the interface does not want (it is down, or the frame is not well-formed) is lost like one on a
                // wire.
                Ok(_) | Err(Errno::IO | Errno::INVAL | Errno::NOBUFS | Errno::NOMEM) => return Ok(true),
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(LinkLost::Closed),
                Err(error) => return Err(LinkLost::Io(error.into())),
            }
        }
    }
}

impl Frames for Tap {
    fn send(&mut self, frame: &[u8]) -> Result<(), LinkLost> {
        if !self.write(frame)? {
            self.unsent.extend_from_slice(frame);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<bool, LinkLost> {
        if !self.unsent.is_empty() && self.write(&self.unsent)? {
            self.unsent.clear();
        }
        Ok(self.unsent.is_empty())
    }

    fn receive(&mut self) -> Result<Option<&[u8]>, LinkLost> {
        while self.length == 0 {
            match rustix::io::read(&self.tap, &mut self.frame[..]) {
                Ok(0) => return Err(LinkLost::Closed),
                Ok(length) => self.length = length,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(error) => return Err(LinkLost::Io(error.into())),
            }
        }
        Ok(self.frame.get(..self.length))
    }

    fn received(&mut self) {
        self.length = 0;
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.tap.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    use super::*;

    /// A socket that keeps packets apart, as the interface does.
    fn pair() -> (Tap, OwnedFd) {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        (Tap::new(ours).unwrap(), theirs)
    }

    #[test]
    fn a_read_is_a_frame_and_a_frame_is_a_write() {
        let (mut tap, theirs) = pair();
        assert!(tap.receive().unwrap().is_none());
        rustix::io::write(&theirs, &[1; 60]).unwrap();
        rustix::io::write(&theirs, &[2; 70]).unwrap();
        assert_eq!(tap.receive().unwrap(), Some(&[1; 60][..]));
        tap.received();
        assert_eq!(tap.receive().unwrap(), Some(&[2; 70][..]));
        tap.received();
        tap.send(&[3; 80]).unwrap();
        let mut frame = [0; 100];
        assert_eq!(rustix::io::read(&theirs, &mut frame).unwrap(), 80);
    }

    #[test]
    fn an_interface_without_room_keeps_one_frame_waiting() {
        let (mut tap, theirs) = pair();
        let mut sent = 0;
        while tap.flush().unwrap() {
            tap.send(&[5; 1500]).unwrap();
            sent += 1;
        }
        let mut frame = [0; 2000];
        for _ in 0..sent {
            assert_eq!(rustix::io::read(&theirs, &mut frame).unwrap(), 1500);
            tap.flush().unwrap();
        }
    }

    #[test]
    fn an_interface_that_is_gone_loses_the_link() {
        let (mut tap, theirs) = pair();
        drop(theirs);
        assert!(tap.receive().is_err());
    }
}
