//! The entropy device (section 5.4): the kernel's random bytes for the guest.

use std::os::fd::AsFd as _;

use rustix::io::Errno;
use rustix::rand::GetRandomFlags;

use super::segments::Segments;
use super::{
    ActivateError, Activation, BadChain, Chain, DeviceQueue, GuestMemory, Role, VirtioDevice, Worker,
    wait_readable,
};

#[cfg(test)]
mod tests;

const DEVICE_TYPE: u32 = 4;
const QUEUE_SIZES: [u16; 1] = [64];
/// The random bytes one chain gets at most: a driver asks again for more.
const CHAIN_BYTES: u64 = 64 << 10;
/// The bytes the kernel is asked for at once.
const PIECE_BYTES: usize = 4 << 10;

/// Gives random bytes. It holds nothing.
#[derive(Default)]
pub struct Rng {
    worker: Option<Worker>,
}

impl Rng {
    /// A device that was not activated.
    pub fn new() -> Rng {
        Rng::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), ActivateError> {
        let mut queue = activation.take_queue(0)?;
        let worker = Worker::start(Role::Random, move |stop| {
            while wait_readable(stop, [queue.as_fd()]).is_some() {
                serve(&mut queue);
            }
        })
        .map_err(ActivateError::Thread)?;
        self.worker = Some(worker);
        Ok(())
    }

    fn reset(&mut self) {
        self.worker = None;
    }
}

/// Fills what is available now.
fn serve(queue: &mut DeviceQueue) {
    let memory = GuestMemory::clone(queue.memory());
    queue.serve(|chain| {
        fill(&memory, chain).unwrap_or_else(|error| {
            tracing::debug!(%error, "a request for random bytes is returned unused");
            0
        })
    });
}

/// Fills the buffers of one chain; how many bytes. Section 5.4.6.2: some are enough, never none.
fn fill(memory: &GuestMemory, chain: &Chain) -> Result<u32, BadChain> {
    let segments = Segments::to_write(chain)?;
    let total = segments.bytes().min(CHAIN_BYTES);
    let mut written = 0;
    let mut bytes = [0; PIECE_BYTES];
    while written < total {
        let most = usize::try_from(total - written).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let length = match rustix::rand::getrandom(&mut bytes[..most], GetRandomFlags::empty()) {
            Ok(length) => length,
            Err(Errno::INTR) => continue,
            Err(error) => {
                tracing::error!(%error, "the kernel gives no random bytes");
                break;
            }
        };
        written += segments.write_at(memory, written, &bytes[..length])? as u64;
    }
    u32::try_from(written).map_err(|_| BadChain::TooLong)
}
