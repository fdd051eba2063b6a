use chunk_format::{ChunkSize, Disk, DiskRole, DiskSize, Namespace, SEGMENT_CHUNKS};

use super::*;
use crate::cache::CacheConfig;
use crate::upstream::MemoryServer;

mod boot;
mod handed_out;
mod several;

const CHUNK: usize = 4096;

struct Rig {
    fetcher: Fetcher,
    server: MemoryServer,
    base: Arc<Base>,
    content: Vec<u8>,
    _dir: tempfile::TempDir,
}

impl Rig {
    fn new(chunks: usize, on_missing: OnMissing) -> Self {
        Self::of(chunks, CHUNK, on_missing, |_| None)
    }

    /// A rig that asks a source, made for this content, before the server.
    fn beside(
        chunks: usize,
        on_missing: OnMissing,
        first: impl FnOnce(&[u8]) -> Option<Arc<dyn ChunkSource>>,
    ) -> Self {
        Self::of(chunks, CHUNK, on_missing, first)
    }

    fn of(
        chunks: usize,
        chunk_bytes: usize,
        on_missing: OnMissing,
        first: impl FnOnce(&[u8]) -> Option<Arc<dyn ChunkSource>>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = MemoryServer::default();
        let namespace: Namespace = "image/debian".parse().unwrap();
        let content: Vec<u8> = (0..chunks)
            .flat_map(|chunk| u32::try_from(chunk + 1).unwrap().to_le_bytes().repeat(chunk_bytes / 4))
            .collect();
        let template = Disk {
            role: DiskRole::System,
            size: DiskSize::new(content.len() as u64).unwrap(),
            chunk_size: ChunkSize::new(chunk_bytes as u64).unwrap(),
            segments: Vec::new(),
        };
        let disk = server.store_disk(&namespace, &template, &content);
        let base = Arc::new(Base::new(&disk, |_| namespace.clone()));
        let config =
            CacheConfig { chunk_size: template.chunk_size, limit_bytes: Some(4 << 20), owner: [0; 32] };
        let cache = Arc::new(Cache::open(dir.path(), &config).unwrap());
        let sources = first(&content).into_iter().chain([Arc::new(server.clone()) as Arc<dyn ChunkSource>]);
        let fetcher = Fetcher::new(
            &Handle::current(),
            sources.collect(),
            cache,
            SegmentStore::new(dir.path().join("segments")),
            on_missing,
        );
        Self { fetcher, server, base, content, _dir: dir }
    }

    fn pack(&self) -> ObjectPath {
        let name = self.server.objects().into_iter().find(|name| name.contains("/packs/")).unwrap();
        let (namespace, id) = name.split_once("/packs/").unwrap();
        ObjectPath { namespace: namespace.parse().unwrap(), object: Object::Pack(id.parse().unwrap()) }
    }

    /// Has the cache hold what is never evicted, so that it takes nothing more.
    fn fill_cache(&self) {
        let cache = &self.fetcher.shared.cache;
        let mut fillings = (0u64..).map(|at| {
            let filling = [u64::MAX.to_le_bytes(), at.to_le_bytes()].concat().repeat(CHUNK / 16);
            (ChunkId::of_chunk(&filling), filling)
        });
        while let Some((id, filling)) = fillings.next()
            && cache.insert(id, &filling).is_some()
        {
            cache.set_pinned([id].into_iter(), true);
        }
    }

    /// Waits until the cache has refused so many chunks more than when it was filled.
    async fn refused(&self, chunks: u64) {
        // The first one ended the filling.
        while self.fetcher.shared.cache.stats().refused < 1 + chunks {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn get(&self, chunk: u64) -> Result<Bytes, Arc<FetchError>> {
        let wish = self.fetcher.want(&self.base, &[ChunkIndex(chunk)], Class::Waiting).await?.pop();
        match wish {
            Some(Wish::Flight(flight)) => flight.land().await,
            _ => Ok(Bytes::new()),
        }
    }

    fn expected(&self, chunk: usize) -> &[u8] {
        &self.content[chunk * CHUNK..(chunk + 1) * CHUNK]
    }
}

#[tokio::test]
async fn a_chunk_wanted_by_many_is_fetched_once() {
    let rig = Arc::new(Rig::new(8, OnMissing::Fail));
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let rig = Arc::clone(&rig);
            tokio::spawn(async move { rig.get(3).await.unwrap() })
        })
        .collect();
    for task in tasks {
        let bytes = task.await.unwrap();
        assert!(bytes.is_empty() || bytes == rig.expected(3));
    }
    assert_eq!(rig.fetcher.stats().chunks, 1);
    assert_eq!(rig.server.requests(), 3, "segment, locator, pack");
}

#[tokio::test]
async fn neighbours_come_in_one_request() {
    let rig = Rig::new(100, OnMissing::Fail);
    let chunks: Vec<ChunkIndex> = (0..100).map(ChunkIndex).collect();
    let wishes = rig.fetcher.want(&rig.base, &chunks, Class::Waiting).await.unwrap();
    for (chunk, wish) in wishes.into_iter().enumerate() {
        let Wish::Flight(flight) = wish else { panic!("chunk {chunk} cannot be here yet") };
        assert_eq!(flight.land().await.unwrap(), rig.expected(chunk));
    }
    assert_eq!(rig.server.requests(), 3);
}

#[tokio::test]
async fn a_request_for_more_chunks_than_there_is_room_for_is_made_in_parts() {
    const LONG: usize = 1 << 20;
    let chunks = ROOM_BYTES / LONG + 10;
    let rig = Rig::of(chunks, LONG, OnMissing::Fail, |_| None);
    let wanted: Vec<ChunkIndex> = (0..chunks as u64).map(ChunkIndex).collect();
    let wishes = rig.fetcher.want(&rig.base, &wanted, Class::Waiting).await.unwrap();
    for (chunk, wish) in wishes.into_iter().enumerate() {
        let Wish::Flight(flight) = wish else { panic!("chunk {chunk} cannot be here yet") };
        let landed = tokio::time::timeout(Duration::from_secs(60), flight.land()).await;
        assert_eq!(landed.expect("it comes").unwrap(), rig.content[chunk * LONG..(chunk + 1) * LONG]);
    }
    assert!(rig.server.requests() < 10, "{}", rig.server.requests());
}

#[tokio::test]
async fn what_is_lost_of_one_segment_keeps_no_chunk_of_another_from_coming() {
    let (last, first) = (SEGMENT_CHUNKS as u64 - 1, SEGMENT_CHUNKS as u64);
    for on_missing in [OnMissing::Wait, OnMissing::Fail] {
        for loses_segment in [true, false] {
            let rig = Arc::new(Rig::new(SEGMENT_CHUNKS + 1, on_missing));
            let lost = &rig.base.segments()[1];
            let object = if loses_segment { Object::Segment(lost.id) } else { Object::Locator(lost.id) };
            rig.server.lose(&ObjectPath { namespace: lost.namespace.clone(), object });
            // A guess that reaches over the end of one segment.
            let ahead = tokio::spawn({
                let rig = Arc::clone(&rig);
                let chunks = [ChunkIndex(last), ChunkIndex(first)];
                async move { rig.fetcher.want(&rig.base, &chunks, Class::Readahead).await.map(|_| ()) }
            });
            tokio::time::sleep(Duration::from_millis(50)).await;
            let reader = rig.fetcher.chunk(&rig.base, ChunkIndex(last), Class::Waiting);
            let read = tokio::time::timeout(Duration::from_secs(20), reader).await;
            let bytes = read.expect("it comes").unwrap();
            assert_eq!(bytes, rig.expected(SEGMENT_CHUNKS - 1), "{on_missing:?} {loses_segment}");
            ahead.abort();
        }
    }
}

#[tokio::test]
async fn what_nobody_has_keeps_the_background_from_nothing() {
    let rig = Arc::new(Rig::new(40, OnMissing::Wait));
    rig.server.damage(&rig.pack(), chunk_format::PACK_HEADER_BYTES + 3);
    let reader = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.get(0).await }
    });
    while rig.fetcher.stats().damaged == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // Not next to it: they would come in one request.
    let chunks: Vec<ChunkIndex> = (20..40).map(ChunkIndex).collect();
    let wishes = rig.fetcher.want(&rig.base, &chunks, Class::Background).await.unwrap();
    for (chunk, wish) in (20..).zip(wishes) {
        let Wish::Flight(flight) = wish else { panic!("chunk {chunk} cannot be here yet") };
        let landed = tokio::time::timeout(Duration::from_secs(60), flight.land()).await;
        assert_eq!(landed.expect("it comes").unwrap(), rig.expected(chunk));
    }
    assert!(!reader.is_finished(), "it waits for somebody who has it");
    rig.server.damage(&rig.pack(), chunk_format::PACK_HEADER_BYTES + 3);
    assert_eq!(reader.await.unwrap().unwrap(), rig.expected(0), "it is whole again, and asked for again");
}

#[tokio::test]
async fn damaged_bytes_reach_nobody() {
    let rig = Rig::new(4, OnMissing::Fail);
    let first_frame = chunk_format::PACK_HEADER_BYTES + 3;
    rig.server.damage(&rig.pack(), first_frame);
    let error = rig.get(0).await.unwrap_err();
    assert!(matches!(*error, FetchError::NotToBeHad { .. }), "{error}");
    assert!(rig.fetcher.stats().damaged >= u64::from(ROUNDS));
    assert_eq!(rig.get(1).await.unwrap(), rig.expected(1), "its neighbour is whole");
}

#[tokio::test]
async fn a_damaged_frame_does_not_spoil_its_neighbours() {
    let rig = Rig::new(4, OnMissing::Fail);
    rig.server.damage(&rig.pack(), chunk_format::PACK_HEADER_BYTES + 3);
    let chunks: Vec<ChunkIndex> = (0..4).map(ChunkIndex).collect();
    let wishes = rig.fetcher.want(&rig.base, &chunks, Class::Waiting).await.unwrap();
    let mut landed = Vec::new();
    for wish in wishes {
        let Wish::Flight(flight) = wish else { panic!("nothing can be here yet") };
        landed.push(flight.land().await.is_ok());
    }
    assert_eq!(landed, [false, true, true, true]);
}

#[tokio::test]
async fn what_waits_behind_a_pause_comes_at_once_when_somebody_needs_it() {
    let rig = Rig::new(4, OnMissing::Wait);
    rig.fetcher.pause_background(true);
    let wish = rig.fetcher.want(&rig.base, &[ChunkIndex(2)], Class::Background).await.unwrap().pop();
    assert!(matches!(wish, Some(Wish::Flight(_))));
    // Long enough for the pause to have been met.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(rig.get(2).await.unwrap(), rig.expected(2));
    let readahead = rig.fetcher.want(&rig.base, &[ChunkIndex(0)], Class::Background).await.unwrap().pop();
    let Some(Wish::Flight(flight)) = readahead else { panic!("it cannot be here") };
    rig.fetcher.want(&rig.base, &[ChunkIndex(0)], Class::Readahead).await.unwrap();
    assert_eq!(flight.land().await.unwrap(), rig.expected(0));
}

#[tokio::test]
async fn a_lost_network_is_a_pause() {
    let rig = Arc::new(Rig::new(4, OnMissing::Wait));
    let mut link = rig.fetcher.link();
    rig.server.lose_network_after(Some(1));
    let reader = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.get(2).await }
    });
    link.wait_for(|state| matches!(state, LinkState::Down { .. })).await.unwrap();
    assert!(!reader.is_finished());
    rig.server.lose_network_after(None);
    assert_eq!(reader.await.unwrap().unwrap(), rig.expected(2));
    assert_eq!(*link.borrow(), LinkState::Up);
}

#[tokio::test]
async fn stopping_lets_everyone_go() {
    let rig = Arc::new(Rig::new(4, OnMissing::Wait));
    rig.get(0).await.unwrap();
    rig.server.lose_network_after(Some(0));
    let reader = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.get(2).await }
    });
    let mut link = rig.fetcher.link();
    link.wait_for(|state| matches!(state, LinkState::Down { .. })).await.unwrap();
    rig.fetcher.stop();
    assert!(matches!(*reader.await.unwrap().unwrap_err(), FetchError::Stopped));
    assert!(matches!(*rig.get(3).await.unwrap_err(), FetchError::Stopped));
}

#[tokio::test]
async fn a_chunk_that_the_cache_has_no_room_for_reaches_whoever_waits_for_it_all_the_same() {
    let rig = Rig::new(20, OnMissing::Fail);
    rig.fill_cache();
    for chunk in [3, 4, 3] {
        let read = rig.fetcher.chunk(&rig.base, ChunkIndex(chunk as u64), Class::Waiting);
        let read = tokio::time::timeout(Duration::from_secs(60), read).await;
        assert_eq!(read.expect("it comes").unwrap(), rig.expected(chunk));
    }
    // Through a disk as well, all of it at once.
    let view = crate::disk::View { overlays: Vec::new(), base: Arc::clone(&rig.base) };
    let cache = Arc::clone(&rig.fetcher.shared.cache);
    let disk = crate::disk::Disk::new(view, cache, rig.fetcher.clone(), Handle::current());
    let mut content = vec![0; rig.content.len()];
    let read = tokio::time::timeout(Duration::from_secs(60), disk.read(0, &mut content)).await;
    read.expect("it comes").unwrap();
    assert_eq!(content, rig.content);
    rig.refused(20).await;
    assert!((0..20).all(|chunk| !rig.fetcher.shared.cache.contains(&ChunkId::of_chunk(rig.expected(chunk)))));
}

/// As where a stream and a request of its own bring the same chunk, and somebody wants it anew in between.
#[tokio::test]
async fn a_copy_that_the_cache_does_not_take_ends_no_flight_that_was_begun_since() {
    let rig = Rig::new(4, OnMissing::Wait);
    rig.get(0).await.unwrap();
    while rig.fetcher.in_flight() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    rig.fill_cache();
    // Its request waits for the network.
    rig.server.lose_network_after(Some(0));
    let wanted = || async {
        match rig.fetcher.want(&rig.base, &[ChunkIndex(2)], Class::Waiting).await.unwrap().pop() {
            Some(Wish::Flight(flight)) => flight,
            _ => panic!("it cannot be here"),
        }
    };
    let flight = wanted().await;
    for chunk in [2, 3] {
        let bytes = Bytes::copy_from_slice(rig.expected(chunk));
        let arrival = Arrival { id: ChunkId::of_chunk(&bytes), chunk: bytes, unread: false, _room: None };
        assert!(rig.fetcher.shared.arrived.send(arrival).await.is_ok());
    }
    // They are taken one after the other: the first one is through when the second is refused.
    rig.refused(2).await;
    assert!(Arc::ptr_eq(&flight, &wanted().await), "whoever comes now waits for the same one");
    rig.server.lose_network_after(None);
    assert_eq!(flight.land().await.unwrap(), rig.expected(2));
}
