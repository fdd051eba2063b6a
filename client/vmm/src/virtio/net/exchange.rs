//! A stream to one program after the other: where one has ended, another may be connected.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;

use super::frames::{Frames, LinkLost, Return};
use super::passt::Stream;

/// Takes connections from a listening socket, one at a time; the next waits there for the end of the one before.
pub struct Exchange {
    listener: UnixListener,
    stream: Option<Stream>,
}

impl Exchange {
    /// Speaks to whoever connects, and makes the socket non-blocking. Who has connected already is there at once.
    ///
    /// # Errors
    /// The socket cannot be made so.
    pub fn new(listener: UnixListener) -> std::io::Result<Exchange> {
        listener.set_nonblocking(true)?;
        let mut exchange = Exchange { listener, stream: None };
        exchange.reconnect();
        Ok(exchange)
    }
}

impl Frames for Exchange {
    fn send(&mut self, frame: &[u8]) -> Result<(), LinkLost> {
        self.stream.as_mut().map_or(Err(LinkLost::Closed), |stream| stream.send(frame))
    }

    fn flush(&mut self) -> Result<bool, LinkLost> {
        self.stream.as_mut().map_or(Err(LinkLost::Closed), Stream::flush)
    }

    fn receive(&mut self) -> Result<Option<&[u8]>, LinkLost> {
        self.stream.as_mut().map_or(Err(LinkLost::Closed), Stream::receive)
    }

    fn received(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.received();
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.as_ref().map_or(self.listener.as_fd(), Stream::descriptor)
    }

    fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    fn reconnect(&mut self) -> Return {
        // The one before is let go first, and its descriptor with it: then there is one to be had.
        self.stream = None;
        self.stream = self.listener.accept().ok().map(|(stream, _)| Stream::new(stream.into()));
        if self.stream.is_some() { Return::Now } else { Return::Later }
    }
}
