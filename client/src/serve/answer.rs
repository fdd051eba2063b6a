//! What other machines may ask, and the answers: chunks by their ids, which of them are missing, segments.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use chunk_format::{ChunkId, FrameEncoder, ID_BYTES, SegmentId};
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::error::Elapsed;
use tokio::time::timeout;

use super::Sent;
use crate::cache::Cache;
use crate::fetch::SegmentStore;
use crate::remote::{API_HEADER, API_VERSION};
use crate::source::CacheToken;
use crate::source::exchange::{
    MAX_CHUNKS, MAX_LOOKED_FOR, append_frame, append_not_here, decode_question, encode_missing,
};

/// Time for the whole of a question to arrive.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Questions that are read and answered at once, from all machines together; others wait.
const MAX_ANSWERS: usize = 32;
/// Bytes of chunks read and compressed at a time for one answer, one chunk at least. Two such pieces wait to be taken at most.
const PIECE_BYTES: usize = 512 << 10;
/// How long a piece may wait to be taken; then its connection is ended.
const UNTAKEN_TIMEOUT: Duration = Duration::from_secs(60);

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Answers requests. Reads are off the threads that drive connections, as many at once as there are processors.
pub(super) struct Answers {
    /// Of the token, so that comparing takes the same time wherever two differ.
    token_hash: [u8; 32],
    cache: Arc<Cache>,
    segments: SegmentStore,
    places: Arc<Semaphore>,
    readers: Arc<Semaphore>,
    encoders: Mutex<Vec<FrameEncoder>>,
    sent: Arc<Sent>,
}

/// What answers tell of the connection they are for.
#[derive(Default)]
pub(super) struct Peer {
    /// It showed the token.
    pub(super) is_known: Notify,
    /// It does not take what it asked for.
    pub(super) has_stalled: Notify,
}

/// Why a request is refused: status, code and sentence, as in `docs/api.md`.
struct Refusal(StatusCode, &'static str, String);

impl Answers {
    pub(super) fn new(
        token: &CacheToken,
        cache: Arc<Cache>,
        segments: SegmentStore,
        sent: Arc<Sent>,
    ) -> Self {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            token_hash: Sha256::digest(token.reveal()).into(),
            cache,
            segments,
            places: Arc::new(Semaphore::new(MAX_ANSWERS)),
            readers: Arc::new(Semaphore::new(processors)),
            encoders: Mutex::default(),
            sent,
        }
    }

    /// Answers a request.
    pub(super) async fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        peer: &Arc<Peer>,
    ) -> Response<Body> {
        let mut response = match self.judge(request, peer).await {
            Ok(response) => response,
            Err(Refusal(status, code, message)) => {
                tracing::info!(%status, message, "a request was refused");
                refused(status, code, &message)
            }
        };
        response.headers_mut().insert(API_HEADER, HeaderValue::from_static(API_VERSION));
        response
    }

    async fn judge(
        self: &Arc<Self>,
        request: Request<Incoming>,
        peer: &Arc<Peer>,
    ) -> Result<Response<Body>, Refusal> {
        let spoken = request.headers().get(API_HEADER);
        if let Some(spoken) = spoken.filter(|spoken| spoken.as_bytes() != API_VERSION.as_bytes()) {
            let message =
                format!("this cache is served with interface version {API_VERSION}, not {spoken:?}");
            return Err(Refusal(StatusCode::UPGRADE_REQUIRED, "api_version", message));
        }
        if !self.is_opened_by(request.headers()) {
            let message = "this cache is opened by another token".to_owned();
            return Err(Refusal(StatusCode::UNAUTHORIZED, "unauthorized", message));
        }
        peer.is_known.notify_one();
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| stopping())?;
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let segment = path.strip_prefix("/v1/cache/segments/");
        let allowed = match path {
            "/v1/cache/chunks" | "/v1/cache/missing" => Method::POST,
            "/v1/cache" => Method::GET,
            _ if segment.is_some() => Method::GET,
            _ => return Err(Refusal(StatusCode::NOT_FOUND, "not_found", "there is no such path".to_owned())),
        };
        if head.method != allowed {
            let message = format!("{path} is asked with {allowed}");
            return Err(Refusal(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message));
        }
        match (path, segment) {
            (_, Some(id)) => self.segment(id).await,
            ("/v1/cache/chunks", _) => {
                let ids = question(body, MAX_CHUNKS).await?;
                Ok(self.chunks(ids, place, Arc::clone(peer)))
            }
            ("/v1/cache/missing", _) => self.missing(question(body, MAX_LOOKED_FOR).await?).await,
            _ => Ok(whole(StatusCode::OK, b"ok\n".to_vec())),
        }
    }

    fn is_opened_by(&self, headers: &HeaderMap) -> bool {
        let shown =
            headers.get(header::AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
        shown.is_some_and(|token| <[u8; 32]>::from(Sha256::digest(token)) == self.token_hash)
    }

    async fn segment(self: &Arc<Self>, id: &str) -> Result<Response<Body>, Refusal> {
        let Ok(id) = id.parse::<SegmentId>() else {
            let message = "a segment's id is 64 lower-case hex digits".to_owned();
            return Err(Refusal(StatusCode::BAD_REQUEST, "bad_request", message));
        };
        match self.off_the_runtime(move |answers| answers.segments.load_frame(id)).await? {
            Some((_, frame)) => Ok(whole(StatusCode::OK, frame)),
            None => Err(Refusal(StatusCode::NOT_FOUND, "not_found", format!("segment {id} is not here"))),
        }
    }

    async fn missing(self: &Arc<Self>, ids: Vec<ChunkId>) -> Result<Response<Body>, Refusal> {
        let look = move |answers: &Self| ids.iter().map(|id| !answers.cache.contains(id)).collect::<Vec<_>>();
        let missing = self.off_the_runtime(look).await?;
        Ok(whole(StatusCode::OK, encode_missing(&missing)))
    }

    /// The chunks, a few at a time as whoever asked takes them.
    fn chunks(
        self: &Arc<Self>,
        ids: Vec<ChunkId>,
        place: OwnedSemaphorePermit,
        peer: Arc<Peer>,
    ) -> Response<Body> {
        let (sender, mut pieces) = mpsc::channel(1);
        let answers = Arc::clone(self);
        tokio::spawn(async move {
            let _place = place;
            if answers.send_chunks(ids, &sender).await.is_err() {
                peer.has_stalled.notify_one();
            }
        });
        let pieces = stream::poll_fn(move |context| pieces.poll_recv(context));
        let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(pieces)));
        mark_as_bytes(response.headers_mut());
        response
    }

    /// Reads chunks and sends them, until all are taken or nobody wants them any more.
    async fn send_chunks(
        self: &Arc<Self>,
        ids: Vec<ChunkId>,
        sender: &mpsc::Sender<io::Result<Frame<Bytes>>>,
    ) -> Result<(), Elapsed> {
        let at_once = (PIECE_BYTES / self.cache.chunk_size().bytes()).max(1);
        for group in ids.chunks(at_once) {
            let group = group.to_vec();
            let read = self.off_the_runtime(move |answers| answers.read(&group)).await;
            let read = read.map_err(|Refusal(_, _, message)| io::Error::other(message)).flatten();
            let is_last = read.is_err();
            let piece = read.map(|bytes| Frame::data(Bytes::from(bytes)));
            let is_cut = timeout(UNTAKEN_TIMEOUT, sender.send(piece)).await?.is_err();
            if is_last || is_cut {
                return Ok(());
            }
        }
        // There is room again when the last piece was taken, and an error when nobody wants it.
        timeout(UNTAKEN_TIMEOUT, sender.reserve()).await.map(drop)
    }

    /// A part of an answer. A chunk that has rotted is not there.
    fn read(&self, ids: &[ChunkId]) -> io::Result<Vec<u8>> {
        let kept = self.encoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut encoder = kept.map_or_else(FrameEncoder::for_sending, Ok).map_err(io::Error::other)?;
        let (mut answer, mut frame, mut chunks) = (Vec::new(), Vec::new(), 0);
        for id in ids {
            let Some(chunk) = self.cache.read_whole(id) else {
                append_not_here(&mut answer);
                continue;
            };
            frame.clear();
            encoder.encode_to(&chunk, &mut frame).map_err(io::Error::other)?;
            append_frame(&mut answer, &frame);
            chunks += 1;
        }
        self.encoders.lock().unwrap_or_else(PoisonError::into_inner).push(encoder);
        self.sent.count(chunks, answer.len() as u64);
        Ok(answer)
    }

    async fn off_the_runtime<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let reader = Arc::clone(&self.readers).acquire_owned().await.map_err(|_| stopping())?;
        let answers = Arc::clone(self);
        let worked = tokio::task::spawn_blocking(move || {
            let _reader = reader;
            work(&answers)
        });
        worked.await.map_err(|_| stopping())
    }
}

fn stopping() -> Refusal {
    Refusal(StatusCode::SERVICE_UNAVAILABLE, "busy", "it is being stopped".to_owned())
}

/// Reads a question about at most so many ids.
async fn question(body: Incoming, limit: usize) -> Result<Vec<ChunkId>, Refusal> {
    let bad = |message: String| Refusal(StatusCode::BAD_REQUEST, "bad_request", message);
    let arriving = Limited::new(body, limit * ID_BYTES).collect();
    let arrived = timeout(QUESTION_TIMEOUT, arriving).await.map_err(|_| {
        let message = format!("the question did not arrive within {} s", QUESTION_TIMEOUT.as_secs());
        Refusal(StatusCode::REQUEST_TIMEOUT, "too_slow", message)
    })?;
    let bytes = match arrived {
        Ok(bytes) => bytes.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            let message = format!("a question has at most {limit} ids");
            return Err(Refusal(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
        }
        Err(error) => return Err(bad(format!("the question did not arrive: {error}"))),
    };
    decode_question(&bytes, limit).map_err(|error| bad(error.to_string()))
}

fn whole(status: StatusCode, bytes: Vec<u8>) -> Response<Body> {
    let body = Full::new(Bytes::from(bytes)).map_err(|never: Infallible| match never {});
    let mut response = Response::new(BodyExt::boxed_unsync(body));
    *response.status_mut() = status;
    mark_as_bytes(response.headers_mut());
    response
}

fn mark_as_bytes(headers: &mut HeaderMap) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
}

fn refused(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = json!({ "error": { "code": code, "message": message } }).to_string();
    let mut response = whole(status, body.into_bytes());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheConfig;

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_gives_its_place_up() {
        let dir = tempfile::tempdir().unwrap();
        let chunk_size = chunk_format::ChunkSize::new(4096).unwrap();
        let config = CacheConfig { chunk_size, limit_bytes: Some(1 << 20), owner: [0; 32] };
        let cache = Arc::new(Cache::open(dir.path(), &config).unwrap());
        let segments = SegmentStore::new(dir.path().to_owned());
        let token = CacheToken::generate().unwrap();
        let answers = Arc::new(Answers::new(&token, cache, segments, Arc::default()));
        let place = Arc::clone(&answers.places).acquire_owned().await.unwrap();
        let peer = Arc::<Peer>::default();
        let ids = vec![ChunkId::of(b"absent"); MAX_CHUNKS];
        let untaken = answers.chunks(ids.clone(), place, Arc::clone(&peer));
        peer.has_stalled.notified().await;
        drop(untaken);

        let place = Arc::clone(&answers.places).acquire_owned().await.unwrap();
        let taken = answers.chunks(ids, place, Arc::clone(&peer)).into_body().collect().await.unwrap();
        assert_eq!(taken.to_bytes(), vec![0; MAX_CHUNKS * 4]);
        let all = u32::try_from(MAX_ANSWERS).unwrap();
        drop(answers.places.acquire_many(all).await.unwrap());
    }
}
