//! The free blocks of an ext4 file system, from its block bitmaps.
//!
//! Nothing is guessed: a file system that was not unmounted cleanly, that uses a layout not known here, or whose bitmaps
//! and counts do not agree, keeps all its blocks. Layout: Linux, Documentation/filesystems/ext4/ (super block, group
//! descriptors, block bitmaps).

use std::io;
use std::ops::Range;

use super::DiskImage;
use super::inspect::{HEAD_BYTES, has_other_volume};

/// What is known of the free space of a place on a disk.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FreeBlocks {
    /// There is no ext2, ext3 or ext4 file system.
    None,
    /// There is one, but its free blocks cannot be told.
    Unknown(&'static str),
    /// These bytes of the disk belong to no file; in order, not touching.
    Known(Vec<Range<u64>>),
}

const SUPER_OFFSET: u64 = 1024;
const SUPER_BYTES: usize = 1024;
const MAGIC: u32 = 0xef53;
const STATE_CLEAN: u32 = 1;
const HAS_64BIT: u32 = 0x80;
const NEEDS_RECOVERY: u32 = 0x4;
/// File types in directories, extents, 64 bit, flexible groups, large attributes, checksum seed, large directories,
/// inline data, encryption, casefolding: none of them moves a bitmap.
const KNOWN_INCOMPATIBLE: u32 =
    0x2 | 0x40 | HAS_64BIT | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000 | 0x2_0000;
/// A bit for each cluster instead of each block.
const HAS_CLUSTERS: u32 = 0x200;
/// Files are still to be deleted.
const HAS_ORPHANS: u32 = 0x1_0000;
/// Group descriptors have checksums; without, their flags mean nothing.
const HAS_GROUP_FLAGS: u32 = 0x10 | 0x400;
/// The group's bitmap was never written: nothing but metadata is in the group.
const BLOCK_UNINIT: u32 = 0x2;
/// 4 TiB in groups of 8 MiB, the smallest.
const MAX_GROUPS: u64 = 1 << 19;

/// Finds the free blocks of the file system that begins at `area.start` of a disk.
///
/// # Errors
/// What reading the disk says.
pub(super) fn free_blocks(disk: &dyn DiskImage, area: &Range<u64>) -> io::Result<FreeBlocks> {
    let mut bytes = vec![0; SUPER_BYTES];
    disk.read_at(&mut bytes, area.start.saturating_add(SUPER_OFFSET))?;
    let found = Super(bytes);
    if found.u16(56) != MAGIC {
        return Ok(FreeBlocks::None);
    }
    let mut head = vec![0; HEAD_BYTES.min(usize::try_from(area.end - area.start).unwrap_or(HEAD_BYTES))];
    disk.read_at(&mut head, area.start)?;
    if has_other_volume(&head) {
        return Ok(FreeBlocks::Unknown("there are signs of something else in its place"));
    }
    match found.layout(area) {
        Ok(layout) => layout.free_blocks(disk),
        Err(reason) => Ok(FreeBlocks::Unknown(reason)),
    }
}

/// The super block; the field at an offset, as the documentation lists them.
struct Super(Vec<u8>);

impl Super {
    fn u16(&self, at: usize) -> u32 {
        u32::from(u16::from_le_bytes([self.0[at], self.0[at + 1]]))
    }

    fn u32(&self, at: usize) -> u32 {
        self.u16(at) | self.u16(at + 2) << 16
    }

    fn u64(&self, low: usize, high: usize) -> u64 {
        u64::from(self.u32(low)) | u64::from(self.u32(high)) << 32
    }

    /// Where the bitmaps are, or why nobody should look.
    fn layout(&self, area: &Range<u64>) -> Result<Layout, &'static str> {
        let (incompatible, read_only) = (self.u32(96), self.u32(100));
        if self.u16(58) != STATE_CLEAN || incompatible & NEEDS_RECOVERY != 0 {
            return Err("it was not unmounted cleanly");
        }
        if self.u32(232) != 0 || read_only & HAS_ORPHANS != 0 {
            return Err("it has files that are still to be deleted");
        }
        if incompatible & !KNOWN_INCOMPATIBLE != 0 || read_only & HAS_CLUSTERS != 0 || self.u32(24) > 6 {
            return Err("it has a layout this program does not know");
        }
        let is_64bit = incompatible & HAS_64BIT != 0;
        let block_bytes = 1024 << self.u32(24);
        let layout = Layout {
            start: area.start,
            block_bytes,
            blocks: if is_64bit { self.u64(4, 336) } else { u64::from(self.u32(4)) },
            first_block: u64::from(self.u32(20)),
            group_blocks: u64::from(self.u32(32)),
            descriptor_bytes: if is_64bit { self.u16(254) as usize } else { 32 },
            table_blocks: (u64::from(self.u32(40)) * u64::from(self.u16(88).max(128))).div_ceil(block_bytes),
            reserved_blocks: u64::from(self.u16(206)),
            has_group_flags: read_only & HAS_GROUP_FLAGS != 0,
        };
        if layout.group_blocks != 8 * block_bytes
            || layout.first_block > 1
            || layout.blocks <= layout.first_block
            || layout.groups() > MAX_GROUPS
            || !matches!((is_64bit, layout.descriptor_bytes), (false, 32) | (true, 64))
        {
            return Err("it has a layout this program does not know");
        }
        if layout.blocks > (area.end - area.start) / block_bytes {
            return Err("it does not fit its partition");
        }
        Ok(layout)
    }
}

/// Where things are in a file system.
struct Layout {
    /// Where it begins on the disk.
    start: u64,
    block_bytes: u64,
    blocks: u64,
    first_block: u64,
    group_blocks: u64,
    descriptor_bytes: usize,
    /// Blocks of one group's inode table.
    table_blocks: u64,
    /// Blocks kept free for descriptors of groups to come.
    reserved_blocks: u64,
    has_group_flags: bool,
}

/// What a group's descriptor says.
struct Group {
    bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    free: u64,
    flags: u32,
}

impl Layout {
    fn groups(&self) -> u64 {
        (self.blocks - self.first_block).div_ceil(self.group_blocks)
    }

    fn descriptor_blocks(&self) -> u64 {
        (self.groups() * self.descriptor_bytes as u64).div_ceil(self.block_bytes)
    }

    fn read(&self, disk: &dyn DiskImage, block: u64, blocks: u64) -> io::Result<Vec<u8>> {
        // A group's table and a bitmap are small; the table of all groups is bounded by their number.
        let mut bytes = vec![0; usize::try_from(blocks * self.block_bytes).unwrap_or(0)];
        disk.read_at(&mut bytes, self.start + block * self.block_bytes)?;
        Ok(bytes)
    }

    fn free_blocks(&self, disk: &dyn DiskImage) -> io::Result<FreeBlocks> {
        let groups = self.group_table(&self.read(disk, self.first_block + 1, self.descriptor_blocks())?);
        let outside = |group: &Group| {
            let last =
                [group.bitmap, group.inode_bitmap, group.inode_table.saturating_add(self.table_blocks)];
            last.iter().any(|block| *block >= self.blocks)
        };
        if groups.iter().any(outside) {
            return Ok(FreeBlocks::Unknown("its group descriptors are damaged"));
        }
        let metadata = self.metadata(&groups);
        let mut free = Runs::default();
        for (at, group) in (0..).zip(&groups) {
            let first = self.first_block + at * self.group_blocks;
            let len = self.group_blocks.min(self.blocks - first);
            let is_unwritten = self.has_group_flags && group.flags & BLOCK_UNINIT != 0;
            let mut bitmap = match is_unwritten {
                false => Bitmap::of(self.read(disk, group.bitmap, 1)?, len),
                true => Bitmap::of(vec![0; usize::try_from(self.block_bytes).unwrap_or(0)], len),
            };
            let said_free = bitmap.free();
            self.mark_used(&mut bitmap, &metadata, first..first + len);
            // Of a bitmap that was never written, what is marked here may be more than what is used, never less.
            let agrees = if is_unwritten { bitmap.free() <= group.free } else { said_free == group.free };
            if !agrees {
                return Ok(FreeBlocks::Unknown("its block bitmaps and its counts do not agree"));
            }
            bitmap.each_free(|at| free.add(first + at));
        }
        let bytes = |block: u64| self.start + block * self.block_bytes;
        Ok(FreeBlocks::Known(free.0.into_iter().map(|run| bytes(run.start)..bytes(run.end)).collect()))
    }

    fn group_table(&self, bytes: &[u8]) -> Vec<Group> {
        let groups = usize::try_from(self.groups()).unwrap_or(0);
        let group = |descriptor: &[u8]| {
            let low = |at: usize| {
                u64::from(u32::from_le_bytes([
                    descriptor[at],
                    descriptor[at + 1],
                    descriptor[at + 2],
                    descriptor[at + 3],
                ]))
            };
            let is_long = descriptor.len() >= 64;
            let block = |at: usize, high: usize| low(at) | if is_long { low(high) << 32 } else { 0 };
            Group {
                bitmap: block(0, 32),
                inode_bitmap: block(4, 36),
                inode_table: block(8, 40),
                free: (low(12) & 0xffff) | if is_long { (low(44) & 0xffff) << 16 } else { 0 },
                flags: u32::try_from(low(16) >> 16).unwrap_or(0),
            }
        };
        bytes.chunks_exact(self.descriptor_bytes).take(groups).map(group).collect()
    }

    /// Every group's own blocks, in order.
    fn metadata(&self, groups: &[Group]) -> Vec<Range<u64>> {
        let own = |group: &Group| {
            let block = |at: u64| at..at + 1;
            let table = group.inode_table..group.inode_table + self.table_blocks;
            [block(group.bitmap), block(group.inode_bitmap), table]
        };
        let mut metadata: Vec<Range<u64>> = groups.iter().flat_map(own).collect();
        metadata.sort_by_key(|range| range.start);
        metadata
    }

    /// Marks the metadata in `range` as used, and the place of copies of the super block and the descriptors, whether or
    /// not the group has one: a bitmap that was never written does not have them.
    fn mark_used(&self, bitmap: &mut Bitmap, metadata: &[Range<u64>], range: Range<u64>) {
        let mut mark = |blocks: Range<u64>| {
            let (from, to) = (blocks.start.max(range.start), blocks.end.min(range.end));
            (from..to).for_each(|block| bitmap.set_used(block - range.start));
        };
        mark(range.start..range.start + 1 + self.descriptor_blocks() + self.reserved_blocks);
        // None is longer than a table, so that none which reaches into the range begins before this.
        let first = range.start.saturating_sub(self.table_blocks.max(1));
        let from = metadata.partition_point(|blocks| blocks.start < first);
        metadata[from..].iter().take_while(|blocks| blocks.start < range.end).cloned().for_each(mark);
    }
}

/// Which blocks of a group are used, a bit each; those the group does not have are.
struct Bitmap(Vec<u8>);

impl Bitmap {
    /// The first `len` bits of a block, at most all of them.
    fn of(bytes: Vec<u8>, len: u64) -> Self {
        let bits = bytes.len() as u64 * 8;
        let mut bitmap = Self(bytes);
        (len..bits).for_each(|at| bitmap.set_used(at));
        bitmap
    }

    fn set_used(&mut self, at: u64) {
        if let Some(byte) = usize::try_from(at / 8).ok().and_then(|at| self.0.get_mut(at)) {
            *byte |= 1 << (at % 8);
        }
    }

    fn free(&self) -> u64 {
        self.0.iter().map(|byte| u64::from(byte.count_zeros())).sum()
    }

    fn each_free(&self, mut found: impl FnMut(u64)) {
        for (at, byte) in (0..).step_by(8).zip(&self.0).filter(|(_, byte)| **byte != 0xff) {
            (0..8).filter(|bit| byte >> bit & 1 == 0).for_each(|bit| found(at + bit));
        }
    }
}

/// Numbers in order as ranges.
#[derive(Default)]
struct Runs(Vec<Range<u64>>);

impl Runs {
    fn add(&mut self, number: u64) {
        match self.0.last_mut() {
            Some(last) if last.end == number => last.end += 1,
            _ => self.0.push(number..number + 1),
        }
    }
}
