//! One port in use: its two queues and the host's end, and what goes over between them.
//!
//! Nothing is kept here. What the host says stays in its descriptor until the guest gives a buffer, and what the guest says
//! stays in the guest's memory until the host's end takes it.

use super::end::Moved;
use super::host::Host;
use crate::virtio::segments::Segments;
use crate::virtio::{BadChain, Chain, DeviceQueue, GuestMemory};

/// The bytes that go over at once.
const PIECE_BYTES: usize = 16 << 10;
/// The bytes of one chain of the guest at most: as many as a pipe of Linux holds.
const CHAIN_BYTES: u64 = 1 << 20;

/// A port in use.
pub(super) struct Line {
    /// Where what the host says goes.
    pub(super) receive: DeviceQueue,
    /// Where what the guest says comes from.
    pub(super) transmit: DeviceQueue,
    /// The guest has opened the port: what it did not open has no reader.
    pub(super) open: bool,
    /// The guest gave no buffer; it rings when it does.
    pub(super) starved: bool,
    outgoing: Option<Outgoing>,
}

/// A chain that the host's end has not taken all of.
struct Outgoing {
    head: u16,
    segments: Segments,
    done: u64,
}

impl Line {
    /// A port nothing has gone over.
    pub(super) fn new(receive: DeviceQueue, transmit: DeviceQueue, open: bool) -> Line {
        Line { receive, transmit, open, starved: false, outgoing: None }
    }

    /// Whether the guest waits for the host's end.
    pub(super) fn is_blocked(&self) -> bool {
        self.outgoing.is_some()
    }

    /// Moves what the host says, until it says no more or the guest has no segments.
    pub(super) fn receive(&mut self, host: &mut Host) {
        let memory = GuestMemory::clone(self.receive.memory());
        let mut bytes = [0; PIECE_BYTES];
        let mut pushed = false;
        for _ in 0..self.receive.size() {
            let Some(input) = host.input.as_ref().filter(|_| self.open && !self.starved) else { break };
            let Some(chain) = self.receive.pop() else {
                self.starved = true;
                self.receive.rearm();
                break;
            };
            let written = match Segments::to_write(&chain) {
                Ok(segments) => {
                    let room = usize::try_from(segments.bytes()).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
                    match input.read(&mut bytes[..room]) {
                        Moved::Bytes(length) => segments.write_at(&memory, 0, &bytes[..length]),
                        Moved::Nothing => {
                            self.receive.unpop();
                            break;
                        }
                        Moved::Over => {
                            self.receive.unpop();
                            host.input = None;
                            break;
                        }
                    }
                }
                Err(error) => Err(error),
            };
            let written = written.unwrap_or_else(|error| {
                tracing::debug!(%error, "a buffer for a port is returned unused");
                0
            });
            self.receive.push(chain.head_index(), u32::try_from(written).unwrap_or_default());
            pushed = true;
        }
        if pushed {
            self.receive.tell();
        }
    }

    /// Moves what the guest says, until it says no more or the host's end is full. Where nobody is, it is dropped.
    pub(super) fn transmit(&mut self, host: &mut Host) {
        let memory = GuestMemory::clone(self.transmit.memory());
        self.transmit.acknowledge();
        let mut pushed = false;
        for _ in 0..self.transmit.size() {
            let next =
                self.outgoing.take().map_or_else(|| take(&mut self.transmit), |outgoing| Some(Ok(outgoing)));
            let head = match next {
                None => break,
                Some(Err(head)) => head,
                Some(Ok(mut outgoing)) => {
                    if !outgoing.flow(&memory, host) {
                        self.outgoing = Some(outgoing);
                        break;
                    }
                    outgoing.head
                }
            };
            self.transmit.push(head, 0);
            pushed = true;
        }
        if pushed {
            self.transmit.tell();
        }
        // While it is blocked the host's end is what is waited for.
        if !self.is_blocked() {
            self.transmit.rearm();
        }
    }
}

/// The next chain of the guest, or the head of one that is broken.
fn take(queue: &mut DeviceQueue) -> Option<Result<Outgoing, u16>> {
    let chain = queue.pop()?;
    Some(outgoing(&chain).map_err(|error| {
        tracing::debug!(%error, "what the guest says on a port is returned unread");
        chain.head_index()
    }))
}

fn outgoing(chain: &Chain) -> Result<Outgoing, BadChain> {
    let segments = Segments::to_read(chain)?;
    if segments.bytes() > CHAIN_BYTES {
        return Err(BadChain::TooLong);
    }
    Ok(Outgoing { head: chain.head_index(), segments, done: 0 })
}

impl Outgoing {
    /// Moves what goes; whether that was all. A host's end that is over is taken away.
    fn flow(&mut self, memory: &GuestMemory, host: &mut Host) -> bool {
        let mut bytes = [0; PIECE_BYTES];
        loop {
            let Some(output) = &host.output else { return true };
            let Ok(length @ 1..) = self.segments.read_at(memory, self.done, &mut bytes) else { return true };
            match output.write(&bytes[..length]) {
                Moved::Bytes(written) => self.done = self.done.saturating_add(written as u64),
                Moved::Nothing => return false,
                Moved::Over => host.output = None,
            }
        }
    }
}
