//! A driver that speaks to one device, in memory, without a transport: for tests and fuzz targets.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::{ActivateError, Activation, DeviceQueue, GuestMemory, Interrupt, VERSION_1, VirtioDevice};
use crate::event::Event;

/// Bytes of memory that the driver and its device share.
pub const MEMORY_BYTES: u64 = 16 << 20;
/// Where the queues begin, one every [`QUEUE_BYTES`].
const QUEUES: u64 = 0x1_0000;
const QUEUE_BYTES: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Where buffers are taken from.
const BUFFERS: u64 = 0x20_0000;
/// How long [`Driver::used`] waits for the device.
const PATIENCE: Duration = Duration::from_secs(20);

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Counts what the device says.
#[derive(Default)]
pub struct CountedInterrupt {
    queues: AtomicU64,
    config: AtomicU64,
}

impl CountedInterrupt {
    /// How often the device said that it used buffers.
    pub fn queues(&self) -> u64 {
        self.queues.load(Ordering::SeqCst)
    }

    /// How often the device said that its configuration changed.
    pub fn config(&self) -> u64 {
        self.config.load(Ordering::SeqCst)
    }
}

impl Interrupt for CountedInterrupt {
    fn queue_used(&self, _: u16) {
        self.queues.fetch_add(1, Ordering::SeqCst);
    }

    fn config_changed(&self) {
        self.config.fetch_add(1, Ordering::SeqCst);
    }
}

/// One descriptor as it stands in memory.
#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    /// Where the buffer begins.
    pub address: u64,
    /// Its bytes.
    pub length: u32,
    /// `NEXT` 1, `WRITE` 2, `INDIRECT` 4.
    pub flags: u16,
    /// The next of the chain.
    pub next: u16,
}

impl Descriptor {
    /// How it lies in memory.
    fn to_bytes(self) -> [u8; 16] {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&self.address.to_le_bytes());
        entry[8..12].copy_from_slice(&self.length.to_le_bytes());
        entry[12..14].copy_from_slice(&self.flags.to_le_bytes());
        entry[14..].copy_from_slice(&self.next.to_le_bytes());
        entry
    }
}

struct DriverQueue {
    size: u16,
    notify: Event,
    /// The next free descriptor and the next entry of either ring.
    free: u16,
    available: u16,
    seen: u16,
}

/// A buffer the device may write.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// The chain it belongs to.
    pub head: u16,
    /// Where it begins.
    pub address: u64,
    /// Its bytes.
    pub length: u32,
}

/// A device that leaves its one queue to whoever starts it.
#[derive(Default)]
pub struct Idle(Option<DeviceQueue>);

impl Idle {
    /// The entries of its queue.
    pub const QUEUE_SIZE: u16 = 8;

    /// The queue, and its driver.
    pub fn start() -> (Driver, DeviceQueue) {
        let mut idle = Idle::default();
        let driver = Driver::start(&mut idle);
        (driver, idle.0.expect("it was activated"))
    }
}

impl VirtioDevice for Idle {
    fn device_type(&self) -> u32 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[Idle::QUEUE_SIZE]
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.0 = activation.queues.into_iter().flatten().next();
        Ok(())
    }

    fn reset(&mut self) {}
}

/// Drives one device.
pub struct Driver {
    /// What both sides see.
    pub memory: GuestMemory,
    /// What the device says.
    pub interrupt: Arc<CountedInterrupt>,
    queues: Vec<DriverQueue>,
    next_buffer: u64,
}

impl Driver {
    /// A driver that has set up all queues of the device with their largest size, and has activated it with all it offers.
    pub fn start(device: &mut dyn VirtioDevice) -> Driver {
        let features = device.features();
        Driver::start_with(device, features)
    }

    /// The same with these features only.
    pub fn start_with(device: &mut dyn VirtioDevice, features: u64) -> Driver {
        let ranges = [(GuestAddress(0), usize::try_from(MEMORY_BYTES).expect("16 MiB"))];
        let memory = GuestMemory::anonymous(&ranges).expect("memory");
        let interrupt = Arc::new(CountedInterrupt::default());
        let mut queues = Vec::new();
        let mut given = Vec::new();
        for (index, size) in device.queue_sizes().iter().copied().enumerate() {
            let notify = Event::new().expect("an event");
            let base = QUEUES + index as u64 * QUEUE_BYTES;
            let mut queue = Queue::new(size).expect("a size");
            queue.set_size(size);
            queue.set_desc_table_address(low(base), Some(0));
            queue.set_avail_ring_address(low(base + AVAILABLE), Some(0));
            queue.set_used_ring_address(low(base + USED), Some(0));
            queue.set_ready(true);
            assert!(queue.is_valid(&*memory));
            given.push(Some(DeviceQueue::new(
                queue,
                u16::try_from(index).expect("few queues"),
                notify.try_clone().expect("an event"),
                GuestMemory::clone(&memory),
                Arc::clone(&interrupt) as Arc<dyn Interrupt>,
            )));
            queues.push(DriverQueue { size, notify, free: 0, available: 0, seen: 0 });
        }
        let activation = Activation {
            memory: GuestMemory::clone(&memory),
            features: features | VERSION_1,
            queues: given,
            interrupt: Arc::clone(&interrupt) as Arc<dyn Interrupt>,
        };
        device.activate(activation).expect("the device begins");
        Driver { memory, interrupt, queues, next_buffer: BUFFERS }
    }

    /// Memory nobody else uses; it begins anew when all was given out.
    pub fn buffer(&mut self, length: u32) -> u64 {
        if self.next_buffer + u64::from(length) > MEMORY_BYTES {
            self.next_buffer = BUFFERS;
        }
        let address = self.next_buffer;
        self.next_buffer += u64::from(length).next_multiple_of(16);
        assert!(self.next_buffer <= MEMORY_BYTES, "a buffer of {length} bytes");
        address
    }

    /// Makes a chain available: parts the device reads, then parts of these lengths that it writes. The parts it writes are
    /// one range of memory.
    pub fn send(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> Answer {
        let mut chain = Vec::new();
        for part in readable {
            let length = u32::try_from(part.len()).expect("a short part");
            let address = self.buffer(length);
            self.memory.write_slice(part, GuestAddress(address)).expect("in memory");
            chain.push(Descriptor { address, length, flags: 0, next: 0 });
        }
        let total: u32 = writable.iter().sum();
        let first = self.buffer(total);
        let mut address = first;
        for length in writable {
            chain.push(Descriptor { address, length: *length, flags: WRITE, next: 0 });
            address += u64::from(*length);
        }
        let head = self.send_chain(queue, &chain);
        self.ring(queue);
        Answer { head, address: first, length: total }
    }

    /// Makes a chain available as it is, linked in order; does not ring.
    pub fn send_chain(&mut self, queue: u16, chain: &[Descriptor]) -> u16 {
        let size = self.queues[usize::from(queue)].size;
        let head = self.queues[usize::from(queue)].free;
        for (index, descriptor) in chain.iter().enumerate() {
            let at = self.queues[usize::from(queue)].free;
            let next = (at + 1) % size;
            let linked = index + 1 < chain.len();
            let flags = descriptor.flags | if linked { NEXT } else { 0 };
            self.write_descriptor(queue, at, Descriptor { flags, next, ..*descriptor });
            self.queues[usize::from(queue)].free = next;
        }
        self.make_available(queue, head);
        head
    }

    /// Makes a chain available that lies in a table of its own, linked in order; does not ring.
    pub fn send_table(&mut self, queue: u16, chain: &[Descriptor]) -> u16 {
        const INDIRECT: u16 = 4;
        let length = u32::try_from(chain.len() * 16).expect("a short table");
        let table = self.buffer(length);
        for (index, descriptor) in (0_u16..).zip(chain) {
            let linked = usize::from(index) + 1 < chain.len();
            let flags = descriptor.flags | if linked { NEXT } else { 0 };
            let entry = Descriptor { flags, next: index + 1, ..*descriptor }.to_bytes();
            let address = GuestAddress(table + u64::from(index) * 16);
            self.memory.write_slice(&entry, address).expect("in memory");
        }
        self.send_chain(queue, &[Descriptor { address: table, length, flags: INDIRECT, next: 0 }])
    }

    /// Writes one entry of the descriptor table.
    pub fn write_descriptor(&mut self, queue: u16, at: u16, descriptor: Descriptor) {
        let entry = descriptor.to_bytes();
        let table = QUEUES + u64::from(queue) * QUEUE_BYTES;
        self.memory.write_slice(&entry, GuestAddress(table + u64::from(at) * 16)).expect("in memory");
    }

    /// Names a descriptor in the available ring; does not ring.
    pub fn make_available(&mut self, queue: u16, head: u16) {
        let ring = QUEUES + u64::from(queue) * QUEUE_BYTES + AVAILABLE;
        let state = &mut self.queues[usize::from(queue)];
        let entry = ring + 4 + u64::from(state.available % state.size) * 2;
        self.memory.write_slice(&head.to_le_bytes(), GuestAddress(entry)).expect("in memory");
        state.available = state.available.wrapping_add(1);
        let index = state.available;
        self.memory.store(index.to_le(), GuestAddress(ring + 2), Ordering::SeqCst).expect("in memory");
    }

    /// Rings the device.
    pub fn ring(&self, queue: u16) {
        self.queues[usize::from(queue)].notify.signal();
    }

    /// Whether the device has taken notice of every ring so far.
    pub fn is_heard(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let rung =
            self.queues.iter().map(|queue| PollFd::from_borrowed_fd(queue.notify.as_fd(), PollFlags::IN));
        matches!(poll(&mut rung.collect::<Vec<_>>(), Some(&now)), Ok(0))
    }

    /// The next chain the device has used: its head and the bytes it says it wrote. `None` when there is none yet.
    pub fn try_used(&mut self, queue: u16) -> Option<(u16, u32)> {
        let ring = QUEUES + u64::from(queue) * QUEUE_BYTES + USED;
        let index: u16 = self.memory.load(GuestAddress(ring + 2), Ordering::SeqCst).expect("in memory");
        let state = &mut self.queues[usize::from(queue)];
        if u16::from_le(index) == state.seen {
            return None;
        }
        let mut entry = [0_u8; 8];
        let at = ring + 4 + u64::from(state.seen % state.size) * 8;
        self.memory.read_slice(&mut entry, GuestAddress(at)).expect("in memory");
        state.seen = state.seen.wrapping_add(1);
        let (head, written) = entry.split_at(4);
        let head = u32::from_le_bytes(head.try_into().expect("4 bytes"));
        Some((u16::try_from(head).expect("a head"), u32::from_le_bytes(written.try_into().expect("4 bytes"))))
    }

    /// The same; waits for it.
    pub fn used(&mut self, queue: u16) -> (u16, u32) {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(used) = self.try_used(queue) {
                return used;
            }
            assert!(Instant::now() < until, "the device used nothing of queue {queue}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Sends a chain and waits for it: what the device wrote.
    pub fn ask(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> (Vec<u8>, u32) {
        let answer = self.send(queue, readable, writable);
        let (head, written) = self.used(queue);
        assert_eq!(head, answer.head, "chains come back in order here");
        (self.read(answer.address, answer.length), written)
    }

    /// Reads memory.
    pub fn read(&self, address: u64, length: u32) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).expect("32 bits")];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("in memory");
        bytes
    }
}

fn low(address: u64) -> Option<u32> {
    Some(u32::try_from(address).expect("below 4 GiB"))
}
