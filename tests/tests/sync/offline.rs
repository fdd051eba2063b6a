//! Syncs without a server: a clear failure, nothing lost, and later they go on.

use std::time::Duration;

use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{
    Class, Client, Direction, Event, Fault, FaultyHttps, Link, Output, Policy, Publication, Rng, Rule, Shape,
    Way, require,
};

use super::story::{Disks, behind_a_proxy, sync, unsynced_bytes, versions};

fn assert_says_that_it_is_offline(output: &Output, address: &str) {
    assert_eq!(output.stdout, "");
    let errors: Vec<&str> = output.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{}", output.stderr);
    assert!(errors[0].contains("cannot reach") && errors[0].contains(address), "{}", errors[0]);
    assert!(output.stderr.contains("\nhint: is the server running there"), "{}", output.stderr);
}

#[test]
fn a_sync_without_the_server_fails_clearly_and_goes_on_later() {
    require!(fuse);
    let mut published = Publication::new(40, 4 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(40);
    let address = published.server.address().to_string();
    let mount = laptop.mount("work");
    disks.assert_in(&mount);
    published.server.stop();

    // Mounted: work goes on meanwhile.
    disks.change(&mount, 20, &mut rng);
    let refused = laptop.satchel(["sync", "work"]).exited(1);
    assert_says_that_it_is_offline(&refused, &address);
    // Nothing was fetched in vain: what the sync met is enough to know.
    let status = laptop.satchel(["status", "work"]).ok().stdout;
    assert!(status.contains("does not answer: cannot reach"), "{status}");
    disks.assert_in(&mount);
    disks.change(&mount, 20, &mut rng);
    let refused = laptop.satchel(["sync", "work"]).exited(1);
    assert_says_that_it_is_offline(&refused, &address);
    mount.unmount();

    // Unmounted, and mounted again without a server.
    let refused = laptop.satchel(["sync", "work"]).exited(1);
    assert_says_that_it_is_offline(&refused, &address);
    let mut mount = laptop.mount("work");
    disks.assert_in(&mount);
    let said = mount.process().stderr();
    assert!(said.contains("opening the version this machine has"), "{said}");
    assert!(unsynced_bytes(&laptop) > 0);
    let server = |laptop: &Client| laptop.status("work")["live"]["server_answers"].clone();
    assert_eq!(server(&laptop), false);

    // One that is told to waits, and goes on by itself.
    let mut waiting = laptop.start(["sync", "work", "--wait"]);
    wait::until("the sync waits", PATIENCE, || waiting.stderr().contains("waiting for it").then_some(()));
    published.server.start_again();
    assert_eq!(waiting.wait(PATIENCE).code(), Some(0), "{}", waiting.stderr());
    disks.change(&mount, 20, &mut rng);
    let report = sync(&laptop);
    assert!(report["version"]["sequence"].as_u64() >= Some(2), "{report}");
    assert_eq!(unsynced_bytes(&laptop), 0);
    assert_eq!(server(&laptop), true);
    disks.assert_in(&mount);
    mount.unmount();
    disks.assert_on_another_machine(&published);
    published.server.verify();
}

#[test]
fn a_sync_over_a_network_that_breaks_and_lies_arrives_whole() {
    require!(fuse);
    let seed = 41;
    let published = Publication::new(seed, 4 << 20);
    let (proxy, laptop) = behind_a_proxy(&published);
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(seed);
    let mount = laptop.mount("work");
    disks.assert_in(&mount);
    for round in 0..6 {
        disks.change(&mount, 10, &mut rng);
        proxy.set_policy(
            Policy::new(seed + round)
                .chance(Fault::CutUpload, 0.08)
                .chance(Fault::LoseAnswer, 0.08)
                .chance(Fault::Refuse, 0.06)
                .chance(Fault::Close, 0.06)
                .chance(Fault::Status(500), 0.06)
                .chance(Fault::Status(502), 0.06),
        );
        // It may give up; what it sent stays sent, so that it gets on.
        wait::until("a sync gets through", Duration::from_secs(120), || {
            let tried = laptop.satchel(["sync", "work"]);
            assert!(matches!(tried.code, Some(0 | 1)), "{tried:?}");
            (tried.code == Some(0)).then_some(())
        });
    }
    proxy.heal();
    assert_eq!(sync(&laptop)["version"], serde_json::Value::Null);
    mount.unmount();
    disks.assert_on_another_machine(&published);
    versions(&laptop);
    published.server.verify();
}

#[test]
fn a_lost_answer_to_a_commit_makes_no_second_version() {
    require!(fuse);
    let published = Publication::new(42, 4 << 20);
    let (proxy, laptop) = behind_a_proxy(&published);
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(42);
    let mount = laptop.mount("work");
    // Lost once, it is asked again; lost each time, the next sync finds that it was committed.
    disks.change(&mount, 5, &mut rng);
    proxy.inject(Rule::new(Fault::LoseAnswer).on(Class::Commit).times(1));
    assert_eq!(sync(&laptop)["version"]["sequence"], 2);
    disks.change(&mount, 5, &mut rng);
    proxy.inject(Rule::new(Fault::LoseAnswer).on(Class::Commit));
    let _ = laptop.satchel(["sync", "work"]).exited(1);
    proxy.heal();
    assert_eq!(versions(&laptop), [3, 2, 1]);
    mount.unmount();

    // Also by another process, and the other machine's work on top of it is seen.
    let (other, mut mount) = (published.machine("other"), laptop.mount("work"));
    disks.assert_in(&mount);
    assert_eq!(mount.process().stderr_but_outages(), "", "there is nothing to say of a version of one's own");
    assert_eq!(sync(&laptop)["version"]["sequence"], 3);
    assert_eq!(versions(&laptop), [3, 2, 1]);
    mount.unmount();
    let seen = other.mount("work");
    disks.assert_in(&seen);
    seen.unmount();
}

#[test]
fn a_cut_upload_is_continued_and_not_repeated() {
    require!(fuse);
    let published = Publication::new(43, 4 << 20);
    let link =
        Link::start(published.server.address(), Shape::symmetric(40_000_000, Duration::from_millis(2)));
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through(&link));
    laptop.create("work", "golden", Some("64M"));
    let mount = laptop.mount("work");
    let disk = satchel_tests::model::open_for_writing(&mount.home());
    let mut home = satchel_tests::Model::zeros(64 << 20);
    let mut noise = vec![0; 40 << 20];
    Rng::new(43).fill(&mut noise);
    home.write(&disk, 0, &noise);
    drop(disk);
    mount.unmount();
    // Two packs of 16 MiB and one of the rest, sent side by side; cut for good when one of them is there.
    let packs = published.server.objects("user/alice/packs");
    let arrived = || {
        let files = std::fs::read_dir(&packs).into_iter().flatten().flatten();
        // Being written, until its name is its own.
        let whole = files.filter(|file| !file.file_name().to_string_lossy().contains('#'));
        whole.filter_map(|file| file.metadata().ok()).map(|about| about.len()).sum::<u64>()
    };
    let mut syncing = laptop.start(["sync", "work"]);
    wait::until("a pack is there", PATIENCE, || (arrived() > 0).then_some(()));
    [Event::Refuse, Event::Reset].into_iter().for_each(|event| link.apply(event));
    let status = syncing.wait(PATIENCE);
    assert_eq!(status.code(), Some(1), "{}", syncing.report());
    let arrived = arrived();
    [Event::Accept, Event::Shape(Shape::default())].into_iter().for_each(|event| link.apply(event));
    let before = link.counts().up_bytes;
    let report = sync(&laptop);
    let sent = link.counts().up_bytes - before;
    let limit = (41 << 20) - arrived;
    assert!(
        sent < limit,
        "{sent} bytes sent again, of 40 MiB of which {arrived} bytes had arrived: {report}"
    );
    let seen = published.machine("other").mount("work");
    home.assert_in(&seen.home());
    seen.unmount();
    published.server.verify();
}

#[test]
fn a_connection_cut_at_any_byte_does_no_harm() {
    require!(fuse);
    let seed = 44;
    let published = Publication::new(seed, 4 << 20);
    let link = Link::start(published.server.address(), Shape::default());
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through(&link));
    laptop.create("work", "golden", Some("16M"));
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(seed);
    let mount = laptop.mount("work");
    for _ in 0..12 {
        disks.change(&mount, 6, &mut rng);
        let way = if rng.below(2) == 0 { Way::Up } else { Way::Down };
        let bytes = match way {
            Way::Up => 1 + rng.below(200_000),
            Way::Down => 1 + rng.below(3000),
        };
        link.apply(Event::CutAfter(way, bytes));
        let tried = laptop.satchel(["sync", "work"]);
        assert!(matches!(tried.code, Some(0 | 1)), "{tried:?}");
    }
    sync_until_done(&laptop);
    disks.assert_in(&mount);
    mount.unmount();
    disks.assert_on_another_machine(&published);
    versions(&laptop);
    published.server.verify();
}

fn sync_until_done(machine: &Client) {
    wait::until("everything is synced", PATIENCE, || {
        let _ = machine.satchel(["sync", "work"]);
        (unsynced_bytes(machine) == 0).then_some(())
    });
}

#[test]
fn a_proxy_in_between_that_answers_in_html_is_no_server() {
    require!(fuse);
    let published = Publication::new(45, 1 << 20);
    let proxy = FaultyHttps::start(&published.server.url(), published.server.fingerprint());
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through_faulty(&proxy));
    proxy.inject(Rule::new(Fault::Status(502)));
    let refused = laptop.satchel(["images"]).exited(1);
    assert!(refused.stderr.starts_with("error: "), "{}", refused.stderr);
}

#[test]
fn a_slow_uplink_is_no_lost_one() {
    require!(fuse);
    let published = Publication::new(45, 4 << 20);
    // What is sent takes longer than a server may be silent.
    let up = Direction { rate_bps: Some(2_000_000), delay: Duration::from_millis(20) };
    let shape = Shape { up, down: Direction::default() };
    let link = Link::start(published.server.address(), shape);
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through(&link));
    laptop.create("work", "golden", Some("16M"));
    let mount = laptop.mount("work");
    let mut disks = Disks::new(&published);
    let mut noise = vec![0; 8 << 20];
    Rng::new(45).fill(&mut noise);
    disks.home.write(&satchel_tests::model::open_for_writing(&mount.home()), 0, &noise);
    mount.unmount();
    let sent_before = link.counts().up_bytes;
    sync(&laptop);
    let sent_bytes = link.counts().up_bytes - sent_before;
    assert!(sent_bytes < 9 << 20, "{sent_bytes} bytes were sent for 8 MiB: some were sent twice");
    disks.assert_on_another_machine(&published);
}
