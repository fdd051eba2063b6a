//! Tests that need KVM, on machines without: they run once more in the lab (`tests/lab/run`), a machine made for it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::show;

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

/// Returns a small disk that Satchel's own machine boots in moments, also in the lab; its guest writes numbers to the file
/// `records` of the ext4 on its last disk, one a line, and says `guest flushed N` of each that has to last (`lab/guest-init`).
///
/// # Panics
/// It cannot be made.
#[track_caller]
pub fn small_guest() -> SmallGuest {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("lab/build");
    let output = Command::new(script).stderr(Stdio::inherit()).output().expect("a script of ours can be run");
    assert!(output.status.success(), "the small guest cannot be made");
    let directory = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim_end());
    SmallGuest {
        disk: directory.join("guest.raw"),
        kernel: directory.join("guest-vmlinuz"),
        initrd: directory.join("guest-initrd"),
    }
}

/// What there is of the small guest.
#[derive(Clone, Debug)]
pub struct SmallGuest {
    /// A bootable disk with the other two on it.
    pub disk: PathBuf,
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initial RAM disk, which is all of its system.
    pub initrd: PathBuf,
}

/// Runs one ignored test of the calling test binary inside the lab, with this task; what it printed, which is shown as it comes.
///
/// # Panics
/// The lab cannot be started, or the test failed in it.
#[track_caller]
pub fn run_inside(test: &str, task: &str, limit: Duration) -> String {
    let mut command = command(limit);
    command.args([test, "--exact", "--ignored", "--nocapture", "--test-threads=1"]);
    run(&mut command, task)
}

/// Runs a [`command`] with this task; what it printed, which is shown as it comes.
///
/// # Panics
/// The lab cannot be started, or the program failed in it.
#[track_caller]
pub fn run(command: &mut Command, task: &str) -> String {
    let mut lab = command.env(TASK, task).stdout(Stdio::piped()).spawn().expect("the lab can be started");
    let mut said = String::new();
    let mut lines = BufReader::new(lab.stdout.take().expect("it is a pipe"));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
        let text = String::from_utf8_lossy(&line);
        show(text.trim_end());
        said.push_str(&text);
        line.clear();
    }
    let status = lab.wait().expect("a child can be waited for");
    assert!(status.success(), "in the lab, it failed with {status}");
    said
}
