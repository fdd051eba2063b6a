//! Several sources, of which the one that is asked first is bad, or away.

use std::ops::Range;
use std::sync::OnceLock;

use chunk_format::{ChunkPlace, PackRef};
use futures_util::future::{BoxFuture, FutureExt, ready};
use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::super::sources::NobodyLeft;
use super::*;
use crate::source::ObjectBody;

/// Asks for a chunk; the clock goes on by itself only while no thread keeps arrivals, so it is told to.
async fn get_within(rig: &Arc<Rig>, chunk: u64, span: Duration) -> Result<Bytes, Arc<FetchError>> {
    let rig = Arc::clone(rig);
    within(tokio::spawn(async move { rig.get(chunk).await }), span).await
}

async fn within<T>(task: tokio::task::JoinHandle<T>, span: Duration) -> T {
    let begin = tokio::time::Instant::now();
    while !task.is_finished() {
        assert!(begin.elapsed() < span, "it does not come");
        tokio::time::advance(Duration::from_millis(50)).await;
        // What threads do takes time of another clock.
        std::thread::sleep(Duration::from_micros(200));
        tokio::task::yield_now().await;
    }
    task.await.unwrap()
}

/// A source that is away.
struct Away;

impl ChunkSource for Away {
    fn origin(&self) -> String {
        "away".to_owned()
    }

    fn get<'a>(
        &'a self,
        path: &'a ObjectPath,
        _: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        let error = crate::source::damaged(self, path, "no route");
        ready(Err(SourceError { kind: FailureKind::Unreachable, ..error })).boxed()
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_server_lacks_is_given_up_though_another_source_is_away() {
    let rig = Rig::beside(4, OnMissing::Wait, |_| Some(Arc::new(Away)));
    let (fetcher, path) = (rig.fetcher.clone(), rig.pack());
    rig.server.lose(&path);
    let asked =
        tokio::spawn(async move { fetcher.object(&path, 1 << 20, OnMissing::Fail, |_| Ok(())).await });
    let error = within(asked, Duration::from_secs(30)).await.unwrap_err();
    assert!(matches!(error, FetchError::NotToBeHad { .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_only_one_who_is_away_may_have_of_a_person_is_not_waited_for_in_their_place() {
    let server: Arc<dyn ChunkSource> = Arc::new(MemoryServer::default());
    let sources = Sources::new(vec![server, Arc::new(Away)]);
    let object = Object::Stream(chunk_format::StreamId::of(b"of a home disk"));
    let path = ObjectPath { namespace: "user/alice".parse().unwrap(), object };
    let error = |kind| SourceError { kind, ..crate::source::damaged(&Away, &path, "as it is asked") };
    let (at, first) = sources.pick(&path, &[]).await.unwrap();
    assert_eq!(at, 0);
    sources.failed(first, &path, &error(FailureKind::NotFound));
    for _ in 0..20 {
        match sources.pick(&path, &[]).await {
            Ok((at, entry)) => {
                assert_eq!(at, 1);
                sources.failed(entry, &path, &error(FailureKind::Unreachable));
            }
            Err(nobody) => return assert_eq!(nobody, NobodyLeft::OthersAway),
        }
    }
    panic!("it is tried for ever");
}

/// Has what the server has, and brings a byte of it a second.
#[derive(Default)]
struct Dripping(OnceLock<MemoryServer>);

impl ChunkSource for Arc<Dripping> {
    fn origin(&self) -> String {
        "dripping".to_owned()
    }

    fn get<'a>(
        &'a self,
        path: &'a ObjectPath,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        Box::pin(async move {
            let body = self.0.get().unwrap().get(path, range).await?;
            let parts: Vec<Bytes> = body.try_collect().await?;
            let drops = stream::iter(parts.concat()).then(|byte| async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                Ok(Bytes::from(vec![byte]))
            });
            Ok(drops.boxed())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn who_drips_is_left_for_who_does_not() {
    let dripping = Arc::<Dripping>::default();
    let rig = Rig::beside(4, OnMissing::Wait, |_| Some(Arc::new(Arc::clone(&dripping)) as _));
    dripping.0.set(rig.server.clone()).unwrap_or_default();
    let rig = Arc::new(rig);
    let landed = get_within(&rig, 2, Duration::from_secs(10)).await;
    assert_eq!(landed.unwrap(), rig.expected(2));
}

type Mislead = fn(&mut [Option<ChunkPlace>], &mut [PackRef]);

/// Has what the server has, but says something else of where chunks lie.
struct Misleading {
    server: OnceLock<MemoryServer>,
    mislead: Mislead,
}

/// The first two chunks of a segment lie each where the other does.
fn swap(places: &mut [Option<ChunkPlace>], _: &mut [PackRef]) {
    places.swap(0, 1);
}

/// A chunk reaches past the end of its pack.
fn overreach(places: &mut [Option<ChunkPlace>], packs: &mut [PackRef]) {
    packs[0].pack_len += 4096;
    places[1].as_mut().unwrap().frame_len = 4096;
}

impl ChunkSource for Arc<Misleading> {
    fn origin(&self) -> String {
        "misleading".to_owned()
    }

    fn get<'a>(
        &'a self,
        path: &'a ObjectPath,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        let server = self.server.get().unwrap();
        let Object::Locator(segment) = path.object else { return server.get(path, range) };
        Box::pin(async move {
            let frame = get_whole(server, path, frame_len_max(MAX_LOCATOR_BYTES)).await?;
            let locator = Locator::decode(&frame, segment, &mut FrameDecoder::new().unwrap()).unwrap();
            let mut places: Vec<_> = (0..SEGMENT_CHUNKS).map(|at| locator.place(at)).collect();
            let mut packs = locator.packs().to_vec();
            (self.mislead)(&mut places, &mut packs);
            let wrong = Locator::new(segment, packs, places).unwrap();
            let frame = wrong.encode(&mut FrameEncoder::new().unwrap()).unwrap();
            Ok(stream::iter([Ok(frame.into())]).boxed())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_locator_of_one_source_is_replaced_by_anothers() {
    let cases: [(Mislead, OnMissing); 3] =
        [(swap, OnMissing::Wait), (swap, OnMissing::Fail), (overreach, OnMissing::Wait)];
    for (mislead, on_missing) in cases {
        let misleading = Arc::new(Misleading { server: OnceLock::new(), mislead });
        let rig = Rig::beside(4, on_missing, |_| Some(Arc::new(Arc::clone(&misleading)) as _));
        misleading.server.set(rig.server.clone()).unwrap_or_default();
        let rig = Arc::new(rig);
        for chunk in [1, 0, 2] {
            let landed = get_within(&rig, chunk as u64, Duration::from_secs(30)).await;
            assert_eq!(landed.unwrap(), rig.expected(chunk), "{on_missing:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_only_sources_locator_is_asked_for_again_when_it_was_wrong() {
    let rig = Arc::new(Rig::new(4, OnMissing::Wait));
    let segment = &rig.base.segments()[0];
    let path = ObjectPath { namespace: segment.namespace.clone(), object: Object::Locator(segment.id) };
    let right = get_whole(&rig.server, &path, frame_len_max(MAX_LOCATOR_BYTES)).await.unwrap();
    let misleading = Arc::new(Misleading { server: rig.server.clone().into(), mislead: swap });
    rig.server.store(&path, get_whole(&misleading, &path, frame_len_max(MAX_LOCATOR_BYTES)).await.unwrap());
    let reader = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move { rig.get(1).await }
    });
    while rig.fetcher.stats().damaged < u64::from(ROUNDS) {
        tokio::time::advance(Duration::from_millis(50)).await;
        tokio::task::yield_now().await;
    }
    assert!(!reader.is_finished());
    rig.server.store(&path, right);
    assert_eq!(within(reader, Duration::from_secs(30)).await.unwrap(), rig.expected(1));
}
