//! One request for neighbouring frames of a pack.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use chunk_format::FormatError;
use futures_util::stream::TryStreamExt;
use tokio::sync::Mutex;

use super::pace::Admitted;
use super::queue::{Job, PlacedFrame, Run};
use super::{Arrival, Class, Shared};
use crate::source::{ChunkSource, FailureKind, Object, ObjectPath, SourceError, damaged};

impl Shared {
    /// Fetches every chunk of a run, in as many requests as it takes; what a source by ids lacks is queued again.
    pub(super) async fn fetch_run(&self, run: Run, admitted: Admitted) {
        match run {
            Run::Packed { pack, jobs } => {
                let path = ObjectPath { namespace: pack.namespace.clone(), object: Object::Pack(pack.pack) };
                self.fetch_packed(&path, Request::new(jobs, admitted)).await;
            }
            Run::ById { namespace, jobs } => self.fetch_by_id(&namespace, Request::new(jobs, admitted)).await,
        }
    }

    async fn fetch_packed(&self, path: &ObjectPath, request: Request) {
        let passed_over = request.left.front().map(|job| job.passed_over.clone()).unwrap_or_default();
        // One attempt holds it at a time.
        let request = Mutex::new(request);
        let fetched = self
            .try_sources(path, self.on_missing, passed_over, |at, source| {
                let request = &request;
                async move {
                    let request = &mut *request.lock().await;
                    match source.hands_out_chunks() {
                        true => self.fetch_chunks(&*source, at, path, request).await,
                        false => self.fetch_frames(&*source, path, request).await,
                    }
                }
            })
            .await;
        let Request { left, lacking, admitted } = request.into_inner();
        drop(admitted);
        if let Err(error) = fetched {
            let error = Arc::new(error);
            left.iter().for_each(|job| self.give_up(&job.id, &job.flight, &error));
        }
        self.enqueue(lacking);
    }

    /// Makes one request. Chunks of a broken answer that came whole and right are kept, whatever follows them.
    async fn fetch_frames(
        &self,
        source: &dyn ChunkSource,
        path: &ObjectPath,
        request: &mut Request,
    ) -> Result<(), SourceError> {
        let mut wrong = VecDeque::new();
        let mut outcome = self.stream_frames(source, path, request, &mut wrong).await;
        if let Some((_, error)) = wrong.front() {
            outcome = outcome.and(Err(damaged(source, path, error.to_string())));
        }
        wrong.into_iter().rev().for_each(|(job, _)| request.left.push_front(job));
        outcome
    }

    async fn stream_frames(
        &self,
        source: &dyn ChunkSource,
        path: &ObjectPath,
        Request { left, admitted, .. }: &mut Request,
        wrong: &mut VecDeque<(Job, FormatError)>,
    ) -> Result<(), SourceError> {
        let Some(range) = span(left) else { return Ok(()) };
        admitted.sent();
        let mut body = source.get(path, Some(range.clone())).await?;
        admitted.answered();
        let mut buffer = BytesMut::new();
        // Where in the pack the buffer's first byte lies.
        let mut at = range.start;
        while let Some((start, end)) = left.front().and_then(Job::frame).map(|f| (f.start(), f.end())) {
            let arrived = at + buffer.len() as u64;
            if arrived < end {
                let Some(part) = body.try_next().await? else {
                    let cause = format!("the answer ended {} bytes early", range.end - arrived);
                    return Err(SourceError {
                        kind: FailureKind::Unreachable,
                        ..damaged(source, path, cause)
                    });
                };
                self.counters.fetched_bytes.fetch_add(part.len() as u64, Ordering::Relaxed);
                admitted.arrived(part.len() as u64);
                buffer.extend_from_slice(&part);
                continue;
            }
            let gap = start.saturating_sub(at);
            drop(buffer.split_to(usize::try_from(gap).unwrap_or(usize::MAX).min(buffer.len())));
            let frame = buffer.split_to(usize::try_from(end - start).unwrap_or(usize::MAX).min(buffer.len()));
            at = end;
            let Some(job) = left.pop_front() else { break };
            match self.decode(&job, &frame) {
                Ok(chunk) => self.land(job, chunk).await,
                Err(error) => wrong.push_back((job, error)),
            }
        }
        Ok(())
    }

    pub(super) fn decode(&self, job: &Job, frame: &[u8]) -> Result<Bytes, FormatError> {
        let mut chunk = vec![0; self.cache.chunk_size().bytes()];
        self.with_decoder(|decoder| decoder.decode_chunk(frame, job.id, &mut chunk))?;
        Ok(chunk.into())
    }

    pub(super) async fn land(&self, mut job: Job, chunk: Bytes) {
        self.counters.chunks.fetch_add(1, Ordering::Relaxed);
        let foreseen = job.class != Class::Waiting;
        let unread = self.tell(&job.flight, &chunk, foreseen);
        let arrival = Arrival { id: job.id, chunk, unread, _room: job.room.take() };
        // Waits when the cache's disk is slower than the link; the readers have been told already. It fails only when
        // the fetcher is gone, and the cache with it.
        let _ = self.arrived.send(arrival).await;
    }
}

/// One request, and what of it is still to come.
pub(super) struct Request {
    /// Jobs leave it as their chunks arrive, so that another request asks for the rest only.
    pub(super) left: VecDeque<Job>,
    /// What a source that was asked by ids lacks.
    pub(super) lacking: Vec<Job>,
    pub(super) admitted: Admitted,
}

impl Request {
    fn new(jobs: Vec<Job>, admitted: Admitted) -> Self {
        Self { left: jobs.into(), lacking: Vec::new(), admitted }
    }
}

/// The range of the pack that holds all these frames, which are in its order.
fn span(jobs: &VecDeque<Job>) -> Option<Range<u64>> {
    let (first, last) = (jobs.front()?.frame()?, jobs.back()?.frame()?);
    Some(PlacedFrame::start(first)..PlacedFrame::end(last))
}
