//! A server's numbers for Prometheus, on a loopback port.
//!
//! Text format 0.0.4 over a minimum of HTTP/1.1: one request a connection, answered and closed.

mod counters;
mod text;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};

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
    let numbers = Arc::new(numbers);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        let numbers = numbers.clone();
        tokio::spawn(async move {
            let _place = place;
            // Who hangs up has no use for the rest.
            let _ = tokio::time::timeout(TIMEOUT, answer(stream, &numbers)).await;
        });
    }
}

async fn answer(mut stream: TcpStream, numbers: &Numbers) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > MAX_HEAD_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let (status, body) = match judge(&String::from_utf8_lossy(&head)) {
        Ok(()) => {
            let _turn = numbers.turn.lock().await;
            ("200 OK", text::of(numbers).await)
        }
        Err((status, why)) => (status, why.to_owned()),
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; version=0.0.4\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(answer.as_bytes()).await?;
    stream.shutdown().await
}

/// Whether a request is one for the metrics, asked of this machine by its own name: a web page elsewhere that lets its
/// name point here asks by that name.
fn judge(head: &str) -> Result<(), (&'static str, &'static str)> {
    let mut lines = head.lines();
    let mut request = lines.next().unwrap_or_default().split(' ');
    if request.next() != Some("GET") {
        return Err(("405 Method Not Allowed", "only GET\n"));
    }
    if request.next().is_none_or(|path| path.split('?').next() != Some("/metrics")) {
        return Err(("404 Not Found", "the numbers are at /metrics\n"));
    }
    let host = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("host").then(|| value.trim())
    });
    let name = host.map(|host| match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    });
    let is_this_machine = |name: &str| {
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    match name {
        Some(name) if !is_this_machine(name) => Err(("403 Forbidden", "ask for localhost\n")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_answered() {
        let ask = |line: &str, host: &str| {
            judge(&format!("{line}\r\nHost: {host}\r\n\r\n")).map_err(|(status, _)| status)
        };
        for host in ["localhost", "LocalHost:9100", "127.0.0.1:9100", "127.0.0.2", "[::1]:9100", "[::1]"] {
            assert_eq!(ask("GET /metrics HTTP/1.1", host), Ok(()), "{host}");
        }
        assert_eq!(ask("GET /metrics HTTP/1.1", "evil.example.org"), Err("403 Forbidden"));
        assert_eq!(ask("GET / HTTP/1.1", "localhost"), Err("404 Not Found"));
        assert_eq!(ask("POST /metrics HTTP/1.1", "localhost"), Err("405 Method Not Allowed"));
    }

    #[tokio::test]
    async fn other_addresses_are_refused() {
        let error = listen("0.0.0.0:0".parse().unwrap()).await.unwrap_err();
        assert!(matches!(error, MetricsError::NotLoopback { .. }), "{error}");
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        assert_ne!(listener.local_addr().unwrap().port(), 0);
    }
}
