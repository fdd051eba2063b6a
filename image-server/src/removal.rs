//! Removing desktops, beside a running server or without one.
//!
//! A desktop that is removed leaves every listing at once, and its name is free. What it holds stays for [`KEPT_MS`], so that it
//! can be taken back; then, or at once where somebody says so, its versions are pruned, and the garbage collector
//! ([`crate::gc`]) deletes what only they needed. A machine that has work of it syncs that as a fork: removing loses nobody's work.

use std::path::Path;

use chunk_format::{Name, Namespace};
use serde::Serialize;

use crate::clock::now_ms;
use crate::database::removal::{self as rows, RemovedSeries};
use crate::database::retention::{kept_versions, prune};
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
    #[error("{owner} has another desktop {desktop} by now: remove that one first")]
    NameTaken {
        /// The user.
        owner: Name,
        /// The desktop.
        desktop: Name,
    },
}

/// A desktop that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Removed {
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
    pub(crate) fn new(owner: Name, desktop: Name, versions: u64, removed_ms: i64) -> Self {
        Self { owner, desktop, versions, removed_ms, kept_until_ms: removed_ms.saturating_add(KEPT_MS) }
    }

    fn of(row: RemovedSeries) -> Self {
        Self::new(row.owner, row.name, row.versions, row.removed_ms)
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

/// Removes a user's desktop; `at_once` prunes its versions, and those of the ones that were removed under its name before.
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
    let series = versions::find_series(&mut *tx, namespace.id, desktop).await?;
    let mut done = match &series {
        Some(series) => {
            let count = rows::remove(&mut tx, series.id, now_ms).await?;
            Some(Removed::new(owner.clone(), desktop.clone(), count, now_ms))
        }
        None => None,
    };
    if at_once {
        for row in rows::list(&mut *tx).await? {
            if row.owner == *owner && row.name == *desktop {
                prune_all(&mut tx, &row, now_ms).await?;
                let removed = Removed { kept_until_ms: now_ms, ..Removed::of(row) };
                done = Some(done.map_or(removed, |done| Removed { kept_until_ms: now_ms, ..done }));
            }
        }
    }
    let done = done.ok_or_else(no_such)?;
    commit(tx).await?;
    Ok(done)
}

async fn prune_all(
    connection: &mut Connection,
    row: &RemovedSeries,
    now_ms: i64,
) -> Result<(), DatabaseError> {
    for version in kept_versions(&mut *connection, row.id).await? {
        prune(&mut *connection, version.row, now_ms).await?;
    }
    Ok(())
}

/// Takes back the desktop that was removed last under this name.
///
/// # Errors
/// [`RemovalError`].
pub async fn take_back(root: &Path, owner: &Name, desktop: &Name) -> Result<Removed, RemovalError> {
    let database = open(root).await?;
    let taken = take_back_in(&database, owner, desktop).await;
    database.close().await;
    taken
}

async fn take_back_in(database: &Database, owner: &Name, desktop: &Name) -> Result<Removed, RemovalError> {
    let names = || (owner.clone(), desktop.clone());
    let mut tx = database.begin().await?;
    let row = rows::list(&mut *tx).await?.into_iter().find(|row| row.owner == *owner && row.name == *desktop);
    let row = row.ok_or_else(|| {
        let (owner, desktop) = names();
        RemovalError::NotRemoved { owner, desktop }
    })?;
    let namespace = namespaces::find(&mut *tx, &Namespace::User(owner.clone())).await?;
    if let Some(namespace) = namespace
        && !rows::is_free(&mut *tx, namespace.id, desktop).await?
    {
        let (owner, desktop) = names();
        return Err(RemovalError::NameTaken { owner, desktop });
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
