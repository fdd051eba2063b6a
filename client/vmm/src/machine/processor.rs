//! A virtual processor: a thread that runs the guest until it needs something.

use std::os::raw::c_int;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::bus::{Bus, Order};
use super::gate::{Gate, Passage};
use super::{End, Ending};
use crate::sandbox;

/// `KVM_SYSTEM_EVENT_SHUTDOWN`, `_RESET` and `_CRASH`.
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;
const SYSTEM_EVENT_RESET: u32 = 2;

/// How often a processor that may not run looks whether it is to end.
const UNCONFINED_PAUSE: Duration = Duration::from_millis(10);

/// The signal that takes a processor out of the guest.
fn kick_signal() -> c_int {
    SIGRTMIN()
}

extern "C" fn on_kick(_: c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // That it was delivered is all there is to it: KVM_RUN returns.
}

/// Has the kick interrupt system calls rather than end the process. Once, before the first processor.
///
/// # Errors
/// The kernel refuses.
pub fn prepare_kicks() -> std::io::Result<()> {
    register_signal_handler(kick_signal(), on_kick)
        .map_err(|error| std::io::Error::from_raw_os_error(error.errno()))
}

/// A processor's thread.
pub struct Processor {
    thread: JoinHandle<()>,
}

impl Processor {
    /// Starts the thread; it waits at the gate first.
    ///
    /// # Errors
    /// No thread is to be had.
    pub fn start(
        number: u8,
        vcpu: VcpuFd,
        bus: Arc<Bus>,
        gate: Arc<Gate>,
        ending: Arc<Ending>,
    ) -> std::io::Result<Processor> {
        let thread = std::thread::Builder::new().name(format!("processor{number}")).spawn(move || {
            if let Err(error) = sandbox::confine_thread(sandbox::Thread::Processor) {
                ending.reached(End::Failed { reason: error.to_string() });
                // It is held or ends with the others, and never runs the guest.
                while gate.pass() != Passage::Ended {
                    std::thread::sleep(UNCONFINED_PAUSE);
                }
                return;
            }
            run(vcpu, number, &bus, &gate, &ending);
        })?;
        Ok(Processor { thread })
    }

    /// Takes the processor out of the guest, if it is in there.
    pub fn kick(&self) {
        // It fails when the thread has ended: then it is not in there.
        let _ = self.thread.kill(kick_signal());
    }

    /// Waits for the thread to end.
    pub fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("the thread of a processor panicked");
        }
    }
}

fn run(mut vcpu: VcpuFd, number: u8, bus: &Bus, gate: &Gate, ending: &Ending) {
    loop {
        match gate.pass() {
            Passage::Open => {}
            // The guest's clock went on: its watchdogs are told that it is no fault of the guest's. Refused when it has no such
            // clock (KVM_KVMCLOCK_CTRL of Documentation/virt/kvm/api.rst).
            Passage::Opened => drop(vcpu.kvmclock_ctrl()),
            Passage::Ended => return,
        }
        let order = match vcpu.run() {
            Ok(VcpuExit::IoIn(port, data)) => {
                bus.read_port(port, data);
                None
            }
            Ok(VcpuExit::IoOut(port, data)) => bus.write_port(port, data),
            Ok(VcpuExit::MmioRead(address, data)) => {
                bus.read_register(address, data);
                None
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                bus.write_register(address, data);
                None
            }
            Ok(VcpuExit::Shutdown) => {
                ending.reached(End::TripleFault { processor: number });
                continue;
            }
            Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _)) => Some(Order::PowerOff),
            Ok(VcpuExit::SystemEvent(SYSTEM_EVENT_RESET, _)) => Some(Order::Reset),
            Ok(VcpuExit::Intr | VcpuExit::Hlt | VcpuExit::IrqWindowOpen) => None,
            Ok(exit) => {
                ending.reached(End::Failed { reason: format!("processor {number} stopped: {exit:?}") });
                continue;
            }
            // A kick; or a second processor that was just woken.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => None,
            Err(error) => {
                ending.reached(End::Failed { reason: format!("processor {number} cannot run: {error}") });
                continue;
            }
        };
        match order {
            None => {}
            Some(Order::PowerOff) => ending.reached(End::PoweredOff),
            Some(Order::Reset) => ending.reached(End::Reset),
            Some(Order::Panicked) => ending.guest_panicked(),
        }
    }
}
