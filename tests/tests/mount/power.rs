//! The power button, with a stand-in for QEMU.

use std::os::unix::fs::PermissionsExt;

use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Process, Publication, Signal, require};

use super::IMAGE_BYTES;

/// Its number, as bits of `/proc/PID/status` count from.
const SIGINT: u32 = 2;
/// A machine whose guest does not listen yet when the button is pressed first. It speaks QMP on the descriptor it is given.
const DEAF_AT_FIRST: &str = r#"#!/bin/bash
for word; do
    case $word in socket,id=control,fd=*) control=${word##*=} ;; esac
done
presses=0
while read -r line <&"$control"; do
    [[ $line != *system_powerdown* ]] || presses=$((presses + 1))
    [[ $presses -lt 2 ]] || exit 0
    echo '{"return": {}}' >&"$control"
done
"#;

#[test]
fn the_power_button_is_pressed_until_the_guest_hears_it() {
    require!(fuse);
    let published = Publication::new(84, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let programs = laptop.new_directory();
    let machine = programs.join("qemu-system-x86_64");
    std::fs::write(&machine, DEAF_AT_FIRST).expect("a program can be written");
    std::fs::set_permissions(&machine, PermissionsExt::from_mode(0o755)).expect("it can be made one");

    let mut command = laptop.command(["run", "work", "--engine", "qemu", "--display", "none", "--no-sync"]);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", programs.display()));
    let mut running = Process::start("satchel run", &mut command);
    wait::until("the machine runs, and Ctrl-C is listened for", PATIENCE, || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.id())).ok()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        let caught = u64::from_str_radix(caught.trim(), 16).ok()?;
        (caught >> (SIGINT - 1) & 1 == 1).then_some(())
    });
    running.signal(Signal::INT);
    let status = running.wait(PATIENCE);
    assert!(status.success(), "{}", running.report());
    let said = running.stderr();
    assert_eq!(said.matches("shutting").count(), 1, "it is said once: {said}");
    assert!(!said.contains("forced"), "{said}");
}
