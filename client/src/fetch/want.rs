//! From a wish to the queue: which chunk it is, whether it is here or on its way, and where it lies.
//!
//! A flight is opened and its job queued in one step, after everything that has to be waited for: whoever joins a flight never
//! waits for what is lost elsewhere, or for a wish that was given up.

use std::collections::HashMap;
use std::sync::Arc;

use chunk_format::{ChunkId, ChunkIndex, PackRef, SegmentId};
use futures_util::future::join_all;
use tokio::sync::Semaphore;

use super::flight::Flight;
use super::queue::Job;
use super::sources::LONGEST_PAUSE;
use super::{Class, FetchError, Fetcher, Shared, Wish};
use crate::disk::{Base, BaseSegment, Located};

/// Segments whose locators are loaded at once for what a boot stream did not bring: nobody asked for most of it.
const LOCATORS_AT_ONCE: usize = 8;

/// Where a chunk's frame lies.
struct Place {
    pack: Arc<PackRef>,
    offset: u32,
    frame_len: u32,
    segment: BaseSegment,
    at: usize,
    located: Arc<Located>,
}

/// A chunk that the boot stream was to bring.
pub(super) struct Wanted<'a> {
    pub(super) id: ChunkId,
    pub(super) segment: &'a BaseSegment,
    pub(super) at: usize,
    pub(super) flight: Arc<Flight>,
}

/// How a chunk is to be had.
enum Found {
    /// A request is made already, or none is needed.
    Settled(Wish),
    /// By this job, which its caller puts into the queue.
    Opened(Job),
    /// By a job, for which it has to be known where it lies.
    NotLocated,
}

impl Fetcher {
    /// Sees to it that chunks of a disk come; answers, for each, where it will be.
    ///
    /// # Errors
    /// [`FetchError`], when the segments cannot be had.
    pub(crate) async fn want(
        &self,
        base: &Base,
        chunks: &[ChunkIndex],
        class: Class,
    ) -> Result<Vec<Wish>, FetchError> {
        let shared = &self.shared;
        let mut wishes = Vec::with_capacity(chunks.len());
        // Neighbours are queued together, so that one request asks for them; none of them while something is waited for.
        let mut jobs = Vec::new();
        for chunk in chunks {
            let Some((segment, at)) = base.segment_of(*chunk).filter(|(segment, _)| !segment.id.is_zero())
            else {
                wishes.push(Wish::Here);
                continue;
            };
            if segment.segment().is_none() {
                shared.queue(&mut jobs);
            }
            let id = self.segment(segment).await?.chunks().get(at).copied().unwrap_or(ChunkId::ZERO);
            if id.is_zero() {
                wishes.push(Wish::Here);
                continue;
            }
            let mut place = None;
            wishes.push(loop {
                match shared.find(id, class, place.take()) {
                    Found::Settled(wish) => break wish,
                    Found::Opened(job) => {
                        let wish = Wish::Flight(Arc::clone(&job.flight));
                        jobs.push(job);
                        break wish;
                    }
                    Found::NotLocated => {}
                }
                if !segment.is_located() {
                    shared.queue(&mut jobs);
                }
                match shared.locate(segment, at).await {
                    Ok(found) => place = Some(found),
                    Err(error) => {
                        let flight = Arc::<Flight>::default();
                        flight.finish(Err(Arc::new(error)));
                        break Wish::Flight(flight);
                    }
                }
            });
        }
        shared.queue(&mut jobs);
        Ok(wishes)
    }
}

impl Shared {
    /// Joins the flight of a chunk, or opens one for a request to where it lies.
    fn find(&self, id: ChunkId, class: Class, place: Option<Place>) -> Found {
        let mut flights = self.lock_flights();
        if let Some(flight) = flights.get(&id) {
            let is_demand = class == Class::Waiting;
            if is_demand {
                flight.wait_for();
            }
            if self.lock_queue().promote(&id, class) {
                self.queued.notify_waiters();
            }
            // The stream brings it, but not soon.
            if is_demand && !flight.has_request() && self.boot.is_far_off(flight, &self.pace) {
                match place {
                    None => return Found::NotLocated,
                    Some(place) if flight.claim_request() => {
                        return Found::Opened(place.job(id, class, Arc::clone(flight)));
                    }
                    Some(_) => {}
                }
            }
            return Found::Settled(Wish::Flight(Arc::clone(flight)));
        }
        // Looked at under the lock: an arrival is first kept and then leaves `flights`, so it is in one of the two.
        if self.cache.contains(&id) {
            return Found::Settled(Wish::Here);
        }
        let Some(place) = place else { return Found::NotLocated };
        let flight = Arc::<Flight>::default();
        if self.stop.is_cancelled() {
            flight.finish(Err(Arc::new(FetchError::Stopped)));
            return Found::Settled(Wish::Flight(flight));
        }
        flights.insert(id, Arc::clone(&flight));
        Found::Opened(place.job(id, class, flight))
    }

    /// Puts jobs into the queue.
    pub(super) fn queue(&self, jobs: &mut Vec<Job>) {
        if !jobs.is_empty() {
            let mut queue = self.lock_queue();
            jobs.drain(..).for_each(|job| queue.push(job));
            drop(queue);
            self.queued.notify_waiters();
        }
    }

    /// Makes a request of its own for a chunk that the boot stream was to bring, unless there is one when it is known where it
    /// lies.
    ///
    /// # Errors
    /// It cannot be located.
    pub(super) async fn overtake(&self, wanted: &Wanted<'_>, class: Class) -> Result<(), FetchError> {
        let Wanted { id, segment, at, flight } = wanted;
        let place = self.locate(segment, *at).await?;
        let class = if flight.is_waited_for() { Class::Waiting } else { class };
        if flight.claim_request() {
            self.queue(&mut vec![place.job(*id, class, Arc::clone(flight))]);
        } else if self.lock_queue().promote(id, class) {
            self.queued.notify_waiters();
        }
        Ok(())
    }

    /// Makes requests for what the boot stream will not bring any more, segment by segment in the order of their first chunks; the
    /// flights of what cannot be located end.
    pub(super) async fn request(&self, wanted: Vec<Wanted<'_>>) {
        let mut places = HashMap::new();
        let mut segments: Vec<Vec<Wanted<'_>>> = Vec::new();
        for wanted in wanted {
            let place = *places.entry(wanted.segment.id).or_insert(segments.len());
            match segments.get_mut(place) {
                Some(segment) => segment.push(wanted),
                None => segments.push(vec![wanted]),
            }
        }
        let turns = &Semaphore::new(LOCATORS_AT_ONCE);
        let requests = segments.into_iter().map(|segment| async move {
            let _turn = turns.acquire().await;
            for wanted in segment {
                let Err(error) = self.overtake(&wanted, Class::Profile).await else { continue };
                if wanted.flight.claim_request() {
                    self.end_flight(&wanted.id, &wanted.flight, Arc::new(error));
                }
            }
        });
        join_all(requests).await;
    }

    /// Asks for chunks again, after a while or when a source is back, where they are said to lie by then.
    pub(super) async fn ask_later(&self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let mut state = self.sources.watch();
        tokio::select! {
            () = tokio::time::sleep(LONGEST_PAUSE) => {}
            _ = state.changed() => {}
        }
        let mut segments: HashMap<SegmentId, Vec<Job>> = HashMap::new();
        for job in jobs {
            segments.entry(job.segment.id).or_default().push(job);
        }
        join_all(segments.into_values().map(|jobs| self.ask_again(jobs))).await;
    }

    /// Asks for chunks of one segment again.
    async fn ask_again(&self, jobs: Vec<Job>) {
        let mut located = Vec::with_capacity(jobs.len());
        for job in jobs {
            match self.locate(&job.segment, job.at).await {
                Ok(place) => {
                    // Nobody could make it more urgent meanwhile.
                    let class = if job.flight.is_waited_for() { Class::Waiting } else { job.class };
                    located.push(Job { is_late: job.is_late, ..place.job(job.id, class, job.flight) });
                }
                Err(error) => {
                    self.end_flight(&job.id, &job.flight, Arc::new(error));
                }
            }
        }
        self.queue(&mut located);
    }

    async fn locate(&self, segment: &BaseSegment, at: usize) -> Result<Place, FetchError> {
        let located = self.locator(segment).await?;
        // `load_locator` takes none that lacks a stored chunk.
        let place = located.locator.place(at).ok_or(FetchError::Stopped)?;
        let pack = Arc::new(located.locator.pack(&place).ok_or(FetchError::Stopped)?.clone());
        let (offset, frame_len, segment) = (place.offset, place.frame_len, segment.clone());
        Ok(Place { pack, offset, frame_len, segment, at, located })
    }
}

impl Place {
    fn job(self, id: ChunkId, class: Class, flight: Arc<Flight>) -> Job {
        let Self { pack, offset, frame_len, segment, at, located } = self;
        Job { id, pack, offset, frame_len, segment, at, located, class, flight, room: None, is_late: false }
    }
}
