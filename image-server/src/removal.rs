//! Removing desktops, beside a running server or without one.
//!
//! A desktop that is removed leaves every listing at once, and its name is free. What it holds stays for [`KEPT_MS`], so that it
//! can be taken back; then, or at once where somebody says so, its versions are pruned, and the garbage collector
//! ([`crate::gc`]) deletes what only they needed. A machine that has work of it syncs that as a fork: what it stands on is kept for it
//! as retention keeps it for any, unless it is erased at once.

use std::path::Path;

use chunk_format::{Name, Namespace};
use serde::Serialize;

use crate::clock::now_ms;
use crate::database::removal::{self as rows, RemovedSeries};
use crate::database::retention::{kept_versions, prune};
use crate::database::versions::SeriesId;
use crate::database::{Connection, Database, DatabaseError, commit, namespaces, versions};
use crate::layout::{DataDir, LayoutError};

/// How long a desktop that was removed can be taken back, milliseconds.
pub(crate) const KEPT_MS: i64 = 7 * 24 * 60 * 60 * 1000;

/// Why nothing was removed or taken back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemovalError {
    /// The directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// There is no such desktop.
    #[error("there is no desktop {desktop} of {owner} here")]
    NoSuchDesktop {
        /// The user.
        owner: Name,
        /// The desktop.
        desktop: Name,
    },
    /// No desktop of this name was removed, or its content is kept no longer.
    #[error("no removed desktop {desktop} of {owner} can be taken back")]
    NotRemoved {
        /// The user.
        owner: Name,
        /// The desktop.
        desktop: Name,
    },
    /// Another desktop has its name by now.
    #[error(
        "{owner} has another desktop {desktop} by now: remove that one first, and then take number {number} back"
    )]
    NameTaken {
        /// The user.
        owner: Name,
        /// The desktop.
        desktop: Name,
        /// The number of the one that was removed.
        number: i64,
    },
}

/// A desktop that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Tells it apart from others that were removed under its name.
    pub number: i64,
    /// The user it is of.
    pub owner: Name,
    /// Its name.
    pub desktop: Name,
    /// Its versions whose content is kept.
    pub versions: u64,
    /// When it was removed, milliseconds since 1970 UTC.
    pub removed_ms: i64,
    /// From when on its versions are pruned, and it cannot be taken back.
    pub kept_until_ms: i64,
}

impl Removed {
    pub(crate) fn new(number: i64, owner: Name, desktop: Name, versions: u64, removed_ms: i64) -> Self {
        let kept_until_ms = removed_ms.saturating_add(KEPT_MS);
        Self { number, owner, desktop, versions, removed_ms, kept_until_ms }
    }

    fn of(row: RemovedSeries) -> Self {
        Self::new(row.id.0, row.owner, row.name, row.versions, row.removed_ms)
    }
}

/// Whether a desktop that was removed then is to be pruned now.
pub(crate) fn is_over(removed_ms: i64, now_ms: i64) -> bool {
    now_ms >= removed_ms.saturating_add(KEPT_MS)
}

/// Lists the desktops that can be taken back, the last one removed first.
///
/// # Errors
/// [`RemovalError`].
pub async fn list(root: &Path) -> Result<Vec<Removed>, RemovalError> {
    let database = open(root).await?;
    let listed = rows::list(database.readers()).await;
    database.close().await;
    Ok(listed?.into_iter().map(Removed::of).collect())
}

/// Removes a user's desktop; `at_once` prunes its versions.
///
/// # Errors
/// [`RemovalError`].
pub async fn remove(
    root: &Path,
    owner: &Name,
    desktop: &Name,
    at_once: bool,
) -> Result<Removed, RemovalError> {
    let database = open(root).await?;
    let removed = remove_in(&database, owner, desktop, at_once, now_ms()).await;
    database.close().await;
    removed
}

async fn remove_in(
    database: &Database,
    owner: &Name,
    desktop: &Name,
    at_once: bool,
    now_ms: i64,
) -> Result<Removed, RemovalError> {
    let no_such = || RemovalError::NoSuchDesktop { owner: owner.clone(), desktop: desktop.clone() };
    let mut tx = database.begin().await?;
    let namespace = namespaces::find(&mut *tx, &Namespace::User(owner.clone())).await?.ok_or_else(no_such)?;
    let series = versions::find_series(&mut *tx, namespace.id, desktop).await?.ok_or_else(no_such)?.id;
    let count = rows::remove(&mut tx, series, now_ms).await?;
    let mut removed = Removed::new(series.0, owner.clone(), desktop.clone(), count, now_ms);
    if at_once {
        prune_all(&mut tx, series, now_ms).await?;
        removed.kept_until_ms = now_ms;
    }
    commit(tx).await?;
    Ok(removed)
}

/// Prunes the versions of a desktop that was removed.
///
/// # Errors
/// [`RemovalError`].
pub async fn erase(root: &Path, owner: &Name, desktop: &Name, number: i64) -> Result<Removed, RemovalError> {
    let database = open(root).await?;
    let erased = erase_in(&database, owner, desktop, number, now_ms()).await;
    database.close().await;
    erased
}

async fn erase_in(
    database: &Database,
    owner: &Name,
    desktop: &Name,
    number: i64,
    now_ms: i64,
) -> Result<Removed, RemovalError> {
    let mut tx = database.begin().await?;
    let row = find(&mut tx, owner, desktop, Some(number)).await?;
    prune_all(&mut tx, row.id, now_ms).await?;
    commit(tx).await?;
    Ok(Removed { kept_until_ms: now_ms, ..Removed::of(row) })
}

async fn prune_all(connection: &mut Connection, series: SeriesId, now_ms: i64) -> Result<(), DatabaseError> {
    rows::forget_standings(&mut *connection, series, None).await?;
    for version in kept_versions(&mut *connection, series).await? {
        prune(&mut *connection, version.row, now_ms).await?;
    }
    Ok(())
}

/// The desktop that was removed under this name: the one of this number, or the last one.
async fn find(
    connection: &mut Connection,
    owner: &Name,
    desktop: &Name,
    number: Option<i64>,
) -> Result<RemovedSeries, RemovalError> {
    let is_meant = |row: &RemovedSeries| {
        row.owner == *owner && row.name == *desktop && number.is_none_or(|number| row.id.0 == number)
    };
    rows::list(connection)
        .await?
        .into_iter()
        .find(is_meant)
        .ok_or_else(|| RemovalError::NotRemoved { owner: owner.clone(), desktop: desktop.clone() })
}

/// Takes back a desktop that was removed: the one of this number, or the last one of this name.
///
/// # Errors
/// [`RemovalError`].
pub async fn take_back(
    root: &Path,
    owner: &Name,
    desktop: &Name,
    number: Option<i64>,
) -> Result<Removed, RemovalError> {
    let database = open(root).await?;
    let taken = take_back_in(&database, owner, desktop, number).await;
    database.close().await;
    taken
}

async fn take_back_in(
    database: &Database,
    owner: &Name,
    desktop: &Name,
    number: Option<i64>,
) -> Result<Removed, RemovalError> {
    let mut tx = database.begin().await?;
    let row = find(&mut tx, owner, desktop, number).await?;
    if let Some(namespace) = namespaces::find(&mut *tx, &Namespace::User(owner.clone())).await?
        && !rows::is_free(&mut *tx, namespace.id, desktop).await?
    {
        return Err(RemovalError::NameTaken {
            owner: owner.clone(),
            desktop: desktop.clone(),
            number: row.id.0,
        });
    }
    rows::take_back(&mut *tx, row.id).await?;
    commit(tx).await?;
    Ok(Removed::of(row))
}

async fn open(root: &Path) -> Result<Database, RemovalError> {
    let dir = DataDir::open(root)?;
    let lock = dir.lock()?;
    let database = Database::open(&dir.database()).await?;
    drop(lock);
    Ok(database)
}
