//! What is left when parts of a running desktop are killed.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Client, RunOptions, Turn, child, require};

use super::BOOT_LIMIT;
use super::server::{DebianServer, emulated};

/// Replays the journal of a copied file system, as mounting it would, and then finds nothing wrong with it.
#[track_caller]
pub(super) fn assert_sound(file_system: &Path) {
    let place = file_system.display();
    let check = |arguments: &[&str]| {
        let output =
            Command::new("e2fsck").args(arguments).arg(file_system).output().expect("e2fsck can be run");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let (code, said) = check(&["-y", "-E", "journal_only"]);
    assert!(code.is_some_and(|code| code <= 1), "the journal of {place} cannot be replayed:\n{said}");
    let (code, said) = check(&["-f", "-n"]);
    assert_eq!(code, Some(0), "{place} is damaged after its journal was replayed:\n{said}");
}

/// Where the last partition of a GPT begins, bytes.
fn root_offset(disk: &Path) -> u64 {
    let disk = fs::File::open(disk).expect("the disk can be opened");
    let mut table = [0; 4 * 128];
    disk.read_exact_at(&mut table, 1024).expect("the disk can be read");
    let starts =
        table.chunks(128).map(|entry| u64::from_le_bytes(entry[32..40].try_into().expect("eight bytes")));
    starts.max().expect("there are partitions") * 512
}

/// A copy of a mounted disk from an offset on, with holes for its zeros.
pub(super) fn copy(machine: &Client, disk: &Path, offset: u64) -> PathBuf {
    let copy = machine.directory().join("copy.raw");
    let mut dd = Command::new("dd");
    dd.args(["bs=1M", "iflag=skip_bytes", "conv=sparse", "status=none"]).arg(format!("skip={offset}"));
    dd.arg(joined("if=", disk)).arg(joined("of=", &copy));
    assert!(dd.status().expect("dd can be run").success());
    copy
}

fn joined(word: &str, path: &Path) -> OsString {
    let mut joined = OsString::from(word);
    joined.push(path);
    joined
}

#[test]
fn a_guest_whose_disks_die_loses_nothing_it_had_flushed() {
    require!(fuse, guest);
    let debian = DebianServer::start();
    let laptop = Client::new("laptop");
    laptop.login(&debian.server.access("alice", "user"));
    laptop.create("work", "debian", Some("1G"));
    let turn = Turn::wait("guest");

    let mut running = laptop.run("work", &emulated());
    running.guest().wait_ready(BOOT_LIMIT);
    let written = running
        .guest()
        .run("head -c 5000000 /dev/urandom >/home/user/flushed && sync && sha256sum </home/user/flushed");
    // And under way: files that come and go, flushed by nobody.
    running
        .guest()
        .type_line("for n in $(seq 1000); do head -c 50000 /dev/urandom >/home/user/n$((n % 7)); done &");
    let mount = child(running.process().id(), "mount").expect("the run has a process that serves the disks");
    rustix::process::kill_process(mount, rustix::process::Signal::KILL).expect("it is there");
    let status = running.process().wait(PATIENCE);
    assert_eq!(status.code(), Some(1), "{}", running.process().report());
    let said = running.process().stderr();
    let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(
        errors,
        [
            "error: the process that serves the disks ended (signal: 9 (SIGKILL)); the machine was stopped. What it had flushed is safe"
        ],
        "{said}"
    );
    drop(running);

    let disks = laptop.mount("work");
    let home = copy(&laptop, &disks.home(), 0);
    assert_sound(&home);
    let system = copy(&laptop, &disks.system(), root_offset(&disks.system()));
    assert_sound(&system);
    fs::remove_file(&system).expect("a file of the test's own");
    disks.unmount();

    // The next start finds it, and keeps it here when told not to sync.
    let mut running = laptop.run("work", &RunOptions { syncs: false, ..emulated() });
    running.guest().wait_ready(BOOT_LIMIT);
    assert_eq!(running.guest().run("sha256sum </home/user/flushed"), written);
    let console = running.shut_down(BOOT_LIMIT);
    assert!(!console.contains("synced work"), "it synced though it was told not to");
    assert_eq!(laptop.history("work").as_array().map(Vec::len), Some(1));
    assert!(laptop.status("work")["unsynced_bytes"].as_u64().is_some_and(|bytes| bytes > 5_000_000));
    drop(turn);
    let said = laptop.sync("work").stdout;
    assert!(said.contains("version 2"), "{said}");
    debian.server.verify();
}

#[test]
fn nothing_is_left_running_when_the_run_itself_is_killed() {
    require!(fuse, guest);
    let debian = DebianServer::start();
    let laptop = Client::new("laptop");
    laptop.login(&debian.server.access("alice", "user"));
    laptop.create("work", "debian", Some("1G"));
    let _turn = Turn::wait("guest");
    let mut running = laptop.run("work", &emulated());
    let run = running.process().id();
    let qemu = wait::until("the machine has started", BOOT_LIMIT, || child(run, "qemu-system-x86_64"));
    let mount = child(run, "mount").expect("the run has a process that serves the disks");
    let run = rustix::process::Pid::from_raw(i32::try_from(run).expect("an id")).expect("an id");
    rustix::process::kill_process(run, rustix::process::Signal::KILL).expect("it is there");
    for (name, process) in [("QEMU", qemu), ("the mount", mount)] {
        wait::until(&format!("{name} has ended"), PATIENCE, || {
            rustix::process::test_kill_process(process).err()
        });
    }
    drop(running);
    // The desktop is free, and the disks are where they were.
    laptop.mount("work").unmount();
}
