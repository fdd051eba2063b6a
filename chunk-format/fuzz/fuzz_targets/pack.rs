//! A whole pack: as it comes, and with its sums made right, which is what a hostile writer would do.

#![no_main]

use std::collections::HashSet;

use chunk_format::{
    FrameDecoder, ID_BYTES, PACK_HEADER_BYTES, PACK_TRAILER_BYTES, PackFooter, PackTrailer, frame_len_max,
    pack_chunks_max,
};
use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use sha2::{Digest, Sha256};

const ENTRY_BYTES: usize = ID_BYTES + 4;
const CHECKED_TRAILER_BYTES: usize = 24;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    if seed.is_multiple_of(2) && rewrite_table(&mut data[..size], seed / 2).is_some() {
        return size;
    }
    fuzzer_mutate(data, size, max_size)
});

fuzz_target!(|data: &[u8]| {
    check(data);
    if let Some(repaired) = repaired(data) {
        check(&repaired);
    }
});

fn check(pack: &[u8]) {
    let len = pack.len() as u64;
    let Ok(footer) = PackFooter::decode_pack(pack) else {
        let _ = PackTrailer::decode(pack, len);
        return;
    };
    let trailer = PackTrailer::decode(pack, len).unwrap();
    assert_eq!(PackFooter::decode(&pack[pack.len() - trailer.footer_len()..], len).unwrap(), footer);

    assert!(footer.entries.len() <= pack_chunks_max(footer.chunk_size));
    let mut end = PACK_HEADER_BYTES;
    for entry in &footer.entries {
        assert_eq!(entry.range().start, end);
        end = entry.range().end;
        assert!(entry.range().len() <= frame_len_max(footer.chunk_size.bytes()));
    }
    assert_eq!(end + trailer.footer_len(), pack.len());
    let distinct: HashSet<_> = footer.entries.iter().map(|entry| entry.chunk).collect();
    assert_eq!(distinct.len(), footer.entries.len());
    let _ = footer.verify_frames(pack, &mut FrameDecoder::new().unwrap());
}

/// Where the table begins, and how many entries it has, if the trailer's count fits the pack.
fn table(pack: &[u8]) -> Option<(usize, usize)> {
    let trailer_at = pack.len().checked_sub(PACK_TRAILER_BYTES)?;
    let chunks = u32::from_le_bytes(*pack[trailer_at + 8..].first_chunk()?) as usize;
    let table_at = trailer_at.checked_sub(chunks.checked_mul(ENTRY_BYTES)?)?;
    Some((table_at, chunks)).filter(|_| table_at >= PACK_HEADER_BYTES)
}

/// Changes the table as blind mutations hardly ever do: an id named again, or bytes moved from one frame to another.
fn rewrite_table(pack: &mut [u8], seed: u32) -> Option<()> {
    let (table_at, chunks) = table(pack).filter(|(_, chunks)| *chunks > 1)?;
    let seed = seed as usize;
    let (from, to) = (seed / 2 % chunks, seed / 512 % chunks);
    let (from_at, to_at) = (table_at + from * ENTRY_BYTES, table_at + to * ENTRY_BYTES);
    if seed.is_multiple_of(2) {
        pack.copy_within(from_at..from_at + ID_BYTES, to_at);
        return Some(());
    }
    let moved = (seed >> 16) as u32 % 5000;
    for (at, change) in [(from_at + ID_BYTES, moved.wrapping_neg()), (to_at + ID_BYTES, moved)] {
        let len = u32::from_le_bytes(*pack[at..].first_chunk()?).wrapping_add(change);
        pack[at..at + 4].copy_from_slice(&len.to_le_bytes());
    }
    Some(())
}

/// The pack with the frames' length and the checksum that fit its table.
fn repaired(data: &[u8]) -> Option<Vec<u8>> {
    let (table_at, _) = table(data)?;
    let mut pack = data.to_vec();
    let trailer_at = pack.len() - PACK_TRAILER_BYTES;
    let frames_len = (table_at - PACK_HEADER_BYTES) as u64;
    pack[trailer_at..trailer_at + 8].copy_from_slice(&frames_len.to_le_bytes());
    let checksum_at = trailer_at + CHECKED_TRAILER_BYTES;
    let checksum = Sha256::digest(&pack[table_at..checksum_at]);
    pack[checksum_at..checksum_at + checksum.len()].copy_from_slice(&checksum);
    Some(pack)
}
