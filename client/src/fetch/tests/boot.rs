use std::ops::Range;
use std::sync::OnceLock;

use chunk_format::{BootStream, ManifestId, Profile, ProfileEntry, StreamId, encode_stream_object};
use futures_util::future::BoxFuture;

use super::*;
use crate::source::ObjectBody;

pub(super) const CHUNKS: usize = 48;
/// Chunks in an object.
const PART: usize = 8;

/// A rig whose disk has a profile: all its chunks, every second one first, from the end.
pub(super) struct BootRig {
    pub(super) rig: Rig,
    order: Vec<usize>,
    pub(super) profile: Profile,
}

impl BootRig {
    fn new() -> Self {
        Self::on(Rig::new(CHUNKS, OnMissing::Fail))
    }

    /// With the disk of a rig, which has as many chunks.
    pub(super) fn on(rig: Rig) -> Self {
        let order: Vec<usize> =
            (0..CHUNKS).rev().step_by(2).chain((0..CHUNKS).rev().skip(1).step_by(2)).collect();
        let mut history = Vec::new();
        let mut streams = Vec::new();
        for part in order.chunks(PART) {
            let content: Vec<u8> = part.iter().flat_map(|chunk| rig.expected(*chunk).to_vec()).collect();
            let object = encode_stream_object(&history, &content).unwrap();
            history.extend_from_slice(&content);
            let id = StreamId::of(&object);
            streams.push(BootStream {
                id,
                len_bytes: u32::try_from(object.len()).unwrap(),
                entries: u32::try_from(part.len()).unwrap(),
            });
            rig.server.store(&Self::path(id), object);
        }
        let entries =
            order.iter().map(|chunk| ProfileEntry { disk: 0, chunk: ChunkIndex(*chunk as u64) }).collect();
        let profile = Profile { manifest: ManifestId::of(b"golden"), entries, streams };
        Self { rig, order, profile }
    }

    fn path(id: StreamId) -> ObjectPath {
        ObjectPath { namespace: "image/debian".parse().unwrap(), object: Object::Stream(id) }
    }

    fn plan(&self) -> BootPlan {
        BootPlan {
            profile: self.profile.clone(),
            namespace: "image/debian".parse().unwrap(),
            recorded: vec![Arc::clone(&self.rig.base)],
            now: vec![Arc::clone(&self.rig.base)],
        }
    }

    pub(super) async fn boot(&self) {
        self.rig.fetcher.fetch_boot(self.plan()).await.unwrap();
    }

    /// Reads everything and says how many requests that took.
    pub(super) async fn read_all(&self) -> u64 {
        let before = self.rig.server.requests();
        for chunk in 0..CHUNKS {
            let bytes =
                self.rig.fetcher.chunk(&self.rig.base, ChunkIndex(chunk as u64), Class::Waiting).await;
            assert_eq!(bytes.unwrap(), self.rig.expected(chunk), "chunk {chunk}");
        }
        self.rig.server.requests() - before
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_start_is_one_download() {
    let boot = BootRig::new();
    boot.boot().await;
    let expected = 2 + boot.profile.streams.len() as u64;
    assert_eq!(boot.rig.server.requests(), expected, "a segment, its locator and the stream");
    assert_eq!(boot.read_all().await, 0);
    let stats = boot.rig.fetcher.stats();
    assert_eq!((stats.chunks, stats.in_time, stats.damaged), (CHUNKS as u64, CHUNKS as u64, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_here_is_not_fetched_again() {
    let boot = BootRig::new();
    boot.boot().await;
    while boot.rig.fetcher.shared.cache.stats().occupied < CHUNKS as u64 {
        tokio::task::yield_now().await;
    }
    let before = boot.rig.server.requests();
    boot.boot().await;
    assert_eq!(boot.rig.server.requests(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_was_interrupted_goes_on_where_it_stopped() {
    let boot = BootRig::new();
    // The first two objects' chunks came before, and a few of the third's.
    for chunk in &boot.order[..2 * PART + 3] {
        boot.rig.fetcher.chunk(&boot.rig.base, ChunkIndex(*chunk as u64), Class::Profile).await.unwrap();
    }
    let stats = boot.rig.fetcher.stats();
    boot.boot().await;
    assert_eq!(boot.read_all().await, 0);
    let more = boot.rig.fetcher.stats();
    assert_eq!(more.chunks, CHUNKS as u64, "each once");
    let streams: u64 = boot.profile.streams[3..].iter().map(|stream| u64::from(stream.len_bytes)).sum();
    assert!(more.fetched_bytes - stats.fetched_bytes >= streams);
    let first = &boot.profile.streams[0];
    assert!(boot.rig.fetcher.boot_progress().stream_bytes < streams + u64::from(first.len_bytes) * 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_stream_costs_requests_and_nothing_else() {
    let boot = BootRig::new();
    let damaged = boot.profile.streams[2];
    boot.rig.server.damage(&BootRig::path(damaged.id), damaged.len_bytes as usize / 2);
    boot.boot().await;
    boot.read_all().await;
    assert!(boot.rig.fetcher.stats().damaged >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ends_short_is_no_outage() {
    let mut boot = BootRig::new();
    boot.profile.streams[2].len_bytes += 100;
    let link = boot.rig.fetcher.link();
    let booted = tokio::time::timeout(Duration::from_secs(30), boot.boot()).await;
    booted.expect("it is given up");
    boot.read_all().await;
    assert!(!link.has_changed().unwrap(), "the server answered all the time");
    assert!(boot.rig.fetcher.stats().damaged >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_gone_costs_requests_and_nothing_else() {
    let mut boot = BootRig::new();
    boot.profile.streams[1].id = StreamId::of(b"never stored");
    boot.boot().await;
    boot.read_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_stream_the_chunks_come_from_packs() {
    let mut boot = BootRig::new();
    boot.profile.streams.clear();
    boot.boot().await;
    boot.read_all().await;
    assert_eq!(boot.rig.fetcher.stats().chunks, CHUNKS as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_no_longer_holds_is_not_kept() {
    let boot = BootRig::new();
    let template = Disk {
        role: DiskRole::System,
        size: boot.rig.base.size(),
        chunk_size: boot.rig.base.chunk_size(),
        segments: Vec::new(),
    };
    let mut changed = boot.rig.content.clone();
    changed[..CHUNK].fill(0xee);
    let namespace: Namespace = "image/debian".parse().unwrap();
    let now = boot.rig.server.store_disk(&namespace, &template, &changed);
    let now = Arc::new(Base::new(&now, |_| namespace.clone()));
    boot.rig.fetcher.fetch_boot(BootPlan { now: vec![Arc::clone(&now)], ..boot.plan() }).await.unwrap();
    for (chunk, expected) in changed.chunks(CHUNK).enumerate() {
        let bytes = boot.rig.fetcher.chunk(&now, ChunkIndex(chunk as u64), Class::Waiting).await.unwrap();
        assert_eq!(bytes, expected, "chunk {chunk}");
    }
    assert_eq!(boot.rig.fetcher.stats().in_time, CHUNKS as u64 - 1);
}

/// Has what the server has, but asks a gate before it hands some of that out.
struct Gated {
    server: OnceLock<MemoryServer>,
    gate: Semaphore,
    step: fn(&Object) -> Step,
}

/// What an object does at a gate.
enum Step {
    /// Goes by.
    Pass,
    /// Takes a place, for which it waits.
    Wait,
    /// Makes a place for another.
    Open,
}

impl Gated {
    /// A source that asks a gate without a place first, before the server of the rig.
    fn rig(step: fn(&Object) -> Step) -> (Arc<Self>, BootRig) {
        let gated = Arc::new(Self { server: OnceLock::new(), gate: Semaphore::new(0), step });
        let rig = Rig::beside(CHUNKS, OnMissing::Fail, |_| Some(Arc::new(Arc::clone(&gated)) as _));
        let boot = BootRig::on(rig);
        gated.server.set(boot.rig.server.clone()).unwrap_or_default();
        (gated, boot)
    }
}

impl ChunkSource for Arc<Gated> {
    fn origin(&self) -> String {
        "gated".to_owned()
    }

    fn get<'a>(
        &'a self,
        path: &'a ObjectPath,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        Box::pin(async move {
            match (self.step)(&path.object) {
                Step::Pass => {}
                Step::Wait => self.gate.acquire().await.unwrap().forget(),
                Step::Open => self.gate.add_permits(1),
            }
            self.server.get().unwrap().get(path, range).await
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nothing_is_here_the_stream_does_not_wait_for_the_segments() {
    // No segment before an object of the stream was asked for.
    let (_gated, boot) = Gated::rig(|object| match object {
        Object::Stream(_) => Step::Open,
        Object::Segment(_) => Step::Wait,
        _ => Step::Pass,
    });
    let booted = tokio::time::timeout(Duration::from_secs(60), boot.boot()).await;
    booted.expect("it is asked for at once");
    let expected = 2 + boot.profile.streams.len() as u64;
    assert_eq!(boot.rig.server.requests(), expected, "a segment, its locator and the stream, each once");
    assert_eq!(boot.rig.fetcher.stats().failures, 0, "nobody lost patience");
    assert_eq!(boot.read_all().await, 0);
}

// The clock stands still, so that nobody loses patience with the gate.
#[tokio::test(start_paused = true)]
async fn what_came_of_a_stream_is_not_in_memory_until_all_of_it_has() {
    let (gated, boot) = Gated::rig(|object| match object {
        Object::Stream(_) => Step::Wait,
        _ => Step::Pass,
    });
    let fetcher = &boot.rig.fetcher;
    let later = async || {
        std::thread::sleep(Duration::from_millis(1));
        tokio::task::yield_now().await;
    };
    let first_lands = async {
        while fetcher.boot_progress().stream_bytes == 0 {
            later().await;
        }
        let first = ChunkIndex(boot.order[0] as u64);
        let flight = match fetcher.want(&boot.rig.base, &[first], Class::Profile).await.unwrap().pop() {
            Some(Wish::Flight(flight)) => Arc::downgrade(&flight),
            _ => panic!("the stream cannot have brought it"),
        };
        gated.gate.add_permits(2);
        // By a clock that goes on.
        let given_up = std::time::Instant::now() + Duration::from_secs(60);
        while std::time::Instant::now() < given_up {
            if flight.strong_count() == 0 {
                return;
            }
            later().await;
        }
        panic!("it is still held");
    };
    tokio::select! {
        () = boot.boot() => panic!("not all of the stream can have come"),
        () = first_lands => {}
    }
}
