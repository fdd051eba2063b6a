//! A boot's reads, done again one after the other, every byte compared.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

use crate::trace::{BlockRead, Trace};

/// What direct I/O wants of a buffer's address, bytes.
const ALIGNMENT: usize = 4096;

/// How a file is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Past the host's page cache (`O_DIRECT`), as a machine with `cache=none` reads.
    Direct,
    /// Through the host's page cache.
    Cached,
}

/// A trace with the bytes its reads should give, held in memory so that comparing costs next to nothing.
#[derive(Debug)]
pub struct Replay {
    reads: Vec<BlockRead>,
    /// What the reads should give, one after the other.
    expected: Vec<u8>,
    /// Where in it each read begins.
    starts: Vec<usize>,
}

/// How a replay went.
#[derive(Clone, Debug)]
pub struct Replayed {
    /// From the first read to the end of the last.
    pub taken: Duration,
    /// How much of that went into comparing, summed over the threads.
    pub comparing: Duration,
    /// How long each read took, the shortest first.
    pub latencies: Vec<Duration>,
}

impl Replayed {
    /// Returns the time that the share `quantile` (0 to 1) of the reads stayed within.
    pub fn latency(&self, quantile: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of a list")]
        let at = (last as f64 * quantile.clamp(0.0, 1.0)).round() as usize;
        self.latencies.get(at).copied().unwrap_or_default()
    }
}

impl Replay {
    /// Takes the right answers from `image`.
    ///
    /// # Errors
    /// `image` cannot be read, or is shorter than what was read of it.
    pub fn new(trace: &Trace, image: &Path) -> io::Result<Self> {
        let file = File::open(image)?;
        let mut starts = Vec::with_capacity(trace.reads.len());
        let mut expected = Vec::with_capacity(to_len(trace.bytes())?);
        for read in &trace.reads {
            let start = expected.len();
            starts.push(start);
            expected.resize(start + to_len(read.len)?, 0);
            file.read_exact_at(&mut expected[start..], read.offset)?;
        }
        Ok(Self { reads: trace.reads.clone(), expected, starts })
    }

    /// Returns how many reads there are.
    pub fn len(&self) -> usize {
        self.reads.len()
    }

    /// Whether there is nothing to read.
    pub fn is_empty(&self) -> bool {
        self.reads.is_empty()
    }

    /// Returns how much is read, bytes.
    pub fn bytes(&self) -> u64 {
        self.expected.len() as u64
    }

    /// Does the reads on `path` in order and without a pause, `depth` (at least 1) at a time. `done` counts those that
    /// have ended. A file that does not take direct I/O is read through the page cache.
    ///
    /// # Errors
    /// A read that failed; one that gave other bytes than the image has is `InvalidData`.
    pub fn run(&self, path: &Path, access: Access, depth: usize, done: &AtomicUsize) -> io::Result<Replayed> {
        let file = open(path, access)?;
        let next = AtomicUsize::new(0);
        let began = Instant::now();
        let parts: Vec<io::Result<Replayed>> = thread::scope(|scope| {
            let workers: Vec<_> =
                (0..depth.max(1)).map(|_| scope.spawn(|| self.work(&file, &next, done))).collect();
            workers.into_iter().map(|worker| worker.join().expect("a replay does not panic")).collect()
        });
        let mut whole = Replayed { taken: began.elapsed(), comparing: Duration::ZERO, latencies: Vec::new() };
        for part in parts {
            let part = part?;
            whole.comparing += part.comparing;
            whole.latencies.extend(part.latencies);
        }
        whole.latencies.sort_unstable();
        Ok(whole)
    }

    /// Takes reads from the list until there are none.
    fn work(&self, file: &File, next: &AtomicUsize, done: &AtomicUsize) -> io::Result<Replayed> {
        let longest = self.reads.iter().map(|read| read.len).max().unwrap_or(0);
        let mut memory = vec![0; to_len(longest)? + ALIGNMENT];
        let aligned = memory.as_ptr().align_offset(ALIGNMENT);
        let buffer = &mut memory[aligned..];
        let began = Instant::now();
        let (mut comparing, mut latencies) = (Duration::ZERO, Vec::with_capacity(self.reads.len()));
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(read) = self.reads.get(at) else { break };
            let buffer = &mut buffer[..to_len(read.len)?];
            let asked = Instant::now();
            file.read_exact_at(buffer, read.offset).map_err(|error| {
                io::Error::new(
                    error.kind(),
                    format!("read {at}, {} bytes at {}: {error}", read.len, read.offset),
                )
            })?;
            let answered = Instant::now();
            let expected = &self.expected[self.starts[at]..][..buffer.len()];
            if buffer != expected {
                let message = format!("read {at}, {} bytes at {}: wrong bytes", read.len, read.offset);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            comparing += answered.elapsed();
            latencies.push(answered - asked);
            done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Replayed { taken: began.elapsed(), comparing, latencies })
    }
}

fn open(path: &Path, access: Access) -> io::Result<File> {
    if access == Access::Direct {
        let flags = i32::try_from(OFlags::DIRECT.bits()).expect("a flag is a small number");
        match OpenOptions::new().read(true).custom_flags(flags).open(path) {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {}
            opened => return opened,
        }
    }
    File::open(path)
}

fn to_len(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_compared_at_any_depth() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let mut bytes = vec![0; 1 << 20];
        crate::Rng::new(5).fill(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        let reads: Vec<BlockRead> =
            (0..200).map(|at| BlockRead { offset: at * 4096, len: 512 * (at % 16 + 1) }).collect();
        let replay = Replay::new(&Trace { reads }, &path).unwrap();
        for (depth, access) in [(1, Access::Direct), (4, Access::Cached)] {
            let done = AtomicUsize::new(0);
            let went = replay.run(&path, access, depth, &done).unwrap();
            assert_eq!((went.latencies.len(), done.into_inner()), (200, 200));
            assert!(went.latency(0.0) <= went.latency(0.5) && went.latency(0.5) <= went.latency(1.0));
        }
        let offset = 100 * 4096 + 7;
        bytes[offset] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let wrong = replay.run(&path, Access::Cached, 1, &AtomicUsize::new(0)).unwrap_err();
        assert_eq!(wrong.kind(), io::ErrorKind::InvalidData);
        assert!(wrong.to_string().starts_with("read 100,"), "{wrong}");
    }
}
