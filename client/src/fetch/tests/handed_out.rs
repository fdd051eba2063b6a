//! A source that hands out chunks by their ids, before a server that has packs.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use futures_util::future::{BoxFuture, FutureExt, ready};
use futures_util::stream::{self, StreamExt};

use super::boot::{BootRig, CHUNKS};
use super::*;
use crate::cache::Look;
use crate::source::exchange::Answered;
use crate::source::{ChunkAnswers, ObjectBody, SourceError};

/// A shelf of chunks that may lack some, lie, break off, or keep whoever asks waiting.
struct Shelf {
    chunks: HashMap<ChunkId, Vec<u8>>,
    lies: AtomicBool,
    is_gone: AtomicBool,
    /// Chunks of an answer after which it breaks off.
    breaks_after: AtomicUsize,
    /// A place for each answer that may begin.
    gate: Semaphore,
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
            gate: Semaphore::new(1000),
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
        matches!(object, Object::Pack(_))
    }

    fn hands_out_chunks(&self) -> bool {
        true
    }

    fn chunks<'a>(
        &'a self,
        ids: &'a [ChunkId],
        _: ChunkSize,
    ) -> BoxFuture<'a, Result<ChunkAnswers, SourceError>> {
        Box::pin(async move {
            self.0.asked()?;
            self.0.gate.acquire().await.unwrap().forget();
            let mut encoder = FrameEncoder::for_sending().unwrap();
            let mut answers = Vec::new();
            for id in ids {
                answers.push(Ok(match self.0.chunks.get(id) {
                    None => Answered::NotHere,
                    Some(chunk) => {
                        let mut chunk = chunk.clone();
                        chunk[7] ^= u8::from(self.0.lies.load(Ordering::Relaxed));
                        Answered::Frame(encoder.encode(&chunk).unwrap().into())
                    }
                }));
            }
            let breaks_after = self.0.breaks_after.load(Ordering::Relaxed);
            if breaks_after <= answers.len() {
                answers.truncate(breaks_after);
                answers.push(Err(failure(FailureKind::Unreachable)));
            }
            let served = answers.iter().filter(|answer| matches!(answer, Ok(Answered::Frame(_)))).count();
            self.0.served.fetch_add(served as u64, Ordering::Relaxed);
            Ok(stream::iter(answers).boxed())
        })
    }

    fn missing<'a>(&'a self, ids: &'a [ChunkId]) -> BoxFuture<'a, Result<Vec<bool>, SourceError>> {
        let asked = self.0.asked();
        let missing = ids.iter().map(|id| !self.0.chunks.contains_key(id)).collect();
        ready(asked.map(|()| missing)).boxed()
    }
}

/// A rig with a shelf before the server.
fn rig(chunks: usize, on_missing: OnMissing, has: impl Fn(usize) -> bool) -> (Arc<Rig>, Arc<Shelf>) {
    let mut made = None;
    let rig = Rig::beside(chunks, on_missing, |content| {
        let shelf = Shelf::of(content, has);
        made = Some(Arc::clone(&shelf));
        Some(Arc::new(OnShelf(shelf)) as Arc<dyn ChunkSource>)
    });
    (Arc::new(rig), made.unwrap())
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
async fn what_is_handed_out_by_its_id_needs_no_pack() {
    let (rig, shelf) = rig(100, OnMissing::Fail, |_| true);
    read_all(&rig, 100).await;
    assert_eq!(rig.server.requests(), 2, "the segment and its locator");
    assert_eq!((shelf.served(), shelf.requests()), (100, 1));
    assert_eq!(rig.fetcher.stats().failures, 0);
}

#[tokio::test]
async fn what_it_lacks_comes_from_the_next_in_few_requests_and_is_no_failure() {
    let (rig, shelf) = rig(100, OnMissing::Fail, |chunk| chunk % 2 == 0);
    read_all(&rig, 100).await;
    assert_eq!((shelf.served(), shelf.requests()), (50, 1));
    assert_eq!(rig.server.requests(), 3, "the segment, its locator, and the pack");
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
async fn who_dies_in_the_middle_is_replaced_and_what_came_is_kept() {
    let (rig, shelf) = rig(100, OnMissing::Fail, |chunk| chunk != 3);
    shelf.breaks_after.store(40, Ordering::Relaxed);
    read_all(&rig, 100).await;
    let stats = rig.fetcher.stats();
    assert_eq!((shelf.served(), stats.chunks, stats.damaged), (39, 100, 0), "each chunk once");
    assert!(stats.failures > 0, "{stats:?}");
}

#[tokio::test]
async fn an_answer_that_ends_badly_behind_its_last_chunk_brought_them_all() {
    let (rig, shelf) = rig(20, OnMissing::Fail, |_| true);
    shelf.breaks_after.store(20, Ordering::Relaxed);
    read_all(&rig, 20).await;
    let stats = rig.fetcher.stats();
    assert_eq!((rig.server.requests(), stats.chunks, stats.failures), (2, 20, 0));
}

#[tokio::test]
async fn the_server_may_be_away_once_it_is_known_where_chunks_lie() {
    let (rig, _) = rig(50, OnMissing::Wait, |chunk| chunk != 7);
    rig.fetcher.shared.locator(&rig.base.segments()[0]).await.unwrap();
    rig.server.lose_network_after(Some(0));
    let reader = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.get(7).await }
    });
    for chunk in (0..50).filter(|chunk| *chunk != 7) {
        assert_eq!(rig.get(chunk as u64).await.unwrap(), rig.expected(chunk));
    }
    assert!(!reader.is_finished(), "it waits for the server");
    rig.server.lose_network_after(None);
    assert_eq!(reader.await.unwrap().unwrap(), rig.expected(7));
}

#[tokio::test]
async fn a_reader_who_joins_what_the_background_asked_for_is_not_held_by_its_pause() {
    let (rig, shelf) = rig(50, OnMissing::Wait, |chunk| chunk != 7);
    rig.fetcher.shared.locator(&rig.base.segments()[0]).await.unwrap();
    shelf.gate.forget_permits(1000);
    rig.fetcher.want(&rig.base, &[ChunkIndex(7)], Class::Background).await.unwrap();
    while shelf.requests() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rig.fetcher.pause_background(true);
    let reader = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.get(7).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    shelf.gate.add_permits(1000);
    assert_eq!(reader.await.unwrap().unwrap(), rig.expected(7));
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_while_somebody_needs_other_chunks() {
    let all = WAITING_REQUESTS + OTHER_REQUESTS;
    let (rig, shelf) = rig(all + 2, OnMissing::Wait, |_| true);
    let later = async || {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    };
    rig.fetcher.pause_background(true);
    let want = async |chunk: usize, class| {
        rig.fetcher.want(&rig.base, &[ChunkIndex(chunk as u64)], class).await.unwrap();
        later().await;
    };
    want(all + 1, Class::Background).await;
    shelf.gate.forget_permits(1000);
    // One more than there can be requests for.
    for chunk in 0..=all {
        want(chunk, Class::Waiting).await;
    }
    assert_eq!(shelf.requests(), all as u64);
    shelf.gate.add_permits(1000);
    while rig.fetcher.in_flight() > 1 {
        std::thread::sleep(Duration::from_millis(1));
        later().await;
    }
    assert_eq!(rig.fetcher.queued(), [0, 0, 0, 1]);
    assert_eq!(shelf.served(), 1 + all as u64);
}

#[tokio::test]
async fn whoever_is_back_first_is_asked() {
    let (rig, shelf) = rig(50, OnMissing::Wait, |_| true);
    rig.fetcher.shared.locator(&rig.base.segments()[0]).await.unwrap();
    rig.server.lose_network_after(Some(0));
    shelf.is_gone.store(true, Ordering::Relaxed);
    let mut link = rig.fetcher.link();
    let reader = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.get(7).await }
    });
    link.wait_for(|state| matches!(state, LinkState::Down { .. })).await.unwrap();
    shelf.is_gone.store(false, Ordering::Relaxed);
    assert_eq!(reader.await.unwrap().unwrap(), rig.expected(7), "the server is still away");
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_no_sign_that_nobody_has_it() {
    let (rig, _) = rig(50, OnMissing::Fail, |chunk| chunk != 7);
    rig.fetcher.shared.locator(&rig.base.segments()[0]).await.unwrap();
    rig.server.lose_network_after(Some(0));
    let reader = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.get(7).await }
    });
    // The clock does not go on by itself while a thread keeps arrivals.
    let later = async || {
        tokio::time::advance(Duration::from_millis(250)).await;
        tokio::task::yield_now().await;
    };
    for _ in 0..200 {
        later().await;
    }
    assert!(!reader.is_finished(), "it waits for the server, which has it");
    rig.server.lose_network_after(None);
    while !reader.is_finished() {
        later().await;
    }
    assert_eq!(reader.await.unwrap().unwrap(), rig.expected(7));
}

#[tokio::test]
async fn what_waits_for_the_server_keeps_nothing_else_from_coming() {
    let (rig, shelf) = rig(50, OnMissing::Wait, |chunk| chunk != 7);
    rig.fetcher.shared.locator(&rig.base.segments()[0]).await.unwrap();
    rig.server.lose_network_after(Some(0));
    let reader = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.get(7).await }
    });
    while shelf.requests() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let chunks: Vec<ChunkIndex> = (20..40).map(ChunkIndex).collect();
    let wishes = rig.fetcher.want(&rig.base, &chunks, Class::Background).await.unwrap();
    for (chunk, wish) in (20..).zip(wishes) {
        let Wish::Flight(flight) = wish else { panic!("chunk {chunk} cannot be here yet") };
        let landed = tokio::time::timeout(Duration::from_secs(30), flight.land()).await;
        assert_eq!(landed.expect("it comes").unwrap(), rig.expected(chunk));
    }
    assert!(!reader.is_finished(), "it waits for the server");
    rig.server.lose_network_after(None);
    assert_eq!(reader.await.unwrap().unwrap(), rig.expected(7));
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
    let (rig, shelf) = rig(CHUNKS, OnMissing::Fail, |chunk| chunk > CHUNKS / 4);
    let boot = BootRig::on(Arc::into_inner(rig).unwrap());
    boot.boot().await;
    boot.read_all().await;
    assert_eq!(boot.rig.fetcher.boot_progress().stream_bytes, 0);
    assert_eq!(shelf.served(), (CHUNKS - 1 - CHUNKS / 4) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_takes_the_stream_when_little_is_handed_out() {
    let (rig, shelf) = rig(CHUNKS, OnMissing::Fail, |chunk| chunk < CHUNKS / 2);
    let boot = BootRig::on(Arc::into_inner(rig).unwrap());
    boot.boot().await;
    assert_eq!(boot.read_all().await, 0);
    let stats = boot.rig.fetcher.stats();
    assert_eq!((stats.chunks, stats.damaged), (CHUNKS as u64, 0), "each once");
    assert_eq!((shelf.served(), shelf.requests()), (0, 1), "it was asked what it has");
    let whole: u64 = boot.profile.streams.iter().map(|stream| u64::from(stream.len_bytes)).sum();
    assert_eq!(boot.rig.fetcher.boot_progress().stream_bytes, whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_does_without_a_source_that_is_gone() {
    let (rig, shelf) = rig(CHUNKS, OnMissing::Fail, |_| true);
    shelf.is_gone.store(true, Ordering::Relaxed);
    let boot = BootRig::on(Arc::into_inner(rig).unwrap());
    boot.boot().await;
    assert_eq!(boot.read_all().await, 0);
    assert_eq!(shelf.served(), 0);
    assert!(boot.rig.fetcher.boot_progress().stream_bytes > 0);
}

#[tokio::test]
async fn a_fill_that_is_ended_pins_nothing_any_more() {
    let (rig, shelf) = rig(700, OnMissing::Wait, |_| true);
    shelf.gate.forget_permits(1000);
    let filling = Arc::new(Filling::default());
    let fill = tokio::spawn({
        let (rig, filling) = (Arc::clone(&rig), Arc::clone(&filling));
        async move { filling.fill(&rig.fetcher, Look::Index, || vec![Arc::clone(&rig.base)]).await }
    });
    while shelf.requests() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(30), filling.end()).await;
    let ended = ended.expect("nobody waits for what it fetches");
    shelf.gate.add_permits(1000);
    drop(ended);
    assert!(matches!(fill.await.unwrap(), Err(FillError::Ended)));
    while rig.fetcher.in_flight() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(rig.fetcher.shared.cache.stats().pinned, 0);
    let again = filling.fill(&rig.fetcher, Look::Index, || vec![Arc::clone(&rig.base)]);
    again.await.unwrap();
    assert_eq!(rig.fetcher.shared.cache.stats().pinned, 700, "what is asked for later is not ended");
}

#[tokio::test]
async fn a_fill_lets_go_of_what_the_disks_do_not_hold_any_more_and_fetches_what_only_the_index_has() {
    let rig = Rig::new(100, OnMissing::Wait);
    let cache = &rig.fetcher.shared.cache;
    // Of a version before.
    let dead = vec![0xee; CHUNK];
    cache.insert(ChunkId::of(&dead), &dead).unwrap();
    cache.set_pinned([ChunkId::of(&dead)].into_iter(), true);
    let filling = Filling::default();
    filling.fill(&rig.fetcher, Look::Index, || vec![Arc::clone(&rig.base)]).await.unwrap();
    assert_eq!(cache.stats().pinned, 100);
}
