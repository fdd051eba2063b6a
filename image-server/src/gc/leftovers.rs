//! Objects without rows: what crashes and refused commits left.

use chrono::{TimeDelta, Utc};
use futures_util::StreamExt;

use super::{GcError, Part, Run};
use crate::database::commit;
use crate::presence;
use crate::server::STAGING_KEPT;
use crate::storage::ObjectKey;

impl Run {
    /// Looks at every object of the store and removes those that were written long ago and have no row. Whoever writes
    /// an object before its row writes it within a day of it, and looks for it again in the row's transaction.
    pub(super) async fn sweep_leftovers(&mut self) -> Result<(), GcError> {
        let kept = TimeDelta::from_std(STAGING_KEPT).unwrap_or(TimeDelta::MAX);
        let before = Utc::now().checked_sub_signed(kept).unwrap_or_default();
        self.progress.begin(Part::Files, 0);
        let mut listing = self.storage.list();
        while let Some(found) = listing.next().await {
            let found = found?;
            self.progress.advance(1);
            if found.last_modified >= before {
                continue;
            }
            let Some(key) = ObjectKey::parse(found.location.as_ref()) else { continue };
            if presence::counts(&self.database, &key).await? {
                continue;
            }
            let tx = self.database.begin().await?;
            // Rows appear in transactions of the one lock this one has: what the readers say is what there is.
            if !presence::counts(&self.database, &key).await? {
                self.storage.remove(&key).await?;
                self.report.leftovers.add(found.size);
            }
            commit(tx).await?;
        }
        Ok(())
    }
}
