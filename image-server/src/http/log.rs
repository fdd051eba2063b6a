//! One line for each request, written when its answer has been sent or given up. It is counted then, too.
//!
//! What a line holds is all that is ever logged of a request: never its headers, its query or its body. `from` is the client's
//! address, `token` the number of its token in `satchel-server token --list`, if it has a valid one.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Error;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tracing::field::display;
use tracing::{debug, error, info};

use crate::http::auth::Caller;
use crate::http::error::LoggedCause;
use crate::metrics::Counters;
use crate::secret;
use crate::server::connection::InUse;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");
/// Longer paths are none of ours; the start is enough to see what they were.
const MAX_LOGGED_PATH_BYTES: usize = 200;

/// Names the request, lets it be answered, and logs it.
pub(crate) async fn log(State(counters): State<Arc<Counters>>, request: Request, next: Next) -> Response {
    let mut entry = Entry::new(&request, counters);
    let received = entry.received_bytes.clone();
    let request = request.map(|body| {
        Body::new(body.map_frame(move |frame: Frame<Bytes>| {
            let len = frame.data_ref().map_or(0, Bytes::len);
            received.fetch_add(len as u64, Ordering::Relaxed);
            frame
        }))
    });
    let mut response = next.run(request).await;
    if let Ok(id) = HeaderValue::try_from(entry.id.as_str()) {
        response.headers_mut().insert(HEADER, id);
    }
    entry.status = Some(response.status());
    entry.caller = response.extensions_mut().remove::<Caller>();
    entry.cause = response.extensions_mut().remove::<LoggedCause>();
    response.map(|inner| {
        entry.expected_bytes = inner.size_hint().exact();
        entry.offer(true);
        Body::new(LoggedBody { inner, entry })
    })
}

/// What is known of a request so far; written to the log when it goes.
struct Entry {
    id: String,
    method: Method,
    path: String,
    /// Where the request came from; absent when it came over no connection.
    from: Option<SocketAddr>,
    started: Instant,
    status: Option<StatusCode>,
    caller: Option<Caller>,
    cause: Option<LoggedCause>,
    received_bytes: Arc<AtomicU64>,
    sent_bytes: u64,
    expected_bytes: Option<u64>,
    ended: bool,
    /// Keeps the connection from counting as idle, and hears whether the answer is taken.
    in_use: Option<InUse>,
    counters: Arc<Counters>,
}

impl Entry {
    fn new(request: &Request, counters: Arc<Counters>) -> Self {
        counters.begin_request();
        let path = request.uri().path();
        let in_use: Option<InUse> = request.extensions().get().cloned();
        let end = path.len().min(MAX_LOGGED_PATH_BYTES);
        Self {
            id: request_id(),
            method: request.method().clone(),
            // Cut between characters: a path is ASCII, but that is the HTTP library's promise, not ours.
            path: path.get(..end).unwrap_or_default().to_owned(),
            from: in_use.as_ref().map(InUse::from),
            started: Instant::now(),
            status: None,
            caller: None,
            cause: None,
            received_bytes: Arc::default(),
            sent_bytes: 0,
            expected_bytes: None,
            ended: false,
            in_use,
            counters,
        }
    }

    /// Notes whether some of the answer is there that its client has not taken.
    fn offer(&self, is_offered: bool) {
        match &self.in_use {
            Some(in_use) if is_offered => in_use.offer(),
            Some(in_use) => in_use.is_taken(),
            None => {}
        }
    }

    /// Whether the answer went out whole. A HEAD's body, and that of a 304, is never asked for.
    fn is_whole(&self) -> bool {
        let bodiless = self.method == Method::HEAD || self.status == Some(StatusCode::NOT_MODIFIED);
        self.status.is_some() && (self.ended || bodiless || self.expected_bytes == Some(self.sent_bytes))
    }

    /// Reads that were answered as asked change nothing, and are many and alike. Asking what is missing is one.
    fn is_quiet(&self) -> bool {
        let reads = self.method == Method::GET || self.method == Method::HEAD;
        let asks = self.method == Method::POST && self.path.starts_with("/v1/missing/");
        let is_answered = self.status.is_some_and(|status| status.is_success() || status.is_redirection());
        (reads || asks) && is_answered
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let (received, sent) = (self.received_bytes.load(Ordering::Relaxed), self.sent_bytes);
        self.counters.end_request(&self.method, self.status, received, sent);
        let ms = self.started.elapsed().as_millis();
        let status = self.status.map_or(0, |status| status.as_u16());
        let (from, token) = (self.from.map(display), self.caller.as_ref().map(|caller| caller.token.0));
        let user = self.caller.as_ref().map_or("-", |caller| caller.user.as_str());
        let (id, method, path, whole) = (&self.id, &self.method, &self.path, self.is_whole());
        if let Some(cause) = &self.cause {
            let cause = cause.chain();
            error!(id, %method, path, status, ms, received, sent, user, token, from, whole, cause, "request failed");
        } else if self.is_quiet() {
            debug!(id, %method, path, status, ms, received, sent, user, token, from, whole, "request");
        } else {
            info!(id, %method, path, status, ms, received, sent, user, token, from, whole, "request");
        }
    }
}

/// 16 random hex digits. They need not be secret, only different; a system without randomness still answers.
fn request_id() -> String {
    let bytes: [u8; 8] = secret::random().unwrap_or_default();
    format!("{:016x}", u64::from_be_bytes(bytes))
}

/// An answer's body that counts what is taken from it.
struct LoggedBody {
    inner: Body,
    entry: Entry,
}

impl HttpBody for LoggedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        match &polled {
            Poll::Ready(None) => self.entry.ended = true,
            Poll::Ready(Some(Ok(frame))) => {
                self.entry.sent_bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
            }
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        // Asked for more: the client has taken, or has room for, what there was.
        self.entry.offer(matches!(polled, Poll::Ready(Some(Ok(_)))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
