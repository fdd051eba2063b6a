//! Where processors are held: all run, all pause, or all end.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// What processors are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Run,
    Pause,
    End,
}

struct State {
    wish: Wish,
    /// Processors that do not run: paused ones, and those that ended.
    held: usize,
}

/// What a processor finds at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It may run.
    Open,
    /// It may run, after it was held.
    Opened,
    /// It is to end.
    Ended,
}

/// Holds processors.
pub struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    /// A gate that is shut.
    pub fn shut() -> Gate {
        Gate { state: Mutex::new(State { wish: Wish::Pause, held: 0 }), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a processor may run, or is to end.
    pub fn pass(&self) -> Passage {
        let mut state = self.lock();
        if state.wish == Wish::Run {
            return Passage::Open;
        }
        state.held += 1;
        self.changed.notify_all();
        while state.wish == Wish::Pause {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.wish == Wish::End {
            // It stays held: it runs no more.
            return Passage::Ended;
        }
        state.held -= 1;
        Passage::Opened
    }

    /// Lets processors run.
    pub fn open(&self) {
        self.set(Wish::Run);
    }

    /// Holds processors where they next come by; how many do is seen by [`Gate::held`].
    pub fn close(&self) {
        self.set(Wish::Pause);
    }

    /// Lets processors end.
    pub fn end(&self) {
        self.set(Wish::End);
    }

    fn set(&self, wish: Wish) {
        let mut state = self.lock();
        if state.wish != Wish::End {
            state.wish = wish;
            self.changed.notify_all();
        }
    }

    /// How many processors are held, waiting a moment for one more.
    pub fn held(&self, at_most: std::time::Duration, wanted: usize) -> usize {
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, at_most, |state| state.held < wanted);
        waited.unwrap_or_else(PoisonError::into_inner).0.held
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;

    #[test]
    fn processors_are_held_let_go_and_ended() {
        let gate = Arc::new(Gate::shut());
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let gate = Arc::clone(&gate);
                std::thread::spawn(move || while gate.pass() != Passage::Ended {})
            })
            .collect();
        let all_held = |gate: &Gate| while gate.held(Duration::from_secs(1), 4) < 4 {};
        for _ in 0..20 {
            all_held(&gate);
            gate.open();
            gate.close();
        }
        gate.end();
        gate.open();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        all_held(&gate);
    }
}
