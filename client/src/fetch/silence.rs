//! A source that has fallen silent counts as lost, and so does one that drips while another one behind it may do better.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chunk_format::{ChunkId, ChunkSize};
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt, unfold};
use tokio::time::Instant;

use crate::source::exchange::name_of;
use crate::source::{ChunkAnswers, ChunkSource, FailureKind, Object, ObjectBody, ObjectPath, SourceError};

/// Silence after which a source counts as lost: soon when there is another behind it, with patience when there is none. Over a
/// satellite a connection takes longer to be made than the first.
const SILENCE_LIMIT: Duration = Duration::from_secs(5);
const SILENCE_LIMIT_BEFORE_OTHERS: Duration = Duration::from_millis(1500);
/// While other answers of the source still come in, a silent one is only being outrun by them: it may be silent for
/// this many limits.
const OUTRUN_LIMITS: u32 = 6;
/// What a source that has others behind it is to bring within the limit, bytes: a modem does.
const LEAST_BYTES: u64 = 4 << 10;

/// Has each of these sources given up on when it falls silent.
pub(super) fn limit_silence(sources: Vec<Arc<dyn ChunkSource>>) -> Vec<Arc<dyn ChunkSource>> {
    let mut behind = Vec::new();
    let mut limited: Vec<Arc<dyn ChunkSource>> = Vec::with_capacity(sources.len());
    for source in sources.into_iter().rev() {
        // A cache is no other place for what it lacks, so it does not shorten the patience with those that have it all.
        let has_all = !source.hands_out_chunks();
        let limit = match behind.is_empty() && has_all {
            true => SILENCE_LIMIT,
            false => SILENCE_LIMIT_BEFORE_OTHERS,
        };
        let source = SilenceLimited { behind: behind.clone(), ..SilenceLimited::new(source, limit) };
        if has_all {
            behind.push(Arc::clone(&source.is_well));
        }
        limited.push(Arc::new(source));
    }
    limited.reverse();
    limited
}

/// Gives up on an answer whose source has said nothing, or too little, for a while.
pub(super) struct SilenceLimited {
    inner: Arc<dyn ChunkSource>,
    limit: Duration,
    /// Counts the bytes that arrive in all answers.
    progress_bytes: Arc<AtomicU64>,
    /// What it was last asked for in vain.
    failed: Arc<Mutex<Option<Asked>>>,
    /// Whether it answers, and brings as much as it should.
    is_well: Arc<AtomicBool>,
    /// The same of those behind it that may have what it has.
    behind: Vec<Arc<AtomicBool>>,
}

/// What a source is asked for.
#[derive(Clone)]
enum Asked {
    Chunk(ChunkId, ChunkSize),
    Bytes(ObjectPath, Option<Range<u64>>),
}

impl SilenceLimited {
    fn new(inner: Arc<dyn ChunkSource>, limit: Duration) -> Self {
        Self {
            inner,
            limit,
            progress_bytes: Arc::default(),
            failed: Arc::default(),
            is_well: Arc::new(AtomicBool::new(true)),
            behind: Vec::new(),
        }
    }

    fn watch(&self, object: String) -> Watch {
        Watch {
            limit: self.limit,
            least_bytes: if self.behind.is_empty() { 1 } else { LEAST_BYTES },
            progress_bytes: Arc::clone(&self.progress_bytes),
            is_well: Arc::clone(&self.is_well),
            behind: self.behind.clone(),
            origin: self.inner.origin(),
            object,
            left: self.limit,
            before_bytes: self.progress_bytes.load(Ordering::Relaxed),
            gained_bytes: 0,
            is_silent: true,
            meagre_limits: 0,
        }
    }

    fn note_failed(failed: &Mutex<Option<Asked>>, asked: Option<Asked>) {
        *failed.lock().unwrap_or_else(PoisonError::into_inner) = asked;
    }
}

impl ChunkSource for SilenceLimited {
    fn origin(&self) -> String {
        self.inner.origin()
    }

    fn get<'a>(
        &'a self,
        path: &'a ObjectPath,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        Box::pin(async move {
            let mut watch = self.watch(path.to_string());
            let body = watch.over(self.inner.get(path, range.clone()), |_| 1).await;
            let body = body.inspect_err(|error| {
                if matches!(
                    error.kind,
                    FailureKind::Unreachable | FailureKind::Refused | FailureKind::Untrusted
                ) {
                    self.is_well.store(false, Ordering::Relaxed);
                }
            })?;
            watch.begin_limit();
            let (failed, path) = (Arc::clone(&self.failed), path.clone());
            let noted = watch.over_stream(body, |part| part.len() as u64).inspect_err(move |error| {
                if error.kind == FailureKind::Unreachable {
                    // Its beginning tells as much as all of it.
                    let range =
                        range.clone().map(|range| range.start..range.end.min(range.start + LEAST_BYTES));
                    Self::note_failed(&failed, Some(Asked::Bytes(path.clone(), range)));
                }
            });
            Ok(noted.boxed())
        })
    }

    fn may_have(&self, object: &Object) -> bool {
        self.inner.may_have(object)
    }

    /// A source may answer and yet not bring what it was given up for, so it is asked for that.
    fn probe<'a>(&'a self, path: &'a ObjectPath) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).clone();
            match failed {
                None => self.watch(path.to_string()).over(self.inner.probe(path), |()| 1).await?,
                Some(Asked::Chunk(id, size)) => {
                    let mut answers = self.chunks(&[id], size).await?;
                    while answers.try_next().await?.is_some() {}
                }
                Some(Asked::Bytes(path, range)) => {
                    let mut body = self.get(&path, range).await?;
                    while body.try_next().await?.is_some() {}
                    Self::note_failed(&self.failed, None);
                }
            }
            Ok(())
        })
    }

    fn hands_out_chunks(&self) -> bool {
        self.inner.hands_out_chunks()
    }

    fn chunks<'a>(
        &'a self,
        ids: &'a [ChunkId],
        size: ChunkSize,
    ) -> BoxFuture<'a, Result<ChunkAnswers, SourceError>> {
        Box::pin(async move {
            let mut watch = self.watch(name_of(ids));
            let answers = watch.over(self.inner.chunks(ids, size), |_| 1).await;
            watch.begin_limit();
            let mut left = Vec::from(ids).into_iter();
            let failed = Arc::clone(&self.failed);
            let note = move |id: Option<ChunkId>| {
                Self::note_failed(&failed, id.map(|id| Asked::Chunk(id, size)));
            };
            let answers = answers.inspect_err(|_| note(ids.first().copied()))?;
            // Said of a chunk is the whole of it: who drips brings no part in time.
            let noted = watch.over_stream(answers, |_| LEAST_BYTES).inspect(move |answered| {
                let id = left.next();
                if answered.is_err() {
                    note(id);
                }
            });
            Ok(noted.boxed())
        })
    }

    fn missing<'a>(&'a self, ids: &'a [ChunkId]) -> BoxFuture<'a, Result<Vec<bool>, SourceError>> {
        Box::pin(async move { self.watch(name_of(ids)).over(self.inner.missing(ids), |_| 1).await })
    }
}

/// Watches over one answer.
struct Watch {
    limit: Duration,
    /// What has to come of it within the limit.
    least_bytes: u64,
    progress_bytes: Arc<AtomicU64>,
    is_well: Arc<AtomicBool>,
    behind: Vec<Arc<AtomicBool>>,
    origin: String,
    object: String,
    /// What is left of the limit: only waiting for the source counts.
    left: Duration,
    /// What had come of all answers when it began.
    before_bytes: u64,
    /// What came since enough did.
    gained_bytes: u64,
    /// Nothing has come within the limit.
    is_silent: bool,
    /// Limits since enough came.
    meagre_limits: u32,
}

impl Watch {
    /// A body, or what is said of chunks, given up on when too little of it comes for too long.
    fn over_stream<T: Send + 'static>(
        self,
        body: BoxStream<'static, Result<T, SourceError>>,
        bytes_of: impl Fn(&T) -> u64 + Copy + Send + Sync + 'static,
    ) -> BoxStream<'static, Result<T, SourceError>> {
        unfold(Some((body, self)), move |state| async move {
            let (mut body, mut watch) = state?;
            match watch.over(body.try_next(), |part| part.as_ref().map_or(0, bytes_of)).await {
                Ok(Some(part)) => Some((Ok(part), Some((body, watch)))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    async fn over<T>(
        &mut self,
        step: impl Future<Output = Result<T, SourceError>>,
        bytes_of: impl Fn(&T) -> u64,
    ) -> Result<T, SourceError> {
        tokio::pin!(step);
        loop {
            let begin = Instant::now();
            if let Ok(result) = tokio::time::timeout(self.left, &mut step).await {
                self.left = self.left.saturating_sub(begin.elapsed());
                if let Ok(part) = &result {
                    self.note(bytes_of(part));
                }
                return result;
            }
            self.end_limit()?;
        }
    }

    fn note(&mut self, bytes: u64) {
        self.progress_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.gained_bytes += bytes;
        self.is_silent &= bytes == 0;
        if self.gained_bytes >= self.least_bytes {
            (self.gained_bytes, self.meagre_limits) = (0, 0);
            self.is_well.store(true, Ordering::Relaxed);
            self.begin_limit();
        }
    }

    fn begin_limit(&mut self) {
        self.left = self.limit;
        self.before_bytes = self.progress_bytes.load(Ordering::Relaxed);
        self.is_silent = true;
    }

    /// Goes on with an answer of which too little came, or gives it up.
    fn end_limit(&mut self) -> Result<(), SourceError> {
        self.meagre_limits += 1;
        let brought_bytes = self.progress_bytes.load(Ordering::Relaxed) - self.before_bytes;
        let is_outrun = brought_bytes >= self.least_bytes && self.meagre_limits < OUTRUN_LIMITS;
        if !is_outrun {
            self.is_well.store(false, Ordering::Relaxed);
        }
        // Where nobody does better a slow link is not left: whatever it has brought by then would be lost each time.
        let is_best = !self.behind.iter().any(|other| other.load(Ordering::Relaxed));
        if is_outrun || (!self.is_silent && is_best) {
            self.begin_limit();
            return Ok(());
        }
        let span_s = (self.limit * self.meagre_limits).as_secs_f64();
        let cause = match self.is_silent {
            true => format!("it has been silent for {span_s:.1} s"),
            false => format!("it brought {} bytes in {span_s:.1} s", self.gained_bytes),
        };
        Err(SourceError {
            origin: self.origin.clone(),
            object: self.object.clone(),
            kind: FailureKind::Unreachable,
            retry_after: None,
            cause: cause.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use chunk_format::PackId;
    use futures_util::stream::{iter, pending};

    use super::*;
    use crate::source::exchange::Answered;

    /// Answers at once, but never about one chunk.
    struct Stuck {
        on: Mutex<Option<ChunkId>>,
        asked: Mutex<Vec<Vec<ChunkId>>>,
    }

    impl ChunkSource for Arc<Stuck> {
        fn origin(&self) -> String {
            "a".to_owned()
        }

        fn get<'a>(
            &'a self,
            _: &'a ObjectPath,
            _: Option<Range<u64>>,
        ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
            Box::pin(async { Ok(iter([]).boxed()) })
        }

        fn hands_out_chunks(&self) -> bool {
            true
        }

        fn chunks<'a>(
            &'a self,
            ids: &'a [ChunkId],
            _: ChunkSize,
        ) -> BoxFuture<'a, Result<ChunkAnswers, SourceError>> {
            self.asked.lock().unwrap().push(ids.to_vec());
            let told = ids.iter().position(|id| Some(*id) == *self.on.lock().unwrap());
            let answers = iter((0..told.unwrap_or(ids.len())).map(|_| Ok(Answered::NotHere)));
            Box::pin(std::future::ready(Ok(match told {
                Some(_) => answers.chain(pending()).boxed(),
                None => answers.boxed(),
            })))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_answers_but_not_about_a_chunk_is_out_until_it_does() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| ChunkId::of(bytes));
        let stuck = Arc::new(Stuck { on: Mutex::new(Some(b)), asked: Mutex::default() });
        let source = SilenceLimited::new(Arc::new(Arc::clone(&stuck)), Duration::from_secs(1));
        let path = path();
        source.probe(&path).await.unwrap();
        let mut answers = source.chunks(&[a, b, c], ChunkSize::DEFAULT).await.unwrap();
        assert_eq!(answers.try_next().await.unwrap(), Some(Answered::NotHere));
        assert_eq!(answers.try_next().await.unwrap_err().kind, FailureKind::Unreachable);
        assert_eq!(source.probe(&path).await.unwrap_err().kind, FailureKind::Unreachable);
        *stuck.on.lock().unwrap() = None;
        source.probe(&path).await.unwrap();
        assert_eq!(*stuck.asked.lock().unwrap(), [vec![a, b, c], vec![b], vec![b]]);
    }

    /// Brings what it is asked for byte by byte, with a pause before each.
    #[derive(Clone, Copy)]
    struct Drops(Duration);

    impl ChunkSource for Drops {
        fn origin(&self) -> String {
            "a".to_owned()
        }

        fn get<'a>(
            &'a self,
            _: &'a ObjectPath,
            range: Option<Range<u64>>,
        ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
            let (Self(pause), range) = (*self, range.unwrap());
            let drops = iter(range).then(move |_| async move {
                tokio::time::sleep(pause).await;
                Ok(bytes::Bytes::from_static(b"a"))
            });
            Box::pin(std::future::ready(Ok(drops.boxed())))
        }
    }

    fn path() -> ObjectPath {
        let namespace = "image/debian".parse().unwrap();
        ObjectPath { namespace, object: Object::Pack(PackId::of(b"a")) }
    }

    async fn read(source: &Arc<dyn ChunkSource>) -> Result<usize, FailureKind> {
        let path = path();
        let body = source.get(&path, Some(0..5000)).await.map_err(|error| error.kind)?;
        body.try_fold(0, |len, part| async move { Ok(len + part.len()) }).await.map_err(|error| error.kind)
    }

    #[tokio::test(start_paused = true)]
    async fn who_drips_is_given_up_as_long_as_another_may_do_better() {
        let [slow, quick] = [20, 0].map(|pause_ms| Drops(Duration::from_millis(pause_ms)));
        let sources = limit_silence(vec![Arc::new(slow), Arc::new(quick)]);
        for _ in 0..3 {
            assert_eq!(read(&sources[0]).await, Err(FailureKind::Unreachable));
            assert!(sources[0].probe(&path()).await.is_err(), "not for the first bytes of it");
            assert_eq!(read(&sources[1]).await, Ok(5000));
        }
        let sources = limit_silence(vec![Arc::new(quick), Arc::new(slow)]);
        assert_eq!(read(&sources[1]).await, Ok(5000), "the last one has nobody behind it");
        let silent = Drops(SILENCE_LIMIT * 2);
        let sources = limit_silence(vec![Arc::new(slow), Arc::new(silent)]);
        assert_eq!(read(&sources[1]).await, Err(FailureKind::Unreachable));
        assert_eq!(read(&sources[0]).await, Ok(5000), "nobody does better");
    }
}
