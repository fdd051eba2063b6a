//! Runs inside the lab's small guest (tests/lab/guest-init): how fast its disk is, a line of JSON for each kind of request.
//!
//! Sequential reads and writes of 1 MiB at depth 4, random ones of 4 KiB at depth 1 and 32; each for some seconds, past the page
//! cache, one thread for each request that is under way.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const O_DIRECT: i32 = 0o40000;
const TIME: Duration = Duration::from_secs(6);

#[repr(align(4096))]
struct Buffer([u8; 1 << 20]);

#[derive(Clone, Copy)]
struct Job {
    name: &'static str,
    bytes: usize,
    depth: u64,
    is_write: bool,
    is_random: bool,
}

const JOBS: [Job; 6] = [
    Job { name: "1m-read", bytes: 1 << 20, depth: 4, is_write: false, is_random: false },
    Job { name: "1m-write", bytes: 1 << 20, depth: 4, is_write: true, is_random: false },
    Job { name: "4k-read-1", bytes: 4096, depth: 1, is_write: false, is_random: true },
    Job { name: "4k-write-1", bytes: 4096, depth: 1, is_write: true, is_random: true },
    Job { name: "4k-read-32", bytes: 4096, depth: 32, is_write: false, is_random: true },
    Job { name: "4k-write-32", bytes: 4096, depth: 32, is_write: true, is_random: true },
];

fn work(file: &File, job: Job, blocks: u64, next: &AtomicU64, until: Instant) -> u64 {
    let mut buffer = Box::new(Buffer([7; 1 << 20]));
    let bytes = &mut buffer.0[..job.bytes];
    let mut done = 0;
    while Instant::now() < until {
        let number = next.fetch_add(1, Ordering::Relaxed);
        // The same order every time: a multiplicative hash of the number.
        let block = if job.is_random { number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20 } else { number };
        let offset = block % blocks * job.bytes as u64;
        if job.is_write {
            file.write_all_at(bytes, offset).expect("the disk is written");
        } else {
            file.read_exact_at(bytes, offset).expect("the disk is read");
        }
        done += 1;
    }
    done
}

fn main() {
    let path = std::env::args().nth(1).expect("a disk");
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).custom_flags(O_DIRECT).open(path).expect("the disk is there");
    let size = file.seek(SeekFrom::End(0)).expect("it has a size");
    for job in JOBS {
        let (file, next) = (&file, AtomicU64::new(0));
        let begun = Instant::now();
        let done: u64 = std::thread::scope(|scope| {
            let work = || work(file, job, size / job.bytes as u64, &next, begun + TIME);
            let threads: Vec<_> = (0..job.depth).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no thread fails")).sum()
        });
        let rate = done as f64 / begun.elapsed().as_secs_f64();
        println!("{{\"job\":\"{}\",\"requests_per_s\":{rate:.1}}}", job.name);
    }
}
