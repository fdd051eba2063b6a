//! Runs one machine from its start to its end, in a process that is confined first.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Instant;

use kvm_ioctls::Kvm;
use rustix::event::{PollFd, PollFlags};

use crate::boot::disk::ReadDisk;
use crate::boot::{self, BootError, BootPlan};
use crate::control::server::{Server, Socket};
use crate::control::{self, Command, State};
use crate::event::Event;
use crate::faults::Faults;
use crate::machine::cpuid::CpuModel;
use crate::machine::start::Kernel;
use crate::machine::{End, Machine, MachineConfig, MachineError};
use crate::sandbox::{self, Mode, SandboxError};
use crate::virtio::console::{ConsoleError, Port};

mod callers;
mod devices;
mod supervisor;
mod switch;

use devices::Devices;
use supervisor::{About, Supervisor};

/// A disk of the machine.
#[derive(Debug)]
pub struct DiskConfig {
    /// Its name, which the guest sees as its serial number.
    pub id: String,
    /// Its content.
    pub file: File,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Whether another process serves it as `satchel mount` does.
    pub served: bool,
}

/// What carries the frames of the machine's network.
pub enum NetBackend {
    /// passt, by its stream socket; or by one that listens, where one after the other is connected.
    Passt(OwnedFd),
    /// A TAP device.
    Tap(OwnedFd),
}

/// The machine's network.
pub struct NetConfig {
    /// What carries its frames.
    pub backend: NetBackend,
    /// The guest's address.
    pub mac: [u8; 6],
}

/// The machine's sockets to the host.
pub struct VsockConfig {
    /// The guest's context identifier, 3 or more.
    pub cid: u32,
    /// Who connects here and says `CONNECT <port>` is connected to that port of the guest.
    pub listener: UnixListener,
}

/// All a machine needs, open already: nothing is opened later.
pub struct LaunchConfig {
    /// /dev/kvm.
    pub kvm: OwnedFd,
    /// Disks; the first boots.
    pub disks: Vec<DiskConfig>,
    /// Memory, bytes.
    pub memory_bytes: u64,
    /// Processors.
    pub processors: u8,
    /// What they are.
    pub cpu_model: CpuModel,
    /// Words added to the kernel's command line.
    pub append: Option<String>,
    /// What is typed on the serial line.
    pub serial_input: Option<OwnedFd>,
    /// Where what is said on the serial line goes.
    pub serial_output: Option<OwnedFd>,
    /// Its network, if it has one.
    pub net: Option<NetConfig>,
    /// Its named ports, such as a guest agent's.
    pub ports: Vec<Port>,
    /// Whether memory the guest does without goes back to the host.
    pub balloon: bool,
    /// Its sockets to the host, if it has any.
    pub vsock: Option<VsockConfig>,
    /// Where whoever runs it speaks to it.
    pub control: Option<OwnedFd>,
    /// Signalled by a person to press the power button; when signalled again, to switch off.
    pub interrupt: Arc<Event>,
    /// Signalled by the host to press the power button, however often.
    pub host_ends: Arc<Event>,
    /// How it is confined.
    pub sandbox: Mode,
}

/// Why a machine could not be run.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// It has no disk.
    #[error("a machine needs a disk to boot")]
    NoDisk,
    /// The disk boots nothing this machine can start.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// It was to end before that was found.
    #[error("it was switched off while the disk was looked through for what to boot")]
    GivenUp,
    /// The machine cannot be built.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// Its console cannot be built.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// The process cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// Something cannot be had.
    #[error("cannot {action}")]
    Setup {
        /// What was being done.
        action: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn cannot(action: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::Setup { action, source }
}

/// Runs a machine; answers how it ended.
///
/// # Errors
/// [`LaunchError`], before the guest has run.
pub fn run(config: LaunchConfig) -> Result<End, LaunchError> {
    let started = Instant::now();
    sandbox::close_others(&given_descriptors(&config))?;
    let boots = config.disks.first().ok_or(LaunchError::NoDisk)?;
    let boot_disk = boots.file.try_clone().map_err(cannot("read the disk"))?;
    let event = || Event::new().map_err(cannot("make an event"));
    let news = event()?;
    let faults = Arc::new(Faults::new(news.try_clone().map_err(cannot("make an event"))?));
    let queues = u16::from(config.processors);
    let mut devices = Devices::new(config.disks, config.net, config.ports, config.vsock, queues, &faults)?;
    if config.balloon {
        devices.add_balloon()?;
    }
    let confined = sandbox::confine_process(config.sandbox)?;
    tracing::debug!(confined, "the process is confined");

    let socket = config.control.map(Socket::from_descriptor).transpose();
    let mut server = socket.and_then(Server::new).map_err(cannot("serve the control socket"))?;
    let asked = [&*config.interrupt, &*config.host_ends];
    let found = find_to_boot(boot_disk, &news, asked, &mut server);
    if matches!(found, Err(LaunchError::GivenUp)) {
        server.tell(&control::Event::Ended { end: End::Forced });
    }
    let plan = found?;
    tracing::info!(booting = %plan.origin, command_line = plan.command_line, "found what to boot");
    let booted = serde_json::to_value(&plan.origin).unwrap_or_default();
    let command_line = match &config.append {
        Some(words) => format!("{} {words}", plan.command_line),
        None => plan.command_line,
    };
    let Devices { list, watched } = devices;
    let mut machine = Machine::new(
        &kvm_of(config.kvm),
        MachineConfig {
            memory_bytes: config.memory_bytes,
            processors: config.processors,
            cpu_model: config.cpu_model,
            kernel: Kernel { image: plan.kernel, initrd: plan.initrd, command_line },
            devices: list,
            serial_input: config.serial_input,
            serial_output: config.serial_output,
            faults: Arc::clone(&faults),
            news: news.try_clone().map_err(cannot("make an event"))?,
        },
    )?;
    machine.resume();
    let about = About {
        started,
        processors: config.processors,
        memory_bytes: config.memory_bytes,
        booted,
        sandbox: confined,
    };
    Ok(Supervisor::new(machine, server, faults, watched, about).watch(
        &news,
        &config.interrupt,
        &config.host_ends,
    ))
}

/// Finds what to boot, unless it is given up meanwhile, in whichever way a machine is switched off: reading may wait for a network.
fn find_to_boot(
    disk: File,
    news: &Event,
    asked: [&Event; 2],
    server: &mut Server,
) -> Result<BootPlan, LaunchError> {
    let (sender, found) = std::sync::mpsc::channel();
    let done = news.try_clone().map_err(cannot("make an event"))?;
    let search = move || {
        // Nobody takes it when the search was given up.
        let _ = sender.send(boot::find(Arc::new(disk) as Arc<dyn ReadDisk + Send + Sync>));
        done.signal();
    };
    std::thread::Builder::new().name("search".to_owned()).spawn(search).map_err(cannot("start a thread"))?;
    loop {
        let mut polled = Vec::from([news, asked[0], asked[1]].map(|event| PollFd::new(event, PollFlags::IN)));
        polled.extend(server.polled());
        // It fails only when it is interrupted: then there is nothing to do.
        let _ = rustix::event::poll(&mut polled, None);
        drop(polled);
        let mut is_given_up = asked.iter().any(|event| event.take());
        server.serve(|command| {
            is_given_up |= matches!(command, Command::PowerButton | Command::ForceOff);
            serde_json::json!({ "state": State::Searching })
        });
        if is_given_up || server.is_deserted() {
            return Err(LaunchError::GivenUp);
        }
        if news.take() {
            return match found.recv() {
                Ok(plan) => Ok(plan?),
                Err(_) => Err(cannot("look for what to boot")(io::Error::other("the search broke off"))),
            };
        }
    }
}

/// The descriptors that were given to this process, besides the standard ones.
fn given_descriptors(config: &LaunchConfig) -> Vec<RawFd> {
    let mut given = vec![config.kvm.as_raw_fd()];
    given.extend([&config.interrupt, &config.host_ends].map(|event| event.as_fd().as_raw_fd()));
    given.extend(config.disks.iter().map(|disk| disk.file.as_raw_fd()));
    let single = [&config.serial_input, &config.serial_output, &config.control];
    given.extend(single.into_iter().flatten().map(AsRawFd::as_raw_fd));
    given.extend(config.net.iter().map(|net| match &net.backend {
        NetBackend::Passt(descriptor) | NetBackend::Tap(descriptor) => descriptor.as_raw_fd(),
    }));
    given.extend(config.ports.iter().map(|port| port.peer.as_raw_fd()));
    given.extend(config.vsock.iter().map(|vsock| vsock.listener.as_raw_fd()));
    given
}

fn kvm_of(descriptor: OwnedFd) -> Kvm {
    use std::os::fd::{FromRawFd, IntoRawFd};
    // SAFETY: the descriptor is open, and nobody else's from here on. What it belongs to answers requests it does not know
    // with an error.
    #[expect(unsafe_code, reason = "Kvm is made of a raw descriptor only")]
    unsafe {
        Kvm::from_raw_fd(descriptor.into_raw_fd())
    }
}
