//! The caller's own desktops: `GET /v1/desktops…`, `DELETE /v1/desktops/DESKTOP`, `GET /v1/removed/VERSION`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use chunk_format::{ManifestId, Name, Namespace, PublicKey};

use super::versions::{Page, no_versions};
use crate::app::App;
use crate::clock::now_ms;
use crate::database::versions::{self, SeriesRow, VersionRow};
use crate::database::{Connection, DatabaseError, commit, leases, mirrors, namespaces, profiles, removal};
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams};
use crate::removal::Removed;
use crate::routes::json::{BaseJson, DesktopJson, DesktopsJson, RemovedVersionJson, fresh};

pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: QueryParams,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let mut snapshot = app.database.snapshot().await?;
    let mut desktops = Vec::new();
    for series in versions::list_series(&mut *snapshot, Some(&Namespace::User(caller.user.clone()))).await? {
        desktops.push(desktop(&mut snapshot, &caller, series).await?);
    }
    Ok(fresh(DesktopsJson { desktops }))
}

pub(super) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let mut snapshot = app.database.snapshot().await?;
    let series = find(&mut snapshot, &caller, &path.get("desktop")?).await?;
    Ok(fresh(desktop(&mut snapshot, &caller, series).await?))
}

pub(super) async fn versions(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
) -> Result<Response, ApiError> {
    let page = Page::new(&query)?;
    let mut snapshot = app.database.snapshot().await?;
    let series = find(&mut snapshot, &caller, &path.get("desktop")?).await?;
    page.answer(&mut snapshot, series.id).await
}

/// Removes the desktop, if its newest version is the one that is named, and no other machine holds it.
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
) -> Result<Response, ApiError> {
    query.only(&["head", "key"])?;
    let (wanted, key): (ManifestId, PublicKey) = (query.needed("head")?, query.needed("key")?);
    let mut tx = app.database.begin().await?;
    let series = find(&mut tx, &caller, &path.get("desktop")?).await?;
    let now = now_ms();
    let head = versions::head(&mut *tx, series.id).await?;
    if head.as_ref().map(|head| head.id) != Some(wanted) {
        let subject = format!("desktop {}", series.name);
        return Err(ApiError::HeadMoved { subject, head: head.map(|head| Box::new(head.into())) });
    }
    if let Some(held) = leases::find(&mut *tx, series.id).await?.filter(|held| held.excludes(&key, now)) {
        return Err(super::leases::held_error(&mut tx, &series, held).await?);
    }
    let count = removal::remove(&mut tx, series.id, now).await?;
    // It has nothing of it any more; others may have work.
    removal::forget_standings(&mut *tx, series.id, Some(&key)).await?;
    commit(tx).await?;
    Ok(fresh(Removed::new(series.id.0, caller.user, series.name, count, now)))
}

/// The desktop of the caller's that was removed with this version.
pub(super) async fn removed(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let version: ManifestId = path.get("version")?;
    let namespace = Namespace::User(caller.user.clone());
    let found = removal::of_version(app.database.readers(), &namespace, version).await?;
    let (desktop, removed_ms) =
        found.ok_or_else(|| ApiError::no_such(format_args!("removed version {version}")))?;
    Ok(fresh(RemovedVersionJson { desktop, removed_ms }))
}

/// One of the caller's desktops.
pub(super) async fn find(
    connection: &mut Connection,
    caller: &Caller,
    name: &Name,
) -> Result<SeriesRow, ApiError> {
    let namespace = Namespace::User(caller.user.clone());
    let row = namespaces::find(&mut *connection, &namespace).await?;
    let series = match row {
        Some(row) => versions::find_series(connection, row.id, name).await?,
        None => None,
    };
    series.ok_or_else(|| ApiError::no_such(format_args!("desktop {name}")))
}

async fn desktop(
    connection: &mut Connection,
    caller: &Caller,
    series: SeriesRow,
) -> Result<DesktopJson, ApiError> {
    let first = versions::first(&mut *connection, series.id).await?;
    let head = versions::head(&mut *connection, series.id).await?;
    let (Some(first), Some(head)) = (first, head) else { return Err(no_versions(series.name.as_str())) };
    let base = base(connection, &head).await?;
    let owner = caller.user.clone();
    let now = now_ms();
    let held = leases::find(&mut *connection, series.id).await?.filter(|lease| lease.is_in_force(now));
    let lease = match held {
        Some(lease) => Some(super::leases::json(connection, lease).await?),
        None => None,
    };
    Ok(DesktopJson {
        desktop: series.name,
        owner,
        id: first.id,
        fork_of: series.fork_of,
        base,
        head: head.into(),
        lease,
    })
}

async fn base(connection: &mut Connection, head: &VersionRow) -> Result<BaseJson, ApiError> {
    let version = match head.base {
        Some(row) => versions::get(&mut *connection, row).await?,
        None => None,
    };
    let Some(version) = version else {
        let found = format!("a desktop's version {} without a base", head.id);
        return Err(DatabaseError::Value { what: "version", found }.into());
    };
    let (namespace, name) = versions::series_of(&mut *connection, version.row).await?;
    let mut hosts = Vec::new();
    if let Some(row) = namespaces::find(&mut *connection, &namespace).await?
        && let Some(series) = versions::find_series(&mut *connection, row.id, &name).await?
    {
        hosts = mirrors::list(&mut *connection, series.id).await?;
    }
    Ok(BaseJson {
        image: namespace.name().clone(),
        channel: head.base_channel.clone(),
        version: version.id,
        publisher: version.signature.key,
        profile: profiles::current(&mut *connection, version.row).await?,
        mirrors: hosts,
    })
}
