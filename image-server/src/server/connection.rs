//! One connection: TLS, then HTTP/2 or HTTP/1.1 as agreed in the handshake, each with its bounds.
//!
//! The protocol is taken from ALPN and never guessed from the first bytes: guessing waits for them without a limit.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::debug;

use super::wire::Wire;
use crate::limits::Limits;
use crate::shares::Share;

const MAX_STREAMS: u32 = 128;
/// What one upload, and all of a connection's, may have on their way: at 100 ms of round trip 40 and 160 MB/s.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// What is kept of one answer until its client takes it.
const SEND_BUFFER_BYTES: usize = 512 << 10;
const FRAME_BYTES: u32 = 64 << 10;
/// Silent peers are asked whether they are there. The answer of one that sends a lot over a slow link queues behind that.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(60);
/// Time a peer has to take note that its connection ends, and to take what is kept of the last answers, once nothing is in
/// flight. One that sleeps never does.
const END_GRACE: Duration = Duration::from_secs(3);
/// What HTTP/1.1 reads at once; a request's head has its own limit below it.
const HTTP1_BUFFER_BYTES: usize = 128 << 10;

/// Serves one connection to its end.
pub(super) async fn serve(
    stream: TcpStream,
    from: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    // Answers are written whole: waiting to fill a packet only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "cannot set TCP_NODELAY");
    }
    let (wire, end) = Wire::new(stream);
    let stream = match timeout(limits.handshake_timeout, acceptor.accept(wire)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, %from, "TLS handshake failed"),
        Err(_) => return debug!(%from, "TLS handshake took too long"),
    };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let activity = Arc::new(Activity::new(from));
    let served = async {
        if is_http2 {
            serve_http2(stream, router, &limits, stop, &activity).await
        } else {
            serve_http1(stream, router, &limits, stop, &activity).await
        }
    };
    let served = tokio::select! {
        served = served => served,
        reason = activity.unwanted(&limits) => return debug!(reason, %from, "connection was ended"),
    };
    if let Err(error) = served {
        debug!(error = &error as &dyn std::error::Error, %from, "connection ended");
    }
    end.linger().await;
}

async fn serve_http1(
    stream: TlsStream<Wire>,
    router: Router,
    limits: &Limits,
    stop: CancellationToken,
    activity: &Arc<Activity>,
) -> hyper::Result<()> {
    let service = service(router, activity);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_headers(limits.head_fields)
        .max_header_size(limits.head_bytes)
        .max_buf_size(HTTP1_BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

async fn serve_http2(
    stream: TlsStream<Wire>,
    router: Router,
    limits: &Limits,
    stop: CancellationToken,
    activity: &Arc<Activity>,
) -> hyper::Result<()> {
    let service = service(router, activity);
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = stop.cancelled() => {}
        () = activity.idle(limits.idle_timeout) => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        ended = connection => ended,
        () = activity.idle(END_GRACE) => Ok(()),
    }
}

/// Answers a connection's requests, each of which knows what goes on there.
fn service(
    router: Router,
    activity: &Arc<Activity>,
) -> impl hyper::service::Service<
    hyper::Request<Incoming>,
    Response = Response,
    Error = Infallible,
    Future: Send + 'static,
> + use<> {
    let activity = activity.clone();
    service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(activity.begin());
        router.clone().oneshot(request)
    })
}

/// The requests in flight on one connection, and what its client makes of their answers.
#[derive(Debug)]
struct Activity {
    from: SocketAddr,
    in_flight: AtomicUsize,
    changed: Notify,
    /// A request had a valid token, and a place was free.
    is_known: Notify,
    /// Of all connections of its user. Held for a look and an insert, never over anything that waits.
    place: Mutex<Option<Share>>,
    /// Held for a look, never over anything that waits.
    offers: Mutex<Offers>,
}

/// Answers that could be sent on if their client took what is there.
#[derive(Debug)]
struct Offers {
    answers: usize,
    /// When something of any answer was taken, or first offered.
    changed: Instant,
}

impl Activity {
    fn new(from: SocketAddr) -> Self {
        let offers = Offers { answers: 0, changed: Instant::now() };
        Self {
            from,
            in_flight: AtomicUsize::new(0),
            changed: Notify::new(),
            is_known: Notify::new(),
            place: Mutex::default(),
            offers: Mutex::new(offers),
        }
    }

    fn offers(&self) -> MutexGuard<'_, Offers> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends when the connection is not to be kept, with the reason.
    async fn unwanted(&self, limits: &Limits) -> &'static str {
        if timeout(limits.token_timeout, self.is_known.notified()).await.is_err() {
            return "no request had a valid token";
        }
        loop {
            let (waits, since) = {
                let offers = self.offers();
                (offers.answers > 0, offers.changed)
            };
            let now = Instant::now();
            let since = if waits { since } else { now };
            let until = since + limits.untaken_timeout;
            if until <= now {
                return "its answers were not taken";
            }
            sleep_until(until).await;
        }
    }

    fn begin(self: &Arc<Self>) -> InUse {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
        InUse(Arc::new(InFlight { activity: self.clone(), is_offered: AtomicBool::new(false) }))
    }

    /// Ends when no request was in flight for this long.
    async fn idle(&self, limit: Duration) {
        loop {
            // A change between the look and the wait is kept by `Notify` for the wait.
            if self.in_flight.load(Ordering::Relaxed) > 0 {
                self.changed.notified().await;
            } else if timeout(limit, self.changed.notified()).await.is_err() {
                return;
            }
        }
    }
}

/// A request in flight, from its head to the end of its answer: while there is one, its connection is not idle.
#[derive(Clone, Debug)]
pub(crate) struct InUse(Arc<InFlight>);

impl InUse {
    /// The client's address.
    pub(crate) fn from(&self) -> SocketAddr {
        self.0.activity.from
    }

    /// The request has a valid token. Its connection takes a place of the user's, once; false when none is free, and then it
    /// is ended as one without a token is.
    pub(crate) fn is_known(&self, take_place: impl FnOnce() -> Option<Share>) -> bool {
        let activity = &self.0.activity;
        let mut place = activity.place.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_none() {
            *place = take_place();
            if place.is_some() {
                activity.is_known.notify_one();
            }
        }
        place.is_some()
    }

    /// Some of the answer is there to be taken; what was there before is taken.
    pub(crate) fn offer(&self) {
        self.0.set_offered(true);
    }

    /// All that was there of the answer is taken.
    pub(crate) fn is_taken(&self) {
        self.0.set_offered(false);
    }
}

#[derive(Debug)]
struct InFlight {
    activity: Arc<Activity>,
    is_offered: AtomicBool,
}

impl InFlight {
    fn set_offered(&self, is_offered: bool) {
        let mut offers = self.activity.offers();
        let was_offered = self.is_offered.swap(is_offered, Ordering::Relaxed);
        offers.answers = offers.answers + usize::from(is_offered) - usize::from(was_offered);
        offers.changed = Instant::now();
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.set_offered(false);
        self.activity.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.activity.changed.notify_one();
    }
}
