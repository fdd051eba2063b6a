//! Sends what a server lacks of some disks: read, hash, ask, compress, pack, upload, on all cores at once.
//!
//! Publishing an image and syncing a desktop are this with different readers. Every step may be repeated: what has
//! arrived is not sent again, so a broken upload continues where it stopped.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chunk_format::{
    ChunkId, ChunkIndex, ChunkSize, FormatError, FrameEncoder, Segment, SegmentId, SegmentIndex,
};
use futures_util::stream::{self, TryStreamExt};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

mod pace;
mod packer;
mod worker;

pub use pace::{Hurry, Pace};

use crate::remote::{PresentIn, RemoteError};
use crate::upstream::{CommitError, Upstream};
use packer::PackSink;

/// Segments uploaded at once: they are small, so that the round trip dominates. Fewer when nobody waits for them.
const SEGMENT_UPLOADS: usize = 32;
const PACED_SEGMENT_UPLOADS: usize = 8;
/// The lowest there is.
const IDLE_PRIORITY: i32 = 19;

/// Why an upload stopped. What was sent before stays sent.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// A chunk could not be read.
    #[error("cannot read the disk at byte {offset}")]
    Read {
        /// Offset on the disk.
        offset: u64,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A chunk read twice was not the same.
    #[error(
        "the disk changed at byte {offset} while it was being read: stop what writes to it and try again"
    )]
    Changed {
        /// Offset on the disk.
        offset: u64,
    },
    /// A chunk could not be encoded.
    #[error("{0}")]
    Format(#[from] FormatError),
    /// The server could not be asked.
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// Told to stop.
    #[error("interrupted")]
    Stopped,
}

/// Where chunks are read from. Called from several threads at once; may block.
pub trait ReadChunk: Send + Sync + 'static {
    /// Fills the buffer with a chunk, padded with zeros past the end of the disk.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn read_chunk(
        &self,
        disk: usize,
        chunk: ChunkIndex,
        buf: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

    /// Is told which chunks are about to be read, to see to it that they are here by then; may block.
    fn expect(&self, _chunks: &[(usize, ChunkIndex)]) {}

    /// Is told each chunk's id once it is known, with its bytes.
    fn seen(&self, _id: &ChunkId, _chunk: &[u8]) {}

    /// Is told each segment once it is up to date, before it is uploaded.
    fn renewed(&self, _segment: &Segment) {}
}

/// A segment to bring up to date.
#[derive(Clone, Debug)]
pub struct SegmentWork {
    /// Which disk, as the reader counts them.
    pub disk: usize,
    /// Which segment of it.
    pub index: SegmentIndex,
    /// The segment as the server has it; none when all of it was zeros, or is zeros now.
    pub before: Option<Segment>,
    /// Positions of the chunks to read; the others stay as before.
    pub positions: Vec<usize>,
    /// Positions of chunks known to be all zeros now, which need not be read.
    pub zeroed: Vec<usize>,
}

impl SegmentWork {
    /// A segment that is all zeros now, whatever it was.
    pub fn of_zeros(disk: usize, index: SegmentIndex) -> Self {
        Self { disk, index, before: None, positions: Vec::new(), zeroed: Vec::new() }
    }

    /// Whether it is all zeros now, without a look.
    pub fn is_of_zeros(&self) -> bool {
        self.before.is_none() && self.positions.is_empty()
    }
}

/// A segment brought up to date.
#[derive(Clone, Debug)]
pub struct SegmentDone {
    /// Which disk.
    pub disk: usize,
    /// Which segment of it.
    pub index: SegmentIndex,
    /// The segment now; the server has it and all its chunks.
    pub segment: Segment,
}

/// How far an upload is; read from other threads.
#[derive(Debug, Default)]
pub struct UploadProgress {
    /// Segments that change.
    pub changed_segments: AtomicU64,
    /// Those of them of which it is known what they were before.
    pub planned_segments: AtomicU64,
    /// Bytes to read in all.
    pub total_bytes: AtomicU64,
    /// Bytes read and hashed.
    pub hashed_bytes: AtomicU64,
    /// Bytes the server turned out to have, or that are zeros.
    pub known_bytes: AtomicU64,
    /// Bytes to be sent, before compression.
    pub new_bytes: AtomicU64,
    /// Chunks to be sent.
    pub new_chunks: AtomicU64,
    /// Segments to be sent, once their chunks are there.
    pub new_segments: AtomicU64,
    /// Segments the server has acknowledged.
    pub sent_segments: AtomicU64,
    /// Bytes of packs, segments and versions the server has acknowledged.
    pub sent_bytes: AtomicU64,
    /// Bytes before compression of the packs the server has acknowledged.
    pub sent_raw_bytes: AtomicU64,
}

impl UploadProgress {
    fn add(counter: &AtomicU64, value: usize) {
        counter.fetch_add(value as u64, Ordering::Relaxed);
    }
}

/// What an upload needs to know.
#[derive(Clone)]
pub struct Upload {
    /// The server.
    pub upstream: Arc<dyn Upstream>,
    /// Where to, and what may be taken as there.
    pub place: PresentIn,
    /// Bytes per chunk.
    pub chunk_size: ChunkSize,
    /// Segments known to be on the server.
    pub known_segments: Arc<HashSet<SegmentId>>,
    /// Segments that readers look for in the other namespace: only these count as there when only that has them.
    pub segments_elsewhere: Arc<HashSet<SegmentId>>,
    /// Told how far it is.
    pub progress: Arc<UploadProgress>,
    /// Threads that read, hash and compress.
    pub threads: usize,
    /// How requests that fail are repeated.
    pub patience: Patience,
    /// How it leaves room for others; none when somebody waits for it.
    pub pace: Option<Arc<Pace>>,
}

/// How a request that fails for a passing reason is repeated: with pauses that double.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Attempts in all.
    pub attempts: u32,
    /// The pause after the first.
    pub first_pause: Duration,
}

/// How long a busy server is asked again.
const BUSY_PATIENCE: Duration = Duration::from_secs(600);

impl Patience {
    /// Six attempts over six seconds: a server's restart is outlasted, a lost network is not.
    pub const DEFAULT: Self = Self { attempts: 6, first_pause: Duration::from_millis(200) };

    /// Makes a request, again and again while it fails for a passing reason and attempts are left. A server that is busy, with
    /// uploads of the same user's other machine for example, is waited for longer than one that is away.
    ///
    /// # Errors
    /// The last failure.
    pub async fn retry<T, E: Passing, F: Future<Output = Result<T, E>>>(
        self,
        mut request: impl FnMut() -> F,
    ) -> Result<T, E> {
        let mut pause = self.first_pause;
        let mut attempt = 1;
        let begin = tokio::time::Instant::now();
        loop {
            let error = match request().await {
                Err(error) if error.passes() => error,
                result => return result,
            };
            tracing::debug!(%error, attempt, "a request failed and will be repeated");
            let next_pause = pause.max(error.asked_pause());
            if !error.is_busy() || begin.elapsed() > BUSY_PATIENCE {
                if attempt >= self.attempts {
                    return Err(error);
                }
                attempt += 1;
                pause *= 2;
            }
            tokio::time::sleep(next_pause).await;
        }
    }
}

/// A failure of which one can tell whether it will pass.
pub trait Passing: std::fmt::Display {
    /// Whether the same request may succeed in a moment.
    fn passes(&self) -> bool;

    /// Whether the other side is there, and has too much to do.
    fn is_busy(&self) -> bool;

    /// How long the other side asks us to wait.
    fn asked_pause(&self) -> Duration;
}

impl Passing for RemoteError {
    fn passes(&self) -> bool {
        self.is_transient()
    }

    fn is_busy(&self) -> bool {
        self.code() == Some("busy")
    }

    fn asked_pause(&self) -> Duration {
        match self {
            Self::Refused { retry_after_s: Some(seconds), .. } => Duration::from_secs((*seconds).min(30)),
            _ => Duration::ZERO,
        }
    }
}

impl Passing for CommitError {
    fn passes(&self) -> bool {
        matches!(self, Self::Remote(error) if error.passes())
    }

    fn is_busy(&self) -> bool {
        matches!(self, Self::Remote(error) if error.is_busy())
    }

    fn asked_pause(&self) -> Duration {
        match self {
            Self::Remote(error) => error.asked_pause(),
            Self::HeadMoved { .. } | Self::LeaseHeld { .. } | Self::Gone => Duration::ZERO,
        }
    }
}

/// State shared by the worker threads.
struct Shared {
    upload: Upload,
    reader: Arc<dyn ReadChunk>,
    runtime: Handle,
    work: Mutex<std::vec::IntoIter<SegmentWork>>,
    /// Segments that one thread takes at once, at most.
    share: usize,
    done: Mutex<Vec<SegmentDone>>,
    /// Chunks some thread has taken upon itself.
    claimed: Mutex<HashSet<ChunkId>>,
    /// Whether nobody waits for the outcome any more.
    is_given_up: Arc<AtomicBool>,
    sink: PackSink,
}

impl Upload {
    /// Brings segments up to date on the server: uploads the chunks it lacks, then the segments it lacks.
    ///
    /// # Errors
    /// [`UploadError`]; a repeated call continues.
    pub async fn run(
        &self,
        work: Vec<SegmentWork>,
        reader: Arc<dyn ReadChunk>,
    ) -> Result<Vec<SegmentDone>, UploadError> {
        let chunk_bytes = self.chunk_size.bytes_u64();
        let total: u64 = work.iter().map(|work| work.positions.len() as u64 * chunk_bytes).sum();
        // What is dealt with adds up too, where one sync is several uploads.
        self.progress.total_bytes.fetch_add(total, Ordering::Relaxed);
        let threads = self.threads.clamp(1, work.len().max(1));
        let (sink, uploads) = PackSink::start(self);
        let given_up = GivenUp::default();
        let shared = Arc::new(Shared {
            upload: self.clone(),
            reader,
            runtime: Handle::current(),
            share: work.len().div_ceil(threads),
            work: Mutex::new(work.into_iter()),
            done: Mutex::default(),
            claimed: Mutex::default(),
            is_given_up: Arc::clone(&given_up.0),
            sink,
        });
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let shared = Arc::clone(&shared);
                let work = move || shared.work_through();
                if self.pace.is_some() { in_idle_time(work) } else { tokio::task::spawn_blocking(work) }
            })
            .collect();
        let mut outcome = Ok(());
        for worker in workers {
            let result = worker.await.unwrap_or(Err(UploadError::Stopped));
            outcome = outcome.and(result);
        }
        let Some(shared) = Arc::into_inner(shared) else { return Err(UploadError::Stopped) };
        // Ends the uploads once the packs on their way have arrived.
        drop(shared.sink);
        let uploaded = uploads.finish().await;
        // An upload's own failure is the better reason than the workers' "nobody takes my packs".
        uploaded?;
        outcome?;
        let mut done = shared.done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|done| (done.disk, done.index));
        self.upload_segments(&done).await?;
        Ok(done)
    }

    async fn upload_segments(&self, done: &[SegmentDone]) -> Result<(), UploadError> {
        let mut new: Vec<(SegmentId, &Segment)> = done
            .iter()
            .map(|done| (done.segment.id(), &done.segment))
            .filter(|(id, _)| !id.is_zero() && !self.known_segments.contains(id))
            .collect();
        new.sort_by_key(|(id, _)| *id);
        new.dedup_by_key(|(id, _)| *id);
        if new.is_empty() {
            return Ok(());
        }
        let ids: Vec<SegmentId> = new.iter().map(|(id, _)| *id).collect();
        let looked_for = LookedFor { place: &self.place, elsewhere: &self.segments_elsewhere };
        let missing = looked_for.missing(&*self.upstream, self.patience, &ids).await?;
        let mut encoder = FrameEncoder::new()?;
        UploadProgress::add(&self.progress.new_segments, missing.iter().filter(|missing| **missing).count());
        // Encoded as they are sent: there may be thousands.
        let frames = new
            .into_iter()
            .zip(missing)
            .filter(|(_, missing)| *missing)
            .map(|((id, segment), _)| Ok((id, segment.encode(&mut encoder)?)));
        let at_once = if self.pace.is_some() { PACED_SEGMENT_UPLOADS } else { SEGMENT_UPLOADS };
        stream::iter(frames)
            .try_for_each_concurrent(at_once, |(id, frame)| async move {
                let len = frame.len();
                self.patience.retry(|| self.upstream.put_segment(&self.place, id, frame.clone())).await?;
                UploadProgress::add(&self.progress.sent_bytes, len);
                UploadProgress::add(&self.progress.sent_segments, 1);
                Ok::<(), UploadError>(())
            })
            .await
    }
}

/// Where readers look for segments.
pub(crate) struct LookedFor<'a> {
    /// The namespace written to, and the other one.
    pub(crate) place: &'a PresentIn,
    /// The segments that are looked for in the other one.
    pub(crate) elsewhere: &'a HashSet<SegmentId>,
}

impl LookedFor<'_> {
    /// Which of these segments are not where they are looked for; in the order given.
    pub(crate) async fn missing(
        &self,
        upstream: &dyn Upstream,
        patience: Patience,
        ids: &[SegmentId],
    ) -> Result<Vec<bool>, RemoteError> {
        let own = PresentIn { also: None, ..self.place.clone() };
        let (elsewhere, here): (Vec<SegmentId>, Vec<SegmentId>) =
            ids.iter().partition(|id| self.elsewhere.contains(id));
        let mut lacking = HashSet::new();
        for (place, ids) in [(self.place, elsewhere), (&own, here)] {
            if !ids.is_empty() {
                let missing = patience.retry(|| upstream.missing_segments(place, &ids)).await?;
                lacking.extend(ids.iter().zip(missing).filter_map(|(id, missing)| missing.then_some(*id)));
            }
        }
        Ok(ids.iter().map(|id| lacking.contains(id)).collect())
    }
}

/// Tells the threads of an upload, when it is dropped, that there is nothing left to do for them.
#[derive(Default)]
struct GivenUp(Arc<AtomicBool>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs work in the processor time that nobody else wants.
fn in_idle_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    // A thread of its own: a lower priority cannot be given back.
    tokio::task::spawn_blocking(|| {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                // On Linux this is the thread's own (setpriority(2), "C library/kernel differences").
                if let Err(error) = rustix::process::setpriority_process(None, IDLE_PRIORITY) {
                    tracing::debug!(%error, "an upload that nobody waits for runs at full priority");
                }
                work()
            });
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

#[cfg(test)]
mod tests;
