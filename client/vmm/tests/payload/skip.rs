//! Tests that cannot run here say so, as the other suites do: on the standard error stream, and in `$SATCHEL_SKIP_LOG`.

use std::fs::OpenOptions;
use std::io::{Write, stderr};

use kvm_ioctls::Kvm;

/// KVM; `None` when this machine has none and need not have it (`SATCHEL_REQUIRE=kvm`).
pub(crate) fn kvm() -> Option<Kvm> {
    let error = match Kvm::new() {
        Ok(kvm) => return Some(kvm),
        Err(error) => error,
    };
    let required = std::env::var("SATCHEL_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name.trim() == "kvm"), "SATCHEL_REQUIRE says kvm, but: {error}");
    say(&format!("/dev/kvm cannot be opened: {error}"));
    None
}

/// Whether the processor has what KVM is made for: one that imitates it all does so in larger steps, and less well.
pub(crate) fn processor_helps() -> bool {
    let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = about.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

/// Says that the running test is skipped, and why.
pub(crate) fn say(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().filter(|name| *name != "main").map(str::to_owned);
    let test = test.or_else(|| std::env::var("NEXTEST_TEST_NAME").ok()).unwrap_or_default();
    // To the stream itself: what goes through eprintln! is only shown of tests that fail.
    let _ = writeln!(stderr().lock(), "SKIPPED satchel_vmm::{test}: {reason}");
    if let Some(log) = std::env::var_os("SATCHEL_SKIP_LOG") {
        let mut log =
            OpenOptions::new().create(true).append(true).open(log).expect("the log of skipped tests");
        log.write_all(format!("satchel_vmm::{test}\t{reason}\n").as_bytes())
            .expect("the log of skipped tests");
    }
}
