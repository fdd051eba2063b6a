//! Serves this machine's cache of a desktop to whoever has its address: read-only, until told to stop.
//!
//! The desktop's lock is held meanwhile. Nobody is contacted, and nothing of the desktop changes but for cached chunks that
//! are found to have rotted, which go, as at any reading.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use chunk_format::{ChunkSize, Name};
use tokio::net::TcpListener;

mod answer;
mod connection;
mod identity;

use crate::cache::{Cache, CacheError};
use crate::desktop::{DesktopError, DesktopStore};
use crate::fetch::SegmentStore;
use crate::session::{DesktopLock, SessionError};
use crate::source::{BadSource, CacheAddress};
use crate::state::StateDir;
use crate::volume::DirVolume;
use answer::Answers;
use identity::Identity;
pub use identity::IdentityError;

/// Why a cache cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The port cannot be had.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Nothing of the desktop is on this machine.
    #[error("nothing of desktop {desktop} is on this machine")]
    NotHere {
        /// The desktop.
        desktop: Name,
    },
    /// Another process has the desktop open.
    #[error(
        "desktop {desktop} is in use on this machine (pid {pid}), and its cache is served only while it is not"
    )]
    InUse {
        /// The desktop.
        desktop: Name,
        /// The process, as far as it is known.
        pid: String,
    },
    /// The lock could not be taken.
    #[error("{0}")]
    Lock(SessionError),
    /// The desktop's files failed.
    #[error("cannot read desktop {desktop} in {}", path.display())]
    Desktop {
        /// The desktop.
        desktop: Name,
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: DesktopError,
    },
    /// The cache could not be opened.
    #[error("{0}")]
    Cache(#[from] CacheError),
    /// The certificate or token failed.
    #[error("{0}")]
    Identity(#[from] IdentityError),
}

/// Takes a port to serve on.
///
/// # Errors
/// `Listen`.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
}

/// A desktop's cache, open to be served. The desktop's lock is held until this is dropped.
pub struct ServedCache {
    identity: Identity,
    cache: Arc<Cache>,
    segments: SegmentStore,
    sent: Arc<Sent>,
    _lock: DesktopLock,
}

/// What was sent to others.
#[derive(Debug, Default)]
pub struct Sent {
    /// Chunks.
    pub chunks: AtomicU64,
    /// Bytes of them, as they were sent.
    pub bytes: AtomicU64,
}

impl Sent {
    fn count(&self, chunks: u64, bytes: u64) {
        self.chunks.fetch_add(chunks, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl ServedCache {
    /// Opens the cache of a desktop. With `new_address` it gets another certificate and token, so that the addresses given
    /// before open nothing.
    ///
    /// # Errors
    /// [`ServeError`].
    pub fn open(state: &StateDir, desktop: &Name, new_address: bool) -> Result<Self, ServeError> {
        let path = state.desktop_path(desktop);
        let not_here = || ServeError::NotHere { desktop: desktop.clone() };
        if !path.exists() {
            return Err(not_here());
        }
        let lock = DesktopLock::take(&path, desktop).map_err(|error| match error {
            SessionError::InUse { desktop, pid } => ServeError::InUse { desktop, pid },
            error => ServeError::Lock(error),
        })?;
        let volume = || {
            DirVolume::open(&path)
                .map_err(|source| ServeError::Lock(SessionError::Lock { path: path.clone(), source }))
        };
        let failed = |source| match source {
            DesktopError::NotHere => not_here(),
            source => ServeError::Desktop { desktop: desktop.clone(), path: path.clone(), source },
        };
        let store = DesktopStore::read_only(Arc::new(volume()?)).map_err(failed)?;
        let record = store.record();
        let head = store.version(record.head).map_err(failed)?;
        let chunk_size = head.manifest.disks.first().map_or(ChunkSize::DEFAULT, |disk| disk.chunk_size);
        let cache = Cache::open_as_it_is(&path.join("cache"), chunk_size, record.id.as_bytes())?;
        let identity = match new_address {
            true => Identity::make(&volume()?)?,
            false => Identity::load_or_make(&volume()?)?,
        };
        let segments = SegmentStore::new(path.join("segments"));
        Ok(Self { identity, cache: Arc::new(cache), segments, sent: Arc::default(), _lock: lock })
    }

    /// The address for other machines, when it is served on this one.
    ///
    /// # Errors
    /// [`BadSource`], never for an address of a socket.
    pub fn address(&self, listens_on: SocketAddr) -> Result<CacheAddress, BadSource> {
        let host = SocketAddr::new(reachable(listens_on.ip()), listens_on.port());
        CacheAddress::new(&host.to_string(), self.identity.fingerprint, self.identity.token.clone())
    }

    /// Bytes of chunks it holds.
    pub fn held_bytes(&self) -> u64 {
        self.cache.stats().occupied * self.cache.chunk_size().bytes_u64()
    }

    /// What was sent to others so far, now and later.
    pub fn sent(&self) -> Arc<Sent> {
        Arc::clone(&self.sent)
    }

    /// Serves until this is dropped; answers under way are cut then, and whoever waits for them asks elsewhere.
    pub async fn serve(self, listener: TcpListener) {
        let Self { identity, cache, segments, sent, _lock } = self;
        let answers = Arc::new(Answers::new(&identity.token, cache, segments, sent));
        connection::accept(listener, identity.tls, answers).await;
    }
}

/// An address of this machine that others may reach, where it listens on all of them: the one it speaks to the world from.
/// Nothing is sent to find out.
fn reachable(listens_on: IpAddr) -> IpAddr {
    // Addresses kept for documentation (RFC 5737, RFC 3849): the way to them is the way to anywhere.
    let (any, far): (SocketAddr, SocketAddr) = match listens_on {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => {
            ((Ipv4Addr::UNSPECIFIED, 0).into(), (Ipv4Addr::new(192, 0, 2, 1), 9).into())
        }
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => {
            ((Ipv6Addr::UNSPECIFIED, 0).into(), (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9).into())
        }
        one => return one,
    };
    let found =
        UdpSocket::bind(any).and_then(|socket| socket.connect(far).and_then(|()| socket.local_addr()));
    match (found, listens_on) {
        (Ok(found), _) => found.ip(),
        // Without a way to anywhere only this machine is left.
        (Err(_), IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
        (Err(_), IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
    }
}

#[cfg(test)]
mod tests;
