//! Receiving segments: `PUT /v1/data/NAMESPACE/segments/ID`.
//!
//! A segment is taken only when all its chunks are here, and its locator is written with it. So a segment that has a row
//! is complete, and a version whose segments all have rows is.

use std::collections::HashMap;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use bytes::Bytes;
use chunk_format::{
    ChunkId, ChunkPlace, ChunkSize, FormatError, FrameDecoder, FrameEncoder, ID_BYTES, Locator, Namespace,
    PackRef, Segment, SegmentId,
};

use crate::app::App;
use crate::clock::now_ms;
use crate::database::chunks::{self, Place};
use crate::database::namespaces::{self, NamespaceId};
use crate::database::packs::{self, PackRowId};
use crate::database::segments::{self, Places};
use crate::database::{Connection, commit, failed};
use crate::http::auth::Caller;
use crate::http::body::BodyReader;
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams};
use crate::limits::MAX_SEGMENT_FRAME_BYTES;
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
    let located = locate(&app, &namespace, &also, id, &segment).await?;
    let work = store(app.clone(), caller, namespace, id, body.bytes.clone(), located);
    let is_new = app.to_the_end(body, work).await?;
    Ok(if is_new { StatusCode::CREATED } else { StatusCode::OK })
}

/// A segment's chunks, found.
struct Located {
    locator: Vec<u8>,
    chunk_size: ChunkSize,
    /// The other namespaces some of the chunks lie in.
    sources: Vec<NamespaceId>,
    /// The packs the locator names.
    packs: Vec<PackRowId>,
}

impl Located {
    fn places(&self) -> Places<'_> {
        Places { sources: &self.sources, packs: &self.packs }
    }

    /// Checks that none of the packs was condemned since they were found.
    async fn check(&self, connection: &mut Connection) -> Result<(), ApiError> {
        match packs::count_lost(connection, &self.packs).await? {
            0 => Ok(()),
            missing => Err(ApiError::ChunksMissing { missing }),
        }
    }
}

/// Finds every chunk of the segment and writes down where.
///
/// A chunk that lies in several namespaces is taken from the segment's own: so a segment depends on as few others as it
/// can, and what keeps it alive stays in its owner's hands. After that the order of `also` decides.
async fn locate(
    app: &App,
    namespace: &Namespace,
    also: &[Namespace],
    id: SegmentId,
    segment: &Segment,
) -> Result<Located, ApiError> {
    let mut wanted: Vec<[u8; ID_BYTES]> =
        segment.chunks().iter().filter(|chunk| !chunk.is_zero()).map(|chunk| *chunk.as_bytes()).collect();
    wanted.sort_unstable();
    wanted.dedup();

    let mut connection = app.database.readers().acquire().await.map_err(failed("answer"))?;
    let mut names = HashMap::new();
    let mut rows = Vec::new();
    let mut own = None;
    for asked in std::iter::once(namespace).chain(also) {
        if let Some(row) = namespaces::find(&mut *connection, asked).await? {
            own = if asked == namespace { Some(row.id) } else { own };
            if names.insert(row.id, asked.clone()).is_none() {
                rows.push(row.id);
            }
        }
    }
    let found = chunks::locate(&mut connection, &rows, &wanted).await?;
    drop(connection);

    let missing = found.iter().filter(|place| place.is_none()).count();
    if missing > 0 {
        return Err(ApiError::ChunksMissing { missing });
    }
    let places: HashMap<ChunkId, Place> = wanted
        .into_iter()
        .zip(found)
        .filter_map(|(id, place)| Some((ChunkId::from_bytes(id), place?)))
        .collect();
    let chunk_size = one_chunk_size(&places)?;
    let locator = locator(id, segment, &places, &names).map_err(ApiError::internal)?;
    let mut sources: Vec<NamespaceId> = places.values().map(|place| place.namespace).collect();
    sources.sort_unstable();
    sources.dedup();
    sources.retain(|source| Some(*source) != own);
    let mut packs: Vec<PackRowId> = places.values().map(|place| place.row).collect();
    packs.sort_unstable();
    packs.dedup();
    Ok(Located { locator, chunk_size, sources, packs })
}

/// All chunks of a disk have one size, and so have those of a segment.
fn one_chunk_size(places: &HashMap<ChunkId, Place>) -> Result<ChunkSize, ApiError> {
    let mut sizes = places.values().map(|place| place.chunk_size);
    let first = sizes.next().unwrap_or(ChunkSize::DEFAULT);
    match sizes.find(|size| *size != first) {
        None => Ok(first),
        Some(other) => Err(ApiError::Damaged(FormatError::Field {
            what: "segment",
            field: "chunks",
            found: format!("of {} and of {} bytes", first.bytes(), other.bytes()),
            expected: "of one size".to_owned(),
        })),
    }
}

fn locator(
    id: SegmentId,
    segment: &Segment,
    places: &HashMap<ChunkId, Place>,
    names: &HashMap<NamespaceId, Namespace>,
) -> Result<Vec<u8>, FormatError> {
    let mut packs: Vec<PackRef> = Vec::new();
    let mut position_of: HashMap<PackRowId, u16> = HashMap::new();
    let mut located = Vec::with_capacity(segment.chunks().len());
    for chunk in segment.chunks() {
        // Zero chunks lie nowhere; all others were found.
        let place = places.get(chunk).and_then(|place| Some((place, names.get(&place.namespace)?)));
        let Some((place, namespace)) = place else {
            located.push(None);
            continue;
        };
        let pack = *position_of.entry(place.row).or_insert_with(|| {
            packs.push(PackRef { namespace: namespace.clone(), pack: place.pack, pack_len: place.pack_len });
            // At most one pack per chunk: 1,024.
            u16::try_from(packs.len() - 1).unwrap_or(u16::MAX)
        });
        located.push(Some(ChunkPlace { pack, offset: place.offset, frame_len: place.frame_len }));
    }
    Locator::new(id, packs, located)?.encode(&mut FrameEncoder::new()?)
}

/// Writes segment and locator, then the row that lets them count.
///
/// The locator is written while the database is ours, once it is certain that no pack it names is condemned, so that the
/// garbage collector sees every locator there is. Of a segment that counts already the packs are noted before: whichever
/// of its locators a crash leaves, its packs are kept.
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
    let is_known = segments::keep_packs(&mut tx, row, id, &located.places(), now_ms()).await?;
    if is_known {
        commit(tx).await?;
        tx = app.database.begin().await?;
        located.check(&mut tx).await?;
    }
    app.storage.put(&locator, located.locator.clone().into()).await?;
    app.storage.ensure(&segment, frame).await?;
    if !is_known || !segments::keep_packs(&mut tx, row, id, &located.places(), now_ms()).await? {
        let (size, places) = (located.chunk_size, located.places());
        segments::insert(&mut tx, row, id, size, len_bytes, &places, now_ms()).await?;
    }
    commit(tx).await?;
    Ok(!is_known)
}
