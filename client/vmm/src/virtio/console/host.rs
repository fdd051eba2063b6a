//! What a port is connected to on the host.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::SocketFlags;

use super::end::End;

/// The host's side of one port. It outlives the driver that serves it.
pub(super) struct Host {
    pub(super) listener: Option<OwnedFd>,
    pub(super) input: Option<End>,
    pub(super) output: Option<End>,
    /// Somebody is at the other end even when both directions have ended.
    always_open: bool,
}

impl Host {
    /// Two descriptors that have nothing to do with each other: the end of one is not the end of the other.
    pub(super) fn stdio(input: OwnedFd, output: OwnedFd) -> io::Result<Host> {
        let (input, output) = (End::input(input)?, End::output(output)?);
        Ok(Host { listener: None, input: Some(input), output: Some(output), always_open: true })
    }

    /// Nobody, ever: what the guest writes is dropped.
    pub(super) fn nobody() -> Host {
        Host { listener: None, input: None, output: None, always_open: false }
    }

    /// One stream socket, until its other end is closed.
    pub(super) fn stream(stream: OwnedFd) -> io::Result<Host> {
        let mut host = Host::nobody();
        host.connect(stream)?;
        Ok(host)
    }

    /// Whoever connects to a listening socket, one at a time.
    pub(super) fn listener(listener: OwnedFd) -> io::Result<Host> {
        // A client may be gone again before it is accepted.
        let flags = rustix::fs::fcntl_getfl(&listener)?;
        rustix::fs::fcntl_setfl(&listener, flags | OFlags::NONBLOCK)?;
        Ok(Host { listener: Some(listener), ..Host::nobody() })
    }

    fn connect(&mut self, stream: OwnedFd) -> io::Result<()> {
        let input = End::input(stream.try_clone()?)?;
        self.output = Some(End::output(stream)?);
        self.input = Some(input);
        Ok(())
    }

    /// Whether somebody is at the other end.
    pub(super) fn is_connected(&self) -> bool {
        self.always_open || self.input.is_some() || self.output.is_some()
    }

    /// Takes the next client. A listener that fails for good is closed, since it would never rest.
    pub(super) fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let accepted = match rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(stream) => self.connect(stream),
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(()),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = accepted {
            tracing::error!(%error, "a port of the console takes no clients any more");
            self.listener = None;
        }
    }

    /// Ends a stream whose reader is gone, once nothing of what it wrote before is to reach the guest.
    pub(super) fn close_if_over(&mut self, guest_reads: bool) {
        if self.always_open || self.output.is_some() {
            return;
        }
        self.input.take_if(|input| !guest_reads || input.is_over());
    }
}
