//! Which source to ask next, and for how long to leave one alone that failed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::source::{ChunkSource, FailureKind, SourceError};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Whether chunks can be had at present; changes are told to whoever watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// At least one source answered last.
    Up,
    /// No source answers; requests that need one wait.
    Down {
        /// The last failure, in words.
        reason: String,
    },
}

/// The sources of a desktop, in the order of preference.
pub(crate) struct Sources {
    entries: Vec<Entry>,
    state: watch::Sender<LinkState>,
}

/// One source and how it has done of late.
pub(crate) struct Entry {
    pub(crate) source: Arc<dyn ChunkSource>,
    outage: Mutex<Option<Outage>>,
}

struct Outage {
    failures: u32,
    retry_at: Instant,
}

impl Sources {
    pub(crate) fn new(sources: Vec<Arc<dyn ChunkSource>>) -> Self {
        let entries = sources.into_iter().map(|source| Entry { source, outage: Mutex::new(None) }).collect();
        Self { entries, state: watch::Sender::new(LinkState::Up) }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    /// Waits for a source worth asking, the most preferred first; `None` when all are in `passed_over`.
    pub(crate) async fn pick(&self, passed_over: &[usize]) -> Option<(usize, &Entry)> {
        loop {
            let now = Instant::now();
            let mut earliest: Option<Instant> = None;
            for (at, entry) in self.entries.iter().enumerate().filter(|(at, _)| !passed_over.contains(at)) {
                match &mut *entry.lock() {
                    Some(outage) if outage.retry_at > now => {
                        earliest = Some(earliest.map_or(outage.retry_at, |other| other.min(outage.retry_at)));
                    }
                    Some(outage) => {
                        // Ours is the one request that tries it; the others wait for what it finds.
                        outage.retry_at = now + LONGEST_PAUSE;
                        return Some((at, entry));
                    }
                    None => return Some((at, entry)),
                }
            }
            let mut state = self.state.subscribe();
            state.borrow_and_update();
            let pause = earliest?.saturating_duration_since(now);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = state.changed() => {}
            }
        }
    }

    /// Notes that a source answered.
    pub(crate) fn succeeded(&self, entry: &Entry) {
        let was_out = entry.lock().take().is_some();
        if was_out || *self.state.borrow() != LinkState::Up {
            self.state.send_if_modified(|state| std::mem::replace(state, LinkState::Up) != LinkState::Up);
        }
    }

    /// Notes that a source did not answer, or refused us: it is left alone for a while, longer each time.
    pub(crate) fn failed(&self, entry: &Entry, error: &SourceError) {
        if !matches!(error.kind, FailureKind::Unreachable | FailureKind::Refused) {
            return;
        }
        {
            let mut outage = entry.lock();
            let failures = outage.as_ref().map_or(1, |outage| outage.failures.saturating_add(1));
            let pause = error.retry_after.unwrap_or_else(|| backoff(failures)).min(LONGEST_PAUSE);
            *outage = Some(Outage { failures, retry_at: Instant::now() + pause });
        }
        if self.entries.iter().all(|entry| entry.lock().is_some()) {
            let reason = error_chain(error);
            self.state.send_if_modified(|state| {
                let news = *state == LinkState::Up;
                *state = LinkState::Down { reason };
                news
            });
        }
    }
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, Option<Outage>> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Doubles from a tenth of a second to five, each a little off so that many clients do not come back as one.
pub(crate) fn backoff(failures: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(LONGEST_PAUSE);
    let mut random = [0; 1];
    // Without randomness all clients pause alike, which is only less polite.
    let _ = getrandom::fill(&mut random);
    doubled.mul_f64(0.75 + f64::from(random[0]) / 512.0)
}

fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use futures_util::future::BoxFuture;

    use super::*;
    use crate::source::{ObjectBody, ObjectPath};

    struct Named(&'static str);

    impl ChunkSource for Named {
        fn origin(&self) -> String {
            self.0.to_owned()
        }

        fn get<'a>(
            &'a self,
            _: &'a ObjectPath,
            _: Option<Range<u64>>,
        ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
            unreachable!("only asked for its name")
        }
    }

    fn failure(kind: FailureKind) -> SourceError {
        SourceError {
            origin: "a".to_owned(),
            object: "b".to_owned(),
            kind,
            retry_after: None,
            cause: "no route".into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_preferred_source_is_left_alone_after_a_failure_and_taken_up_again() {
        let sources = Sources::new(vec![Arc::new(Named("first")), Arc::new(Named("second"))]);
        let (at, first) = sources.pick(&[]).await.unwrap();
        assert_eq!(at, 0);
        sources.failed(first, &failure(FailureKind::Unreachable));
        assert_eq!(sources.pick(&[]).await.unwrap().0, 1);
        assert_eq!(*sources.watch().borrow(), LinkState::Up, "one of two is enough");
        std::thread::sleep(FIRST_PAUSE * 2);
        let (at, first) = sources.pick(&[]).await.unwrap();
        assert_eq!(at, 0);
        sources.succeeded(first);
        assert_eq!(sources.pick(&[]).await.unwrap().0, 0);
    }

    #[tokio::test]
    async fn when_all_fail_it_is_said_once_and_taken_back_at_the_first_answer() {
        let sources = Sources::new(vec![Arc::new(Named("only"))]);
        let mut watch = sources.watch();
        let (_, only) = sources.pick(&[]).await.unwrap();
        sources.failed(only, &failure(FailureKind::Unreachable));
        assert!(watch.has_changed().unwrap());
        assert_eq!(
            *watch.borrow_and_update(),
            LinkState::Down { reason: "cannot fetch b from a: no route".to_owned() }
        );
        sources.failed(only, &failure(FailureKind::Unreachable));
        assert!(!watch.has_changed().unwrap());
        let (_, only) = sources.pick(&[]).await.unwrap();
        sources.succeeded(only);
        assert_eq!(*watch.borrow_and_update(), LinkState::Up);
    }

    #[tokio::test]
    async fn an_object_that_is_missing_or_damaged_is_no_outage() {
        let sources = Sources::new(vec![Arc::new(Named("only"))]);
        let (at, only) = sources.pick(&[]).await.unwrap();
        sources.failed(only, &failure(FailureKind::NotFound));
        sources.failed(only, &failure(FailureKind::Damaged));
        assert_eq!(sources.pick(&[]).await.unwrap().0, 0);
        assert!(sources.pick(&[at]).await.is_none());
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let pauses: Vec<Duration> = (1..40).map(backoff).collect();
        assert!(pauses[0] >= FIRST_PAUSE.mul_f64(0.74) && pauses[0] <= FIRST_PAUSE.mul_f64(1.26));
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE.mul_f64(1.26)));
    }
}
