//! Moving channels: `GET` and `PUT /v1/images/IMAGE/channels/CHANNEL`.
//!
//! A move to an older version needs the publisher's signature over it: clients take nothing back that the publisher has not
//! taken back, whoever serves them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use chunk_format::{ManifestId, Name, Namespace, Signature, rollback_statement};
use serde::{Deserialize, Serialize};

use super::images::find;
use super::json::RolloutJson;
use crate::app::App;
use crate::clock::now_ms;
use crate::database::channels::{self, ChannelMove, ChannelRow, Rollback};
use crate::database::versions::{self, SeriesRow, VersionRow};
use crate::database::{Connection, commit as end_transaction};
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::params::{PathParams, QueryParams};
use crate::routes::json::fresh;

/// Where a channel is to point.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    version: ManifestId,
    /// The version it is thought to point at; it is moved whatever it points at without it.
    from: Option<ManifestId>,
    percent: Option<u8>,
    paused: Option<bool>,
    /// The publisher's signature, for a move to an older version, and to say anew that it was one.
    signature: Option<String>,
}

#[derive(Serialize)]
struct MoveJson {
    version: ManifestId,
    sequence: u64,
    percent: u8,
    paused: bool,
    moved_ms: i64,
}

/// A channel and its moves, the latest first.
#[derive(Serialize)]
struct ChannelJson {
    image: Name,
    channel: Name,
    #[serde(flatten)]
    rollout: RolloutJson,
    moves: Vec<MoveJson>,
}

pub(super) async fn get(
    State(app): State<Arc<App>>,
    _caller: Caller,
    path: PathParams,
    query: QueryParams,
) -> Result<Response, ApiError> {
    query.only(&[])?;
    let (image, channel): (Name, Name) = (path.get("image")?, path.get("channel")?);
    let mut snapshot = app.database.snapshot().await?;
    let series = find(&mut snapshot, &image).await?;
    Ok(fresh(describe(&mut snapshot, &series, &channel).await?))
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
    let (image, channel): (Name, Name) = (path.get("image")?, path.get("channel")?);
    caller.check_write(&app.database, &Namespace::Image(image.clone())).await?;
    let wish: Wish = app.read_json(caller.user_id, "a move", &headers, body).await?;
    let work = make_move(app.clone(), caller, image, channel, wish);
    Ok(fresh(app.to_the_end((), work).await?))
}

async fn make_move(
    app: Arc<App>,
    caller: Caller,
    image: Name,
    channel: Name,
    wish: Wish,
) -> Result<ChannelJson, ApiError> {
    let mut tx = app.database.begin().await?;
    let series = find(&mut tx, &image).await?;
    caller.claim(&mut tx, &Namespace::Image(image.clone())).await?;
    let present = channels::find(&mut *tx, series.id, &channel).await?;
    let pointed = present.as_ref().map(|present| present.version.id);
    if wish.from.is_some() && wish.from != pointed {
        return Err(ApiError::ChannelMoved { channel: channel.to_string(), present: pointed });
    }
    let version = versions::find(&mut *tx, &Namespace::Image(image.clone()), wish.version).await?;
    let version = version.filter(|version| version.pruned_ms.is_none()).ok_or_else(|| {
        ApiError::BadRequest(format!("`version` {} is no version of image {image}", wish.version))
    })?;
    let to = check(&mut tx, &series, &channel, present.as_ref(), &version, &wish).await?;
    channels::set(&mut tx, series.id, &channel, &to, now_ms()).await?;
    let described = describe(&mut tx, &series, &channel).await?;
    end_transaction(tx).await?;
    Ok(described)
}

/// Checks a move; what is not said stays as it is for the version that the channel points at already.
async fn check(
    connection: &mut Connection,
    series: &SeriesRow,
    channel: &Name,
    present: Option<&ChannelRow>,
    version: &VersionRow,
    wish: &Wish,
) -> Result<ChannelMove, ApiError> {
    let same = present.filter(|present| present.version.row == version.row);
    let percent = wish.percent.or(same.map(|same| same.percent)).unwrap_or(100);
    if percent > 100 {
        return Err(ApiError::BadRequest(format!("`percent` is {percent}, but must be at most 100")));
    }
    let paused = wish.paused.or(same.map(|same| same.paused)).unwrap_or(false);
    let is_staged =
        wish.percent.is_some_and(|percent| percent < 100) || (wish.paused == Some(true) && present.is_none());
    if is_staged && !has_others(present, version) {
        return Err(ApiError::BadRequest(format!(
            "channel {channel} has no version before {} on which desktops could stay that the move does not reach: leave \
             `percent` and `paused` out, so that it is for all, and stage the move after it",
            version.sequence
        )));
    }
    let mut to = ChannelMove { version: version.row, percent, paused, rollback: None };
    let is_back = present.is_some_and(|present| version.sequence < present.version.sequence);
    if is_back && (percent < 100 || paused) {
        let message = "a channel goes back to an older version at once: leave `percent` and `paused` out";
        return Err(ApiError::BadRequest(message.to_owned()));
    }
    // Each newer version makes the word void for those that have seen it: it is given anew where the channel is.
    let is_said_anew = wish.signature.is_some() && same.is_some_and(|same| same.rollback.is_some());
    if is_back || is_said_anew {
        to.rollback = Some(signed_rollback(connection, series, channel, version, wish).await?);
    }
    Ok(to)
}

/// Whether a move of the channel to this version has another one before it.
fn has_others(present: Option<&ChannelRow>, version: &VersionRow) -> bool {
    present.is_some_and(|present| present.version.row != version.row || present.previous.is_some())
}

async fn signed_rollback(
    connection: &mut Connection,
    series: &SeriesRow,
    channel: &Name,
    version: &VersionRow,
    wish: &Wish,
) -> Result<Rollback, ApiError> {
    let head = versions::head(connection, series.id).await?;
    let newest = head.map_or(version.sequence, |head| head.sequence);
    let Some(line) = &wish.signature else {
        let message = "`signature`: a move to an older version needs the publisher's signature over the rollback statement";
        return Err(ApiError::BadRequest(message.to_owned()));
    };
    let signature: Signature =
        line.parse().map_err(|error| ApiError::BadRequest(format!("`signature`: {error}")))?;
    if let Some(key) = series.publisher_key
        && key != signature.key
    {
        return Err(ApiError::PublisherKey { image: series.name.to_string(), key });
    }
    let statement = rollback_statement(&series.name, channel, version.id, newest);
    signature.verify("the rollback statement", &statement).map_err(ApiError::Damaged)?;
    Ok(Rollback { newest, signature })
}

async fn describe(
    connection: &mut Connection,
    series: &SeriesRow,
    channel: &Name,
) -> Result<ChannelJson, ApiError> {
    let image = series.name.clone();
    let row = channels::find(&mut *connection, series.id, channel).await?;
    let row = row.ok_or_else(|| ApiError::no_such(format_args!("channel {channel} of image {image}")))?;
    let moves = channels::moves(connection, series.id, channel).await?;
    let moves = moves.into_iter().map(|made| MoveJson {
        version: made.version,
        sequence: made.sequence,
        percent: made.percent,
        paused: made.paused,
        moved_ms: made.moved_ms,
    });
    Ok(ChannelJson { image, channel: channel.clone(), rollout: row.into(), moves: moves.collect() })
}
