//! The journal of a file system that was in use: which blocks are to be read from there (Linux,
//! Documentation/filesystems/ext4/journal.rst).
//!
//! As replaying it would: transactions in order, the log going around its end, up to the first that was not committed;
//! blocks that a later transaction revoked are left in place. Numbers in it are big-endian.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::{FileSystem, Inode, InodeNumber};
use crate::files::FilesError;

const MAGIC: [u8; 4] = [0xc0, 0x3b, 0x39, 0x98];
/// Blocks of a journal: 1 GiB of 1 KiB blocks; `mke2fs` makes none longer.
const MAX_BLOCKS: u32 = 1 << 20;
/// Blocks that one journal revokes: more than a machine revokes between two checkpoints.
const MAX_REVOKED: usize = 4 << 20;
const HEAD_BYTES: usize = 12;

const DESCRIPTOR: u32 = 1;
const COMMIT: u32 = 2;
const REVOKE: u32 = 5;

const WITH_REVOKES: u32 = 0x1;
const WITH_64BIT: u32 = 0x2;
const WITH_CHECKSUMS_2: u32 = 0x8;
const WITH_CHECKSUMS_3: u32 = 0x10;
const READABLE: u32 = WITH_REVOKES | WITH_64BIT | WITH_CHECKSUMS_2 | WITH_CHECKSUMS_3;

const ESCAPED: u32 = 0x1;
const SAME_UUID: u32 = 0x2;
const DELETED: u32 = 0x4;
const LAST_TAG: u32 = 0x8;

/// Where a block's newest bytes are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copy {
    /// The block of the journal.
    pub(super) block: u64,
    /// It begins with the journal's magic, which is zeroed in the journal.
    pub(super) is_escaped: bool,
}

/// Which blocks are to be read from the journal.
#[derive(Debug, Default)]
pub(super) struct Journal {
    copies: BTreeMap<u64, Copy>,
}

/// Puts back the beginning of a block that had to be hidden in the journal.
pub(super) fn unescape(within: u64, bytes: &mut [u8]) {
    for (at, byte) in (within..).zip(bytes) {
        if let Some(magic) = usize::try_from(at).ok().and_then(|at| MAGIC.get(at)) {
            *byte = *magic;
        }
    }
}

/// One block of a transaction.
struct Logged {
    sequence: u32,
    target: u64,
    copy: Copy,
}

impl Journal {
    pub(super) fn len(&self) -> usize {
        self.copies.len()
    }

    pub(super) fn copy_of(&self, block: u64) -> Option<Copy> {
        self.copies.get(&block).copied()
    }

    /// The first of these blocks that is to be read from the journal.
    pub(super) fn first_copied(&self, blocks: Range<u64>) -> Option<u64> {
        self.copies.range(blocks).next().map(|(block, _)| *block)
    }

    /// Reads the journal of a file system.
    ///
    /// # Errors
    /// `Disk`, `Damaged`, `Unsupported`: without its journal the file system is not what its machine wrote.
    pub(super) fn load(fs: &FileSystem) -> Result<Self, FilesError> {
        match fs.superblock.journal_inode {
            0 => Err(FilesError::unsupported("it was in use, and its journal is on another disk")),
            number => {
                Log::open(fs, InodeNumber(number))?.map_or_else(|| Ok(Self::default()), |log| log.replay())
            }
        }
    }
}

struct Log<'a> {
    fs: &'a FileSystem,
    inode: Inode,
    first: u32,
    end: u32,
    start: u32,
    sequence: u32,
    features: u32,
}

impl<'a> Log<'a> {
    /// `None` when the log is empty.
    fn open(fs: &'a FileSystem, number: InodeNumber) -> Result<Option<Self>, FilesError> {
        let inode = fs.inode(number)?;
        let mut head = [0; 1024];
        fs.read(&inode, 0, &mut head)?;
        let broken = |what: &str| FilesError::damaged(format!("its journal {what}"));
        let version = u32_at(&head, 4);
        if head[..4] != MAGIC || !matches!(version, 3 | 4) {
            return Err(broken("has no beginning"));
        }
        let features = if version == 4 { u32_at(&head, 40) } else { 0 };
        if features & !READABLE != 0 {
            let what = format!("it was in use, and its journal has features not known here ({features:#x})");
            return Err(FilesError::unsupported(what));
        }
        let log = Self {
            fs,
            first: u32_at(&head, 20),
            end: u32_at(&head, 16),
            start: u32_at(&head, 28),
            sequence: u32_at(&head, 24),
            features,
            inode,
        };
        if log.start == 0 {
            return Ok(None);
        }
        let is_sound = u64::from(u32_at(&head, 12)) == fs.superblock.block_bytes
            && (1..log.end).contains(&log.first)
            && (log.first..log.end).contains(&log.start)
            && log.end <= MAX_BLOCKS
            && u64::from(log.end) * fs.superblock.block_bytes <= log.inode.size_bytes;
        if is_sound { Ok(Some(log)) } else { Err(broken("has sizes that do not fit")) }
    }

    fn replay(&self) -> Result<Journal, FilesError> {
        let mut logged: Vec<Logged> = Vec::new();
        // The newest transaction that revoked a block.
        let mut revoked: HashMap<u64, u32> = HashMap::new();
        // What is in the transaction at hand: counts once it is committed.
        let (mut pending, mut pending_revoked) = (Vec::new(), Vec::new());
        let (mut at, mut sequence) = (self.start, self.sequence);
        let mut left = self.end - self.first;
        let mut block = vec![0; usize::try_from(self.fs.superblock.block_bytes).unwrap_or(0)];
        while left > 0 {
            self.read(at, &mut block)?;
            if block[..4] != MAGIC || u32_at(&block, 8) != sequence {
                break;
            }
            at = self.after(at);
            left -= 1;
            match u32_at(&block, 4) {
                DESCRIPTOR => {
                    for (target, is_escaped, is_deleted) in self.tags(&block) {
                        if left == 0 {
                            break;
                        }
                        if !is_deleted {
                            let copy = Copy { block: self.physical(at)?, is_escaped };
                            pending.push(Logged { sequence, target, copy });
                        }
                        at = self.after(at);
                        left -= 1;
                    }
                }
                COMMIT => {
                    logged.append(&mut pending);
                    for target in pending_revoked.drain(..) {
                        revoked.insert(target, sequence);
                    }
                    sequence = sequence.wrapping_add(1);
                }
                REVOKE => {
                    pending_revoked.extend(self.revoked(&block));
                    if pending_revoked.len() + revoked.len() > MAX_REVOKED {
                        return Err(FilesError::unsupported("its journal revokes too many blocks"));
                    }
                }
                _ => break,
            }
        }
        let area = &self.fs.area;
        // Not what the superblock says: a newer one may be in the journal.
        let blocks = (area.end - area.start) / self.fs.superblock.block_bytes;
        let mut journal = Journal::default();
        for Logged { sequence, target, copy } in logged {
            let is_revoked = revoked.get(&target).is_some_and(|by| !is_later(sequence, *by));
            if target < blocks && !is_revoked {
                journal.copies.insert(target, copy);
            }
        }
        Ok(journal)
    }

    /// The blocks that follow a descriptor: their places, whether they are escaped, whether they are to be ignored.
    fn tags(&self, block: &[u8]) -> Vec<(u64, bool, bool)> {
        let has_64bit = self.features & WITH_64BIT != 0;
        let has_checksums = self.features & (WITH_CHECKSUMS_2 | WITH_CHECKSUMS_3) != 0;
        let is_third = self.features & WITH_CHECKSUMS_3 != 0;
        let tag_bytes = match (is_third, has_checksums, has_64bit) {
            (true, ..) => 16,
            (_, true, true) => 14,
            (_, true, false) => 10,
            (_, false, true) => 12,
            (_, false, false) => 8,
        };
        let end = block.len() - if has_checksums { 4 } else { 0 };
        let mut tags = Vec::new();
        let mut at = HEAD_BYTES;
        while let Some(tag) = block.get(at..at + tag_bytes).filter(|_| at + tag_bytes <= end) {
            let flags =
                if is_third { u32_at(tag, 4) } else { u32::from(u16::from_be_bytes([tag[6], tag[7]])) };
            let high = if has_64bit { u32_at(tag, 8) } else { 0 };
            let target = u64::from(u32_at(tag, 0)) | u64::from(high) << 32;
            tags.push((target, flags & ESCAPED != 0, flags & DELETED != 0));
            if flags & LAST_TAG != 0 {
                break;
            }
            at += tag_bytes + if flags & SAME_UUID != 0 { 0 } else { 16 };
        }
        tags
    }

    fn revoked(&self, block: &[u8]) -> Vec<u64> {
        let is_wide = self.features & WITH_64BIT != 0;
        let used = usize::try_from(u32_at(block, HEAD_BYTES)).unwrap_or(usize::MAX).min(block.len());
        let entries = block.get(HEAD_BYTES + 4..used).unwrap_or_default();
        let entry = |entry: &[u8]| match is_wide {
            true => u64::from(u32_at(entry, 0)) << 32 | u64::from(u32_at(entry, 4)),
            false => u64::from(u32_at(entry, 0)),
        };
        entries.chunks_exact(if is_wide { 8 } else { 4 }).map(entry).collect()
    }

    fn after(&self, at: u32) -> u32 {
        if at + 1 == self.end { self.first } else { at + 1 }
    }

    fn physical(&self, at: u32) -> Result<u64, FilesError> {
        let run = self.fs.run(&self.inode, u64::from(at))?;
        run.physical.ok_or_else(|| FilesError::damaged("its journal has holes"))
    }

    fn read(&self, at: u32, block: &mut [u8]) -> Result<(), FilesError> {
        self.fs.read_blocks(self.physical(at)?, 0, block)
    }
}

/// Whether a transaction came after another; their numbers wrap.
fn is_later(sequence: u32, than: u32) -> bool {
    sequence.wrapping_sub(than).cast_signed() > 0
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).map_or(0, |field| u32::from_be_bytes([field[0], field[1], field[2], field[3]]))
}
