//! Makes the boot stream of a profile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use chunk_format::{
    BootStream, FormatError, ProfileEntry, STREAM_CONTENT_BYTES, STREAM_HISTORY_BYTES, StreamId,
    encode_stream_object,
};
use futures_util::stream::{StreamExt, TryStreamExt};

use crate::disk::Base;
use crate::fetch::{Class, FetchError, Fetcher};

/// Why a boot stream could not be made.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// A chunk could not be had.
    #[error("cannot read chunk {} of disk {}", entry.chunk, entry.disk)]
    Chunk {
        /// The chunk.
        entry: ProfileEntry,
        /// Why.
        #[source]
        source: Arc<FetchError>,
    },
    /// The profile names a disk that the version does not have.
    #[error("the profile names disk {disk}, which the version does not have")]
    NoSuchDisk {
        /// The disk.
        disk: u8,
    },
    /// zstd failed.
    #[error("cannot compress the boot stream")]
    Encode(#[source] FormatError),
}

/// How far the making of a boot stream is.
#[derive(Debug, Default)]
pub struct StreamProgress {
    /// Bytes of chunks in all.
    pub total_bytes: AtomicU64,
    /// Bytes compressed.
    pub done_bytes: AtomicU64,
    /// What they were compressed to.
    pub stream_bytes: AtomicU64,
}

/// Compresses a profile's chunks into the objects of a boot stream, on so many threads at once. Slow: some MB/s and
/// thread, and about 300 MB of memory each.
///
/// # Errors
/// [`StreamError`].
pub async fn encode_streams(
    fetcher: &Fetcher,
    disks: &[Arc<Base>],
    entries: &[ProfileEntry],
    threads: usize,
    progress: &Arc<StreamProgress>,
) -> Result<Vec<(BootStream, Bytes)>, StreamError> {
    let chunk_bytes = disks.first().map_or(1, |disk| disk.chunk_size().bytes());
    let per_object = (STREAM_CONTENT_BYTES / chunk_bytes).max(1);
    progress.total_bytes.store((entries.len() * chunk_bytes) as u64, Ordering::Relaxed);
    let objects = entries.chunks(per_object).scan(Vec::<Arc<Vec<ProfileEntry>>>::new(), |before, object| {
        let before_object = before.clone();
        before.push(Arc::new(object.to_vec()));
        if before.len() * per_object * chunk_bytes > STREAM_HISTORY_BYTES {
            before.remove(0);
        }
        Some((before_object, object))
    });
    futures_util::stream::iter(objects)
        .map(|(before, object)| async move {
            let mut history = Vec::new();
            for part in before {
                read(fetcher, disks, &part, &mut history).await?;
            }
            let mut content = Vec::with_capacity(object.len() * chunk_bytes);
            read(fetcher, disks, object, &mut content).await?;
            let len = content.len() as u64;
            let encoded = tokio::task::spawn_blocking(move || encode_stream_object(&history, &content)).await;
            let bytes = match encoded {
                Ok(bytes) => Bytes::from(bytes.map_err(StreamError::Encode)?),
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            };
            progress.done_bytes.fetch_add(len, Ordering::Relaxed);
            progress.stream_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            let stream = BootStream {
                id: StreamId::of(&bytes),
                len_bytes: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
                entries: u32::try_from(object.len()).unwrap_or(u32::MAX),
            };
            Ok((stream, bytes))
        })
        .buffered(threads.max(1))
        .try_collect()
        .await
}

async fn read(
    fetcher: &Fetcher,
    disks: &[Arc<Base>],
    entries: &[ProfileEntry],
    out: &mut Vec<u8>,
) -> Result<(), StreamError> {
    for entry in entries {
        let disk = disks.get(usize::from(entry.disk)).ok_or(StreamError::NoSuchDisk { disk: entry.disk })?;
        let chunk = fetcher
            .chunk(disk, entry.chunk, Class::Profile)
            .await
            .map_err(|source| StreamError::Chunk { entry: *entry, source })?;
        out.extend_from_slice(&chunk);
    }
    Ok(())
}
