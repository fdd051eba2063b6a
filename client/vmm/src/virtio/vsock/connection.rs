//! One connection: a socket of the host, what the guest sent and the socket did not take yet, and the credit of both sides
//! (section 5.10.6.3).

use std::collections::VecDeque;
use std::num::Wrapping;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown};

use super::header::{Header, NO_MORE_RECEIVED, NO_MORE_SENT};
use crate::virtio::{Interest, Ready};

/// Bytes of the guest that wait for the host, in one connection.
pub(super) const BUFFER_BYTES: u32 = 64 << 10;

/// What came of an attempt to receive from the host.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// Nothing ever again; the flags of the shutdown that says so.
    End(u32),
}

/// A connection.
pub(super) struct Connection {
    socket: OwnedFd,
    /// Whether both sides agreed to it.
    established: bool,
    /// What the guest sent and the host did not take. At most [`BUFFER_BYTES`].
    unsent: VecDeque<u8>,
    /// Bytes of the guest that the host took, and what the guest was last told of it.
    forwarded: Wrapping<u32>,
    told: Wrapping<u32>,
    /// Bytes sent to the guest, and what it last said about those it passed on and those it has room for.
    sent: Wrapping<u32>,
    guest_forwarded: Wrapping<u32>,
    guest_room: u32,
    guest_sends: bool,
    guest_receives: bool,
    host_sends: bool,
    /// Whether the host was told that the guest sends no more.
    host_told: bool,
    /// Whether there is something to receive, as far as is known.
    readable: bool,
    /// Whether an update or a request of credit is on its way to the guest.
    pub(super) update_due: bool,
    pub(super) credit_asked: bool,
}

impl Connection {
    /// A connection whose credit is that of the guest's packet if there was one; established when the guest asked for it.
    pub(super) fn new(socket: OwnedFd, request: Option<&Header>) -> Connection {
        let mut connection = Connection {
            socket,
            established: request.is_some(),
            unsent: VecDeque::new(),
            forwarded: Wrapping(0),
            told: Wrapping(0),
            sent: Wrapping(0),
            guest_forwarded: Wrapping(0),
            guest_room: 0,
            guest_sends: true,
            guest_receives: true,
            host_sends: true,
            host_told: false,
            readable: false,
            update_due: false,
            credit_asked: false,
        };
        if let Some(request) = request {
            connection.hear_credit(request);
        }
        connection
    }

    pub(super) fn is_established(&self) -> bool {
        self.established
    }

    /// Whether the guest has not accepted, and the host has gone.
    pub(super) fn is_abandoned(&self) -> bool {
        let mut polled = [PollFd::new(&self.socket, PollFlags::empty())];
        let at_once = Timespec::default();
        !self.established
            && rustix::event::poll(&mut polled, Some(&at_once)).is_ok()
            && polled[0].revents().contains(PollFlags::HUP)
    }

    /// The guest accepted; the host is told so with the port its end has, as the convention of such sockets is.
    pub(super) fn establish(&mut self, port: u32) -> Result<(), Errno> {
        self.established = true;
        let said = format!("OK {port}\n");
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = rustix::net::send(&self.socket, said.as_bytes(), flags)?;
        // The socket has carried nothing yet: there is room for one line.
        if sent == said.len() { Ok(()) } else { Err(Errno::AGAIN) }
    }

    /// Every packet of the guest says its credit.
    pub(super) fn hear_credit(&mut self, header: &Header) {
        self.guest_room = header.buf_alloc;
        self.guest_forwarded = Wrapping(header.fwd_cnt);
        if self.credit() > 0 {
            self.credit_asked = false;
        }
    }

    /// Every packet to the guest says ours: the bytes there is room for, and those passed on.
    pub(super) fn tell_credit(&mut self) -> (u32, u32) {
        self.told = self.forwarded;
        self.update_due = false;
        (BUFFER_BYTES, self.forwarded.0)
    }

    /// Bytes that may be sent to the guest. What it says may be senseless: then there are none.
    pub(super) fn credit(&self) -> u32 {
        self.guest_room.saturating_sub((self.sent - self.guest_forwarded).0)
    }

    /// Whether the guest believes that less than half of the room is left, although more is.
    pub(super) fn owes_update(&self) -> bool {
        let news = (self.forwarded - self.told).0;
        let held = u32::try_from(self.unsent.len()).unwrap_or(u32::MAX);
        news > 0 && news.saturating_add(held) > BUFFER_BYTES / 2
    }

    /// Takes bytes of the guest; whether it was allowed to send them.
    pub(super) fn take(&mut self, bytes: &[u8]) -> bool {
        let room = usize::try_from(BUFFER_BYTES).unwrap_or(0).saturating_sub(self.unsent.len());
        let allowed = self.established && self.guest_sends && bytes.len() <= room;
        if allowed {
            self.unsent.extend(bytes);
        }
        allowed
    }

    /// The guest says what it will not do any more.
    pub(super) fn shut(&mut self, flags: u32) {
        self.guest_receives &= flags & NO_MORE_RECEIVED == 0;
        self.guest_sends &= flags & NO_MORE_SENT == 0;
    }

    /// Whether the guest is done with it, and the host has all it sent.
    pub(super) fn is_over(&self) -> bool {
        !self.guest_sends && !self.guest_receives && self.unsent.is_empty()
    }

    /// Gives the host what it takes of the guest's bytes.
    pub(super) fn flush(&mut self) -> Result<(), Errno> {
        while !self.unsent.is_empty() {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, self.unsent.as_slices().0, flags) {
                Ok(sent) => {
                    self.unsent.drain(..sent.min(self.unsent.len()));
                    self.forwarded += u32::try_from(sent).unwrap_or(0);
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        if !self.guest_sends && !self.host_told {
            self.host_told = true;
            rustix::net::shutdown(&self.socket, Shutdown::Write)?;
        }
        Ok(())
    }

    /// Whether bytes of the host could be sent to the guest, were there any.
    fn may_receive(&self) -> bool {
        self.established && self.host_sends && self.guest_receives && self.credit() > 0
    }

    /// Whether there is something to receive from the host, as far as is known, and the guest has room for it.
    pub(super) fn is_readable(&self) -> bool {
        self.readable && self.may_receive()
    }

    /// Receives bytes for the guest, no more than it has room for.
    pub(super) fn receive(&mut self, bytes: &mut [u8]) -> Result<Received, Errno> {
        let most = bytes.len().min(usize::try_from(self.credit()).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(Received::Nothing);
        }
        loop {
            match rustix::net::recv(&self.socket, &mut bytes[..most], RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    self.host_sends = false;
                    return Ok(Received::End(self.host_end()));
                }
                Ok((received, _)) => {
                    self.sent += u32::try_from(received).unwrap_or(u32::MAX);
                    return Ok(Received::Bytes(received));
                }
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return Ok(Received::Nothing);
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The host sends no more; a socket that was closed altogether does not take an empty message either.
    fn host_end(&self) -> u32 {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match rustix::net::send(&self.socket, &[], flags) {
            Ok(_) | Err(Errno::AGAIN) => NO_MORE_SENT,
            Err(_) => NO_MORE_SENT | NO_MORE_RECEIVED,
        }
    }

    /// What to wait for; what is to be received only when it could be passed on.
    pub(super) fn interest(&self, passing_on: bool) -> Interest<'_> {
        Interest {
            source: self.socket.as_fd(),
            read: passing_on && !self.readable && self.may_receive(),
            write: !self.unsent.is_empty(),
        }
    }

    /// What came of waiting.
    pub(super) fn set_ready(&mut self, ready: Ready) {
        self.readable |= ready.read;
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;

    use super::*;

    fn connection(room: u32) -> (Connection, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let request = Header { buf_alloc: room, ..Header::default() };
        (Connection::new(ours.into(), Some(&request)), theirs)
    }

    #[test]
    fn no_more_is_received_than_the_guest_has_room_for() {
        let (mut connection, mut theirs) = connection(10);
        theirs.write_all(&[1; 25]).unwrap();
        let mut bytes = [0; 100];
        assert_eq!(connection.receive(&mut bytes), Ok(Received::Bytes(10)));
        assert_eq!(connection.receive(&mut bytes), Ok(Received::Nothing));
        connection.hear_credit(&Header { buf_alloc: 10, fwd_cnt: 4, ..Header::default() });
        assert_eq!(connection.receive(&mut bytes), Ok(Received::Bytes(4)));
        connection.hear_credit(&Header { buf_alloc: 100, fwd_cnt: 14, ..Header::default() });
        assert_eq!(connection.receive(&mut bytes), Ok(Received::Bytes(11)));
    }

    #[test]
    fn a_guest_that_sends_more_than_there_is_room_for_is_not_heard() {
        let (mut connection, _theirs) = connection(0);
        assert!(connection.take(&[0; 65_536]));
        assert!(!connection.take(&[0; 1]));
        connection.shut(NO_MORE_SENT);
        connection.flush().unwrap();
        assert!(!connection.take(&[0; 1]));
    }

    #[test]
    fn half_an_end_and_a_whole_one_are_told_apart() {
        let mut bytes = [0; 100];
        let (mut half, theirs) = connection(100);
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(half.receive(&mut bytes), Ok(Received::End(NO_MORE_SENT)));
        let (mut whole, theirs) = connection(100);
        drop(theirs);
        assert_eq!(whole.receive(&mut bytes), Ok(Received::End(NO_MORE_SENT | NO_MORE_RECEIVED)));
    }

    #[test]
    fn the_host_hears_the_end_after_the_last_byte() {
        let (mut connection, mut theirs) = connection(0);
        assert!(connection.take(b"last"));
        connection.shut(NO_MORE_SENT | NO_MORE_RECEIVED);
        assert!(!connection.is_over());
        connection.flush().unwrap();
        assert!(connection.is_over());
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).unwrap();
        assert_eq!(all, b"last");
    }

    proptest! {
        #[test]
        fn whatever_credit_a_guest_names_no_more_than_its_room_is_given(room: u32, forwarded: u32) {
            let (mut connection, _theirs) = connection(room);
            connection.hear_credit(&Header { buf_alloc: room, fwd_cnt: forwarded, ..Header::default() });
            prop_assert!(connection.credit() <= room);
        }
    }
}
