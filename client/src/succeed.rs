//! Commits a version on top of a desktop's head without having its disks here: what a roll-back, a renewal and an
//! adoption have in common. All segments of the new version are on the server already; only the manifest is sent.

use std::sync::Arc;

use chunk_format::{Features, FormatError, Manifest, Name, SecretKey, Subject};

use crate::desktop::{DesktopError, DesktopStore, Version};
use crate::lease;
use crate::remote::{NamedVersion, Placing, Remote};
use crate::session::{DesktopLock, SessionError, has_changes};
use crate::state::StateDir;
use crate::upload::Patience;
use crate::upstream::{CommitError, Upstream};
use crate::volume::DirVolume;

/// Why a version was not put on top of the head.
#[derive(Debug, thiserror::Error)]
pub enum SucceedError {
    /// The head was made by a newer program, which knows things this one would drop.
    #[error("cannot follow version {sequence}")]
    NotWritable {
        /// The head's number.
        sequence: u64,
        /// What is not known here.
        #[source]
        source: FormatError,
    },
    /// The version could not be written down.
    #[error("{0}")]
    Format(#[from] FormatError),
    /// The server did not commit it.
    #[error("{0}")]
    Commit(#[from] CommitError),
}

/// Why nothing is put on top of a desktop's head from this machine.
#[derive(Debug, thiserror::Error)]
pub enum InUseError {
    /// What was written on this machine is not synced: a version put on the head would part it from the one it was written
    /// on, and make a fork of it.
    #[error("desktop {desktop} has changes on this machine that are not synced")]
    Unsynced {
        /// The desktop.
        desktop: Name,
    },
    /// The desktop is open, or its files failed.
    #[error("{0}")]
    Session(#[from] SessionError),
    /// The desktop's files on this machine cannot be read.
    #[error("cannot read what of desktop {desktop} is on this machine")]
    Files {
        /// The desktop.
        desktop: Name,
        /// Why.
        #[source]
        source: DesktopError,
    },
}

/// A desktop that is not in use on this machine for as long as this is held.
#[derive(Debug)]
pub struct Unused {
    /// What its files here stand on, if there are any: a version of the desktop's, or of a fork's.
    pub(crate) stands_on: Option<(Subject, NamedVersion)>,
    _lock: Option<DesktopLock>,
}

impl Unused {
    /// Tells the server what the files here still stand on, since it takes a commit's machine to stand on what it committed.
    pub(crate) async fn note_standing(&self, remote: &Remote, desktop: &Name, key: &SecretKey) {
        if let Some((_, version)) = &self.stands_on {
            lease::note_standing(remote, desktop, &key.public(), version.id).await;
        }
    }
}

/// Keeps a desktop from being opened on this machine, and checks that nothing written here would be left behind.
///
/// # Errors
/// [`InUseError`].
pub fn keep_unused(state: &StateDir, desktop: &Name) -> Result<Unused, InUseError> {
    let directory = state.desktop_path(desktop);
    if !directory.exists() {
        return Ok(Unused { stands_on: None, _lock: None });
    }
    let lock = Some(DesktopLock::take(&directory, desktop)?);
    let failed = |source| InUseError::Files { desktop: desktop.clone(), source };
    let volume = DirVolume::open(&directory)
        .map_err(|source| SessionError::Lock { path: directory.clone(), source })?;
    let store = match DesktopStore::read_only(Arc::new(volume)) {
        Err(DesktopError::NotHere) => return Ok(Unused { stands_on: None, _lock: lock }),
        store => store.map_err(failed)?,
    };
    let record = store.record();
    let here = store.version(record.head).map_err(failed)?;
    // A checkpoint that waits to be sent is work, too.
    if record.note.is_some() || has_changes(&store, &here).map_err(failed)? {
        return Err(InUseError::Unsynced { desktop: desktop.clone() });
    }
    let version = NamedVersion { id: here.id, sequence: here.manifest.sequence };
    Ok(Unused { stands_on: Some((here.manifest.subject, version)), _lock: lock })
}

/// Commits the version after `head`, signed with this machine's key.
///
/// What it is comes from `change`: its disks, base, boot facts, note and `created_ms`. Where it stands comes from `head`:
/// subject, parent and sequence; `machine` says who made it. A repeated call with the same `change` answers the same
/// version.
///
/// # Errors
/// [`SucceedError`]; `Commit(HeadMoved)` when `head` is no longer the head, and nothing was changed.
pub async fn commit_successor(
    remote: &Remote,
    key: &SecretKey,
    machine: &str,
    head: &Version,
    change: Manifest,
) -> Result<Version, SucceedError> {
    let version = successor(key, machine, head, change)?;
    commit(remote, &version).await?;
    Ok(version)
}

/// The version that [`commit_successor`] commits.
///
/// # Errors
/// `NotWritable`, `Format`.
pub(crate) fn successor(
    key: &SecretKey,
    machine: &str,
    head: &Version,
    change: Manifest,
) -> Result<Version, SucceedError> {
    let sequence = head.manifest.sequence;
    head.manifest.check_writable().map_err(|source| SucceedError::NotWritable { sequence, source })?;
    let manifest = Manifest {
        features: Features::default(),
        subject: head.manifest.subject.clone(),
        parent: Some(head.id),
        sequence: sequence + 1,
        machine: machine.to_owned(),
        ..change
    };
    let bytes = manifest.encode()?;
    Ok(Version::decode(bytes.clone(), key.sign(&bytes))?)
}

/// Commits a version on the head that it names.
///
/// # Errors
/// `Commit`.
pub(crate) async fn commit(remote: &Remote, version: &Version) -> Result<(), SucceedError> {
    let commit = || {
        let subject = &version.manifest.subject;
        Upstream::commit(remote, subject, Placing::default(), version.bytes.clone(), &version.signature)
    };
    Patience::DEFAULT.retry(commit).await?;
    Ok(())
}
