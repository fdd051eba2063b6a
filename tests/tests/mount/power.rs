//! The power button, with a stand-in for QEMU.

use std::os::unix::fs::PermissionsExt;

use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Client, Process, Publication, Signal, require};

use super::IMAGE_BYTES;

/// Its number, as bits of `/proc/PID/status` count from.
const SIGINT: u32 = 2;

/// Machines that speak QMP on the descriptor they are given. One whose guest does not listen yet when the button is pressed
/// first, and one that hangs once it runs.
const DEAF_AT_FIRST: &str = r#"
presses=0
while read -r line <&"$control"; do
    [[ $line != *system_powerdown* ]] || presses=$((presses + 1))
    [[ $presses -lt 2 ]] || exit 0
    echo '{"return": {}}' >&"$control"
done
"#;
const HANGS: &str = r#"
read -r line <&"$control"
echo '{"return": {}}' >&"$control"
exec sleep infinity
"#;
const TAKES_ITS_DESCRIPTOR: &str = r#"#!/bin/bash
for word; do
    case $word in socket,id=control,fd=*) control=${word##*=} ;; esac
done
"#;

/// Runs a desktop in a stand-in for QEMU, until Ctrl-C is listened for.
fn run_in(machine: &str, laptop: &Client) -> Process {
    let programs = laptop.new_directory();
    let program = programs.join("qemu-system-x86_64");
    std::fs::write(&program, format!("{TAKES_ITS_DESCRIPTOR}{machine}")).expect("a program can be written");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("it can be made one");
    let mut command = laptop.command(["run", "work", "--engine", "qemu", "--display", "none", "--no-sync"]);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", programs.display()));
    let running = Process::start("satchel run", &mut command);
    wait::until("the machine runs, and Ctrl-C is listened for", PATIENCE, || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.id())).ok()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        let caught = u64::from_str_radix(caught.trim(), 16).ok()?;
        (caught >> (SIGINT - 1) & 1 == 1).then_some(())
    });
    running
}

#[test]
fn the_power_button_is_pressed_until_the_guest_hears_it() {
    require!(fuse);
    let published = Publication::new(84, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mut running = run_in(DEAF_AT_FIRST, &laptop);
    running.signal(Signal::INT);
    let status = running.wait(PATIENCE);
    assert!(status.success(), "{}", running.report());
    let said = running.stderr();
    assert_eq!(said.matches("shutting the machine down").count(), 1, "it is said once: {said}");
    assert!(!said.contains("switching the machine off"), "{said}");
}

#[test]
fn a_host_that_shuts_down_lets_the_guest_do_so_too() {
    require!(fuse);
    let published = Publication::new(87, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mut running = run_in(DEAF_AT_FIRST, &laptop);
    // As the end of a session does it, once more even.
    running.signal(Signal::TERM);
    wait::until("the button is pressed", PATIENCE, || {
        running.stderr().contains("shutting the machine down").then_some(())
    });
    running.signal(Signal::HUP);
    running.signal(Signal::TERM);
    let status = running.wait(PATIENCE);
    assert!(status.success(), "{}", running.report());
    let said = running.stderr();
    assert!(!said.contains("switching the machine off"), "{said}");
}

#[test]
fn a_machine_that_answers_nothing_any_more_can_be_switched_off() {
    require!(fuse);
    let published = Publication::new(85, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mut running = run_in(HANGS, &laptop);
    running.signal(Signal::INT);
    wait::until("the button is pressed", PATIENCE, || {
        running.stderr().contains("shutting the machine down").then_some(())
    });
    running.signal(Signal::INT);
    let status = running.wait(PATIENCE);
    assert!(status.success(), "{}", running.report());
    let said = running.stderr();
    assert!(said.contains("switching the machine off"), "{said}");
    // Its disks are whole, and nobody has them.
    published.content.assert_in(&laptop.mount("work").system());
}
