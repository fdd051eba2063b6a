//! GUID partition tables (UEFI specification 2.10, section 5.3).

use std::fmt;
use std::io;

use serde::{Serialize, Serializer};

use super::{Kind, Partition, range};
use crate::boot::disk::{ReadDisk, bytes_at, read_vec, u32_at, u64_at};

/// Entries of a table that is believed: eight times what every tool makes.
const MAX_ENTRIES: u32 = 1024;
/// Bytes of one entry: the specification has 128, doubled any number of times.
const MAX_ENTRY_BYTES: u32 = 4096;

/// A GUID, in the byte order of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// `c12a7328-f81f-11d2-ba4b-00a0c93ec93b`: what the firmware boots from.
    pub const EFI_SYSTEM: Guid = Guid([
        0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
    ]);
    /// `4f68bce3-e8cd-4db1-96e7-fbcaf984b709` (UAPI discoverable partitions).
    pub const LINUX_ROOT_X86_64: Guid = Guid([
        0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d, 0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09,
    ]);
    /// `bc13c2ff-59e6-4262-a352-b275fd6f7172`: a `/boot` of its own.
    pub const XBOOTLDR: Guid = Guid([
        0xff, 0xc2, 0x13, 0xbc, 0xe6, 0x59, 0x62, 0x42, 0xa3, 0x52, 0xb2, 0x75, 0xfd, 0x6f, 0x71, 0x72,
    ]);
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g, h, i, rest @ ..] = self.0;
        let first = u32::from_le_bytes([a, b, c, d]);
        write!(f, "{first:08x}-{:04x}-{:04x}", u16::from_le_bytes([e, g]), u16::from_le_bytes([h, i]))?;
        for (at, byte) in rest.iter().enumerate() {
            write!(f, "{}{byte:02x}", if matches!(at, 0 | 2) { "-" } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Guid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The partitions of the first table that is whole: the primary one, or the backup at the end of the disk. A backup is
/// believed only where an MBR announces a GPT: an old one may have been left behind by another table.
pub(super) fn read(disk: &dyn ReadDisk, is_announced: bool) -> io::Result<Option<Vec<Partition>>> {
    for sector in [512, 4096] {
        if let Some(found) = table(disk, sector, 1)? {
            return Ok(Some(found));
        }
    }
    if is_announced {
        for sector in [512, 4096] {
            if let Some(last) = (disk.size_bytes() / sector).checked_sub(1)
                && let Some(found) = table(disk, sector, last)?
            {
                return Ok(Some(found));
            }
        }
    }
    Ok(None)
}

/// The partitions of the table whose header lies in a sector; `None` when that is no header, or one that is not whole.
fn table(disk: &dyn ReadDisk, sector: u64, at: u64) -> io::Result<Option<Vec<Partition>>> {
    let Some(place) = at.checked_mul(sector) else { return Ok(None) };
    let Some(mut header) = read_vec(disk, place, 512)? else { return Ok(None) };
    let header_bytes = u32_at(&header, 12) as usize;
    if !header.starts_with(b"EFI PART") || !(92..=512).contains(&header_bytes) || u64_at(&header, 24) != at {
        return Ok(None);
    }
    let header_crc = u32_at(&header, 16);
    header.truncate(header_bytes);
    if let Some(field) = header.get_mut(16..20) {
        field.fill(0);
    }
    let (first, count, entry_bytes) = (u64_at(&header, 72), u32_at(&header, 80), u32_at(&header, 84));
    if crc32fast::hash(&header) != header_crc
        || !(1..=MAX_ENTRIES).contains(&count)
        || !(128..=MAX_ENTRY_BYTES).contains(&entry_bytes)
    {
        return Ok(None);
    }
    let Some(place) = first.checked_mul(sector) else { return Ok(None) };
    let Some(entries) = read_vec(disk, place, count as usize * entry_bytes as usize)? else {
        return Ok(None);
    };
    if crc32fast::hash(&entries) != u32_at(&header, 88) {
        return Ok(None);
    }
    let mut found = Vec::new();
    for (number, entry) in (1..).zip(entries.chunks_exact(entry_bytes as usize)) {
        let kind = Guid(bytes_at(entry, 0));
        let end = u64_at(entry, 40).checked_add(1).and_then(|end| end.checked_mul(sector));
        let range = range(u64_at(entry, 32).checked_mul(sector), end, disk.size_bytes());
        if let (true, Some(range)) = (kind != Guid([0; 16]), range) {
            found.push(Partition { number, range, kind: Kind::Gpt(kind) });
        }
    }
    Ok(Some(found))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::boot::partitions::partitions;

    /// Writes a protective MBR and both tables onto a disk.
    pub(crate) fn write(disk: &mut [u8], sector: usize, parts: &[(Guid, u64, u64)]) {
        disk[446 + 4] = 0xee;
        disk[446 + 8] = 1;
        disk[446 + 12..446 + 16].fill(0xff);
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        let last = disk.len() / sector - 1;
        let mut entries = vec![0; 128 * 128];
        for (entry, (kind, first, last)) in entries.chunks_exact_mut(128).zip(parts) {
            entry[..16].copy_from_slice(&kind.0);
            entry[16] = 1;
            entry[32..40].copy_from_slice(&first.to_le_bytes());
            entry[40..48].copy_from_slice(&last.to_le_bytes());
        }
        let sectors = entries.len().div_ceil(sector);
        for (at, other, table) in [(1, last, 2), (last, 1, last - sectors)] {
            let mut header = vec![0; 92];
            header[..12].copy_from_slice(b"EFI PART\0\0\x01\0");
            header[12] = 92;
            header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(other as u64).to_le_bytes());
            header[72..80].copy_from_slice(&(table as u64).to_le_bytes());
            header[80] = 128;
            header[84] = 128;
            header[88..92].copy_from_slice(&crc32fast::hash(&entries).to_le_bytes());
            let crc = crc32fast::hash(&header);
            header[16..20].copy_from_slice(&crc.to_le_bytes());
            disk[at * sector..][..92].copy_from_slice(&header);
            disk[table * sector..][..entries.len()].copy_from_slice(&entries);
        }
    }

    fn example(sector: usize) -> (Vec<u8>, Vec<Partition>) {
        let mut disk = vec![0; 1024 * sector];
        write(&mut disk, sector, &[(Guid::LINUX_ROOT_X86_64, 100, 199), (Guid::XBOOTLDR, 50, 99)]);
        let sector = sector as u64;
        let expected = vec![
            Partition {
                number: 1,
                range: 100 * sector..200 * sector,
                kind: Kind::Gpt(Guid::LINUX_ROOT_X86_64),
            },
            Partition { number: 2, range: 50 * sector..100 * sector, kind: Kind::Gpt(Guid::XBOOTLDR) },
        ];
        (disk, expected)
    }

    #[test]
    fn both_sizes_of_sectors_are_read() {
        for sector in [512, 4096] {
            let (disk, expected) = example(sector);
            assert_eq!(partitions(&disk).unwrap(), expected);
        }
    }

    #[test]
    fn a_damaged_header_or_table_is_replaced_by_the_backup() {
        for sector in [512, 4096] {
            for at in [sector, sector + 40, sector + 17, 2 * sector + 33] {
                let (mut disk, expected) = example(sector);
                disk[at] ^= 1;
                assert_eq!(partitions(&disk).unwrap(), expected, "byte {at}");
            }
        }
    }

    #[test]
    fn a_backup_nobody_announces_is_not_believed() {
        let (mut disk, _) = example(512);
        disk[..1024].fill(0);
        assert_eq!(partitions(&disk).unwrap()[0].kind, Kind::Whole);
    }

    #[test]
    fn an_entry_outside_of_the_disk_is_left_out() {
        let mut disk = vec![0; 1 << 20];
        let all = Guid::LINUX_ROOT_X86_64;
        write(&mut disk, 512, &[(all, 100, 5000), (all, 200, 100), (all, u64::MAX, u64::MAX), (all, 64, 64)]);
        let found = partitions(&disk).unwrap();
        assert_eq!(found, [Partition { number: 4, range: 64 * 512..65 * 512, kind: Kind::Gpt(all) }]);
    }

    #[test]
    fn guids_are_written_as_people_know_them() {
        assert_eq!(Guid::EFI_SYSTEM.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(Guid::LINUX_ROOT_X86_64.to_string(), "4f68bce3-e8cd-4db1-96e7-fbcaf984b709");
        assert_eq!(Guid::XBOOTLDR.to_string(), "bc13c2ff-59e6-4262-a352-b275fd6f7172");
    }
}
