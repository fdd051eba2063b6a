//! Flights: one fetch of a chunk, however many wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::sync::watch;

use super::FetchError;

/// A chunk's decoded, verified bytes, or why they cannot be had.
pub(super) type Landing = Result<Bytes, Arc<FetchError>>;

/// One fetch on its way. It goes on whether anyone waits or not.
#[derive(Debug)]
pub(crate) struct Flight {
    landing: watch::Sender<Option<Landing>>,
    /// Where in the boot stream it comes, bytes, if that brings it.
    due_bytes: Option<u64>,
    /// Whether a request of its own is made for it.
    has_request: AtomicBool,
    /// Whether somebody waits for it, or did.
    is_waited_for: AtomicBool,
}

impl Default for Flight {
    fn default() -> Self {
        Self {
            landing: watch::Sender::new(None),
            due_bytes: None,
            has_request: AtomicBool::new(true),
            is_waited_for: AtomicBool::new(false),
        }
    }
}

impl Flight {
    /// A chunk that the boot stream brings, once so many bytes of it have come.
    pub(super) fn in_stream(due_bytes: u64) -> Self {
        Self { due_bytes: Some(due_bytes), has_request: AtomicBool::new(false), ..Self::default() }
    }

    /// Where in the boot stream it comes, if that brings it.
    pub(super) fn due_bytes(&self) -> Option<u64> {
        self.due_bytes
    }

    /// Claims to make a request of its own for it; false when there is one.
    pub(super) fn claim_request(&self) -> bool {
        !self.has_request.swap(true, Ordering::AcqRel)
    }

    /// Whether a request of its own is made for it.
    pub(super) fn has_request(&self) -> bool {
        self.has_request.load(Ordering::Acquire)
    }

    /// Notes that somebody waits for it.
    pub(super) fn wait_for(&self) {
        self.is_waited_for.store(true, Ordering::Relaxed);
    }

    /// Whether somebody waits for it, or did.
    pub(super) fn is_waited_for(&self) -> bool {
        self.is_waited_for.load(Ordering::Relaxed)
    }

    /// Whether everyone was told.
    pub(super) fn has_landed(&self) -> bool {
        self.landing.borrow().is_some()
    }

    /// Waits for the chunk.
    pub(crate) async fn land(&self) -> Landing {
        let mut landing = self.landing.subscribe();
        match landing.wait_for(Option::is_some).await {
            Ok(landed) => landed.clone().unwrap_or_else(|| Err(Arc::new(FetchError::Stopped))),
            Err(_) => Err(Arc::new(FetchError::Stopped)),
        }
    }

    /// Tells everyone who waits.
    pub(super) fn finish(&self, landing: Landing) {
        self.landing.send_replace(Some(landing));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn everyone_who_waits_is_told_early_or_late() {
        let flight = Arc::new(Flight::default());
        let early = tokio::spawn({
            let flight = Arc::clone(&flight);
            async move { flight.land().await }
        });
        tokio::task::yield_now().await;
        flight.finish(Ok(Bytes::from_static(b"chunk")));
        assert_eq!(early.await.unwrap().unwrap(), "chunk");
        assert_eq!(flight.land().await.unwrap(), "chunk");
    }
}
