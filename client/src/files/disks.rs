//! What is on a disk: its partitions, and the file systems in them.

use std::sync::Arc;

use chunk_format::DiskRole;

use super::{FileSystem, FilesError};
use crate::image::DiskImage;
use crate::image::partitions::partitions;

/// What was found on a disk.
#[derive(Debug)]
pub struct DiskFiles {
    /// What the disk is for.
    pub role: DiskRole,
    /// What it holds.
    pub holds: Holds,
}

/// What a disk holds.
#[derive(Debug)]
pub enum Holds {
    /// Nothing was ever written to it.
    Blank,
    /// No file system that this program reads; encrypted, swap space, or of another kind.
    NoFileSystem,
    /// These, in the order of the partition table; at least one.
    FileSystems(Vec<FoundFileSystem>),
}

/// A file system that was found.
#[derive(Debug)]
pub struct FoundFileSystem {
    /// Its partition, counted from 1 in the order of the table; 0 when it is on the disk itself.
    pub partition: u32,
    /// It, or why it cannot be read.
    pub opened: Result<Arc<FileSystem>, FilesError>,
}

impl FoundFileSystem {
    /// The name of its folder beside others: `p1`.
    pub fn folder(&self) -> String {
        format!("p{}", self.partition)
    }
}

impl DiskFiles {
    /// Looks at a disk.
    ///
    /// # Errors
    /// `Disk`.
    pub fn find(role: DiskRole, disk: &Arc<dyn DiskImage>) -> Result<Self, FilesError> {
        let failed = |source| FilesError::Disk { offset: 0, source };
        if disk.data_ranges().map_err(failed)?.is_empty() {
            return Ok(Self { role, holds: Holds::Blank });
        }
        let areas = partitions(&**disk).map_err(failed)?;
        let is_whole = areas.len() == 1 && areas[0] == (0..disk.size_bytes());
        let mut found = Vec::new();
        for (number, area) in (1..).zip(areas) {
            let opened = match FileSystem::open(Arc::clone(disk), area) {
                Ok(None) => continue,
                Ok(Some(fs)) => Ok(Arc::new(fs)),
                Err(error @ FilesError::Disk { .. }) => return Err(error),
                Err(error) => Err(error),
            };
            found.push(FoundFileSystem { partition: if is_whole { 0 } else { number }, opened });
        }
        let holds = if found.is_empty() { Holds::NoFileSystem } else { Holds::FileSystems(found) };
        Ok(Self { role, holds })
    }

    /// The file systems that can be read.
    pub fn readable(&self) -> impl Iterator<Item = (&FoundFileSystem, &Arc<FileSystem>)> {
        let found = match &self.holds {
            Holds::FileSystems(found) => found.as_slice(),
            Holds::Blank | Holds::NoFileSystem => &[],
        };
        found.iter().filter_map(|found| Some((found, found.opened.as_ref().ok()?)))
    }

    /// The largest file system that can be read: of a system disk the root, of a home disk the only one.
    pub fn largest(&self) -> Option<&Arc<FileSystem>> {
        self.readable().map(|(_, fs)| fs).max_by_key(|fs| fs.size_bytes())
    }

    /// Whether all its files can be told: a blank disk has none.
    pub fn is_readable(&self) -> bool {
        !matches!(self.holds, Holds::NoFileSystem)
    }

    /// What a person should know before they look for files: blank disks, what cannot be read, what was in use.
    pub fn notes(&self) -> Vec<String> {
        let role = self.role;
        let found = match &self.holds {
            Holds::Blank => return vec![format!("the {role} disk is blank: nothing was ever written to it")],
            Holds::NoFileSystem => {
                return vec![format!(
                    "the {role} disk has no ext2, ext3 or ext4 file system; others are not read"
                )];
            }
            Holds::FileSystems(found) => found,
        };
        let mut notes = Vec::new();
        for found in found {
            let place = match found.partition {
                0 => format!("the {role} disk"),
                number => format!("partition {number} of the {role} disk"),
            };
            match &found.opened {
                Err(error) => notes.push(format!("{place}: {error}")),
                Ok(fs) if fs.was_in_use() => notes.push(format!(
                    "{place} was in use when this version was made; it is shown as it would be after a power cut, with \
                     {} blocks of its journal",
                    fs.journal_blocks()
                )),
                Ok(_) => {}
            }
        }
        notes
    }
}
