//! Reading a request's body: of the length it announced, within its limit, without long pauses.

use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout_at};

use crate::http::error::ApiError;
use crate::limits::Limits;

/// A body being read.
pub(crate) struct BodyReader {
    body: Body,
    len_bytes: u64,
    received_bytes: u64,
    pause: Duration,
    deadline: Instant,
}

impl BodyReader {
    /// Checks the announced length against the limit before anything is read.
    ///
    /// # Errors
    /// `LengthRequired`, `BadRequest` or `TooLarge`.
    pub(crate) fn new(
        headers: &HeaderMap,
        body: Body,
        what: &'static str,
        limit_bytes: usize,
        limits: &Limits,
    ) -> Result<Self, ApiError> {
        let announced = headers.get(CONTENT_LENGTH).ok_or(ApiError::LengthRequired)?;
        let len_bytes: u64 = announced
            .to_str()
            .ok()
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| ApiError::BadRequest("`content-length` must be a number".to_owned()))?;
        let limit_bytes = limit_bytes as u64;
        if len_bytes > limit_bytes {
            return Err(ApiError::TooLarge { what, len_bytes, limit_bytes });
        }
        let at_rate = Duration::from_secs(len_bytes / u64::from(limits.body_rate.max(1)));
        let deadline = Instant::now() + limits.body_grace + at_rate;
        Ok(Self { body, len_bytes, received_bytes: 0, pause: limits.body_pause, deadline })
    }

    /// The length that was announced, bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The next bytes; none at the end, which comes exactly at the announced length.
    ///
    /// # Errors
    /// `TooSlow`; `BadRequest` when the body is cut off, or longer than announced.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        let until = self.deadline.min(Instant::now() + self.pause);
        loop {
            let frame = timeout_at(until, self.body.frame()).await.map_err(|_| ApiError::TooSlow)?;
            let bytes = match frame {
                None if self.received_bytes == self.len_bytes => return Ok(None),
                None => return Err(self.cut_off()),
                Some(Err(_)) => return Err(self.cut_off()),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            if bytes.is_empty() {
                // Trailers and empty frames are no progress: the clock runs on.
                continue;
            }
            self.received_bytes += bytes.len() as u64;
            if self.received_bytes > self.len_bytes {
                return Err(ApiError::BadRequest("the body is longer than its `content-length`".to_owned()));
            }
            return Ok(Some(bytes));
        }
    }

    /// All of the body, for [`crate::app::App::read_whole`], which makes room for it first. Memory grows with what arrives,
    /// not with what was announced.
    ///
    /// # Errors
    /// As [`BodyReader::next`].
    pub(crate) async fn read_all(mut self) -> Result<Bytes, ApiError> {
        let Some(first) = self.next().await? else { return Ok(Bytes::new()) };
        if self.received_bytes == self.len_bytes {
            self.next().await?;
            return Ok(first);
        }
        let mut all = Vec::from(first);
        while let Some(bytes) = self.next().await? {
            all.extend_from_slice(&bytes);
        }
        Ok(all.into())
    }

    fn cut_off(&self) -> ApiError {
        let (received, announced) = (self.received_bytes, self.len_bytes);
        ApiError::BadRequest(format!("the body was cut off after {received} of {announced} bytes"))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use futures_util::stream;

    use super::*;

    fn reader(announced: &'static str, body: Body, limit: usize) -> Result<BodyReader, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static(announced));
        BodyReader::new(&headers, body, "body", limit, &Limits::default())
    }

    fn pieces(parts: &'static [&'static [u8]]) -> Body {
        Body::from_stream(stream::iter(
            parts.iter().map(|part| Ok::<_, std::io::Error>(Bytes::from_static(part))),
        ))
    }

    #[tokio::test]
    async fn a_body_is_read_to_its_announced_length() {
        let body = reader("5", pieces(&[b"ab", b"", b"cde"]), 5).unwrap().read_all().await.unwrap();
        assert_eq!(body, &b"abcde"[..]);
        assert!(reader("0", pieces(&[]), 5).unwrap().read_all().await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn short_long_and_oversized_bodies_are_refused() {
        const WHOLE: &[&[u8]] = &[b"abcde"];
        const HALVES: &[&[u8]] = &[b"ab", b"cde"];
        for (announced, parts) in [("6", WHOLE), ("4", WHOLE), ("4", HALVES)] {
            let error = reader(announced, pieces(parts), 100).unwrap().read_all().await.unwrap_err();
            assert!(matches!(error, ApiError::BadRequest(_)), "{error}");
        }
        assert!(matches!(reader("101", Body::empty(), 100), Err(ApiError::TooLarge { .. })));
        for odd in ["+5", "-1", "5 ", "0x5", "99999999999999999999"] {
            assert!(matches!(reader(odd, Body::empty(), 100), Err(ApiError::BadRequest(_))), "{odd}");
        }
        let none = BodyReader::new(&HeaderMap::new(), Body::empty(), "body", 100, &Limits::default());
        assert!(matches!(none, Err(ApiError::LengthRequired)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_may_pause_but_not_for_long() {
        let started = Instant::now();
        let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let error = reader("5", never, 5).unwrap().read_all().await.unwrap_err();
        assert!(matches!(error, ApiError::TooSlow), "{error}");
        assert_eq!(started.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_ended_at_its_deadline() {
        let started = Instant::now();
        let trickle = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(20)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
        });
        let error =
            reader("819200", Body::from_stream(trickle), 1 << 20).unwrap().read_all().await.unwrap_err();
        assert!(matches!(error, ApiError::TooSlow), "{error}");
        assert_eq!(started.elapsed().as_secs(), 60 + 100);
    }
}
