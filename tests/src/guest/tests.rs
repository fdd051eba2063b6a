use std::io::{self, BufRead, BufReader};
use std::process::Command;
use std::thread;

use tempfile::TempDir;

use super::*;
use crate::Process;

/// A shell of this machine on pipes in the place of a serial line. `disturb` passes on each line the shell writes, and
/// what a kernel would write in between.
struct LocalShell {
    guest: Guest,
    directory: TempDir,
    _process: Process,
}

impl LocalShell {
    fn start(mut disturb: impl FnMut(&str, &mut dyn Write) -> io::Result<()> + Send + 'static) -> Self {
        let (process, input, output) =
            Process::start_with_pipes("a shell", Command::new("bash").arg("--norc"));
        let (serial, mut line) = io::pipe().unwrap();
        thread::spawn(move || {
            for text in BufReader::new(output).lines() {
                if text.and_then(|text| disturb(&text, &mut line)).is_err() {
                    return;
                }
            }
        });
        let directory = tempfile::tempdir().unwrap();
        let mut guest = Guest::attach(serial, input);
        guest.hush = ":";
        guest.scratch = directory.path().display().to_string();
        Self { guest, directory, _process: process }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }
}

fn undisturbed(text: &str, line: &mut dyn Write) -> io::Result<()> {
    write!(line, "{text}\r\n")
}

#[test]
fn talks_to_a_shell() {
    let mut shell = LocalShell::start(undisturbed);
    let guest = &mut shell.guest;
    assert_eq!(guest.run("echo one; echo two >&2; cat"), "one\ntwo");
    assert_eq!(guest.shell("exit 7"), ShellOutput { status: 7, output: Vec::new() });
    assert_eq!(guest.shell("kill -KILL $$").status, 137);
    let quoted = r#"printf '%s|' "a  b" 'c"d' \\ '$HOME' !! %d"#;
    assert_eq!(guest.run(quoted), r#"a  b|c"d|\|$HOME|!!|%d|"#);
    assert_eq!(guest.run(&format!("echo {}", "x".repeat(10_000))).len(), 10_000);
}

#[test]
fn carries_files_both_ways() {
    let mut shell = LocalShell::start(undisturbed);
    let path = shell.path("it's a file");
    let guest = &mut shell.guest;
    for len in [0, 1, 1499, 1500, 1501, 50_000] {
        let mut bytes = vec![0; len];
        Rng::new(1).fill(&mut bytes);
        guest.put(&path, &bytes);
        assert!(guest.get(&path) == bytes, "{len} bytes came back otherwise");
    }
}

#[test]
fn survives_messages_in_the_middle_of_lines() {
    let mut count = 0;
    let mut shell = LocalShell::start(move |text, line| {
        count += 1;
        match count % 23 {
            5 => write!(line, "[   12.345678] random: crng init done\r\n{text}\r\n"),
            // A line of data, torn apart.
            7 if text.len() == 89 => {
                write!(
                    line,
                    "{}[   12.3] \x1b[31msd 0:0:0:0\x1b[0m: gone\r\n{}\r\n",
                    &text[..40],
                    &text[40..]
                )
            }
            _ => undisturbed(text, line),
        }
    });
    let path = shell.path("file");
    let mut bytes = vec![0; 500];
    Rng::new(2).fill(&mut bytes);
    for number in 0..20 {
        shell.guest.put(&path, &bytes);
        assert!(shell.guest.get(&path) == bytes, "round {number}");
    }
}

#[test]
#[should_panic(expected = "`false` failed in the guest")]
fn reports_a_command_that_fails() {
    let mut shell = LocalShell::start(undisturbed);
    let guest = &mut shell.guest;
    guest.run("false");
}

#[test]
#[should_panic(expected = "last words")]
fn shows_the_last_words_of_a_guest_that_is_gone() {
    let mut guest = Guest::attach(io::Cursor::new("kernel panic: last words\r\n"), io::sink());
    guest.wait_ready(Duration::from_secs(60));
}
