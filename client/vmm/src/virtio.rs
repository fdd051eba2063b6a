//! Virtio devices (Virtual I/O Device 1.2), free of any transport.
//!
//! A device says what it offers and is handed its queues once the driver is ready. From then on a thread of its own serves
//! them, until the driver resets it.

use std::io;
use std::sync::Arc;

pub mod balloon;
pub mod blk;
pub mod console;
mod crew;
pub mod mmio;
pub mod net;
mod queue;
pub mod rng;
mod segments;
pub mod vsock;
mod worker;

#[cfg(any(test, feature = "driver"))]
pub mod driver;
#[cfg(any(test, feature = "driver"))]
pub mod hostile;

pub use crate::guest_memory::GuestMemory;
pub use queue::{BadChain, Chain, DeviceQueue};
pub use worker::{Interest, Ready, Role, Worker, start_threads_from_here, wait, wait_readable};

/// `VIRTIO_F_VERSION_1`: every device is a modern one.
pub const VERSION_1: u64 = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
/// `VIRTIO_RING_F_EVENT_IDX`: each side says from which entry on it wants to be told.
pub const EVENT_IDX: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
/// `VIRTIO_RING_F_INDIRECT_DESC`: a chain may lie in a table of its own.
pub const INDIRECT_DESC: u64 = 1 << virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;

/// How a device tells its driver that there is news. Owned by the transport.
pub trait Interrupt: Send + Sync {
    /// Buffers of the queue were used.
    fn queue_used(&self, queue: u16);
    /// The configuration space changed.
    fn config_changed(&self);
}

/// What a device gets to work with when its driver is ready.
pub struct Activation {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The features both sides agreed on.
    pub features: u64,
    /// The queues, in the order of [`VirtioDevice::queue_sizes`]; `None` where the driver left one unused.
    pub queues: Vec<Option<DeviceQueue>>,
    /// Tells the driver of news that belongs to no queue.
    pub interrupt: Arc<dyn Interrupt>,
}

impl Activation {
    /// Takes a queue that the device cannot work without.
    ///
    /// # Errors
    /// The driver left it unused, or it was taken before.
    pub fn take_queue(&mut self, queue: u16) -> Result<DeviceQueue, ActivateError> {
        self.queues.get_mut(usize::from(queue)).and_then(Option::take).ok_or(ActivateError::NoQueue { queue })
    }
}

/// Why a device cannot begin. The driver sees `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver did not set up a queue that is needed.
    #[error("the driver did not set up queue {queue}")]
    NoQueue {
        /// Its index.
        queue: u16,
    },
    /// A thread or a descriptor could not be made.
    #[error("no thread for the device")]
    Thread(#[source] io::Error),
}

/// A virtio device.
pub trait VirtioDevice: Send {
    /// The device type: section 5 of the specification.
    fn device_type(&self) -> u32;

    /// The largest size of each queue, a power of two.
    fn queue_sizes(&self) -> &[u16];

    /// What the device offers besides [`VERSION_1`], [`EVENT_IDX`] and [`INDIRECT_DESC`], which the transport adds.
    fn features(&self) -> u64 {
        0
    }

    /// Reads the configuration space; what lies past its end reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let _ = offset;
        data.fill(0);
    }

    /// Writes the configuration space; what cannot be written is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Begins to serve the queues. Called once between two resets.
    ///
    /// # Errors
    /// The device cannot work with what the driver set up.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops; when this returns, nothing of the device touches the guest's memory or interrupts it any more, and it can be
    /// activated again.
    fn reset(&mut self);
}

/// Copies the part of a configuration space that was asked for; zeros past its end.
pub fn read_config_bytes(config: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|offset| config.get(offset..)).unwrap_or_default();
    let length = rest.len().min(data.len());
    data[..length].copy_from_slice(&rest[..length]);
}
