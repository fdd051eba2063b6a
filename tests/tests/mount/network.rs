//! Networks that are slow, lie, break or are away: the reader waits, and then it is right.

use std::thread;
use std::time::Duration;

use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{
    Class, Client, Event, Fault, FaultyHttps, Link, Model, Mount, Policy, Publication, Rule, Shape, require,
};

use super::{IMAGE_BYTES, read_by_many};

/// Long enough for a client to notice that the network has fallen silent, on a loaded machine.
const NOTICE_LIMIT: Duration = Duration::from_secs(90);

#[test]
fn reads_are_right_through_a_network_that_lies_and_breaks() {
    require!(fuse);
    let seed = 20;
    let published = Publication::new(seed, IMAGE_BYTES);
    let proxy = FaultyHttps::start(&published.server.url(), published.server.fingerprint());
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through_faulty(&proxy));
    laptop.create("work", "golden", Some("16M"));
    let mount = laptop.mount_with("work", &["--cache-size", "4M"]);
    proxy.set_policy(
        Policy::new(seed)
            .chance(Fault::Alter, 0.06)
            .chance(Fault::Truncate, 0.06)
            .chance(Fault::Repeat, 0.06)
            .chance(Fault::WrongRange, 0.06)
            .chance(Fault::Close, 0.06)
            .chance(Fault::Refuse, 0.06)
            .chance(Fault::LoseAnswer, 0.04)
            .chance(Fault::Status(503), 0.02)
            .chance(Fault::Status(500), 0.04)
            .chance(Fault::Stall(Duration::from_millis(300)), 0.04),
    );
    // One answer that pauses for longer than a client may take as alive.
    proxy.inject(Rule::new(Fault::Stall(Duration::from_secs(8))).on(Class::Packs).skip(5).times(1));
    let model = Model::of(published.content, IMAGE_BYTES);
    read_by_many(&model, &mount.system(), 4, 30, seed);
    published.content.assert_in(&mount.system());
    let spoilt = |fault: fn(&Fault) -> bool| {
        proxy.exchanges().iter().filter(|exchange| exchange.fault.as_ref().is_some_and(fault)).count()
    };
    let lies = spoilt(|fault| matches!(fault, Fault::Alter | Fault::Repeat | Fault::WrongRange));
    assert!(lies > 5, "{lies} of {} answers were wrong: too few to test anything", proxy.exchanges().len());
    let live = laptop.status("work")["live"].clone();
    assert!(live["damaged"].as_u64().unwrap() > 0, "{live}");
    proxy.heal();
    published.content.assert_in(&mount.system());
    mount.unmount();
}

#[test]
fn reads_are_right_over_a_slow_and_distant_link() {
    require!(fuse);
    let published = Publication::new(21, IMAGE_BYTES);
    let shape = Shape::symmetric(100_000_000, Duration::from_millis(60));
    let link = Link::start(published.server.address(), shape);
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through(&link));
    laptop.create("work", "golden", Some("16M"));
    let mount = laptop.mount("work");
    let model = Model::of(published.content, IMAGE_BYTES);
    read_by_many(&model, &mount.system(), 4, 10, 21);
    published.content.assert_in(&mount.system());
    mount.unmount();
}

#[test]
fn a_first_start_asks_for_its_versions_while_it_asks_for_the_lease() {
    require!(fuse);
    let published = Publication::new(25, IMAGE_BYTES);
    published.machine("laptop").create("work", "golden", Some("16M"));
    let proxy = FaultyHttps::start(&published.server.url(), published.server.fingerprint());
    let other = published.machine("other");
    other.login(&published.access().through_faulty(&proxy));
    // Nothing that is told or asked of the server by PUT is answered to the end.
    proxy.inject(Rule::new(Fault::Stall(NOTICE_LIMIT)).method("PUT"));
    let directory = other.new_directory();
    let mut mounting = other.start(["mount".as_ref(), "work".as_ref(), directory.as_os_str()]);
    wait::until("the desktop's version and the golden one came, with their signatures", PATIENCE, || {
        let came = proxy.exchanges().iter().filter(|exchange| exchange.class == Class::Manifests).count();
        (came == 4).then_some(())
    });
    mounting.kill();
}

#[test]
fn a_first_start_opens_what_was_committed_while_it_asked_for_the_lease() {
    require!(fuse);
    let published = Publication::new(26, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let working = laptop.mount("work");
    let mut home = Model::zeros(16 << 20);
    home.write(&satchel_tests::model::open_for_writing(&working.home()), 0, b"what is to be found");
    let proxy = FaultyHttps::start(&published.server.url(), published.server.fingerprint());
    let other = published.machine("other");
    other.login(&published.access().through_faulty(&proxy));
    // It hears of the first version, and asks for the lease and for what it heard of; the lease is asked for by PUT.
    proxy.inject(Rule::new(Fault::Hold).method("PUT"));
    let directory = other.new_directory();
    let mounting = other.start(["mount".as_ref(), "work".as_ref(), directory.as_os_str()]);
    wait::until("the first version and the golden one came, with their signatures", PATIENCE, || {
        let came = proxy.exchanges().iter().filter(|exchange| exchange.class == Class::Manifests).count();
        (came == 4).then_some(())
    });
    working.unmount();
    let _ = laptop.sync("work");
    proxy.heal();
    let mut mount = other.mounted("work", &directory, mounting);
    let said = format!("mounted work (version 2) on {}\n", directory.display());
    assert_eq!(mount.process().stdout(), said);
    // The desktop was given back, not taken.
    assert_eq!(mount.process().stderr_but_outages(), "");
    home.assert_in(&mount.home());
    published.content.assert_in(&mount.system());
    // It is the version that the server has, too: what is written on it is no fork.
    home.write(&satchel_tests::model::open_for_writing(&mount.home()), 4096, b"what comes next");
    mount.unmount();
    let synced = other.satchel(["--json", "sync", "work"]).ok().json();
    assert_eq!((&synced["version"]["sequence"], &synced["fork"]), (&3.into(), &serde_json::Value::Null));
}

/// A machine behind a link, with a mounted desktop of which nothing was read yet.
fn behind_a_link(published: &Publication) -> (Link, Client, Mount) {
    let link = Link::start(published.server.address(), Shape::default());
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through(&link));
    laptop.create("work", "golden", Some("16M"));
    let mount = laptop.mount("work");
    (link, laptop, mount)
}

/// Waits until the mount says that the server does not answer, and status says so too.
fn wait_until_offline(laptop: &Client, mount: &mut Mount) {
    wait::until("the mount says that the server is away", NOTICE_LIMIT, || {
        mount.process().stderr().contains("the server does not answer").then_some(())
    });
    let live = laptop.status("work")["live"].clone();
    assert_eq!(live["online"], false, "{live}");
    assert!(live["offline_reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{live}");
    let said = laptop.satchel(["status", "work"]).ok().stdout;
    assert!(said.contains("does not answer"), "{said}");
}

fn a_read_waits_while(away: &[Event], back: Event) {
    let published = Publication::new(22, IMAGE_BYTES);
    let (link, laptop, mut mount) = behind_a_link(&published);
    let model = Model::of(published.content, IMAGE_BYTES);
    // What is read before is here and stays readable; what is not waits.
    let (disk, half) = (super::open(&mount.system()), IMAGE_BYTES / 2);
    model.read(&disk, 0, half);
    away.iter().for_each(|event| link.apply(*event));
    model.read(&disk, 0, half / 2);
    let (path, content) = (mount.system(), published.content);
    let reader = thread::spawn(move || content.assert_in(&path));
    wait_until_offline(&laptop, &mut mount);
    assert!(!reader.is_finished(), "a read of what is not here ended without a network");
    model.read(&disk, 0, half / 2);
    link.apply(back);
    wait::until("the read goes on", NOTICE_LIMIT, || reader.is_finished().then_some(()));
    reader.join().expect("what was read is right");
    wait::until("the mount says that the server is back", PATIENCE, || {
        mount.process().stderr().contains("the server answers again").then_some(())
    });
    assert_eq!(laptop.status("work")["live"]["online"], true);
    drop(disk);
    mount.unmount();
}

#[test]
fn a_read_waits_while_the_network_is_silent() {
    require!(fuse);
    a_read_waits_while(&[Event::Down], Event::Up);
}

#[test]
fn a_read_waits_while_the_server_refuses() {
    require!(fuse);
    a_read_waits_while(&[Event::Refuse, Event::Reset], Event::Accept);
}

#[test]
fn a_read_waits_while_the_server_restarts() {
    require!(fuse);
    let mut published = Publication::new(23, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mut mount = laptop.mount("work");
    published.server.kill9();
    let (path, content) = (mount.system(), published.content);
    let reader = thread::spawn(move || content.assert_in(&path));
    wait_until_offline(&laptop, &mut mount);
    published.server.start_again();
    wait::until("the read goes on", NOTICE_LIMIT, || reader.is_finished().then_some(()));
    reader.join().expect("what was read is right");
    mount.unmount();
}

#[test]
fn a_mount_ends_though_a_read_waits_for_the_network() {
    require!(fuse);
    let published = Publication::new(24, IMAGE_BYTES);
    let (link, laptop, mut mount) = behind_a_link(&published);
    [Event::Refuse, Event::Reset].into_iter().for_each(|event| link.apply(event));
    let path = mount.system();
    let reader = thread::spawn(move || {
        std::os::unix::fs::FileExt::read_at(&super::open(&path), &mut [0; 4096], IMAGE_BYTES / 2)
    });
    wait_until_offline(&laptop, &mut mount);
    // The first signal asks, the second insists.
    mount.process().signal(satchel_tests::Signal::INT);
    wait::until("the mount says that it is in use", PATIENCE, || {
        mount.process().stderr().contains("is in use").then_some(())
    });
    assert!(!reader.is_finished());
    mount.unmount();
    assert!(reader.join().expect("the reader does not panic").is_err(), "there was nothing to read");
}
