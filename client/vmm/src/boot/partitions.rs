//! The partitions of a disk: by its GPT, else by its MBR, else all of it.

mod gpt;
mod mbr;

use std::fmt;
use std::io;
use std::ops::Range;

use serde::Serialize;

use super::disk::ReadDisk;

pub use gpt::Guid;
#[cfg(test)]
pub(super) use gpt::tests::write as write_gpt;

/// What the table says a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The type of a GPT entry.
    Gpt(Guid),
    /// The type of an MBR entry.
    Mbr(u8),
    /// There is no table: this is the whole disk.
    Whole,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Gpt(Guid::EFI_SYSTEM) => f.write_str("EFI system partition"),
            Kind::Gpt(Guid::LINUX_ROOT_X86_64) => f.write_str("Linux root"),
            Kind::Gpt(Guid::XBOOTLDR) => f.write_str("extended boot loader partition"),
            Kind::Gpt(guid) => write!(f, "type {guid}"),
            Kind::Mbr(kind) => write!(f, "type {kind:#04x}"),
            Kind::Whole => f.write_str("whole disk"),
        }
    }
}

/// A part of the disk where a file system may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number, as Linux counts: of its place in the table, logical ones of an MBR from 5 on. 0 for the whole disk.
    pub number: u32,
    /// Where it lies: not empty, and within the disk.
    pub range: Range<u64>,
    /// What it is for.
    pub kind: Kind,
}

/// The partitions of a disk, in the order of their numbers. A table that lies about its size, its place or its checksum
/// is no table; an entry that does not lie within the disk is none.
///
/// # Errors
/// What reading the disk says.
pub fn partitions(disk: &dyn ReadDisk) -> io::Result<Vec<Partition>> {
    let table = mbr::read(disk)?;
    if table.as_ref().is_none_or(|table| table.is_protective || table.partitions.is_empty())
        && let Some(found) = gpt::read(disk, table.as_ref().is_some_and(|table| table.is_protective))?
    {
        return Ok(found);
    }
    match table {
        Some(table) if table.is_protective || !table.partitions.is_empty() => Ok(table.partitions),
        _ => Ok(whole(disk)),
    }
}

fn whole(disk: &dyn ReadDisk) -> Vec<Partition> {
    let size = disk.size_bytes();
    if size == 0 { Vec::new() } else { vec![Partition { number: 0, range: 0..size, kind: Kind::Whole }] }
}

/// What lies from one byte up to another, when it is neither empty nor outside of the disk.
fn range(start: Option<u64>, end: Option<u64>, size: u64) -> Option<Range<u64>> {
    let (start, end) = (start?, end?);
    (start < end && end <= size).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_disk_without_a_table_is_one_piece() {
        assert_eq!(
            partitions(&vec![0; 1 << 20]).unwrap(),
            [Partition { number: 0, range: 0..1 << 20, kind: Kind::Whole }]
        );
        assert_eq!(partitions(&vec![0; 100]).unwrap()[0].range, 0..100);
        assert_eq!(partitions(&Vec::new()).unwrap(), []);
    }

    proptest! {
        #[test]
        fn every_partition_lies_within_the_disk(
            mut disk in proptest::collection::vec(any::<u8>(), 0..4096),
            is_mbr in any::<bool>(),
        ) {
            if is_mbr && disk.len() >= 512 {
                disk[510..512].copy_from_slice(&[0x55, 0xaa]);
                for entry in 0..4 {
                    disk[446 + 16 * entry] &= 0x80;
                }
            }
            for partition in partitions(&disk).unwrap() {
                prop_assert!(partition.range.start < partition.range.end);
                prop_assert!(partition.range.end <= disk.len() as u64);
            }
        }
    }
}
