//! Satchel's own machine as the engine: how `satchel-vmm` is started, and its network with it.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::UnboundedSender;

use super::agent;
use super::child::{die_with_parent, give};
use super::network::Network;
use super::vmm_control::VmmControl;
use super::{EngineError, Machine, MachineEvent, find_program, is_executable};

const PROGRAM: &str = "satchel-vmm";
const PASST: &str = "passt";
/// The exit status of a machine that wants to be started again.
pub const EXIT_RESET: i32 = 3;
/// The exit status when nothing on the disk can be booted by this machine.
pub const EXIT_NO_BOOT: i32 = 4;
/// It cannot be made, or its disk cannot be read: no guest has run.
pub const EXIT_NOT_STARTED: i32 = 5;
/// It does not know what it was told.
pub const EXIT_USAGE: i32 = 2;
/// The most processors it has.
pub const MAX_CPUS: u32 = 16;

/// A machine that was started.
#[derive(Debug)]
pub struct Running {
    /// Its process.
    pub process: Child,
    /// What carries its network.
    pub network: Network,
    /// Where it is spoken to.
    pub control: VmmControl,
    /// Our end of the guest agent's port.
    pub agent: UnixStream,
}

/// The programs this engine needs.
#[derive(Clone, Debug)]
pub struct Programs {
    vmm: PathBuf,
    passt: PathBuf,
}

impl Programs {
    /// Finds them: the machine's beside this program or in the search path, passt in the search path.
    ///
    /// # Errors
    /// `NotInstalled`.
    pub fn find() -> Result<Programs, EngineError> {
        let beside = std::env::current_exe().ok().map(|program| program.with_file_name(PROGRAM));
        let vmm = beside
            .filter(|path| is_executable(path))
            .or_else(|| find_program(PROGRAM))
            .ok_or(EngineError::NotInstalled { program: PROGRAM, package: "satchel" })?;
        let passt =
            find_program(PASST).ok_or(EngineError::NotInstalled { program: PASST, package: PASST })?;
        Ok(Programs { vmm, passt })
    }

    #[cfg(test)]
    pub(crate) fn at(vmm: PathBuf, passt: PathBuf) -> Programs {
        Programs { vmm, passt }
    }
}

/// The serial line of a machine, which stays when the machine is started again.
pub struct SerialLine {
    machine_end: OwnedFd,
}

impl SerialLine {
    /// A line; its other end is answered too.
    ///
    /// # Errors
    /// `Connection`.
    pub fn new() -> Result<(SerialLine, UnixStream), EngineError> {
        let (ours, theirs) = connection()?;
        Ok((SerialLine { machine_end: theirs }, ours.into()))
    }
}

/// Starts the machine on its mounted disks. It gets them open: its process can open nothing by itself. What becomes of its network is
/// told to `events`.
///
/// # Errors
/// [`EngineError`].
pub async fn start(
    programs: &Programs,
    machine: &Machine,
    line: &SerialLine,
    events: UnboundedSender<MachineEvent>,
) -> Result<Running, EngineError> {
    let (control, vmm_control) = connection()?;
    let (our_agent, vmm_agent) = connection()?;
    let (network, vmm_net) = Network::start(programs.passt.clone(), &machine.directory, events.clone())
        .map_err(EngineError::Connection)?;

    let mut command = Command::new(&programs.vmm);
    command.arg("run");
    command.args(["--memory", &machine.memory_mib.to_string(), "--cpus", &machine.cpus.to_string()]);
    let mut given = Vec::new();
    let disks = [("system", Some(&machine.system)), ("home", machine.home.as_ref())];
    for (id, path) in disks {
        let Some(path) = path else { continue };
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| EngineError::Prepare { path: path.clone(), source })?;
        command.args(["--disk", &format!("id={id},fd={},served", file.as_raw_fd())]);
        given.push(OwnedFd::from(file));
    }
    let serial = line.machine_end.try_clone().map_err(EngineError::Connection)?;
    command.args(["--serial", &format!("fd={}", serial.as_raw_fd())]);
    command.args(["--control", &format!("fd={}", vmm_control.as_raw_fd())]);
    command.args(["--net", &format!("passt=fd={}", vmm_net.as_raw_fd())]);
    command.args(["--port", &format!("{}=fd={}", agent::PORT, vmm_agent.as_raw_fd())]);
    given.extend([serial, vmm_control, vmm_net, vmm_agent]);
    give(command.as_std_mut(), given);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // Its own process group: a Ctrl-C in the terminal is ours to handle.
    die_with_parent(command.process_group(0).kill_on_drop(true).as_std_mut());
    let process = command.spawn().map_err(|source| not_started(&programs.vmm, source))?;
    // What was given away is closed here with the command: when the machine ends, its connections do.
    drop(command);
    Ok(Running { process, network, control: VmmControl::open(control, events)?, agent: our_agent.into() })
}

fn not_started(program: &Path, source: std::io::Error) -> EngineError {
    EngineError::Start { program: program.display().to_string(), source }
}

/// Both ends of a connection, neither of them inherited by anyone who is not given it.
fn connection() -> Result<(OwnedFd, OwnedFd), EngineError> {
    socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(|error| EngineError::Connection(error.into()))
}
