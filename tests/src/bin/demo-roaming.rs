//! Desktops that follow people, and golden versions that IT pushes, in ten minutes: a new version reaches a desktop and leaves
//! its home as it is; two machines work on one desktop at once, and both have their work afterwards.
//!
//! Real programs, TLS, FUSE, Debian guests; the "machines" are two state directories.

#![expect(clippy::print_stdout, reason = "its output is what it is for")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use satchel_tests::{Client, RunOptions, Running, TestServer, images, skip};

/// A boot under emulation, on a busy machine, may take this long.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
const END_LIMIT: Duration = Duration::from_secs(300);
/// Where the root file system of the image begins, bytes.
const ROOT_OFFSET: u64 = 2 << 20;

fn main() {
    step("IT publishes a golden Debian; its desktops keep changes to the system until the next version");
    let disk = images::plain();
    let server = TestServer::start();
    let publisher = Client::new("publisher");
    publisher.login(&server.access("it", "publisher"));
    show(&publisher, &["publish", text(&disk), "--image", "debian", "--mode", "keep"]);

    step("Machine A makes a desktop with a home of its own, and works");
    let (a, b) = (Client::new("machine A"), Client::new("machine B"));
    for machine in [&a, &b] {
        machine.login(&server.access("alice", "user"));
    }
    show(&a, &["create", "work", "--image", "debian", "--home", "1G"]);
    let mut running = run(&a, RunOptions::default());
    guest(&mut running, "echo 'from A' > /home/user/letter");
    guest(&mut running, "echo 'a setting' > /etc/my-setting");
    end(running);

    step("IT publishes the next version");
    let next = next_version(&disk, publisher.directory());
    show(&publisher, &["publish", text(&next), "--image", "debian", "-m", "with /etc/golden"]);

    step("Machine B continues: the system is the new one, the home is as it was");
    let mut running = run(&b, RunOptions::default());
    assert_eq!(guest(&mut running, "cat /home/user/letter"), "from A");
    assert_eq!(guest(&mut running, "cat /etc/golden"), "2");
    assert_eq!(guest(&mut running, "test -e /etc/my-setting || echo gone"), "gone");
    guest(&mut running, "echo 'from B' > /home/user/reply");
    end(running);

    step("Back on machine A, which loses its network before it can sync");
    let mut running = run(&a, RunOptions { syncs: false, ..RunOptions::default() });
    assert_eq!(guest(&mut running, "cat /home/user/reply"), "from B");
    guest(&mut running, "echo 'written on A meanwhile' > /home/user/plan-a");
    end(running);

    step("Machine B is told who has the desktop, and takes it");
    println!("  $ satchel run work");
    let refused = b.satchel(["run", "work", "--engine", "qemu"]).exited(1);
    print!("{}", indented(&refused.stderr));
    let mut running = run(&b, RunOptions { takes: true, ..RunOptions::default() });
    guest(&mut running, "echo 'written on B meanwhile' > /home/user/plan-b");
    end(running);

    step("Machine A comes back: its work is a fork, and nothing is lost");
    show(&a, &["sync", "work"]);
    show(&a, &["forks", "work"]);
    let forks = a.satchel(["--json", "forks", "work"]).ok().json();
    let fork = forks[0]["desktop"].as_str().expect("a fork").to_owned();
    let diff = show(&a, &["diff", "work", &fork, "--disk", "home"]);
    assert!(diff.contains("plan-a") && diff.contains("plan-b"), "{diff}");

    step("The file from the fork, copied over");
    show(&a, &["copy", &format!("{fork}:/user/plan-a"), "work:/user/plan-a"]);
    show(&a, &["sync", "work"]);
    show(&a, &["history", "work"]);
    let diff = show(&a, &["diff", "work", &fork, "--disk", "home"]);
    assert!(!diff.contains("plan-a"), "{diff}");
    server.verify();
}

/// The disk with one file more in its root file system.
///
/// `directory` has no blanks in its path: the script's words are divided by them.
fn next_version(disk: &Path, directory: &Path) -> PathBuf {
    let (next, golden) = (directory.join("next.raw"), directory.join("golden"));
    let script = directory.join("script");
    let copied = Command::new("cp").args(["--sparse=always", text(disk), text(&next)]).status();
    assert!(copied.expect("cp can be run").success(), "the disk cannot be copied");
    fs::write(&golden, "2\n").expect("a file can be written");
    let lines = format!("cd /etc\nwrite {} golden\n", golden.display());
    fs::write(&script, lines).expect("a file can be written");
    let written = Command::new("debugfs")
        .args(["-w", "-f", text(&script)])
        .arg(format!("{}?offset={ROOT_OFFSET}", next.display()))
        .output();
    assert!(written.expect("debugfs can be run").status.success(), "the disk cannot be changed");
    next
}

fn run(machine: &Client, options: RunOptions) -> Running {
    let engine = if skip::kvm().lack.is_none() { "auto" } else { "qemu" };
    let more = match (options.syncs, options.takes) {
        (false, _) => " --no-sync",
        (true, true) => " --take",
        (true, false) => "",
    };
    println!("  $ satchel run work --memory 1G{more}");
    let mut running = machine
        .run("work", &RunOptions { engine: engine.to_owned(), memory: Some("1G".to_owned()), ..options });
    running.guest().wait_ready(BOOT_LIMIT);
    let said = running.process().stderr();
    for line in said.lines().filter(|line| line.contains("renewed") || line.contains("taken from")) {
        println!("  {line}");
    }
    running
}

fn guest(running: &mut Running, line: &str) -> String {
    println!("  guest# {line}");
    let said = running.guest().run(&format!("{line}; sync")).trim().to_owned();
    if !said.is_empty() {
        println!("  {said}");
    }
    said
}

fn end(running: Running) {
    println!("  $ # in the guest: poweroff");
    let said = running.shut_down(END_LIMIT);
    if let Some(line) = said.lines().rev().find(|line| line.starts_with("synced")) {
        println!("  {line}");
    }
}

/// Runs a command that must succeed, and shows it with what it said.
fn show(machine: &Client, words: &[&str]) -> String {
    println!("  $ satchel {}", words.join(" "));
    let said = machine.satchel(words).ok();
    print!("{}", indented(&said.stdout));
    said.stdout
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}

fn step(text: &str) {
    println!("\n== {text}");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the demo is text")
}
