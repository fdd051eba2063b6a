//! What the program exits with, as its help says.
#![cfg(feature = "program")]

use std::path::Path;
use std::process::{Command, Stdio};

/// The status, and what was said.
fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_satchel-vmm"));
    let output = command.args(arguments).stdin(Stdio::null()).output().expect("it can be run");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_cannot_be_had_is_told_from_a_guest_that_failed() {
    let directory = tempfile::tempdir().unwrap();
    let there = directory.path().join("disk");
    std::fs::write(&there, [0; 4096]).unwrap();
    let absent = directory.path().join("absent");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (there, absent) = (text(&there), text(&absent));
    let cases = [
        (vec!["run", "--disk", &absent], 5, "absent: No such file"),
        (vec!["boot-info", &absent], 5, "absent: No such file"),
        (vec!["run", "--disk", "fd=99"], 5, "descriptor 99 was not given"),
        (vec!["run", "--disk", &there, "--kvm", &absent], 5, "absent: this needs a processor"),
        (vec!["boot-info", &there], 4, ""),
        (vec!["run"], 2, "--disk"),
    ];
    for (arguments, expected, says) in cases {
        let (code, said) = run(&arguments);
        assert_eq!(code, Some(expected), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
}
