//! State on a stick: one that is not plugged in, may not be written, has a file system of another system, or is soon full.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use satchel_tests::{Access, Client, Model, Publication, SmallDisk, model::open_for_writing, require};

use super::{IMAGE_BYTES, assert_refused};

#[test]
fn a_stick_that_is_not_plugged_in_is_named() {
    let published = Publication::new(51, IMAGE_BYTES);
    let place = tempfile::tempdir().expect("a temporary directory");
    for state in [place.path().join("stick/state"), place.path().to_owned()] {
        let laptop = Client::with_state("laptop", &state);
        let named = state.display().to_string();
        for command in [&["desktops"][..], &["mount", "work", "/nowhere"], &["status", "work"]] {
            assert_refused(
                laptop.satchel(command),
                &["not logged in", &named, "empty or not there"],
                &["plugged in", "satchel login URL"],
            );
        }
    }
    let left: Vec<_> = std::fs::read_dir(place.path()).expect("it can be listed").collect();
    assert!(left.is_empty(), "{left:?} was made where the stick belongs");
    let laptop = Client::with_state("laptop", &place.path().join("stick/state"));
    laptop.login(&published.access());
    let _ = laptop.satchel(["desktops"]).ok();
}

#[test]
fn a_file_system_that_cannot_carry_a_state_directory_is_refused_before_a_secret_is_on_it() {
    require!(root, fuse, tool("mkfs.exfat"), tool("mount.exfat-fuse"));
    let published = Publication::new(52, IMAGE_BYTES);
    let place = tempfile::tempdir().expect("a temporary directory");
    let image = place.path().join("image");
    let stick = place.path().join("stick");
    std::fs::create_dir(&stick).expect("a directory can be made");
    std::fs::File::create(&image).and_then(|file| file.set_len(32 << 20)).expect("a file can be made");
    let run = |command: &mut Command| {
        assert!(command.status().is_ok_and(|status| status.success()), "{command:?} failed");
    };
    run(Command::new("mkfs.exfat").arg(&image).stdout(std::process::Stdio::null()));
    let mut mount = Command::new("mount");
    mount.args(["-t", "exfat-fuse", "-o", "loop"]).arg(&image).arg(&stick);
    run(mount.stdout(std::process::Stdio::null()));
    let state = stick.join("state");
    let laptop = Client::with_state("laptop", &state);
    let Access { url, token, fingerprint } = published.access();
    let refused = laptop.satchel(["login", &url, "--token", &token, "--fingerprint", &fingerprint]);
    let left: Vec<_> =
        std::fs::read_dir(&state).expect("it can be listed").flatten().map(|file| file.file_name()).collect();
    run(Command::new("umount").arg(&stick));
    assert!(left.is_empty(), "{left:?}");
    assert_refused(refused, &["permissions", "holes", "sockets", "state"], &["ext4", "--state DIR"]);
}

#[test]
fn where_nothing_may_be_written_a_desktop_is_looked_at_and_no_other_begun() {
    require!(root, fuse);
    let published = Publication::new(53, IMAGE_BYTES);
    let small = SmallDisk::ext4(32 << 20);
    let laptop = Client::with_state("laptop", &small.join("state"));
    laptop.login(&published.access());
    laptop.create("work", "golden", Some("16M"));
    let mount = laptop.mount("work");
    let disk = open_for_writing(&mount.home());
    Model::zeros(16 << 20).write(&disk, 0, &[3; 1 << 20]);
    drop(disk);
    mount.unmount();
    small.set_writable(false);
    assert_eq!(laptop.status("work")["unsynced_bytes"], 1 << 20);
    let directory = laptop.new_directory();
    let place = directory.to_str().expect("a path of this test");
    for command in [
        &["create", "other", "--image", "golden"][..],
        &["mount", "work", place],
        &["mount", "work", place, "--read-only"],
        &["browse", "work", place],
        &["diff", "work@1", "work"],
        &["sync", "work"],
        &["pin", "work"],
    ] {
        let refused = laptop.satchel(command).exited(1);
        super::assert_clean(&refused.stderr);
        let said = &refused.stderr;
        assert!(said.contains("ead-only file system") && said.contains("remount,rw"), "{command:?}: {said}");
    }
    small.set_writable(true);
    let listed = laptop.satchel(["desktops", "--json"]).ok().json().to_string();
    assert!(listed.contains("work") && !listed.contains("other"), "{listed}");
    let _ = laptop.sync("work");
}

#[test]
fn a_mount_that_fails_keeps_no_lease() {
    require!(fuse);
    let published = Publication::new(54, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    // A cache that cannot be opened: a directory is where its file belongs.
    let in_the_way = laptop.desktop_directory("work").join("cache/cache.data");
    std::fs::create_dir_all(&in_the_way).expect("a directory can be made");
    let place = laptop.new_directory();
    let mount = ["mount".as_ref(), "work".as_ref(), place.as_os_str()];
    for _ in 0..2 {
        let refused = laptop.satchel(mount).exited(1).stderr;
        assert!(refused.contains("cannot open the cache file"), "{refused}");
        published.machine("other").mount("work").unmount();
    }
    // What is on this machine only keeps it.
    std::fs::remove_dir(&in_the_way).expect("it is there");
    let mounted = laptop.mount("work");
    let disk = open_for_writing(&mounted.home());
    Model::zeros(16 << 20).write(&disk, 0, &[5; 4096]);
    drop(disk);
    mounted.unmount();
    let _ = std::fs::remove_file(&in_the_way);
    std::fs::create_dir(&in_the_way).expect("a directory can be made");
    let _ = laptop.satchel(mount).exited(1);
    let other = published.machine("third");
    let place = other.new_directory();
    let refused = other.satchel(["mount".as_ref(), "work".as_ref(), place.as_os_str()]).exited(1).stderr;
    assert!(refused.contains("in use on"), "{refused}");
}

#[test]
fn what_does_not_fit_is_said_before_it_is_fetched() {
    require!(root, fuse);
    let published = Publication::new(55, 40 << 20);
    let small = SmallDisk::new(12 << 20);
    let refused = published.machine("exporter").satchel([
        "export".as_ref(),
        "golden".as_ref(),
        small.join("tree").as_os_str(),
    ]);
    assert_refused(
        refused,
        &["no room for all of it", "MiB more are needed", "MiB are free"],
        &["the same command goes on"],
    );
    let taken = || Command::new("du").arg("-sk").arg(small.path()).output().expect("du runs").stdout;
    let kib = |taken: Vec<u8>| -> u64 {
        let text = String::from_utf8(taken).expect("text");
        text.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
    };
    assert!(kib(taken()) < 1 << 10, "{} KiB were written", kib(taken()));

    let laptop = Client::with_state("laptop", &small.join("state"));
    laptop.login(&published.access());
    laptop.create("work", "golden", Some("16M"));
    let refused = laptop.satchel(["pin", "work"]);
    assert_refused(
        refused,
        &["no room for all of it", "MiB are needed", "MiB of what is free"],
        &["nothing was fetched"],
    );
    let cache =
        std::fs::metadata(laptop.desktop_directory("work").join("cache/cache.data")).expect("it is there");
    assert_eq!(cache.blocks(), 0, "something was fetched all the same");

    small.resize(96 << 20);
    let _ = published
        .machine("exporter")
        .satchel(["export".as_ref(), "golden".as_ref(), small.join("tree").as_os_str()])
        .ok();
    let _ = laptop.satchel(["pin", "work"]).ok();
}
