//! Giving pages of the guest's memory back to the host.

use std::io;

use rustix::mm::Advice;
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryRegion as _, MemoryRegionAddress};

use super::PAGE_BYTES;
use crate::guest_memory::Region;
use crate::virtio::{BadChain, GuestMemory};

/// Whole pages that lie in one region of the guest's memory.
#[derive(Clone, Copy)]
pub(super) struct Range<'a> {
    region: &'a Region,
    /// The first byte, counted from the region's.
    begin: u64,
    /// The byte after the last. It is no further than the region's.
    end: u64,
}

impl<'a> Range<'a> {
    /// The pages that the guest named.
    ///
    /// # Errors
    /// They are no whole pages, or not all of them lie in one region.
    pub(super) fn resolve(
        memory: &'a GuestMemory,
        address: GuestAddress,
        length: u64,
    ) -> Result<Range<'a>, BadChain> {
        if !address.0.is_multiple_of(PAGE_BYTES) || !length.is_multiple_of(PAGE_BYTES) {
            return Err(BadChain::Senseless);
        }
        let (region, begin) = memory.to_region_addr(address).ok_or(BadChain::Unreachable)?;
        let end =
            begin.0.checked_add(length).filter(|end| *end <= region.len()).ok_or(BadChain::Unreachable)?;
        Ok(Range { region, begin: begin.0, end })
    }

    fn follows(&self, before: &Range<'_>) -> bool {
        std::ptr::eq(self.region, before.region) && self.begin <= before.end
    }
}

/// Gives the pages back. What fails costs the host memory and the guest nothing, so it is only noted.
pub(super) fn discard(ranges: Vec<Range<'_>>) {
    for range in merged(ranges) {
        // Whole pages of the host: on x86 they are as long as the balloon's.
        let length = range.end.saturating_sub(range.begin);
        if length > 0
            && let Err(error) = discard_one(range.region, range.begin, length)
        {
            tracing::debug!(%error, "pages of the balloon stay with the guest");
        }
    }
}

/// Ranges that touch become one, so that one call takes what the guest gave page by page.
fn merged(mut ranges: Vec<Range<'_>>) -> Vec<Range<'_>> {
    ranges.sort_unstable_by_key(|range| (range.region.start_addr(), range.begin));
    let mut merged: Vec<Range<'_>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.follows(last) => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

fn discard_one(region: &Region, begin: u64, length: u64) -> io::Result<()> {
    let host = region.get_host_address(MemoryRegionAddress(begin)).map_err(io::Error::other)?;
    let length = usize::try_from(length).map_err(io::Error::other)?;
    // SAFETY: the range lies in the region's mapping, which lives as long as `region`. No reference points into the guest's
    // memory, whose bytes change under the host at any time anyway.
    #[expect(unsafe_code, reason = "memory is given back by its address")]
    unsafe {
        rustix::mm::madvise(host.cast(), length, Advice::LinuxDontNeed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;

    const REGION: u64 = 16 * PAGE_BYTES;

    /// Two regions that touch and one apart.
    fn memory() -> GuestMemory {
        let length = usize::try_from(REGION).unwrap();
        let starts = [0, REGION, REGION * 4];
        GuestMemory::anonymous(&starts.map(|start| (GuestAddress(start), length))).unwrap()
    }

    #[test]
    fn a_range_lies_in_one_region() {
        let memory = memory();
        let resolve = |address, length| Range::resolve(&memory, GuestAddress(address), length).map(|_| ());
        assert_eq!(resolve(0, REGION), Ok(()));
        assert_eq!(resolve(REGION * 5 - PAGE_BYTES, PAGE_BYTES), Ok(()));
        assert_eq!(resolve(0, REGION + PAGE_BYTES), Err(BadChain::Unreachable));
        assert_eq!(resolve(REGION * 2, PAGE_BYTES), Err(BadChain::Unreachable));
        assert_eq!(resolve(REGION * 5 - PAGE_BYTES, 2 * PAGE_BYTES), Err(BadChain::Unreachable));
        assert_eq!(resolve(0, u64::MAX - PAGE_BYTES + 1), Err(BadChain::Unreachable));
        assert_eq!(resolve(u64::MAX - PAGE_BYTES + 1, PAGE_BYTES), Err(BadChain::Unreachable));
    }

    #[test]
    fn a_range_is_whole_pages() {
        let memory = memory();
        for (address, length) in [(1, PAGE_BYTES), (0, PAGE_BYTES - 1), (PAGE_BYTES, 100)] {
            let resolved = Range::resolve(&memory, GuestAddress(address), length);
            assert_eq!(resolved.map(|_| ()), Err(BadChain::Senseless));
        }
    }

    proptest! {
        #[test]
        fn the_pages_given_are_zeros_and_all_others_are_as_they_were(
            given in prop::collection::vec(0_u64..48, 0..40),
        ) {
            let memory = memory();
            let page = |index: u64| GuestAddress(if index < 32 { index } else { index + 32 } * PAGE_BYTES);
            for index in 0..48 {
                memory.write_slice(&[7; 4096], page(index)).unwrap();
            }
            let ranges = given.iter().map(|index| Range::resolve(&memory, page(*index), PAGE_BYTES).unwrap());
            discard(ranges.collect());
            for index in 0..48 {
                let mut bytes = [1; 4096];
                memory.read_slice(&mut bytes, page(index)).unwrap();
                let wanted = if given.contains(&index) { 0 } else { 7 };
                prop_assert!(bytes.iter().all(|byte| *byte == wanted));
            }
        }
    }
}
