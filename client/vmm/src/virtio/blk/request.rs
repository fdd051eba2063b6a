//! What a driver asks a disk for (Virtio 1.2, section 5.2.6), checked before anything is done.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use vm_memory::{Bytes, GuestAddress};

use crate::virtio::segments::Segments;
use crate::virtio::{BadChain, Chain, GuestMemory};

/// The unit of addresses.
pub(super) const SECTOR_BYTES: u64 = 512;
/// The unit of what a file that another process serves can do without the rest: the block of an overlay.
pub(super) const BLOCK_BYTES: usize = 4096;
/// Bytes of one transfer: more than any driver sends at once, and what a backend can be asked for at once.
pub(super) const MAX_TRANSFER_BYTES: u64 = 32 << 20;
/// Ranges of one discard.
pub(super) const MAX_RANGES: u32 = 256;
/// Ranges of one request to write zeros: where a file cannot make them, each is written byte by byte.
pub(super) const MAX_ZERO_RANGES: u32 = 1;
/// Sectors of one range: 2 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 4 << 20;
/// Bytes of a disk's name.
pub(super) const ID_BYTES: usize = 20;

const HEADER_BYTES: u64 = 16;
const RANGE_BYTES: u64 = 16;

/// A range of a disk, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DiskRange {
    /// Where it begins.
    pub(super) offset: u64,
    /// Its length.
    pub(super) bytes: u64,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Read into these buffers from there.
    Read(u64, Segments),
    /// Write these buffers there.
    Write(u64, Segments),
    /// Make everything that was written last.
    Flush,
    /// Tell the disk's name.
    Identify(Segments),
    /// Forget these ranges.
    Discard(Vec<DiskRange>),
    /// Make these ranges zero; they may be deallocated where the flag says so.
    WriteZeroes(Vec<(DiskRange, bool)>),
    /// Nothing this device does.
    Unsupported,
    /// What cannot be done: it lies past the end, or is no whole number of sectors, or the disk is not to be written.
    Refused,
}

/// A request, and where its status byte belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// What is to be done.
    pub(super) action: Action,
    /// Where the status is to be written.
    pub(super) status: GuestAddress,
}

/// What a disk is to its driver.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    /// Its size, a whole number of sectors.
    pub(super) bytes: u64,
    /// Whether it may be written.
    pub(super) read_only: bool,
}

impl Action {
    /// The bytes it moves between the disk and the guest's memory.
    pub(super) fn moved_bytes(&self) -> u64 {
        match self {
            Action::Read(_, buffers) | Action::Write(_, buffers) => buffers.bytes(),
            _ => 0,
        }
    }

    /// Where the blocks begin of which it changes a part: of each range at most its first and its last.
    pub(super) fn partial_blocks(&self) -> Vec<u64> {
        match self {
            Action::Write(offset, buffers) => edges(*offset, buffers.bytes()).collect(),
            Action::Discard(ranges) => {
                ranges.iter().flat_map(|range| edges(range.offset, range.bytes)).collect()
            }
            Action::WriteZeroes(ranges) => {
                ranges.iter().flat_map(|(range, _)| edges(range.offset, range.bytes)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether the disk's content is another after it.
    pub(super) fn changes_the_disk(&self) -> bool {
        matches!(self, Action::Write(..) | Action::Discard(_) | Action::WriteZeroes(_))
    }
}

/// The blocks that a range covers in part.
fn edges(offset: u64, bytes: u64) -> impl Iterator<Item = u64> {
    let (end, block) = (offset.saturating_add(bytes), BLOCK_BYTES as u64);
    let first = (!offset.is_multiple_of(block) && bytes > 0).then(|| offset - offset % block);
    let last = (!end.is_multiple_of(block) && bytes > 0).then(|| end - end % block);
    first.into_iter().chain(last.filter(|last| Some(*last) != first))
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    /// The chain has no status byte or no header: there is nobody to answer.
    pub(super) fn parse(
        chain: &Chain,
        memory: &GuestMemory,
        geometry: Geometry,
    ) -> Result<Request, BadChain> {
        // What is too long is refused below: its status is there to be written.
        let (mut readable, mut writable) = Segments::of_chain(chain)?;
        let status = writable.split_off_back(1)?;
        let status = status.list().first().ok_or(BadChain::TooShort)?.address;
        let header = read(memory, &readable.split_off_front(HEADER_BYTES)?)?;
        let kind = u32_at(&header, 0);
        let sector = u64_at(&header, 8);
        let action = action(kind, sector, memory, geometry, readable, writable)?;
        Ok(Request { action, status })
    }
}

fn action(
    kind: u32,
    sector: u64,
    memory: &GuestMemory,
    geometry: Geometry,
    readable: Segments,
    writable: Segments,
) -> Result<Action, BadChain> {
    let within = |bytes: u64| {
        let offset = sector.checked_mul(SECTOR_BYTES)?;
        let end = offset.checked_add(bytes)?;
        (end <= geometry.bytes && bytes <= MAX_TRANSFER_BYTES && bytes.is_multiple_of(SECTOR_BYTES))
            .then_some(offset)
    };
    Ok(match kind {
        VIRTIO_BLK_T_IN => match within(writable.bytes()) {
            Some(offset) => Action::Read(offset, writable),
            None => Action::Refused,
        },
        VIRTIO_BLK_T_OUT => match within(readable.bytes()) {
            Some(offset) if !geometry.read_only => Action::Write(offset, readable),
            _ => Action::Refused,
        },
        VIRTIO_BLK_T_FLUSH => Action::Flush,
        VIRTIO_BLK_T_GET_ID => match writable.bytes() >= ID_BYTES as u64 {
            true => Action::Identify(writable),
            false => Action::Refused,
        },
        VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
            let Some(ranges) = ranges(memory, geometry, &readable, kind)? else { return Ok(Action::Refused) };
            match kind {
                VIRTIO_BLK_T_DISCARD => Action::Discard(ranges.into_iter().map(|(range, _)| range).collect()),
                _ => Action::WriteZeroes(ranges),
            }
        }
        _ => Action::Unsupported,
    })
}

/// The ranges of a discard or write-zeroes request, each with its flag to deallocate; `None` when one of them cannot be.
fn ranges(
    memory: &GuestMemory,
    geometry: Geometry,
    data: &Segments,
    kind: u32,
) -> Result<Option<Vec<(DiskRange, bool)>>, BadChain> {
    let count = data.bytes() / RANGE_BYTES;
    let is_whole = data.bytes().is_multiple_of(RANGE_BYTES);
    let most = if kind == VIRTIO_BLK_T_DISCARD { MAX_RANGES } else { MAX_ZERO_RANGES };
    if geometry.read_only || !is_whole || count == 0 || count > u64::from(most) {
        return Ok(None);
    }
    let mut ranges = Vec::new();
    for entry in read(memory, data)?.as_chunks::<16>().0 {
        let (sector, sectors, flags) = (u64_at(entry, 0), u32_at(entry, 8), u32_at(entry, 12));
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        let bytes = u64::from(sectors) * SECTOR_BYTES;
        let offset = sector.checked_mul(SECTOR_BYTES);
        let end = offset.and_then(|offset| offset.checked_add(bytes));
        let known_flags = if kind == VIRTIO_BLK_T_DISCARD { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
        match (offset, end) {
            (Some(offset), Some(end))
                if end <= geometry.bytes && sectors <= MAX_RANGE_SECTORS && flags & !known_flags == 0 =>
            {
                ranges.push((DiskRange { offset, bytes }, unmap));
            }
            _ => return Ok(None),
        }
    }
    Ok(Some(ranges))
}

fn read(memory: &GuestMemory, segments: &Segments) -> Result<Vec<u8>, BadChain> {
    let mut bytes = Vec::new();
    for segment in segments.list() {
        let at = bytes.len();
        bytes.resize(at + segment.bytes as usize, 0);
        memory.read_slice(&mut bytes[at..], segment.address).map_err(|_| BadChain::Unreachable)?;
    }
    Ok(bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_the_blocks_it_covers_in_part_at_its_edges() {
        let of = |offset, bytes| edges(offset, bytes).collect::<Vec<u64>>();
        assert!(of(0, 8192).is_empty());
        assert_eq!(of(512, 512), [0]);
        assert_eq!(of(0, 512), [0]);
        assert_eq!(of(3584, 512), [0]);
        assert_eq!(of(512, 8192), [0, 8192]);
        assert_eq!(of(4096, 4608), [8192]);
        assert!(of(512, 0).is_empty());
    }
}
