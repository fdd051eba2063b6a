//! A queue as its device sees it: chains come out, used lengths go in, and the driver is told only when it wants to be.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};

use super::{GuestMemory, Interrupt};
use crate::event::Event;

/// A chain of descriptors that the driver made available.
pub type Chain = DescriptorChain<GuestMemory>;

/// A chain that breaks the rules of its device. It is returned to the driver unused, so that the queue goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadChain {
    /// The chain has too few bytes for its header or for its answer.
    #[error("a chain is too short")]
    TooShort,
    /// The chain has more bytes, or more descriptors, than the device takes.
    #[error("a chain is too long")]
    TooLong,
    /// A buffer lies outside the guest's memory, or a buffer to read follows one to write.
    #[error("a chain names memory that is not there, or in the wrong order")]
    Unreachable,
    /// A header asks for something that cannot be.
    #[error("a request makes no sense")]
    Senseless,
}

/// A queue that is ready, and the event its driver rings.
pub struct DeviceQueue {
    queue: Queue,
    index: u16,
    notify: Event,
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    /// Chains that were popped and not pushed: no more than the queue has entries, for each has one of its own.
    in_flight: u16,
    /// The driver said something about its ring that cannot be. Nothing is taken from it any more.
    is_broken: bool,
}

impl DeviceQueue {
    /// A queue whose addresses were checked (`queue.is_valid`).
    pub fn new(
        queue: Queue,
        index: u16,
        notify: Event,
        memory: GuestMemory,
        interrupt: Arc<dyn Interrupt>,
    ) -> DeviceQueue {
        DeviceQueue { queue, index, notify, memory, interrupt, in_flight: 0, is_broken: false }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The number of entries.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Takes the ring of the driver back, so that the next one is seen.
    pub fn acknowledge(&self) {
        self.notify.take();
    }

    /// The next chain the driver made available.
    pub fn pop(&mut self) -> Option<Chain> {
        if self.is_broken {
            return None;
        }
        let available = self.queue.iter(GuestMemory::clone(&self.memory)).map(|mut chains| chains.next());
        let chain = available.unwrap_or_else(|error| {
            tracing::debug!(queue = self.index, %error, "a driver broke its queue");
            self.is_broken = true;
            None
        })?;
        if self.in_flight >= self.size() {
            tracing::debug!(queue = self.index, "a driver made more available than its queue holds");
            self.is_broken = true;
            return None;
        }
        self.in_flight += 1;
        Some(chain)
    }

    /// Whether there is a chain to pop.
    pub fn has_more(&self) -> bool {
        let available = self.queue.avail_idx(&*self.memory, Ordering::Acquire);
        !self.is_broken && available.is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    /// Rings as the driver would: whoever serves the queue looks at it once more.
    pub fn ring(&self) {
        self.notify.signal();
    }

    /// Puts the last chain back: the next [`DeviceQueue::pop`] gives it again.
    pub fn unpop(&mut self) {
        self.queue.set_next_avail(self.queue.next_avail().wrapping_sub(1));
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Gives a chain back of which `written` bytes were written. The driver is told by [`DeviceQueue::tell`].
    pub fn push(&mut self, head: u16, written: u32) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Err(error) = self.queue.add_used(&*self.memory, head, written) {
            // The ring was in memory when it was made ready, and memory does not go away: only a head that is no entry fails.
            tracing::debug!(queue = self.index, %error, "a chain cannot be given back");
        }
    }

    /// Tells the driver of what was pushed, unless it said that it need not know. Once per batch.
    pub fn tell(&mut self) {
        match self.queue.needs_notification(&*self.memory) {
            Ok(false) => {}
            Ok(true) | Err(_) => self.interrupt.queue_used(self.index),
        }
    }

    /// Asks to be rung at the next chain. Where one came in the meantime the queue rings itself, so that whoever serves it
    /// looks at what else there is to do before it goes on.
    pub fn rearm(&mut self) {
        if !self.is_broken && self.queue.enable_notification(&*self.memory).unwrap_or(false) {
            self.notify.signal();
        }
    }

    /// Serves what is available now, at most one round of the queue; `each` gives the bytes it wrote into the chain.
    pub fn serve(&mut self, mut each: impl FnMut(&Chain) -> u32) {
        self.acknowledge();
        let mut pushed = false;
        for _ in 0..self.size() {
            let Some(chain) = self.pop() else { break };
            let written = each(&chain);
            self.push(chain.head_index(), written);
            pushed = true;
        }
        if pushed {
            self.tell();
        }
        self.rearm();
    }
}

impl AsFd for DeviceQueue {
    /// The event the driver rings: readable when there may be something to pop.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.notify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::{Descriptor, Driver, Idle};
    use super::*;

    const SIZE: u16 = Idle::QUEUE_SIZE;

    fn queue_with_a_chain() -> (Driver, DeviceQueue, u16) {
        let (mut driver, queue) = Idle::start();
        let address = driver.buffer(16);
        let head = driver.send_chain(0, &[Descriptor { address, length: 16, flags: 0, next: 0 }]);
        (driver, queue, head)
    }

    #[test]
    fn a_chain_made_available_again_and_again_is_taken_no_more_often_than_the_queue_has_entries() {
        let (mut driver, mut queue, head) = queue_with_a_chain();
        let mut taken = 0;
        for _ in 0..10_000 {
            taken += u16::from(queue.pop().is_some());
            driver.make_available(0, head);
        }
        assert_eq!(taken, SIZE);
        assert!(!queue.has_more(), "nothing is taken from it any more");
    }

    #[test]
    fn as_many_chains_as_the_queue_has_entries_may_be_out_at_once() {
        let (mut driver, mut queue, head) = queue_with_a_chain();
        for _ in 1..SIZE {
            driver.make_available(0, head);
        }
        for _ in 0..10_000 {
            for _ in 0..SIZE {
                assert!(queue.pop().is_some());
            }
            assert!(queue.pop().is_none());
            queue.unpop();
            assert!(queue.pop().is_some());
            for _ in 0..SIZE {
                queue.push(head, 0);
                driver.make_available(0, head);
            }
        }
    }
}
