//! What is discarded is zeros everywhere, and nothing is kept for it.

use satchel_tests::model::open_for_writing;
use satchel_tests::{Class, Publication, Rng, Zeroing, require};

use super::story::{Disks, behind_a_proxy, sync};

#[test]
fn discarded_blocks_are_zeros_on_the_next_machine_and_cost_no_chunk() {
    require!(fuse);
    let published = Publication::new(10, 4 << 20);
    let (proxy, laptop) = behind_a_proxy(&published);
    let mut disks = Disks::new(&published);
    let mount = laptop.mount("work");
    let (home, system) = (open_for_writing(&mount.home()), open_for_writing(&mount.system()));
    let mut noise = vec![0; 4 << 20];
    Rng::new(10).fill(&mut noise);
    disks.home.write(&home, 0, &noise);
    sync(&laptop);
    let other = published.machine("other");
    let seen = other.mount_with("work", &["--read-only"]);
    disks.assert_in(&seen);
    seen.unmount();

    let packs = || {
        proxy
            .exchanges()
            .iter()
            .filter(|exchange| exchange.class == Class::Packs && exchange.method == "PUT")
            .count()
    };
    let before = packs();
    // Whole chunks of both disks; and what was never written, as making a file system does.
    disks.home.zero(&home, 1 << 20, 2 << 20, Zeroing::Punch);
    disks.home.zero(&home, 8 << 20, 8 << 20, Zeroing::Punch);
    disks.system.zero(&system, 1 << 20, 1 << 20, Zeroing::Range);
    let report = sync(&laptop);
    assert_eq!(report["new_chunks"], 0, "{report}");
    assert_eq!(packs(), before, "a pack was sent for zeros");
    // What was zeros before is no change.
    assert!(report["dirty_chunks"].as_u64().unwrap() <= 32 + 16, "{report}");
    disks.home.zero(&home, 8 << 20, 8 << 20, Zeroing::Punch);
    let report = sync(&laptop);
    assert_eq!(
        (&report["version"], &report["dirty_chunks"]),
        (&serde_json::Value::Null, &0.into()),
        "{report}"
    );
    drop((home, system));
    mount.unmount();

    let seen = other.mount("work");
    disks.assert_in(&seen);
    seen.unmount();
    published.server.verify();
}

#[test]
fn a_discard_of_part_of_a_chunk_keeps_the_rest() {
    require!(fuse);
    let published = Publication::new(11, 4 << 20);
    let (_proxy, laptop) = behind_a_proxy(&published);
    let mut disks = Disks::new(&published);
    let mount = laptop.mount("work");
    let system = open_for_writing(&mount.system());
    // Odd bytes, odd blocks, and over the border of chunks.
    for (offset, count) in
        [(100, 50), (70_000, 9000), (131_072 - 4096, 8192), (300_000, 70_000), (4 << 19, 1)]
    {
        disks.system.zero(&system, offset, count, Zeroing::Punch);
    }
    drop(system);
    sync(&laptop);
    mount.unmount();
    disks.assert_on_another_machine(&published);
}
