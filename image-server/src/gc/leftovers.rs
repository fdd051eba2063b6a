//! Objects without rows: what crashes and refused commits left.

use std::time::Instant;

use chrono::{TimeDelta, Utc};
use futures_util::StreamExt;

use super::{GcError, Part, Run};
use crate::cause::chain;
use crate::database::{commit, garbage};
use crate::presence;
use crate::server::STAGING_KEPT;
use crate::storage::ObjectKey;

/// Objects removed in one transaction.
const OBJECTS_AT_ONCE: u32 = 64;

impl Run {
    /// Refuses to look for leftovers where all would be taken for some: a database that is not the one of these objects.
    pub(super) async fn refuse_strangers(&self) -> Result<(), GcError> {
        if garbage::knows_objects(self.database.readers()).await? {
            return Ok(());
        }
        let mut listing = self.storage.list();
        while let Some(found) = listing.next().await {
            let object = found?.location.to_string();
            if ObjectKey::parse(&object).is_some() {
                return Err(GcError::Stranger { object });
            }
        }
        Ok(())
    }

    /// Looks at every object of the store and removes those that were written longer ago than the grace and have no row; a dry
    /// run counts them. Whoever writes an object before its row writes it within a day of it, and looks for it again in the
    /// row's transaction: no grace is shorter than that here.
    pub(super) async fn sweep_leftovers(&mut self) -> Result<(), GcError> {
        let kept = TimeDelta::from_std(STAGING_KEPT.max(self.options.grace)).unwrap_or(TimeDelta::MAX);
        let before = Utc::now().checked_sub_signed(kept).unwrap_or_default();
        self.progress.begin(Part::Files, 0);
        let mut listing = self.storage.list();
        let mut without_rows = Vec::new();
        while let Some(found) = listing.next().await {
            let found = match found {
                Ok(found) => found,
                Err(error) => {
                    self.report.unlisted = Some(chain(&error));
                    break;
                }
            };
            self.progress.advance(1);
            if found.last_modified >= before {
                continue;
            }
            let Some(key) = ObjectKey::parse(found.location.as_ref()) else { continue };
            if !presence::counts(&self.database, &key).await? {
                without_rows.push((key, found.size));
            }
            if without_rows.len() as u64 >= u64::from(self.batch(OBJECTS_AT_ONCE)) {
                self.remove_without_rows(&mut without_rows).await?;
            }
        }
        self.remove_without_rows(&mut without_rows).await
    }

    async fn remove_without_rows(&mut self, found: &mut Vec<(ObjectKey, u64)>) -> Result<(), GcError> {
        if found.is_empty() {
            return Ok(());
        }
        if self.options.dry_run {
            found.drain(..).for_each(|(_, size)| self.report.leftovers.add(size));
            return Ok(());
        }
        let tx = self.database.begin().await?;
        let begun = Instant::now();
        for (key, size) in found.drain(..) {
            // Rows appear in transactions of the one lock this one has: what the readers say is what there is.
            if !presence::counts(&self.database, &key).await? {
                self.storage.remove(&key).await?;
                self.report.leftovers.add(size);
            }
        }
        commit(tx).await?;
        self.give_way(begun.elapsed()).await;
        Ok(())
    }
}
