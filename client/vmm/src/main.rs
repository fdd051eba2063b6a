//! `satchel-vmm`: runs one machine, or tells what a disk would boot.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use satchel_vmm::boot;
use satchel_vmm::control::server::Socket;
use satchel_vmm::event::Event;
use satchel_vmm::launch::{self, DiskConfig, LaunchConfig, NetBackend, NetConfig, VsockConfig};
use satchel_vmm::machine::End;
use satchel_vmm::machine::cpuid::CpuModel;
use satchel_vmm::sandbox::{self, Mode};
use satchel_vmm::virtio::console::{Peer, Port};

mod exit;
mod terminal;

/// Boot a Linux disk in a KVM machine. `satchel run` starts this program; by hand it is for tests and repairs
#[derive(Parser)]
#[command(name = "satchel-vmm", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    Run(Box<RunArgs>),
    BootInfo(BootInfoArgs),
}

/// Run a machine until it is switched off. Exits with 0 when it was, with 3 when it wants to be started again, with 4 when the
/// disk boots nothing this machine can start, with 5 when it cannot be made, the disk cannot be read or the search for what to boot was
/// given up and no guest has run, else with 1
#[derive(Args)]
struct RunArgs {
    /// A disk: PATH, or a list of path=PATH or fd=N, id=NAME, read-only, served (as `satchel mount` serves it); the first one boots
    #[arg(long, required = true, value_name = "DISK")]
    disk: Vec<DiskArg>,
    /// Memory, in MiB
    #[arg(long, default_value_t = 512, value_name = "MIB", value_parser = clap::value_parser!(u64).range(128..=1 << 20))]
    memory: u64,
    /// Processors, 1 to 16
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    cpus: u8,
    /// What processors the guest sees: host, x86-64-v2 or x86-64-v3
    #[arg(long, default_value_t, value_name = "MODEL")]
    cpu: CpuModel,
    /// Words added to the kernel's command line
    #[arg(long, value_name = "WORDS")]
    append: Option<String>,
    /// The serial line: stdio, none, or fd=N of a connected socket
    #[arg(long, default_value = "stdio", value_name = "LINE")]
    serial: SerialArg,
    /// The network: passt=fd=N of passt's socket, or of one that listens, to which one passt after the other may be connected;
    /// tap=fd=N; with mac=XX:XX:XX:XX:XX:XX after a comma to choose the address
    #[arg(long, value_name = "NETWORK")]
    net: Option<NetArg>,
    /// A port the guest sees by its name, such as org.qemu.guest_agent.0: NAME=SOCKET, a path or fd=N
    #[arg(long, value_name = "NAME=SOCKET")]
    port: Vec<String>,
    /// Keep the memory that the guest does without, instead of giving it back to the host
    #[arg(long)]
    no_balloon: bool,
    /// Sockets between guest and host: CID=SOCKET; who connects there and says `CONNECT PORT` reaches that port of the guest
    #[arg(long, value_name = "CID=SOCKET")]
    vsock: Option<String>,
    /// Where to answer whoever runs the machine: a path for a socket, or fd=N of one
    #[arg(long, value_name = "SOCKET")]
    control: Option<String>,
    /// The KVM device: its path, or fd=N
    #[arg(long, default_value = "/dev/kvm", value_name = "DEVICE")]
    kvm: String,
    /// System calls that are not allowed: enforce ends the machine, log only notes them, off confines nothing
    #[arg(long, default_value = "enforce", value_name = "MODE")]
    sandbox: Mode,
}

/// Print what a disk would boot, and start nothing
#[derive(Args)]
struct BootInfoArgs {
    /// The disk
    disk: PathBuf,
    /// Print one JSON value
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug)]
struct DiskArg {
    at: String,
    id: Option<String>,
    read_only: bool,
    served: bool,
}

impl std::str::FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_list = ["path=", "fd=", "id=", "read-only", "served"].iter().any(|key| text.starts_with(key));
        if !is_list {
            return Ok(DiskArg { at: text.to_owned(), id: None, read_only: false, served: false });
        }
        let (mut at, mut id, mut read_only, mut served) = (None, None, false, false);
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("path", path)) => at = Some(path.to_owned()),
                Some(("fd", _)) => at = Some(part.to_owned()),
                Some(("id", name)) => id = Some(name.to_owned()),
                None if part == "read-only" => read_only = true,
                None if part == "served" => served = true,
                _ => return Err(format!("`{part}` is none of path=PATH, fd=N, id=NAME, read-only, served")),
            }
        }
        let at = at.ok_or("it names neither path=PATH nor fd=N")?;
        Ok(DiskArg { at, id, read_only, served })
    }
}

#[derive(Clone, Debug)]
enum SerialArg {
    Stdio,
    None,
    Descriptor(RawFd),
}

impl std::str::FromStr for SerialArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "stdio" => Ok(SerialArg::Stdio),
            "none" => Ok(SerialArg::None),
            _ => match descriptor_number(text) {
                Some(number) => Ok(SerialArg::Descriptor(number)),
                None => Err("it is none of stdio, none, fd=N".to_owned()),
            },
        }
    }
}

#[derive(Clone, Debug)]
struct NetArg {
    is_tap: bool,
    descriptor: RawFd,
    mac: [u8; 6],
}

/// A locally administered address; each machine is alone on its network.
const DEFAULT_MAC: [u8; 6] = [0x02, 0x5a, 0x7c, 0x4e, 0x1a, 0x01];

impl std::str::FromStr for NetArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (backend, mac) = match text.split_once(",mac=") {
            Some((backend, mac)) => (backend, parse_mac(mac).ok_or("the address is not XX:XX:XX:XX:XX:XX")?),
            None => (text, DEFAULT_MAC),
        };
        let (is_tap, at) = match backend.split_once('=') {
            Some(("passt", at)) => (false, at),
            Some(("tap", at)) => (true, at),
            _ => return Err("it is neither passt=fd=N nor tap=fd=N".to_owned()),
        };
        let descriptor = descriptor_number(at).ok_or("it names no descriptor")?;
        Ok(NetArg { is_tap, descriptor, mac })
    }
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    bytes?.try_into().ok()
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = std::env::var("SATCHEL_VMM_LOG").unwrap_or_else(|_| "warn".to_owned());
    // What a guest does to a queue is for whoever debugs that guest: it could fill a log.
    let filter = format!("{filter},virtio_queue=off");
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(std::io::stderr)
        // Whoever read what is said may be gone, and a thread that fails to say so would panic.
        .log_internal_errors(false)
        .with_target(false)
        .without_time()
        .init();
    let done = match cli.command {
        Action::Run(args) => run(*args),
        Action::BootInfo(args) => boot_info(&args),
    };
    done.unwrap_or_else(|error| {
        exit::report(&error);
        exit::status_of(&error).into()
    })
}

fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let (config, terminal) = machine(args).map_err(exit::NotToBeHad)?;
    let ended = launch::run(config);
    drop(terminal);
    Ok(match ended? {
        End::PoweredOff | End::Forced => ExitCode::SUCCESS,
        End::Reset => ExitCode::from(exit::RESET),
        End::TripleFault { processor } => {
            bail!(
                "the guest drove processor {processor} into a state it does not get out of (a triple fault)"
            )
        }
        End::Failed { reason } => bail!("the machine cannot go on: {reason}"),
    })
}

/// What a machine is made of, and the terminal that is its serial line, if one is.
fn machine(args: RunArgs) -> anyhow::Result<(LaunchConfig, Option<terminal::Raw>)> {
    let mut disks = Vec::new();
    for (number, disk) in args.disk.iter().enumerate() {
        let file = match descriptor(&disk.at)? {
            Some(descriptor) => File::from(descriptor),
            None => File::options()
                .read(true)
                .write(!disk.read_only)
                .open(&disk.at)
                .with_context(|| format!("cannot open {}", disk.at))?,
        };
        let id = disk.id.clone().unwrap_or_else(|| format!("disk{number}"));
        disks.push(DiskConfig { id, file, read_only: disk.read_only, served: disk.served });
    }
    let kvm = match descriptor(&args.kvm)? {
        Some(descriptor) => descriptor,
        None => File::options()
            .read(true)
            .write(true)
            .open(&args.kvm)
            .with_context(|| {
                format!(
                    "cannot open {}: this needs a processor that virtualizes, and the group kvm",
                    args.kvm
                )
            })?
            .into(),
    };
    let control = args.control.as_deref().map(socket).transpose()?;
    let mut ports = Vec::new();
    for port in &args.port {
        let (name, at) = port.split_once('=').with_context(|| format!("`{port}` is not NAME=SOCKET"))?;
        let peer = match Socket::from_descriptor(socket(at)?)? {
            Socket::Listener(listener) => Peer::Listening(listener.into()),
            Socket::Stream(stream) => Peer::Connected(stream.into()),
        };
        ports.push(Port { name: name.to_owned(), peer });
    }
    let vsock = match &args.vsock {
        Some(vsock) => {
            let (cid, at) = vsock.split_once('=').with_context(|| format!("`{vsock}` is not CID=SOCKET"))?;
            let cid = cid.parse().with_context(|| format!("`{cid}` is no context identifier"))?;
            Some(VsockConfig { cid, listener: socket(at)?.into() })
        }
        None => None,
    };
    let net = match &args.net {
        Some(net) => {
            let descriptor = take_descriptor(net.descriptor)?;
            let backend =
                if net.is_tap { NetBackend::Tap(descriptor) } else { NetBackend::Passt(descriptor) };
            Some(NetConfig { backend, mac: net.mac })
        }
        None => None,
    };
    let mut terminal = None;
    let (serial_input, serial_output) = match args.serial {
        SerialArg::None => (None, None),
        SerialArg::Stdio => {
            terminal = terminal::Raw::enter().context("cannot set up the terminal")?;
            let copy = |descriptor: BorrowedFd<'_>| descriptor.try_clone_to_owned();
            (Some(copy(std::io::stdin().as_fd())?), Some(copy(std::io::stdout().as_fd())?))
        }
        SerialArg::Descriptor(number) => {
            let socket = take_descriptor(number)?;
            (Some(socket.try_clone()?), Some(socket))
        }
    };
    let (interrupt, host_ends) = (Arc::new(Event::new()?), Arc::new(Event::new()?));
    watch_for(signal_hook::consts::SIGINT, &interrupt)?;
    // A session that ends sends both, one right after the other.
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGHUP] {
        watch_for(signal, &host_ends)?;
    }
    let config = LaunchConfig {
        kvm,
        disks,
        memory_bytes: args.memory.saturating_mul(1 << 20),
        processors: args.cpus,
        cpu_model: args.cpu,
        append: args.append,
        serial_input,
        serial_output,
        net,
        ports,
        balloon: !args.no_balloon,
        vsock,
        control,
        interrupt,
        host_ends,
        sandbox: args.sandbox,
    };
    Ok((config, terminal))
}

/// Has a signal signal an event.
fn watch_for(signal: i32, event: &Arc<Event>) -> anyhow::Result<()> {
    // The same descriptor, not another one: those that nobody told of are closed.
    let event = Arc::clone(event);
    // SAFETY: all it does is to write to an event, which is async-signal-safe, and it does not panic.
    #[expect(unsafe_code, reason = "what runs in a signal handler is for the program to vouch for")]
    let registered = unsafe { signal_hook::low_level::register(signal, move || event.signal()) };
    registered.context("cannot watch for signals")?;
    Ok(())
}

#[expect(clippy::print_stdout, reason = "what was asked for is data")]
fn boot_info(args: &BootInfoArgs) -> anyhow::Result<ExitCode> {
    let disk = File::open(&args.disk).with_context(|| format!("cannot open {}", args.disk.display()));
    let disk = disk.map_err(exit::NotToBeHad)?;
    // What is on it may be anybody's: as when it boots, nothing else is within reach.
    sandbox::close_others(&[disk.as_raw_fd()])?;
    sandbox::confine_process(Mode::Enforce)?;
    let plan = boot::find(Arc::new(disk))?;
    if args.json {
        let info = serde_json::json!({
            "origin": plan.origin,
            "command_line": plan.command_line,
            "kernel_bytes": plan.kernel.len(),
            "initrd_bytes": plan.initrd.as_ref().map(Vec::len),
        });
        println!("{info}");
    } else {
        println!("{}\ncommand line: {}", plan.origin, plan.command_line);
    }
    Ok(ExitCode::SUCCESS)
}

/// A socket that was given, or one made at a path.
fn socket(at: &str) -> anyhow::Result<OwnedFd> {
    Ok(match descriptor(at)? {
        Some(descriptor) => descriptor,
        None => {
            // For its owner alone: who speaks to it commands the machine.
            let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
            let bound = UnixListener::bind(at);
            rustix::process::umask(before);
            bound.with_context(|| format!("cannot make the socket {at}"))?.into()
        }
    })
}

fn descriptor_number(text: &str) -> Option<RawFd> {
    text.strip_prefix("fd=")?.parse().ok().filter(|number| *number >= 0)
}

/// The descriptor that `fd=N` names; none when the text names something else.
fn descriptor(text: &str) -> anyhow::Result<Option<OwnedFd>> {
    match (descriptor_number(text), text.starts_with("fd=")) {
        (Some(number), _) => take_descriptor(number).map(Some),
        (None, true) => bail!("`{text}` names no descriptor"),
        (None, false) => Ok(None),
    }
}

fn take_descriptor(number: RawFd) -> anyhow::Result<OwnedFd> {
    if !std::fs::exists(format!("/proc/self/fd/{number}")).unwrap_or(false) {
        bail!("descriptor {number} was not given to this program");
    }
    // SAFETY: it is open, and nothing here closes a descriptor that was given before all of them are taken.
    #[expect(unsafe_code, reason = "descriptors are given by number")]
    let given = unsafe { BorrowedFd::borrow_raw(number) };
    // One of our own, for a number may be named twice. What was given is closed with all else that nobody needs.
    given.try_clone_to_owned().with_context(|| format!("cannot use descriptor {number}"))
}
