//! Flights: one fetch of a chunk, however many wait for it.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::watch;

use super::FetchError;

/// A chunk's decoded, verified bytes, or why they cannot be had.
pub(super) type Landing = Result<Bytes, Arc<FetchError>>;

/// One fetch on its way. It goes on whether anyone waits or not.
#[derive(Debug)]
pub(crate) struct Flight {
    landing: watch::Sender<Option<Landing>>,
}

impl Default for Flight {
    fn default() -> Self {
        Self { landing: watch::Sender::new(None) }
    }
}

impl Flight {
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
