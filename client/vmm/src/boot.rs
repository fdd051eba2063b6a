//! What a disk boots: found inside it at every start, so that an upgrade of the guest's kernel takes effect.
//!
//! The disk is the guest's, and all that is on it is believed as far as it can be checked: every size, count and loop
//! has a bound, and what goes beyond it is an error that says so.

mod bounded;
mod choice;
pub mod disk;
pub mod entries;
mod filesystem;
pub mod grub;
pub mod kernel;
mod load;
mod origin;
pub mod partitions;
mod search;
mod superblock;
pub mod version;
mod volume;

use std::io;
use std::sync::Arc;

use thiserror::Error;

use bounded::GivenUp;
use disk::ReadDisk;

pub use load::CandidateError;
pub use origin::{Origin, Place};
pub use volume::ReadError;

/// What is started, and where it comes from.
#[derive(Debug, PartialEq, Eq)]
pub struct BootPlan {
    /// A kernel: its header was looked at, see [`kernel::KernelHeader::parse`].
    pub kernel: Vec<u8>,
    /// Its initrds, one behind the other, each filled up to 4 bytes.
    pub initrd: Option<Vec<u8>>,
    /// What the kernel is told: at most 2047 bytes, none of them a control character.
    pub command_line: String,
    /// Where this was found.
    pub origin: Origin,
}

/// Why nothing of the disk can be started.
#[derive(Debug, Error)]
pub enum BootError {
    /// The disk cannot be read.
    #[error("the disk cannot be read")]
    Disk(#[source] io::Error),
    /// There is no sign of a kernel.
    #[error(
        "no Linux kernel was found: looked for Boot Loader Specification entries, grub.cfg and vmlinuz-* in {}; \
         unified kernel images (EFI/Linux/*.efi) are not read",
        seen(.0)
    )]
    NotFound(Vec<String>),
    /// There are signs of a kernel, but nothing that can be started; the first choice is told about.
    #[error("the kernel that {chosen_by} names cannot be started")]
    Unusable {
        /// A configuration with its entry, or a kernel's file.
        chosen_by: String,
        /// What is wrong with it.
        #[source]
        source: CandidateError,
    },
    /// More work than a disk in order asks for.
    #[error("looking for a kernel was given up: the file systems of the disk lead nowhere")]
    Endless,
    /// No thread.
    #[error("looking for a kernel has failed")]
    Thread(#[source] io::Error),
}

impl BootError {
    /// What a person can do about it, when that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            BootError::Disk(_) => None,
            _ => Some("`--engine qemu` boots the disk by its firmware"),
        }
    }
}

fn seen(places: &[String]) -> String {
    if places.is_empty() { "no partition at all".to_owned() } else { places.join(", ") }
}

/// Finds what a disk boots: the kernel its own boot loader would start when nobody touches the keyboard.
///
/// # Errors
/// There is nothing that can be started, or the disk cannot be read where it was looked into: another kernel than the one it
/// would boot is no answer.
pub fn find(disk: Arc<dyn ReadDisk + Send + Sync>) -> Result<BootPlan, BootError> {
    match bounded::run(disk, |disk| search::search(&disk)) {
        Ok(found) => found,
        Err(GivenUp::Disk(error)) => Err(BootError::Disk(error)),
        Err(GivenUp::Endless) => Err(BootError::Endless),
        Err(GivenUp::Thread(error)) => Err(BootError::Thread(error)),
    }
}

#[cfg(test)]
mod tests;
