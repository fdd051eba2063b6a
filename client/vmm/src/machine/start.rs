//! Puts a kernel into memory and a processor in front of its first instruction: Linux's 64-bit boot protocol
//! (Documentation/arch/x86/boot.rst).

use std::io::Cursor;

use kvm_bindings::{Msrs, kvm_dtable, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use vm_memory::{ByteValued, Bytes, GuestAddress};

use super::{layout, memory};
use crate::virtio::GuestMemory;

/// What is started.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// A bzImage.
    pub image: Vec<u8>,
    /// Its initial RAM disk.
    pub initrd: Option<Vec<u8>>,
    /// Its command line.
    pub command_line: String,
}

/// Why a kernel cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It is none, or one of another sort.
    #[error("the kernel is no bzImage this machine starts")]
    Load(#[source] LoaderError),
    /// It has no entry for 64-bit loaders.
    #[error(
        "the kernel cannot be entered in 64-bit mode: it is older than Linux 3.8, or for another processor"
    )]
    No64BitEntry,
    /// There is too little memory.
    #[error("{needed_bytes} bytes of memory hold neither kernel nor initial RAM disk: give the machine more")]
    TooLittleMemory {
        /// What they need.
        needed_bytes: u64,
    },
    /// The command line is too long.
    #[error("the kernel's command line has {bytes} bytes; it takes at most 2047")]
    CommandLineTooLong {
        /// Its length.
        bytes: usize,
    },
    /// Something could not be written.
    #[error("the guest's memory does not take the kernel")]
    Memory(#[source] vm_memory::GuestMemoryError),
}

/// `XLF_KERNEL_64`: there is an entry at 0x200 of the loaded part.
const XLF_KERNEL_64: u16 = 1;
/// The first protocol version that says so.
const PROTOCOL_64_BIT: u16 = 0x20c;
/// "A loader with no number of its own".
const LOADER_TYPE: u8 = 0xff;
/// Types of the memory map (`E820_TYPE_*`).
const USABLE: u32 = 1;
const RESERVED: u32 = 2;
const PAGE: u64 = 4096;

/// The kernel's `struct boot_params`, which may be written to memory as it stands.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct ZeroPage(boot_params);

// SAFETY: `boot_params` is plain integers and arrays of them, packed as the kernel has it; every value is valid.
#[expect(unsafe_code, reason = "a marker for plain data")]
unsafe impl ByteValued for ZeroPage {}

/// Puts all into memory; answers where the processor begins.
///
/// # Errors
/// [`StartError`].
pub fn load(memory: &GuestMemory, kernel: &Kernel, acpi_root: u64) -> Result<u64, StartError> {
    let command_line = kernel.command_line.as_bytes();
    if command_line.len() >= layout::COMMAND_LINE_BYTES {
        return Err(StartError::CommandLineTooLong { bytes: command_line.len() });
    }
    let low_end = memory::usable_ranges(memory).get(1).map_or(0, |(start, bytes)| start + bytes);
    let needed_bytes =
        kernel.image.len() as u64 + kernel.initrd.as_ref().map_or(0, |initrd| initrd.len() as u64);
    let too_little =
        |more: u64| StartError::TooLittleMemory { needed_bytes: needed_bytes.saturating_add(more) };
    if layout::HIGH_START.saturating_add(kernel.image.len() as u64) > low_end {
        return Err(too_little(layout::HIGH_START));
    }
    let mut image = Cursor::new(&kernel.image);
    let start = Some(GuestAddress(layout::HIGH_START));
    let loaded = BzImage::load(&**memory, None, &mut image, start).map_err(StartError::Load)?;
    let mut header = loaded.setup_header.ok_or(StartError::No64BitEntry)?;
    let (version, flags) = (header.version, header.xloadflags);
    if version < PROTOCOL_64_BIT || flags & XLF_KERNEL_64 == 0 {
        return Err(StartError::No64BitEntry);
    }
    // It unpacks itself to where it prefers to be, or to where it was loaded, and works there.
    let (preferred, work_bytes) = (header.pref_address, u64::from(header.init_size));
    let kernel_end = preferred.max(loaded.kernel_load.0).saturating_add(work_bytes).max(loaded.kernel_end);
    if kernel_end > low_end {
        return Err(too_little(kernel_end));
    }
    header.type_of_loader = LOADER_TYPE;
    header.cmd_line_ptr = to_u32(layout::COMMAND_LINE);
    header.cmdline_size = to_u32(command_line.len() as u64);
    if let Some(initrd) = kernel.initrd.as_ref().filter(|initrd| !initrd.is_empty()) {
        let highest = u64::from(header.initrd_addr_max).saturating_add(1).min(low_end);
        let at = highest.checked_sub(initrd.len() as u64).map(|at| at & !(PAGE - 1));
        let at = at.filter(|at| *at >= kernel_end).ok_or_else(|| too_little(kernel_end))?;
        memory.write_slice(initrd, GuestAddress(at)).map_err(StartError::Memory)?;
        header.ramdisk_image = to_u32(at);
        header.ramdisk_size = to_u32(initrd.len() as u64);
    }
    let write =
        |bytes: &[u8], at: u64| memory.write_slice(bytes, GuestAddress(at)).map_err(StartError::Memory);
    write(command_line, layout::COMMAND_LINE)?;
    write(&[0], layout::COMMAND_LINE + command_line.len() as u64)?;
    let mut page = boot_params { hdr: header, acpi_rsdp_addr: acpi_root, ..Default::default() };
    let mut map: Vec<(u64, u64, u32)> =
        memory::usable_ranges(memory).into_iter().map(|(start, bytes)| (start, bytes, USABLE)).collect();
    map.push((layout::LOW_END, layout::HIGH_START - layout::LOW_END, RESERVED));
    map.sort_unstable();
    for (entry, (start, bytes, kind)) in page.e820_table.iter_mut().zip(&map) {
        (entry.addr, entry.size, entry.r#type) = (*start, *bytes, *kind);
        page.e820_entries += 1;
    }
    memory.write_obj(ZeroPage(page), GuestAddress(layout::ZERO_PAGE)).map_err(StartError::Memory)?;
    write_page_tables(memory).map_err(StartError::Memory)?;
    // The 64-bit entry is 0x200 behind where the kernel lies.
    Ok(loaded.kernel_load.0 + 0x200)
}

fn to_u32(value: u64) -> u32 {
    // All these lie below 4 GiB by construction.
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Present and writable; a large page besides.
const TABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 0x83;

/// Maps the first 4 GiB to themselves in pages of 2 MiB, and writes the descriptor table.
fn write_page_tables(memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    let level3 = layout::PAGE_TABLES + PAGE;
    memory.write_obj(level3 | TABLE, GuestAddress(layout::PAGE_TABLES))?;
    for gib in 0..4_u64 {
        let level2 = level3 + PAGE * (1 + gib);
        memory.write_obj(level2 | TABLE, GuestAddress(level3 + gib * 8))?;
        for page in 0..512_u64 {
            let entry = gib << 30 | page << 21 | LARGE_PAGE;
            memory.write_obj(entry, GuestAddress(level2 + page * 8))?;
        }
    }
    for (at, entry) in (0..).zip(DESCRIPTORS) {
        memory.write_obj(entry, GuestAddress(layout::GDT + at * 8))?;
    }
    Ok(())
}

/// The descriptors Linux asks for: `__BOOT_CS` 0x10, `__BOOT_DS` 0x18, and a task segment, which Intel processors want.
const DESCRIPTORS: [u64; 5] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// The system registers of the first processor: long mode, paging on, flat segments.
pub fn system_registers(mut registers: kvm_sregs) -> kvm_sregs {
    const PROTECTED_AND_PAGED: u64 = 1 << 31 | 1;
    const PHYSICAL_ADDRESS_EXTENSION: u64 = 1 << 5;
    const LONG_MODE_ENABLED_AND_ACTIVE: u64 = 1 << 8 | 1 << 10;
    let segment = |selector, kind, long, default_size, system| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_: kind,
        present: 1,
        dpl: 0,
        db: default_size,
        s: system,
        l: long,
        g: 1,
        ..Default::default()
    };
    registers.cs = segment(CODE_SELECTOR, 11, 1, 0, 1);
    let data = segment(DATA_SELECTOR, 3, 0, 1, 1);
    (registers.ds, registers.es, registers.fs) = (data, data, data);
    (registers.gs, registers.ss) = (data, data);
    registers.tr = segment(TASK_SELECTOR, 11, 0, 0, 0);
    let limit = 8 * 5 - 1;
    registers.gdt = kvm_dtable { base: layout::GDT, limit, ..Default::default() };
    registers.idt = kvm_dtable { base: 0, limit: 0, ..Default::default() };
    registers.cr0 |= PROTECTED_AND_PAGED;
    registers.cr3 = layout::PAGE_TABLES;
    registers.cr4 |= PHYSICAL_ADDRESS_EXTENSION;
    registers.efer |= LONG_MODE_ENABLED_AND_ACTIVE;
    registers
}

/// The registers with which Linux is entered: the zero page in RSI.
pub fn registers(entry: u64) -> kvm_regs {
    const ALWAYS_SET: u64 = 1 << 1;
    kvm_regs {
        rip: entry,
        rsi: layout::ZERO_PAGE,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rflags: ALWAYS_SET,
        ..Default::default()
    }
}

/// Has an Intel processor copy strings fast, as firmware does (Intel SDM volume 4, `IA32_MISC_ENABLE`): Linux goes by the bit, and
/// clears and copies pages the slow way without it. A processor without the register is as it was.
pub(super) fn enable_fast_strings(vcpu: &VcpuFd) {
    const IA32_MISC_ENABLE: u32 = 0x1a0;
    const FAST_STRINGS: u64 = 1;
    let entry = kvm_msr_entry { index: IA32_MISC_ENABLE, ..Default::default() };
    let Ok(mut registers) = Msrs::from_entries(&[entry]) else { return };
    if vcpu.get_msrs(&mut registers).is_ok_and(|read| read == 1) {
        registers.as_mut_slice().iter_mut().for_each(|register| register.data |= FAST_STRINGS);
        if !vcpu.set_msrs(&registers).is_ok_and(|written| written == 1) {
            tracing::debug!("the processor does not take that strings are copied fast");
        }
    }
}

/// The floating point state after a reset.
pub fn floating_point() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least that passes for a kernel: a header, one setup sector, and a body.
    fn bzimage(init_size: u32) -> Vec<u8> {
        let mut image = vec![0_u8; 512 * 2 + 4096];
        image[0x1f1] = 1;
        image[0x201] = 0x6c;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[0x211] = 1;
        image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
        image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
        image[0x236..0x238].copy_from_slice(&XLF_KERNEL_64.to_le_bytes());
        image[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
        image[0x260..0x264].copy_from_slice(&init_size.to_le_bytes());
        image[1024..].fill(0x90);
        image
    }

    fn kernel(init_size: u32, initrd_bytes: usize) -> Kernel {
        Kernel {
            image: bzimage(init_size),
            initrd: Some(vec![7; initrd_bytes]),
            command_line: "root=/dev/vda1 quiet".to_owned(),
        }
    }

    #[test]
    fn a_kernel_is_told_of_its_command_line_memory_and_initial_ram_disk() {
        let memory = memory::allocate(4 << 30).unwrap();
        let entry = load(&memory, &kernel(0x300_0000, 5000), layout::ACPI).unwrap();
        assert_eq!(entry, 0x10_0200);
        let page: ZeroPage = memory.read_obj(GuestAddress(layout::ZERO_PAGE)).unwrap();
        let (at, bytes) = (page.0.hdr.ramdisk_image, page.0.hdr.ramdisk_size);
        assert_eq!((at, bytes), (0x7fff_e000, 5000));
        assert_eq!(memory.read_obj::<u8>(GuestAddress(u64::from(at) + 4999)).unwrap(), 7);
        assert_eq!(page.0.e820_entries, 4);
        let mut line = [0; 21];
        memory.read_slice(&mut line, GuestAddress(layout::COMMAND_LINE)).unwrap();
        assert_eq!(&line, b"root=/dev/vda1 quiet\0");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let memory = memory::allocate(128 << 20).unwrap();
        let error = load(&memory, &kernel(0x1000_0000, 1), 0).unwrap_err();
        assert!(matches!(error, StartError::TooLittleMemory { .. }), "{error}");
        let error = load(&memory, &kernel(0x300_0000, 100 << 20), 0).unwrap_err();
        assert!(matches!(error, StartError::TooLittleMemory { .. }), "{error}");
        let mut long = kernel(0x300_0000, 1);
        long.command_line = "x".repeat(2048);
        assert!(matches!(load(&memory, &long, 0), Err(StartError::CommandLineTooLong { bytes: 2048 })));
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let memory = memory::allocate(128 << 20).unwrap();
        for image in [vec![], vec![0; 100], vec![0; 70_000]] {
            let kernel = Kernel { image, initrd: None, command_line: String::new() };
            assert!(load(&memory, &kernel, 0).is_err());
        }
        let mut old = kernel(0x300_0000, 1);
        old.image[0x236] = 0;
        assert!(matches!(load(&memory, &old, 0), Err(StartError::No64BitEntry)));
    }
}
