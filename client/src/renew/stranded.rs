//! A desktop on a golden version that the server does not know: it was set back to a state from before that was published. No
//! version can be committed on it, so what the desktop holds goes over to one that the server knows, as a fork.

use chunk_format::{Disk, DiskRole, Manifest, Name, Subject};

use super::{Now, RenewError, Renewer, next_manifest};
use crate::desktop::{Version, with_room};
use crate::fork::{ForkReason, forked};
use crate::remote::{Placing, VersionInfo};
use crate::session::Session;
use crate::sync::{FORK_DIGITS, SyncError};
use crate::upstream::CommitError;

impl Renewer<'_> {
    /// Commits the home on another golden version, with that one's system disk, and moves the desktop's files there; answers the
    /// fork. A crash before the move leaves the files as they were, and a fork that holds the same.
    ///
    /// # Errors
    /// `Stranded`, where what is on the system disk would be lost; and as a renewal.
    pub(super) async fn go_over(
        &self,
        session: &Session,
        now: &Now,
        golden: &Version,
        system: Disk,
        note: String,
    ) -> Result<(VersionInfo, Name), RenewError> {
        let system_disk = session.desktop.disk(DiskRole::System);
        if !system_disk.is_some_and(|disk| session.desktop.is_volatile(disk)) {
            let (image, sequence) = (now.base.image.clone(), now.golden.sequence);
            return Err(RenewError::Stranded { image, sequence });
        }
        let others = self.syncer.send_without_system(&session.desktop).await?;
        let next = next_manifest(&now.head, &now.base, golden, system.clone(), (self.syncer.now_ms)(), note);
        let disks = std::iter::once(system).chain(others).collect();
        let bytes = Manifest { machine: self.syncer.machine.clone(), disks, ..next }.encode()?;
        let version = Version::decode(bytes.clone(), self.syncer.key.sign(&bytes))?;
        for digits in FORK_DIGITS {
            let fork = forked(&version, digits, &self.syncer.key)?;
            let committed = match self.commit_fork(session, &fork).await {
                Ok(committed) => committed,
                Err(CommitError::Remote(error)) => return Err(error.into()),
                // The name is taken: the next has another.
                Err(_) => continue,
            };
            let desktop = &session.desktop;
            // The server has all of this now: the cache may give space.
            desktop.set_head_lost(false);
            let moved = with_room(desktop.cache(), || desktop.store().move_to(&fork, golden));
            desktop.set_head_lost(moved.is_err());
            moved?;
            let Subject::Desktop { desktop, .. } = fork.manifest.subject else { continue };
            return Ok((committed, desktop));
        }
        Err(SyncError::NotForked { reason: ForkReason::Gone }.into())
    }

    async fn commit_fork(&self, session: &Session, fork: &Version) -> Result<VersionInfo, CommitError> {
        let placing = Placing { channel: None, fork_of: session.name() };
        let commit = || {
            let (subject, bytes) = (&fork.manifest.subject, fork.bytes.clone());
            self.syncer.upstream.commit(subject, placing, bytes, &fork.signature)
        };
        self.syncer.patience.retry(commit).await
    }
}
