//! Rolls a desktop back: commits a version on top of the head whose disks are those of an earlier one.
//!
//! Nothing goes away: the head stays in the history, so that a roll-back can be rolled back. Nothing of the desktop need be
//! on this machine, since no disk is read: the earlier version's segments are on the server.

use chunk_format::{Base, BootFacts, Disk, DiskRole, Manifest, Name, Subject, SystemMode};
use serde::Serialize;

use crate::desktop::Version;
use crate::remote::{NamedVersion, Remote, RemoteError};
use crate::starts::{note_held, unless_noted, while_held};
use crate::state::{StateDir, StateError};
use crate::succeed::{InUseError, SucceedError, commit_successor, keep_unused};
use crate::upstream::CommitError;
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
    /// The golden version below the system disk, where the next start would find another without more being said.
    pub golden: Option<GoldenBelow>,
}

/// The golden version that a desktop was put back on.
#[derive(Clone, Debug, Serialize)]
pub struct GoldenBelow {
    /// The image.
    pub image: Name,
    /// The golden version's number.
    pub sequence: u64,
    /// How the desktop takes up new ones.
    pub mode: SystemMode,
    /// What its channel names in place of it.
    pub named: Option<NamedVersion>,
    /// Whether it stays on this machine as long as the channel names that; where nothing of the desktop is here, that is kept in mind
    /// nowhere.
    pub stays: bool,
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
        let golden = earlier.golden.map(|golden| golden.sequence);
        let (head, earlier) = tokio::try_join!(
            fetch_version(&self.remote, &subject, info.head.id, &info.head.key),
            fetch_version(&self.remote, &subject, earlier.id, &earlier.key),
        )?;
        let to = earlier.manifest.sequence;
        let content = Content::of(&head.manifest, &earlier.manifest, part)?;
        let is_as_it_was = content.is_that_of(&head.manifest);
        let moves = is_as_it_was || content.base != head.manifest.base;
        let is_told = part != Part::Home && head.manifest.mode() != SystemMode::Own && moves;
        let mut golden = match content.base.as_ref().zip(golden).filter(|_| is_told) {
            Some((base, sequence)) => Some(self.golden_below(base, sequence, head.manifest.mode()).await?),
            None => None,
        };
        let directory = unused.stands_on.as_ref().map(|_| self.state.desktop_path(desktop));
        if let (Some(golden), Some(_)) = (&mut golden, &directory) {
            golden.stays = golden.named.is_some();
        }
        let hold = directory.zip(golden.as_ref().map(|golden| golden.named));
        if is_as_it_was {
            if let Some((directory, named)) = hold {
                unless_noted(note_held(&directory, named));
            }
            return Ok(RolledBack { to, version: None, golden });
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
        let committing = commit_successor(&self.remote, &key, &self.machine, &head, change);
        let version = match hold {
            Some((directory, named)) => {
                let is_unheard =
                    |error: &SucceedError| matches!(error, SucceedError::Commit(CommitError::Remote(_)));
                while_held(&directory, named, committing, is_unheard).await?
            }
            None => committing.await?,
        };
        unused.note_standing(&self.remote, desktop, &key).await;
        Ok(RolledBack { to, version: Some(version), golden })
    }

    /// What becomes of a golden version below a desktop that follows a channel.
    async fn golden_below(
        &self,
        base: &Base,
        sequence: u64,
        mode: SystemMode,
    ) -> Result<GoldenBelow, RollbackError> {
        let named = match &base.channel {
            Some(channel) => {
                let info = self.remote.image(&base.image).await?;
                info.rollouts.get(channel).map(|rollout| rollout.version)
            }
            None => None,
        };
        let named = named.filter(|named| named.id != base.version);
        Ok(GoldenBelow { image: base.image.clone(), sequence, mode, named, stays: false })
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
