//! The thread that serves a device, from its activation to its reset.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::event::Event;
use crate::sandbox;

/// What a thread is for: its name, and what it may ask of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Reads and writes a disk.
    Block,
    /// Carries frames.
    Network,
    /// Gives random bytes.
    Random,
    /// Carries what consoles say.
    Console,
    /// Gives memory back to the host.
    Balloon,
    /// Carries streams between guest and host.
    Vsock,
    /// Carries what is typed on the serial line.
    Serial,
}

impl Role {
    /// The thread's name.
    pub fn name(self) -> &'static str {
        match self {
            Role::Block => "block",
            Role::Network => "network",
            Role::Random => "random",
            Role::Console => "console",
            Role::Balloon => "balloon",
            Role::Vsock => "vsock",
            Role::Serial => "serial",
        }
    }
}

type Body = Box<dyn FnOnce() + Send>;
type Done = Box<dyn FnOnce(io::Result<JoinHandle<()>>) + Send>;

/// A thread that is to be started, and who is told.
struct Order {
    role: Role,
    body: Body,
    done: Done,
}

/// Who starts threads for others.
static STARTER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();

/// From now on has threads of devices started by a thread of the caller's kind. A thread gets the filter of whoever starts
/// it, and devices are started by processors, which may do less than devices.
///
/// # Errors
/// No thread is to be had.
pub fn start_threads_from_here() -> io::Result<()> {
    let (sender, orders): (_, Receiver<Order>) = mpsc::channel();
    std::thread::Builder::new().name("starter".to_owned()).spawn(move || {
        for order in orders {
            order.fill();
        }
    })?;
    // A second starter would do as well as the first.
    let _ = STARTER.set(Mutex::new(sender));
    Ok(())
}

impl Order {
    fn fill(self) {
        let name = self.role.name().to_owned();
        (self.done)(std::thread::Builder::new().name(name).spawn(self.body));
    }
}

/// Has a thread started, sooner or later; `done` is told how it went.
pub(super) fn order_thread(
    role: Role,
    body: Body,
    done: impl FnOnce(io::Result<JoinHandle<()>>) + Send + 'static,
) {
    let order = Order { role, body, done: Box::new(done) };
    let Some(starter) = STARTER.get() else { return order.fill() };
    let sent = starter.lock().unwrap_or_else(PoisonError::into_inner).send(order);
    if let Err(mpsc::SendError(order)) = sent {
        (order.done)(Err(io::Error::other("the thread that starts others is gone")));
    }
}

pub(super) fn start_thread(role: Role, body: Body) -> io::Result<JoinHandle<()>> {
    let (sender, started) = mpsc::channel();
    order_thread(role, body, move |result| {
        // Whoever asked waits for it.
        let _ = sender.send(result);
    });
    started.recv().unwrap_or_else(|_| Err(io::Error::other("the thread that starts others is gone")))
}

/// What a thread does once it is confined to what its role may do. A thread that cannot be confined does nothing.
pub(super) fn confined(role: Role, body: impl FnOnce() + Send + 'static) -> Body {
    Box::new(move || match sandbox::confine_thread(sandbox::Thread::Device(role)) {
        Ok(()) => body(),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::error!(thread = role.name(), error, "a device does not start");
        }
    })
}

/// A thread that ends when it is told to, at the latest when this is dropped.
pub struct Worker {
    stop: Arc<Event>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts `body`, which returns soon after its event is signalled.
    ///
    /// # Errors
    /// No thread or descriptor is to be had.
    pub fn start(role: Role, body: impl FnOnce(&Event) + Send + 'static) -> io::Result<Worker> {
        let stop = Arc::new(Event::new()?);
        let told = Arc::clone(&stop);
        let thread = start_thread(role, confined(role, move || body(&told)))?;
        Ok(Worker { stop, thread: Some(thread) })
    }

    /// Ends the thread and waits for it.
    pub fn stop(&mut self) {
        self.stop.signal();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a device panicked");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What a thread waits for at one descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Interest<'a> {
    /// The descriptor.
    pub source: BorrowedFd<'a>,
    /// Wait until it can be read.
    pub read: bool,
    /// Wait until it can be written.
    pub write: bool,
}

impl Interest<'_> {
    fn flags(&self) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, self.read);
        flags.set(PollFlags::OUT, self.write);
        flags
    }
}

/// What can be done at a descriptor without waiting. Both can when it was closed: the read or the write then says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// It can be read.
    pub read: bool,
    /// It can be written.
    pub write: bool,
}

/// Waits until something that is of interest can be done, or only looks when there is more to do `at_once`. What can be
/// done, in the order of `interests`; `None` when the thread is to end.
///
/// A descriptor of no interest is not waited for at all: that it was closed wakes nobody, who could do nothing about it.
pub fn wait(stop: &Event, interests: &[Interest<'_>], at_once: bool) -> Option<Vec<Ready>> {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        let mut polled = vec![PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN)];
        let asked = interests.iter().filter(|interest| !interest.flags().is_empty());
        polled.extend(asked.map(|interest| PollFd::from_borrowed_fd(interest.source, interest.flags())));
        match rustix::event::poll(&mut polled, at_once.then_some(&now)) {
            Ok(_) if !polled[0].revents().is_empty() => return None,
            Ok(_) => {
                let mut answers = polled[1..].iter().map(PollFd::revents);
                let ready = interests.iter().map(|interest| {
                    if interest.flags().is_empty() {
                        return Ready::default();
                    }
                    let answer = answers.next().unwrap_or(PollFlags::empty());
                    let closed = !answer.difference(PollFlags::IN | PollFlags::OUT).is_empty();
                    Ready {
                        read: interest.read && (closed || answer.contains(PollFlags::IN)),
                        write: interest.write && (closed || answer.contains(PollFlags::OUT)),
                    }
                });
                return Some(ready.collect());
            }
            Err(Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "a device cannot wait for its queues and stops");
                return None;
            }
        }
    }
}

/// Waits until one of `sources` can be read (or was closed); which of them. `None` when the thread is to end.
pub fn wait_readable<const N: usize>(stop: &Event, sources: [BorrowedFd<'_>; N]) -> Option<[bool; N]> {
    let ready = wait(stop, &sources.map(|source| Interest { source, read: true, write: false }), false)?;
    let mut readable = [false; N];
    for (readable, ready) in readable.iter_mut().zip(&ready) {
        *readable = ready.read;
    }
    Some(readable)
}
