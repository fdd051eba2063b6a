//! From machine to machine.

use satchel_tests::{Publication, Rng, require, wait};

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
    let seen = published.machine("other").mount_with("work", &["--read-only"]);
    committed.assert_in(&seen);
    seen.unmount();
    let mount = laptop.mount("work");
    disks.assert_in(&mount);
    mount.unmount();
}

#[test]
fn a_machine_whose_desktop_was_taken_goes_on_in_a_fork_while_it_is_mounted() {
    require!(fuse);
    let published = Publication::new(22, 4 << 20);
    let mut rng = Rng::new(22);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    let (mut winner, mut loser) = (Disks::new(&published), Disks::new(&published));
    let mut there = other.mount("work");
    loser.change(&there, 20, &mut rng);
    let here = laptop.mount_with("work", &["--take"]);
    winner.change(&here, 20, &mut rng);
    sync(&laptop);
    wait::until("it is told that it was taken", wait::PATIENCE, || {
        there.process().stderr().contains("has taken this desktop: nothing is lost").then_some(())
    });

    let report = sync(&other);
    let fork = report["fork"]["fork"].as_str().expect("a fork").to_owned();
    assert_eq!(unsynced_bytes(&other), 0);
    loser.assert_in(&there);
    // More is written; it is the fork's next version.
    loser.change(&there, 5, &mut rng);
    let report = sync(&other);
    assert_eq!(report["version"]["sequence"], 3, "{report}");
    assert_eq!(
        (&report["fork"]["fork"], &report["fork"]["reason"]),
        (&fork.as_str().into(), &serde_json::Value::Null),
        "{report}"
    );
    // What is written last, and not synced, is synced at the next start.
    loser.change(&there, 5, &mut rng);
    there.unmount();
    winner.assert_in(&here);
    winner.change(&here, 5, &mut rng);
    sync(&laptop);
    here.unmount();
    let mut there = other.mount("work");
    winner.assert_in(&there);
    let said = there.process().stderr();
    assert!(said.contains(&format!("what was done here before is desktop {fork} now")), "{said}");
    there.unmount();
    let mount = published.machine("third").mount(&fork);
    loser.assert_in(&mount);
    mount.unmount();
    assert_eq!(versions(&laptop), [3, 2, 1], "only the winner's");
    published.server.verify();
}
