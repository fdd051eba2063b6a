//! Waiting on conditions instead of sleeping.

use std::thread;
use std::time::{Duration, Instant};

/// How long to wait for what takes well under a second on an idle machine, before calling it broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` gives a value, and returns it.
///
/// # Panics
/// When `limit` has passed, naming `what` was awaited.
#[track_caller]
pub fn until<T>(what: &str, limit: Duration, condition: impl FnMut() -> Option<T>) -> T {
    attempt(limit, condition).unwrap_or_else(|| panic!("waited {limit:?} in vain: {what}"))
}

/// Waits until `condition` gives a value; `None` when `limit` passes first.
pub fn attempt<T>(limit: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    let mut pause = Duration::from_millis(2);
    loop {
        // Looked at once more after the deadline: on a loaded machine the last sleep may have been a long one.
        let last = Instant::now() >= deadline;
        if let Some(value) = condition() {
            return Some(value);
        }
        if last {
            return None;
        }
        thread::sleep(pause);
        pause = (pause * 3 / 2).min(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_what_the_condition_gives() {
        let mut looks = 0;
        let value = until("the third look", PATIENCE, || {
            looks += 1;
            (looks == 3).then_some(looks)
        });
        assert_eq!(value, 3);
    }

    #[test]
    #[should_panic(expected = "in vain: pigs fly")]
    fn says_what_did_not_happen() {
        until("pigs fly", Duration::from_millis(5), || None::<()>);
    }
}
