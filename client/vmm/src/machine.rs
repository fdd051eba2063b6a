//! The machine: processors, memory, interrupt controllers and devices around one kernel.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_bindings::{KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{IoEventAddress, Kvm, VmFd};
use serde::Serialize;

use crate::event::Event;
use crate::faults::Faults;
use crate::virtio::mmio::{MmioTransport, QUEUE_NOTIFY};
use crate::virtio::{GuestMemory, VirtioDevice};

pub mod acpi;
pub mod bus;
pub mod cpuid;
pub mod gate;
pub mod layout;
pub mod memory;
pub mod processor;
pub mod serial;
pub mod start;

use bus::Bus;
use cpuid::{CpuModel, Place};
use gate::Gate;
use processor::Processor;
use serial::SerialPort;
use start::Kernel;

/// The most processors a machine has.
pub const MAX_PROCESSORS: u8 = 16;
/// How long a processor may take to be held before it is kicked once more: the kick may have come just before it went in.
const KICK_INTERVAL: Duration = Duration::from_millis(5);

/// How long processors may take to be held: one that does not waits for the host.
const HOLD_PATIENCE: Duration = Duration::from_secs(1);
/// How long devices may take to finish what they have begun when the machine ends.
const RESET_PATIENCE: Duration = Duration::from_secs(5);

/// Why a machine cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// KVM refuses.
    #[error("KVM cannot {action}")]
    Kvm {
        /// What was asked of it.
        action: &'static str,
        /// What it said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// There is no memory.
    #[error(transparent)]
    Memory(#[from] memory::MemoryError),
    /// The tables cannot be written.
    #[error(transparent)]
    Acpi(#[from] acpi::AcpiError),
    /// The kernel cannot be started.
    #[error(transparent)]
    Start(#[from] start::StartError),
    /// The processor is not what was asked for.
    #[error(transparent)]
    Cpu(#[from] cpuid::CpuError),
    /// A number of processors that cannot be.
    #[error("a machine has 1 to 16 processors, not {processors}")]
    BadProcessors {
        /// What was asked for.
        processors: u8,
    },
    /// Too many devices.
    #[error("a machine has at most 17 devices, not {devices}")]
    TooManyDevices {
        /// How many there are.
        devices: usize,
    },
    /// A descriptor or thread cannot be had.
    #[error("cannot {action}")]
    Setup {
        /// What was being done.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn kvm_cannot(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> MachineError {
    move |source| MachineError::Kvm { action, source }
}

fn cannot(action: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Setup { action, source }
}

/// How a machine came to its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "end", rename_all = "kebab-case")]
pub enum End {
    /// The guest switched it off.
    PoweredOff,
    /// The guest wants it started again.
    Reset,
    /// It was switched off from outside.
    Forced,
    /// The guest drove a processor into a state it does not get out of.
    TripleFault {
        /// Which.
        processor: u8,
    },
    /// KVM cannot go on.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Where the end of a machine is told, and its guest's panic.
pub struct Ending {
    end: Mutex<Option<End>>,
    panicked: AtomicBool,
    news: Event,
}

impl Ending {
    /// The machine has come to its end; what was told first counts.
    pub fn reached(&self, end: End) {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(end);
        self.news.signal();
        // The processor that told it comes by here again and again until all are ended.
        std::thread::sleep(Duration::from_millis(1));
    }

    /// The guest's kernel panicked. It goes on: it may have a dump to write, or start again.
    pub fn guest_panicked(&self) {
        self.panicked.store(true, Ordering::SeqCst);
        self.news.signal();
    }

    /// The end, once it has come.
    pub fn end(&self) -> Option<End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the guest's kernel panicked.
    pub fn has_panicked(&self) -> bool {
        self.panicked.load(Ordering::SeqCst)
    }
}

/// What a machine is made of.
pub struct MachineConfig {
    /// Memory, bytes: whole MiB.
    pub memory_bytes: u64,
    /// Processors.
    pub processors: u8,
    /// What they are.
    pub cpu_model: CpuModel,
    /// What is started.
    pub kernel: Kernel,
    /// Virtio devices, in the order in which the guest finds them.
    pub devices: Vec<Box<dyn VirtioDevice>>,
    /// What is typed on the serial line.
    pub serial_input: Option<OwnedFd>,
    /// Where what is said on the serial line goes.
    pub serial_output: Option<OwnedFd>,
    /// Where disks say that they failed.
    pub faults: Arc<Faults>,
    /// Signalled when there is something new: an end, a panic, a fault.
    pub news: Event,
}

/// A machine. Dropping it switches it off, however long that takes; [`Machine::end`] does so with less patience.
pub struct Machine {
    gate: Arc<Gate>,
    processors: Vec<Processor>,
    bus: Arc<Bus>,
    ending: Arc<Ending>,
    faults: Arc<Faults>,
    power_button: Event,
    is_paused: bool,
    // Last: memory is unmapped when nothing uses it any more.
    vm: VmFd,
    _memory: GuestMemory,
}

impl Machine {
    /// Builds a machine; its processors wait for [`Machine::resume`].
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn new(kvm: &Kvm, config: MachineConfig) -> Result<Machine, MachineError> {
        if !(1..=MAX_PROCESSORS).contains(&config.processors) {
            return Err(MachineError::BadProcessors { processors: config.processors });
        }
        let devices = config.devices.len();
        let virtio_devices = match u8::try_from(devices) {
            Ok(number) if devices <= layout::MAX_VIRTIO => number,
            _ => return Err(MachineError::TooManyDevices { devices }),
        };
        let memory = memory::allocate(config.memory_bytes)?;
        let vm = create_vm(kvm)?;
        memory::map(&memory, &vm)?;
        let hardware = acpi::Hardware { processors: config.processors, virtio_devices };
        let acpi_root = acpi::write(&memory, hardware)?;
        let entry = start::load(&memory, &config.kernel, acpi_root)?;
        drop(config.kernel);

        let serial = SerialPort::new(config.serial_input, config.serial_output)
            .map_err(cannot("set up the serial port"))?;
        connect_interrupt(&vm, serial.interrupt_event(), layout::SERIAL_GSI)?;
        let power_button = Event::new().map_err(cannot("make an event"))?;
        connect_interrupt(&vm, &power_button, layout::EVENT_GSI)?;
        let mut transports = Vec::new();
        for (number, device) in (0_u32..).zip(config.devices) {
            let transport =
                MmioTransport::new(device, GuestMemory::clone(&memory)).map_err(cannot("set up a device"))?;
            connect_interrupt(&vm, transport.interrupt_event(), layout::VIRTIO_GSI + number)?;
            let registers = layout::VIRTIO + u64::from(number) * layout::VIRTIO_STRIDE;
            for (queue, notify) in (0_u32..).zip(transport.notify_events()) {
                let event = notify.to_kvm().map_err(cannot("make an event"))?;
                let address = IoEventAddress::Mmio(registers + QUEUE_NOTIFY);
                vm.register_ioevent(&event, &address, queue)
                    .map_err(kvm_cannot("watch for a queue's ring"))?;
            }
            transports.push(transport);
        }
        let bus = Arc::new(Bus::new(serial, transports));
        let gate = Arc::new(Gate::shut());
        let ending =
            Arc::new(Ending { end: Mutex::default(), panicked: AtomicBool::new(false), news: config.news });
        processor::prepare_kicks().map_err(cannot("set up signals"))?;
        let supported = cpuid::supported(kvm).map_err(kvm_cannot("tell what processors it supports"))?;
        let mut machine = Machine {
            gate,
            processors: Vec::new(),
            bus,
            ending,
            faults: config.faults,
            power_button,
            is_paused: true,
            vm,
            _memory: memory,
        };
        for number in 0..config.processors {
            let place = Place { id: number, of: config.processors };
            let cpuid = cpuid::for_processor(&supported, config.cpu_model, place)?;
            machine.add_processor(number, &cpuid, entry)?;
        }
        Ok(machine)
    }

    fn add_processor(
        &mut self,
        number: u8,
        cpuid: &kvm_bindings::CpuId,
        entry: u64,
    ) -> Result<(), MachineError> {
        let vcpu = self.vm.create_vcpu(u64::from(number)).map_err(kvm_cannot("create a processor"))?;
        vcpu.set_cpuid2(cpuid).map_err(kvm_cannot("set what a processor is"))?;
        let registers = kvm_cannot("set a processor's registers");
        // The others wait for the first one to wake them.
        if number == 0 {
            let system = vcpu.get_sregs().map_err(kvm_cannot("read a processor's registers"))?;
            vcpu.set_sregs(&start::system_registers(system))
                .map_err(kvm_cannot("set a processor's registers"))?;
            vcpu.set_regs(&start::registers(entry)).map_err(kvm_cannot("set a processor's registers"))?;
        }
        vcpu.set_fpu(&start::floating_point()).map_err(registers)?;
        start::enable_fast_strings(&vcpu);
        let (bus, gate, ending) = (Arc::clone(&self.bus), Arc::clone(&self.gate), Arc::clone(&self.ending));
        let processor =
            Processor::start(number, vcpu, bus, gate, ending).map_err(cannot("start a thread"))?;
        self.processors.push(processor);
        Ok(())
    }

    /// Lets the processors run.
    pub fn resume(&mut self) {
        self.is_paused = false;
        self.gate.open();
    }

    /// Holds the processors; one that waits for the host is held when it has done so. Requests that disks have taken are done
    /// all the same.
    pub fn pause(&mut self) {
        self.is_paused = true;
        self.gate.close();
        self.await_held();
    }

    /// Whether the processors are held.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Kicks processors until all are held; false when one waits for the host: it runs nothing of the guest, and is held later.
    fn await_held(&self) -> bool {
        let all = self.processors.len();
        let until = Instant::now() + HOLD_PATIENCE;
        while Instant::now() < until {
            self.processors.iter().for_each(Processor::kick);
            if self.gate.held(KICK_INTERVAL, all) >= all {
                return true;
            }
        }
        false
    }

    /// Switches the machine off. Devices finish what they have begun; when one does not, for it waits for the host, that is
    /// left behind: whoever asked is to end the process then.
    pub fn end(mut self) {
        self.faults.end();
        self.gate.end();
        if !self.await_held() {
            std::mem::forget(self);
            return;
        }
        self.processors.drain(..).for_each(Processor::join);
        let bus = Arc::clone(&self.bus);
        let (done, waited_for) = std::sync::mpsc::channel();
        let resetting = std::thread::Builder::new().name("end".to_owned()).spawn(move || {
            bus.reset_devices();
            // Nobody waits any more: then the process has ended too.
            let _ = done.send(());
        });
        if resetting.is_err() || waited_for.recv_timeout(RESET_PATIENCE).is_err() {
            std::mem::forget(self);
        }
    }

    /// Presses the power button: the guest does with it what it is set to do.
    pub fn press_power_button(&self) {
        self.power_button.signal();
    }

    /// How the machine ended, and whether its guest panicked.
    pub fn ending(&self) -> &Ending {
        &self.ending
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Whoever waits for a disk goes first: a processor may be waiting for them.
        self.faults.end();
        self.gate.end();
        while !self.await_held() {}
        self.processors.drain(..).for_each(Processor::join);
        self.bus.reset_devices();
    }
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, MachineError> {
    let vm = loop {
        match kvm.create_vm() {
            // It is interrupted by any signal.
            Err(error) if error.errno() == libc::EINTR => {}
            made => break made.map_err(kvm_cannot("create a machine"))?,
        }
    };
    let tss = usize::try_from(layout::KVM_TSS).unwrap_or(usize::MAX);
    vm.set_tss_address(tss).map_err(kvm_cannot("place its own pages"))?;
    vm.create_irq_chip().map_err(kvm_cannot("create interrupt controllers"))?;
    let timer = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
    vm.create_pit2(timer).map_err(kvm_cannot("create a timer"))?;
    Ok(vm)
}

fn connect_interrupt(vm: &VmFd, event: &Event, gsi: u32) -> Result<(), MachineError> {
    let event = event.to_kvm().map_err(cannot("make an event"))?;
    vm.register_irqfd(&event, gsi).map_err(kvm_cannot("connect an interrupt"))
}
