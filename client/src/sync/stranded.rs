//! Sending what a desktop holds whose golden version the server does not know: it was set back to an older state.

use chunk_format::{Disk as ManifestDisk, DiskRole};

use super::{Frozen, SyncError, Syncer, Trust, flush, frozen_view};
use crate::desktop::OpenDesktop;

impl Syncer {
    /// Sends all that the server lacks of a desktop's disks but the system disk, which another golden version's is to take the
    /// place of. Answers the other disks as a version is to have them; nothing is committed, and nothing here changes.
    ///
    /// Only for a desktop whose disks nobody writes to.
    ///
    /// # Errors
    /// [`SyncError`].
    pub(crate) async fn send_without_system(
        &self,
        desktop: &OpenDesktop,
    ) -> Result<Vec<ManifestDisk>, SyncError> {
        let _one_at_a_time = desktop.syncing.lock().await;
        if desktop.is_read_only() {
            return Err(SyncError::ReadOnly);
        }
        let head = desktop.store.version(desktop.store.record().head)?;
        head.manifest.check_writable()?;
        let through_generation = u64::MAX;
        let views = desktop.disks.iter().map(|disk| frozen_view(desktop, disk, through_generation)).collect();
        let frozen = Frozen { head, views, through_generation, without_system: true };
        flush(&desktop.cache, &frozen.views).await?;
        let changed = self.plan(desktop, &frozen).await?;
        let (work, _kept) = self.plan_thoroughly(desktop, &frozen, changed).await?;
        let done = self.upload(desktop, &frozen, work, Trust::Nothing).await?;
        let mut disks = self.next_manifest(&frozen.head, &done, None).disks;
        disks.retain(|disk| disk.role != DiskRole::System);
        Ok(disks)
    }
}
