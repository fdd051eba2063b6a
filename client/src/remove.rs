//! Removing a desktop: from the server, where its operator can take it back for some days, and from this machine.
//!
//! The server removes the version that was looked at and no other, and none that another machine holds. What other machines
//! have of it stays there: work that is not synced becomes a fork.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chunk_format::{Name, Subject};

use crate::desktop::{DesktopError, DesktopStore};
use crate::mount::{COPY_POINT, MACHINE_POINT, clean_stale};
use crate::remote::{DesktopInfo, Remote, RemoteError, RemovedDesktop};
use crate::session::DesktopLock;
use crate::state::{StateDir, StateError};
use crate::succeed::{InUseError, Unused, keep_unused};
use crate::versions::is_listed;
use crate::volume::DirVolume;

/// Why a desktop was not removed, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Neither the server nor this machine has it.
    #[error("there is no desktop {desktop}, neither on the server nor on this machine")]
    NoSuchDesktop {
        /// The desktop.
        desktop: Name,
    },
    /// The server does not have what is here: it was set back to an older state. Nothing was removed.
    #[error(
        "the server does not have version {sequence} of desktop {desktop}, which this machine has: it may be the only copy"
    )]
    OnlyHere {
        /// The desktop.
        desktop: Name,
        /// The number of the version here.
        sequence: u64,
    },
    /// It is open on this machine, or has work here. Nothing was removed.
    #[error("{0}")]
    InUse(#[from] InUseError),
    /// A desktop of this machine works in this fork. Nothing was removed.
    #[error("desktop {desktop} works in {fork} on this machine")]
    WorkOf {
        /// The fork.
        fork: Name,
        /// The desktop.
        desktop: Name,
        /// What keeps it there.
        #[source]
        source: InUseError,
    },
    /// The state directory failed. Nothing was removed.
    #[error("{0}")]
    State(#[from] StateError),
    /// The server could not be asked, or refused. Nothing was removed.
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// The server was asked, and its answer was not heard; nothing was removed here.
    #[error("it was not heard whether the server removed desktop {desktop}")]
    NotHeard {
        /// The desktop.
        desktop: Name,
        /// Why.
        #[source]
        source: RemoteError,
    },
    /// Its files on this machine are still there; the server has removed it, if it had it.
    #[error("desktop {desktop} is removed, but not {}", path.display())]
    Files {
        /// The desktop.
        desktop: Name,
        /// Its directory.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
}

/// What was removed.
#[derive(Clone, Debug)]
pub struct Removed {
    /// From the server; none when it had none of that name.
    pub from_server: Option<RemovedDesktop>,
    /// Whether there were files of it on this machine.
    pub was_here: bool,
}

/// What the server has of a desktop; none when it has none of that name.
///
/// # Errors
/// [`RemoteError`].
pub async fn look(remote: &Remote, desktop: &Name) -> Result<Option<DesktopInfo>, RemoteError> {
    match remote.desktop(desktop).await {
        Err(error) if error.code() == Some("not_found") => Ok(None),
        found => found.map(Some),
    }
}

/// Removes a desktop of which the server was found to have this. With `force`, what was written on this machine and is not synced
/// goes with it.
///
/// # Errors
/// [`RemoveError`].
pub async fn remove(
    remote: &Remote,
    state: &StateDir,
    desktop: &Name,
    found: Option<&DesktopInfo>,
    force: bool,
) -> Result<Removed, RemoveError> {
    let directory = state.desktop_path(desktop);
    let was_here = directory.exists();
    if found.is_none() && !was_here {
        return Err(RemoveError::NoSuchDesktop { desktop: desktop.clone() });
    }
    // Until all of it is gone, it is not opened on this machine.
    let (unused, locked) = match force {
        false => (Some(keep_unused(state, desktop)?), None),
        true => (None, lock(state, desktop)?),
    };
    if let Some((subject, here)) = unused.as_ref().and_then(|unused| unused.stands_on.as_ref()) {
        let is_newest = found.is_some_and(|info| info.head.id == here.id);
        if !is_newest
            && !is_listed(remote, subject, *here, true).await?
            && remote.removed(here.id).await?.is_none()
        {
            return Err(RemoveError::OnlyHere { desktop: desktop.clone(), sequence: here.sequence });
        }
    }
    let within = if force { Vec::new() } else { keep_users_unused(state, desktop)? };
    let from_server = match found {
        Some(info) => {
            let key = state.machine_key()?.public();
            let removed = remote.remove_desktop(desktop, info.head.id, &key).await;
            Some(removed.map_err(|source| match source {
                RemoteError::Refused { .. } => RemoveError::Remote(source),
                source => RemoveError::NotHeard { desktop: desktop.clone(), source },
            })?)
        }
        None => None,
    };
    if was_here {
        let failed =
            |source| RemoveError::Files { desktop: desktop.clone(), path: directory.clone(), source };
        // First what says that there is a desktop: what is left of a removal that was cut short is of none.
        match std::fs::remove_file(directory.join("desktop.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        std::fs::File::open(&directory).and_then(|names| names.sync_all()).map_err(failed)?;
        // What a run or a copy that was killed has left: nobody serves it any more.
        for point in [MACHINE_POINT, COPY_POINT] {
            if let Err(error) = clean_stale(&directory.join(point)) {
                tracing::warn!(error = &error as &dyn std::error::Error, "a dead mount is in the way");
            }
        }
        std::fs::remove_dir_all(&directory).map_err(failed)?;
    }
    drop((unused, locked, within));
    Ok(Removed { from_server, was_here })
}

/// Keeps the desktops of this machine whose work is in a fork from being opened, and checks that none of them would lose any.
fn keep_users_unused(state: &StateDir, fork: &Name) -> Result<Vec<Unused>, RemoveError> {
    let mut kept = Vec::new();
    for desktop in state.desktops()?.into_iter().filter(|desktop| desktop != fork) {
        let in_it = |source| RemoveError::WorkOf { fork: fork.clone(), desktop: desktop.clone(), source };
        let failed = |source| InUseError::Files { desktop: desktop.clone(), source };
        if is_in(fork, &state.desktop_path(&desktop)).map_err(failed)? {
            kept.push(keep_unused(state, &desktop).map_err(in_it)?);
        }
    }
    Ok(kept)
}

/// Whether the work in a desktop's directory belongs to a fork, or is about to: its commit may not have been heard of.
fn is_in(fork: &Name, directory: &Path) -> Result<bool, DesktopError> {
    let Ok(volume) = DirVolume::open(directory) else { return Ok(false) };
    let store = match DesktopStore::read_only(Arc::new(volume)) {
        Err(DesktopError::NotHere) => return Ok(false),
        store => store?,
    };
    let record = store.record();
    for version in std::iter::once(record.head).chain(record.pending.map(|pending| pending.manifest)) {
        if matches!(&store.version(version)?.manifest.subject, Subject::Desktop { desktop, .. } if desktop == fork)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn lock(state: &StateDir, desktop: &Name) -> Result<Option<DesktopLock>, InUseError> {
    let directory = state.desktop_path(desktop);
    match directory.exists() {
        true => Ok(Some(DesktopLock::take(&directory, desktop)?)),
        false => Ok(None),
    }
}
