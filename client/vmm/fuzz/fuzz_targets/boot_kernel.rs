//! The header of a kernel.

#![no_main]

use libfuzzer_sys::fuzz_target;
use satchel_vmm::boot::kernel::KernelHeader;

fuzz_target!(|data: &[u8]| {
    if let Ok(header) = KernelHeader::parse(data) {
        assert!(header.setup_bytes < data.len() && header.header_end <= data.len());
        assert!(header.protocol >= 0x20c && header.init_size > 0);
        assert!(header.version.len() <= 128);
    }
});
