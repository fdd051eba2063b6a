use chunk_format::{ChunkId, FrameDecoder, FrameEncoder, Namespace, Segment};
use futures_util::stream::TryStreamExt;
use reqwest::StatusCode;

use super::*;
use crate::cache::CacheConfig;
use crate::remote::{CacheHost, RemoteError};
use crate::source::exchange::{Answered, MAX_CHUNKS, MAX_LOOKED_FOR, encode_question};
use crate::source::{CacheSource, CacheToken, ChunkSource, FailureKind, Object, ObjectPath, get_whole};

const CHUNK: usize = 4096;

struct Rig {
    address: CacheAddress,
    segment: Segment,
    sent: Arc<Sent>,
    serving: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

/// Chunks that compress, and one that does not.
fn chunk(value: u32) -> (ChunkId, Vec<u8>) {
    let mut bytes: Vec<u8> = value.to_le_bytes().repeat(CHUNK / 4);
    if value == 3 {
        getrandom::fill(&mut bytes).unwrap();
    }
    (ChunkId::of_chunk(&bytes), bytes)
}

impl Rig {
    async fn start(chunks: &[(ChunkId, Vec<u8>)]) -> Self {
        Self::after(chunks, |_| {}).await
    }

    /// Serves a cache after something happened to its file.
    async fn after(chunks: &[(ChunkId, Vec<u8>)], happens: impl FnOnce(&std::path::Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volume = DirVolume::open(dir.path()).unwrap();
        let identity = Identity::load_or_make(&volume).unwrap();
        let chunk_size = ChunkSize::new(CHUNK as u64).unwrap();
        let config = CacheConfig { chunk_size, limit_bytes: Some(1 << 20), owner: [7; 32] };
        let cache = Cache::open(dir.path(), &config).unwrap();
        for (id, bytes) in chunks {
            cache.insert(*id, bytes).unwrap();
        }
        drop(cache);
        happens(&dir.path().join("cache.data"));
        let cache = Arc::new(Cache::open_as_it_is(dir.path(), chunk_size, &config.owner).unwrap());
        let segments = SegmentStore::new(dir.path().to_owned());
        let segment = Segment::new(chunks.iter().map(|(id, _)| *id).collect()).unwrap();
        segments.keep(segment.id(), &segment.encode(&mut FrameEncoder::new().unwrap()).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let address = CacheAddress::new(&host, identity.fingerprint, identity.token.clone()).unwrap();
        let sent = Arc::<Sent>::default();
        let answers = Arc::new(Answers::new(&identity.token, cache, segments, Arc::clone(&sent)));
        let serving = tokio::spawn(connection::accept(listener, identity.tls, answers));
        Self { address, segment, sent, serving, _dir: dir }
    }

    fn source(&self) -> CacheSource {
        CacheSource::new(&self.address).unwrap()
    }

    fn host(&self) -> CacheHost {
        let address = &self.address;
        CacheHost::new("cache".to_owned(), address.host(), address.fingerprint, address.token.reveal())
            .unwrap()
    }
}

async fn ask(source: &CacheSource, ids: &[ChunkId]) -> Vec<Option<Vec<u8>>> {
    let mut answers = source.chunks(ids, ChunkSize::new(CHUNK as u64).unwrap()).await.unwrap();
    let mut decoder = FrameDecoder::new().unwrap();
    let mut told = Vec::new();
    while let Some(answered) = answers.try_next().await.unwrap() {
        told.push(match answered {
            Answered::Frame(frame) => {
                let mut chunk = vec![0; CHUNK];
                decoder.decode_chunk(&frame, ids[told.len()], &mut chunk).unwrap();
                Some(chunk)
            }
            Answered::NotHere => None,
        });
    }
    assert_eq!(told.len(), ids.len());
    told
}

fn segment_path(rig: &Rig) -> ObjectPath {
    let namespace: Namespace = "image/debian".parse().unwrap();
    ObjectPath { namespace, object: Object::Segment(rig.segment.id()) }
}

#[tokio::test]
async fn chunks_are_handed_out_in_the_order_asked_and_what_lacks_is_said() {
    let chunks: Vec<_> = (1..40).map(chunk).collect();
    let rig = Rig::start(&chunks).await;
    let source = rig.source();
    let absent = ChunkId::of(b"absent");
    let mut ids: Vec<ChunkId> = chunks.iter().rev().map(|(id, _)| *id).collect();
    ids.insert(5, absent);
    ids.push(ChunkId::ZERO);
    let told = ask(&source, &ids).await;
    let mut expected: Vec<_> = chunks.iter().rev().map(|(_, bytes)| Some(bytes.clone())).collect();
    expected.insert(5, None);
    expected.push(None);
    assert_eq!(told, expected);
    let missing = source.missing(&ids).await.unwrap();
    assert_eq!(missing, expected.iter().map(Option::is_none).collect::<Vec<_>>());
    assert_eq!(rig.sent.chunks.load(Ordering::Relaxed), 39);
    let path = segment_path(&rig);
    let frame = get_whole(&source, &path, 1 << 20).await.unwrap();
    assert_eq!(
        Segment::decode(&frame, rig.segment.id(), &mut FrameDecoder::new().unwrap()).unwrap(),
        rig.segment
    );
    source.probe(&path).await.unwrap();
    rig.serving.abort();
}

#[tokio::test]
async fn a_chunk_that_has_rotted_is_not_there() {
    let chunks = [chunk(1), chunk(2), chunk(4)];
    let rig = Rig::after(&chunks, |data| {
        let mut bytes = std::fs::read(data).unwrap();
        bytes[CHUNK + 5] ^= 1;
        std::fs::write(data, bytes).unwrap();
    })
    .await;
    let ids = chunks.clone().map(|(id, _)| id);
    let [first, _, last] = chunks.map(|(_, bytes)| Some(bytes));
    assert_eq!(ask(&rig.source(), &ids).await, [first, None, last]);
}

#[tokio::test]
async fn without_the_token_nothing_is_told() {
    let chunks = [chunk(1)];
    let rig = Rig::start(&chunks).await;
    let mut other = rig.address.clone();
    other.token = CacheToken::generate().unwrap();
    let source = CacheSource::new(&other).unwrap();
    let error = source.chunks(&[chunks[0].0], ChunkSize::DEFAULT).await.err().unwrap();
    assert_eq!(error.kind, FailureKind::Refused);
    let said = crate::hint::chain(&error);
    assert!(said.contains("its token is not the one in its address"), "{said}");
    assert!(!said.contains(&other.token.reveal()), "{said}");
    for error in [
        source.missing(&[chunks[0].0]).await.err().unwrap(),
        source.probe(&segment_path(&rig)).await.err().unwrap(),
        get_whole(&source, &segment_path(&rig), 1 << 20).await.err().unwrap(),
    ] {
        assert_eq!(error.kind, FailureKind::Refused);
    }
}

#[tokio::test]
async fn another_certificate_is_told_apart_from_no_answer() {
    let rig = Rig::start(&[chunk(1)]).await;
    let mut other = rig.address.clone();
    other.fingerprint = "00".repeat(32).parse().unwrap();
    let source = CacheSource::new(&other).unwrap();
    let error = source.chunks(&[ChunkId::of(b"a")], ChunkSize::DEFAULT).await.err().unwrap();
    assert_eq!(error.kind, FailureKind::Untrusted);
    assert!(crate::hint::chain(&error).contains("its certificate is not the one in its address"));
    rig.serving.abort();
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    let error = rig.source().chunks(&[ChunkId::of(b"a")], ChunkSize::DEFAULT).await.err().unwrap();
    assert_eq!(error.kind, FailureKind::Unreachable);
}

#[tokio::test]
async fn what_is_no_question_is_refused() {
    let rig = Rig::start(&[chunk(1)]).await;
    let host = rig.host();
    let ids = |count: usize| encode_question(&vec![ChunkId::of(b"a"); count]);
    for (path, body, expected) in [
        ("/v1/cache/chunks", Vec::new(), StatusCode::BAD_REQUEST),
        ("/v1/cache/chunks", vec![0; 33], StatusCode::BAD_REQUEST),
        ("/v1/cache/chunks", ids(MAX_CHUNKS + 1), StatusCode::PAYLOAD_TOO_LARGE),
        ("/v1/cache/missing", ids(MAX_LOOKED_FOR + 1), StatusCode::PAYLOAD_TOO_LARGE),
        ("/v1/cache", Vec::new(), StatusCode::METHOD_NOT_ALLOWED),
        ("/v1/cache/nothing", Vec::new(), StatusCode::NOT_FOUND),
        ("/v1/desktops", Vec::new(), StatusCode::NOT_FOUND),
    ] {
        let Err(RemoteError::Refused { status, message, .. }) = host.post(path, body).await else {
            panic!("{path} was answered");
        };
        assert_eq!(status, expected, "{path}: {message}");
    }
    for (path, expected) in [
        ("/v1/cache/segments/../../desktop.json", StatusCode::NOT_FOUND),
        ("/v1/cache/segments/..%2fdesktop.json", StatusCode::BAD_REQUEST),
        ("/v1/cache/segments/00", StatusCode::BAD_REQUEST),
        ("/v1/cache/chunks", StatusCode::METHOD_NOT_ALLOWED),
    ] {
        let Err(RemoteError::Refused { status, .. }) = host.get(path).await else {
            panic!("{path} was answered");
        };
        assert_eq!(status, expected, "{path}");
    }
    assert_eq!(host.post("/v1/cache/chunks", ids(MAX_CHUNKS)).await.unwrap().status(), StatusCode::OK);
}

#[test]
fn a_machine_without_the_desktop_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    let desktop: Name = "work".parse().unwrap();
    assert!(matches!(ServedCache::open(&state, &desktop, false), Err(ServeError::NotHere { .. })));
    assert!(!state.desktop_path(&desktop).exists());
}

#[test]
fn an_address_to_listen_on_is_the_one_to_reach_unless_it_is_all_of_them() {
    let one: IpAddr = "127.0.0.1".parse().unwrap();
    assert_eq!(reachable(one), one);
    assert!(!reachable(Ipv4Addr::UNSPECIFIED.into()).is_unspecified());
    assert!(!reachable(Ipv6Addr::UNSPECIFIED.into()).is_unspecified());
}
