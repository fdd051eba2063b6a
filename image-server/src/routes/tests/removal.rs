//! Desktops that are removed, are taken back, and are gone.

use axum::http::Method;
use chunk_format::{Manifest, ManifestId, Name, SecretKey};
use serde_json::{Value, json};

use super::{Answer, Fixture};
use crate::removal::{self, RemovalError};
use crate::testing;

const DESKTOP: &str = "/v1/desktops/work";
const VERSIONS: &str = "/v1/desktops/work/versions";

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
    // Whoever stands on any of its versions can tell that from a server that lost them.
    for version in [first, head] {
        let path = format!("/v1/removed/{version}");
        assert_eq!(fixture.get(&path, alice).await.done(200).json()["desktop"], "work");
        fixture.get(&path, &fixture.tokens.bob).await.refused(404, "not_found");
    }
    let never = format!("/v1/removed/{}", fixture.image.version);
    fixture.get(&never, alice).await.refused(404, "not_found");
    fixture.get(DESKTOP, alice).await.refused(404, "not_found");
    fixture.get(VERSIONS, alice).await.refused(404, "not_found");
    let listed = fixture.get("/v1/desktops", alice).await.json();
    assert_eq!(listed["desktops"], Value::Array(Vec::new()));
    // Who stood on it is told that it is gone, and has a name for its work.
    let third = testing::next(&second, "written meanwhile");
    let gone = fixture.commit(VERSIONS, alice, &third, 6).await;
    gone.refused(409, "head_moved");
    assert_eq!(gone.json()["error"]["head"], Value::Null);
    // So is who repeats a commit whose answer was lost: it would fold its work onto what is gone.
    let again = fixture.commit(VERSIONS, alice, &second, 5).await;
    again.refused(409, "head_moved");
    assert_eq!(again.json()["error"]["head"], Value::Null);
    let begun = Manifest { note: Some("begun anew".to_owned()), ..fixture.desktop.manifest.clone() };
    fixture.commit(VERSIONS, alice, &begun, 5).await.done(201);
    let again = fixture.commit(VERSIONS, alice, &second, 5).await;
    again.refused(409, "head_moved");
    assert_eq!(again.json()["error"]["head"]["note"], "begun anew");
}

#[tokio::test]
async fn a_name_is_free_and_each_one_of_it_can_be_taken_back() {
    let fixture = Fixture::new().await;
    let (alice, root) = (&fixture.tokens.alice, fixture.dir.path());
    let (owner, work) = (name("alice"), name("work"));
    let first = fixture.remove(fixture.desktop.version, 5).await.done(200).json()["number"].as_i64();
    let again = Manifest { note: Some("begun anew".to_owned()), ..fixture.desktop.manifest.clone() };
    fixture.commit(VERSIONS, alice, &again, 5).await.done(201);
    let taken = removal::take_back(root, &owner, &work, None).await;
    assert!(matches!(taken, Err(RemovalError::NameTaken { .. })), "{taken:?}");
    let second = removal::remove(root, &owner, &work, false).await.unwrap();
    assert_eq!(second.versions, 1);
    let listed: Vec<_> = removal::list(root).await.unwrap().iter().map(|removed| removed.number).collect();
    assert_eq!(listed, [second.number, first.unwrap()]);
    // No name reaches them, their own in the database neither.
    let own = format!("/v1/desktops/removed-{}-{}", second.number, second.removed_ms);
    fixture.get(&own, alice).await.refused(404, "not_found");

    removal::take_back(root, &owner, &work, None).await.unwrap();
    let note = async || fixture.get(DESKTOP, alice).await.done(200).json()["head"]["note"].clone();
    assert_eq!(note().await, "begun anew");
    // Erasing the one there is leaves the other, which its number names.
    removal::remove(root, &owner, &work, true).await.unwrap();
    assert_eq!(removal::list(root).await.unwrap().len(), 1);
    removal::take_back(root, &owner, &work, first).await.unwrap();
    assert_eq!(note().await, Value::Null);
    removal::remove(root, &owner, &work, false).await.unwrap();
    removal::erase(root, &owner, &work, first.unwrap()).await.unwrap();
    assert_eq!(removal::list(root).await.unwrap(), []);

    for (owner, desktop) in [("alice", "none"), ("bob", "work")] {
        let removed = removal::remove(root, &name(owner), &name(desktop), true).await;
        assert!(matches!(removed, Err(RemovalError::NoSuchDesktop { .. })), "{removed:?}");
        let taken = removal::take_back(root, &name(owner), &name(desktop), None).await;
        assert!(matches!(taken, Err(RemovalError::NotRemoved { .. })), "{taken:?}");
    }
}

#[tokio::test]
async fn what_was_removed_stays_as_it_was_for_a_week_and_is_pruned_then() {
    let fixture = Fixture::new().await;
    let (alice, root) = (&fixture.tokens.alice, fixture.dir.path());
    let mut last = fixture.desktop.manifest.clone();
    for _ in 0..3 {
        last = testing::next(&last, "");
        fixture.commit(VERSIONS, alice, &last, 5).await.done(201);
    }
    let head = ManifestId::of(&last.encode().unwrap());
    fixture.remove(head, 5).await.done(200);
    // Not by a policy that would keep less, either: it is taken back as it was.
    assert_eq!(fixture.prune_after(6, false).await, [""; 0]);
    assert_eq!(removal::list(root).await.unwrap()[0].versions, 4);
    let report = crate::verify::verify(root, &Silent).await.unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
    // One is what the machine that made it was last heard to stand on.
    assert_eq!(fixture.prune_after(8, false).await.len(), 3);
    assert_eq!(removal::list(root).await.unwrap(), []);
    assert_eq!(fixture.prune_after(190, false).await.len(), 1);
    let taken = removal::take_back(root, &name("alice"), &name("work"), None).await;
    assert!(matches!(taken, Err(RemovalError::NotRemoved { .. })), "{taken:?}");
}

#[tokio::test]
async fn what_forks_and_machines_need_of_a_removed_desktop_is_kept_for_them_alone() {
    let fixture = Fixture::new().await;
    let (alice, root) = (&fixture.tokens.alice, fixture.dir.path());
    let first = fixture.desktop.version;
    let second = testing::next(&fixture.desktop.manifest, "");
    fixture.commit(VERSIONS, alice, &second, 5).await.done(201);
    let head = ManifestId::of(&second.encode().unwrap());
    // A machine stands on the first one, and another one removes the desktop.
    let standing = json!({"key": key(6), "version": first}).to_string();
    fixture.put("/v1/desktops/work/standing", alice, standing.as_bytes()).await.done(204);
    fixture.remove(head, 5).await.done(200);
    assert_eq!(fixture.prune_after(8, false).await, ["work@2"]);
    // What is left of it is no desktop that could be taken back.
    assert_eq!(removal::list(root).await.unwrap(), []);
    let subject = chunk_format::Subject::Desktop { owner: name("alice"), desktop: name("work.b-1") };
    let fork = Manifest { subject, ..testing::next(&fixture.desktop.manifest, "written meanwhile") };
    fixture.commit("/v1/desktops/work.b-1/versions?fork-of=work", alice, &fork, 6).await.done(201);
    assert_eq!(fixture.prune_after(190, false).await, [""; 0], "the fork began on it");
    let fork = removal::remove(root, &name("alice"), &name("work.b-1"), true).await.unwrap();
    assert_eq!(fork.versions, 1);
    assert_eq!(fixture.prune_after(190, false).await, ["work@1"]);
}

struct Silent;

impl crate::verify::Progress for Silent {
    fn begin(&self, _: crate::verify::Part, _: u64) {}
    fn advance(&self, _: u64) {}
}
