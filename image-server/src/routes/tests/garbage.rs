//! Retention and garbage collection beside uploads, against a model.
//!
//! Clients upload and commit in small steps; between any two of them versions are pruned and garbage is collected, at a
//! clock that jumps. After every step all that is kept must verify. A client that is told something lacks begins anew, as
//! the real one does; it may be set back, but what it was told is committed must stay whole.

mod model;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chunk_format::{ManifestId, SegmentId};

use self::model::{CHUNKS, HOUR_MS, Stage, World, id_of, segment_of};
use super::Fixture;
use crate::clock::now_ms;
use crate::gc::{GcError, Options, Report, Run};
use crate::limits::Limits;
use crate::retention::{Policy, Pruning, prune_in};
use crate::testing;
use crate::verify::{Part, Progress, check};

struct Silent;

impl Progress for Silent {
    fn begin(&self, _part: Part, _total: u64) {}
    fn advance(&self, _steps: u64) {}
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
    world.ahead_ms += 13 * HOUR_MS;
    world.collect_with(grace, None).await;
    assert!(!is_missing(&world, id).await, "its upload may still be under way");
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
async fn the_grace_begins_when_something_is_condemned_however_long_the_run_took_until_then() {
    let fixture = Fixture::empty(Limits::default(), None).await;
    let (app, publisher) = (&fixture.app, &fixture.tokens.publisher);
    let pack = testing::pack(0..5);
    let path = format!("/v1/data/image/debian/packs/{}", pack.id);
    fixture.put(&path, publisher, &pack.bytes).await.done(201);
    let (segment, frame) = testing::segment_of(0..5);
    let path = format!("/v1/data/image/debian/segments/{segment}");
    fixture.put(&path, publisher, &frame).await.done(201);
    let stream = b"named by no profile";
    let path = format!("/v1/data/image/debian/streams/{}", chunk_format::StreamId::of(stream));
    fixture.put(&path, publisher, stream).await.done(201);
    let options = Options { grace: Duration::ZERO, ..Options::default() };
    let begun = now_ms();
    let mut run = Run::new(app.database.clone(), app.storage.clone(), options, begun).await.unwrap();
    let took = Duration::from_millis(50);
    tokio::time::sleep(took).await;
    run.collect().await.unwrap();
    for sql in [
        "SELECT condemned_ms FROM packs",
        "SELECT condemned_ms FROM segments",
        "SELECT condemned_ms FROM streams",
    ] {
        let condemned: Option<i64> = sqlx::query_scalar(sql).fetch_one(app.database.readers()).await.unwrap();
        let after = condemned.unwrap_or_else(|| panic!("{sql}: not condemned")) - begun;
        assert!(after >= i64::try_from(took.as_millis()).unwrap(), "{sql}: {after} ms after the beginning");
    }
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
    let padded = |len: usize| format!("{:len$}", r#"{"keep_last": 3}"#).into_bytes();
    world.fixture.put(path, &alice, &padded(1024)).await.done(200);
    world.fixture.put(path, &alice, &padded(1025)).await.refused(413, "too_large");
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
async fn what_a_cut_run_left_of_a_profile_that_nobody_reads_keeps_no_later_run_from_its_work() {
    for is_replaced in [true, false] {
        let fixture = Fixture::new().await;
        let app = &fixture.app;
        if is_replaced {
            let profile = testing::profile(fixture.image.version, &[], testing::PUBLISHER_KEY);
            fixture.attach(fixture.image.version, &fixture.tokens.publisher, &profile).await.done(201);
        } else {
            let mut tx = app.database.begin().await.unwrap();
            sqlx::query("UPDATE versions SET pruned_ms = ? WHERE base_version_id IS NULL")
                .bind(now_ms())
                .execute(&mut *tx)
                .await
                .unwrap();
            crate::database::commit(tx).await.unwrap();
        }
        let run = async |grace| {
            let options = Options { grace, ..Options::default() };
            Run::new(app.database.clone(), app.storage.clone(), options, now_ms()).await.unwrap()
        };
        let mut cut = run(Duration::ZERO).await;
        // The profile is gone, its row is there. Pruned versions are looked for before profiles that were replaced.
        cut.cut_before_step(if is_replaced { 3 } else { 2 });
        assert!(matches!(cut.collect().await, Err(GcError::Cut)));
        let lost = format!("profiles/{}", chunk_format::ProfileId::of(&fixture.profile().0));
        assert!(!fixture.dir.path().join("objects/image/debian").join(lost).exists());
        run(Duration::from_secs(3600)).await.collect().await.unwrap();
        let report = check(app.database.clone(), app.storage.clone(), &Silent).await.unwrap();
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
        assert_eq!(run(Duration::ZERO).await.collect().await.unwrap().deleted.profiles, 1);
    }
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
