//! From machine to machine.

use satchel_tests::{Publication, Rng, require};

use super::story::{Disks, sync, unsynced_bytes, versions};

#[test]
fn the_next_machine_sees_exactly_what_was_committed() {
    require!(fuse);
    let published = Publication::new(20, 4 << 20);
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(20);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    for round in 0..3 {
        let mount = laptop.mount("work");
        disks.assert_in(&mount);
        disks.change(&mount, 40, &mut rng);
        mount.unmount();
        let report = sync(&laptop);
        assert_eq!(report["version"]["sequence"], 2 * round + 2, "{report}");

        let mut mount = other.mount("work");
        disks.assert_in(&mount);
        if round > 0 {
            let said = mount.process().stderr();
            assert!(said.contains(&format!("continuing with version {}", 2 * round + 2)), "{said}");
        }
        disks.change(&mount, 40, &mut rng);
        // Synced while it is mounted, the way back.
        sync(&other);
        disks.assert_in(&mount);
        mount.unmount();
    }
    // A third one, which knows nothing of any of it.
    let mount = published.machine("third").mount("work");
    disks.assert_in(&mount);
    mount.unmount();
    assert_eq!(versions(&laptop).len(), 7);
    published.server.verify();
}

#[test]
fn what_is_not_synced_is_not_seen_and_not_lost() {
    require!(fuse);
    let published = Publication::new(21, 4 << 20);
    let committed = Disks::new(&published);
    let laptop = published.machine_with_desktop("laptop");
    let mut disks = committed.clone();
    let mount = laptop.mount("work");
    disks.change(&mount, 20, &mut Rng::new(21));
    mount.unmount();
    let seen = published.machine("other").mount("work");
    committed.assert_in(&seen);
    seen.unmount();
    let mount = laptop.mount("work");
    disks.assert_in(&mount);
    mount.unmount();
}

#[test]
fn a_lost_race_leaves_everything_in_place_and_says_what_to_do() {
    require!(fuse);
    let published = Publication::new(22, 4 << 20);
    let mut rng = Rng::new(22);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    let (mut winner, mut loser) = (Disks::new(&published), Disks::new(&published));
    let (here, there) = (laptop.mount("work"), other.mount("work"));
    winner.change(&here, 20, &mut rng);
    loser.change(&there, 20, &mut rng);
    sync(&laptop);
    let unsynced = unsynced_bytes(&other);

    let assert_refused = |machine: &satchel_tests::Client| {
        let refused = machine.satchel(["sync", "work"]).exited(1);
        assert_eq!(refused.stdout, "");
        for part in [
            "error: this desktop has moved on to version 2",
            "is kept",
            "hint: nothing was lost",
            "--state DIR",
        ] {
            assert!(refused.stderr.contains(part), "`{part}` is not in: {}", refused.stderr);
        }
    };
    assert_refused(&other);
    loser.assert_in(&there);
    assert_eq!(unsynced_bytes(&other), unsynced);
    // It goes on being a desktop: more is written, it is unmounted, synced unmounted, mounted again.
    loser.change(&there, 5, &mut rng);
    there.unmount();
    assert_refused(&other);
    let mut there = other.mount("work");
    loser.assert_in(&there);
    let said = there.process().stderr();
    assert!(said.contains("warning: version 2 was made on"), "{said}");
    there.unmount();
    assert_eq!(versions(&laptop), [2, 1], "only the winner's");

    // What the hint says: the other version from another state directory, beside this one.
    let beside = published.machine("beside");
    let (taken, kept) = (beside.mount("work"), other.mount("work"));
    winner.assert_in(&taken);
    loser.assert_in(&kept);
    taken.unmount();
    kept.unmount();
    winner.assert_in(&here);
    winner.change(&here, 5, &mut rng);
    sync(&laptop);
    here.unmount();
    published.server.verify();
}
