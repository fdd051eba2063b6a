//! Without a network: what is pinned works, what is not says what lacks.

use satchel_tests::{Publication, require};

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
