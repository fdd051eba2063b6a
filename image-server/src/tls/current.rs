//! The certificate in force, which can be replaced while the server runs.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Certificate, ServerTls, TlsError, load};
use crate::layout::DataDir;

/// What new connections are served with.
pub(crate) struct CurrentTls {
    certificate: PathBuf,
    key: PathBuf,
    /// Replaced whole: a session that began with the certificate of before is not resumed. Held for a look or a
    /// replacement, never over anything that waits.
    loaded: RwLock<Arc<ServerTls>>,
}

impl CurrentTls {
    /// Reads the certificate and key of a server's directory.
    ///
    /// # Errors
    /// Which of them cannot be used, and why.
    pub(crate) fn of(dir: &DataDir) -> Result<Arc<Self>, TlsError> {
        let (certificate, key) = (dir.certificate(), dir.certificate_key());
        let loaded = RwLock::new(Arc::new(load(&certificate, &key)?));
        Ok(Arc::new(Self { certificate, key, loaded }))
    }

    /// What a connection that begins now is served with.
    pub(crate) fn get(&self) -> Arc<ServerTls> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Has a server that runs take up another certificate.
#[derive(Clone)]
pub struct Reloader(pub(crate) Arc<CurrentTls>);

impl Reloader {
    /// Reads certificate and key again. Connections from now on get them, those there are go on as they began.
    ///
    /// # Errors
    /// Which of them cannot be used, and why; those of before then stay.
    pub fn reload(&self) -> Result<Certificate, TlsError> {
        let loaded = load(&self.0.certificate, &self.0.key)?;
        let certificate = loaded.certificate;
        *self.0.loaded.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
        Ok(certificate)
    }
}
