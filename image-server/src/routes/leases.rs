//! Leases: which machine may write a desktop. `GET`, `PUT`, `DELETE /v1/desktops/DESKTOP/lease` and
//! `POST …/lease/wanted`.
//!
//! A lease keeps two machines from working on one desktop unawares; it is no safeguard. That no work is lost rests on
//! the compare-and-swap of commits alone: what is refused becomes a fork. So it is enough that a request names its machine's
//! key: whoever lies about it has the owner's token, and may take the lease anyway.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use chunk_format::{ManifestId, Name, Namespace, PublicKey};
use serde::Deserialize;

use super::desktops;
use crate::app::App;
use crate::clock::now_ms;
use crate::database::leases::{self, LeaseRow};
use crate::database::standings;
use crate::database::versions::{self, SeriesRow, VersionRow};
use crate::database::{Connection, DatabaseError, commit};
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams, check_text};
use crate::limits::{MAX_MACHINE_BYTES, MAX_SAID_BYTES};
use crate::policy::{self, DesktopPolicy};
use crate::routes::json::{LeaseAnswerJson, LeaseJson, WantedJson, fresh};

/// The body of a `PUT`: takes the lease, or renews it.
#[derive(Deserialize)]
struct Wish {
    key: PublicKey,
    machine: String,
    /// What the machine stands on.
    version: ManifestId,
    /// Take it even if another machine holds it.
    #[serde(default)]
    take: bool,
    /// Why the machine does not hand over, when it was asked to.
    refusal: Option<String>,
}

/// The body of `POST …/wanted`.
#[derive(Deserialize)]
struct Ask {
    machine: String,
    /// Whether it asked before and waits: what it was told since then stands.
    #[serde(default)]
    again: bool,
}

pub(super) async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let mut snapshot = app.database.snapshot().await?;
    let series = desktops::find(&mut snapshot, &caller, &path.get("desktop")?).await?;
    let now = now_ms();
    let found = leases::find(&mut *snapshot, series.id).await?;
    let lease = found.filter(|lease| lease.is_in_force(now)).map(|lease| lease.at(now));
    answer(&mut snapshot, &series, lease, now).await
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
    let wish: Wish = app.read_json(caller.user_id, "what is asked of a lease", &headers, body).await?;
    check_text("machine", &wish.machine, 1..=MAX_MACHINE_BYTES)?;
    if let Some(refusal) = &wish.refusal {
        check_text("refusal", refusal, 1..=MAX_SAID_BYTES)?;
    }
    let desktop: Name = path.get("desktop")?;
    let mut tx = app.database.begin().await?;
    let series = desktops::find(&mut tx, &caller, &desktop).await?;
    let version = own_version(&mut tx, &caller, wish.version).await?;
    let (now, policy) = (now_ms(), policy::read(&mut tx).await?);
    let found = leases::find(&mut *tx, series.id).await?;
    // Noted of a machine that is refused as well: what it wrote becomes a fork, which needs what it stands on.
    standings::put(&mut *tx, series.id, &wish.key, version.row, now).await?;
    if let Some(held) = found.as_ref().filter(|held| held.excludes(&wish.key, now) && !wish.take) {
        let refusal = held_error(&mut tx, &series, held.clone()).await?;
        commit(tx).await?;
        return Err(refusal);
    }
    let kept =
        found.filter(|lease| lease.key == wish.key && lease.is_in_force(now)).map(|lease| lease.at(now));
    let lease = LeaseRow {
        key: wish.key,
        machine: wish.machine,
        version: version.row,
        since_ms: kept.as_ref().map_or(now, |lease| lease.since_ms),
        renewed_ms: now,
        expires_ms: now.saturating_add(policy.lease_ms()),
        wanted_machine: kept.as_ref().and_then(|lease| lease.wanted_machine.clone()),
        wanted_ms: kept.as_ref().and_then(|lease| lease.wanted_ms),
        refusal: wish.refusal.or_else(|| kept.and_then(|lease| lease.refusal)),
    };
    leases::put(&mut *tx, series.id, &lease).await?;
    let response = answer_with(&mut tx, &series, Some(lease), now, &policy).await?;
    commit(tx).await?;
    Ok(response)
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
) -> Result<Response, ApiError> {
    query.only(&["key"])?;
    let key: PublicKey = query.needed("key")?;
    let mut tx = app.database.begin().await?;
    let series = desktops::find(&mut tx, &caller, &path.get("desktop")?).await?;
    // It may be opened there again without being asked for: what it stands on is needed until it is heard of elsewhere.
    standings::heard(&mut *tx, series.id, &key, now_ms()).await?;
    // Whoever lost it has nothing to give back.
    if leases::find(&mut *tx, series.id).await?.is_some_and(|lease| lease.key == key) {
        leases::remove(&mut *tx, series.id).await?;
    }
    commit(tx).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn want(
    State(app): State<Arc<App>>,
    caller: Caller,
    path: PathParams,
    query: QueryParams,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let Ask { machine, again } =
        app.read_json(caller.user_id, "what is asked of a lease", &headers, body).await?;
    check_text("machine", &machine, 1..=MAX_MACHINE_BYTES)?;
    let mut tx = app.database.begin().await?;
    let series = desktops::find(&mut tx, &caller, &path.get("desktop")?).await?;
    let now = now_ms();
    let found = leases::find(&mut *tx, series.id).await?;
    let mut lease = found.filter(|lease| lease.is_in_force(now)).map(|lease| lease.at(now));
    if let Some(held) = &mut lease {
        let refusal = held.refusal.take().filter(|_| again);
        (held.wanted_machine, held.wanted_ms, held.refusal) = (Some(machine), Some(now), refusal);
        leases::put(&mut *tx, series.id, held).await?;
    }
    let response = answer(&mut tx, &series, lease, now).await?;
    commit(tx).await?;
    Ok(response)
}

/// A version of one of the asker's desktops.
pub(super) async fn own_version(
    connection: &mut Connection,
    caller: &Caller,
    id: ManifestId,
) -> Result<VersionRow, ApiError> {
    let found = versions::find(&mut *connection, &Namespace::User(caller.user.clone()), id).await?;
    found.ok_or_else(|| ApiError::BadRequest(format!("`version` {id} is no version of yours")))
}

/// The refusal of what only the holder of a lease may do.
pub(super) async fn held_error(
    connection: &mut Connection,
    series: &SeriesRow,
    lease: LeaseRow,
) -> Result<ApiError, ApiError> {
    let lease = Box::new(json(connection, lease).await?);
    Ok(ApiError::LeaseHeld { desktop: series.name.to_string(), lease })
}

/// A lease as it is shown.
pub(super) async fn json(connection: &mut Connection, lease: LeaseRow) -> Result<LeaseJson, ApiError> {
    let version = versions::get(connection, lease.version).await?;
    let version = version.ok_or_else(|| DatabaseError::Value {
        what: "lease",
        found: "one on a version that is not there".to_owned(),
    })?;
    let wanted = match (lease.wanted_machine, lease.wanted_ms) {
        (Some(machine), Some(since_ms)) => Some(WantedJson { machine, since_ms }),
        _ => None,
    };
    Ok(LeaseJson {
        key: lease.key,
        machine: lease.machine,
        since_ms: lease.since_ms,
        renewed_ms: lease.renewed_ms,
        expires_ms: lease.expires_ms,
        version: version.into(),
        wanted,
        refusal: lease.refusal,
    })
}

async fn answer(
    connection: &mut Connection,
    series: &SeriesRow,
    lease: Option<LeaseRow>,
    now_ms: i64,
) -> Result<Response, ApiError> {
    let policy = policy::read(connection).await?;
    answer_with(connection, series, lease, now_ms, &policy).await
}

async fn answer_with(
    connection: &mut Connection,
    series: &SeriesRow,
    lease: Option<LeaseRow>,
    now_ms: i64,
    policy: &DesktopPolicy,
) -> Result<Response, ApiError> {
    let lease = match lease {
        Some(lease) => Some(json(connection, lease).await?),
        None => None,
    };
    let head = versions::head(connection, series.id).await?;
    let head = head.ok_or_else(|| super::versions::no_versions(series.name.as_str()))?;
    Ok(fresh(LeaseAnswerJson {
        lease,
        head: head.into(),
        now_ms,
        lease_ms: policy.lease_ms(),
        after_expiry: policy.after_expiry,
        sync_every_s: u64::from(policy.sync_every_minutes) * 60,
    }))
}
