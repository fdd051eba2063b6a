//! The fetcher: gets chunks that are not here, each once however many ask, the urgent ones first.
//!
//! A fetch goes on until it succeeds, whoever stops waiting. Losing the sources is a pause: requests wait and go on by
//! themselves. Every chunk is decoded within bounds and checked against its id before anyone sees it; bytes that do
//! not match are a miss of that source. Neighbours in a pack come in one request.
//!
//! What somebody waits for is asked for at once. Everything else is admitted by [`pace`], which keeps the link full and
//! no fuller, so that no demand ever queues behind a guess.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chunk_format::{
    ChunkId, ChunkIndex, FormatError, FrameDecoder, FrameEncoder, Locator, MAX_LOCATOR_BYTES, SEGMENT_BYTES,
    Segment, SegmentId, frame_len_max,
};
use tokio::runtime::Handle;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

mod boot;
mod fill;
mod flight;
mod pace;
mod queue;
mod run;
mod segments;
mod silence;
mod sources;
mod want;

pub use boot::{BootPlan, BootProgress};
pub use fill::{FillError, FillProgress, Filling};
pub use pace::LinkEstimate;
pub use queue::Class;
pub(crate) use queue::GAP_LIMIT_BYTES;
pub use segments::SegmentStore;
pub(crate) use segments::write_whole;
pub use sources::{DownCause, LinkState};

use crate::cache::Cache;
use crate::disk::{Base, BaseSegment, Located};
use crate::source::{ChunkSource, FailureKind, Object, ObjectPath, SourceError, get_whole};
use flight::{Flight, Landing};
use pace::Pace;
use queue::{DEMAND_RUN_BYTES, Queue};
use silence::limit_silence;
use sources::{NobodyLeft, Sources, backoff};
use want::Wanted;

/// Requests at once for chunks someone waits for.
const WAITING_REQUESTS: usize = 32;
/// Requests at once for everything else: more than the pace admits.
const OTHER_REQUESTS: usize = 64;
/// Decoded bytes under way or on their way to the cache.
const ROOM_BYTES: usize = 64 << 20;
/// How long a reader waits for what the boot stream should have brought by then, before it is asked for on its own.
const OVERTAKE_AFTER: Duration = Duration::from_secs(1);
/// Rounds through all sources before an object counts as not to be had.
const ROUNDS: u32 = 3;

/// What to do when every source answers and none has the right bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnMissing {
    /// Go on trying: whoever asked waits until the source is repaired. A guest's file system survives a pause.
    Wait,
    /// Give up after a few rounds: whoever asked gets an error.
    Fail,
}

/// How long a fetch goes on asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// Through outages, and as told when none has the right bytes.
    Through(OnMissing),
    /// As long as it can be that somebody who is there has them: it holds what others need.
    WhileAnswered,
}

/// Why a chunk cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Every source was asked several times and none has the right bytes.
    #[error("no source has {what}")]
    NotToBeHad {
        /// The object.
        what: String,
        /// The last source's failure.
        #[source]
        source: SourceError,
    },
    /// Those that were asked have not the right bytes, and those that may have them do not answer.
    #[error("who may have {what} does not answer")]
    OthersAway {
        /// The object.
        what: String,
        /// The failure of the last one that was asked; none when all were known not to have it.
        #[source]
        source: Option<SourceError>,
    },
    /// The fetcher was shut down.
    #[error("the disk is being closed")]
    Stopped,
    /// zstd could not get its memory.
    #[error("cannot decode")]
    Decoder(#[source] FormatError),
}

/// Counts since the fetcher was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FetchStats {
    /// Bytes that arrived, as bodies of answers.
    pub fetched_bytes: u64,
    /// Chunks that arrived and matched their id.
    pub chunks: u64,
    /// Requests made.
    pub requests: u64,
    /// Bytes or objects that did not match their id.
    pub damaged: u64,
    /// Requests that failed otherwise.
    pub failures: u64,
    /// Chunks that arrived before anyone asked for them.
    pub in_time: u64,
    /// Chunks that were on their way before anyone asked for them, and were waited for all the same.
    pub late: u64,
}

#[derive(Default)]
struct Counters {
    fetched_bytes: AtomicU64,
    chunks: AtomicU64,
    requests: AtomicU64,
    damaged: AtomicU64,
    failures: AtomicU64,
    in_time: AtomicU64,
    late: AtomicU64,
}

/// What became of a wish for a chunk.
pub(crate) enum Wish {
    /// It is on its way.
    Flight(Arc<Flight>),
    /// It is in the cache by now, or was all zeros: read again.
    Here,
}

/// Gets chunks that are not here. Cheap to clone; stops when told, or when the last clone is dropped.
#[derive(Clone)]
pub struct Fetcher {
    shared: Arc<Shared>,
    _stop: Arc<StopOnDrop>,
}

struct StopOnDrop(CancellationToken);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Lock order: `flights` before `queue` and before the pace's; none is held over I/O or an await.
struct Shared {
    sources: Sources,
    cache: Arc<Cache>,
    segments: SegmentStore,
    on_missing: OnMissing,
    flights: Mutex<HashMap<ChunkId, Arc<Flight>>>,
    queue: Mutex<Queue>,
    queued: Notify,
    pace: Arc<Pace>,
    boot: boot::Progress,
    room: Arc<Semaphore>,
    decoders: Mutex<Vec<FrameDecoder>>,
    arrived: mpsc::Sender<Arrival>,
    counters: Counters,
    stop: CancellationToken,
}

/// A chunk on its way to the cache.
struct Arrival {
    id: ChunkId,
    chunk: Bytes,
    /// Nobody has asked for it yet.
    unread: bool,
    _room: Option<OwnedSemaphorePermit>,
}

impl Fetcher {
    /// Starts a fetcher on a runtime; `sources` in the order of preference.
    pub fn new(
        runtime: &Handle,
        sources: Vec<Arc<dyn ChunkSource>>,
        cache: Arc<Cache>,
        segments: SegmentStore,
        on_missing: OnMissing,
    ) -> Self {
        let (arrived, arrivals) = mpsc::channel(256);
        let stop = CancellationToken::new();
        let shared = Arc::new(Shared {
            sources: Sources::new(limit_silence(sources)),
            room: Arc::new(Semaphore::new(ROOM_BYTES / cache.chunk_size().bytes())),
            cache,
            segments,
            on_missing,
            flights: Mutex::default(),
            queue: Mutex::default(),
            queued: Notify::new(),
            pace: Arc::new(Pace::new()),
            boot: boot::Progress::default(),
            decoders: Mutex::default(),
            arrived,
            counters: Counters::default(),
            stop: stop.clone(),
        });
        runtime.spawn(dispatch(Arc::clone(&shared), Class::Waiting, WAITING_REQUESTS));
        runtime.spawn(dispatch(Arc::clone(&shared), Class::Background, OTHER_REQUESTS));
        let writer = Arc::downgrade(&shared);
        runtime.spawn_blocking(move || keep_arrivals(arrivals, &writer));
        Self { shared, _stop: Arc::new(StopOnDrop(stop)) }
    }

    /// Whether the sources answer; changes are told to whoever watches.
    pub fn link(&self) -> watch::Receiver<LinkState> {
        self.shared.sources.watch()
    }

    /// Counts since the fetcher was made.
    pub fn stats(&self) -> FetchStats {
        let counters = &self.shared.counters;
        FetchStats {
            fetched_bytes: counters.fetched_bytes.load(Ordering::Relaxed),
            chunks: counters.chunks.load(Ordering::Relaxed),
            requests: counters.requests.load(Ordering::Relaxed),
            damaged: counters.damaged.load(Ordering::Relaxed),
            failures: counters.failures.load(Ordering::Relaxed),
            in_time: counters.in_time.load(Ordering::Relaxed),
            late: counters.late.load(Ordering::Relaxed),
        }
    }

    /// What the link to the sources is found to be.
    pub fn link_estimate(&self) -> LinkEstimate {
        self.shared.pace.estimate()
    }

    /// Bounds what the background may take of the link, bytes a second; `None` lifts the bound.
    pub fn limit_background(&self, bytes_per_s: Option<u64>) {
        self.shared.pace.limit_background(bytes_per_s);
    }

    /// Stops fetching in the background, or goes on with it.
    pub fn pause_background(&self, paused: bool) {
        self.shared.pace.pause_background(paused);
    }

    /// Whether fetching in the background was stopped.
    pub fn is_background_paused(&self) -> bool {
        self.shared.pace.is_background_paused()
    }

    /// Chunks that were asked for and have not come.
    pub fn in_flight(&self) -> u64 {
        self.shared.lock_flights().len() as u64
    }

    /// Chunks waiting for a request, by class, the most urgent first.
    pub fn queued(&self) -> [u64; Class::ALL.len()] {
        self.shared.lock_queue().waiting()
    }

    /// Stops: requests under way are dropped and everyone who waits gets [`FetchError::Stopped`].
    pub fn stop(&self) {
        self.shared.stop.cancel();
        for (_, flight) in self.shared.lock_flights().drain() {
            flight.finish(Err(Arc::new(FetchError::Stopped)));
        }
    }

    /// The chunk ids of a segment, from where it was loaded before or from the sources.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn segment<'a>(&self, segment: &'a BaseSegment) -> Result<&'a Segment, FetchError> {
        segment.segment_or_load(|| self.shared.load_segment(segment, self.shared.on_missing)).await
    }

    /// The chunk ids of a segment; gives up when no source has them, whatever readers do. Whoever waits for them elsewhere
    /// is not waited for.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn segment_if_there_is(&self, segment: &BaseSegment) -> Result<Segment, FetchError> {
        if let Some(segment) = self.segment_here(segment) {
            return Ok(segment.clone());
        }
        let loaded = self.shared.load_segment(segment, OnMissing::Fail).await?;
        segment.segment_or_take(|| Some(loaded.clone()));
        Ok(loaded)
    }

    /// The chunk ids of a segment, if they are on this machine. Asks nobody.
    pub fn segment_here<'a>(&self, segment: &'a BaseSegment) -> Option<&'a Segment> {
        segment.segment_or_take(|| self.shared.segments.load(segment.id))
    }

    /// Fetches a whole object that `decode` accepts, for as long as it takes.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn object<T>(
        &self,
        path: &ObjectPath,
        limit_bytes: usize,
        on_missing: OnMissing,
        decode: impl Fn(&[u8]) -> Result<T, FormatError>,
    ) -> Result<T, FetchError> {
        self.shared.object(path, limit_bytes, on_missing, decode).await
    }

    /// Waits for a chunk of a base that is on its way. Nobody depends on a boot stream alone: what it has not brought after a
    /// while gets a request of its own.
    ///
    /// # Errors
    /// What the flight says.
    pub(crate) async fn land(&self, base: &Base, chunk: ChunkIndex, flight: &Arc<Flight>) -> Landing {
        if flight.due_bytes().is_none() {
            return flight.land().await;
        }
        if let Ok(landing) = tokio::time::timeout(OVERTAKE_AFTER, flight.land()).await {
            return landing;
        }
        if let Some((segment, at)) = base.segment_of(chunk)
            && let Some(id) = segment.segment().and_then(|chunks| chunks.chunks().get(at)).copied()
        {
            let wanted = Wanted { id, segment, at, flight: Arc::clone(flight) };
            tokio::select! {
                landing = flight.land() => return landing,
                // Where it cannot be located the stream may bring it all the same.
                _ = self.shared.overtake(&wanted, Class::Waiting) => {}
            }
        }
        flight.land().await
    }

    /// A chunk of a base, from the cache or the sources; zeros where the base has none.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn chunk(
        &self,
        base: &Base,
        chunk: ChunkIndex,
        class: Class,
    ) -> Result<Bytes, Arc<FetchError>> {
        loop {
            let Some((segment, at)) = base.segment_of(chunk).filter(|(segment, _)| !segment.id.is_zero())
            else {
                return Ok(vec![0; self.shared.cache.chunk_size().bytes()].into());
            };
            let id = self.segment(segment).await?.chunks().get(at).copied().unwrap_or(ChunkId::ZERO);
            if id.is_zero() {
                return Ok(vec![0; self.shared.cache.chunk_size().bytes()].into());
            }
            if let Some(chunk) = self.shared.cache.read_whole(&id) {
                return Ok(chunk.into());
            }
            if let Some(Wish::Flight(flight)) = self.want(base, &[chunk], class).await?.pop() {
                return self.land(base, chunk, &flight).await;
            }
        }
    }

    /// Removes what is kept of all segments but these.
    pub(crate) fn retain_segments(&self, wanted: &HashSet<SegmentId>) {
        self.shared.segments.retain(wanted);
    }

    /// Keeps a segment that was made here as fetched ones are kept; failing to is no more than a fetch lost.
    pub(crate) fn keep(&self, segment: &Segment) {
        let (segments, id) = (&self.shared.segments, segment.id());
        if id.is_zero() || segments.contains(id) {
            return;
        }
        match FrameEncoder::new().and_then(|mut encoder| segment.encode(&mut encoder)) {
            Ok(frame) => segments.keep(id, &frame),
            Err(error) => tracing::debug!(segment = %id, %error, "a segment was not kept"),
        }
    }
}

impl Shared {
    /// Gives a chunk to those who wait for it; answers whether nobody did. `foreseen`: it was fetched before anyone
    /// asked.
    fn tell(&self, flight: &Flight, chunk: &Bytes, foreseen: bool) -> bool {
        flight.finish(Ok(chunk.clone()));
        let unread = foreseen && !flight.is_waited_for();
        if foreseen {
            let counter = if unread { &self.counters.in_time } else { &self.counters.late };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        unread
    }

    /// Ends a flight in vain, and no other one of the same chunk.
    fn end_flight(&self, id: &ChunkId, flight: &Arc<Flight>, error: Arc<FetchError>) {
        let mut flights = self.lock_flights();
        if flights.get(id).is_some_and(|known| Arc::ptr_eq(known, flight)) {
            flights.remove(id);
        }
        drop(flights);
        flight.finish(Err(error));
    }

    async fn locator(&self, segment: &BaseSegment) -> Result<Arc<Located>, FetchError> {
        segment.locator_or_load(|misled_by| self.load_locator(segment, misled_by)).await
    }

    async fn load_segment(&self, wanted: &BaseSegment, on_missing: OnMissing) -> Result<Segment, FetchError> {
        if let Some(segment) = self.segments.load(wanted.id) {
            return Ok(segment);
        }
        let path = ObjectPath { namespace: wanted.namespace.clone(), object: Object::Segment(wanted.id) };
        let (segment, frame) = self
            .object(&path, frame_len_max(SEGMENT_BYTES), on_missing, |frame| {
                self.with_decoder(|decoder| Segment::decode(frame, wanted.id, decoder))
                    .map(|segment| (segment, frame.to_vec()))
            })
            .await?;
        self.segments.keep(wanted.id, &frame);
        Ok(segment)
    }

    /// Fetches where the chunks of a segment lie: from the source after the one that said wrong, or again from the first.
    async fn load_locator(
        &self,
        wanted: &BaseSegment,
        misled_by: Option<usize>,
    ) -> Result<Located, FetchError> {
        let segment = wanted.segment_or_load(|| self.load_segment(wanted, self.on_missing)).await?;
        let path = ObjectPath { namespace: wanted.namespace.clone(), object: Object::Locator(wanted.id) };
        let passed_over = misled_by.map_or_else(Vec::new, |last| (0..=last).collect());
        self.object_past(
            passed_over,
            &path,
            frame_len_max(MAX_LOCATOR_BYTES),
            self.on_missing,
            |source, frame| {
                let locator = self.with_decoder(|decoder| Locator::decode(frame, wanted.id, decoder))?;
                locator.check_frame_lens(self.cache.chunk_size())?;
                let unplaced = (0..)
                    .zip(segment.chunks())
                    .filter(|(at, id)| !id.is_zero() && locator.place(*at).is_none());
                match unplaced.count() {
                    0 => Ok(Located { locator, source }),
                    count => Err(FormatError::Field {
                        what: "locator",
                        field: "places",
                        found: format!("{count} short"),
                        expected: "one for each stored chunk".to_owned(),
                    }),
                }
            },
        )
        .await
    }

    /// Fetches a whole object that `decode` accepts, for as long as it takes.
    async fn object<T>(
        &self,
        path: &ObjectPath,
        limit_bytes: usize,
        on_missing: OnMissing,
        decode: impl Fn(&[u8]) -> Result<T, FormatError>,
    ) -> Result<T, FetchError> {
        self.object_past(Vec::new(), path, limit_bytes, on_missing, |_, bytes| decode(bytes)).await
    }

    /// As [`Self::object`], asking some sources after the others; `decode` is told which one it comes from.
    async fn object_past<T>(
        &self,
        passed_over: Vec<usize>,
        path: &ObjectPath,
        limit_bytes: usize,
        on_missing: OnMissing,
        decode: impl Fn(usize, &[u8]) -> Result<T, FormatError>,
    ) -> Result<T, FetchError> {
        let attempt = |at, source: Arc<dyn ChunkSource>| {
            let decode = &decode;
            async move {
                let bytes = get_whole(&*source, path, limit_bytes).await?;
                self.counters.fetched_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                decode(at, &bytes).map_err(|error| crate::source::damaged(&*source, path, error))
            }
        };
        tokio::select! {
            object = self.try_sources(path, Patience::Through(on_missing), passed_over, attempt) => object,
            () = self.stop.cancelled() => Err(FetchError::Stopped),
        }
    }

    /// Asks one source after the other until `attempt` succeeds or patience is out. Those in `passed_over` are asked when
    /// the others were asked in vain.
    async fn try_sources<T, F: Future<Output = Result<T, SourceError>>>(
        &self,
        path: &ObjectPath,
        patience: Patience,
        mut passed_over: Vec<usize>,
        mut attempt: impl FnMut(usize, Arc<dyn ChunkSource>) -> F,
    ) -> Result<T, FetchError> {
        let (mut rounds, mut last) = (0, None);
        loop {
            let (at, entry) = match self.sources.pick(path, &passed_over).await {
                Ok(picked) => picked,
                Err(nobody) => {
                    // Who is away may have it: that is an outage, and no round.
                    rounds += u32::from(nobody == NobodyLeft::AllAsked);
                    let waits = patience == Patience::Through(OnMissing::Wait);
                    let leaves = patience == Patience::WhileAnswered && nobody == NobodyLeft::OthersAway;
                    match last.take() {
                        // Later when no source was asked until then: what is known to lack this is left out for a while.
                        Some(source) if !waits && rounds >= ROUNDS => {
                            return Err(FetchError::NotToBeHad { what: path.to_string(), source });
                        }
                        source if leaves => {
                            return Err(FetchError::OthersAway { what: path.to_string(), source });
                        }
                        Some(error) if waits && rounds == ROUNDS => {
                            tracing::error!(object = %path, %error, "no source has the right bytes");
                        }
                        _ => {}
                    }
                    tokio::time::sleep(backoff(rounds)).await;
                    passed_over.clear();
                    continue;
                }
            };
            self.counters.requests.fetch_add(1, Ordering::Relaxed);
            match attempt(at, Arc::clone(&entry.source)).await {
                Ok(value) => {
                    self.sources.succeeded(entry);
                    return Ok(value);
                }
                Err(error) => {
                    if self.note_failure(entry, path, &error) {
                        passed_over.push(at);
                    }
                    last = Some(error);
                }
            }
        }
    }

    /// Notes that a source was asked in vain; whether it answers all the same, and so is to be passed over for this object.
    fn note_failure(&self, entry: &Arc<sources::Entry>, path: &ObjectPath, error: &SourceError) -> bool {
        tracing::debug!(object = %path, error = error as &dyn std::error::Error, "a fetch failed");
        if self.sources.failed(entry, path, error) {
            // Another one takes over, with a link of its own.
            self.pace.begin_anew();
        }
        match error.kind {
            FailureKind::Unreachable | FailureKind::Refused | FailureKind::Untrusted => {
                self.counters.failures.fetch_add(1, Ordering::Relaxed);
                false
            }
            FailureKind::Damaged => {
                self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                true
            }
            FailureKind::NotFound => true,
        }
    }

    fn with_decoder<T>(
        &self,
        work: impl FnOnce(&mut FrameDecoder) -> Result<T, FormatError>,
    ) -> Result<T, FormatError> {
        let kept = self.decoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut decoder = kept.map_or_else(FrameDecoder::new, Ok)?;
        let result = work(&mut decoder);
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner).push(decoder);
        result
    }

    fn lock_flights(&self) -> MutexGuard<'_, HashMap<ChunkId, Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Turns queued chunks of a class and all more urgent ones into requests, as many at once as told and admitted.
async fn dispatch(shared: Arc<Shared>, least_urgent: Class, requests: usize) {
    let slots = Arc::new(Semaphore::new(requests));
    // One request alone never needs more room than there is: it would wait for it for ever.
    let most = (ROOM_BYTES / shared.cache.chunk_size().bytes() / 2).max(1);
    loop {
        let queued = shared.queued.notified();
        tokio::pin!(queued);
        queued.as_mut().enable();
        let class = shared.lock_queue().first_class(least_urgent);
        let Some(class) = class else {
            tokio::select! {
                () = queued => {}
                () = shared.stop.cancelled() => return,
            }
            continue;
        };
        let limit = match class {
            Class::Waiting => DEMAND_RUN_BYTES,
            _ => shared.pace.request_bytes(),
        };
        let admission = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, shared.pace.admit(class, limit).await)
        };
        let (slot, mut admitted) = tokio::select! {
            admitted = admission => admitted,
            // What came now may be more urgent than what is being asked for, and must not wait behind it.
            () = queued => continue,
            () = shared.stop.cancelled() => return,
        };
        let Ok(slot) = slot else { return };
        // What is less urgent was not admitted, though what was may have been taken by the other dispatcher.
        let run = shared.lock_queue().pop_run(class, limit, most);
        let Some(mut run) = run else {
            admitted.resize(0);
            continue;
        };
        admitted.resize(run.len_bytes());
        let wanted = u32::try_from(run.jobs.len()).unwrap_or(u32::MAX);
        let room = tokio::select! {
            room = Arc::clone(&shared.room).acquire_many_owned(wanted) => room,
            () = shared.stop.cancelled() => return,
        };
        let Ok(mut room) = room else { return };
        run.jobs.iter_mut().for_each(|job| job.room = room.split(1));
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let work = async {
                let left = shared.fetch_run(run, admitted).await;
                drop(slot);
                shared.ask_later(left).await;
            };
            tokio::select! {
                () = work => {}
                () = shared.stop.cancelled() => {}
            }
        });
    }
}

/// Puts arrived chunks into the cache, off the threads that serve requests; a chunk leaves `flights` once it is kept.
fn keep_arrivals(mut arrivals: mpsc::Receiver<Arrival>, shared: &std::sync::Weak<Shared>) {
    while let Some(arrival) = arrivals.blocking_recv() {
        let Some(shared) = shared.upgrade() else { return };
        if arrival.unread {
            shared.cache.insert_unread(arrival.id, &arrival.chunk);
        } else {
            shared.cache.insert(arrival.id, &arrival.chunk);
        }
        // Not one that was begun anew meanwhile, where the cache could not keep an earlier copy: somebody waits for that.
        let mut flights = shared.lock_flights();
        if flights.get(&arrival.id).is_some_and(|flight| flight.has_landed()) {
            flights.remove(&arrival.id);
        }
    }
}

#[cfg(test)]
mod tests;
