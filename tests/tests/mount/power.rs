//! The power button and what follows it, with a stand-in for QEMU.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{
    Client, Direction, Event, Link, Model, Process, Publication, Rng, Shape, Signal, child, require,
};

use super::IMAGE_BYTES;
use super::stand_in::{OBEYS, stand_in};

/// Its number, as bits of `/proc/PID/status` count from.
const SIGINT: u32 = 2;

/// Machines that speak QMP on the descriptor they are given. One whose guest does not listen yet when the button is pressed first,
/// and one that hangs once it runs.
const DEAF_AT_FIRST: &str = r#"
presses=0
while read -r line <&"$control"; do
    [[ $line != *system_powerdown* ]] || presses=$((presses + 1))
    [[ $presses -lt 2 ]] || exit 0
    echo '{"return": {}}' >&"$control"
done
"#;
const HANGS: &str = r#"
read -r line <&"$control"
echo '{"return": {}}' >&"$control"
exec sleep infinity
"#;
const CRASHES: &str = r#"
while read -r line <&"$control"; do
    [[ $line != *system_powerdown* ]] || { echo 'out of memory' >&2; exit 1; }
    echo '{"return": {}}' >&"$control"
done
"#;
/// Reads here and there, and hangs; what reads is still there when it is gone.
const READS_AND_HANGS: &str = r#"
while [[ -e $disk ]]; do
    dd if="$disk" of=/dev/null bs=64k iflag=direct skip=$((RANDOM % 300)) count=1
    sleep 0.05
done >/dev/null 2>&1 &
read -r line <&"$control"
echo '{"return": {}}' >&"$control"
exec sleep infinity
"#;

/// Runs a desktop in a stand-in for QEMU, until Ctrl-C is listened for.
pub(super) fn run_in(machine: &str, laptop: &Client, options: &[&str]) -> Process {
    let mut command = laptop.command(["run", "work", "--engine", "qemu", "--display", "none"]);
    command.args(options);
    stand_in(machine, laptop, &mut command);
    let running = Process::start("satchel run", &mut command);
    wait::until("the machine runs, and Ctrl-C is listened for", PATIENCE, || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", running.id())).ok()?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        let caught = u64::from_str_radix(caught.trim(), 16).ok()?;
        (caught >> (SIGINT - 1) & 1 == 1).then_some(())
    });
    running
}

/// Starts of the desktop that nobody called good.
fn bad_starts(laptop: &Client) -> u64 {
    let path = laptop.desktop_directory("work").join("starts.json");
    let starts = std::fs::read_to_string(path).expect("a start is noted before it is one");
    let starts: serde_json::Value = serde_json::from_str(&starts).expect("it is one JSON value");
    starts["golden"][0]["begun"].as_u64().expect("starts are counted")
}

#[test]
fn the_power_button_is_pressed_until_the_guest_hears_it() {
    require!(fuse);
    let published = Publication::new(84, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mut running = run_in(DEAF_AT_FIRST, &laptop, &["--no-sync"]);
    running.signal(Signal::INT);
    let status = running.wait(PATIENCE);
    assert!(status.success(), "{}", running.report());
    let said = running.stderr();
    assert_eq!(said.matches("shutting the machine down").count(), 1, "it is said once: {said}");
    assert!(!said.contains("switching the machine off"), "{said}");
}

#[test]
fn a_host_that_shuts_down_lets_the_guest_do_so_too() {
    require!(fuse);
    let published = Publication::new(87, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mut running = run_in(DEAF_AT_FIRST, &laptop, &["--no-sync"]);
    // As the end of a session does it, once more even; and it does so to every process there is.
    let machine =
        wait::until("the machine has started", PATIENCE, || child(running.id(), "qemu-system-x86_64"));
    for signal in [Signal::TERM, Signal::HUP] {
        rustix::process::kill_process(machine, signal).expect("the machine runs");
    }
    running.signal(Signal::TERM);
    wait::until("the button is pressed", PATIENCE, || {
        running.stderr().contains("shutting the machine down").then_some(())
    });
    running.signal(Signal::HUP);
    running.signal(Signal::TERM);
    let status = running.wait(PATIENCE);
    assert!(status.success(), "{}", running.report());
    let said = running.stderr();
    assert!(!said.contains("switching the machine off"), "{said}");
}

#[test]
fn a_machine_that_answers_nothing_any_more_can_be_switched_off() {
    require!(fuse);
    let published = Publication::new(85, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mut running = run_in(HANGS, &laptop, &["--no-sync"]);
    running.signal(Signal::INT);
    wait::until("the button is pressed", PATIENCE, || {
        running.stderr().contains("shutting the machine down").then_some(())
    });
    running.signal(Signal::INT);
    let status = running.wait(3 * PATIENCE);
    assert!(status.success(), "{}", running.report());
    let said = running.stderr();
    assert!(said.contains("switching the machine off"), "{said}");
    assert_eq!(bad_starts(&laptop), 1, "what hangs may not come up the next time either");
    // Its disks are whole, and nobody has them.
    published.content.assert_in(&laptop.mount("work").system());
}

#[test]
fn a_machine_that_crashes_while_it_shuts_down_is_not_off() {
    require!(fuse);
    let published = Publication::new(89, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mut running = run_in(CRASHES, &laptop, &[]);
    running.signal(Signal::INT);
    let status = running.wait(PATIENCE);
    assert_eq!(status.code(), Some(1), "{}", running.report());
    let said = running.stderr();
    assert!(said.contains("out of memory"), "{said}");
    assert!(!said.contains("synced work"), "{said}");
}

#[test]
fn a_machine_that_was_switched_off_lets_go_of_its_disks_without_a_network() {
    require!(fuse);
    let published = Publication::new(90, IMAGE_BYTES);
    let link = Link::start(published.server.address(), Shape::default());
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through(&link));
    laptop.create("work", "golden", None);
    let mut running = run_in(READS_AND_HANGS, &laptop, &["--no-sync"]);
    link.apply(Event::Down);
    wait::until("a read waits for the network", PATIENCE, || {
        running.stderr().contains("the server does not answer").then_some(())
    });
    running.signal(Signal::INT);
    wait::until("the button is pressed", PATIENCE, || {
        running.stderr().contains("shutting the machine down").then_some(())
    });
    running.signal(Signal::INT);
    let status = running.wait(3 * PATIENCE);
    assert!(status.success(), "{}", running.report());
    assert_eq!(bad_starts(&laptop), 0, "it may have waited for the network");
    // Nobody has them any more.
    let again = laptop.satchel(["--json", "status", "work"]).ok().json();
    assert!(again["live"].is_null(), "{again}");
}

/// Our own machine, which reads its kernel off its disk before it is one.
#[test]
fn a_machine_that_looks_for_its_kernel_without_a_network_can_be_switched_off() {
    require!(fuse);
    let published = Publication::new(91, IMAGE_BYTES);
    let link = Link::start(published.server.address(), Shape::default());
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through(&link));
    laptop.create("work", "golden", None);
    let mut mount = laptop.mount("work");
    link.apply(Event::Down);
    let (system, control) = (mount.system(), laptop.new_directory().join("control"));
    let start = || {
        let _ = std::fs::remove_file(&control);
        let vmm = Path::new(laptop.command(["help"]).get_program()).with_file_name("satchel-vmm");
        let mut command = std::process::Command::new(vmm);
        // KVM is asked for nothing before the kernel is found.
        command
            .args(["run", "--kvm", "/dev/null", "--serial", "none", "--memory", "128", "--disk"])
            .arg(&system);
        command.arg("--control").arg(&control);
        Process::start("satchel-vmm", &mut command)
    };
    let connect = || wait::until("it can be spoken to", PATIENCE, || UnixStream::connect(&control).ok());
    let mut told = start();
    wait::until("its read waits for the network", PATIENCE, || {
        mount.process().stderr().contains("the server does not answer").then_some(())
    });
    let mut speaker = connect();
    speaker.write_all(b"{\"command\":\"status\"}\n{\"command\":\"power-button\"}\n").expect("it listens");
    let mut said = String::new();
    speaker.read_to_string(&mut said).expect("it ends");
    assert_eq!(said.matches(r#"{"state":"searching"}"#).count(), 2, "{said}");
    assert!(said.contains(r#""end":"forced""#), "{said}");
    // What it read is answered before the kernel lets it go.
    link.apply(Event::Up);
    assert_eq!(told.wait(PATIENCE).code(), Some(5), "{}", told.report());

    link.apply(Event::Down);
    let mut signalled = start();
    connect().read_exact(&mut [0; 10]).expect("it greets");
    signalled.signal(Signal::TERM);
    wait::until("it says so", PATIENCE, || signalled.stderr().contains("it was switched off").then_some(()));
    link.apply(Event::Up);
    assert_eq!(signalled.wait(PATIENCE).code(), Some(5), "{}", signalled.report());
    mount.unmount();
}

#[test]
fn the_sync_at_the_end_can_be_interrupted_and_the_next_one_goes_on() {
    require!(fuse);
    let published = Publication::new(88, IMAGE_BYTES);
    // What is sent takes longer than anybody waits here.
    let up = Direction { rate_bps: Some(1_000_000), ..Direction::default() };
    let link = Link::start(published.server.address(), Shape { up, down: Direction::default() });
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through(&link));
    laptop.create("work", "golden", Some("16M"));
    let mount = laptop.mount("work");
    let mut home = Model::zeros(16 << 20);
    let mut noise = vec![0; 12 << 20];
    Rng::new(88).fill(&mut noise);
    home.write(&satchel_tests::model::open_for_writing(&mount.home()), 0, &noise);
    mount.unmount();

    let mut running = run_in(OBEYS, &laptop, &[]);
    let sent_before = link.counts().up_bytes;
    running.signal(Signal::INT);
    wait::until("it is being synced", PATIENCE, || {
        (link.counts().up_bytes - sent_before > 200_000).then_some(())
    });
    running.signal(Signal::INT);
    let status = running.wait(PATIENCE);
    assert_eq!(status.code(), Some(1), "{}", running.report());
    let said = running.stderr();
    assert!(said.contains("its changes were not synced: it was interrupted"), "{said}");

    link.apply(Event::Shape(Shape::default()));
    let _ = laptop.sync("work");
    let other = published.machine("other").mount("work");
    home.assert_in(&other.home());
    other.unmount();
}
