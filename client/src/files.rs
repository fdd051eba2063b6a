//! Looks into the disks of a version as files: any version of a desktop or image, without its lock and without touching
//! what runs on it.
//!
//! What is on a disk was written by a guest, or by whoever made the image: nothing of it is trusted. Every size that
//! memory is kept for is bounded, every step through a structure makes progress, and names are shown with
//! [`shown`].

use std::io;

use chunk_format::misleads;

pub mod browse;
pub mod copy;
pub mod diff;
pub mod disks;
pub mod ext4;
pub mod packages;
pub mod places;

pub use disks::{DiskFiles, FoundFileSystem, Holds};
pub use ext4::{Effort, Entry, FileKind, FileSystem, Inode, InodeNumber, Moment, Run};

/// Why a file system or a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    /// The disk cannot be read.
    #[error("cannot read the disk at byte {offset}")]
    Disk {
        /// Offset on the disk.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file system contradicts itself.
    #[error("the file system is damaged: {what}")]
    Damaged {
        /// Where, and what is wrong.
        what: String,
    },
    /// The file system uses something that this program does not read.
    #[error("the file system cannot be read: {what}")]
    Unsupported {
        /// What.
        what: String,
    },
    /// There is no such file.
    #[error("there is no {path}")]
    NotFound {
        /// Its path, safe to print.
        path: String,
    },
    /// A path leads through something that is no directory.
    #[error("{path} is no directory")]
    NotADirectory {
        /// The path, safe to print.
        path: String,
    },
    /// Links, names or directories without an end.
    #[error("the way to {path} is too long")]
    TooFar {
        /// The path, safe to print.
        path: String,
    },
}

impl FilesError {
    fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }

    fn unsupported(what: impl Into<String>) -> Self {
        Self::Unsupported { what: what.into() }
    }
}

/// A name or path of a disk as a terminal may see it: control characters, marks that turn the direction of the text
/// around and what is no UTF-8 are escaped.
pub fn shown(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for part in name.utf8_chunks() {
        for character in part.valid().chars() {
            if character == '\\' || misleads(character) {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in part.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_a_disk_cannot_drive_the_terminal() {
        assert_eq!(shown("letter from Łódź".as_bytes()), "letter from Łódź");
        assert_eq!(shown(b"a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(shown(b"\xff\\"), "\\xff\\\\");
        assert_eq!(shown("a\u{202e}b".as_bytes()), "a\\u{202e}b");
    }
}
