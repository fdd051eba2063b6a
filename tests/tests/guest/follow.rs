//! A desktop follows its person from machine to machine.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use satchel_tests::wait;
use satchel_tests::{Client, Event, Link, Rng, Shape, Signal, Turn, require};

use super::BOOT_LIMIT;
use super::server::{DebianServer, emulated};

/// The most of an image's data that may come over the wire until its guest is up, percent.
const BOOT_SHARE_LIMIT_PERCENT: u64 = 15;

/// How long the network is away: longer than it takes to be noticed. Another of `SATCHEL_OUTAGE_S`, seconds.
const OUTAGE_S: u64 = 9;

#[test]
fn a_desktop_boots_from_a_fraction_of_its_image_and_follows_its_person() {
    require!(fuse, guest);
    let debian = DebianServer::start();
    let allocated_bytes = std::fs::metadata(&debian.image).expect("the image is there").blocks() * 512;
    let _turn = Turn::wait("guest");
    let behind_a_link = |name: &str| {
        let link = Link::start(debian.server.address(), Shape::default());
        let machine = Client::new(name);
        machine.login(&debian.server.access("alice", "user").through(&link));
        (link, machine)
    };
    let (link, laptop) = behind_a_link("laptop");
    laptop.create("work", "debian", Some("1G"));

    // The first machine: cold, nothing of the image is there.
    let before = link.counts().down_bytes;
    let mut running = laptop.run("work", &emulated());
    let uptime_s = running.guest().wait_ready(BOOT_LIMIT);
    let fetched_bytes = link.counts().down_bytes - before;
    let percent = fetched_bytes * 100 / allocated_bytes;
    println!(
        "up after {uptime_s} s; {:.1} MB over the wire, {percent} % of the {:.1} MB in use",
        fetched_bytes as f64 / 1e6,
        allocated_bytes as f64 / 1e6
    );
    assert!(
        percent <= BOOT_SHARE_LIMIT_PERCENT,
        "{fetched_bytes} of {allocated_bytes} bytes until it was up"
    );
    assert_eq!(running.guest().run("findmnt -no SOURCE,FSTYPE /home | tr -s ' '"), "/dev/vdb ext4");
    assert_eq!(running.guest().run("systemctl --failed --no-legend"), "");
    let mut bytes = vec![0; 5_000];
    Rng::new(3).fill(&mut bytes);
    running.guest().put("/root/file", &bytes);
    assert!(running.guest().get("/root/file") == bytes);
    let written = running
        .guest()
        .run("head -c 3000000 /dev/urandom >/home/user/carried && sync && sha256sum </home/user/carried");
    // Not written out by anyone: the guest does that when it is told to hold still.
    running.guest().run("echo also here >/root/carried; echo at noon >/home/user/noon");
    let held = wait::until("the guest holds still for a checkpoint", BOOT_LIMIT, || {
        let report = laptop.satchel(["--json", "checkpoint", "work", "-m", "at noon"]).ok().json();
        (report["held_still"] == true).then_some(report["version"]["sequence"].clone())
    });
    // It goes on.
    running.guest().run("rm /home/user/noon && sync");
    // As it was left, without a replay of its journal.
    let looker = Client::new("looker");
    looker.login(&debian.server.access("alice", "user"));
    let mount = looker.mount_with("work", &["--read-only"]);
    let checked = std::process::Command::new("e2fsck").arg("-fn").arg(mount.home()).output();
    let checked = checked.expect("e2fsck can be run");
    let said =
        String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && !said.contains("recover"), "{said}");
    mount.unmount();
    let console = running.shut_down(BOOT_LIMIT);
    let version = held.as_u64().expect("a number") + 1;
    assert!(
        console.contains(&format!("synced work: version {version}")),
        "the run did not say that it synced"
    );
    let _ = laptop.satchel(["copy", &format!("work@{held}:/user/noon"), "work:/user/noon"]).ok();
    let _ = laptop.sync("work");
    let version = version + 1;

    // The second one: its network goes away in the middle of the boot and comes back.
    let (link, other) = behind_a_link("other");
    let mut running = other.run("work", &emulated());
    wait::until("the guest has begun to boot", BOOT_LIMIT, || {
        (link.counts().down_bytes > 20_000_000).then_some(())
    });
    let asked = std::env::var("SATCHEL_OUTAGE_S").ok();
    let outage = asked.map_or(OUTAGE_S, |seconds| seconds.parse().expect("SATCHEL_OUTAGE_S is a number"));
    let outage = Duration::from_secs(outage);
    link.apply(Event::Down);
    wait::until("the run says that the server is away", BOOT_LIMIT, || {
        running.process().stderr().contains("the server does not answer").then_some(())
    });
    link.schedule([(outage, Event::Up)]);
    let uptime_s = running.guest().wait_ready(BOOT_LIMIT + outage);
    println!("the network was away for {outage:?} in mid-boot; up after {uptime_s} s");
    assert!(
        running.process().stderr().contains("the server answers again"),
        "{}",
        running.process().report()
    );
    assert_eq!(running.guest().run("sha256sum </home/user/carried"), written);
    assert_eq!(running.guest().run("cat /root/carried /home/user/noon"), "also here\nat noon");
    let errors =
        running.guest().run("dmesg --level err,crit,alert,emerg | grep -iE 'vda|vdb|ext4|I/O' || true");
    assert_eq!(errors, "", "the outage was seen in the guest");
    running.guest().run("echo from the other >/home/user/answered && sync");
    // Ctrl-C is the power button.
    running.process().signal(Signal::INT);
    let console = running.wait_closed(BOOT_LIMIT);
    let version = version + 1;
    assert!(
        console.contains(&format!("synced work: version {version}")),
        "the run did not say that it synced"
    );
    assert_eq!(other.history("work").as_array().map(|versions| versions.len() as u64), Some(version));

    // Back to the first machine, without booting it: its disk has what the other wrote.
    let mount = laptop.mount("work");
    let found =
        std::process::Command::new("debugfs").args(["-R", "cat user/answered"]).arg(mount.home()).output();
    assert_eq!(String::from_utf8_lossy(&found.expect("debugfs can be run").stdout), "from the other\n");
    mount.unmount();
    debian.server.verify();
}
