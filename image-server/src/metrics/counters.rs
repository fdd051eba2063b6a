//! What is counted while a server runs. Nothing here is about one request, user or object.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use axum::http::{Method, StatusCode};

/// The classes of methods: `get` has HEAD, too.
const METHODS: [&str; 5] = ["get", "put", "post", "delete", "other"];
/// The classes of statuses: `none` is of requests that were given up before their answer.
const STATUSES: [&str; 5] = ["2xx", "3xx", "4xx", "5xx", "none"];

/// Counts since the server was opened.
#[derive(Debug)]
pub(crate) struct Counters {
    started: SystemTime,
    requests: [[AtomicU64; STATUSES.len()]; METHODS.len()],
    in_flight: AtomicU64,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    connections: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            started: SystemTime::now(),
            requests: Default::default(),
            in_flight: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        }
    }
}

impl Counters {
    /// A request has begun; [`Counters::end_request`] follows.
    pub(crate) fn begin_request(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// A request's answer is gone, or given up; the bytes are those of the bodies.
    pub(crate) fn end_request(
        &self,
        method: &Method,
        status: Option<StatusCode>,
        received_bytes: u64,
        sent_bytes: u64,
    ) {
        let method = match *method {
            Method::GET | Method::HEAD => 0,
            Method::PUT => 1,
            Method::POST => 2,
            Method::DELETE => 3,
            _ => 4,
        };
        let status = match status.map(|status| status.as_u16()) {
            Some(200..300) => 0,
            Some(300..400) => 1,
            Some(400..500) => 2,
            Some(500..600) => 3,
            _ => 4,
        };
        self.requests[method][status].fetch_add(1, Ordering::Relaxed);
        self.received_bytes.fetch_add(received_bytes, Ordering::Relaxed);
        self.sent_bytes.fetch_add(sent_bytes, Ordering::Relaxed);
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn started(&self) -> SystemTime {
        self.started
    }

    /// Requests that are over, by the classes of their method and status.
    pub(super) fn requests(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        METHODS.into_iter().zip(&self.requests).flat_map(|(method, counts)| {
            let counted = STATUSES.into_iter().zip(counts);
            counted.map(move |(status, count)| (method, status, count.load(Ordering::Relaxed)))
        })
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(super) fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

/// A connection while it is open.
#[derive(Debug)]
pub(crate) struct OpenConnection(Arc<Counters>);

impl OpenConnection {
    pub(crate) fn new(counters: &Arc<Counters>) -> Self {
        counters.connections.fetch_add(1, Ordering::Relaxed);
        Self(counters.clone())
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}
