//! Threads that do the same work, started one by one as they are needed.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::worker::{Role, confined, order_thread, start_thread};
use crate::event::Event;

type Body = dyn Fn(&Crew) + Send + Sync;

/// Threads that share their work. Clones are the same crew; whoever started it ends it with [`Crew::end`].
#[derive(Clone)]
pub(super) struct Crew(Arc<Shared>);

struct Shared {
    role: Role,
    most: usize,
    stop: Event,
    body: Box<Body>,
    members: Mutex<Members>,
    /// Whether there are fewer threads, those that were ordered included, than there may be.
    may_grow: AtomicBool,
    /// A thread that was ordered is there, or is not to be had.
    came: Condvar,
}

#[derive(Default)]
struct Members {
    threads: Vec<JoinHandle<()>>,
    /// Threads that were asked for and are not in `threads` yet.
    ordered: usize,
    is_ending: bool,
}

impl Shared {
    fn note(&self, members: &Members) {
        self.may_grow.store(members.threads.len() + members.ordered < self.most, Ordering::Relaxed);
    }
}

impl Crew {
    /// Starts the `first` of at most `most` threads. Each runs `body`, which returns soon after [`Crew::stop`] is signalled.
    ///
    /// # Errors
    /// One of these threads, or a descriptor, is not to be had.
    pub(super) fn start(
        role: Role,
        first: usize,
        most: usize,
        body: impl Fn(&Crew) + Send + Sync + 'static,
    ) -> io::Result<Crew> {
        let crew = Crew(Arc::new(Shared {
            role,
            most,
            stop: Event::new()?,
            body: Box::new(body),
            members: Mutex::default(),
            may_grow: AtomicBool::new(first < most),
            came: Condvar::new(),
        }));
        for _ in 0..first {
            match start_thread(role, crew.thread()) {
                Ok(thread) => crew.members().threads.push(thread),
                Err(error) => {
                    crew.end();
                    return Err(error);
                }
            }
        }
        Ok(crew)
    }

    /// Signalled for good once the threads are to end.
    pub(super) fn stop(&self) -> &Event {
        &self.0.stop
    }

    /// Whether one more thread may be asked for.
    pub(super) fn may_grow(&self) -> bool {
        self.0.may_grow.load(Ordering::Relaxed)
    }

    /// Has one more thread started, unless there are as many as may be. Waits for nothing: the thread is there some time
    /// later, or, when none is to be had, is not, and may be asked for once more.
    pub(super) fn grow(&self) {
        {
            let mut members = self.members();
            if members.is_ending || members.threads.len() + members.ordered >= self.0.most {
                return;
            }
            members.ordered += 1;
            self.0.note(&members);
        }
        let crew = self.clone();
        order_thread(self.0.role, self.thread(), move |started| {
            let mut members = crew.members();
            members.ordered -= 1;
            match started {
                Ok(thread) => members.threads.push(thread),
                Err(error) => {
                    tracing::warn!(role = crew.0.role.name(), %error, "one more thread is not to be had");
                }
            }
            crew.0.note(&members);
            drop(members);
            crew.0.came.notify_all();
        });
    }

    /// Ends all threads and waits for them.
    pub(super) fn end(&self) {
        let mut members = self.members();
        members.is_ending = true;
        self.0.stop.signal();
        while members.ordered > 0 {
            members = self.0.came.wait(members).unwrap_or_else(PoisonError::into_inner);
        }
        let threads = std::mem::take(&mut members.threads);
        drop(members);
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("the thread of a device panicked");
            }
        }
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.0.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn thread(&self) -> Box<dyn FnOnce() + Send> {
        let crew = self.clone();
        confined(self.0.role, move || (crew.0.body)(&crew))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::virtio::worker::wait_readable;

    fn crew(most: usize, running: &Arc<AtomicUsize>) -> Crew {
        let running = Arc::clone(running);
        let body = move |crew: &Crew| {
            running.fetch_add(1, Ordering::SeqCst);
            assert!(wait_readable::<0>(crew.stop(), []).is_none());
            running.fetch_sub(1, Ordering::SeqCst);
        };
        Crew::start(Role::Random, 2, most, body).unwrap()
    }

    fn wait_for(running: &AtomicUsize, count: usize) {
        while running.load(Ordering::SeqCst) != count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_crew_grows_when_it_is_told_to_and_no_larger_than_it_may() {
        let running = Arc::default();
        let crew = crew(3, &running);
        wait_for(&running, 2);
        assert!(crew.may_grow());
        for _ in 0..5 {
            crew.grow();
        }
        wait_for(&running, 3);
        assert_eq!(crew.members().threads.len(), 3);
        assert!(!crew.may_grow());
        crew.end();
        assert_eq!(running.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn nobody_comes_after_the_end_and_nobody_who_was_ordered_is_left_behind() {
        for _ in 0..50 {
            let running = Arc::default();
            let crew = crew(8, &running);
            (0..7).for_each(|_| crew.grow());
            crew.end();
            assert_eq!(running.load(Ordering::SeqCst), 0);
            crew.grow();
            assert_eq!(Arc::strong_count(&crew.0), 1, "no thread has it any more");
        }
    }
}
