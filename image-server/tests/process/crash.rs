//! kill -9 in the middle of everything: what was answered for is there, nothing is half there, and the store is clean.

use std::time::{Duration, Instant};

use chunk_format::{Manifest, ManifestId, SegmentId};

use crate::program::{Asker, Serving, init, run, text};
use crate::testing;

const ROUNDS: u32 = 20;
const PACKS: u64 = 6;
const CHUNKS_PER_PACK: u64 = 8;

/// One round's publication: new chunks in new packs, a segment for each, and the version after the head.
struct Publication {
    packs: Vec<chunk_format::SealedPack>,
    segments: Vec<(SegmentId, Vec<u8>)>,
    manifest: Manifest,
}

/// What the server said was done before it was killed.
#[derive(Default)]
struct Acknowledged {
    packs: usize,
    segments: usize,
    version: bool,
}

impl Publication {
    fn new(round: u64, head: Option<(&Manifest, ManifestId)>) -> Self {
        let numbers = |pack: u64| {
            let start = (round * PACKS + pack) * CHUNKS_PER_PACK;
            start..start + CHUNKS_PER_PACK
        };
        let packs = (0..PACKS).map(|pack| testing::pack(numbers(pack))).collect();
        let segments: Vec<_> = (0..PACKS).map(|pack| testing::segment_of(numbers(pack))).collect();
        let ids = segments.iter().map(|(id, _)| *id).collect();
        let first = testing::image_manifest("debian", ids);
        let manifest = match head {
            None => first,
            Some((head, id)) => Manifest { parent: Some(id), sequence: head.sequence + 1, ..first },
        };
        Self { packs, segments, manifest }
    }

    fn id(&self) -> ManifestId {
        ManifestId::of(&self.manifest.encode().unwrap())
    }

    /// Uploads everything and commits it, until the server is gone.
    async fn run(&self, asker: &Asker) -> Acknowledged {
        let mut done = Acknowledged::default();
        let put = async |path: String, body: &[u8]| loop {
            match asker.put(&path, body.to_vec()).await {
                // Busy: a disk that takes seconds to sync keeps more than one upload waiting.
                Ok(status) if status == 503 => {}
                Ok(status) => {
                    assert!(status == 201 || status == 200, "{status}");
                    break true;
                }
                Err(_) => break false,
            }
        };
        let packs = self.packs.iter().map(|pack| {
            let path = format!("/v1/data/image/debian/packs/{}", pack.id);
            put(path, &pack.bytes)
        });
        done.packs = futures_util::future::join_all(packs).await.into_iter().filter(|done| *done).count();
        if done.packs < self.packs.len() {
            return done;
        }
        let segments = self.segments.iter().map(|(id, frame)| {
            let path = format!("/v1/data/image/debian/segments/{id}");
            put(path, frame)
        });
        done.segments =
            futures_util::future::join_all(segments).await.into_iter().filter(|done| *done).count();
        if done.segments < self.segments.len() {
            return done;
        }
        let committed = asker.commit("/v1/images/debian/versions?channel=stable", &self.manifest, 1).await;
        if let Ok(status) = committed {
            assert!(status == 201 || status == 200, "{status}");
            done.version = true;
        }
        done
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_loses_nothing_it_answered_for_and_shows_nothing_half() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("server");
    let token = init(&dir);

    // The first publication is not disturbed: its time sets the moments at which the others end.
    let mut serving = Serving::start(&dir, &[]);
    let mut asker = Asker::new(&dir, &serving, &token);
    let first = Publication::new(0, None);
    let begun = Instant::now();
    assert!(first.run(&asker).await.version);
    let mut whole = begun.elapsed();
    let mut head = (first.manifest.clone(), first.id());
    let mut cut_short = 0;

    for round in 1..=ROUNDS {
        let publication = Publication::new(u64::from(round), Some((&head.0, head.1)));
        let moment = whole * round / ROUNDS;
        let running = tokio::spawn({
            let asker = asker.clone();
            async move {
                let done = publication.run(&asker).await;
                (publication, done)
            }
        });
        tokio::time::sleep(moment.max(Duration::from_millis(1))).await;
        serving.kill();
        let (publication, done) = running.await.unwrap();
        cut_short += u32::from(!done.version);

        let verified = run(&["verify", text(&dir)]);
        let report = String::from_utf8_lossy(&verified.stdout).into_owned();
        assert!(verified.status.success(), "round {round}: {report}");

        serving = Serving::start(&dir, &[]);
        asker = Asker::new(&dir, &serving, &token);
        check(&asker, &publication, &done, &head).await;
        // The client tries again and always gets there.
        let begun = Instant::now();
        let again = publication.run(&asker).await;
        assert!(again.version, "round {round}");
        // The first time may have been a slow one, and then all later ends would come too late.
        whole = whole.min(begun.elapsed());
        head = (publication.manifest.clone(), publication.id());
        assert_eq!(latest(&asker).await, head.1.to_string());
    }
    assert!(cut_short > ROUNDS / 4, "only {cut_short} of {ROUNDS} publications were cut short");
    assert_eq!(serving.terminate().code(), Some(0));
    let verified = run(&["verify", text(&dir)]);
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
}

async fn latest(asker: &Asker) -> String {
    let image = asker.get("/v1/images/debian").await.unwrap().bytes().await.unwrap();
    let image: serde_json::Value = serde_json::from_slice(&image).unwrap();
    let latest = image["latest"]["id"].as_str().unwrap().to_owned();
    assert_eq!(image["channels"]["stable"], latest, "version and channel move together");
    latest
}

/// What was acknowledged is there; the version is there or is not; and what is not committed is not listed.
async fn check(asker: &Asker, publication: &Publication, done: &Acknowledged, head: &(Manifest, ManifestId)) {
    let asked = |ids: Vec<[u8; 32]>| ids.concat();
    let chunks: Vec<[u8; 32]> = publication
        .packs
        .iter()
        .flat_map(|pack| pack.entries.iter().map(|entry| *entry.chunk.as_bytes()))
        .collect();
    let missing = asker.post("/v1/missing/image/debian/chunks", asked(chunks)).await.unwrap();
    let missing = missing.bytes().await.unwrap();
    // A pack counts whole or not at all: eight chunks are one byte of the answer.
    assert!(missing.iter().all(|byte| *byte == 0 || *byte == 0xff), "{missing:?}");
    let present = missing.iter().filter(|byte| **byte == 0).count();
    assert!(present >= done.packs, "{present} packs are there, {} were acknowledged", done.packs);

    let segments = publication.segments.iter().map(|(id, _)| *id.as_bytes()).collect();
    let missing = asker.post("/v1/missing/image/debian/segments", asked(segments)).await.unwrap();
    let missing: u32 = missing.bytes().await.unwrap().iter().map(|byte| byte.count_ones()).sum();
    let present = publication.segments.len() - missing as usize;
    assert!(present >= done.segments, "{present} segments are there, {} were acknowledged", done.segments);

    let (old, new) = (head.1.to_string(), publication.id().to_string());
    let found = latest(asker).await;
    assert!(found == new || (found == old && !done.version), "{found}");
    let manifest = asker.get(&format!("/v1/data/image/debian/manifests/{new}")).await.unwrap();
    assert_eq!(manifest.status(), if found == new { 200 } else { 404 });
}
