//! Carries frames between two queues and the other side.

use std::error::Error;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::LinkState;
use super::frames::{Frames, LONGEST_FRAME, LinkLost, Return, SHORTEST_FRAME};
use super::header::{HEADER_BYTES, RECEIVED, frame_of};
use crate::event::Event;
use crate::virtio::segments::Segments;
use crate::virtio::{BadChain, Chain, DeviceQueue, GuestMemory, Interest, Interrupt, wait};

/// What one direction waits for before it can go on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Nothing: its round is over, the other direction has its turn.
    Next,
    /// The guest, that it makes a chain available.
    Guest,
    /// The other side.
    Peer,
    /// Nothing ever.
    Never,
}

/// The two queues of a device at work.
pub(super) struct Pump {
    pub(super) rx: DeviceQueue,
    pub(super) tx: DeviceQueue,
    pub(super) link: LinkState,
    pub(super) interrupt: Arc<dyn Interrupt>,
    pub(super) packet: Vec<u8>,
}

impl Pump {
    /// Carries frames until it is told to stop.
    pub(super) fn run(&mut self, stop: &Event, frames: &mut dyn Frames) {
        loop {
            let sending = self.send_round(frames).unwrap_or_else(|lost| self.lose_link(&lost));
            let receiving = self.receive_round(frames).unwrap_or_else(|lost| self.lose_link(&lost));
            let interests = [
                Interest { source: self.rx.as_fd(), read: receiving == Until::Guest, write: false },
                Interest { source: self.tx.as_fd(), read: sending == Until::Guest, write: false },
                Interest {
                    source: frames.descriptor(),
                    read: receiving == Until::Peer,
                    write: sending == Until::Peer,
                },
            ];
            let at_once = sending == Until::Next || receiving == Until::Next;
            if wait(stop, &interests, at_once).is_none() {
                return;
            }
        }
    }

    /// Takes the link down, which is said once. Each direction then looks again what to do.
    fn lose_link(&self, lost: &LinkLost) -> Until {
        if self.link.take_down() {
            tracing::warn!(error = lost as &dyn Error, "the guest has no network any more");
            self.interrupt.config_changed();
        }
        Until::Next
    }

    /// Sends at most one round of the queue. What the other side does not take now stays in the queue.
    fn send_round(&mut self, frames: &mut dyn Frames) -> Result<Until, LinkLost> {
        self.tx.acknowledge();
        let mut pushed = false;
        let mut outcome = Ok(Until::Next);
        for _ in 0..self.tx.size() {
            let up = self.link.is_up();
            if up {
                match frames.flush() {
                    Ok(true) => {}
                    Ok(false) => {
                        outcome = Ok(Until::Peer);
                        break;
                    }
                    Err(lost) => {
                        outcome = Err(lost);
                        break;
                    }
                }
            }
            let Some(chain) = self.tx.pop() else {
                self.tx.rearm();
                outcome = Ok(Until::Guest);
                break;
            };
            let sent = if up { self.send_one(&chain, frames) } else { Ok(()) };
            self.tx.push(chain.head_index(), 0);
            pushed = true;
            if sent.is_err() {
                outcome = sent.map(|()| Until::Next);
                break;
            }
        }
        if pushed {
            self.tx.tell();
        }
        outcome
    }

    fn send_one(&mut self, chain: &Chain, frames: &mut dyn Frames) -> Result<(), LinkLost> {
        let memory = self.tx.memory();
        let read = Segments::to_read(chain)
            .and_then(|parts| parts.read(memory, &mut self.packet, HEADER_BYTES + LONGEST_FRAME));
        match read.map(|()| frame_of(&self.packet)) {
            Ok(Some(frame)) if frame.len() >= SHORTEST_FRAME => frames.send(frame),
            Ok(_) => {
                tracing::debug!("a packet of the guest is no frame");
                Ok(())
            }
            Err(bad) => {
                tracing::debug!(%bad, "a frame of the guest is dropped");
                Ok(())
            }
        }
    }

    /// Receives at most one round of the queue. Without a chain the frames stay where they are.
    fn receive_round(&mut self, frames: &mut dyn Frames) -> Result<Until, LinkLost> {
        if !self.link.is_up() {
            match frames.reconnect() {
                Return::Now => {
                    tracing::info!("the guest has a network again");
                    self.link.bring_up();
                    self.interrupt.config_changed();
                }
                Return::Later => return Ok(Until::Peer),
                Return::Never => return Ok(Until::Never),
            }
        }
        self.rx.acknowledge();
        let mut pushed = false;
        let mut outcome = Ok(Until::Next);
        for _ in 0..self.rx.size() {
            let frame = match frames.receive() {
                Ok(Some(frame)) => frame,
                Ok(None) => {
                    outcome = Ok(Until::Peer);
                    break;
                }
                Err(lost) => {
                    outcome = Err(lost);
                    break;
                }
            };
            if frame.len() >= SHORTEST_FRAME {
                let Some(chain) = self.rx.pop() else {
                    self.rx.rearm();
                    outcome = Ok(Until::Guest);
                    break;
                };
                let written = receive_one(self.rx.memory(), &chain, frame).unwrap_or_else(|bad| {
                    tracing::debug!(%bad, "a frame for the guest is dropped");
                    0
                });
                self.rx.push(chain.head_index(), written);
                pushed = true;
            }
            frames.received();
        }
        if pushed {
            self.rx.tell();
        }
        outcome
    }
}

/// Writes one frame into a chain; the bytes written. A chain that is too short gets nothing of it.
fn receive_one(memory: &GuestMemory, chain: &Chain, frame: &[u8]) -> Result<u32, BadChain> {
    Segments::to_write(chain)?.write(memory, &[&RECEIVED, frame])
}
