//! A sync sends what changed and no more.

use std::collections::BTreeSet;

use satchel_tests::model::open_for_writing;
use satchel_tests::{Class, Exchange, FaultyHttps, Publication, Rng, TestServer, require};

use super::story::{Disks, HOME_BYTES, behind_a_proxy, sync, unsynced_bytes, versions};

const CHUNK_BYTES: u64 = 65_536;

/// How many chunks lie in the packs of alice's namespace, by the packs' own trailers.
fn stored_chunks(server: &TestServer) -> u64 {
    let Ok(packs) = std::fs::read_dir(server.objects("user/alice/packs")) else { return 0 };
    packs
        .map(|pack| {
            let bytes =
                std::fs::read(pack.expect("a directory can be read").path()).expect("a pack can be read");
            let trailer = &bytes[bytes.len() - 64..];
            u64::from(u32::from_le_bytes(trailer[8..12].try_into().expect("four bytes")))
        })
        .sum()
}

/// Requests so far that bring something to the server.
fn uploads(proxy: &FaultyHttps) -> usize {
    proxy.exchanges().iter().filter(|exchange| is_object(exchange) || exchange.class == Class::Commit).count()
}

/// Whether a request brings an object.
fn is_object(exchange: &Exchange) -> bool {
    exchange.method == "PUT" && matches!(exchange.class, Class::Packs | Class::Segments)
}

#[test]
fn separate_blocks_cost_at_most_a_chunk_each() {
    require!(fuse);
    const BLOCKS: u64 = 37;
    let published = Publication::new(1, 4 << 20);
    let (proxy, laptop) = behind_a_proxy(&published);
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(1);
    let mount = laptop.mount("work");
    let disk = open_for_writing(&mount.home());
    let mut places = BTreeSet::new();
    while (places.len() as u64) < BLOCKS {
        places.insert(rng.below(HOME_BYTES / 4096));
    }
    for place in &places {
        let mut block = [0; 4096];
        rng.fill(&mut block);
        disks.home.write(&disk, place * 4096, &block);
    }
    drop(disk);
    mount.unmount();
    let chunks = places.iter().map(|block| block * 4096 / CHUNK_BYTES).collect::<BTreeSet<_>>().len() as u64;
    let report = sync(&laptop);
    assert_eq!(report["dirty_chunks"], chunks, "{report}");
    assert_eq!(report["new_chunks"], chunks, "{report}");
    assert!(chunks <= BLOCKS);
    assert_eq!(stored_chunks(&published.server), chunks);
    let exchanges = proxy.exchanges();
    let sent: u64 =
        exchanges.iter().filter(|exchange| is_object(exchange)).map(|exchange| exchange.request_bytes).sum();
    let version = exchanges.iter().rfind(|exchange| exchange.class == Class::Commit).unwrap().request_bytes;
    assert_eq!(report["sent_bytes"], sent + version, "{report}");
    // Each block is noise in a chunk of zeros: a frame of little more than the block.
    assert!(sent < BLOCKS * (4096 + 200) + 20_000, "{sent} bytes for {BLOCKS} blocks");
    published.server.verify();
    let other = published.machine("other").mount("work");
    disks.assert_in(&other);
    other.unmount();
}

#[test]
fn a_sync_without_changes_sends_nothing() {
    require!(fuse);
    let published = Publication::new(2, 4 << 20);
    let (proxy, laptop) = behind_a_proxy(&published);
    let before = uploads(&proxy);
    let report = sync(&laptop);
    assert_eq!(
        (&report["version"], &report["sent_bytes"]),
        (&serde_json::Value::Null, &0.into()),
        "{report}"
    );
    let mut disks = Disks::new(&published);
    let mount = laptop.mount("work");
    disks.change(&mount, 30, &mut Rng::new(2));
    assert!(unsynced_bytes(&laptop) > 0);
    sync(&laptop);
    let after = uploads(&proxy);
    assert!(after > before);
    assert_eq!(unsynced_bytes(&laptop), 0);
    for _ in 0..3 {
        let report = sync(&laptop);
        assert_eq!(report["version"], serde_json::Value::Null, "{report}");
    }
    let said = laptop.sync("work");
    assert_eq!(said.stdout, "work has no changes to sync\n");
    mount.unmount();
    sync(&laptop);
    assert_eq!(uploads(&proxy), after, "something was sent though nothing had changed");
    assert_eq!(versions(&laptop), [2, 1]);
}

#[test]
fn what_the_server_has_is_not_sent_again() {
    require!(fuse);
    let published = Publication::new(3, 4 << 20);
    let (_proxy, laptop) = behind_a_proxy(&published);
    let mut disks = Disks::new(&published);
    let mount = laptop.mount("work");
    let (home, system) = (open_for_writing(&mount.home()), open_for_writing(&mount.system()));
    // A copy of part of the image: in the image's namespace, which this desktop may lean on.
    let copied = published.content.bytes(1 << 20, 1 << 20);
    disks.home.write(&home, 2 << 20, &copied);
    // The same bytes as before, written again.
    disks.system.write(&system, 0, &published.content.bytes(0, 1 << 20));
    let report = sync(&laptop);
    assert_eq!(report["new_chunks"], 0, "{report}");
    assert!(report["sent_bytes"].as_u64().unwrap() < 40_000, "a segment and no more: {report}");
    assert_eq!(stored_chunks(&published.server), 0);
    // And once more elsewhere, now from the user's own.
    let mut noise = vec![0; 1 << 20];
    Rng::new(3).fill(&mut noise);
    disks.home.write(&home, 5 << 20, &noise);
    assert_eq!(sync(&laptop)["new_chunks"], 16);
    disks.home.write(&home, 9 << 20, &noise);
    assert_eq!(sync(&laptop)["new_chunks"], 0);
    drop((home, system));
    mount.unmount();
    let other = published.machine("other").mount("work");
    disks.assert_in(&other);
    other.unmount();
    published.server.verify();
}

#[test]
fn writing_back_what_was_there_makes_no_version() {
    require!(fuse);
    let published = Publication::new(4, 4 << 20);
    let (_proxy, laptop) = behind_a_proxy(&published);
    let mount = laptop.mount("work");
    let disk = open_for_writing(&mount.system());
    let mut disks = Disks::new(&published);
    disks.system.write(&disk, 0, &published.content.bytes(0, 2 << 20));
    drop(disk);
    let report = sync(&laptop);
    assert_eq!(report["version"], serde_json::Value::Null, "{report}");
    assert_eq!(versions(&laptop), [1]);
    assert_eq!(unsynced_bytes(&laptop), 0);
    disks.assert_in(&mount);
    mount.unmount();
}
