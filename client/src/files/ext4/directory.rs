//! Directories. Those with a hash tree are read in order as all others: the tree hides in entries that are not used.

use super::{FileKind, FileSystem, Inode, InodeNumber, u16_at, u32_at};
use crate::files::FilesError;

/// The longest directory that is read, bytes: millions of names.
const MAX_BYTES: u64 = 256 << 20;
/// Names of one directory that are kept in memory.
const MAX_ENTRIES: usize = 4 << 20;
/// An entry without its name.
const HEAD_BYTES: usize = 8;

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name: 1 to 255 bytes without `/` and zero, neither `.` nor `..`.
    pub name: Vec<u8>,
    /// What it stands for.
    pub inode: InodeNumber,
    /// What that is, where the directory says it: a hint, the inode decides.
    pub kind: Option<FileKind>,
}

/// A name as [`FileSystem::each_entry`] finds it.
pub(super) struct Named<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: InodeNumber,
    kind: u8,
    /// Where in the directory what follows it begins, bytes.
    next: u64,
}

impl Named<'_> {
    fn entry(&self) -> Entry {
        Entry { name: self.name.to_vec(), inode: self.inode, kind: entry_kind(self.kind) }
    }
}

impl FileSystem {
    /// The names in a directory, without `.` and `..`.
    ///
    /// # Errors
    /// `Disk`, `Damaged`, or `Unsupported` when there are more than anyone keeps.
    pub fn entries(&self, directory: &Inode) -> Result<Vec<Entry>, FilesError> {
        let mut entries = Vec::new();
        self.each_entry(directory, 0, |named| {
            entries.push(named.entry());
            entries.len() <= MAX_ENTRIES
        })?;
        if entries.len() > MAX_ENTRIES {
            return Err(FilesError::unsupported(format!(
                "directory {} has too many names",
                directory.number
            )));
        }
        Ok(entries)
    }

    /// So many names of a directory from one of its bytes on, each with the byte to go on from; none at its end.
    ///
    /// # Errors
    /// As [`FileSystem::entries`].
    pub fn entries_from(
        &self,
        directory: &Inode,
        from: u64,
        count: usize,
    ) -> Result<Vec<(Entry, u64)>, FilesError> {
        let mut entries = Vec::new();
        self.each_entry(directory, from, |named| {
            entries.push((named.entry(), named.next));
            entries.len() < count
        })?;
        Ok(entries)
    }

    /// Tells each name that begins at a byte of the directory or after it, until `wants_more` says no. A name that no path can have is left out.
    pub(super) fn each_entry(
        &self,
        directory: &Inode,
        from: u64,
        mut wants_more: impl FnMut(Named<'_>) -> bool,
    ) -> Result<(), FilesError> {
        let broken = |what: &str| FilesError::damaged(format!("directory {} {what}", directory.number));
        if directory.kind != FileKind::Directory {
            return Err(broken("is none"));
        }
        directory.inline_data()?;
        if directory.size_bytes > MAX_BYTES.min(self.size_bytes()) {
            return Err(broken("is longer than any that is made"));
        }
        let block_bytes = self.superblock.block_bytes;
        let blocks = directory.size_bytes / block_bytes;
        let mut block = vec![0; usize::try_from(block_bytes).unwrap_or(0)];
        let mut logical = from / block_bytes;
        while logical < blocks {
            let run = self.run(directory, logical)?;
            let Some(physical) = run.physical else {
                logical = logical.saturating_add(run.blocks);
                continue;
            };
            for at in 0..run.blocks.min(blocks - logical) {
                self.read_blocks(physical + at, 0, &mut block)?;
                let mut rest = block.as_slice();
                let mut next = (logical + at) * block_bytes;
                while rest.len() >= HEAD_BYTES {
                    let len = entry_bytes(u16_at(rest, 4), block.len());
                    if len < HEAD_BYTES || !len.is_multiple_of(4) || len > rest.len() {
                        return Err(broken("has a broken entry"));
                    }
                    let (inode, name_bytes) = (u32_at(rest, 0), usize::from(rest[6]));
                    let name = rest
                        .get(HEAD_BYTES..HEAD_BYTES + name_bytes)
                        .filter(|_| HEAD_BYTES + name_bytes <= len);
                    let name = name.ok_or_else(|| broken("has a broken entry"))?;
                    let (begins, kind) = (next, rest[7]);
                    (rest, next) = (&rest[len..], next + len as u64);
                    if inode == 0 || begins < from || !is_name(name) {
                        continue;
                    }
                    if !wants_more(Named { name, inode: InodeNumber(inode), kind, next }) {
                        return Ok(());
                    }
                }
            }
            logical = logical.saturating_add(run.blocks);
        }
        Ok(())
    }
}

/// An entry over all of a 64 KiB block does not fit its own field.
fn entry_bytes(field: u16, block_bytes: usize) -> usize {
    match field {
        0 | u16::MAX if block_bytes > usize::from(u16::MAX) => block_bytes,
        field => usize::from(field),
    }
}

fn entry_kind(kind: u8) -> Option<FileKind> {
    Some(match kind {
        1 => FileKind::File,
        2 => FileKind::Directory,
        3 => FileKind::CharacterDevice,
        4 => FileKind::BlockDevice,
        5 => FileKind::Pipe,
        6 => FileKind::Socket,
        7 => FileKind::Symlink,
        _ => return None,
    })
}

fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name != b"." && name != b".." && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}
