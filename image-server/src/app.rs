//! What all requests share.

use std::sync::Arc;

use axum::body::Body;
use axum::http::HeaderMap;
use bytes::Bytes;
use chunk_format::PublicKey;
use tokio::sync::{AcquireError, Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::database::Database;
use crate::http::auth::TokenUses;
use crate::http::body::BodyReader;
use crate::http::error::ApiError;
use crate::limits::{Limits, MAX_REQUEST_JSON_BYTES};
use crate::storage::Storage;

/// One server's state: handles to what is stored, and the limits shared by all requests.
pub(crate) struct App {
    pub(crate) database: Database,
    pub(crate) storage: Storage,
    pub(crate) identity: PublicKey,
    pub(crate) limits: Limits,
    pub(crate) uses: TokenUses,
    /// Packs being received.
    pub(crate) uploads: Semaphore,
    /// Packs being received or waiting to be: each may have a window's worth of bytes with us already.
    uploads_begun: Semaphore,
    /// Bytes of bodies held in memory whole.
    body_memory: Semaphore,
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
            uploads: Semaphore::new(limits.uploads),
            uploads_begun: Semaphore::new(limits.uploads.saturating_add(limits.uploads_waiting)),
            body_memory: Semaphore::new(limits.body_memory_bytes as usize),
            decoders: Semaphore::new(processors),
            tasks: TaskTracker::new(),
            limits,
        })
    }

    /// Waits for a turn to receive a pack; held until the turn is dropped.
    ///
    /// # Errors
    /// `Busy` when too many wait, or the turn does not come in time.
    pub(crate) async fn upload_turn(&self) -> Result<UploadTurn<'_>, ApiError> {
        let begun = self.uploads_begun.try_acquire().map_err(|_| ApiError::Busy(None))?;
        let turn = self.in_turn(self.uploads.acquire()).await?;
        Ok(UploadTurn { _begun: begun, _turn: turn })
    }

    /// Reads a body into memory once there is room for it.
    ///
    /// # Errors
    /// `Busy` when there is no room in time; otherwise as [`BodyReader::next`].
    pub(crate) async fn read_whole(&self, body: BodyReader) -> Result<WholeBody<'_>, ApiError> {
        // A body longer than all the room there is takes all of it.
        let len = u32::try_from(body.len_bytes()).unwrap_or(u32::MAX).min(self.limits.body_memory_bytes);
        let room = self.in_turn(self.body_memory.acquire_many(len)).await?;
        Ok(WholeBody { bytes: body.read_all().await?, _room: room })
    }

    /// Reads a body that is one JSON value.
    ///
    /// # Errors
    /// As [`App::read_whole`]; `BadRequest`, naming the field.
    pub(crate) async fn read_json<T: serde::de::DeserializeOwned>(
        &self,
        what: &'static str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<T, ApiError> {
        let body = BodyReader::new(headers, body, what, MAX_REQUEST_JSON_BYTES, &self.limits)?;
        let body = self.read_whole(body).await?;
        serde_json::from_slice(&body.bytes)
            .map_err(|error| ApiError::BadRequest(format!("the body: {error}")))
    }

    async fn in_turn<'a>(
        &self,
        turn: impl Future<Output = Result<SemaphorePermit<'a>, AcquireError>>,
    ) -> Result<SemaphorePermit<'a>, ApiError> {
        let turn = timeout(self.limits.upload_wait, turn).await;
        turn.map_err(|_| ApiError::Busy(None))?.map_err(ApiError::internal)
    }

    /// Does work to its end even if the request that asked for it is given up meanwhile.
    ///
    /// # Errors
    /// Those of the work.
    pub(crate) async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        self.tasks.spawn(work).await.unwrap_or_else(|error| Err(ApiError::internal(error)))
    }
}

/// Leave to receive a pack.
pub(crate) struct UploadTurn<'a> {
    _begun: SemaphorePermit<'a>,
    _turn: SemaphorePermit<'a>,
}

/// A body in memory, and the room it takes there.
pub(crate) struct WholeBody<'a> {
    pub(crate) bytes: Bytes,
    _room: SemaphorePermit<'a>,
}
