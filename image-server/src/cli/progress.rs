//! How far a long run is: a bar on a terminal, a line now and then elsewhere.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;

/// The pause between two lines of progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// What the steps of a part are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Steps {
    /// Bytes of a known number.
    Bytes,
    /// Things of a known number.
    Counted,
    /// Things of which it is not known how many there are.
    Unknown,
}

/// Shows how far a run is.
pub(crate) struct Shown {
    /// What is being done to each part.
    verb: &'static str,
    /// None where there is no terminal.
    bar: Option<ProgressBar>,
    counting: Mutex<Option<Counting>>,
}

struct Counting {
    part: &'static str,
    done: u64,
    total: u64,
    told: Instant,
}

impl Shown {
    pub(crate) fn new(verb: &'static str) -> Self {
        let draw = || ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        Self { verb, bar: io::stderr().is_terminal().then(draw), counting: Mutex::default() }
    }

    /// A part begins, of `total` steps where that is known.
    pub(crate) fn begin(&self, part: &'static str, steps: Steps, total: u64) {
        let Some(bar) = &self.bar else {
            output::message(&format!("{} {part}", self.verb));
            let counting = Counting { part, done: 0, total, told: Instant::now() };
            *self.counting.lock().unwrap_or_else(PoisonError::into_inner) = Some(counting);
            return;
        };
        let counter = match steps {
            Steps::Bytes => "{bytes} of {total_bytes}, {bytes_per_sec}",
            Steps::Counted => "{pos} of {len}",
            Steps::Unknown => "{pos}",
        };
        if let Ok(style) = ProgressStyle::with_template(&format!("{{msg:8}} {{wide_bar}} {counter}")) {
            bar.set_style(style);
        }
        bar.reset();
        bar.set_length(total);
        bar.set_message(part);
    }

    /// Some steps are done.
    pub(crate) fn advance(&self, steps: u64) {
        if let Some(bar) = &self.bar {
            return bar.inc(steps);
        }
        let mut counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(counting) = counting.as_mut() else { return };
        counting.done += steps;
        if counting.told.elapsed() < LINE_INTERVAL {
            return;
        }
        counting.told = Instant::now();
        let percent = counting.done.saturating_mul(100).checked_div(counting.total);
        let far = percent.map_or_else(|| counting.done.to_string(), |percent| format!("{percent} %"));
        output::message(&format!("{} {}: {far}", self.verb, counting.part));
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
