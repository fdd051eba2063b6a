//! One request for chunks by their ids, to a source that hands them out so.
//!
//! What it lacks is no failure: it is located and queued again for the sources behind, where its neighbours join it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use chunk_format::{ChunkId, FormatError, Namespace, frame_len_max};
use futures_util::future::FutureExt;
use futures_util::stream::{StreamExt, TryStreamExt};

use super::queue::{Job, Place};
use super::run::Request;
use super::{FetchError, Shared};
use crate::source::exchange::{AnswerDecoder, Answered};
use crate::source::{ChunkSource, FailureKind, Object, ObjectPath, SourceError, damaged};

/// Locators asked for at once.
const LOCATOR_REQUESTS: usize = 8;

impl Shared {
    /// Asks sources that hand out chunks by their ids for those of a run, as long as one of them is to be asked first, and
    /// sees to it that the others hear of the rest.
    pub(super) async fn fetch_by_id(&self, namespace: &Namespace, mut request: Request) {
        while let Some(first) = request.left.front() {
            let path = ObjectPath { namespace: namespace.clone(), object: Object::Chunk(first.id) };
            let passed_over = first.passed_over.clone();
            let Some((at, entry)) = self.sources.preferred_by_id(namespace, &passed_over) else { break };
            self.counters.requests.fetch_add(1, Ordering::Relaxed);
            match self.fetch_chunks(&*entry.source, at, &path, &mut request).await {
                Ok(()) => self.sources.succeeded(entry),
                Err(error) => {
                    if self.note_failure(entry, &path, &error) {
                        request.left.iter_mut().for_each(|job| job.passed_over.push(at));
                    }
                }
            }
        }
        let Request { left, lacking, admitted } = request;
        // Neither the link nor room is held while locators come.
        drop(admitted);
        let (again, to_place): (Vec<Job>, Vec<Job>) = left
            .into_iter()
            .chain(lacking)
            .map(|job| Job { room: None, ..job })
            .partition(|job| self.sources.preferred_by_id(namespace, &job.passed_over).is_some());
        self.enqueue(again);
        self.place(namespace, to_place).await;
    }

    /// Locates chunks and queues them, or queues them as they are when a source that hands them out is back first.
    async fn place(&self, namespace: &Namespace, jobs: Vec<Job>) {
        let Some(passed_over) = jobs.first().map(|job| job.passed_over.clone()) else { return };
        let located = {
            let places = self.locate_all(&jobs);
            tokio::select! {
                places = places => Some(places),
                () = self.sources.back_by_id(namespace, &passed_over) => None,
            }
        };
        let Some(places) = located else { return self.enqueue(jobs) };
        let mut placed = Vec::with_capacity(jobs.len());
        for (job, place) in jobs.into_iter().zip(places) {
            match place {
                Ok(place) => placed.push(Job { place, ..job }),
                Err(error) => self.give_up(&job.id, &job.flight, &Arc::new(error)),
            }
        }
        self.enqueue(placed);
    }

    async fn locate_all(&self, jobs: &[Job]) -> Vec<Result<Place, FetchError>> {
        let mut seen = HashSet::new();
        let segments = jobs.iter().filter_map(|job| match &job.place {
            Place::Unplaced { segment, .. } => seen.insert(segment.id).then_some(segment),
            Place::Packed(_) => None,
        });
        let loads: Vec<_> = segments.map(|segment| self.locator(segment).boxed()).collect();
        // What of them fails is said of each chunk below.
        futures_util::stream::iter(loads).buffer_unordered(LOCATOR_REQUESTS).for_each(|_| async {}).await;
        let mut places = Vec::with_capacity(jobs.len());
        for job in jobs {
            places.push(match &job.place {
                Place::Unplaced { segment, at } => self.locate(segment, *at).await.map(Place::Packed),
                Place::Packed(frame) => Ok(Place::Packed(frame.clone())),
            });
        }
        places
    }

    /// Makes one request by ids. Chunks of a broken answer that came whole and right are kept, whatever follows them.
    pub(super) async fn fetch_chunks(
        &self,
        source: &dyn ChunkSource,
        at: usize,
        path: &ObjectPath,
        request: &mut Request,
    ) -> Result<(), SourceError> {
        let mut wrong = Vec::new();
        let mut outcome = self.stream_chunks(source, at, path, request, &mut wrong).await;
        if let Some((_, error)) = wrong.first() {
            outcome = outcome.and(Err(damaged(source, path, error.to_string())));
        }
        wrong.into_iter().rev().for_each(|(job, _)| request.left.push_front(job));
        outcome
    }

    async fn stream_chunks(
        &self,
        source: &dyn ChunkSource,
        at: usize,
        path: &ObjectPath,
        Request { left, lacking, admitted }: &mut Request,
        wrong: &mut Vec<(Job, FormatError)>,
    ) -> Result<(), SourceError> {
        let ids: Vec<ChunkId> = left.iter().map(|job| job.id).collect();
        admitted.sent();
        let mut body = source.chunks(&ids).await?;
        admitted.answered();
        let mut answer = AnswerDecoder::new(ids.len(), frame_len_max(self.cache.chunk_size().bytes()));
        loop {
            match answer.take_next().map_err(|error| damaged(source, path, error))? {
                Some(Answered::Frame(frame)) => {
                    let Some(job) = left.pop_front() else { return Ok(()) };
                    match self.decode(&job, &frame) {
                        Ok(chunk) => self.land(job, chunk).await,
                        Err(error) => wrong.push((job, error)),
                    }
                    continue;
                }
                Some(Answered::NotHere) => {
                    let Some(mut job) = left.pop_front() else { return Ok(()) };
                    job.passed_over.push(at);
                    job.room = None;
                    lacking.push(job);
                    continue;
                }
                None => {}
            }
            let part: Option<Bytes> = body.try_next().await?;
            match part {
                Some(part) => {
                    self.counters.fetched_bytes.fetch_add(part.len() as u64, Ordering::Relaxed);
                    admitted.arrived(part.len() as u64);
                    answer.push(&part);
                }
                None if answer.left() == 0 => return Ok(()),
                None => {
                    let cause = format!("the answer ended before the last {} chunks", answer.left());
                    return Err(SourceError {
                        kind: FailureKind::Unreachable,
                        ..damaged(source, path, cause)
                    });
                }
            }
        }
    }
}
