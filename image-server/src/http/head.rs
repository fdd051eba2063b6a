//! Bounds on a request's head that the connection does not enforce itself.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::http::error::ApiError;

/// Refuses heads with too many fields, and percent signs in paths.
///
/// No name or id of ours needs a percent sign; without them there is one spelling of each path, and nothing is hidden
/// from whoever reads it after us.
pub(crate) async fn check(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let (fields, limit) = (request.headers().len(), app.limits.head_fields);
    if fields > limit {
        return ApiError::HeadTooLarge { fields, limit }.into_response();
    }
    if request.uri().path().contains('%') {
        let message = "the path has a percent sign, which no name or id needs".to_owned();
        return ApiError::BadRequest(message).into_response();
    }
    next.run(request).await
}
