//! A disk (Virtio 1.2, section 5.2) on a file.
//!
//! The threads of a disk share its queues (`serve`). A lone request is never handed over, and one that waits for the network
//! holds up no other.
//!
//! The guest is never given an I/O error for what its disk's file did: the machine is paused, whoever runs it is told, and
//! the request is tried again when they say so. A flush that failed is not: nobody knows what is on disk then.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::crew::Crew;
use super::{ActivateError, Activation, DeviceQueue, Role, VirtioDevice, read_config_bytes};
use crate::faults::Faults;

mod file;
mod gather;
mod guard;
mod request;
mod serve;
#[cfg(test)]
mod tests;

use guard::Timer;
use request::{Geometry, MAX_RANGE_SECTORS, MAX_RANGES, MAX_ZERO_RANGES, SECTOR_BYTES};
use serve::{FIRST_THREADS, Server, THREADS};

const QUEUE_SIZE: u16 = 256;
/// Buffers of one request besides header and status.
const SEGMENTS: u32 = 254;
/// Bytes of one buffer. Together a driver can send no more than a request may have: it might not look whether it was answered.
const SEGMENT_BYTES: u32 = 128 << 10;
const _: () = assert!(SEGMENTS as u64 * SEGMENT_BYTES as u64 <= request::MAX_TRANSFER_BYTES);
/// The most queues a disk has. All its threads serve all of them: more would cost descriptors, and bring little.
pub const MAX_QUEUES: u16 = 4;
/// The unit writes are best made in, as a power of two of sectors: 4 KiB.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// What a disk did.
#[derive(Debug, Default)]
pub struct BlkMetrics {
    /// Requests that read.
    pub reads: AtomicU64,
    /// Bytes read.
    pub read_bytes: AtomicU64,
    /// Requests that wrote.
    pub writes: AtomicU64,
    /// Bytes written.
    pub written_bytes: AtomicU64,
    /// Flushes.
    pub flushes: AtomicU64,
    /// Ranges forgotten or made zero.
    pub discards: AtomicU64,
    /// Requests that made no sense.
    pub refused: AtomicU64,
}

/// What a disk is made of.
pub struct BlkConfig {
    /// Its content. Its length is the disk's size, to the last whole sector.
    pub file: File,
    /// Its name: at most 20 bytes count.
    pub id: String,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether another process serves the file as `satchel mount` does: the kernel keeps nothing of it, what is not made last for
    /// want of space is still there, and is made last when that is asked for again (`docs/semantics.md`).
    pub served: bool,
    /// How many queues it is to have, one a processor; it has 1 to [`MAX_QUEUES`] of them.
    pub queues: u16,
    /// Who is told when the file fails.
    pub faults: Arc<Faults>,
}

/// A disk.
pub struct Blk {
    disk: Arc<Disk>,
    queue_sizes: Vec<u16>,
    stopping: Arc<AtomicBool>,
    crew: Option<Crew>,
}

/// What all threads of a disk share.
struct Disk {
    file: File,
    id: String,
    geometry: Geometry,
    faults: Arc<Faults>,
    metrics: Arc<BlkMetrics>,
    /// Held while the file is made to last. The kernel tells of a failure once: two at a time could hide it from one.
    flushing: Mutex<()>,
    /// A flush failed, and nothing is written any more that could seem to last.
    has_failed: AtomicBool,
    timer: Timer,
    is_served: bool,
    /// How the file is made to last.
    flush: fn(&File) -> io::Result<()>,
}

impl Blk {
    /// A disk on a file.
    ///
    /// # Errors
    /// The size of the file, or a timer, is not to be had.
    pub fn new(config: BlkConfig) -> io::Result<Blk> {
        use std::io::{Seek, SeekFrom};
        // Of a block device, only seeking tells the size.
        let bytes = (&config.file).seek(SeekFrom::End(0))?;
        let geometry = Geometry { bytes: bytes - bytes % SECTOR_BYTES, read_only: config.read_only };
        let disk = Disk {
            is_served: config.served,
            file: config.file,
            id: config.id,
            geometry,
            faults: config.faults,
            metrics: Arc::new(BlkMetrics::default()),
            flushing: Mutex::new(()),
            has_failed: AtomicBool::new(false),
            timer: Timer::new()?,
            flush: file::flush,
        };
        Ok(Blk {
            disk: Arc::new(disk),
            queue_sizes: vec![QUEUE_SIZE; usize::from(config.queues.clamp(1, MAX_QUEUES))],
            stopping: Arc::new(AtomicBool::new(false)),
            crew: None,
        })
    }

    /// What it did so far.
    pub fn metrics(&self) -> Arc<BlkMetrics> {
        Arc::clone(&self.disk.metrics)
    }

    /// `struct virtio_blk_config`.
    fn config(&self) -> [u8; 60] {
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &(self.disk.geometry.bytes / SECTOR_BYTES).to_le_bytes());
        put(8, &SEGMENT_BYTES.to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &512_u32.to_le_bytes());
        put(24, &[PHYSICAL_BLOCK_EXPONENT, 0]);
        put(26, &(1_u16 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
        put(34, &u16::try_from(self.queue_sizes.len()).unwrap_or(1).to_le_bytes());
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &MAX_RANGES.to_le_bytes());
        put(44, &(1_u32 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &MAX_ZERO_RANGES.to_le_bytes());
        put(56, &[1]);
        config
    }
}

impl VirtioDevice for Blk {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let mut features = 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_TOPOLOGY
            | 1 << VIRTIO_BLK_F_FLUSH;
        if self.queue_sizes.len() > 1 {
            features |= 1 << VIRTIO_BLK_F_MQ;
        }
        features
            | match self.disk.geometry.read_only {
                true => 1 << VIRTIO_BLK_F_RO,
                false => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
            }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_bytes(&self.config(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.stopping = Arc::new(AtomicBool::new(false));
        let queues: Vec<DeviceQueue> = activation.queues.into_iter().flatten().collect();
        if queues.is_empty() {
            return Err(ActivateError::NoQueue { queue: 0 });
        }
        let (disk, stopping) = (Arc::clone(&self.disk), Arc::clone(&self.stopping));
        let server = Server::new(disk, activation.memory, queues, activation.features, stopping);
        let crew = Crew::start(Role::Block, FIRST_THREADS, THREADS, move |crew| server.serve(crew));
        self.crew = Some(crew.map_err(ActivateError::Thread)?);
        Ok(())
    }

    fn reset(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.disk.faults.wake();
        if let Some(crew) = self.crew.take() {
            crew.end();
        }
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        self.reset();
    }
}
