//! Every kind of damage, found and named with what it affects.

mod several;

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, header};
use chunk_format::{FrameDecoder, FrameEncoder, Locator, Manifest, ManifestId, SEGMENT_CHUNKS, StreamId};
use tempfile::TempDir;
use tower::ServiceExt;

use super::{Part, Progress, Report, verify};
use crate::server::{Config, Server};
use crate::tokens::{NewToken, issue};
use crate::{Role, gc, init, testing};

/// A stopped server with an image of two versions and a desktop of one.
pub(crate) struct Stored {
    pub(crate) dir: TempDir,
    /// The image's newest version.
    pub(crate) newest: ManifestId,
    pub(crate) image: Vec<String>,
    pub(crate) desktop: String,
}

/// Packs, segments and versions by the numbers of their chunks.
pub(crate) const FIRST: std::ops::Range<u64> = 0..20;
pub(crate) const SECOND: std::ops::Range<u64> = 20..40;
pub(crate) const OWN: std::ops::Range<u64> = 100..110;
const BOOT_STREAM: &[u8] = b"a boot stream";

#[derive(Default)]
pub(crate) struct Heard(pub(crate) Mutex<Vec<(Part, u64, u64)>>);

impl Progress for Heard {
    fn begin(&self, part: Part, total: u64) {
        self.0.lock().unwrap().push((part, total, 0));
    }

    fn advance(&self, steps: u64) {
        self.0.lock().unwrap().last_mut().unwrap().2 += steps;
    }
}

/// Does something when a part of the check begins, or after some of its steps, as another process would.
pub(crate) struct Meanwhile<F> {
    at: Mutex<(Part, u64)>,
    then: F,
}

impl<F: Fn(Part, u64)> Meanwhile<F> {
    pub(crate) fn new(then: F) -> Self {
        Self { at: Mutex::new((Part::Packs, 0)), then }
    }
}

impl<F: Fn(Part, u64) + Send + Sync> Progress for Meanwhile<F> {
    fn begin(&self, part: Part, _total: u64) {
        *self.at.lock().unwrap() = (part, 0);
        (self.then)(part, 0);
    }

    fn advance(&self, _steps: u64) {
        let mut at = self.at.lock().unwrap();
        at.1 += 1;
        (self.then)(at.0, at.1);
    }
}

/// Does work to its end beside the runtime that this thread is in.
pub(crate) fn apart(work: impl Future<Output = ()> + Send) {
    std::thread::scope(|scope| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        scope.spawn(move || runtime.block_on(work)).join().unwrap();
    });
}

struct Untold;

impl gc::Progress for Untold {
    fn begin(&self, _part: gc::Part, _total: u64) {}
    fn advance(&self, _steps: u64) {}
}

pub(crate) async fn send(
    router: &Router,
    method: &str,
    path: &str,
    token: &str,
    signature: &str,
    body: Vec<u8>,
) {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_LENGTH, body.len())
        .header("satchel-signature", signature)
        .body(Body::from(body))
        .unwrap();
    let answer = router.clone().oneshot(request).await.unwrap();
    assert_eq!(answer.status(), 201, "{method} {path}");
}

async fn send_stream(router: &Router, token: &str, stream: &[u8]) {
    let path = format!("/v1/data/image/debian/streams/{}", StreamId::of(stream));
    send(router, "PUT", &path, token, "", stream.to_vec()).await;
}

/// Makes a profile of these streams the one of a version.
async fn attach(router: &Router, token: &str, version: ManifestId, streams: &[&[u8]]) {
    let (profile, signature) = testing::profile(version, streams, testing::PUBLISHER_KEY);
    let path = format!("/v1/images/debian/versions/{version}/profile");
    send(router, "PUT", &path, token, &signature, profile).await;
}

impl Stored {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let admin = init(dir.path(), &[], None).await.unwrap().token.reveal().to_owned();
        let alice =
            NewToken { user: "alice".parse().unwrap(), role: Role::User, label: None, expires_ms: None };
        let alice = issue(dir.path(), &alice).await.unwrap().reveal().to_owned();
        let server = Server::open(dir.path(), Config::default()).await.unwrap();
        let router = server.router();
        let upload =
            async |namespace: &str, token: &str, numbers: std::ops::Range<u64>, segment: Vec<u64>| {
                let pack = testing::pack(numbers);
                let path = format!("/v1/data/{namespace}/packs/{}", pack.id);
                send(&router, "PUT", &path, token, "", pack.bytes).await;
                let (id, frame) = testing::segment(segment.into_iter().map(testing::chunk_id).collect());
                let path = format!("/v1/data/{namespace}/segments/{id}?also=image/debian");
                send(&router, "PUT", &path, token, "", frame).await;
                id
            };
        let commit = async |path: &str, token: &str, manifest: &Manifest, key: u8| {
            let (bytes, signature) = testing::signed(manifest, key);
            let id = ManifestId::of(&bytes);
            send(&router, "POST", path, token, &signature, bytes).await;
            id
        };
        let one = upload("image/debian", &admin, FIRST, FIRST.collect()).await;
        let first = testing::image_manifest("debian", vec![one]);
        let first_id = commit("/v1/images/debian/versions", &admin, &first, testing::PUBLISHER_KEY).await;
        let other = upload("image/debian", &admin, SECOND, (10..40).collect()).await;
        let second = Manifest {
            parent: Some(first_id),
            ..testing::next(&testing::image_manifest("debian", vec![one, other]), "x")
        };
        let second_id = commit("/v1/images/debian/versions", &admin, &second, testing::PUBLISHER_KEY).await;
        let own = upload("user/alice", &alice, OWN, (0..5).chain(OWN).collect()).await;
        let desktop = testing::desktop_manifest("alice", "work", "debian", second_id, vec![other, own]);
        let desktop_id = commit("/v1/desktops/work/versions", &alice, &desktop, 2).await;
        send_stream(&router, &admin, BOOT_STREAM).await;
        attach(&router, &admin, second_id, &[BOOT_STREAM]).await;
        drop(server);
        let label = |n: u32, id: ManifestId| format!("image debian version {n} ({id})");
        let image = vec![label(1, first_id), label(2, second_id)];
        let desktop = format!("desktop alice/work version 1 ({desktop_id})");
        Self { dir, newest: second_id, image, desktop }
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join("objects").join(below)
    }

    /// The one file of a class, or the one whose content matches.
    fn file(&self, below: &str, matches: impl Fn(&[u8]) -> bool) -> PathBuf {
        let mut files: Vec<PathBuf> =
            fs::read_dir(self.path(below)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|file| matches(&fs::read(file).unwrap()));
        assert_eq!(files.len(), 1, "{files:?}");
        files.remove(0)
    }

    pub(crate) fn pack(&self, numbers: std::ops::Range<u64>, namespace: &str) -> PathBuf {
        self.path(&format!("{namespace}/packs/{}", testing::pack(numbers).id))
    }

    pub(crate) async fn verify(&self) -> Report {
        verify(self.dir.path(), &Heard::default()).await.unwrap()
    }

    /// The server, and somebody who may send everything.
    pub(crate) async fn open(&self) -> (Router, String) {
        let user =
            NewToken { user: "pub".parse().unwrap(), role: Role::Admin, label: None, expires_ms: None };
        let token = issue(self.dir.path(), &user).await.unwrap().reveal().to_owned();
        let server = Server::open(self.dir.path(), Config::default()).await.unwrap();
        (server.router(), token)
    }

    /// Sends a pack that nothing needs.
    async fn send_unneeded(&self) {
        let (router, token) = self.open().await;
        let pack = testing::pack(200..210);
        let path = format!("/v1/data/image/debian/packs/{}", pack.id);
        send(&router, "PUT", &path, &token, "", pack.bytes).await;
    }

    /// Condemns what nothing needs, and deletes what was condemned.
    pub(crate) async fn collect(&self) -> gc::Report {
        let options = gc::Options { grace: Duration::ZERO, ..gc::Options::default() };
        gc::collect(self.dir.path(), options, Arc::new(Untold)).await.unwrap()
    }

    pub(crate) async fn execute(&self, sql: &'static str) {
        use sqlx::{Connection, SqliteConnection};
        let url = format!("sqlite://{}", self.dir.path().join("database.sqlite").display());
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    }

    /// Checks that there is one finding, about this object, and that it affects these versions.
    #[track_caller]
    fn one(&self, report: &Report, object: &str, problem: &str, affects: &[&String]) {
        let [finding] = &report.findings[..] else { panic!("{:#?}", report.findings) };
        assert!(finding.object.contains(object), "{finding:#?}");
        assert!(finding.problem.contains(problem), "{finding:#?}");
        let mut affects: Vec<&String> = affects.to_vec();
        affects.sort_unstable();
        assert_eq!(finding.affects.iter().collect::<Vec<_>>(), affects, "{finding:#?}");
        assert!(finding.unsure.is_empty(), "{finding:#?}");
    }
}

pub(crate) fn flip(path: &PathBuf, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn what_is_whole_is_clean_and_counted() {
    let stored = Stored::new().await;
    let heard = Heard::default();
    let report = verify(stored.dir.path(), &heard).await.unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert_eq!((report.packs, report.segments, report.versions), (3, 3, 3));
    assert_eq!((report.profiles, report.streams), (1, 1));
    assert_eq!((report.unfinished.files, report.unreferenced.files, report.unknown_files), (0, 0, 0));
    let heard = heard.0.into_inner().unwrap();
    let parts: Vec<Part> = heard.iter().map(|(part, _, _)| *part).collect();
    assert_eq!(parts, [Part::Packs, Part::Segments, Part::Versions, Part::Profiles, Part::Files]);
    for (part, total, done) in &heard[..4] {
        assert_eq!(total, done, "{part:?}");
    }
    assert_eq!(heard[0].1, report.pack_bytes);
}

#[tokio::test]
async fn a_damaged_frame_affects_the_versions_that_use_it() {
    let stored = Stored::new().await;
    // The first frame of the first pack: chunk 0, in the image's first segment and in the desktop's own.
    let pack = stored.pack(FIRST, "image/debian");
    flip(&pack, 3000);
    let report = stored.verify().await;
    let affected = [&stored.image[0], &stored.image[1], &stored.desktop];
    stored.one(&report, "image/debian/packs", "1 of its frames cannot be read", &affected);
    flip(&pack, 3000);
    // The last one: chunk 19, which the desktop has from the second segment.
    let entries = testing::pack(FIRST).entries;
    flip(&pack, entries[7].range().start + 100);
    let report = stored.verify().await;
    stored.one(&report, "image/debian/packs", "1 of its frames", &[&stored.image[0], &stored.image[1]]);
}

#[tokio::test]
async fn a_pack_that_is_gone_cut_or_replaced_is_named() {
    let stored = Stored::new().await;
    let pack = stored.pack(OWN, "user/alice");
    let bytes = fs::read(&pack).unwrap();
    fs::remove_file(&pack).unwrap();
    stored.one(&stored.verify().await, "user/alice/packs", "it is missing", &[&stored.desktop]);
    fs::write(&pack, &bytes[..bytes.len() - 1]).unwrap();
    stored.one(&stored.verify().await, "user/alice/packs", "the database says", &[&stored.desktop]);
    let mut cut = bytes.clone();
    cut[bytes.len() - 70] ^= 1;
    fs::write(&pack, &cut).unwrap();
    stored.one(&stored.verify().await, "user/alice/packs", "checksum", &[&stored.desktop]);
    fs::write(&pack, &bytes).unwrap();
    assert!(stored.verify().await.findings.is_empty());
}

#[tokio::test]
async fn damaged_profiles_and_streams_are_named() {
    let stored = Stored::new().await;
    let is_profile = |bytes: &[u8]| bytes.starts_with(b"SATPROF");
    for (file, object) in [
        (stored.file("image/debian/streams", |_| true), "image/debian/streams"),
        (stored.file("image/debian/profiles", is_profile), "image/debian/profiles"),
        (stored.file("image/debian/profiles", |bytes| !is_profile(bytes)), ".sig"),
    ] {
        let bytes = fs::read(&file).unwrap();
        flip(&file, bytes.len() / 2);
        stored.one(&stored.verify().await, object, "", &[]);
        fs::remove_file(&file).unwrap();
        stored.one(&stored.verify().await, object, "it is missing", &[]);
        fs::write(&file, bytes).unwrap();
    }
    stored.execute("DELETE FROM streams").await;
    let report = stored.verify().await;
    stored.one(&report, "image/debian/profiles", "1 of its streams are not in the database", &[]);
    assert_eq!(report.unreferenced.files, 1);
}

#[tokio::test]
async fn damaged_segments_and_locators_are_named() {
    let stored = Stored::new().await;
    let (own, _) = testing::segment((0..5).chain(OWN).map(testing::chunk_id).collect());
    for class in ["segments", "locators"] {
        let file = stored.path(&format!("user/alice/{class}/{own}"));
        let bytes = fs::read(&file).unwrap();
        let middle = bytes.len() / 2;
        flip(&file, middle);
        let report = stored.verify().await;
        stored.one(&report, &format!("user/alice/{class}"), "", &[&stored.desktop]);
        fs::remove_file(&file).unwrap();
        let report = stored.verify().await;
        stored.one(&report, &format!("user/alice/{class}"), "it is missing", &[&stored.desktop]);
        fs::write(&file, bytes).unwrap();
    }
    assert!(stored.verify().await.findings.is_empty());
}

/// A locator that reads well and is wrong: each place must be checked against what the pack holds.
#[tokio::test]
async fn a_locator_that_points_elsewhere_is_named() {
    let stored = Stored::new().await;
    let (own, _) = testing::segment((0..5).chain(OWN).map(testing::chunk_id).collect());
    let file = stored.path(&format!("user/alice/locators/{own}"));
    let locator = Locator::decode(&fs::read(&file).unwrap(), own, &mut FrameDecoder::new().unwrap()).unwrap();
    let mut places: Vec<_> = (0..SEGMENT_CHUNKS).map(|at| locator.place(at)).collect();
    places.swap(0, 1);
    let wrong = Locator::new(own, locator.packs().to_vec(), places).unwrap();
    fs::write(&file, wrong.encode(&mut FrameEncoder::new().unwrap()).unwrap()).unwrap();
    let report = stored.verify().await;
    stored.one(
        &report,
        "user/alice/locators",
        "2 of its chunks do not lie where it says",
        &[&stored.desktop],
    );
}

#[tokio::test]
async fn damaged_manifests_and_signatures_are_named() {
    let stored = Stored::new().await;
    let manifest = stored.file("user/alice/manifests", |bytes| bytes.starts_with(b"{"));
    let signature = manifest.with_extension("sig");
    flip(&manifest, 30);
    stored.one(&stored.verify().await, "user/alice/manifests", "damaged or replaced", &[&stored.desktop]);
    flip(&manifest, 30);
    let line = fs::read(&signature).unwrap();
    let (_, other) =
        testing::signed(&testing::image_manifest("x", Vec::from([chunk_format::SegmentId::of(b"x")])), 2);
    fs::write(&signature, other).unwrap();
    stored.one(&stored.verify().await, ".sig", "another signature", &[]);
    // Rightly signed, by a key that did not commit it.
    let bytes = fs::read(&manifest).unwrap();
    fs::write(&signature, chunk_format::SecretKey::from_bytes(&[5; 32]).sign(&bytes).encode()).unwrap();
    stored.one(&stored.verify().await, ".sig", "another signature", &[]);
    fs::write(&signature, "no signature").unwrap();
    stored.one(&stored.verify().await, ".sig", "signature", &[]);
    fs::remove_file(&signature).unwrap();
    let report = stored.verify().await;
    stored.one(&report, ".sig", "it is missing", &[]);
    assert!(report.findings[0].advice.contains("answered from the database"), "{report:#?}");
    fs::write(&signature, line).unwrap();
    assert!(stored.verify().await.findings.is_empty());
}

#[tokio::test]
async fn a_row_whose_signature_is_not_its_manifests_is_named() {
    let stored = Stored::new().await;
    stored
        .execute(
            "UPDATE versions SET signature = (SELECT signature FROM versions WHERE base_version_id IS NOT NULL) \
             WHERE sequence = 2",
        )
        .await;
    let report = stored.verify().await;
    let finding = report.findings.iter().find(|finding| finding.object == "database").unwrap();
    assert!(finding.problem.contains("its signature: "), "{finding:#?}");
    assert!(finding.affects.iter().eq([&stored.image[1]]), "{finding:#?}");
}

#[tokio::test]
async fn rows_that_contradict_their_objects_are_named() {
    let stored = Stored::new().await;
    stored
        .execute("UPDATE versions SET machine = 'elsewhere', note = 'x' WHERE base_version_id IS NOT NULL")
        .await;
    let report = stored.verify().await;
    stored.one(&report, "database", "machine is another than the manifest's; its note", &[&stored.desktop]);

    let stored = Stored::new().await;
    stored.execute("UPDATE chunks SET offset_bytes = offset_bytes + 1 WHERE pack_id = 3 AND chunk = (SELECT min(chunk) FROM chunks WHERE pack_id = 3)").await;
    let report = stored.verify().await;
    let problems: Vec<&str> = report.findings.iter().map(|finding| finding.problem.as_str()).collect();
    assert!(problems[0].contains("1 of its chunks have a wrong row"), "{problems:?}");

    let stored = Stored::new().await;
    stored.execute("DELETE FROM chunks WHERE pack_id = 3").await;
    let report = stored.verify().await;
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert_eq!(report.unindexed_chunks, 10);

    let stored = Stored::new().await;
    stored.execute("UPDATE chunks SET pack_id = 77 WHERE pack_id = 3").await;
    let report = stored.verify().await;
    let named = |text: &str| report.findings.iter().any(|finding| finding.problem.contains(text));
    assert!(named("10 chunks lie in a pack that has no row or is condemned (77)"), "{:#?}", report.findings);

    let stored = Stored::new().await;
    stored.execute("DELETE FROM segments WHERE id = 1").await;
    let report = stored.verify().await;
    assert_eq!(report.findings.len(), 2, "{:#?}", report.findings);
    assert!(report.findings.iter().all(|finding| finding.problem.contains("1 of its segments have no row")));
}

#[tokio::test]
async fn what_is_left_over_is_counted_and_harms_nothing() {
    let stored = Stored::new().await;
    let image = stored.path("image/debian");
    fs::create_dir_all(stored.path("staging")).unwrap();
    fs::write(stored.path("staging/abc"), "12345").unwrap();
    fs::write(stored.path("staging/def#1"), "123").unwrap();
    fs::write(image.join(format!("segments/{}#2", chunk_format::SegmentId::of(b"x"))), "12").unwrap();
    fs::write(image.join(format!("packs/{}", chunk_format::PackId::of(b"x"))), "1").unwrap();
    fs::write(image.join("README"), "hello").unwrap();
    fs::write(image.join("packs/notes.txt"), "hello").unwrap();
    let report = stored.verify().await;
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert_eq!((report.unfinished.files, report.unfinished.bytes), (3, 10));
    assert_eq!((report.unreferenced.files, report.unreferenced.bytes), (1, 1));
    assert_eq!(report.unknown, ["image/debian/README", "image/debian/packs/notes.txt"]);
}

#[tokio::test]
async fn what_was_found_is_told_though_not_all_files_can_be_listed() {
    let stored = Stored::new().await;
    // It cannot be followed, for nobody.
    std::os::unix::fs::symlink(".", stored.path("image/loop")).unwrap();
    let report = stored.verify().await;
    let found: Vec<&str> = report.findings.iter().map(|finding| finding.object.as_str()).collect();
    assert_eq!(found, ["objects"], "{:#?}", report.findings);
    assert!(report.packs > 0 && report.findings[0].problem.contains("cannot all be listed"));
}

#[tokio::test]
async fn what_was_collected_is_told_though_not_all_files_can_be_listed() {
    let stored = Stored::new().await;
    stored.send_unneeded().await;
    std::os::unix::fs::symlink(".", stored.path("image/loop")).unwrap();
    let options = gc::Options { grace: Duration::ZERO, leftovers: true, ..gc::Options::default() };
    let report = gc::collect(stored.dir.path(), options, Arc::new(Untold)).await.unwrap();
    assert_eq!(report.condemned.packs, 1);
    assert!(report.unlisted.is_some());
    assert_eq!(stored.collect().await.unlisted, None);
}

#[tokio::test]
async fn a_dry_run_counts_the_leftovers_that_a_run_removes() {
    let stored = Stored::new().await;
    let packs = stored.path("image/debian/packs");
    fs::create_dir_all(stored.path("staging")).unwrap();
    let [new, old, older] =
        [b"a", b"b", b"c"].map(|name| packs.join(chunk_format::PackId::of(name).to_string()));
    let [whole, partial] = ["staging/abc", "staging/def#1"].map(|name| stored.path(name));
    for (file, days) in [(&new, 0), (&old, 2), (&older, 9), (&whole, 2), (&partial, 2)] {
        fs::write(file, "123").unwrap();
        let written = std::time::SystemTime::now() - Duration::from_secs(days * 86_400);
        fs::File::options().write(true).open(file).unwrap().set_modified(written).unwrap();
    }
    let collect = async |dry_run, days: u64| {
        let grace = Duration::from_secs(days * 86_400);
        let options = gc::Options { grace, dry_run, leftovers: true };
        let report = gc::collect(stored.dir.path(), options, Arc::new(Untold)).await.unwrap();
        (report.unfinished.files, report.leftovers.files, report.leftovers.bytes)
    };
    // What is sent while this runs is younger than a day, whatever the grace; a longer one counts here, too.
    for (days, found) in [(7, (2, 1, 3)), (0, (0, 1, 3))] {
        assert_eq!(collect(true, days).await, found);
        assert_eq!(collect(true, days).await, found, "nothing was changed");
        assert_eq!(collect(false, days).await, found);
        assert_eq!(collect(true, days).await, (0, 0, 0));
    }
    assert!(new.exists() && !old.exists() && !older.exists());
}

#[tokio::test]
async fn a_pack_that_is_condemned_meanwhile_is_no_damage() {
    // Before the packs are listed, and while they are read.
    for moment in [0, 1] {
        let stored = Stored::new().await;
        stored.send_unneeded().await;
        let progress = Meanwhile::new(|part, step| {
            if (part, step) == (Part::Packs, moment) {
                apart(async { assert_eq!(stored.collect().await.condemned.packs, 1) });
            }
        });
        let report = verify(stored.dir.path(), &progress).await.unwrap();
        assert!(report.findings.is_empty(), "at step {moment}: {:#?}", report.findings);
    }
}

#[tokio::test]
async fn a_version_that_is_pruned_meanwhile_is_no_damage() {
    let stored = Stored::new().await;
    let progress = Meanwhile::new(|part, step| {
        if (part, step) == (Part::Versions, 1) {
            apart(stored.execute(
                "UPDATE versions SET pruned_ms = 1 WHERE id = 3; UPDATE segments SET condemned_ms = 1 WHERE id = 3",
            ));
        }
    });
    let report = verify(stored.dir.path(), &progress).await.unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

#[tokio::test]
async fn a_profile_that_is_replaced_and_deleted_meanwhile_is_no_damage() {
    let stored = Stored::new().await;
    let (router, token) = stored.open().await;
    send_stream(&router, &token, b"another").await;
    attach(&router, &token, stored.newest, &[b"another"]).await;
    attach(&router, &token, stored.newest, &[BOOT_STREAM, b"another"]).await;
    let progress = Meanwhile::new(|part, step| {
        // After both streams and the first profile.
        if (part, step) == (Part::Profiles, 3) {
            apart(async { assert_eq!(stored.collect().await.deleted.profiles, 2) });
        }
    });
    let report = verify(stored.dir.path(), &progress).await.unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
    assert_eq!(report.profiles, 3);
}

#[tokio::test]
async fn a_stream_that_is_condemned_and_deleted_meanwhile_is_no_damage() {
    let stored = Stored::new().await;
    let (router, token) = stored.open().await;
    send_stream(&router, &token, b"unneeded").await;
    let progress = Meanwhile::new(|part, step| {
        if (part, step) == (Part::Profiles, 1) {
            apart(async {
                assert_eq!(stored.collect().await.condemned.streams, 1);
                assert_eq!(stored.collect().await.deleted.streams, 1);
            });
        }
    });
    let report = verify(stored.dir.path(), &progress).await.unwrap();
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

#[tokio::test]
async fn a_user_who_sends_something_for_the_first_time_meanwhile_is_no_damage() {
    let stored = Stored::new().await;
    let progress = Meanwhile::new(|part, step| {
        if (part, step) == (Part::Packs, 0) {
            apart(stored.execute(
                "INSERT INTO namespaces VALUES (99, 'user', 'bob', (SELECT min(id) FROM users), 1); \
                 UPDATE packs SET namespace_id = 99 WHERE id = (SELECT max(id) FROM packs)",
            ));
        }
    });
    let report = verify(stored.dir.path(), &progress).await.unwrap();
    // Its file was not sent, only its row was.
    assert!(
        report.findings.iter().all(|finding| finding.object.starts_with("user/bob")),
        "{:#?}",
        report.findings
    );
}
