//! A disk (Virtio 1.2, section 5.2) on a file.
//!
//! The threads of a disk share its queues: whoever is rung takes one request, rings the next thread if there is more, and does
//! it. So a lone request is never handed over, many are done at once, and one that waits for the network holds up no other.
//! Reads may wait for long, so they never have the last threads: writes and flushes go on whatever reads wait for.
//!
//! The guest is never given an I/O error for what its disk's file did: the machine is paused, whoever runs it is told, and
//! the request is tried again when they say so. A flush that failed is not: nobody knows what is on disk then.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::epoll;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::Bytes;

use super::{
    ActivateError, Activation, Chain, DeviceQueue, GuestMemory, Role, VirtioDevice, Worker, read_config_bytes,
};
use crate::event::Event;
use crate::faults::{Fault, Faults, Verdict};

mod file;
mod request;
#[cfg(test)]
mod tests;

use request::{
    Action, Geometry, ID_BYTES, MAX_RANGE_SECTORS, MAX_RANGES, MAX_ZERO_RANGES, Request, SECTOR_BYTES,
};

const QUEUE_SIZE: u16 = 256;
/// Buffers of one request besides header and status.
const SEGMENTS: u32 = 254;
/// Bytes of one buffer. Together a driver can send no more than a request may have: it might not look whether it was answered.
const SEGMENT_BYTES: u32 = 128 << 10;
const _: () = assert!(SEGMENTS as u64 * SEGMENT_BYTES as u64 <= request::MAX_TRANSFER_BYTES);
/// The most queues a disk has: one a processor, up to this.
pub const MAX_QUEUES: u16 = 8;
/// Threads of a disk, and how many of them may read at once.
const THREADS: usize = 16;
const READING_THREADS: usize = THREADS - 2;
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
    /// How many queues it has, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// Who is told when the file fails.
    pub faults: Arc<Faults>,
}

/// A disk.
pub struct Blk {
    disk: Arc<Disk>,
    queue_sizes: Vec<u16>,
    stopping: Arc<AtomicBool>,
    workers: Vec<Worker>,
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
}

impl Blk {
    /// A disk on a file.
    ///
    /// # Errors
    /// The size of the file is not to be had.
    pub fn new(config: BlkConfig) -> io::Result<Blk> {
        use std::io::{Seek, SeekFrom};
        // Of a block device, only seeking tells the size.
        let bytes = (&config.file).seek(SeekFrom::End(0))?;
        let geometry = Geometry { bytes: bytes - bytes % SECTOR_BYTES, read_only: config.read_only };
        let disk = Disk {
            file: config.file,
            id: config.id,
            geometry,
            faults: config.faults,
            metrics: Arc::new(BlkMetrics::default()),
            flushing: Mutex::new(()),
            has_failed: AtomicBool::new(false),
        };
        Ok(Blk {
            disk: Arc::new(disk),
            queue_sizes: vec![QUEUE_SIZE; usize::from(config.queues.clamp(1, MAX_QUEUES))],
            stopping: Arc::new(AtomicBool::new(false)),
            workers: Vec::new(),
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
        let server = Arc::new(Server {
            disk: Arc::clone(&self.disk),
            memory: Arc::clone(&activation.memory),
            queues: queues.into_iter().map(Mutex::new).collect(),
            reads: Mutex::default(),
            // Virtio 1.2, section 5.2.6.2: a driver that knows no flush may rely on what was answered.
            writes_through: activation.features & 1 << VIRTIO_BLK_F_FLUSH == 0,
            stopping: Arc::clone(&self.stopping),
        });
        for _ in 0..THREADS {
            let server = Arc::clone(&server);
            let worker = Worker::start(Role::Block, move |stop| server.serve(stop));
            self.workers.push(worker.map_err(ActivateError::Thread)?);
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.disk.faults.wake();
        self.workers.iter().for_each(Worker::tell_to_stop);
        self.workers.clear();
    }
}

impl Drop for Blk {
    fn drop(&mut self) {
        self.reset();
    }
}

/// What the threads of a disk share while its driver is there.
struct Server {
    disk: Arc<Disk>,
    memory: GuestMemory,
    queues: Vec<Mutex<DeviceQueue>>,
    reads: Mutex<Reads>,
    /// Whether what was written is to last before it is answered.
    writes_through: bool,
    stopping: Arc<AtomicBool>,
}

/// A request that was taken from a queue.
struct Taken {
    queue: usize,
    chain: Chain,
    request: Request,
}

/// Reads under way, and those that wait for one to end: at most what the queues hold, for of each no more chains are out.
#[derive(Default)]
struct Reads {
    under_way: usize,
    waiting: VecDeque<Taken>,
}

impl Server {
    fn queue(&self, queue: usize) -> MutexGuard<'_, DeviceQueue> {
        self.queues[queue].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reads(&self) -> MutexGuard<'_, Reads> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stop: &Event) {
        if let Err(error) = self.try_serve(stop) {
            tracing::error!(%error, "a thread of a disk cannot wait for its queues");
        }
    }

    fn try_serve(&self, stop: &Event) -> io::Result<()> {
        let waiting = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&waiting, stop, epoll::EventData::new_u64(u64::MAX), epoll::EventFlags::IN)?;
        for (number, queue) in (0..).zip(&self.queues) {
            let queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            // Exclusive: a ring wakes one thread, not all.
            let flags = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
            epoll::add(&waiting, &*queue, epoll::EventData::new_u64(number), flags)?;
        }
        let data = epoll::EventData::new_u64(0);
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data }];
        while !self.stopping.load(Ordering::SeqCst) {
            match epoll::wait(&waiting, &mut events, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let rung = usize::try_from(events[0].data.u64()).ok().filter(|queue| *queue < self.queues.len());
            let Some(queue) = rung else { continue };
            while !self.stopping.load(Ordering::SeqCst)
                && let Some(chain) = self.next(queue)
            {
                if self.take_on(queue, chain).is_none() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Takes a request; rings for another thread when there is one more.
    fn next(&self, queue: usize) -> Option<Chain> {
        let mut queue = self.queue(queue);
        queue.acknowledge();
        let chain = queue.pop();
        // While there is more, somebody looks again in any case: the driver need not ring for every request.
        if queue.has_more() {
            queue.ring();
        } else {
            queue.rearm();
        }
        chain
    }

    /// Sees to a request, by doing it or, when too many read already, by leaving it to one of those. `None` when the device is
    /// to stop.
    fn take_on(&self, queue: usize, chain: Chain) -> Option<()> {
        let request = match Request::parse(&chain, &self.memory, self.disk.geometry) {
            Ok(request) => request,
            Err(error) => {
                self.disk.metrics.refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%error, disk = self.disk.id, "a request cannot be answered");
                self.finish(queue, &chain, 0);
                return Some(());
            }
        };
        let taken = Taken { queue, chain, request };
        if !matches!(taken.request.action, Action::Read(..)) {
            return self.answer(&taken);
        }
        {
            let mut reads = self.reads();
            if reads.under_way >= READING_THREADS {
                reads.waiting.push_back(taken);
                return Some(());
            }
            reads.under_way += 1;
        }
        let mut next = Some(taken);
        while let Some(taken) = next {
            self.answer(&taken)?;
            let mut reads = self.reads();
            next = reads.waiting.pop_front();
            reads.under_way -= usize::from(next.is_none());
        }
        Some(())
    }

    /// Does what a request says, and answers it. `None` when the device is to stop, the request being neither done nor answered.
    fn answer(&self, Taken { queue, chain, request }: &Taken) -> Option<()> {
        let (status, written) = match &request.action {
            Action::Unsupported => (VIRTIO_BLK_S_UNSUPP, 0),
            Action::Refused => {
                self.disk.metrics.refused.fetch_add(1, Ordering::Relaxed);
                (VIRTIO_BLK_S_IOERR, 0)
            }
            action => {
                let written = self.insist(action)?;
                if self.writes_through && action.changes_the_disk() {
                    self.insist(&Action::Flush)?;
                }
                (VIRTIO_BLK_S_OK, written)
            }
        };
        let status = u8::try_from(status).unwrap_or(u8::MAX);
        let written = match self.memory.write_obj(status, request.status) {
            Ok(()) => u32::try_from(written).unwrap_or(u32::MAX).saturating_add(1),
            Err(_) => 0,
        };
        self.finish(*queue, chain, written);
        Some(())
    }

    fn finish(&self, queue: usize, chain: &Chain, written: u32) {
        let mut queue = self.queue(queue);
        queue.push(chain.head_index(), written);
        queue.tell();
    }

    /// Does it, however long the file fails.
    fn insist(&self, action: &Action) -> Option<u64> {
        loop {
            let error = match self.perform(action) {
                Ok(written) => return Some(written),
                Err(error) => error,
            };
            let fault = Fault {
                disk: self.disk.id.clone(),
                action: match action {
                    Action::Read(..) | Action::Identify(_) => "read",
                    Action::Flush => "flush",
                    _ => "write",
                },
                error: error.to_string(),
                no_space: error.kind() == io::ErrorKind::StorageFull,
                is_final: self.disk.has_failed.load(Ordering::SeqCst) || is_gone(&error),
            };
            match self.disk.faults.report(fault, &self.stopping) {
                Verdict::TryAgain => {}
                Verdict::End => return None,
            }
        }
    }

    fn check_whole(&self) -> io::Result<()> {
        match self.disk.has_failed.load(Ordering::SeqCst) {
            true => Err(io::Error::other("a flush failed before")),
            false => Ok(()),
        }
    }

    fn perform(&self, action: &Action) -> io::Result<u64> {
        let Disk { file, metrics, .. } = &*self.disk;
        let is_read = matches!(action, Action::Read(..) | Action::Identify(_));
        if !is_read {
            self.check_whole()?;
        }
        let count = |counter: &AtomicU64, by: u64| counter.fetch_add(by, Ordering::Relaxed);
        match action {
            Action::Read(offset, into) => {
                file::read(file, *offset, into, &self.memory)?;
                count(&metrics.reads, 1);
                count(&metrics.read_bytes, into.bytes());
                return Ok(into.bytes());
            }
            Action::Write(offset, from) => {
                file::write(file, *offset, from, &self.memory)?;
                count(&metrics.writes, 1);
                count(&metrics.written_bytes, from.bytes());
            }
            Action::Flush => {
                let _one_at_a_time = self.disk.flushing.lock().unwrap_or_else(PoisonError::into_inner);
                // The one before may have been told of what this one would not be.
                self.check_whole()?;
                if let Err(error) = file::flush(file) {
                    self.disk.has_failed.store(true, Ordering::SeqCst);
                    return Err(error);
                }
                count(&metrics.flushes, 1);
            }
            Action::Identify(into) => {
                let mut id = [0; ID_BYTES];
                for (to, from) in id.iter_mut().zip(self.disk.id.bytes()) {
                    *to = from;
                }
                return Ok(file::fill(into, &id, &self.memory));
            }
            Action::Discard(ranges) => {
                for range in ranges {
                    file::discard(file, *range)?;
                    count(&metrics.discards, 1);
                }
            }
            Action::WriteZeroes(ranges) => {
                for (range, unmap) in ranges {
                    file::write_zeroes(file, *range, *unmap, &self.stopping)?;
                    count(&metrics.discards, 1);
                }
            }
            Action::Unsupported | Action::Refused => {}
        }
        Ok(0)
    }
}

/// Whether whoever serves the file is gone for good: this descriptor never works again.
fn is_gone(error: &io::Error) -> bool {
    let gone = [rustix::io::Errno::NOTCONN, rustix::io::Errno::CONNABORTED];
    gone.map(|errno| Some(errno.raw_os_error())).contains(&error.raw_os_error())
}
