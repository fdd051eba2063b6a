//! A disk whose free blocks read as zeros: what was deleted is not published.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::DiskImage;
use super::ext4::{FreeBlocks, free_blocks};
use super::partitions::partitions;

/// Free blocks that stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptFree {
    /// Where their file system begins on the disk, bytes; those of all of it when that is not known.
    pub offset: Option<u64>,
    /// Why.
    pub reason: &'static str,
}

/// Makes the free blocks of a disk's ext4 file systems read as zeros; also tells of those whose free blocks cannot be
/// told.
///
/// # Errors
/// What reading the disk says.
pub(super) fn without_free(disk: Arc<dyn DiskImage>) -> io::Result<(Arc<dyn DiskImage>, Vec<KeptFree>)> {
    let (mut free, mut kept) = (Vec::new(), Vec::new());
    let areas = partitions(&*disk)?;
    if areas.is_empty() {
        kept.push(KeptFree { offset: None, reason: "it has no partition that can be found" });
    }
    for area in areas {
        match free_blocks(&*disk, &area)? {
            FreeBlocks::None => {}
            FreeBlocks::Unknown(reason) => kept.push(KeptFree { offset: Some(area.start), reason }),
            FreeBlocks::Known(ranges) => free.extend(ranges),
        }
    }
    free.sort_by_key(|range| range.start);
    if free.windows(2).any(|pair| pair[0].end > pair[1].start) {
        // Partitions that overlap: whose blocks are whose?
        return Ok((disk, vec![KeptFree { offset: None, reason: "its partitions overlap" }]));
    }
    Ok((Arc::new(WithoutFree { disk, free }), kept))
}

struct WithoutFree {
    disk: Arc<dyn DiskImage>,
    /// In order, not overlapping.
    free: Vec<Range<u64>>,
}

impl WithoutFree {
    /// The free ranges that end after an offset.
    fn after(&self, offset: u64) -> &[Range<u64>] {
        &self.free[self.free.partition_point(|range| range.end <= offset)..]
    }
}

impl DiskImage for WithoutFree {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes()
    }

    fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        let mut used = Vec::new();
        for range in self.disk.data_ranges()? {
            let mut at = range.start;
            for free in self.after(at).iter().take_while(|free| free.start < range.end) {
                if free.start > at {
                    used.push(at..free.start);
                }
                at = free.end;
            }
            if at < range.end {
                used.push(at..range.end);
            }
        }
        Ok(used)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_at(buf, offset)?;
        let end = offset + buf.len() as u64;
        for free in self.after(offset).iter().take_while(|free| free.start < end) {
            let inside = |at: u64| usize::try_from(at.clamp(offset, end) - offset).unwrap_or(buf.len());
            let (from, to) = (inside(free.start), inside(free.end));
            buf[from..to].fill(0);
        }
        Ok(())
    }
}
