//! What the rest of the machine asks of the device, while a thread serves it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::event::Event;

/// Connections that may wait for the device to take them.
const MOST_WAITING: usize = 64;

/// More connections to the guest were asked for than can wait.
#[derive(Debug, thiserror::Error)]
#[error("too many connections wait for the guest")]
pub struct TooManyWaiting;

#[derive(Default)]
pub(super) struct Asked {
    pub(super) connections: VecDeque<(u32, OwnedFd)>,
    /// The guest is to be told that all its connections are gone.
    pub(super) transport_reset: bool,
}

/// Asks the device for something. Clones ask the same one.
#[derive(Clone)]
pub struct Handle {
    asked: Arc<Mutex<Asked>>,
    event: Arc<Event>,
}

impl Handle {
    pub(super) fn new() -> io::Result<Handle> {
        Ok(Handle { asked: Arc::default(), event: Arc::new(Event::new()?) })
    }

    /// Connects a stream socket to a port of the guest, as soon as it has a driver. When the guest accepts, the socket
    /// carries `OK <port of the host's end>` and a line feed, and from then on what the guest says; when it refuses, it is
    /// closed.
    ///
    /// # Errors
    /// Too many wait already; the socket is closed.
    pub fn connect(&self, port: u32, socket: OwnedFd) -> Result<(), TooManyWaiting> {
        let mut asked = self.lock();
        if asked.connections.len() >= MOST_WAITING {
            return Err(TooManyWaiting);
        }
        asked.connections.push_back((port, socket));
        self.event.signal();
        Ok(())
    }

    /// Ends all connections and tells the guest that they are gone (section 5.10.6.7), as after its machine was resumed
    /// from a state that the host does not share.
    pub fn reset_transport(&self) {
        self.lock().transport_reset = true;
        self.event.signal();
    }

    /// Takes all that was asked.
    pub(super) fn take(&self) -> Asked {
        self.event.take();
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
