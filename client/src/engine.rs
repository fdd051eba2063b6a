//! Engines: what runs a desktop's machine on its mounted disks.

use std::path::{Path, PathBuf};

use chunk_format::Firmware;
use rustix::process::Signal;

pub mod agent;
pub mod console;
pub mod kvm;
pub mod qemu;
pub mod qmp;
pub mod running;
pub mod vmm_control;

/// Which engine is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// Satchel's own machine where it works and can boot the disk, else QEMU.
    Auto,
    /// Satchel's own machine, on KVM.
    Kvm,
    /// QEMU, with KVM where it works.
    Qemu,
}

/// Something a machine did by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// A disk could not answer; the machine waits to be told to go on.
    DiskStopped {
        /// Whether for want of space.
        no_space: bool,
        /// It does not go on: what the guest was told is on disk may not be.
        is_final: bool,
    },
    /// The guest's kernel has panicked.
    Panicked,
    /// What carries its network has ended; the machine goes on without.
    NetworkEnded,
    /// It is off. Its process is gone as soon as what it reads is answered.
    Off {
        /// The guest switched it off, and nobody else.
        by_guest: bool,
    },
}

/// What the machine's screen is shown on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Display {
    /// Nothing: the serial console is in the terminal.
    None,
    /// A window on this machine's desktop.
    Window,
    /// A VNC server on this machine's loopback address.
    Vnc,
}

/// A machine to start.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Its name, for titles.
    pub name: String,
    /// The disk that boots.
    pub system: PathBuf,
    /// The person's disk, if there is one.
    pub home: Option<PathBuf>,
    /// How it boots.
    pub firmware: Firmware,
    /// Where its firmware may keep settings.
    pub settings: PathBuf,
    /// Memory, MiB.
    pub memory_mib: u64,
    /// Processors.
    pub cpus: u32,
    /// Its screen.
    pub display: Display,
}

/// Why an engine cannot run the machine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A program is not installed.
    #[error("{program} is not installed")]
    NotInstalled {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The machine boots by UEFI and there is no firmware for that.
    #[error("this disk boots by UEFI, and no UEFI firmware was found in {}", searched.display())]
    NoUefi {
        /// Where it was looked for.
        searched: PathBuf,
    },
    /// There is no KVM for a machine of our own.
    #[error("this machine cannot run virtual machines by itself: {reason}")]
    NoKvm {
        /// Why.
        reason: &'static str,
    },
    /// Satchel's own machine has fewer processors.
    #[error("Satchel's own machine has at most {limit} processors; `--engine qemu` has more")]
    TooManyCpus {
        /// The most it has.
        limit: u32,
    },
    /// Satchel's own machine shows no screen.
    #[error("Satchel's own machine has no screen yet, only a serial console")]
    NoScreen,
    /// QEMU was built without this kind of display.
    #[error("the QEMU on this machine cannot open a window")]
    NoWindow,
    /// A program could not be started.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The connection to the engine failed.
    #[error("lost the connection to the machine")]
    Connection(#[source] std::io::Error),
    /// The engine refused a command.
    #[error("the machine refused `{command}`: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// The engine's words.
        reason: String,
    },
    /// A file could not be prepared.
    #[error("cannot prepare {}", path.display())]
    Prepare {
        /// The file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: std::io::Error,
    },
}

/// Whether /dev/kvm runs stock kernels here.
pub fn kvm_works() -> bool {
    check_kvm().is_ok()
}

/// Checks that /dev/kvm runs stock kernels here: the processor must say that it virtualizes, and the device must open.
/// (A /dev/kvm without vmx or svm belongs to a hypervisor that runs only kernels made for it.)
///
/// # Errors
/// `NoKvm`.
pub fn check_kvm() -> Result<(), EngineError> {
    let virtualizes = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|cpus| {
        cpus.lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
    });
    if !virtualizes {
        return Err(EngineError::NoKvm {
            reason: "its processor does not virtualize, or that is switched off",
        });
    }
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(EngineError::NoKvm { reason: "you may not open /dev/kvm" })
        }
        Err(_) => Err(EngineError::NoKvm { reason: "there is no /dev/kvm" }),
    }
}

/// Lets a process to be started end when this one does, however this one ends: a machine without its supervisor, or
/// a mount without its machine, is of no use to anyone. It is told so as a host that shuts down tells everyone.
pub(crate) fn die_with_parent(command: &mut tokio::process::Command) -> &mut tokio::process::Command {
    end_with_parent(command, Signal::TERM)
}

/// The same for a program that would end at once when the session or the host does, which tells every process: its guest is
/// being shut down then, and until that is over it has to go on. Only the end of this process ends it.
fn die_only_with_parent(command: &mut tokio::process::Command) -> &mut tokio::process::Command {
    keep_signals_off(end_with_parent(command, Signal::KILL))
}

#[expect(unsafe_code, reason = "only the process itself can ask for this, between fork and exec")]
fn end_with_parent(command: &mut tokio::process::Command, signal: Signal) -> &mut tokio::process::Command {
    let ask =
        move || rustix::process::set_parent_process_death_signal(Some(signal)).map_err(std::io::Error::from);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; `prctl` is one, and nothing is
    // allocated or locked.
    unsafe { command.pre_exec(ask) }
}

/// Blocks SIGTERM and SIGHUP for a program to be started, which stay so unless it says otherwise.
#[expect(unsafe_code, reason = "only the process itself can block its signals, between fork and exec")]
fn keep_signals_off(command: &mut tokio::process::Command) -> &mut tokio::process::Command {
    let block = || {
        // SAFETY: a signal set is plain integers, for which zeros are a value.
        let mut signals: libc::sigset_t = unsafe { std::mem::zeroed() };
        // SAFETY: these read and write the set they are given, which is ours, and the mask of this thread.
        let status = unsafe {
            libc::sigemptyset(&raw mut signals);
            libc::sigaddset(&raw mut signals, libc::SIGTERM);
            libc::sigaddset(&raw mut signals, libc::SIGHUP);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const signals, std::ptr::null_mut())
        };
        match status {
            0 => Ok(()),
            error => Err(std::io::Error::from_raw_os_error(error)),
        }
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed; these are, and nothing is allocated or locked.
    unsafe { command.pre_exec(block) }
}

/// Where a program is, by the search path.
fn find_program(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
}
