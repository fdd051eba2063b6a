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
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// A large page of x86-64.
const LARGE_PAGE_BYTES: usize = 2 << 20;

/// The guest's memory. Clones share it; the last one that goes gives it back.
#[derive(Clone, Debug)]
pub struct GuestMemory(Arc<Mapped>);

#[derive(Debug)]
struct Mapped {
    /// Before `mappings`: some of its regions lie there.
    regions: GuestMemoryMmap<()>,
    _mappings: Vec<Mapping>,
}

impl GuestMemory {
    /// Memory at these places of the guest, each of so many bytes. It takes up none of the host's until it is touched.
    ///
    /// # Errors
    /// The kernel gives no such mapping, or the ranges overlap.
    pub fn anonymous(ranges: &[(GuestAddress, usize)]) -> io::Result<GuestMemory> {
        let mut mappings = Vec::new();
        let mut regions = Vec::new();
        for &(start, bytes) in ranges {
            let mapping = Mapping::new(bytes, start)?;
            regions.push(mapping.region(start)?);
            mappings.push(mapping);
        }
        let regions = GuestMemoryMmap::from_regions(regions).map_err(io::Error::other)?;
        Ok(GuestMemory(Arc::new(Mapped { regions, _mappings: mappings })))
    }
}

impl From<GuestMemoryMmap<()>> for GuestMemory {
    fn from(regions: GuestMemoryMmap<()>) -> GuestMemory {
        GuestMemory(Arc::new(Mapped { regions, _mappings: Vec::new() }))
    }
}

impl Deref for GuestMemory {
    type Target = GuestMemoryMmap<()>;

    fn deref(&self) -> &GuestMemoryMmap<()> {
        &self.0.regions
    }
}

/// Private memory of this process, and a large page more, within which the guest's begins at the right place.
#[derive(Debug)]
struct Mapping {
    base: *mut c_void,
    mapped_bytes: usize,
    /// The guest's.
    skipped_bytes: usize,
    bytes: usize,
}

// SAFETY: it is an address, which any thread may unmap; it is not used to reach the memory.
#[expect(unsafe_code, reason = "a pointer that is the same in every thread")]
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing changes by way of a shared reference.
#[expect(unsafe_code, reason = "a pointer that is the same in every thread")]
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(bytes: usize, guest: GuestAddress) -> io::Result<Mapping> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let mapped_bytes = bytes.checked_add(LARGE_PAGE_BYTES).ok_or_else(too_large)?;
        let guest = usize::try_from(guest.0).map_err(|_| too_large())?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that is there.
        #[expect(unsafe_code, reason = "memory comes from the kernel")]
        let base = unsafe {
            let protection = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            mmap_anonymous(std::ptr::null_mut(), mapped_bytes, protection, flags)?
        };
        let skipped_bytes = guest.wrapping_sub(base.addr()) % LARGE_PAGE_BYTES;
        let mapping = Mapping { base, mapped_bytes, skipped_bytes, bytes };
        // SAFETY: the range lies within the mapping, which is new, and no content changes.
        #[expect(unsafe_code, reason = "the kernel is advised by address")]
        let advised = unsafe { madvise(mapping.address().cast(), bytes, Advice::LinuxHugepage) };
        if let Err(error) = advised {
            // A kernel without them; the guest is slower.
            tracing::debug!(%error, "the guest's memory has no large pages");
        }
        Ok(mapping)
    }

    fn address(&self) -> *mut u8 {
        self.base.cast::<u8>().wrapping_add(self.skipped_bytes)
    }

    /// The guest's memory as a region, which is not to outlive this.
    fn region(&self, start: GuestAddress) -> io::Result<GuestRegionMmap<()>> {
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
        );
        // SAFETY: `skipped_bytes` is less than a large page, so that these bytes lie in the mapping. Both go with the same
        // `Mapped`, the region first, and nobody takes a region out of it (`remove_region`, which clippy.toml forbids).
        #[expect(unsafe_code, reason = "memory is given to the library by address")]
        let region = unsafe { MmapRegion::build_raw(self.address(), self.bytes, protection, flags) };
        let region = region.map_err(io::Error::other)?;
        GuestRegionMmap::new(region, start).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's own, and whoever could reach it is gone: regions are dropped before.
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
    fn ranges_that_overlap_are_refused() {
        let ranges = [(GuestAddress(0), BYTES), (GuestAddress(4096), BYTES)];
        assert!(GuestMemory::anonymous(&ranges).is_err());
    }
}
