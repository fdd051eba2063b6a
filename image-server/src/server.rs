//! A server: opened on a directory, then serving a listener until it is told to stop.

mod accept;
pub(crate) mod connection;
mod wire;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use chunk_format::PublicKey;
use object_store::ObjectStore;
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::database::{Database, DatabaseError, packs};
use crate::identity;
use crate::layout::{DataDir, LayoutError};
use crate::limits::Limits;
use crate::metrics::Numbers;
use crate::routes;
use crate::storage::{Opening, Patience, Storage, StorageError};
use crate::tls::{Certificate, CurrentTls, Fingerprint, Reloader, TlsError};

/// Uploads that were cut short are removed this long after their last byte: any upload has ended by then.
pub(crate) const STAGING_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a server cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The database cannot be used.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The object store cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// How a server is run, beside what its directory says.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// What clients may use.
    pub limits: Limits,
    /// Where objects lie, when not where the directory says. It must be durable by itself, as S3 is.
    pub store: Option<Arc<dyn ObjectStore>>,
}

/// An opened server.
pub struct Server {
    app: Arc<App>,
    tls: Arc<CurrentTls>,
    root: PathBuf,
}

/// The certificate in the directory of a server: what one that is started now has, or one that reads it again.
///
/// # Errors
/// `Layout` or `Tls`.
pub fn certificate(root: &Path) -> Result<Certificate, ServerError> {
    Ok(Certificate::read(&DataDir::open(root)?.certificate())?)
}

impl Server {
    /// Opens the server in a directory that [`crate::init()`] made.
    ///
    /// Several servers may be open on one directory: what they share is in the database and the object store.
    ///
    /// # Errors
    /// Names what of the directory cannot be used.
    pub async fn open(root: &Path, config: Config) -> Result<Self, ServerError> {
        let dir = DataDir::open(root)?;
        let tls = CurrentTls::of(&dir)?;
        let identity = identity::read(&dir.identity_key())?.public();
        let lock = dir.lock()?;
        let database = Database::open(&dir.database()).await?;
        database.check_writable(&dir.database()).await?;
        drop(lock);
        let has_packs = packs::any_counts(database.readers()).await?;
        let opening = Opening { patience: Patience::OfServers, has_packs, marks: true };
        let storage = match config.store {
            Some(store) => Storage::remote(store),
            None => Storage::of(&dir, &identity, opening).await?,
        };
        let swept = storage.sweep_staging(STAGING_KEPT).await?;
        if swept.files > 0 {
            tracing::info!(files = swept.files, bytes = swept.bytes, "removed uploads that were cut short");
        }
        Ok(Self { app: App::new(database, storage, identity, config.limits), tls, root: root.to_owned() })
    }

    /// What clients check the certificate by.
    pub fn fingerprint(&self) -> Fingerprint {
        self.tls.get().certificate.fingerprint
    }

    /// What has the server read its certificate again while it serves.
    pub fn reloader(&self) -> Reloader {
        Reloader(self.tls.clone())
    }

    /// The server's identity, which outlives its certificates.
    pub fn identity(&self) -> PublicKey {
        self.app.identity
    }

    /// What [`crate::metrics::serve`] tells of the server while it serves.
    pub fn numbers(&self) -> Numbers {
        Numbers {
            app: self.app.clone(),
            tls: self.tls.clone(),
            root: self.root.clone(),
            turn: Mutex::default(),
        }
    }

    /// The whole interface, to be asked without a socket.
    pub fn router(&self) -> Router {
        routes::router(self.app.clone())
    }

    /// Serves connections until `stop` is cancelled; then lets requests in flight finish, for as long as
    /// [`Limits::shutdown_grace`] allows, and closes the database.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let Self { app, tls, .. } = self;
        accept::run(&app, &tls, routes::router(app.clone()), listener, stop).await;
        app.tasks.close();
        // Each of these tasks is short; a store that hangs must not keep the process for ever.
        let finished = tokio::time::timeout(app.limits.shutdown_grace, app.tasks.wait()).await;
        if finished.is_err() {
            tracing::warn!("stopped with work unfinished; what was answered is stored");
        }
        app.database.close().await;
    }
}
