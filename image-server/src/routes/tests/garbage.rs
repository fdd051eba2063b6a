//! Retention and garbage collection beside uploads, against a model.
//!
//! Clients upload and commit in small steps; between any two of them versions are pruned and garbage is collected, at a
//! clock that jumps. After every step all that is kept must verify. A client that is told something lacks begins anew, as
//! the real one does; it may be set back, but what it was told is committed must stay whole.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chunk_format::{
    ChunkId, ChunkSize, DiskSize, FrameEncoder, Manifest, ManifestId, PackBuilder, SEGMENT_CHUNKS, SegmentId,
};

use super::Fixture;
use crate::clock::now_ms;
use crate::gc::{GcError, Options, Report, Run};
use crate::limits::Limits;
use crate::retention::{Policy, Pruning, prune_in};
use crate::testing;
use crate::verify::{Part, Progress, check};

const HOUR_MS: i64 = 60 * 60 * 1000;
/// Chunks there are to choose from: few, so that series share them.
const CHUNKS: u64 = 30;
const CHUNKS_PER_SEGMENT: u64 = 4;
const SEGMENTS: usize = 2;

struct Silent;

impl Progress for Silent {
    fn begin(&self, _part: Part, _total: u64) {}
    fn advance(&self, _steps: u64) {}
}

/// Xorshift: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        let mut random = Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..8).for_each(|_| _ = random.next());
        random
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }
}

/// The numbered chunks of a segment.
type Content = Vec<u64>;

/// A committed version that is kept.
#[derive(Clone)]
struct Kept {
    manifest: Manifest,
    contents: Vec<Content>,
}

/// An image or a desktop, and its versions that are kept, oldest first.
struct Series {
    path: String,
    namespace: &'static str,
    also: &'static str,
    /// Owner and name; none for the image.
    desktop: Option<(&'static str, &'static str)>,
    token: String,
    key: u8,
    versions: Vec<Kept>,
}

/// A version on its way.
struct Upload {
    series: usize,
    stage: Stage,
    before: Vec<Content>,
    contents: Vec<Content>,
    parent: Option<Manifest>,
    base: Option<ManifestId>,
    note: Option<String>,
    begun: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    Ask,
    SendPack(Vec<u64>),
    SendSegment(usize),
    Commit,
}

struct World {
    fixture: Fixture,
    series: Vec<Series>,
    uploads: Vec<Upload>,
    random: Random,
    /// How far the collector's clock is ahead, milliseconds.
    ahead_ms: i64,
    begun: u64,
    collected: Report,
}

impl World {
    async fn new(seed: u64) -> Self {
        let fixture = Fixture::empty(Limits::default(), None).await;
        let desktop = |owner: &'static str, name: &'static str, token: &str, key| Series {
            path: format!("/v1/desktops/{name}/versions"),
            namespace: if owner == "alice" { "user/alice" } else { "user/bob" },
            also: "?also=image/debian",
            desktop: Some((owner, name)),
            token: token.to_owned(),
            key,
            versions: Vec::new(),
        };
        let image = Series {
            path: "/v1/images/debian/versions?channel=stable".to_owned(),
            namespace: "image/debian",
            also: "",
            desktop: None,
            token: fixture.tokens.publisher.clone(),
            key: testing::PUBLISHER_KEY,
            versions: Vec::new(),
        };
        let series = vec![
            image,
            desktop("alice", "work", &fixture.tokens.alice, 2),
            desktop("alice", "play", &fixture.tokens.alice, 3),
            desktop("bob", "work", &fixture.tokens.bob, 4),
        ];
        let (random, collected) = (Random::new(seed), Report::default());
        let mut world =
            Self { fixture, series, uploads: Vec::new(), random, ahead_ms: 0, begun: 0, collected };
        world.begin(0);
        world.finish_uploads().await;
        world
    }

    /// Begins a version of a series on its head.
    fn begin(&mut self, series: usize) {
        let head = self.series[series].versions.last();
        let golden = self.series[0].versions.last();
        if self.series[series].desktop.is_some() && golden.is_none() {
            return;
        }
        let before = head.map_or_else(|| vec![Vec::new(); SEGMENTS], |head| head.contents.clone());
        let parent = head.map(|head| head.manifest.clone());
        let (mut base, mut contents) = (None, before.clone());
        if self.series[series].desktop.is_some() {
            let stands_on = parent.as_ref().and_then(|parent| parent.base.as_ref()).map(|base| base.version);
            let golden = golden.unwrap();
            base = stands_on;
            if stands_on.is_none() || self.random.below(4) == 0 {
                // Its system disk becomes the newest golden one.
                base = Some(id_of(&golden.manifest));
                contents[0] = golden.contents[0].clone();
            }
        }
        for content in &mut contents {
            if self.random.below(3) == 0 && parent.is_some() {
                continue;
            }
            content.resize(usize::try_from(CHUNKS_PER_SEGMENT).unwrap(), 0);
            let at = self.random.index(content.len());
            content[at] = 1 + self.random.below(CHUNKS);
            if content.contains(&0) {
                content.iter_mut().for_each(|chunk| *chunk = (*chunk).max(1));
            }
        }
        let note = (self.random.below(8) == 0).then(|| "to be kept".to_owned());
        self.begun += 1;
        let begun = self.begun;
        self.uploads.push(Upload { series, stage: Stage::Ask, before, contents, parent, base, note, begun });
    }

    /// Takes one step of an upload; it is done when it is committed or lost the race.
    async fn advance(&mut self, at: usize) {
        let upload = &mut self.uploads[at];
        let series = &mut self.series[upload.series];
        let fixture = &self.fixture;
        match upload.stage.clone() {
            Stage::Ask => {
                // Only what was changed is asked for: what the parent has is taken as there.
                let known: HashSet<u64> = upload.before.iter().flatten().copied().collect();
                let mut new: Vec<u64> = upload.contents.iter().flatten().copied().collect();
                new.sort_unstable();
                new.dedup();
                new.retain(|chunk| !known.contains(chunk));
                let ids: Vec<u8> = new.iter().flat_map(|chunk| *chunk_id(*chunk).as_bytes()).collect();
                let path = format!("/v1/missing/{}/chunks{}", series.namespace, series.also);
                let bitmap = fixture.post(&path, &series.token, &ids).await.done(200).body;
                let mut at = 0..;
                new.retain(|_| {
                    let at = at.next().unwrap();
                    bitmap[at / 8] >> (at % 8) & 1 == 1
                });
                upload.stage = if new.is_empty() { Stage::SendSegment(0) } else { Stage::SendPack(new) };
            }
            Stage::SendPack(chunks) => {
                let pack = pack_of(&chunks);
                let path = format!("/v1/data/{}/packs/{}", series.namespace, pack.id);
                let status = fixture.put(&path, &series.token, &pack.bytes).await.status;
                assert!(status == 200 || status == 201, "{status}");
                upload.stage = Stage::SendSegment(0);
            }
            Stage::SendSegment(segment) if segment < SEGMENTS => {
                upload.stage = Stage::SendSegment(segment + 1);
                if upload.parent.is_some() && upload.before[segment] == upload.contents[segment] {
                    return;
                }
                let (id, frame) = segment_of(&upload.contents[segment]);
                let path = format!("/v1/data/{}/segments/{id}{}", series.namespace, series.also);
                let answer = fixture.put(&path, &series.token, &frame).await;
                if answer.status == 409 {
                    answer.refused(409, "chunks_missing");
                    upload.stage = Stage::Ask;
                    upload.before = vec![Vec::new(); SEGMENTS];
                    return;
                }
                assert!(answer.status == 200 || answer.status == 201, "{:?}", answer.body);
            }
            Stage::SendSegment(_) => upload.stage = Stage::Commit,
            Stage::Commit => {
                let manifest = manifest_of(series, upload);
                let answer = fixture.commit(&series.path, &series.token, &manifest, series.key).await;
                match answer.status.as_u16() {
                    201 => {
                        series.versions.push(Kept { manifest, contents: upload.contents.clone() });
                        self.uploads.remove(at);
                    }
                    409 if answer.json()["error"]["code"] == "segments_missing" => {
                        upload.stage = Stage::Ask;
                        upload.before = vec![Vec::new(); SEGMENTS];
                    }
                    409 => {
                        answer.refused(409, "head_moved");
                        self.uploads.remove(at);
                    }
                    // The golden version it is to stand on was pruned.
                    _ => {
                        let message = answer.refused(400, "bad_request");
                        assert!(message.contains("is no version of image"), "{message}");
                        self.uploads.remove(at);
                    }
                }
            }
        }
    }

    /// Without anyone between its steps, an upload ends well within a few.
    async fn finish_uploads(&mut self) {
        for _ in 0..100 {
            if self.uploads.is_empty() {
                return;
            }
            self.advance(0).await;
        }
        let upload = &self.uploads[0];
        panic!("upload {} does not end; it is at {:?}", upload.begun, upload.stage);
    }

    /// What is kept can be gone back to, at once.
    async fn roll_back(&mut self, series: usize) {
        let series = &mut self.series[series];
        if series.versions.is_empty() {
            return;
        }
        let old = series.versions[self.random.index(series.versions.len())].clone();
        let head = &series.versions.last().unwrap().manifest;
        let note = format!("rolled back to version {}", old.manifest.sequence);
        let next = testing::next(head, &note);
        let manifest = Manifest { disks: old.manifest.disks, base: old.manifest.base, ..next };
        self.fixture.commit(&series.path, &series.token, &manifest, series.key).await.done(201);
        series.versions.push(Kept { manifest, contents: old.contents });
    }

    async fn prune(&mut self) {
        let keep_last = u32::try_from(self.random.below(4)).unwrap();
        let policy = Some(Policy { keep_last, ..Policy::NONE });
        let only = match self.random.below(4) {
            0 => Some("user/alice".parse().unwrap()),
            1 => Some("image/debian".parse().unwrap()),
            _ => None,
        };
        let wish = Pruning { policy, set: false, only, dry_run: self.random.below(6) == 0 };
        let now = now_ms() + self.ahead_ms;
        let report = match prune_in(&self.fixture.app.database, &wish, now).await {
            Ok(report) => report,
            Err(crate::retention::RetentionError::NoSuch { .. }) => return,
            Err(error) => panic!("{error}"),
        };
        if report.dry_run {
            return;
        }
        let pruned: HashSet<ManifestId> = report.pruned.iter().map(|version| version.id).collect();
        for series in &mut self.series {
            let (first, head) = (series.versions.first(), series.versions.last());
            assert!(head.is_none_or(|head| !pruned.contains(&id_of(&head.manifest))));
            if series.desktop.is_some() {
                assert!(first.is_none_or(|first| !pruned.contains(&id_of(&first.manifest))));
            }
            series.versions.retain(|version| {
                let gone = pruned.contains(&id_of(&version.manifest));
                let named = version.manifest.note.as_deref() == Some("to be kept");
                assert!(!(gone && named && series.desktop.is_some()), "a version with a note was pruned");
                !gone
            });
        }
        let golden: HashSet<ManifestId> =
            self.series[0].versions.iter().map(|version| id_of(&version.manifest)).collect();
        let bases = self.series[1..].iter().flat_map(|series| &series.versions);
        for base in bases.filter_map(|version| version.manifest.base.as_ref()) {
            assert!(golden.contains(&base.version), "a golden version that is stood on was pruned");
        }
    }

    async fn collect(&mut self, grace: Duration, cut: Option<usize>) {
        let options = Options { grace, dry_run: self.random.below(8) == 0, leftovers: false };
        self.collect_with(options, cut).await;
    }

    /// Whether it came to its end.
    async fn collect_with(&mut self, options: Options, cut: Option<usize>) -> bool {
        let app = &self.fixture.app;
        let now = now_ms() + self.ahead_ms;
        let mut run = Run::new(app.database.clone(), app.storage.clone(), options, now).await.unwrap();
        if let Some(steps) = cut {
            run.cut_before_step(steps);
        }
        match run.collect().await {
            Ok(report) => {
                let (sum, new) = (&mut self.collected.deleted, report.deleted);
                if !report.dry_run {
                    sum.segments += new.segments;
                    sum.packs += new.packs;
                    sum.versions += new.versions;
                }
                true
            }
            Err(GcError::Cut) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Everything that is kept is whole, and what is listed is what is kept.
    async fn assert_whole(&self, step: &str) {
        let app = &self.fixture.app;
        let report = check(app.database.clone(), app.storage.clone(), &Silent).await.unwrap();
        assert!(report.findings.is_empty(), "after {step}: {:#?}", report.findings);
        let kept: usize = self.series.iter().map(|series| series.versions.len()).sum();
        assert_eq!(report.versions, kept as u64, "after {step}");
        for series in self.series.iter().filter(|series| !series.versions.is_empty()) {
            let path = series.path.split('?').next().unwrap();
            let listed = self.fixture.get(&format!("{path}?limit=100"), &series.token).await.done(200).json();
            let listed: Vec<u64> = listed["versions"]
                .as_array()
                .unwrap()
                .iter()
                .map(|version| version["sequence"].as_u64().unwrap())
                .collect();
            let kept: Vec<u64> =
                series.versions.iter().rev().map(|version| version.manifest.sequence).collect();
            assert_eq!(listed, kept, "after {step}");
        }
    }

    async fn step(&mut self) -> String {
        match self.random.below(20) {
            0..=2 => {
                let series = self.random.index(self.series.len());
                self.begin(series);
                format!("beginning an upload to series {series}")
            }
            3 => {
                let series = self.random.index(self.series.len());
                self.roll_back(series).await;
                format!("rolling back series {series}")
            }
            4 | 5 => {
                self.prune().await;
                "pruning".to_owned()
            }
            6 => {
                self.ahead_ms += i64::try_from(self.random.below(40)).unwrap() * HOUR_MS;
                "waiting".to_owned()
            }
            7..=9 => {
                let grace = Duration::from_secs(3600 * [0, 0, 1, 24][self.random.index(4)]);
                let cut = (self.random.below(2) == 0).then(|| self.random.index(30));
                self.collect(grace, cut).await;
                format!("collecting with a grace of {grace:?}, cut {cut:?}")
            }
            _ if self.uploads.is_empty() => "nothing".to_owned(),
            _ => {
                let at = self.random.index(self.uploads.len());
                let stage = self.uploads[at].stage.clone();
                self.advance(at).await;
                format!("an upload's step {stage:?}")
            }
        }
    }
}

fn id_of(manifest: &Manifest) -> ManifestId {
    ManifestId::of(&manifest.encode().unwrap())
}

/// Small ones: everything is read again after every step.
fn chunk_size() -> ChunkSize {
    ChunkSize::from_log2(12).unwrap()
}

fn chunk_id(number: u64) -> ChunkId {
    ChunkId::of_chunk(&testing::chunk(number, chunk_size()))
}

fn pack_of(chunks: &[u64]) -> chunk_format::SealedPack {
    let mut encoder = FrameEncoder::new().unwrap();
    let mut builder = PackBuilder::new(chunk_size());
    for chunk in chunks {
        let bytes = testing::chunk(*chunk, chunk_size());
        builder.add(chunk_id(*chunk), &bytes, &mut encoder).unwrap();
    }
    builder.seal().unwrap()
}

fn segment_of(content: &Content) -> (SegmentId, Vec<u8>) {
    testing::segment(content.iter().map(|chunk| chunk_id(*chunk)).collect())
}

fn manifest_of(series: &Series, upload: &Upload) -> Manifest {
    let segments = upload.contents.iter().map(|content| segment_of(content).0).collect();
    let mut manifest = match (series.desktop, upload.base) {
        (Some((owner, name)), Some(base)) => testing::desktop_manifest(owner, name, "debian", base, segments),
        _ => testing::image_manifest("debian", segments),
    };
    for disk in &mut manifest.disks {
        let chunks = (disk.segments.len() * SEGMENT_CHUNKS) as u64;
        disk.chunk_size = chunk_size();
        disk.size = DiskSize::new(chunks * chunk_size().bytes_u64()).unwrap();
    }
    let parent = upload.parent.as_ref().map(id_of);
    let sequence = upload.parent.as_ref().map_or(1, |parent| parent.sequence + 1);
    // Two uploads of the same content differ in their time, as two machines' do.
    let created_ms = manifest.created_ms + upload.begun;
    Manifest { parent, sequence, created_ms, note: upload.note.clone(), ..manifest }
}

async fn run_seed(seed: u64, steps: usize) -> Report {
    let mut world = World::new(seed).await;
    for at in 0..steps {
        let step = world.step().await;
        world.assert_whole(&format!("step {at} of seed {seed}, {step}")).await;
    }
    world.finish_uploads().await;
    world.assert_whole(&format!("the uploads of seed {seed}")).await;
    only_what_is_needed_stays(&mut world).await;
    world.collected
}

/// In the end nothing is stored but what is kept: two runs, far enough apart.
async fn only_what_is_needed_stays(world: &mut World) {
    let options = Options { grace: Duration::ZERO, ..Options::default() };
    for _ in 0..2 {
        world.ahead_ms += HOUR_MS;
        assert!(world.collect_with(options, None).await);
    }
    world.assert_whole("the last collection").await;
    let mut needed: HashMap<&str, HashSet<SegmentId>> = HashMap::new();
    for series in &world.series {
        for version in &series.versions {
            let segments = version.manifest.disks.iter().flat_map(|disk| &disk.segments);
            needed.entry(series.namespace).or_default().extend(segments.filter(|id| !id.is_zero()));
        }
    }
    for (namespace, needed) in &needed {
        for name in world.fixture.files(&format!("{namespace}/segments")) {
            let id: SegmentId = name.parse().unwrap();
            let by_desktops = needed_by_others(world, namespace, id) && namespace.starts_with("image/");
            assert!(needed.contains(&id) || by_desktops, "{namespace}/segments/{id} is needed by nothing");
        }
    }
}

fn needed_by_others(world: &World, namespace: &str, id: SegmentId) -> bool {
    let others = world.series.iter().filter(|series| series.namespace != namespace);
    others
        .flat_map(|series| &series.versions)
        .any(|version| version.manifest.disks.iter().any(|disk| disk.segments.contains(&id)))
}

#[tokio::test]
async fn what_is_kept_stays_whole_whatever_is_pruned_and_collected_between_uploads() {
    let mut deleted = 0;
    for seed in 1..=3 {
        deleted += run_seed(seed, 60).await.deleted.packs;
    }
    assert!(deleted > 0, "no run deleted anything");
}

#[tokio::test]
async fn a_collection_cut_short_at_any_step_leaves_what_is_kept_whole_and_the_next_one_goes_on() {
    let options = Options { grace: Duration::ZERO, ..Options::default() };
    let policy = Some(Policy { keep_last: 1, ..Policy::NONE });
    let mut world = World::new(100).await;
    // Every step of the beginning, then every fourth: a cycle takes a while.
    for cut in (0..12).chain((12..).step_by(4)) {
        for series in [1, 3] {
            world.begin(series);
            world.finish_uploads().await;
        }
        let wish = Pruning { policy, ..Pruning::default() };
        let report = prune_in(&world.fixture.app.database, &wish, now_ms() + world.ahead_ms).await.unwrap();
        let pruned: HashSet<ManifestId> = report.pruned.iter().map(|version| version.id).collect();
        for series in &mut world.series {
            series.versions.retain(|version| !pruned.contains(&id_of(&version.manifest)));
        }
        // The first run condemns, the second deletes; a cut falls into either.
        let mut ended = true;
        for run in 0..2 {
            world.ahead_ms += HOUR_MS;
            ended &= world.collect_with(options, ended.then_some(cut)).await;
            world.assert_whole(&format!("run {run}, cut before step {cut}")).await;
        }
        if ended {
            assert!(cut > 10, "only {cut} steps were cut");
            break;
        }
        // Uploads go on beside what the cut left, and the next runs end what it began.
        world.begin(1);
        world.finish_uploads().await;
        world.assert_whole(&format!("an upload after a cut before step {cut}")).await;
        only_what_is_needed_stays(&mut world).await;
    }
}

#[tokio::test]
async fn what_is_condemned_can_be_read_until_the_grace_is_over_and_an_upload_takes_it_back() {
    let mut world = World::new(200).await;
    world.begin(1);
    world.finish_uploads().await;
    world.begin(1);
    world.uploads[0].contents[1] = vec![CHUNKS + 1; 4];
    let (id, _) = segment_of(&world.uploads[0].contents[1]);
    while world.uploads[0].stage != Stage::Commit {
        world.advance(0).await;
    }
    let alice = world.fixture.tokens.alice.clone();
    let path = format!("/v1/data/user/alice/segments/{id}");
    world.fixture.get(&path, &alice).await.done(200);
    let grace = Options { grace: Duration::from_secs(3600), ..Options::default() };
    world.collect_with(grace, None).await;
    assert!(!is_missing(&world, id).await, "it was sent within the grace");
    world.ahead_ms += 2 * HOUR_MS;
    world.collect_with(grace, None).await;
    assert!(is_missing(&world, id).await);
    world.fixture.get(&path, &alice).await.done(200);
    world.advance(0).await;
    assert_eq!(world.uploads[0].stage, Stage::Ask, "the commit was refused");
    world.finish_uploads().await;
    assert!(!is_missing(&world, id).await);
    world.ahead_ms += 2 * HOUR_MS;
    world.collect_with(grace, None).await;
    world.assert_whole("two collections").await;
    world.fixture.get(&path, &alice).await.done(200);
}

#[tokio::test]
async fn a_dry_run_counts_what_a_run_does_and_holds_nobody_up() {
    let mut world = World::new(600).await;
    for (series, number) in [1, 2].into_iter().cycle().zip(1..=8) {
        world.begin(series);
        world.uploads[0].note = None;
        // What no other version has.
        world.uploads[0].contents[1] = vec![CHUNKS + number; 4];
        world.finish_uploads().await;
    }
    let database = world.fixture.app.database.clone();
    let mut tx = database.begin().await.unwrap();
    for sql in [
        "DELETE FROM segment_packs WHERE segment_id % 2 = 0",
        "UPDATE segments SET has_packs = 0 WHERE id % 2 = 0",
    ] {
        sqlx::query(sql).execute(&mut *tx).await.unwrap();
    }
    crate::database::commit(tx).await.unwrap();
    let wish = Pruning { policy: Some(Policy { keep_last: 1, ..Policy::NONE }), ..Pruning::default() };
    prune_in(&database, &wish, now_ms()).await.unwrap();
    let run = async |dry_run, hours: i64| {
        let options = Options { grace: Duration::ZERO, dry_run, leftovers: false };
        let now = now_ms() + hours * HOUR_MS;
        let storage = world.fixture.app.storage.clone();
        Run::new(database.clone(), storage, options, now).await.unwrap().collect().await.unwrap()
    };
    let (mut condemned, mut deleted) = (0, 0);
    for hours in [1, 2] {
        // Somebody else writes all the while.
        let writing = database.begin().await.unwrap();
        let would = run(true, hours).await;
        drop(writing);
        let did = run(false, hours).await;
        assert_eq!((would.condemned, would.deleted), (did.condemned, did.deleted));
        assert_eq!(would.kept_versions, did.kept_versions);
        condemned += did.condemned.packs;
        deleted += did.deleted.packs;
    }
    assert!(condemned > 0 && deleted > 0, "{condemned} packs were condemned and {deleted} deleted");
}

async fn is_missing(world: &World, id: SegmentId) -> bool {
    let path = "/v1/missing/user/alice/segments";
    world.fixture.post(path, &world.fixture.tokens.alice, id.as_bytes()).await.done(200).body[0] == 1
}

#[tokio::test]
async fn a_desktops_owner_decides_what_is_kept_of_it() {
    let mut world = World::new(300).await;
    for series in [1, 1, 1, 1, 2, 2, 2, 2] {
        world.begin(series);
        world.uploads[0].note = None;
        world.finish_uploads().await;
    }
    let (alice, bob) = (world.fixture.tokens.alice.clone(), world.fixture.tokens.bob.clone());
    let path = "/v1/desktops/work/retention";
    let answer = world.fixture.get(path, &alice).await.done(200).json();
    assert_eq!((&answer["own"], &answer["policy"]["keep_last"]), (&false.into(), &10.into()));
    let answer = world.fixture.put(path, &alice, br#"{"keep_last": 3}"#).await.done(200).json();
    assert_eq!((&answer["own"], &answer["policy"]["keep_daily"]), (&true.into(), &0.into()));
    world.fixture.put(path, &alice, br#"{"keep_all": 3}"#).await.refused(400, "bad_request");
    world.fixture.put("/v1/desktops/play/retention", &bob, br#"{}"#).await.refused(404, "not_found");

    let policy = Some(Policy { keep_last: 1, ..Policy::NONE });
    let wish = Pruning { policy, ..Pruning::default() };
    let report = prune_in(&world.fixture.app.database, &wish, now_ms()).await.unwrap();
    let pruned = |name: &str| {
        let of_name = report.pruned.iter().filter(|version| version.name.as_str() == name);
        of_name.map(|version| version.sequence).collect::<Vec<_>>()
    };
    // The first and the newest are always kept.
    assert_eq!(pruned("work"), [0; 0], "three and the first");
    assert_eq!(pruned("play"), [3, 2]);
    let all = world.fixture.get("/v1/desktops/play/versions?pruned=true", &alice).await.done(200).json();
    assert_eq!(all["versions"].as_array().unwrap().len(), 4);
    assert!(all["versions"][1]["pruned_ms"].is_i64() && all["versions"][0]["pruned_ms"].is_null());
    let send = world.fixture.send(axum::http::Method::DELETE, path, &alice, b"").await.done(200).json();
    assert_eq!(send["own"], false);
}

#[tokio::test]
async fn listings_say_what_a_version_brought_and_what_it_stands_on() {
    let fixture = Fixture::new().await;
    let listed = fixture.get("/v1/desktops/work/versions", &fixture.tokens.alice).await.done(200).json();
    let version = &listed["versions"][0];
    let len = fixture.desktop.pack_bytes.len() + fixture.desktop.segment_frame.len();
    assert_eq!(version["stored_bytes"], len, "its pack and its segment");
    assert_eq!(version["golden"]["image"], "debian");
    assert_eq!(version["golden"]["sequence"], 1);
    let next = testing::next(&fixture.desktop.manifest, "nothing new");
    let answer = fixture.commit("/v1/desktops/work/versions", &fixture.tokens.alice, &next, 2).await;
    assert_eq!(answer.done(201).json()["stored_bytes"], 0);
    fixture
        .get("/v1/desktops/work/versions?pruned=yes", &fixture.tokens.alice)
        .await
        .refused(400, "bad_request");
}

#[tokio::test]
async fn segments_older_than_the_table_of_packs_keep_theirs() {
    let mut world = World::new(400).await;
    for series in [1, 1, 1] {
        world.begin(series);
        world.finish_uploads().await;
    }
    let mut tx = world.fixture.app.database.begin().await.unwrap();
    sqlx::query("DELETE FROM segment_packs").execute(&mut *tx).await.unwrap();
    sqlx::query("UPDATE segments SET has_packs = 0").execute(&mut *tx).await.unwrap();
    crate::database::commit(tx).await.unwrap();
    only_what_is_needed_stays(&mut world).await;
    assert_eq!(world.collected.deleted.packs, 0);
}

#[tokio::test]
async fn a_profile_that_was_replaced_goes_with_its_streams_and_the_newest_stays() {
    let fixture = Fixture::new().await;
    let publisher = &fixture.tokens.publisher;
    let new_stream = b"what a start touches after an update";
    let path = |bytes: &[u8]| format!("/v1/data/image/debian/streams/{}", chunk_format::StreamId::of(bytes));
    fixture.put(&path(new_stream), publisher, new_stream).await.done(201);
    let profile = testing::profile(fixture.image.version, &[new_stream], testing::PUBLISHER_KEY);
    let replaced = chunk_format::ProfileId::of(&fixture.profile().0);
    fixture.attach(fixture.image.version, publisher, &profile).await.done(201);
    let options = Options { grace: Duration::from_secs(3600), ..Options::default() };
    let app = &fixture.app;
    for hours in [0, 2, 4] {
        let old = format!("/v1/data/image/debian/profiles/{replaced}");
        let is_there = fixture.get(&old, publisher).await.status == 200;
        assert_eq!(is_there, hours < 4, "after {hours} hours");
        let now = now_ms() + hours * HOUR_MS;
        let run = Run::new(app.database.clone(), app.storage.clone(), options, now).await;
        run.unwrap().collect().await.unwrap();
        let report = check(app.database.clone(), app.storage.clone(), &Silent).await.unwrap();
        assert!(report.findings.is_empty(), "after {hours} hours: {:#?}", report.findings);
    }
    fixture.get(&path(new_stream), publisher).await.done(200);
    fixture.get(&path(super::BOOT_STREAM), publisher).await.refused(404, "not_found");
}

#[tokio::test]
async fn chunks_that_went_with_one_pack_come_back_with_another_that_holds_them() {
    let fixture = Fixture::empty(Limits::default(), None).await;
    let (app, publisher) = (&fixture.app, &fixture.tokens.publisher);
    let send = async |pack: &chunk_format::SealedPack| {
        fixture.put(&format!("/v1/data/image/debian/packs/{}", pack.id), publisher, &pack.bytes).await
    };
    let (unneeded, needed) = (testing::pack(0..10), testing::pack(5..15));
    send(&unneeded).await.done(201);
    send(&needed).await.done(201);
    let (segment, frame) = testing::segment_of(10..15);
    let path = format!("/v1/data/image/debian/segments/{segment}");
    fixture.put(&path, publisher, &frame).await.done(201);
    let manifest = testing::image_manifest("debian", vec![segment]);
    let path = "/v1/images/debian/versions";
    fixture.commit(path, publisher, &manifest, testing::PUBLISHER_KEY).await.done(201);

    let options = Options { grace: Duration::ZERO, ..Options::default() };
    let run = Run::new(app.database.clone(), app.storage.clone(), options, now_ms()).await;
    assert_eq!(run.unwrap().collect().await.unwrap().condemned.packs, 1);
    let ids: Vec<u8> = (0..15).flat_map(|number| *testing::chunk_id(number).as_bytes()).collect();
    let missing =
        async || fixture.post("/v1/missing/image/debian/chunks", publisher, &ids).await.done(200).body;
    let verified = async || check(app.database.clone(), app.storage.clone(), &Silent).await.unwrap();
    assert_eq!(missing().await, &[0xff, 0x03][..]);
    let report = verified().await;
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert_eq!(report.unindexed_chunks, 5);
    send(&needed).await.done(200);
    assert_eq!(missing().await, &[0x1f, 0x00][..]);
    assert_eq!(verified().await.unindexed_chunks, 0);
}
