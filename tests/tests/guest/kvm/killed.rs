//! Parts of a running desktop are killed again and again while its guest writes: what the guest had flushed is there at the next
//! start, in whole, on a file system whose journal replays; and what is left says what has happened, and ends.

use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal as Sent, kill_process, test_kill_process};
use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Client, Rng, RunOptions, Running, Signal, TestServer, child, lab, require, skip};

use super::super::BOOT_LIMIT;
use super::super::killed::{assert_sound, copy};
use super::{Story, Task, machine, play};

/// Kills of each part where KVM works, and in the lab; `SATCHEL_KILLS` asks for more.
const KILLS: u32 = 3;
const KILLS_IN_LAB: u32 = 1;
/// How long the disks stand still.
const STALL: Duration = Duration::from_secs(60);
/// How many numbers a guest may have flushed, at most, when it is struck.
const MOST_FLUSHED: u64 = 8;

/// What is killed.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// The machine.
    Vmm,
    /// What serves its disks.
    Mount,
    /// What carries its network.
    Passt,
}

impl Part {
    const ALL: [Part; 3] = [Part::Vmm, Part::Mount, Part::Passt];

    /// What the command line of its process holds.
    fn word(self) -> &'static str {
        match self {
            Part::Vmm => "satchel-vmm",
            Part::Mount => "mount",
            Part::Passt => "passt",
        }
    }

    fn process(self, run: &mut Running) -> Pid {
        child(run.process().id(), self.word()).unwrap_or_else(|| panic!("the run has no {self:?}"))
    }
}

#[test]
fn a_machine_whose_parts_are_killed_loses_nothing_it_had_flushed() {
    require!(fuse, tool("passt"));
    // What the small guest is made of.
    require!(tool("apt-get"), tool("busybox"), tool("cpio"), tool("modprobe"), tool("mke2fs"));
    let mut kills = KILLS;
    if skip::kvm().lack.is_some() {
        require!(lab_for_long);
        kills = KILLS_IN_LAB;
    }
    if let Ok(asked) = std::env::var("SATCHEL_KILLS") {
        kills = asked.parse().expect("SATCHEL_KILLS is a number");
    }
    let server = TestServer::start();
    let publisher = Client::new("build-machine");
    publisher.login(&server.access("it", "publisher"));
    let _ = publisher.publish(&lab::small_guest().disk, "small");
    println!("{}", play(&server, Story::Killed { kills, seed: u64::from(std::process::id()) }));
    server.verify();
}

/// Has a guest write, stops its disks for a while, and kills each part of it this often; says how that went.
pub(super) fn kill(task: &Task, kills: u32, seed: u64) -> String {
    say(&format!("seed {seed}"));
    let mut rng = Rng::new(seed);
    let laptop = Client::new("laptop");
    laptop.login(&task.access());
    laptop.create("work", "small", Some("64M"));
    let disks = laptop.mount("work");
    let made = Command::new("mke2fs").args(["-q", "-F", "-t", "ext4"]).arg(disks.home()).status();
    assert!(made.expect("mke2fs can be run").success());
    disks.unmount();

    let mut flushed = stall(&laptop);
    for number in 1..=kills {
        for part in Part::ALL {
            let found = strike(&laptop, part, flushed, &mut rng);
            say(&format!(
                "kill {number} of {part:?}: {flushed} numbers before, {found} flushed, all of it sound"
            ));
            flushed = found;
        }
    }
    format!("{kills} kills of each part, {flushed} numbers flushed and found")
}

#[expect(clippy::print_stdout, reason = "this is what a story prints while it is told")]
fn say(text: &str) {
    println!("{text}");
}

fn options() -> RunOptions {
    RunOptions { memory: Some("256M".to_owned()), syncs: false, ..machine(1) }
}

/// Starts the machine, whose guest has to find at least what was flushed before.
fn start(laptop: &Client, flushed: u64) -> Running {
    let mut running = laptop.run("work", &options());
    let (found, state) = running.guest().wait_for_line("what it found", BOOT_LIMIT, |line| {
        let (found, state) = line.split_once("guest found ")?.1.split_once(' ')?;
        Some((found.parse::<u64>().ok()?, state.trim().to_owned()))
    });
    assert_eq!(state, "whole", "a number in the middle is lost");
    assert!(found >= flushed, "{found} numbers found of {flushed} that were flushed");
    running
}

/// A number the guest says it has flushed.
fn number(line: &str) -> Option<u64> {
    line.split_once("guest flushed ")?.1.trim().parse().ok()
}

/// Waits until the guest has flushed this many more numbers.
fn wait_flushed(running: &mut Running, more: u64) -> u64 {
    (0..more).fold(0, |_, _| running.guest().wait_for_line("what it has flushed", BOOT_LIMIT, number))
}

/// The last number a guest said it has flushed.
fn last_flushed(running: &mut Running) -> u64 {
    running.guest().transcript().lines().filter_map(number).next_back().expect("it has flushed something")
}

/// What serves the disks does not answer for a minute: the guest waits, sees no error and goes on. Returns what it flushed.
fn stall(laptop: &Client) -> u64 {
    let mut running = start(laptop, 0);
    wait_flushed(&mut running, 2);
    let mount = Part::Mount.process(&mut running);
    kill_process(mount, Sent::STOP).expect("it is there");
    std::thread::sleep(STALL);
    let before = last_flushed(&mut running);
    kill_process(mount, Sent::CONT).expect("it is there");
    // One that was under way may have been told late.
    wait_flushed(&mut running, 1);
    wait::until("the guest goes on", BOOT_LIMIT, || (last_flushed(&mut running) > before + 2).then_some(()));
    let said = running.guest().transcript();
    assert!(!said.contains("error"), "the guest has seen its disk fail:\n{said}");
    let flushed = switch_off(running);
    check(laptop, flushed);
    say(&format!(
        "its disks stood still for {STALL:?}: {before} numbers flushed before, {flushed} in the end"
    ));
    flushed
}

/// Forces the machine off, as a second Ctrl-C does; what its guest has flushed.
fn switch_off(mut running: Running) -> u64 {
    for _ in 0..2 {
        running.process().signal(Signal::INT);
        std::thread::sleep(Duration::from_secs(1));
    }
    let status = running.process().wait(BOOT_LIMIT);
    assert!(status.success(), "{}", running.process().report());
    running.guest().wait_closed(PATIENCE);
    last_flushed(&mut running)
}

/// Kills a part at some moment, checks what the others say and that they end, and what is on the disk; what was flushed.
fn strike(laptop: &Client, part: Part, flushed: u64, rng: &mut Rng) -> u64 {
    let mut running = start(laptop, flushed);
    wait_flushed(&mut running, 1 + rng.below(MOST_FLUSHED));
    std::thread::sleep(Duration::from_millis(rng.below(1000)));
    let parts = Part::ALL.map(|part| part.process(&mut running));
    kill_process(part.process(&mut running), Sent::KILL).expect("it is there");
    let flushed = match part {
        Part::Passt => {
            let warning = "the machine's network was interrupted: passt ended (signal: 9 (SIGKILL))";
            wait::until("the run says so", BOOT_LIMIT, || {
                running.process().stderr().contains(warning).then_some(())
            });
            let before = last_flushed(&mut running);
            wait::until("the guest goes on", BOOT_LIMIT, || {
                (last_flushed(&mut running) > before + 1).then_some(())
            });
            switch_off(running)
        }
        Part::Vmm | Part::Mount => {
            let status = running.process().wait(BOOT_LIMIT);
            assert_eq!(status.code(), Some(1), "{}", running.process().report());
            let said = running.process().stderr();
            let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("error: ")).collect();
            let expected = match part {
                Part::Vmm => "error: the machine ended with an error: it was ended by signal 9",
                _ => {
                    "error: the process that serves the disks ended (signal: 9 (SIGKILL)); the machine was stopped. What it had flushed is safe"
                }
            };
            assert_eq!(errors, [expected], "{said}");
            running.guest().wait_closed(PATIENCE);
            last_flushed(&mut running)
        }
    };
    for (part, process) in Part::ALL.into_iter().zip(parts) {
        wait::until(&format!("{part:?} has ended"), PATIENCE, || test_kill_process(process).err());
    }
    check(laptop, flushed);
    flushed
}

/// The disk as a power cut would leave it: its journal replays, it is sound, and all that was flushed is there.
fn check(laptop: &Client, flushed: u64) {
    let disks = laptop.mount("work");
    let home = copy(laptop, &disks.home(), 0);
    disks.unmount();
    assert_sound(&home);
    let read = Command::new("debugfs").args(["-R", "cat records"]).arg(&home).stderr(Stdio::null()).output();
    let records = String::from_utf8(read.expect("debugfs can be run").stdout).expect("numbers are text");
    let numbers: Vec<u64> = records
        .lines()
        .map(|line| line.parse().unwrap_or_else(|_| panic!("{line:?} is no number")))
        .collect();
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "a number is lost: {numbers:?}");
    assert!(numbers.len() as u64 >= flushed, "{} numbers left of {flushed} that were flushed", numbers.len());
    std::fs::remove_file(&home).expect("a file of the test's own");
}
