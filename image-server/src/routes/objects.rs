//! Reading the data plane.

use std::ops::Range;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use chunk_format::{ID_BYTES, MAX_LOCATOR_BYTES, ManifestId, frame_len_max};

use crate::app::App;
use crate::database::versions;
use crate::http::auth::Caller;
use crate::http::conditional::{Wanted, is_known, wanted};
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams};
use crate::presence;
use crate::routes::profiles;
use crate::storage::{Likely, Object, ObjectKey};

const IMMUTABLE: &str = "private, max-age=31536000, immutable";
const MAY_CHANGE: &str = "private, max-age=60";

/// `GET` and `HEAD /v1/data/NAMESPACE/CLASS/ID`.
pub(super) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
    parts: Parts,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let namespace = path.namespace()?;
    let object = object(parts.uri.path(), path.text("object"))?;
    caller.check_read(&namespace)?;
    let key = ObjectKey { namespace, object };
    if !presence::counts(&app.database, &key).await? {
        return Err(ApiError::no_such(&key));
    }
    match object {
        Object::Locator(_) => {
            let bytes = app.storage.read(&key, frame_len_max(MAX_LOCATOR_BYTES) as u64).await?;
            changing(&key, &parts, bytes)
        }
        // The row has it as it was committed, whatever became of the file.
        Object::ManifestSignature(id) => {
            match versions::find(app.database.readers(), &key.namespace, id).await? {
                Some(version) => {
                    let etag = format!("\"{}\"", key.object.name());
                    in_memory(&key, &parts, version.signature.encode().into(), &etag, IMMUTABLE)
                }
                None => Err(ApiError::no_such(&key)),
            }
        }
        Object::ManifestProfile(id) => match profiles::pointer(&app, &key.namespace, id).await? {
            Some(pointer) => changing(&key, &parts, pointer.into()),
            None => Err(ApiError::no_such(&key)),
        },
        _ => immutable(&app, &key, &parts).await,
    }
}

/// What the last two segments of the path name.
fn object(path: &str, name: &str) -> Result<Object, ApiError> {
    let class = path.rsplit('/').nth(1).unwrap_or_default();
    Object::parse(class, name).ok_or_else(|| {
        let signed = match class {
            "manifests" => ", or that and `.sig` or `.profile`",
            "profiles" => ", or that and `.sig`",
            _ => "",
        };
        ApiError::BadRequest(format!("path: an id is {} lower-case hexadecimal digits{signed}", 2 * ID_BYTES))
    })
}

/// Answers with an object whose name says what is in it.
async fn immutable(app: &App, key: &ObjectKey, parts: &Parts) -> Result<Response, ApiError> {
    let etag = format!("\"{}\"", key.object.name());
    let headers = headers(key, &etag, IMMUTABLE)?;
    if is_known(&parts.headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    // A row without its object: the store lost it, and that is no 404.
    let opened = app.storage.open(key, likely(parts, &etag)).await?;
    let (status, headers, range) = select(parts, headers, &etag, opened.len_bytes)?;
    let body = if parts.method == Method::HEAD || range.is_empty() {
        Body::empty()
    } else {
        Body::from_stream(app.storage.stream(key, opened, range).await?)
    };
    Ok((status, headers, body).into_response())
}

/// What of an object a request will be answered with, as far as that is known before its length is.
fn likely(parts: &Parts, etag: &str) -> Likely {
    if parts.method != Method::GET {
        return Likely::Unknown;
    }
    match wanted(&parts.headers, etag, u64::MAX) {
        Wanted::Whole => Likely::Whole,
        // Else it names the end, or counts from there.
        Wanted::Part(range) if range.end < u64::MAX => Likely::Part(range),
        Wanted::Part(_) | Wanted::NotThere => Likely::Unknown,
    }
}

/// Answers with what may change: small, and named by what it is for, so that its tag is made of its bytes.
fn changing(key: &ObjectKey, parts: &Parts, bytes: Bytes) -> Result<Response, ApiError> {
    let etag = format!("\"{}\"", ManifestId::of(&bytes));
    in_memory(key, parts, bytes, &etag, MAY_CHANGE)
}

fn in_memory(
    key: &ObjectKey,
    parts: &Parts,
    bytes: Bytes,
    etag: &str,
    cache: &'static str,
) -> Result<Response, ApiError> {
    let headers = headers(key, etag, cache)?;
    if is_known(&parts.headers, etag) {
        return Ok((StatusCode::NOT_MODIFIED, headers).into_response());
    }
    let (status, headers, range) = select(parts, headers, etag, bytes.len() as u64)?;
    let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap_or(bytes.len()));
    let body = if parts.method == Method::HEAD { Body::empty() } else { Body::from(bytes.slice(start..end)) };
    Ok((status, headers, body).into_response())
}

/// Decides which bytes are sent, and says so in status and headers.
fn select(
    parts: &Parts,
    mut headers: HeaderMap,
    etag: &str,
    len_bytes: u64,
) -> Result<(StatusCode, HeaderMap, Range<u64>), ApiError> {
    // Ranges are defined for GET alone.
    let wanted =
        if parts.method == Method::GET { wanted(&parts.headers, etag, len_bytes) } else { Wanted::Whole };
    let (status, range) = match wanted {
        Wanted::Whole => (StatusCode::OK, 0..len_bytes),
        Wanted::Part(range) => {
            let content_range = format!("bytes {}-{}/{len_bytes}", range.start, range.end - 1);
            headers.insert(CONTENT_RANGE, value(content_range)?);
            (StatusCode::PARTIAL_CONTENT, range)
        }
        Wanted::NotThere => return Err(ApiError::RangeNotSatisfiable { len_bytes }),
    };
    headers.insert(CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    Ok((status, headers, range))
}

fn headers(key: &ObjectKey, etag: &str, cache: &'static str) -> Result<HeaderMap, ApiError> {
    let content_type = match key.object {
        Object::Manifest(_) => "application/json",
        Object::ManifestSignature(_) | Object::ProfileSignature(_) | Object::ManifestProfile(_) => {
            "text/plain; charset=us-ascii"
        }
        _ => "application/octet-stream",
    };
    let known: [(HeaderName, &'static str); 3] =
        [(ACCEPT_RANGES, "bytes"), (CACHE_CONTROL, cache), (CONTENT_TYPE, content_type)];
    let mut headers: HeaderMap =
        known.into_iter().map(|(name, text)| (name, HeaderValue::from_static(text))).collect();
    headers.insert(ETAG, value(etag.to_owned())?);
    Ok(headers)
}

fn value(text: String) -> Result<HeaderValue, ApiError> {
    HeaderValue::try_from(text).map_err(ApiError::internal)
}
