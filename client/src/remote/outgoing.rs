//! Bodies on their way to the server.
//!
//! How long a body takes is the link's affair: a pack of 16 MiB takes two minutes over 1 Mbit/s. What tells a lost server
//! from a slow link is whether the next piece is taken, and, after the last, whether the answer comes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{Stream, unfold};
use reqwest::{Body, RequestBuilder, Response};
use tokio::time::Instant;

use super::{Remote, RemoteError};

/// What is handed over at once: at 64 kbit/s one piece takes 8 seconds.
const PIECE_BYTES: usize = 64 << 10;
/// How long a piece may wait to be taken while others share the link, or the answer to come while the last pieces, in the
/// kernel's and the network's queues, are under way.
const PATIENCE: Duration = Duration::from_secs(60);

/// When a body last moved.
#[derive(Clone, Debug)]
struct Movement(Arc<Mutex<Instant>>);

impl Movement {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn note(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits until the body has not moved for a while.
    async fn ceased(&self, patience: Duration) {
        loop {
            let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + patience;
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// A body piece by piece, each told of as it is taken.
fn pieces(body: Bytes, movement: Movement) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> {
    unfold(body, move |mut rest| {
        movement.note();
        let piece = (!rest.is_empty()).then(|| {
            let piece = rest.split_to(rest.len().min(PIECE_BYTES));
            (Ok(piece), rest)
        });
        std::future::ready(piece)
    })
}

impl Remote {
    /// Sends a request with a body of some size. It takes as long as it moves.
    pub(super) async fn send_out(
        &self,
        request: RequestBuilder,
        body: Bytes,
    ) -> Result<Response, RemoteError> {
        let movement = Movement::new();
        let len = body.len();
        let request =
            request.header("content-length", len).body(Body::wrap_stream(pieces(body, movement.clone())));
        tokio::select! {
            answer = self.send(request) => answer,
            () = movement.ceased(PATIENCE) => Err(self.failed(RemoteError::Stalled {
                url: self.endpoint.url.clone(),
                seconds: PATIENCE.as_secs(),
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_body_that_moves_is_waited_for_and_one_that_does_not_is_given_up() {
        let movement = Movement::new();
        let mut pieces = Box::pin(pieces(Bytes::from(vec![7; 5 * PIECE_BYTES + 1]), movement.clone()));
        let begun = Instant::now();
        let mut lens = Vec::new();
        let slow_link = async {
            while let Some(Ok(piece)) = pieces.next().await {
                lens.push(piece.len());
                tokio::time::sleep(Duration::from_secs(50)).await;
            }
        };
        tokio::select! {
            () = slow_link => {}
            () = movement.ceased(PATIENCE) => panic!("it moved all the time"),
        }
        assert_eq!(lens, [PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, 1]);
        assert_eq!(begun.elapsed(), Duration::from_secs(300));
        movement.ceased(PATIENCE).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(360));
    }
}
