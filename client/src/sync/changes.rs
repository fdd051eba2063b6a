//! What overlays change of the disk below, segment by segment: what is held of it goes by what was written, not by how large the
//! disk is, most of which may have been discarded at once.

use std::ops::Range;

use chunk_format::{ChunkIndex, SEGMENT_CHUNKS, SegmentIndex};

use crate::disk::View;
use crate::overlay::{BLOCK_BYTES, BlockIndex, BlockState, Overlay};

/// What becomes of a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// All of it is zeros.
    Zeroed,
    /// Some chunks of it change.
    Chunks {
        /// To be read.
        positions: Vec<usize>,
        /// Zeros from end to end.
        zeroed: Vec<usize>,
    },
}

/// The segments that overlays change. Discarding what was zeros before, as making a file system does, changes nothing.
pub(super) fn changes(view: &View) -> impl Iterator<Item = (SegmentIndex, Change)> + '_ {
    (0..).map(SegmentIndex).zip(view.base.segments()).filter_map(|(index, below)| {
        let change = change(view, index)?;
        if !below.id.is_zero() {
            return Some((index, change));
        }
        match change {
            Change::Chunks { positions, .. } if !positions.is_empty() => {
                Some((index, Change::Chunks { positions, zeroed: Vec::new() }))
            }
            Change::Chunks { .. } | Change::Zeroed => None,
        }
    })
}

fn change(view: &View, index: SegmentIndex) -> Option<Change> {
    let chunk_size = view.base.chunk_size();
    let first = index.first_chunk();
    let start = first.offset_bytes(chunk_size);
    let blocks = blocks_of(view, start..start + chunk_size.segment_span_bytes());
    if is_all(view, blocks.clone(), |state| state == BlockState::Zero) {
        return Some(Change::Zeroed);
    }
    let mut is_touched = [false; SEGMENT_CHUNKS];
    for overlay in &view.overlays {
        for run in written_runs(overlay, blocks.clone()) {
            let chunk = |block: u64| ChunkIndex::containing(block * BLOCK_BYTES, chunk_size).in_segment().1;
            is_touched[chunk(run.start)..=chunk(run.end - 1)].fill(true);
        }
    }
    let (mut positions, mut zeroed) = (Vec::new(), Vec::new());
    for (at, _) in is_touched.iter().enumerate().filter(|(_, is_touched)| **is_touched) {
        let is_zeroed = is_all(view, blocks_of_chunk(view, ChunkIndex(first.0 + at as u64)), |state| {
            state == BlockState::Zero
        });
        if is_zeroed { zeroed.push(at) } else { positions.push(at) }
    }
    (!positions.is_empty() || !zeroed.is_empty()).then_some(Change::Chunks { positions, zeroed })
}

/// Whether all of a chunk was written or zeroed, block by block, in the overlays: what lies below it is not read.
pub(super) fn is_written_over(view: &View, chunk: ChunkIndex) -> bool {
    is_all(view, blocks_of_chunk(view, chunk), |state| state != BlockState::Base)
}

fn blocks_of_chunk(view: &View, chunk: ChunkIndex) -> Range<u64> {
    let start = chunk.offset_bytes(view.base.chunk_size());
    blocks_of(view, start..start + view.base.chunk_size().bytes_u64())
}

/// The blocks of a range of bytes, as far as the disk goes.
fn blocks_of(view: &View, bytes: Range<u64>) -> Range<u64> {
    bytes.start / BLOCK_BYTES..bytes.end.min(view.base.size().bytes()).div_ceil(BLOCK_BYTES)
}

/// Whether the newest overlays that have some blocks have all of them so.
fn is_all(view: &View, blocks: Range<u64>, is_so: impl Fn(BlockState) -> bool) -> bool {
    let mut block = blocks.start;
    while block < blocks.end {
        let mut last = blocks.end;
        let mut newest = BlockState::Base;
        for overlay in &view.overlays {
            let (state, len) = overlay.run(BlockIndex(block), BlockIndex(last));
            last = block + len.max(1);
            if state != BlockState::Base {
                newest = state;
                break;
            }
        }
        if !is_so(newest) {
            return false;
        }
        block = last;
    }
    true
}

/// The runs of blocks that an overlay has, of some.
fn written_runs(overlay: &Overlay, blocks: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
    let mut at = blocks.start;
    std::iter::from_fn(move || {
        while at < blocks.end {
            let (state, len) = overlay.run(BlockIndex(at), BlockIndex(blocks.end));
            let start = at;
            at += len.max(1);
            if state != BlockState::Base {
                return Some(start..at);
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use chunk_format::{
        ChunkSize, Disk as ManifestDisk, DiskRole, DiskSize, ManifestId, Namespace, SegmentId,
    };

    use super::*;
    use crate::disk::Base;
    use crate::overlay::OverlayIdentity;
    use crate::volume::SimulatedVolume;

    const CHUNK: u64 = 8192;
    const SPAN: u64 = CHUNK * SEGMENT_CHUNKS as u64;

    /// A disk of four segments and a bit, the second of which holds something, under some overlays, the newest first.
    fn view(volume: &SimulatedVolume, overlays: u64) -> View {
        let size = DiskSize::new(4 * SPAN + 3 * CHUNK + 512).unwrap();
        let mut segments = vec![SegmentId::ZERO; 5];
        segments[1] = SegmentId::of(b"something");
        let chunk_size = ChunkSize::new(CHUNK).unwrap();
        let disk = ManifestDisk { role: DiskRole::Home, size, chunk_size, segments };
        let base = Arc::new(Base::new(&disk, |_| Namespace::User("alice".parse().unwrap())));
        let overlay = |generation| {
            let desktop = ManifestId::of(b"desktop");
            let identity = OverlayIdentity { desktop, role: DiskRole::Home, size, generation };
            Arc::new(Overlay::create(volume, identity, ManifestId::of(b"head"), 7).unwrap())
        };
        View { overlays: (0..overlays).rev().map(overlay).collect(), base }
    }

    #[test]
    fn discarding_a_disk_changes_the_segments_that_held_something_and_each_as_a_whole() {
        let volume = SimulatedVolume::default();
        let view = view(&volume, 2);
        assert_eq!(changes(&view).count(), 0);
        let [newer, older] = view.overlays.as_slice() else { panic!("two") };
        older.write(2 * SPAN + CHUNK, &[1; 4096]).unwrap();
        older.write(3 * SPAN, &[1; 4096]).unwrap();
        newer.zero(0..view.base.size().bytes().div_ceil(BLOCK_BYTES)).unwrap();
        assert_eq!(changes(&view).collect::<Vec<_>>(), [(SegmentIndex(1), Change::Zeroed)]);
        // As making a file system does.
        newer.write(3 * SPAN + CHUNK + 4096, &[1; 4096]).unwrap();
        newer.write(4 * SPAN + 3 * CHUNK, &[1; 512]).unwrap();
        let read = |at| Change::Chunks { positions: vec![at], zeroed: Vec::new() };
        let expected =
            [(SegmentIndex(1), Change::Zeroed), (SegmentIndex(3), read(1)), (SegmentIndex(4), read(3))];
        assert_eq!(changes(&view).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn of_what_held_something_the_chunks_that_are_zeros_are_told_from_those_to_be_read() {
        let volume = SimulatedVolume::default();
        let view = view(&volume, 2);
        let [newer, older] = view.overlays.as_slice() else { panic!("two") };
        let block = |chunk: u64| (SPAN + chunk * CHUNK) / BLOCK_BYTES;
        older.write(SPAN + 5 * CHUNK, &[1; 4096]).unwrap();
        older.zero(block(5) + 1..block(6) + 1).unwrap();
        newer.zero(block(5)..block(5) + 1).unwrap();
        newer.write(SPAN + 1023 * CHUNK + 4096, &[1; 8192]).unwrap();
        let of_second = Change::Chunks { positions: vec![6, 1023], zeroed: vec![5] };
        let of_third = Change::Chunks { positions: vec![0], zeroed: Vec::new() };
        let expected = [(SegmentIndex(1), of_second), (SegmentIndex(2), of_third)];
        assert_eq!(changes(&view).collect::<Vec<_>>(), expected);
        assert!(is_written_over(&view, ChunkIndex(1024 + 5)));
        assert!(!is_written_over(&view, ChunkIndex(1024 + 6)));
    }
}
