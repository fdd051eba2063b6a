//! Writing that is kept whole or not at all.
//!
//! What is written goes to overlays that the next opening throws away, as it does after a look (`discard_from` of the record). Keeping them
//! is one replacement of the record, once they are durable: a crash at any time before leaves the disks as they were. After each of these
//! steps the disks are put together anew ([`OpenDesktop::reassembled`]).

use super::open::layouts;
use super::room::with_room;
use super::{DesktopError, OpenDesktop};
use crate::disk::DiskError;

/// Why an attempt cannot be begun or ended. The next opening finds the disks as they were before it, or as they were kept.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// What was written could not be made durable.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The desktop's files failed.
    #[error(transparent)]
    Desktop(#[from] DesktopError),
}

impl OpenDesktop {
    /// Begins an attempt: what is written from now on is thrown away, unless it is [kept](Self::keep_attempt).
    ///
    /// # Errors
    /// `Disk`, `Desktop`.
    pub fn begin_attempt(&self) -> Result<(), AttemptError> {
        // Below it has to be what a power cut would leave.
        self.flush()?;
        let head = self.store().version(self.store().record().head)?;
        let mut kept = layouts(&head.manifest);
        kept.retain(|layout| self.disk(layout.role).is_none_or(|disk| !self.is_volatile(disk)));
        Ok(with_room(self.cache(), || self.store().add_discarded_generation(&kept))?)
    }

    /// Ends an attempt and keeps what was written.
    ///
    /// # Errors
    /// `Disk`, `Desktop`.
    pub fn keep_attempt(&self) -> Result<(), AttemptError> {
        self.flush()?;
        Ok(with_room(self.cache(), || self.store().keep_discarded())?)
    }

    /// Ends an attempt and throws away what was written.
    ///
    /// # Errors
    /// `Desktop`.
    pub fn undo_attempt(&self) -> Result<(), AttemptError> {
        Ok(self.store().discard()?)
    }
}
