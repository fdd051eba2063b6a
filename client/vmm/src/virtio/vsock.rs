//! The socket device (section 5.10): streams between ports of the guest and sockets of the host.
//!
//! A connection of the guest to a port of the host becomes what a [`Connector`] gives for that port; a connection to a port
//! of the guest comes as a socket by [`Handle::connect`]. The device opens nothing itself. What it holds is bounded: so many
//! connections, and for each so many bytes, which the credit of the protocol enforces on both sides.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;

use super::{ActivateError, Activation, Role, VirtioDevice, Worker, read_config_bytes};

mod connection;
mod handle;
mod header;
mod pump;
mod table;

pub use handle::{Handle, TooManyWaiting};

use pump::Pump;
use table::Table;

/// Packets for the guest.
const RX: u16 = 0;
/// Packets of the guest.
const TX: u16 = 1;
/// Events for the guest.
const EVENTS: u16 = 2;
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// Bytes of the longest packet either way, without its header.
const MOST_BYTES: usize = 64 << 10;
/// The first identifier that is free for a guest (section 5.10.4).
const FIRST_GUEST_CID: u32 = 3;

/// Finds who answers at a port of the host.
pub trait Connector: Send {
    /// A connected stream socket for a connection of the guest to this port. Does not wait for long: all connections wait
    /// with it.
    ///
    /// # Errors
    /// Nobody answers there. The guest's connection is refused.
    fn connect(&mut self, port: u32) -> io::Result<OwnedFd>;
}

/// A socket device.
pub struct Vsock {
    cid: u32,
    handle: Handle,
    /// Held by the thread for as long as it runs.
    connector: Arc<Mutex<Box<dyn Connector>>>,
    worker: Option<Worker>,
}

impl Vsock {
    /// A device whose guest has this context identifier.
    ///
    /// # Errors
    /// The identifier is a reserved one (0 to 2, or all ones), or no descriptor is to be had.
    pub fn new(cid: u32, connector: Box<dyn Connector>) -> io::Result<Vsock> {
        if cid < FIRST_GUEST_CID || cid == u32::MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a reserved context identifier"));
        }
        Ok(Vsock { cid, handle: Handle::new()?, connector: Arc::new(Mutex::new(connector)), worker: None })
    }

    /// Asks for connections to the guest.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let mut pump = Pump {
            rx: activation.take_queue(RX)?,
            tx: activation.take_queue(TX)?,
            events: activation.take_queue(EVENTS)?,
            table: Table::new(u64::from(self.cid)),
            handle: self.handle.clone(),
            packet: Vec::new(),
            bytes: vec![0; MOST_BYTES].into_boxed_slice(),
            reset_due: false,
        };
        let connector = Arc::clone(&self.connector);
        let body = move |stop: &_| {
            let mut connector = connector.lock().unwrap_or_else(PoisonError::into_inner);
            pump.run(stop, &mut **connector);
        };
        self.worker = Some(Worker::start(Role::Vsock, body).map_err(ActivateError::Thread)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

#[cfg(test)]
mod tests;
