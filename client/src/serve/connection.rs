//! Connections of other machines: TLS, then HTTP/2 or HTTP/1.1 as agreed in the handshake, each with its bounds.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::answer::{Answers, Peer};

/// Machines at once; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;
/// Requests at once on one of them.
const MAX_STREAMS: u32 = 128;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time to show the token once; who has none is not kept.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_BYTES: usize = 16 << 10;
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// What is kept of one answer until it is taken.
const SEND_BUFFER_BYTES: usize = 512 << 10;
const FRAME_BYTES: u32 = 64 << 10;
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause after a failed accept, which mostly means that the process has no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Serves connections for ever; dropping this ends all of them.
pub(super) async fn accept(listener: TcpListener, tls: Arc<ServerConfig>, answers: Arc<Answers>) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot take a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let (acceptor, answers) = (acceptor.clone(), Arc::clone(&answers));
        connections.spawn(async move {
            let _place = place;
            serve(stream, acceptor, answers).await;
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, answers: Arc<Answers>) {
    // Answers are written whole: waiting to fill a packet only delays them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let peer = Arc::<Peer>::default();
    let told = Arc::clone(&peer);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (answers, peer) = (Arc::clone(&answers), Arc::clone(&told));
        async move { Ok::<_, Infallible>(answers.answer(request, &peer).await) }
    });
    let io = TokioIo::new(stream);
    let connection = async move {
        if is_http2 {
            http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .max_concurrent_streams(MAX_STREAMS)
                .max_header_list_size(u32::try_from(HEAD_BYTES).unwrap_or(u32::MAX))
                .max_frame_size(FRAME_BYTES)
                .max_send_buf_size(SEND_BUFFER_BYTES)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .serve_connection(io, service)
                .await
        } else {
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_header_size(HEAD_BYTES)
                .serve_connection(io, service)
                .await
        }
    };
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => Some(ended),
        shown = timeout(TOKEN_TIMEOUT, peer.is_known.notified()) => match shown {
            Ok(()) => None,
            Err(_) => return tracing::debug!("a connection without the token was ended"),
        },
    };
    let ended = match ended {
        Some(ended) => ended,
        None => tokio::select! {
            ended = &mut connection => ended,
            () = peer.has_stalled.notified() => {
                return tracing::debug!("a connection that did not take its answer was ended");
            }
        },
    };
    if let Err(error) = ended {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended");
    }
}
