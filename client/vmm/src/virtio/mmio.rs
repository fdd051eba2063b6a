//! The virtio-mmio transport (Virtio 1.2, section 4.2): one page of registers and one interrupt a device.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_NEEDS_RESET,
};
use virtio_queue::{Queue, QueueT};

use super::{
    Activation, DeviceQueue, EVENT_IDX, GuestMemory, INDIRECT_DESC, Interrupt, VERSION_1, VirtioDevice,
};
use crate::event::Event;

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;
/// Of the interface: 2 is modern.
const VERSION: u32 = 2;
/// "STCH": anyone may choose one.
const VENDOR: u32 = 0x4843_5453;
/// Where the configuration space begins.
const CONFIG: u64 = 0x100;
/// Where the driver rings, relative to the registers.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// Bits of the interrupt status.
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGED: u32 = 2;

/// A queue the driver has not set up can hold no more than this, whatever the device says.
const MAX_QUEUE_SIZE: u16 = 1024;

/// The interrupt of a device: a status the driver reads, and an event that KVM turns into an edge.
pub struct MmioInterrupt {
    status: AtomicU32,
    generation: AtomicU32,
    event: Event,
}

impl MmioInterrupt {
    fn raise(&self, bits: u32) {
        self.status.fetch_or(bits, Ordering::SeqCst);
        self.event.signal();
    }
}

impl Interrupt for MmioInterrupt {
    fn queue_used(&self, _: u16) {
        self.raise(USED_BUFFER);
    }

    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG_CHANGED);
    }
}

struct QueueSlot {
    queue: Queue,
    notify: Event,
}

/// A device behind its registers.
pub struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Arc<MmioInterrupt>,
    queues: Vec<QueueSlot>,
    status: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
}

impl MmioTransport {
    /// Puts a device behind registers.
    ///
    /// # Errors
    /// No descriptor is to be had, or the device has a queue of a size that cannot be.
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> io::Result<MmioTransport> {
        let mut queues = Vec::new();
        for size in device.queue_sizes() {
            let queue = Queue::new((*size).min(MAX_QUEUE_SIZE)).map_err(io::Error::other)?;
            queues.push(QueueSlot { queue, notify: Event::new()? });
        }
        let interrupt = Arc::new(MmioInterrupt {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            event: Event::new()?,
        });
        Ok(MmioTransport {
            device,
            memory,
            interrupt,
            queues,
            status: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
        })
    }

    /// The event that is to raise the device's interrupt.
    pub fn interrupt_event(&self) -> &Event {
        &self.interrupt.event
    }

    /// The events the driver rings, by queue.
    pub fn notify_events(&self) -> impl Iterator<Item = &Event> {
        self.queues.iter().map(|slot| &slot.notify)
    }

    fn features(&self) -> u64 {
        self.device.features() | VERSION_1 | EVENT_IDX | INDIRECT_DESC
    }

    fn has(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    /// Reads a register, or the configuration space. What is no register reads as zero.
    pub fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset >= CONFIG {
            return self.device.read_config(offset - CONFIG, data);
        }
        let selected = self.selected();
        let value = match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.device.device_type(),
            0x0c => VENDOR,
            0x10 => half(self.features(), self.device_features_select),
            0x34 => selected.map_or(0, |slot| u32::from(slot.queue.max_size())),
            0x44 => selected.map_or(0, |slot| u32::from(slot.queue.ready())),
            0x60 => self.interrupt.status.load(Ordering::SeqCst),
            0x70 => self.status,
            // Length and address of shared memory: all ones say that there is none (section 4.2.2).
            0xb0..=0xbc => u32::MAX,
            0xfc => self.interrupt.generation.load(Ordering::SeqCst),
            _ => 0,
        };
        super::read_config_bytes(&value.to_le_bytes(), 0, data);
    }

    /// Writes a register, or the configuration space. What a driver may not write, or not now, is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        if offset >= CONFIG {
            return self.device.write_config(offset - CONFIG, data);
        }
        // Registers are written whole.
        let Ok(bytes) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(bytes);
        match offset {
            0x14 => self.device_features_select = value,
            0x20 => self.write_features(value),
            0x24 => self.driver_features_select = value,
            0x30 => self.queue_select = value,
            QUEUE_NOTIFY => self.ring(value),
            0x64 => {
                self.interrupt.status.fetch_and(!value, Ordering::SeqCst);
            }
            0x70 => self.write_status(value),
            0x38 | 0x44 | 0x80 | 0x84 | 0x90 | 0x94 | 0xa0 | 0xa4 => self.write_queue(offset, value),
            _ => {}
        }
    }

    /// Rings a queue as the driver does where nobody does it for it.
    fn ring(&self, queue: u32) {
        let slot = usize::try_from(queue).ok().and_then(|queue| self.queues.get(queue));
        if let Some(slot) = slot
            && self.has(VIRTIO_CONFIG_S_DRIVER_OK)
        {
            slot.notify.signal();
        }
    }

    fn selected(&self) -> Option<&QueueSlot> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    fn write_features(&mut self, value: u32) {
        if self.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            return;
        }
        let (mask, value) = match self.driver_features_select {
            0 => (u64::from(u32::MAX), u64::from(value)),
            1 => (u64::from(u32::MAX) << 32, u64::from(value) << 32),
            _ => return,
        };
        self.driver_features = self.driver_features & !mask | value;
    }

    /// Sets up the selected queue. Once the driver is ready nothing of it changes: a queue that grew under its device could
    /// name memory that nobody checked.
    fn write_queue(&mut self, offset: u64, value: u32) {
        if self.has(VIRTIO_CONFIG_S_DRIVER_OK) || !self.has(VIRTIO_CONFIG_S_FEATURES_OK) {
            return;
        }
        let slot = usize::try_from(self.queue_select).ok().and_then(|at| self.queues.get_mut(at));
        let Some(QueueSlot { queue, .. }) = slot else { return };
        match offset {
            0x38 => queue.set_size(u16::try_from(value).unwrap_or(0)),
            0x44 => queue.set_ready(value == 1),
            0x80 => queue.set_desc_table_address(Some(value), None),
            0x84 => queue.set_desc_table_address(None, Some(value)),
            0x90 => queue.set_avail_ring_address(Some(value), None),
            0x94 => queue.set_avail_ring_address(None, Some(value)),
            0xa0 => queue.set_used_ring_address(Some(value), None),
            _ => queue.set_used_ring_address(None, Some(value)),
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        // A driver sets bits one after the other and takes none back; what needs a reset gets it first.
        let known = value & 0xff & !VIRTIO_CONFIG_S_NEEDS_RESET;
        let added = known & !self.status;
        if known & self.status != self.status & !VIRTIO_CONFIG_S_NEEDS_RESET
            || self.has(VIRTIO_CONFIG_S_FAILED)
            || self.has(VIRTIO_CONFIG_S_NEEDS_RESET)
        {
            return;
        }
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            let unknown = self.driver_features & !self.features();
            if unknown != 0 || self.driver_features & VERSION_1 == 0 {
                // The bit stays clear: that is how the driver learns that they do not agree.
                self.status |= added & !(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
                return;
            }
        }
        self.status |= added;
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.activate();
        }
    }

    fn activate(&mut self) {
        let agreed = self.has(VIRTIO_CONFIG_S_FEATURES_OK);
        let activated = agreed
            && self.give_queues().is_some_and(|queues| {
                let activation = Activation {
                    memory: GuestMemory::clone(&self.memory),
                    features: self.driver_features,
                    queues,
                    interrupt: Arc::clone(&self.interrupt) as Arc<dyn Interrupt>,
                };
                let activated = self.device.activate(activation);
                if let Err(error) = &activated {
                    let (device, error) = (self.device.device_type(), error as &dyn std::error::Error);
                    tracing::warn!(device, error, "a device cannot work with its driver");
                }
                activated.is_ok()
            });
        if activated {
            // What was rung before anybody listened.
            self.notify_events().for_each(Event::signal);
        } else {
            self.device.reset();
            self.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
            self.interrupt.config_changed();
        }
    }

    /// The queues as the device gets them; `None` when the driver set one up wrongly.
    fn give_queues(&self) -> Option<Vec<Option<DeviceQueue>>> {
        let mut given = Vec::with_capacity(self.queues.len());
        for (index, slot) in (0_u16..).zip(&self.queues) {
            if !slot.queue.ready() {
                given.push(None);
                continue;
            }
            let mut queue = Queue::try_from(slot.queue.state()).ok()?;
            queue.set_event_idx(self.driver_features & EVENT_IDX != 0);
            if queue.size() == 0 || !queue.is_valid(&*self.memory) {
                return None;
            }
            let notify = slot.notify.try_clone().ok()?;
            let interrupt = Arc::clone(&self.interrupt) as Arc<dyn Interrupt>;
            given.push(Some(DeviceQueue::new(
                queue,
                index,
                notify,
                GuestMemory::clone(&self.memory),
                interrupt,
            )));
        }
        Some(given)
    }

    /// Back to how the device was at first. When this returns, the device touches no memory.
    pub fn reset(&mut self) {
        self.device.reset();
        for slot in &mut self.queues {
            slot.queue.reset();
            slot.notify.take();
        }
        self.status = 0;
        self.driver_features = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.interrupt.status.store(0, Ordering::SeqCst);
    }
}

fn half(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::machine::memory;
    use crate::virtio::ActivateError;

    /// Says what is done to it.
    #[derive(Default)]
    struct Told {
        activations: Vec<(u64, Vec<Option<u16>>)>,
        resets: usize,
    }

    struct Probe(Arc<Mutex<Told>>);

    impl VirtioDevice for Probe {
        fn device_type(&self) -> u32 {
            42
        }

        fn queue_sizes(&self) -> &[u16] {
            &[64, 256]
        }

        fn features(&self) -> u64 {
            1 << 5
        }

        fn read_config(&self, offset: u64, data: &mut [u8]) {
            crate::virtio::read_config_bytes(b"config", offset, data);
        }

        fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
            let sizes = activation.queues.iter().map(|queue| queue.as_ref().map(DeviceQueue::size));
            self.0.lock().unwrap().activations.push((activation.features, sizes.collect()));
            Ok(())
        }

        fn reset(&mut self) {
            self.0.lock().unwrap().resets += 1;
        }
    }

    struct Rig {
        transport: MmioTransport,
        told: Arc<Mutex<Told>>,
    }

    impl Rig {
        fn new() -> Rig {
            let told = Arc::new(Mutex::new(Told::default()));
            let memory = memory::allocate(128 << 20).unwrap();
            Rig { transport: MmioTransport::new(Box::new(Probe(Arc::clone(&told))), memory).unwrap(), told }
        }

        fn read(&mut self, offset: u64) -> u32 {
            let mut data = [0; 4];
            self.transport.read(offset, &mut data);
            u32::from_le_bytes(data)
        }

        fn write(&mut self, offset: u64, value: u32) {
            self.transport.write(offset, &value.to_le_bytes());
        }

        fn agree(&mut self, features: u64) {
            self.write(0x70, 1);
            self.write(0x70, 3);
            for (select, value) in [(0, half(features, 0)), (1, half(features, 1))] {
                self.write(0x24, select);
                self.write(0x20, value);
            }
            self.write(0x70, 11);
        }

        fn set_up_queue(&mut self, queue: u32, size: u32, at: u32) {
            self.write(0x30, queue);
            self.write(0x38, size);
            self.write(0x80, at);
            self.write(0x90, at + 0x4000);
            self.write(0xa0, at + 0x8000);
            self.write(0x44, 1);
        }

        fn activations(&self) -> Vec<(u64, Vec<Option<u16>>)> {
            self.told.lock().unwrap().activations.clone()
        }
    }

    #[test]
    fn a_driver_finds_the_device_and_starts_it() {
        let mut rig = Rig::new();
        assert_eq!([0, 4, 8].map(|offset| rig.read(offset)), [MAGIC, 2, 42]);
        assert_eq!(rig.read(0xb0), u32::MAX, "no shared memory");
        rig.agree(VERSION_1 | 1 << 5);
        assert_eq!(rig.read(0x70), 11);
        rig.set_up_queue(1, 128, 0x10_0000);
        rig.write(0x70, 15);
        assert_eq!(rig.read(0x70), 15);
        assert_eq!(rig.activations(), [(VERSION_1 | 1 << 5, vec![None, Some(128)])]);
        let mut config = [9; 8];
        rig.transport.read(0x103, &mut config);
        assert_eq!(&config, b"fig\0\0\0\0\0");
    }

    #[test]
    fn features_that_are_not_offered_are_not_agreed_on() {
        for features in [VERSION_1 | 1 << 6, 1 << 5] {
            let mut rig = Rig::new();
            rig.agree(features);
            assert_eq!(rig.read(0x70), 3);
            rig.write(0x70, 15);
            assert_eq!(rig.activations(), []);
        }
    }

    #[test]
    fn a_queue_of_a_ready_driver_does_not_change() {
        let mut rig = Rig::new();
        rig.agree(VERSION_1);
        rig.set_up_queue(0, 16, 0x10_0000);
        rig.write(0x70, 15);
        rig.set_up_queue(0, 64, 0xffff_0000);
        assert_eq!(rig.transport.queues[0].queue.size(), 16);
        assert_eq!(rig.transport.queues[0].queue.desc_table(), 0x10_0000);
    }

    #[test]
    fn a_queue_outside_of_memory_or_of_size_nothing_needs_a_reset() {
        for (size, at) in [(16, 0xf000_0000), (0, 0x10_0000), (3, 0x10_0000), (0x1_0010, 0xf000_0000)] {
            let mut rig = Rig::new();
            rig.agree(VERSION_1);
            rig.set_up_queue(0, size, at);
            rig.write(0x70, 15);
            let status = rig.read(0x70);
            // A size that cannot be leaves the greatest one: then the queue is good.
            let is_good = rig.activations().len() == 1;
            assert!(is_good || status & VIRTIO_CONFIG_S_NEEDS_RESET != 0, "{size} {at:#x}: {status}");
            assert!(at < 0xf000_0000 || !is_good);
            rig.write(0x70, 0);
            assert_eq!((rig.read(0x70), rig.read(0x60)), (0, 0));
        }
    }

    #[test]
    fn queues_that_are_not_there_are_no_queues() {
        let mut rig = Rig::new();
        rig.agree(VERSION_1);
        for queue in [2, 17, u32::MAX] {
            rig.set_up_queue(queue, 16, 0x10_0000);
            assert_eq!((rig.read(0x34), rig.read(0x44)), (0, 0));
            rig.write(0x50, queue);
        }
    }

    #[test]
    fn a_reset_forgets_everything_and_the_device_starts_again() {
        let mut rig = Rig::new();
        for _ in 0..3 {
            rig.agree(VERSION_1);
            rig.set_up_queue(0, 16, 0x10_0000);
            rig.write(0x70, 15);
            rig.write(0x70, 0);
            assert_eq!(rig.read(0x70), 0);
        }
        assert_eq!(rig.activations().len(), 3);
    }

    #[test]
    fn an_interrupt_is_seen_until_it_is_acknowledged() {
        let mut rig = Rig::new();
        rig.transport.interrupt.queue_used(0);
        rig.transport.interrupt.config_changed();
        assert!(rig.transport.interrupt_event().take());
        assert_eq!(rig.read(0x60), 3);
        rig.write(0x64, 1);
        assert_eq!(rig.read(0x60), 2);
        assert_eq!(rig.read(0xfc), 1);
    }

    proptest! {
        #[test]
        fn no_sequence_of_accesses_breaks_it(
            accesses in prop::collection::vec((0..0x120_u64, any::<u32>(), 0..9_usize, any::<bool>()), 0..200)
        ) {
            let mut rig = Rig::new();
            for (offset, value, size, is_write) in accesses {
                let mut data = [u64::from(value).to_le_bytes(); 2].concat();
                data.truncate(size);
                match is_write {
                    true => rig.transport.write(offset, &data),
                    false => rig.transport.read(offset, &mut data),
                }
                // Small values are what matters: states, selections, sizes.
                rig.write(offset, value % 16);
            }
        }
    }
}
