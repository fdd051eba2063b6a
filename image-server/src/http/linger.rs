//! Answering before a body has arrived, so that the client comes to know the answer.
//!
//! A client that is still sending when the connection is closed or the stream reset may see only that. So what is left of
//! a body is read and thrown away beside the answer, within bounds.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Error;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Version;
use axum::http::header::EXPECT;
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use chunk_format::MAX_PACK_BYTES;
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::timeout;

const LINGER: Duration = Duration::from_secs(10);
const LINGER_BYTES: usize = MAX_PACK_BYTES;

/// Lets a request be answered and takes in what is left of its body.
pub(crate) async fn linger(request: Request, next: Next) -> Response {
    // Such a client sends nothing until it is told to go on, and in HTTP/1.1 the first read would tell it.
    let waits = request.headers().contains_key(EXPECT) && request.version() <= Version::HTTP_11;
    let unread = Arc::<Mutex<Option<Body>>>::default();
    let place = unread.clone();
    let request =
        request.map(|body| Body::new(Returned { body, is_begun: false, is_over: false, waits, place }));
    let response = next.run(request).await;
    let rest = unread.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(rest) = rest {
        tokio::spawn(timeout(LINGER, discard(rest)));
    }
    response
}

async fn discard(mut body: Body) {
    let mut left = LINGER_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        let len = frame.data_ref().map_or(0, Bytes::len);
        match left.checked_sub(len) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

/// A body that is put aside when its reader drops it before its end.
struct Returned {
    body: Body,
    is_begun: bool,
    is_over: bool,
    /// Whether the client waits to be told to send.
    waits: bool,
    /// Held for a look, never over anything that waits.
    place: Arc<Mutex<Option<Body>>>,
}

impl Drop for Returned {
    fn drop(&mut self) {
        if self.is_over || self.body.is_end_stream() || self.waits && !self.is_begun {
            return;
        }
        let body = std::mem::take(&mut self.body);
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
    }
}

impl HttpBody for Returned {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.is_begun = true;
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.is_over |= matches!(polled, Poll::Ready(None | Some(Err(_))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
