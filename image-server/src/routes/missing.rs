//! What a client need not upload.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use chunk_format::ID_BYTES;

use crate::app::App;
use crate::database::chunks::{self, IdTable};
use crate::database::failed;
use crate::database::namespaces;
use crate::http::auth::Caller;
use crate::http::body::BodyReader;
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams};
use crate::limits::MAX_MISSING_IDS;

/// The id that is never stored and so never missing.
const ZERO: [u8; ID_BYTES] = [0; ID_BYTES];

/// `POST /v1/missing/NAMESPACE/chunks`.
pub(super) async fn chunks(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answer(&app, &caller, &path, &query, IdTable::Chunks, &headers, body).await
}

/// `POST /v1/missing/NAMESPACE/segments`.
pub(super) async fn segments(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    answer(&app, &caller, &path, &query, IdTable::ReadableSegments, &headers, body).await
}

async fn answer(
    app: &App,
    caller: &Caller,
    path: &PathParams,
    query: &QueryParams,
    table: IdTable,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    query.only(&["also"])?;
    let mut asked_of = vec![path.namespace()?];
    asked_of.extend(query.also()?);
    for namespace in &asked_of {
        caller.check_read(namespace)?;
    }
    let limit_bytes = MAX_MISSING_IDS * ID_BYTES;
    let body = BodyReader::new(headers, body, "the list of ids", limit_bytes, &app.limits)?;
    let body = app.read_whole(caller.user_id, body).await?;
    let (ids, rest) = body.bytes.as_chunks::<ID_BYTES>();
    if !rest.is_empty() {
        return Err(ApiError::BadRequest(format!("the body must be ids of {ID_BYTES} bytes each")));
    }

    // Sorted, so that neighbours are found on the same pages, and each asked once.
    let mut sorted: Vec<[u8; ID_BYTES]> = ids.iter().filter(|id| **id != ZERO).copied().collect();
    sorted.sort_unstable();
    sorted.dedup();
    let mut connection = app.database.readers().acquire().await.map_err(failed("answer"))?;
    let mut rows = Vec::new();
    for namespace in &asked_of {
        rows.extend(namespaces::find(&mut *connection, namespace).await?.map(|row| row.id));
    }
    let missing = chunks::missing(&mut connection, table, &rows, sorted).await?;
    drop(connection);

    let mut bitmap = vec![0u8; ids.len().div_ceil(8)];
    for (at, id) in ids.iter().enumerate() {
        if missing.binary_search(id).is_ok() {
            bitmap[at / 8] |= 1 << (at % 8);
        }
    }
    Ok(([(CACHE_CONTROL, "no-store"), (CONTENT_TYPE, "application/octet-stream")], bitmap).into_response())
}
