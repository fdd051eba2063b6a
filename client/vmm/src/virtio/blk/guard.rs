//! Sees to it that a thread that has to wait holds nobody up: whether one does, and a timer for when one does unexpectedly.
//!
//! Whether another thread is worth ringing for depends on what lies below a disk. What is in memory is copied sooner than
//! a thread wakes up; what is asked of another process, of a disk or of the network is better asked for side by side. So a
//! thread goes by whether the kernel had it wait ([`switches`]), and while it goes on alone the timer looks after it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// After this time without a request taken whoever works alone is taken to wait.
const PATIENCE_NS: i64 = 4_000_000;
/// For so many requests after one that waited it is taken for granted that they wait.
const EXPECTED_FOR: u32 = 64;
/// Of the requests a thread does in a row the first ones, so many, and every one of so many after them is looked at.
const LOOKED_AT: u32 = 8;

/// A timer that goes off once after it was set.
#[derive(Debug)]
pub(super) struct Timer(OwnedFd);

impl Timer {
    /// A timer that is not set.
    ///
    /// # Errors
    /// No descriptor is to be had.
    pub(super) fn new() -> io::Result<Timer> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Timer(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    fn set(&self) {
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let once = Itimerspec { it_interval: never, it_value: Timespec { tv_sec: 0, tv_nsec: PATIENCE_NS } };
        if let Err(error) = timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &once) {
            tracing::error!(%error, "the timer of a disk cannot be set");
        }
    }

    fn take(&self) {
        // Whether it had gone off does not matter.
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for Timer {
    /// Readable once it went off.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What is known of how requests of a disk go.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// Requests for which waiting is expected still.
    expected_for: AtomicU32,
    /// The timer is set, and has not been taken since.
    is_set: AtomicBool,
}

impl Guard {
    /// Whether requests are expected to have their thread wait.
    pub(super) fn expects_waiting(&self) -> bool {
        self.expected_for.load(Ordering::Relaxed) > 0
    }

    /// A request was begun while waiting was expected.
    pub(super) fn count_down(&self) {
        // Two at once may count as one: it is a rule of thumb.
        let left = self.expected_for.load(Ordering::Relaxed);
        self.expected_for.store(left.saturating_sub(1), Ordering::Relaxed);
    }

    /// A request had its thread wait.
    pub(super) fn waited(&self) {
        self.expected_for.store(EXPECTED_FOR, Ordering::Relaxed);
    }

    /// Has the timer go off, unless it does soon. To be called with the queue locked of which something is left undone or untold,
    /// so that whoever takes the timer sees that.
    pub(super) fn watch(&self, timer: &Timer) {
        if !self.is_set.swap(true, Ordering::SeqCst) {
            timer.set();
        }
    }

    /// Takes the timer. From here on [`Guard::watch`] sets it again.
    pub(super) fn take(&self, timer: &Timer) {
        timer.take();
        self.is_set.store(false, Ordering::SeqCst);
    }
}

/// Tells of requests that a thread does in a row whether they had it wait.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    /// What [`switches`] said when it was asked last.
    before: Option<i64>,
    done: u32,
}

impl Sampler {
    /// A request is about to be done.
    pub(super) fn begin(&mut self) {
        self.before.get_or_insert_with(switches);
    }

    /// A request was done; whether it, or one since it was last looked, had the thread wait.
    pub(super) fn end(&mut self) -> bool {
        let is_due = self.done < LOOKED_AT || self.done.is_multiple_of(LOOKED_AT);
        self.done = self.done.wrapping_add(1);
        if !is_due {
            return false;
        }
        let now = Some(switches());
        let before = std::mem::replace(&mut self.before, now);
        before != now
    }
}

/// How often the calling thread gave its processor up because it had to wait (`ru_nvcsw` of getrusage(2)).
pub(super) fn switches() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one `rusage` there, or nothing; zeros are one too.
    #[expect(unsafe_code, reason = "no safe wrapper of getrusage(2) is among the libraries")]
    let usage = unsafe {
        libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr());
        usage.assume_init()
    };
    usage.ru_nvcsw
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_thread_that_sleeps_has_waited_and_one_that_computes_has_not() {
        let before = switches();
        std::thread::sleep(Duration::from_millis(1));
        assert!(switches() > before);
        let before = switches();
        assert_eq!(switches(), before);
    }

    #[test]
    fn requests_that_wait_are_seen_at_once_at_first_and_soon_after_others_that_did_not() {
        let mut sampler = Sampler::default();
        let mut waits = |wait: bool| {
            sampler.begin();
            if wait {
                std::thread::sleep(Duration::from_millis(1));
            }
            sampler.end()
        };
        assert!(waits(true));
        assert!((2..=LOOKED_AT).all(|_| !waits(false)));
        assert!(!waits(false), "the one after those is looked at as well");
        assert!(!waits(true), "not each is looked at any more");
        assert!((0..LOOKED_AT).any(|_| waits(false)));
    }

    #[test]
    fn waiting_is_expected_for_a_while_after_it_happened() {
        let guard = Guard::default();
        assert!(!guard.expects_waiting());
        guard.waited();
        (0..EXPECTED_FOR).for_each(|_| {
            assert!(guard.expects_waiting());
            guard.count_down();
        });
        assert!(!guard.expects_waiting());
        guard.count_down();
        assert!(!guard.expects_waiting());
    }

    #[test]
    fn the_timer_goes_off_once_after_it_was_set_and_can_be_set_again() {
        let (guard, timer) = (Guard::default(), Timer::new().unwrap());
        let goes_off = |patience: Option<&Timespec>| {
            let mut polled = [rustix::event::PollFd::new(&timer, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut polled, patience).unwrap() == 1
        };
        for _ in 0..2 {
            guard.watch(&timer);
            guard.watch(&timer);
            assert!(goes_off(None));
            guard.take(&timer);
            assert!(!goes_off(Some(&Timespec { tv_sec: 0, tv_nsec: 2 * PATIENCE_NS })));
        }
    }
}
