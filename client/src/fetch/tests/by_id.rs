//! A source that hands out chunks by their ids, before a server that has packs.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use futures_util::future::{BoxFuture, FutureExt, ready};
use futures_util::stream::{self, StreamExt};

use super::boot::{BootRig, CHUNKS};
use super::*;
use crate::source::exchange::{append_frame, append_not_here};
use crate::source::{ObjectBody, SourceError};

/// A shelf of chunks that may lack some, lie, or break off.
struct Shelf {
    chunks: HashMap<ChunkId, Vec<u8>>,
    lies: AtomicBool,
    is_gone: AtomicBool,
    /// Bytes of an answer after which it breaks off.
    breaks_after: AtomicUsize,
    requests: AtomicU64,
    served: AtomicU64,
}

impl Shelf {
    /// With the chunks of a disk that a filter lets through.
    fn of(content: &[u8], has: impl Fn(usize) -> bool) -> Arc<Self> {
        let chunks = content.chunks(CHUNK).enumerate().filter(|(at, _)| has(*at));
        Arc::new(Self {
            chunks: chunks.map(|(_, chunk)| (ChunkId::of_chunk(chunk), chunk.to_vec())).collect(),
            lies: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            breaks_after: AtomicUsize::new(usize::MAX),
            requests: AtomicU64::new(0),
            served: AtomicU64::new(0),
        })
    }

    fn asked(&self) -> Result<(), SourceError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        match self.is_gone.load(Ordering::Relaxed) {
            true => Err(failure(FailureKind::Unreachable)),
            false => Ok(()),
        }
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    fn served(&self) -> u64 {
        self.served.load(Ordering::Relaxed)
    }
}

fn failure(kind: FailureKind) -> SourceError {
    SourceError {
        origin: "shelf".to_owned(),
        object: "something".to_owned(),
        kind,
        retry_after: None,
        cause: "it is so".into(),
    }
}

struct OnShelf(Arc<Shelf>);

impl ChunkSource for OnShelf {
    fn origin(&self) -> String {
        "shelf".to_owned()
    }

    fn get<'a>(
        &'a self,
        _: &'a ObjectPath,
        _: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        ready(Err(failure(FailureKind::NotFound))).boxed()
    }

    fn may_have(&self, object: &Object) -> bool {
        matches!(object, Object::Pack(_) | Object::Chunk(_))
    }

    fn probe<'a>(&'a self, _: &'a ObjectPath) -> BoxFuture<'a, Result<(), SourceError>> {
        ready(match self.0.is_gone.load(Ordering::Relaxed) {
            true => Err(failure(FailureKind::Unreachable)),
            false => Ok(()),
        })
        .boxed()
    }

    fn hands_out_chunks(&self) -> bool {
        true
    }

    fn chunks<'a>(&'a self, ids: &'a [ChunkId]) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        Box::pin(async move {
            self.0.asked()?;
            let mut encoder = FrameEncoder::for_sending().unwrap();
            let mut answer = Vec::new();
            for id in ids {
                let Some(chunk) = self.0.chunks.get(id) else {
                    append_not_here(&mut answer);
                    continue;
                };
                self.0.served.fetch_add(1, Ordering::Relaxed);
                let mut chunk = chunk.clone();
                chunk[7] ^= u8::from(self.0.lies.load(Ordering::Relaxed));
                append_frame(&mut answer, &encoder.encode(&chunk).unwrap());
            }
            answer.truncate(self.0.breaks_after.load(Ordering::Relaxed));
            let pieces: Vec<_> = answer.chunks(50).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            Ok(stream::iter(pieces).boxed())
        })
    }

    fn missing<'a>(&'a self, ids: &'a [ChunkId]) -> BoxFuture<'a, Result<Vec<bool>, SourceError>> {
        let asked = self.0.asked();
        let missing = ids.iter().map(|id| !self.0.chunks.contains_key(id)).collect();
        ready(asked.map(|()| missing)).boxed()
    }
}

/// A rig with a shelf before the server.
fn rig(chunks: usize, on_missing: OnMissing, has: impl Fn(usize) -> bool) -> (Rig, Arc<Shelf>) {
    let mut made = None;
    let rig = Rig::beside(chunks, on_missing, |content| {
        let shelf = Shelf::of(content, has);
        made = Some(Arc::clone(&shelf));
        Some(Arc::new(OnShelf(shelf)) as Arc<dyn ChunkSource>)
    });
    (rig, made.unwrap())
}

/// Asks for all chunks at once and checks them.
async fn read_all(rig: &Rig, chunks: usize) {
    let all: Vec<ChunkIndex> = (0..chunks as u64).map(ChunkIndex).collect();
    let wishes = rig.fetcher.want(&rig.base, &all, Class::Waiting).await.unwrap();
    for (chunk, wish) in wishes.into_iter().enumerate() {
        let Wish::Flight(flight) = wish else { panic!("chunk {chunk} cannot be here yet") };
        assert_eq!(flight.land().await.unwrap(), rig.expected(chunk), "chunk {chunk}");
    }
}

#[tokio::test]
async fn what_is_handed_out_by_its_id_needs_neither_pack_nor_locator() {
    let (rig, shelf) = rig(100, OnMissing::Fail, |_| true);
    read_all(&rig, 100).await;
    assert_eq!(rig.server.requests(), 1, "the segment");
    assert_eq!((shelf.served(), shelf.requests()), (100, 4), "32 at once while somebody waits");
    assert_eq!(rig.fetcher.stats().failures, 0);
}

#[tokio::test]
async fn what_it_lacks_comes_from_the_next_in_few_requests_and_is_no_failure() {
    let (rig, shelf) = rig(100, OnMissing::Fail, |chunk| chunk % 10 != 3);
    read_all(&rig, 100).await;
    assert_eq!(shelf.served(), 90);
    assert!(
        rig.server.requests() <= 6,
        "a segment, a locator, and a pack in few parts: {}",
        rig.server.requests()
    );
    let stats = rig.fetcher.stats();
    assert_eq!((stats.failures, stats.damaged, stats.chunks), (0, 0, 100));
}

#[tokio::test]
async fn who_lies_is_replaced() {
    let (rig, shelf) = rig(100, OnMissing::Fail, |_| true);
    shelf.lies.store(true, Ordering::Relaxed);
    read_all(&rig, 100).await;
    let stats = rig.fetcher.stats();
    assert!(stats.damaged > 0 && stats.chunks == 100, "{stats:?}");
}

#[tokio::test]
async fn who_breaks_off_is_replaced_and_what_came_is_kept() {
    let (rig, shelf) = rig(100, OnMissing::Fail, |_| true);
    shelf.breaks_after.store(300, Ordering::Relaxed);
    read_all(&rig, 100).await;
    let stats = rig.fetcher.stats();
    assert!(stats.failures > 0 && stats.chunks == 100, "each chunk once: {stats:?}");
}

#[tokio::test]
async fn the_server_may_be_away() {
    let (rig, _) = rig(50, OnMissing::Wait, |chunk| chunk != 7);
    rig.fetcher.segment(&rig.base.segments()[0]).await.unwrap();
    rig.server.lose_network_after(Some(0));
    for chunk in (0..50).filter(|chunk| *chunk != 7) {
        assert_eq!(rig.get(chunk as u64).await.unwrap(), rig.expected(chunk));
    }
    let rig = Arc::new(rig);
    let reader = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.get(7).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!reader.is_finished(), "it waits for the server");
    rig.server.lose_network_after(None);
    assert_eq!(reader.await.unwrap().unwrap(), rig.expected(7));
}

#[tokio::test]
async fn whoever_is_back_first_is_asked() {
    let (rig, shelf) = rig(50, OnMissing::Wait, |_| true);
    rig.fetcher.segment(&rig.base.segments()[0]).await.unwrap();
    rig.server.lose_network_after(Some(0));
    shelf.is_gone.store(true, Ordering::Relaxed);
    let rig = Arc::new(rig);
    let mut link = rig.fetcher.link();
    let reader = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.get(7).await }
    });
    link.wait_for(|state| matches!(state, LinkState::Down { .. })).await.unwrap();
    shelf.is_gone.store(false, Ordering::Relaxed);
    assert_eq!(reader.await.unwrap().unwrap(), rig.expected(7), "the server is still away");
}

#[tokio::test]
async fn what_nobody_has_is_given_up() {
    let (rig, _) = rig(4, OnMissing::Fail, |chunk| chunk != 2);
    rig.get(0).await.unwrap();
    rig.server.lose(&rig.pack());
    let error = rig.get(2).await.unwrap_err();
    assert!(matches!(*error, FetchError::NotToBeHad { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_takes_what_is_handed_out_and_no_stream() {
    let (rig, shelf) = rig(CHUNKS, OnMissing::Fail, |_| true);
    let boot = BootRig::on(rig);
    boot.boot().await;
    assert_eq!(boot.read_all().await, 0);
    assert_eq!(boot.rig.server.requests(), 1, "the segment");
    assert_eq!(shelf.served(), CHUNKS as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_takes_the_stream_for_what_is_not_handed_out() {
    // The stream has every second chunk from the end, then the others: of its third and last object little lacks.
    let (rig, shelf) = rig(CHUNKS, OnMissing::Fail, |chunk| chunk < CHUNKS / 4);
    let boot = BootRig::on(rig);
    boot.boot().await;
    boot.read_all().await;
    let stats = boot.rig.fetcher.stats();
    assert_eq!((stats.chunks, stats.damaged), (CHUNKS as u64, 0), "each once");
    assert_eq!(shelf.served(), CHUNKS as u64 / 4);
    let streamed = boot.rig.fetcher.boot_progress().stream_bytes;
    let whole: u64 = boot.profile.streams.iter().map(|stream| u64::from(stream.len_bytes)).sum();
    assert!(streamed > 0 && streamed < whole, "{streamed} of {whole}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_does_without_a_source_that_is_gone() {
    let (rig, shelf) = rig(CHUNKS, OnMissing::Fail, |_| true);
    shelf.is_gone.store(true, Ordering::Relaxed);
    let boot = BootRig::on(rig);
    boot.boot().await;
    assert_eq!(boot.read_all().await, 0);
    assert_eq!(shelf.served(), 0);
    assert!(boot.rig.fetcher.boot_progress().stream_bytes > 0);
}
