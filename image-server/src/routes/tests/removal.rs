//! Desktops that are removed, are taken back, and are gone.

use axum::http::Method;
use chunk_format::{Manifest, ManifestId, Name, SecretKey};
use serde_json::{Value, json};

use super::{Answer, Fixture};
use crate::clock::now_ms;
use crate::removal::{self, RemovalError};
use crate::retention::{Pruning, prune_in};
use crate::testing;

const DESKTOP: &str = "/v1/desktops/work";
const VERSIONS: &str = "/v1/desktops/work/versions";
const DAY_MS: i64 = 24 * 3_600_000;

fn key(seed: u8) -> String {
    SecretKey::from_bytes(&[seed; 32]).public().to_string()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

impl Fixture {
    async fn remove(&self, head: ManifestId, seed: u8) -> Answer {
        let path = format!("{DESKTOP}?head={head}&key={}", key(seed));
        self.send(Method::DELETE, &path, &self.tokens.alice, b"").await
    }

    /// Prunes as `satchel-server retention` does so many days from now; how many versions.
    async fn prune_in_days(&self, days: i64) -> usize {
        let now = now_ms() + days * DAY_MS;
        prune_in(&self.app.database, &Pruning::default(), now).await.unwrap().pruned.len()
    }
}

#[tokio::test]
async fn what_is_removed_is_the_version_that_was_looked_at_and_nobody_elses() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let first = fixture.desktop.version;
    let second = testing::next(&fixture.desktop.manifest, "later");
    fixture.commit(VERSIONS, alice, &second, 5).await.done(201);
    let head = ManifestId::of(&second.encode().unwrap());

    fixture.remove(first, 5).await.refused(409, "head_moved");
    for query in ["", "?head=1", &format!("?head={head}"), &format!("?key={}", key(5))] {
        let path = format!("{DESKTOP}{query}");
        fixture.send(Method::DELETE, &path, alice, b"").await.refused(400, "bad_request");
    }
    let path = format!("{DESKTOP}?head={head}&key={}", key(5));
    fixture.send(Method::DELETE, &path, &fixture.tokens.bob, b"").await.refused(404, "not_found");
    let wish = json!({"key": key(6), "machine": "laptop-b", "version": head}).to_string();
    fixture.put("/v1/desktops/work/lease", alice, wish.as_bytes()).await.done(200);
    fixture.remove(head, 5).await.refused(409, "lease_held");

    let removed = fixture.remove(head, 6).await.done(200).json();
    assert_eq!((&removed["desktop"], &removed["versions"]), (&"work".into(), &2.into()), "{removed}");
    fixture.remove(head, 6).await.refused(404, "not_found");
    fixture.get(DESKTOP, alice).await.refused(404, "not_found");
    fixture.get(VERSIONS, alice).await.refused(404, "not_found");
    let listed = fixture.get("/v1/desktops", alice).await.json();
    assert_eq!(listed["desktops"], Value::Array(Vec::new()));
    // Who stood on it is told that it is gone, and has a name for its work.
    let third = testing::next(&second, "written meanwhile");
    let gone = fixture.commit(VERSIONS, alice, &third, 6).await;
    gone.refused(409, "head_moved");
    assert_eq!(gone.json()["error"]["head"], Value::Null);
}

#[tokio::test]
async fn a_name_is_free_and_the_last_one_of_it_can_be_taken_back() {
    let fixture = Fixture::new().await;
    let (alice, root) = (&fixture.tokens.alice, fixture.dir.path());
    fixture.remove(fixture.desktop.version, 5).await.done(200);
    let again = Manifest { note: Some("begun anew".to_owned()), ..fixture.desktop.manifest.clone() };
    fixture.commit(VERSIONS, alice, &again, 5).await.done(201);
    let taken = removal::take_back(root, &name("alice"), &name("work")).await;
    assert!(matches!(taken, Err(RemovalError::NameTaken { .. })), "{taken:?}");
    let gone = removal::remove(root, &name("alice"), &name("work"), false).await.unwrap();
    assert_eq!(gone.versions, 1);
    assert_eq!(removal::list(root).await.unwrap().len(), 2);

    removal::take_back(root, &name("alice"), &name("work")).await.unwrap();
    let head = fixture.get(DESKTOP, alice).await.done(200).json()["head"].clone();
    assert_eq!(head["note"], "begun anew");
    for (owner, desktop) in [("alice", "none"), ("bob", "work")] {
        let removed = removal::remove(root, &name(owner), &name(desktop), true).await;
        assert!(matches!(removed, Err(RemovalError::NoSuchDesktop { .. })), "{removed:?}");
        let taken = removal::take_back(root, &name(owner), &name(desktop)).await;
        assert!(matches!(taken, Err(RemovalError::NotRemoved { .. })), "{taken:?}");
    }
}

#[tokio::test]
async fn what_was_removed_stays_for_a_week_and_is_pruned_then() {
    let fixture = Fixture::new().await;
    let root = fixture.dir.path();
    fixture.remove(fixture.desktop.version, 5).await.done(200);
    assert_eq!(fixture.prune_in_days(6).await, 0);
    assert_eq!(removal::list(root).await.unwrap().len(), 1);
    let report = crate::verify::verify(root, &Silent).await.unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    assert_eq!(fixture.prune_in_days(8).await, 1);
    assert_eq!(removal::list(root).await.unwrap(), []);
    let taken = removal::take_back(root, &name("alice"), &name("work")).await;
    assert!(matches!(taken, Err(RemovalError::NotRemoved { .. })), "{taken:?}");

    // At once, where somebody says so, also of one that was removed before.
    let fixture = Fixture::new().await;
    let root = fixture.dir.path();
    fixture.remove(fixture.desktop.version, 5).await.done(200);
    let gone = removal::remove(root, &name("alice"), &name("work"), true).await.unwrap();
    assert_eq!(gone.versions, 1);
    assert_eq!(removal::list(root).await.unwrap(), []);
}

struct Silent;

impl crate::verify::Progress for Silent {
    fn begin(&self, _: crate::verify::Part, _: u64) {}
    fn advance(&self, _: u64) {}
}
