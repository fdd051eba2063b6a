//! Another machine's cache as a source: it hands chunks out by their ids, and the segments it keeps.

use std::ops::Range;
use std::time::Duration;

use chunk_format::ChunkId;
use futures_util::future::{BoxFuture, FutureExt, ready};
use futures_util::stream::{StreamExt, TryStreamExt};
use reqwest::{Response, StatusCode};

use super::exchange::{decode_missing, encode_question, name_of};
use super::{CacheAddress, ChunkSource, FailureKind, Object, ObjectBody, ObjectPath, SourceError};
use crate::remote::{CacheHost, RemoteError};

/// A cache that another machine serves.
#[derive(Clone)]
pub struct CacheSource {
    host: CacheHost,
}

/// Why such a machine does not serve us, and what to do about it.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(
        "its certificate is not the one in its address: remove it, and add the address that `satchel cache serve` prints there"
    )]
    Certificate(#[source] RemoteError),
    #[error(
        "its token is not the one in its address: remove it, and add the address that `satchel cache serve` prints there"
    )]
    Token(#[source] RemoteError),
}

impl CacheSource {
    /// Prepares to use a cache; nothing is contacted yet.
    ///
    /// # Errors
    /// `Setup`.
    pub fn new(address: &CacheAddress) -> Result<Self, RemoteError> {
        let (shown, token) = (address.to_string(), address.token.reveal());
        Ok(Self { host: CacheHost::new(shown, address.host(), address.fingerprint, token)? })
    }

    fn error(&self, object: String, error: RemoteError) -> SourceError {
        let (kind, retry_after) = classify(&error);
        let cause = match error {
            error @ RemoteError::OtherCertificate { .. } => Refusal::Certificate(error).into(),
            error if error.code() == Some("unauthorized") => Refusal::Token(error).into(),
            error => error.into(),
        };
        SourceError { origin: self.origin(), object, kind, retry_after, cause }
    }

    fn body(&self, object: String, response: Response) -> ObjectBody {
        let source = self.clone();
        let failed = move |error| source.error(object.clone(), source.host.body_error(error));
        response.bytes_stream().map_err(failed).boxed()
    }
}

impl ChunkSource for CacheSource {
    fn origin(&self) -> String {
        self.host.shown().to_owned()
    }

    fn get<'a>(
        &'a self,
        path: &'a ObjectPath,
        _: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        let Object::Segment(id) = path.object else {
            let error = self.has_objects_only(&[]);
            let cause = "it has chunks and segments only".into();
            return ready(Err(SourceError { object: path.to_string(), cause, ..error })).boxed();
        };
        Box::pin(async move {
            let response = self.host.get(&format!("/v1/cache/segments/{id}")).await;
            let response = response.map_err(|error| self.error(path.to_string(), error))?;
            Ok(self.body(path.to_string(), response))
        })
    }

    fn may_have(&self, object: &Object) -> bool {
        matches!(object, Object::Chunk(_) | Object::Pack(_) | Object::Segment(_))
    }

    fn probe<'a>(&'a self, path: &'a ObjectPath) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move {
            let answer = self.host.get("/v1/cache").await;
            answer.map(drop).map_err(|error| self.error(path.to_string(), error))
        })
    }

    fn hands_out_chunks(&self) -> bool {
        true
    }

    fn chunks<'a>(&'a self, ids: &'a [ChunkId]) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        Box::pin(async move {
            let response = self.host.post("/v1/cache/chunks", encode_question(ids)).await;
            let response = response.map_err(|error| self.error(name_of(ids), error))?;
            Ok(self.body(name_of(ids), response))
        })
    }

    fn missing<'a>(&'a self, ids: &'a [ChunkId]) -> BoxFuture<'a, Result<Vec<bool>, SourceError>> {
        Box::pin(async move {
            let response = self.host.post("/v1/cache/missing", encode_question(ids)).await;
            let response = response.map_err(|error| self.error(name_of(ids), error))?;
            let mut body = self.body(name_of(ids), response);
            let mut bitmap = Vec::new();
            while let Some(part) = body.try_next().await? {
                bitmap.extend_from_slice(&part);
                if bitmap.len() > ids.len() {
                    break;
                }
            }
            decode_missing(&bitmap, ids.len()).ok_or_else(|| SourceError {
                origin: self.origin(),
                object: name_of(ids),
                kind: FailureKind::Damaged,
                retry_after: None,
                cause: "its answer has another length than the question".into(),
            })
        })
    }
}

fn classify(error: &RemoteError) -> (FailureKind, Option<Duration>) {
    match error {
        RemoteError::Refused { status, retry_after_s, .. } => {
            let kind = match *status {
                StatusCode::NOT_FOUND => FailureKind::NotFound,
                StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => FailureKind::Unreachable,
                status if status.is_server_error() => FailureKind::Unreachable,
                _ => FailureKind::Refused,
            };
            (kind, retry_after_s.map(Duration::from_secs))
        }
        RemoteError::Unreachable { .. } | RemoteError::Unexpected { .. } => (FailureKind::Unreachable, None),
        _ => (FailureKind::Refused, None),
    }
}
