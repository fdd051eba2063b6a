//! Reads the chunks of golden versions without a desktop.

use std::path::Path;
use std::sync::Arc;

use chunk_format::ChunkSize;
use tokio::runtime::Handle;

use crate::cache::{Cache, CacheConfig, CacheError};
use crate::desktop::Version;
use crate::disk::Base;
use crate::fetch::{Fetcher, OnMissing, SegmentStore};
use crate::source::ChunkSource;
use crate::state::{StateError, make_private_dir};

/// Why versions cannot be read here.
#[derive(Debug, thiserror::Error)]
pub enum ReadingError {
    /// The directory could not be prepared.
    #[error("{0}")]
    State(#[from] StateError),
    /// The cache could not be opened.
    #[error("{0}")]
    Cache(#[from] CacheError),
}

/// A cache and a fetcher in a directory of their own.
pub struct Reading {
    /// What was fetched.
    pub cache: Arc<Cache>,
    /// Fetches the rest.
    pub fetcher: Fetcher,
}

impl Reading {
    /// Prepares to read a version.
    ///
    /// # Errors
    /// [`ReadingError`].
    pub fn open(
        directory: &Path,
        version: &Version,
        source: Arc<dyn ChunkSource>,
    ) -> Result<Self, ReadingError> {
        for path in [directory, &directory.join("segments"), &directory.join("cache")] {
            make_private_dir(path)?;
        }
        let disks = &version.manifest.disks;
        let config = CacheConfig {
            chunk_size: disks.first().map_or(ChunkSize::DEFAULT, |disk| disk.chunk_size),
            limit_bytes: Some(disks.iter().map(|disk| disk.size.bytes()).sum()),
            owner: *version.id.as_bytes(),
        };
        let cache = Arc::new(Cache::open(&directory.join("cache"), &config)?);
        let segments = SegmentStore::new(directory.join("segments"));
        let fetcher =
            Fetcher::new(&Handle::current(), vec![source], Arc::clone(&cache), segments, OnMissing::Wait);
        Ok(Self { cache, fetcher })
    }
}

/// The disks of a golden version, nothing of them loaded.
pub fn disks_of(version: &Version) -> Vec<Arc<Base>> {
    let namespace = version.manifest.subject.namespace();
    version.manifest.disks.iter().map(|disk| Arc::new(Base::new(disk, |_| namespace.clone()))).collect()
}
