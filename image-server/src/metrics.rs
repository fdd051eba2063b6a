//! A server's numbers for Prometheus, on a loopback port.
//!
//! Text format 0.0.4 over HTTP/1.1: one request a connection, answered and closed.

mod counters;
mod text;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::uri::Authority;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};
use tower::ServiceExt;

use crate::app::App;
use crate::tls::CurrentTls;

pub(crate) use counters::{Counters, OpenConnection};

/// The longest request head anyone reads, and how long a request and its answer may take.
const MAX_HEAD_BYTES: usize = 8 << 10;
/// Who asks at once: one that scrapes, and a few more. They hold descriptors that clients of the server need.
const MAX_CONNECTIONS: usize = 16;
const TIMEOUT: Duration = Duration::from_secs(10);
/// The pause after a failed accept, which mostly means that the process has no file descriptors left.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Why nothing can be scraped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The address can be reached from elsewhere.
    #[error("metrics are for this machine alone: {address} is no loopback address; use 127.0.0.1:PORT")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The port cannot be had.
    #[error("cannot listen on {address} for metrics: choose another port with --metrics")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Where a server's numbers come from.
pub struct Numbers {
    pub(crate) app: Arc<App>,
    pub(crate) tls: Arc<CurrentTls>,
    pub(crate) root: PathBuf,
    /// One scrape at a time: whoever asks more often than the database answers takes one of its connections, not all.
    pub(crate) turn: Mutex<()>,
}

/// Listens on a loopback address; port 0 for any.
///
/// # Errors
/// [`MetricsError`].
pub async fn listen(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    if !address.ip().is_loopback() {
        return Err(MetricsError::NotLoopback { address });
    }
    TcpListener::bind(address).await.map_err(|source| MetricsError::Listen { address, source })
}

/// Answers whoever asks, until it is dropped.
pub async fn serve(listener: TcpListener, numbers: Numbers) {
    let router = router(numbers);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            let _place = place;
            let service = service_fn(move |request: hyper::Request<Incoming>| {
                router.clone().oneshot(request.map(Body::new))
            });
            let answering = http1::Builder::new()
                .keep_alive(false)
                .max_buf_size(MAX_HEAD_BYTES)
                .serve_connection(TokioIo::new(stream), service);
            // Who hangs up has no use for the rest.
            let _ = tokio::time::timeout(TIMEOUT, answering).await;
        });
    }
}

fn router(numbers: Numbers) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .fallback(async || (StatusCode::NOT_FOUND, "the numbers are at /metrics\n"))
        .layer(from_fn(refuse_other_names))
        .with_state(Arc::new(numbers))
}

async fn scrape(State(numbers): State<Arc<Numbers>>) -> impl IntoResponse {
    let _turn = numbers.turn.lock().await;
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text::of(&numbers).await)
}

/// Answers what is asked of this machine by its own name: a web page elsewhere that lets its name point here asks by that
/// name.
async fn refuse_other_names(request: Request, next: Next) -> Response {
    match request.headers().get(HOST) {
        Some(host) if !is_this_machine(host) => {
            (StatusCode::FORBIDDEN, "ask for localhost\n").into_response()
        }
        _ => next.run(request).await,
    }
}

fn is_this_machine(host: &HeaderValue) -> bool {
    let authority = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok());
    authority.is_some_and(|authority| {
        let name = authority.host().trim_matches(['[', ']']);
        name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_names_of_its_own() {
        for host in ["localhost", "LocalHost:9100", "127.0.0.1:9100", "127.0.0.2", "[::1]:9100", "[::1]"] {
            assert!(is_this_machine(&HeaderValue::from_static(host)), "{host}");
        }
        for host in ["evil.example.org", "localhost.example.org", "192.0.2.1:9100", "[2001:db8::1]", "", "@"]
        {
            assert!(!is_this_machine(&HeaderValue::from_static(host)), "{host}");
        }
    }

    #[tokio::test]
    async fn other_addresses_are_refused() {
        let error = listen("0.0.0.0:0".parse().unwrap()).await.unwrap_err();
        assert!(matches!(error, MetricsError::NotLoopback { .. }), "{error}");
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        assert_ne!(listener.local_addr().unwrap().port(), 0);
    }
}
