//! MBR partition tables: four primary partitions, and logical ones in a chain.

use std::io;

use super::{Kind, Partition, range};
use crate::boot::disk::{ReadDisk, bytes_at, read_vec, u32_at};

/// Bytes of the sectors these tables count in.
const SECTOR_BYTES: u64 = 512;
/// Links of the chain that are followed. Linux numbers no more than 255 partitions, people make fewer than ten.
const MAX_LOGICAL: u32 = 128;

/// What an MBR says.
pub(super) struct Table {
    /// A GPT is announced: entries of type 0xee only keep old tools away from it.
    pub(super) is_protective: bool,
    /// The partitions. There are none in a boot sector that only looks like a table.
    pub(super) partitions: Vec<Partition>,
}

/// An entry as it is written.
struct Entry {
    status: u8,
    kind: u8,
    start: u64,
    count: u64,
}

impl Entry {
    fn is_extended(&self) -> bool {
        matches!(self.kind, 0x05 | 0x0f | 0x85)
    }

    /// Where the partition lies, when its start is counted from a sector.
    fn partition(&self, number: u32, base: u64, size: u64) -> Option<Partition> {
        let start = base.checked_add(self.start);
        let end = start.and_then(|start| start.checked_add(self.count));
        let bytes = |sectors: Option<u64>| sectors.and_then(|sectors| sectors.checked_mul(SECTOR_BYTES));
        let range = range(bytes(start), bytes(end), size)?;
        Some(Partition { number, range, kind: Kind::Mbr(self.kind) })
    }
}

/// The table of the disk's first sector; `None` when there is none.
pub(super) fn read(disk: &dyn ReadDisk) -> io::Result<Option<Table>> {
    let Some(entries) = entries(disk, 0)? else { return Ok(None) };
    let mut table = Table { is_protective: false, partitions: Vec::new() };
    let mut extended = None;
    for (number, entry) in (1..).zip(&entries) {
        if entry.kind == 0xee {
            table.is_protective = true;
        } else if entry.is_extended() && entry.count > 0 {
            extended = extended.or(Some(entry.start));
        } else if entry.kind != 0 {
            table.partitions.extend(entry.partition(number, 0, disk.size_bytes()));
        }
    }
    if let Some(base) = extended {
        logical(disk, base, &mut table.partitions)?;
    }
    Ok(Some(table))
}

/// Follows the chain of an extended partition: each link holds one partition, counted from the link, and where the next
/// link is, counted from the first.
fn logical(disk: &dyn ReadDisk, base: u64, found: &mut Vec<Partition>) -> io::Result<()> {
    let mut link = base;
    let mut number = 5;
    for _ in 0..MAX_LOGICAL {
        let Some([first, next, ..]) = entries(disk, link)? else { return Ok(()) };
        if first.kind != 0 && !first.is_extended() {
            found.extend(first.partition(number, link, disk.size_bytes()));
            number += 1;
        }
        if !next.is_extended() || next.count == 0 {
            return Ok(());
        }
        let Some(place) = base.checked_add(next.start) else { return Ok(()) };
        link = place;
    }
    Ok(())
}

/// The four entries of a sector that ends as a table does, and whose entries are active or not and nothing else.
fn entries(disk: &dyn ReadDisk, sector: u64) -> io::Result<Option<[Entry; 4]>> {
    let Some(place) = sector.checked_mul(SECTOR_BYTES) else { return Ok(None) };
    let Some(bytes) = read_vec(disk, place, 512)? else { return Ok(None) };
    let entries = [446, 462, 478, 494].map(|at| {
        let entry: [u8; 16] = bytes_at(&bytes, at);
        Entry {
            status: entry[0],
            kind: entry[4],
            start: u64::from(u32_at(&entry, 8)),
            count: u64::from(u32_at(&entry, 12)),
        }
    });
    let is_table =
        bytes.ends_with(&[0x55, 0xaa]) && entries.iter().all(|entry| matches!(entry.status, 0 | 0x80));
    Ok(is_table.then_some(entries))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::partitions::partitions;

    fn write(disk: &mut [u8], sector: usize, parts: &[(u8, u32, u32)]) {
        let table = &mut disk[sector * 512..][..512];
        table[510..].copy_from_slice(&[0x55, 0xaa]);
        for (entry, (kind, start, count)) in table[446..510].chunks_exact_mut(16).zip(parts) {
            entry[4] = *kind;
            entry[8..12].copy_from_slice(&start.to_le_bytes());
            entry[12..].copy_from_slice(&count.to_le_bytes());
        }
    }

    fn found(disk: &[u8]) -> Vec<(u32, u64, u64)> {
        let sectors =
            |partition: Partition| (partition.number, partition.range.start / 512, partition.range.end / 512);
        partitions(&disk.to_vec()).unwrap().into_iter().map(sectors).collect()
    }

    #[test]
    fn primary_and_logical_partitions_are_numbered_as_linux_does() {
        let mut disk = vec![0; 1 << 20];
        write(&mut disk, 0, &[(0x83, 10, 20), (0, 0, 0), (0x0f, 100, 900), (0x82, 1000, 48)]);
        write(&mut disk, 100, &[(0x83, 2, 98), (0x05, 100, 300)]);
        write(&mut disk, 200, &[(0x83, 1, 50)]);
        assert_eq!(found(&disk), [(1, 10, 30), (4, 1000, 1048), (5, 102, 200), (6, 201, 251)]);
    }

    #[test]
    fn a_chain_that_never_ends_is_left() {
        let mut disk = vec![0; 1 << 20];
        write(&mut disk, 0, &[(0x05, 100, 900)]);
        write(&mut disk, 100, &[(0x83, 2, 98), (0x05, 0, 300)]);
        assert_eq!(found(&disk).len(), MAX_LOGICAL as usize);
    }

    #[test]
    fn a_boot_sector_without_entries_is_no_table() {
        let mut disk = vec![0; 1 << 20];
        write(&mut disk, 0, &[]);
        assert_eq!(partitions(&disk).unwrap()[0].kind, Kind::Whole);
        write(&mut disk, 0, &[(0x83, 10, 20)]);
        disk[446] = 0x12;
        assert_eq!(partitions(&disk).unwrap()[0].kind, Kind::Whole);
    }

    #[test]
    fn a_lost_gpt_leaves_no_partition() {
        let mut disk = vec![0; 1 << 20];
        write(&mut disk, 0, &[(0xee, 1, 2047)]);
        assert_eq!(partitions(&disk).unwrap(), []);
    }
}
