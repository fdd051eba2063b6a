//! Tests that need KVM, on machines without: they run once more in the lab (`tests/lab/run`), a machine made for it.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// What a test inside is told by.
pub const TASK: &str = "SATCHEL_LAB_TASK";

/// Where the host's loopback is, seen from inside.
pub const HOST: &str = "10.0.2.2";

/// A command that runs this program once more inside the lab; arguments added to it are the program's, and it is told its task
/// by the variable [`TASK`].
pub fn command(limit: Duration) -> Command {
    let program = std::env::current_exe().expect("a program has a file");
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/run"));
    let limit_s = limit.as_secs().to_string();
    // One processor: with two, the inner machine ends in a triple fault now and then (lab/run says how often).
    command.args(["--cpus", "1", "--memory", "3072", "--env", TASK, "--timeout", &limit_s]);
    command.arg("--").arg(program);
    command
}

/// Runs one ignored test of the calling test binary inside the lab, with this task; what it printed.
///
/// # Panics
/// The lab cannot be started, or the test failed in it.
#[track_caller]
pub fn run_inside(test: &str, task: &str, limit: Duration) -> String {
    let mut command = command(limit);
    command.args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    let output = command.env(TASK, task).output().expect("the lab can be started");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "in the lab, {test} failed with {}:\n{said}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    said
}
