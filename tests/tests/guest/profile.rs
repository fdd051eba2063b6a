//! A start that was recorded is one download; the next one needs nobody.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::process::Command;

use satchel_tests::{Client, FaultyHttps, Link, RunOptions, Shape, Turn, require};

use super::BOOT_LIMIT;
use super::server::{DebianServer, emulated};

/// The most that may come over the wire for a start, of the boot stream's length, percent: what neither recorded
/// start read, and what is needed to find it.
const WIRE_LIMIT_PERCENT: u64 = 110;

/// A place that no file system and no boot loader has, bytes.
const BEFORE_PARTITIONS: u64 = 1000 << 10;

#[test]
fn a_recorded_start_is_one_download_and_then_needs_no_network() {
    require!(fuse, guest);
    let mut debian = DebianServer::start();
    let _turn = Turn::wait("guest");
    let none = debian.publisher.satchel(["profile", "show", "debian"]).exited(1).stderr;
    assert!(none.contains("satchel profile record debian@1"), "{none}");
    let record = ["profile", "record", "debian", "--memory", "1G", "--display", "none", "--until", "READY"];
    let recorded = debian.publisher.satchel([&["--json"][..], &record].concat()).ok().json();
    let stream_bytes = recorded["streams_bytes"].as_u64().expect("a profile has streams");
    let shown = debian
        .publisher
        .satchel(["--json", "profile", "show", "debian", "--link", "25mbit/40ms"])
        .ok()
        .json();
    assert_eq!(shown["streams_bytes"], stream_bytes);
    debian.server.verify();

    let link = Link::start(debian.server.address(), Shape::default());
    let laptop = Client::new("laptop");
    laptop.login(&debian.server.access("alice", "user").through(&link));
    laptop.create("work", "debian", Some("1G"));
    let before = link.counts().down_bytes;
    let mut running = laptop.run("work", &emulated());
    let uptime_s = running.guest().wait_ready(BOOT_LIMIT);
    let fetched_bytes = link.counts().down_bytes - before;
    let status = laptop.status("work");
    let (live, profile) = (&status["live"], &status["profile"]);
    println!(
        "up after {uptime_s} s; {:.1} MB over the wire, the stream has {:.1} MB; ahead: {}",
        fetched_bytes as f64 / 1e6,
        stream_bytes as f64 / 1e6,
        live["foreseen"]
    );
    assert_eq!(live["boot_received_bytes"], stream_bytes, "{live}");
    assert_eq!(profile["local_bytes"], profile["stored_bytes"], "{status}");
    assert!(
        fetched_bytes * 100 <= stream_bytes * WIRE_LIMIT_PERCENT,
        "{fetched_bytes} for {stream_bytes}: {live}"
    );
    // The recorded starts ran no program of ours: what is run without a network below is run with one here.
    assert_eq!(running.guest().run("echo kept >/root/kept && sync && cat /root/kept").trim(), "kept");
    running.shut_down(BOOT_LIMIT);

    // What a start reads is here: opening it again asks for its versions only, and it works without anyone.
    let before = link.counts().down_bytes;
    laptop.mount("work").unmount();
    let asked_bytes = link.counts().down_bytes - before;
    assert!(asked_bytes < 64 << 10, "{asked_bytes} bytes for a start of which all is here");
    debian.server.stop();
    let mut running = laptop.run("work", &RunOptions { offline: true, ..emulated() });
    running.guest().wait_ready(BOOT_LIMIT);
    assert_eq!(running.guest().run("cat /root/kept").trim(), "kept");
    running.guest().run("echo offline >/root/kept && sync");
    running.shut_down(BOOT_LIMIT);
    debian.server.start_again();
    let synced = laptop.sync("work").stdout;
    assert!(synced.contains("synced work: version 3"), "{synced}");

    // On a machine that has nothing of it the profile comes with the versions: nobody asks which one it is.
    let proxy = FaultyHttps::start(&debian.server.url(), debian.server.fingerprint());
    let other = Client::new("other");
    other.login(&debian.server.access("alice", "user").through_faulty(&proxy));
    other.mount("work").unmount();
    let asked: Vec<String> = proxy.exchanges().into_iter().map(|exchange| exchange.path).collect();
    let profile = asked.iter().filter(|path| path.contains("/profiles/")).count();
    let pointer = asked.iter().filter(|path| path.ends_with(".profile")).count();
    assert_eq!((profile, pointer), (2, 0), "{asked:?}");

    // A power cut may keep the cache's index and not its bytes: that is said before a start, and not met in the middle of it.
    let data = OpenOptions::new().write(true).open(laptop.desktop_directory("work").join("cache/cache.data"));
    let data = data.expect("a cache");
    let bytes = data.metadata().expect("a file").len();
    data.set_len(0).and_then(|()| data.set_len(bytes)).expect("a file can be emptied");
    let directory = laptop.new_directory();
    let words = ["mount".as_ref(), "work".as_ref(), directory.as_os_str(), "--offline".as_ref()];
    let refused = laptop.satchel(words).exited(1).stderr;
    assert!(refused.contains("that a start of desktop work reads are not on this machine"), "{refused}");

    // An update that was cut between its version and its profile is finished by the same command.
    let next = debian.publisher.directory().join("next.raw");
    let copy = Command::new("cp").arg("--sparse=always").arg(&debian.image).arg(&next).status();
    assert!(copy.expect("cp can be run").success());
    let disk = OpenOptions::new().write(true).open(&next).expect("a copy");
    disk.write_all_at(b"next", BEFORE_PARTITIONS).expect("a file can be written");
    let _ = debian.publisher.publish(&next, "debian");
    let none = debian.publisher.satchel(["profile", "show", "debian"]).exited(1).stderr;
    assert!(none.contains("satchel profile record debian@2"), "{none}");
    let next = next.to_str().expect("UTF-8");
    let words = ["--json", "publish", next, "--image", "debian", "--profile-from", "newest"];
    let published = debian.publisher.satchel(words).ok().json();
    assert_eq!(published["unchanged"], true, "{published}");
    let carried = debian.publisher.satchel(["--json", "profile", "show", "debian"]).ok().json();
    assert_eq!(carried["chunks"], shown["chunks"], "{carried}");
}
