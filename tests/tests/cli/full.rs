//! Disks that are full: under the cache, under what was written, under the server's store.

use std::os::unix::fs::FileExt;

use satchel_tests::disk::BLOCK_BYTES;
use satchel_tests::model::open_for_writing;
use satchel_tests::{Client, Model, Publication, Rng, SmallDisk, TestServer, disk::Content, require};

use super::assert_refused;

/// Makes a file that leaves no room for another byte.
fn fill(path: &std::path::Path) {
    let filler = std::fs::File::create(path).expect("a file can be made");
    let mut at = 0;
    while filler.write_all_at(&[1; 512], at).is_ok() {
        at += 512;
    }
}

/// Sets up a machine of alice's whose state is on a disk of its own.
fn laptop_on(small: &SmallDisk, published: &Publication) -> Client {
    let laptop = Client::with_state("laptop", &small.join("state"));
    laptop.login(&published.access());
    laptop
}

#[test]
fn a_cache_without_room_is_only_slower() {
    require!(root, fuse);
    let published = Publication::new(30, 40 << 20);
    let small = SmallDisk::new(16 << 20);
    let laptop = laptop_on(&small, &published);
    laptop.create("work", "golden", Some("16M"));
    let mut mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    published.content.assert_in(&mount.system());
    let said = mount.process().stderr();
    assert!(!said.contains("error"), "{said}");
    // And what is written comes first: the cache makes room.
    let mut model = Model::zeros(16 << 20);
    let disk = open_for_writing(&mount.home());
    let mut noise = vec![0; 8 << 20];
    Rng::new(30).fill(&mut noise);
    model.write(&disk, 0, &noise);
    disk.sync_all().expect("there is room once the cache has made it");
    drop(disk);
    model.assert_in(&mount.home());
    published.content.assert_in(&mount.system());
    mount.unmount();
}

#[test]
fn a_full_disk_under_a_desktop_loses_nothing_and_says_so() {
    require!(root, fuse);
    let published = Publication::new(31, 1 << 20);
    let small = SmallDisk::new(12 << 20);
    let laptop = laptop_on(&small, &published);
    laptop.create("work", "golden", Some("32M"));
    let mut mount = laptop.mount("work");
    let mut model = Model::zeros(32 << 20);
    let disk = open_for_writing(&mount.home());
    let mut rng = Rng::new(31);
    let mut block = [0; BLOCK_BYTES];
    let mut place = 0;
    let refused = loop {
        rng.fill(&mut block);
        match disk.write_all_at(&block, place) {
            Ok(()) => model.wrote(place, &block),
            Err(error) => break error,
        }
        if place % (1 << 20) == 0 {
            disk.sync_data().expect("what was taken can be flushed");
        }
        place += BLOCK_BYTES as u64;
        assert!(place < 32 << 20, "32 MiB were written to a disk of 12");
    };
    assert_eq!(refused.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()), "{refused}");
    assert!(place > 6 << 20, "{place} bytes is not what 12 MiB have room for");
    model.assert_in(&mount.home());
    disk.sync_data().expect("what was taken can be flushed");
    let said = mount.process().stderr();
    assert!(said.contains("no space left") && said.contains("free some space"), "{said}");
    super::assert_clean(&said);

    // Nor does a freeze find room, to the last byte, where nothing is set aside.
    let reserve = small.join("state/desktops/work/cache/reserve");
    std::fs::remove_file(&reserve).expect("space was set aside while there was some");
    fill(&small.join("filler"));
    let head = laptop.status("work")["head"].clone();
    for _ in 0..2 {
        let unsynced = laptop.satchel(["sync", "work"]).exited(1).stderr;
        super::assert_clean(&unsynced);
        assert!(unsynced.contains("pace"), "{unsynced}");
    }
    model.assert_in(&mount.home());
    assert_eq!(laptop.status("work")["head"], head);
    std::fs::remove_file(small.join("filler")).unwrap();

    // With room again it goes on as if nothing had been.
    small.resize(64 << 20);
    model.write(&disk, place, &block);
    model.write(&disk, place + BLOCK_BYTES as u64, &vec![5; 4 << 20]);
    disk.sync_data().expect("there is room");
    drop(disk);
    mount.unmount();
    let mount = laptop.mount("work");
    model.assert_in(&mount.home());
    mount.unmount();
    let _ = laptop.sync("work");
    let other = published.machine("other").mount("work");
    model.assert_in(&other.home());
    other.unmount();
}

/// What was written is all that takes the space: syncing it is what frees some.
#[test]
fn what_fills_the_disk_is_synced_with_what_was_set_aside() {
    require!(root, fuse);
    let published = Publication::new(40, 1 << 20);
    for is_mounted in [false, true] {
        let small = SmallDisk::ext4(40 << 20);
        let laptop = laptop_on(&small, &published);
        let name = if is_mounted { "mounted" } else { "unmounted" };
        // Its overlay's map alone takes 8 MiB.
        laptop.create(name, "golden", Some("128G"));
        let mut mount = Some(laptop.mount(name));
        let mut model = Model::zeros(64 << 20);
        let disk = open_for_writing(&mount.as_ref().expect("it is mounted").home());
        let mut rng = Rng::new(40);
        let mut block = [0; BLOCK_BYTES];
        let mut place = 0;
        loop {
            rng.fill(&mut block);
            if disk.write_all_at(&block, place).is_err() {
                break;
            }
            model.wrote(place, &block);
            place += BLOCK_BYTES as u64;
        }
        disk.sync_data().expect("what was taken can be flushed");
        drop(disk);
        if !is_mounted {
            mount.take().expect("it is mounted").unmount();
        }
        fill(&small.join("filler"));
        let _ = laptop.sync(name);
        assert_eq!(laptop.status(name)["unsynced_bytes"], 0);
        let reserve = small.join("state/desktops").join(name).join("cache/reserve");
        assert!(
            std::fs::metadata(reserve).is_ok_and(|found| found.len() > 8 << 20),
            "it is there for the next time"
        );
        if let Some(mount) = mount {
            mount.unmount();
        }
        let other = published.machine("other").mount_with(name, &["--read-only"]);
        let mut found = vec![0; usize::try_from(place).expect("it fits")];
        std::fs::File::open(other.home())
            .and_then(|home| home.read_exact_at(&mut found, 0))
            .expect("it can be read");
        assert!(model.bytes()[..found.len()] == found[..], "what was written is not what arrived");
        other.unmount();
    }
}

/// What is pinned takes the space: it is given up for work, if a person says so.
#[test]
fn a_pinned_desktop_on_a_full_disk_is_unpinned_and_synced() {
    require!(root, fuse);
    let published = Publication::new(38, 6 << 20);
    let small = SmallDisk::new(24 << 20);
    let laptop = laptop_on(&small, &published);
    laptop.create("work", "golden", Some("16M"));
    let _ = laptop.satchel(["pin", "work"]).ok();
    let mount = laptop.mount("work");
    let mut model = Model::zeros(16 << 20);
    let disk = open_for_writing(&mount.home());
    model.write(&disk, 0, &vec![3; 1 << 20]);
    disk.sync_all().expect("there is room");
    drop(disk);
    let mut mount = Some(mount);
    for is_mounted in [true, false] {
        if is_mounted {
            std::fs::remove_file(small.join("state/desktops/work/cache/reserve"))
                .expect("space is set aside");
        }
        fill(&small.join("filler"));
        if is_mounted {
            let unsynced = laptop.satchel(["sync", "work"]).exited(1).stderr;
            assert!(unsynced.contains("pace") && unsynced.contains("--unpin"), "{unsynced}");
        }
        let _ = laptop.satchel(["pin", "work", "--unpin"]).ok();
        assert_eq!(laptop.status("work")["pinned"], false);
        if is_mounted {
            let _ = laptop.sync("work");
            std::fs::remove_file(small.join("filler")).expect("the file is there");
            let _ = laptop.satchel(["pin", "work"]).ok();
            mount.take().expect("it is mounted").unmount();
        }
    }
    std::fs::remove_file(small.join("filler")).expect("the file is there");
    let other = published.machine("other").mount("work");
    model.assert_in(&other.home());
    other.unmount();
}

#[test]
fn a_desktop_that_has_no_room_to_be_pinned_is_not() {
    require!(root, fuse);
    let published = Publication::new(39, 24 << 20);
    let small = SmallDisk::new(12 << 20);
    let laptop = laptop_on(&small, &published);
    laptop.create("work", "golden", Some("16M"));
    let refused = laptop.satchel(["pin", "work"]).exited(1).stderr;
    assert!(refused.contains("no room for all of it"), "{refused}");
    assert_eq!(laptop.status("work")["pinned"], false);
    let mount = laptop.mount("work");
    let mut model = Model::zeros(16 << 20);
    let disk = open_for_writing(&mount.home());
    model.write(&disk, 0, &vec![4; 2 << 20]);
    disk.sync_all().expect("the cache gives its room");
    drop(disk);
    mount.unmount();
    let _ = laptop.sync("work");
}

/// Something else takes the space, and the cache has some that it can give.
#[test]
fn a_desktop_on_a_full_disk_is_opened_and_synced() {
    require!(root, fuse);
    let published = Publication::new(34, 4 << 20);
    let small = SmallDisk::new(16 << 20);
    let laptop = laptop_on(&small, &published);
    laptop.create("work", "golden", Some("16M"));
    let mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    let mut model = Model::zeros(16 << 20);
    let disk = open_for_writing(&mount.home());
    model.write(&disk, 0, &[3; 1 << 20]);
    disk.sync_all().expect("there is room");
    drop(disk);
    mount.unmount();
    fill(&small.join("filler"));
    let _ = laptop.sync("work");
    let other = published.machine("other").mount_with("work", &["--read-only"]);
    model.assert_in(&other.home());
    other.unmount();
}

#[test]
fn a_desktop_on_a_full_disk_goes_on_where_another_machine_was_and_takes_up_the_next_version() {
    require!(root, fuse);
    let published = Publication::new(35, 4 << 20);
    let small = SmallDisk::new(16 << 20);
    let laptop = laptop_on(&small, &published);
    let _ = laptop.satchel(["create", "work", "--image", "golden", "--home", "16M", "--mode", "renew"]).ok();
    let mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    mount.unmount();
    let _ = laptop.sync("work");

    let machine = published.machine("other");
    let other = machine.mount("work");
    let mut home = Model::zeros(16 << 20);
    let disk = open_for_writing(&other.home());
    home.write(&disk, 0, &[4; 1 << 20]);
    disk.sync_all().expect("there is room");
    drop(disk);
    other.unmount();
    let _ = machine.sync("work");
    fill(&small.join("filler"));
    let mut mount = laptop.mount("work");
    let said = mount.process().stderr();
    assert!(said.contains("version 2"), "{said}");
    home.assert_in(&mount.home());
    published.content.assert_in(&mount.system());
    mount.unmount();

    let next = Content::new(36);
    next.write_to(&published.disk, 4 << 20);
    let _ = published.publisher.publish(&published.disk, "golden");
    fill(&small.join("more"));
    let mut mount = laptop.mount("work");
    let said = mount.process().stderr();
    assert!(said.contains("is renewed from version 1 of golden to version 2"), "{said}");
    home.assert_in(&mount.home());
    next.assert_in(&mount.system());
    mount.unmount();
}

#[test]
fn what_was_written_for_a_look_makes_room_for_the_next_opening() {
    require!(root, fuse);
    let published = Publication::new(37, 1 << 20);
    let small = SmallDisk::new(8 << 20);
    let laptop = laptop_on(&small, &published);
    laptop.create("work", "golden", Some("16M"));
    let mount = laptop.mount_with("work", &["--read-only"]);
    let disk = open_for_writing(&mount.home());
    disk.write_all_at(&vec![5; 4 << 20], 0).and_then(|()| disk.sync_all()).expect("there is room");
    drop(disk);
    mount.unmount();
    fill(&small.join("filler"));
    let mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    Model::zeros(16 << 20).assert_in(&mount.home());
    mount.unmount();
}

#[test]
fn a_disk_too_full_to_open_a_desktop_says_so() {
    require!(root, fuse);
    let published = Publication::new(32, 1 << 20);
    let small = SmallDisk::new(1 << 20);
    let laptop = laptop_on(&small, &published);
    laptop.create("work", "golden", Some("16M"));
    fill(&small.join("filler"));
    let directory = laptop.new_directory();
    let refused = laptop.satchel(["mount".as_ref(), "work".as_ref(), directory.as_os_str()]).exited(1);
    super::assert_clean(&refused.stderr);
    assert!(refused.stderr.contains("pace"), "{}", refused.stderr);
    std::fs::remove_file(small.join("filler")).unwrap();
    small.resize(8 << 20);
    let mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    mount.unmount();
}

#[test]
fn a_server_whose_store_is_full_says_so_and_publishing_goes_on_later() {
    require!(root);
    let small = SmallDisk::new(12 << 20);
    let server = TestServer::start_at(&small.join("store"));
    let publisher = Client::new("build-machine");
    publisher.login(&server.access("it", "publisher"));
    let disk = publisher.directory().join("disk.raw");
    Content::new(33).write_to(&disk, 64 << 20);
    let publish =
        || publisher.satchel(["publish".as_ref(), disk.as_os_str(), "--image".as_ref(), "golden".as_ref()]);
    assert_refused(
        publish(),
        &["no space left", "this request stored nothing", "what was stored before is kept"],
        &["once there is space", "repeating the command continues from what was stored before"],
    );
    server.verify();
    small.resize(128 << 20);
    let _ = publish().ok();
    server.verify();
}
