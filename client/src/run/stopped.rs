//! A machine that its disks have stopped: what a person is told of it, and when it is told to go on.

use std::time::Duration;

use tokio::time::Instant;

/// How often a machine that was stopped is told to go on; and how long it has to go on for before it runs again.
const CONTINUE_INTERVAL: Duration = Duration::from_secs(5);

/// Why disks stop a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    /// For want of space.
    pub(super) no_space: bool,
    /// It does not go on.
    pub(super) is_final: bool,
}

/// What becomes of it next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// It is told to go on.
    GoesOn,
    /// It runs again: what stops it then is news.
    Runs,
}

/// What is known of the stops of a machine.
#[derive(Debug, Default)]
pub(super) struct Stops {
    /// What was told since it ran last.
    told: Vec<Stop>,
    next: Option<(Instant, Next)>,
}

impl Stops {
    /// A disk has stopped the machine; whether that is to be told.
    pub(super) fn stopped(&mut self, stop: Stop, now: Instant) -> bool {
        if self.told.iter().any(|told| told.is_final) {
            return false;
        }
        if stop.is_final {
            self.next = None;
        } else if !matches!(self.next, Some((_, Next::GoesOn))) {
            self.next = Some((now + CONTINUE_INTERVAL, Next::GoesOn));
        }
        let is_news = !self.told.contains(&stop);
        if is_news {
            self.told.push(stop);
        }
        is_news
    }

    /// When there is something to do next.
    pub(super) fn next_at(&self) -> Option<Instant> {
        self.next.map(|(at, _)| at)
    }

    /// That time has come; whether the machine is to be told to go on.
    pub(super) fn reached(&mut self, now: Instant) -> bool {
        match self.next.take() {
            Some((_, Next::GoesOn)) => {
                self.next = Some((now + CONTINUE_INTERVAL, Next::Runs));
                true
            }
            Some((_, Next::Runs)) => {
                self.told.clear();
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Stop = Stop { no_space: true, is_final: false };
    const SILENT: Stop = Stop { no_space: false, is_final: false };
    const LOST: Stop = Stop { no_space: false, is_final: true };

    /// The next time there is something to do, and whether the machine is told to go on then.
    fn go(stops: &mut Stops) -> (Instant, bool) {
        let now = stops.next_at().unwrap();
        (now, stops.reached(now))
    }

    #[test]
    fn what_is_final_is_told_whatever_was_before_and_nothing_after_it() {
        let (mut stops, now) = (Stops::default(), Instant::now());
        assert!(stops.stopped(FULL, now));
        assert!(stops.stopped(LOST, now));
        assert_eq!(stops.next_at(), None, "it does not go on");
        for stop in [FULL, SILENT, LOST] {
            assert!(!stops.stopped(stop, now));
            assert_eq!(stops.next_at(), None);
        }
    }

    #[test]
    fn a_machine_that_stays_stopped_is_told_to_go_on_again_and_again_and_a_person_once() {
        let mut stops = Stops::default();
        let mut now = Instant::now();
        assert!(stops.stopped(FULL, now));
        for _ in 0..100 {
            assert!(!stops.stopped(FULL, now), "by another disk");
            let (at, is_told) = go(&mut stops);
            assert_eq!((at.duration_since(now), is_told), (CONTINUE_INTERVAL, true));
            now = at;
            assert!(!stops.stopped(FULL, now));
        }
        assert!(stops.stopped(SILENT, now), "another reason is news");
        assert!(!stops.stopped(FULL, now));
    }

    #[test]
    fn what_stops_a_machine_that_has_run_again_is_news() {
        let mut stops = Stops::default();
        assert!(stops.stopped(FULL, Instant::now()));
        assert!(go(&mut stops).1);
        let (now, is_told) = go(&mut stops);
        assert!(!is_told, "it runs");
        assert_eq!(stops.next_at(), None);
        assert!(stops.stopped(FULL, now));
    }
}
