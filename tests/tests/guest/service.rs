//! The image server as a service of the system: what `make install` puts in place, started by the systemd of a real Debian, within
//! the bounds that its unit sets.

use std::path::{Path, PathBuf};
use std::process::Command;

use satchel_tests::{Client, Guest, Machine, MachineOptions, images, require};

use super::BOOT_LIMIT;

const UNIT: &str = "satchel-server";
const DIRECTORY: &str = "/var/lib/satchel-server";
/// Room for the programs and what belongs to them, bytes; a sparse file.
const DISK_BYTES: u64 = 1 << 30;

#[test]
fn the_server_runs_as_a_service_of_the_system() {
    require!(guest, image("tiny"), tool("make"), tool("mke2fs"), tool("strip"));
    let builder = Client::new("build-machine");
    let disk = installed(&builder);
    let mut machine = Machine::start(&[images::plain(), disk], &MachineOptions::default());
    let guest = machine.guest();
    guest.wait_ready(BOOT_LIMIT);
    // Owned by root, as an installation is.
    let _ = guest.run("mount -o ro /dev/vdb /mnt && cp -dR --preserve=mode,links /mnt/usr / && cp /mnt/tiny.raw /root && umount /mnt");

    // README.md, "Install".
    let _ = guest.run(&format!("systemd-sysusers && install -d -m 700 -o {UNIT} {DIRECTORY}"));
    let made = guest.run(&format!(
        "runuser -u {UNIT} -- satchel-server init {DIRECTORY} --name localhost --json 2>/dev/null"
    ));
    let made: serde_json::Value = serde_json::from_str(&made).expect("`init --json` says JSON");
    let said = |name: &str| made[name].as_str().unwrap_or_else(|| panic!("no {name} in {made}")).to_owned();
    let _ = guest.run(&format!("systemctl daemon-reload && systemctl enable --now {UNIT}"));

    // A client of it.
    let _ = guest.run(&format!(
        "until satchel login localhost:7440 --token {} --fingerprint {}; do systemctl is-active -q {UNIT} || exit; sleep 1; done",
        said("token"),
        said("fingerprint")
    ));
    let _ = guest.run("satchel publish /root/tiny.raw --image tiny && satchel create work --image tiny");
    let _ = guest.run(&format!("runuser -u {UNIT} -- satchel-server verify {DIRECTORY}"));
    let first = main_process(guest);
    let _ = guest.run(&format!("systemctl kill --signal=KILL {UNIT}"));
    let _ = guest.run(&format!("until [ $(systemctl show -P MainPID {UNIT}) -gt 0 ]; do sleep 1; done"));
    let _ = guest.run("until satchel history work; do sleep 1; done");

    // A certificate is taken up in place.
    let restarted = main_process(guest);
    let _ = guest.run(&format!("systemctl reload {UNIT}"));
    let _ = guest.run(&format!(
        "until journalctl --no-pager -u {UNIT} -o cat | grep -q 'was read again'; do sleep 1; done"
    ));
    assert_eq!(main_process(guest), restarted, "it goes on");

    // What it is held to.
    assert_ne!(restarted, first, "it was started again");
    let status = guest.run(&format!("cat /proc/{restarted}/status"));
    for held in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000"] {
        assert!(status.contains(held), "{held} is not in:\n{status}");
    }
    let _ = guest.run(&format!("systemctl stop {UNIT}"));
    assert_eq!(guest.run(&format!("systemctl show -P Result -P ActiveState {UNIT}")), "success\ninactive");
    let journal = guest.run(&format!("journalctl --no-pager -u {UNIT} -o cat"));
    assert!(!journal.contains("ERROR") && !journal.contains("WARN"), "{journal}");
    machine.kill();
}

fn main_process(guest: &mut Guest) -> String {
    guest.run(&format!("systemctl show -P MainPID {UNIT}"))
}

/// A disk with what `make install` puts in place, and a small disk to publish.
fn installed(builder: &Client) -> PathBuf {
    let tree = builder.new_directory();
    let built = PathBuf::from(builder.command(["--version"]).get_program());
    let mut make = Command::new("make");
    let path = std::env::var_os("PATH").unwrap_or_default();
    // What a `make` around this one was told is not for this one.
    make.env_clear().env("PATH", path).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    make.args([
        "install",
        &format!("PROGRAMS={}", built.parent().expect("a program lies somewhere").display()),
    ]);
    succeed(make.arg(format!("DESTDIR={}", tree.display())));
    succeed(Command::new("sh").args(["-c", "exec strip \"$0\"/usr/local/bin/*"]).arg(&tree));
    std::fs::copy(images::tiny(), tree.join("tiny.raw")).expect("the small disk can be copied");
    let disk = builder.new_directory().join("installed.raw");
    let file = std::fs::File::create(&disk).expect("a file can be made");
    file.set_len(DISK_BYTES).expect("it can have holes");
    succeed(Command::new("mke2fs").args(["-q", "-F", "-t", "ext4", "-d"]).args([&tree, &disk] as [&Path; 2]));
    disk
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
