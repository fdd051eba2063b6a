//! Receiving packs: `PUT /v1/data/NAMESPACE/packs/ID`.
//!
//! A pack is written to the staging place while it is hashed, then read back and every frame decoded and hashed, then
//! given its name, then its rows are written. A crash in between leaves an object nobody refers to, never a row without
//! its object. An upload of a pack that is there takes the same way: it changes nothing, or heals what was damaged.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use chunk_format::{FormatError, MAX_PACK_BYTES, Namespace, PackHasher, PackId};

use crate::app::App;
use crate::clock::now_ms;
use crate::database::{commit, packs};
use crate::http::auth::Caller;
use crate::http::body::BodyReader;
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams};
use crate::pack_check;
use crate::secret;
use crate::storage::{Object, ObjectKey, Staging};

pub(super) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    query.only(&[])?;
    let namespace = path.namespace()?;
    let pack: PackId = path.get("object")?;
    caller.check_write(&app.database, &namespace).await?;
    let body = BodyReader::new(&headers, body, "a pack", MAX_PACK_BYTES, &app.limits)?;
    let turn = app.upload_turn(caller.user_id).await?;
    let len_bytes = body.len_bytes();
    app.storage.check_room(len_bytes).await?;
    let staging = receive(&app, body, pack).await?;
    let work = store(app.clone(), caller, namespace, pack, len_bytes, staging);
    let is_new = app.to_the_end(turn, work).await?;
    Ok(if is_new { StatusCode::CREATED } else { StatusCode::OK })
}

/// Takes the body to the staging place and checks its id.
async fn receive(app: &App, mut body: BodyReader, pack: PackId) -> Result<Staging, ApiError> {
    let name = secret::random::<16>().map_err(ApiError::internal)?;
    let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut staging = app.storage.stage(&name).await?;
    let mut hash = PackHasher::default();
    while let Some(bytes) = body.next().await? {
        hash.update(&bytes);
        staging.write(bytes).await?;
    }
    let found = hash.finish();
    if found != pack {
        let (expected, found) = (pack.to_string(), found.to_string());
        return Err(ApiError::Damaged(FormatError::IdMismatch { what: "pack", expected, found }));
    }
    Ok(staging)
}

/// Checks what was received and lets it count.
async fn store(
    app: Arc<App>,
    caller: Caller,
    namespace: Namespace,
    pack: PackId,
    len_bytes: u64,
    mut staging: Staging,
) -> Result<bool, ApiError> {
    staging.finish().await?;
    let footer = pack_check::check(&app, staging.path(), len_bytes).await?;
    let key = ObjectKey { namespace, object: Object::Pack(pack) };
    staging.prepare(&key).await?;
    // The object takes its name while the database is ours: the garbage collector removes objects in the same way.
    let mut tx = app.database.begin().await?;
    let row = caller.claim(&mut tx, &key.namespace).await?;
    staging.publish(&key).await?;
    let is_new =
        packs::insert(&mut tx, row, pack, len_bytes, footer.chunk_size, &footer.entries, now_ms()).await?;
    commit(tx).await?;
    staging.discard().await;
    Ok(is_new)
}
