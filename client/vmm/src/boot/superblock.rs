//! The first look at an ext file system: what may be handed to the library that reads it.
//!
//! The library takes sizes as they are written, and keeps memory for them. So everything that it keeps memory for is
//! checked here first (Linux, Documentation/filesystems/ext4, "Super Block" and "Inode Table").

use std::io;

use super::disk::{ReadDisk, read_vec, u16_at, u32_at};
use super::partitions::Partition;

/// Where the superblock lies.
pub(super) const PLACE: u64 = 1024;
/// Its bytes.
pub(super) const BYTES: usize = 1024;
/// Where its incompatible features lie.
const INCOMPAT: usize = 0x60;
/// Where its read-only compatible features lie.
const RO_COMPAT: usize = 0x64;
/// There is a journal with writes that have not reached their places.
const RECOVERY: u32 = 0x4;
/// Group descriptors may be longer than 32 bytes, and there may be more than 2^32 blocks.
const IS_64BIT: u32 = 0x80;
/// Metadata has checksums.
const METADATA_CSUM: u32 = 0x400;
/// Blocks of 64 KiB at most: what Linux reads.
const MAX_LOG_BLOCK: u32 = 6;
/// Groups: 32 TiB of 4 KiB blocks.
const MAX_GROUPS: u64 = 1 << 18;
/// Bytes of a journal: what `mke2fs` makes of the largest file systems.
const MAX_JOURNAL_BYTES: u64 = 1 << 30;

/// A superblock that was looked at.
pub(super) struct Superblock {
    bytes: Vec<u8>,
    /// The journal is longer than any that is made: its writes are left where they are.
    is_journal_too_long: bool,
}

impl Superblock {
    /// Reads the superblock of a partition; `None` when there is none, or one that nobody's tool makes.
    pub(super) fn read(disk: &dyn ReadDisk, partition: &Partition) -> io::Result<Option<Superblock>> {
        let Some(bytes) = read_vec(disk, partition.range.start.saturating_add(PLACE), BYTES)? else {
            return Ok(None);
        };
        if u16_at(&bytes, 0x38) != 0xef53 || u32_at(&bytes, 0x18) > MAX_LOG_BLOCK {
            return Ok(None);
        }
        let block_bytes = 1024_u64 << u32_at(&bytes, 0x18);
        let is_64bit = u32_at(&bytes, INCOMPAT) & IS_64BIT != 0;
        let high = if is_64bit { u64::from(u32_at(&bytes, 0x150)) << 32 } else { 0 };
        let blocks = u64::from(u32_at(&bytes, 0x4)) | high;
        let blocks_per_group = u64::from(u32_at(&bytes, 0x20));
        let descriptor_bytes = if is_64bit { u64::from(u16_at(&bytes, 0xfe)) } else { 32 };
        let inode_bytes = u64::from(u16_at(&bytes, 0x58));
        let partition_bytes = partition.range.end.saturating_sub(partition.range.start);
        let is_sound = blocks.checked_mul(block_bytes).is_some_and(|bytes| bytes <= partition_bytes)
            && (!is_64bit || (descriptor_bytes.is_power_of_two() && (64..=1024).contains(&descriptor_bytes)))
            && inode_bytes.is_power_of_two()
            && (128..=block_bytes).contains(&inode_bytes)
            && blocks_per_group > 0
            && blocks / blocks_per_group.max(1) < MAX_GROUPS
            // The library reads the upper half whatever the features say.
            && (is_64bit || u32_at(&bytes, 0x150) == 0);
        if !is_sound {
            return Ok(None);
        }
        let mut superblock = Superblock { bytes, is_journal_too_long: false };
        if superblock.needs_recovery() {
            let geometry = Geometry { block_bytes, descriptor_bytes, inode_bytes, is_64bit };
            let journal_bytes = superblock.journal_bytes(disk, partition, &geometry)?;
            superblock.is_journal_too_long = journal_bytes.is_none_or(|bytes| bytes > MAX_JOURNAL_BYTES);
        }
        Ok(Some(superblock))
    }

    /// Whether writes are left in the journal: the machine was not shut down.
    pub(super) fn needs_recovery(&self) -> bool {
        u32_at(&self.bytes, INCOMPAT) & RECOVERY != 0
    }

    /// Whether the journal may be read.
    pub(super) fn is_journal_readable(&self) -> bool {
        !self.is_journal_too_long
    }

    /// The superblock as the library gets to see it, with or without its journal. Always without checksums: the library
    /// counts past the end of a block when it checks a directory that lies about its entries.
    pub(super) fn shown(&self, with_journal: bool) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let mut clear = |at: usize, feature: u32| {
            let features = u32_at(&bytes, at) & !feature;
            if let Some(field) = bytes.get_mut(at..at.saturating_add(4)) {
                field.copy_from_slice(&features.to_le_bytes());
            }
        };
        clear(RO_COMPAT, METADATA_CSUM);
        if !with_journal {
            clear(INCOMPAT, RECOVERY);
        }
        bytes
    }

    /// Length of the journal's file; `None` when its inode does not lie within the partition.
    fn journal_bytes(
        &self,
        disk: &dyn ReadDisk,
        partition: &Partition,
        geometry: &Geometry,
    ) -> io::Result<Option<u64>> {
        let within = |place: Option<u64>, len: usize| match place.and_then(|place| {
            let start = partition.range.start.checked_add(place)?;
            (start.checked_add(len as u64)? <= partition.range.end).then_some(start)
        }) {
            Some(start) => read_vec(disk, start, len),
            None => Ok(None),
        };
        let index = u64::from(u32_at(&self.bytes, 0xe0)).checked_sub(1);
        let per_group = u64::from(u32_at(&self.bytes, 0x28));
        let Some((group, place)) =
            index.and_then(|index| Some((index.checked_div(per_group)?, index % per_group)))
        else {
            return Ok(None);
        };
        let first_block: u64 = if geometry.block_bytes == 1024 { 2 } else { 1 };
        let table =
            (first_block * geometry.block_bytes).checked_add(group.saturating_mul(geometry.descriptor_bytes));
        let Some(descriptor) = within(table, 64)? else { return Ok(None) };
        let high = if geometry.is_64bit { u64::from(u32_at(&descriptor, 0x28)) << 32 } else { 0 };
        let inodes = u64::from(u32_at(&descriptor, 0x8)) | high;
        let place = inodes
            .checked_mul(geometry.block_bytes)
            .and_then(|start| start.checked_add(place.checked_mul(geometry.inode_bytes)?));
        let Some(inode) = within(place, 128)? else { return Ok(None) };
        Ok(Some(u64::from(u32_at(&inode, 0x4)) | u64::from(u32_at(&inode, 0x6c)) << 32))
    }
}

/// Sizes of a file system's parts.
struct Geometry {
    block_bytes: u64,
    descriptor_bytes: u64,
    inode_bytes: u64,
    is_64bit: bool,
}
