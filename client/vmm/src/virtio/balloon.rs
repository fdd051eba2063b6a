//! The memory balloon (section 5.5): the guest's memory that it does without, back to the host.
//!
//! Pages come back in two ways. The host names a target and the guest gives that many pages away (inflate, deflate), and of
//! itself the guest reports pages that are free (free page reporting). Either way the pages stay the guest's: they read as
//! zeros, or whatever the guest writes, from then on.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{
    ActivateError, Activation, DeviceQueue, Interrupt, Role, VirtioDevice, Worker, read_config_bytes,
    wait_readable,
};
use crate::event::Event;

mod discard;
mod requests;

#[cfg(test)]
mod tests;

use requests::{deflate, inflate, report, serve};

const DEVICE_TYPE: u32 = 5;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
/// Section 5.5.2 says 4, with two queues before it that this device does not offer. Drivers number only the queues there
/// are.
const REPORTING: u16 = 2;
const QUEUE_SIZES: [u16; 3] = [128, 128, 32];

/// `VIRTIO_BALLOON_F_DEFLATE_ON_OOM`: a guest short of memory takes pages back.
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// `VIRTIO_BALLOON_F_PAGE_REPORTING`: the guest reports free pages.
const F_REPORTING: u64 = 1 << 5;

/// Where `actual` lies in the configuration space, behind `num_pages`.
const ACTUAL: u64 = 4;
const CONFIG_BYTES: usize = 8;

/// Pages of the guest, 4 KiB each whatever the host's page is.
pub const PAGE_BYTES: u64 = 4 << 10;

/// The configuration space.
struct Config {
    target: AtomicU32,
    actual: AtomicU32,
    changed: Event,
}

/// Gives the guest's memory back to the host.
pub struct Balloon {
    config: Arc<Config>,
    worker: Option<Worker>,
}

/// Tells a balloon how much to take.
#[derive(Clone)]
pub struct BalloonHandle(Arc<Config>);

impl BalloonHandle {
    /// The guest is to do without this many pages of 4 KiB. It follows when it likes, or not at all.
    pub fn target(&self, pages: u32) {
        self.0.target.store(pages, Ordering::SeqCst);
        self.0.changed.signal();
    }

    /// The pages the guest says it does without.
    pub fn actual(&self) -> u32 {
        self.0.actual.load(Ordering::SeqCst)
    }
}

impl Balloon {
    /// A balloon that takes nothing yet.
    ///
    /// # Errors
    /// No descriptor is to be had.
    pub fn new() -> io::Result<Balloon> {
        let changed = Event::new()?;
        let config = Config { target: AtomicU32::new(0), actual: AtomicU32::new(0), changed };
        Ok(Balloon { config: Arc::new(config), worker: None })
    }

    /// What sets its target.
    pub fn handle(&self) -> BalloonHandle {
        BalloonHandle(Arc::clone(&self.config))
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let target = self.config.target.load(Ordering::SeqCst).to_le_bytes();
        let actual = self.config.actual.load(Ordering::SeqCst).to_le_bytes();
        let mut config = [0; CONFIG_BYTES];
        config[..4].copy_from_slice(&target);
        config[4..].copy_from_slice(&actual);
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut actual = self.config.actual.load(Ordering::SeqCst).to_le_bytes();
        for (at, byte) in (ACTUAL..).zip(&mut actual) {
            let index = at.checked_sub(offset).and_then(|index| usize::try_from(index).ok());
            if let Some(written) = index.and_then(|index| data.get(index)) {
                *byte = *written;
            }
        }
        self.config.actual.store(u32::from_le_bytes(actual), Ordering::SeqCst);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let queues = Queues {
            inflate: activation.take_queue(INFLATE)?,
            deflate: activation.take_queue(DEFLATE)?,
            reporting: if activation.features & F_REPORTING == 0 {
                None
            } else {
                Some(activation.take_queue(REPORTING)?)
            },
        };
        let config = Arc::clone(&self.config);
        let interrupt = activation.interrupt;
        let worker = Worker::start(Role::Balloon, move |stop| run(stop, queues, &config, &*interrupt))
            .map_err(ActivateError::Thread)?;
        self.worker = Some(worker);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
        // Section 5.5.6: a driver that begins anew has all of its pages.
        self.config.actual.store(0, Ordering::SeqCst);
    }
}

struct Queues {
    inflate: DeviceQueue,
    deflate: DeviceQueue,
    reporting: Option<DeviceQueue>,
}

fn run(stop: &Event, mut queues: Queues, config: &Config, interrupt: &dyn Interrupt) {
    loop {
        // A queue that was left out is waited for no more than the one beside it.
        let reporting = queues.reporting.as_ref().unwrap_or(&queues.deflate).as_fd();
        let sources = [config.changed.as_fd(), queues.inflate.as_fd(), queues.deflate.as_fd(), reporting];
        let Some([changed, inflates, deflates, reports]) = wait_readable(stop, sources) else { return };
        if changed && config.changed.take() {
            interrupt.config_changed();
        }
        if inflates {
            serve(&mut queues.inflate, inflate);
        }
        if deflates {
            serve(&mut queues.deflate, deflate);
        }
        if let (true, Some(queue)) = (reports, queues.reporting.as_mut()) {
            serve(queue, report);
        }
    }
}
