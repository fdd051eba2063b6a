//! A driver of one virtio-mmio device (Virtio 1.2, sections 2.7, 3.1 and 4.2) whose every access is the guest's.

use satchel_vmm::machine::layout;
use satchel_vmm::virtio::{EVENT_IDX, INDIRECT_DESC, VERSION_1};

use crate::guest::Guest;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
pub(crate) const FEATURES_OK: u32 = 8;

/// Registers (section 4.2.2).
pub(crate) mod register {
    pub(crate) const MAGIC: u64 = 0x00;
    pub(crate) const VERSION: u64 = 0x04;
    pub(crate) const DEVICE_TYPE: u64 = 0x08;
    pub(crate) const DEVICE_FEATURES: u64 = 0x10;
    pub(crate) const DEVICE_FEATURES_SELECT: u64 = 0x14;
    pub(crate) const DRIVER_FEATURES: u64 = 0x20;
    pub(crate) const DRIVER_FEATURES_SELECT: u64 = 0x24;
    pub(crate) const QUEUE_SELECT: u64 = 0x30;
    pub(crate) const QUEUE_SIZE_MAX: u64 = 0x34;
    pub(crate) const QUEUE_SIZE: u64 = 0x38;
    pub(crate) const QUEUE_READY: u64 = 0x44;
    pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
    pub(crate) const INTERRUPT_STATUS: u64 = 0x60;
    pub(crate) const INTERRUPT_ACK: u64 = 0x64;
    pub(crate) const STATUS: u64 = 0x70;
    pub(crate) const QUEUE_DESCRIPTORS: u64 = 0x80;
    pub(crate) const QUEUE_DRIVER: u64 = 0x90;
    pub(crate) const QUEUE_DEVICE: u64 = 0xa0;
    pub(crate) const CONFIG: u64 = 0x100;
}

/// Bits of the interrupt status.
pub(crate) const USED_BUFFER: u32 = 1;
pub(crate) const CONFIG_CHANGED: u32 = 2;

/// Entries of a queue: so few that rings wrap.
const QUEUE_SIZE: u32 = 16;
const RING_BYTES: u64 = 0x1000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

struct Queue {
    table: u64,
    available: u64,
    used: u64,
    size: u16,
    free: u16,
    made_available: u16,
    seen: u16,
}

/// A chain, and the memory the device writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Chain {
    pub(crate) head: u16,
    pub(crate) address: u64,
    pub(crate) length: u32,
}

/// A device that its driver set up.
pub(crate) struct Driver {
    pub(crate) gsi: u32,
    registers: u64,
    features: u64,
    queues: Vec<Queue>,
}

/// The registers of a device.
pub(crate) fn registers(number: u32) -> u64 {
    layout::VIRTIO + u64::from(number) * layout::VIRTIO_STRIDE
}

/// What a device offers.
pub(crate) fn offered(guest: &mut Guest, registers: u64) -> u64 {
    let mut offered = 0;
    for half in [1, 0] {
        guest.store(registers + register::DEVICE_FEATURES_SELECT, half);
        offered = offered << 32 | u64::from(guest.load(registers + register::DEVICE_FEATURES));
    }
    offered
}

/// Resets a device and goes as far as the features; whether it agreed to them.
pub(crate) fn agree(guest: &mut Guest, registers: u64, features: u64) -> bool {
    guest.store(registers + register::STATUS, 0);
    assert_eq!(guest.load(registers + register::STATUS), 0, "the reset is done when it was written");
    guest.store(registers + register::STATUS, ACKNOWLEDGE);
    guest.store(registers + register::STATUS, ACKNOWLEDGE | DRIVER);
    for half in [0_u32, 1] {
        guest.store(registers + register::DRIVER_FEATURES_SELECT, half);
        let bits = u32::try_from(features >> (32 * half) & u64::from(u32::MAX)).expect("32 bits");
        guest.store(registers + register::DRIVER_FEATURES, bits);
    }
    guest.store(registers + register::STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
    guest.load(registers + register::STATUS) & FEATURES_OK != 0
}

impl Driver {
    /// Sets up a device with all its queues, and these features besides [`VERSION_1`].
    pub(crate) fn start(guest: &mut Guest, number: u32, device_type: u32, features: u64) -> Driver {
        let (at, gsi) = (registers(number), layout::VIRTIO_GSI + number);
        assert_eq!(guest.load(at + register::MAGIC), 0x7472_6976);
        assert_eq!(guest.load(at + register::VERSION), 2);
        assert_eq!(guest.load(at + register::DEVICE_TYPE), device_type);
        let features = features | VERSION_1;
        assert_eq!(offered(guest, at) & features, features, "what the test needs is offered");
        assert!(agree(guest, at, features), "the device takes what it offered");
        let mut queues = Vec::new();
        loop {
            guest.store(at + register::QUEUE_SELECT, u32::try_from(queues.len()).expect("few queues"));
            let size = guest.load(at + register::QUEUE_SIZE_MAX).min(QUEUE_SIZE);
            if size == 0 {
                break;
            }
            let table = guest.allocate(3 * RING_BYTES);
            let (available, used) = (table + RING_BYTES, table + 2 * RING_BYTES);
            assert_eq!(guest.load(at + register::QUEUE_READY), 0, "a reset takes queues back");
            guest.store(at + register::QUEUE_SIZE, size);
            for (low, address) in [
                (register::QUEUE_DESCRIPTORS, table),
                (register::QUEUE_DRIVER, available),
                (register::QUEUE_DEVICE, used),
            ] {
                guest.store(at + low, u32::try_from(address).expect("below 4 GiB"));
                guest.store(at + low + 4, 0);
            }
            guest.store(at + register::QUEUE_READY, 1);
            assert_eq!(guest.load(at + register::QUEUE_READY), 1);
            let size = u16::try_from(size).expect("few entries");
            queues.push(Queue { table, available, used, size, free: 0, made_available: 0, seen: 0 });
        }
        guest.route(gsi);
        let ready = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        guest.store(at + register::STATUS, ready);
        assert_eq!(guest.load(at + register::STATUS), ready, "the device begins");
        Driver { gsi, registers: at, features, queues }
    }

    pub(crate) fn load(&self, guest: &mut Guest, register: u64) -> u32 {
        guest.load(self.registers + register)
    }

    pub(crate) fn store(&self, guest: &mut Guest, register: u64, value: u32) {
        guest.store(self.registers + register, value);
    }

    /// Makes a chain available: parts the device reads, then parts of these lengths that it writes. Does not ring.
    ///
    /// Where it was agreed that chains may lie in tables of their own, they do.
    pub(crate) fn offer(
        &mut self,
        guest: &mut Guest,
        queue: usize,
        readable: &[&[u8]],
        writable: &[u32],
    ) -> Chain {
        let total = writable.iter().sum::<u32>();
        let first = guest.allocate(u64::from(total));
        let mut parts = Vec::new();
        for part in readable {
            let address = guest.allocate(part.len() as u64);
            guest.put(address, part);
            parts.push((address, u32::try_from(part.len()).expect("a short part"), 0));
        }
        let mut address = first;
        for length in writable {
            parts.push((address, *length, WRITE));
            address += u64::from(*length);
        }
        let is_indirect = self.features & INDIRECT_DESC != 0;
        let queue = &mut self.queues[queue];
        let size = if is_indirect { u16::MAX } else { queue.size };
        let begin = if is_indirect { 0 } else { queue.free };
        let count = u16::try_from(parts.len()).expect("few parts");
        let at = |index: u16| (begin + index) % size;
        let mut entries = Vec::new();
        for (index, (address, length, flags)) in (0..count).zip(parts) {
            let flags = if index + 1 < count { flags | NEXT } else { flags };
            entries.push((at(index), descriptor(address, length, flags, at(index + 1))));
        }
        let head = queue.free;
        if is_indirect {
            let table: Vec<u8> = entries.iter().flat_map(|(_, bytes)| *bytes).collect();
            let address = guest.allocate(table.len() as u64);
            guest.put(address, &table);
            let length = u32::try_from(table.len()).expect("a short table");
            guest.put(queue.table + u64::from(head) * 16, &descriptor(address, length, INDIRECT, 0));
            queue.free = (head + 1) % queue.size;
        } else {
            for (at, bytes) in entries {
                guest.put(queue.table + u64::from(at) * 16, &bytes);
            }
            queue.free = at(count);
        }
        let slot = u64::from(queue.made_available % queue.size);
        guest.put(queue.available + 4 + slot * 2, &head.to_le_bytes());
        queue.made_available = queue.made_available.wrapping_add(1);
        guest.put(queue.available + 2, &queue.made_available.to_le_bytes());
        Chain { head, address: first, length: total }
    }

    pub(crate) fn ring(&self, guest: &mut Guest, queue: usize) {
        self.store(guest, register::QUEUE_NOTIFY, u32::try_from(queue).expect("few queues"));
    }

    /// The next chain that came back, and the bytes the device says it wrote.
    pub(crate) fn used(&mut self, guest: &mut Guest, queue: usize) -> Option<(u16, u32)> {
        let queue = &mut self.queues[queue];
        let index = u16::try_from(guest.load(queue.used) >> 16).expect("16 bits");
        if index == queue.seen {
            return None;
        }
        let entry = queue.used + 4 + u64::from(queue.seen % queue.size) * 8;
        queue.seen = queue.seen.wrapping_add(1);
        let head = u16::try_from(guest.load(entry)).expect("a head");
        Some((head, guest.load(entry + 4)))
    }

    /// Halts until the interrupt came more often than that, and handles it: the status says why it came, and nothing any more
    /// once that was acknowledged.
    pub(crate) fn handle_interrupt(&self, guest: &mut Guest, seen: u32, reason: u32) {
        guest.await_interrupt(self.gsi, seen);
        assert_eq!(self.load(guest, register::INTERRUPT_STATUS), reason);
        self.store(guest, register::INTERRUPT_ACK, reason);
        assert_eq!(self.load(guest, register::INTERRUPT_STATUS), 0);
    }

    /// Asks with one chain, and waits for its interrupt: what the device wrote.
    pub(crate) fn ask(
        &mut self,
        guest: &mut Guest,
        queue: usize,
        readable: &[&[u8]],
        writable: &[u32],
    ) -> Vec<u8> {
        if self.features & EVENT_IDX != 0 {
            // "Tell me of the next one."
            let Queue { available, size, seen, .. } = self.queues[queue];
            guest.put(available + 4 + u64::from(size) * 2, &seen.to_le_bytes());
        }
        let interrupts = guest.interrupts(self.gsi);
        let chain = self.offer(guest, queue, readable, writable);
        self.ring(guest, queue);
        self.handle_interrupt(guest, interrupts, USED_BUFFER);
        let (head, written) = self.used(guest, queue).expect("the interrupt says so");
        assert_eq!(head, chain.head);
        assert!(written <= chain.length);
        guest.get(chain.address, written)
    }
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
