//! Where file systems may begin on a disk.

use std::io;
use std::ops::Range;

use super::DiskImage;

/// Entries anyone looks at: what `gdisk` and the kernel make and read.
const MAX_ENTRIES: usize = 128;

/// The partitions of a disk by its GPT (UEFI specification 2.10, section 5.3) or else its MBR's primary ones; all of
/// the disk when it has neither.
///
/// # Errors
/// What reading the disk says.
pub(crate) fn partitions(disk: &dyn DiskImage) -> io::Result<Vec<Range<u64>>> {
    let size = disk.size_bytes();
    for sector_bytes in [512, 4096] {
        let header = read(disk, sector_bytes, 92)?;
        if header.starts_with(b"EFI PART") {
            let entry_bytes = u32_at(&header, 84) as usize;
            if !(128..=4096).contains(&entry_bytes) {
                return Ok(Vec::new());
            }
            let entries = (u32_at(&header, 80) as usize).min(MAX_ENTRIES);
            let table = read(disk, u64_at(&header, 72).saturating_mul(sector_bytes), entries * entry_bytes)?;
            let used = table.chunks_exact(entry_bytes).filter(|entry| entry[..16] != [0; 16]);
            let ranges = used.map(|entry| {
                let end = u64_at(entry, 40).saturating_add(1);
                u64_at(entry, 32).saturating_mul(sector_bytes)..end.saturating_mul(sector_bytes)
            });
            return Ok(ranges.filter(|range| range.start < range.end && range.end <= size).collect());
        }
    }
    let sector = read(disk, 0, 512)?;
    let entries = sector[446..510].as_chunks::<16>().0;
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
