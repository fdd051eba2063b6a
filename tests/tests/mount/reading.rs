//! What is read is what was published.

use satchel_tests::disk::{BLOCK_BYTES, assert_same, read_direct};
use satchel_tests::{Class, Exchange, FaultyHttps, Model, Publication, Rng, images, require};

use super::{IMAGE_BYTES, read_by_many};

#[test]
fn a_mounted_disk_is_the_published_file_read_in_full() {
    require!(fuse);
    let published = Publication::new(1, IMAGE_BYTES);
    let mount = published.machine_with_desktop("laptop").mount("work");
    assert_same(&published.disk, &mount.system());
    // Once more, now from the cache.
    published.content.assert_in(&mount.system());
    Model::zeros(16 << 20).assert_in(&mount.home());
    mount.unmount();
}

#[test]
fn a_disk_of_files_is_the_published_file() {
    require!(fuse, image("tiny"));
    let published = Publication::new(2, 1 << 20);
    let tiny = images::tiny();
    let _ = published.publisher.publish(&tiny, "tiny");
    let laptop = published.machine("laptop");
    laptop.create("small", "tiny", Some("0"));
    let mount = laptop.mount("small");
    assert_same(&tiny, &mount.system());
    assert!(!mount.home().exists(), "no home disk was asked for");
    mount.unmount();
}

#[test]
fn a_mounted_disk_is_right_in_random_order_and_for_many_readers_at_once() {
    require!(fuse);
    let published = Publication::new(3, IMAGE_BYTES);
    let model = Model::of(published.content, IMAGE_BYTES);
    let mount = published.machine_with_desktop("laptop").mount("work");
    // Cold: every thread runs into chunks that others are fetching.
    read_by_many(&model, &mount.system(), 8, 40, 3);
    published.content.assert_in(&mount.system());
    read_by_many(&model, &mount.system(), 8, 200, 4);
    mount.unmount();
}

#[test]
fn reads_past_the_page_cache_and_past_the_end_are_right() {
    require!(fuse);
    let published = Publication::new(4, IMAGE_BYTES);
    let mount = published.machine_with_desktop("laptop").mount("work");
    let mut rng = Rng::new(4);
    for _ in 0..100 {
        let block = rng.below(IMAGE_BYTES / BLOCK_BYTES as u64);
        let blocks = 1 + rng.below(64).min(IMAGE_BYTES / BLOCK_BYTES as u64 - block - 1);
        let (offset, len) = (block * BLOCK_BYTES as u64, usize::try_from(blocks).unwrap() * BLOCK_BYTES);
        assert_eq!(read_direct(&mount.system(), offset, len), published.content.bytes(offset, len));
    }
    // A file ends where it ends, however far past that one reads.
    let disk = super::open(&mount.system());
    for (offset, expected) in
        [(IMAGE_BYTES - 1, 1), (IMAGE_BYTES, 0), (IMAGE_BYTES + 1, 0), (IMAGE_BYTES * 9, 0)]
    {
        let read = std::os::unix::fs::FileExt::read_at(&disk, &mut [0; 5000], offset);
        assert_eq!(read.expect("the end is no error"), expected, "at {offset}");
    }
    drop(disk);
    mount.unmount();
}

#[test]
fn a_cache_smaller_than_the_disk_is_enough() {
    const CACHE_BYTES: u64 = 1 << 20;
    require!(fuse);
    let published = Publication::new(5, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mount = laptop.mount_with("work", &["--cache-size", "1M"]);
    published.content.assert_in(&mount.system());
    let model = Model::of(published.content, IMAGE_BYTES);
    read_by_many(&model, &mount.system(), 4, 50, 5);
    published.content.assert_in(&mount.system());
    let live = laptop.status("work")["live"].clone();
    assert_eq!(live["cache_limit_bytes"], CACHE_BYTES);
    assert!(live["cached_bytes"].as_u64().unwrap() <= CACHE_BYTES, "{live}");
    let cached = std::fs::metadata(laptop.desktop_directory("work").join("cache/cache.data")).unwrap();
    assert!(cached.len() <= CACHE_BYTES, "{} bytes", cached.len());
    mount.unmount();
}

#[test]
fn what_was_fetched_once_is_not_fetched_again() {
    require!(fuse);
    let published = Publication::new(6, IMAGE_BYTES);
    let proxy = FaultyHttps::start(&published.server.url(), published.server.fingerprint());
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through_faulty(&proxy));
    laptop.create("work", "golden", Some("16M"));
    let fetched = || -> (usize, u64) {
        let exchanges = proxy.exchanges();
        let data: Vec<&Exchange> = exchanges
            .iter()
            .filter(|exchange| matches!(exchange.class, Class::Packs | Class::Segments))
            .collect();
        (data.len(), data.iter().map(|exchange| exchange.response_bytes).sum())
    };

    let mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    let cold = fetched();
    assert!(cold.0 > 0);
    published.content.assert_in(&mount.system());
    assert_eq!(fetched(), cold, "read again");
    mount.unmount();

    // Another process, and then one without a server at all.
    let mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    assert_eq!(fetched(), cold, "read by another process");
    mount.unmount();
    drop(published.server);
    let mut mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    let said = mount.process().stderr();
    assert!(said.contains("opening the version this machine has"), "{said}");
    mount.unmount();
}

#[test]
fn many_readers_of_one_chunk_cost_one_fetch() {
    require!(fuse);
    let published = Publication::new(7, IMAGE_BYTES);
    let proxy = FaultyHttps::start(&published.server.url(), published.server.fingerprint());
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through_faulty(&proxy));
    laptop.create("work", "golden", Some("16M"));
    let mount = laptop.mount("work");
    let model = Model::of(published.content, IMAGE_BYTES);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| model.assert_in(&mount.system()));
        }
    });
    let live = laptop.status("work")["live"].clone();
    let stored = (0..IMAGE_BYTES / 65_536)
        .map(|chunk| published.content.bytes(chunk * 65_536, 65_536))
        .filter(|chunk| chunk.iter().any(|byte| *byte != 0))
        .collect::<std::collections::HashSet<_>>();
    assert_eq!(live["fetched_chunks"].as_u64().unwrap(), stored.len() as u64, "{live}");
    mount.unmount();
}
