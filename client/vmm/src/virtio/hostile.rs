//! A driver that breaks the rules: for tests and fuzz targets.

use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::driver::{Descriptor, Driver, MEMORY_BYTES};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// The moment after which a device has most likely seen what it looks at.
const SETTLED: Duration = Duration::from_millis(2);

/// Makes one chain of every broken kind available and rings; their heads, in order. Each of them comes back with no byte
/// written, whatever the device. `flags` is `WRITE` (2) for a queue whose buffers the device writes, and 0 otherwise.
pub fn send_broken(driver: &mut Driver, queue: u16, queue_size: u16, flags: u16) -> Vec<u16> {
    let good = driver.buffer(64);
    let part = |address, length| Descriptor { address, length, flags, next: 0 };
    let outside_table = Descriptor { flags: flags | NEXT, next: queue_size, ..part(good, 16) };
    let table = |address, length| Descriptor { address, length, flags: INDIRECT, next: 0 };

    let indirect_twice = write_table(driver, &[table(good, 16)]);
    let indirect_loop = write_table(driver, &[Descriptor { flags: flags | NEXT, next: 0, ..part(good, 16) }]);
    let indirect_outside =
        write_table(driver, &[Descriptor { flags: flags | NEXT, next: 1, ..part(good, 16) }]);

    let chains: Vec<Vec<Descriptor>> = vec![
        vec![part(good, 0)],
        vec![part(MEMORY_BYTES, 16)],
        vec![part(MEMORY_BYTES - 8, 16)],
        vec![part(u64::MAX - 7, 16)],
        vec![part(good, u32::MAX)],
        vec![part(good, 16), part(MEMORY_BYTES, 16)],
        vec![part(good, u32::MAX), part(good, u32::MAX)],
        vec![outside_table],
        // The wrong way round for the device, and a buffer to read after one to write.
        vec![Descriptor { flags: flags ^ WRITE, ..part(good, 16) }],
        vec![Descriptor { flags: WRITE, ..part(good, 16) }, Descriptor { flags: 0, ..part(good, 16) }],
        vec![table(good, 0)],
        vec![table(good, 17)],
        vec![table(MEMORY_BYTES, 16)],
        vec![table(u64::MAX - 15, 32)],
        vec![table(good, 16 << 16)],
        vec![table(indirect_twice, 16)],
        vec![table(indirect_loop, 16)],
        vec![table(indirect_outside, 16)],
    ];
    let mut heads: Vec<u16> = chains.iter().map(|chain| driver.send_chain(queue, chain)).collect();
    let head = driver.send_chain(queue, &[part(good, 16)]);
    driver.write_descriptor(queue, head, Descriptor { flags: flags | NEXT, next: head, ..part(good, 16) });
    heads.push(head);
    driver.ring(queue);
    heads
}

fn write_table(driver: &mut Driver, table: &[Descriptor]) -> u64 {
    let address = driver.buffer(u32::try_from(table.len() * 16).expect("a short table"));
    for (at, descriptor) in (address..).step_by(16).zip(table) {
        let memory = &driver.memory;
        memory.write_obj(descriptor.address, GuestAddress(at)).expect("in memory");
        memory.write_obj(descriptor.length, GuestAddress(at + 8)).expect("in memory");
        memory.write_obj(descriptor.flags, GuestAddress(at + 12)).expect("in memory");
        memory.write_obj(descriptor.next, GuestAddress(at + 14)).expect("in memory");
    }
    address
}

/// Does what the bytes say: writes descriptors, makes chains available, overwrites memory (the rings too) and rings, for a
/// device of `queues` queues. The device has a moment to look at it; what comes back is not waited for.
pub fn play(driver: &mut Driver, queues: u16, bytes: &[u8]) {
    let mut script = Script(bytes);
    while let Some(step) = script.byte() {
        let queue = u16::from(script.byte().unwrap_or_default()) % queues.max(1);
        match step % 8 {
            0..=2 => {
                let at = u16::from(script.byte().unwrap_or_default()) % 64;
                let descriptor = Descriptor {
                    address: script.address(),
                    length: script.length(),
                    flags: u16::from(script.byte().unwrap_or_default()),
                    next: u16::from(script.byte().unwrap_or_default()) % 72,
                };
                driver.write_descriptor(queue, at, descriptor);
            }
            3..=5 => {
                driver.make_available(queue, u16::from(script.byte().unwrap_or_default()) % 72);
                driver.ring(queue);
            }
            6 => {
                let address = script.address();
                let length = usize::from(script.byte().unwrap_or_default());
                // A part that lies outside is not written: that is the guest's own business.
                let _ = driver.memory.write(script.take(length), GuestAddress(address));
            }
            _ => driver.ring(queue),
        }
    }
    for queue in 0..queues {
        driver.ring(queue);
    }
    settle(driver);
}

/// Gives a device the moment it needs to see what it was told: one that is reset at once has looked at nothing. Some queues
/// it does not look at, whoever rings.
pub fn settle(driver: &Driver) {
    let until = Instant::now() + SETTLED;
    while !driver.is_heard() && Instant::now() < until {
        std::thread::yield_now();
    }
}

struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).first().copied()
    }

    fn short(&mut self) -> u64 {
        self.take(2).iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    /// Mostly in memory: among the rings, among the buffers, at the end, and past it.
    fn address(&mut self) -> u64 {
        let kind = self.byte().unwrap_or_default() % 8;
        let offset = self.short();
        match kind {
            0 => 0x1_0000 + offset * 8,
            1 => MEMORY_BYTES - 0x8000 + offset,
            2 => u64::MAX - offset,
            3 => offset << 40,
            4 | 5 => 0x20_0000 + (offset << 12) % (MEMORY_BYTES - 0x20_0000),
            _ => 0x20_0000 + offset,
        }
    }

    fn length(&mut self) -> u32 {
        let kind = self.byte().unwrap_or_default() % 8;
        let length = u32::try_from(self.short()).unwrap_or_default();
        match kind {
            0 => u32::MAX - length,
            1 => length << 12,
            2 => length % 16 * 16,
            _ => length % 4096,
        }
    }
}
