//! Without a network: what is pinned works, what is not says what lacks.

use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Direction, Event, Link, Model, Process, Publication, Shape, Signal, require};

use super::IMAGE_BYTES;

#[test]
fn a_pinned_desktop_needs_nobody() {
    require!(fuse);
    let mut published = Publication::new(70, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let refused = |what: &str| {
        let directory = laptop.new_directory();
        let words = ["mount".as_ref(), "work".as_ref(), directory.as_os_str(), "--offline".as_ref()];
        let said = laptop.satchel(words).exited(1).stderr;
        assert!(said.contains(what), "{said}");
    };
    refused("nothing of desktop work is on this machine yet");
    laptop.mount("work").unmount();
    refused("was never recorded");
    let small = laptop.satchel(["pin", "work", "--cache-size", "4M"]).exited(1).stderr;
    assert!(small.contains("no room for all of it"), "{small}");
    let pinned = laptop.satchel(["--json", "pin", "work"]).ok().json();
    assert_eq!(pinned["total_bytes"], pinned["local_bytes"], "{pinned}");
    published.server.stop();
    let mut mount = laptop.mount_with("work", &["--offline"]);
    published.content.assert_in(&mount.system());
    let status = laptop.status("work");
    assert_eq!(status["live"]["pinned"], true, "{status}");
    assert_eq!(status["live"]["requests"], 0, "nobody was asked: {status}");
    let said = laptop.satchel(["status", "work"]).ok().stdout;
    assert!(said.contains("works: all of it is here"), "{said}");
    assert_eq!(mount.process().stderr(), "");
    mount.unmount();
    drop(laptop.satchel(["pin", "work", "--unpin"]).ok());
    laptop.mount_with("work", &["--offline"]).unmount();
}

#[test]
fn what_is_here_is_told_of_a_desktop_that_is_not_mounted() {
    require!(fuse);
    let published = Publication::new(79, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mount = laptop.mount("work");
    let model = Model::of(published.content, IMAGE_BYTES);
    model.read(&super::open(&mount.system()), 0, IMAGE_BYTES / 2);
    let mounted = laptop.status("work")["disks"][0]["local"].clone();
    assert!(mounted["local_bytes"].as_u64() > Some(0), "{mounted}");
    mount.unmount();
    let here = laptop.status("work")["disks"][0]["local"].clone();
    assert_eq!(here["stored_bytes"], mounted["stored_bytes"]);
    // What was read ahead may have come meanwhile.
    assert!(here["local_bytes"].as_u64() >= mounted["local_bytes"].as_u64(), "{here}, and before {mounted}");
    drop(laptop.satchel(["pin", "work"]).ok());
    let said = laptop.satchel(["status", "work"]).ok().stdout;
    assert!(said.contains("works: all of it is here"), "{said}");
    // Whatever the cache holds, it is another desktop's, or none.
    std::fs::write(laptop.desktop_directory("work").join("cache/cache.index"), "")
        .expect("it can be written");
    let said = laptop.satchel(["status", "work"]).ok().stdout;
    assert!(said.contains("not everything is here") && said.contains(", 0% here"), "{said}");
}

#[test]
fn a_pin_that_is_killed_goes_on_where_it_was() {
    require!(fuse);
    let published = Publication::new(72, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let down = Direction { rate_bps: Some(8_000_000), ..Direction::default() };
    let link = Link::start(published.server.address(), Shape { up: Direction::default(), down });
    laptop.login(&published.access().through(&link));
    laptop.create("work", "golden", None);
    let before = link.counts().down_bytes;
    let mut pin = Process::start("satchel pin", &mut laptop.command(["pin", "work"]));
    wait::until("some of it is here, and noted", PATIENCE, || {
        (link.counts().down_bytes - before > 6 << 20).then_some(())
    });
    pin.signal(Signal::KILL);
    let _ = pin.wait(PATIENCE);
    let of_the_first = link.counts().down_bytes - before;
    link.apply(Event::Shape(Shape::default()));
    let pinned = laptop.satchel(["--json", "pin", "work"]).ok().json();
    let of_the_second = link.counts().down_bytes - before - of_the_first;
    let whole = pinned["total_bytes"].as_u64().expect("a number");
    assert!(of_the_second < whole - (3 << 20), "{of_the_first} and {of_the_second} of {whole}");
}

#[test]
fn what_is_all_here_is_pinned_though_nobody_answers() {
    require!(fuse);
    let mut published = Publication::new(78, 4 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let _ = laptop.satchel(["pin", "work"]).ok();
    published.server.stop();
    let _ = laptop.satchel(["pin", "work"]).ok();
    let _ = laptop.satchel(["pin", "work", "--unpin"]).ok();
    let _ = laptop.satchel(["pin", "work", "--limit-rate", "1M"]).ok();
    assert_eq!(laptop.status("work")["pinned"], true);
}

#[test]
fn a_mounted_desktop_is_filled_paused_and_resumed() {
    require!(fuse);
    let published = Publication::new(71, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let none = laptop.satchel(["pin", "work", "--pause"]).exited(1).stderr;
    assert!(none.contains("it is not mounted"), "{none}");
    let mount = laptop.mount("work");
    drop(laptop.satchel(["pin", "work", "--pause"]).ok());
    assert_eq!(laptop.status("work")["live"]["paused"], true);
    drop(laptop.satchel(["pin", "work", "--resume"]).ok());
    let pinned = laptop.satchel(["--json", "pin", "work", "--limit-rate", "100M"]).ok().json();
    assert_eq!(pinned["total_bytes"], pinned["local_bytes"], "{pinned}");
    let local = laptop.status("work")["disks"][0]["local"].clone();
    assert_eq!(local["local_bytes"], local["stored_bytes"], "{local}");
    assert_eq!(local["unknown_segments"], 0);
    mount.unmount();
}
