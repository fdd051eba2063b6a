//! Reading objects and listings.

use std::sync::Arc;

use axum::body::Body;
use axum::http::Method;
use chunk_format::{FrameDecoder, Locator, ManifestId};
use futures_util::StreamExt;
use object_store::ObjectStore;

use super::{Fixture, request};
use crate::limits::Limits;
use crate::testing;

#[tokio::test]
async fn an_object_is_read_whole_in_part_or_not_again() {
    read_whole_in_part_and_not_again(&Fixture::new().await).await;
}

async fn read_whole_in_part_and_not_again(fixture: &Fixture) {
    let alice = &fixture.tokens.alice;
    let (id, bytes) = (fixture.image.pack, &fixture.image.pack_bytes);
    let path = format!("/v1/data/image/debian/packs/{id}");
    let etag = format!("\"{id}\"");
    let len = bytes.len();

    let whole = fixture.get(&path, alice).await.done(200);
    assert_eq!(whole.body, bytes[..]);
    assert_eq!(whole.header("etag"), etag);
    assert_eq!(whole.header("cache-control"), "private, max-age=31536000, immutable");
    assert_eq!(whole.header("accept-ranges"), "bytes");
    assert_eq!(whole.header("content-length"), len.to_string());
    assert_eq!(whole.header("content-type"), "application/octet-stream");

    let part = fixture.get_with(&path, alice, &[("range", "bytes=100-199")]).await.done(206);
    assert_eq!(part.body, bytes[100..200]);
    assert_eq!(part.header("content-range"), format!("bytes 100-199/{len}"));
    assert_eq!(part.header("content-length"), "100");
    let tail = fixture.get_with(&path, alice, &[("range", "bytes=-64")]).await.done(206);
    assert_eq!(tail.body, bytes[len - 64..]);
    let rest = fixture.get_with(&path, alice, &[("range", "bytes=300000-")]).await.done(206);
    assert_eq!(rest.body, bytes[300_000..]);

    let beyond = fixture.get_with(&path, alice, &[("range", &format!("bytes={len}-"))]).await;
    beyond.refused(416, "range_not_satisfiable");
    assert_eq!(beyond.header("content-range"), format!("bytes */{len}"));
    let several = fixture.get_with(&path, alice, &[("range", "bytes=0-1,5-6")]).await.done(200);
    assert_eq!(several.body.len(), len);

    let known =
        fixture.get_with(&path, alice, &[("if-none-match", &etag), ("range", "bytes=0-1")]).await.done(304);
    assert!(known.body.is_empty());
    assert_eq!(known.header("etag"), etag);
    fixture.get_with(&path, alice, &[("if-range", &etag), ("range", "bytes=0-1")]).await.done(206);
    fixture.get_with(&path, alice, &[("if-range", "\"other\""), ("range", "bytes=0-1")]).await.done(200);

    let head = request(Method::HEAD, &path, alice).header("range", "bytes=0-1").body(Body::empty()).unwrap();
    let head = fixture.ask(head).await.done(200);
    assert!(head.body.is_empty());
    assert_eq!(head.header("content-length"), len.to_string());
}

/// All the same from a store that has no files, as S3 has none.
#[tokio::test]
async fn a_remote_store_serves_the_same() {
    let store = Arc::new(object_store::memory::InMemory::new());
    let fixture = Fixture::empty(Limits::default(), Some(store.clone())).await;
    fixture.publish().await;
    read_whole_in_part_and_not_again(&fixture).await;
    // What `init` wrote.
    assert_eq!(fixture.files(""), ["owner"]);
    // Packs, segments, locators, manifests and signatures of two namespaces; a profile, its signature, stream and pointer;
    // nothing in staging.
    assert_eq!(store.list(None).count().await, 14);
}

#[tokio::test]
async fn locators_may_change_and_say_so() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let path = format!("/v1/data/user/alice/locators/{}", fixture.desktop.segment);
    let answer = fixture.get(&path, alice).await.done(200);
    assert_eq!(answer.header("cache-control"), "private, max-age=60");
    let etag = answer.header("etag").to_owned();
    assert_ne!(etag, format!("\"{}\"", fixture.desktop.segment));
    fixture.get_with(&path, alice, &[("if-none-match", &etag)]).await.done(304);
    let part = fixture.get_with(&path, alice, &[("range", "bytes=1-3")]).await.done(206);
    assert_eq!(part.body, answer.body[1..4]);
    let head = fixture.ask(request(Method::HEAD, &path, alice).body(Body::empty()).unwrap()).await.done(200);
    assert_eq!(head.header("content-length"), answer.body.len().to_string());

    let mut decoder = FrameDecoder::new().unwrap();
    let locator = Locator::decode(&answer.body, fixture.desktop.segment, &mut decoder).unwrap();
    let mut frame_decoder = FrameDecoder::new().unwrap();
    for (at, number) in (0..10).chain(100..110).enumerate() {
        let place = locator.place(at).unwrap();
        let pack = locator.pack(&place).unwrap();
        let (expected, bytes) = match number {
            100.. => ("user/alice", &fixture.desktop.pack_bytes),
            _ => ("image/debian", &fixture.image.pack_bytes),
        };
        assert_eq!(pack.namespace.to_string(), expected);
        let frame = &bytes[place.offset as usize..][..place.frame_len as usize];
        let mut chunk = vec![0; 65_536];
        frame_decoder.decode_chunk(frame, testing::chunk_id(number), &mut chunk).unwrap();
    }
    assert_eq!(locator.place(20), None);
}

#[tokio::test]
async fn manifests_and_signatures_are_the_bytes_that_were_committed() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let path = format!("/v1/data/image/debian/manifests/{}", fixture.image.version);
    let manifest = fixture.get(&path, alice).await.done(200);
    assert_eq!(manifest.body, fixture.image.manifest.encode().unwrap());
    assert_eq!(manifest.header("content-type"), "application/json");
    let signature = fixture.get(&format!("{path}.sig"), alice).await.done(200);
    assert_eq!(signature.body, format!("{}\n", fixture.image.signature));
    assert_eq!(signature.header("etag"), format!("\"{}.sig\"", fixture.image.version));
}

#[tokio::test]
async fn a_signature_that_the_store_lost_is_the_one_that_was_committed() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let path = format!("/v1/data/image/debian/manifests/{}.sig", fixture.image.version);
    let file = fixture.dir.path().join(path.replace("/v1/data", "objects"));
    let before = fixture.get(&path, alice).await.done(200);
    let (_, other) = testing::signed(&fixture.image.manifest, 9);
    std::fs::write(&file, other).unwrap();
    assert_eq!(fixture.get(&path, alice).await.done(200).body, before.body);
    std::fs::remove_file(&file).unwrap();
    let after = fixture.get(&path, alice).await.done(200);
    assert_eq!(after.body, format!("{}\n", fixture.image.signature));
    for name in ["etag", "content-type", "cache-control", "content-length"] {
        assert_eq!(after.header(name), before.header(name));
    }
    let part = fixture.get_with(&path, alice, &[("range", "bytes=0-7")]).await.done(206);
    assert_eq!(part.body, "satchel-");
    fixture.get_with(&path, alice, &[("if-none-match", before.header("etag"))]).await.done(304);
    let head = fixture.ask(request(Method::HEAD, &path, alice).body(Body::empty()).unwrap()).await.done(200);
    assert_eq!((head.header("content-length"), head.body.len()), (&*before.body.len().to_string(), 0));
    // Of what was not committed there is none.
    let none = path.replace(&fixture.image.version.to_string(), &ManifestId::of(b"x").to_string());
    fixture.get(&none, alice).await.refused(404, "not_found");
}

#[tokio::test]
async fn an_object_the_store_lost_is_not_a_404() {
    let fixture = Fixture::new().await;
    let path = format!("/v1/data/image/debian/packs/{}", fixture.image.pack);
    let file = fixture.dir.path().join(path.replace("/v1/data", "objects"));
    std::fs::remove_file(file).unwrap();
    let message = fixture.get(&path, &fixture.tokens.alice).await.refused(500, "lost");
    assert!(!message.contains("objects/") && message.contains(&fixture.image.pack.to_string()), "{message}");
    // Another upload heals it.
    fixture.put(&path, &fixture.tokens.publisher, &fixture.image.pack_bytes).await.done(200);
    fixture.get(&path, &fixture.tokens.alice).await.done(200);
}

#[tokio::test]
async fn listings_show_what_the_manual_says() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let images = fixture.get("/v1/images", alice).await.done(200).json();
    let version = fixture.image.version.to_string();
    let image = &images["images"][0];
    assert_eq!(image["image"], "debian");
    assert_eq!(image["channels"], serde_json::json!({ "stable": version }));
    assert_eq!(image["latest"]["id"], version);
    assert_eq!(image["latest"]["key"], image["publisher"]);
    assert_eq!(*image, fixture.get("/v1/images/debian", alice).await.done(200).json());
    let latest = image["latest"].as_object().unwrap();
    let fields: Vec<&str> = latest.keys().map(String::as_str).collect();
    let expected =
        ["committed_ms", "created_ms", "id", "key", "machine", "note", "parent", "sequence", "size_bytes"];
    assert_eq!(fields[..9], expected);
    assert_eq!(fields[9..], ["stored_bytes"]);
    assert_eq!(latest["size_bytes"], 64 << 20);

    let desktops = fixture.get("/v1/desktops", alice).await.done(200).json();
    let desktop = &desktops["desktops"][0];
    assert_eq!((&desktop["desktop"], &desktop["owner"]), (&"work".into(), &"alice".into()));
    assert_eq!(desktop["id"], fixture.desktop.version.to_string());
    assert_eq!(desktop["head"]["machine"], "laptop-b");
    let mut base = serde_json::to_value(fixture.desktop.manifest.base.as_ref().unwrap()).unwrap();
    base["mirrors"] = serde_json::json!([]);
    let pointer = format!("/v1/data/image/debian/manifests/{version}.profile");
    let pointer = fixture.get(&pointer, alice).await.done(200).body;
    base["profile"] = std::str::from_utf8(pointer.trim_ascii_end()).unwrap().into();
    assert_eq!(desktop["base"], base, "as the manifest has it");
    assert_eq!(base["publisher"].take(), image["publisher"]);
    assert_eq!(*desktop, fixture.get("/v1/desktops/work", alice).await.done(200).json());
    let others = fixture.get("/v1/desktops", &fixture.tokens.bob).await.done(200).json();
    assert_eq!(others, serde_json::json!({ "desktops": [] }));
}

#[tokio::test]
async fn versions_are_paged_newest_first() {
    let fixture = Fixture::new().await;
    let publisher = &fixture.tokens.publisher;
    let mut manifest = fixture.image.manifest.clone();
    for step in 2..=5 {
        manifest = testing::next(&manifest, &format!("step {step}"));
        fixture.commit("/v1/images/debian/versions", publisher, &manifest, 1).await.done(201);
    }
    let sequences = async |query: &str| {
        let listed =
            fixture.get(&format!("/v1/images/debian/versions{query}"), publisher).await.done(200).json();
        let versions = listed["versions"].as_array().unwrap().clone();
        versions.iter().map(|version| version["sequence"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(sequences("").await, [5, 4, 3, 2, 1]);
    assert_eq!(sequences("?limit=2").await, [5, 4]);
    assert_eq!(sequences("?limit=2&before=4").await, [3, 2]);
    assert_eq!(sequences("?before=1").await, [0u64; 0]);
    assert_eq!(sequences("?limit=9223372036854775807").await.len(), 5);
    // A channel that was not named stays where it was.
    let image = fixture.get("/v1/images/debian", publisher).await.json();
    assert_eq!(image["channels"]["stable"], fixture.image.version.to_string());
    assert_eq!(image["latest"]["sequence"], 5);
}
