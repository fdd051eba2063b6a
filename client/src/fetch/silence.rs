//! A source that has fallen silent counts as lost.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chunk_format::{ChunkId, ChunkSize};
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, StreamExt, TryStreamExt, unfold};

use crate::source::exchange::name_of;
use crate::source::{ChunkAnswers, ChunkSource, FailureKind, Object, ObjectBody, ObjectPath, SourceError};

/// While other answers of the source still come in, a silent one is only being outrun by them: it may be silent for
/// this many limits.
const OUTRUN_LIMITS: u32 = 6;

/// Gives up on an answer whose source has said nothing for a while.
pub(super) struct SilenceLimited {
    inner: Arc<dyn ChunkSource>,
    limit: Duration,
    /// Counts what arrives in all answers.
    progress: Arc<AtomicU64>,
    /// The chunk that it was last asked for by its id in vain.
    failed: Arc<Mutex<Option<(ChunkId, ChunkSize)>>>,
}

impl SilenceLimited {
    pub(super) fn new(inner: Arc<dyn ChunkSource>, limit: Duration) -> Self {
        Self { inner, limit, progress: Arc::default(), failed: Arc::default() }
    }

    fn watch(&self, object: String) -> Watch {
        Watch { limit: self.limit, progress: Arc::clone(&self.progress), origin: self.inner.origin(), object }
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
            let watch = self.watch(path.to_string());
            let body = watch.over(self.inner.get(path, range)).await?;
            Ok(watch.over_stream(body))
        })
    }

    fn may_have(&self, object: &Object) -> bool {
        self.inner.may_have(object)
    }

    /// A source may answer and yet not bring the chunk that it was given up for, so it is asked for that one.
    fn probe<'a>(&'a self, path: &'a ObjectPath) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let failed = *self.failed.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((id, size)) = failed else {
                return self.watch(path.to_string()).over(self.inner.probe(path)).await;
            };
            let mut answers = self.chunks(&[id], size).await?;
            while answers.try_next().await?.is_some() {}
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
            let watch = self.watch(name_of(ids));
            let answers = watch.over(self.inner.chunks(ids, size)).await;
            let mut left = Vec::from(ids).into_iter();
            let failed = Arc::clone(&self.failed);
            let note = move |id: Option<ChunkId>| {
                let failed_last = id.map(|id| (id, size));
                *failed.lock().unwrap_or_else(PoisonError::into_inner) = failed_last;
            };
            let answers = answers.inspect_err(|_| note(ids.first().copied()))?;
            let noted = watch.over_stream(answers).inspect(move |answered| {
                let id = left.next();
                if answered.is_err() {
                    note(id);
                }
            });
            Ok(noted.boxed())
        })
    }

    fn missing<'a>(&'a self, ids: &'a [ChunkId]) -> BoxFuture<'a, Result<Vec<bool>, SourceError>> {
        Box::pin(async move { self.watch(name_of(ids)).over(self.inner.missing(ids)).await })
    }
}

struct Watch {
    limit: Duration,
    progress: Arc<AtomicU64>,
    origin: String,
    object: String,
}

impl Watch {
    /// A body, or what is said of chunks, given up on when no part of it comes for too long. Said of a chunk is the whole of
    /// it: who drips brings no part in time.
    fn over_stream<T: Send + 'static>(
        self,
        body: BoxStream<'static, Result<T, SourceError>>,
    ) -> BoxStream<'static, Result<T, SourceError>> {
        unfold(Some((body, self)), |state| async move {
            let (mut body, watch) = state?;
            match watch.over(body.try_next()).await {
                Ok(Some(part)) => Some((Ok(part), Some((body, watch)))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
        .boxed()
    }

    async fn over<T>(&self, step: impl Future<Output = Result<T, SourceError>>) -> Result<T, SourceError> {
        tokio::pin!(step);
        let mut silent_limits = 0;
        loop {
            let before = self.progress.load(Ordering::Relaxed);
            if let Ok(result) = tokio::time::timeout(self.limit, &mut step).await {
                self.progress.fetch_add(1, Ordering::Relaxed);
                return result;
            }
            silent_limits += 1;
            let outrun = self.progress.load(Ordering::Relaxed) != before;
            if !outrun || silent_limits == OUTRUN_LIMITS {
                return Err(SourceError {
                    origin: self.origin.clone(),
                    object: self.object.clone(),
                    kind: FailureKind::Unreachable,
                    retry_after: None,
                    cause: format!(
                        "it has been silent for {:.1} s",
                        (self.limit * silent_limits).as_secs_f64()
                    )
                    .into(),
                });
            }
        }
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
        let namespace = "image/debian".parse().unwrap();
        let path = ObjectPath { namespace, object: Object::Pack(PackId::of(b"a")) };
        source.probe(&path).await.unwrap();
        let mut answers = source.chunks(&[a, b, c], ChunkSize::DEFAULT).await.unwrap();
        assert_eq!(answers.try_next().await.unwrap(), Some(Answered::NotHere));
        assert_eq!(answers.try_next().await.unwrap_err().kind, FailureKind::Unreachable);
        assert_eq!(source.probe(&path).await.unwrap_err().kind, FailureKind::Unreachable);
        *stuck.on.lock().unwrap() = None;
        source.probe(&path).await.unwrap();
        assert_eq!(*stuck.asked.lock().unwrap(), [vec![a, b, c], vec![b], vec![b]]);
    }
}
