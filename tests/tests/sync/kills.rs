//! SIGKILL at random points: nothing lost, nothing half committed, and the next try finishes.
//!
//! `SATCHEL_KILL_ROUNDS` says how often (50). A failure names its seed and round; times are drawn from the seed, but what
//! a process has done by then depends on the machine.

use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, thread};

use satchel_tests::model::open_for_writing;
use satchel_tests::wait::PATIENCE;
use satchel_tests::{Client, Model, Process, Publication, Rng, TestServer, require};

use super::story::{Disks, sync, unsynced_bytes, versions};

fn rounds() -> u64 {
    env::var("SATCHEL_KILL_ROUNDS").map_or(50, |text| text.parse().expect("SATCHEL_KILL_ROUNDS is a number"))
}

/// Draws moments from the whole of something that takes about as long each time, and a little beyond its end.
struct Moments {
    rng: Rng,
    whole: Duration,
}

impl Moments {
    fn new(seed: u64, whole: Duration) -> Self {
        Self { rng: Rng::new(seed), whole }
    }

    /// Waits until a random moment of a thing that has just begun.
    fn wait(&mut self) {
        let share = f64::from(u32::try_from(self.rng.below(1200)).expect("small")) / 1000.0;
        thread::sleep(self.whole.mul_f64(share));
    }
}

/// How often the thing that was interrupted was over, had not happened, or had happened by halves that do not show.
#[derive(Debug, Default)]
struct Tally {
    finished: u64,
    committed: u64,
    not_committed: u64,
}

impl Tally {
    fn count(&mut self, finished: bool, committed: bool) {
        self.finished += u64::from(finished);
        self.committed += u64::from(!finished && committed);
        self.not_committed += u64::from(!finished && !committed);
    }
}

/// A desktop on a machine that is killed, and a machine that looks at what is committed.
struct Story {
    published: Publication,
    laptop: Client,
    other: Client,
    disks: Disks,
    committed: Disks,
    rng: Rng,
}

impl Story {
    fn new(seed: u64) -> Self {
        let published = Publication::new(seed, super::story::IMAGE_BYTES);
        let laptop = published.machine_with_desktop("laptop");
        let other = published.machine("other");
        let disks = Disks::new(&published);
        Self { published, laptop, other, committed: disks.clone(), disks, rng: Rng::new(seed) }
    }

    /// How long a sync of a round's changes takes when it is left alone.
    fn undisturbed(&mut self) -> Duration {
        let mut whole = Duration::ZERO;
        for _ in 0..3 {
            self.change();
            let began = Instant::now();
            sync(&self.laptop);
            whole = whole.max(began.elapsed());
            self.committed = self.disks.clone();
        }
        whole
    }

    fn change(&mut self) {
        let mount = self.laptop.mount("work");
        let writes = 1 + self.rng.below(12);
        self.disks.change(&mount, writes, &mut self.rng);
        mount.unmount();
    }

    /// What another machine sees is what there was before or all of what was to be committed; whether it is the latter.
    fn look(&mut self) -> bool {
        self.published.server.verify();
        versions(&self.laptop);
        let seen = self.other.mount_with("work", &["--read-only"]);
        let is_new = self.disks.are_in(&seen);
        if !is_new {
            // Says where they part.
            self.committed.assert_in(&seen);
        }
        seen.unmount();
        is_new
    }

    /// The next sync finishes what was cut, whatever that was.
    fn finish(&mut self) {
        sync(&self.laptop);
        assert_eq!(unsynced_bytes(&self.laptop), 0);
        self.committed = self.disks.clone();
    }

    /// At the end everything is everywhere.
    fn end(mut self) {
        assert!(self.look());
        let mount = self.laptop.mount("work");
        self.disks.assert_in(&mount);
        mount.unmount();
        let mount = self.published.machine("third").mount("work");
        self.disks.assert_in(&mount);
        mount.unmount();
    }
}

#[expect(clippy::print_stdout, reason = "a failed round is found again by it")]
fn round_of(seed: u64, round: u64) {
    println!("seed {seed}, round {round}");
}

#[test]
fn a_client_killed_while_it_syncs_loses_nothing() {
    require!(fuse);
    let seed = 50;
    let mut story = Story::new(seed);
    let mut moments = Moments::new(!seed, story.undisturbed());
    let mut tally = Tally::default();
    for round in 0..rounds() {
        round_of(seed, round);
        let finished = if round % 2 == 0 {
            story.change();
            let mut syncing = story.laptop.start(["sync", "work"]);
            moments.wait();
            syncing.kill();
            syncing.wait(PATIENCE).success()
        } else {
            // Mounted: the process that serves the disks syncs them, and takes them along when it dies.
            let mount = story.laptop.mount("work");
            let writes = 1 + story.rng.below(12);
            story.disks.change(&mount, writes, &mut story.rng);
            let mut syncing = story.laptop.start(["sync", "work"]);
            moments.wait();
            mount.kill9();
            let status = syncing.wait(PATIENCE);
            assert!(status.code().is_some(), "{}", syncing.report());
            if !status.success() {
                let said = syncing.stderr();
                assert!(said.starts_with("error: "), "{said}");
            }
            status.success()
        };
        let committed = story.look();
        assert!(committed || !finished, "a sync that succeeded is not on the server");
        tally.count(finished, committed);
        if story.rng.below(2) == 0 {
            let mount = story.laptop.mount("work");
            story.disks.assert_in(&mount);
            mount.unmount();
        }
        story.finish();
    }
    println!("{tally:?}");
    story.end();
}

#[test]
fn a_server_killed_while_a_desktop_is_synced_loses_nothing() {
    require!(fuse);
    let seed = 51;
    let mut story = Story::new(seed);
    let mut moments = Moments::new(!seed, story.undisturbed());
    let mut tally = Tally::default();
    for round in 0..rounds() {
        round_of(seed, round);
        story.change();
        let mount = (round % 2 == 1).then(|| story.laptop.mount("work"));
        let syncing = story.laptop.start(["sync", "work"]);
        let status = kill_server(&mut story.published.server, syncing, &mut moments);
        let committed = story.look();
        assert!(committed || !status, "a sync that succeeded is not on the server");
        tally.count(status, committed);
        if let Some(mount) = mount {
            story.disks.assert_in(&mount);
            mount.unmount();
        }
        story.finish();
    }
    println!("{tally:?}");
    story.end();
}

/// Kills the server at a random moment of what `client` does and starts it again; whether the client succeeded all the
/// same, as it does when the server is back in time.
fn kill_server(server: &mut TestServer, mut client: Process, moments: &mut Moments) -> bool {
    moments.wait();
    server.kill9();
    server.start_again();
    let status = client.wait(PATIENCE);
    if !status.success() {
        let said = client.stderr();
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.lines().any(|line| line.starts_with("error: ")), "{said}");
    }
    status.success()
}

/// How often two machines part: each time both are killed.
const PARTINGS: u64 = 15;

/// Two machines take a desktop from one another, and either is killed at a random moment of its sync or of its start. In the
/// end all the work of both is on the server, in whichever heads.
#[test]
fn machines_killed_while_they_part_and_meet_again_lose_nothing() {
    require!(fuse);
    let seed = 53;
    let mut story = Story::new(seed);
    let whole = story.undisturbed();
    let mut moments = Moments::new(!seed, whole);
    let mut rng = Rng::new(seed);
    let mut done = vec![story.disks.clone()];
    for round in 0..rounds().min(PARTINGS) {
        round_of(seed, round);
        let pair = [&story.laptop, &story.other];
        let mut worked = Vec::new();
        for machine in pair {
            // What it was left with after a kill is synced at this start; then it has the desktop's newest version.
            let mount = machine.mount_with("work", &["--take"]);
            let seen = done.iter().find(|disks| disks.are_in(&mount));
            let mut disks = seen.unwrap_or_else(|| panic!("{round}: what no machine ever had")).clone();
            let before = (disks.system.bytes().to_vec(), disks.home.bytes().to_vec());
            let writes = 1 + rng.below(6);
            disks.change(&mount, writes, &mut rng);
            mount.unmount();
            // Zeros over zeros are no work.
            if (disks.system.bytes(), disks.home.bytes()) != (&before.0[..], &before.1[..]) {
                worked.push(disks);
            }
        }
        done.extend(worked.iter().cloned());
        let last = usize::try_from(rng.below(2)).expect("small");
        for machine in [pair[last], pair[1 - last]] {
            let mut process = match rng.below(3) {
                0 => machine.start([
                    "mount".as_ref(),
                    "work".as_ref(),
                    "--take".as_ref(),
                    machine.new_directory().as_os_str(),
                ]),
                _ => machine.start(["sync", "work"]),
            };
            moments.wait();
            process.kill();
            process.wait(PATIENCE);
        }
        let said = pair.map(|machine| {
            let synced = machine.satchel(["sync", "work"]).ok();
            synced.stdout + &synced.stderr
        });
        let onlooker = story.published.machine("onlooker");
        let listed = onlooker.satchel(["--json", "desktops"]).ok().json();
        let mut heads: Vec<(u64, &str)> = listed
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|info| Some((info["head"]["committed_ms"].as_u64()?, info["desktop"].as_str()?)))
            .collect();
        heads.sort_unstable();
        let mut missing = worked;
        for (_, head) in heads.iter().rev() {
            if missing.is_empty() {
                break;
            }
            let seen = onlooker.mount_with(head, &["--read-only"]);
            missing.retain(|disks| !disks.are_in(&seen));
            seen.unmount();
        }
        assert!(
            missing.is_empty(),
            "round {round}: work of {} machines is in no head\n{listed}\n{}",
            missing.len(),
            said.join("\n")
        );
        story.published.server.verify();
    }
}

/// Size of the disk that is published, bytes.
const DISK_BYTES: u64 = 48 << 20;

/// How many servers share the rounds: each round reads all that a server has, which grows with every round.
const SERVERS: u64 = 4;

#[test]
fn a_publication_cut_anywhere_is_whole_or_not_there() {
    require!(fuse);
    let mut tally = Tally::default();
    for seed in 52..52 + SERVERS {
        cut_publications(seed, rounds().div_ceil(SERVERS), &mut tally);
    }
    println!("{tally:?}");
}

/// Kills the publisher or the server while the versions of an image are published, one after the other.
fn cut_publications(seed: u64, rounds: u64, tally: &mut Tally) {
    let mut published = Publication::new(seed, DISK_BYTES);
    let mut model = Model::of(published.content, DISK_BYTES);
    let mut rng = Rng::new(seed);
    let mut sequence = 1;
    let mut whole = [Duration::ZERO; 2];
    let mut moments = Moments::new(!seed, Duration::ZERO);
    for round in 0..rounds + 2 {
        round_of(seed, round);
        // Now and then so much that it takes more than one pack.
        let is_large = round % 6 == 1;
        scribble(&published.disk, &mut model, if is_large { 28 << 20 } else { 1 << 20 }, &mut rng);
        moments.whole = whole[usize::from(is_large)];
        let arguments =
            ["publish".as_ref(), published.disk.as_os_str(), "--image".as_ref(), "golden".as_ref()];
        let began = Instant::now();
        let mut publishing = published.publisher.start(arguments);
        let finished = if round < 2 {
            // The first ones show how long it takes.
            assert!(publishing.wait(PATIENCE).success(), "{}", publishing.report());
            whole[usize::from(is_large)] = began.elapsed();
            true
        } else if round % 2 == 0 {
            moments.wait();
            publishing.kill();
            publishing.wait(PATIENCE).success()
        } else {
            kill_server(&mut published.server, publishing, &mut moments)
        };
        published.server.verify();
        let committed = newest(&published.publisher) == sequence + 1;
        assert!(committed || newest(&published.publisher) == sequence, "a version too many");
        assert!(committed || !finished, "what was published is not on the server");
        tally.count(finished, committed);
        let again = published.publisher.satchel(["--json".as_ref()].into_iter().chain(arguments)).ok().json();
        assert_eq!(again["unchanged"], committed, "{again}");
        sequence += 1;
        assert_eq!(again["sequence"], sequence, "{again}");
        if round % 8 == 7 {
            assert_published(&published, &format!("round-{round}"), &model);
        }
    }
    assert_published(&published, "last", &model);
}

/// Changes a disk file in place, with noise.
fn scribble(disk: &Path, model: &mut Model, bytes: u64, rng: &mut Rng) {
    let file = open_for_writing(disk);
    let mut noise = vec![0; 1 << 16];
    for _ in 0..bytes >> 16 {
        rng.fill(&mut noise);
        // The first block says that this is a disk.
        let offset = 4096 + rng.below(model.size_bytes() - 4096 - (1 << 16));
        model.write(&file, offset, &noise);
    }
}

/// The number of the newest version.
fn newest(publisher: &Client) -> u64 {
    let history = publisher.satchel(["--json", "history", "--image", "golden"]).ok().json();
    let numbers: Vec<u64> = history
        .as_array()
        .expect("a list")
        .iter()
        .map(|version| version["sequence"].as_u64().expect("a number"))
        .collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).rev().collect::<Vec<_>>(), "{history}");
    numbers[0]
}

/// Checks that a desktop made now has the disk as it is now.
fn assert_published(published: &Publication, desktop: &str, model: &Model) {
    let machine = published.machine("looker");
    machine.create(desktop, "golden", Some("0"));
    let mount = machine.mount(desktop);
    model.assert_in(&mount.system());
    mount.unmount();
}
