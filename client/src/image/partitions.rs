//! Where file systems may begin on a disk.

use std::io;
use std::ops::Range;

use super::DiskImage;

/// The most entries of a GPT that are read; tools make 128.
const MAX_ENTRIES: usize = 1024;
/// The type of an MBR's entry that stands for a GPT.
const PROTECTIVE: u8 = 0xee;

/// The partitions of a disk by its GPT (UEFI specification 2.10, section 5.3) or else its MBR's primary ones; all of
/// the disk when it has neither. None when it should have a GPT that does not hold.
///
/// # Errors
/// What reading the disk says.
pub(crate) fn partitions(disk: &dyn DiskImage) -> io::Result<Vec<Range<u64>>> {
    let size = disk.size_bytes();
    let sector = read(disk, 0, 512)?;
    let entries = sector[446..510].as_chunks::<16>().0;
    if is_protective(&sector) {
        return Ok(gpt(disk)?.unwrap_or_default());
    }
    let is_table = sector[510..] == [0x55, 0xaa] && entries.iter().all(|entry| matches!(entry[0], 0 | 0x80));
    let used: Vec<Range<u64>> = entries
        .iter()
        .filter(|entry| is_table && entry[4] != 0)
        .map(|entry| {
            let start = u64::from(u32_at(entry, 8)) * 512;
            start..start + u64::from(u32_at(entry, 12)) * 512
        })
        .filter(|range| range.start < range.end && range.end <= size)
        .collect();
    Ok(if used.is_empty() { std::iter::once(0..size).collect() } else { used })
}

/// Whether the first sector of a disk says that there is a GPT. Without that, as to the kernel, what looks like one is left of what
/// the disk was before.
pub(super) fn is_protective(sector: &[u8]) -> bool {
    let table = sector.get(446..512).filter(|table| table.ends_with(&[0x55, 0xaa]));
    table.is_some_and(|table| table[..64].as_chunks::<16>().0.iter().any(|entry| entry[4] == PROTECTIVE))
}

/// The partitions of a GPT whose header and table are as their checksums say; none when there is no such one at the disk's
/// beginning.
fn gpt(disk: &dyn DiskImage) -> io::Result<Option<Vec<Range<u64>>>> {
    for sector_bytes in [512, 4096] {
        let header = read(disk, sector_bytes, 512)?;
        let header_bytes = u32_at(&header, 12) as usize;
        if !header.starts_with(b"EFI PART") || !(92..=512).contains(&header_bytes) {
            continue;
        }
        let mut summed = header[..header_bytes].to_vec();
        summed[16..20].fill(0);
        let (entries, entry_bytes) = (u32_at(&header, 80) as usize, u32_at(&header, 84) as usize);
        if crc32fast::hash(&summed) != u32_at(&header, 16)
            || entries > MAX_ENTRIES
            || !(128..=4096).contains(&entry_bytes)
        {
            continue;
        }
        let (place, len) = (u64_at(&header, 72).saturating_mul(sector_bytes), entries * entry_bytes);
        if place.saturating_add(len as u64) > disk.size_bytes() {
            continue;
        }
        let table = read(disk, place, len)?;
        if crc32fast::hash(&table) != u32_at(&header, 88) {
            continue;
        }
        let used = table.chunks_exact(entry_bytes).filter(|entry| entry[..16] != [0; 16]);
        let ranges = used.map(|entry| {
            let end = u64_at(entry, 40).saturating_add(1);
            u64_at(entry, 32).saturating_mul(sector_bytes)..end.saturating_mul(sector_bytes)
        });
        let size = disk.size_bytes();
        return Ok(Some(ranges.filter(|range| range.start < range.end && range.end <= size).collect()));
    }
    Ok(None)
}

fn read(disk: &dyn DiskImage, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    if offset < disk.size_bytes() {
        disk.read_at(&mut bytes, offset)?;
    }
    Ok(bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Disk(Vec<u8>);

    impl DiskImage for Disk {
        fn size_bytes(&self) -> u64 {
            self.0.len() as u64
        }

        fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
            Ok(std::iter::once(0..self.size_bytes()).collect())
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            let offset = usize::try_from(offset).unwrap();
            buf.copy_from_slice(&self.0[offset..offset + buf.len()]);
            Ok(())
        }
    }

    const SECTORS: u32 = 256;

    fn with_mbr(disk: &mut Disk, kind: u8) {
        disk.0[446..510].fill(0);
        disk.0[450] = kind;
        disk.0[454..458].copy_from_slice(&1u32.to_le_bytes());
        disk.0[458..462].copy_from_slice(&(SECTORS - 1).to_le_bytes());
        disk.0[510..512].copy_from_slice(&[0x55, 0xaa]);
    }

    /// A disk with one partition, of sectors 64 to 127.
    fn with_gpt() -> Disk {
        let mut disk = Disk(vec![0; SECTORS as usize * 512]);
        with_mbr(&mut disk, PROTECTIVE);
        let mut table = vec![0; 128 * 128];
        table[0] = 1;
        table[32] = 64;
        table[40] = 127;
        let mut header = [0; 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[12] = 92;
        header[72] = 2;
        header[80] = 128;
        header[84] = 128;
        header[88..].copy_from_slice(&crc32fast::hash(&table).to_le_bytes());
        let sum = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&sum.to_le_bytes());
        disk.0[512..604].copy_from_slice(&header);
        disk.0[1024..1024 + table.len()].copy_from_slice(&table);
        disk
    }

    #[test]
    fn a_gpt_counts_when_the_mbr_says_so_and_its_checksums_hold() {
        let mut disk = with_gpt();
        let gpt = 64 * 512..128 * 512;
        assert_eq!(partitions(&disk).unwrap(), [gpt]);
        for damaged in [600, 1025] {
            disk.0[damaged] ^= 1;
            assert_eq!(partitions(&disk).unwrap(), []);
            disk.0[damaged] ^= 1;
        }
        // What is left of a GPT says nothing of the disk that was made of it.
        with_mbr(&mut disk, 0x83);
        let (mbr, whole) = (512..u64::from(SECTORS) * 512, 0..u64::from(SECTORS) * 512);
        assert_eq!(partitions(&disk).unwrap(), [mbr]);
        disk.0[446..512].fill(0);
        assert_eq!(partitions(&disk).unwrap(), [whole]);
    }
}
