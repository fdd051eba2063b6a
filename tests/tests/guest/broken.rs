//! A version that does not start takes itself back.

use std::process::Command;

use satchel_tests::{Client, RunOptions, Signal, Turn, images, require, wait};

use super::BOOT_LIMIT;
use super::server::{DebianServer, emulated};

/// Where the plain image's file system begins, bytes.
const ROOT_OFFSET: u64 = 2 << 20;
const INIT: &str = "/usr/lib/systemd/systemd";

#[test]
fn a_version_that_does_not_start_takes_itself_back_and_leaves_the_home_alone() {
    require!(fuse, guest);
    let debian = DebianServer::start();
    let _turn = Turn::wait("guest");
    let laptop = Client::new("laptop");
    laptop.login(&debian.server.access("alice", "user"));
    let _ = laptop.satchel(["create", "work", "--image", "debian", "--home", "1G", "--mode", "keep"]).ok();
    let mut running = laptop.run("work", &emulated());
    running.guest().wait_ready(BOOT_LIMIT);
    let written = running
        .guest()
        .run("head -c 300000 /dev/urandom >/home/user/mine && sync && sha256sum </home/user/mine");
    wait::until("the start is known to be good", BOOT_LIMIT, || {
        let base = laptop.status("work")["base"]["id"].clone();
        let starts = std::fs::read_to_string(laptop.desktop_directory("work").join("starts.json")).ok()?;
        let starts: serde_json::Value = serde_json::from_str(&starts).ok()?;
        let start = starts["golden"].as_array()?.iter().find(|start| start["id"] == base)?.clone();
        (start["good"] == 1).then_some(())
    });
    running.shut_down(BOOT_LIMIT);

    // The next version's first program is no program.
    let broken = debian.publisher.directory().join("broken.raw");
    let copied = Command::new("cp").arg("--sparse=always").args([images::plain(), broken.clone()]).status();
    assert!(copied.is_ok_and(|status| status.success()), "the image cannot be copied");
    let no_program = debian.publisher.directory().join("no-program");
    std::fs::write(&no_program, "this starts nothing\n").expect("a file can be written");
    for command in [
        format!("rm {INIT}"),
        format!("write {} {INIT}", no_program.display()),
        format!("sif {INIT} mode 0100755"),
    ] {
        let disk = format!("{}?offset={ROOT_OFFSET}", broken.display());
        let output = Command::new("debugfs").args(["-w", "-R", &command, &disk]).output();
        let said = String::from_utf8_lossy(&output.expect("debugfs can be run").stderr).into_owned();
        assert_eq!(said.lines().count(), 1, "{command}: {said}");
    }
    let _ = debian.publisher.publish(&broken, "debian");

    for start in 1..=3 {
        let mut running = laptop.run("work", &RunOptions { syncs: false, ..emulated() });
        wait::until("the guest has not found its way up", BOOT_LIMIT, || {
            running.guest().transcript().contains("Kernel panic").then_some(())
        });
        // A person presses the power button of a machine that does nothing, and then holds it.
        running.process().signal(Signal::INT);
        wait::until("the power button was pressed", BOOT_LIMIT, || {
            running.process().stderr().contains("again forces it off").then_some(())
        });
        running.process().signal(Signal::INT);
        let status = running.process().wait(BOOT_LIMIT);
        assert!(status.success(), "start {start}: {}", running.process().report());
    }
    let mut running = laptop.run("work", &emulated());
    running.guest().wait_ready(BOOT_LIMIT);
    let said = running.process().stderr();
    assert!(said.contains("version 2 of debian did not start three times in a row"), "{said}");
    assert_eq!(running.guest().run("sha256sum </home/user/mine"), written);
    running.shut_down(BOOT_LIMIT);
    let states = debian.publisher.satchel(["--json", "channel", "debian"]).ok().json()["states"].clone();
    assert_eq!((&states[0]["sequence"], &states[0]["reverted"]), (&2.into(), &1.into()), "{states}");
    debian.server.verify();
}
