//! What failed outside of the machine, and what whoever runs it says about that.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use serde::Serialize;

use crate::event::Event;

/// Something a disk's file could not do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The disk.
    pub disk: String,
    /// What was being done.
    pub action: &'static str,
    /// What the file said.
    pub error: String,
    /// It failed for want of space.
    pub no_space: bool,
    /// It cannot be tried again: what the guest was told is on disk may not be.
    pub is_final: bool,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try again.
    TryAgain,
    /// The machine ends, or the device is reset.
    End,
}

#[derive(Default)]
struct State {
    faults: Vec<Fault>,
    /// Grows when all that failed is to be tried again.
    attempt: u64,
    has_ended: bool,
}

/// Where faults are reported, and waited with.
pub struct Faults {
    state: Mutex<State>,
    changed: Condvar,
    news: Event,
}

impl Faults {
    /// Nothing failed yet; `news` is signalled when something does.
    pub fn new(news: Event) -> Faults {
        Faults { state: Mutex::default(), changed: Condvar::new(), news }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that something failed, and waits for the verdict; or until `stopping` is set and everyone was woken.
    pub fn report(&self, fault: Fault, stopping: &AtomicBool) -> Verdict {
        // Before the lock: whoever reads messages may be slow, and those who end the machine wait for nobody.
        tracing::warn!(
            disk = fault.disk,
            action = fault.action,
            error = fault.error,
            "the machine waits for a disk"
        );
        let mut state = self.lock();
        if state.has_ended || (stopping.load(Ordering::SeqCst) && !fault.is_final) {
            return Verdict::End;
        }
        let (attempt, is_final) = (state.attempt, fault.is_final);
        if !state.faults.contains(&fault) {
            state.faults.push(fault);
        }
        self.news.signal();
        loop {
            if state.has_ended || stopping.load(Ordering::SeqCst) {
                return Verdict::End;
            }
            if state.attempt != attempt && !is_final {
                return Verdict::TryAgain;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// What failed and was not tried again.
    pub fn list(&self) -> Vec<Fault> {
        self.lock().faults.clone()
    }

    /// Has everything tried again that can be; whether nothing is left.
    pub fn try_again(&self) -> bool {
        let mut state = self.lock();
        state.attempt += 1;
        state.faults.retain(|fault| fault.is_final);
        self.changed.notify_all();
        state.faults.is_empty()
    }

    /// Has everyone who waits look whether they are to stop.
    pub fn wake(&self) {
        let _state = self.lock();
        self.changed.notify_all();
    }

    /// Lets everyone go who waits.
    pub fn end(&self) {
        self.lock().has_ended = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn fault(is_final: bool) -> Fault {
        Fault {
            disk: "home".to_owned(),
            action: "write",
            error: "no space".to_owned(),
            no_space: true,
            is_final,
        }
    }

    fn reported(faults: &Arc<Faults>, fault: Fault) -> std::thread::JoinHandle<Verdict> {
        let before = faults.list().len();
        let reporting = Arc::clone(faults);
        let thread = std::thread::spawn(move || reporting.report(fault, &AtomicBool::new(false)));
        while faults.list().len() == before {
            std::thread::yield_now();
        }
        thread
    }

    #[test]
    fn what_failed_is_tried_again_when_somebody_says_so() {
        let faults = Arc::new(Faults::new(Event::new().unwrap()));
        let waiting = reported(&faults, fault(false));
        assert!(faults.news.take());
        assert!(faults.try_again());
        assert_eq!(waiting.join().unwrap(), Verdict::TryAgain);
        assert_eq!(faults.list(), []);
    }

    #[test]
    fn what_is_final_waits_for_the_end() {
        let faults = Arc::new(Faults::new(Event::new().unwrap()));
        let waiting = reported(&faults, fault(true));
        assert!(!faults.try_again());
        assert_eq!(faults.list(), [fault(true)]);
        faults.end();
        assert_eq!(waiting.join().unwrap(), Verdict::End);
        let never = AtomicBool::new(false);
        assert_eq!(faults.report(fault(false), &never), Verdict::End, "nothing waits any more");
    }
}
