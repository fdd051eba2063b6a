//! Receiving segments: `PUT /v1/data/NAMESPACE/segments/ID`.
//!
//! A segment is taken only when all its chunks are here, and its locator is written with it. So a segment that has a row
//! is complete, and a version whose segments all have rows is.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use chunk_format::{FrameDecoder, Namespace, Segment, SegmentId};

use crate::app::App;
use crate::clock::now_ms;
use crate::database::commit;
use crate::database::segments::{self, Known, Places};
use crate::http::auth::Caller;
use crate::http::body::BodyReader;
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams};
use crate::limits::MAX_SEGMENT_FRAME_BYTES;
use crate::locating::{Located, locate};
use crate::storage::{Object, ObjectKey};

pub(super) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    query.only(&["also"])?;
    let namespace = path.namespace()?;
    let id: SegmentId = path.get("object")?;
    let also = query.also()?;
    caller.check_write(&app.database, &namespace).await?;
    for image in &also {
        caller.check_read(image)?;
    }
    let body = BodyReader::new(&headers, body, "a segment", MAX_SEGMENT_FRAME_BYTES, &app.limits)?;
    let body = app.read_whole(caller.user_id, body).await?;
    let mut decoder = FrameDecoder::new().map_err(ApiError::internal)?;
    let segment = Segment::decode(&body.bytes, id, &mut decoder).map_err(ApiError::Damaged)?;
    let located = locate(&app.database, &namespace, &also, id, &segment).await?;
    let work = store(app.clone(), caller, namespace, id, body.bytes.clone(), located);
    let is_new = app.to_the_end(body, work).await?;
    Ok(if is_new { StatusCode::CREATED } else { StatusCode::OK })
}

/// Writes segment and locator, then the row that lets them count.
///
/// The locator is written while the database is ours, once it is certain that no pack it names is condemned, so that the
/// garbage collector sees every locator there is. Of a segment that counts already, be it lost, the packs are noted before:
/// whichever of its locators a crash leaves, its packs are kept. One that can be read never gets a locator that leads to what
/// is lost.
async fn store(
    app: Arc<App>,
    caller: Caller,
    namespace: Namespace,
    id: SegmentId,
    frame: Bytes,
    located: Located,
) -> Result<bool, ApiError> {
    let locator = ObjectKey { namespace: namespace.clone(), object: Object::Locator(id) };
    let segment = ObjectKey { namespace, object: Object::Segment(id) };
    app.storage.put(&segment, frame.clone()).await?;
    let len_bytes = u32::try_from(frame.len()).map_err(ApiError::internal)?;

    let mut tx = app.database.begin().await?;
    let row = caller.claim(&mut tx, &segment.namespace).await?;
    located.check(&mut tx).await?;
    let nothing = Places { sources: &[], packs: &[] };
    let known = segments::keep_packs(&mut tx, row, id, &nothing, now_ms()).await?;
    let is_better = known == Known::Whole && located.is_lost(&mut tx).await?;
    if known != Known::Not && !is_better {
        segments::keep_packs(&mut tx, row, id, &located.places(), now_ms()).await?;
        commit(tx).await?;
        tx = app.database.begin().await?;
        located.check(&mut tx).await?;
    }
    if known == Known::Whole && located.is_lost(&mut tx).await? {
        commit(tx).await?;
        return Ok(false);
    }
    app.storage.put(&locator, located.locator.clone().into()).await?;
    app.storage.ensure(&segment, frame).await?;
    let is_whole = known == Known::Whole
        && segments::keep_packs(&mut tx, row, id, &located.places(), now_ms()).await? == Known::Whole;
    if !is_whole {
        let (size, places) = (located.chunk_size, located.places());
        segments::insert(&mut tx, row, id, size, len_bytes, &places, now_ms()).await?;
    }
    commit(tx).await?;
    Ok(known == Known::Not)
}
