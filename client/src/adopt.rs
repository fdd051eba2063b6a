//! Adopting a fork: its disks become the desktop's next version, and the desktop's become the fork's. Nothing is
//! overwritten: both histories only grow, and adopting again undoes it.
//!
//! The desktop's version is committed first. Should the second commit not happen, the desktop's old disks are its last
//! version but one, and adopting again goes on there. Should the second answer not come, this machine knows by a note that the
//! adoption may be done: adopting again then finds that it is, once, and undoes nothing.

mod unheard;

use std::sync::Arc;

use chunk_format::{Manifest, Name, SecretKey, Subject};
use serde::Serialize;

use crate::desktop::Version;
use crate::remote::{DesktopInfo, Remote, RemoteError};
use crate::state::StateDir;
use crate::succeed::{InUseError, SucceedError, Unused, commit, keep_unused, successor};
use crate::versions::{VersionError, fetch_version};
use unheard::Unheard;

/// Why a fork was not adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// There is no such desktop.
    #[error("there is no desktop {desktop} on the server")]
    NoDesktop {
        /// Its name.
        desktop: Name,
    },
    /// It is no fork.
    #[error("desktop {desktop} is no fork")]
    NoFork {
        /// The desktop.
        desktop: Name,
    },
    /// The desktop it is a fork of is gone.
    #[error("{fork} is a fork of desktop {desktop}, which the server does not know any more")]
    DesktopGone {
        /// The desktop.
        desktop: Name,
        /// The fork.
        fork: Name,
        /// The image that stands on.
        image: Name,
    },
    /// They stand on different images: the machines of the one would not take up versions of the other.
    #[error("desktop {desktop} stands on image {image}, and {fork} on {fork_image}")]
    OtherImage {
        /// The desktop.
        desktop: Name,
        /// Its image.
        image: Name,
        /// The fork.
        fork: Name,
        /// The fork's image.
        fork_image: Name,
    },
    /// An adoption that this machine did not hear the end of came to it, and the desktop has gone on since.
    #[error(
        "desktop {desktop} was given the disks of {fork} already, as version {version}, and has gone on since"
    )]
    DoneBefore {
        /// The desktop.
        desktop: Name,
        /// The fork.
        fork: Name,
        /// The number of the desktop's version with the fork's disks.
        version: u64,
    },
    /// A version does not hold.
    #[error("{0}")]
    Version(#[from] VersionError),
    /// One of the two is open on this machine, or has work here.
    #[error("{0}")]
    InUse(#[from] InUseError),
    /// The server could not be asked.
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// A version was not committed.
    #[error("cannot commit a version of desktop {desktop}")]
    Commit {
        /// The desktop.
        desktop: Name,
        /// Why.
        #[source]
        source: SucceedError,
    },
}

/// What an adoption did.
#[derive(Clone, Debug, Serialize)]
pub struct Adopted {
    /// The desktop.
    pub desktop: Name,
    /// The number of its version that has the fork's disks.
    pub version: u64,
    /// The fork.
    pub fork: Name,
    /// The number of its version that has the desktop's earlier disks.
    pub fork_version: u64,
}

/// What an adoption needs.
pub struct Adopter<'a> {
    /// The server.
    pub remote: Remote,
    /// Where the desktops' files are, if there are any here.
    pub state: &'a StateDir,
    /// The user, whose desktops they are.
    pub owner: Name,
    /// Signs the versions made on this machine.
    pub key: Arc<SecretKey>,
    /// What to call this machine in the history.
    pub machine: String,
    /// The time, milliseconds since 1970 UTC, for people.
    pub now_ms: fn() -> u64,
}

impl Adopter<'_> {
    /// Adopts a fork.
    ///
    /// # Errors
    /// [`AdoptError`]; a repeated adoption goes on where this one stopped.
    pub async fn adopt(&self, fork: &Name) -> Result<Adopted, AdoptError> {
        let fork_info = match self.remote.desktop(fork).await {
            Err(error) if error.code() == Some("not_found") => {
                return Err(AdoptError::NoDesktop { desktop: fork.clone() });
            }
            found => found?,
        };
        let Some(desktop) = fork_info.fork_of.clone() else {
            return Err(AdoptError::NoFork { desktop: fork.clone() });
        };
        // What is open or unsynced here would find its head moved, and become one more fork.
        let (unused, unused_fork) = (keep_unused(self.state, &desktop)?, keep_unused(self.state, fork)?);
        let info = match self.remote.desktop(&desktop).await {
            Err(error) if error.code() == Some("not_found") => {
                let image = fork_info.base.image;
                return Err(AdoptError::DesktopGone { desktop, fork: fork.clone(), image });
            }
            found => found?,
        };
        let (fork_head, head) = tokio::try_join!(self.head(&fork_info), self.head(&info))?;
        let image_of = |version: &Version| {
            version.manifest.base.as_ref().map(|base| (base.image.clone(), base.publisher))
        };
        if image_of(&fork_head) != image_of(&head) {
            let (fork, image, fork_image) = (fork.clone(), info.base.image, fork_info.base.image);
            return Err(AdoptError::OtherImage { desktop, image, fork, fork_image });
        }
        let directory = self.state.path();
        if let Some(done) = Unheard::load(directory, fork).filter(|noted| noted.fork_version == fork_head.id)
        {
            unused_fork.note_standing(&self.remote, fork, &self.key).await;
            Unheard::forget(directory, fork);
            let (version, fork_version) = (done.version, fork_head.manifest.sequence);
            if head.manifest.sequence > version {
                return Err(AdoptError::DoneBefore { desktop, fork: fork.clone(), version });
            }
            return Ok(Adopted { desktop, version, fork: fork.clone(), fork_version });
        }
        let (version, earlier) = match has_content_of(&head, &fork_head) {
            // An adoption was interrupted after its first step.
            true => (head.manifest.sequence, self.parent(&desktop, &head).await?),
            false => {
                let note = format!("adopted {fork}, version {}", fork_head.manifest.sequence);
                let next = self.successor(&desktop, &head, &fork_head.manifest, note)?;
                self.commit(&desktop, &unused, &next).await?;
                (next.manifest.sequence, head)
            }
        };
        let note = format!("{desktop} as it was before version {version}");
        let last = self.successor(fork, &fork_head, &earlier.manifest, note)?;
        Unheard { version, fork_version: last.id }.note(directory, fork);
        self.commit(fork, &unused_fork, &last).await?;
        Unheard::forget(directory, fork);
        Ok(Adopted { desktop, version, fork: fork.clone(), fork_version: last.manifest.sequence })
    }

    fn subject(&self, desktop: &Name) -> Subject {
        Subject::Desktop { owner: self.owner.clone(), desktop: desktop.clone() }
    }

    async fn head(&self, info: &DesktopInfo) -> Result<Version, AdoptError> {
        let subject = self.subject(&info.desktop);
        Ok(fetch_version(&self.remote, &subject, info.head.id, &info.head.key).await?)
    }

    async fn parent(&self, desktop: &Name, version: &Version) -> Result<Version, AdoptError> {
        let subject = self.subject(desktop);
        let listed = self.remote.versions(&subject, 1, Some(version.manifest.sequence)).await?;
        match listed.first() {
            Some(parent) => Ok(fetch_version(&self.remote, &subject, parent.id, &parent.key).await?),
            None => Ok(version.clone()),
        }
    }

    /// The version of a desktop after its head, with the content of another.
    fn successor(
        &self,
        desktop: &Name,
        head: &Version,
        content: &Manifest,
        note: String,
    ) -> Result<Version, AdoptError> {
        let change = Manifest { note: Some(note), created_ms: (self.now_ms)(), ..content.clone() };
        successor(&self.key, &self.machine, head, change)
            .map_err(|source| AdoptError::Commit { desktop: desktop.clone(), source })
    }

    async fn commit(&self, desktop: &Name, unused: &Unused, version: &Version) -> Result<(), AdoptError> {
        let committed = commit(&self.remote, version).await;
        committed.map_err(|source| AdoptError::Commit { desktop: desktop.clone(), source })?;
        unused.note_standing(&self.remote, desktop, &self.key).await;
        Ok(())
    }
}

impl std::fmt::Debug for Adopter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adopter").field("owner", &self.owner).finish_non_exhaustive()
    }
}

fn has_content_of(version: &Version, other: &Version) -> bool {
    version.manifest.disks == other.manifest.disks && version.manifest.base == other.manifest.base
}
