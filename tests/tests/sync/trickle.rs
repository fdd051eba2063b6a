//! A desktop in use is synced by itself.

use satchel_tests::model::open_for_writing;
use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Publication, Rng, require};

use super::story::{Disks, sync, unsynced_bytes, versions};

#[test]
fn what_is_written_goes_up_by_itself_and_a_lost_laptop_costs_little() {
    require!(fuse);
    let published = Publication::new(60, 4 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let mount = laptop.mount_with("work", &["--sync-every", "1s"]);
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(60);
    for _ in 0..3 {
        disks.change(&mount, 10, &mut rng);
        wait::until("everything is synced", PATIENCE, || (unsynced_bytes(&laptop) == 0).then_some(()));
    }
    let synced = versions(&laptop);
    assert!(synced.len() >= 4, "{synced:?}");
    // Nothing is written, nothing is synced, and the laptop falls into a river.
    mount.kill9();
    assert_eq!(versions(&laptop), synced);
    disks.assert_on_another_machine(&published);
    published.server.verify();
}

#[test]
fn work_on_a_desktop_that_the_server_has_lost_goes_up_by_itself_as_a_fork() {
    require!(fuse);
    let mut published = Publication::new(64, 4 << 20);
    let laptop = published.machine("laptop");
    let backup = published.server.back_up();
    laptop.create("work", "golden", Some("16M"));
    let mount = laptop.mount_with("work", &["--sync-every", "1s"]);
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(64);
    disks.change(&mount, 10, &mut rng);
    wait::until("it is synced", PATIENCE, || (unsynced_bytes(&laptop) == 0).then_some(()));
    published.server.restore(&backup);
    disks.change(&mount, 10, &mut rng);
    let fork = wait::until("there is a fork", PATIENCE, || {
        let forks = laptop.satchel(["--json", "forks", "work"]);
        (forks.code == Some(0)).then(|| forks.json()[0]["desktop"].as_str().map(str::to_owned))?
    });
    wait::until("all is synced", PATIENCE, || (unsynced_bytes(&laptop) == 0).then_some(()));
    let other = published.machine("other").mount_with(&fork, &["--read-only"]);
    disks.assert_in(&other);
    other.unmount();
    mount.unmount();
}

#[test]
fn a_sync_somebody_waits_for_is_not_kept_waiting_by_the_one_that_goes_on_by_itself() {
    require!(fuse);
    let published = Publication::new(61, 4 << 20);
    let laptop = published.machine_with_desktop("laptop");
    // At this rate it takes an hour.
    let mount = laptop.mount_with("work", &["--sync-every", "1s", "--sync-rate", "2K"]);
    let mut disks = Disks::new(&published);
    let mut noise = vec![0; 8 << 20];
    Rng::new(61).fill(&mut noise);
    disks.home.write(&open_for_writing(&mount.home()), 0, &noise);
    wait::until("the first pack arrives", PATIENCE, || {
        std::fs::read_dir(published.server.objects("user/alice/packs")).ok()?.next().map(drop)
    });
    disks.change(&mount, 10, &mut Rng::new(62));
    let report = sync(&laptop);
    assert_eq!(unsynced_bytes(&laptop), 0, "{report}");
    disks.assert_on_another_machine(&published);
    mount.unmount();
    published.server.verify();
}

#[test]
fn a_checkpoint_that_could_not_be_sent_keeps_its_state_and_its_note() {
    require!(fuse);
    let mut published = Publication::new(66, 4 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let mount = laptop.mount("work");
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(66);
    disks.change(&mount, 10, &mut rng);
    let checkpoint = |message: &str| laptop.satchel(["checkpoint", "work", "-m", message]);
    // Blocks are written in part as well, which takes the rest of them.
    let _ = laptop.satchel(["pin", "work"]).ok();
    published.server.stop();
    let kept = checkpoint("before the journey").exited(1).stderr;
    assert!(kept.contains("the checkpoint was made on this machine; the next sync sends it"), "{kept}");
    assert_eq!(laptop.status("work")["uncommitted_note"], "before the journey");
    let before = disks.clone();
    disks.change(&mount, 10, &mut rng);
    let refused = checkpoint("on the way").exited(1).stderr;
    assert!(refused.contains("no checkpoint was made"), "{refused}");
    mount.unmount();
    published.server.start_again();
    sync(&laptop);
    assert_eq!(laptop.status("work")["uncommitted_note"], serde_json::Value::Null);
    let history = laptop.history("work");
    let noted = history.as_array().expect("a list").iter().find(|version| !version["note"].is_null());
    let noted = noted.unwrap_or_else(|| panic!("no version has a note: {history}"));
    assert_eq!(noted["note"], "before the journey", "{history}");
    disks.assert_on_another_machine(&published);
    let _ = laptop.satchel(["rollback", "work", &noted["sequence"].to_string()]).ok();
    before.assert_on_another_machine(&published);
    // What would say nothing, or more than a version holds, is none.
    let _ = checkpoint(" ").exited(2);
    let _ = checkpoint(&"x".repeat(1001)).exited(2);
    for message in ["before\nthe upgrade", "a\tb", "a\u{202e}b"] {
        let refused = checkpoint(message).exited(2).stderr;
        assert!(refused.contains("one line of plain text"), "{refused}");
        let _ = laptop.satchel(["sync", "work", "-m", message]).exited(2);
    }
    sync(&laptop);
}

#[test]
fn a_checkpoint_is_a_version_to_come_back_to() {
    require!(fuse);
    let published = Publication::new(63, 4 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let checkpoint =
        |message: &str| laptop.satchel(["--json", "checkpoint", "work", "-m", message]).ok().json();
    // Not mounted, and nothing changed.
    assert_eq!(checkpoint("as it came")["version"]["sequence"], 2);
    let mount = laptop.mount("work");
    let mut disks = Disks::new(&published);
    disks.change(&mount, 10, &mut Rng::new(63));
    let before = disks.clone();
    let report = checkpoint("before the upgrade");
    assert_eq!(report["version"]["sequence"], 3);
    // Nobody runs a guest that could.
    assert_eq!(report["held_still"], false);
    disks.change(&mount, 10, &mut Rng::new(64));
    mount.unmount();
    sync(&laptop);
    let history = laptop.history("work");
    let notes: Vec<_> = history.as_array().expect("a list").iter().map(|version| &version["note"]).collect();
    assert_eq!(notes[1], "before the upgrade", "{history}");
    assert_eq!(notes[2], "as it came", "{history}");
    let _ = laptop.satchel(["rollback", "work", "3"]).ok();
    before.assert_on_another_machine(&published);
}
