//! Going back to earlier versions, and what the server keeps of them.

use satchel_tests::{Publication, Rng, require};

use super::story::{Disks, sync, versions};

#[test]
fn a_desktop_goes_back_to_an_earlier_version_and_forward_again_from_any_machine() {
    require!(fuse);
    let published = Publication::new(60, 4 << 20);
    let mut rng = Rng::new(60);
    let laptop = published.machine_with_desktop("laptop");
    let mut disks = Disks::new(&published);
    let mut change = |disks: &mut Disks| {
        let mount = laptop.mount("work");
        disks.change(&mount, 20, &mut rng);
        mount.unmount();
        sync(&laptop);
    };
    change(&mut disks);
    let second = disks.clone();
    change(&mut disks);
    let third = disks.clone();

    // Nothing of it is on this machine.
    let other = published.machine("desk");
    let done = other.satchel(["--json", "rollback", "work", "2"]).ok().json();
    assert_eq!((&done["to"], &done["version"]["sequence"]), (&2.into(), &4.into()), "{done}");
    assert_eq!(done["version"]["note"], "rolled back to version 2");
    second.assert_on_another_machine(&published);
    let again = other.satchel(["--json", "rollback", "work", "2"]).ok().json();
    assert!(again["version"].is_null(), "{again}");

    // The roll-back can be rolled back; the machine that made the versions takes it up.
    let _ = laptop.satchel(["rollback", "work", "3"]).ok();
    third.assert_on_another_machine(&published);
    let mount = laptop.mount("work");
    third.assert_in(&mount);
    mount.unmount();

    let _ = laptop.satchel(["rollback", "work", "2", "--home-only"]).ok();
    let mixed = Disks { system: third.system.clone(), home: second.home.clone() };
    mixed.assert_on_another_machine(&published);
    assert_eq!(versions(&laptop), [6, 5, 4, 3, 2, 1]);
    published.server.verify();
}

#[test]
fn going_back_is_refused_while_the_desktop_is_open_or_holds_changes() {
    require!(fuse);
    let published = Publication::new(61, 4 << 20);
    let mut rng = Rng::new(61);
    let laptop = published.machine_with_desktop("laptop");
    let mut disks = Disks::new(&published);
    let mount = laptop.mount("work");
    disks.change(&mount, 5, &mut rng);
    let refused = laptop.satchel(["rollback", "work", "1"]).exited(1);
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    mount.unmount();
    let refused = laptop.satchel(["rollback", "work", "1"]).exited(1);
    assert!(
        refused.stderr.contains("not synced") && refused.stderr.contains("satchel sync"),
        "{}",
        refused.stderr
    );
    sync(&laptop);
    let _ = laptop.satchel(["rollback", "work", "1"]).ok();
    let refused = laptop.satchel(["rollback", "work", "9"]).exited(1);
    assert!(refused.stderr.contains("has no version 9"), "{}", refused.stderr);
    let _ = laptop.satchel(["rollback", "work", "2"]).ok();
    disks.assert_on_another_machine(&published);
}

#[test]
fn what_is_pruned_is_deleted_and_what_is_kept_stays_whole() {
    require!(fuse);
    let published = Publication::new(62, 4 << 20);
    let mut rng = Rng::new(62);
    let laptop = published.machine_with_desktop("laptop");
    let mut disks = Disks::new(&published);
    for round in 0..4 {
        let mount = laptop.mount("work");
        disks.change(&mount, 10, &mut rng);
        mount.unmount();
        let note: &[&str] = if round == 1 { &["-m", "before the upgrade"] } else { &[] };
        let _ = laptop.satchel(["sync", "work"].iter().chain(note)).ok();
    }
    let listed = laptop.history("work");
    assert!(listed[0]["stored_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{listed}");
    assert_eq!(
        (&listed[0]["golden"]["image"], &listed[0]["golden"]["sequence"]),
        (&"golden".into(), &1.into())
    );

    let own = laptop.satchel(["--json", "retention", "work", "--keep-last", "9"]).ok().json();
    assert_eq!((&own["own"], &own["policy"]["keep_last"]), (&true.into(), &9.into()), "{own}");
    let own = laptop.satchel(["--json", "retention", "work", "--default"]).ok().json();
    assert_eq!((&own["own"], &own["policy"]["keep_last"]), (&false.into(), &10.into()), "{own}");

    let packs = || std::fs::read_dir(published.server.objects("user/alice/packs")).expect("packs").count();
    let before = packs();
    let pruned = published.server.run(&["retention"], &["--keep-last", "1", "--json"]).ok().json();
    let numbers = |list: &serde_json::Value| -> Vec<u64> {
        let list = list.as_array().expect("a list");
        list.iter().map(|version| version["sequence"].as_u64().expect("a number")).collect()
    };
    assert_eq!(numbers(&pruned["pruned"]), [4, 2], "{pruned}");
    let dry = published.server.run(&["gc"], &["--grace", "0", "--dry-run", "--json"]).ok().json();
    let condemned = published.server.run(&["gc"], &["--grace", "0", "--json"]).ok().json();
    assert_eq!(dry["condemned"], condemned["condemned"]);
    assert!(condemned["condemned"]["segments"].as_u64() > Some(0), "{condemned}");
    assert_eq!(packs(), before, "nothing is deleted that was not condemned before");
    let deleted = published.server.run(&["gc"], &["--grace", "0", "--json"]).ok().json();
    assert_eq!(deleted["deleted"]["segments"], condemned["condemned"]["segments"], "{deleted}");
    // A pack stays as long as anything in it is needed.
    assert_eq!(
        packs(),
        before - usize::try_from(deleted["deleted"]["packs"].as_u64().expect("a count")).expect("few")
    );
    published.server.verify();

    assert_eq!(numbers(&laptop.history("work")), [5, 3, 1]);
    let all = laptop.satchel(["--json", "history", "work", "--pruned", "--limit", "2"]).ok().json();
    assert_eq!(numbers(&all), [5, 4]);
    let refused = laptop.satchel(["rollback", "work", "4"]).exited(1);
    assert!(refused.stderr.contains("version 4 of desktop work was pruned"), "{}", refused.stderr);
    disks.assert_on_another_machine(&published);
    let mount = laptop.mount("work");
    disks.change(&mount, 10, &mut rng);
    mount.unmount();
    sync(&laptop);
    disks.assert_on_another_machine(&published);
}

/// What it writes then can still be sent, though it never had the lease.
#[test]
fn what_a_machine_keeps_for_later_is_not_pruned() {
    require!(fuse);
    let published = Publication::new(63, 4 << 20);
    let mut rng = Rng::new(63);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("desk"));
    let mut on_laptop = Disks::new(&published);
    let mount = laptop.mount("work");
    on_laptop.change(&mount, 10, &mut rng);
    let _ = laptop.satchel(["sync", "work"]).ok();
    // Pinned while the other machine works on it.
    let _ = other.satchel(["pin", "work"]).ok();
    let mut on_other = on_laptop.clone();
    for _ in 0..4 {
        on_laptop.change(&mount, 10, &mut rng);
        let _ = laptop.satchel(["sync", "work"]).ok();
    }
    let pruned = published.server.run(&["retention"], &["--keep-last", "1", "--json"]).ok().json();
    let numbers: Vec<&serde_json::Value> =
        pruned["pruned"].as_array().expect("a list").iter().map(|version| &version["sequence"]).collect();
    assert_eq!(numbers, [5, 4, 3], "{pruned}");
    for _ in 0..2 {
        let _ = published.server.run(&["gc"], &["--grace", "0"]).ok();
    }
    let offline = other.mount_with("work", &["--offline"]);
    on_other.change(&offline, 10, &mut rng);
    offline.unmount();
    let report = sync(&other);
    assert_eq!(report["fork"]["of"], "work", "{report}");
    mount.unmount();
    on_laptop.assert_on_another_machine(&published);
    published.server.verify();
}
