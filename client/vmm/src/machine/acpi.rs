//! ACPI tables of a hardware-reduced machine (ACPI 6.4, sections 3.11.1 and 4.1): processors, interrupt controllers, the
//! devices that cannot be found otherwise, a power button, off and reset.

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};
use vm_memory::{Bytes, GuestAddress};

use super::layout;
use crate::virtio::GuestMemory;

const OEM: [u8; 6] = *b"SATCHL";
const OEM_TABLE: [u8; 8] = *b"SATCHEL1";
/// Where the root pointer lies, and where the other tables begin.
const TABLES: u64 = layout::ACPI + 0x100;
/// Where tables must end: the BIOS area ends at 1 MiB.
const TABLES_END: u64 = layout::HIGH_START;
/// The root pointer's version byte says "2.0", its header does not count.
const ROOT_POINTER: u64 = layout::ACPI;

/// `IAPC_BOOT_ARCH` (ACPI 6.4, table 5.11): there is no VGA, and no CMOS clock. Without the bit for an 8042, nobody probes
/// for a keyboard.
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_CLOCK: u16 = 1 << 5;

/// Why the tables cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// They are too long for where they belong.
    #[error("the ACPI tables need {bytes} bytes more than there are")]
    TooLong {
        /// By how much.
        bytes: u64,
    },
    /// The guest's memory does not take them.
    #[error("the ACPI tables do not fit into the guest's memory")]
    Memory(#[source] vm_memory::GuestMemoryError),
}

/// What the tables tell of.
#[derive(Clone, Copy, Debug)]
pub struct Hardware {
    /// Processors, with APIC ids from 0 on.
    pub processors: u8,
    /// Virtio devices, one register page and one interrupt each.
    pub virtio_devices: u8,
}

/// Writes the tables; answers where the root pointer is.
///
/// # Errors
/// [`AcpiError`].
pub fn write(memory: &GuestMemory, hardware: Hardware) -> Result<u64, AcpiError> {
    let mut tables = Tables { memory, next: TABLES };
    let dsdt = tables.put(&dsdt(hardware))?;
    let fadt = tables.put(&fadt(dsdt))?;
    let madt = tables.put(&madt(hardware))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.put(&bytes(&xsdt))?;
    let root = bytes(&Rsdp::new(OEM, xsdt));
    memory.write_slice(&root, GuestAddress(ROOT_POINTER)).map_err(AcpiError::Memory)?;
    Ok(ROOT_POINTER)
}

struct Tables<'a> {
    memory: &'a GuestMemory,
    next: u64,
}

impl Tables<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, AcpiError> {
        let at = self.next;
        let end = at + table.len() as u64;
        if end > TABLES_END {
            return Err(AcpiError::TooLong { bytes: end - TABLES_END });
        }
        self.memory.write_slice(table, GuestAddress(at)).map_err(AcpiError::Memory)?;
        self.next = end.next_multiple_of(64);
        Ok(at)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::PwrButton);
    fadt.fadt_minor_version = 4;
    fadt.iapc_boot_arch = (NO_VGA | NO_CMOS_CLOCK).into();
    fadt.sleep_control_reg = port(layout::SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(layout::SLEEP_STATUS_PORT);
    fadt.reset_reg = port(layout::RESET_PORT);
    fadt.reset_value = layout::RESET_VALUE;
    bytes(&fadt.finalize())
}

fn madt(hardware: Hardware) -> Vec<u8> {
    let mut madt = MADT::new(OEM, OEM_TABLE, 1, LocalInterruptController::Address(layout::LOCAL_APIC));
    madt.add_structure(IoApic::new(0, layout::IO_APIC, 0));
    for id in 0..hardware.processors {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    bytes(&madt)
}

fn dsdt(hardware: Hardware) -> Vec<u8> {
    let mut content = Vec::new();
    device(
        &mut content,
        "COM1",
        &aml::EISAName::new("PNP0501"),
        0,
        vec![&aml::IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8), &interrupt(layout::SERIAL_GSI)],
    );
    device(
        &mut content,
        "PEVT",
        &"QEMU0001",
        0,
        vec![&aml::IO::new(layout::PANIC_PORT, layout::PANIC_PORT, 1, 1)],
    );
    let stride = u32::try_from(layout::VIRTIO_STRIDE).unwrap_or(u32::MAX);
    let first = u32::try_from(layout::VIRTIO).unwrap_or(u32::MAX);
    for number in 0..hardware.virtio_devices {
        let name = format!("VR{number:02}");
        device(
            &mut content,
            &name,
            &"LNRO0005",
            number,
            vec![
                &aml::Memory32Fixed::new(true, first + u32::from(number) * stride, stride),
                &interrupt(layout::VIRTIO_GSI + u32::from(number)),
            ],
        );
    }
    aml::Device::new(
        "_SB_.PWRB".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C0C")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
        ],
    )
    .to_aml_bytes(&mut content);
    // Generic event device (ACPI 6.4, section 5.6.9): its only event is the button.
    aml::Device::new(
        "_SB_.GED_".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(vec![&interrupt(layout::EVENT_GSI)])),
            &aml::Method::new(
                "_EVT".into(),
                1,
                true,
                vec![&aml::Notify::new(&aml::Path::new("\\_SB_.PWRB"), &0x80_usize)],
            ),
        ],
    )
    .to_aml_bytes(&mut content);
    aml::Name::new("_S5_".into(), &aml::Package::new(vec![&layout::SLEEP_TYPE_OFF]))
        .to_aml_bytes(&mut content);
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, 1);
    dsdt.append_slice(&content);
    dsdt.as_slice().to_vec()
}

/// Edge-triggered, active high, nobody else's: an event of KVM's is one edge.
fn interrupt(gsi: u32) -> aml::Interrupt {
    aml::Interrupt::new(true, true, false, false, gsi)
}

fn device(content: &mut Vec<u8>, name: &str, id: &dyn Aml, number: u8, resources: Vec<&dyn Aml>) {
    aml::Device::new(
        format!("_SB_.{name}").as_str().into(),
        vec![
            &aml::Name::new("_HID".into(), id),
            &aml::Name::new("_UID".into(), &number),
            // Devices see memory as processors do.
            &aml::Name::new("_CCA".into(), &aml::ONE),
            &aml::Name::new("_CRS".into(), &aml::ResourceTemplate::new(resources)),
        ],
    )
    .to_aml_bytes(content);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::memory;

    fn table(memory: &GuestMemory, at: u64) -> Vec<u8> {
        let length: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    #[test]
    fn every_table_can_be_found_and_sums_to_zero() {
        let memory = memory::allocate(128 << 20).unwrap();
        let root = write(&memory, Hardware { processors: 16, virtio_devices: 17 }).unwrap();
        let mut pointer = [0; 36];
        memory.read_slice(&mut pointer, GuestAddress(root)).unwrap();
        assert_eq!(&pointer[..8], b"RSD PTR ");
        let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum(&pointer), 0);
        let xsdt = table(&memory, u64::from_le_bytes(pointer[24..32].try_into().unwrap()));
        assert_eq!(&xsdt[..4], b"XSDT");
        let mut names = Vec::new();
        for entry in xsdt[36..].chunks_exact(8) {
            let found = table(&memory, u64::from_le_bytes(entry.try_into().unwrap()));
            assert_eq!(sum(&found), 0);
            names.push(found[..4].to_vec());
            if found.starts_with(b"FACP") {
                let dsdt = table(&memory, u64::from_le_bytes(found[140..148].try_into().unwrap()));
                assert!(dsdt.starts_with(b"DSDT"));
                assert_eq!(sum(&dsdt), 0);
                let devices = dsdt.windows(8).filter(|part| *part == b"LNRO0005").count();
                assert_eq!(devices, 17);
            }
        }
        assert_eq!(names, [b"FACP", b"APIC"]);
    }
}
