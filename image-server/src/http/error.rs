//! What a request is refused or failed with.
//!
//! The text of each variant is for the client: it says what was wrong with the request and never what went wrong
//! inside. Inner causes ride along as sources and end in the log, once, under the request's id.

use std::error::Error as StdError;
use std::sync::Arc;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use chunk_format::{FormatError, ManifestId, PublicKey};
use serde_json::json;

use crate::cause::chain;
use crate::clock::format_ms;
use crate::database::DatabaseError;
use crate::http::api_version::SUPPORTED;
use crate::locating::LocateError;
use crate::routes::json::{LeaseJson, VersionJson};
use crate::storage::StorageError;

/// Seconds after which a client told `busy` may come again.
const RETRY_AFTER_S: u32 = 2;

/// A cause that is logged and not told.
pub(crate) type Cause = Arc<dyn StdError + Send + Sync>;

/// Why a request is not answered as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{0}")]
    BadRequest(String),
    #[error("{0}")]
    Unauthorized(String),
    #[error("{0}")]
    Forbidden(String),
    #[error(
        "image {image} is signed by another publisher key, {key}: sign with that one, or publish under another name"
    )]
    PublisherKey { image: String, key: PublicKey },
    #[error("{0}")]
    NotFound(String),
    #[error("this path does not take this method")]
    MethodNotAllowed,
    #[error("the body did not arrive in time")]
    TooSlow,
    #[error("{}", head_moved(subject, head.as_deref()))]
    HeadMoved { subject: String, head: Option<Box<VersionJson>> },
    #[error("{}", lease_held(desktop, lease))]
    LeaseHeld { desktop: String, lease: Box<LeaseJson> },
    #[error("channel {channel} has been moved meanwhile: it points to {}", present.map_or("nothing".to_owned(), |id| id.to_string()))]
    ChannelMoved { channel: String, present: Option<ManifestId> },
    #[error("the segment names {missing} chunks that are not here: upload the packs that hold them first")]
    ChunksMissing { missing: usize },
    #[error("the manifest names {missing} segments that are not here: upload them first")]
    SegmentsMissing { missing: usize },
    #[error(
        "the profile names {missing} streams that are not here, or not of that length: upload them first"
    )]
    StreamsMissing { missing: usize },
    #[error("a body needs a `content-length`")]
    LengthRequired,
    #[error("{what} has {len_bytes} bytes, the limit is {limit_bytes}")]
    TooLarge { what: &'static str, len_bytes: u64, limit_bytes: u64 },
    #[error("the object has {len_bytes} bytes: the range lies past its end")]
    RangeNotSatisfiable { len_bytes: u64 },
    #[error("{0}")]
    Damaged(FormatError),
    #[error("{0}")]
    ApiVersion(String),
    #[error("the request's head has {fields} fields, the limit is {limit}")]
    HeadTooLarge { fields: usize, limit: usize },
    #[error("the server is busy: try again in {RETRY_AFTER_S} s")]
    Busy(#[source] Option<Cause>),
    #[error("the server has no space left: this request stored nothing; what was stored before is kept")]
    StoreFull(#[source] Cause),
    #[error(
        "cannot reach what the server keeps its objects in: what was stored is safe; try again in {RETRY_AFTER_S} s"
    )]
    StoreUnreachable(#[source] Cause),
    #[error("{path} was stored and is gone from the store")]
    Lost {
        path: String,
        #[source]
        cause: Cause,
    },
    #[error("the server failed; its log has the cause under this request's id")]
    Internal(#[source] Cause),
}

fn head_moved(subject: &str, head: Option<&VersionJson>) -> String {
    match head {
        Some(head) => format!("{subject} has moved on: its head is {}, made on {}", head.id, head.machine),
        None => format!("{subject} has no versions here, so a first one must name no parent"),
    }
}

fn lease_held(desktop: &str, lease: &LeaseJson) -> String {
    let since = format_ms(lease.since_ms);
    format!("desktop {desktop} is in use on {} since {since}", lease.machine)
}

impl ApiError {
    /// An inner failure.
    pub(crate) fn internal(cause: impl StdError + Send + Sync + 'static) -> Self {
        Self::Internal(Arc::new(cause))
    }

    /// The one answer for what does not exist and for what the asker may not know of.
    pub(crate) fn no_such(what: impl std::fmt::Display) -> Self {
        Self::NotFound(format!("there is no {what}"))
    }

    fn status_and_code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "bad_request"),
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "unauthorized"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden"),
            Self::PublisherKey { .. } => (StatusCode::FORBIDDEN, "publisher_key"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too_slow"),
            Self::HeadMoved { .. } => (StatusCode::CONFLICT, "head_moved"),
            Self::LeaseHeld { .. } => (StatusCode::CONFLICT, "lease_held"),
            Self::ChannelMoved { .. } => (StatusCode::CONFLICT, "channel_moved"),
            Self::ChunksMissing { .. } => (StatusCode::CONFLICT, "chunks_missing"),
            Self::SegmentsMissing { .. } => (StatusCode::CONFLICT, "segments_missing"),
            Self::StreamsMissing { .. } => (StatusCode::CONFLICT, "streams_missing"),
            Self::LengthRequired => (StatusCode::LENGTH_REQUIRED, "length_required"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_large"),
            Self::RangeNotSatisfiable { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable"),
            Self::Damaged(_) => (StatusCode::UNPROCESSABLE_ENTITY, "damaged"),
            Self::ApiVersion(_) => (StatusCode::UPGRADE_REQUIRED, "api_version"),
            Self::HeadTooLarge { .. } => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large"),
            Self::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, "busy"),
            Self::StoreFull(_) => (StatusCode::INSUFFICIENT_STORAGE, "store_full"),
            Self::StoreUnreachable(_) => (StatusCode::SERVICE_UNAVAILABLE, "store_unreachable"),
            Self::Lost { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "lost"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    fn cause(&self) -> Option<Cause> {
        match self {
            Self::StoreFull(cause)
            | Self::StoreUnreachable(cause)
            | Self::Internal(cause)
            | Self::Busy(Some(cause))
            | Self::Lost { cause, .. } => Some(cause.clone()),
            _ => None,
        }
    }
}

impl From<DatabaseError> for ApiError {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Full { .. } => Self::StoreFull(Arc::new(error)),
            DatabaseError::Busy { .. } => Self::Busy(Some(Arc::new(error))),
            error => Self::internal(error),
        }
    }
}

impl From<LocateError> for ApiError {
    fn from(error: LocateError) -> Self {
        match error {
            LocateError::Missing { count: missing } => Self::ChunksMissing { missing },
            LocateError::Segment(error) => Self::Damaged(error),
            LocateError::Locator(error) => Self::internal(error),
            LocateError::Database(error) => error.into(),
        }
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Full { .. } | StorageError::Kept { .. } => Self::StoreFull(Arc::new(error)),
            StorageError::Unreachable { .. } | StorageError::BucketNotOurs { owner: None, .. } => {
                Self::StoreUnreachable(Arc::new(error))
            }
            // Who asks for what was never stored is answered before the store is asked.
            StorageError::NotFound { ref path } => Self::Lost { path: path.clone(), cause: Arc::new(error) },
            error => Self::internal(error),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        let mut error = json!({ "code": code, "message": self.to_string() });
        let mut headers = HeaderMap::new();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        match &self {
            Self::Unauthorized(_) => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            Self::HeadMoved { head, .. } => error["head"] = json!(head),
            Self::LeaseHeld { lease, .. } => error["lease"] = json!(lease),
            Self::ChannelMoved { present, .. } => error["present"] = json!(present),
            Self::ChunksMissing { missing }
            | Self::SegmentsMissing { missing }
            | Self::StreamsMissing { missing } => error["missing"] = json!(missing),
            Self::RangeNotSatisfiable { len_bytes } => {
                if let Ok(value) = HeaderValue::try_from(format!("bytes */{len_bytes}")) {
                    headers.insert(header::CONTENT_RANGE, value);
                }
            }
            Self::ApiVersion(_) => error["supported"] = json!(SUPPORTED),
            Self::Busy(_) | Self::StoreUnreachable(_) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
            }
            _ => {}
        }
        let cause = self.cause();
        let mut response = (status, headers, Json(json!({ "error": error }))).into_response();
        if let Some(cause) = cause {
            response.extensions_mut().insert(LoggedCause(cause));
        }
        response
    }
}

/// A failure's cause on its way to the log.
#[derive(Clone)]
pub(crate) struct LoggedCause(Cause);

impl LoggedCause {
    /// The cause and all its own causes in one line.
    pub(crate) fn chain(&self) -> String {
        chain(&*self.0)
    }
}
