//! What a disk does with requests of 4 KiB at random places, so many under way at once, without a guest: the driver looks at the
//! queue whenever the device tells it to.
//!
//! The disk is 128 MiB in memory, or the file that SATCHEL_BENCH_FILE names, as one on a mount; that is written to.

use std::fs::{File, OpenOptions};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use satchel_vmm::event::Event;
use satchel_vmm::faults::Faults;
use satchel_vmm::virtio::blk::{Blk, BlkConfig};
use satchel_vmm::virtio::driver::{Descriptor, Driver};
use vm_memory::{Bytes, GuestAddress};

const DISK_BYTES: u64 = 128 << 20;
const BLOCK_BYTES: u32 = 4096;
const SECTORS_A_BLOCK: u64 = 8;
/// `VIRTIO_BLK_T_IN` and `VIRTIO_BLK_T_OUT`.
const KINDS: [(&str, u32); 2] = [("read", 0), ("write", 1)];
const DEPTHS: [u16; 3] = [1, 4, 32];

const NEXT: u16 = 1;
const WRITE: u16 = 2;

fn disk_file() -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    if let Some(path) = std::env::var_os("SATCHEL_BENCH_FILE") {
        return options.open(path).expect("the file is there");
    }
    let file = tempfile::tempfile_in("/dev/shm").expect("there is memory");
    let noise: Vec<u8> =
        (0..DISK_BYTES / 8).flat_map(|number| number.wrapping_mul(0x9e37).to_le_bytes()).collect();
    std::os::unix::fs::FileExt::write_all_at(&file, &noise, 0).expect("there is memory");
    file
}

struct Rig {
    driver: Driver,
    /// Held: the device ends with it.
    _blk: Blk,
    /// Header, data and status of each request that may be under way.
    places: Vec<[u64; 3]>,
    number: u64,
}

impl Rig {
    fn new(depth: u16) -> Rig {
        let faults = Arc::new(Faults::new(Event::new().expect("an event")));
        let config = BlkConfig {
            file: disk_file(),
            id: "disk".to_owned(),
            read_only: false,
            served: false,
            queues: 1,
            faults,
        };
        let mut blk = Blk::new(config).expect("a disk");
        let mut driver = Driver::start(&mut blk);
        let places = (0..depth).map(|_| [16, BLOCK_BYTES, 1].map(|length| driver.buffer(length))).collect();
        Rig { driver, _blk: blk, places, number: 0 }
    }

    /// Makes a request available; does not ring.
    fn send(&mut self, kind: u32, place: u16) {
        self.number += 1;
        // The same order every time: a multiplicative hash of the number.
        let block =
            (self.number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % (DISK_BYTES / u64::from(BLOCK_BYTES));
        let header = [&kind.to_le_bytes()[..], &[0; 4], &(block * SECTORS_A_BLOCK).to_le_bytes()].concat();
        let [at, data, status] = self.places[usize::from(place)];
        self.driver.memory.write_slice(&header, GuestAddress(at)).expect("in memory");
        let head = place * 3;
        let to_device = if kind == 0 { WRITE } else { 0 };
        let parts = [(at, 16, NEXT), (data, BLOCK_BYTES, NEXT | to_device), (status, 1, WRITE)];
        for (index, (address, length, flags)) in (head..).zip(parts) {
            self.driver.write_descriptor(0, index, Descriptor { address, length, flags, next: index + 1 });
        }
        self.driver.make_available(0, head);
    }

    /// How long so many requests take, `depth` of them under way.
    fn run(&mut self, kind: u32, requests: u64) -> Duration {
        let (begun, mut sent, mut done) = (Instant::now(), 0, 0);
        let mut told = self.driver.interrupt.queues();
        for place in 0..u16::try_from(self.places.len()).expect("few") {
            if sent < requests {
                self.send(kind, place);
                sent += 1;
            }
        }
        self.driver.ring(0);
        while done < requests {
            while self.driver.interrupt.queues() == told {
                std::thread::yield_now();
            }
            told = self.driver.interrupt.queues();
            let before = sent;
            while let Some((head, written)) = self.driver.try_used(0) {
                assert!(written > 0);
                done += 1;
                if sent < requests {
                    self.send(kind, head / 3);
                    sent += 1;
                }
            }
            if sent > before {
                self.driver.ring(0);
            }
        }
        begun.elapsed()
    }
}

fn requests(criterion: &mut Criterion) {
    for (name, kind) in KINDS {
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(1));
        for depth in DEPTHS {
            let mut rig = Rig::new(depth);
            group.bench_function(format!("depth {depth}"), |bencher| {
                bencher.iter_custom(|count| black_box(rig.run(kind, count)));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, requests);
criterion_main!(benches);
