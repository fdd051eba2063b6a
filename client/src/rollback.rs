//! Rolls a desktop back: commits a version on top of the head whose disks are those of an earlier one.
//!
//! Nothing goes away: the head stays in the history, so that a roll-back can be rolled back. Nothing of the desktop need be
//! on this machine, since no disk is read: the earlier version's segments are on the server.

use chunk_format::{Base, BootFacts, Disk, DiskRole, Manifest, Name, Subject};

use crate::desktop::Version;
use crate::remote::{Remote, RemoteError};
use crate::state::{StateDir, StateError};
use crate::succeed::{InUseError, SucceedError, commit_successor, keep_unused};
use crate::versions::{VersionError, fetch_version, find_version};

/// Why a desktop was not rolled back. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RollbackError {
    /// The server knows no such desktop.
    #[error("there is no desktop {desktop} on the server")]
    NoSuchDesktop {
        /// The desktop.
        desktop: Name,
    },
    /// The versions do not both have such a disk.
    #[error("version {sequence} has no {role} disk to go back to")]
    NoSuchDisk {
        /// The earlier version.
        sequence: u64,
        /// The disk's role.
        role: DiskRole,
    },
    /// The desktop is open on this machine, or has work here.
    #[error("{0}")]
    InUse(#[from] InUseError),
    /// The state directory failed.
    #[error("{0}")]
    State(#[from] StateError),
    /// A version could not be found or does not hold.
    #[error("{0}")]
    Version(#[from] VersionError),
    /// The server could not be asked.
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// The new version was not committed.
    #[error("{0}")]
    Succeed(#[from] SucceedError),
}

/// Which disks go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    #[default]
    All,
    /// The system disk, and with it the golden version below.
    System,
    /// The home disk.
    Home,
}

/// What a roll-back needs.
#[derive(Debug)]
pub struct Roller<'a> {
    /// The server.
    pub remote: Remote,
    /// Where the desktop's files are if it has any here, and the key that signs.
    pub state: &'a StateDir,
    /// The user the desktop belongs to.
    pub owner: Name,
    /// What to call this machine in the history.
    pub machine: String,
    /// The time, milliseconds since 1970 UTC, for people.
    pub now_ms: fn() -> u64,
}

/// What a roll-back did.
#[derive(Clone, Debug)]
pub struct RolledBack {
    /// The earlier version's number.
    pub to: u64,
    /// The new version; none when the head has these disks already.
    pub version: Option<Version>,
}

impl Roller<'_> {
    /// Puts a version with the disks of `wanted` (a number, an id, or the beginning of one) on top of the head.
    ///
    /// # Errors
    /// [`RollbackError`].
    pub async fn roll_back(
        &self,
        desktop: &Name,
        wanted: &str,
        part: Part,
    ) -> Result<RolledBack, RollbackError> {
        let unused = keep_unused(self.state, desktop)?;
        let info = match self.remote.desktop(desktop).await {
            Err(error) if error.code() == Some("not_found") => {
                return Err(RollbackError::NoSuchDesktop { desktop: desktop.clone() });
            }
            info => info?,
        };
        let subject = Subject::Desktop { owner: self.owner.clone(), desktop: desktop.clone() };
        let earlier = find_version(&self.remote, &subject, wanted).await?;
        let (head, earlier) = tokio::try_join!(
            fetch_version(&self.remote, &subject, info.head.id, &info.head.key),
            fetch_version(&self.remote, &subject, earlier.id, &earlier.key),
        )?;
        let to = earlier.manifest.sequence;
        let content = Content::of(&head.manifest, &earlier.manifest, part)?;
        if content.is_that_of(&head.manifest) {
            return Ok(RolledBack { to, version: None });
        }
        let change = Manifest {
            disks: content.disks,
            base: content.base,
            boot: content.boot,
            created_ms: (self.now_ms)(),
            note: Some(note(to, part)),
            ..head.manifest.clone()
        };
        let key = self.state.machine_key()?;
        let version = commit_successor(&self.remote, &key, &self.machine, &head, change).await?;
        unused.note_standing(&self.remote, desktop, &key).await;
        Ok(RolledBack { to, version: Some(version) })
    }
}

/// What a roll-back says of the version it makes. The server's retention knows this beginning: no person wrote it.
fn note(to: u64, part: Part) -> String {
    match part {
        Part::All => format!("rolled back to version {to}"),
        Part::System => format!("rolled back to version {to}, the system disk only"),
        Part::Home => format!("rolled back to version {to}, the home disk only"),
    }
}

/// What a roll-back changes of a version.
struct Content {
    disks: Vec<Disk>,
    base: Option<Base>,
    boot: BootFacts,
}

impl Content {
    fn of(head: &Manifest, earlier: &Manifest, part: Part) -> Result<Self, RollbackError> {
        let role = match part {
            Part::All => {
                let (disks, base, boot) = (earlier.disks.clone(), earlier.base.clone(), earlier.boot);
                return Ok(Self { disks, base, boot });
            }
            Part::System => DiskRole::System,
            Part::Home => DiskRole::Home,
        };
        let mut disks = head.disks.clone();
        let old = earlier.disks.iter().find(|disk| disk.role == role);
        let (Some(slot), Some(old)) = (disks.iter_mut().find(|disk| disk.role == role), old) else {
            return Err(RollbackError::NoSuchDisk { sequence: earlier.sequence, role });
        };
        *slot = old.clone();
        // The golden version and the way to boot are the system disk's.
        let system = if part == Part::System { earlier } else { head };
        Ok(Self { disks, base: system.base.clone(), boot: system.boot })
    }

    fn is_that_of(&self, manifest: &Manifest) -> bool {
        self.disks == manifest.disks && self.base == manifest.base && self.boot == manifest.boot
    }
}
