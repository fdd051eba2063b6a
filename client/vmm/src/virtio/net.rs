//! The network device (section 5.1): frames of the guest, to and from a program that was given to it as a descriptor.
//!
//! It offers an address, the state of its link and perhaps an MTU; no checksums, no segments, no merged buffers, no control
//! queue. When the other side is gone the link is down, until another one comes where one can.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS};

use super::{ActivateError, Activation, Role, VirtioDevice, Worker, read_config_bytes};

mod exchange;
mod frames;
mod header;
mod passt;
mod pump;
mod tap;

pub use exchange::Exchange;
pub use frames::{Frames, LONGEST_FRAME, LinkLost, Return, SHORTEST_FRAME};
pub use passt::Stream;
pub use tap::Tap;

use pump::Pump;

/// Frames for the guest.
const RX: u16 = 0;
/// Frames of the guest.
const TX: u16 = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];
/// `VIRTIO_NET_S_LINK_UP`: a bit of the status.
const LINK_UP: u16 = 1;
/// The least MTU a device may give (section 5.1.4.1).
const LEAST_MTU: u16 = 68;

/// Whether the link is up. Clones see the same.
#[derive(Clone, Debug)]
pub struct LinkState(Arc<AtomicBool>);

impl LinkState {
    /// Whether frames can be carried.
    pub fn is_up(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Takes it down; whether it was up.
    fn take_down(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }

    fn bring_up(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// A network device.
pub struct Net {
    mac: [u8; 6],
    mtu: Option<u16>,
    link: LinkState,
    /// Held by the thread for as long as it runs: what was begun with one driver must be finished with the next.
    frames: Arc<Mutex<Box<dyn Frames>>>,
    worker: Option<Worker>,
}

impl Net {
    /// A device with this address, which is to be a locally administered one, and an MTU of at least 68 bytes if the guest
    /// is to be told one.
    pub fn new(mac: [u8; 6], mtu: Option<u16>, frames: Box<dyn Frames>) -> Net {
        Net {
            mac,
            mtu: mtu.map(|mtu| mtu.max(LEAST_MTU)),
            link: LinkState(Arc::new(AtomicBool::new(frames.is_connected()))),
            frames: Arc::new(Mutex::new(frames)),
            worker: None,
        }
    }

    /// The state of its link, to be asked at any time.
    pub fn link(&self) -> LinkState {
        self.link.clone()
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let mtu = if self.mtu.is_some() { 1 << VIRTIO_NET_F_MTU } else { 0 };
        1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS | mtu
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_net_config: mac, status, max_virtqueue_pairs (which nobody offers), mtu.
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[6..8].copy_from_slice(&if self.link.is_up() { LINK_UP } else { 0 }.to_le_bytes());
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let mut pump = Pump {
            rx: activation.take_queue(RX)?,
            tx: activation.take_queue(TX)?,
            link: self.link.clone(),
            interrupt: activation.interrupt,
            packet: Vec::new(),
        };
        let frames = Arc::clone(&self.frames);
        let body = move |stop: &_| {
            let mut frames = frames.lock().unwrap_or_else(PoisonError::into_inner);
            pump.run(stop, &mut **frames);
        };
        self.worker = Some(Worker::start(Role::Network, body).map_err(ActivateError::Thread)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

#[cfg(test)]
mod tests;
