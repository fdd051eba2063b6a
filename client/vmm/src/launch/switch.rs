//! When the power button is pressed, and when the machine is switched off without being asked.

use std::time::{Duration, Instant};

/// How long after a press the button is pressed once more when nobody is left who would: what is pressed before the guest
/// listens for it is lost, and one that shuts down already takes no notice.
const PRESS_AGAIN_INTERVAL: Duration = Duration::from_secs(10);
/// How long the guest may take to shut down when nobody is left.
const DESERTED_PATIENCE: Duration = Duration::from_secs(180);

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Press the power button: the guest shuts down, if it is set to.
    Press,
    /// Switch off at once.
    ForceOff,
}

/// What was asked so far.
#[derive(Debug, Default)]
pub(super) struct Switch {
    was_asked: bool,
    deserted: Option<Deserted>,
}

/// Nobody is left to switch the machine off, or to see that it runs.
#[derive(Clone, Copy, Debug)]
struct Deserted {
    press_at: Instant,
    off_at: Instant,
}

impl Switch {
    /// A person interrupts. Who does so once more, or after the host has asked, means it.
    pub(super) fn interrupted(&mut self) -> Step {
        match std::mem::replace(&mut self.was_asked, true) {
            false => Step::Press,
            true => Step::ForceOff,
        }
    }

    /// The host ends, or the session: that is said in several ways at once, and never means more than the first.
    pub(super) fn told_to_end(&mut self) -> Step {
        self.was_asked = true;
        Step::Press
    }

    /// Nobody is left. A machine that its disks hold cannot shut down, and nobody has them tried again.
    pub(super) fn deserted(&mut self, is_held: bool, now: Instant) -> Option<Step> {
        let deserted =
            self.deserted.get_or_insert(Deserted { press_at: now, off_at: now + DESERTED_PATIENCE });
        if is_held || now >= deserted.off_at {
            return Some(Step::ForceOff);
        }
        if now < deserted.press_at {
            return None;
        }
        deserted.press_at = now + PRESS_AGAIN_INTERVAL;
        Some(Step::Press)
    }

    /// How long until there is something to do again when nobody is left; none while somebody is.
    pub(super) fn patience(&self, now: Instant) -> Option<Duration> {
        let Deserted { press_at, off_at } = self.deserted?;
        Some(press_at.min(off_at).saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_who_interrupts_twice_means_it() {
        let mut switch = Switch::default();
        assert_eq!([switch.interrupted(), switch.interrupted()], [Step::Press, Step::ForceOff]);
    }

    #[test]
    fn a_host_that_ends_only_presses_the_button_however_it_says_so() {
        let mut switch = Switch::default();
        assert_eq!([switch.told_to_end(), switch.told_to_end()], [Step::Press, Step::Press]);
        assert_eq!(switch.interrupted(), Step::ForceOff);
    }

    #[test]
    fn a_deserted_machine_is_asked_again_and_again_and_then_switched_off() {
        let mut switch = Switch::default();
        let mut now = Instant::now();
        let end = now + DESERTED_PATIENCE;
        assert_eq!(switch.patience(now), None);
        let mut presses = 0;
        while now < end {
            assert_eq!(switch.deserted(false, now), Some(Step::Press));
            assert_eq!(switch.deserted(false, now), None, "one press at a time");
            presses += 1;
            now += switch.patience(now).unwrap();
        }
        assert_eq!(presses, DESERTED_PATIENCE.as_secs() / PRESS_AGAIN_INTERVAL.as_secs());
        assert_eq!(switch.deserted(false, now), Some(Step::ForceOff));
    }

    #[test]
    fn a_deserted_machine_that_its_disks_hold_is_switched_off_at_once() {
        let mut switch = Switch::default();
        let now = Instant::now();
        assert_eq!(switch.deserted(false, now), Some(Step::Press));
        assert_eq!(switch.deserted(true, now), Some(Step::ForceOff));
    }
}
