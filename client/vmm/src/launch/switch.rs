//! When the power button is pressed, and when the machine is switched off without being asked.

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
}
