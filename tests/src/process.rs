//! Child processes that cannot outlive the test, with their output kept in files.

mod reaper;

use std::fs::{self, File};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::wait;

pub(crate) use reaper::{forget_mount, remember_mount};

/// A signal to send to a process.
pub type Signal = rustix::process::Signal;

/// How much of an output a report shows.
const TAIL_LINES: usize = 30;

/// The process below `parent` whose command line has a word that ends so.
pub fn child(parent: u32, word: &str) -> Option<rustix::process::Pid> {
    let entries = fs::read_dir("/proc").expect("/proc is mounted");
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let mut children = ids.filter(|id| {
        let read = |name: &str| fs::read_to_string(format!("/proc/{id}/{name}")).unwrap_or_default();
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        fields.get(1) == Some(&parent.to_string().as_str())
            && read("cmdline").split('\0').any(|found| found.ends_with(word))
    });
    children.next().and_then(rustix::process::Pid::from_raw)
}

/// A running program in a process group of its own.
///
/// Dropping it kills and reaps the whole group; when the test process itself dies, however it does, the group is killed
/// too. While a test panics, dropping also shows the end of what the program wrote.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    directory: TempDir,
}

impl Process {
    /// Starts `command`, called `name` in reports. Its output goes to files, its input is empty.
    pub fn start(name: &str, command: &mut Command) -> Self {
        let directory = output_directory();
        let stdout = create(directory.path().join("stdout"));
        command.stdin(Stdio::null()).stdout(stdout);
        Self::spawn(name, command, directory)
    }

    /// Starts `command` with its standard input and output as pipes; only its standard error goes to a file.
    pub fn start_with_pipes(name: &str, command: &mut Command) -> (Self, ChildStdin, ChildStdout) {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Self::spawn(name, command, output_directory());
        let stdin = process.child.stdin.take().expect("stdin is a pipe");
        let stdout = process.child.stdout.take().expect("stdout is a pipe");
        (process, stdin, stdout)
    }

    fn spawn(name: &str, command: &mut Command, directory: TempDir) -> Self {
        let stderr = create(directory.path().join("stderr"));
        let child = command
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", command.get_program().display()));
        reaper::remember_group(child.id());
        Self { name: name.to_owned(), child, status: None, directory }
    }

    /// Returns the process id, which is also that of its group.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the exit status once the program has ended.
    pub fn status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("a child can be waited for");
        }
        self.status
    }

    /// Returns what the program has written to its standard output so far; nothing when that is a pipe.
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    /// Returns what the program has written to its standard error so far.
    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    /// Returns the same but that the server did not answer for a while, and does again: true of any machine that stands still
    /// for seconds.
    pub fn stderr_but_outages(&self) -> String {
        let of_outage =
            |line: &&str| line.contains("server does not answer") || line.contains("server answers again");
        self.stderr().split_inclusive('\n').filter(|line| !of_outage(line)).collect()
    }

    fn read(&self, stream: &str) -> String {
        let bytes = fs::read(self.directory.path().join(stream)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Returns the most memory the program has had at once so far (`VmHWM`), bytes.
    ///
    /// # Panics
    /// When it has ended.
    #[track_caller]
    pub fn peak_memory_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.id());
        let status = fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        let kib: u64 = peak.and_then(|kib| kib.trim().parse().ok()).expect("a running program has memory");
        kib * 1024
    }

    /// Waits for a complete line of standard output that `find` makes something of, and returns that.
    ///
    /// # Panics
    /// When the program ends without such a line, or `limit` passes.
    #[track_caller]
    pub fn wait_for_line<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut find: impl FnMut(&str) -> Option<T>,
    ) -> T {
        let found = wait::attempt(limit, || {
            // Asked before the look at the output, so that what the program said last is seen.
            let ended = self.status().is_some();
            let output = self.stdout();
            let line =
                output.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).find_map(&mut find);
            match line {
                Some(value) => Some(Some(value)),
                None => ended.then_some(None),
            }
        });
        match found {
            Some(Some(value)) => value,
            Some(None) => self.fail(&format!("ended before it said {what}")),
            None => self.fail(&format!("did not say {what} within {limit:?}")),
        }
    }

    /// Waits until the program has ended.
    ///
    /// # Panics
    /// When `limit` passes first.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        match wait::attempt(limit, || self.status()) {
            Some(status) => status,
            None => self.fail(&format!("is still running after {limit:?}")),
        }
    }

    /// Sends `signal` to the program alone, not to its group. Nothing happens once it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.status().is_none() {
            // The child is not yet reaped, so the id is still its own.
            let _ = rustix::process::kill_process(pid(self.id()), signal);
        }
    }

    /// Sends `signal` and waits for the end.
    ///
    /// # Panics
    /// When `limit` passes first.
    #[track_caller]
    pub fn stop(&mut self, signal: Signal, limit: Duration) -> ExitStatus {
        self.signal(signal);
        self.wait(limit)
    }

    /// Kills the whole group with SIGKILL, as a power cut would end it, and reaps the program.
    pub fn kill(&mut self) {
        let _ = rustix::process::kill_process_group(pid(self.id()), Signal::KILL);
        if self.status.is_none() {
            self.status = self.child.wait().ok();
        }
        reaper::forget_group(self.id());
    }

    #[track_caller]
    fn fail(&mut self, what: &str) -> ! {
        let report = self.report();
        panic!("{} {what}\n{report}", self.name)
    }

    /// Describes how the program stands and the end of its output, for a failure message.
    pub fn report(&mut self) -> String {
        let state = match self.status() {
            None => "running".to_owned(),
            Some(status) => match (status.code(), status.signal()) {
                (Some(code), _) => format!("exited with {code}"),
                (None, Some(signal)) => format!("killed by signal {signal}"),
                (None, None) => status.to_string(),
            },
        };
        let mut report = format!("--- {} ({state})", self.name);
        for stream in ["stdout", "stderr"] {
            let text = self.read(stream);
            if !text.is_empty() {
                report.push_str(&format!("\n--- {stream}, its end:\n{}", tail(&text)));
            }
        }
        report
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let report = self.report();
            show(&report);
        }
        self.kill();
    }
}

/// Returns the last lines of `text`.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}

/// Shows `text` with the output of the test.
#[expect(
    clippy::print_stderr,
    reason = "test runners capture what is printed this way and show it with the failure"
)]
pub(crate) fn show(text: &str) {
    eprintln!("{text}");
}

fn output_directory() -> TempDir {
    tempfile::Builder::new().prefix("satchel-process-").tempdir().expect("a temporary directory can be made")
}

fn create(path: PathBuf) -> File {
    File::create(&path).unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()))
}

fn pid(id: u32) -> rustix::process::Pid {
    let raw = i32::try_from(id).expect("process ids fit an i32");
    rustix::process::Pid::from_raw(raw).expect("a child's process id is not 0")
}

#[cfg(test)]
mod tests;
