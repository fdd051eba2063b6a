//! All connections, and what is said about them; knows no queue.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::os::fd::OwnedFd;

use super::Connector;
use super::connection::{Connection, Received};
use super::header::{HOST_CID, Header, STREAM, op};
use crate::virtio::{Interest, Ready};

/// Connections at a time.
pub(super) const MOST_CONNECTIONS: usize = 256;
/// With so many answers that the guest did not fetch, nothing it sends is heard.
const MOST_REPLIES: usize = 256;
/// Ports of the host's ends of connections that the host began: out of the way of those that programs listen at.
const FIRST_PORT: u32 = 1 << 30;
const LAST_PORT: u32 = (1 << 31) - 1;

/// What tells a connection from all others of this guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub(super) guest: u32,
    pub(super) host: u32,
}

/// The connections of one guest.
pub(super) struct Table {
    cid: u64,
    connections: BTreeMap<Ports, Connection>,
    /// Packets without bytes for the guest. The credit is filled in when they go. At most [`MOST_REPLIES`], and a few for
    /// each connection.
    replies: VecDeque<Header>,
    /// The connection that last had its turn.
    last: Ports,
    next_port: u32,
}

impl Table {
    pub(super) fn new(cid: u64) -> Table {
        Table {
            cid,
            connections: BTreeMap::new(),
            replies: VecDeque::new(),
            last: Ports::default(),
            next_port: FIRST_PORT,
        }
    }

    /// Whether the guest must fetch answers before it is heard again.
    pub(super) fn is_deaf(&self) -> bool {
        self.replies.len() >= MOST_REPLIES
    }

    /// Whether there is something for the guest, as far as is known.
    pub(super) fn has_news(&self) -> bool {
        !self.replies.is_empty() || self.connections.values().any(Connection::is_readable)
    }

    /// A packet of the guest.
    pub(super) fn hear(&mut self, header: &Header, bytes: &[u8], connector: &mut dyn Connector) {
        if header.src_cid != self.cid || header.dst_cid != HOST_CID {
            tracing::debug!(
                from = header.src_cid,
                to = header.dst_cid,
                "a packet for somebody else is dropped"
            );
            return;
        }
        let ports = Ports { guest: header.src_port, host: header.dst_port };
        if header.kind != STREAM {
            if header.op != op::RST {
                self.say_kind(ports, header.kind, op::RST, 0);
            }
            return;
        }
        let Some(connection) = self.connections.get_mut(&ports) else {
            match header.op {
                op::REQUEST => self.open(ports, header, connector),
                op::RST => {}
                _ => self.say(ports, op::RST, 0),
            }
            return;
        };
        connection.hear_credit(header);
        match header.op {
            op::RESPONSE if !connection.is_established() => {
                if connection.establish(ports.host).is_err() {
                    self.reset(ports);
                }
            }
            op::RST => self.forget(ports),
            op::SHUTDOWN => {
                connection.shut(header.flags);
                self.flush(ports);
            }
            op::RW => {
                if connection.take(bytes) {
                    self.flush(ports);
                } else {
                    self.reset(ports);
                }
            }
            op::CREDIT_UPDATE => {}
            op::CREDIT_REQUEST => self.say_update(ports),
            _ => self.reset(ports),
        }
    }

    fn open(&mut self, ports: Ports, request: &Header, connector: &mut dyn Connector) {
        if self.connections.len() >= MOST_CONNECTIONS {
            tracing::debug!(port = ports.host, "the guest has too many connections");
            self.say(ports, op::RST, 0);
            return;
        }
        match connector.connect(ports.host) {
            Ok(socket) => {
                self.connections.insert(ports, Connection::new(socket, Some(request)));
                self.say(ports, op::RESPONSE, 0);
            }
            Err(error) => {
                tracing::debug!(port = ports.host, %error, "nobody answers a connection of the guest");
                self.say(ports, op::RST, 0);
            }
        }
    }

    /// Asks the guest for a connection to its port. The socket is closed when it refuses, or when there are too many.
    pub(super) fn ask(&mut self, port: u32, socket: OwnedFd) {
        self.forget_abandoned();
        if self.connections.len() >= MOST_CONNECTIONS {
            tracing::warn!(port, "there are too many connections to the guest");
            return;
        }
        // One more port than there are connections: one of them is free.
        for _ in 0..=MOST_CONNECTIONS {
            let ports = Ports { guest: port, host: self.next_port };
            self.next_port = if self.next_port == LAST_PORT { FIRST_PORT } else { self.next_port + 1 };
            if let Entry::Vacant(free) = self.connections.entry(ports) {
                free.insert(Connection::new(socket, None));
                self.say(ports, op::REQUEST, 0);
                return;
            }
        }
    }

    /// Forgets what the guest was asked for, did not answer, and nobody waits for any more: a guest without a driver for this device
    /// never answers. One that does so late is told that there is no such connection.
    fn forget_abandoned(&mut self) {
        let abandoned = self.connections.iter().filter(|(_, connection)| connection.is_abandoned());
        let abandoned: Vec<Ports> = abandoned.map(|(ports, _)| *ports).collect();
        abandoned.into_iter().for_each(|ports| self.forget(ports));
    }

    /// Ends all connections without a word.
    pub(super) fn clear(&mut self) {
        self.connections.clear();
        self.replies.clear();
    }

    /// Gives the host what it takes of a connection.
    fn flush(&mut self, ports: Ports) {
        let Some(connection) = self.connections.get_mut(&ports) else { return };
        if connection.flush().is_err() || connection.is_over() {
            self.reset(ports);
        } else if connection.owes_update() {
            self.say_update(ports);
        }
    }

    fn say_update(&mut self, ports: Ports) {
        if let Some(connection) = self.connections.get_mut(&ports)
            && !connection.update_due
        {
            connection.update_due = true;
            self.say(ports, op::CREDIT_UPDATE, 0);
        }
    }

    fn reset(&mut self, ports: Ports) {
        self.forget(ports);
        self.say(ports, op::RST, 0);
    }

    /// Ends a connection, and takes back what was to be said about it: the next with these ports is another one.
    fn forget(&mut self, ports: Ports) {
        self.connections.remove(&ports);
        self.replies.retain(|reply| (reply.dst_port, reply.src_port) != (ports.guest, ports.host));
    }

    fn say(&mut self, ports: Ports, op: u16, flags: u32) {
        self.say_kind(ports, STREAM, op, flags);
    }

    fn say_kind(&mut self, ports: Ports, kind: u16, op: u16, flags: u32) {
        self.replies.push_back(Header { kind, flags, ..self.header(ports, op) });
    }

    fn header(&self, ports: Ports, op: u16) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: STREAM,
            op,
            ..Header::default()
        }
    }

    /// The next packet for the guest, and how many of `bytes` belong to it. Answers go first, then each connection has its
    /// turn.
    pub(super) fn next(&mut self, bytes: &mut [u8]) -> Option<(Header, usize)> {
        // Each turn gives a packet, or makes one connection less readable.
        for _ in 0..=2 * MOST_CONNECTIONS {
            if let Some(reply) = self.replies.pop_front() {
                return Some((self.with_credit(reply), 0));
            }
            let ports = self.next_readable()?;
            self.last = ports;
            let connection = self.connections.get_mut(&ports)?;
            match connection.receive(bytes) {
                Ok(Received::Bytes(received)) => {
                    if connection.credit() == 0 && !connection.credit_asked {
                        connection.credit_asked = true;
                        self.say(ports, op::CREDIT_REQUEST, 0);
                    }
                    let len = u32::try_from(received).unwrap_or(u32::MAX);
                    return Some((self.with_credit(Header { len, ..self.header(ports, op::RW) }), received));
                }
                Ok(Received::Nothing) => {}
                Ok(Received::End(flags)) => self.say(ports, op::SHUTDOWN, flags),
                Err(_) => self.reset(ports),
            }
        }
        None
    }

    fn next_readable(&self) -> Option<Ports> {
        let after = self.connections.range((Bound::Excluded(self.last), Bound::Unbounded));
        let others = self.connections.range(..=self.last);
        after.chain(others).find(|(_, connection)| connection.is_readable()).map(|(ports, _)| *ports)
    }

    fn with_credit(&mut self, mut header: Header) -> Header {
        let ports = Ports { guest: header.dst_port, host: header.src_port };
        if let Some(connection) = self.connections.get_mut(&ports) {
            (header.buf_alloc, header.fwd_cnt) = connection.tell_credit();
        }
        header
    }

    /// What to wait for; what the host says only when it could be passed on.
    pub(super) fn interests(&self, passing_on: bool) -> impl Iterator<Item = (Ports, Interest<'_>)> {
        self.connections.iter().map(move |(ports, connection)| (*ports, connection.interest(passing_on)))
    }

    /// What came of waiting.
    pub(super) fn set_ready(&mut self, ports: Ports, ready: Ready) {
        if let Some(connection) = self.connections.get_mut(&ports) {
            connection.set_ready(ready);
            if ready.write {
                self.flush(ports);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_nobody_waits_for_any_more_is_in_nobodys_way() {
        let mut table = Table::new(3);
        for _ in 0..2 * MOST_CONNECTIONS {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            theirs.write_all(b"said too early").unwrap();
            table.ask(1024, ours.into());
        }
        let (ours, _theirs) = UnixStream::pair().unwrap();
        table.ask(1024, ours.into());
        assert_eq!(table.connections.len(), 1);
        let asked = std::iter::from_fn(|| table.next(&mut [])).filter(|(header, _)| header.op == op::REQUEST);
        assert_eq!(asked.count(), 1);
    }
}
