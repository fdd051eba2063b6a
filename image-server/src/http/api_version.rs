//! The version of the interface: named by every answer, checked where a request names it.

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::error::ApiError;

/// The interface version this server speaks.
pub(crate) const SUPPORTED: u32 = 1;

const HEADER: HeaderName = HeaderName::from_static("satchel-api");

/// Refuses other versions of the interface; a request without one is taken as it is.
pub(crate) async fn check(request: Request, next: Next) -> Response {
    let mut response = match agree(request.headers().get(HEADER)) {
        Ok(()) => next.run(request).await,
        Err(error) => error.into_response(),
    };
    response.headers_mut().insert(HEADER, HeaderValue::from(SUPPORTED));
    response
}

fn agree(named: Option<&HeaderValue>) -> Result<(), ApiError> {
    let Some(named) = named else { return Ok(()) };
    let version: Option<u32> = named.to_str().ok().and_then(|text| text.parse().ok());
    match version {
        Some(SUPPORTED) => Ok(()),
        Some(version) => {
            let behind = if version > SUPPORTED { "server" } else { "client" };
            Err(ApiError::ApiVersion(format!(
                "the client speaks interface version {version}, this server version {SUPPORTED}: update the {behind}"
            )))
        }
        None => Err(ApiError::BadRequest("`satchel-api` must be a version number".to_owned())),
    }
}
