//! Whether a ring wakes a thread of a disk in the guest's place, or as soon as a processor is free.
//!
//! Where a processor is free both are the same. Where none is, a thread that is woken in the guest's place (`SCHED_OTHER`) finds
//! the one request it was rung for, and the guest pays an exit, two switches and an interrupt for each; one that waits its turn
//! (`SCHED_BATCH`, sched(7)) finds all that the guest had to send by then. Which is quicker depends on the load: a guest that
//! waits for its one request while others compute would wait for the end of their time each time.
//!
//! So it is tried. Every now and then the threads wait their turn for some requests, and go on so as long as that is quicker
//! than what was measured before; where it is not, the next trial comes after a time beside which what the last one lost is
//! little. What was measured before is the mean of some short samples: a thread that was woken at once may have been preempted
//! and found many by chance, which the quickest of them would take for the rule. In others the guest may have had nothing to ask
//! for, so none counts as more than a few times the quickest.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use libc::c_long;

/// Requests that are measured together while the threads wait their turn.
const WINDOW: u32 = 64;
/// Requests of a sample, which is taken while they do not.
const SAMPLE: u32 = 16;
/// Samples that count.
const SAMPLES: u32 = 8;
/// A sample counts as at most so many times the quickest of them.
const SLOWEST: u32 = 4;
/// After a trial that failed there is none for so many times as long as it took too long, so that about two percent are lost.
const PAUSES: u32 = 50;
/// Windows after which the other way is measured again, while gathering is quicker: at first, and at most.
const FIRST_GOOD_FOR: u32 = 8;
const LAST_GOOD_FOR: u32 = 64;
/// Turns that found one request only, in a row, after which nothing is gathered, unless they were quick all the same.
const LEAN_TURNS: u32 = 8;
/// Where a window would take longer it is of a guest with little to ask for, whom a trial would not help.
const BUSY: Duration = Duration::from_secs(1);
/// No trial is taken to have lost more: no thread waits as long for a processor, and the rest was silence.
const MOST_LOST: Duration = Duration::from_millis(50);

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

    /// Has the calling thread wait its turn, or not, from here on.
    pub(super) fn adopt(&self, thread: &mut Scheduled) {
        let is_on = self.is_on.load(Ordering::Relaxed);
        if thread.is_ours && thread.is_patient != is_on {
            thread.is_patient = is_on;
            set_policy(if is_on { libc::SCHED_BATCH } else { libc::SCHED_OTHER });
        }
    }
}

/// How the thread that has it is scheduled.
#[derive(Debug)]
pub(super) struct Scheduled {
    /// Nobody else chose another policy than the usual one, which it would lose.
    is_ours: bool,
    is_patient: bool,
}

impl Scheduled {
    /// Of the calling thread, before it adopts anything.
    pub(super) fn now() -> Scheduled {
        Scheduled { is_ours: policy() == c_long::from(libc::SCHED_OTHER), is_patient: false }
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
    /// How long a window would have taken by the last samples, `Duration::MAX` before there were as many; the next one replaces
    /// the oldest.
    samples: [Duration; SAMPLES as usize],
    oldest: usize,
    /// The next trial is not to begin before.
    not_before: Instant,
    /// Windows of the next trial.
    good_for: u32,
}

impl State {
    fn new(now: Instant) -> State {
        State {
            trial: None,
            began: now,
            requests: 0,
            samples: [Duration::MAX; SAMPLES as usize],
            oldest: 0,
            not_before: now,
            good_for: FIRST_GOOD_FOR,
        }
    }

    fn took_turn(&mut self, requests: u32, now: Instant) {
        if requests == 0 {
            return;
        }
        self.requests = self.requests.saturating_add(requests);
        let took = now.saturating_duration_since(self.began);
        let at_once = self.at_once();
        let Some(trial) = &mut self.trial else {
            if self.requests >= SAMPLE {
                self.measured(took.saturating_mul(WINDOW) / self.requests, now);
            }
            return;
        };
        trial.lean = if requests == 1 { trial.lean + 1 } else { 0 };
        let would_take = |requests| at_once.saturating_mul(requests) / WINDOW;
        // By a third at least, so that chance decides little.
        let is_quicker_than = |time: Duration| took.saturating_mul(4) < time.saturating_mul(3);
        let is_quicker = is_quicker_than(would_take(self.requests.max(WINDOW)));
        // Several threads that were rung together find one request each.
        let is_lean = trial.lean >= LEAN_TURNS && !is_quicker_than(would_take(self.requests));
        if is_quicker && !is_lean {
            if self.requests >= WINDOW {
                trial.good += 1;
                trial.is_doubtful = false;
                trial.gained += would_take(self.requests).saturating_sub(took);
                if trial.good >= self.good_for {
                    // The other way is looked at again.
                    self.good_for = self.good_for.saturating_mul(2).min(LAST_GOOD_FOR);
                    self.trial = None;
                }
                self.begin(now);
            }
        } else if !is_lean && trial.good > 0 && !trial.is_doubtful {
            trial.is_doubtful = true;
            self.begin(now);
        } else {
            // One that lost nothing gained nothing, either.
            let lost = took.saturating_sub(would_take(self.requests)).max(took / 8).min(MOST_LOST);
            // Where it gained before, the load is another one now.
            self.not_before = now + lost.saturating_sub(trial.gained) * PAUSES;
            self.good_for = FIRST_GOOD_FOR;
            self.trial = None;
            self.begin(now);
        }
    }

    /// How long a window takes when the threads do not wait their turn.
    fn at_once(&self) -> Duration {
        let most = self.samples.into_iter().min().unwrap_or(Duration::MAX).saturating_mul(SLOWEST);
        self.samples
            .into_iter()
            .map(|took| took.min(most) / SAMPLES)
            .fold(Duration::ZERO, Duration::saturating_add)
    }

    /// By a sample, a window would have taken so long without waiting.
    fn measured(&mut self, took: Duration, now: Instant) {
        if let Some(oldest) = self.samples.get_mut(self.oldest) {
            *oldest = took;
        }
        self.oldest = (self.oldest + 1) % self.samples.len();
        let is_known = !self.samples.contains(&Duration::MAX);
        if is_known && now >= self.not_before && took < BUSY {
            self.trial = Some(Trial::default());
        }
        self.begin(now);
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

/// How the calling thread is scheduled.
fn policy() -> c_long {
    // SAFETY: it reads nothing of this process; 0 is the calling thread.
    #[expect(unsafe_code, reason = "no safe wrapper of sched_getscheduler(2) is among the libraries")]
    unsafe {
        libc::syscall(libc::SYS_sched_getscheduler, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a load goes: requests of a turn, and what the turn takes.
    #[derive(Clone, Copy)]
    struct Turn(u32, Duration);

    impl Turn {
        fn of(self, requests: u32) -> Duration {
            self.1 * requests / self.0
        }
    }

    struct Guest {
        state: State,
        now: Instant,
        began: Instant,
        gathered: u32,
    }

    impl Guest {
        fn new() -> Guest {
            let now = Instant::now();
            Guest { state: State::new(now), now, began: now, gathered: 0 }
        }

        fn asks_for(mut self, requests: u32, at_once: Turn, in_turn: Turn) -> Guest {
            let mut left = requests;
            while left > 0 {
                let is_gathered = self.state.trial.is_some();
                let turn = if is_gathered { in_turn } else { at_once };
                let found = turn.0.min(left);
                self.gathered += if is_gathered { found } else { 0 };
                left -= found;
                // Whoever waits for its turn does so for few as well.
                self.now += if is_gathered { turn.1 } else { turn.of(found) };
                self.state.took_turn(found, self.now);
            }
            self
        }

        fn rests(mut self, time: Duration) -> Guest {
            self.now += time;
            self
        }

        /// What passed beside this time, as a share of it.
        fn lost(&self, of: Duration) -> f64 {
            (self.now - self.began).as_secs_f64() / of.as_secs_f64() - 1.0
        }
    }

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    const MANY: u32 = 400_000;

    #[test]
    fn where_gathering_is_quicker_nearly_all_is_gathered() {
        for (at_once, in_turn) in [
            (Turn(1, us(1000)), Turn(21, us(6000))),
            (Turn(1, us(1000)), Turn(100, us(60_000))),
            (Turn(1, us(20)), Turn(32, us(300))),
        ] {
            let guest = Guest::new().asks_for(MANY, at_once, in_turn);
            assert!(guest.gathered > MANY / 20 * 19, "{} of {MANY}", guest.gathered);
        }
    }

    #[test]
    fn where_it_is_not_little_is_lost_by_trials() {
        for (at_once, in_turn) in [
            // A guest that waits for its one request, while others take all of their time.
            (Turn(1, us(50)), Turn(1, us(4000))),
            (Turn(1, us(50)), Turn(1, us(20_000))),
            // One that asks for many meanwhile.
            (Turn(1, us(50)), Turn(32, us(4000))),
            (Turn(1, us(10)), Turn(64, us(4000))),
            (Turn(1, us(10)), Turn(128, us(4000))),
            (Turn(1, us(10)), Turn(256, us(5300))),
            (Turn(1, us(5)), Turn(128, us(4000))),
            (Turn(32, us(300)), Turn(128, us(6000))),
        ] {
            let guest = Guest::new().asks_for(MANY, at_once, in_turn);
            let lost = guest.lost(at_once.of(MANY));
            assert!(guest.gathered > 0, "it was tried");
            assert!(lost < 0.03, "{lost} with {:?} in {:?}", in_turn.0, in_turn.1);
        }
    }

    #[test]
    fn a_guest_that_asks_by_fits_and_starts_is_not_taken_for_a_slow_one() {
        let at_once = Turn(2, us(100));
        for (silence, burst, in_turn) in [
            (us(500_000), 512, Turn(2, us(4000))),
            (us(200_000), 512, Turn(4, us(4000))),
            (us(500_000), 2048, Turn(2, us(4000))),
            (us(50_000), 256, Turn(4, us(4000))),
        ] {
            let (mut guest, rounds) = (Guest::new(), 100);
            for _ in 0..rounds {
                guest = guest.rests(silence).asks_for(burst, at_once, in_turn);
            }
            let lost = guest.lost((silence + at_once.of(burst)) * rounds);
            assert!(lost < 0.03, "{lost} with {burst} after {silence:?}");
        }
    }

    #[test]
    fn bursts_are_not_taken_for_a_slow_guest() {
        let (silence, rounds) = (us(100_000), 200);
        for at_once in [Turn(1, us(50)), Turn(2, us(100)), Turn(1, us(10))] {
            for in_turn in [Turn(1, us(4000)), Turn(2, us(4000)), Turn(4, us(4000)), Turn(32, us(4000))] {
                let (mut guest, mut usual) = (Guest::new(), Duration::ZERO);
                for round in 1..=rounds {
                    let burst = if round % 8 == 0 { 1056 } else { 32 };
                    guest = guest.rests(silence).asks_for(burst, at_once, in_turn);
                    usual += silence + at_once.of(burst);
                }
                let lost = guest.lost(usual);
                assert!(lost < 0.03, "{lost} with {:?} in {:?}", in_turn.0, in_turn.1);
            }
        }
        let at_once = Turn(1, us(50));
        for burst in [SAMPLE / 2, SAMPLE, 2 * SAMPLE, WINDOW, WINDOW + 6, 2 * WINDOW] {
            for silence in [us(1000), us(10_000), us(100_000)] {
                for in_turn in [Turn(1, us(4000)), Turn(4, us(4000)), Turn(32, us(4000))] {
                    let (mut guest, rounds) = (Guest::new(), MANY / 4 / burst);
                    for _ in 0..rounds {
                        guest = guest.rests(silence).asks_for(burst, at_once, in_turn);
                    }
                    let lost = guest.lost((silence + at_once.of(burst)) * rounds);
                    assert!(lost < 0.05, "{lost} with {burst} after {silence:?}, {:?} a turn", in_turn.0);
                }
            }
        }
    }

    /// Numbers without a rule, the same ones each time.
    struct Chance(u64);

    impl Chance {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }

        fn requests(&mut self, from: u32, to: u32) -> u32 {
            from + u32::try_from(self.below(u64::from(to - from))).unwrap()
        }
    }

    #[test]
    fn little_is_lost_where_processors_are_free_by_turns() {
        // Without waiting, and waiting.
        let loads = [
            // No processor is free, for nobody but the guest itself.
            (Turn(1, us(1000)), Turn(21, us(6000))),
            (Turn(1, us(420)), Turn(16, us(4000))),
            // One is free.
            (Turn(1, us(50)), Turn(1, us(50))),
            (Turn(1, us(1000)), Turn(1, us(1000))),
            // Others take all of their time.
            (Turn(1, us(50)), Turn(1, us(4000))),
            (Turn(1, us(500)), Turn(1, us(4000))),
            (Turn(1, us(50)), Turn(32, us(4000))),
            (Turn(1, us(100)), Turn(32, us(2300))),
            (Turn(1, us(5)), Turn(64, us(4000))),
        ];
        for (number, one) in loads.into_iter().enumerate() {
            for other in loads.into_iter().take(number) {
                for (from, to) in [(20, 100), (100, 200), (200, 1000)] {
                    let (mut guest, mut usual, mut chance) = (Guest::new(), Duration::ZERO, Chance(1));
                    for _ in 0..MANY / 4 / to {
                        for (at_once, in_turn) in [one, other] {
                            let requests = chance.requests(from, to);
                            guest = guest.asks_for(requests, at_once, in_turn);
                            usual += at_once.of(requests);
                        }
                    }
                    let lost = guest.lost(usual);
                    assert!(lost < 0.15, "{lost} with {from} to {to} by turns, of {number}");
                }
            }
        }
    }

    #[test]
    fn threads_wait_where_those_that_do_not_are_as_quick_by_chance_now_and_then() {
        let (mut guest, mut chance, mut finds_many, mut done) = (Guest::new(), Chance(1), false, 0);
        while done < MANY {
            let many = Turn(chance.requests(12, 32), us(3000 + chance.below(4000)));
            let turn = if guest.state.trial.is_some() || finds_many {
                finds_many = chance.below(10) != 0;
                many
            } else {
                finds_many = chance.below(50) == 0;
                Turn(1, us(1000 + chance.below(2000)))
            };
            guest = guest.asks_for(turn.0, turn, turn);
            done += turn.0;
        }
        assert!(guest.gathered > MANY / 10 * 9, "{} of {MANY}", guest.gathered);
    }

    #[test]
    fn a_load_that_grows_is_not_measured_by_what_it_was() {
        let guest = Guest::new().asks_for(10_000, Turn(1, us(5000)), Turn(1, us(5000)));
        let before = guest.now - guest.began;
        let at_once = Turn(2, us(100));
        let guest = guest.asks_for(MANY, at_once, Turn(2, us(4000)));
        let lost = guest.lost(before + at_once.of(MANY));
        assert!(lost < 0.03, "{lost}");
    }

    #[test]
    fn where_there_is_no_difference_threads_go_on_as_they_began() {
        let guest = Guest::new().asks_for(MANY, Turn(8, us(100)), Turn(8, us(100)));
        assert!(guest.gathered < MANY / 5, "{}", guest.gathered);
    }

    #[test]
    fn gathering_goes_on_when_the_guest_is_silent_for_a_moment_and_ends_when_the_load_changes() {
        let (at_once, in_turn) = (Turn(1, us(1000)), Turn(21, us(6000)));
        let mut guest = Guest::new().asks_for(20_000, at_once, in_turn);
        while guest.state.trial.as_ref().is_none_or(|trial| trial.good == 0) {
            guest = guest.asks_for(1, at_once, in_turn);
        }
        let mut guest = guest.rests(us(400_000)).asks_for(1, at_once, in_turn);
        assert!(guest.state.trial.is_some());
        guest.gathered = 0;
        let mut guest = guest.asks_for(20_000, Turn(1, us(50)), Turn(1, us(4000)));
        assert!(guest.gathered <= 8 * LEAN_TURNS, "{}", guest.gathered);
        guest.gathered = 0;
        let guest = guest.asks_for(50_000, at_once, in_turn);
        assert!(guest.gathered > 30_000, "it begins again soon: {}", guest.gathered);
    }

    #[test]
    fn threads_that_were_rung_together_and_find_one_request_each_end_no_trial_that_is_quick() {
        let at_once = Turn(1, us(1000));
        let mut guest = Guest::new();
        while guest.state.trial.is_none() {
            guest = guest.asks_for(1, at_once, at_once);
        }
        let guest = guest.asks_for(2 * LEAN_TURNS, at_once, Turn(1, us(40)));
        assert!(guest.state.trial.is_some());
        let guest = guest.asks_for(WINDOW, at_once, at_once);
        assert!(guest.state.trial.is_none());
    }

    #[test]
    fn a_guest_that_asks_for_little_is_left_alone() {
        let guest = Guest::new().asks_for(10_000, Turn(1, us(20_000)), Turn(2, us(2000)));
        assert_eq!(guest.gathered, 0);
    }

    #[test]
    fn a_thread_is_scheduled_as_it_is_said_unless_somebody_chose_otherwise() {
        let gathering = Gathering::new(Instant::now());
        let adopt = |is_on, thread: &mut Scheduled| {
            gathering.is_on.store(is_on, Ordering::Relaxed);
            gathering.adopt(thread);
            policy()
        };
        let mut thread = Scheduled::now();
        assert_eq!(adopt(true, &mut thread), c_long::from(libc::SCHED_BATCH));
        assert_eq!(adopt(false, &mut thread), c_long::from(libc::SCHED_OTHER));
        set_policy(libc::SCHED_BATCH);
        let mut thread = Scheduled::now();
        assert_eq!(adopt(true, &mut thread), c_long::from(libc::SCHED_BATCH));
        assert_eq!(adopt(false, &mut thread), c_long::from(libc::SCHED_BATCH));
    }
}
