//! Fetches neighbouring frames of a pack, or the chunks in them by their ids.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use chunk_format::{ChunkId, FormatError};
use futures_util::stream::TryStreamExt;
use tokio::sync::Mutex;

use super::pace::Admitted;
use super::queue::{GAP_LIMIT_BYTES, Job, Run};
use super::{Arrival, Class, FetchError, OnMissing, Patience, Shared};
use crate::source::exchange::{Answered, MAX_CHUNKS};
use crate::source::{ChunkSource, FailureKind, Object, ObjectPath, SourceError, damaged};

impl Shared {
    /// Fetches every chunk of a run, in as many requests as it takes. Answers those that nobody who is there has the right bytes
    /// of now, when it is not for their readers to hear of it, or they may lie elsewhere: what a run holds of the link is free
    /// again while they wait.
    pub(super) async fn fetch_run(&self, run: Run, admitted: Admitted) -> Vec<Job> {
        let path = ObjectPath { namespace: run.pack.namespace.clone(), object: Object::Pack(run.pack.pack) };
        // Jobs leave it as their chunks arrive, so that another request asks for the rest only. One attempt holds it
        // at a time.
        let request = Mutex::new(Request { left: VecDeque::from(run.jobs), admitted });
        let fetched = self
            .try_sources(&path, Patience::WhileAnswered, Vec::new(), |_, source| {
                let (path, request) = (&path, &request);
                async move { self.fetch_some(&*source, path, &mut *request.lock().await).await }
            })
            .await;
        let Err(error) = fetched else { return Vec::new() };
        let left = request.into_inner().left;
        if matches!(error, FetchError::OthersAway { .. }) {
            return left.into_iter().map(|job| Job { room: None, ..job }).collect();
        }
        // None of them may lie there: the next locator is another's.
        left.iter().for_each(|job| job.segment.forget_locator(&job.located));
        let (later, lost): (Vec<Job>, Vec<Job>) = left.into_iter().partition(|job| {
            // What the last source says of where it lies is no better for being asked again.
            self.on_missing == OnMissing::Wait || !self.sources.is_last(job.located.source)
        });
        if later.iter().any(|job| !job.is_late) {
            tracing::error!(object = %path, error = &error as &dyn std::error::Error, "no source has the right bytes");
        }
        let error = Arc::new(error);
        for job in lost {
            self.end_flight(&job.id, &job.flight, Arc::clone(&error));
        }
        later.into_iter().map(|job| Job { room: None, is_late: true, ..job }).collect()
    }

    /// Has a source bring what it can of a run. Chunks of a broken answer that came whole and right are kept, whatever follows
    /// them.
    async fn fetch_some(
        &self,
        source: &dyn ChunkSource,
        path: &ObjectPath,
        request: &mut Request,
    ) -> Result<(), SourceError> {
        if request.left.is_empty() {
            return Ok(());
        }
        match source.hands_out_chunks() {
            true => self.fetch_chunks(source, path, request).await,
            false => self.fetch_frames(source, path, request).await,
        }
    }

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

    /// Asks for the chunks of a run by their ids, in as many requests as it takes. What the source lacks stays for the others,
    /// in the order of the pack.
    async fn fetch_chunks(
        &self,
        source: &dyn ChunkSource,
        path: &ObjectPath,
        Request { left, admitted }: &mut Request,
    ) -> Result<(), SourceError> {
        let mut rest = VecDeque::new();
        let mut outcome = Ok(());
        while outcome.is_ok() && !left.is_empty() {
            let mut asked: VecDeque<Job> = left.drain(..left.len().min(MAX_CHUNKS)).collect();
            outcome = self.stream_chunks(source, path, &mut asked, admitted, &mut rest).await;
            rest.append(&mut asked);
        }
        rest.append(left);
        *left = rest;
        match outcome {
            // All chunks came and hold: what is wrong with the answer behind them is nobody's loss.
            Err(error) if left.is_empty() => {
                tracing::debug!(error = &error as &dyn std::error::Error, "an answer ended badly");
                Ok(())
            }
            Ok(()) if !left.is_empty() => Err(SourceError {
                kind: FailureKind::NotFound,
                ..damaged(source, path, format!("it lacks {} chunks of it", left.len()))
            }),
            outcome => outcome,
        }
    }

    /// Makes one request by ids; what was answered leaves `asked`, and what is to be had elsewhere goes to `rest`.
    async fn stream_chunks(
        &self,
        source: &dyn ChunkSource,
        path: &ObjectPath,
        asked: &mut VecDeque<Job>,
        admitted: &mut Admitted,
        rest: &mut VecDeque<Job>,
    ) -> Result<(), SourceError> {
        let ids: Vec<ChunkId> = asked.iter().map(|job| job.id).collect();
        let mut wrong = None;
        admitted.sent();
        let mut answers = source.chunks(&ids, self.cache.chunk_size()).await?;
        admitted.answered();
        while let Some(answered) = answers.try_next().await? {
            let Some(job) = asked.pop_front() else { break };
            let Answered::Frame(frame) = answered else {
                rest.push_back(job);
                continue;
            };
            self.counters.fetched_bytes.fetch_add(frame.len() as u64, Ordering::Relaxed);
            admitted.arrived(frame.len() as u64);
            match self.decode(&job, &frame) {
                Ok(chunk) => self.land(job, chunk).await,
                Err(error) => {
                    wrong.get_or_insert_with(|| damaged(source, path, error));
                    rest.push_back(job);
                }
            }
        }
        wrong.map_or(Ok(()), Err)
    }

    async fn stream_frames(
        &self,
        source: &dyn ChunkSource,
        path: &ObjectPath,
        Request { left, admitted }: &mut Request,
        wrong: &mut VecDeque<(Job, FormatError)>,
    ) -> Result<(), SourceError> {
        while let Some(range) = span(left) {
            self.stream_range(source, path, range, left, admitted, wrong).await?;
        }
        Ok(())
    }

    /// Makes one request for a range of the pack, which ends with a frame.
    async fn stream_range(
        &self,
        source: &dyn ChunkSource,
        path: &ObjectPath,
        range: Range<u64>,
        left: &mut VecDeque<Job>,
        admitted: &mut Admitted,
        wrong: &mut VecDeque<(Job, FormatError)>,
    ) -> Result<(), SourceError> {
        admitted.sent();
        let mut body = source.get(path, Some(range.clone())).await?;
        admitted.answered();
        let mut buffer = BytesMut::new();
        // Where in the pack the buffer's first byte lies.
        let mut at = range.start;
        while let Some(job) = left.front().filter(|job| u64::from(job.offset) < range.end) {
            let start = u64::from(job.offset);
            let end = start + u64::from(job.frame_len);
            let arrived = at + buffer.len() as u64;
            if arrived < end {
                let Some(part) = body.try_next().await? else {
                    // It did not break off: the pack of this source ends here.
                    let cause = format!("the answer ended {} bytes early", range.end - arrived);
                    return Err(damaged(source, path, cause));
                };
                self.counters.fetched_bytes.fetch_add(part.len() as u64, Ordering::Relaxed);
                admitted.arrived(part.len() as u64);
                buffer.extend_from_slice(&part);
                continue;
            }
            let gap = start.saturating_sub(at);
            drop(buffer.split_to(usize::try_from(gap).unwrap_or(usize::MAX).min(buffer.len())));
            let frame = buffer.split_to((job.frame_len as usize).min(buffer.len()));
            at = end;
            let decoded = self.decode(job, &frame);
            let Some(job) = left.pop_front() else { break };
            match decoded {
                Ok(chunk) => self.land(job, chunk).await,
                Err(error) => wrong.push_back((job, error)),
            }
        }
        Ok(())
    }

    fn decode(&self, job: &Job, frame: &[u8]) -> Result<Bytes, FormatError> {
        let mut chunk = vec![0; self.cache.chunk_size().bytes()];
        self.with_decoder(|decoder| decoder.decode_chunk(frame, job.id, &mut chunk))?;
        Ok(chunk.into())
    }

    async fn land(&self, mut job: Job, chunk: Bytes) {
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
struct Request {
    left: VecDeque<Job>,
    admitted: Admitted,
}

/// The range of the pack that holds the first of these frames, which are in its order, and those that are near them. A run has
/// no wide gaps but those of what came from elsewhere.
fn span(jobs: &VecDeque<Job>) -> Option<Range<u64>> {
    let place = |job: &Job| (u64::from(job.offset), u64::from(job.offset) + u64::from(job.frame_len));
    let (start, mut end) = place(jobs.front()?);
    for (from, to) in jobs.iter().map(place) {
        if from > end + GAP_LIMIT_BYTES {
            break;
        }
        end = end.max(to);
    }
    Some(start..end)
}
