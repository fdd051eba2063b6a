//! What all requests share.

use std::sync::Arc;

use chunk_format::PublicKey;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::database::Database;
use crate::http::auth::TokenUses;
use crate::http::error::ApiError;
use crate::limits::Limits;
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
    /// Packs being decoded: as many as there are processors, whatever the number of uploads.
    pub(crate) decoders: Semaphore,
    /// Manifests in memory.
    pub(crate) commits: Semaphore,
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
            decoders: Semaphore::new(processors),
            commits: Semaphore::new(limits.commits),
            tasks: TaskTracker::new(),
            limits,
        })
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
