//! A machine that runs the payload, and the test's end of the serial line to it.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_ioctls::Kvm;
use satchel_vmm::event::Event;
use satchel_vmm::faults::Faults;
use satchel_vmm::machine::cpuid::CpuModel;
use satchel_vmm::machine::start::Kernel;
use satchel_vmm::machine::{End, Machine, MachineConfig, layout};
use satchel_vmm::virtio::VirtioDevice;

use crate::code::{self, COUNTERS, Command, DONE, FIRST_VECTOR};

/// How long anything may take: far longer than it does, even where the processor is emulated.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const MEMORY_BYTES: u64 = 128 << 20;
/// Where memory for queues and buffers is taken from, behind all that the machine wrote.
const FREE_MEMORY: u64 = 32 << 20;
const PAGE: u64 = 4096;

const LOCAL_APIC: u64 = layout::LOCAL_APIC as u64;
const APIC_SPURIOUS: u64 = LOCAL_APIC + 0xf0;
/// Of the interrupt command register.
pub(crate) const APIC_COMMAND_LOW: u64 = LOCAL_APIC + 0x300;
pub(crate) const APIC_COMMAND_HIGH: u64 = LOCAL_APIC + 0x310;
const IO_APIC_SELECT: u64 = layout::IO_APIC as u64;
const IO_APIC_DATA: u64 = IO_APIC_SELECT + 0x10;

/// A machine under remote control.
pub(crate) struct Guest {
    pub(crate) machine: Machine,
    pub(crate) line: UnixStream,
    /// Acknowledgements that were not heard yet.
    unheard: usize,
    next_free: u64,
}

impl Guest {
    /// A machine that is running, with its interrupt controllers set up: a device's interrupts come once [`Guest::route`] was
    /// told of them.
    pub(crate) fn start(kvm: &Kvm, processors: u8, devices: Vec<Box<dyn VirtioDevice>>) -> Guest {
        let (line, ours) = UnixStream::pair().expect("a socket");
        let news = Event::new().expect("an event");
        let faults = Arc::new(Faults::new(news.try_clone().expect("an event")));
        let config = MachineConfig {
            memory_bytes: MEMORY_BYTES,
            processors,
            cpu_model: CpuModel::Host,
            kernel: Kernel { image: bzimage(code::payload()), initrd: None, command_line: String::new() },
            devices,
            serial_input: Some(ours.try_clone().expect("a descriptor").into()),
            serial_output: Some(ours.into()),
            faults,
            news,
        };
        let mut machine = Machine::new(kvm, config).expect("a machine");
        machine.resume();
        let mut guest = Guest { machine, line, unheard: 0, next_free: FREE_MEMORY };
        guest.store(APIC_SPURIOUS, 0x1ff);
        guest
    }

    /// Gives the interrupt `gsi` a vector of its own.
    pub(crate) fn route(&mut self, gsi: u32) {
        // Edge-triggered, active high, to the processor 0.
        self.store(IO_APIC_SELECT, 0x10 + gsi * 2);
        self.store(IO_APIC_DATA, FIRST_VECTOR + gsi);
    }

    /// Sends a command whose acknowledgement is not waited for.
    pub(crate) fn order(&mut self, command: Command, first: u64, second: u32) {
        let mut bytes = vec![command as u8];
        bytes.extend_from_slice(&u32::try_from(first).expect("below 4 GiB").to_le_bytes());
        bytes.extend_from_slice(&second.to_le_bytes());
        self.line.write_all(&bytes).expect("the machine takes a command");
    }

    /// Hears bytes of the payload, behind the acknowledgements of what was sent before.
    pub(crate) fn hear(&mut self, bytes: &mut [u8]) {
        let mut done = vec![0; std::mem::take(&mut self.unheard)];
        self.read(&mut done);
        if let Some(at) = done.iter().position(|byte| *byte != DONE) {
            let mut more = done.split_off(at);
            self.line.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
            let _ = self.line.read_to_end(&mut more);
            panic!("the payload says {more:x?} rather than that it is done");
        }
        self.read(bytes);
    }

    /// Reads bytes, and fails as soon as none will come any more.
    fn read(&mut self, mut bytes: &mut [u8]) {
        let until = Instant::now() + PATIENCE;
        self.line.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        while !bytes.is_empty() {
            match self.line.read(bytes) {
                Ok(length) => bytes = &mut bytes[length..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("the serial line: {error}"),
            }
            let end = self.machine.ending().end();
            assert!(bytes.is_empty() || end.is_none(), "the machine ended: {end:?}");
            assert!(Instant::now() < until, "the payload does not answer");
        }
    }

    /// Waits until all that was sent is done.
    pub(crate) fn settle(&mut self) {
        self.hear(&mut []);
    }

    /// Writes memory, soon.
    pub(crate) fn put(&mut self, address: u64, bytes: &[u8]) {
        self.order(Command::Put, address, u32::try_from(bytes.len()).expect("few bytes"));
        self.line.write_all(bytes).expect("the machine takes bytes");
        self.unheard += 1;
    }

    /// Reads memory.
    pub(crate) fn get(&mut self, address: u64, length: u32) -> Vec<u8> {
        self.order(Command::Get, address, length);
        let mut bytes = vec![0; length as usize];
        self.hear(&mut bytes);
        self.unheard += 1;
        bytes
    }

    /// Writes a register, soon.
    pub(crate) fn store(&mut self, address: u64, value: u32) {
        self.order(Command::Store, address, value);
        self.unheard += 1;
    }

    /// Reads a register, or memory.
    pub(crate) fn load(&mut self, address: u64) -> u32 {
        self.order(Command::Load, address, 0);
        let mut bytes = [0; 4];
        self.hear(&mut bytes);
        self.unheard += 1;
        u32::from_le_bytes(bytes)
    }

    /// Writes a port, soon.
    pub(crate) fn out(&mut self, port: u16, value: u8) {
        self.order(Command::Out, u64::from(port), value.into());
        self.unheard += 1;
    }

    /// What the processor says of itself: EAX, EBX, ECX and EDX of a sub-leaf of CPUID.
    pub(crate) fn identify(&mut self, leaf: u32, sub_leaf: u32) -> [u32; 4] {
        self.order(Command::Identify, leaf.into(), sub_leaf);
        let mut bytes = [0; 32];
        self.hear(&mut bytes);
        self.unheard += 1;
        std::array::from_fn(|at| u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[at * 8 + byte])))
    }

    /// How often an interrupt came.
    pub(crate) fn interrupts(&mut self, gsi: u32) -> u32 {
        self.load(counter(gsi))
    }

    /// Halts the processor until an interrupt came more often than that.
    pub(crate) fn await_interrupt(&mut self, gsi: u32, seen: u32) {
        self.order(Command::Halt, counter(gsi), seen);
        self.unheard += 1;
        self.settle();
    }

    /// Memory that nobody else uses, and that is zero.
    pub(crate) fn allocate(&mut self, bytes: u64) -> u64 {
        let address = self.next_free;
        self.next_free += bytes.next_multiple_of(PAGE);
        assert!(self.next_free <= MEMORY_BYTES, "memory for {bytes} bytes");
        address
    }

    /// Waits for the end of the machine.
    pub(crate) fn end(&mut self) -> End {
        let mut end = None;
        wait_until(|| {
            end = self.machine.ending().end();
            end.is_some()
        });
        end.expect("it was waited for")
    }
}

fn counter(gsi: u32) -> u64 {
    assert!(gsi < 24, "the I/O interrupt controller has 24");
    COUNTERS + u64::from(FIRST_VECTOR + gsi) * 4
}

/// Waits until something is so.
pub(crate) fn wait_until(mut what: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !what() {
        assert!(Instant::now() < until, "it does not come to pass");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The least that passes for a kernel of Linux's boot protocol: a setup sector, and a body with its 64-bit entry.
fn bzimage(entry: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 1024 + 0x200];
    image[0x1f1] = 1;
    image[0x201] = 0x6c;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20f_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    image[0x236..0x238].copy_from_slice(&1_u16.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x100_0000_u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    image.extend_from_slice(entry);
    image
}
