//! Where everything lies in the guest's address spaces.
//!
//! Below 1 MiB as a PC has it; memory from there to 3 GiB, the rest above 4 GiB; devices in between, where every 32-bit
//! resource descriptor can name them.

/// Global descriptor table of the first processor's start.
pub const GDT: u64 = 0x500;
/// `struct boot_params`, the zero page of Linux's boot protocol.
pub const ZERO_PAGE: u64 = 0x7000;
/// Stack of the first instructions.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables that map the first 4 GiB: one page of level 4, one of level 3, four of level 2.
pub const PAGE_TABLES: u64 = 0x9000;
/// The command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// The longest command line, its end included: `COMMAND_LINE_SIZE` of x86.
pub const COMMAND_LINE_BYTES: usize = 2048;
/// End of the memory below 1 MiB that the guest may use: then the extended BIOS data area of a PC.
pub const LOW_END: u64 = 0x9_fc00;
/// ACPI tables: the part of the BIOS area where the root pointer is looked for.
pub const ACPI: u64 = 0xe_0000;
/// Where the kernel and all other memory begins.
pub const HIGH_START: u64 = 0x10_0000;

/// End of memory below 4 GiB: devices follow.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where memory goes on.
pub const HOLE_END: u64 = 0x1_0000_0000;
/// First register page of the virtio devices; one page each.
pub const VIRTIO: u64 = 0xd000_0000;
/// Bytes between two of them.
pub const VIRTIO_STRIDE: u64 = 0x1000;
/// The interrupt controllers, where every PC has them.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local one.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Three pages that KVM keeps for itself on Intel processors (`KVM_SET_TSS_ADDR`).
pub const KVM_TSS: u64 = 0xfffb_d000;

/// The first serial port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Its interrupt.
pub const SERIAL_GSI: u32 = 4;
/// The interrupt of ACPI's event device.
pub const EVENT_GSI: u32 = 6;
/// The first interrupt of virtio devices. They have one each, and the I/O interrupt controller has 24.
pub const VIRTIO_GSI: u32 = 7;
/// How many virtio devices fit.
pub const MAX_VIRTIO: usize = 17;

/// Where the guest says that it panicked (QEMU's pvpanic).
pub const PANIC_PORT: u16 = 0x505;
/// ACPI's sleep control register.
pub const SLEEP_CONTROL_PORT: u16 = 0x604;
/// ACPI's sleep status register.
pub const SLEEP_STATUS_PORT: u16 = 0x605;
/// ACPI's reset register.
pub const RESET_PORT: u16 = 0x606;
/// What resets when it is written there.
pub const RESET_VALUE: u8 = 1;
/// The sleep type of "off", `_S5_`.
pub const SLEEP_TYPE_OFF: u8 = 5;
