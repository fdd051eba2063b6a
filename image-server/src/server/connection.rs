//! One connection: TLS, then HTTP/2 or HTTP/1.1 as agreed in the handshake, each with its bounds.
//!
//! The protocol is taken from ALPN and never guessed from the first bytes: guessing waits for them without a limit.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::debug;

use crate::limits::Limits;

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
/// Time a peer has to take note that its connection ends, once nothing is in flight. One that sleeps never does.
const END_GRACE: Duration = Duration::from_secs(1);
/// What HTTP/1.1 reads at once; a request's head has its own limit below it.
const HTTP1_BUFFER_BYTES: usize = 128 << 10;

/// Serves one connection to its end.
pub(super) async fn serve(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    // Answers are written whole: waiting to fill a packet only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "cannot set TCP_NODELAY");
    }
    let stream = match timeout(limits.handshake_timeout, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return debug!(%error, "TLS handshake failed"),
        Err(_) => return debug!("TLS handshake took too long"),
    };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let served = if is_http2 {
        serve_http2(stream, router, &limits, stop).await
    } else {
        serve_http1(stream, router, &limits, stop).await
    };
    if let Err(error) = served {
        debug!(error = &error as &dyn std::error::Error, "connection ended");
    }
}

async fn serve_http1(
    stream: TlsStream<TcpStream>,
    router: Router,
    limits: &Limits,
    stop: CancellationToken,
) -> hyper::Result<()> {
    let service =
        service_fn(move |request: hyper::Request<Incoming>| router.clone().oneshot(request.map(Body::new)));
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
    stream: TlsStream<TcpStream>,
    router: Router,
    limits: &Limits,
    stop: CancellationToken,
) -> hyper::Result<()> {
    let activity = Arc::new(Activity::default());
    let requests = activity.clone();
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let mut request: Request = request.map(Body::new);
        request.extensions_mut().insert(requests.begin());
        router.clone().oneshot(request)
    });
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

/// The requests in flight on one connection.
#[derive(Debug, Default)]
struct Activity {
    in_flight: AtomicUsize,
    changed: Notify,
}

impl Activity {
    fn begin(self: &Arc<Self>) -> InUse {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_one();
        InUse(Arc::new(InFlight(self.clone())))
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
pub(crate) struct InUse(#[expect(dead_code, reason = "what matters is when it is dropped")] Arc<InFlight>);

#[derive(Debug)]
struct InFlight(Arc<Activity>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}
