//! Partition tables: the checksums of a GPT are put right, so that what is behind them is reached.

#![no_main]

use libfuzzer_sys::fuzz_target;
use satchel_vmm::boot::partitions::partitions;

fn check(disk: &Vec<u8>) {
    for partition in partitions(disk).unwrap() {
        assert!(partition.range.start < partition.range.end && partition.range.end <= disk.len() as u64);
    }
}

/// Puts the checksums of the table right whose header lies in a sector.
fn mend(disk: &mut [u8], sector: usize, at: usize) -> Option<()> {
    let header = disk.get(at * sector..)?.get(..512)?.to_vec();
    let number =
        |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize;
    let len = number(80).checked_mul(number(84))?;
    let table = disk.get(number(72).checked_mul(sector)?..)?.get(..len)?;
    let mut header = header.get(..number(12))?.to_vec();
    header.get_mut(88..92)?.copy_from_slice(&crc32fast::hash(table).to_le_bytes());
    header[16..20].fill(0);
    let crc = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    disk[at * sector..][..header.len()].copy_from_slice(&header);
    Some(())
}

fuzz_target!(|data: &[u8]| {
    let mut disk = data.to_vec();
    check(&disk);
    for sector in [512, 4096] {
        let _ = mend(&mut disk, sector, 1);
        if let Some(last) = (disk.len() / sector).checked_sub(1) {
            let _ = mend(&mut disk, sector, last);
        }
    }
    check(&disk);
});
