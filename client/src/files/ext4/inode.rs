//! Inodes: what a file is, beside its name and its bytes.

use std::fmt;

use super::superblock::PLACE;
use super::{FileSystem, u16_at, u32_at, u64_of};
use crate::files::FilesError;

/// Number of an inode, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeNumber(pub u32);

impl InodeNumber {
    /// The root directory.
    pub const ROOT: Self = Self(2);
}

impl fmt::Display for InodeNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Bytes.
    File,
    /// Names.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharacterDevice,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
}

impl FileKind {
    fn of_mode(mode: u16) -> Option<Self> {
        Some(match mode & 0xf000 {
            0x1000 => Self::Pipe,
            0x2000 => Self::CharacterDevice,
            0x4000 => Self::Directory,
            0x6000 => Self::BlockDevice,
            0x8000 => Self::File,
            0xa000 => Self::Symlink,
            0xc000 => Self::Socket,
            _ => return None,
        })
    }

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::BlockDevice => "block device",
            Self::CharacterDevice => "character device",
            Self::Pipe => "pipe",
            Self::Socket => "socket",
        }
    }
}

/// A moment as a file system notes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    /// Seconds since 1970 UTC.
    pub seconds: i64,
    /// Nanoseconds beside them, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Moment {
    /// The base field is signed; the extra one has two more bits of seconds and, above them, the nanoseconds.
    fn decode(base: u32, extra: u32) -> Self {
        let seconds = i64::from(base.cast_signed()) + (i64::from(extra & 3) << 32);
        Self { seconds, nanoseconds: (extra >> 2).min(999_999_999) }
    }

    /// The two fields of the moment, as an inode has them; the nearest there is when it does not fit.
    pub fn encode(self) -> (u32, u32) {
        const MIN: i64 = i32::MIN as i64;
        const MAX: i64 = MIN + (4 << 32) - 1;
        let seconds = self.seconds.clamp(MIN, MAX);
        let base = u32::try_from(seconds & 0xffff_ffff).unwrap_or(0);
        let epoch = u32::try_from((seconds - i64::from(base.cast_signed())) >> 32 & 3).unwrap_or(0);
        (base, self.nanoseconds.min(999_999_999) << 2 | epoch)
    }
}

/// A file.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Its number.
    pub number: InodeNumber,
    /// What it is.
    pub kind: FileKind,
    /// Permissions, with the set-user-ID, set-group-ID and sticky bits: 12 bits.
    pub permissions: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size_bytes: u64,
    /// Names it has.
    pub links: u16,
    /// Bytes it takes on the disk.
    pub allocated_bytes: u64,
    /// When it was read.
    pub accessed: Moment,
    /// When its bytes were changed.
    pub modified: Moment,
    /// When anything of it was changed.
    pub changed: Moment,
    /// Major and minor number, of devices.
    pub device: (u32, u32),
    flags: u32,
    blocks: [u8; 60],
}

const HAS_EXTENTS: u32 = 0x8_0000;
const IS_ENCRYPTED: u32 = 0x800;
const HAS_INLINE_DATA: u32 = 0x1000_0000;
const USES_HUGE_BLOCKS: u32 = 0x4_0000;

impl Inode {
    fn decode(number: InodeNumber, bytes: &[u8], block_bytes: u64) -> Result<Self, FilesError> {
        let mode = u16_at(bytes, 0);
        let kind = FileKind::of_mode(mode).ok_or_else(|| {
            FilesError::damaged(format!("inode {number} is no file of any kind ({mode:#o})"))
        })?;
        let mut blocks = [0; 60];
        blocks.copy_from_slice(&bytes[40..100]);
        let flags = u32_at(bytes, 32);
        // How much of the second half is used is written there.
        let extra_bytes = if bytes.len() > 130 { usize::from(u16_at(bytes, 128)) } else { 0 };
        let extra = |at: usize| {
            let is_there = at + 4 <= 128 + extra_bytes && at + 4 <= bytes.len();
            if is_there { u32_at(bytes, at) } else { 0 }
        };
        let sectors = u64_of(u32_at(bytes, 28), u32::from(u16_at(bytes, 116)));
        let sector_bytes = if flags & USES_HUGE_BLOCKS != 0 { block_bytes } else { 512 };
        let (old, new) = (u32_at(bytes, 40), u32_at(bytes, 44));
        let device = match old {
            0 => (new >> 8 & 0xfff, new & 0xff | new >> 12 & 0xf_ff00),
            old => (old >> 8 & 0xff, old & 0xff),
        };
        Ok(Self {
            number,
            kind,
            permissions: mode & 0xfff,
            uid: u32::from(u16_at(bytes, 2)) | u32::from(u16_at(bytes, 120)) << 16,
            gid: u32::from(u16_at(bytes, 24)) | u32::from(u16_at(bytes, 122)) << 16,
            size_bytes: u64_of(u32_at(bytes, 4), u32_at(bytes, 108)),
            links: u16_at(bytes, 26),
            allocated_bytes: sectors.saturating_mul(sector_bytes),
            accessed: Moment::decode(u32_at(bytes, 8), extra(140)),
            modified: Moment::decode(u32_at(bytes, 16), extra(136)),
            changed: Moment::decode(u32_at(bytes, 12), extra(132)),
            device: if matches!(kind, FileKind::BlockDevice | FileKind::CharacterDevice) {
                device
            } else {
                (0, 0)
            },
            flags,
            blocks,
        })
    }

    pub(super) fn has_extents(&self) -> bool {
        self.flags & HAS_EXTENTS != 0
    }

    /// The 60 bytes that say where its blocks are.
    pub(super) fn block_map(&self) -> &[u8; 60] {
        &self.blocks
    }

    /// Bytes that are in the inode itself.
    pub(super) fn inline_data(&self) -> Result<Option<&[u8]>, FilesError> {
        let what = if self.flags & IS_ENCRYPTED != 0 {
            "is encrypted"
        } else if self.flags & HAS_INLINE_DATA == 0 {
            return Ok(None);
        } else if self.size_bytes <= self.blocks.len() as u64 && self.kind != FileKind::Directory {
            return Ok(Some(&self.blocks));
        } else {
            "has its bytes among its attributes"
        };
        Err(FilesError::unsupported(format!("inode {} {what}", self.number)))
    }

    /// The target of a symbolic link that is in the inode itself.
    pub(super) fn short_target(&self) -> Option<&[u8]> {
        let len = usize::try_from(self.size_bytes).ok().filter(|len| *len < self.blocks.len())?;
        (self.flags & (HAS_EXTENTS | IS_ENCRYPTED) == 0).then(|| &self.blocks[..len])
    }
}

impl FileSystem {
    /// The file with this number.
    ///
    /// # Errors
    /// `Disk`, or `Damaged` when there is none.
    pub fn inode(&self, number: InodeNumber) -> Result<Inode, FilesError> {
        let (block, within) = self.inode_place(number)?;
        let mut bytes = vec![0; usize::try_from(self.superblock.inode_bytes).unwrap_or(128)];
        self.read_blocks(block, within, &mut bytes)?;
        Inode::decode(number, &bytes, self.superblock.block_bytes)
    }

    /// Where an inode lies on the disk, bytes, whatever the journal has of it.
    ///
    /// # Errors
    /// `Disk`, or `Damaged` when there is none.
    pub fn inode_offset(&self, number: InodeNumber) -> Result<u64, FilesError> {
        let (block, within) = self.inode_place(number)?;
        let offset = block.checked_mul(self.superblock.block_bytes).and_then(|at| at.checked_add(within));
        let offset = offset.and_then(|at| at.checked_add(self.area.start)).filter(|at| *at < self.area.end);
        offset.ok_or_else(|| FilesError::damaged(format!("inode {number} lies nowhere")))
    }

    /// The block an inode is in, and where in it.
    fn inode_place(&self, number: InodeNumber) -> Result<(u64, u64), FilesError> {
        let superblock = &self.superblock;
        let index = number.0.checked_sub(1).filter(|_| number.0 <= superblock.inodes);
        let index = index.ok_or_else(|| FilesError::damaged(format!("there is no inode {number}")))?;
        let (group, at) = (index / superblock.group_inodes, index % superblock.group_inodes);
        let mut descriptor = vec![0; usize::try_from(superblock.descriptor_bytes).unwrap_or(32)];
        let table = u64::from(group) * superblock.descriptor_bytes;
        self.read_blocks(PLACE / superblock.block_bytes + 1, table, &mut descriptor)?;
        let high = if superblock.is_64bit { u32_at(&descriptor, 40) } else { 0 };
        let within = u64::from(at) * superblock.inode_bytes;
        let block = u64_of(u32_at(&descriptor, 8), high).checked_add(within / superblock.block_bytes);
        let block = block.ok_or_else(|| FilesError::damaged(format!("inode {number} lies nowhere")))?;
        Ok((block, within % superblock.block_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_read_back_over_their_whole_range() {
        for (seconds, nanoseconds) in
            [(0, 0), (-1, 5), (1_700_000_000, 999_999_999), (1 << 31, 1), ((7 << 31) - 1, 7)]
        {
            let moment = Moment { seconds, nanoseconds };
            let (base, extra) = moment.encode();
            assert_eq!(Moment::decode(base, extra), moment);
        }
    }
}
