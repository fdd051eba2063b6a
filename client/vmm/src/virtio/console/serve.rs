//! The thread of a console: waits for all its queues and the host's ends, and moves what can be moved.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use super::Terminal;
use super::control::{Conversation, HEADER_BYTES};
use super::host::Host;
use super::line::Line;
use crate::event::Event;
use crate::virtio::segments::Segments;
use crate::virtio::{BadChain, Chain, DeviceQueue, GuestMemory, Interrupt};

/// The two queues of the conversation about ports.
pub(super) struct Control {
    pub(super) receive: DeviceQueue,
    pub(super) transmit: DeviceQueue,
    pub(super) conversation: Conversation,
    /// The guest gave no buffer for what is to be said; it rings when it does.
    pub(super) starved: bool,
}

/// What a console serves, from an activation to its reset.
pub(super) struct Service {
    /// One for each port, `None` where the driver left its queues unused.
    pub(super) lines: Vec<Option<Line>>,
    /// `None` for a driver that knows one port only.
    pub(super) control: Option<Control>,
}

/// What there may be something to do for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Stop,
    Resized,
    ControlReceive,
    ControlTransmit,
    Receive(usize),
    Transmit(usize),
    Input(usize),
    Output(usize),
    Listener(usize),
}

impl Service {
    /// Serves until it is told to stop.
    pub(super) fn run(
        &mut self,
        stop: &Event,
        hosts: &mut [Host],
        terminal: &Terminal,
        interrupt: &dyn Interrupt,
    ) {
        loop {
            self.settle(hosts, terminal);
            let Some(news) = wait(&self.sources(stop, hosts, terminal)) else { return };
            for (source, ready) in news {
                match source {
                    Source::Stop => return,
                    Source::Resized => {
                        terminal.changed.take();
                        interrupt.config_changed();
                        if let Some(control) = &mut self.control {
                            control.conversation.resized();
                        }
                    }
                    Source::ControlReceive | Source::ControlTransmit => self.converse(source),
                    Source::Receive(id)
                    | Source::Transmit(id)
                    | Source::Input(id)
                    | Source::Output(id)
                    | Source::Listener(id) => self.serve_port(id, source, ready, hosts),
                }
            }
        }
    }

    /// Brings what follows from the last news about: who is connected, and what the guest is to be told.
    fn settle(&mut self, hosts: &mut [Host], terminal: &Terminal) {
        for (line, host) in self.lines.iter().zip(hosts.iter_mut()) {
            host.close_if_over(line.as_ref().is_some_and(|line| line.open));
        }
        if let Some(control) = &mut self.control {
            let connected: Vec<bool> = hosts.iter().map(Host::is_connected).collect();
            control.speak(&connected, terminal);
        }
    }

    /// What is waited for now, and for what. What cannot be acted on is left out: it would end the wait at once.
    fn sources<'a>(
        &'a self,
        stop: &'a Event,
        hosts: &'a [Host],
        terminal: &'a Terminal,
    ) -> Vec<(Source, BorrowedFd<'a>, PollFlags)> {
        let mut sources = vec![
            (Source::Stop, stop.as_fd(), PollFlags::IN),
            (Source::Resized, terminal.changed.as_fd(), PollFlags::IN),
        ];
        if let Some(control) = &self.control {
            sources.push((Source::ControlTransmit, control.transmit.as_fd(), PollFlags::IN));
            if control.starved {
                sources.push((Source::ControlReceive, control.receive.as_fd(), PollFlags::IN));
            }
        }
        for (id, (line, host)) in self.lines.iter().zip(hosts).enumerate() {
            let Some(line) = line else { continue };
            if line.starved {
                sources.push((Source::Receive(id), line.receive.as_fd(), PollFlags::IN));
            } else if let Some(input) = host.input.as_ref().filter(|_| line.open) {
                sources.push((Source::Input(id), input.as_fd(), PollFlags::IN));
            }
            if !line.is_blocked() {
                sources.push((Source::Transmit(id), line.transmit.as_fd(), PollFlags::IN));
            }
            if let Some(output) = &host.output {
                // Without anything to write it is only asked whether its reader is still there.
                let room = if line.is_blocked() { PollFlags::OUT } else { PollFlags::empty() };
                sources.push((Source::Output(id), output.as_fd(), room));
            }
            // The guest is to know that the last client went before the next one comes.
            let told_open = self.control.as_ref().is_some_and(|control| control.conversation.told_open(id));
            if let Some(listener) = host.listener.as_ref().filter(|_| !host.is_connected() && !told_open) {
                sources.push((Source::Listener(id), listener.as_fd(), PollFlags::IN));
            }
        }
        sources
    }

    fn converse(&mut self, source: Source) {
        let Some(control) = &mut self.control else { return };
        if source == Source::ControlReceive {
            control.receive.acknowledge();
            control.starved = false;
            return;
        }
        control.listen();
        for (id, line) in self.lines.iter_mut().enumerate() {
            if let Some(line) = line {
                line.open = control.conversation.is_open(id);
            }
        }
    }

    fn serve_port(&mut self, id: usize, source: Source, ready: PollFlags, hosts: &mut [Host]) {
        let (Some(Some(line)), Some(host)) = (self.lines.get_mut(id), hosts.get_mut(id)) else { return };
        match source {
            Source::Receive(_) => {
                line.receive.acknowledge();
                line.starved = false;
            }
            Source::Input(_) => line.receive(host),
            Source::Output(_) if ready.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL) => {
                host.output = None;
                line.transmit(host);
            }
            Source::Transmit(_) | Source::Output(_) => line.transmit(host),
            Source::Listener(_) => host.accept(),
            Source::Stop | Source::Resized | Source::ControlReceive | Source::ControlTransmit => {}
        }
    }
}

impl Control {
    /// Hears what the guest says.
    fn listen(&mut self) {
        let memory = GuestMemory::clone(self.transmit.memory());
        let conversation = &mut self.conversation;
        self.transmit.serve(|chain| {
            match message(&memory, chain) {
                Ok(message) => conversation.heard(message),
                Err(error) => tracing::debug!(%error, "what the guest says of ports is returned unread"),
            }
            0
        });
    }

    /// Says what is to be said, as far as the guest gave buffers.
    fn speak(&mut self, connected: &[bool], terminal: &Terminal) {
        if self.starved {
            return;
        }
        let memory = GuestMemory::clone(self.receive.memory());
        let mut pushed = false;
        let mut left = self.receive.size();
        while let Some(message) = self.conversation.next(connected, terminal.size()) {
            let chain = if left == 0 { None } else { self.receive.pop() };
            let Some(chain) = chain else {
                self.starved = true;
                self.receive.rearm();
                break;
            };
            left -= 1;
            let written = match say(&memory, &chain, &message.bytes()) {
                Ok(written) => {
                    self.conversation.said(&message);
                    written
                }
                Err(error) => {
                    tracing::debug!(%error, "a buffer for news of ports is returned unused");
                    0
                }
            };
            self.receive.push(chain.head_index(), written);
            pushed = true;
        }
        if pushed {
            self.receive.tell();
        }
    }
}

fn message(memory: &GuestMemory, chain: &Chain) -> Result<[u8; HEADER_BYTES], BadChain> {
    let mut message = [0; HEADER_BYTES];
    match Segments::to_read(chain)?.read_at(memory, 0, &mut message)? {
        HEADER_BYTES => Ok(message),
        _ => Err(BadChain::TooShort),
    }
}

fn say(memory: &GuestMemory, chain: &Chain, bytes: &[u8]) -> Result<u32, BadChain> {
    Segments::to_write(chain)?.write(memory, &[bytes])
}

/// Which sources have news. `None` when they cannot be waited for.
fn wait(sources: &[(Source, BorrowedFd<'_>, PollFlags)]) -> Option<Vec<(Source, PollFlags)>> {
    let mut polled: Vec<PollFd<'_>> =
        sources.iter().map(|(_, descriptor, flags)| PollFd::from_borrowed_fd(*descriptor, *flags)).collect();
    match rustix::event::poll(&mut polled, None) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => {
            tracing::error!(%error, "a console cannot wait for its queues and stops");
            return None;
        }
    }
    let news = sources.iter().zip(&polled).map(|((source, ..), polled)| (*source, polled.revents()));
    Some(news.filter(|(_, ready)| !ready.is_empty()).collect())
}
