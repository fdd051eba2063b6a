//! Fetches what a start touches, in the order it does: as one download where most of it lacks, chunk by chunk where
//! little does.
//!
//! An object of the boot stream is worth its download when most of its chunks are not here; what comes before it in the
//! stream must be at hand to decode it, from memory or from the cache. Readers who need a chunk that the stream will
//! soon bring wait for it; when it is far off, a request of its own overtakes the stream. Where the source that is asked
//! first hands out most chunks by their ids, there is no stream: all come singly.

use std::collections::HashSet;
use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use chunk_format::{
    BootStream, ChunkId, ChunkIndex, FormatError, MAX_STREAM_CONTENT_BYTES, Namespace, Profile, ProfileEntry,
    STREAM_HISTORY_BYTES, StreamWindow,
};
use futures_util::future::FutureExt;
use futures_util::stream::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinHandle};

use super::flight::Flight;
use super::pace::{Admitted, Pace};
use super::want::Wanted;
use super::{Arrival, Class, FetchError, Fetcher, Patience, Shared, Wish};
use crate::disk::{Base, BaseSegment};
use crate::source::exchange::MAX_LOOKED_FOR;
use crate::source::{Object, ObjectPath, damaged};

/// Segments asked for at once.
const SEGMENT_REQUESTS: usize = 32;
/// Locators asked for at once: nobody waits for them yet.
const LOCATOR_REQUESTS: usize = 4;
/// An object is downloaded when at least this share of its chunks lacks, per cent: single frames are longer than their
/// share of the stream by about as much.
const LEAST_MISSING_PERCENT: usize = 65;
/// A source that hands chunks out by their ids makes the stream unnecessary when it has at least this share of what lacks,
/// per cent.
const LEAST_HELD_PERCENT: usize = 65;
/// A chunk that the stream brings within this time, and two round trips, is not asked for on its own.
const PATIENCE: Duration = Duration::from_millis(150);
/// Chunks asked for at once when there is no stream.
const CHUNKS_AT_ONCE: usize = 256;

/// The longest piece of a stream asked for in one request, and how many may be under way or wait to be decoded.
const LONGEST_PIECE_BYTES: u64 = 1 << 20;
const PIECES: usize = 32;

/// Chunks that are checked and handed out as one, and how many such batches may be ahead of the checks.
const BATCH_CHUNKS: usize = 8;
const BATCHES: usize = 8;

/// A start to fetch for.
#[derive(Debug)]
pub struct BootPlan {
    /// What it touches.
    pub profile: Profile,
    /// Whose the version is on which it was recorded.
    pub namespace: Namespace,
    /// The disks of that version.
    pub recorded: Vec<Arc<Base>>,
    /// The disks as they are now.
    pub now: Vec<Arc<Base>>,
}

impl BootPlan {
    /// Whether each segment that the start touches is still the one it was recorded on.
    fn holds_what_was_recorded(&self) -> bool {
        let segment = |bases: &[Arc<Base>], entry: &ProfileEntry| {
            let (segment, _) = bases.get(usize::from(entry.disk))?.segment_of(entry.chunk)?;
            Some(segment.id)
        };
        self.profile.entries.iter().all(|entry| segment(&self.recorded, entry) == segment(&self.now, entry))
    }
}

/// How far the fetching for a start is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootProgress {
    /// Bytes of the boot stream to download; 0 when there is nothing to.
    pub stream_bytes: u64,
    /// How many of them have come.
    pub received_bytes: u64,
}

#[derive(Default)]
pub(super) struct Progress {
    stream_bytes: AtomicU64,
    received_bytes: AtomicU64,
}

impl Progress {
    /// Whether the stream brings a chunk so late that it is worth a request of its own.
    pub(super) fn is_far_off(&self, flight: &Flight, pace: &Pace) -> bool {
        let Some(due) = flight.due_bytes() else { return false };
        let link = pace.estimate();
        if link.rate_bytes_per_s == 0.0 {
            return false;
        }
        let ahead = due.saturating_sub(self.received_bytes.load(Ordering::Relaxed));
        ahead as f64 / link.rate_bytes_per_s > (PATIENCE + link.distance * 2).as_secs_f64()
    }
}

/// A chunk of the profile.
#[derive(Clone)]
struct Entry {
    id: ChunkId,
    disk: usize,
    chunk: ChunkIndex,
    /// The disk still holds it.
    is_current: bool,
}

/// A chunk that an object holds.
struct Expected {
    id: ChunkId,
    /// Who waits for it, unless it is here.
    flight: Option<Arc<Flight>>,
}

/// How an object's chunks are had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// They are here.
    Here,
    Stream,
    Packs,
}

struct Part {
    stream: BootStream,
    entries: Range<usize>,
    way: Way,
}

impl Fetcher {
    /// How far the fetching for a start is.
    pub fn boot_progress(&self) -> BootProgress {
        BootProgress {
            stream_bytes: self.shared.boot.stream_bytes.load(Ordering::Relaxed),
            received_bytes: self.shared.boot.received_bytes.load(Ordering::Relaxed),
        }
    }

    /// Whether a chunk is on its way.
    pub(crate) fn expects(&self, id: &ChunkId) -> bool {
        self.shared.lock_flights().contains_key(id)
    }

    /// Fetches what a start touches and is not here; returns when all of it was told to come and the stream is through.
    ///
    /// # Errors
    /// [`FetchError`], when a segment cannot be had.
    pub async fn fetch_boot(&self, plan: BootPlan) -> Result<(), FetchError> {
        let boot = Boot { fetcher: self, shared: &self.shared, plan: &plan };
        tokio::select! {
            done = boot.run() => done,
            () = self.shared.stop.cancelled() => Err(FetchError::Stopped),
        }
    }
}

struct Boot<'a> {
    fetcher: &'a Fetcher,
    shared: &'a Arc<Shared>,
    plan: &'a BootPlan,
}

impl Boot<'_> {
    async fn run(&self) -> Result<(), FetchError> {
        // It need not wait for what only says what its chunks must be.
        let early = self.begin_stream();
        self.load_segments().await?;
        let entries = self.entries().await?;
        if !entries.iter().any(|entry| self.is_missing(entry)) {
            return Ok(());
        }
        // Whatever the stream does not bring is then one round trip away, not two.
        let locating = self.load_locators();
        let (fetched, _) = tokio::join!(self.fetch(&entries, early), locating);
        fetched
    }

    /// Begins to download all of the stream when all of it will be wanted: nothing is here, the disks hold what they held when it
    /// was recorded, and no source that is asked first hands out chunks by their ids.
    fn begin_stream(&self) -> Option<Pieces> {
        let (streams, namespace) = (&self.plan.profile.streams, &self.plan.namespace);
        let is_wanted = !streams.is_empty()
            && self.shared.cache.is_empty()
            && self.plan.holds_what_was_recorded()
            && self.shared.sources.first_by_id(namespace).is_none();
        is_wanted.then(|| Pieces::start(Arc::clone(self.shared), namespace.clone(), streams.clone()))
    }

    /// `early` is the download of all of the stream, if that has begun.
    async fn fetch(&self, entries: &[Entry], early: Option<Pieces>) -> Result<(), FetchError> {
        let parts = match self.are_mostly_handed_out(entries).await {
            true => None,
            false => self.parts(entries),
        };
        let Some(parts) = parts else {
            drop(early);
            return self.fetch_single(entries).await;
        };
        let mut flights = self.register(entries, &parts);
        let fetched = self.fetch_parts(&parts, entries, &mut flights, early).await;
        if fetched.is_err() {
            // Whoever was told to wait for the stream is not left waiting.
            self.release(&parts, entries, &flights).await;
        }
        fetched
    }

    /// Whether the source that is asked first hands chunks out by their ids and has most of those that lack.
    async fn are_mostly_handed_out(&self, entries: &[Entry]) -> bool {
        let Some(stream) = self.plan.profile.streams.first() else { return false };
        let Some(first) = self.shared.sources.first_by_id(&self.plan.namespace) else { return false };
        let missing = entries.iter().filter(|entry| self.is_missing(entry));
        let ids: Vec<ChunkId> = missing.map(|entry| entry.id).take(MAX_LOOKED_FOR).collect();
        if ids.is_empty() {
            // Readers have fetched them meanwhile.
            return false;
        }
        self.shared.counters.requests.fetch_add(1, Ordering::Relaxed);
        match first.source.missing(&ids).await {
            Ok(lacking) => {
                self.shared.sources.succeeded(first);
                let held = lacking.iter().filter(|lacks| !**lacks).count();
                held * 100 >= ids.len() * LEAST_HELD_PERCENT
            }
            Err(error) => {
                // What was asked for is what would else come as the stream.
                let object = Object::Stream(stream.id);
                let path = ObjectPath { namespace: self.plan.namespace.clone(), object };
                self.shared.note_failure(first, &path, &error);
                false
            }
        }
    }

    async fn fetch_parts(
        &self,
        parts: &[Part],
        entries: &[Entry],
        flights: &mut [Option<Arc<Flight>>],
        early: Option<Pieces>,
    ) -> Result<(), FetchError> {
        let streamed: Vec<BootStream> =
            parts.iter().filter(|part| part.way == Way::Stream).map(|part| part.stream).collect();
        let mut pieces = match early.filter(|_| streamed.len() == parts.len()) {
            Some(early) => early,
            None => Pieces::start(Arc::clone(self.shared), self.plan.namespace.clone(), streamed),
        };
        // The stream before the part, when the part before was decoded here.
        let mut window = Some(StreamWindow::after(&[]));
        for (at, part) in parts.iter().enumerate() {
            match part.way {
                Way::Here => window = None,
                Way::Packs => {
                    window = None;
                    self.ask(entries.get(part.entries.clone()).unwrap_or_default()).await?;
                }
                Way::Stream => {
                    let before = match window.take() {
                        Some(before) => before,
                        None => {
                            let before = entries.get(..part.entries.start).unwrap_or_default();
                            StreamWindow::after(&self.read_history(before).await?)
                        }
                    };
                    match self.decode(part, entries, flights, before, &mut pieces).await {
                        Some(after) => {
                            window = Some(after);
                            // A flight has its chunk's bytes, and the cache has them by now.
                            flights.get_mut(part.entries.clone()).unwrap_or_default().fill(None);
                        }
                        None => {
                            let rest = parts.get(at..).unwrap_or_default();
                            self.release(rest, entries, flights).await;
                            for part in rest.iter().filter(|part| part.way == Way::Packs) {
                                self.ask(entries.get(part.entries.clone()).unwrap_or_default()).await?;
                            }
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Loads where the chunks of the segments that a start touches lie, when something of the disks lacks.
    async fn load_locators(&self) -> Result<(), FetchError> {
        let cache = &self.shared.cache;
        let lacks_something = |segment: &BaseSegment| {
            segment
                .segment()
                .is_some_and(|chunks| chunks.chunks().iter().any(|id| !id.is_zero() && !cache.contains(id)))
        };
        let loads: Vec<_> = self
            .touched_segments()
            .into_iter()
            .filter(|segment| lacks_something(segment))
            .map(|segment| self.shared.locator(segment).boxed())
            .collect();
        futures_util::stream::iter(loads)
            .buffer_unordered(LOCATOR_REQUESTS)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await
    }

    /// Loads the segments that the profile's chunks are in, many at once.
    async fn load_segments(&self) -> Result<(), FetchError> {
        let loads: Vec<_> = self
            .touched_segments()
            .into_iter()
            .map(|segment| self.fetcher.segment(segment).boxed())
            .collect();
        futures_util::stream::iter(loads)
            .buffer_unordered(SEGMENT_REQUESTS)
            .try_for_each(|_| std::future::ready(Ok(())))
            .await
    }

    /// The segments that the profile's chunks are in, in the order of first touch.
    fn touched_segments(&self) -> Vec<&BaseSegment> {
        let mut seen = HashSet::new();
        let mut segments: Vec<&BaseSegment> = Vec::new();
        for entry in &self.plan.profile.entries {
            for bases in [&self.plan.recorded, &self.plan.now] {
                let segment =
                    bases.get(usize::from(entry.disk)).and_then(|base| base.segment_of(entry.chunk));
                if let Some((segment, _)) = segment
                    && !segment.id.is_zero()
                    && seen.insert(segment.id)
                {
                    segments.push(segment);
                }
            }
        }
        segments
    }

    async fn id(&self, base: Option<&Arc<Base>>, chunk: ChunkIndex) -> Result<ChunkId, FetchError> {
        let Some((segment, at)) = base.and_then(|base| base.segment_of(chunk)) else {
            return Ok(ChunkId::ZERO);
        };
        if segment.id.is_zero() {
            return Ok(ChunkId::ZERO);
        }
        Ok(self.fetcher.segment(segment).await?.chunks().get(at).copied().unwrap_or(ChunkId::ZERO))
    }

    async fn entries(&self) -> Result<Vec<Entry>, FetchError> {
        let mut entries = Vec::with_capacity(self.plan.profile.entries.len());
        for entry in &self.plan.profile.entries {
            let disk = usize::from(entry.disk);
            let id = self.id(self.plan.recorded.get(disk), entry.chunk).await?;
            let now = self.id(self.plan.now.get(disk), entry.chunk).await?;
            entries.push(Entry { id, disk, chunk: entry.chunk, is_current: id == now });
        }
        Ok(entries)
    }

    /// How each object's chunks are had; `None` when the profile has no stream, or one that cannot be read.
    fn parts(&self, entries: &[Entry]) -> Option<Vec<Part>> {
        let has_holes = entries.iter().any(|entry| entry.id.is_zero());
        let most_entries = MAX_STREAM_CONTENT_BYTES / self.shared.cache.chunk_size().bytes();
        let has_too_many = |stream: &BootStream| stream.entries as usize > most_entries;
        let streams = &self.plan.profile.streams;
        if streams.is_empty() || has_holes || streams.iter().any(has_too_many) {
            return None;
        }
        let mut start = 0;
        let mut parts = Vec::with_capacity(streams.len());
        for stream in streams {
            let end = start + stream.entries as usize;
            let missing = entries.get(start..end)?.iter().filter(|entry| self.is_missing(entry)).count();
            let way = match missing {
                0 => Way::Here,
                _ if missing * 100 >= (end - start) * LEAST_MISSING_PERCENT => Way::Stream,
                _ => Way::Packs,
            };
            parts.push(Part { stream: *stream, entries: start..end, way });
            start = end;
        }
        Some(parts)
    }

    fn is_missing(&self, entry: &Entry) -> bool {
        entry.is_current && !entry.id.is_zero() && !self.shared.cache.contains(&entry.id)
    }

    /// Notes what the stream will bring, and when, so that nobody asks for it meanwhile.
    fn register(&self, entries: &[Entry], parts: &[Part]) -> Vec<Option<Arc<Flight>>> {
        let mut registered: Vec<Option<Arc<Flight>>> = vec![None; entries.len()];
        let mut flights = self.shared.lock_flights();
        let mut offset = 0;
        for part in parts.iter().filter(|part| part.way == Way::Stream) {
            let (len, count) = (u64::from(part.stream.len_bytes), part.entries.len() as u64);
            for (nth, at) in (1..).zip(part.entries.clone()) {
                let (Some(entry), Some(place)) = (entries.get(at), registered.get_mut(at)) else { continue };
                if self.is_missing(entry) && !flights.contains_key(&entry.id) {
                    let flight = Arc::new(Flight::in_stream(offset + len * nth / count.max(1)));
                    flights.insert(entry.id, Arc::clone(&flight));
                    *place = Some(flight);
                }
            }
            offset += len;
        }
        self.shared.boot.received_bytes.store(0, Ordering::Relaxed);
        self.shared.boot.stream_bytes.store(offset, Ordering::Relaxed);
        registered
    }

    /// Downloads and decodes one object; answers the stream up to there, or `None` when it does not hold.
    async fn decode(
        &self,
        part: &Part,
        entries: &[Entry],
        flights: &[Option<Arc<Flight>>],
        window: StreamWindow,
        pieces: &mut Pieces,
    ) -> Option<StreamWindow> {
        let expected: Arc<[Expected]> = part
            .entries
            .clone()
            .filter_map(|at| Some(Expected { id: entries.get(at)?.id, flight: flights.get(at)?.clone() }))
            .collect();
        let (feed, fed) = mpsc::channel(16);
        let (decoded, batches) = mpsc::channel(BATCHES);
        let content_bytes = expected.len() * self.shared.cache.chunk_size().bytes();
        let batch_bytes = BATCH_CHUNKS * self.shared.cache.chunk_size().bytes();
        let decoding = tokio::task::spawn_blocking(move || {
            decode_object(window, content_bytes, batch_bytes, fed, &decoded)
        });
        let (has_come, held, decoded) =
            tokio::join!(self.feed(part, pieces, feed), self.hand_out(expected, batches), decoding);
        if !has_come {
            return None;
        }
        match held.ok()?.and(decoded.ok()?) {
            Ok(window) => Some(window),
            Err(error) => {
                self.shared.counters.damaged.fetch_add(1, Ordering::Relaxed);
                let (stream, error) = (part.stream.id, &error as &dyn std::error::Error);
                tracing::warn!(%stream, error, "a part of the boot stream does not hold; its chunks come singly");
                None
            }
        }
    }

    /// Passes the pieces of an object on as they come, as long as they are taken; whether all could be had.
    async fn feed(&self, part: &Part, pieces: &mut Pieces, feed: mpsc::Sender<Bytes>) -> bool {
        let mut left = u64::from(part.stream.len_bytes);
        while left > 0 {
            let piece = match pieces.next().await {
                Ok(piece) => piece,
                Err(error) => {
                    let error = &*error as &dyn std::error::Error;
                    tracing::warn!(error, "the boot stream is not to be had");
                    return false;
                }
            };
            left = left.saturating_sub(piece.len() as u64);
            self.shared.boot.received_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
            if feed.send(piece).await.is_err() {
                break;
            }
        }
        true
    }

    /// Checks decoded chunks while the decoder goes on, on as many processors as there are, and hands them out.
    async fn hand_out(
        &self,
        expected: Arc<[Expected]>,
        mut batches: mpsc::Receiver<Bytes>,
    ) -> Result<Result<(), FormatError>, JoinError> {
        let mut next = 0;
        let mut checks = futures_util::stream::poll_fn(move |context| batches.poll_recv(context))
            .map(|batch| {
                let (shared, expected, first) = (Arc::clone(self.shared), Arc::clone(&expected), next);
                next += BATCH_CHUNKS;
                tokio::task::spawn_blocking(move || {
                    shared.land_streamed(expected.get(first..).unwrap_or_default(), &batch)
                })
            })
            .buffer_unordered(std::thread::available_parallelism().map_or(1, NonZero::get));
        while let Some(checked) = checks.next().await {
            if let Err(error) = checked? {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }

    /// Has what the stream was to bring for these parts fetched singly, under the flights that were told of already.
    async fn release(&self, parts: &[Part], entries: &[Entry], flights: &[Option<Arc<Flight>>]) {
        self.shared.boot.stream_bytes.store(0, Ordering::Relaxed);
        let mut wanted = Vec::new();
        for part in parts {
            for at in part.entries.clone() {
                let (Some(entry), Some(Some(flight))) = (entries.get(at), flights.get(at)) else { continue };
                let base = self.plan.recorded.get(entry.disk);
                let Some((segment, at)) = base.and_then(|base| base.segment_of(entry.chunk)) else {
                    continue;
                };
                if !flight.has_landed() {
                    wanted.push(Wanted { id: entry.id, segment, at, flight: Arc::clone(flight) });
                }
            }
        }
        self.shared.request(wanted).await;
    }

    /// Asks for chunks that the disks hold; answers the flights of those on their way.
    async fn ask(&self, entries: &[Entry]) -> Result<Vec<Arc<Flight>>, FetchError> {
        let mut flights = Vec::new();
        for run in entries.chunk_by(|a, b| a.disk == b.disk) {
            let Some(base) = run.first().and_then(|entry| self.plan.now.get(entry.disk)) else { continue };
            let chunks: Vec<ChunkIndex> = run.iter().map(|entry| entry.chunk).collect();
            for wish in self.fetcher.want(base, &chunks, Class::Profile).await? {
                if let Wish::Flight(flight) = wish {
                    flights.push(flight);
                }
            }
        }
        Ok(flights)
    }

    /// Fetches all chunks singly, a batch being asked for while the one before comes.
    async fn fetch_single(&self, entries: &[Entry]) -> Result<(), FetchError> {
        let mut before = Vec::new();
        for batch in entries.chunks(CHUNKS_AT_ONCE) {
            let flights = self.ask(batch).await?;
            for flight in std::mem::replace(&mut before, flights) {
                // Whoever needs the chunk asks again.
                let _ = flight.land().await;
            }
        }
        Ok(())
    }

    /// The end of the stream before a part, from what is here; what was evicted is fetched once more.
    async fn read_history(&self, before: &[Entry]) -> Result<Vec<u8>, FetchError> {
        let chunk_bytes = self.shared.cache.chunk_size().bytes();
        let count = STREAM_HISTORY_BYTES.div_ceil(chunk_bytes).min(before.len());
        let entries = before.get(before.len() - count..).unwrap_or_default();
        let mut history = Vec::with_capacity(count * chunk_bytes);
        for entry in entries {
            let Some(base) = self.plan.recorded.get(entry.disk) else { return Err(FetchError::Stopped) };
            match self.fetcher.chunk(base, entry.chunk, Class::Profile).await {
                Ok(chunk) => history.extend_from_slice(&chunk),
                Err(_) => return Err(FetchError::Stopped),
            }
        }
        Ok(history)
    }
}

impl Shared {
    /// Checks chunks of the stream by their ids and hands out those that were waited for.
    fn land_streamed(&self, expected: &[Expected], chunks: &Bytes) -> Result<(), FormatError> {
        let chunk_bytes = self.cache.chunk_size().bytes();
        for (nth, Expected { id, flight }) in expected.iter().take(chunks.len() / chunk_bytes).enumerate() {
            let chunk = chunks.slice(nth * chunk_bytes..(nth + 1) * chunk_bytes);
            id.verify(&chunk)?;
            let Some(flight) = flight else { continue };
            if flight.has_landed() {
                continue;
            }
            self.counters.chunks.fetch_add(1, Ordering::Relaxed);
            let unread = self.tell(flight, &chunk, true);
            // It fails only when the fetcher is gone, and the cache with it.
            let _ = self.arrived.blocking_send(Arrival { id: *id, chunk, unread, _room: None });
        }
        Ok(())
    }

    async fn fetch_piece(
        &self,
        path: &ObjectPath,
        range: Range<u64>,
        admitted: Admitted,
    ) -> Result<Bytes, FetchError> {
        let admitted = tokio::sync::Mutex::new(admitted);
        self.try_sources(path, Patience::WhileAnswered, Vec::new(), |_, source| {
            let (admitted, range) = (&admitted, range.clone());
            async move {
                let mut admitted = admitted.lock().await;
                let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
                admitted.sent();
                let mut body = source.get(path, Some(range)).await?;
                admitted.answered();
                let mut piece = BytesMut::with_capacity(len);
                while let Some(part) = body.try_next().await? {
                    self.counters.fetched_bytes.fetch_add(part.len() as u64, Ordering::Relaxed);
                    admitted.arrived(part.len() as u64);
                    if piece.len() + part.len() > len {
                        return Err(damaged(&*source, path, "it sent more than was asked for"));
                    }
                    piece.extend_from_slice(&part);
                }
                if piece.len() < len {
                    // It did not break off: the object of this source ends here.
                    let cause = format!("the answer ended {} bytes early", len - piece.len());
                    return Err(damaged(&*source, path, cause));
                }
                Ok(piece.freeze())
            }
        })
        .await
    }
}

/// Decodes an object as it comes and passes its content on in batches; answers the window that the next object may refer to.
fn decode_object(
    mut window: StreamWindow,
    content_bytes: usize,
    batch_bytes: usize,
    mut fed: mpsc::Receiver<Bytes>,
    decoded: &mpsc::Sender<Bytes>,
) -> Result<StreamWindow, FormatError> {
    let mut decoder = window.decode(content_bytes)?;
    let mut passed = 0;
    'pieces: while let Some(piece) = fed.blocking_recv() {
        decoder.push(&piece)?;
        while let Some(batch) = decoder.content().get(passed..content_bytes.min(passed + batch_bytes))
            && !batch.is_empty()
        {
            if decoded.blocking_send(Bytes::copy_from_slice(batch)).is_err() {
                // A batch before did not hold, which whoever took it says.
                break 'pieces;
            }
            passed += batch.len();
        }
    }
    decoder.finish()?;
    Ok(window)
}

fn piece_bytes(shared: &Shared) -> u64 {
    shared.pace.request_bytes().min(LONGEST_PIECE_BYTES)
}

/// The objects of a stream, downloaded in pieces, several at once, handed out in order.
struct Pieces {
    pieces: mpsc::Receiver<JoinHandle<Result<Bytes, FetchError>>>,
    asking: JoinHandle<()>,
}

impl Pieces {
    fn start(shared: Arc<Shared>, namespace: Namespace, streams: Vec<BootStream>) -> Self {
        let (sender, pieces) = mpsc::channel(PIECES);
        let asking = tokio::spawn(async move {
            for stream in streams {
                let path = ObjectPath { namespace: namespace.clone(), object: Object::Stream(stream.id) };
                let (mut start, len) = (0, u64::from(stream.len_bytes));
                while start < len {
                    let room = sender.reserve().await;
                    let admitted = shared.pace.admit(Class::Profile, piece_bytes(&shared)).await;
                    let (Ok(room), mut admitted) = (room, admitted) else { return };
                    let end = len.min(start + piece_bytes(&shared));
                    admitted.resize(end - start);
                    let (shared, path, range) = (Arc::clone(&shared), path.clone(), start..end);
                    room.send(tokio::spawn(async move {
                        tokio::select! {
                            piece = shared.fetch_piece(&path, range, admitted) => piece,
                            () = shared.stop.cancelled() => Err(FetchError::Stopped),
                        }
                    }));
                    start = end;
                }
            }
        });
        Self { pieces, asking }
    }

    async fn next(&mut self) -> Result<Bytes, Arc<FetchError>> {
        let Some(piece) = self.pieces.recv().await else { return Err(Arc::new(FetchError::Stopped)) };
        piece.await.unwrap_or(Err(FetchError::Stopped)).map_err(Arc::new)
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.asking.abort();
        self.pieces.close();
        while let Ok(piece) = self.pieces.try_recv() {
            piece.abort();
        }
    }
}
