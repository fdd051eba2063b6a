//! Boot profiles: attached by the publisher, replaced, and never without their streams.

use axum::http::header;
use chunk_format::{MAX_STREAM_BYTES, ManifestId, ProfileId, StreamId};

use super::{Answer, Fixture};
use crate::testing;

const STREAMS: &str = "/v1/data/image/debian/streams";

impl Fixture {
    async fn put_stream(&self, bytes: &[u8]) {
        let path = format!("{STREAMS}/{}", StreamId::of(bytes));
        self.put(&path, &self.tokens.publisher, bytes).await.done(201);
    }

    /// The profile that a desktop's listing names.
    async fn listed(&self) -> serde_json::Value {
        let desktop = self.get("/v1/desktops/work", &self.tokens.alice).await.done(200).json();
        desktop["base"]["profile"].clone()
    }

    async fn pointer(&self) -> Answer {
        let path = format!("/v1/data/image/debian/manifests/{}.profile", self.image.version);
        self.get(&path, &self.tokens.alice).await
    }
}

#[tokio::test]
async fn a_profile_is_attached_read_and_replaced() {
    let fixture = Fixture::new().await;
    let (publisher, alice) = (&fixture.tokens.publisher, &fixture.tokens.alice);
    let version = fixture.image.version;
    fixture.put_stream(b"one").await;
    fixture.put_stream(b"two").await;
    let path = format!("{STREAMS}/{}", StreamId::of(b"one"));
    fixture.put(&path, publisher, b"one").await.done(200);
    assert_eq!(fixture.get_with(&path, alice, &[("range", "bytes=1-1")]).await.done(206).body, "n");

    let first = testing::profile(version, &[b"one"], 1);
    let id = ProfileId::of(&first.0);
    let answer = fixture.attach(version, publisher, &first).await.done(201).json();
    assert_eq!(answer, serde_json::json!({"profile": id.to_string(), "manifest": version.to_string()}));
    fixture.attach(version, publisher, &first).await.done(200);
    let pointer = fixture.pointer().await.done(200);
    assert_eq!(pointer.body, format!("{id}\n"));
    assert_eq!(pointer.header(header::CACHE_CONTROL), "private, max-age=60");
    let path = format!("/v1/data/image/debian/profiles/{id}");
    assert_eq!(fixture.get(&path, alice).await.done(200).body, first.0);
    let signature = fixture.get(&format!("{path}.sig"), alice).await.done(200).body;
    assert_eq!(signature.trim_ascii_end(), first.1.as_bytes());

    let second = testing::profile(version, &[b"one", b"two"], 1);
    fixture.attach(version, publisher, &second).await.done(201);
    assert_eq!(fixture.pointer().await.body, format!("{}\n", ProfileId::of(&second.0)));
    assert_eq!(fixture.listed().await, ProfileId::of(&second.0).to_string());
    // Whoever was pointed to the first a moment ago still finds it.
    fixture.get(&path, alice).await.done(200);
    fixture.attach(version, publisher, &first).await.done(201);
    assert_eq!(fixture.pointer().await.body, format!("{id}\n"));
    // A static host over the same tree says the same.
    let file = fixture.dir.path().join(format!("objects/image/debian/manifests/{version}.profile"));
    assert_eq!(std::fs::read_to_string(file).unwrap(), format!("{id}\n"));
}

#[tokio::test]
async fn a_profile_that_does_not_fit_is_refused_and_leaves_nothing() {
    let fixture = Fixture::new().await;
    let publisher = &fixture.tokens.publisher;
    let version = fixture.image.version;
    fixture.put_stream(b"one").await;
    let good = testing::profile(version, &[b"one"], 1);
    let other_key = testing::profile(version, &[b"one"], 9);
    fixture.attach(version, publisher, &other_key).await.refused(403, "publisher_key");
    fixture
        .attach(version, publisher, &(good.0.clone(), testing::profile(version, &[], 1).1))
        .await
        .refused(422, "damaged");
    let lacking = testing::profile(version, &[b"one", b"never sent"], 1);
    let answer = fixture.attach(version, publisher, &lacking).await;
    answer.refused(409, "streams_missing");
    assert_eq!(answer.json()["error"]["missing"], 1);
    let elsewhere = testing::profile(fixture.desktop.version, &[b"one"], 1);
    fixture.attach(version, publisher, &elsewhere).await.refused(400, "bad_request");
    let unknown = ManifestId::of(b"unknown");
    let of_unknown = testing::profile(unknown, &[b"one"], 1);
    fixture.attach(unknown, publisher, &of_unknown).await.refused(404, "not_found");
    for token in [&fixture.tokens.alice, &fixture.tokens.foreign_publisher] {
        fixture.attach(version, token, &good).await.refused(403, "forbidden");
    }
    assert_eq!(fixture.files("image/debian/profiles").len(), 2, "those of the profile that was there");
    let there = ProfileId::of(&fixture.profile().0);
    assert_eq!(fixture.pointer().await.done(200).body, format!("{there}\n"));
}

#[tokio::test]
async fn a_stream_is_what_its_name_says() {
    let fixture = Fixture::new().await;
    let (publisher, alice) = (&fixture.tokens.publisher, &fixture.tokens.alice);
    let path = format!("{STREAMS}/{}", StreamId::of(b"one"));
    fixture.put(&path, publisher, b"two").await.refused(422, "damaged");
    fixture.put(&path, alice, b"one").await.refused(403, "forbidden");
    fixture.put(&path, publisher, &vec![0; MAX_STREAM_BYTES + 1]).await.refused(413, "too_large");
    assert_eq!(fixture.files("image/debian/streams").len(), 1, "the one that was there");
    fixture.get(&path, publisher).await.refused(404, "not_found");
}
