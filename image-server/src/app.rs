//! What all requests share.

use std::sync::Arc;

use axum::body::Body;
use axum::http::HeaderMap;
use bytes::Bytes;
use chunk_format::PublicKey;
use tokio::sync::{AcquireError, Semaphore};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::database::Database;
use crate::database::tokens::UserId;
use crate::http::auth::TokenUses;
use crate::http::body::BodyReader;
use crate::http::error::ApiError;
use crate::limits::{JSON_MEMORY_BYTES, Limits, MAX_REQUEST_JSON_BYTES};
use crate::metrics::Counters;
use crate::shares::{Share, Shares};
use crate::storage::Storage;

/// One server's state: handles to what is stored, and the limits shared by all requests.
pub(crate) struct App {
    pub(crate) database: Database,
    pub(crate) storage: Storage,
    pub(crate) identity: PublicKey,
    pub(crate) limits: Limits,
    pub(crate) uses: TokenUses,
    pub(crate) counters: Arc<Counters>,
    /// Connections whose user is known.
    pub(crate) connections: Shares,
    /// Packs being received.
    uploads: Shares,
    /// Packs being received or waiting to be: each may have a window's worth of bytes with us already.
    uploads_begun: Shares,
    /// Bytes of bodies held in memory whole.
    body_memory: Shares,
    /// Bytes of JSON bodies: leases are renewed whatever is being uploaded.
    json_memory: Shares,
    /// Packs being decoded: as many as there are processors, whatever the number of uploads.
    pub(crate) decoders: Semaphore,
    /// Work that goes on when its client hangs up, and that a stopping server waits for.
    pub(crate) tasks: TaskTracker,
}

impl App {
    pub(crate) fn new(
        database: Database,
        storage: Storage,
        identity: PublicKey,
        limits: Limits,
    ) -> Arc<Self> {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Arc::new(Self {
            database,
            storage,
            identity,
            uses: TokenUses::default(),
            counters: Arc::default(),
            connections: Shares::new(limits.connections),
            uploads: Shares::new(limits.uploads),
            uploads_begun: Shares::new(limits.uploads.saturating_add(limits.uploads_waiting)),
            body_memory: Shares::new(limits.body_memory_bytes as usize),
            json_memory: Shares::new(JSON_MEMORY_BYTES),
            decoders: Semaphore::new(processors),
            tasks: TaskTracker::new(),
            limits,
        })
    }

    /// Waits for a user's turn to receive a pack; held until the turn is dropped.
    ///
    /// # Errors
    /// `Busy` when too many wait, or the turn does not come in time.
    pub(crate) async fn upload_turn(&self, user: UserId) -> Result<UploadTurn, ApiError> {
        let begun = self.uploads_begun.try_acquire(user).map_err(|_| ApiError::Busy(None))?;
        let turn = self.in_turn(self.uploads.acquire(user, 1)).await?;
        Ok(UploadTurn { _begun: begun, _turn: turn })
    }

    /// How many packs are being received, and how many wait to be.
    pub(crate) fn uploads(&self) -> (usize, usize) {
        let received = self.uploads.taken();
        (received, self.uploads_begun.taken().saturating_sub(received))
    }

    /// Reads a user's body into memory once there is room for it.
    ///
    /// # Errors
    /// `Busy` when there is no room in time; otherwise as [`BodyReader::next`].
    pub(crate) async fn read_whole(&self, user: UserId, body: BodyReader) -> Result<WholeBody, ApiError> {
        let len = usize::try_from(body.len_bytes()).unwrap_or(usize::MAX);
        let room = self.in_turn(self.body_memory.acquire(user, len)).await?;
        Ok(WholeBody { bytes: body.read_all().await?, _room: room })
    }

    /// Reads a user's body that is one JSON value. Such bodies have room of their own.
    ///
    /// # Errors
    /// As [`App::read_whole`]; `BadRequest`, naming the field.
    pub(crate) async fn read_json<T: serde::de::DeserializeOwned>(
        &self,
        user: UserId,
        what: &'static str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<T, ApiError> {
        self.read_json_within(user, what, MAX_REQUEST_JSON_BYTES, headers, body).await
    }

    /// The same of a body that has a limit of its own.
    ///
    /// # Errors
    /// As [`App::read_json`].
    pub(crate) async fn read_json_within<T: serde::de::DeserializeOwned>(
        &self,
        user: UserId,
        what: &'static str,
        limit_bytes: usize,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<T, ApiError> {
        let body = BodyReader::new(headers, body, what, limit_bytes, &self.limits)?;
        let len = usize::try_from(body.len_bytes()).unwrap_or(usize::MAX);
        let _room = self.in_turn(self.json_memory.acquire(user, len)).await?;
        let bytes = body.read_all().await?;
        serde_json::from_slice(&bytes).map_err(|error| ApiError::BadRequest(format!("the body: {error}")))
    }

    async fn in_turn<T>(&self, turn: impl Future<Output = Result<T, AcquireError>>) -> Result<T, ApiError> {
        let turn = timeout(self.limits.upload_wait, turn).await;
        turn.map_err(|_| ApiError::Busy(None))?.map_err(ApiError::internal)
    }

    /// Does work to its end even if the request that asked for it is given up meanwhile. Until then it holds what the request
    /// took of what all share: who hangs up has no more of it than who waits.
    ///
    /// # Errors
    /// Those of the work.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        &self,
        held: impl Send + 'static,
        work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        let work = async move {
            let _held = held;
            work.await
        };
        self.tasks.spawn(work).await.unwrap_or_else(|error| Err(ApiError::internal(error)))
    }
}

/// Leave to receive a pack.
pub(crate) struct UploadTurn {
    _begun: Share,
    _turn: Share,
}

/// A body in memory, and the room it takes there.
pub(crate) struct WholeBody {
    pub(crate) bytes: Bytes,
    _room: Share,
}
