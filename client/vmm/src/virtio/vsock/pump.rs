//! Carries packets between the queues and the connections.

use std::os::fd::AsFd;

use super::handle::Handle;
use super::header::{HEADER_BYTES, Header};
use super::table::{Ports, Table};
use super::{Connector, MOST_BYTES};
use crate::event::Event;
use crate::virtio::segments::Segments;
use crate::virtio::{BadChain, Chain, DeviceQueue, Interest, wait};

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// The queues of a device at work.
pub(super) struct Pump {
    pub(super) rx: DeviceQueue,
    pub(super) tx: DeviceQueue,
    pub(super) events: DeviceQueue,
    pub(super) table: Table,
    pub(super) handle: Handle,
    /// One packet of the guest.
    pub(super) packet: Vec<u8>,
    /// The bytes of one packet to the guest.
    pub(super) bytes: Box<[u8]>,
    /// Whether the guest is to be told that its connections are gone.
    pub(super) reset_due: bool,
}

/// What a queue waits for before it can go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Nothing: its round is over, the others have their turn.
    Next,
    /// The guest, that it makes a chain available.
    Guest,
    /// Something else of the device.
    Others,
}

impl Pump {
    /// Carries packets until it is told to stop.
    pub(super) fn run(&mut self, stop: &Event, connector: &mut dyn Connector) {
        loop {
            self.take_asked();
            let hearing = self.hear_round(connector);
            let telling = self.tell_round();
            let events = self.event_round();
            // A guest that was not heard for its answers may have fetched them just now.
            let at_once = hearing == Until::Next
                || telling == Until::Next
                || (hearing == Until::Others && !self.table.is_deaf());
            let waits = |until| until == Until::Guest;
            let mut interests = vec![
                Interest { source: self.handle.as_fd(), read: true, write: false },
                Interest { source: self.tx.as_fd(), read: waits(hearing), write: false },
                Interest { source: self.rx.as_fd(), read: waits(telling), write: false },
                Interest { source: self.events.as_fd(), read: waits(events), write: false },
            ];
            let queues = interests.len();
            let (ports, sockets): (Vec<Ports>, Vec<Interest<'_>>) =
                self.table.interests(telling != Until::Guest).unzip();
            interests.extend(sockets);
            let Some(ready) = wait(stop, &interests, at_once) else { return };
            for (ports, ready) in ports.into_iter().zip(ready.into_iter().skip(queues)) {
                self.table.set_ready(ports, ready);
            }
        }
    }

    fn take_asked(&mut self) {
        let asked = self.handle.take();
        if asked.transport_reset {
            self.table.clear();
            self.reset_due = true;
        }
        for (port, socket) in asked.connections {
            self.table.ask(port, socket);
        }
    }

    /// Hears at most one round of what the guest sent.
    fn hear_round(&mut self, connector: &mut dyn Connector) -> Until {
        self.tx.acknowledge();
        let mut pushed = false;
        let mut until = Until::Next;
        for _ in 0..self.tx.size() {
            if self.table.is_deaf() {
                until = Until::Others;
                break;
            }
            let Some(chain) = self.tx.pop() else {
                self.tx.rearm();
                until = Until::Guest;
                break;
            };
            if let Err(bad) = self.hear(&chain, connector) {
                tracing::debug!(%bad, "a packet of the guest is dropped");
            }
            self.tx.push(chain.head_index(), 0);
            pushed = true;
        }
        if pushed {
            self.tx.tell();
        }
        until
    }

    fn hear(&mut self, chain: &Chain, connector: &mut dyn Connector) -> Result<(), BadChain> {
        let parts = Segments::to_read(chain)?;
        parts.read(self.tx.memory(), &mut self.packet, HEADER_BYTES + MOST_BYTES)?;
        let (header, rest) = self.packet.split_first_chunk::<HEADER_BYTES>().ok_or(BadChain::TooShort)?;
        let header = Header::parse(header);
        // The header names a length and the chain has one: only what both have is there.
        let length = usize::try_from(header.len).map_err(|_| BadChain::TooShort)?;
        let bytes = rest.get(..length).ok_or(BadChain::TooShort)?;
        self.table.hear(&header, bytes, connector);
        Ok(())
    }

    /// Tells the guest at most one round of what there is for it.
    fn tell_round(&mut self) -> Until {
        self.rx.acknowledge();
        let mut pushed = false;
        let mut until = Until::Next;
        for _ in 0..self.rx.size() {
            if !self.table.has_news() {
                until = Until::Others;
                break;
            }
            let Some(chain) = self.rx.pop() else {
                self.rx.rearm();
                until = Until::Guest;
                break;
            };
            let written = match self.tell(&chain) {
                Ok(Some(written)) => written,
                Ok(None) => {
                    self.rx.unpop();
                    until = Until::Others;
                    break;
                }
                Err(bad) => {
                    tracing::debug!(%bad, "a buffer of the guest cannot be used");
                    0
                }
            };
            self.rx.push(chain.head_index(), written);
            pushed = true;
        }
        if pushed {
            self.rx.tell();
        }
        until
    }

    /// Writes the next packet into a chain; the bytes written, `None` when there was no packet after all.
    fn tell(&mut self, chain: &Chain) -> Result<Option<u32>, BadChain> {
        let parts = Segments::to_write(chain)?;
        let room = usize::try_from(parts.bytes()).unwrap_or(usize::MAX);
        let room = room.saturating_sub(HEADER_BYTES).min(self.bytes.len());
        if room == 0 {
            return Err(BadChain::TooShort);
        }
        let Some((header, length)) = self.table.next(&mut self.bytes[..room]) else { return Ok(None) };
        parts.write(self.rx.memory(), &[&header.to_bytes(), &self.bytes[..length]]).map(Some)
    }

    /// Tells the guest of a reset that is due.
    fn event_round(&mut self) -> Until {
        self.events.acknowledge();
        // A chain that cannot be used is given back; there are no more of them than entries.
        for _ in 0..self.events.size() {
            if !self.reset_due {
                break;
            }
            let Some(chain) = self.events.pop() else {
                self.events.rearm();
                return Until::Guest;
            };
            let written = Segments::to_write(&chain)
                .and_then(|parts| parts.write(self.events.memory(), &[&TRANSPORT_RESET]));
            self.reset_due = written.is_err();
            self.events.push(chain.head_index(), written.unwrap_or(0));
            self.events.tell();
        }
        if self.reset_due { Until::Guest } else { Until::Others }
    }
}
