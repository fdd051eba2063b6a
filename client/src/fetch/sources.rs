//! Which source to ask next, and for how long to leave one alone that failed.
//!
//! While another source answers, one that failed is asked for nothing that anyone waits for: it is probed beside the work
//! until it answers again, and then preferred as before. When none answers, requests themselves find out which is back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use chunk_format::Namespace;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::source::{ChunkSource, FailureKind, ObjectPath, SourceError};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Wrong answers within [`DAMAGE_MEMORY`] after which a source is left alone for [`DAMAGE_PAUSE`], if there is another.
const DAMAGED_ANSWERS: u32 = 3;
const DAMAGE_MEMORY: Duration = Duration::from_secs(30);
const DAMAGE_PAUSE: Duration = Duration::from_secs(60);
/// How long a source that lacked an object of a person's namespace is not asked for another.
const LACK_MEMORY: Duration = Duration::from_secs(60);
/// How long sources that had not the right bytes are passed over while the others do not answer.
const PASSED_OVER: Duration = Duration::from_secs(1);
/// Failures this close together are one: many requests are under way when a source dies.
const ONE_FAILURE: Duration = Duration::from_millis(100);
/// A source that fails again within this time of having answered a probe goes on with its longer pauses.
const RELAPSE: Duration = Duration::from_secs(60);

/// Whether chunks can be had at present; changes are told to whoever watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// At least one source answered last.
    Up,
    /// No source answers; requests that need one wait.
    Down {
        /// The last failure, in words.
        reason: String,
        /// Who has to do something about it.
        cause: DownCause,
        /// When it was found so last.
        at: Instant,
    },
}

/// Why no source serves, and so what helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DownCause {
    /// None answers: time may mend that.
    Silent,
    /// It answers, and refuses this machine.
    Refuses,
    /// It may not be the server: this machine refuses it.
    Untrusted,
}

impl DownCause {
    fn of(kind: FailureKind) -> Self {
        match kind {
            FailureKind::Refused => Self::Refuses,
            FailureKind::Untrusted => Self::Untrusted,
            _ => Self::Silent,
        }
    }
}

/// Why there is no other source to ask for an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NobodyLeft {
    /// All that may have it were asked, or the last one was, which holds everything.
    AllAsked,
    /// Those that were not asked do not answer.
    OthersAway,
}

/// The sources of a desktop, in the order of preference.
pub(crate) struct Sources {
    entries: Vec<Arc<Entry>>,
    state: watch::Sender<LinkState>,
}

/// One source and how it has done of late.
pub(crate) struct Entry {
    pub(crate) source: Arc<dyn ChunkSource>,
    record: Mutex<Record>,
    is_probed: AtomicBool,
}

#[derive(Default)]
struct Record {
    outage: Option<Outage>,
    /// When wrong answers began to be counted, and how many there were.
    damaged: Option<(Instant, u32)>,
    /// Until when it is asked after the others that answer.
    distrusted_until: Option<Instant>,
    /// When it last answered a probe, and how many failures that ended.
    recovered: Option<(Instant, u32)>,
    /// Persons' namespaces it was found to lack, and when.
    lacks: HashMap<Namespace, Instant>,
}

struct Outage {
    failures: u32,
    last: Instant,
    retry_at: Instant,
}

impl Sources {
    pub(crate) fn new(sources: Vec<Arc<dyn ChunkSource>>) -> Self {
        let entry =
            |source| Arc::new(Entry { source, record: Mutex::default(), is_probed: AtomicBool::new(false) });
        Self { entries: sources.into_iter().map(entry).collect(), state: watch::Sender::new(LinkState::Up) }
    }

    pub(crate) fn watch(&self) -> watch::Receiver<LinkState> {
        self.state.subscribe()
    }

    /// Waits for a source worth asking for an object, the most preferred first.
    ///
    /// # Errors
    /// [`NobodyLeft`], when it is time to ask those in `passed_over` again.
    pub(crate) async fn pick(
        &self,
        path: &ObjectPath,
        passed_over: &[usize],
    ) -> Result<(usize, &Arc<Entry>), NobodyLeft> {
        loop {
            let now = Instant::now();
            let mut earliest: Option<(Instant, (usize, &Arc<Entry>))> = None;
            let mut distrusted = None;
            let mut are_all_asked = passed_over.is_empty();
            for (at, entry) in self.entries.iter().enumerate().filter(|(at, _)| !passed_over.contains(at)) {
                if !entry.source.may_have(&path.object) {
                    continue;
                }
                let record = entry.lock();
                if record.lacks.get(&path.namespace).is_some_and(|since| since.elapsed() < LACK_MEMORY) {
                    are_all_asked = false;
                    continue;
                }
                match &record.outage {
                    Some(outage) => {
                        if earliest.is_none_or(|(time, _)| outage.retry_at < time) {
                            earliest = Some((outage.retry_at, (at, entry)));
                        }
                    }
                    None if record.distrusted_until.is_some_and(|until| until > now) => {
                        distrusted.get_or_insert((at, entry));
                    }
                    None => return Ok((at, entry)),
                }
            }
            if let Some(distrusted) = distrusted {
                return Ok(distrusted);
            }
            let (retry_at, (at, entry)) = earliest.ok_or(NobodyLeft::AllAsked)?;
            if retry_at <= now {
                // Ours is the one request that tries it; the others wait for what it finds.
                if let Some(outage) = &mut entry.lock().outage {
                    outage.retry_at = now + LONGEST_PAUSE;
                }
                return Ok((at, entry));
            }
            let mut state = self.state.subscribe();
            state.borrow_and_update();
            tokio::select! {
                () = tokio::time::sleep_until(retry_at) => {}
                _ = state.changed() => {}
                // One of these may be the only one that is left, and right this time.
                () = tokio::time::sleep(PASSED_OVER), if !are_all_asked => {
                    let was_last_asked = passed_over.iter().any(|at| self.is_last(*at));
                    return Err(if was_last_asked { NobodyLeft::AllAsked } else { NobodyLeft::OthersAway });
                }
            }
        }
    }

    /// The source that is asked first for chunks, if it answers and hands them out by their ids.
    pub(crate) fn first_by_id(&self, namespace: &Namespace) -> Option<&Arc<Entry>> {
        let is_asked = |entry: &&Arc<Entry>| {
            let record = entry.lock();
            record.outage.is_none()
                && record.distrusted_until.is_none_or(|until| until <= Instant::now())
                && record.lacks.get(namespace).is_none_or(|since| since.elapsed() >= LACK_MEMORY)
        };
        self.entries.iter().find(is_asked).filter(|entry| entry.source.hands_out_chunks())
    }

    /// Whether a source is asked after all others.
    pub(crate) fn is_last(&self, at: usize) -> bool {
        at + 1 == self.entries.len()
    }

    /// Notes that a source answered.
    pub(crate) fn succeeded(&self, entry: &Entry) {
        let was_out = entry.lock().outage.take().is_some();
        if was_out || *self.state.borrow() != LinkState::Up {
            self.state.send_if_modified(|state| std::mem::replace(state, LinkState::Up) != LinkState::Up);
        }
    }

    /// Notes that a source did not answer, refused us, or has not what we want or not as it should be; whether another one
    /// takes its place now.
    pub(crate) fn failed(&self, entry: &Arc<Entry>, path: &ObjectPath, error: &SourceError) -> bool {
        let has_others = self.entries.len() > 1;
        match error.kind {
            FailureKind::Unreachable | FailureKind::Refused | FailureKind::Untrusted => {}
            FailureKind::NotFound => {
                // The last one is the server, which holds everything: what it lacks is one object.
                let is_last = self.entries.last().is_some_and(|last| Arc::ptr_eq(last, entry));
                // What a cache has of a namespace says nothing of the rest of it.
                let has_objects = !entry.source.hands_out_chunks();
                if has_others && has_objects && !is_last && matches!(path.namespace, Namespace::User(_)) {
                    entry.lock().lacks.insert(path.namespace.clone(), Instant::now());
                }
                self.succeeded(entry);
                return false;
            }
            FailureKind::Damaged => {
                self.succeeded(entry);
                if has_others && entry.lock().count_damage() {
                    tracing::warn!(
                        source = entry.source.origin(),
                        "it serves wrong bytes; others are asked first"
                    );
                    entry.lock().distrusted_until = Some(Instant::now() + DAMAGE_PAUSE);
                }
                return false;
            }
        }
        let (failures, is_news) = {
            let mut record = entry.lock();
            let is_news = record.outage.is_none();
            let now = Instant::now();
            let failures = match (&record.outage, record.recovered) {
                (Some(outage), _) if now - outage.last < ONE_FAILURE => outage.failures,
                (Some(outage), _) => outage.failures.saturating_add(1),
                (None, Some((at, failures))) if now - at < RELAPSE => failures.saturating_add(1),
                (None, _) => 1,
            };
            let pause = pause_after(error.retry_after, failures);
            record.outage = Some(Outage { failures, last: now, retry_at: now + pause });
            (failures, is_news)
        };
        let is_server = self.entries.last().is_some_and(|last| Arc::ptr_eq(last, entry));
        if self.entries.iter().all(|entry| entry.lock().outage.is_some()) {
            // What others than the server make of this machine is no reason to log in there.
            let cause = if is_server { DownCause::of(error.kind) } else { DownCause::Silent };
            let reason = error_chain(error);
            self.state.send_if_modified(|state| {
                // Until one serves again, what somebody has to do something about is told once.
                let before = match state {
                    LinkState::Up => None,
                    LinkState::Down { cause, .. } => Some(*cause),
                };
                let gravest = before.map_or(cause, |before| before.max(cause));
                *state = LinkState::Down { reason, cause: gravest, at: Instant::now() };
                before.is_none_or(|before| cause > before)
            });
        } else if failures == 1 {
            tracing::warn!(error = error_chain(error), "{}", failure_among_others(is_server, error.kind));
        }
        if has_others {
            Arc::clone(entry).probe(path.clone(), failures, self.state.clone());
        }
        has_others && is_news
    }
}

impl Record {
    /// Counts a wrong answer; whether there were too many.
    fn count_damage(&mut self) -> bool {
        let (since, count) = match self.damaged.take() {
            Some((since, count)) if since.elapsed() < DAMAGE_MEMORY => (since, count + 1),
            _ => (Instant::now(), 1),
        };
        let is_too_many = count >= DAMAGED_ANSWERS;
        self.damaged = (!is_too_many).then_some((since, count));
        is_too_many
    }
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the source now and then, until it answers.
    fn probe(self: Arc<Self>, path: ObjectPath, failures: u32, state: watch::Sender<LinkState>) {
        if self.is_probed.swap(true, Ordering::AcqRel) {
            return;
        }
        let entry = Arc::downgrade(&self);
        tokio::spawn(async move {
            let (mut failures, mut pause) = (failures, backoff(failures));
            loop {
                tokio::time::sleep(pause).await;
                let Some(entry) = Weak::upgrade(&entry) else { return };
                let is_out = entry.lock().outage.is_some();
                let failed = match is_out {
                    true => entry.source.probe(&path).await.err(),
                    // A request found it back.
                    false => None,
                };
                match failed {
                    Some(error) if !matches!(error.kind, FailureKind::NotFound | FailureKind::Damaged) => {
                        failures = failures.saturating_add(1);
                        pause = pause_after(error.retry_after, failures);
                    }
                    _ => {
                        {
                            let mut record = entry.lock();
                            // Under the lock, so that a failure that comes now begins another probe.
                            entry.is_probed.store(false, Ordering::Release);
                            if record.outage.take().is_some() {
                                record.recovered = Some((Instant::now(), failures));
                            }
                        }
                        // Wakes those who wait for any source, too.
                        state.send_modify(|state| *state = LinkState::Up);
                        return;
                    }
                }
            }
        });
    }
}

/// What is said of one source that failed while others have not. These need not have what it was asked for; the server has
/// everything.
fn failure_among_others(is_server: bool, kind: FailureKind) -> &'static str {
    match (is_server, DownCause::of(kind)) {
        (false, DownCause::Silent) => "a source does not answer; the others are asked in its place",
        (false, _) => "a source cannot be used; the others are asked in its place",
        (true, DownCause::Silent) => "the server does not answer; what no other source has waits for it",
        (true, DownCause::Refuses) => {
            "the server refuses this machine; what no other source has waits for it"
        }
        (true, DownCause::Untrusted) => {
            "what answers may not be the server, and is told nothing; what no other source has waits for it"
        }
    }
}

/// How long a source is left alone: as it says, but not for less than one that says nothing.
fn pause_after(retry_after: Option<Duration>, failures: u32) -> Duration {
    let least = backoff(failures);
    retry_after.map_or(least, |said| said.max(least)).min(LONGEST_PAUSE)
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
    use std::sync::atomic::AtomicU32;

    use chunk_format::PackId;
    use futures_util::future::BoxFuture;
    use futures_util::stream::StreamExt;

    use super::*;
    use crate::source::{Object, ObjectBody};

    /// A source that answers or does not, and counts how often it was asked.
    #[derive(Default)]
    struct Switched {
        answers: AtomicBool,
        asked: AtomicU32,
    }

    impl ChunkSource for Arc<Switched> {
        fn origin(&self) -> String {
            "a".to_owned()
        }

        fn get<'a>(
            &'a self,
            _: &'a ObjectPath,
            _: Option<Range<u64>>,
        ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let answer = match self.answers.load(Ordering::Relaxed) {
                true => Ok(futures_util::stream::empty().boxed()),
                false => Err(failure(FailureKind::Unreachable)),
            };
            Box::pin(std::future::ready(answer))
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

    fn path(namespace: &str) -> ObjectPath {
        ObjectPath { namespace: namespace.parse().unwrap(), object: Object::Pack(PackId::of(b"a")) }
    }

    fn sources<const N: usize>() -> (Sources, [Arc<Switched>; N]) {
        let switched = std::array::from_fn(|_| Arc::<Switched>::default());
        let list = switched.iter().map(|source| Arc::new(Arc::clone(source)) as Arc<dyn ChunkSource>);
        (Sources::new(list.collect()), switched)
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_source_is_probed_beside_the_work_and_then_preferred_again() {
        let (sources, [first, _]) = sources::<2>();
        let image = path("image/debian");
        let (at, entry) = sources.pick(&image, &[]).await.unwrap();
        assert_eq!(at, 0);
        sources.failed(entry, &image, &failure(FailureKind::Unreachable));
        assert_eq!(*sources.watch().borrow(), LinkState::Up, "one of two is enough");
        for _ in 0..20 {
            assert_eq!(
                sources.pick(&image, &[]).await.unwrap().0,
                1,
                "nobody waits for a source that is out"
            );
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert!((3..10).contains(&first.asked.load(Ordering::Relaxed)), "{:?}", first.asked);
        first.answers.store(true, Ordering::Relaxed);
        tokio::time::sleep(LONGEST_PAUSE * 2).await;
        assert_eq!(sources.pick(&image, &[]).await.unwrap().0, 0);
        let asked = first.asked.load(Ordering::Relaxed);
        tokio::time::sleep(LONGEST_PAUSE * 4).await;
        assert_eq!(first.asked.load(Ordering::Relaxed), asked, "what answers is not probed");
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_fail_it_is_said_once_and_taken_back_at_the_first_answer() {
        let (sources, _) = sources::<1>();
        let image = path("image/debian");
        let mut watch = sources.watch();
        let (_, only) = sources.pick(&image, &[]).await.unwrap();
        sources.failed(only, &image, &failure(FailureKind::Unreachable));
        assert!(watch.has_changed().unwrap());
        assert_eq!(
            *watch.borrow_and_update(),
            LinkState::Down {
                reason: "cannot fetch b from a: no route".to_owned(),
                cause: DownCause::Silent,
                at: Instant::now()
            }
        );
        sources.failed(only, &image, &failure(FailureKind::Unreachable));
        assert!(!watch.has_changed().unwrap());
        // Somebody has to do something about a refusal.
        for (kind, expected, is_news) in [
            (FailureKind::Refused, DownCause::Refuses, true),
            (FailureKind::Refused, DownCause::Refuses, false),
            (FailureKind::Untrusted, DownCause::Untrusted, true),
            (FailureKind::Untrusted, DownCause::Untrusted, false),
        ] {
            let (_, only) = sources.pick(&image, &[]).await.unwrap();
            sources.failed(only, &image, &failure(kind));
            assert_eq!(watch.has_changed().unwrap(), is_news, "{kind:?}");
            assert!(
                matches!(&*watch.borrow_and_update(), LinkState::Down { cause, .. } if *cause == expected)
            );
        }
        let (_, only) = sources.pick(&image, &[]).await.unwrap();
        sources.succeeded(only);
        assert_eq!(*watch.borrow_and_update(), LinkState::Up);
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_that_is_missing_or_damaged_is_no_outage() {
        let (sources, _) = sources::<1>();
        let image = path("image/debian");
        let (at, only) = sources.pick(&image, &[]).await.unwrap();
        for kind in [FailureKind::NotFound, FailureKind::Damaged, FailureKind::Damaged, FailureKind::Damaged]
        {
            sources.failed(only, &image, &failure(kind));
        }
        assert_eq!(sources.pick(&image, &[]).await.unwrap().0, 0);
        assert_eq!(sources.pick(&image, &[at]).await.err(), Some(NobodyLeft::AllAsked));
    }

    #[tokio::test(start_paused = true)]
    async fn who_serves_wrong_bytes_again_and_again_is_asked_last_for_a_while() {
        let (sources, _) = sources::<2>();
        let image = path("image/debian");
        let (_, first) = sources.pick(&image, &[]).await.unwrap();
        for _ in 0..DAMAGED_ANSWERS {
            assert_eq!(sources.pick(&image, &[]).await.unwrap().0, 0);
            sources.failed(first, &image, &failure(FailureKind::Damaged));
        }
        assert_eq!(sources.pick(&image, &[]).await.unwrap().0, 1);
        tokio::time::sleep(DAMAGE_PAUSE * 2).await;
        assert_eq!(sources.pick(&image, &[]).await.unwrap().0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_lacks_a_persons_objects_is_not_asked_for_each() {
        let (sources, _) = sources::<2>();
        let (image, user) = (path("image/debian"), path("user/alice"));
        let (_, first) = sources.pick(&user, &[]).await.unwrap();
        sources.failed(first, &user, &failure(FailureKind::NotFound));
        assert_eq!(sources.pick(&user, &[]).await.unwrap().0, 1);
        assert_eq!(sources.pick(&image, &[]).await.unwrap().0, 0);
        tokio::time::sleep(LACK_MEMORY).await;
        assert_eq!(sources.pick(&user, &[]).await.unwrap().0, 0);
    }

    /// A source that hands out chunks by their ids.
    struct ById(Arc<Switched>);

    impl ChunkSource for ById {
        fn origin(&self) -> String {
            "b".to_owned()
        }

        fn get<'a>(
            &'a self,
            path: &'a ObjectPath,
            range: Option<Range<u64>>,
        ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
            self.0.get(path, range)
        }

        fn may_have(&self, object: &Object) -> bool {
            matches!(object, Object::Pack(_))
        }

        fn hands_out_chunks(&self) -> bool {
            true
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_hands_out_chunks_is_asked_for_nothing_else_and_may_lack_any() {
        let cache = Arc::new(ById(Arc::default())) as Arc<dyn ChunkSource>;
        let server = Arc::new(Arc::<Switched>::default()) as Arc<dyn ChunkSource>;
        let sources = Sources::new(vec![cache, server]);
        let user = path("user/alice");
        let locator =
            ObjectPath { object: Object::Locator(chunk_format::SegmentId::of(b"a")), ..user.clone() };
        assert_eq!(sources.pick(&locator, &[]).await.unwrap().0, 1);
        let (at, first) = sources.pick(&user, &[]).await.unwrap();
        assert_eq!(at, 0);
        sources.failed(first, &user, &failure(FailureKind::NotFound));
        assert_eq!(sources.pick(&user, &[]).await.unwrap().0, 0, "it lacks one chunk");
        assert!(sources.first_by_id(&user.namespace).is_some());
        sources.failed(first, &user, &failure(FailureKind::Unreachable));
        assert!(sources.first_by_id(&user.namespace).is_none());
        let (_, server) = sources.pick(&user, &[]).await.unwrap();
        sources.failed(server, &user, &failure(FailureKind::Unreachable));
        assert_eq!(sources.pick(&locator, &[]).await.unwrap().0, 1, "whoever else is back first");
    }

    #[tokio::test(start_paused = true)]
    async fn who_had_wrong_bytes_is_asked_again_while_the_others_are_away() {
        let (sources, _) = sources::<2>();
        let image = path("image/debian");
        let (at, first) = sources.pick(&image, &[]).await.unwrap();
        sources.failed(first, &image, &failure(FailureKind::Unreachable));
        let (second_at, _) = sources.pick(&image, &[]).await.unwrap();
        assert_ne!(at, second_at);
        // The second one's answer was wrong: it is passed over, but not for as long as the first one is away.
        for _ in 0..10 {
            let Ok((at, entry)) = sources.pick(&image, &[second_at]).await else { return };
            assert_ne!(at, second_at);
            sources.failed(entry, &image, &failure(FailureKind::Unreachable));
        }
        panic!("it waits for the first one for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn a_distrusted_source_is_better_than_none() {
        let (sources, _) = sources::<2>();
        let image = path("image/debian");
        let (_, first) = sources.pick(&image, &[]).await.unwrap();
        for _ in 0..DAMAGED_ANSWERS {
            sources.failed(first, &image, &failure(FailureKind::Damaged));
        }
        let (at, second) = sources.pick(&image, &[]).await.unwrap();
        assert_eq!(at, 1);
        sources.failed(second, &image, &failure(FailureKind::Unreachable));
        assert_eq!(sources.pick(&image, &[]).await.unwrap().0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_any_source_is_woken_when_a_probe_finds_one() {
        let (sources, [first, _]) = sources::<2>();
        let image = path("image/debian");
        for at in 0..2 {
            let (_, entry) = sources.pick(&image, &[1 - at]).await.unwrap();
            sources.failed(entry, &image, &failure(FailureKind::Unreachable));
        }
        assert!(matches!(*sources.watch().borrow(), LinkState::Down { .. }));
        first.answers.store(true, Ordering::Relaxed);
        let mut watch = sources.watch();
        watch.wait_for(|state| *state == LinkState::Up).await.unwrap();
        assert_eq!(sources.pick(&image, &[]).await.unwrap().0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_when_to_come_back_is_left_alone_until_then_but_for_a_pause_at_least_and_not_for_hours()
    {
        let image = path("image/debian");
        let told = |seconds| SourceError {
            retry_after: Some(Duration::from_secs(seconds)),
            ..failure(FailureKind::Unreachable)
        };
        let (second, tick) = (Duration::from_secs(1), Duration::from_millis(2));
        for (said, least, most) in [
            (0, FIRST_PAUSE.mul_f64(0.74), FIRST_PAUSE.mul_f64(1.26)),
            (2, second * 2, second * 2),
            (86_400, LONGEST_PAUSE, LONGEST_PAUSE),
        ] {
            let (sources, _) = sources::<1>();
            let (_, only) = sources.pick(&image, &[]).await.unwrap();
            let began = Instant::now();
            sources.failed(only, &image, &told(said));
            sources.pick(&image, &[]).await.unwrap();
            let pause = began.elapsed();
            assert!((least..=most + tick).contains(&pause), "{pause:?} after {said} s were said");
        }
        // One that says so again and again is asked as seldom as one that says nothing.
        let (sources, _) = sources::<1>();
        let (began, mut asked) = (Instant::now(), 0);
        while began.elapsed() < second * 60 {
            let (_, only) = sources.pick(&image, &[]).await.unwrap();
            asked += 1;
            sources.failed(only, &image, &told(0));
        }
        assert!((12..30).contains(&asked), "{asked}");
    }

    #[test]
    fn a_server_that_does_not_answer_is_not_said_to_be_replaced() {
        for kind in [FailureKind::Unreachable, FailureKind::Refused, FailureKind::Untrusted] {
            let said = failure_among_others(true, kind);
            assert!(said.contains("server") && said.contains("waits for it"), "{said}");
            assert!(failure_among_others(false, kind).contains("the others are asked in its place"));
        }
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let pauses: Vec<Duration> = (1..40).map(backoff).collect();
        assert!(pauses[0] >= FIRST_PAUSE.mul_f64(0.74) && pauses[0] <= FIRST_PAUSE.mul_f64(1.26));
        assert!(pauses.iter().all(|pause| *pause <= LONGEST_PAUSE.mul_f64(1.26)));
    }
}
