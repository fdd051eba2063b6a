//! What is on a partition, by the marks that file systems leave: to tell a person what was seen.

use super::disk::{ReadDisk, read_vec};
use super::partitions::Partition;

/// Name, place and bytes of a mark. The first one that is there counts.
const MARKS: &[(&str, u64, &[u8])] = &[
    ("LUKS", 0, b"LUKS\xba\xbe"),
    ("XFS", 0, b"XFSB"),
    ("squashfs", 0, b"hsqs"),
    ("NTFS", 3, b"NTFS    "),
    ("FAT", 54, b"FAT"),
    ("FAT", 82, b"FAT32"),
    ("LVM", 512, b"LABELONE"),
    ("LVM", 0, b"LABELONE"),
    ("ext4", 1080, b"\x53\xef"),
    ("f2fs", 1024, b"\x10\x20\xf5\xf2"),
    ("EROFS", 1024, b"\xe2\xe1\xf5\xe0"),
    ("swap", 4086, b"SWAPSPACE2"),
    ("RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    ("ISO 9660", 32769, b"CD001"),
    ("btrfs", 65600, b"_BHRfS_M"),
];

/// The name of what is on a partition; `None` when nothing is known about it, or it cannot be read.
pub(super) fn name(disk: &dyn ReadDisk, partition: &Partition) -> Option<&'static str> {
    let is_there = |place: u64, mark: &[u8]| {
        let start = partition.range.start.checked_add(place)?;
        let end = start.checked_add(mark.len() as u64)?;
        if end > partition.range.end {
            return None;
        }
        read_vec(disk, start, mark.len()).ok().flatten().filter(|bytes| bytes == mark)
    };
    MARKS.iter().find(|(_, place, mark)| is_there(*place, mark).is_some()).map(|(name, ..)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::partitions::Kind;

    #[test]
    fn marks_are_found_within_the_partition_only() {
        let mut disk = vec![0; 4096];
        disk[512..516].copy_from_slice(b"XFSB");
        let at = |range| Partition { number: 1, range, kind: Kind::Mbr(0x83) };
        assert_eq!(name(&disk, &at(512..4096)), Some("XFS"));
        assert_eq!(name(&disk, &at(512..514)), None);
        assert_eq!(name(&disk, &at(0..4096)), None);
    }
}
