//! Debian guests on the other end of a serial line.

mod console;
mod machine;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};

use crate::process::tail;
use crate::seed::Rng;

use console::Console;
pub use machine::{Machine, MachineOptions};

/// How long a command may take, unless the caller knows better.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);

/// The shortest wait for an answer before asking again: an emulated guest under load takes seconds for a line.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// The most a terminal takes as one line is 4,095 bytes; a line with this much data and its command stays under that.
const LINE_DATA_LEN: usize = 2000;

/// Keeps messages off the serial line as far as a guest can: the kernel's and systemd's.
const HUSH: &str = "dmesg -n 1; kill -s RTMIN+21 1";

/// Where a guest keeps what the harness sends: in memory, not on the disk under test.
const SCRATCH: &str = "/run/satchel-test";

/// What a command in a guest came to.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a command may have failed"]
pub struct ShellOutput {
    /// The exit status.
    pub status: i32,
    /// Standard output and standard error as they came.
    pub output: Vec<u8>,
}

impl ShellOutput {
    /// Returns the output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

/// A Debian guest that logs root in on its serial line, as those of `tests/images/build` do.
///
/// The line is shared with the kernel, which writes to it whenever it likes. So output travels as base64 in lines that
/// name the request they belong to, with a checksum over all of it, and is asked for again until it arrives whole.
///
/// # Panics
/// Every method panics when the guest does not answer in time, with the last lines it wrote.
#[derive(Debug)]
pub struct Guest {
    console: Console,
    rng: Rng,
    has_shell: bool,
    hush: &'static str,
    scratch: String,
}

impl Guest {
    /// Talks to the guest whose serial output is `output` and serial input `input`.
    pub fn attach(output: impl Read + Send + 'static, input: impl Write + Send + 'static) -> Self {
        let seed = std::process::id().into();
        let console = Console::new(output, input);
        Self { console, rng: Rng::new(seed), has_shell: false, hush: HUSH, scratch: SCRATCH.to_owned() }
    }

    /// Waits for a line that `find` makes something of, after those that were waited for before.
    #[track_caller]
    pub fn wait_for_line<T>(
        &mut self,
        what: &str,
        limit: Duration,
        find: impl FnMut(&str) -> Option<T>,
    ) -> T {
        let found = self.console.wait_for_line(limit, find);
        found.unwrap_or_else(|| self.fail(&format!("did not say {what} within {limit:?}")))
    }

    /// Waits until the guest says it is up; its uptime then, seconds.
    #[track_caller]
    pub fn wait_ready(&mut self, limit: Duration) -> f64 {
        let found = self.console.wait_for_line(limit, |line| {
            let (_, uptime) = line.split_once("READY ")?;
            uptime.trim().parse().ok()
        });
        found.unwrap_or_else(|| self.fail(&format!("did not come up within {limit:?}")))
    }

    /// Runs `command` with bash as root and an empty standard input.
    #[track_caller]
    pub fn shell(&mut self, command: &str) -> ShellOutput {
        self.shell_within(COMMAND_LIMIT, command)
    }

    /// Runs `command` as [`shell`](Self::shell) does, for at most `limit`.
    #[track_caller]
    pub fn shell_within(&mut self, limit: Duration, command: &str) -> ShellOutput {
        self.open_shell();
        let (script, result) = (format!("{}/command", self.scratch), format!("{}/output", self.scratch));
        self.send_file(&script, command.as_bytes());
        let status = self.ask(limit, &format!("bash {script} </dev/null >{result} 2>&1"));
        let output = self.receive(&result);
        ShellOutput { status, output }
    }

    /// Runs `command`, which must succeed; its output without the last newline.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        let result = self.shell(command);
        assert_eq!(result.status, 0, "`{command}` failed in the guest:\n{}", result.text());
        result.text().trim_end_matches('\n').to_owned()
    }

    /// Makes `path` in the guest a file with these bytes. Meant for small files: about 20 KiB a second when emulated.
    #[track_caller]
    pub fn put(&mut self, path: &str, bytes: &[u8]) {
        self.open_shell();
        self.send_file(path, bytes);
    }

    /// Returns the bytes of the guest's file `path`.
    #[track_caller]
    pub fn get(&mut self, path: &str) -> Vec<u8> {
        self.open_shell();
        self.receive(path)
    }

    /// Powers the guest off as its menu does, and waits for the line to close.
    #[track_caller]
    pub fn shut_down(&mut self, limit: Duration) {
        self.power_off();
        self.wait_closed(limit);
    }

    /// Powers the guest off as its menu does, and does not wait.
    #[track_caller]
    pub fn power_off(&mut self) {
        self.open_shell();
        self.console.send("systemctl poweroff\n");
    }

    /// Waits until the line closes: the machine is gone.
    #[track_caller]
    pub fn wait_closed(&mut self, limit: Duration) {
        if !self.console.wait_closed(limit) {
            self.fail(&format!("was not gone within {limit:?}"));
        }
    }

    /// Returns everything the guest wrote so far, as it came.
    pub fn transcript(&self) -> String {
        self.console.transcript()
    }

    /// Sends a line to the guest as if typed, and does not wait.
    pub fn type_line(&mut self, line: &str) {
        self.console.send(&format!("{line}\n"));
    }

    /// Makes the login shell a quiet partner: no echo, no prompt, no other messages if that can be helped.
    #[track_caller]
    fn open_shell(&mut self) {
        if self.has_shell {
            return;
        }
        // Asked again and again: getty throws away what comes before its prompt, and the prompt may be torn by messages.
        let quiet = format!(
            "stty -echo -ixon; set +o emacs +o history +H; unset PROMPT_COMMAND; PS1= PS2=; {}; mkdir -p {}",
            self.hush, self.scratch
        );
        let deadline = Instant::now() + COMMAND_LIMIT;
        while Instant::now() < deadline {
            let token = self.token();
            // An interrupt empties a line that is half typed.
            self.console.send(&format!("\x03\n {quiet}; {}", report(&token, "0")));
            if self.console.wait_for_line(ANSWER_LIMIT, |line| answer(line, &token)).is_some() {
                self.has_shell = true;
                return;
            }
        }
        self.fail("did not open a shell on its serial line");
    }

    /// Runs a line of shell; its exit status.
    #[track_caller]
    fn ask(&mut self, limit: Duration, line: &str) -> i32 {
        let token = self.token();
        self.console.send(&format!(" {line}; {}", report(&token, "$?")));
        let status = self.console.wait_for_line(limit, |line| answer(line, &token));
        match status {
            Some(status) => {
                status.parse().unwrap_or_else(|_| self.fail(&format!("reported the status {status:?}")))
            }
            None => self.fail(&format!("did not answer within {limit:?}")),
        }
    }

    /// Sends a file in lines that the terminal takes, each acknowledged before the next so that none is lost.
    #[track_caller]
    fn send_file(&mut self, path: &str, bytes: &[u8]) {
        let path = quote(path);
        let encoded = BASE64.encode(bytes);
        let mut redirect = ">";
        let lines = encoded
            .as_bytes()
            .chunks(LINE_DATA_LEN)
            .map(|line| std::str::from_utf8(line).expect("base64 is ASCII"));
        for line in lines.chain(encoded.is_empty().then_some("")) {
            let status = self.ask(COMMAND_LIMIT, &format!("base64 -d <<<'{line}' {redirect}{path}"));
            if status != 0 {
                self.fail(&format!("cannot write {path}"));
            }
            redirect = ">>";
        }
    }

    #[track_caller]
    fn receive(&mut self, path: &str) -> Vec<u8> {
        const TRIES: usize = 5;
        let path = quote(path);
        for _ in 0..TRIES {
            let token = self.token();
            let mark = self.console.mark();
            let lines = format!("base64 -w 72 {path} | sed s/^/{}=/", split(&token));
            let sum = format!("$(sha256sum <{path} | cut -c -64)");
            self.console.send(&format!(" {lines}; {}", report(&token, &sum)));
            let sum = self.console.wait_for_line(COMMAND_LIMIT, |line| answer(line, &token));
            let Some(sum) = sum else { self.fail("did not send its output") };
            if sum.is_empty() {
                self.fail(&format!("cannot read {path}"));
            }
            let prefix = format!("{token}=");
            let encoded: String = self
                .console
                .lines_since(mark)
                .iter()
                .filter_map(|line| line.split_once(&prefix).map(|(_, data)| data.trim().to_owned()))
                .collect();
            if let Some(bytes) = BASE64.decode(encoded).ok().filter(|bytes| sha256(bytes) == sum) {
                return bytes;
            }
        }
        self.fail(&format!("sent {path} damaged {TRIES} times"))
    }

    fn token(&mut self) -> String {
        format!("{:016x}", self.rng.next_u64())
    }

    #[track_caller]
    fn fail(&self, what: &str) -> ! {
        panic!("the guest {what}\n--- its serial console, the end:\n{}", tail(&self.console.transcript()))
    }
}

/// Returns a token as shell text that does not contain it, so that an echo of the command is not taken for its answer.
fn split(token: &str) -> String {
    let (left, right) = token.split_at(token.len() / 2);
    format!("{left}\"\"{right}")
}

/// Returns the end of a line of shell that prints `value` as the answer to the request `token`, on a line of its own.
fn report(token: &str, value: &str) -> String {
    format!("printf '\\n%s:%s:\\n' {} \"{value}\"\n", split(token))
}

/// Finds the answer to the request `token` in a line, whatever else is in it.
fn answer(line: &str, token: &str) -> Option<String> {
    let (_, after) = line.split_once(token)?;
    let (value, _) = after.strip_prefix(':')?.split_once(':')?;
    Some(value.to_owned())
}

/// Quotes text for the shell.
fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
