//! A guest that reads and writes a device's registers, its memory and its rings as it likes, with a real device behind.

#![no_main]

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use satchel_vmm::event::Event;
use satchel_vmm::faults::Faults;
use satchel_vmm::machine::memory;
use satchel_vmm::virtio::balloon::Balloon;
use satchel_vmm::virtio::blk::{Blk, BlkConfig};
use satchel_vmm::virtio::mmio::MmioTransport;
use satchel_vmm::virtio::rng::Rng;
use satchel_vmm::virtio::{GuestMemory, VirtioDevice};
use vm_memory::{Bytes, GuestAddress};

const MEMORY_BYTES: u64 = 128 << 20;
const DISK_BYTES: u64 = 64 << 10;
/// A start of the device is a start of threads: there are not too many of them.
const STEPS: usize = 300;
/// The moment after which a device has most likely seen what it looks at.
const SETTLED: Duration = Duration::from_millis(2);

/// Where queue 0 begins when it is set up well: its table, its available and its used ring.
const QUEUE: u32 = 0x10_0000;

fn device(kind: u8, faults: &Arc<Faults>) -> Box<dyn VirtioDevice> {
    match kind % 4 {
        0 => Box::new(Rng::new()),
        1 => Box::new(Balloon::new().expect("a balloon")),
        kind => {
            let file = rustix::fs::memfd_create(c"disk", rustix::fs::MemfdFlags::CLOEXEC).expect("a file");
            let file = File::from(file);
            file.set_len(DISK_BYTES).expect("a length");
            let (queues, faults) = (u16::from(kind), Arc::clone(faults));
            let config = BlkConfig { file, id: "disk".to_owned(), read_only: false, served: false, queues, faults };
            Box::new(Blk::new(config).expect("a disk"))
        }
    }
}

struct Guest<'a> {
    transport: MmioTransport,
    memory: GuestMemory,
    data: &'a [u8],
}

impl Guest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.data.split_first_chunk()?;
        self.data = rest;
        Some(*taken)
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.transport.write(offset, &value.to_le_bytes());
    }

    /// Up to the agreement on features: version 1 and a choice of others.
    fn agree(&mut self, low: u32, high: u32) {
        for status in [0, 1, 3] {
            self.write(0x70, status);
        }
        for (select, value) in [(0, low), (1, 1 | high)] {
            self.write(0x24, select);
            self.write(0x20, value);
        }
        self.write(0x70, 11);
    }

    fn set_up_queue(&mut self, queue: u32, size: u32, at: u32) {
        let registers = [
            (0x30, queue),
            (0x38, size),
            (0x80, at),
            (0x84, 0),
            (0x90, at.wrapping_add(0x4000)),
            (0x94, 0),
            (0xa0, at.wrapping_add(0x8000)),
            (0xa4, 0),
            (0x44, 1),
        ];
        for (offset, value) in registers {
            self.write(offset, value);
        }
    }

    /// Gives a device that was started the moment it needs to see what it was told.
    fn settle(&mut self) {
        let mut status = [0; 4];
        self.transport.read(0x70, &mut status);
        let until = Instant::now() + SETTLED;
        while status == [15, 0, 0, 0] && self.is_rung() && Instant::now() < until {
            std::thread::yield_now();
        }
    }

    fn is_rung(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let events = self.transport.notify_events();
        let polled = events.map(|event| PollFd::from_borrowed_fd(event.as_fd(), PollFlags::IN));
        !matches!(poll(&mut polled.collect::<Vec<_>>(), Some(&now)), Ok(0))
    }

    fn step(&mut self) -> Option<()> {
        let [kind] = self.take()?;
        match kind % 16 {
            0..=2 => {
                let [register, a, b, c, d] = self.take()?;
                self.write(u64::from(register) * 4, u32::from_le_bytes([a, b, c, d]));
            }
            3 | 4 => {
                let [register, value] = self.take()?;
                self.write(u64::from(register) * 2, u32::from(value));
            }
            5 => {
                let [offset, size] = self.take()?;
                let mut bytes = [0xaa; 16];
                self.transport.read(u64::from(offset) * 2, &mut bytes[..usize::from(size % 17)]);
            }
            6 => {
                let offset = u64::from_le_bytes(self.take()?);
                let [size] = self.take()?;
                let mut bytes: [u8; 8] = self.take()?;
                let bytes = &mut bytes[..usize::from(size % 9)];
                match kind >= 128 {
                    true => self.transport.write(offset, bytes),
                    false => self.transport.read(offset, bytes),
                }
            }
            7 => {
                let [low, high] = self.take()?;
                // Ring features (28, 29), or what a device may offer.
                let low = if low < 4 { u32::from(low) << 28 } else { 1 << (low % 32) };
                self.agree(low, u32::from(high / 255));
            }
            8 | 9 => {
                let [queue, size, place] = self.take()?;
                let at = if place < 192 {
                    QUEUE + u32::from(place % 8) * 0x1_0000
                } else {
                    u32::from(place) << 19
                };
                self.set_up_queue(u32::from(queue % 4), 1 << (size % 12), at);
            }
            10 => self.write(0x70, 15),
            11 => self.write(0x50, u32::from(kind / 64)),
            12 => {
                let [queue, at, place, length, flags, next] = self.take()?;
                let mut descriptor = [0; 16];
                descriptor[..8].copy_from_slice(&(u64::from(place) << 16).to_le_bytes());
                // From 192 on: 1 and more, as a status byte needs.
                let length = if length < 192 { u32::from(length) * 16 } else { u32::from(length) - 191 };
                descriptor[8..12].copy_from_slice(&length.to_le_bytes());
                (descriptor[12], descriptor[14]) = (flags, next);
                let table = u64::from(QUEUE) + u64::from(queue % 4) * 0x1_0000;
                let _ = self.memory.write(&descriptor, GuestAddress(table + u64::from(at) * 16));
            }
            13 | 14 => {
                // An entry of an available ring, and the index past it.
                let [queue, head, index] = self.take()?;
                let ring = u64::from(QUEUE) + u64::from(queue % 4) * 0x1_0000 + 0x4000;
                let entry = ring + 4 + u64::from(index.wrapping_sub(1)) * 2;
                let _ = self.memory.write(&[head, 0], GuestAddress(entry));
                let _ = self.memory.write(&[index, u8::from(kind == 255)], GuestAddress(ring + 2));
                self.write(0x50, u32::from(queue % 4));
            }
            _ => {
                let [place, a, b, c] = self.take()?;
                let at = u64::from(place) << 16 | u64::from(c) * 16;
                let _ = self.memory.write(&[a, b], GuestAddress(at));
            }
        }
        Some(())
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    let memory = memory::allocate(MEMORY_BYTES).expect("memory");
    let faults = Arc::new(Faults::new(Event::new().expect("an event")));
    let transport = MmioTransport::new(device(*kind, &faults), GuestMemory::clone(&memory)).expect("a transport");
    let mut guest = Guest { transport, memory, data };
    for _ in 0..STEPS {
        if guest.step().is_none() {
            break;
        }
    }
    guest.settle();
    assert_eq!(faults.list(), [], "nothing a guest asks for makes a file fail");
    faults.end();
    guest.transport.reset();
    let mut status = [0xff; 4];
    guest.transport.read(0x70, &mut status);
    assert_eq!(status, [0; 4]);
});
