//! Desktops and forks that are removed: gone for every machine, taken back by the operator, and nobody's work lost with them.

use satchel_tests::{Client, Mount, Publication, Rng, require};

use super::story::{Disks, sync, unsynced_bytes};

#[test]
fn a_desktop_that_is_removed_is_gone_everywhere_and_can_be_taken_back() {
    require!(fuse);
    let published = Publication::new(90, 4 << 20);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(90);
    let mount = laptop.mount("work");
    disks.change(&mount, 10, &mut rng);
    let said = |arguments: &[&str]| laptop.satchel(arguments).exited(1).stderr;
    assert!(said(&["remove", "work", "--yes"]).contains("in use by another process"));
    mount.unmount();
    // Nobody is there to be asked; and what was written is synced nowhere.
    assert!(said(&["remove", "work"]).contains("hint: `--yes` says so"));
    let unsynced = said(&["remove", "work", "--yes"]);
    assert!(unsynced.contains("not synced") && unsynced.contains("hint: sync them first"), "{unsynced}");
    sync(&laptop);
    let there = other.mount("work");
    let held = said(&["remove", "work", "--yes"]);
    assert!(held.contains("is in use on ") && held.contains("hint: unmount it there"), "{held}");
    there.unmount();

    let removed = laptop.satchel(["--json", "remove", "work", "--yes"]).ok().json();
    assert_eq!((&removed["versions"], &removed["was_here"]), (&2.into(), &true.into()), "{removed}");
    assert!(!laptop.desktop_directory("work").exists());
    assert!(said(&["remove", "work", "--yes"]).contains("there is no desktop work"));
    assert!(said(&["history", "work"]).contains("there is no desktop work"));
    published.server.verify();

    // The operator brings it back, with all that was in it.
    let listed = published.server.run(&["remove"], &["--json"]).ok().json();
    assert_eq!(listed[0]["desktop"], "work", "{listed}");
    let _ = published.server.run(&["remove"], &["alice/work", "--take-back"]).ok();
    disks.assert_on_another_machine(&published);
    let mount = laptop.mount("work");
    disks.assert_in(&mount);
    mount.unmount();
    published.server.verify();
}

#[test]
fn what_only_this_machine_has_is_not_removed_unless_that_is_said() {
    require!(fuse);
    let mut published = Publication::new(92, 4 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let backup = published.server.back_up();
    let mut disks = Disks::new(&published);
    let mount = laptop.mount("work");
    disks.change(&mount, 10, &mut Rng::new(92));
    mount.unmount();
    sync(&laptop);
    published.server.restore(&backup);
    let refused = laptop.satchel(["remove", "work", "--yes"]).exited(1).stderr;
    assert!(refused.contains("version 2 of desktop work") && refused.contains("the only copy"), "{refused}");
    assert_eq!(laptop.status("work")["head"]["sequence"], 2);
    let _ = laptop.satchel(["remove", "work", "--yes", "--force"]).ok();
    assert!(!laptop.desktop_directory("work").exists());
}

#[test]
fn work_on_a_desktop_that_was_removed_elsewhere_becomes_a_fork_that_can_be_removed_too() {
    require!(fuse);
    let published = Publication::new(91, 4 << 20);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    let mut disks = Disks::new(&published);
    let mount = laptop.mount("work");
    disks.change(&mount, 10, &mut Rng::new(91));
    mount.unmount();
    // The lease is this machine's: the other one takes it, and removes what it sees.
    other.mount_with("work", &["--take"]).unmount();
    let _ = other.satchel(["remove", "work", "--yes"]).ok();
    let kept = laptop.satchel(["--json", "sync", "work"]).ok().json();
    let fork = kept["fork"]["fork"].as_str().unwrap_or_else(|| panic!("no fork: {kept}")).to_owned();
    assert_eq!(laptop.status("work")["fork"], fork.as_str());
    let mount = other.mount(&fork);
    disks.assert_in(&mount);
    mount.unmount();

    // What is removed at once leaves nothing behind.
    let _ = other.satchel(["remove", &fork, "--yes"]).ok();
    let removed = published.server.run(&["remove"], &["--json"]).ok().json();
    for removed in removed.as_array().expect("a list") {
        let (desktop, number) = (removed["desktop"].as_str().expect("a name"), &removed["number"]);
        let arguments = [&format!("alice/{desktop}"), "--removed", &number.to_string(), "--at-once"];
        let _ = published.server.run(&["remove"], &arguments).ok();
    }
    for _ in 0..2 {
        let _ = published.server.run(&["gc"], &["--grace", "0"]).ok();
    }
    let left = published.server.objects("user/alice/packs");
    let left = std::fs::read_dir(left).map(Iterator::count).unwrap_or(0);
    assert_eq!(left, 0, "packs of alice's are left");
    published.server.verify();
    published.machine("new").create("work", "golden", Some("16M"));
}

/// Two machines of alice's: what the second has done is the desktop, and what the first has, whose mount is open, its fork.
struct Forked {
    laptop: Client,
    other: Client,
    fork: String,
    mount: Mount,
    of_laptop: Disks,
    of_other: Disks,
}

fn forked(published: &Publication, seed: u64) -> Forked {
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    let (mut of_laptop, mut of_other) = (Disks::new(published), Disks::new(published));
    let mut rng = Rng::new(seed);
    let mount = laptop.mount("work");
    of_laptop.change(&mount, 10, &mut rng);
    let there = other.mount_with("work", &["--take"]);
    of_other.change(&there, 10, &mut rng);
    there.unmount();
    sync(&other);
    let kept = sync(&laptop);
    let fork = kept["fork"]["fork"].as_str().unwrap_or_else(|| panic!("no fork: {kept}")).to_owned();
    Forked { laptop, other, fork, mount, of_laptop, of_other }
}

#[test]
fn the_machine_of_a_fork_that_was_removed_goes_on_with_the_desktop() {
    require!(fuse);
    let published = Publication::new(94, 4 << 20);
    let Forked { laptop, other, fork, mount, of_other, .. } = forked(&published, 94);
    let refused = laptop.satchel(["remove", &fork, "--yes"]).exited(1).stderr;
    assert!(refused.contains(&format!("desktop work works in {fork}")), "{refused}");
    mount.unmount();
    let _ = other.satchel(["remove", &fork, "--yes"]).ok();
    let synced = laptop.satchel(["--json", "sync", "work"]).ok();
    assert!(
        synced.stderr.contains(&format!("{fork}, which this machine stood on, was removed")),
        "{}",
        synced.stderr
    );
    assert!(!synced.stderr.contains("backup"), "{}", synced.stderr);
    assert!(synced.json()["version"].is_null());
    let mount = laptop.mount("work");
    of_other.assert_in(&mount);
    mount.unmount();
}

#[test]
fn work_on_a_fork_that_was_removed_becomes_another_fork() {
    require!(fuse);
    let published = Publication::new(95, 4 << 20);
    let Forked { laptop, other, fork, mount, mut of_laptop, of_other } = forked(&published, 95);
    of_laptop.change(&mount, 10, &mut Rng::new(96));
    mount.unmount();
    let refused = laptop.satchel(["remove", &fork, "--yes"]).exited(1).stderr;
    assert!(refused.contains("not synced") && refused.contains("hint: `satchel adopt`"), "{refused}");
    let _ = other.satchel(["remove", &fork, "--yes"]).ok();
    assert!(unsynced_bytes(&laptop) > 0);
    let kept = sync(&laptop);
    let second = kept["fork"]["fork"].as_str().unwrap_or_else(|| panic!("no fork: {kept}")).to_owned();
    assert_ne!(second, fork);
    let mount = other.mount(&second);
    of_laptop.assert_in(&mount);
    mount.unmount();
    // And the machine is free of it.
    let mount = laptop.mount("work");
    of_other.assert_in(&mount);
    mount.unmount();
    published.server.verify();
}

#[test]
fn a_desktop_that_was_removed_elsewhere_is_not_brought_back_by_a_machine_without_work() {
    require!(fuse);
    let published = Publication::new(97, 4 << 20);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    let mut disks = Disks::new(&published);
    disks.change_on(&laptop, 10, &mut Rng::new(97));
    sync(&laptop);
    let _ = other.satchel(["remove", "work", "--yes"]).ok();
    let synced = laptop.satchel(["--json", "sync", "work"]).ok();
    assert!(
        synced.json()["version"].is_null() && synced.stderr.contains("work was removed on "),
        "{}",
        synced.stderr
    );
    assert_eq!(other.satchel(["--json", "desktops"]).ok().json(), serde_json::json!([]));
    // It can be looked at here, and let go.
    let mount = laptop.mount("work");
    disks.assert_in(&mount);
    mount.unmount();
    let removed = laptop.satchel(["--json", "remove", "work", "--yes"]).ok().json();
    assert_eq!(
        (&removed["versions"], &removed["was_here"]),
        (&serde_json::Value::Null, &true.into()),
        "{removed}"
    );
    assert!(!laptop.desktop_directory("work").exists());

    // One that is made anew under the name is taken up where nothing is lost by that, whatever its number.
    laptop.create("work", "golden", Some("16M"));
    laptop.mount("work").unmount();
    for (by, behind, writes) in [(&other, &laptop, 10), (&laptop, &other, 0)] {
        let _ = by.satchel(["remove", "work", "--yes"]).ok();
        by.create("work", "golden", Some("16M"));
        disks = Disks::new(&published);
        disks.change_on(by, writes, &mut Rng::new(98));
        sync(by);
        let mut mount = behind.mount("work");
        disks.assert_in(&mount);
        assert!(!mount.process().stderr().contains("backup"), "{}", mount.process().stderr());
        mount.unmount();
        assert_eq!(by.satchel(["--json", "desktops"]).ok().json().as_array().map(Vec::len), Some(1));
    }
    published.server.verify();
}

#[test]
fn a_checkpoint_of_a_desktop_that_was_removed_and_made_anew_is_kept_as_a_fork() {
    require!(fuse);
    let mut published = Publication::new(101, 4 << 20);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    let mut disks = Disks::new(&published);
    disks.change_on(&laptop, 10, &mut Rng::new(101));
    sync(&laptop);
    published.server.stop();
    let _ = laptop.satchel(["checkpoint", "work", "-m", "before"]).exited(1);
    published.server.start_again();
    let _ = other.satchel(["remove", "work", "--yes"]).ok();
    other.create("work", "golden", Some("16M"));
    // As far as the one before, and further.
    let mut anew = Disks::new(&published);
    for seed in [102, 103] {
        anew.change_on(&other, 5, &mut Rng::new(seed));
        sync(&other);
    }
    let kept = sync(&laptop);
    let fork = kept["fork"]["fork"].as_str().unwrap_or_else(|| panic!("no fork: {kept}")).to_owned();
    let mount = other.mount(&fork);
    disks.assert_in(&mount);
    mount.unmount();
    let history = other.history(&fork);
    assert_eq!(history[0]["note"], "before", "{history}");
}
