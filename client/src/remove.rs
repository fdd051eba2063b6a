//! Removing a desktop: from the server, where its operator can take it back for some days, and from this machine.
//!
//! The server removes the version that was looked at and no other, and none that another machine holds. What other machines
//! have of it stays there: work that is not synced becomes a fork.

use std::io;
use std::path::PathBuf;

use chunk_format::Name;

use crate::remote::{Remote, RemoteError, RemovedDesktop};
use crate::session::DesktopLock;
use crate::state::{StateDir, StateError};
use crate::succeed::{InUseError, keep_unused};

/// Why a desktop was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// Neither the server nor this machine has it.
    #[error("there is no desktop {desktop}, neither on the server nor on this machine")]
    NoSuchDesktop {
        /// The desktop.
        desktop: Name,
    },
    /// It is open on this machine, or has work here. Nothing was removed.
    #[error("{0}")]
    InUse(#[from] InUseError),
    /// The state directory failed. Nothing was removed.
    #[error("{0}")]
    State(#[from] StateError),
    /// The server did not remove it; nothing was removed here, either.
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// The server removed it, and its files on this machine are still there.
    #[error("cannot remove {}", path.display())]
    Files {
        /// The desktop's directory.
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

/// Removes a desktop. With `also_unsynced`, what was written on this machine and is not synced goes with it.
///
/// # Errors
/// [`RemoveError`].
pub async fn remove(
    remote: &Remote,
    state: &StateDir,
    desktop: &Name,
    also_unsynced: bool,
) -> Result<Removed, RemoveError> {
    let directory = state.desktop_path(desktop);
    let was_here = directory.exists();
    // Until all of it is gone, it is not opened on this machine.
    let (unused, locked) = match also_unsynced {
        false => (Some(keep_unused(state, desktop)?), None),
        true => (None, lock(state, desktop)?),
    };
    let from_server = match remote.desktop(desktop).await {
        Ok(info) => Some(remote.remove_desktop(desktop, info.head.id, &state.machine_key()?.public()).await?),
        Err(error) if error.code() == Some("not_found") => None,
        Err(error) => return Err(error.into()),
    };
    if from_server.is_none() && !was_here {
        return Err(RemoveError::NoSuchDesktop { desktop: desktop.clone() });
    }
    if was_here {
        let failed = |source| RemoveError::Files { path: directory.clone(), source };
        // First what says that there is a desktop: what is left of a removal that was cut short is of none.
        match std::fs::remove_file(directory.join("desktop.json")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        std::fs::remove_dir_all(&directory).map_err(failed)?;
    }
    drop((unused, locked));
    Ok(Removed { from_server, was_here })
}

fn lock(state: &StateDir, desktop: &Name) -> Result<Option<DesktopLock>, InUseError> {
    let directory = state.desktop_path(desktop);
    match directory.exists() {
        true => Ok(Some(DesktopLock::take(&directory, desktop)?)),
        false => Ok(None),
    }
}
