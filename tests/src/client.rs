//! The real client, as the machines people carry their desktops between.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::guest::Guest;
use crate::process::{Process, Signal, forget_mount, remember_mount, tail};
use crate::programs;
use crate::server::Access;
use crate::wait;

/// How long a mount may take to appear or go, and a machine to end: there may be work to finish.
const MOUNT_LIMIT: Duration = Duration::from_secs(120);

/// What a program that has ended said.
#[derive(Clone, Debug)]
#[must_use = "a program may have failed"]
pub struct Output {
    /// What was run, for failure messages.
    pub command: String,
    /// The exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Runs `command` to its end, with an empty standard input.
    #[track_caller]
    pub fn of(command: &mut Command) -> Self {
        let name = Path::new(command.get_program()).file_name().unwrap_or_default().to_os_string();
        let words = std::iter::once(name.as_os_str()).chain(command.get_args());
        let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let output = command
            .stdin(Stdio::null())
            .output()
            .unwrap_or_else(|error| panic!("cannot run `{line}`: {error}"));
        Self {
            command: line,
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Checks that it succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exited(0)
    }

    /// Checks its exit code: 0 done, 1 failed, 2 bad usage.
    #[track_caller]
    pub fn exited(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "`{}`: wrong exit code\n--- stdout, its end:\n{}\n--- stderr, its end:\n{}",
            self.command,
            tail(&self.stdout),
            tail(&self.stderr)
        );
        self
    }

    /// Reads standard output as the one JSON value that `--json` promises.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| {
            panic!("`{}` did not print one JSON value: {error}\n{}", self.command, self.stdout)
        })
    }
}

/// One machine with Satchel on it: a state directory, and a home that has nothing else.
#[derive(Debug)]
pub struct Client {
    name: String,
    directory: TempDir,
    state: PathBuf,
}

impl Client {
    /// Sets up a new machine, called `name` in reports.
    pub fn new(name: &str) -> Self {
        let directory = tempfile::Builder::new().prefix(&format!("satchel-{name}-")).tempdir();
        let directory = directory.expect("a temporary directory can be made");
        let state = directory.path().join("state");
        Self { name: name.to_owned(), directory, state }
    }

    /// Sets up a new machine that keeps its state in a directory of the caller's, on a small disk for example.
    pub fn with_state(name: &str, state: &Path) -> Self {
        Self { state: state.to_owned(), ..Self::new(name) }
    }

    /// Returns the machine's state directory.
    pub fn state(&self) -> PathBuf {
        self.state.clone()
    }

    /// Returns the directory of the machine's own that everything of it is in: its state, its home, its mounts.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the directory that has what this machine knows of a desktop.
    pub fn desktop_directory(&self, desktop: &str) -> PathBuf {
        self.state.join("desktops").join(desktop)
    }

    /// Makes the command `satchel --state DIR ARGUMENTS`, which sees nothing of the real machine's settings.
    #[track_caller]
    pub fn command(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Command {
        let mut command = programs::hermetic(&programs::path("satchel"), self.directory.path());
        command.arg("--state").arg(&self.state).args(arguments);
        command
    }

    /// Runs `satchel ARGUMENTS` to its end.
    #[track_caller]
    pub fn satchel(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        Output::of(&mut self.command(arguments))
    }

    /// Starts `satchel ARGUMENTS` and lets it run.
    #[track_caller]
    pub fn start(&self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Process {
        Process::start(&format!("satchel on {}", self.name), &mut self.command(arguments))
    }

    /// Logs in.
    #[track_caller]
    pub fn login(&self, access: &Access) {
        let Access { url, token, fingerprint } = access;
        let _ = self.satchel(["login", url, "--token", token, "--fingerprint", fingerprint]).ok();
    }

    /// Publishes a disk as the next version of `image`.
    #[track_caller]
    pub fn publish(&self, disk: &Path, image: &str) -> Output {
        self.satchel(["publish".as_ref(), disk.as_os_str(), "--image".as_ref(), image.as_ref()]).ok()
    }

    /// Creates a desktop from `image`, which may name a channel or version: `debian:beta`, `debian@5f3c…`.
    #[track_caller]
    pub fn create(&self, desktop: &str, image: &str, home_size: Option<&str>) {
        let home = home_size.map(|size| ["--home", size]);
        let _ = self
            .satchel(["create", desktop, "--image", image].into_iter().chain(home.into_iter().flatten()))
            .ok();
    }

    /// Syncs a desktop.
    #[track_caller]
    pub fn sync(&self, desktop: &str) -> Output {
        self.satchel(["sync", desktop]).ok()
    }

    /// Returns what `status` says of a desktop, as JSON.
    #[track_caller]
    pub fn status(&self, desktop: &str) -> serde_json::Value {
        self.satchel(["--json", "status", desktop]).ok().json()
    }

    /// Returns what `history` says of a desktop, as JSON.
    #[track_caller]
    pub fn history(&self, desktop: &str) -> serde_json::Value {
        self.satchel(["--json", "history", desktop]).ok().json()
    }

    /// Mounts a desktop's disks in a new directory, and waits until they are there.
    #[track_caller]
    pub fn mount(&self, desktop: &str) -> Mount {
        self.mount_with(desktop, &[])
    }

    /// Mounts as [`mount`](Self::mount) does, with more arguments.
    #[track_caller]
    pub fn mount_with(&self, desktop: &str, arguments: &[&str]) -> Mount {
        self.mount_at(desktop, &self.new_directory(), arguments)
    }

    /// Mounts a desktop's disks on a directory, with more arguments, and waits until they are there.
    #[track_caller]
    pub fn mount_at(&self, desktop: &str, directory: &Path, arguments: &[&str]) -> Mount {
        let words = ["mount", desktop].into_iter().chain(arguments.iter().copied()).map(OsStr::new);
        let process = self.start(words.chain([directory.as_os_str()]));
        self.mounted(desktop, directory, process)
    }

    /// Waits until `process` has mounted a desktop's disks on a directory.
    #[track_caller]
    pub fn mounted(&self, desktop: &str, directory: &Path, process: Process) -> Mount {
        remember_mount(directory);
        let mut mount = Mount { process, directory: directory.to_owned(), ends_with_process: true };
        let appeared = wait::attempt(MOUNT_LIMIT, || {
            // Asked on its own output, since a mount of another user cannot be looked at.
            (mount.process.status().is_some() || mount.process.stdout().ends_with('\n')).then_some(())
        });
        if appeared.is_none() || mount.process.status().is_some() {
            let report = mount.process.report();
            panic!("{desktop} was not mounted on {}\n{report}", self.name);
        }
        mount
    }

    /// Makes a new empty directory.
    pub fn new_directory(&self) -> PathBuf {
        tempfile::tempdir_in(self.directory.path()).expect("a temporary directory can be made").keep()
    }

    /// Runs a desktop and talks to its guest on the serial line, which `satchel run` has on its standard input and output.
    #[track_caller]
    pub fn run(&self, desktop: &str, options: &RunOptions) -> Running {
        let mut command =
            self.command(["run", desktop, "--engine", &options.engine, "--display", &options.display]);
        for (name, value) in [("--memory", &options.memory), ("--cpus", &options.cpus)] {
            if let Some(value) = value {
                command.args([name, value]);
            }
        }
        if !options.syncs {
            command.arg("--no-sync");
        }
        if options.offline {
            command.arg("--offline");
        }
        if options.takes {
            command.arg("--take");
        }
        let name = format!("satchel run on {}", self.name);
        let (process, input, output) = Process::start_with_pipes(&name, &mut command);
        Running { process, guest: Guest::attach(output, input) }
    }
}

/// How to run a desktop: the options of `satchel run`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunOptions {
    /// `auto`, `kvm` or `qemu`.
    pub engine: String,
    /// Such as `1G`; `None` leaves it to the client.
    pub memory: Option<String>,
    /// Such as `2`; `None` leaves it to the client.
    pub cpus: Option<String>,
    /// `window`, `vnc`, `web` or `none`.
    pub display: String,
    /// Whether the desktop is synced while and after it runs.
    pub syncs: bool,
    /// Whether nobody is contacted.
    pub offline: bool,
    /// Whether the desktop is taken from a machine that has it in use.
    pub takes: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            engine: "auto".to_owned(),
            memory: None,
            cpus: None,
            display: "none".to_owned(),
            syncs: true,
            offline: false,
            takes: false,
        }
    }
}

/// A desktop whose disks are mounted; unmounted, the hard way if need be, when dropped.
#[derive(Debug)]
pub struct Mount {
    process: Process,
    directory: PathBuf,
    /// Whether dropping this clears the mount away, also when its process is dead already.
    ends_with_process: bool,
}

impl Mount {
    /// Returns the directory of the mount.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns the path of the system disk.
    pub fn system(&self) -> PathBuf {
        self.directory.join("system.raw")
    }

    /// Returns the path of the home disk.
    pub fn home(&self) -> PathBuf {
        self.directory.join("home.raw")
    }

    /// Returns the mounting process, to look at its messages or how it stands.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Ends the mount as Ctrl-C does, and checks that it ended well and nothing is mounted any more.
    #[track_caller]
    pub fn unmount(mut self) {
        let status = self.process.stop(Signal::INT, MOUNT_LIMIT);
        assert!(status.success(), "the mount did not end well\n{}", self.process.report());
        assert!(!is_mounted(&self.directory), "{} is still mounted", self.directory.display());
    }

    /// Kills the mounting process with SIGKILL, as a crash would, and clears the dead mount away.
    pub fn kill9(mut self) {
        self.process.kill();
    }

    /// Kills the mounting process with SIGKILL and leaves the dead mount where it is; its directory.
    pub fn abandon(mut self) -> PathBuf {
        self.process.kill();
        self.ends_with_process = false;
        self.directory.clone()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.process.kill();
        if self.ends_with_process && is_mounted(&self.directory) {
            unmount(&self.directory);
        }
        if !is_mounted(&self.directory) {
            forget_mount(&self.directory);
        }
    }
}

/// Whether something is mounted on `directory`, even when whoever served it is dead.
pub(crate) fn is_mounted(directory: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("/proc is mounted");
    mounts.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == directory))
}

/// Clears a mount away, whether or not anyone still serves it. Best effort: the reaper tries again at the end.
pub(crate) fn unmount(directory: &Path) {
    for (program, arguments) in [("fusermount3", ["-u", "-z"].as_slice()), ("umount", &["-l"])] {
        let tried = Command::new(program).args(arguments).arg(directory).stderr(Stdio::null()).status();
        if tried.is_ok_and(|status| status.success()) {
            return;
        }
    }
}

/// A desktop that runs.
#[derive(Debug)]
pub struct Running {
    process: Process,
    guest: Guest,
}

impl Running {
    /// Returns the guest in it.
    pub fn guest(&mut self) -> &mut Guest {
        &mut self.guest
    }

    /// Returns the process of `satchel run`.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Powers the guest off and waits until `satchel run` has ended well: synced, unless told not to. Returns all that
    /// came on its standard output: what the guest wrote, and at the end what the run has done.
    #[track_caller]
    pub fn shut_down(mut self, limit: Duration) -> String {
        self.guest.power_off();
        self.wait_closed(limit)
    }

    /// Waits until `satchel run` has ended well, as [`shut_down`](Self::shut_down) does, without asking for it.
    #[track_caller]
    pub fn wait_closed(mut self, limit: Duration) -> String {
        self.guest.wait_closed(limit);
        let status = self.process.wait(limit);
        assert!(status.success(), "the run did not end well\n{}", self.process.report());
        self.guest.transcript()
    }

    /// Kills everything with SIGKILL, as a power cut would.
    pub fn kill9(mut self) {
        self.process.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Output {
        Output::of(Command::new("sh").args(["-c", script]))
    }

    #[test]
    fn output_tells_streams_and_codes_apart() {
        let output = shell("echo '{\"a\": 1}'; echo warning >&2; exit 1").exited(1);
        assert_eq!((output.json()["a"].as_i64(), output.stderr.as_str()), (Some(1), "warning\n"));
    }

    #[test]
    #[should_panic(expected = "no such desktop")]
    fn a_failure_shows_what_the_program_said() {
        let _ = shell("echo no such desktop >&2; exit 1").ok();
    }

    #[test]
    fn a_mount_is_seen() {
        assert!(is_mounted(Path::new("/proc")));
        assert!(!is_mounted(Path::new("/proc/self")));
    }
}
