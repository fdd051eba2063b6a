//! Bounds on the work that a disk can ask for.
//!
//! The file system is read by a library that knows no bounds: a tree of extents whose nodes all point at the same few
//! blocks takes it longer than anyone lives, without one more read. So it works on a thread of its own, whose reads are
//! counted, and which is given up when it neither reads nor ends. How long a read takes is not counted: the disk may be
//! far away.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::disk::ReadDisk;

/// How long anything may be worked on between two reads.
const MAX_SILENCE: Duration = Duration::from_secs(20);
/// Bytes that are read in all: a kernel, its initrds and the journals of some file systems, several times.
const MAX_READ_BYTES: u64 = 4 << 30;
/// What a read counts at least.
const MIN_READ_BYTES: u64 = 512;

/// A disk that can be read.
pub(super) type SharedDisk = Arc<dyn ReadDisk + Send + Sync>;

/// The work was given up.
#[derive(Debug)]
pub(super) enum GivenUp {
    /// The disk cannot be read. What the work makes of that is not to be used: a file that cannot be read is not one that is
    /// not there.
    Disk(io::Error),
    /// It asked for more reads than a disk in order needs, or does without an end.
    Endless,
    /// There is no thread to be had, or it ended too early.
    Thread(io::Error),
}

/// A disk whose reads are counted.
struct Counted {
    disk: SharedDisk,
    budget: AtomicU64,
    is_exhausted: AtomicBool,
    /// What the disk said when it could not be read; it is not asked again.
    failed: Mutex<Option<io::Error>>,
    /// When the last read ended; `None` within one.
    last_read: Mutex<Option<Instant>>,
}

impl Counted {
    fn set_last_read(&self, at: Option<Instant>) {
        *self.last_read.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    fn silence(&self) -> Duration {
        let last = *self.last_read.lock().unwrap_or_else(PoisonError::into_inner);
        last.map_or(Duration::ZERO, |last| last.elapsed())
    }

    fn failed(&self) -> MutexGuard<'_, Option<io::Error>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why nothing that the work has found counts.
    fn given_up(&self) -> Option<GivenUp> {
        let failed = self.failed().take().map(GivenUp::Disk);
        failed.or_else(|| self.is_exhausted.load(Ordering::Relaxed).then_some(GivenUp::Endless))
    }
}

impl ReadDisk for Counted {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.failed().is_some() {
            return Err(io::Error::other("this disk cannot be read"));
        }
        let cost = (buf.len() as u64).max(MIN_READ_BYTES);
        let paid =
            self.budget.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(cost));
        if paid.is_err() {
            self.is_exhausted.store(true, Ordering::Relaxed);
            return Err(io::Error::other("too much is read from this disk"));
        }
        self.set_last_read(None);
        let done = self.disk.read_at(buf, offset);
        self.set_last_read(Some(Instant::now()));
        done.map_err(|error| {
            let kind = error.kind();
            self.failed().get_or_insert(error);
            kind.into()
        })
    }
}

/// Does work that reads a disk. When it is given up its thread is left behind: it ends at its next read, or with the
/// process.
pub(super) fn run<T: Send + 'static>(
    disk: SharedDisk,
    work: impl FnOnce(SharedDisk) -> T + Send + 'static,
) -> Result<T, GivenUp> {
    run_with(disk, MAX_READ_BYTES, MAX_SILENCE, work)
}

fn run_with<T: Send + 'static>(
    disk: SharedDisk,
    budget: u64,
    silence: Duration,
    work: impl FnOnce(SharedDisk) -> T + Send + 'static,
) -> Result<T, GivenUp> {
    let counted = Arc::new(Counted {
        disk,
        budget: AtomicU64::new(budget),
        is_exhausted: AtomicBool::new(false),
        failed: Mutex::new(None),
        last_read: Mutex::new(Some(Instant::now())),
    });
    let (sender, receiver) = channel();
    let its = Arc::clone(&counted);
    let body = move || {
        // Nobody may be waiting any more.
        let _ = sender.send(work(its));
    };
    std::thread::Builder::new().name("boot".to_owned()).spawn(body).map_err(GivenUp::Thread)?;
    loop {
        match receiver.recv_timeout(silence / 4) {
            Ok(done) => return counted.given_up().map_or(Ok(done), Err),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(GivenUp::Thread(io::Error::other(
                    "the thread that looks into the disk has died",
                )));
            }
            Err(RecvTimeoutError::Timeout) if counted.silence() > silence => {
                counted.budget.store(0, Ordering::Relaxed);
                return Err(counted.given_up().unwrap_or(GivenUp::Endless));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_ends_gives_what_it_has() {
        let disk: SharedDisk = Arc::new(vec![7_u8; 1024]);
        let read = |disk: SharedDisk| {
            let mut byte = [0];
            disk.read_at(&mut byte, 1023).map(|()| byte[0]).ok()
        };
        assert_eq!(run(disk, read).unwrap(), Some(7));
    }

    #[test]
    fn work_that_reads_without_end_is_given_up() {
        let disk: SharedDisk = Arc::new(vec![7_u8; 1024]);
        let endless = |disk: SharedDisk| while disk.read_at(&mut [0; 8], 0).is_ok() {};
        assert!(matches!(run_with(disk, 1 << 20, MAX_SILENCE, endless), Err(GivenUp::Endless)));
    }

    #[test]
    fn work_on_a_disk_that_fails_is_given_up_with_what_it_said_first_and_reads_no_more() {
        struct Failing(AtomicU64);
        impl ReadDisk for Failing {
            fn size_bytes(&self) -> u64 {
                1024
            }
            fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
                Err(io::Error::other(format!("failure {}", self.0.fetch_add(1, Ordering::Relaxed))))
            }
        }
        let disk = Arc::new(Failing(AtomicU64::new(0)));
        let unmoved = |disk: SharedDisk| [0, 512].map(|at| disk.read_at(&mut [0; 8], at).is_ok());
        let Err(GivenUp::Disk(error)) = run(Arc::clone(&disk) as SharedDisk, unmoved) else { panic!() };
        assert_eq!(error.to_string(), "failure 0");
        assert_eq!(disk.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn work_that_neither_reads_nor_ends_is_given_up() {
        let disk: SharedDisk = Arc::new(vec![7_u8; 1024]);
        let (_keep, never) = channel::<()>();
        let silent = move |_: SharedDisk| never.recv().is_ok();
        let done = run_with(disk, 1 << 20, Duration::from_millis(20), silent);
        assert!(matches!(done, Err(GivenUp::Endless)));
    }
}
