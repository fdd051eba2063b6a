//! The guest's memory.

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion};

use super::layout;
use crate::virtio::GuestMemory;

/// The least memory a machine has.
pub const MIN_MEMORY_BYTES: u64 = 128 << 20;
/// The most: what a person's machine could have for years to come, and far from any overflow.
pub const MAX_MEMORY_BYTES: u64 = 1 << 40;

/// Why there is no memory for the guest.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size cannot be.
    #[error("a machine has 128 MiB to 1 TiB of memory in whole MiB, not {bytes} bytes")]
    BadSize {
        /// What was asked for.
        bytes: u64,
    },
    /// The host has none.
    #[error("the host does not give {bytes} bytes of memory")]
    Allocate {
        /// What was asked for.
        bytes: u64,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// KVM does not take it.
    #[error("KVM does not take the guest's memory at {address:#x}")]
    Map {
        /// Where it was to be.
        address: u64,
        /// What KVM said.
        #[source]
        source: kvm_ioctls::Error,
    },
}

/// The ranges of memory, guest address and bytes: up to the hole for devices, and above it.
fn ranges(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(layout::HOLE_START);
    let mut ranges = vec![(0, low)];
    if bytes > low {
        ranges.push((layout::HOLE_END, bytes - low));
    }
    ranges
}

/// Memory of a size, which takes up none of the host's until it is touched.
///
/// # Errors
/// `BadSize`, `Allocate`.
pub fn allocate(bytes: u64) -> Result<GuestMemory, MemoryError> {
    if !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&bytes) || !bytes.is_multiple_of(1 << 20) {
        return Err(MemoryError::BadSize { bytes });
    }
    let ranges: Vec<(GuestAddress, usize)> = ranges(bytes)
        .into_iter()
        .map(|(start, bytes)| Ok((GuestAddress(start), usize::try_from(bytes)?)))
        .collect::<Result<_, std::num::TryFromIntError>>()
        .map_err(|_| MemoryError::BadSize { bytes })?;
    GuestMemory::anonymous(&ranges).map_err(|source| MemoryError::Allocate { bytes, source })
}

/// Gives memory to a virtual machine.
///
/// # Errors
/// `Map`.
pub fn map(memory: &GuestMemory, vm: &VmFd) -> Result<(), MemoryError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let address = region.start_addr().raw_value();
        let host = region.get_host_address(vm_memory::MemoryRegionAddress(0)).map_err(no_host_address);
        let Ok(host) = host else { continue };
        let given = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: address,
            memory_size: region.len(),
            userspace_addr: host as u64,
        };
        // SAFETY: the range is a mapping of ours of that length, and lives as long as the virtual machine: `Machine` owns
        // both, and drops the virtual machine first.
        #[expect(unsafe_code, reason = "KVM takes memory by address")]
        unsafe { vm.set_user_memory_region(given) }.map_err(|source| MemoryError::Map { address, source })?;
    }
    Ok(())
}

fn no_host_address(error: GuestMemoryError) -> GuestMemoryError {
    tracing::error!(%error, "a range of memory has no address in this process");
    error
}

/// The guest's map of its memory, as Linux's boot protocol has it: usable ranges, then what is kept from it.
pub fn usable_ranges(memory: &GuestMemory) -> Vec<(u64, u64)> {
    let mut usable = vec![(0, layout::LOW_END)];
    for region in memory.iter() {
        let start = region.start_addr().raw_value();
        match start {
            0 => usable.push((layout::HIGH_START, region.len() - layout::HIGH_START)),
            _ => usable.push((start, region.len())),
        }
    }
    usable
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_goes_around_the_hole() {
        assert_eq!(ranges(2 << 30), [(0, 2 << 30)]);
        assert_eq!(ranges(3 << 30), [(0, 3 << 30)]);
        assert_eq!(ranges(5 << 30), [(0, 3 << 30), (4 << 30, 2 << 30)]);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for bytes in [0, 1 << 20, (128 << 20) + 1, u64::MAX, (1 << 40) + (1 << 20)] {
            assert!(matches!(allocate(bytes), Err(MemoryError::BadSize { .. })), "{bytes}");
        }
    }

    #[test]
    fn the_guest_may_use_all_but_the_bios_area() {
        let memory = allocate(4 << 30).unwrap();
        let usable = usable_ranges(&memory);
        assert_eq!(usable, [(0, 0x9fc00), (1 << 20, (3 << 30) - (1 << 20)), (4 << 30, 1 << 30)]);
    }
}
