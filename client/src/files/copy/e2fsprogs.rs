//! The programs of e2fsprogs: how they are run, what they are told and what they say.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use super::CopyError;
use crate::files::shown;

/// The longest line that `debugfs` is given. It reads so many bytes at a time (`BUFSIZ`, 1,024 with musl) and takes what
/// is left of a longer line for a command of its own, among them `!`, which is the shell's.
const MAX_LINE_BYTES: usize = 1000;
/// Bytes that are kept of what a program says.
const MAX_SAID_BYTES: usize = 2000;
/// Where the programs may be beside the places of ordinary users.
const MORE_PATHS: &str = "/usr/sbin:/sbin";

/// No line of `debugfs` ends in it.
pub(super) fn is_plain(name: &[u8]) -> bool {
    !name.iter().any(|byte| byte.is_ascii_control())
}

/// `debugfs` takes it for one command.
pub(super) fn fits_line(line: &[u8]) -> bool {
    line.len() <= MAX_LINE_BYTES && is_plain(line)
}

/// A word of a line of `debugfs`.
pub(super) fn quoted(text: &[u8]) -> Vec<u8> {
    let inner = text.iter().flat_map(|byte| if *byte == b'"' { b"\"\"".to_vec() } else { vec![*byte] });
    [b"\"".to_vec(), inner.collect(), b"\"".to_vec()].concat()
}

pub(super) fn write_line(staged: &Path, name: &[u8]) -> Vec<u8> {
    [b"write".to_vec(), quoted(staged.as_os_str().as_encoded_bytes()), quoted(name)].join(&b' ')
}

pub(super) fn link_line(name: &[u8], target: &[u8]) -> Vec<u8> {
    [b"symlink".to_vec(), quoted(name), quoted(target)].join(&b' ')
}

/// What a program has done.
pub(super) struct Outcome {
    pub(super) code: Option<i32>,
    pub(super) said: String,
}

/// Runs `e2fsck`; it says most on its standard output, and why it gives up at the end.
pub(super) fn check(options: &[&str], device: &OsString) -> Result<Outcome, CopyError> {
    let mut command = Command::new("e2fsck");
    command.args(options).arg(device);
    let mut said = Vec::new();
    let status = run("e2fsck", command, true, |part| {
        said.extend_from_slice(part);
        said.drain(..said.len().saturating_sub(MAX_SAID_BYTES));
    })?;
    Ok(Outcome { code: status.code(), said: lines(&said) })
}

/// Runs a script of `debugfs`. It goes on after a command that failed, and ends well: that it said something on its
/// standard error beside its name is the only sign. What it said first tells why.
pub(super) fn edit(commands: &Path, device: &OsString) -> Result<Outcome, CopyError> {
    let mut flag = OsString::from("-f");
    flag.push(commands);
    let mut command = Command::new("debugfs");
    command.arg("-w").arg(flag).arg(device);
    let mut said = Vec::new();
    let status = run("debugfs", command, false, |part| {
        let room = MAX_SAID_BYTES.saturating_sub(said.len()).min(part.len());
        said.extend_from_slice(&part[..room]);
    })?;
    Ok(Outcome { code: status.code(), said: lines(&said) })
}

/// Runs a program, and hands out what it says on its standard error, and its standard output if that counts.
fn run(
    program: &'static str,
    mut command: Command,
    output_counts: bool,
    mut hear: impl FnMut(&[u8]),
) -> Result<ExitStatus, CopyError> {
    let failed = |source| CopyError::NoTool { program, source };
    let path = std::env::var("PATH").unwrap_or_default();
    let (mut said, speaker) = io::pipe().map_err(failed)?;
    let output = if output_counts { speaker.try_clone().map_err(failed)?.into() } else { Stdio::null() };
    let command = command
        .env("PATH", format!("{path}:{MORE_PATHS}"))
        .env("LC_ALL", "C")
        .env("DEBUGFS_PAGER", "cat")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(speaker)
        // A Ctrl-C in the terminal is not theirs: they would leave a file system half written.
        .process_group(0);
    let mut child = command.spawn().map_err(failed)?;
    // Else it would never end: this program would still have its other end.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut part = [0; 4096];
    loop {
        match said.read(&mut part) {
            Ok(0) => break,
            Ok(read) => hear(&part[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(error));
            }
        }
    }
    child.wait().map_err(failed)
}

/// What a program said in one line, without its name and version.
fn lines(said: &[u8]) -> String {
    let lines = said.split(|byte| *byte == b'\n');
    let lines = lines.filter(|line| !line.is_empty() && !is_banner(line));
    lines.map(shown).collect::<Vec<_>>().join("; ")
}

/// Whether a line is the one by which a program of e2fsprogs begins: `debugfs 1.47.0 (5-Feb-2023)`.
fn is_banner(line: &[u8]) -> bool {
    let rest = line.strip_prefix(b"debugfs ").or_else(|| line.strip_prefix(b"e2fsck "));
    rest.is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit) && rest.ends_with(b")"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_of_itself_is_left_out() {
        assert_eq!(
            lines(b"debugfs 1.47.0 (5-Feb-2023)\nmkdir: no space\n\nwrite: no space\n"),
            "mkdir: no space; write: no space"
        );
        assert_eq!(lines(b"debugfs: no such file"), "debugfs: no such file");
    }
}
