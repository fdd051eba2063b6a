//! Frames over a stream socket, as `passt(1)` and QEMU's `-netdev stream` speak: each is preceded by its length, four bytes,
//! the most significant first.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::frames::{Frames, LONGEST_FRAME, LinkLost};

const LENGTH_BYTES: usize = 4;
/// Room for what one call receives. More than the longest frame, so that one is always complete before it is full.
const BUFFER_BYTES: usize = 128 << 10;

/// A connected stream.
pub struct Stream {
    socket: OwnedFd,
    /// What the socket did not take yet of the last frame.
    unsent: Vec<u8>,
    /// What was received and not given out: `buffer[begin..end]`.
    buffer: Box<[u8]>,
    begin: usize,
    end: usize,
}

impl Stream {
    /// Speaks over this socket; it need not be non-blocking.
    pub fn new(socket: OwnedFd) -> Stream {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Stream { socket, unsent: Vec::new(), buffer, begin: 0, end: 0 }
    }

    /// Where the frame at the beginning of the buffer ends. `None` while it is not complete.
    fn frame_end(&self) -> Result<Option<usize>, LinkLost> {
        let Some(length) = self.buffer[self.begin..self.end].first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length);
        match usize::try_from(length) {
            Ok(bytes) if (1..=LONGEST_FRAME).contains(&bytes) => {
                let end = self.begin + LENGTH_BYTES + bytes;
                Ok((end <= self.end).then_some(end))
            }
            _ => Err(LinkLost::Length { length }),
        }
    }

    /// Receives what there is; whether there was anything.
    fn fill(&mut self) -> Result<bool, LinkLost> {
        if self.begin > 0 {
            self.buffer.copy_within(self.begin..self.end, 0);
            self.end -= self.begin;
            self.begin = 0;
        }
        loop {
            match rustix::net::recv(&self.socket, &mut self.buffer[self.end..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(LinkLost::Closed),
                Ok((received, _)) => {
                    self.end += received;
                    return Ok(true);
                }
                Err(Errno::AGAIN) => return Ok(false),
                Err(Errno::INTR) => {}
                Err(error) => return Err(lost(error)),
            }
        }
    }

    /// Sends both parts as far as the socket takes them; the bytes it took. In one piece: with `sendmsg` descriptors could be
    /// sent as well, which this thread is not allowed.
    fn send_parts(&self, parts: &[IoSlice<'_>]) -> Result<usize, LinkLost> {
        let joined = parts.iter().map(|part| &**part).collect::<Vec<_>>().concat();
        loop {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, &joined, flags) {
                Ok(sent) => return Ok(sent),
                Err(Errno::AGAIN) => return Ok(0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(lost(error)),
            }
        }
    }
}

fn lost(error: Errno) -> LinkLost {
    match error {
        Errno::PIPE | Errno::CONNRESET => LinkLost::Closed,
        error => LinkLost::Io(io::Error::from(error)),
    }
}

impl Frames for Stream {
    fn send(&mut self, frame: &[u8]) -> Result<(), LinkLost> {
        // The device sends no longer frame: the length always fits.
        let Ok(length) = u32::try_from(frame.len()) else { return Ok(()) };
        let length = length.to_be_bytes();
        let sent = self.send_parts(&[IoSlice::new(&length), IoSlice::new(frame)])?;
        self.unsent.extend_from_slice(length.get(sent..).unwrap_or_default());
        let sent = sent.saturating_sub(LENGTH_BYTES);
        self.unsent.extend_from_slice(frame.get(sent..).unwrap_or_default());
        Ok(())
    }

    fn flush(&mut self) -> Result<bool, LinkLost> {
        if self.unsent.is_empty() {
            return Ok(true);
        }
        let sent = self.send_parts(&[IoSlice::new(&self.unsent)])?;
        self.unsent.drain(..sent.min(self.unsent.len()));
        Ok(self.unsent.is_empty())
    }

    fn receive(&mut self) -> Result<Option<&[u8]>, LinkLost> {
        loop {
            if let Some(end) = self.frame_end()? {
                return Ok(Some(&self.buffer[self.begin + LENGTH_BYTES..end]));
            }
            if !self.fill()? {
                return Ok(None);
            }
        }
    }

    fn received(&mut self) {
        if let Ok(Some(end)) = self.frame_end() {
            self.begin = end;
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;

    fn stream() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Stream::new(ours.into()), theirs)
    }

    #[test]
    fn a_frame_that_comes_byte_by_byte_is_given_when_it_is_complete() {
        let (mut ours, mut theirs) = stream();
        let bytes = [&[0, 0, 0, 20][..], &[7; 20]].concat();
        for byte in &bytes[..bytes.len() - 1] {
            theirs.write_all(&[*byte]).unwrap();
            assert!(ours.receive().unwrap().is_none());
        }
        theirs.write_all(&bytes[bytes.len() - 1..]).unwrap();
        assert_eq!(ours.receive().unwrap(), Some(&[7; 20][..]));
        assert_eq!(ours.receive().unwrap(), Some(&[7; 20][..]), "it is the same until it was received");
        ours.received();
        assert!(ours.receive().unwrap().is_none());
    }

    #[test]
    fn a_length_of_nothing_or_beyond_the_longest_frame_loses_the_link() {
        for wrong in [0, 65_551, u32::MAX] {
            let (mut ours, mut theirs) = stream();
            theirs.write_all(&wrong.to_be_bytes()).unwrap();
            assert!(matches!(ours.receive(), Err(LinkLost::Length { length }) if length == wrong));
        }
    }

    #[test]
    fn a_full_socket_keeps_the_rest_of_a_frame_for_later() {
        use std::io::Read;
        let (mut ours, mut theirs) = stream();
        let mut frames = 0_usize;
        while ours.flush().unwrap() {
            ours.send(&[u8::try_from(frames % 256).unwrap(); 60_001]).unwrap();
            frames += 1;
        }
        let reader = std::thread::spawn(move || {
            for frame in 0..frames {
                let mut bytes = vec![0; 60_005];
                theirs.read_exact(&mut bytes).unwrap();
                assert_eq!(bytes[..4], 60_001_u32.to_be_bytes());
                assert!(bytes[4..].iter().all(|byte| usize::from(*byte) == frame % 256));
            }
        });
        while !ours.flush().unwrap() {
            std::thread::yield_now();
        }
        reader.join().unwrap();
    }

    #[test]
    fn the_other_side_may_go_while_a_frame_is_sent() {
        let (mut ours, theirs) = stream();
        drop(theirs);
        assert!(matches!(ours.send(&[0; 60]), Err(LinkLost::Closed)));
        assert!(matches!(ours.receive(), Err(LinkLost::Closed)));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_cut_into_frames_or_loses_the_link(bytes in prop::collection::vec(any::<u8>(), 0..4000)) {
            let (mut ours, mut theirs) = stream();
            theirs.write_all(&bytes).unwrap();
            drop(theirs);
            let mut seen = 0;
            while let Ok(Some(frame)) = ours.receive() {
                seen += frame.len() + LENGTH_BYTES;
                ours.received();
            }
            prop_assert!(seen <= bytes.len());
        }
    }
}
