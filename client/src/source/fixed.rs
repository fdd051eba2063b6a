//! Any HTTPS host that holds the objects as files.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{StreamExt, TryStreamExt};
use reqwest::StatusCode;

use super::{ChunkSource, FailureKind, ObjectBody, ObjectPath, SourceError};
use crate::remote::{RemoteError, StaticHost};

/// A tree of objects behind a URL. It gets no token.
#[derive(Clone)]
pub struct StaticSource {
    host: StaticHost,
}

impl StaticSource {
    /// Uses a host.
    pub fn new(host: StaticHost) -> Self {
        Self { host }
    }

    fn error(
        &self,
        path: &ObjectPath,
        kind: FailureKind,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> SourceError {
        let (origin, object) = (self.origin(), path.to_string());
        SourceError { origin, object, kind, retry_after: None, cause: cause.into() }
    }

    fn failed(&self, path: &ObjectPath, error: RemoteError) -> SourceError {
        let kind = match error {
            RemoteError::Unreachable { .. } => FailureKind::Unreachable,
            RemoteError::OtherCertificate { .. } | RemoteError::UnknownCertificate { .. } => {
                FailureKind::Untrusted
            }
            _ => FailureKind::Refused,
        };
        self.error(path, kind, error)
    }
}

impl ChunkSource for StaticSource {
    fn origin(&self) -> String {
        self.host.url().to_owned()
    }

    fn get<'a>(
        &'a self,
        path: &'a ObjectPath,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        Box::pin(async move {
            let sent = self.host.get(&path.to_string(), range.clone()).await;
            let response = sent.map_err(|error| self.failed(path, error))?;
            let status = response.status();
            if !status.is_success() {
                let retry_after = response
                    .headers()
                    .get("retry-after")
                    .and_then(|value| value.to_str().ok()?.parse().ok())
                    .map(Duration::from_secs);
                let error = self.error(path, kind_of(status), format!("it answered {status}"));
                return Err(SourceError { retry_after, ..error });
            }
            let (source, path) = (self.clone(), path.clone());
            let body = response.bytes_stream().map_err(move |error| {
                let error = source.host.body_error(error);
                source.failed(&path, error)
            });
            Ok(match (range, status) {
                // A host that knows no ranges sends all of it.
                (Some(range), StatusCode::OK) => cut(body.boxed(), range),
                _ => body.boxed(),
            })
        })
    }
}

fn kind_of(status: StatusCode) -> FailureKind {
    match status {
        // Object stores that may not say what they have answer 403.
        StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::FORBIDDEN => FailureKind::NotFound,
        StatusCode::RANGE_NOT_SATISFIABLE => FailureKind::Damaged,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => FailureKind::Unreachable,
        status if status.is_server_error() => FailureKind::Unreachable,
        _ => FailureKind::Refused,
    }
}

/// The part of a body that was asked for; the rest is not read.
fn cut(body: ObjectBody, range: Range<u64>) -> ObjectBody {
    body.scan((0u64, range), |(at, range), part| {
        let part: Bytes = match part {
            Ok(part) => part,
            Err(error) => return std::future::ready(Some(Err(error))),
        };
        if *at >= range.end {
            return std::future::ready(None);
        }
        let (start, end) = (*at, *at + part.len() as u64);
        *at = end;
        let within = |offset: u64| usize::try_from(offset.clamp(start, end) - start).unwrap_or(part.len());
        std::future::ready(Some(Ok(part.slice(within(range.start)..within(range.end)))))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_range_is_cut_from_a_whole_body() {
        let parts = ["abc", "def", "ghi", "jkl"];
        for (range, expected) in
            [(0..12, "abcdefghijkl"), (2..4, "cd"), (3..6, "def"), (4..11, "efghijk"), (5..5, "")]
        {
            let body = futures_util::stream::iter(parts.map(|part| Ok(Bytes::from_static(part.as_bytes()))));
            let got: Vec<Bytes> = cut(body.boxed(), range.clone()).try_collect().await.unwrap();
            assert_eq!(got.concat(), expected.as_bytes(), "{range:?}");
        }
    }
}
