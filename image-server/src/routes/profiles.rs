//! Receiving boot profiles: `PUT /v1/data/NAMESPACE/streams/ID` and `PUT /v1/images/IMAGE/versions/ID/profile`.
//!
//! What a stream holds is not looked at: clients check every chunk they cut from it. A profile is taken only when its
//! streams are here and the image's publisher has signed it.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use chunk_format::{
    MAX_PROFILE_BYTES, MAX_STREAM_BYTES, ManifestId, Name, Namespace, Profile, ProfileId, Signature, StreamId,
};
use serde::Serialize;

use super::commit::signature;
use crate::app::App;
use crate::clock::now_ms;
use crate::database::{Connection, commit as end_transaction, failed, profiles, versions};
use crate::http::auth::Caller;
use crate::http::body::BodyReader;
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams};
use crate::storage::{Object, ObjectKey};

/// What was attached to what.
#[derive(Serialize)]
struct ProfileJson {
    profile: ProfileId,
    manifest: ManifestId,
}

pub(super) async fn put_stream(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, ApiError> {
    query.only(&[])?;
    let namespace = path.namespace()?;
    let id: StreamId = path.get("object")?;
    if !matches!(namespace, Namespace::Image(_)) {
        return Err(ApiError::BadRequest("path: only images have boot streams".to_owned()));
    }
    caller.check_write(&app.database, &namespace).await?;
    let body = BodyReader::new(&headers, body, "a stream", MAX_STREAM_BYTES, &app.limits)?;
    app.storage.check_room(body.len_bytes()).await?;
    let body = app.read_whole(caller.user_id, body).await?;
    let bytes = body.bytes.clone();
    let checked = tokio::task::spawn_blocking(move || id.verify(&bytes));
    checked.await.map_err(ApiError::internal)?.map_err(ApiError::Damaged)?;
    let work = store_stream(app.clone(), caller, namespace, id, body.bytes.clone());
    let is_new = app.to_the_end(body, work).await?;
    Ok(if is_new { StatusCode::CREATED } else { StatusCode::OK })
}

async fn store_stream(
    app: Arc<App>,
    caller: Caller,
    namespace: Namespace,
    id: StreamId,
    bytes: Bytes,
) -> Result<bool, ApiError> {
    let len_bytes = u32::try_from(bytes.len()).map_err(ApiError::internal)?;
    let key = ObjectKey { namespace, object: Object::Stream(id) };
    app.storage.put(&key, bytes.clone()).await?;
    let mut tx = app.database.begin().await?;
    let namespace = caller.claim(&mut tx, &key.namespace).await?;
    app.storage.ensure(&key, bytes).await?;
    let is_new = profiles::insert_stream(&mut tx, namespace, id, len_bytes, now_ms()).await?;
    end_transaction(tx).await?;
    Ok(is_new)
}

pub(super) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let image: Name = path.get("image")?;
    let manifest: ManifestId = path.get("version")?;
    let namespace = Namespace::Image(image.clone());
    let signature = signature(&headers)?;
    caller.check_write(&app.database, &namespace).await?;
    let body = BodyReader::new(&headers, body, "a profile", MAX_PROFILE_BYTES, &app.limits)?;
    let body = app.read_whole(caller.user_id, body).await?;
    let bytes = body.bytes.clone();
    let read = tokio::task::spawn_blocking(move || {
        signature.verify("the profile", &bytes).map_err(ApiError::Damaged)?;
        let profile = Profile::decode(&bytes).map_err(|error| ApiError::BadRequest(error.to_string()))?;
        Ok::<_, ApiError>(Attachment { image, namespace, manifest, signature, profile, bytes })
    });
    let attachment = read.await.map_err(ApiError::internal)??;
    let answer = ProfileJson { profile: ProfileId::of(&attachment.bytes), manifest };
    let is_new = app.to_the_end(body, attach(app.clone(), caller, attachment)).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, [(CACHE_CONTROL, "no-store")], Json(answer)).into_response())
}

/// A profile to be attached, consistent in itself.
struct Attachment {
    image: Name,
    namespace: Namespace,
    manifest: ManifestId,
    signature: Signature,
    profile: Profile,
    bytes: Bytes,
}

impl Attachment {
    fn key(&self, object: Object) -> ObjectKey {
        ObjectKey { namespace: self.namespace.clone(), object }
    }

    /// Checks the profile against the database; the version it is for.
    async fn check(&self, connection: &mut Connection) -> Result<versions::VersionRow, ApiError> {
        let version = versions::find(&mut *connection, &self.namespace, self.manifest).await?;
        let kept = version.filter(|version| version.pruned_ms.is_none());
        let version = kept.ok_or_else(|| {
            ApiError::no_such(format_args!("version {} of image {}", self.manifest, self.image))
        })?;
        let key = version.signature.key;
        if key != self.signature.key {
            return Err(ApiError::PublisherKey { image: self.image.to_string(), key });
        }
        if self.profile.manifest != self.manifest {
            return Err(ApiError::BadRequest(format!(
                "profile: `manifest` is {}, the path says {}",
                self.profile.manifest, self.manifest
            )));
        }
        let mut missing = 0;
        for stream in &self.profile.streams {
            let len = profiles::stream_len(&mut *connection, &self.namespace, stream.id).await?;
            missing += usize::from(len != Some(u64::from(stream.len_bytes)));
        }
        match missing {
            0 => Ok(version),
            missing => Err(ApiError::StreamsMissing { missing }),
        }
    }
}

/// Stores a profile and makes it the version's: first the objects, then the row, and the pointer for static hosts while
/// the row's transaction keeps others from attaching another.
async fn attach(app: Arc<App>, caller: Caller, attachment: Attachment) -> Result<bool, ApiError> {
    let mut reader = app.database.readers().acquire().await.map_err(failed("answer"))?;
    attachment.check(&mut reader).await?;
    drop(reader);
    let id = ProfileId::of(&attachment.bytes);
    let signature = Bytes::from(attachment.signature.encode());
    app.storage.put(&attachment.key(Object::Profile(id)), attachment.bytes.clone()).await?;
    app.storage.put(&attachment.key(Object::ProfileSignature(id)), signature.clone()).await?;

    let mut tx = app.database.begin().await?;
    let version = attachment.check(&mut tx).await?;
    caller.claim(&mut tx, &attachment.namespace).await?;
    app.storage.ensure(&attachment.key(Object::Profile(id)), attachment.bytes.clone()).await?;
    app.storage.ensure(&attachment.key(Object::ProfileSignature(id)), signature).await?;
    let is_new = profiles::attach(&mut tx, version.row, id, &attachment.signature, now_ms()).await?;
    let pointer = attachment.key(Object::ManifestProfile(attachment.manifest));
    app.storage.put(&pointer, Bytes::from(pointer_to(id))).await?;
    end_transaction(tx).await?;
    Ok(is_new)
}

/// What a version's pointer to its profile says.
pub(super) fn pointer_to(profile: ProfileId) -> String {
    format!("{profile}\n")
}

/// The pointer to the profile of a version, if it has one.
pub(super) async fn pointer(
    app: &App,
    namespace: &Namespace,
    manifest: ManifestId,
) -> Result<Option<String>, ApiError> {
    let Some(version) = versions::find(app.database.readers(), namespace, manifest).await? else {
        return Ok(None);
    };
    Ok(profiles::current(app.database.readers(), version.row).await?.map(pointer_to))
}
