//! A desktop's numbers for Prometheus, on a loopback port.
//!
//! Text format 0.0.4 over a minimum of HTTP/1.1: one request a connection, answered and closed.

use std::fmt::Write;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::session::Session;
use crate::status::DesktopStatus;

/// The longest request head anyone reads, and how long it may take.
const MAX_HEAD_BYTES: usize = 8 << 10;
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// Why nothing can be scraped.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The address can be reached from elsewhere.
    #[error("metrics are for this machine alone: {address} is no loopback address; use 127.0.0.1:PORT")]
    NotLoopback {
        /// The address.
        address: SocketAddr,
    },
    /// The port cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
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
pub async fn serve(listener: TcpListener, session: Arc<Session>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, for example: it passes.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let session = Arc::clone(&session);
        tokio::spawn(async move {
            // Who hangs up has no use for the rest.
            let _ = tokio::time::timeout(HEAD_TIMEOUT, answer(stream, &session)).await;
        });
    }
}

async fn answer(mut stream: TcpStream, session: &Session) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > MAX_HEAD_BYTES || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let head = String::from_utf8_lossy(&head);
    let (status, body) = match judge(&head) {
        Ok(()) => match DesktopStatus::of_open(session, None) {
            Ok(status) => ("200 OK", text(&status)),
            Err(error) => ("500 Internal Server Error", format!("{error}\n")),
        },
        Err(refusal) => refusal,
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
fn judge(head: &str) -> Result<(), (&'static str, String)> {
    let mut lines = head.lines();
    let mut request = lines.next().unwrap_or_default().split(' ');
    if request.next() != Some("GET") {
        return Err(("405 Method Not Allowed", "only GET\n".to_owned()));
    }
    if request.next().is_none_or(|path| path.split('?').next() != Some("/metrics")) {
        return Err(("404 Not Found", "the numbers are at /metrics\n".to_owned()));
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
        let address = name.trim_matches(['[', ']']);
        name.eq_ignore_ascii_case("localhost") || address.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    };
    match name {
        Some(name) if !is_this_machine(name) => Err(("403 Forbidden", "ask for localhost\n".to_owned())),
        _ => Ok(()),
    }
}

/// The numbers.
fn text(status: &DesktopStatus) -> String {
    let mut out = String::new();
    let desktop = status.desktop.as_str();
    let mut family = |name: &str, kind: &str, help: &str, values: &[(String, f64)]| {
        // Writing into a string does not fail.
        let _ = writeln!(out, "# HELP satchel_{name} {help}\n# TYPE satchel_{name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(out, "satchel_{name}{{desktop=\"{desktop}\"{labels}}} {value}");
        }
    };
    #[expect(clippy::cast_precision_loss, reason = "Prometheus counts in floating point")]
    let number = |value: u64| value as f64;
    let of_disks = |value: fn(&crate::status::DiskStatus) -> Option<f64>| -> Vec<(String, f64)> {
        let disks = status.disks.iter();
        disks.filter_map(|disk| Some((format!(",disk=\"{}\"", disk.role.as_str()), value(disk)?))).collect()
    };
    #[expect(clippy::cast_precision_loss, reason = "Prometheus counts in floating point")]
    {
        family(
            "disk_size_bytes",
            "gauge",
            "Size of the disk.",
            &of_disks(|disk| Some(disk.size_bytes as f64)),
        );
        family(
            "disk_unsynced_bytes",
            "gauge",
            "Bytes written here that no committed version holds.",
            &of_disks(|disk| Some(disk.unsynced_bytes as f64)),
        );
        family("disk_reads_total", "counter", "Reads.", &of_disks(|disk| Some(disk.activity?.reads as f64)));
        family(
            "disk_read_bytes_total",
            "counter",
            "Bytes read.",
            &of_disks(|disk| Some(disk.activity?.read_bytes as f64)),
        );
        family(
            "disk_missed_reads_total",
            "counter",
            "Reads that waited for a fetch.",
            &of_disks(|disk| Some(disk.activity?.missed_reads as f64)),
        );
        family(
            "disk_stall_seconds_total",
            "counter",
            "Time reads waited, summed over reads.",
            &of_disks(|disk| Some(disk.activity?.stall_ms as f64 / 1000.0)),
        );
        family(
            "disk_written_bytes_total",
            "counter",
            "Bytes written.",
            &of_disks(|disk| Some(disk.activity?.written_bytes as f64)),
        );
        family(
            "disk_flushes_total",
            "counter",
            "Flushes.",
            &of_disks(|disk| Some(disk.activity?.flushes as f64)),
        );
        family(
            "disk_stored_bytes",
            "gauge",
            "Bytes below the changes that are not zeros, as far as it is known here.",
            &of_disks(|disk| Some(disk.local?.stored_bytes as f64)),
        );
        family(
            "disk_local_bytes",
            "gauge",
            "Those of them that are on this machine.",
            &of_disks(|disk| Some(disk.local?.local_bytes as f64)),
        );
    }
    if let Some(live) = &status.live {
        let one = |value: f64| vec![(String::new(), value)];
        family("link_up", "gauge", "Whether the sources answer.", &one(f64::from(u8::from(live.online))));
        let rate = number(live.link.rate_bytes_per_s);
        family("link_rate_bytes_per_second", "gauge", "The rate the link was seen to carry.", &one(rate));
        let distance = number(live.link.distance_us) / 1e6;
        family("link_distance_seconds", "gauge", "The shortest time to an answer.", &one(distance));
        family("fetched_bytes_total", "counter", "Bytes fetched.", &one(number(live.fetched_bytes)));
        family("fetched_chunks_total", "counter", "Chunks fetched.", &one(number(live.fetched_chunks)));
        family("requests_total", "counter", "Requests made.", &one(number(live.requests)));
        family(
            "damaged_total",
            "counter",
            "Answers that were wrong and not used.",
            &one(number(live.damaged)),
        );
        family("failures_total", "counter", "Requests that failed otherwise.", &one(number(live.failures)));
        family("queued_chunks", "gauge", "Chunks that wait for a request.", &one(number(live.queued_chunks)));
        family("in_flight_chunks", "gauge", "Chunks on their way.", &one(number(live.in_flight_chunks)));
        let used = number(live.foreseen.used);
        family("foreseen_used_total", "counter", "Chunks fetched ahead that were read since.", &one(used));
        let wasted = number(live.foreseen.wasted);
        family(
            "foreseen_wasted_total",
            "counter",
            "Chunks fetched ahead that were evicted unread.",
            &one(wasted),
        );
        let unread = number(live.foreseen.unread);
        family(
            "foreseen_unread_chunks",
            "gauge",
            "Chunks fetched ahead that nobody has read yet.",
            &one(unread),
        );
        family("cached_bytes", "gauge", "Bytes of chunks in the cache.", &one(number(live.cached_bytes)));
    }
    out
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
