//! Bytes that changed by themselves: on the server, and on this machine.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use satchel_tests::model::open_for_writing;
use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Client, Model, Mount, Publication, require};

use super::assert_refused;

const IMAGE_BYTES: u64 = 8 << 20;
const CHUNK_BYTES: u64 = 65_536;

/// The one pack of the image.
fn pack(published: &Publication) -> PathBuf {
    let mut packs =
        std::fs::read_dir(published.server.objects("image/golden/packs")).expect("there are packs");
    packs.next().expect("there is one").expect("a directory can be read").path()
}

/// The chunks of the system disk that cannot be read; all others must be right.
fn unreadable_chunks(published: &Publication, mount: &Mount) -> Vec<u64> {
    let disk = std::fs::File::open(mount.system()).expect("the disk can be opened");
    let mut unreadable = Vec::new();
    for chunk in 0..disk.metadata().expect("an open file can be looked at").len() / CHUNK_BYTES {
        let mut bytes = vec![0; usize::try_from(CHUNK_BYTES).expect("a chunk fits in memory")];
        match disk.read_exact_at(&mut bytes, chunk * CHUNK_BYTES) {
            Ok(()) => {
                assert!(bytes == published.content.bytes(chunk * CHUNK_BYTES, bytes.len()), "chunk {chunk}")
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{error}");
                unreadable.push(chunk);
            }
        }
    }
    unreadable
}

#[test]
fn a_damaged_pack_costs_the_chunks_in_it_that_are_damaged_and_no_other() {
    require!(fuse);
    let published = Publication::new(50, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let pack = pack(&published);
    let good = std::fs::read(&pack).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 0x10;
    std::fs::write(&pack, &bad).unwrap();

    // Told to fail: an error for whoever reads the damaged place.
    let mut mount = laptop.mount_with("work", &["--on-missing", "fail"]);
    let unreadable = unreadable_chunks(&published, &mount);
    assert!((1..=2).contains(&unreadable.len()), "{unreadable:?}: one frame was altered");
    let said = mount.process().stderr();
    let id = pack.file_name().unwrap().to_str().unwrap();
    assert!(said.lines().any(|line| line.contains("ERROR") && line.contains(id)), "{said}");
    super::assert_clean(&said.replace("ERROR", ""));
    mount.unmount();

    // Told to wait, as it does by itself: the reader pauses until the server is repaired.
    let mut mount = laptop.mount("work");
    let (path, offset) = (mount.system(), unreadable[0] * CHUNK_BYTES);
    let reader = thread::spawn(move || {
        let mut bytes = vec![0; 4096];
        let disk = std::fs::File::open(&path).expect("the disk can be opened");
        disk.read_exact_at(&mut bytes, offset).expect("a read that waits succeeds");
        bytes
    });
    wait::until("the mount says that it cannot have a chunk", PATIENCE, || {
        mount.process().stderr().contains("no source has the right bytes").then_some(())
    });
    assert!(!reader.is_finished());
    let live = laptop.status("work")["live"].clone();
    assert!(live["damaged"].as_u64().unwrap() > 0, "{live}");
    let others: Vec<u64> =
        (0..IMAGE_BYTES / CHUNK_BYTES).filter(|chunk| !unreadable.contains(chunk)).collect();
    let disk = std::fs::File::open(mount.system()).unwrap();
    for chunk in others {
        let mut bytes = vec![0; 4096];
        disk.read_exact_at(&mut bytes, chunk * CHUNK_BYTES).unwrap();
    }
    drop(disk);
    std::fs::write(&pack, &good).unwrap();
    wait::until("the read goes on", Duration::from_secs(90), || reader.is_finished().then_some(()));
    assert_eq!(reader.join().unwrap(), published.content.bytes(offset, 4096));
    published.content.assert_in(&mount.system());
    mount.unmount();
}

#[test]
fn a_pack_that_is_gone_is_named() {
    require!(fuse);
    let published = Publication::new(51, 1 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let pack = pack(&published);
    let aside = published.publisher.directory().join("aside");
    std::fs::copy(&pack, &aside).unwrap();
    std::fs::remove_file(&pack).unwrap();
    let mut mount = laptop.mount_with("work", &["--on-missing", "fail"]);
    assert!(!unreadable_chunks(&published, &mount).is_empty());
    let said = mount.process().stderr();
    assert!(said.contains(pack.file_name().unwrap().to_str().unwrap()), "{said}");
    // Repaired, the same mount reads again.
    std::fs::copy(&aside, &pack).unwrap();
    assert_eq!(unreadable_chunks(&published, &mount), [0_u64; 0]);
    mount.unmount();
}

/// All files below a directory with their bytes, but for the cache, which nobody must trust.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).expect("a directory can be read") {
        let path = entry.expect("a directory can be read").path();
        if path.ends_with("cache") {
            continue;
        }
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.is_file() {
            found.insert(path.clone(), std::fs::read(&path).expect("a file can be read"));
        }
    }
    found
}

/// A machine with a desktop on which something was written and not synced.
fn with_unsynced_work(published: &Publication) -> (Client, Model) {
    let laptop = published.machine_with_desktop("laptop");
    let mut home = Model::zeros(16 << 20);
    let mount = laptop.mount("work");
    let disk = open_for_writing(&mount.home());
    home.write(&disk, 3 << 20, &[42; 100_000]);
    drop(disk);
    mount.unmount();
    (laptop, home)
}

/// Damages a file below the state directory in some ways; each time opening the desktop is refused with its name and
/// nothing is changed. Undamaged, all is there.
fn assert_damage_is_named(name: &str, said: &[&str], advised: &[&str], ways: &[fn(&mut Vec<u8>)]) {
    let published = Publication::new(52, 1 << 20);
    let (laptop, home) = with_unsynced_work(&published);
    let path = laptop.state().join(name);
    let good = std::fs::read(&path).unwrap_or_else(|error| panic!("cannot read {name}: {error}"));
    let directory = laptop.new_directory();
    for way in ways {
        let mut bad = good.clone();
        way(&mut bad);
        assert_ne!(bad, good);
        std::fs::write(&path, &bad).expect("an object can be written");
        let before = files(&laptop.state());
        let mount = laptop.satchel(["mount".as_ref(), "work".as_ref(), directory.as_os_str()]);
        assert_refused(mount, said, advised);
        let sync = laptop.satchel(["sync", "work"]).exited(1);
        super::assert_clean(&sync.stderr);
        let mut after = files(&laptop.state());
        // Who tried last, and when.
        after.retain(|path, _| !path.ends_with("lock") && !path.ends_with("lease.json"));
        for (path, bytes) in after {
            assert!(before.get(&path) == Some(&bytes), "{} was changed", path.display());
        }
        assert_eq!(files(&laptop.state()).len(), before.len(), "a file was made or removed");
    }
    std::fs::write(&path, &good).expect("an object can be written");
    let mount = laptop.mount("work");
    home.assert_in(&mount.home());
    published.content.assert_in(&mount.system());
    mount.unmount();
}

/// Ways in which a text file is damaged.
const TEXT: [fn(&mut Vec<u8>); 4] = [
    Vec::clear,
    |bytes| bytes.truncate(bytes.len() / 2),
    |bytes| bytes[0] = b'#',
    |bytes| bytes.iter_mut().for_each(|byte| *byte = 0xff),
];

#[test]
fn a_damaged_login_is_named() {
    require!(fuse);
    assert_damage_is_named("server.json", &["server.json is damaged"], &["logging in"], &TEXT);
    assert_damage_is_named(
        "server.json",
        &["server.json has format version 9", "update Satchel"],
        &[],
        &[|bytes| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            *bytes = text.replace("\"version\": 1", "\"version\": 9").into_bytes();
        }],
    );
    assert_damage_is_named("token", &["token"], &["satchel login"], &[Vec::clear, |bytes| bytes[0] = 0xff]);
}

#[test]
fn a_damaged_desktop_record_is_named() {
    require!(fuse);
    assert_damage_is_named(
        "desktops/work/desktop.json",
        &["desktops/work", "desktop.json is damaged"],
        &["synced"],
        &TEXT,
    );
    assert_damage_is_named(
        "desktops/work/desktop.json",
        &["desktops/work", "desktop.json has format version 9", "update Satchel"],
        &[],
        &[|bytes| {
            let text = String::from_utf8(bytes.clone()).unwrap();
            *bytes = text.replace("\"version\": 1", "\"version\": 9").into_bytes();
        }],
    );
}

#[test]
fn a_damaged_overlay_is_named() {
    require!(fuse);
    let synced = ["what was synced is safe"];
    assert_damage_is_named(
        "desktops/work/overlay-home-1.map",
        &["desktop work", "overlay-home-1.map is damaged"],
        &synced,
        &[
            Vec::clear,
            |bytes| bytes.truncate(5000),
            |bytes| bytes[100] ^= 1,
            |bytes| bytes[4096 + 190] ^= 1,
            |bytes| bytes[4096 + 511] ^= 0x80,
        ],
    );
    assert_damage_is_named(
        "desktops/work/overlay-home-1.data",
        &["desktop work", "overlay-home-1.data is damaged"],
        &synced,
        &[
            |bytes| bytes.truncate(1 << 20),
            |bytes| {
                let header = bytes.len() - 4096;
                bytes[header + 20] ^= 1;
            },
        ],
    );
}

#[test]
fn a_missing_overlay_is_named() {
    require!(fuse);
    let published = Publication::new(53, 1 << 20);
    let (laptop, home) = with_unsynced_work(&published);
    let directory = laptop.new_directory();
    for name in ["overlay-home-1.map", "overlay-home-1.data"] {
        let (path, aside) = (laptop.desktop_directory("work").join(name), laptop.directory().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        let mount = laptop.satchel(["mount".as_ref(), "work".as_ref(), directory.as_os_str()]).exited(1);
        super::assert_clean(&mount.stderr);
        assert!(mount.stderr.contains(name), "{}", mount.stderr);
        std::fs::rename(&aside, &path).unwrap();
    }
    let mount = laptop.mount("work");
    home.assert_in(&mount.home());
    mount.unmount();
}

#[test]
fn a_damaged_cache_is_only_slower() {
    require!(fuse);
    let published = Publication::new(54, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    mount.unmount();
    let desktop = laptop.desktop_directory("work");
    let damage = |path: &Path| {
        let file = open_for_writing(path);
        let len = file.metadata().unwrap().len().min(IMAGE_BYTES);
        (0..len / 5000).for_each(|at| file.write_all_at(&[0xa5], at * 5000 + 13).unwrap());
    };
    let segments = || std::fs::read_dir(desktop.join("segments")).unwrap().map(|entry| entry.unwrap().path());
    let remove: fn(&Path) = |path| std::fs::remove_file(path).unwrap();
    let data = desktop.join("cache/cache.data");
    let index = desktop.join("cache/cache.index");
    let harm: [Box<dyn Fn()>; 5] = [
        Box::new(|| damage(&data)),
        Box::new(|| damage(&index)),
        Box::new(|| std::fs::write(&index, [9; 100_000]).unwrap()),
        Box::new(|| remove(&data)),
        Box::new(|| segments().for_each(|path| std::fs::write(path, b"nonsense").unwrap())),
    ];
    for (number, harm) in harm.iter().enumerate() {
        harm();
        let mount = laptop.mount("work");
        published.content.assert_in(&mount.system());
        if number == 0 {
            let live = laptop.status("work")["live"].clone();
            assert!(live["cache_corrupt"].as_u64().unwrap() > 0, "{live}");
        }
        mount.unmount();
    }
}

#[test]
fn damaged_keys_and_pins_are_named() {
    let published = Publication::new(55, 1 << 20);
    let laptop = published.machine_with_desktop("laptop");
    for (name, said) in [("pins.json", "pins.json is damaged"), ("machine.key", "machine.key is damaged")] {
        let path = laptop.state().join(name);
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, "nonsense").unwrap();
        let created = laptop.satchel(["create", "other", "--image", "golden", "--home", "0"]).exited(1);
        super::assert_clean(&created.stderr);
        assert!(created.stderr.contains(said), "{}", created.stderr);
        assert_eq!(std::fs::read(&path).unwrap(), b"nonsense", "{name} was replaced");
        std::fs::write(&path, good).unwrap();
    }
    let path = published.publisher.state().join("publisher.key");
    std::fs::write(&path, "nonsense").unwrap();
    let publish = ["publish".as_ref(), published.disk.as_os_str(), "--image".as_ref(), "golden".as_ref()];
    let refused = published.publisher.satchel(publish).exited(1);
    assert!(refused.stderr.contains("publisher.key is damaged"), "{}", refused.stderr);
    assert_eq!(std::fs::read(&path).unwrap(), b"nonsense", "a publisher's key was replaced");
}
