//! The threads of a disk: they share its queues.
//!
//! Whoever is rung takes the requests of a queue one by one and does them. While requests have their thread wait, it rings for
//! another thread whenever there is one more, so that many are under way at once; while they do not, it goes on alone, tells
//! the driver of what it answered together, and is looked after by a timer ([`Guard`]): should a request wait after all, the next
//! thread tells what was answered and goes on with the rest. Once none is idle one more is started, until there are as many as may be.
//!
//! Reads may wait for long, so they never have the last threads: writes and flushes go on whatever reads wait for. Where another
//! process serves the file, what changes a part of a block is preceded by a read of it, for it needs the rest: the kernel holds
//! a lock over a write that every flush waits for, and over a read it holds none. Such writes have threads of their own: they
//! wait for each other at most, not for reads.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::epoll;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use vm_memory::Bytes;

use super::gather::{Gathering, Scheduled};
use super::guard::{Guard, Sampler};
use super::request::{Action, ID_BYTES, Request};
use super::{Disk, file};
use crate::faults::{Fault, Verdict};
use crate::virtio::crew::Crew;
use crate::virtio::{Chain, DeviceQueue, GuestMemory};

/// Threads of a disk, and how many of them may be at work at once for reads and for writes of parts of blocks.
pub(super) const THREADS: usize = 20;
const READING_THREADS: usize = 14;
const PART_WRITING_THREADS: usize = 4;
/// Threads there are from the beginning: one that may wait in a read, one for a write or a flush, one to look after them.
pub(super) const FIRST_THREADS: usize = 3;
/// Answers the driver is told of together at most, each of fewer bytes than this.
const TOLD_TOGETHER: usize = 32;
const TOLD_TOGETHER_BYTES: u64 = 64 << 10;

/// What the threads of a disk share while its driver is there.
pub(super) struct Server {
    disk: Arc<Disk>,
    memory: GuestMemory,
    queues: Vec<Mutex<Served>>,
    reads: Lane,
    part_writes: Lane,
    guard: Guard,
    gathering: Gathering,
    /// Threads that wait for a ring.
    idle: AtomicUsize,
    /// Whether what was written is to last before it is answered.
    writes_through: bool,
    stopping: Arc<AtomicBool>,
}

/// A queue, and what was done with it.
struct Served {
    queue: DeviceQueue,
    /// Answers the driver was not told of.
    untold: usize,
    /// Requests taken: by now, and when the timer went off last. They come round.
    taken: u32,
    taken_before: u32,
}

impl Served {
    fn tell(&mut self) {
        self.untold = 0;
        self.queue.tell();
    }
}

/// A request that was taken from a queue.
struct Taken {
    queue: usize,
    chain: Chain,
    request: Request,
}

/// Requests that may wait for long.
#[derive(Default)]
struct Lane(Mutex<Waiting>);

/// Those under way, and those that wait for one of them to end: at most what the queues hold, for of each no more chains are out.
#[derive(Default)]
struct Waiting {
    under_way: usize,
    waiting: VecDeque<Taken>,
}

impl Lane {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    pub(super) fn new(
        disk: Arc<Disk>,
        memory: GuestMemory,
        queues: Vec<DeviceQueue>,
        features: u64,
        stopping: Arc<AtomicBool>,
    ) -> Server {
        Server {
            disk,
            memory,
            queues: queues
                .into_iter()
                .map(|queue| Mutex::new(Served { queue, untold: 0, taken: 0, taken_before: 0 }))
                .collect(),
            reads: Lane::default(),
            part_writes: Lane::default(),
            guard: Guard::default(),
            gathering: Gathering::new(Instant::now()),
            idle: AtomicUsize::new(0),
            // Virtio 1.2, section 5.2.6.2: a driver that knows no flush may rely on what was answered.
            writes_through: features & 1 << VIRTIO_BLK_F_FLUSH == 0,
            stopping,
        }
    }

    fn queue(&self, queue: usize) -> MutexGuard<'_, Served> {
        self.queues[queue].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does until the crew is to end.
    pub(super) fn serve(&self, crew: &Crew) {
        if let Err(error) = self.try_serve(crew) {
            tracing::error!(%error, "a thread of a disk cannot wait for its queues");
        }
    }

    fn try_serve(&self, crew: &Crew) -> io::Result<()> {
        const STOP: u64 = u64::MAX;
        const TIMER: u64 = u64::MAX - 1;
        let waiting = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let add = |source: BorrowedFd<'_>, number, flags| {
            epoll::add(&waiting, source, epoll::EventData::new_u64(number), flags)
        };
        add(crew.stop().as_fd(), STOP, epoll::EventFlags::IN)?;
        // Exclusive: a ring wakes one thread, not all.
        let exclusive = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
        add(self.disk.timer.as_fd(), TIMER, exclusive)?;
        for (number, queue) in (0..).zip(&self.queues) {
            let served = queue.lock().unwrap_or_else(PoisonError::into_inner);
            add(served.queue.as_fd(), number, exclusive)?;
        }
        let data = epoll::EventData::new_u64(0);
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data }];
        let mut scheduled = Scheduled::now();
        while !self.stopping.load(Ordering::SeqCst) {
            self.gathering.adopt(&mut scheduled);
            self.idle.fetch_add(1, Ordering::SeqCst);
            let woken = epoll::wait(&waiting, &mut events, None);
            if self.idle.fetch_sub(1, Ordering::SeqCst) == 1 {
                crew.grow();
            }
            match woken {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            match events[0].data.u64() {
                STOP => return Ok(()),
                TIMER => self.look_after(),
                queue => {
                    let known = usize::try_from(queue).ok().filter(|queue| *queue < self.queues.len());
                    if known.is_some_and(|queue| self.take_turn(queue, crew).is_none()) {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Does requests until there are none. `None` when the device is to stop.
    fn take_turn(&self, queue: usize, crew: &Crew) -> Option<()> {
        let mut is_rung = true;
        let mut requests = 0;
        let mut sampler = Sampler::default();
        while !self.stopping.load(Ordering::SeqCst)
            && let Some((chain, is_alone)) = self.next(queue, is_rung)
        {
            is_rung = !is_alone;
            requests = u32::saturating_add(requests, 1);
            // One that was not to be had before may be by now.
            if crew.may_grow() && self.idle.load(Ordering::SeqCst) == 0 {
                crew.grow();
            }
            if !is_alone {
                self.take_on(queue, chain)?;
                sampler = Sampler::default();
                continue;
            }
            sampler.begin();
            self.take_on(queue, chain)?;
            if sampler.end() {
                self.guard.waited();
            }
        }
        self.gathering.took_turn(requests);
        Some(())
    }

    /// Takes a request, and whether there are more that nobody was rung for. The ring is taken back where there may be one.
    fn next(&self, queue: usize, is_rung: bool) -> Option<(Chain, bool)> {
        let mut served = self.queue(queue);
        if is_rung {
            served.queue.acknowledge();
        }
        let expects_waiting = self.guard.expects_waiting();
        let chain = served.queue.pop();
        served.taken = served.taken.wrapping_add(chain.is_some().into());
        // While there is more, somebody looks again in any case: the driver need not ring for every request.
        let has_more = served.queue.has_more();
        if !has_more {
            served.queue.rearm();
        } else if expects_waiting {
            self.guard.count_down();
            served.queue.ring();
        } else {
            self.guard.watch(&self.disk.timer);
        }
        if chain.is_none() && served.untold > 0 {
            served.tell();
        }
        Some((chain?, has_more && !expects_waiting))
    }

    /// The timer went off: tells what whoever is alone did not, goes on for those who wait, and has the timer go off again where
    /// there is more.
    fn look_after(&self) {
        self.guard.take(&self.disk.timer);
        for queue in &self.queues {
            let mut served = queue.lock().unwrap_or_else(PoisonError::into_inner);
            if served.untold > 0 {
                served.tell();
            }
            if served.queue.has_more() {
                // Of this queue: that others go on helps it nothing.
                if served.taken == served.taken_before {
                    self.guard.waited();
                    served.queue.ring();
                }
                self.guard.watch(&self.disk.timer);
            }
            served.taken_before = served.taken;
        }
    }

    /// Sees to a request, by doing it or, when too many of its kind may be waiting already, by leaving it to one of those. `None`
    /// when the device is to stop.
    fn take_on(&self, queue: usize, chain: Chain) -> Option<()> {
        let request = match Request::parse(&chain, &self.memory, self.disk.geometry) {
            Ok(request) => request,
            Err(error) => {
                self.disk.metrics.refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%error, disk = self.disk.id, "a request cannot be answered");
                self.finish(queue, &chain, 0, 0);
                return Some(());
            }
        };
        let taken = Taken { queue, chain, request };
        let (lane, most) = match &taken.request.action {
            Action::Read(..) => (&self.reads, READING_THREADS),
            action if self.disk.is_served && !action.partial_blocks().is_empty() => {
                (&self.part_writes, PART_WRITING_THREADS)
            }
            _ => return self.answer(&taken),
        };
        {
            let mut lane = lane.lock();
            if lane.under_way >= most {
                lane.waiting.push_back(taken);
                return Some(());
            }
            lane.under_way += 1;
        }
        let mut next = Some(taken);
        while let Some(taken) = next {
            self.answer(&taken)?;
            let mut lane = lane.lock();
            next = lane.waiting.pop_front();
            lane.under_way -= usize::from(next.is_none());
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
                if self.disk.is_served {
                    for block in action.partial_blocks() {
                        // A failure is seen by what follows.
                        let _ = file::read_block(&self.disk.file, block);
                    }
                }
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
        self.finish(*queue, chain, written, request.action.moved_bytes());
        Some(())
    }

    /// Gives a request back that moved so many bytes.
    fn finish(&self, queue: usize, chain: &Chain, written: u32, moved_bytes: u64) {
        let mut served = self.queue(queue);
        served.queue.push(chain.head_index(), written);
        served.untold += 1;
        // Whoever goes on alone tells of several together. It looks at the queue again next, or the timer has somebody else do so.
        let goes_on = served.queue.has_more() && !self.guard.expects_waiting();
        if goes_on && served.untold < TOLD_TOGETHER && moved_bytes < TOLD_TOGETHER_BYTES {
            self.guard.watch(&self.disk.timer);
        } else {
            served.tell();
        }
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
                if let Err(error) = (self.disk.flush)(file) {
                    let is_full = error.kind() == io::ErrorKind::StorageFull;
                    if !(self.disk.is_served && is_full) {
                        self.disk.has_failed.store(true, Ordering::SeqCst);
                    }
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
