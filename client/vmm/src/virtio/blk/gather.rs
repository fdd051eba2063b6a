//! Whether a ring wakes a thread of a disk in the guest's place, or as soon as a processor is free.
//!
//! Where a processor is free both are the same. Where none is, a thread that is woken in the guest's place (`SCHED_OTHER`) finds
//! the one request it was rung for, and the guest pays an exit, two switches and an interrupt for each; one that waits its turn
//! (`SCHED_BATCH`, sched(7)) finds all that the guest had to send by then. Which is quicker depends on the load: a guest that
//! waits for its one request while others compute would wait for the end of their time each time.
//!
//! So it is tried. Every now and then the threads wait their turn for some requests, and go on so as long as that is quicker
//! than what was measured before; where it is not, the next trial comes after a time beside which what the last one lost is little.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Requests that are measured together.
const WINDOW: u32 = 128;
/// After a trial that failed there is none for so many times as long as it took too long: two percent at most are lost.
const PAUSES: u32 = 50;
/// Windows after which the other way is measured again, while gathering is quicker.
const GOOD_FOR: u32 = 128;
/// Turns that found one request only, in a row, after which nothing is gathered.
const LEAN_TURNS: u32 = 8;
/// A window that takes longer is of a guest with little to ask for, whom a trial would not help.
const BUSY: Duration = Duration::from_secs(1);

/// What the threads of a disk share of it.
#[derive(Debug)]
pub(super) struct Gathering {
    is_on: AtomicBool,
    state: Mutex<State>,
}

impl Gathering {
    pub(super) fn new(now: Instant) -> Gathering {
        Gathering { is_on: AtomicBool::new(false), state: Mutex::new(State::new(now)) }
    }

    /// A thread was rung and did so many requests until there were none left.
    pub(super) fn took_turn(&self, requests: u32) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.took_turn(requests, Instant::now());
        self.is_on.store(state.trial.is_some(), Ordering::Relaxed);
    }

    /// Has the calling thread, which `is_patient` or not by now, wait its turn or not from here on.
    pub(super) fn adopt(&self, is_patient: &mut bool) {
        let is_on = self.is_on.load(Ordering::Relaxed);
        if *is_patient != is_on {
            *is_patient = is_on;
            set_policy(if is_on { libc::SCHED_BATCH } else { libc::SCHED_OTHER });
        }
    }
}

/// While the threads wait their turn.
#[derive(Debug, Default)]
struct Trial {
    /// Windows that were quicker.
    good: u32,
    /// What they took less.
    gained: Duration,
    /// The last one was not: the guest may have been silent for a moment, which another window shows.
    is_doubtful: bool,
    /// Turns in a row that found one request only.
    lean: u32,
}

#[derive(Debug)]
struct State {
    trial: Option<Trial>,
    /// Of the window under way.
    began: Instant,
    requests: u32,
    /// How long a window took when the threads did not wait their turn.
    at_once: Option<Duration>,
    /// The next trial is not to begin before.
    not_before: Instant,
}

impl State {
    fn new(now: Instant) -> State {
        State { trial: None, began: now, requests: 0, at_once: None, not_before: now }
    }

    fn took_turn(&mut self, requests: u32, now: Instant) {
        if requests == 0 {
            return;
        }
        self.requests = self.requests.saturating_add(requests);
        let took = now.saturating_duration_since(self.began);
        let is_full = self.requests >= WINDOW;
        let (Some(trial), Some(at_once)) = (&mut self.trial, self.at_once) else {
            if is_full {
                self.at_once = Some(took * WINDOW / self.requests);
                self.trial = (now >= self.not_before && took < BUSY).then(Trial::default);
                self.begin(now);
            }
            return;
        };
        trial.lean = if requests == 1 { trial.lean + 1 } else { 0 };
        // By a third at least, so that chance decides little.
        let is_quicker = took.saturating_mul(4) < at_once.saturating_mul(3);
        if !is_quicker && trial.lean < LEAN_TURNS && trial.good > 0 && !trial.is_doubtful {
            trial.is_doubtful = true;
            self.begin(now);
        } else if trial.lean >= LEAN_TURNS || !is_quicker {
            // Of a guest that fell silent, most of it was silence. One that lost nothing gained nothing, either.
            let took = took.min(at_once);
            let lost = took.saturating_sub(at_once * self.requests.min(WINDOW) / WINDOW).max(took / 8);
            // The load is another one now, which what was gained before pays for.
            self.not_before = now + lost.saturating_sub(trial.gained) * PAUSES;
            self.trial = None;
            self.begin(now);
        } else if is_full {
            trial.good += 1;
            trial.is_doubtful = false;
            trial.gained = trial.gained.saturating_add(at_once - took);
            // The other way is looked at again.
            self.trial.take_if(|trial| trial.good >= GOOD_FOR);
            self.begin(now);
        }
    }

    fn begin(&mut self, now: Instant) {
        (self.began, self.requests) = (now, 0);
    }
}

/// Sets how the calling thread is scheduled. Where that is refused it stays as it was, and a trial shows no difference.
fn set_policy(policy: libc::c_int) {
    let parameters = libc::sched_param { sched_priority: 0 };
    // The system call itself: not every C library passes it on.
    // SAFETY: the kernel reads one `sched_param`, which outlives the call; 0 is the calling thread.
    #[expect(unsafe_code, reason = "no safe wrapper of sched_setscheduler(2) is among the libraries")]
    let set = unsafe { libc::syscall(libc::SYS_sched_setscheduler, 0, policy, &raw const parameters) };
    if set != 0 {
        let error = std::io::Error::last_os_error();
        tracing::debug!(%error, "a thread of a disk is scheduled as before");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a load goes: requests of a turn, and what the turn takes.
    #[derive(Clone, Copy)]
    struct Turn(u32, Duration);

    struct Guest {
        state: State,
        now: Instant,
    }

    /// Of some requests.
    struct Done {
        took: Duration,
        gathered: u32,
    }

    impl Guest {
        fn new() -> Guest {
            let now = Instant::now();
            Guest { state: State::new(now), now }
        }

        fn ask_for(&mut self, requests: u32, at_once: Turn, in_turn: Turn) -> Done {
            let (began, mut done, mut gathered) = (self.now, 0, 0);
            while done < requests {
                let Turn(found, took) = if self.state.trial.is_some() { in_turn } else { at_once };
                gathered += if self.state.trial.is_some() { found } else { 0 };
                done += found;
                self.now += took;
                self.state.took_turn(found, self.now);
            }
            Done { took: self.now - began, gathered }
        }
    }

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    const ALONE: Turn = Turn(1, us(50));

    #[test]
    fn where_gathering_is_quicker_nearly_all_is_gathered() {
        let done = Guest::new().ask_for(200_000, Turn(1, us(1000)), Turn(21, us(6000)));
        assert!(done.gathered > 190_000, "{}", done.gathered);
    }

    #[test]
    fn a_guest_that_waits_for_its_one_request_loses_little_by_trials() {
        let done = Guest::new().ask_for(200_000, ALONE, Turn(1, us(4000)));
        assert!(done.gathered > 0, "it was tried");
        assert!(done.took < us(50) * 200_000 * 103 / 100, "{:?}", done.took);
    }

    #[test]
    fn nor_does_one_whose_others_take_all_of_their_time_before_many_requests_are_looked_at() {
        let done = Guest::new().ask_for(200_000, ALONE, Turn(32, us(4000)));
        assert!(done.gathered > 0, "it was tried");
        assert!(done.took < us(50) * 200_000 * 103 / 100, "{:?}", done.took);
    }

    #[test]
    fn where_there_is_no_difference_threads_go_on_as_they_began() {
        let done = Guest::new().ask_for(200_000, Turn(8, us(100)), Turn(8, us(100)));
        assert!(done.gathered < 30_000, "{}", done.gathered);
    }

    #[test]
    fn gathering_ends_when_the_load_changes() {
        let mut guest = Guest::new();
        guest.ask_for(20_000, Turn(1, us(1000)), Turn(21, us(6000)));
        assert!(guest.state.trial.is_some());
        let done = guest.ask_for(20_000, ALONE, Turn(1, us(4000)));
        assert!(done.gathered <= 80 * LEAN_TURNS, "{}", done.gathered);
        // And begins again soon.
        let done = guest.ask_for(50_000, Turn(1, us(1000)), Turn(21, us(6000)));
        assert!(done.gathered > 30_000, "{}", done.gathered);
    }

    #[test]
    fn a_guest_that_asks_for_little_is_left_alone() {
        let done = Guest::new().ask_for(10_000, Turn(1, us(20_000)), Turn(2, us(2000)));
        assert_eq!(done.gathered, 0);
    }

    #[test]
    fn a_thread_is_scheduled_as_it_is_said() {
        let policy = || {
            // SAFETY: it reads nothing of this process; 0 is the calling thread.
            #[expect(unsafe_code, reason = "no safe wrapper of sched_getscheduler(2) is among the libraries")]
            unsafe {
                libc::syscall(libc::SYS_sched_getscheduler, 0)
            }
        };
        let (gathering, mut is_patient) = (Gathering::new(Instant::now()), false);
        for (is_on, expected) in [(true, libc::SCHED_BATCH), (false, libc::SCHED_OTHER)] {
            gathering.is_on.store(is_on, Ordering::Relaxed);
            gathering.adopt(&mut is_patient);
            assert_eq!((policy(), is_patient), (expected.into(), is_on));
        }
    }
}
