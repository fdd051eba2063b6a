//! What one client may ask of the server, and for how long.

use std::time::Duration;

/// Bounds on what clients may use. The defaults are those of `docs/api.md`; tests shorten the times.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections open at once; more wait in the kernel's queue. One user has a quarter at most.
    pub connections: usize,
    /// Bytes of a request's head.
    pub head_bytes: usize,
    /// Header fields of a request.
    pub head_fields: usize,
    /// Time to finish the TLS handshake.
    pub handshake_timeout: Duration,
    /// Time from the handshake to the first request with a valid token; `/healthz` is answered in it without one.
    pub token_timeout: Duration,
    /// Time to send a request's head; on HTTP/1.1 also the time an idle connection is kept.
    pub head_timeout: Duration,
    /// Time an HTTP/2 connection is kept without a request.
    pub idle_timeout: Duration,
    /// Longest time in which nothing is taken of any answer of a connection, while there is something to take.
    pub untaken_timeout: Duration,
    /// Longest pause in a request's body.
    pub body_pause: Duration,
    /// Time a body may take beside what its length allows at [`Limits::body_rate`].
    pub body_grace: Duration,
    /// Slowest mean rate of a body, bytes per second.
    pub body_rate: u32,
    /// Packs being received at once. One user has a quarter at most of this, of uploads that wait and of the memory for bodies.
    pub uploads: usize,
    /// Time an upload, or a body, waits for its turn before it is told that the server is busy.
    pub upload_wait: Duration,
    /// Uploads that may wait for their turn; more are told at once.
    pub uploads_waiting: usize,
    /// Bytes of all bodies that are held in memory whole: questions, segments, manifests, not JSON. More wait as uploads do.
    pub body_memory_bytes: u32,
    /// Time requests in flight have to finish when the server stops.
    pub shutdown_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 1024,
            head_bytes: 16 << 10,
            head_fields: 64,
            handshake_timeout: Duration::from_secs(10),
            // Longer than a busy database may take to look a token up.
            token_timeout: Duration::from_secs(30),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(300),
            untaken_timeout: Duration::from_secs(60),
            body_pause: Duration::from_secs(30),
            body_grace: Duration::from_secs(60),
            body_rate: 8 << 10,
            uploads: 16,
            upload_wait: Duration::from_secs(10),
            uploads_waiting: 64,
            body_memory_bytes: 64 << 20,
            shutdown_grace: Duration::from_secs(10),
        }
    }
}

/// The longest stored segment, bytes: 32 KiB of ids and the coding byte.
pub(crate) const MAX_SEGMENT_FRAME_BYTES: usize = chunk_format::frame_len_max(chunk_format::SEGMENT_BYTES);
/// Ids in one missing question.
pub(crate) const MAX_MISSING_IDS: usize = 65_536;
/// Namespaces one request may name beside its own.
pub(crate) const MAX_ALSO: usize = 8;
/// The longest JSON body of a request, bytes.
pub(crate) const MAX_REQUEST_JSON_BYTES: usize = 16 << 10;
/// The longest retention policy, bytes.
pub(crate) const MAX_POLICY_JSON_BYTES: usize = 1024;
/// Bytes of all JSON bodies that are held in memory: 512 of the longest. One user has a quarter at most.
pub(crate) const JSON_MEMORY_BYTES: usize = 8 << 20;
/// The longest machine's name, bytes: as in a manifest.
pub(crate) const MAX_MACHINE_BYTES: usize = 128;
/// The longest that a client may say, of a start or why it does not hand over, bytes.
pub(crate) const MAX_SAID_BYTES: usize = 1000;
/// Versions in one listing.
pub(crate) const MAX_LISTED_VERSIONS: u32 = 100;
/// The longest bearer token looked at, bytes; ours have 51.
pub(crate) const MAX_TOKEN_BYTES: usize = 256;
