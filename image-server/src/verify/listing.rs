//! Every file in the object store: does anything refer to it?

use futures_util::StreamExt;

use super::{Check, MAX_NAMED_UNKNOWN, Part, VerifyError};
use crate::presence;
use crate::storage::ObjectKey;

const STEP: u64 = 100;

impl Check<'_> {
    pub(super) async fn files(&mut self) -> Result<(), VerifyError> {
        self.progress.begin(Part::Files, 0);
        let mut listing = self.storage.list();
        let mut seen = 0u64;
        while let Some(found) = listing.next().await {
            let found = found?;
            seen += 1;
            if seen.is_multiple_of(STEP) {
                self.progress.advance(STEP);
            }
            match ObjectKey::parse(found.location.as_ref()) {
                Some(key) if presence::counts(&self.database, &key).await? => {}
                Some(_) => self.report.unreferenced.add(found.size),
                None => {
                    self.report.unknown_files += 1;
                    if self.report.unknown.len() < MAX_NAMED_UNKNOWN {
                        self.report.unknown.push(found.location.to_string());
                    }
                }
            }
        }
        drop(listing);
        self.report.unknown.sort_unstable();
        self.report.unfinished = self.storage.count_staging(None).await?;
        let partial = self.storage.count_partial_outside_staging().await;
        self.report.unfinished.files += partial.files;
        self.report.unfinished.bytes += partial.bytes;
        Ok(())
    }
}
