//! What answers when the guest reads or writes a port or a register that no memory is behind.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::layout;
use super::serial::SerialPort;
use crate::virtio::mmio::MmioTransport;

/// What the guest asked of the whole machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Switch it off.
    PowerOff,
    /// Start it again.
    Reset,
    /// Its kernel panicked.
    Panicked,
}

const SERIAL_END: u16 = layout::SERIAL_PORT + 8;
/// The keyboard controller's command port, and its command that pulses the processor's reset line: what kernels fall back to.
const KEYBOARD_PORT: u16 = 0x64;
const PULSE_RESET: u8 = 0xfe;
/// PCI's configuration mechanism 1.
const PCI_ADDRESS: u16 = 0xcf8;
const PCI_DATA: u16 = 0xcfc;
const PCI_DATA_END: u16 = PCI_DATA + 4;
/// The only function there is: a host bridge without anything behind it, so that kernels that look for PCI find that it
/// works and has nothing. Vendor and device are those of Intel's virtual bridge.
const PCI_ENABLED: u32 = 1 << 31;
const PCI_FUNCTION: u32 = 0x00ff_ff00;
const HOST_BRIDGE: u32 = 0x0d57_8086;
const HOST_BRIDGE_CLASS: u32 = 0x0600_0000;
/// ACPI's sleep control register: "go", and where the type stands (ACPI 6.4, section 4.8.3.7).
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
/// What pvpanic tells: a panic, and a panic with a crash kernel to go on with.
const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 1 << 1;

/// All devices, by address.
pub struct Bus {
    serial: SerialPort,
    virtio: Vec<Mutex<MmioTransport>>,
    pci_address: AtomicU32,
}

impl Bus {
    /// Connects devices.
    pub fn new(serial: SerialPort, virtio: Vec<MmioTransport>) -> Bus {
        let virtio = virtio.into_iter().map(Mutex::new).collect();
        Bus { serial, virtio, pci_address: AtomicU32::new(0) }
    }

    /// The guest reads a port. `data` is one access, or several of a string instruction: each gets the same answer.
    pub fn read_port(&self, port: u16, data: &mut [u8]) {
        match port {
            layout::SERIAL_PORT..SERIAL_END => {
                let offset = u8::try_from(port - layout::SERIAL_PORT).unwrap_or(0);
                data.iter_mut().for_each(|byte| *byte = self.serial.read(offset));
            }
            PCI_ADDRESS if data.len() == 4 => {
                data.copy_from_slice(&self.pci_address.load(Ordering::Relaxed).to_le_bytes());
            }
            PCI_DATA..PCI_DATA_END => {
                let bytes = self.read_pci().to_le_bytes();
                let skipped = usize::from(port - PCI_DATA);
                let bytes = bytes.iter().skip(skipped).chain(std::iter::repeat(&0xff));
                data.iter_mut().zip(bytes).for_each(|(byte, from)| *byte = *from);
            }
            layout::PANIC_PORT => data.fill(PANICKED | CRASH_LOADED),
            layout::SLEEP_CONTROL_PORT | layout::SLEEP_STATUS_PORT | KEYBOARD_PORT => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    /// The guest writes a port.
    pub fn write_port(&self, port: u16, data: &[u8]) -> Option<Order> {
        match (port, data) {
            (layout::SERIAL_PORT..SERIAL_END, _) => {
                let offset = u8::try_from(port - layout::SERIAL_PORT).unwrap_or(0);
                data.iter().for_each(|byte| self.serial.write(offset, *byte));
                None
            }
            (PCI_ADDRESS, [a, b, c, d]) => {
                self.pci_address.store(u32::from_le_bytes([*a, *b, *c, *d]), Ordering::Relaxed);
                None
            }
            (layout::SLEEP_CONTROL_PORT, [value, ..]) => {
                let kind = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
                (value & SLEEP_ENABLE != 0 && kind == layout::SLEEP_TYPE_OFF).then_some(Order::PowerOff)
            }
            (layout::RESET_PORT, [layout::RESET_VALUE, ..]) | (KEYBOARD_PORT, [PULSE_RESET, ..]) => {
                Some(Order::Reset)
            }
            (layout::PANIC_PORT, [value, ..]) if value & (PANICKED | CRASH_LOADED) != 0 => {
                Some(Order::Panicked)
            }
            _ => None,
        }
    }

    /// The guest reads a register.
    pub fn read_register(&self, address: u64, data: &mut [u8]) {
        match self.virtio_at(address) {
            Some((mut device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes a register.
    pub fn write_register(&self, address: u64, data: &[u8]) {
        if let Some((mut device, offset)) = self.virtio_at(address) {
            device.write(offset, data);
        }
    }

    /// Resets all virtio devices: when this returns, none of them touches memory.
    pub fn reset_devices(&self) {
        for device in &self.virtio {
            device.lock().unwrap_or_else(PoisonError::into_inner).reset();
        }
    }

    fn virtio_at(&self, address: u64) -> Option<(MutexGuard<'_, MmioTransport>, u64)> {
        let offset = address.checked_sub(layout::VIRTIO)?;
        let number = usize::try_from(offset / layout::VIRTIO_STRIDE).ok()?;
        let device = self.virtio.get(number)?.lock().unwrap_or_else(PoisonError::into_inner);
        Some((device, offset % layout::VIRTIO_STRIDE))
    }

    fn read_pci(&self) -> u32 {
        let address = self.pci_address.load(Ordering::Relaxed);
        if address & PCI_ENABLED == 0 || address & PCI_FUNCTION != 0 {
            return u32::MAX;
        }
        match address & 0xfc {
            0 => HOST_BRIDGE,
            8 => HOST_BRIDGE_CLASS,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bus() -> Bus {
        Bus::new(SerialPort::new(None, None).unwrap(), Vec::new())
    }

    #[test]
    fn orders_are_told_from_other_writes() {
        let bus = bus();
        assert_eq!(bus.write_port(layout::SLEEP_CONTROL_PORT, &[0x34]), Some(Order::PowerOff));
        assert_eq!(bus.write_port(layout::SLEEP_CONTROL_PORT, &[0x14]), None, "type, but no go");
        assert_eq!(bus.write_port(layout::SLEEP_CONTROL_PORT, &[0x24]), None, "another type");
        assert_eq!(bus.write_port(layout::RESET_PORT, &[1]), Some(Order::Reset));
        assert_eq!(bus.write_port(0x64, &[0xfe]), Some(Order::Reset));
        assert_eq!(bus.write_port(layout::PANIC_PORT, &[1]), Some(Order::Panicked));
        assert_eq!(bus.write_port(layout::PANIC_PORT, &[0]), None);
        assert_eq!(bus.write_port(0x80, &[0; 4]), None);
    }

    #[test]
    fn the_only_pci_function_is_a_host_bridge() {
        let bus = bus();
        let read = |address: u32, port: u16, len: usize| {
            bus.write_port(PCI_ADDRESS, &address.to_le_bytes());
            let mut data = vec![0; len];
            bus.read_port(port, &mut data);
            data
        };
        assert_eq!(read(0x8000_0000, PCI_DATA, 4), HOST_BRIDGE.to_le_bytes());
        assert_eq!(read(0x8000_0008, PCI_DATA + 2, 2), [0x00, 0x06]);
        assert_eq!(read(0x8000_0800, PCI_DATA, 4), [0xff; 4], "the next slot is empty");
        assert_eq!(read(0x8000_0000, PCI_DATA + 3, 4), [0x0d, 0xff, 0xff, 0xff]);
        assert_eq!(read(0, PCI_DATA, 4), [0xff; 4]);
    }

    #[test]
    fn where_nothing_is_all_ones_are_read() {
        let bus = bus();
        let mut data = [0; 8];
        bus.read_register(layout::VIRTIO, &mut data);
        assert_eq!(data, [0xff; 8]);
        bus.read_register(u64::MAX, &mut data);
        bus.write_register(0, &data);
        bus.read_port(0x70, &mut data[..1]);
        assert_eq!(data[0], 0xff);
    }
}
