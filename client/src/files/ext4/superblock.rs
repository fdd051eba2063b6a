//! The superblock: what a file system is made of, as far as reading it goes.

use super::{u16_at, u32_at, u64_of};
use crate::files::FilesError;

/// Where the superblock lies, bytes from the beginning of the file system.
pub(super) const PLACE: u64 = 1024;
/// Its bytes.
pub(super) const BYTES: usize = 1024;

const NEEDS_RECOVERY: u32 = 0x4;
const HAS_64BIT: u32 = 0x80;
const FILE_TYPES: u32 = 0x2;
/// File types, recovery, extents, 64 bit, multiple-mount protection, flexible groups, large attributes, checksum seed,
/// large directories, inline data, encryption, casefolding.
const READABLE: u32 = FILE_TYPES
    | NEEDS_RECOVERY
    | 0x40
    | HAS_64BIT
    | 0x100
    | 0x200
    | 0x400
    | 0x2000
    | 0x4000
    | 0x8000
    | 0x1_0000
    | 0x2_0000;
const HAS_JOURNAL: u32 = 0x4;
/// Blocks of 64 KiB at most: what Linux reads.
const MAX_LOG_BLOCK: u32 = 6;

/// A superblock that was looked at: its sizes fit one another and the partition.
#[derive(Debug)]
pub(super) struct Superblock {
    pub(super) block_bytes: u64,
    pub(super) blocks: u64,
    pub(super) inodes: u32,
    pub(super) group_inodes: u32,
    pub(super) inode_bytes: u64,
    pub(super) descriptor_bytes: u64,
    pub(super) is_64bit: bool,
    pub(super) needs_recovery: bool,
    pub(super) journal_inode: u32,
}

impl Superblock {
    /// Reads a superblock; `None` when there is none.
    pub(super) fn decode(bytes: &[u8], area_bytes: u64) -> Result<Option<Self>, FilesError> {
        if u16_at(bytes, 56) != 0xef53 {
            return Ok(None);
        }
        let (compatible, incompatible) = (u32_at(bytes, 92), u32_at(bytes, 96));
        let unknown = incompatible & !READABLE;
        if unknown != 0 {
            return Err(FilesError::unsupported(format!("it uses features not known here ({unknown:#x})")));
        }
        let log_block = u32_at(bytes, 24);
        if log_block > MAX_LOG_BLOCK {
            return Err(FilesError::damaged(format!(
                "its blocks have 2^{} bytes",
                u64::from(log_block) + 10
            )));
        }
        let is_64bit = incompatible & HAS_64BIT != 0;
        let old_revision = u32_at(bytes, 76) == 0;
        let needs_recovery = compatible & HAS_JOURNAL != 0 && incompatible & NEEDS_RECOVERY != 0;
        let superblock = Self {
            block_bytes: 1024 << log_block,
            blocks: u64_of(u32_at(bytes, 4), if is_64bit { u32_at(bytes, 336) } else { 0 }),
            inodes: u32_at(bytes, 0),
            group_inodes: u32_at(bytes, 40),
            inode_bytes: if old_revision { 128 } else { u64::from(u16_at(bytes, 88)) },
            descriptor_bytes: if is_64bit { u64::from(u16_at(bytes, 254)) } else { 32 },
            is_64bit,
            needs_recovery,
            journal_inode: u32_at(bytes, 224),
        };
        let fits =
            superblock.blocks.checked_mul(superblock.block_bytes).is_some_and(|bytes| bytes <= area_bytes);
        if !fits {
            return Err(FilesError::damaged("it does not fit its partition"));
        }
        let is_sound = superblock.group_inodes > 0
            && superblock.inode_bytes.is_power_of_two()
            && (128..=superblock.block_bytes).contains(&superblock.inode_bytes)
            // So it ends, however many names lead to inodes.
            && u64::from(superblock.inodes) * superblock.inode_bytes <= area_bytes
            && superblock.descriptor_bytes.is_power_of_two()
            && (32..=1024).contains(&superblock.descriptor_bytes)
            && (!is_64bit || superblock.descriptor_bytes >= 64);
        match is_sound {
            true => Ok(Some(superblock)),
            false => Err(FilesError::damaged("its sizes do not fit one another")),
        }
    }
}
