//! Three machines of one person and a server, to which anything happens in any order: they write, sync, take the desktop from one
//! another, go back, adopt and remove forks; they and the server are killed, the server is away, set back to a backup, and collected;
//! golden versions are published, which the desktop takes up in one of two seeds.
//!
//! What holds all the time: a desktop that is opened holds what some machine held at one instant, or that on a golden system disk, and
//! what its version says. What holds whenever all have synced: every version is such a state, what each machine wrote is in one, and all
//! that is stored is sound.
//!
//! `SATCHEL_FLEET_STEPS` says how much happens (90), `SATCHEL_FLEET_SEED` what (200). A failure prints what happened before it; when
//! a process is killed depends on the machine.

use std::collections::HashSet;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;
use std::{env, fmt, fs};

use satchel_tests::model::open_for_writing;
use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Backup, Client, Model, Mount, Output, Publication, Rng, require};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::story::{Disks, IMAGE_BYTES};

/// After so many steps everybody syncs, and is looked at.
const SETTLE_EVERY: u64 = 15;
/// Within so long a process is killed: a sync takes less.
const KILLED_WITHIN_MS: u64 = 400;

#[test]
fn whatever_happens_to_a_persons_machines_and_server_no_work_is_lost() {
    require!(fuse);
    let number = |name, default| {
        env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let (steps, seed) = (number("SATCHEL_FLEET_STEPS", 90), number("SATCHEL_FLEET_SEED", 200));
    let mut fleet = Fleet::new(seed);
    for step in 1..=steps {
        fleet.step();
        if step % SETTLE_EVERY == 0 || step == steps {
            fleet.settle();
        }
    }
}

/// What both disks hold, by the one segment that each has. Told apart here as the format says it, not as the programs do.
#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    system: String,
    home: String,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", &self.system[..8], &self.home[..8])
    }
}

impl State {
    fn of(disks: &Disks) -> Self {
        Self { system: segment(disks.system.bytes()), home: segment(disks.home.bytes()) }
    }

    /// What a manifest says.
    fn described(manifest: &[u8]) -> Self {
        let manifest: Value = serde_json::from_slice(manifest).expect("a manifest is JSON");
        let disk = |at: usize, role: &str| {
            let disk = &manifest["disks"][at];
            assert_eq!((&disk["role"], disk["segments"].as_array().map(Vec::len)), (&role.into(), Some(1)));
            disk["segments"][0].as_str().expect("an id").to_owned()
        };
        Self { system: disk(0, "system"), home: disk(1, "home") }
    }
}

/// The id of the segment of a small disk: the SHA-256 of its chunks' ids, and zeros for zeros (docs/format.md).
fn segment(bytes: &[u8]) -> String {
    const CHUNK_BYTES: usize = 64 << 10;
    const SEGMENT_BYTES: usize = 1024 * 32;
    let is_zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let hash = |bytes: &[u8]| if is_zero(bytes) { [0; 32] } else { Sha256::digest(bytes).into() };
    let mut ids: Vec<u8> = bytes.chunks(CHUNK_BYTES).flat_map(hash).collect();
    ids.resize(SEGMENT_BYTES, 0);
    hash(&ids).iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
}

struct Machine {
    client: Client,
    open: Option<(Mount, Disks)>,
    /// What it held last.
    state: State,
    /// Whether that is in no version, as far as is known.
    worked: bool,
    /// Whether all of it was read here, so that it can be read without a server.
    whole: bool,
    /// The version it stood on then.
    opened: String,
    /// Whether the server may have lost what it stands on.
    is_set_back: bool,
}

impl Machine {
    fn satchel(&self, arguments: &[&str]) -> Output {
        self.client.satchel([&["--json"], arguments].concat())
    }

    fn head(&self) -> String {
        let status = self.satchel(&["status", "work"]).ok().json();
        status["head"]["id"].as_str().expect("an id").to_owned()
    }

    /// A command may have moved it to another version, of which only its name is here.
    fn may_have_moved(&mut self) {
        self.whole = self.whole && (self.open.is_some() || self.head() == self.opened);
    }
}

struct Fleet {
    published: Publication,
    machines: Vec<Machine>,
    onlooker: Client,
    is_away: bool,
    backup: Option<Backup>,
    /// What machines held at instants that may be in a version.
    known: HashSet<State>,
    /// The system disks that were published.
    golden: HashSet<String>,
    /// Heads that were mounted and read.
    seen: HashSet<String>,
    /// What has to be in some version when all have synced.
    owed: Vec<State>,
    /// What was in forks that somebody removed.
    removed: HashSet<State>,
    rng: Rng,
}

impl Fleet {
    fn new(seed: u64) -> Self {
        let published = Publication::new(seed, IMAGE_BYTES);
        let state = State::of(&Disks::new(&published));
        let machines: Vec<Machine> = ["laptop", "desk", "stick"]
            .map(|name| Machine {
                client: published.machine(name),
                open: None,
                state: state.clone(),
                worked: false,
                whole: false,
                opened: String::new(),
                is_set_back: false,
            })
            .into();
        let mode = if seed.is_multiple_of(2) { "own" } else { "keep" };
        let create = ["create", "work", "--image", "golden", "--home", "16M", "--mode", mode];
        let _ = machines[0].satchel(&create).ok();
        let onlooker = published.machine("onlooker");
        let mut fleet = Self {
            published,
            machines,
            onlooker,
            is_away: false,
            backup: None,
            golden: HashSet::from([state.system.clone()]),
            known: HashSet::from([state]),
            seen: HashSet::new(),
            owed: Vec::new(),
            removed: HashSet::new(),
            rng: Rng::new(!seed),
        };
        fleet.observe();
        fleet
    }

    #[expect(clippy::print_stdout, reason = "a failure is understood by what happened before it")]
    fn tell(what: &str) {
        println!("{what}");
    }

    fn step(&mut self) {
        let at = usize::try_from(self.rng.below(self.machines.len() as u64)).expect("small");
        let name = ["laptop", "desk", "stick"][at];
        let is_open = self.machines[at].open.is_some();
        match self.rng.below(30) {
            0..10 if is_open => self.write(at),
            0..10 => self.open(at),
            10..14 => self.sync(at),
            14..17 => self.cut_sync(at),
            17..19 if is_open => self.close(at),
            19 if is_open => {
                Self::tell(&format!("{name}: killed"));
                self.machines[at].open.take().expect("it is open").0.kill9();
                self.machines[at].whole = false;
            }
            17..19 => self.roll_back(at),
            19..21 => self.adopt(at),
            21 => self.remove(at),
            22 => self.checkpoint(at),
            23 if !self.is_away => self.cut_server(at),
            24..26 => self.go_away_or_come_back(),
            26 if !self.is_away => self.collect(),
            27 if !self.is_away => self.set_back(),
            28 if !self.is_away => self.publish(),
            _ => {}
        }
    }

    /// Opens the desktop, which takes it from whoever has it.
    fn open(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        // Its reads would wait: for the server, or for whoever has what that has lost.
        if (self.is_away || machine.is_set_back) && !machine.whole {
            return;
        }
        let directory = machine.client.new_directory();
        let mut process =
            machine.client.start(["mount", "work", "--take", directory.to_str().expect("UTF-8")]);
        wait::until("it is mounted or not", PATIENCE, || {
            (process.status().is_some() || process.stdout().ends_with('\n')).then_some(())
        });
        if process.status().is_some() {
            assert!(self.is_away, "machine {at} cannot open the desktop\n{}", process.report());
            Self::tell(&format!("machine {at}: does not open it while the server is away"));
            return;
        }
        let said = process.stderr();
        let mount = machine.client.mounted("work", &directory, process);
        let disks = read(&mount);
        let state = State::of(&disks);
        Self::tell(&format!("machine {at}: opens {state:?}; {}", said.replace('\n', " ")));
        let is_known = is_known(&mut self.known, &self.golden, &state);
        assert!(is_known, "machine {at} finds what none ever held, {state:?}\n{said}");
        if machine.worked && state != machine.state {
            self.owed.push(machine.state.clone());
            machine.worked = false;
        }
        let status = machine.satchel(&["status", "work"]).ok().json();
        machine.opened = status["head"]["id"].as_str().expect("an id").to_owned();
        if status["unsynced_bytes"] == 0
            && status["discarded_bytes"] == 0
            && let Some(described) = described(&self.published, &machine.opened)
        {
            assert_eq!(state, described, "machine {at}: not what its version says\n{said}\n{status:#}");
        }
        machine.state = state;
        machine.whole = true;
        machine.open = Some((mount, disks));
    }

    fn write(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        let (mount, disks) = machine.open.as_mut().expect("it is open");
        let writes = 1 + self.rng.below(8);
        disks.change(mount, writes, &mut self.rng);
        let state = State::of(disks);
        // Zeros over zeros are no work.
        machine.worked |= state != machine.state;
        Self::tell(&format!("machine {at}: writes {state:?}"));
        machine.state = state.clone();
        self.known.insert(state);
    }

    fn close(&mut self, at: usize) {
        Self::tell(&format!("machine {at}: closes"));
        if let Some((mount, disks)) = self.machines[at].open.take() {
            assert_eq!(State::of(&read(&mount)), State::of(&disks), "machine {at}: not what was written");
            mount.unmount();
        }
    }

    fn sync(&mut self, at: usize) {
        let done = self.machines[at].satchel(&["sync", "work"]);
        Self::tell(&format!("machine {at}: sync: {:?} {}{}", done.code, done.stdout, done.stderr));
        if self.is_away {
            assert!(matches!(done.code, Some(0 | 1)), "{}", done.stderr);
            return;
        }
        let machine = &self.machines[at];
        if machine.is_set_back && !machine.whole && done.code == Some(1) {
            // It knew a version only by name; whoever wrote that has it.
            assert!(done.stderr.contains("the server has lost "), "{}", done.stderr);
            return;
        }
        let report = done.ok().json();
        self.synced(at, report["version"]["id"].as_str());
    }

    fn synced(&mut self, at: usize, version: Option<&str>) {
        let machine = &mut self.machines[at];
        if machine.worked {
            self.owed.push(machine.state.clone());
        }
        // A desktop in which nothing was done goes on with the newest version before it is synced.
        let is_its_own = machine.worked || machine.open.is_some();
        machine.worked = false;
        machine.may_have_moved();
        machine.is_set_back = false;
        if let Some(id) = version.filter(|_| is_its_own) {
            let described = described(&self.published, id);
            assert_eq!(described.as_ref(), Some(&machine.state), "machine {at}: version {id} is another");
        }
        self.observe();
    }

    /// A command that is refused where something is not synced was not: a sync that was cut has come to its end.
    fn has_let_go(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        if std::mem::take(&mut machine.worked) {
            self.owed.push(machine.state.clone());
        }
    }

    fn checkpoint(&mut self, at: usize) {
        let done = self.machines[at].satchel(&["checkpoint", "work", "-m", "as it is"]);
        Self::tell(&format!("machine {at}: checkpoint: {:?} {}", done.code, done.stderr));
        if done.code == Some(0) {
            let report = done.json();
            self.synced(at, report["version"]["id"].as_str());
        } else {
            let _ = done.exited(1);
            self.observe();
        }
    }

    /// A sync during which its process is killed, or the one that serves the disks.
    fn cut_sync(&mut self, at: usize) {
        Self::tell(&format!("machine {at}: a sync is cut"));
        let mut syncing = self.machines[at].client.start(["sync", "work"]);
        thread::sleep(Duration::from_millis(self.rng.below(KILLED_WITHIN_MS)));
        match self.machines[at].open.take() {
            Some((mount, _)) => mount.kill9(),
            None => syncing.kill(),
        }
        syncing.wait(PATIENCE);
        // What a killed process had fetched last is fetched again.
        self.machines[at].whole = false;
        self.observe();
    }

    /// A sync during which the server is killed.
    fn cut_server(&mut self, at: usize) {
        Self::tell(&format!("machine {at}: syncs while the server is killed"));
        let mut syncing = self.machines[at].client.start(["sync", "work"]);
        thread::sleep(Duration::from_millis(self.rng.below(KILLED_WITHIN_MS)));
        self.published.server.kill9();
        self.published.server.start_again();
        if syncing.wait(PATIENCE).success() {
            self.synced(at, None);
        }
        self.machines[at].may_have_moved();
        self.observe();
    }

    fn roll_back(&mut self, at: usize) {
        let history = self.machines[at].satchel(&["history", "work"]);
        if self.is_away || history.code != Some(0) {
            return;
        }
        let history = history.json();
        let versions = history.as_array().expect("a list");
        let chosen = &versions[usize::try_from(self.rng.below(versions.len() as u64)).expect("small")];
        let number = chosen["sequence"].to_string();
        let done = self.machines[at].satchel(&["rollback", "work", &number]);
        Self::tell(&format!("machine {at}: rollback to {number}: {:?} {}", done.code, done.stderr));
        self.machines[at].may_have_moved();
        if done.code == Some(0) {
            self.has_let_go(at);
            if let Some(new) = done.json()["version"]["id"].as_str() {
                let was = described(&self.published, chosen["id"].as_str().expect("an id"));
                assert_eq!(described(&self.published, new), was, "it is rolled back to something else");
            }
        } else {
            let _ = done.exited(1);
        }
        self.observe();
    }

    fn a_fork(&mut self, at: usize) -> Option<String> {
        let forks = self.machines[at].satchel(&["forks"]);
        if self.is_away {
            return None;
        }
        let forks = forks.json();
        let forks = forks.as_array().expect("a list");
        let chosen = self.rng.below(forks.len().max(1) as u64);
        let fork = forks.get(usize::try_from(chosen).expect("small"))?;
        Some(fork["desktop"].as_str().expect("a name").to_owned())
    }

    fn adopt(&mut self, at: usize) {
        let Some(fork) = self.a_fork(at) else { return };
        let done = self.machines[at].satchel(&["adopt", &fork]);
        Self::tell(&format!("machine {at}: adopts {fork}: {:?} {}", done.code, done.stderr));
        assert!(matches!(done.code, Some(0 | 1)), "{}", done.stderr);
        if done.code == Some(0) {
            self.has_let_go(at);
        }
        self.machines[at].may_have_moved();
        self.observe();
    }

    fn remove(&mut self, at: usize) {
        let Some(fork) = self.a_fork(at) else { return };
        let states = self.states_in(&fork);
        let done = self.machines[at].satchel(&["remove", &fork, "--yes"]);
        Self::tell(&format!("machine {at}: removes {fork}: {:?} {}", done.code, done.stderr));
        assert!(matches!(done.code, Some(0 | 1)), "{}", done.stderr);
        if done.code == Some(0) {
            self.removed.extend(states);
        }
    }

    fn go_away_or_come_back(&mut self) {
        Self::tell(if self.is_away { "the server comes back" } else { "the server goes away" });
        if self.is_away {
            self.published.server.start_again();
        } else {
            self.published.server.stop();
        }
        self.is_away = !self.is_away;
    }

    fn publish(&mut self) {
        let disk = open_for_writing(&self.published.disk);
        let mut bytes = vec![0; 100_000];
        self.rng.fill(&mut bytes);
        // The first blocks say that this is a disk.
        let offset = 8192 + self.rng.below(IMAGE_BYTES - 8192 - bytes.len() as u64);
        disk.write_all_at(&bytes, offset).expect("the disk can be written");
        self.golden.insert(segment(&fs::read(&self.published.disk).expect("the disk can be read")));
        // On a version that a set back server does not know, a desktop can have none there.
        self.backup = None;
        let done = self.published.publisher.publish(&self.published.disk, "golden");
        Self::tell(&format!("a golden version is published: {}", done.stderr));
    }

    /// All that no version needs goes at once.
    fn collect(&mut self) {
        Self::tell("the server is collected");
        for _ in 0..2 {
            let _ = self.published.server.run(&["gc"], &["--grace", "0"]).ok();
        }
    }

    fn set_back(&mut self) {
        let Some(backup) = self.backup.take() else { return };
        Self::tell("the server is set back");
        self.published.server.restore(&backup);
        // One that looked before would keep what it has seen.
        self.onlooker = self.published.machine("onlooker");
        // What it has lost comes from the machines that have it.
        self.owed.clear();
        for machine in &mut self.machines {
            machine.worked |= machine.whole;
            machine.is_set_back = true;
        }
    }

    /// Reads the heads that are new: each holds what some machine held, and what its manifest says.
    fn observe(&mut self) {
        if self.is_away {
            return;
        }
        for (name, id) in self.heads() {
            if self.seen.contains(&id) {
                continue;
            }
            let mount = self.onlooker.mount_with(&name, &["--read-only"]);
            let state = State::of(&read(&mount));
            mount.unmount();
            Self::tell(&format!("{name} is {} now: {state:?}", &id[..8]));
            assert_eq!(Some(&state), described(&self.published, &id).as_ref(), "{name} is not what it says");
            let is_known = is_known(&mut self.known, &self.golden, &state);
            assert!(is_known, "{name} is what no machine ever held, {state:?}");
            self.seen.insert(id);
        }
    }

    fn heads(&self) -> Vec<(String, String)> {
        let listed = self.onlooker.satchel(["--json", "desktops"]).ok().json();
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let desktops = listed.as_array().expect("a list").iter();
        desktops.map(|info| (text(&info["desktop"]), text(&info["head"]["id"]))).collect()
    }

    /// What the versions of a desktop hold.
    fn states_in(&self, desktop: &str) -> Vec<State> {
        let history = self.onlooker.history(desktop);
        let ids = history.as_array().expect("a list").iter().map(|version| &version["id"]);
        let state = |id: &Value| described(&self.published, id.as_str().expect("an id"));
        ids.map(|id| state(id).unwrap_or_else(|| panic!("version {id} of {desktop} has no manifest")))
            .collect()
    }

    fn settle(&mut self) {
        if self.is_away {
            self.go_away_or_come_back();
        }
        for at in 0..self.machines.len() {
            self.close(at);
            self.sync(at);
        }
        self.observe();
        let heads = self.heads();
        let kept: HashSet<State> = heads.iter().flat_map(|(name, _)| self.states_in(name)).collect();
        for state in &kept {
            let is_known = is_known(&mut self.known, &self.golden, state);
            assert!(is_known, "a version of {heads:?} is what no machine ever held, {state:?}");
        }
        for state in self.owed.drain(..) {
            assert!(
                kept.contains(&state) || self.removed.contains(&state),
                "what a machine wrote, {state:?}, is in no version of {heads:?}"
            );
        }
        self.published.server.verify();
        if self.rng.below(2) == 0 {
            Self::tell("a backup is made");
            self.backup = Some(self.published.server.back_up());
        }
        if self.rng.below(3) == 0 {
            Self::tell("old versions are pruned");
            let _ = self.published.server.run(&["retention"], &["--keep-last", "3"]).ok();
        }
    }
}

/// What a version of a desktop says that it holds, if the server has it.
fn described(published: &Publication, id: &str) -> Option<State> {
    let manifest = published.server.objects("user/alice/manifests").join(id);
    Some(State::described(&fs::read(manifest).ok()?))
}

/// Whether a desktop may hold this: what a machine held, or its home on a golden system disk that was taken up.
fn is_known(known: &mut HashSet<State>, golden: &HashSet<String>, state: &State) -> bool {
    let is_renewed = golden.contains(&state.system) && known.iter().any(|held| held.home == state.home);
    if is_renewed {
        known.insert(state.clone());
    }
    known.contains(state)
}

/// What a mounted desktop holds.
fn read(mount: &Mount) -> Disks {
    let model = |path| {
        let bytes = fs::read(path).expect("a mounted disk can be read");
        let mut model = Model::zeros(bytes.len() as u64);
        model.wrote(0, &bytes);
        model
    };
    Disks { system: model(mount.system()), home: model(mount.home()) }
}
