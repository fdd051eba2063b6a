//! Engines: what runs a desktop's machine on its mounted disks.

use std::path::{Path, PathBuf};

use chunk_format::Firmware;

pub mod agent;
pub(crate) mod child;
pub mod console;
pub mod kvm;
pub mod network;
pub mod qemu;
pub mod qmp;
pub mod running;
pub mod vmm_control;

use network::NetworkNews;

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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Something happened to its network.
    Network(NetworkNews),
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
    /// Where its sockets may be: a directory of the desktop's own.
    pub directory: PathBuf,
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

/// Where a program is, by the search path.
fn find_program(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|dir| dir.join(program))
        .find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok() && path.is_file()
}
