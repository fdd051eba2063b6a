//! Users who upload, go back, prune and collect in small steps, and what must be kept of it.

use std::collections::HashSet;
use std::time::Duration;

use chunk_format::{
    ChunkId, ChunkSize, DiskSize, FrameEncoder, Manifest, ManifestId, PackBuilder, SEGMENT_CHUNKS, SegmentId,
};

use super::Silent;
use crate::clock::now_ms;
use crate::gc::{GcError, Options, Report, Run};
use crate::limits::Limits;
use crate::retention::{Policy, Pruning, prune_in};
use crate::routes::tests::Fixture;
use crate::testing;
use crate::verify::check;

pub(super) const HOUR_MS: i64 = 60 * 60 * 1000;
/// Chunks there are to choose from: few, so that series share them.
pub(super) const CHUNKS: u64 = 30;
const CHUNKS_PER_SEGMENT: u64 = 4;
const SEGMENTS: usize = 2;

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
pub(super) type Content = Vec<u64>;

/// A committed version that is kept.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) manifest: Manifest,
    contents: Vec<Content>,
}

/// An image or a desktop, and its versions that are kept, oldest first.
pub(super) struct Series {
    path: String,
    pub(super) namespace: &'static str,
    also: &'static str,
    /// Owner and name; none for the image.
    desktop: Option<(&'static str, &'static str)>,
    token: String,
    key: u8,
    pub(super) versions: Vec<Kept>,
}

/// A version on its way.
pub(super) struct Upload {
    series: usize,
    pub(super) stage: Stage,
    before: Vec<Content>,
    pub(super) contents: Vec<Content>,
    parent: Option<Manifest>,
    base: Option<ManifestId>,
    pub(super) note: Option<String>,
    begun: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Ask,
    SendPack(Vec<u64>),
    SendSegment(usize),
    Commit,
}

pub(super) struct World {
    pub(super) fixture: Fixture,
    pub(super) series: Vec<Series>,
    pub(super) uploads: Vec<Upload>,
    random: Random,
    /// How far the collector's clock is ahead, milliseconds.
    pub(super) ahead_ms: i64,
    begun: u64,
    pub(super) collected: Report,
}

impl World {
    pub(super) async fn new(seed: u64) -> Self {
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
    pub(super) fn begin(&mut self, series: usize) {
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
    pub(super) async fn advance(&mut self, at: usize) {
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
    pub(super) async fn finish_uploads(&mut self) {
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
    pub(super) async fn collect_with(&mut self, options: Options, cut: Option<usize>) -> bool {
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
    pub(super) async fn assert_whole(&self, step: &str) {
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

    pub(super) async fn step(&mut self) -> String {
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

pub(super) fn id_of(manifest: &Manifest) -> ManifestId {
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

pub(super) fn segment_of(content: &Content) -> (SegmentId, Vec<u8>) {
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
