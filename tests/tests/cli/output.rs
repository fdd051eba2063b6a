//! Data on stdout, messages on stderr, one JSON value, colours for people only.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use satchel_tests::disk::Content;
use satchel_tests::model::open_for_writing;
use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Client, Event, Link, Publication, Shape, Signal, require};

use super::{IMAGE_BYTES, assert_refused};

const COMMANDS: [&str; 12] = [
    "login",
    "publish",
    "images",
    "desktops",
    "create",
    "mount",
    "run",
    "sync",
    "status",
    "history",
    "completions",
    "man",
];

#[test]
fn every_command_explains_itself() {
    let laptop = Client::new("laptop");
    let help = laptop.satchel(["--help"]).ok();
    assert_eq!(help.stderr, "");
    for command in COMMANDS {
        assert!(help.stdout.contains(&format!("\n  {command} ")), "{command} is not in:\n{}", help.stdout);
        let help = laptop.satchel([command, "--help"]).ok();
        assert_eq!(help.stderr, "", "{command}");
        let lines: Vec<&str> = help.stdout.lines().collect();
        assert!(
            lines[0].len() > 10 && help.stdout.contains(&format!("Usage: satchel {command}")),
            "{}",
            help.stdout
        );
        // Every option and argument says what it is for.
        let bare = lines.iter().zip(lines.iter().skip(1).chain([&""])).filter(|(line, next)| {
            let line = line.trim_start();
            let alone = line.starts_with("--") || line.starts_with('<') || line.starts_with('[');
            let alone = alone && !line.starts_with("[env: ") && !line.starts_with("[default: ");
            alone && !line.contains("  ") && !next.starts_with("          ")
        });
        assert_eq!(bare.count(), 0, "{}", help.stdout);
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "{}", help.stdout);
    }
    let version = laptop.satchel(["--version"]).ok();
    assert!(version.stdout.starts_with("satchel "), "{}", version.stdout);
}

#[test]
fn json_is_exactly_one_value_whatever_the_command() {
    require!(fuse);
    let published = Publication::new(90, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let access = published.access();
    let disk = published.disk.to_str().unwrap();
    let json = |machine: &Client, arguments: &[&str]| {
        let output = machine.satchel(["--json"].iter().chain(arguments)).ok();
        super::assert_clean(&output.stderr);
        assert!(output.stdout.ends_with('\n'));
        output.json()
    };
    let logged_in = json(
        &laptop,
        &["login", &access.url, "--token", &access.token, "--fingerprint", &access.fingerprint],
    );
    assert_eq!((&logged_in["user"], &logged_in["role"]), (&"alice".into(), &"user".into()), "{logged_in}");
    assert_eq!(json(&laptop, &["desktops"]), serde_json::json!([]));
    let published_again = json(&published.publisher, &["publish", disk, "--image", "golden"]);
    assert_eq!(published_again["unchanged"], true, "{published_again}");
    assert_eq!(published_again["note_kept"], serde_json::Value::Null, "{published_again}");
    let images = json(&laptop, &["images"]);
    assert_eq!(images[0]["image"], "golden", "{images}");
    assert_eq!(images[0]["channels"]["stable"], images[0]["latest"]["id"], "{images}");
    let created = json(&laptop, &["create", "work", "--image", "golden", "--home", "16M"]);
    assert_eq!((&created["desktop"], &created["sequence"]), (&"work".into(), &1.into()), "{created}");
    assert_eq!(json(&laptop, &["desktops"])[0]["desktop"], "work");
    assert_eq!(json(&laptop, &["history", "work"])[0]["id"], created["id"]);
    assert_eq!(json(&laptop, &["history", "--image", "golden"])[0]["sequence"], 1);

    let directory = laptop.new_directory();
    let process = laptop.start(["--json".as_ref(), "mount".as_ref(), "work".as_ref(), directory.as_os_str()]);
    let mut mount = laptop.mounted("work", &directory, process);
    let disk = open_for_writing(&mount.home());
    std::os::unix::fs::FileExt::write_all_at(&disk, b"something", 0).unwrap();
    drop(disk);
    let status = json(&laptop, &["status", "work"]);
    assert_eq!(status["mounted_at"], directory.display().to_string());
    assert_eq!(json(&laptop, &["sync", "work"])["version"]["sequence"], 2);
    assert!(mount.process().stop(Signal::INT, PATIENCE).success());
    let mounted: serde_json::Value = serde_json::from_str(&mount.process().stdout()).expect("one JSON value");
    assert_eq!(mounted["mounted_at"], directory.display().to_string(), "{mounted}");
    assert_eq!(json(&laptop, &["status", "work"])["unsynced_bytes"], 0);
    assert!(json(&laptop, &["sync", "work"])["version"].is_null());
    // A failure has no value.
    assert_refused(
        laptop.satchel(["--json", "history", "nothing"]),
        &["there is no desktop nothing"],
        &["satchel desktops"],
    );
}

#[test]
fn a_note_that_no_version_has_is_said_to_be_lost() {
    let published = Publication::new(97, 4 << 20);
    let publish = |note: &str| {
        let disk = published.disk.to_str().unwrap();
        published.publisher.satchel(["--json", "publish", disk, "--image", "golden", "-m", note]).ok()
    };
    let dropped = publish("with a new kernel");
    assert_eq!(dropped.json()["note_kept"], false, "{}", dropped.stdout);
    assert!(dropped.stderr.contains("the note was not kept: version 1 of golden"), "{}", dropped.stderr);
    Content::new(98).write_to(&published.disk, 4 << 20);
    for unchanged in [false, true] {
        // Twice, as one that is repeated because its end was not heard.
        let kept = publish("with a new kernel");
        let json = kept.json();
        assert_eq!((&json["unchanged"], &json["note_kept"]), (&unchanged.into(), &true.into()), "{json}");
        super::assert_clean(&kept.stderr);
        assert!(!kept.stderr.contains("note"), "{}", kept.stderr);
    }
}

#[test]
fn data_is_on_stdout_and_messages_are_not() {
    require!(fuse);
    let published = Publication::new(91, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let empty = laptop.satchel(["desktops"]).ok();
    assert_eq!((empty.stdout.as_str(), empty.stderr.lines().count()), ("", 1), "{}", empty.stderr);
    assert!(empty.stderr.contains("satchel create"), "{}", empty.stderr);
    laptop.create("work", "golden", Some("16M"));
    for command in [["images"].as_slice(), &["desktops"], &["history", "work"]] {
        let output = laptop.satchel(command).ok();
        assert_eq!(output.stderr, "", "{command:?}");
        assert!(output.stdout.lines().count() == 2, "a head and a line: {}", output.stdout);
        assert!(!output.stdout.contains('\u{1b}'));
    }
    let mut mount = laptop.mount("work");
    let directory = mount.directory().display().to_string();
    assert_eq!(mount.process().stdout(), format!("mounted work (version 1) on {directory}\n"));
    assert_eq!(mount.process().stderr_but_outages(), "");
    let status = laptop.satchel(["status", "work"]).ok();
    assert_eq!(status.stderr, "");
    assert!(status.stdout.contains(&directory), "{}", status.stdout);
    mount.process().signal(Signal::INT);
    mount.process().wait(PATIENCE);
    assert_eq!(mount.process().stderr_but_outages(), format!("unmounting {directory}\n"));
}

#[test]
fn a_reader_that_has_gone_away_is_no_failure() {
    let published = Publication::new(92, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    for command in [["images"].as_slice(), &["desktops"], &["--json", "history", "work"], &["--help"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe can be made");
        drop(reader);
        let output =
            laptop.command(command).stdin(Stdio::null()).stdout(writer).stderr(Stdio::piped()).output();
        let output = output.expect("satchel can be run");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {stderr}");
        assert_eq!(stderr, "", "{command:?}");
    }
}

/// Runs a command with a terminal as its standard error; what it wrote there.
fn on_a_terminal(command: &mut Command) -> String {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal can be made");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("the terminal can be used");
    let name = ptsname(&master, Vec::new()).expect("the terminal has a name");
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .open(name.to_str().expect("text"))
        .expect("the terminal opens");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(terminal.as_fd().try_clone_to_owned().expect("a descriptor can be copied")))
        .spawn()
        .expect("satchel can be run");
    // The terminal ends with the last who has it open.
    command.stderr(Stdio::null());
    drop(terminal);
    let mut written = Vec::new();
    let _ = File::from(master).read_to_end(&mut written);
    let _ = child.wait();
    String::from_utf8_lossy(&written).into_owned()
}

#[test]
fn colours_are_for_terminals_whose_owner_wants_them() {
    let published = Publication::new(93, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let refused = ["history", "nothing"];
    let coloured = on_a_terminal(laptop.command(refused).env_remove("NO_COLOR"));
    assert!(coloured.contains("\u{1b}[1;31merror:\u{1b}[0m there is no desktop nothing"), "{coloured:?}");
    assert!(coloured.contains("\u{1b}[1;36mhint:\u{1b}[0m"), "{coloured:?}");
    let plain = on_a_terminal(laptop.command(refused).env("NO_COLOR", "1"));
    assert!(plain.contains("error: there is no desktop nothing") && !plain.contains('\u{1b}'), "{plain:?}");
    let usage = on_a_terminal(laptop.command(["history"]).env("NO_COLOR", "1"));
    assert!(usage.contains("Usage") && !usage.contains('\u{1b}'), "{usage:?}");
    let piped = laptop
        .command(refused)
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .output()
        .expect("satchel can be run");
    assert!(!String::from_utf8_lossy(&piped.stderr).contains('\u{1b}'));
}

#[test]
fn an_interrupted_publication_is_continued_by_the_same_command() {
    const DISK_BYTES: u64 = 96 << 20;
    let published = Publication::new(94, IMAGE_BYTES);
    // Slow enough that it is still at it when it is interrupted.
    let link =
        Link::start(published.server.address(), Shape::symmetric(40_000_000, std::time::Duration::ZERO));
    let publisher = Client::new("build-machine");
    publisher.login(&published.server.access("it", "publisher").through(&link));
    let disk = publisher.directory().join("disk.raw");
    Content::new(94).write_to(&disk, DISK_BYTES);
    let arguments = ["publish".as_ref(), disk.as_os_str(), "--image".as_ref(), "large".as_ref()];
    let mut publishing = publisher.start(arguments);
    let packs = published.server.objects("image/large/packs");
    wait::until("a part of it has arrived", PATIENCE, || {
        let arrived = std::fs::read_dir(&packs).into_iter().flatten().flatten();
        (arrived.filter(|entry| !entry.file_name().to_string_lossy().contains('#')).count() > 0).then_some(())
    });
    let status = publishing.stop(Signal::INT, PATIENCE);
    assert_eq!(status.code(), Some(1), "{}", publishing.report());
    assert_eq!(publishing.stdout(), "");
    let said = publishing.stderr();
    assert!(
        said.ends_with("error: interrupted; the same command continues where this one stopped\n"),
        "{said}"
    );
    assert_refused(
        publisher.satchel(["history", "--image", "large"]),
        &["there is no image large"],
        &["satchel images"],
    );
    published.server.verify();
    link.apply(Event::Shape(Shape::default()));
    let before = link.counts().up_bytes;
    let report = publisher.satchel(["--json".as_ref()].into_iter().chain(arguments)).ok().json();
    let rest = link.counts().up_bytes - before;
    assert!(report["sent_bytes"].as_u64() > Some(0) && rest > 0, "{report}");
    assert!(
        report["new_bytes"].as_u64() < report["data_bytes"].as_u64(),
        "nothing that was sent counted: {report}"
    );
    published.server.verify();
    let laptop = published.machine("laptop");
    laptop.create("large", "large", Some("0"));
}

#[test]
fn an_interrupted_sync_is_continued_by_the_same_command() {
    require!(fuse);
    let published = Publication::new(95, IMAGE_BYTES);
    let link =
        Link::start(published.server.address(), Shape::symmetric(20_000_000, std::time::Duration::ZERO));
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through(&link));
    laptop.create("work", "golden", Some("32M"));
    let mut home = satchel_tests::Model::zeros(32 << 20);
    let mount = laptop.mount("work");
    let disk = open_for_writing(&mount.home());
    let mut noise = vec![0; 24 << 20];
    satchel_tests::Rng::new(95).fill(&mut noise);
    home.write(&disk, 0, &noise);
    drop(disk);
    mount.unmount();
    let mut syncing = laptop.start(["sync", "work"]);
    wait::until("some of it is sent", PATIENCE, || (link.counts().up_bytes > 4 << 20).then_some(()));
    let status = syncing.stop(Signal::INT, PATIENCE);
    assert_eq!(status.code(), Some(1), "{}", syncing.report());
    assert!(syncing.stderr().contains("error: interrupted"), "{}", syncing.stderr());
    link.apply(Event::Shape(Shape::default()));
    let _ = laptop.sync("work");
    let mount = published.machine("other").mount("work");
    home.assert_in(&mount.home());
    mount.unmount();
    published.server.verify();
}
