//! An event that one thread, or KVM, signals and another waits for: an `eventfd(2)`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use rustix::event::EventfdFlags;
use vmm_sys_util::eventfd::EventFd;

/// An event. It stays signalled until it is taken.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// An event that is not signalled.
    ///
    /// # Errors
    /// No descriptor is to be had.
    pub fn new() -> io::Result<Event> {
        Ok(Event(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// The same event once more.
    ///
    /// # Errors
    /// No descriptor is to be had.
    pub fn try_clone(&self) -> io::Result<Event> {
        Ok(Event(self.0.try_clone()?))
    }

    /// Signals.
    pub fn signal(&self) {
        // It fails only when the counter is full: then it is signalled already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Takes the signal back; whether there was one.
    pub fn take(&self) -> bool {
        rustix::io::read(&self.0, &mut [0_u8; 8]).is_ok()
    }

    /// The same event as KVM's bindings want it.
    ///
    /// # Errors
    /// No descriptor is to be had.
    pub fn to_kvm(&self) -> io::Result<EventFd> {
        let copy = self.0.try_clone()?.into_raw_fd();
        // SAFETY: the copy is an eventfd, open, and nobody else's.
        #[expect(unsafe_code, reason = "EventFd is made of a raw descriptor only")]
        Ok(unsafe { EventFd::from_raw_fd(copy) })
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
