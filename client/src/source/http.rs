//! The image server's data plane as a source.

use std::ops::Range;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{StreamExt, TryStreamExt};
use reqwest::StatusCode;

use super::{ChunkSource, FailureKind, ObjectBody, ObjectPath, SourceError};
use crate::remote::{Remote, RemoteError};

/// Objects from the image server.
#[derive(Clone, Debug)]
pub struct HttpSource {
    remote: Remote,
}

impl HttpSource {
    /// Uses a server as a source.
    pub fn new(remote: Remote) -> Self {
        Self { remote }
    }

    fn error(&self, path: &ObjectPath, error: RemoteError) -> SourceError {
        let (kind, retry_after) = classify(&error);
        let origin = self.origin();
        SourceError { origin, object: path.to_string(), kind, retry_after, cause: error.into() }
    }
}

impl ChunkSource for HttpSource {
    fn origin(&self) -> String {
        self.remote.endpoint().url.clone()
    }

    fn get<'a>(
        &'a self,
        path: &'a ObjectPath,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        Box::pin(async move {
            let url = format!("/v1/data/{path}");
            let response =
                self.remote.get_object(&url, range.clone()).await.map_err(|error| self.error(path, error))?;
            if range.is_some() && response.status() != StatusCode::PARTIAL_CONTENT {
                let cause = format!("it answered {} to a range request", response.status());
                return Err(super::damaged(self, path, cause));
            }
            let (source, path) = (self.clone(), path.clone());
            let body = response.bytes_stream();
            Ok(body.map_err(move |error| source.error(&path, source.remote.body_error(error))).boxed())
        })
    }
}

fn classify(error: &RemoteError) -> (FailureKind, Option<Duration>) {
    match error {
        RemoteError::Refused { code, .. } if code == "lost" => (FailureKind::Damaged, None),
        RemoteError::Refused { status, retry_after_s, .. } => {
            let kind = match *status {
                // A server that is older than a kind of object does not know its path.
                StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST => FailureKind::NotFound,
                StatusCode::RANGE_NOT_SATISFIABLE => FailureKind::Damaged,
                status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                    FailureKind::Unreachable
                }
                StatusCode::REQUEST_TIMEOUT => FailureKind::Unreachable,
                _ => FailureKind::Refused,
            };
            (kind, retry_after_s.map(Duration::from_secs))
        }
        RemoteError::Unreachable { .. } | RemoteError::Stalled { .. } | RemoteError::Unexpected { .. } => {
            (FailureKind::Unreachable, None)
        }
        RemoteError::OtherCertificate { .. } | RemoteError::UnknownCertificate { .. } => {
            (FailureKind::Untrusted, None)
        }
        _ => (FailureKind::Refused, None),
    }
}
