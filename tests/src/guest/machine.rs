//! Guests in a QEMU of the test's own, to check disks and the harness itself without Satchel's machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Guest;
use crate::process::Process;
use crate::skip;
use crate::turn::Turn;

/// What a [`Machine`] is made of.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Processors.
    pub cpus: u32,
    /// Whether it has a graphics card, which a desktop needs to come up.
    pub has_graphics: bool,
    /// A file that gets a line for every read the guest asks of a disk, as QEMU's trace event `virtio_blk_handle_read`.
    pub read_log: Option<PathBuf>,
}

impl Default for MachineOptions {
    fn default() -> Self {
        Self { memory_mib: 1024, cpus: 2, has_graphics: false, read_log: None }
    }
}

/// A QEMU machine with virtio disks and a serial line; accelerated by KVM where that runs stock kernels.
#[derive(Debug)]
pub struct Machine {
    process: Process,
    guest: Guest,
    _turn: Turn,
}

impl Machine {
    /// Starts a machine with `disks`, raw files, as `/dev/vda`, `/dev/vdb` and so on. Only one runs at a time.
    pub fn start(disks: &[PathBuf], options: &MachineOptions) -> Self {
        let turn = Turn::wait("guest");
        let mut command = Command::new("qemu-system-x86_64");
        command.args([
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
            "-machine",
            "q35",
            "-serial",
            "stdio",
        ]);
        // TCG makes a processor with everything it can emulate; five-level paging among it only slows the guest.
        let acceleration =
            if skip::kvm().lack.is_none() { ["kvm", "host"] } else { ["tcg,thread=multi", "max,la57=off"] };
        command.args(["-accel", acceleration[0], "-cpu", acceleration[1]]);
        command.args(["-m", &options.memory_mib.to_string(), "-smp", &options.cpus.to_string()]);
        command.args([
            "-netdev",
            "user,id=net",
            "-device",
            "virtio-net-pci,netdev=net",
            "-device",
            "virtio-rng-pci",
        ]);
        if options.has_graphics {
            // Those that Satchel gives its machines.
            for device in ["virtio-vga", "qemu-xhci", "usb-tablet", "usb-kbd"] {
                command.args(["-device", device]);
            }
        }
        if let Some(log) = &options.read_log {
            // The guest agent's port, which Satchel's machines have: its drivers are read at a start, too.
            let port = "virtserialport,chardev=agent,name=org.qemu.guest_agent.0";
            command.args(["-chardev", "null,id=agent", "-device", "virtio-serial-pci", "-device", port]);
            command.args(["-trace", "virtio_blk_handle_read", "-D"]).arg(log);
        }
        for disk in disks {
            command.args(["-drive", &drive(disk)]);
        }
        let (process, input, output) = Process::start_with_pipes("qemu", &mut command);
        Self { process, guest: Guest::attach(output, input), _turn: turn }
    }

    /// Returns the guest in it.
    pub fn guest(&mut self) -> &mut Guest {
        &mut self.guest
    }

    /// Ends the machine as a power cut does.
    pub fn kill(mut self) {
        self.process.kill();
    }
}

/// Returns QEMU's description of a disk, whose writes are gone with the machine; a comma in a path is written twice.
fn drive(disk: &Path) -> String {
    let file = disk.display().to_string().replace(',', ",,");
    format!("file={file},format=raw,if=virtio,cache=writeback,discard=unmap,snapshot=on")
}
