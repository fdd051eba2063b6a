//! Several machines, one desktop, and a server that keeps leases: they write, sync, crash, lose the network, take leases
//! and let them run out, in any order. No work is lost, and none is mixed with another's.
//!
//! Every version on the server must be what some machine held at one instant; a history only grows; and a machine lets go
//! of what it holds only when a version has it. Case count: a tenth of `SATCHEL_MODEL_CASES`, default 50; 3 machines and up
//! to 60 steps a case.

use std::collections::HashMap;

use chunk_format::{ManifestId, Name, SecretKey, SystemMode};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use super::tests::{self, CHUNK, SECTOR, Tag, bytes_of, name, subject, tags_of};
use super::*;
use crate::cache::CacheConfig;
use crate::desktop::DesktopStore;
use crate::fetch::{Fetcher, OnMissing, SegmentStore};
use crate::profile::ProfileStore;
use crate::renew::{commit_renewal, next_manifest};
use crate::source::{Object, get_whole};
use crate::upstream::MemoryServer;
use crate::volume::{PowerCut, SimulatedVolume};
use chunk_format::ChunkSize;

const MACHINES: usize = 3;
type Content = [Vec<Tag>; 2];

#[derive(Clone, Debug)]
enum Step {
    /// Writes and flushes.
    Write { home: bool, sector: usize, len: usize },
    /// Opens the desktop anew, as a start with a network does.
    Open,
    /// Syncs; the network goes away after so many requests, if it does.
    Sync { network: Option<u64> },
    /// Syncs, and the power goes in the nth sync call of the disk.
    Crash { syncs: u64 },
    /// Renews, as a start does; the network goes away after so many requests, if it does.
    Renew { network: Option<u64> },
    /// Takes the lease, whoever has it.
    Take,
    /// Gives the lease back.
    Release,
    /// Time passes: leases run out.
    Wait,
}

fn step() -> impl Strategy<Value = (usize, Step)> {
    let step = prop_oneof![
        6 => (any::<bool>(), 0usize..200, 1usize..40).prop_map(|(home, sector, len)| Step::Write { home, sector, len }),
        3 => Just(Step::Open),
        5 => prop_oneof![3 => Just(None), 3 => (0u64..14).prop_map(Some)].prop_map(|network| Step::Sync { network }),
        2 => (1u64..12).prop_map(|syncs| Step::Crash { syncs }),
        2 => prop_oneof![Just(None), (0u64..3).prop_map(Some)].prop_map(|network| Step::Renew { network }),
        2 => Just(Step::Take),
        1 => Just(Step::Release),
        1 => Just(Step::Wait),
    ];
    (0..MACHINES, step)
}

struct Machine {
    volume: SimulatedVolume,
    key: Arc<SecretKey>,
    name: String,
    desktop: Option<OpenDesktop>,
    content: Content,
}

struct World {
    server: MemoryServer,
    machines: Vec<Machine>,
    dir: tempfile::TempDir,
    turn: usize,
    next_tag: Tag,
    /// What the golden version's system disk holds.
    golden: Vec<Tag>,
    /// What machines held at instants that may be committed.
    candidates: Vec<Content>,
    /// What every version on the server holds.
    versions: HashMap<ManifestId, Content>,
    histories: HashMap<Name, Vec<ManifestId>>,
    choices: Vec<u32>,
}

impl World {
    async fn new(choices: Vec<u32>) -> Result<Self, TestCaseError> {
        let (server, volume, content) = tests::new_desktop(SystemMode::Own);
        let machines = (0..MACHINES)
            .map(|number| {
                let choose = &mut |_: usize| 0;
                Machine {
                    // Each begins with the files of a machine that has only just opened the desktop.
                    volume: volume.after_reboot(PowerCut::Never, choose),
                    key: Arc::new(SecretKey::from_bytes(&[u8::try_from(number).unwrap_or(0) + 20; 32])),
                    name: format!("laptop-{number}"),
                    desktop: None,
                    content: content.clone(),
                }
            })
            .collect();
        let mut world = Self {
            server,
            machines,
            dir: tempfile::tempdir().unwrap(),
            turn: 0,
            next_tag: 5_000_000,
            golden: content[0].clone(),
            candidates: vec![content],
            versions: HashMap::new(),
            histories: HashMap::new(),
            choices,
        };
        for machine in 0..MACHINES {
            world.assemble(machine);
        }
        world.look().await?;
        Ok(world)
    }

    /// A process on the machine opens what is there.
    fn assemble(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        if let Some(desktop) = machine.desktop.take() {
            desktop.fetcher.stop();
        }
        let volume = Arc::new(machine.volume.clone());
        let store = DesktopStore::open(volume, &tests::key().public(), &name("alice"), &name("work"))
            .expect("a crash must never make a desktop unreadable");
        let dir = self.dir.path().join(self.turn.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        self.turn += 1;
        let (cache, fetcher) = fetcher(&self.server, &dir, OnMissing::Wait);
        let profiles = ProfileStore::new(dir.join("profiles"));
        let opened = OpenDesktop::assemble(store, cache, fetcher, profiles, Handle::current());
        machine.desktop = Some(opened.expect("a crash must never make a desktop unreadable"));
    }

    async fn apply(&mut self, at: usize, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Write { home, sector, len } => self.write(at, home, sector, len).await,
            Step::Open => self.open(at).await,
            Step::Sync { network } => self.sync(at, network).await,
            Step::Crash { syncs } => self.crash(at, syncs).await,
            Step::Renew { network } => self.renew(at, network).await,
            Step::Take => {
                self.server.take_lease(&subject(), Some(self.machines[at].key.public()));
                Ok(())
            }
            Step::Release => {
                self.server.release_lease(&subject(), &self.machines[at].key.public());
                Ok(())
            }
            Step::Wait => {
                self.server.take_lease(&subject(), None);
                Ok(())
            }
        }
    }

    fn desktop(&self, at: usize) -> &OpenDesktop {
        self.machines[at].desktop.as_ref().unwrap()
    }

    async fn write(&mut self, at: usize, home: bool, sector: usize, len: usize) -> Result<(), TestCaseError> {
        let sectors = self.machines[at].content[usize::from(home)].len();
        let start = (sector % sectors) & !7;
        let end = (start + len.next_multiple_of(8)).min(sectors);
        self.next_tag += 1;
        let bytes = bytes_of(&vec![self.next_tag; end - start]);
        let disk = &self.desktop(at).disks[usize::from(home)];
        disk.write((start * SECTOR) as u64, &bytes).await.unwrap();
        disk.flush().unwrap();
        let tag = self.next_tag;
        self.machines[at].content[usize::from(home)][start..end].fill(tag);
        Ok(())
    }

    /// What a start does: whoever has nothing that is not committed takes up the newest version.
    async fn open(&mut self, at: usize) -> Result<(), TestCaseError> {
        self.assemble(at);
        let Some(info) = self.server.head(&subject()).await.unwrap() else { return Ok(()) };
        let desktop = self.desktop(at);
        let record = desktop.store.record();
        let here = desktop.store.version(record.head).unwrap();
        let is_fork = here.manifest.subject != subject();
        let is_older = info.sequence > here.manifest.sequence;
        if desktop.has_changes() || record.pending.is_some() || !(is_fork || is_older) {
            return self.check(at).await;
        }
        let held = self.machines[at].content.clone();
        prop_assert!(
            self.versions.values().any(|content| *content == held),
            "work is let go that no version has"
        );
        let (head, base) =
            (fetch(&self.server, &subject(), info.id).await, desktop.store.version(record.base).unwrap());
        desktop.store.move_to(&head, &base).unwrap();
        self.machines[at].content = self.versions[&info.id].clone();
        self.assemble(at);
        self.check(at).await
    }

    async fn sync(&mut self, at: usize, network: Option<u64>) -> Result<(), TestCaseError> {
        // What lies below the changes is read before the network may go: a read would wait for it for ever.
        self.check(at).await?;
        let content = self.machines[at].content.clone();
        self.candidates.push(content.clone());
        let syncer = self.syncer(at);
        self.server.lose_network_after(network);
        let patience = std::time::Duration::from_millis(if network.is_some() { 60 } else { 20_000 });
        let outcome = tokio::time::timeout(patience, syncer.sync(self.desktop(at), None)).await;
        self.server.lose_network_after(None);
        self.look().await?;
        match outcome {
            Ok(Ok(_)) => {
                prop_assert!(!self.desktop(at).has_changes());
                let head = self.desktop(at).store.record().head;
                prop_assert_eq!(&self.versions[&head], &content, "a finished sync has committed everything");
            }
            Ok(Err(error)) if network.is_none() => {
                return Err(TestCaseError::fail(format!("a sync failed: {error}")));
            }
            _ => {}
        }
        self.check(at).await
    }

    async fn crash(&mut self, at: usize, syncs: u64) -> Result<(), TestCaseError> {
        self.check(at).await?;
        self.candidates.push(self.machines[at].content.clone());
        let syncer = self.syncer(at);
        let machine = &self.machines[at];
        machine.volume.cut_power_at(PowerCut::AtSync(machine.volume.syncs() + syncs));
        let _ = syncer.sync(self.desktop(at), None).await;
        self.machines[at].volume.cut_power();
        let (choices, mut turn) = (self.choices.clone(), self.turn);
        let mut choose = |n: usize| {
            turn += 1;
            (choices[turn % choices.len()] as usize).wrapping_mul(turn) % n
        };
        let volume = self.machines[at].volume.after_reboot(PowerCut::Never, &mut choose);
        self.machines[at].desktop.take().unwrap().fetcher.stop();
        self.machines[at].volume = volume;
        self.assemble(at);
        self.look().await?;
        self.check(at).await
    }

    /// Syncs, and puts a version with the golden system disk on top. A fork stays as it is.
    async fn renew(&mut self, at: usize, network: Option<u64>) -> Result<(), TestCaseError> {
        self.sync(at, None).await?;
        let store = &self.desktop(at).store;
        let record = store.record();
        let (head, golden) = (store.version(record.head).unwrap(), store.version(record.base).unwrap());
        if head.manifest.subject != subject() {
            return Ok(());
        }
        let content = [self.golden.clone(), self.machines[at].content[1].clone()];
        self.candidates.push(content.clone());
        self.next_tag += 1;
        let (base, system) = (head.manifest.base.clone().unwrap(), golden.manifest.disks[0].clone());
        let manifest =
            next_manifest(&head, &base, &golden, system, u64::from(self.next_tag), "renewed".to_owned());
        let (bytes, syncer) = (manifest.encode().unwrap(), self.syncer(at));
        let version = Version::decode(bytes.clone(), syncer.key.sign(&bytes)).unwrap();
        self.server.lose_network_after(network);
        let renewed = commit_renewal(&syncer, self.desktop(at), &version, &golden).await;
        self.server.lose_network_after(None);
        self.look().await?;
        if renewed.is_ok() {
            self.machines[at].content = content;
            self.assemble(at);
        }
        self.check(at).await
    }

    /// The machine holds what it wrote: everything was flushed.
    async fn check(&self, at: usize) -> Result<(), TestCaseError> {
        for (disk, expected) in self.desktop(at).disks.iter().zip(&self.machines[at].content) {
            let mut bytes = vec![0; expected.len() * SECTOR];
            disk.read(0, &mut bytes).await.unwrap();
            prop_assert_eq!(&tags_of(&bytes)?, expected, "machine {} holds something else than it wrote", at);
        }
        Ok(())
    }

    /// Reads what is new on the server.
    async fn look(&mut self) -> Result<(), TestCaseError> {
        for subject in self.server.subjects() {
            let Subject::Desktop { desktop, .. } = &subject else { continue };
            let history: Vec<ManifestId> =
                self.server.history(&subject).iter().map(|version| version.id).collect();
            let known = self.histories.entry(desktop.clone()).or_default();
            prop_assert!(history.starts_with(known), "the history of {} did not only grow", desktop);
            known.clone_from(&history);
            for id in history {
                if self.versions.contains_key(&id) {
                    continue;
                }
                let content = read_version(&self.server, self.desktop(0), &subject, id).await?;
                prop_assert!(self.candidates.contains(&content), "a version holds what no machine ever held");
                self.versions.insert(id, content);
            }
        }
        Ok(())
    }

    fn syncer(&self, at: usize) -> Syncer {
        let machine = &self.machines[at];
        Syncer { key: Arc::clone(&machine.key), machine: machine.name.clone(), ..tests::syncer(&self.server) }
    }
}

fn fetcher(server: &MemoryServer, dir: &std::path::Path, on_missing: OnMissing) -> (Arc<Cache>, Fetcher) {
    let chunk_size = ChunkSize::new(CHUNK as u64).unwrap();
    let config = CacheConfig { chunk_size, limit_bytes: Some(64 * CHUNK as u64), owner: [0; 32] };
    let cache = Arc::new(Cache::open(dir, &config).unwrap());
    let segments = SegmentStore::new(dir.to_owned());
    let fetcher = Fetcher::new(
        &Handle::current(),
        vec![Arc::new(server.clone())],
        Arc::clone(&cache),
        segments,
        on_missing,
    );
    (cache, fetcher)
}

async fn fetch(server: &MemoryServer, subject: &Subject, id: ManifestId) -> Version {
    let whole =
        async |object| get_whole(server, &(subject.namespace(), object).into(), 1 << 20).await.unwrap();
    let (bytes, signature) = (whole(Object::Manifest(id)).await, whole(Object::ManifestSignature(id)).await);
    Version::decode(bytes, chunk_format::Signature::decode(&signature).unwrap()).unwrap()
}

async fn read_version(
    server: &MemoryServer,
    desktop: &OpenDesktop,
    subject: &Subject,
    id: ManifestId,
) -> Result<Content, TestCaseError> {
    let version = fetch(server, subject, id).await;
    let dir = tempfile::tempdir().unwrap();
    let (cache, fetcher) = fetcher(server, dir.path(), OnMissing::Fail);
    let mut content = [Vec::new(), Vec::new()];
    for (disk, tags) in version.manifest.disks.iter().zip(&mut content) {
        let base = crate::disk::Base::new(disk, |id| desktop.origins.namespace_of(id));
        let view = View { overlays: Vec::new(), base: Arc::new(base) };
        let disk = Disk::new(view, Arc::clone(&cache), fetcher.clone(), Handle::current());
        let mut bytes = vec![0; usize::try_from(disk.size().bytes()).unwrap()];
        disk.read(0, &mut bytes).await.unwrap();
        *tags = tags_of(&bytes)?;
    }
    fetcher.stop();
    Ok(content)
}

fn run(steps: &[(usize, Step)], choices: Vec<u32>) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let outcome = runtime.block_on(async {
        let mut world = World::new(choices).await?;
        for (at, step) in steps {
            world.apply(*at, step).await?;
        }
        // At last everybody comes back, in turn, and everything is on the server.
        world.server.take_lease(&subject(), None);
        for at in 0..MACHINES {
            world.sync(at, None).await?;
            world.open(at).await?;
        }
        for machine in &world.machines {
            let desktop = machine.desktop.as_ref().unwrap();
            prop_assert!(!desktop.has_changes());
            desktop.fetcher.stop();
        }
        Ok(())
    });
    runtime.shutdown_background();
    outcome
}

fn cases() -> u32 {
    std::env::var("SATCHEL_MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(500) / 10
}

#[test]
fn work_on_two_machines_at_once_is_two_histories() {
    let write = |sector| Step::Write { home: true, sector, len: 8 };
    let steps = [
        (0, write(0)),
        (1, write(8)),
        (0, Step::Sync { network: None }),
        (1, Step::Sync { network: None }),
        (1, write(16)),
        (1, Step::Sync { network: None }),
        (1, Step::Open),
        (1, write(24)),
        (1, Step::Sync { network: None }),
    ];
    run(&steps, vec![1]).unwrap();
}

#[test]
fn work_whose_lease_was_taken_is_a_fork_even_if_the_head_did_not_move() {
    let write = |sector| Step::Write { home: false, sector, len: 8 };
    let steps = [
        (0, write(0)),
        (1, Step::Take),
        (0, Step::Sync { network: None }),
        (1, write(0)),
        (1, Step::Sync { network: None }),
        (0, Step::Open),
    ];
    run(&steps, vec![1]).unwrap();
}

#[test]
fn work_that_went_on_below_a_renewal_whose_answer_was_lost_is_no_fork() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(vec![1]).await.unwrap();
        let write = |home| Step::Write { home, sector: 0, len: 8 };
        world.apply(0, &write(false)).await.unwrap();
        // The commit is done, and its answer lost.
        world.apply(0, &Step::Renew { network: Some(1) }).await.unwrap();
        assert_eq!(world.server.history(&subject()).len(), 3);
        for home in [false, true] {
            world.apply(0, &write(home)).await.unwrap();
        }
        world.apply(0, &Step::Sync { network: Some(3) }).await.unwrap();
        world.apply(0, &Step::Sync { network: None }).await.unwrap();
        assert_eq!(world.server.history(&subject()).len(), 4);
        assert_eq!(world.desktop(0).store.record().renewal, None);
        // Who has written nothing meanwhile takes it up as any other.
        world.apply(0, &Step::Renew { network: Some(1) }).await.unwrap();
        world.apply(0, &Step::Open).await.unwrap();
        assert_eq!(world.machines[0].content[0], world.golden);
        // Another machine's version on top of it is not ours to follow.
        world.apply(0, &Step::Renew { network: Some(1) }).await.unwrap();
        world.apply(0, &write(true)).await.unwrap();
        world.apply(1, &Step::Open).await.unwrap();
        world.apply(1, &write(true)).await.unwrap();
        world.apply(1, &Step::Sync { network: None }).await.unwrap();
        assert_eq!(world.server.subjects().len(), 2, "no fork so far: the image and the desktop");
        world.apply(0, &Step::Sync { network: None }).await.unwrap();
        assert_eq!(world.server.subjects().len(), 3);
        world.machines.iter().for_each(|machine| machine.desktop.as_ref().unwrap().fetcher.stop());
    });
    runtime.shutdown_background();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn machines_that_work_apart_lose_nothing_and_mix_nothing(
        steps in prop::collection::vec(step(), 1..60),
        choices in prop::collection::vec(any::<u32>(), 32),
    ) {
        run(&steps, choices)?;
    }
}
