//! The client's core against a plain byte array: writes, crashes, freezes, syncs over a failing network, evictions.
//!
//! Case count: `SATCHEL_MODEL_CASES`, default 500.

mod attempts;
mod lost;

use chunk_format::{
    Architecture, Base as ManifestBase, BootFacts, ChunkSize, Disk as ManifestDisk, DiskRole, DiskSize,
    Firmware, MAX_NOTE_BYTES, Name, Namespace, SegmentId, Subject, SystemMode,
};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use tempfile::TempDir;

use super::*;
use crate::cache::CacheConfig;
use crate::desktop::{DesktopStore, NewDesktop};
use crate::fetch::{Fetcher, OnMissing, SegmentStore};
use crate::profile::ProfileStore;
use crate::upstream::MemoryServer;
use crate::volume::{PowerCut, SimulatedVolume, Volume};

pub(super) const CHUNK: usize = 16 << 10;
pub(super) const SECTOR: usize = 512;
const SYSTEM_SECTORS: usize = 20 * CHUNK / SECTOR + 3;
const HOME_SECTORS: usize = 6 * CHUNK / SECTOR;
/// A tag stands for a sector's content: its four bytes repeated; tag 0 is zeros.
pub(super) type Tag = u32;

#[derive(Clone, Debug)]
enum Op {
    Write {
        home: bool,
        sector: usize,
        len: usize,
    },
    Zero {
        home: bool,
        sector: usize,
        len: usize,
    },
    Read {
        home: bool,
        sector: usize,
        len: usize,
    },
    Flush {
        home: bool,
    },
    /// Syncs; the network goes away after so many requests, if it does.
    Sync {
        network: Option<u64>,
    },
    /// The power goes in the nth sync call from now at the latest; then the machine starts again.
    Crash {
        syncs: u64,
    },
    /// The process is killed; what it wrote to files is still in the page cache.
    Kill,
    /// The cache loses what was read longest ago.
    Evict {
        chunks: u64,
    },
    /// Writes to home what is kept whole or not at all.
    Attempt {
        sector: usize,
        len: usize,
        end: attempts::End,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let range = || (any::<bool>(), 0..SYSTEM_SECTORS, prop_oneof![Just(8), 1usize..4, 1usize..100]);
    prop_oneof![
        6 => range().prop_map(|(home, sector, len)| Op::Write { home, sector: sector & !7, len: len.next_multiple_of(8) }),
        2 => range().prop_map(|(home, sector, len)| Op::Write { home, sector, len }),
        2 => range().prop_map(|(home, sector, len)| Op::Zero { home, sector, len }),
        3 => range().prop_map(|(home, sector, len)| Op::Read { home, sector, len }),
        3 => any::<bool>().prop_map(|home| Op::Flush { home }),
        3 => prop_oneof![2 => Just(None), 3 => (0u64..14).prop_map(Some)].prop_map(|network| Op::Sync { network }),
        2 => (0u64..12).prop_map(|syncs| Op::Crash { syncs }),
        1 => Just(Op::Kill),
        1 => (1u64..30).prop_map(|chunks| Op::Evict { chunks }),
        1 => (0..SYSTEM_SECTORS, 1usize..100, attempts::end())
            .prop_map(|(sector, len, end)| Op::Attempt { sector, len, end }),
    ]
}

/// One disk as the guest knows it: for each sector its values since the last completed flush, the latest last.
#[derive(Clone)]
struct Expected(Vec<Vec<Tag>>);

impl Expected {
    fn new(sectors: usize, first_tag: Tag) -> Self {
        Self(
            (0..sectors)
                .map(|at| vec![if first_tag == 0 || at % 50 < 9 { 0 } else { first_tag + tag(at) }])
                .collect(),
        )
    }

    fn now(&self) -> Vec<Tag> {
        self.0.iter().map(|values| values[values.len() - 1]).collect()
    }

    fn push(&mut self, sectors: std::ops::Range<usize>, tag: Tag) {
        self.0[sectors].iter_mut().for_each(|values| values.push(tag));
    }

    fn flushed(&mut self) {
        self.0.iter_mut().for_each(|values| drop(values.drain(..values.len() - 1)));
    }
}

fn tag(at: usize) -> Tag {
    Tag::try_from(at).unwrap()
}

pub(super) fn bytes_of(tags: &[Tag]) -> Vec<u8> {
    tags.iter().flat_map(|tag| tag.to_le_bytes().repeat(SECTOR / 4)).collect()
}

pub(super) fn tags_of(bytes: &[u8]) -> Result<Vec<Tag>, TestCaseError> {
    bytes
        .chunks(SECTOR)
        .map(|sector| {
            let tag: [u8; 4] = sector[..4].try_into().unwrap();
            prop_assert!(sector.chunks(4).all(|word| word == tag), "a torn sector");
            Ok(Tag::from_le_bytes(tag))
        })
        .collect()
}

pub(super) struct World {
    pub(super) server: MemoryServer,
    volume: SimulatedVolume,
    dir: TempDir,
    desktop: Option<OpenDesktop>,
    expected: [Expected; 2],
    next_tag: Tag,
    /// Contents at the instants of freezes that may yet be committed.
    candidates: Vec<[Vec<Tag>; 2]>,
    known_head: u64,
    /// Some sync was given up on.
    abandoned: bool,
    choices: Vec<u32>,
    turn: usize,
    /// What the system disk holds at each start, when what is written to it is volatile.
    golden: Option<Expected>,
}

impl World {
    pub(super) fn new(choices: Vec<u32>, mode: SystemMode) -> Self {
        let expected = [Expected::new(SYSTEM_SECTORS, 1000), Expected::new(HOME_SECTORS, 0)];
        let (server, volume, _) = new_desktop(mode);
        let mut world = Self {
            server,
            volume,
            dir: tempfile::tempdir().unwrap(),
            desktop: None,
            golden: (mode == SystemMode::Renew).then(|| expected[0].clone()),
            expected,
            next_tag: 1_000_000,
            candidates: Vec::new(),
            known_head: 1,
            abandoned: false,
            choices,
            turn: 0,
        };
        world.open();
        world
    }

    fn open(&mut self) {
        self.desktop = None;
        let store =
            DesktopStore::open(Arc::new(self.volume.clone()), &key().public(), &name("alice"), &name("work"))
                .expect("a crash must never make a desktop unreadable");
        let config = CacheConfig {
            chunk_size: ChunkSize::new(CHUNK as u64).unwrap(),
            limit_bytes: Some(12 * CHUNK as u64),
            owner: [0; 32],
        };
        // A directory of its own each time: the last process's threads may still be closing theirs.
        let dir = self.dir.path().join(self.turn.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        self.turn += 1;
        let cache = Arc::new(Cache::open(&dir, &config).unwrap());
        let runtime = Handle::current();
        let fetcher = Fetcher::new(
            &runtime,
            vec![Arc::new(self.server.clone())],
            Arc::clone(&cache),
            SegmentStore::new(dir.clone()),
            OnMissing::Wait,
        );
        let profiles = ProfileStore::new(dir.join("profiles"));
        self.desktop = Some(
            OpenDesktop::assemble(store, cache, fetcher, profiles, runtime)
                .expect("a crash must never make a desktop unreadable"),
        );
    }

    /// What a version made now would hold of the system disk.
    fn synced_system(&self) -> Vec<Tag> {
        self.golden.as_ref().unwrap_or(&self.expected[0]).now()
    }

    pub(super) fn desktop(&self) -> &OpenDesktop {
        self.desktop.as_ref().unwrap()
    }

    fn range(&self, home: bool, sector: usize, len: usize) -> std::ops::Range<usize> {
        let sectors = self.expected[usize::from(home)].0.len();
        let start = sector.min(sectors - 1);
        start..(start + len).min(sectors)
    }

    async fn read(&self, home: bool, sectors: std::ops::Range<usize>) -> Result<Vec<Tag>, TestCaseError> {
        let mut buf = vec![0xaa; sectors.len() * SECTOR];
        self.desktop().disks[usize::from(home)]
            .read((sectors.start * SECTOR) as u64, &mut buf)
            .await
            .unwrap();
        tags_of(&buf)
    }

    async fn apply(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match *op {
            Op::Write { home, sector, len } => {
                let sectors = self.range(home, sector, len);
                self.next_tag += 1;
                let bytes = bytes_of(&vec![self.next_tag; sectors.len()]);
                let disk = &self.desktop().disks[usize::from(home)];
                disk.write((sectors.start * SECTOR) as u64, &bytes).await.unwrap();
                let tag = self.next_tag;
                self.expected[usize::from(home)].push(sectors, tag);
            }
            Op::Zero { home, sector, len } => {
                let sectors = self.range(home, sector, len);
                let disk = &self.desktop().disks[usize::from(home)];
                disk.zero((sectors.start * SECTOR) as u64, (sectors.len() * SECTOR) as u64).await.unwrap();
                self.expected[usize::from(home)].push(sectors, 0);
            }
            Op::Read { home, sector, len } => {
                let sectors = self.range(home, sector, len);
                let found = self.read(home, sectors.clone()).await?;
                prop_assert_eq!(found, &self.expected[usize::from(home)].now()[sectors]);
            }
            Op::Flush { home } => {
                self.desktop().disks[usize::from(home)].flush().unwrap();
                self.expected[usize::from(home)].flushed();
            }
            Op::Sync { network } => self.sync(network).await?,
            Op::Crash { syncs } => self.crash(syncs).await?,
            Op::Kill => {
                self.desktop().fetcher.stop();
                self.open();
                self.take_stock(false).await?;
            }
            Op::Evict { chunks } => {
                self.desktop().cache.give_back(chunks * CHUNK as u64);
            }
            Op::Attempt { sector, len, end } => self.attempt(sector, len, end).await?,
        }
        Ok(())
    }

    async fn sync(&mut self, network: Option<u64>) -> Result<(), TestCaseError> {
        let now = [self.expected[0].now(), self.expected[1].now()];
        let synced = [self.synced_system(), now[1].clone()];
        self.candidates.push(synced.clone());
        // What lies below the changes is read before the network may go: a read would wait for it for ever.
        for home in [false, true] {
            let sectors = self.expected[usize::from(home)].0.len();
            prop_assert_eq!(&self.read(home, 0..sectors).await?, &now[usize::from(home)]);
        }
        let syncer = syncer(&self.server);
        self.server.lose_network_after(network);
        // Without the network it may wait for what lies below the changes; then the user gives up.
        let patience = std::time::Duration::from_millis(if network.is_some() { 60 } else { 20_000 });
        let outcome = tokio::time::timeout(patience, syncer.sync(self.desktop(), None)).await;
        self.server.lose_network_after(None);
        self.abandoned |= outcome.is_err();
        let head = self.check_head().await?;
        match outcome {
            Ok(Ok(report)) => {
                let sent = syncer.progress.new_chunks.load(Ordering::Relaxed);
                prop_assert!(sent <= report.dirty_chunks);
                prop_assert_eq!(head, synced, "a finished sync has committed everything");
                prop_assert!(!self.desktop().has_changes());
                self.candidates.clear();
                let requests = self.server.requests();
                syncer.sync(self.desktop(), None).await.unwrap();
                // An abandoned sync's threads may still be asking.
                if !self.abandoned {
                    prop_assert_eq!(self.server.requests(), requests, "a repeated sync asks for nothing");
                }
            }
            Ok(Err(error)) if network.is_none() => {
                return Err(TestCaseError::fail(format!("a sync failed: {error}")));
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads the server's newest version as another machine would; it must be a state that was frozen.
    async fn check_head(&mut self) -> Result<[Vec<Tag>; 2], TestCaseError> {
        let history = self.server.history(&subject());
        let head = history.last().unwrap().clone();
        let manifest_bytes = {
            let path = (Namespace::User(name("alice")), crate::source::Object::Manifest(head.id)).into();
            crate::source::get_whole(&self.server, &path, 1 << 20).await.unwrap()
        };
        let manifest = Manifest::decode(&manifest_bytes).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let config = CacheConfig {
            chunk_size: ChunkSize::new(CHUNK as u64).unwrap(),
            limit_bytes: Some(64 * CHUNK as u64),
            owner: [0; 32],
        };
        let cache = Arc::new(Cache::open(dir.path(), &config).unwrap());
        let fetcher = Fetcher::new(
            &Handle::current(),
            vec![Arc::new(self.server.clone())],
            Arc::clone(&cache),
            SegmentStore::new(dir.path().to_owned()),
            OnMissing::Fail,
        );
        let mut content = [Vec::new(), Vec::new()];
        for (disk, tags) in manifest.disks.iter().zip(&mut content) {
            let base = crate::disk::Base::new(disk, |id| self.desktop().origins.namespace_of(id));
            let view = View { overlays: Vec::new(), base: Arc::new(base) };
            let disk = Disk::new(view, Arc::clone(&cache), fetcher.clone(), Handle::current());
            let mut bytes = vec![0; usize::try_from(disk.size().bytes()).unwrap()];
            disk.read(0, &mut bytes).await.unwrap();
            *tags = tags_of(&bytes)?;
        }
        fetcher.stop();
        if head.sequence != self.known_head {
            prop_assert!(self.candidates.contains(&content), "a version holds what was never frozen");
            self.known_head = head.sequence;
        }
        Ok(content)
    }

    async fn crash(&mut self, syncs: u64) -> Result<(), TestCaseError> {
        if syncs > 0 {
            // In the middle of a sync: its files, its flushes, its record, at whichever sync call it is.
            self.candidates.push([self.synced_system(), self.expected[1].now()]);
            for home in [false, true] {
                let sectors = self.expected[usize::from(home)].0.len();
                self.read(home, 0..sectors).await?;
            }
            self.volume.cut_power_at(PowerCut::AtSync(self.volume.syncs() + syncs));
            let _ = syncer(&self.server).sync(self.desktop(), None).await;
        }
        self.reboot();
        self.take_stock(true).await
    }

    /// The power goes, unless it has gone, and comes again.
    fn reboot(&mut self) {
        self.volume.cut_power();
        if let Some(desktop) = self.desktop.take() {
            desktop.fetcher.stop();
        }
        let (choices, mut turn) = (self.choices.clone(), self.turn);
        let mut choose = |n: usize| {
            turn += 1;
            (choices[turn % choices.len()] as usize).wrapping_mul(turn) % n
        };
        self.volume = self.volume.after_reboot(PowerCut::Never, &mut choose);
        self.turn = turn;
        self.open();
    }

    /// After a restart: each sector must hold a value it may hold, and holds that from now on.
    async fn take_stock(&mut self, durable: bool) -> Result<(), TestCaseError> {
        if let Some(golden) = &self.golden {
            self.expected[0] = golden.clone();
        }
        for home in [false, true] {
            let expected = self.expected[usize::from(home)].0.clone();
            let found = self.read(home, 0..expected.len()).await?;
            for (at, (found, allowed)) in found.iter().zip(&expected).enumerate() {
                prop_assert!(
                    allowed.contains(found),
                    "home {home} sector {at}: {found}, allowed {allowed:?}"
                );
            }
            for (values, found) in self.expected[usize::from(home)].0.iter_mut().zip(found) {
                // What only the page cache holds may still be lost to a power cut: earlier values stay allowed.
                if durable {
                    values.clear();
                }
                values.push(found);
            }
        }
        // What the crash left of a frozen state is what the next sync commits first.
        let frozen = self.frozen_content().await?;
        self.candidates.push(frozen);
        self.check_head().await.map(drop)
    }

    async fn frozen_content(&self) -> Result<[Vec<Tag>; 2], TestCaseError> {
        let desktop = self.desktop();
        let mut content = [Vec::new(), Vec::new()];
        for (disk, tags) in desktop.disks.iter().zip(&mut content) {
            let mut view = (*disk.view()).clone();
            view.overlays.remove(0);
            let (cache, fetcher) = (Arc::clone(&desktop.cache), desktop.fetcher.clone());
            let frozen = Disk::new(view, cache, fetcher, Handle::current());
            let mut bytes = vec![0; usize::try_from(disk.size().bytes()).unwrap()];
            frozen.read(0, &mut bytes).await.unwrap();
            *tags = tags_of(&bytes)?;
        }
        Ok(content)
    }
}

/// A server with the first version of a desktop, a machine's files of it, and what its disks hold.
pub(crate) fn new_desktop(mode: SystemMode) -> (MemoryServer, SimulatedVolume, [Vec<Tag>; 2]) {
    let server = MemoryServer::default();
    let content = [Expected::new(SYSTEM_SECTORS, 1000).now(), Expected::new(HOME_SECTORS, 0).now()];
    let (image, key) = (Namespace::Image(name("debian")), key());
    let template = |role, sectors: usize| ManifestDisk {
        role,
        size: DiskSize::new((sectors * SECTOR) as u64).unwrap(),
        chunk_size: ChunkSize::new(CHUNK as u64).unwrap(),
        segments: vec![SegmentId::ZERO],
    };
    let system =
        server.store_disk(&image, &template(DiskRole::System, SYSTEM_SECTORS), &bytes_of(&content[0]));
    let golden = Manifest {
        features: Features::default(),
        subject: Subject::Image { image: name("debian") },
        base: None,
        parent: None,
        sequence: 1,
        created_ms: 0,
        machine: "builder".to_owned(),
        note: None,
        disks: vec![system.clone()],
        boot: BootFacts { firmware: Firmware::Bios, architecture: Architecture::X86_64 },
        system_mode: None,
    };
    let golden = sign(&golden, &key);
    let first = Manifest {
        subject: subject(),
        base: Some(ManifestBase {
            image: name("debian"),
            channel: None,
            version: golden.id,
            publisher: key.public(),
        }),
        disks: vec![system, template(DiskRole::Home, HOME_SECTORS)],
        system_mode: Some(mode),
        ..golden.manifest.clone()
    };
    let first = sign(&first, &key);
    let commit = |version: &Version| {
        let (subject, bytes) = (version.manifest.subject.clone(), version.bytes.clone());
        FutureExt::now_or_never(server.commit(&subject, Placing::default(), bytes, &version.signature))
            .unwrap()
            .unwrap();
    };
    commit(&golden);
    commit(&first);

    let volume = SimulatedVolume::default();
    let new = NewDesktop {
        server: key.public(),
        owner: name("alice"),
        desktop: name("work"),
        id: first.id,
        publisher: key.public(),
    };
    DesktopStore::create(Arc::new(volume.clone()), new, &first, &golden).unwrap();
    (server, volume, content)
}

pub(super) fn syncer(server: &MemoryServer) -> Syncer {
    Syncer {
        upstream: Arc::new(server.clone()),
        key: Arc::new(key()),
        machine: "laptop".to_owned(),
        progress: Arc::default(),
        threads: 2,
        patience: Patience { attempts: 2, first_pause: std::time::Duration::from_micros(10) },
        now_ms: || 0,
        guest: None,
        pace: None,
    }
}

pub(super) fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub(super) fn key() -> SecretKey {
    SecretKey::from_bytes(&[5; 32])
}

pub(super) fn subject() -> Subject {
    Subject::Desktop { owner: name("alice"), desktop: name("work") }
}

fn sign(manifest: &Manifest, key: &SecretKey) -> Version {
    let bytes = manifest.encode().unwrap();
    Version::decode(bytes.clone(), key.sign(&bytes)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_says_that_the_server_has_lost_what_lies_below() {
    let mut world = World::new(vec![1], SystemMode::Own);
    let image = Namespace::Image(name("debian"));
    for segment in world.desktop().disks[0].view().base.segments() {
        world.server.lose(&(image.clone(), crate::source::Object::Segment(segment.id)).into());
    }
    world.apply(&Op::Write { home: false, sector: 0, len: CHUNK / SECTOR }).await.unwrap();
    // A reader waits for it, as long as it takes; nobody waits for the reader.
    let disk = world.desktop().disks[0].clone();
    let reader = tokio::spawn(async move { disk.read(5 * CHUNK as u64, &mut [0; SECTOR]).await.is_ok() });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    let refused = syncer(&world.server).sync(world.desktop(), None).await.unwrap_err();
    assert!(matches!(refused, SyncError::Lost { sequence: 1, .. }), "{refused}");
    assert!(world.desktop().has_changes(), "what was written is still here");
    reader.abort();
    world.desktop().fetcher.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_nothing_is_refused_while_another_machine_has_the_desktop_and_one_of_work_is_kept() {
    let mut world = World::new(vec![1], SystemMode::Own);
    let other = SecretKey::from_bytes(&[6; 32]).public();
    let checkpoint = |text: &str| Some(text.to_owned());
    // Kept while nobody could be asked, too.
    world.server.lose_network_after(Some(0));
    syncer(&world.server).sync(world.desktop(), checkpoint("before")).await.unwrap_err();
    assert!(world.desktop().has_work());
    world.server.lose_network_after(None);
    world.server.take_lease(&subject(), Some(other));
    for note in [checkpoint("before"), checkpoint("now")] {
        let refused = syncer(&world.server).sync(world.desktop(), note).await.unwrap_err();
        let is_in_use = matches!(&refused, SyncError::NothingToFork { reason: ForkReason::LeaseHeld { .. } });
        assert!(is_in_use, "{refused}");
        assert!(crate::hint::hint(&refused).unwrap().contains("--take"));
        assert!(!world.desktop().has_work(), "it is not made later, either");
    }
    assert_eq!(world.server.subjects().len(), 2, "the image and the desktop");

    // A sync that asks for no version lets go of one that was kept.
    world.server.lose_network_after(Some(0));
    syncer(&world.server).sync(world.desktop(), checkpoint("again")).await.unwrap_err();
    world.server.lose_network_after(None);
    let report = syncer(&world.server).sync(world.desktop(), None).await.unwrap();
    assert!(report.version.is_none() && !world.desktop().has_work());

    // One that was kept does not stand in the way of one of work that came after it.
    world.server.lose_network_after(Some(0));
    syncer(&world.server).sync(world.desktop(), checkpoint("kept")).await.unwrap_err();
    world.server.lose_network_after(None);
    world.apply(&Op::Write { home: true, sector: 0, len: 1 }).await.unwrap();
    let report = syncer(&world.server).sync(world.desktop(), checkpoint("work")).await.unwrap();
    assert!(report.begins_fork());
    assert_eq!(world.server.subjects().len(), 3);
    world.desktop().fetcher.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_note_that_no_version_can_bear_keeps_no_desktop_from_being_synced() {
    let mut world = World::new(vec![1], SystemMode::Own);
    world.apply(&Op::Write { home: true, sector: 0, len: 1 }).await.unwrap();
    for bad in ["before\nthe upgrade", "a\u{202e}b", &"x".repeat(MAX_NOTE_BYTES + 1)] {
        let refused = syncer(&world.server).sync(world.desktop(), Some(bad.to_owned())).await.unwrap_err();
        assert!(matches!(refused, SyncError::Format(FormatError::Field { field: "note", .. })), "{refused}");
        assert_eq!(world.desktop().store().uncommitted_note().unwrap(), None, "nothing of it is kept");
    }

    // One that waits in a record all the same becomes one that a version can bear.
    world.server.lose_network_after(Some(0));
    syncer(&world.server).sync(world.desktop(), Some("kept".to_owned())).await.unwrap_err();
    world.server.lose_network_after(None);
    let record = world.volume.read("desktop.json", 1 << 20).unwrap();
    let mut record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    record["pending"] = serde_json::Value::Null;
    record["note"]["text"] = format!("before\nthe upgrade{}", "!".repeat(2 * MAX_NOTE_BYTES)).into();
    world.volume.replace("desktop.json", &serde_json::to_vec(&record).unwrap()).unwrap();
    world.open();
    let report = syncer(&world.server).sync(world.desktop(), None).await.unwrap();
    let note = report.version.unwrap().note.unwrap();
    assert!(note.starts_with("before\u{fffd}the upgrade!"), "{note}");
    assert_eq!(note.len(), MAX_NOTE_BYTES);
    assert!(!world.desktop().has_work());
    world.desktop().fetcher.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_of_versions_before_are_not_kept() {
    let mut world = World::new(vec![1], SystemMode::Own);
    for sector in 0..3 {
        world.apply(&Op::Write { home: true, sector, len: 1 }).await.unwrap();
        syncer(&world.server).sync(world.desktop(), None).await.unwrap();
    }
    let directory = std::fs::read_dir(world.dir.path()).unwrap().next().unwrap().unwrap().path();
    let names = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let kept: Vec<SegmentId> = names.filter_map(|name| name.to_str()?.parse().ok()).collect();
    let disks = &world.desktop().disks;
    let wanted: Vec<SegmentId> = disks
        .iter()
        .flat_map(|disk| disk.view().base.segments().iter().map(|segment| segment.id).collect::<Vec<_>>())
        .collect();
    assert!(kept.iter().all(|id| wanted.contains(id)), "{kept:?} for {wanted:?}");
    assert!(!kept.is_empty());
    world.desktop().fetcher.stop();
}

/// A segment that is the image's again is read from the image, whose it is.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_and_changed_back_is_read() {
    let mut world = World::new(vec![1], SystemMode::Own);
    let before = world.expected[0].now();
    world.apply(&Op::Write { home: false, sector: 0, len: 1 }).await.unwrap();
    syncer(&world.server).sync(world.desktop(), None).await.unwrap();
    world.desktop().disks[0].write(0, &bytes_of(&before[..1])).await.unwrap();
    syncer(&world.server).sync(world.desktop(), None).await.unwrap();
    world.desktop().cache.give_back(u64::MAX);
    let mut found = [0; SECTOR];
    let disk = world.desktop().disks[0].clone();
    let read = tokio::time::timeout(std::time::Duration::from_secs(30), disk.read(0, &mut found)).await;
    read.expect("it is there").unwrap();
    assert_eq!(tags_of(&found).unwrap(), before[..1]);
    world.desktop().fetcher.stop();
}

/// The record names a generation more, and the disks still write to the one before.
#[tokio::test(flavor = "multi_thread")]
async fn a_freeze_that_fails_when_its_record_is_written_loses_nothing() {
    for nth in 1.. {
        let mut world = World::new(vec![1], SystemMode::Own);
        world.apply(&Op::Write { home: true, sector: 0, len: 1 }).await.unwrap();
        let before = world.volume.syncs();
        world.volume.fail_sync(before + nth);
        let failed = syncer(&world.server).sync(world.desktop(), None).await;
        if failed.is_ok() && world.volume.syncs() < before + nth {
            return;
        }
        world.apply(&Op::Write { home: true, sector: 1, len: 1 }).await.unwrap();
        // Of what was written before: a sync that goes by another version than the record's does not see that it is gone.
        let _ = world.apply(&Op::Zero { home: true, sector: 0, len: CHUNK / SECTOR }).await;
        // An overlay whose flush failed takes nothing more; whoever has it is told.
        if syncer(&world.server).sync(world.desktop(), None).await.is_ok() {
            world.apply(&Op::Write { home: true, sector: 2, len: 1 }).await.unwrap();
            world.apply(&Op::Read { home: true, sector: 0, len: 4 }).await.unwrap();
        }
        world.desktop().fetcher.stop();
    }
}

/// What is written over again and again is not kept in place of what is read.
#[tokio::test(flavor = "multi_thread")]
async fn the_versions_of_what_is_written_often_push_nothing_out_of_the_cache() {
    const PER_CHUNK: usize = CHUNK / SECTOR;
    let mut world = World::new(vec![1], SystemMode::Own);
    let read = Op::Read { home: false, sector: 0, len: 3 * PER_CHUNK };
    world.apply(&read).await.unwrap();
    for _ in 0..12 {
        world.apply(&Op::Write { home: true, sector: PER_CHUNK, len: 2 * PER_CHUNK }).await.unwrap();
        syncer(&world.server).sync(world.desktop(), None).await.unwrap();
    }
    let base = world.desktop().disks[0].view().base.clone();
    let ids = base.segments()[0].segment().unwrap().chunks()[..3].to_vec();
    assert_eq!(world.desktop().cache.count(&ids), 3);
    world.apply(&Op::Read { home: true, sector: 0, len: 4 * PER_CHUNK }).await.unwrap();
    world.desktop().fetcher.stop();
}

/// The cache holds what can be fetched again, and a sync what frees space.
#[tokio::test(flavor = "multi_thread")]
async fn a_sync_that_finds_the_disk_full_has_the_cache_give_space_back() {
    for nth in 1.. {
        let mut world = World::new(vec![1], SystemMode::Own);
        let chunk = [7; CHUNK];
        world.desktop().cache.insert(ChunkId::of_chunk(&chunk), &chunk).unwrap();
        world.apply(&Op::Write { home: true, sector: 0, len: 8 }).await.unwrap();
        world.candidates.push([world.synced_system(), world.expected[1].now()]);
        world.volume.be_full_once_at(nth);
        let synced = syncer(&world.server).sync(world.desktop(), None).await;
        synced.unwrap_or_else(|error| panic!("no space at write {nth}: {error}"));
        world.desktop().fetcher.stop();
        if world.volume.is_yet_to_be_full() {
            assert!(nth > 5, "a sync freezes, notes and folds");
            return;
        }
        assert_eq!(world.check_head().await.unwrap()[1], world.expected[1].now());
    }
}

/// The overlays that held it are gone then, and nobody may be there to be asked.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_pinned_desktop_syncs_is_pinned_for_good_before_its_overlays_go() {
    const PER_CHUNK: usize = CHUNK / SECTOR;
    let mut folds = 0;
    for nth in 1.. {
        let mut world = World::new(vec![1], SystemMode::Own);
        world.desktop().store.set_pinned(true, None).unwrap();
        for chunk in 1..3 {
            let sector = chunk * PER_CHUNK;
            world.apply(&Op::Write { home: true, sector, len: PER_CHUNK }).await.unwrap();
        }
        let before = world.volume.syncs();
        world.volume.fail_sync(before + nth);
        let synced = syncer(&world.server).sync(world.desktop(), None).await;
        let is_through = world.volume.syncs() < before + nth;
        assert!(synced.is_ok() || !is_through);
        let record = world.desktop().store.record();
        let is_folded = world.desktop().store.version(record.head).unwrap().manifest.sequence > 1;
        if is_folded {
            folds += 1;
            // What a power cut would leave of the cache: nothing that this process has yet to write.
            let copy = tempfile::tempdir().unwrap();
            let directory = world.dir.path().join((world.turn - 1).to_string());
            for name in ["cache.data", "cache.index"] {
                std::fs::copy(directory.join(name), copy.path().join(name)).unwrap();
            }
            let cache = Cache::open_as_it_is(copy.path(), ChunkSize::new(CHUNK as u64).unwrap(), &[0; 32]);
            assert_eq!(cache.unwrap().stats().pinned, 2, "when the {nth}. sync of the volume fails");
            // It is there without a network, whatever else needs the space.
            world.desktop().cache.give_back(u64::MAX);
            world.server.lose_network_after(Some(0));
            let sectors = PER_CHUNK..3 * PER_CHUNK;
            let read =
                tokio::time::timeout(std::time::Duration::from_secs(60), world.read(true, sectors.clone()));
            let found = read.await.expect("it is here").unwrap();
            assert_eq!(found, world.expected[1].now()[sectors]);
        }
        world.desktop().fetcher.stop();
        if is_through {
            assert!(is_folded && folds > 1, "a fold that fails may be one all the same");
            return;
        }
    }
}

fn cases() -> u32 {
    std::env::var("SATCHEL_MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(500)
}

fn run(ops: &[Op], choices: Vec<u32>, mode: SystemMode) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let outcome = runtime.block_on(async {
        let mut world = World::new(choices, mode);
        for op in ops {
            world.apply(op).await?;
        }
        world.sync(None).await?;
        world.desktop().fetcher.stop();
        Ok(())
    });
    runtime.shutdown_background();
    outcome
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_desktop_behaves_as_an_array_of_bytes(
        ops in prop::collection::vec(op(), 1..25),
        choices in prop::collection::vec(any::<u32>(), 32),
    ) {
        run(&ops, choices, SystemMode::Own)?;
    }

    /// What is written to its system disk is there until the machine is off, in no version, and gone at the next start, whatever
    /// happens in between; its home is as any other.
    #[test]
    fn a_desktop_that_renews_its_system_forgets_only_that(
        ops in prop::collection::vec(op(), 1..25),
        choices in prop::collection::vec(any::<u32>(), 32),
    ) {
        run(&ops, choices, SystemMode::Renew)?;
    }
}
