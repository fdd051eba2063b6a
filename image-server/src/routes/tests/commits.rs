//! Versions appearing, together or not at all.

use chunk_format::{ChunkSize, DiskRole, Manifest, ManifestId, SegmentId};

use super::Fixture;
use crate::testing;

const IMAGE: &str = "/v1/images/debian/versions";
const DESKTOP: &str = "/v1/desktops/work/versions";

#[tokio::test]
async fn of_many_commits_on_one_parent_one_wins() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let parent = &fixture.desktop.manifest;
    let rivals: Vec<Manifest> = (0..16).map(|n| testing::next(parent, &format!("rival {n}"))).collect();
    let answers = rivals.iter().map(|rival| fixture.commit(DESKTOP, alice, rival, 2));
    let answers = futures_util::future::join_all(answers).await;
    let won: Vec<usize> = (0..16).filter(|n| answers[*n].status == 201).collect();
    assert_eq!(won.len(), 1);
    let winner = ManifestId::of(&rivals[won[0]].encode().unwrap()).to_string();
    for (n, answer) in answers.iter().enumerate().filter(|(n, _)| *n != won[0]) {
        let message = answer.refused(409, "head_moved");
        assert!(message.starts_with("desktop work has moved on"), "{message}");
        assert_eq!(answer.json()["error"]["head"]["id"], winner, "rival {n}");
    }
    let listed = fixture.get(DESKTOP, alice).await.json();
    assert_eq!(listed["versions"].as_array().unwrap().len(), 2);
    // What lost is not to be seen.
    for rival in rivals.iter().filter(|rival| rival.note != rivals[won[0]].note) {
        let id = ManifestId::of(&rival.encode().unwrap());
        fixture.get(&format!("/v1/data/user/alice/manifests/{id}"), alice).await.refused(404, "not_found");
    }
}

#[tokio::test]
async fn a_repeated_commit_is_harmless() {
    let fixture = Fixture::new().await;
    let publisher = &fixture.tokens.publisher;
    let second = testing::next(&fixture.image.manifest, "second");
    let path = format!("{IMAGE}?channel=stable");
    let first = fixture.commit(&path, publisher, &second, 1).await.done(201).json();
    assert_eq!(first["parent"], fixture.image.version.to_string());
    assert_eq!(fixture.commit(&path, publisher, &second, 1).await.done(200).json(), first);
    // A late repetition of the first version does not take the channel back.
    fixture.commit(&path, publisher, &fixture.image.manifest, 1).await.done(200);
    let image = fixture.get("/v1/images/debian", publisher).await.json();
    assert_eq!(image["channels"]["stable"], first["id"]);
    assert_eq!(image["latest"], first);
}

#[tokio::test]
async fn the_same_commit_many_times_at_once_is_one_version() {
    let fixture = Fixture::new().await;
    let publisher = &fixture.tokens.publisher;
    let second = testing::next(&fixture.image.manifest, "second");
    let answers = (0..8).map(|_| fixture.commit(IMAGE, publisher, &second, 1));
    let answers = futures_util::future::join_all(answers).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 7);
}

#[tokio::test]
async fn an_image_has_one_publisher_key() {
    let fixture = Fixture::new().await;
    let second = testing::next(&fixture.image.manifest, "second");
    for token in [&fixture.tokens.publisher, &fixture.tokens.admin] {
        let message = fixture.commit(IMAGE, token, &second, 9).await.refused(403, "publisher_key");
        let publisher = fixture.get("/v1/images/debian", token).await.json()["publisher"].clone();
        assert!(message.contains(publisher.as_str().unwrap()), "{message}");
    }
    fixture.commit(IMAGE, &fixture.tokens.admin, &second, 1).await.done(201);
}

#[tokio::test]
async fn any_key_may_sign_a_desktop_and_is_listed() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let second = testing::next(&fixture.desktop.manifest, "second");
    let listed = fixture.commit(DESKTOP, alice, &second, 77).await.done(201).json();
    let (_, signature) = testing::signed(&second, 77);
    assert!(signature.contains(listed["key"].as_str().unwrap()));
    let path = format!("/v1/data/user/alice/manifests/{}.sig", listed["id"].as_str().unwrap());
    assert_eq!(fixture.get(&path, alice).await.done(200).body, format!("{signature}\n"));
}

/// Two keys over one manifest: the signature that is stored is the one of the commit that counts.
#[tokio::test]
async fn the_stored_signature_is_the_winners() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let second = testing::next(&fixture.desktop.manifest, "second");
    let id = ManifestId::of(&second.encode().unwrap());
    // As a commit that failed after storing its objects leaves it.
    let file = fixture.dir.path().join(format!("objects/user/alice/manifests/{id}.sig"));
    std::fs::write(&file, "an older attempt").unwrap();
    let answers = (10..14).map(|key| fixture.commit(DESKTOP, alice, &second, key));
    let answers = futures_util::future::join_all(answers).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 201).count(), 1);
    let listed = fixture.get(DESKTOP, alice).await.json()["versions"][0].clone();
    let stored = std::fs::read_to_string(file).unwrap();
    assert!(stored.contains(listed["key"].as_str().unwrap()), "{stored} {listed}");
}

#[tokio::test]
async fn commits_that_do_not_follow_are_refused() {
    let fixture = Fixture::new().await;
    let (publisher, alice) = (&fixture.tokens.publisher, &fixture.tokens.alice);
    let first = &fixture.image.manifest;
    let second = testing::next(first, "second");
    let sequence_skipped = Manifest { sequence: 3, ..second };
    let message = fixture.commit(IMAGE, publisher, &sequence_skipped, 1).await.refused(400, "bad_request");
    assert!(message.contains("`sequence` is 3, but must be 2"), "{message}");
    let other_first = Manifest { note: Some("another first".to_owned()), ..first.clone() };
    fixture.commit(IMAGE, publisher, &other_first, 1).await.refused(409, "head_moved");
    let of_nothing = testing::next(&testing::image_manifest("new", first.disks[0].segments.clone()), "x");
    let answer = fixture.commit("/v1/images/new/versions", publisher, &of_nothing, 1).await;
    assert!(answer.refused(409, "head_moved").contains("must name no parent"));
    assert!(answer.json()["error"]["head"].is_null());
    // A desktop on a version that was never committed.
    let mut baseless = testing::next(&fixture.desktop.manifest, "x");
    baseless.base.as_mut().unwrap().version = ManifestId::of(b"never");
    let message = fixture.commit(DESKTOP, alice, &baseless, 2).await.refused(400, "bad_request");
    assert!(message.contains("base.version"), "{message}");
    // A desktop whose next machine would trust another publisher.
    let mut misled = testing::next(&fixture.desktop.manifest, "x");
    misled.base.as_mut().unwrap().publisher = chunk_format::SecretKey::from_bytes(&[9; 32]).public();
    let message = fixture.commit(DESKTOP, alice, &misled, 2).await.refused(400, "bad_request");
    assert!(message.contains("base.publisher"), "{message}");
}

#[tokio::test]
async fn a_manifest_belongs_to_its_path_and_its_owner() {
    let fixture = Fixture::new().await;
    let (publisher, alice, bob) = (&fixture.tokens.publisher, &fixture.tokens.alice, &fixture.tokens.bob);
    let (image, desktop) = (&fixture.image.manifest, &fixture.desktop.manifest);
    fixture.commit("/v1/images/other/versions", publisher, image, 1).await.refused(400, "bad_request");
    fixture.commit("/v1/desktops/debian/versions", publisher, image, 1).await.refused(400, "bad_request");
    fixture.commit("/v1/desktops/play/versions", alice, desktop, 2).await.refused(400, "bad_request");
    let message = fixture.commit(DESKTOP, bob, desktop, 2).await.refused(403, "forbidden");
    assert!(message.contains("alice") && message.contains("bob"), "{message}");
}

#[tokio::test]
async fn signatures_are_checked_first() {
    let fixture = Fixture::new().await;
    let publisher = &fixture.tokens.publisher;
    let second = testing::next(&fixture.image.manifest, "second");
    let (bytes, signature) = testing::signed(&second, 1);
    let commit =
        async |bytes: &[u8], line: &str| fixture.commit_bytes(IMAGE, publisher, bytes.to_vec(), line).await;
    let mut altered = bytes.clone();
    altered.push(b'\n');
    commit(&altered, &signature).await.refused(422, "damaged");
    let (_, of_other) = testing::signed(&fixture.image.manifest, 1);
    commit(&bytes, &of_other).await.refused(422, "damaged");
    for line in ["", "x", &signature[1..], &format!("{signature}0"), &"s".repeat(400)] {
        let message = commit(&bytes, line).await.refused(400, "bad_request");
        assert!(message.contains("satchel-signature"), "{message}");
    }
    let (garbage, signature) = (b"{}".to_vec(), testing_signature(b"{}"));
    commit(&garbage, &signature).await.refused(400, "bad_request");
    commit(&bytes, &testing::signed(&second, 1).1).await.done(201);
}

fn testing_signature(bytes: &[u8]) -> String {
    chunk_format::SecretKey::from_bytes(&[1; 32]).sign(bytes).to_string()
}

#[tokio::test]
async fn every_segment_must_be_here_and_of_its_disks_chunk_size() {
    let fixture = Fixture::new().await;
    let (publisher, alice) = (&fixture.tokens.publisher, &fixture.tokens.alice);
    let nowhere = testing::next(
        &testing::image_manifest(
            "debian",
            vec![SegmentId::of(b"x"), SegmentId::of(b"y"), SegmentId::of(b"x")],
        ),
        "x",
    );
    let nowhere = Manifest { parent: Some(fixture.image.version), ..nowhere };
    let answer = fixture.commit(IMAGE, publisher, &nowhere, 1).await;
    answer.refused(409, "segments_missing");
    assert_eq!(answer.json()["error"]["missing"], 2);
    // A desktop's own segment is no part of an image.
    let stolen = Manifest {
        parent: Some(fixture.image.version),
        ..testing::next(&testing::image_manifest("debian", vec![fixture.desktop.segment]), "x")
    };
    fixture.commit(IMAGE, publisher, &stolen, 1).await.refused(409, "segments_missing");

    let mut other_size = testing::next(&fixture.desktop.manifest, "x");
    other_size.disks[0].chunk_size = ChunkSize::new(131_072).unwrap();
    other_size.disks[0].segments.truncate(1);
    let message = fixture.commit(DESKTOP, alice, &other_size, 2).await.refused(400, "bad_request");
    assert!(message.contains("131072"), "{message}");
    assert_eq!(other_size.disks[0].role, DiskRole::System);
    assert!(fixture.files("image/debian/manifests").len() == 3, "what was refused left nothing");
}

/// A desktop that moves to a new golden version may use that one's segments.
#[tokio::test]
async fn a_desktop_moves_to_a_new_base() {
    let fixture = Fixture::new().await;
    let (publisher, alice) = (&fixture.tokens.publisher, &fixture.tokens.alice);
    let pack = testing::pack(200..205);
    let (segment, frame) = testing::segment_of(200..205);
    let path = format!("/v1/data/image/debian/packs/{}", pack.id);
    fixture.put(&path, publisher, &pack.bytes).await.done(201);
    fixture.put(&format!("/v1/data/image/debian/segments/{segment}"), publisher, &frame).await.done(201);
    let mut golden = testing::next(&fixture.image.manifest, "update");
    golden.disks[0].segments = vec![segment];
    let version =
        fixture.commit(&format!("{IMAGE}?channel=stable"), publisher, &golden, 1).await.done(201).json();
    let mut moved = testing::next(&fixture.desktop.manifest, "on the update");
    moved.disks[0].segments[0] = segment;
    moved.base.as_mut().unwrap().version = version["id"].as_str().unwrap().parse().unwrap();
    fixture.commit(DESKTOP, alice, &moved, 2).await.done(201);
    let desktop = fixture.get("/v1/desktops/work", alice).await.json();
    assert_eq!(desktop["base"]["version"], version["id"]);
    assert_eq!(desktop["id"], fixture.desktop.version.to_string());
}

#[tokio::test]
async fn a_channel_moves_with_its_version() {
    let fixture = Fixture::new().await;
    let publisher = &fixture.tokens.publisher;
    let second = testing::next(&fixture.image.manifest, "second");
    fixture.commit(&format!("{IMAGE}?channel=..."), publisher, &second, 1).await.refused(400, "bad_request");
    fixture.commit(&format!("{IMAGE}?channel=beta"), publisher, &second, 1).await.done(201);
    let channels = fixture.get("/v1/images/debian", publisher).await.json()["channels"].clone();
    let second = ManifestId::of(&second.encode().unwrap()).to_string();
    let expected = serde_json::json!({ "beta": second, "stable": fixture.image.version.to_string() });
    assert_eq!(channels, expected);
}

#[tokio::test]
async fn the_newest_version_is_put_on_another_channel_by_its_publisher() {
    let fixture = Fixture::new().await;
    let (publisher, manifest) = (&fixture.tokens.publisher, &fixture.image.manifest);
    let version = fixture.image.version.to_string();
    fixture.commit(&format!("{IMAGE}?channel=beta"), publisher, manifest, 1).await.done(200);
    let channels = async || fixture.get("/v1/images/debian", publisher).await.json()["channels"].clone();
    assert_eq!(channels().await, serde_json::json!({ "beta": version, "stable": version }));
    let second = testing::next(manifest, "second");
    fixture.commit(&format!("{IMAGE}?channel=beta"), publisher, &second, 1).await.done(201);
    // No longer the newest.
    fixture.commit(&format!("{IMAGE}?channel=beta"), publisher, manifest, 1).await.done(200);
    let second = ManifestId::of(&second.encode().unwrap()).to_string();
    assert_eq!(channels().await, serde_json::json!({ "beta": second, "stable": version }));
}
