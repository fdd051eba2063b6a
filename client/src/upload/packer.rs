//! Packs on their way to the server: a few at once, so that memory stays bounded and the link full.

use std::sync::Arc;

use chunk_format::{PackBuilder, SealedPack};
use futures_util::stream::{StreamExt, TryStreamExt, unfold};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Upload, UploadError, UploadProgress};

/// Packs uploaded at once.
const PACK_UPLOADS: usize = 4;
/// Bytes after which a pack is sent off that nobody waits for: so much goes out at once before others have the link.
const PACED_PACK_BYTES: usize = 1 << 20;

/// Takes sealed packs from worker threads.
#[derive(Clone)]
pub(super) struct PackSink {
    packs: mpsc::Sender<SealedPack>,
}

/// The uploads that take packs from the sinks.
pub(super) struct PackUploads {
    task: JoinHandle<Result<(), UploadError>>,
}

impl PackSink {
    pub(super) fn start(upload: &Upload) -> (Self, PackUploads) {
        let (packs, queue) = mpsc::channel(1);
        let task = tokio::spawn(upload_packs(upload.clone(), queue));
        (Self { packs }, PackUploads { task })
    }

    /// Hands a pack over; blocks while enough are on their way.
    pub(super) fn send(&self, pack: SealedPack) -> Result<(), UploadError> {
        // The receiver goes away only when an upload has failed for good.
        self.packs.blocking_send(pack).map_err(|_| UploadError::Stopped)
    }
}

impl PackUploads {
    /// Waits until all sinks are gone and all packs have arrived.
    pub(super) async fn finish(self) -> Result<(), UploadError> {
        self.task.await.unwrap_or(Err(UploadError::Stopped))
    }
}

impl Upload {
    /// Whether a pack is to be sent off as it is.
    pub(super) fn is_enough(&self, pack: &PackBuilder) -> bool {
        pack.is_full() || (self.pace.is_some() && pack.len_bytes() >= PACED_PACK_BYTES)
    }
}

async fn upload_packs(upload: Upload, queue: mpsc::Receiver<SealedPack>) -> Result<(), UploadError> {
    let upload = Arc::new(upload);
    let at_once = if upload.pace.is_some() { 1 } else { PACK_UPLOADS };
    unfold(queue, |mut queue| async move { queue.recv().await.map(|pack| (Ok(pack), queue)) })
        .boxed()
        .try_for_each_concurrent(at_once, |pack| {
            let upload = Arc::clone(&upload);
            async move {
                let chunk_bytes = pack.entries.len() * upload.chunk_size.bytes();
                let bytes = bytes::Bytes::from(pack.bytes);
                let len = bytes.len();
                let namespace = &upload.place.namespace;
                let begun = Instant::now();
                let put = || upload.upstream.put_pack(namespace, pack.id, bytes.clone());
                upload.patience.retry(put).await?;
                UploadProgress::add(&upload.progress.sent_bytes, len);
                UploadProgress::add(&upload.progress.sent_raw_bytes, chunk_bytes);
                if let Some(pace) = &upload.pace {
                    pace.rest(len, begun.elapsed()).await;
                }
                Ok(())
            }
        })
        .await
}
