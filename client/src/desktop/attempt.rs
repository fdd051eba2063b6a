//! Writing that is kept whole or not at all.
//!
//! What is written goes to overlays that the next opening throws away, as it does after a look (`discard_from` of the record). Keeping them
//! is one replacement of the record, once they are durable: a crash at any time before leaves the disks as they were.

use super::open::layouts;
use super::room::with_room;
use super::{DesktopError, OpenDesktop};
use crate::disk::DiskError;

/// Why an attempt cannot be made or ended. The next opening finds the disks as they were before it, or as they were kept.
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
    /// Begins an attempt: what is written from now on is thrown away, unless it is [kept](Self::keep). Nothing uses its disks.
    ///
    /// # Errors
    /// `Desktop`.
    pub fn attempt(self) -> Result<Self, AttemptError> {
        // Below it has to be what a power cut would leave.
        self.flush()?;
        let head = self.store().version(self.store().record().head)?;
        let mut kept = layouts(&head.manifest);
        kept.retain(|layout| self.disk(layout.role).is_none_or(|disk| !self.is_volatile(disk)));
        with_room(self.cache(), || self.store().add_discarded_generation(&kept))?;
        Ok(self.reassembled()?)
    }

    /// Ends an attempt and keeps what was written. Nothing uses its disks.
    ///
    /// # Errors
    /// `Disk`, `Desktop`.
    pub fn keep(self) -> Result<Self, AttemptError> {
        self.flush()?;
        with_room(self.cache(), || self.store().keep_discarded())?;
        Ok(self.reassembled()?)
    }

    /// Ends an attempt and throws away what was written. Nothing uses its disks.
    ///
    /// # Errors
    /// `Desktop`.
    pub fn undo(self) -> Result<Self, AttemptError> {
        self.store().discard()?;
        Ok(self.reassembled()?)
    }
}
