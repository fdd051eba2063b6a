//! The guest's memory: mappings of this process.
//!
//! KVM maps memory for the guest in pages of 2 MiB, instead of 4 KiB, where the kernel has such a page for this process
//! and both addresses are the same modulo its size (`kvm_mmu_hugepage_adjust` of Linux). A boot then takes hundreds of faults
//! instead of tens of thousands, and the guest's processor looks up fewer tables from there on.

use std::ffi::c_void;
use std::io;
use std::ops::Deref;
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use vm_memory::{
    Address, GuestAddress, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestRegionCollection, MemoryRegionAddress, VolatileSlice,
};

/// A large page of x86-64.
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// Regions of the guest's memory, in the order of their addresses.
pub(crate) type Regions = GuestRegionCollection<Region>;

/// The guest's memory. Clones share it; the last one that goes gives it back.
#[derive(Clone, Debug)]
pub struct GuestMemory(Arc<Regions>);

impl GuestMemory {
    /// Memory at these places of the guest, each of so many bytes. It takes up none of the host's until it is touched.
    ///
    /// # Errors
    /// The kernel gives no such mapping, or the ranges are empty, not in order, or overlap.
    pub fn anonymous(ranges: &[(GuestAddress, usize)]) -> io::Result<GuestMemory> {
        let regions = ranges.iter().map(|&(start, bytes)| Region::new(start, bytes));
        let regions = regions.collect::<io::Result<_>>()?;
        Ok(GuestMemory(Arc::new(Regions::from_regions(regions).map_err(io::Error::other)?)))
    }
}

impl Deref for GuestMemory {
    type Target = Regions;

    fn deref(&self) -> &Regions {
        &self.0
    }
}

/// A range of the guest's memory: private memory of this process, and a large page more, within which the guest's begins at
/// the right place. Whoever holds it, or a slice of it, holds the mapping.
#[derive(Debug)]
pub struct Region {
    start: GuestAddress,
    base: *mut c_void,
    mapped_bytes: usize,
    /// Before the guest's.
    skipped_bytes: usize,
    /// The guest's: at least one.
    bytes: usize,
}

// SAFETY: it is an address, which any thread may unmap; what lies there is reached by volatile accesses.
#[expect(unsafe_code, reason = "a pointer that is the same in every thread")]
unsafe impl Send for Region {}
// SAFETY: as above; a shared reference changes nothing but what lies there, which the guest may change at any time, too.
#[expect(unsafe_code, reason = "a pointer that is the same in every thread")]
unsafe impl Sync for Region {}

impl Region {
    fn new(start: GuestAddress, bytes: usize) -> io::Result<Region> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        if bytes == 0 || start.checked_add(bytes as u64).is_none() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mapped_bytes = bytes.checked_add(LARGE_PAGE_BYTES).ok_or_else(too_large)?;
        let guest = usize::try_from(start.0).map_err(|_| too_large())?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there.
        #[expect(unsafe_code, reason = "memory comes from the kernel")]
        let base = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            mmap_anonymous(std::ptr::null_mut(), mapped_bytes, protection, flags)?
        };
        let skipped_bytes = guest.wrapping_sub(base.addr()) % LARGE_PAGE_BYTES;
        let region = Region { start, base, mapped_bytes, skipped_bytes, bytes };
        // SAFETY: the range lies within the mapping, which is new, and no content changes.
        #[expect(unsafe_code, reason = "the kernel is advised by address")]
        let advised = unsafe { madvise(region.address().cast(), bytes, Advice::LinuxHugepage) };
        if let Err(error) = advised {
            // A kernel without them; the guest is slower.
            tracing::debug!(%error, "the guest's memory has no large pages");
        }
        Ok(region)
    }

    fn address(&self) -> *mut u8 {
        self.base.cast::<u8>().wrapping_add(self.skipped_bytes)
    }

    /// Where so many bytes of it begin; none when not all of them are the guest's.
    fn address_of(&self, offset: MemoryRegionAddress, bytes: usize) -> Option<*mut u8> {
        let offset = usize::try_from(offset.0).ok()?;
        let end = offset.checked_add(bytes)?;
        (end <= self.bytes).then(|| self.address().wrapping_add(offset))
    }
}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> u64 {
        self.bytes as u64
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) {}

    fn get_host_address(&self, offset: MemoryRegionAddress) -> Result<*mut u8, GuestMemoryError> {
        self.address_of(offset, 1).ok_or(GuestMemoryError::InvalidBackendAddress)
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        bytes: usize,
    ) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let address = self.address_of(offset, bytes).ok_or(GuestMemoryError::InvalidBackendAddress)?;
        // SAFETY: `skipped_bytes` is less than a large page, so that these bytes lie in the mapping, which is there as long as
        // `self`, and so the slice, is. No reference points to them: volatile accesses are all there are.
        #[expect(unsafe_code, reason = "memory is given to the library by address")]
        Ok(unsafe { VolatileSlice::new(address, bytes) })
    }
}

impl GuestMemoryRegionBytes for Region {}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and whoever could reach it is gone: slices borrow from this.
        #[expect(unsafe_code, reason = "memory goes back by address")]
        let unmapped = unsafe { munmap(self.base, self.mapped_bytes) };
        if let Err(error) = unmapped {
            tracing::error!(%error, "the guest's memory cannot be given back");
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryBackend};

    use super::*;

    const BYTES: usize = 8 << 20;

    #[test]
    fn memory_lies_where_large_pages_of_guest_and_host_are_the_same() {
        for start in [0, 4 << 30, (4 << 30) + 0x5000] {
            let memory = GuestMemory::anonymous(&[(GuestAddress(start), BYTES)]).unwrap();
            let host = memory.get_host_address(GuestAddress(start)).unwrap().addr();
            assert_eq!(host % LARGE_PAGE_BYTES, usize::try_from(start).unwrap() % LARGE_PAGE_BYTES);
            let last = start + BYTES as u64 - 1;
            memory.write_obj(7_u8, GuestAddress(last)).unwrap();
            assert_eq!(memory.read_obj::<u8>(GuestAddress(last)).unwrap(), 7);
            assert!(memory.read_obj::<u8>(GuestAddress(last + 1)).is_err());
        }
    }

    #[test]
    fn the_kernel_is_asked_for_large_pages_and_told_when_memory_is_not_needed_any_more() {
        // A length that nothing else here has.
        const ODD_BYTES: usize = BYTES + 0x7000;
        let flags_of = |host: usize| {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let range = format!("{host:x}-{:x} ", host + ODD_BYTES);
            let mut lines = maps.lines().skip_while(|line| !line.starts_with(&range));
            let flags = lines.find(|line| line.starts_with("VmFlags:"));
            flags.map(|line| line.split_whitespace().any(|flag| flag == "hg"))
        };
        let memory = GuestMemory::anonymous(&[(GuestAddress(0), ODD_BYTES)]).unwrap();
        let host = memory.get_host_address(GuestAddress(0)).unwrap().addr();
        let clone = memory.clone();
        drop(memory);
        assert_eq!(
            flags_of(host),
            Some(std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists())
        );
        drop(clone);
        assert_eq!(flags_of(host), None);
    }

    #[test]
    fn a_region_keeps_its_mapping_whoever_holds_it() {
        let memory = GuestMemory::anonymous(&[(GuestAddress(0), BYTES)]).unwrap();
        memory.write_obj(7_u8, GuestAddress(5)).unwrap();
        let regions = (*memory).clone();
        drop(memory);
        assert_eq!(regions.read_obj::<u8>(GuestAddress(5)).unwrap(), 7);
    }

    #[test]
    fn ranges_that_overlap_or_cannot_be_are_refused() {
        let ranges = [(GuestAddress(0), BYTES), (GuestAddress(4096), BYTES)];
        assert!(GuestMemory::anonymous(&ranges).is_err());
        for (start, bytes) in [(0, 0), (u64::MAX - 4096, BYTES), (0, usize::MAX)] {
            assert!(GuestMemory::anonymous(&[(GuestAddress(start), bytes)]).is_err(), "{start} {bytes}");
        }
    }

    #[test]
    fn a_slice_ends_where_the_region_does() {
        let memory = GuestMemory::anonymous(&[(GuestAddress(4096), BYTES)]).unwrap();
        let region = memory.iter().next().unwrap();
        let slice =
            |offset, bytes| region.get_slice(MemoryRegionAddress(offset), bytes).map(|slice| slice.len());
        let bytes = BYTES as u64;
        assert_eq!(slice(0, BYTES).unwrap(), BYTES);
        assert_eq!(slice(bytes - 1, 1).unwrap(), 1);
        for (offset, bytes) in [(0, BYTES + 1), (1, BYTES), (bytes, 1), (u64::MAX, 1), (1, usize::MAX)] {
            assert!(slice(offset, bytes).is_err(), "{offset} {bytes}");
        }
        assert!(region.get_host_address(MemoryRegionAddress(bytes - 1)).is_ok());
        assert!(region.get_host_address(MemoryRegionAddress(bytes)).is_err());
    }
}
