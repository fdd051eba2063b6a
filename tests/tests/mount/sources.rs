//! Sources beside the server: a directory, a static host; each may die, stall or lie in mid-read, and nobody notices.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use satchel_tests::{
    Client, Event, Fault, FaultyHttps, Link, Model, Policy, Publication, Shape, StaticHttps, require,
};

use super::IMAGE_BYTES;

/// A machine with a desktop whose versions it knows, and the image exported to a directory beside it.
fn with_export(seed: u64) -> (Publication, Client, PathBuf) {
    let published = Publication::new(seed, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    laptop.mount("work").unmount();
    let tree = laptop.directory().join("tree");
    let words = ["--json".as_ref(), "export".as_ref(), "golden".as_ref(), tree.as_os_str()];
    let exported = laptop.satchel(words).ok().json();
    let bytes = exported["bytes"].as_u64();
    assert!(bytes > Some(1 << 20), "{exported}");
    // A second time only looks whether locators have changed.
    let again = laptop.satchel(words).ok().json();
    assert!(again["fetched_bytes"].as_u64().map(|fetched| fetched * 20) < bytes, "{again}");
    (published, laptop, tree)
}

/// Adds a source; what is said of it.
fn add(laptop: &Client, source: &str) -> String {
    let added = laptop.satchel(["--json", "source", "work", "--add", source]).ok();
    assert_eq!(added.json()["added"][0], source);
    added.stderr
}

#[test]
fn an_exported_directory_is_enough() {
    require!(fuse);
    let (mut published, laptop, tree) = with_export(60);
    let source = format!("file:{}", tree.display());
    let mut packs = std::fs::read_dir(tree.join("image/golden/packs")).expect("it was exported");
    let pack = packs.next().expect("a pack").expect("it can be listed").path();
    let aside = tree.join("aside");
    rename(&pack, &aside);
    let said = add(&laptop, &source);
    assert!(said.contains("has not all of version 1 of golden") && said.contains("/packs/"), "{said}");
    rename(&aside, &pack);
    let said = add(&laptop, &source);
    assert!(!said.contains("warning"), "{said}");
    published.server.stop();
    let mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    let live = laptop.status("work")["live"].clone();
    assert_eq!(live["online"], true, "a source answers: {live}");
    mount.unmount();
}

#[test]
fn an_export_that_was_cut_is_mended_by_the_same_command() {
    require!(fuse);
    let (mut published, laptop, tree) = with_export(63);
    let export = |options: &[&str]| {
        let words = ["export".as_ref(), "golden".as_ref(), tree.as_os_str()];
        laptop.satchel(words.into_iter().chain(options.iter().map(|option| option.as_ref())))
    };
    let first = |class: &str| -> PathBuf {
        let files = std::fs::read_dir(tree.join("image/golden").join(class)).expect("it was exported");
        let mut files: Vec<PathBuf> = files.map(|file| file.expect("it can be listed").path()).collect();
        files.sort();
        files.swap_remove(0)
    };
    // As some file systems leave a file whose name was written before its length.
    std::fs::write(first("segments"), "").expect("it can be written");
    // And what rotted without changing its length.
    let pack = first("packs");
    let mut bytes = std::fs::read(&pack).expect("it can be read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, &bytes).expect("it can be written");
    let kept = std::fs::metadata(first("locators")).expect("it is there").ino();
    drop(export(&["--check"]).ok());
    assert_eq!(std::fs::metadata(first("locators")).expect("it is there").ino(), kept, "it has not changed");

    // What says where chunks lie is replaced when they lie there, not before.
    let old = b"of an earlier version".as_slice();
    std::fs::write(first("locators"), old).expect("it can be written");
    let aside = pack.with_extension("aside");
    rename(&pack, &aside);
    let stored = published.server.objects("image/golden/packs").join(pack.file_name().expect("a name"));
    rename(&stored, &stored.with_extension("aside"));
    drop(export(&[]).exited(1));
    assert_eq!(std::fs::read(first("locators")).expect("it is there"), old);
    rename(&stored.with_extension("aside"), &stored);
    drop(export(&[]).ok());

    let _ = add(&laptop, &format!("file:{}", tree.display()));
    published.server.stop();
    let mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    mount.unmount();
}

#[test]
fn any_static_host_is_enough() {
    require!(fuse);
    let (mut published, laptop, tree) = with_export(61);
    let host = StaticHttps::start(&tree);
    let _ = add(&laptop, &format!("https://{}#{}", host.address(), host.fingerprint()));
    published.server.stop();
    let mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    mount.unmount();
}

#[test]
fn a_stick_that_is_pulled_out_is_missed_by_nobody() {
    require!(fuse);
    let (published, laptop, tree) = with_export(62);
    let _ = add(&laptop, &format!("file:{}", tree.display()));
    let mount = laptop.mount("work");
    let model = Model::of(published.content, IMAGE_BYTES);
    let disk = super::open(&mount.system());
    model.read(&disk, 0, IMAGE_BYTES / 2);
    rename(&tree, &tree.with_extension("elsewhere"));
    model.read(&disk, IMAGE_BYTES / 2, IMAGE_BYTES / 4);
    rename(&tree.with_extension("elsewhere"), &tree);
    published.content.assert_in(&mount.system());
    drop(disk);
    mount.unmount();
}

fn rename(from: &Path, to: &Path) {
    std::fs::rename(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
}

/// Reads a disk whose preferred source fails after a quarter of it.
fn read_through(published: &Publication, laptop: &Client, fail: impl FnOnce()) {
    let mut mount = laptop.mount("work");
    let model = Model::of(published.content, IMAGE_BYTES);
    let disk = super::open(&mount.system());
    model.read(&disk, 0, IMAGE_BYTES / 4);
    fail();
    model.read(&disk, IMAGE_BYTES / 4, IMAGE_BYTES * 3 / 4);
    let said = mount.process().stderr();
    assert!(!said.contains("the server does not answer"), "{said}");
    assert_eq!(laptop.status("work")["live"]["online"], true);
    drop(disk);
    mount.unmount();
}

fn behind_a_link(tree: &Path) -> (StaticHttps, Link, String) {
    let host = StaticHttps::start(tree);
    let link = Link::start(host.address(), Shape::default());
    let source = format!("https://{}#{}", link.address(), host.fingerprint());
    (host, link, source)
}

#[test]
fn a_source_that_dies_is_replaced() {
    require!(fuse);
    let (published, laptop, tree) = with_export(63);
    let (_host, link, source) = behind_a_link(&tree);
    let _ = add(&laptop, &source);
    read_through(&published, &laptop, || {
        link.apply(Event::Refuse);
        link.apply(Event::Reset);
    });
}

#[test]
fn a_source_that_falls_silent_is_replaced() {
    require!(fuse);
    let (published, laptop, tree) = with_export(64);
    let (_host, link, source) = behind_a_link(&tree);
    let _ = add(&laptop, &source);
    read_through(&published, &laptop, || link.apply(Event::Down));
}

#[test]
fn a_source_that_lies_or_is_overloaded_is_replaced() {
    require!(fuse);
    for fault in [Fault::Alter, Fault::Status(503), Fault::Truncate] {
        let (published, laptop, tree) = with_export(65);
        let host = StaticHttps::start(&tree);
        let proxy = FaultyHttps::start(&format!("https://{}", host.address()), host.fingerprint());
        add(&laptop, &format!("{}#{}", proxy.url(), proxy.fingerprint()));
        let policy = Policy::new(65).chance(fault, 1.0);
        read_through(&published, &laptop, || proxy.set_policy(policy));
    }
}

#[test]
fn a_source_with_another_certificate_is_not_used() {
    require!(fuse);
    let (published, laptop, tree) = with_export(66);
    let host = StaticHttps::start(&tree);
    let other = format!("SHA256:{}", "00".repeat(32));
    let _ = add(&laptop, &format!("https://{}#{other}", host.address()));
    read_through(&published, &laptop, || {});
}

#[test]
fn a_source_whose_certificate_changes_is_left() {
    require!(fuse);
    let (published, laptop, tree) = with_export(67);
    let (host, link, source) = behind_a_link(&tree);
    let _ = add(&laptop, &source);
    read_through(&published, &laptop, || {
        host.change_certificate();
        link.apply(Event::Reset);
    });
}

#[test]
fn a_list_of_sources_is_kept_and_nonsense_is_refused() {
    let published = Publication::new(67, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let _ = add(&laptop, "file:/media/stick");
    drop(laptop.satchel(["source", "work", "--add", "https://mirror.example.org/x", "--first"]).ok());
    let listed = laptop.satchel(["source", "work"]).ok().stdout;
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines[..2], ["https://mirror.example.org/x", "file:/media/stick"]);
    assert!(lines[2].ends_with("(the server)"), "{listed}");
    drop(laptop.satchel(["source", "work", "--remove", "file:/media/stick"]).ok());
    let said = laptop.satchel(["source", "work", "--remove", "file:/media/stick"]).exited(1).stderr;
    let unknown = laptop.satchel(["source", "wrok", "--add", "file:/media/stick"]).exited(1).stderr;
    assert!(unknown.contains("no desktop wrok") && !laptop.desktop_directory("wrok").exists(), "{unknown}");
    assert!(said.contains("is no source of this desktop"), "{said}");
    for bad in ["/media/stick", "http://mirror.example.org", "ftp://x"] {
        let said = laptop.satchel(["source", "work", "--add", bad]).exited(2).stderr;
        assert!(said.contains("is no source"), "{said}");
    }
}

#[test]
fn a_mirror_the_server_names_is_asked_first_and_outlasts_the_server() {
    require!(fuse);
    let (mut published, laptop, tree) = with_export(68);
    let host = StaticHttps::start(&tree);
    let mirror = format!("https://{}#{}", host.address(), host.fingerprint());
    let named = published.server.run(&["mirror"], &["golden", "--add", &mirror]).ok().stdout;
    assert_eq!(named.trim_end(), mirror);
    let said = published.server.run(&["mirror"], &["golden", "--add", "http://x"]).exited(1).stderr;
    assert!(said.contains("clients speak https only"), "{said}");
    laptop.mount("work").unmount();
    let listed = laptop.satchel(["--json", "source", "work"]).ok().json();
    assert_eq!(listed["mirrors"][0], mirror);
    published.server.stop();
    let mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    mount.unmount();
}
