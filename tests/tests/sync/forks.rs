//! Two machines with one desktop: who may write it, and what becomes of work that cannot be its next version.

use std::time::Duration;

use satchel_tests::{Class, Client, Fault, FaultyHttps, Model, Publication, Rng, Rule, require, wait};
use serde_json::Value;

use super::story::{Disks, IMAGE_BYTES, sync, versions};

/// How long a machine may take to notice that it is asked.
const LIMIT: Duration = Duration::from_secs(120);

fn forks(machine: &Client) -> Vec<String> {
    let listed = machine.satchel(["--json", "forks", "work"]).ok().json();
    let listed = listed.as_array().expect("a list");
    listed.iter().map(|fork| fork["desktop"].as_str().expect("a name").to_owned()).collect()
}

/// Checks what a machine that knows nothing but the server finds in a desktop.
#[track_caller]
fn assert_holds(published: &Publication, desktop: &str, disks: &Disks) {
    let mount = published.machine("onlooker").mount_with(desktop, &["--read-only"]);
    disks.assert_in(&mount);
    mount.unmount();
}

/// Two machines that worked on the desktop's first version, the second after it took the desktop from the first.
struct Apart {
    published: Publication,
    laptop: Client,
    other: Client,
    on_laptop: Disks,
    on_other: Disks,
}

impl Apart {
    fn new(seed: u64) -> Self {
        let published = Publication::new(seed, IMAGE_BYTES);
        let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
        let mut rng = Rng::new(seed);
        let (mut on_laptop, mut on_other) = (Disks::new(&published), Disks::new(&published));
        let mount = laptop.mount("work");
        on_laptop.change(&mount, 20, &mut rng);
        mount.unmount();
        let refused =
            other.satchel(["mount".as_ref(), "work".as_ref(), other.new_directory().as_os_str()]).exited(1);
        for part in ["work is in use on", "its last sync is version 1", "--ask", "--read-only", "--take"] {
            assert!(refused.stderr.contains(part), "`{part}` is not in: {}", refused.stderr);
        }
        let mut mount = other.mount_with("work", &["--take"]);
        on_other.change(&mount, 20, &mut rng);
        assert!(mount.process().stderr().contains("was taken from"), "{}", mount.process().stderr());
        mount.unmount();
        Self { published, laptop, other, on_laptop, on_other }
    }

    /// Both machines' work is on the server, as the desktop and as its one fork.
    fn assert_both_are_kept(&self, head: &Disks, fork: &Disks) -> String {
        let forks = forks(&self.laptop);
        assert_eq!(forks.len(), 1, "{forks:?}");
        assert_holds(&self.published, "work", head);
        assert_holds(&self.published, &forks[0], fork);
        self.published.server.verify();
        forks[0].clone()
    }
}

#[test]
fn work_that_comes_second_becomes_a_fork_that_can_be_adopted() {
    require!(fuse);
    let mut apart = Apart::new(60);
    sync(&apart.other);
    let report = sync(&apart.laptop);
    assert_eq!(report["fork"]["of"], "work", "{report}");
    let fork = apart.assert_both_are_kept(&apart.on_other, &apart.on_laptop);
    assert_eq!(report["fork"]["fork"], fork.as_str());
    assert_eq!(versions(&apart.laptop), [2, 1]);

    // The machine goes on with the desktop, and says where its own work is.
    let mut mount = apart.laptop.mount("work");
    apart.on_other.assert_in(&mount);
    let said = mount.process().stderr();
    assert!(said.contains(&format!("what was done here before is desktop {fork} now")), "{said}");
    apart.on_other.change(&mount, 5, &mut Rng::new(61));
    mount.unmount();
    sync(&apart.laptop);

    // The fork is a desktop like any: it is written and synced.
    let mount = apart.other.mount(&fork);
    apart.on_laptop.change(&mount, 5, &mut Rng::new(62));
    mount.unmount();
    let _ = apart.other.satchel(["sync", fork.as_str()]).ok();
    apart.assert_both_are_kept(&apart.on_other, &apart.on_laptop);

    let adopted = apart.laptop.satchel(["--json", "adopt", fork.as_str()]).ok().json();
    assert_eq!(adopted["desktop"], "work", "{adopted}");
    apart.assert_both_are_kept(&apart.on_laptop, &apart.on_other);
    let mount = apart.laptop.mount("work");
    apart.on_laptop.assert_in(&mount);
    // What is open here would become a fork, unawares.
    let refused = apart.laptop.satchel(["adopt", fork.as_str()]).exited(1);
    assert!(refused.stderr.contains("desktop work is in use"), "{}", refused.stderr);
    mount.unmount();
    let _ = apart.laptop.satchel(["adopt", fork.as_str()]).ok();
    apart.assert_both_are_kept(&apart.on_other, &apart.on_laptop);
    let refused = apart.laptop.satchel(["adopt", "work"]).exited(1);
    assert!(refused.stderr.contains("desktop work is no fork"), "{}", refused.stderr);
}

/// The second answer is lost: it is done, and a person who repeats it does not want it undone.
/// The laptop has adopted its own fork, and the last answer was lost.
fn adopted_unheard(seed: u64) -> (Apart, String) {
    let apart = Apart::new(seed);
    sync(&apart.other);
    sync(&apart.laptop);
    let fork = apart.assert_both_are_kept(&apart.on_other, &apart.on_laptop);
    let proxy = FaultyHttps::start(&apart.published.server.url(), apart.published.server.fingerprint());
    apart.laptop.login(&apart.published.access().through_faulty(&proxy));
    proxy.inject(Rule::new(Fault::LoseAnswer).on(Class::Commit).skip(1));
    let failed = apart.laptop.satchel(["adopt", fork.as_str()]).exited(1);
    assert!(failed.stderr.contains("cannot commit a version of desktop work."), "{}", failed.stderr);
    apart.laptop.login(&apart.published.access());
    (apart, fork)
}

#[test]
fn an_adoption_that_is_repeated_because_its_end_was_not_heard_is_not_undone() {
    require!(fuse);
    let (apart, fork) = adopted_unheard(95);
    let adopted = apart.laptop.satchel(["--json", "adopt", fork.as_str()]).ok().json();
    assert_eq!((&adopted["version"], &adopted["fork"]), (&3.into(), &fork.as_str().into()), "{adopted}");
    apart.assert_both_are_kept(&apart.on_laptop, &apart.on_other);
    // Another one is meant to undo it.
    let _ = apart.laptop.satchel(["adopt", fork.as_str()]).ok();
    apart.assert_both_are_kept(&apart.on_other, &apart.on_laptop);
}

#[test]
fn an_adoption_whose_end_was_not_heard_is_told_where_the_desktop_has_gone_on_since() {
    require!(fuse);
    let (mut apart, fork) = adopted_unheard(96);
    let mount = apart.other.mount("work");
    apart.on_laptop.assert_in(&mount);
    apart.on_laptop.change(&mount, 5, &mut Rng::new(97));
    mount.unmount();
    sync(&apart.other);
    let told = apart.laptop.satchel(["adopt", fork.as_str()]).exited(1);
    assert!(told.stderr.contains("as version 3, and has gone on since"), "{}", told.stderr);
    // Who gives it once more means it.
    let adopted = apart.laptop.satchel(["--json", "adopt", fork.as_str()]).ok().json();
    assert_eq!(adopted["version"], 5, "{adopted}");
}

#[test]
fn work_whose_lease_was_taken_becomes_a_fork_though_it_comes_first() {
    require!(fuse);
    let apart = Apart::new(63);
    let report = sync(&apart.laptop);
    assert!(report["fork"]["reason"]["lease_held"].is_object(), "{report}");
    let report = sync(&apart.other);
    assert_eq!(report["fork"], Value::Null, "{report}");
    apart.assert_both_are_kept(&apart.on_other, &apart.on_laptop);
}

#[test]
fn a_start_makes_a_fork_of_work_that_has_no_place_any_more() {
    require!(fuse);
    let apart = Apart::new(64);
    sync(&apart.other);
    let mut mount = apart.laptop.mount("work");
    apart.on_other.assert_in(&mount);
    let said = mount.process().stderr();
    assert!(said.contains("kept the work as the fork"), "{said}");
    mount.unmount();
    apart.assert_both_are_kept(&apart.on_other, &apart.on_laptop);
}

#[test]
fn a_machine_that_is_asked_syncs_and_hands_over() {
    require!(fuse);
    let published = Publication::new(65, IMAGE_BYTES);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    let mut disks = Disks::new(&published);
    let mut here = laptop.mount("work");
    disks.change(&here, 10, &mut Rng::new(65));
    let in_use = std::fs::File::open(here.home()).expect("a mounted disk can be opened");
    let directory = other.new_directory();
    let words = ["mount".as_ref(), "work".as_ref(), directory.as_os_str(), "--ask".as_ref()];
    let refused = other.satchel(words).exited(1);
    assert!(refused.stderr.contains("does not hand over: its disks are in use"), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: ask whoever sits there"), "{}", refused.stderr);
    drop(in_use);
    let there = other.mount_with("work", &["--ask"]);
    disks.assert_in(&there);
    assert!(here.process().wait(LIMIT).success());
    let said = here.process().stderr();
    assert!(said.contains("asks for this desktop") && said.contains("synced work: version 2"), "{said}");
    there.unmount();
    // It was given back in good order: nobody has to take anything.
    let mount = laptop.mount("work");
    disks.assert_in(&mount);
    mount.unmount();
}

#[test]
fn who_only_looks_keeps_nobody_out_and_changes_nothing() {
    require!(fuse);
    let published = Publication::new(66, IMAGE_BYTES);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    let disks = Disks::new(&published);
    let here = laptop.mount("work");
    let there = other.mount_with("work", &["--read-only"]);
    let mut scratch = disks.clone();
    scratch.change(&there, 10, &mut Rng::new(66));
    scratch.assert_in(&there);
    let refused = other.satchel(["sync", "work"]).exited(1);
    assert!(refused.stderr.contains("opened read-only"), "{}", refused.stderr);
    there.unmount();
    here.unmount();
    let there = other.mount("work");
    disks.assert_in(&there);
    there.unmount();
    // The same when the process that threw nothing away was killed.
    let there = other.mount_with("work", &["--read-only"]);
    scratch = disks.clone();
    scratch.change(&there, 10, &mut Rng::new(67));
    there.kill9();
    let there = other.mount("work");
    disks.assert_in(&there);
    there.unmount();
    assert_eq!(versions(&laptop), [1]);
}

#[test]
fn who_pins_a_desktop_keeps_it_until_it_is_unpinned() {
    require!(fuse);
    let published = Publication::new(62, IMAGE_BYTES);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    let pinned = laptop.satchel(["pin", "work"]).ok().stdout;
    for part in ["keeps the right to write", "satchel sync work", "satchel pin work --unpin"] {
        assert!(pinned.contains(part), "`{part}` is not in: {pinned}");
    }
    let mount = |machine: &Client| {
        let directory = machine.new_directory();
        machine.satchel(["mount".as_ref(), "work".as_ref(), directory.as_os_str()]).exited(1).stderr
    };
    assert!(mount(&other).contains("work is in use on"));
    // With work that is not synced it stays, and that is said.
    let mut disks = Disks::new(&published);
    disks.change_on(&laptop, 5, &mut Rng::new(62));
    let unpinned = laptop.satchel(["--json", "pin", "work", "--unpin"]).ok().json();
    assert_eq!(unpinned["keeps_lease"], true, "{unpinned}");
    assert!(mount(&other).contains("work is in use on"));
    sync(&laptop);
    let _ = laptop.satchel(["pin", "work"]).ok();
    let unpinned = laptop.satchel(["pin", "work", "--unpin"]).ok().stdout;
    assert!(!unpinned.contains("keeps the right to write"), "{unpinned}");
    let mount = other.mount("work");
    disks.assert_in(&mount);
    mount.unmount();
}

#[test]
fn a_lease_that_ran_out_without_a_network_lets_the_desktop_be_looked_at() {
    require!(fuse);
    let published = Publication::new(67, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let _ = laptop.satchel(["pin", "work"]).ok();
    let mut disks = Disks::new(&published);
    let mount = laptop.mount("work");
    disks.change(&mount, 10, &mut Rng::new(68));
    mount.unmount();
    // As if the machine had not heard of the server for eight days; then its clock is set back.
    let path = laptop.desktop_directory("work").join("lease.json");
    let mut lease: Value = serde_json::from_slice(&std::fs::read(&path).expect("a lease")).expect("JSON");
    let week_ms = 8 * 24 * 3_600_000;
    lease["heard_ms"] = (lease["heard_ms"].as_u64().expect("a time") - week_ms).into();
    std::fs::write(&path, lease.to_string()).expect("a lease can be edited");
    let mut mount = laptop.mount_with("work", &["--offline"]);
    let said = mount.process().stderr();
    assert!(said.contains("is thrown away at the end"), "{said}");
    disks.assert_in(&mount);
    disks.clone().change(&mount, 5, &mut Rng::new(69));
    mount.unmount();
    // A file that was edited into nonsense costs a warning, and no work.
    std::fs::write(&path, "{}").expect("a lease can be edited");
    let mut mount = laptop.mount_with("work", &["--offline"]);
    let said = mount.process().stderr();
    assert!(said.contains("it is not known whether work is in use elsewhere"), "{said}");
    disks.assert_in(&mount);
    disks.change(&mount, 5, &mut Rng::new(70));
    mount.unmount();
    sync(&laptop);
    assert_holds(&published, "work", &disks);
}

#[test]
fn a_server_that_was_set_back_gets_the_work_again_as_a_fork() {
    require!(fuse);
    let mut published = Publication::new(68, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(71);
    disks.change_on(&laptop, 10, &mut rng);
    sync(&laptop);
    let backed_up = disks.clone();
    let backup = published.server.back_up();
    disks.change_on(&laptop, 10, &mut rng);
    sync(&laptop);
    published.server.restore(&backup);
    // Nothing was changed since, and yet the server gets all of it again.
    let mut mount = laptop.mount("work");
    let said = mount.process().stderr();
    assert!(said.contains("was the server restored from an older backup?"), "{said}");
    backed_up.assert_in(&mount);
    mount.unmount();
    assert_holds(&published, &forks(&laptop)[0], &disks);

    // The same with changes, and with `sync`.
    let _ = laptop.satchel(["adopt", forks(&laptop)[0].as_str()]).ok();
    disks.change_on(&laptop, 10, &mut rng);
    sync(&laptop);
    disks.change_on(&laptop, 10, &mut rng);
    published.server.restore(&backup);
    let report = sync(&laptop);
    assert_eq!(report["fork"]["of"], "work", "{report}");
    assert_holds(&published, "work", &backed_up);
    assert_holds(&published, &forks(&laptop)[0], &disks);
    published.server.verify();
}

/// Also when the desktop was begun after the backup, so that the server knows nothing of it.
#[test]
fn a_server_that_was_set_back_to_before_a_desktop_gets_its_work_as_a_fork() {
    require!(fuse);
    let mut published = Publication::new(93, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let backup = published.server.back_up();
    laptop.create("work", "golden", Some("16M"));
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(73);
    disks.change_on(&laptop, 10, &mut rng);
    sync(&laptop);
    published.server.restore(&backup);
    // Nothing was changed since, and yet the server gets all of it.
    let report = sync(&laptop);
    assert_eq!(report["fork"]["of"], "work", "{report}");
    let fork = report["fork"]["fork"].as_str().expect("a name").to_owned();
    assert_holds(&published, &fork, &disks);
    disks.change_on(&laptop, 10, &mut rng);
    sync(&laptop);
    assert_holds(&published, &fork, &disks);
    assert_eq!(sync(&laptop)["version"], Value::Null, "it is sent once");

    let refused = laptop.satchel(["adopt", fork.as_str()]).exited(1);
    for part in [
        "which the server does not know any more",
        "satchel create work --image golden",
        &format!("satchel run {fork}"),
    ] {
        assert!(refused.stderr.contains(part), "`{part}` is not in: {}", refused.stderr);
    }

    // Where it is made anew, the laptop goes over to that one, and its fork stays as it is.
    let other = published.machine("other");
    other.create("work", "golden", Some("24M"));
    let mut anew = Disks { home: Model::zeros(24 << 20), ..Disks::new(&published) };
    let mount = other.mount("work");
    anew.change(&mount, 10, &mut rng);
    mount.unmount();
    sync(&other);
    let sent = laptop.history(&fork);
    let mut mount = laptop.mount("work");
    let said = mount.process().stderr();
    assert!(said.contains(&format!("what was done here before is desktop {fork} now")), "{said}");
    anew.assert_in(&mount);
    anew.change(&mount, 10, &mut rng);
    mount.unmount();
    assert_eq!(sync(&laptop)["fork"], Value::Null);
    let mount = laptop.mount("work");
    anew.assert_in(&mount);
    mount.unmount();
    assert_holds(&published, "work", &anew);
    assert_eq!(laptop.history(&fork), sent);
    published.server.verify();
}

#[test]
fn the_fork_of_a_desktop_that_a_server_has_lost_is_adopted_by_one_that_is_begun_anew() {
    require!(fuse);
    let mut published = Publication::new(97, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let backup = published.server.back_up();
    laptop.create("work", "golden", Some("16M"));
    let mut disks = Disks::new(&published);
    let mut rng = Rng::new(97);
    disks.change_on(&laptop, 10, &mut rng);
    sync(&laptop);
    published.server.restore(&backup);
    let fork = sync(&laptop)["fork"]["fork"].as_str().expect("a name").to_owned();
    // As the message says that refuses to adopt it before.
    laptop.create("work", "golden", Some("16M"));
    let _ = laptop.satchel(["adopt", fork.as_str()]).ok();
    assert_holds(&published, "work", &disks);
    let mount = laptop.mount("work");
    disks.assert_in(&mount);
    disks.change(&mount, 10, &mut rng);
    mount.unmount();
    assert_eq!(sync(&laptop)["fork"], Value::Null);
    assert_holds(&published, "work", &disks);
    published.server.verify();
}

/// By the time the laptop looks, the server's newest version has a higher number than the laptop's.
#[test]
fn what_a_set_back_server_has_lost_is_kept_however_far_others_have_gone() {
    require!(fuse);
    let mut published = Publication::new(69, IMAGE_BYTES);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    let mut rng = Rng::new(72);
    let work = |machine: &Client, disks: &mut Disks, rng: &mut Rng| {
        let mount = machine.mount("work");
        disks.change(&mount, 10, rng);
        mount.unmount();
        sync(machine)
    };
    let mut on_laptop = Disks::new(&published);
    work(&laptop, &mut on_laptop, &mut rng);
    let mut on_other = on_laptop.clone();
    let backup = published.server.back_up();
    for _ in 0..2 {
        work(&laptop, &mut on_laptop, &mut rng);
    }
    published.server.restore(&backup);
    for _ in 0..3 {
        work(&other, &mut on_other, &mut rng);
    }
    assert_eq!(versions(&other), [5, 4, 3, 2, 1]);

    let mut mount = laptop.mount("work");
    let said = mount.process().stderr();
    assert!(said.contains("does not know version 4, which this machine has"), "{said}");
    on_other.assert_in(&mount);
    mount.unmount();
    let fork = forks(&laptop)[0].clone();
    assert_holds(&published, &fork, &on_laptop);

    // The same where the laptop stands on a fork, which the server loses; and what it syncs is said to be one.
    let mount = laptop.mount("work");
    let mount_other = other.mount_with("work", &["--take"]);
    on_laptop = on_other.clone();
    on_laptop.change(&mount, 10, &mut rng);
    let backup = published.server.back_up();
    on_other.change(&mount_other, 10, &mut rng);
    mount_other.unmount();
    sync(&other);
    for _ in 0..2 {
        let report = sync(&laptop);
        assert_eq!(report["fork"]["of"], "work", "{report}");
        on_laptop.change(&mount, 10, &mut rng);
    }
    let report = sync(&laptop);
    assert_eq!(report["fork"]["of"], "work", "{report}");
    mount.unmount();
    published.server.restore(&backup);
    let mut mount = laptop.mount_with("work", &["--take"]);
    let said = mount.process().stderr();
    assert!(said.contains("which this machine has: was the server restored"), "{said}");
    mount.unmount();
    let kept = forks(&laptop).into_iter().find(|name| *name != fork).expect("a fork more");
    assert_holds(&published, &kept, &on_laptop);
    published.server.verify();
}

#[test]
fn status_says_who_has_taken_the_desktop() {
    require!(fuse);
    let published = Publication::new(99, IMAGE_BYTES);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    let mount = laptop.mount("work");
    assert_eq!(laptop.status("work")["lease_held"], true);
    let there = other.mount_with("work", &["--take"]);
    wait::until("the laptop has heard of it", LIMIT, || {
        laptop.status("work")["taken_by"].is_string().then_some(())
    });
    let told = laptop.satchel(["status", "work"]).ok().stdout;
    assert!(told.lines().any(|line| line.starts_with("lease") && line.contains("has taken it")), "{told}");
    there.unmount();
    mount.unmount();
    // And whoever has it again says nothing of that.
    let mount = laptop.mount("work");
    let status = laptop.status("work");
    assert!(status["taken_by"].is_null() && status["lease_held"] == true, "{status}");
    mount.unmount();
}
