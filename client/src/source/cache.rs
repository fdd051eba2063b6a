//! Another machine's cache as a source: it hands chunks out by their ids, and the segments it keeps.

use std::ops::Range;
use std::time::Duration;

use chunk_format::{ChunkId, ChunkSize, frame_len_max};
use futures_util::future::{BoxFuture, FutureExt, ready};
use futures_util::stream::{StreamExt, TryStreamExt, try_unfold};
use reqwest::{Response, StatusCode};

use super::exchange::{AnswerDecoder, Answered, decode_missing, encode_question, name_of};
use super::{
    CacheAddress, ChunkAnswers, ChunkSource, FailureKind, Object, ObjectBody, ObjectPath, SourceError,
};
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
        matches!(object, Object::Pack(_) | Object::Segment(_))
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

    fn chunks<'a>(
        &'a self,
        ids: &'a [ChunkId],
        size: ChunkSize,
    ) -> BoxFuture<'a, Result<ChunkAnswers, SourceError>> {
        Box::pin(async move {
            let response = self.host.post("/v1/cache/chunks", encode_question(ids)).await;
            let response = response.map_err(|error| self.error(name_of(ids), error))?;
            let reader = Reader {
                origin: self.origin(),
                object: name_of(ids),
                body: self.body(name_of(ids), response),
                answer: AnswerDecoder::new(ids.len(), frame_len_max(size.bytes())),
            };
            let answers = try_unfold(reader, |mut reader| async move {
                Ok(reader.next().await?.map(|answered| (answered, reader)))
            });
            Ok(answers.boxed())
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

/// An answer about chunks, as it arrives.
struct Reader {
    origin: String,
    object: String,
    body: ObjectBody,
    answer: AnswerDecoder,
}

impl Reader {
    /// What is said of the next chunk; `None` when all was said and nothing follows.
    async fn next(&mut self) -> Result<Option<Answered>, SourceError> {
        loop {
            let told = self.answer.take_next();
            if let Some(answered) = told.map_err(|error| self.error(FailureKind::Damaged, error))? {
                return Ok(Some(answered));
            }
            match self.body.try_next().await? {
                Some(part) => self.answer.push(&part),
                None if self.answer.left() == 0 => return Ok(None),
                None => {
                    let cause = format!("the answer ended before the last {} chunks", self.answer.left());
                    return Err(self.error(FailureKind::Unreachable, cause));
                }
            }
        }
    }

    fn error(
        &self,
        kind: FailureKind,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> SourceError {
        let (origin, object) = (self.origin.clone(), self.object.clone());
        SourceError { origin, object, kind, retry_after: None, cause: cause.into() }
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
        RemoteError::OtherCertificate { .. } | RemoteError::UnknownCertificate { .. } => {
            (FailureKind::Untrusted, None)
        }
        _ => (FailureKind::Refused, None),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream::{iter, unfold};

    use super::*;
    use crate::source::exchange::{append_frame, append_not_here};

    fn reader(body: ObjectBody) -> Reader {
        let answer = AnswerDecoder::new(2, 100);
        Reader { origin: "a".to_owned(), object: "b".to_owned(), body, answer }
    }

    fn answer() -> Vec<u8> {
        let mut answer = Vec::new();
        append_frame(&mut answer, b"frame");
        append_not_here(&mut answer);
        answer
    }

    fn in_pieces(bytes: &[u8]) -> ObjectBody {
        let pieces: Vec<_> = bytes.chunks(3).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        iter(pieces).boxed()
    }

    #[tokio::test]
    async fn an_answer_is_about_all_that_was_asked_and_nothing_else() {
        let frame = Some(Answered::Frame(Bytes::from_static(b"frame")));
        let mut whole = reader(in_pieces(&answer()));
        assert_eq!(whole.next().await.unwrap(), frame);
        assert_eq!(whole.next().await.unwrap(), Some(Answered::NotHere));
        assert_eq!(whole.next().await.unwrap(), None);
        let mut cut = reader(in_pieces(&answer()[..10]));
        assert_eq!(cut.next().await.unwrap(), frame);
        assert_eq!(cut.next().await.unwrap_err().kind, FailureKind::Unreachable);
        let mut long = reader(in_pieces(&[answer(), vec![1]].concat()));
        assert!(long.next().await.is_ok() && long.next().await.is_ok());
        assert_eq!(long.next().await.unwrap_err().kind, FailureKind::Damaged);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_that_drip_are_no_sign_of_life() {
        let dripping = unfold(answer().into_iter(), |mut left| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((Ok(Bytes::from(vec![left.next()?])), left))
        });
        let mut dripping = reader(dripping.boxed());
        assert!(tokio::time::timeout(Duration::from_millis(1500), dripping.next()).await.is_err());
    }
}
