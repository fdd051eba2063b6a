//! QEMU as the engine: how it is started.

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use chunk_format::Firmware;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::process::{Child, Command};

use super::agent::PORT;
use super::child::die_only_with_parent;
use super::{Display, EngineError, Machine, find_program, kvm_works};

const PROGRAM: &str = "qemu-system-x86_64";
const FIRMWARE_DIR: &str = "/usr/share/OVMF";
/// UEFI firmware and the settings it begins with, the preferred one first.
const FIRMWARES: [(&str, &str); 2] =
    [("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"), ("OVMF_CODE.fd", "OVMF_VARS.fd")];

/// A QEMU that was started, with its connections.
pub struct Running {
    /// The process.
    pub process: Child,
    /// Its control protocol (QMP).
    pub control: UnixStream,
    /// The machine's serial console.
    pub serial: UnixStream,
    /// The port of the guest's agent.
    pub agent: UnixStream,
    /// Whether the processor runs the machine itself, or QEMU imitates one.
    pub accelerated: bool,
}

/// Starts QEMU on a machine's disks. It ends when the machine is switched off.
///
/// # Errors
/// [`EngineError`].
pub fn start(machine: &Machine) -> Result<Running, EngineError> {
    let program = find_program(PROGRAM)
        .ok_or(EngineError::NotInstalled { program: PROGRAM, package: "qemu-system-x86" })?;
    if machine.display == Display::Window && !has_window(&program) {
        return Err(EngineError::NoWindow);
    }
    let accelerated = kvm_works();
    let (control, qemu_control) = connection()?;
    let (serial, qemu_serial) = connection()?;
    let (agent, qemu_agent) = connection()?;
    let mut command = Command::new(&program);
    let ends = Ends {
        control: qemu_control.as_raw_fd(),
        serial: qemu_serial.as_raw_fd(),
        agent: qemu_agent.as_raw_fd(),
    };
    command.args(arguments(machine, accelerated, &ends)?);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // Its own process group: a Ctrl-C in the terminal is ours to handle.
    die_only_with_parent(command.process_group(0).kill_on_drop(true).as_std_mut());
    let process = command
        .spawn()
        .map_err(|source| EngineError::Start { program: program.display().to_string(), source })?;
    Ok(Running { process, control, serial, agent, accelerated })
}

/// Both ends of a connection; the second is inherited by the process started next, so it must be dropped after.
fn connection() -> Result<(UnixStream, OwnedFd), EngineError> {
    let pair = || -> std::io::Result<(UnixStream, OwnedFd)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::empty(), None)?;
        rustix::io::fcntl_setfd(&ours, rustix::io::FdFlags::CLOEXEC)?;
        let ours = UnixStream::from(ours);
        ours.set_nonblocking(true)?;
        Ok((ours, theirs))
    };
    pair().map_err(EngineError::Connection)
}

fn has_window(program: &Path) -> bool {
    std::process::Command::new(program)
        .args(["-display", "help"])
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).lines().any(|line| line.trim() == "gtk"))
}

/// QEMU's ends of its connections, as the numbers of descriptors it inherits.
struct Ends {
    control: i32,
    serial: i32,
    agent: i32,
}

fn arguments(machine: &Machine, accelerated: bool, ends: &Ends) -> Result<Vec<String>, EngineError> {
    let Ends { control, serial, agent } = ends;
    let mut args: Vec<String> = Vec::new();
    let mut add = |flag: &str, value: String| args.extend([flag.to_owned(), value]);
    add("-name", format!("{},process=satchel-{}", escape(&machine.name), escape(&machine.name)));
    // The machine is the guest's; QEMU itself needs no other program, user or setting.
    add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned());
    add("-machine", if accelerated { "q35,accel=kvm" } else { "q35,accel=tcg" }.to_owned());
    add("-cpu", if accelerated { "host" } else { "max" }.to_owned());
    add("-smp", machine.cpus.to_string());
    add("-m", format!("{}M", machine.memory_mib));
    add("-rtc", "base=utc".to_owned());
    if machine.firmware == Firmware::Uefi {
        let (code, settings) = uefi(machine)?;
        add("-drive", format!("if=pflash,unit=0,format=raw,readonly=on,file={}", escape_path(code)));
        add("-drive", format!("if=pflash,unit=1,format=raw,file={}", escape_path(settings)));
    }
    let disks = [("system", Some(&machine.system)), ("home", machine.home.as_ref())];
    for (at, (name, path)) in disks.into_iter().enumerate() {
        let Some(path) = path else { continue };
        add(
            "-blockdev",
            format!(
                "driver=file,node-name={name}-file,filename={},cache.direct=on,aio=threads,discard=unmap",
                escape_path(path)
            ),
        );
        add(
            "-blockdev",
            format!("driver=raw,node-name={name},file={name}-file,cache.direct=on,discard=unmap"),
        );
        // A disk that cannot answer stops the machine; its file system never sees an error.
        add(
            "-device",
            format!(
                "virtio-blk-pci,drive={name},serial={name},bootindex={at},rerror=stop,werror=stop,\
                 discard=on,write-cache=on"
            ),
        );
    }
    add("-netdev", "user,id=net".to_owned());
    add("-device", "virtio-net-pci,netdev=net".to_owned());
    add("-device", "virtio-rng-pci".to_owned());
    add("-chardev", format!("socket,id=control,fd={control}"));
    add("-mon", "chardev=control,mode=control".to_owned());
    add("-chardev", format!("socket,id=serial,fd={serial}"));
    add("-serial", "chardev:serial".to_owned());
    add("-chardev", format!("socket,id=agent,fd={agent}"));
    add("-device", "virtio-serial-pci".to_owned());
    add("-device", format!("virtserialport,chardev=agent,name={PORT}"));
    match machine.display {
        Display::None => add("-display", "none".to_owned()),
        Display::Window => add("-display", "gtk".to_owned()),
        Display::Vnc => {
            add("-display", "none".to_owned());
            add("-vnc", "127.0.0.1:0,to=99,password=on".to_owned());
        }
    }
    if machine.display != Display::None {
        add("-device", "virtio-vga".to_owned());
        add("-device", "qemu-xhci".to_owned());
        // Absolute positions: the pointer is where the person's is.
        add("-device", "usb-tablet".to_owned());
        add("-device", "usb-kbd".to_owned());
    }
    args.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
    Ok(args)
}

/// The UEFI firmware and the machine's own copy of its settings.
fn uefi(machine: &Machine) -> Result<(PathBuf, &Path), EngineError> {
    let dir = Path::new(FIRMWARE_DIR);
    let found = FIRMWARES.iter().find(|(code, _)| dir.join(code).exists());
    let (code, fresh) = found.ok_or_else(|| EngineError::NoUefi { searched: dir.to_owned() })?;
    prepare_settings(&dir.join(fresh), &machine.settings)
        .map_err(|source| EngineError::Prepare { path: machine.settings.clone(), source })?;
    Ok((dir.join(code), &machine.settings))
}

/// Copies the settings that a firmware begins with, unless they are there. Under their name there are whole ones only: QEMU takes
/// no others.
fn prepare_settings(fresh: &Path, settings: &Path) -> std::io::Result<()> {
    let is_whole = |found: std::fs::Metadata| Ok(found.len() == std::fs::metadata(fresh)?.len());
    if std::fs::metadata(settings).and_then(is_whole).unwrap_or(false) {
        return Ok(());
    }
    let unfinished = settings.with_extension("new");
    std::fs::copy(fresh, &unfinished)?;
    std::fs::File::open(&unfinished)?.sync_all()?;
    std::fs::rename(&unfinished, settings)
}

/// QEMU's option parser takes a doubled comma for a comma.
fn escape(text: &str) -> String {
    text.replace(',', ",,")
}

fn escape_path(path: impl AsRef<Path>) -> String {
    escape(&path.as_ref().to_string_lossy())
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").field("process", &self.process.id()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_were_cut_short_are_replaced_and_whole_ones_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (fresh, settings) = (dir.path().join("fresh"), dir.path().join("settings.fd"));
        std::fs::write(&fresh, [7; 4096]).unwrap();
        for cut in [&[][..], &[8; 4095]] {
            std::fs::write(&settings, cut).unwrap();
            prepare_settings(&fresh, &settings).unwrap();
            assert_eq!(std::fs::read(&settings).unwrap(), [7; 4096]);
        }
        std::fs::write(&settings, [8; 4096]).unwrap();
        prepare_settings(&fresh, &settings).unwrap();
        assert_eq!(std::fs::read(&settings).unwrap(), [8; 4096]);
    }

    #[test]
    fn disks_stop_the_machine_rather_than_fail_and_odd_paths_are_quoted() {
        let machine = Machine {
            name: "work".to_owned(),
            system: "/a,b/system.raw".into(),
            home: Some("/a,b/home.raw".into()),
            firmware: Firmware::Bios,
            settings: "/nowhere".into(),
            directory: "/nowhere".into(),
            memory_mib: 512,
            cpus: 2,
            display: Display::None,
        };
        let ends = Ends { control: 8, serial: 9, agent: 10 };
        let args = arguments(&machine, false, &ends).unwrap();
        let disks: Vec<&String> = args.iter().filter(|arg| arg.starts_with("virtio-blk")).collect();
        assert_eq!(disks.len(), 2);
        assert!(disks.iter().all(|disk| disk.contains("rerror=stop,werror=stop")));
        assert!(args.iter().any(|arg| arg.contains("filename=/a,,b/home.raw,")));
        assert!(args.iter().any(|arg| arg == "socket,id=control,fd=8"));
        assert!(args.iter().any(|arg| arg == "socket,id=agent,fd=10"));
        assert!(args.iter().any(|arg| arg == "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"));
        let without_home = arguments(&Machine { home: None, ..machine }, true, &ends).unwrap();
        assert!(!without_home.iter().any(|arg| arg.contains("home")));
        assert!(without_home.iter().any(|arg| arg == "q35,accel=kvm"));
    }
}
