use chunk_format::{Namespace, SEGMENT_CHUNKS};

use super::*;
use crate::upstream::MemoryServer;

const CHUNK: usize = 4096;

struct Bytes(Vec<u8>);

impl ReadChunk for Bytes {
    fn read_chunk(
        &self,
        _disk: usize,
        chunk: ChunkIndex,
        buf: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let start = usize::try_from(chunk.0)? * CHUNK;
        buf.copy_from_slice(&self.0[start..start + CHUNK]);
        Ok(())
    }
}

fn content(chunks: usize) -> Vec<u8> {
    (0..chunks)
        .flat_map(|chunk| {
            // Every seventh chunk is zeros, every fifth is the same.
            let value = if chunk % 7 == 0 {
                0
            } else if chunk % 5 == 0 {
                1
            } else {
                chunk + 2
            };
            u64::try_from(value).unwrap().to_le_bytes().repeat(CHUNK / 8)
        })
        .collect()
}

fn upload(server: &MemoryServer) -> Upload {
    let namespace: Namespace = "image/debian".parse().unwrap();
    Upload {
        pace: None,
        upstream: Arc::new(server.clone()),
        place: PresentIn { namespace, also: None },
        chunk_size: ChunkSize::new(CHUNK as u64).unwrap(),
        known_segments: Arc::default(),
        segments_elsewhere: Arc::default(),
        progress: Arc::default(),
        threads: 3,
        patience: Patience { attempts: 3, first_pause: Duration::from_millis(1) },
    }
}

fn work(chunks: usize) -> Vec<SegmentWork> {
    (0..chunks.div_ceil(SEGMENT_CHUNKS))
        .map(|segment| SegmentWork {
            disk: 0,
            index: SegmentIndex(u32::try_from(segment).unwrap()),
            before: None,
            positions: (0..(chunks - segment * SEGMENT_CHUNKS).min(SEGMENT_CHUNKS)).collect(),
            zeroed: Vec::new(),
        })
        .collect()
}

fn distinct(content: &[u8]) -> u64 {
    let ids: HashSet<ChunkId> =
        content.chunks(CHUNK).map(ChunkId::of_chunk).filter(|id| !id.is_zero()).collect();
    ids.len() as u64
}

#[tokio::test]
async fn each_distinct_chunk_is_sent_once_and_a_second_time_none() {
    let server = MemoryServer::default();
    let content = content(3000);
    let upload_1 = upload(&server);
    let done = upload_1.run(work(3000), Arc::new(Bytes(content.clone()))).await.unwrap();
    assert_eq!(done.len(), 3);
    assert_eq!(server.uploaded_chunks(), distinct(&content));
    assert_eq!(done[0].segment.chunks()[7], ChunkId::ZERO);
    let progress = &upload_1.progress;
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    assert_eq!(read(&progress.hashed_bytes), 3000 * CHUNK as u64);
    assert_eq!(read(&progress.new_bytes) + read(&progress.known_bytes), 3000 * CHUNK as u64);

    upload(&server).run(work(3000), Arc::new(Bytes(content.clone()))).await.unwrap();
    assert_eq!(server.uploaded_chunks(), distinct(&content));

    let requests = server.requests();
    let known = Upload {
        known_segments: Arc::new(done.iter().map(|done| done.segment.id()).collect()),
        ..upload(&server)
    };
    known.run(work(3000), Arc::new(Bytes(content))).await.unwrap();
    assert_eq!(server.requests(), requests, "what is known to be there is not asked for");
}

#[tokio::test]
async fn a_segment_of_zeros_takes_no_memory_no_look_and_no_request() {
    let server = MemoryServer::default();
    let work = (0..5000).map(|index| SegmentWork::of_zeros(0, SegmentIndex(index))).collect();
    // A look would be past the end.
    let done = upload(&server).run(work, Arc::new(Bytes(Vec::new()))).await.unwrap();
    assert_eq!((done.len(), server.requests()), (5000, 0));
    let zero = Segment::zero();
    assert!(done.iter().all(|done| std::ptr::eq(done.segment.chunks(), zero.chunks())));
}

#[tokio::test]
async fn few_chunks_of_many_segments_cost_no_more_questions_than_many_of_one() {
    let server = MemoryServer::default();
    let content = content(200 * SEGMENT_CHUNKS);
    let work = (0..200)
        .map(|index| SegmentWork { positions: vec![3, 700], ..SegmentWork::of_zeros(0, SegmentIndex(index)) })
        .collect();
    let upload = Upload { threads: 1, ..upload(&server) };
    let done = upload.run(work, Arc::new(Bytes(content.clone()))).await.unwrap();
    let ids: HashSet<SegmentId> =
        done.iter().map(|done| done.segment.id()).filter(|id| !id.is_zero()).collect();
    assert!(ids.len() > 100);
    // The chunks, a pack, the segments, and each of these.
    assert_eq!(server.requests(), 1 + 1 + 1 + ids.len() as u64);
    for (segment, done) in done.iter().enumerate() {
        let at = |at: usize| (segment * SEGMENT_CHUNKS + at) * CHUNK;
        for position in [3, 700] {
            let id = ChunkId::of_chunk(&content[at(position)..at(position + 1)]);
            assert_eq!(done.segment.chunks()[position], id);
        }
    }
}

/// Reads nothing that it was not told of, if it is to be told.
struct Told {
    content: Bytes,
    is_told: bool,
    expected: Mutex<HashSet<ChunkIndex>>,
}

impl ReadChunk for Told {
    fn read_chunk(
        &self,
        disk: usize,
        chunk: ChunkIndex,
        buf: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        assert_eq!(self.expected.lock().unwrap().contains(&chunk), self.is_told, "{chunk}");
        self.content.read_chunk(disk, chunk, buf)
    }

    fn expect(&self, chunks: &[(usize, ChunkIndex)]) {
        self.expected.lock().unwrap().extend(chunks.iter().map(|(_, chunk)| *chunk));
    }
}

#[tokio::test]
async fn what_is_read_next_may_be_fetched_before_unless_nobody_waits_for_it() {
    for pace in [None, Some(Arc::new(Pace::new(None)))] {
        let content = Bytes(content(3000));
        let told = Told { content, is_told: pace.is_none(), expected: Mutex::default() };
        let upload = Upload { pace, ..upload(&MemoryServer::default()) };
        upload.run(work(3000), Arc::new(told)).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_server_that_does_not_answer_has_is_not_known_and_more_uploads_of_one_sync_add_up() {
    let server = MemoryServer::default();
    server.lose_network_after(Some(0));
    let upload = upload(&server);
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed) / CHUNK as u64;
    let progress = &upload.progress;
    upload.run(work(100), Arc::new(Bytes(content(100)))).await.unwrap_err();
    assert_eq!((read(&progress.total_bytes), read(&progress.hashed_bytes)), (100, 100));
    assert_eq!((read(&progress.known_bytes), read(&progress.sent_raw_bytes)), (0, 0));
    server.lose_network_after(None);
    let again = Upload { progress: Arc::default(), ..upload.clone() };
    for _ in 0..2 {
        again.run(work(100), Arc::new(Bytes(content(100)))).await.unwrap();
    }
    let dealt_with = read(&again.progress.known_bytes) + read(&again.progress.sent_raw_bytes);
    assert_eq!((read(&again.progress.total_bytes), dealt_with), (200, 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_anywhere_continues() {
    let content = content(2500);
    let whole = MemoryServer::default();
    // One thread, so that as many requests are made each time: each thread ends with a pack of its own.
    let upload = |server: &MemoryServer| Upload { threads: 1, ..upload(server) };
    upload(&whole).run(work(2500), Arc::new(Bytes(content.clone()))).await.unwrap();
    for requests in 0..whole.requests() {
        let server = MemoryServer::default();
        server.lose_network_after(Some(requests));
        let broken = upload(&server).run(work(2500), Arc::new(Bytes(content.clone()))).await;
        assert!(broken.is_err(), "after {requests} requests");
        server.lose_network_after(None);
        upload(&server).run(work(2500), Arc::new(Bytes(content.clone()))).await.unwrap();
        assert_eq!(server.uploaded_chunks(), distinct(&content), "after {requests} requests");
    }
}

struct Changing(AtomicU64);

impl ReadChunk for Changing {
    fn read_chunk(
        &self,
        _disk: usize,
        _chunk: ChunkIndex,
        buf: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let value = self.0.fetch_add(1, Ordering::Relaxed);
        buf[..8].copy_from_slice(&(value + 1).to_le_bytes());
        Ok(())
    }
}

#[tokio::test]
async fn a_disk_that_changes_meanwhile_is_refused() {
    let server = MemoryServer::default();
    let error = upload(&server).run(work(10), Arc::new(Changing(AtomicU64::new(0)))).await.unwrap_err();
    assert!(matches!(error, UploadError::Changed { .. }), "{error}");
    assert!(server.objects().iter().all(|name| !name.contains("segments")));
}

#[derive(Debug, thiserror::Error)]
#[error("it fails")]
struct Failure {
    is_busy: bool,
    asked_pause: Duration,
}

impl Passing for Failure {
    fn passes(&self) -> bool {
        true
    }

    fn is_busy(&self) -> bool {
        self.is_busy
    }

    fn asked_pause(&self) -> Duration {
        self.asked_pause
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_is_waited_for_longer_than_one_that_is_away_but_not_for_ever() {
    let asked = std::cell::Cell::new(0);
    let asked_pause = Duration::from_secs(2);
    let failing = |is_busy, until| {
        asked.set(0);
        let asked = &asked;
        Patience::DEFAULT.retry(move || {
            asked.set(asked.get() + 1);
            std::future::ready(if asked.get() > until {
                Ok(())
            } else {
                Err(Failure { is_busy, asked_pause })
            })
        })
    };
    failing(true, 50).await.unwrap();
    assert!(failing(false, 50).await.is_err());
    assert_eq!(asked.get(), 6);
    assert!(failing(true, 10_000).await.is_err());
    assert!(asked.get() < 400, "{}", asked.get());
}

#[tokio::test(start_paused = true)]
async fn who_says_to_be_asked_again_at_once_is_asked_after_a_pause_all_the_same() {
    let first_pause = Patience::DEFAULT.first_pause;
    for is_busy in [true, false] {
        let mut moments = Vec::new();
        let asked = Patience::DEFAULT.retry(|| {
            moments.push(tokio::time::Instant::now());
            let failure = Failure { is_busy, asked_pause: Duration::ZERO };
            std::future::ready(if moments.len() > 50 { Ok(()) } else { Err(failure) })
        });
        assert_eq!(asked.await.is_ok(), is_busy, "who is away is not asked for as long");
        let is_paused = |pair: &[tokio::time::Instant]| pair[1] - pair[0] >= first_pause;
        assert!(moments.len() > 5 && moments.windows(2).all(is_paused), "{moments:?}");
    }
}
