//! New golden versions under existing desktops: channels that move, for all or for some, and back; modes; versions that do not
//! start.

use std::path::Path;

use satchel_tests::disk::Content;
use satchel_tests::model::open_for_writing;
use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Class, Client, FaultyHttps, Model, Mount, Publication, require};

use super::story::{HOME_BYTES, IMAGE_BYTES};

const WRITTEN: &[u8] = b"written by the guest";

/// Publishes a version with content of its own; what its disk holds.
#[track_caller]
fn push(published: &Publication, seed: u64, options: &[&str]) -> Model {
    let content = Content::new(seed);
    content.write_to(&published.disk, IMAGE_BYTES);
    let disk = published.disk.to_str().expect("UTF-8");
    let words = ["publish", disk, "--image", "golden"].into_iter().chain(options.iter().copied());
    let _ = published.publisher.satchel(words).ok();
    Model::of(content, IMAGE_BYTES)
}

#[track_caller]
fn channel(published: &Publication, words: &[&str]) -> serde_json::Value {
    let words = ["--json", "channel", "golden"].into_iter().chain(words.iter().copied());
    published.publisher.satchel(words).ok().json()
}

#[track_caller]
fn create(machine: &Client, desktop: &str, mode: &str) {
    let words = ["create", desktop, "--image", "golden", "--home", "16M", "--mode", mode];
    let said = machine.satchel(words).ok().stdout;
    assert_eq!(said.contains("is gone when the machine is off"), mode == "renew", "{said}");
}

/// Mounts a desktop, looks at what its disks hold, does something with them, and unmounts; what the mount said.
#[track_caller]
fn visit(
    machine: &Client,
    desktop: &str,
    (system, home): (&Model, &Model),
    work: impl FnOnce(&Mount),
) -> String {
    let mut mount = machine.mount(desktop);
    system.assert_in(&mount.system());
    home.assert_in(&mount.home());
    work(&mount);
    let said = mount.process().stderr();
    mount.unmount();
    said
}

fn nothing(_: &Mount) {}

#[track_caller]
fn write(model: &mut Model, path: &Path, offset: u64) {
    let disk = open_for_writing(path);
    model.write(&disk, offset, WRITTEN);
    disk.sync_all().expect("a disk can be flushed");
}

/// What a desktop's history says of its versions, the newest first.
#[track_caller]
fn notes(machine: &Client, desktop: &str) -> Vec<String> {
    let history = machine.history(desktop);
    let versions = history.as_array().expect("a list");
    versions.iter().map(|version| version["note"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn desktops_take_up_a_new_version_as_their_mode_says() {
    require!(fuse);
    let published = Publication::new(60, IMAGE_BYTES);
    let first = Model::of(published.content, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let mut homes = Vec::new();
    let mut systems = Vec::new();
    for mode in ["renew", "keep", "own"] {
        create(&laptop, mode, mode);
        let (mut system, mut home) = (first.clone(), Model::zeros(HOME_BYTES));
        let mount = laptop.mount(mode);
        write(&mut system, &mount.system(), 70_000);
        write(&mut home, &mount.home(), 5000);
        system.assert_in(&mount.system());
        mount.unmount();
        // What a desktop that renews writes to its system is no change.
        let unsynced = laptop.status(mode)["disks"][0]["unsynced_bytes"].as_u64();
        assert_eq!(unsynced == Some(0), mode == "renew", "{mode}: {unsynced:?}");
        systems.push(if mode == "renew" { first.clone() } else { system });
        homes.push(home);
    }
    let visits = |systems: &[Model]| -> Vec<String> {
        let desktops = ["renew", "keep", "own"].iter().zip(systems.iter().zip(&homes));
        desktops.map(|(desktop, (system, home))| visit(&laptop, desktop, (system, home), nothing)).collect()
    };
    let said = visits(&systems);
    assert!(said.iter().all(|said| !said.contains("renewed")), "{said:?}");

    let second = push(&published, 61, &[]);
    let said = visits(&[second.clone(), second.clone(), systems[2].clone()]);
    for said in &said[..2] {
        assert!(said.contains("is renewed from version 1 of golden to version 2"), "{said}");
    }
    assert!(!said[2].contains("renewed"), "{}", said[2]);
    // The version before it holds what was changed, and so may be gone back to.
    assert_eq!(notes(&laptop, "renew"), ["renewed to golden@2", "", ""]);
    assert_eq!(notes(&laptop, "keep"), ["renewed to golden@2", "", ""]);
    assert_eq!(laptop.history("own").as_array().map(Vec::len), Some(1));
    for (desktop, mode, base) in [("renew", "renew", 2), ("keep", "keep", 2), ("own", "own", 1)] {
        let status = laptop.status(desktop);
        assert_eq!((&status["system_mode"], &status["base"]["sequence"]), (&mode.into(), &base.into()));
    }
    // Again, and on another machine, there is nothing to take up.
    let said = visits(&[second.clone(), second.clone(), systems[2].clone()]);
    assert!(said.iter().all(|said| !said.contains("renewed")), "{said:?}");
    let other = published.machine("other");
    visit(&other, "renew", (&second, &homes[0]), nothing);

    // A desktop of its own moves when it is told to, and back to what it was.
    let _ = laptop.satchel(["rebase", "own"]).ok();
    visit(&laptop, "own", (&second, &homes[2]), |mount| write(&mut homes[2].clone(), &mount.home(), 90_000));
    let mut home = homes[2].clone();
    home.wrote(90_000, WRITTEN);
    let _ = laptop.satchel(["rebase", "own", "--undo"]).ok();
    visit(&laptop, "own", (&systems[2], &home), nothing);
    // So does one that keeps its changes, and stays there until the channel moves on.
    let _ = laptop.satchel(["rebase", "keep", "--undo"]).ok();
    visit(&laptop, "keep", (&systems[1], &homes[1]), nothing);
    let refused = laptop.satchel(["rebase", "own", "--to", "1"]).exited(1);
    assert!(refused.stderr.contains("it stands on version 1 of image golden already"), "{}", refused.stderr);
    let third = push(&published, 62, &[]);
    visit(&laptop, "keep", (&third, &homes[1]), nothing);
    // As does one that was told where to be, until it is told otherwise.
    let said = laptop.satchel(["rebase", "keep", "--to", "2"]).ok().stdout;
    assert!(said.contains("until its channel names another version than 3"), "{said}");
    for _ in 0..2 {
        visit(&laptop, "keep", (&second, &homes[1]), nothing);
    }
    let _ = laptop.satchel(["rebase", "keep"]).ok();
    visit(&laptop, "keep", (&third, &homes[1]), nothing);
    published.server.verify();
}

#[test]
fn a_desktops_mode_can_be_changed() {
    require!(fuse);
    let published = Publication::new(68, IMAGE_BYTES);
    let first = Model::of(published.content, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    create(&laptop, "work", "own");
    let (mut system, mut home) = (first.clone(), Model::zeros(HOME_BYTES));
    let mount = laptop.mount("work");
    write(&mut system, &mount.system(), 70_000);
    write(&mut home, &mount.home(), 5000);
    mount.unmount();

    // What was not synced yet is, and nothing else changes.
    let said = laptop.satchel(["rebase", "work", "--mode", "keep"]).ok().stdout;
    assert_eq!(said.trim(), "the mode of work is keep, and was own (version 3)");
    assert_eq!(notes(&laptop, "work"), ["mode keep, before own", "", ""]);
    visit(&laptop, "work", (&system, &home), nothing);
    let refused = laptop.satchel(["rebase", "work", "--mode", "keep"]).exited(1);
    assert!(refused.stderr.contains("its mode is keep already"), "{}", refused.stderr);

    // One that renews begins with the image's system disk; the other is in the version before.
    let said = laptop.satchel(["rebase", "work", "--mode", "renew"]).ok().stdout;
    assert!(said.contains("as it was in version 3 (satchel browse work@3 DIRECTORY)"), "{said}");
    visit(&laptop, "work", (&first, &home), |mount| write(&mut first.clone(), &mount.system(), 9000));
    visit(&laptop, "work", (&first, &home), nothing);
    let other = published.machine("other");
    visit(&other, "work", (&first, &home), nothing);

    // What a machine that renewed wrote last is no part of what is kept from now on.
    visit(&laptop, "work", (&first, &home), |mount| write(&mut first.clone(), &mount.system(), 9000));
    let changed = laptop.satchel(["--json", "rebase", "work", "--mode", "own"]).ok().json();
    assert_eq!((&changed["from"], &changed["to"]), (&"renew".into(), &"own".into()), "{changed}");
    let mut system = first;
    visit(&laptop, "work", (&system.clone(), &home), |mount| write(&mut system, &mount.system(), 30_000));
    visit(&laptop, "work", (&system, &home), nothing);
    let _ = push(&published, 69, &[]);
    visit(&laptop, "work", (&system, &home), nothing);
    assert_eq!(laptop.status("work")["system_mode"], "own");
    published.server.verify();
}

#[test]
fn a_channel_moves_for_some_and_back_for_all() {
    require!(fuse);
    let published = Publication::new(63, IMAGE_BYTES);
    let (first, home) = (Model::of(published.content, IMAGE_BYTES), Model::zeros(HOME_BYTES));
    let laptop = published.machine("laptop");
    create(&laptop, "work", "keep");
    visit(&laptop, "work", (&first, &home), nothing);

    // A channel that has named one version alone has none on which others could stay.
    let disk = published.disk.to_str().unwrap();
    for staged in [
        ["channel", "golden", "stable", "--percent", "50"].as_slice(),
        &["publish", disk, "--image", "golden", "--percent", "50"],
    ] {
        let said = published.publisher.satchel(staged).exited(1).stderr;
        assert!(said.contains("leave --percent out") && !said.contains('`'), "{said}");
    }

    // Staged for nobody: who is there stays, and who comes gets what the others have.
    let second = push(&published, 64, &["--percent", "0"]);
    visit(&laptop, "work", (&first, &home), nothing);
    create(&laptop, "new", "renew");
    visit(&laptop, "new", (&first, &home), nothing);
    let paused = channel(&published, &["stable", "--percent", "100", "--pause"]);
    assert_eq!((&paused["percent"], &paused["paused"]), (&100.into(), &true.into()), "{paused}");
    visit(&laptop, "work", (&first, &home), nothing);
    channel(&published, &["stable", "--resume"]);
    visit(&laptop, "work", (&second, &home), nothing);
    visit(&laptop, "new", (&second, &home), nothing);

    // Back, at once; what was seen before is no reason to refuse, since the publisher says so.
    let back = channel(&published, &["stable", "--rollback"]);
    assert_eq!(back["version"]["sequence"], 1, "{back}");
    let said = visit(&laptop, "work", (&first, &home), nothing);
    assert!(said.contains("from version 2 of golden to version 1"), "{said}");
    create(&laptop, "third", "renew");
    visit(&laptop, "third", (&first, &home), nothing);
    let words = ["channel", "golden", "stable", "--rollback"];
    let refused = published.publisher.satchel(words).exited(1);
    assert!(refused.stderr.contains("there is no move of channel stable to take back"), "{}", refused.stderr);
    // For a machine that has seen a newer version before it follows, the word is void until it is given anew.
    push(&published, 70, &["--channel", "testing"]);
    let pins = laptop.state().join("pins.json");
    let read = std::fs::read(&pins).expect("a file can be read");
    let mut seen: serde_json::Value = serde_json::from_slice(&read).expect("JSON");
    seen["images"]["golden"]["newest_sequence"] = 3.into();
    seen["images"]["golden"]["channels"] = serde_json::json!({});
    std::fs::write(&pins, seen.to_string()).expect("a file can be written");
    visit(&laptop, "new", (&second, &home), nothing);
    let anew = channel(&published, &["stable", "1"]);
    assert_eq!((&anew["version"]["sequence"], &anew["rollback"]["newest"]), (&1.into(), &3.into()), "{anew}");
    visit(&laptop, "new", (&first, &home), nothing);
    // A channel that is yet to be made has nobody who could stay behind.
    let disk = published.disk.to_str().unwrap();
    for staged in [
        ["channel", "golden", "beta", "2", "--percent", "10"].as_slice(),
        &["channel", "golden", "beta", "2", "--pause"],
        &["publish", disk, "--image", "golden", "--channel", "beta", "--percent", "10"],
        &["publish", disk, "--image", "never", "--percent", "10"],
    ] {
        let said = published.publisher.satchel(staged).exited(1).stderr;
        assert!(said.contains("channel") && said.contains("for all"), "{said}");
    }
    let images = published.publisher.satchel(["--json", "images"]).ok().stdout;
    assert!(!images.contains("beta") && !images.contains("never"), "{images}");
    // Whoever lacks the publisher's key, or role, moves nothing.
    let refused = laptop.satchel(["channel", "golden", "stable", "2"]).exited(1);
    assert!(refused.stderr.contains("may not write image golden"), "{}", refused.stderr);
    channel(&published, &["stable", "2"]);
    visit(&laptop, "work", (&second, &home), nothing);

    // A version of another image is none of this one's.
    Content::new(65).write_to(&published.disk, IMAGE_BYTES);
    let other = published.publisher.publish(&published.disk, "other");
    let id = published.publisher.satchel(["--json", "history", "--image", "other"]).ok().json();
    let id = id[0]["id"].as_str().unwrap_or_else(|| panic!("{}", other.stdout)).to_owned();
    let refused = published.publisher.satchel(["channel", "golden", "stable", &id]).exited(1);
    assert!(refused.stderr.contains("image golden has no version"), "{}", refused.stderr);
}

#[test]
fn a_version_that_does_not_start_is_left_and_what_comes_next_is_taken_up() {
    require!(fuse);
    let published = Publication::new(66, IMAGE_BYTES);
    let first = Model::of(published.content, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    create(&laptop, "work", "renew");
    let mut home = Model::zeros(HOME_BYTES);
    visit(&laptop, "work", (&first, &home.clone()), |mount| write(&mut home, &mount.home(), 4096));
    let base = laptop.status("work")["base"].clone();
    let second = push(&published, 67, &[]);
    visit(&laptop, "work", (&second, &home), nothing);

    // As three machines leave it that never came up, after one that did on the version before.
    let path = laptop.desktop_directory("work").join("starts.json");
    let bad = laptop.status("work")["base"].clone();
    let starts = serde_json::json!({"version": 1, "skipped": null, "golden": [
        {"id": base["id"], "sequence": 1, "begun": 0, "good": 1},
        {"id": bad["id"], "sequence": 2, "begun": 3, "good": 0},
    ]});
    std::fs::write(&path, starts.to_string()).expect("a file can be written");
    let said = visit(&laptop, "work", (&first, &home), nothing);
    assert!(said.contains("version 2 of golden did not start three times in a row"), "{said}");
    // It stays there, and the publisher is told.
    visit(&laptop, "work", (&first, &home), nothing);
    assert_eq!(notes(&laptop, "work")[0], "reverted to golden@1: version 2 did not start 3 times");
    let states = channel(&published, &[])["states"].clone();
    assert_eq!((&states[0]["sequence"], &states[0]["reverted"]), (&2.into(), &1.into()), "{states}");
    assert_eq!((&states[1]["desktops"], &states[1]["good"]), (&1.into(), &1.into()), "{states}");
    let third = push(&published, 68, &[]);
    visit(&laptop, "work", (&third, &home), nothing);

    // What mends a version is taken up at once, without a stop at the one before.
    let id = laptop.status("work")["base"]["id"].clone();
    let starts = serde_json::json!({"version": 1, "skipped": null, "golden": [
        {"id": base["id"], "sequence": 1, "begun": 0, "good": 1},
        {"id": id, "sequence": 3, "begun": 3, "good": 0},
    ]});
    std::fs::write(&path, starts.to_string()).expect("a file can be written");
    let fourth = push(&published, 69, &[]);
    visit(&laptop, "work", (&fourth, &home), nothing);
    assert_eq!(notes(&laptop, "work")[0], "renewed to golden@4");
}

/// Starts a desktop; the golden version it is on then.
#[track_caller]
fn started(machine: &Client, desktop: &str) -> u64 {
    machine.mount(desktop).unmount();
    machine.status(desktop)["base"]["sequence"].as_u64().expect("a number")
}

#[test]
fn what_a_person_said_holds_until_the_channel_names_another_version() {
    require!(fuse);
    let published = Publication::new(80, IMAGE_BYTES);
    let _ = push(&published, 81, &[]);
    let laptop = published.machine("laptop");
    let rebase = |words: &[&str]| laptop.satchel(["rebase", "work"].iter().chain(words)).ok().stdout;
    create(&laptop, "work", "keep");
    assert_eq!(started(&laptop, "work"), 2);
    assert_eq!(laptop.status("work")["passed_over"], serde_json::Value::Null);

    // Ahead of its channel and back: no version is passed over.
    let _ = push(&published, 82, &["--channel", "beta"]);
    let said = rebase(&["--to", "3"]);
    assert!(said.contains("until its channel names another version than 2"), "{said}");
    assert_eq!(started(&laptop, "work"), 3);
    let said = rebase(&["--undo"]);
    assert!(!said.contains("stays"), "{said}");
    assert_eq!(started(&laptop, "work"), 2);
    channel(&published, &["stable", "3"]);
    assert_eq!(started(&laptop, "work"), 3);

    // Behind its channel until that moves on; what it named then is followed when it is named again.
    let said = rebase(&["--undo"]);
    assert!(said.contains("until its channel names another version than 3"), "{said}");
    assert_eq!(started(&laptop, "work"), 2);
    let status = laptop.status("work");
    assert_eq!(status["passed_over"]["sequence"], 3, "{status}");
    let said = laptop.satchel(["status", "work"]).ok().stdout;
    assert!(said.contains("golden:stable names version 3, which is not taken up here"), "{said}");
    let _ = push(&published, 83, &[]);
    assert_eq!(started(&laptop, "work"), 4);
    assert_eq!(laptop.status("work")["passed_over"], serde_json::Value::Null);
    channel(&published, &["stable", "--rollback"]);
    assert_eq!(started(&laptop, "work"), 3);

    // Nor is what was left by going back and forth.
    channel(&published, &["stable", "4"]);
    assert_eq!(started(&laptop, "work"), 4);
    rebase(&["--to", "3"]);
    rebase(&["--undo"]);
    channel(&published, &["stable", "--rollback"]);
    assert_eq!(started(&laptop, "work"), 3);

    // Ahead of a channel that was taken back.
    rebase(&["--to", "4"]);
    assert_eq!(started(&laptop, "work"), 4);
    let _ = push(&published, 84, &[]);
    assert_eq!(started(&laptop, "work"), 5);
    published.server.verify();
}

#[test]
fn a_desktop_that_is_rolled_back_past_an_update_stays_there() {
    require!(fuse);
    let published = Publication::new(85, IMAGE_BYTES);
    let (laptop, other) = (published.machine("laptop"), published.machine("other"));
    for mode in ["keep", "renew", "own"] {
        create(&laptop, mode, mode);
        assert_eq!(started(&laptop, mode), 1);
    }
    create(&laptop, "elsewhere", "keep");
    let _ = push(&published, 86, &[]);
    for (mode, on) in [("keep", 2), ("renew", 2), ("own", 1)] {
        assert_eq!(started(&laptop, mode), on);
    }
    assert_eq!(started(&laptop, "elsewhere"), 2);
    let _ = laptop.satchel(["rebase", "own"]).ok();
    let roll = |desktop: &str, words: &[&str]| {
        laptop.satchel(["rollback", desktop, "1"].iter().chain(words)).ok().stdout
    };
    let said = [roll("keep", &[]), roll("renew", &["--system-only"]), roll("own", &[])];
    for said in &said[..2] {
        assert!(said.contains("until its channel names another version than 2"), "{said}");
    }
    assert!(said[1].contains("new at each start (mode renew)"), "{}", said[1]);
    assert!(!said[2].contains("channel") && !said[0].contains("renew)"), "{said:?}");
    for mode in ["keep", "renew", "own"] {
        assert_eq!(started(&laptop, mode), 1, "{mode}");
    }
    // The home alone is on no golden version.
    let said = roll("keep", &["--home-only"]);
    assert!(!said.contains("channel"), "{said}");
    // Where nothing of the desktop is, nothing can be kept in mind.
    let said = other.satchel(["rollback", "elsewhere", "1"]).ok().stdout;
    assert!(said.contains("the next start takes up version 2 of golden again"), "{said}");
    let said = roll("elsewhere", &[]);
    assert!(
        said.contains("as it was at version 1 already") && said.contains("another version than 2"),
        "{said}"
    );
    assert_eq!(started(&laptop, "elsewhere"), 1);
    assert_eq!(started(&other, "elsewhere"), 2);
    let _ = push(&published, 87, &[]);
    for (mode, on) in [("keep", 3), ("renew", 3), ("own", 1)] {
        assert_eq!(started(&laptop, mode), on, "{mode}");
    }
    published.server.verify();
}

/// The golden version that a desktop is made on.
#[track_caller]
fn made_on(machine: &Client, desktop: &str, image: &str) -> u64 {
    let words = ["--json", "create", desktop, "--image", image, "--home", "16M", "--mode", "keep"];
    machine.satchel(words).ok().json()["image_sequence"].as_u64().expect("a number")
}

#[test]
fn each_channel_goes_back_by_its_own_publishers_word_alone() {
    require!(fuse);
    let mut published = Publication::new(88, IMAGE_BYTES);
    let _ = push(&published, 89, &["--channel", "beta"]);
    let laptop = published.machine("laptop");
    assert_eq!(made_on(&laptop, "ahead", "golden:beta"), 2);
    // The other channel lags behind, as ever.
    assert_eq!(made_on(&laptop, "work", "golden"), 1);
    let directory = laptop.new_directory();
    let export = ["export", "golden:stable", directory.to_str().expect("UTF-8")];
    let _ = laptop.satchel(export).ok();

    let backup = published.server.back_up();
    channel(&published, &["stable", "2"]);
    assert_eq!(made_on(&laptop, "seen", "golden"), 2);
    published.server.restore(&backup);
    let create = ["create", "back", "--image", "golden", "--home", "16M"];
    for words in [&create[..], &export] {
        let refused = laptop.satchel(words).exited(1).stderr;
        assert!(refused.contains("version 1 of image golden, older than version 2"), "{refused}");
        assert!(refused.contains("`golden@1`") && !refused.contains("--image"), "{refused}");
    }
    // What was seen before channels were told apart counts for each that was not seen since.
    let pins = laptop.state().join("pins.json");
    let read = std::fs::read(&pins).expect("a file can be read");
    let mut old: serde_json::Value = serde_json::from_slice(&read).expect("JSON");
    old["images"]["golden"].as_object_mut().expect("an object").remove("channels");
    old["images"]["golden"]["newest_sequence"] = 2.into();
    std::fs::write(&pins, old.to_string()).expect("a file can be written");
    let _ = laptop.satchel(create).exited(1);
    assert_eq!(made_on(&laptop, "beta", "golden:beta"), 2);
    let _ = laptop.satchel(create).exited(1);
    assert_eq!(made_on(&laptop, "named", "golden@1"), 1);
}

#[test]
fn a_version_that_reaches_no_desktop_reaches_no_new_one() {
    require!(fuse);
    let published = Publication::new(90, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let _ = push(&published, 91, &["--percent", "0"]);
    // Seen by who named it, and by a desktop that the move reached.
    assert_eq!(made_on(&laptop, "named", "golden@2"), 2);
    assert_eq!(made_on(&laptop, "new", "golden"), 1);
    let _ = push(&published, 92, &["--percent", "99"]);
    let reached = (0..30).find(|number| {
        let desktop = format!("desktop-{number}");
        assert!(made_on(&laptop, &desktop, "golden") < 3);
        started(&laptop, &desktop) == 3
    });
    assert!(reached.is_some());
    channel(&published, &["stable", "--percent", "0"]);
    assert!(made_on(&laptop, "newer", "golden") < 3);
    // Taken from all it was for without the publisher's word, the one before it is had by its name alone.
    channel(&published, &["stable", "--percent", "100"]);
    assert_eq!(made_on(&laptop, "all", "golden"), 3);
    channel(&published, &["stable", "--percent", "0"]);
    let refused = laptop.satchel(["create", "none", "--image", "golden", "--home", "16M"]).exited(1).stderr;
    assert!(refused.contains("older than version 3"), "{refused}");
    published.server.verify();
}

/// Nothing can be committed on a version that the server does not know. What is on a home goes over to one that it knows.
#[test]
fn a_home_on_a_version_that_a_set_back_server_does_not_know_reaches_it_on_another() {
    require!(fuse);
    let mut published = Publication::new(76, IMAGE_BYTES);
    let first = Model::of(published.content, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let desktops = [("told", "renew"), ("waits", "renew"), ("keeps", "keep")];
    for (desktop, mode) in desktops {
        create(&laptop, desktop, mode);
    }
    let backup = published.server.back_up();
    let second = push(&published, 77, &[]);
    let mut home = Model::zeros(HOME_BYTES);
    for at in [5000, 90_000] {
        let before = home.clone();
        home.wrote(at, WRITTEN);
        for (desktop, _) in desktops {
            visit(&laptop, desktop, (&second, &before), |mount| {
                write(&mut before.clone(), &mount.home(), at)
            });
            let _ = laptop.sync(desktop);
        }
    }
    published.server.restore(&backup);

    // What is written goes on to be kept here, and a person is told.
    for (desktop, _) in desktops {
        let before = home.clone();
        let said = visit(&laptop, desktop, (&second, &before), |mount| {
            write(&mut before.clone(), &mount.home(), 200_000);
        });
        assert!(said.contains("nor does it know version 2 of golden"), "{said}");
        let _ = laptop.satchel(["sync", desktop]).exited(1);
    }
    home.wrote(200_000, WRITTEN);
    let fork_of = |desktop: &str| {
        let forks = laptop.satchel(["--json", "forks", desktop]).ok().json();
        forks[0]["desktop"].as_str().map(str::to_owned)
    };
    let other = published.machine("other");
    let refused = laptop.satchel(["rebase", "keeps", "--to", "1"]).exited(1);
    assert!(refused.stderr.contains("does not know version 2 of image golden"), "{}", refused.stderr);
    visit(&laptop, "keeps", (&second, &home), nothing);
    assert_eq!(fork_of("keeps"), None);

    // Back to what the server knows goes only who says so.
    visit(&laptop, "told", (&second, &home), nothing);
    let _ = laptop.satchel(["rebase", "told", "--to", "1"]).ok();
    visit(&other, &fork_of("told").expect("a fork"), (&first, &home), nothing);
    visit(&laptop, "told", (&first, &Model::zeros(HOME_BYTES)), nothing);

    // What is published next is taken up as ever.
    let third = push(&published, 78, &[]);
    let said = visit(&laptop, "waits", (&third, &home), nothing);
    assert!(said.contains("the home of waits is kept in the fork"), "{said}");
    visit(&other, &fork_of("waits").expect("a fork"), (&third, &home), nothing);
    let _ = laptop.satchel(["adopt", &fork_of("waits").expect("a fork")]).ok();
    visit(&laptop, "waits", (&third, &home), nothing);
    published.server.verify();
}

#[test]
fn a_push_reaches_a_mounted_desktop_and_waits_for_its_next_start() {
    require!(fuse);
    let published = Publication::new(69, IMAGE_BYTES);
    let (first, home) = (Model::of(published.content, IMAGE_BYTES), Model::zeros(HOME_BYTES));
    let proxy = FaultyHttps::start(&published.server.url(), published.server.fingerprint());
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through_faulty(&proxy));
    create(&laptop, "work", "keep");
    let mut mount = laptop.mount_with("work", &["--ask-every", "1"]);
    first.assert_in(&mount.system());
    let second = push(&published, 70, &[]);
    wait::until("the next version is ready", PATIENCE, || {
        mount.process().stderr().contains("version 2 of golden is ready for the next start").then_some(())
    });
    first.assert_in(&mount.system());
    assert_eq!(laptop.status("work")["channel_version"]["version"]["sequence"], 2);
    let fetched = |machine: &Client| machine.status("work")["live"]["fetched_chunks"].as_u64();
    // A sync of what this version brings lets go of older things only.
    let mut home = home;
    write(&mut home, &mount.home(), 5000);
    let _ = laptop.sync("work");
    mount.unmount();
    let before = proxy.exchanges().len();
    // Of what was read before, all that was stored at all is here already: zeros that became data are not foreseen.
    let mount = laptop.mount("work");
    second.assert_in(&mount.system());
    assert!(fetched(&laptop) < Some(32), "{:?} of 64 chunks", fetched(&laptop));
    home.assert_in(&mount.home());
    mount.unmount();
    let exchanges = proxy.exchanges().split_off(before);
    let again: Vec<_> = exchanges
        .iter()
        .filter(|exchange| exchange.class == Class::Segments && exchange.method == "GET")
        .collect();
    assert!(again.is_empty(), "{again:?}");
}
