//! A stand-in for QEMU: a script that is found in its place, and knows what it was given.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use satchel_tests::Client;

/// A machine whose guest shuts down when it is told to: it speaks QMP on the descriptor it is given.
pub(crate) const OBEYS: &str = r#"
while read -r line <&"$control"; do
    [[ $line != *system_powerdown* ]] || exit 0
    echo '{"return": {}}' >&"$control"
done
"#;
/// Its ends of the control connection and of the serial console, and its system disk.
const TAKES_WHAT_IT_IS_GIVEN: &str = r#"#!/bin/bash
for word; do
    case $word in
        socket,id=control,fd=*) control=${word##*=} ;;
        socket,id=serial,fd=*) serial=${word##*=} ;;
        *node-name=system-file,filename=*) disk=${word#*filename=} disk=${disk%%,*} ;;
    esac
done
"#;

/// Has a command on a machine find a script in place of QEMU.
pub(crate) fn stand_in(script: &str, on: &Client, command: &mut Command) {
    let programs = on.new_directory();
    let program = programs.join("qemu-system-x86_64");
    std::fs::write(&program, format!("{TAKES_WHAT_IT_IS_GIVEN}{script}")).expect("a program can be written");
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("it can be made one");
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", programs.display()));
}
