//! Where a file's blocks are: a tree of extents, or the older lists of blocks.

use super::{FileSystem, Inode, u16_at, u32_at, u64_of};
use crate::files::FilesError;

/// The deepest tree of extents that Linux makes.
const MAX_DEPTH: u16 = 5;
const EXTENT_MAGIC: u16 = 0xf30a;
const ENTRY_BYTES: usize = 12;
/// More blocks than this mean that they were never written: they read as zeros.
const MAX_WRITTEN: u64 = 32_768;
/// Blocks that the inode itself lists, and the lists below it.
const DIRECT: u64 = 12;

/// Blocks of a file that follow one another on the disk too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first of them, counted from the beginning of the file.
    pub logical: u64,
    /// How many; never none.
    pub blocks: u64,
    /// The first of them, counted from the beginning of the file system; none when they are zeros.
    pub physical: Option<u64>,
}

/// Ends the way through a file whose map names the same blocks again and again: no sound file has more blocks, or more
/// holes between them, than its file system.
#[derive(Debug)]
pub struct Effort {
    left_bytes: u64,
}

impl Effort {
    /// What any file of these file systems may cost.
    pub fn of(systems: &[&FileSystem]) -> Self {
        let sizes = systems.iter().map(|fs| fs.size_bytes().saturating_mul(2));
        Self { left_bytes: sizes.fold(0, u64::saturating_add) }
    }

    /// Notes bytes of a file that were looked at; of a hole, one block.
    ///
    /// # Errors
    /// `Damaged` when they were too many.
    pub fn spend(&mut self, inode: &Inode, bytes: u64) -> Result<(), FilesError> {
        let left = self.left_bytes.checked_sub(bytes);
        self.left_bytes = left.ok_or_else(|| damaged(inode, "has more bytes than its file system"))?;
        Ok(())
    }
}

impl FileSystem {
    /// The blocks of a file from one on.
    ///
    /// # Errors
    /// `Disk`, `Damaged`.
    pub fn run(&self, inode: &Inode, logical: u64) -> Result<Run, FilesError> {
        let run = match inode.has_extents() {
            true => self.extent(inode, logical)?,
            false => self.listed(inode, logical)?,
        };
        let fits = run.physical.is_none_or(|physical| {
            physical > 0 && physical.checked_add(run.blocks).is_some_and(|end| end <= self.superblock.blocks)
        });
        match fits {
            true => Ok(run),
            false => Err(damaged(inode, "has blocks outside of the file system")),
        }
    }

    fn extent(&self, inode: &Inode, logical: u64) -> Result<Run, FilesError> {
        let mut node = inode.block_map().to_vec();
        let mut deepest = MAX_DEPTH + 1;
        // No extent reaches past the next branch.
        let mut bound = u64::MAX;
        loop {
            let (entries, depth) = (usize::from(u16_at(&node, 2)), u16_at(&node, 6));
            if u16_at(&node, 0) != EXTENT_MAGIC || depth >= deepest {
                return Err(damaged(inode, "has a broken tree of extents"));
            }
            deepest = depth;
            let entries = node[ENTRY_BYTES..].chunks_exact(ENTRY_BYTES).take(entries);
            let (mut last, mut next) = (None, bound);
            for entry in entries {
                let first = u64::from(u32_at(entry, 0));
                if first <= logical {
                    last = Some(entry);
                } else {
                    next = next.min(first);
                    break;
                }
            }
            let hole = Run { logical, blocks: next.saturating_sub(logical).max(1), physical: None };
            let Some(entry) = last else { return Ok(hole) };
            if depth > 0 {
                let child = u64_of(u32_at(entry, 4), u32::from(u16_at(entry, 8)));
                bound = next;
                node = vec![0; usize::try_from(self.superblock.block_bytes).unwrap_or(0)];
                self.read_blocks(child, 0, &mut node)?;
                continue;
            }
            let (first, len) = (u64::from(u32_at(entry, 0)), u64::from(u16_at(entry, 4)));
            let physical = u64_of(u32_at(entry, 8), u32::from(u16_at(entry, 6)));
            let (blocks, is_written) =
                if len > MAX_WRITTEN { (len - MAX_WRITTEN, false) } else { (len, true) };
            let within = logical - first;
            if within >= blocks {
                return Ok(hole);
            }
            let physical = is_written.then_some(physical.saturating_add(within));
            return Ok(Run { logical, blocks: blocks - within, physical });
        }
    }

    fn listed(&self, inode: &Inode, logical: u64) -> Result<Run, FilesError> {
        let run = |blocks, physical| Ok(Run { logical, blocks, physical });
        let in_inode = |at: u64| {
            let at = usize::try_from(at).unwrap_or(usize::MAX / 8);
            u64::from(u32_at(inode.block_map(), at * 4))
        };
        let found = |block: u64| (block != 0).then_some(block);
        if logical < DIRECT {
            return run(1, found(in_inode(logical)));
        }
        let per_list = self.superblock.block_bytes / 4;
        let mut within = logical - DIRECT;
        let mut spans = per_list;
        for level in 0..3 {
            if within >= spans {
                within -= spans;
                spans = spans.saturating_mul(per_list);
                continue;
            }
            let mut block = in_inode(DIRECT + level);
            // What one entry of the list at hand stands for.
            let mut span = spans / per_list;
            loop {
                if block == 0 {
                    return run((span * per_list - within).max(1), None);
                }
                let at = within / span;
                let mut list = vec![0; usize::try_from((per_list - at) * 4).unwrap_or(4)];
                self.read_blocks(block, at * 4, &mut list)?;
                block = u64::from(u32_at(&list, 0));
                if block == 0 || span == 1 {
                    return run(following(&list) * span - within % span, found(block));
                }
                within %= span;
                span /= per_list;
            }
        }
        Err(damaged(inode, "is longer than its blocks can be"))
    }
}

/// How many entries of a list go on as the first one: blocks that follow one another, or none.
fn following(list: &[u8]) -> u64 {
    let first = u64::from(u32_at(list, 0));
    let entries = (0_u64..).zip(list.as_chunks::<4>().0);
    let goes_on = |&(at, entry): &(u64, &[u8; 4])| {
        let expected = if first == 0 { 0 } else { first + at };
        u64::from(u32::from_le_bytes(*entry)) == expected
    };
    entries.take_while(goes_on).count() as u64
}

fn damaged(inode: &Inode, what: &str) -> FilesError {
    FilesError::damaged(format!("inode {} {what}", inode.number))
}
