//! The console (section 5.3): a terminal for the guest, or none, and named ports beside it that carry streams.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{ActivateError, Activation, DeviceQueue, Role, VirtioDevice, Worker, read_config_bytes};
use crate::event::Event;

mod control;
mod end;
mod host;
mod line;
mod serve;

#[cfg(test)]
mod tests;

use control::{Conversation, Size};
use host::Host;
use line::Line;
use serve::{Control, Service};

const DEVICE_TYPE: u32 = 3;
/// `VIRTIO_CONSOLE_F_SIZE`: the terminal's size is known.
const F_SIZE: u64 = 1;
/// `VIRTIO_CONSOLE_F_MULTIPORT`: there may be more than one port, and a conversation about them.
const F_MULTIPORT: u64 = 1 << 1;

/// The queues of the conversation lie behind those of port 0.
const CONTROL: u16 = 2;
const PORT_QUEUE_SIZE: u16 = 64;
const CONTROL_QUEUE_SIZE: u16 = 32;
/// The ports of a console at most, as elsewhere.
const PORTS: usize = 31;
/// The bytes of a port's name at most.
const NAME_BYTES: usize = 128;

/// What port 0 is connected to. Either may be a terminal, a pipe, a socket or a file.
pub struct Stdio {
    /// Where what the guest reads comes from. When it ends, nothing but the input ends.
    pub input: OwnedFd,
    /// Where what the guest writes goes. When it is closed, what the guest writes is dropped.
    pub output: OwnedFd,
}

/// What a named port is connected to: stream sockets.
pub enum Peer {
    /// This one, until its other end is closed.
    Connected(OwnedFd),
    /// Whoever connects to this one, one at a time.
    Listening(OwnedFd),
}

impl AsRawFd for Peer {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Peer::Connected(socket) | Peer::Listening(socket) => socket.as_raw_fd(),
        }
    }
}

/// A named port, `/dev/virtio-ports/<name>` in a Linux guest.
pub struct Port {
    /// Its name, such as `org.qemu.guest_agent.0`.
    pub name: String,
    /// What it is connected to.
    pub peer: Peer,
}

/// Why there is no console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// More ports than a console has.
    #[error("a console of {ports} ports, where {PORTS} is the most")]
    TooManyPorts {
        /// How many, the console's own among them.
        ports: usize,
    },
    /// A name that is no name.
    #[error("a port's name has 1 to {NAME_BYTES} bytes and no NUL, not {name:?}")]
    Name {
        /// The name.
        name: String,
    },
    /// A descriptor is not what it should be.
    #[error("port {port} of a console cannot be connected")]
    Connect {
        /// Its number.
        port: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No descriptor is to be had.
    #[error("no event for a console")]
    Event(#[source] io::Error),
}

/// The terminal's size, and that it changed.
struct Terminal {
    size: AtomicU32,
    changed: Event,
}

impl Terminal {
    fn size(&self) -> Size {
        let [a, b, c, d] = self.size.load(Ordering::SeqCst).to_le_bytes();
        Size { cols: u16::from_le_bytes([a, b]), rows: u16::from_le_bytes([c, d]) }
    }
}

/// Tells a console of its terminal.
#[derive(Clone)]
pub struct ConsoleHandle(Arc<Terminal>);

impl ConsoleHandle {
    /// The terminal has this size. Until it is said the first time the guest knows of none.
    pub fn resize(&self, cols: u16, rows: u16) {
        let size = u32::from(rows) << 16 | u32::from(cols);
        self.0.size.store(size, Ordering::SeqCst);
        self.0.changed.signal();
    }
}

/// A console with its ports.
pub struct Console {
    terminal: Arc<Terminal>,
    has_terminal: bool,
    /// The ports' names in order; that of port 0 is empty.
    names: Vec<String>,
    queue_sizes: Vec<u16>,
    /// The host's ends. The thread holds them while there is one.
    hosts: Arc<Mutex<Vec<Host>>>,
    worker: Option<Worker>,
}

impl Console {
    /// A console with a terminal at port 0 and these ports behind it; without a terminal the guest is told of the ports alone,
    /// unless its driver knows port 0 only. To be made before the process gives up opening files: a terminal is opened once
    /// more, so that others who use it are not disturbed.
    ///
    /// # Errors
    /// There are too many ports, a name is none, or a descriptor is not what it should be.
    pub fn new(stdio: Option<Stdio>, ports: Vec<Port>) -> Result<Console, ConsoleError> {
        let count = ports.len().saturating_add(1);
        if count > PORTS {
            return Err(ConsoleError::TooManyPorts { ports: count });
        }
        let connect =
            |port, host: io::Result<Host>| host.map_err(|source| ConsoleError::Connect { port, source });
        let mut names = vec![String::new()];
        let has_terminal = stdio.is_some();
        let mut hosts = vec![match stdio {
            Some(Stdio { input, output }) => connect(0, Host::stdio(input, output))?,
            None => Host::nobody(),
        }];
        let mut queue_sizes = vec![PORT_QUEUE_SIZE, PORT_QUEUE_SIZE, CONTROL_QUEUE_SIZE, CONTROL_QUEUE_SIZE];
        for Port { name, peer } in ports {
            if name.is_empty() || name.len() > NAME_BYTES || name.contains('\0') {
                return Err(ConsoleError::Name { name });
            }
            let host = match peer {
                Peer::Connected(stream) => Host::stream(stream),
                Peer::Listening(listener) => Host::listener(listener),
            };
            hosts.push(connect(hosts.len(), host)?);
            names.push(name);
            queue_sizes.extend([PORT_QUEUE_SIZE; 2]);
        }
        let changed = Event::new().map_err(ConsoleError::Event)?;
        let terminal = Arc::new(Terminal { size: AtomicU32::new(0), changed });
        let hosts = Arc::new(Mutex::new(hosts));
        Ok(Console { terminal, has_terminal, names, queue_sizes, hosts, worker: None })
    }

    /// What tells it of its terminal.
    pub fn handle(&self) -> ConsoleHandle {
        ConsoleHandle(Arc::clone(&self.terminal))
    }

    /// Takes the queues that the driver uses.
    fn service(&self, activation: &mut Activation) -> Result<Service, ActivateError> {
        let several = activation.features & F_MULTIPORT != 0;
        let port0 = Line::new(activation.take_queue(0)?, activation.take_queue(1)?, !several);
        let mut lines = vec![Some(port0)];
        let mut control = None;
        if several {
            let sizes = activation.features & F_SIZE != 0;
            control = Some(Control {
                receive: activation.take_queue(CONTROL)?,
                transmit: activation.take_queue(CONTROL + 1)?,
                conversation: Conversation::new(&self.names, self.has_terminal, sizes),
                starved: false,
            });
            let mut rest = activation.queues.drain(..).skip(usize::from(CONTROL) + 2);
            while let (Some(receive), Some(transmit)) = (rest.next(), rest.next()) {
                lines.push(line(receive, transmit));
            }
        }
        Ok(Service { lines, control })
    }
}

fn line(receive: Option<DeviceQueue>, transmit: Option<DeviceQueue>) -> Option<Line> {
    Some(Line::new(receive?, transmit?, false))
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        F_SIZE | F_MULTIPORT
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let size = self.terminal.size();
        let ports = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        let mut config = [0; 8];
        config[..2].copy_from_slice(&size.cols.to_le_bytes());
        config[2..4].copy_from_slice(&size.rows.to_le_bytes());
        config[4..].copy_from_slice(&ports.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let mut service = self.service(&mut activation)?;
        let terminal = Arc::clone(&self.terminal);
        let hosts = Arc::clone(&self.hosts);
        let interrupt = activation.interrupt;
        let worker = Worker::start(Role::Console, move |stop| {
            let mut hosts = hosts.lock().unwrap_or_else(PoisonError::into_inner);
            service.run(stop, &mut hosts, &terminal, &*interrupt);
        })
        .map_err(ActivateError::Thread)?;
        self.worker = Some(worker);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}
