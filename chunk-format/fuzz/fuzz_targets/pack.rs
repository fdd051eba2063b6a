//! A whole pack: as it comes, and with its sums made right, which is what a hostile writer would do.

#![no_main]

use std::collections::HashSet;

use chunk_format::{
    FrameDecoder, PACK_HEADER_BYTES, PACK_TRAILER_BYTES, PackFooter, PackTrailer, frame_len_max,
    pack_chunks_max,
};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

const ENTRY_BYTES: usize = 36;
const CHECKED_TRAILER_BYTES: usize = 24;

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

/// The pack with the frames' length and the checksum that fit its table.
fn repaired(data: &[u8]) -> Option<Vec<u8>> {
    let mut pack = data.to_vec();
    let trailer_at = pack.len().checked_sub(PACK_TRAILER_BYTES)?;
    let chunks = u32::from_le_bytes(*pack[trailer_at + 8..].first_chunk()?) as usize;
    let table_at = trailer_at.checked_sub(chunks.checked_mul(ENTRY_BYTES)?)?;
    let frames_len = table_at.checked_sub(PACK_HEADER_BYTES)? as u64;
    pack[trailer_at..trailer_at + 8].copy_from_slice(&frames_len.to_le_bytes());
    let checksum_at = trailer_at + CHECKED_TRAILER_BYTES;
    let checksum = Sha256::digest(&pack[table_at..checksum_at]);
    pack[checksum_at..checksum_at + checksum.len()].copy_from_slice(&checksum);
    Some(pack)
}
