//! Who may write a desktop, and what becomes of work that may not be its next version.

use axum::http::Method;
use chunk_format::{Manifest, ManifestId, SecretKey, Subject};
use serde_json::{Value, json};

use super::{Answer, Fixture};
use crate::clock::now_ms;
use crate::retention::{Policy, Pruning, prune_in};
use crate::testing;

const LEASE: &str = "/v1/desktops/work/lease";
const VERSIONS: &str = "/v1/desktops/work/versions";
const FORK: &str = "/v1/desktops/work.laptop-b-3fa2/versions?fork-of=work";

fn key(seed: u8) -> String {
    SecretKey::from_bytes(&[seed; 32]).public().to_string()
}

impl Fixture {
    async fn lease(&self, body: &Value) -> Answer {
        self.put(LEASE, &self.tokens.alice, body.to_string().as_bytes()).await
    }

    fn wish(&self, seed: u8, machine: &str) -> Value {
        json!({"key": key(seed), "machine": machine, "version": self.desktop.version})
    }

    fn fork(&self, note: &str) -> Manifest {
        let subject = Subject::Desktop {
            owner: "alice".parse().unwrap(),
            desktop: "work.laptop-b-3fa2".parse().unwrap(),
        };
        Manifest { subject, ..testing::next(&self.desktop.manifest, note) }
    }

    /// Commits the image's next version, and moves its channel there.
    async fn publish_next(&self, before: &Manifest) -> Manifest {
        let next = testing::next(before, "next");
        let path = "/v1/images/debian/versions?channel=stable";
        self.commit(path, &self.tokens.publisher, &next, testing::PUBLISHER_KEY).await.done(201);
        next
    }

    /// Prunes what only a policy would keep; the names and numbers of what is gone.
    pub(super) async fn prune_after(&self, days: i64, dry_run: bool) -> Vec<String> {
        let policy = Some(Policy { keep_last: 1, ..Policy::NONE });
        let wish = Pruning { policy, dry_run, ..Pruning::default() };
        let now = now_ms() + days * 24 * 3_600_000;
        let pruned = prune_in(&self.app.database, &wish, now).await.unwrap().pruned;
        pruned.iter().map(|version| format!("{}@{}", version.name, version.sequence)).collect()
    }

    /// As if nobody had heard of the holder for long.
    async fn let_leases_run_out(&self) {
        let mut tx = self.app.database.begin().await.unwrap();
        sqlx::query("UPDATE leases SET expires_ms = 1").execute(&mut *tx).await.unwrap();
        crate::database::commit(tx).await.unwrap();
    }
}

#[tokio::test]
async fn one_machine_holds_a_lease_and_others_are_told_which() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    assert_eq!(fixture.get(LEASE, alice).await.json()["lease"], Value::Null);
    let taken = fixture.lease(&fixture.wish(5, "laptop-a")).await.done(200).json();
    assert_eq!(taken["lease"]["machine"], "laptop-a");
    assert_eq!(taken["sync_every_s"], 600);
    assert_eq!(taken["after_expiry"], "read_only");
    let term_ms = taken["lease"]["expires_ms"].as_i64().unwrap() - taken["now_ms"].as_i64().unwrap();
    assert_eq!(term_ms, taken["lease_ms"].as_i64().unwrap());
    let refused = fixture.lease(&fixture.wish(6, "laptop-b")).await;
    let said = refused.refused(409, "lease_held");
    assert!(said.contains("work is in use on laptop-a since"), "{said}");
    assert_eq!(refused.json()["error"]["lease"]["version"]["sequence"], 1);
    // Renewing keeps its beginning.
    let renewed = fixture.lease(&fixture.wish(5, "laptop-a")).await.done(200).json();
    assert_eq!(renewed["lease"]["since_ms"], taken["lease"]["since_ms"]);
    assert_eq!(fixture.get("/v1/desktops/work", alice).await.json()["lease"]["machine"], "laptop-a");
    // Another's key ends nothing.
    fixture.send(Method::DELETE, &format!("{LEASE}?key={}", key(6)), alice, b"").await.done(204);
    fixture.lease(&fixture.wish(6, "laptop-b")).await.refused(409, "lease_held");
    fixture.send(Method::DELETE, &format!("{LEASE}?key={}", key(5)), alice, b"").await.done(204);
    fixture.lease(&fixture.wish(6, "laptop-b")).await.done(200);
    let mut take = fixture.wish(5, "laptop-a");
    take["take"] = true.into();
    fixture.lease(&take).await.done(200);
    fixture.lease(&fixture.wish(6, "laptop-b")).await.refused(409, "lease_held");
    fixture.let_leases_run_out().await;
    assert_eq!(fixture.get(LEASE, alice).await.json()["lease"], Value::Null);
    fixture.lease(&fixture.wish(6, "laptop-b")).await.done(200);
}

#[tokio::test]
async fn whoever_does_not_hold_the_lease_does_not_move_the_head() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    fixture.lease(&fixture.wish(5, "laptop-a")).await.done(200);
    let next = testing::next(&fixture.desktop.manifest, "second");
    let refused = fixture.commit(VERSIONS, alice, &next, 6).await;
    refused.refused(409, "lease_held");
    fixture.commit(VERSIONS, alice, &next, 5).await.done(201);
    let lease = fixture.get(LEASE, alice).await.json();
    assert_eq!(lease["lease"]["version"]["sequence"], 2, "a commit says what its machine stands on");
    // What is committed already is committed, whoever repeats it.
    fixture.commit(VERSIONS, alice, &next, 5).await.done(200);
    fixture.let_leases_run_out().await;
    fixture.commit(VERSIONS, alice, &testing::next(&next, "third"), 6).await.done(201);
}

#[tokio::test]
async fn work_that_may_not_be_the_next_version_becomes_a_fork() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let next = testing::next(&fixture.desktop.manifest, "second");
    fixture.commit(VERSIONS, alice, &next, 5).await.done(201);
    let fork = fixture.fork("mine");
    fixture
        .commit("/v1/desktops/work.laptop-b-3fa2/versions", alice, &fork, 6)
        .await
        .refused(409, "head_moved");
    fixture.commit(FORK, alice, &fork, 6).await.done(201);
    fixture.commit(FORK, alice, &fork, 6).await.done(200);
    let listed = fixture.get("/v1/desktops", alice).await.json();
    let desktops = listed["desktops"].as_array().unwrap();
    assert_eq!(desktops.len(), 2);
    assert_eq!(desktops[0]["fork_of"], Value::Null);
    assert_eq!(desktops[1]["fork_of"], "work");
    assert_eq!(desktops[1]["head"]["sequence"], 2);
    // It goes on as any desktop does.
    let second = testing::next(&fork, "more");
    fixture.commit("/v1/desktops/work.laptop-b-3fa2/versions", alice, &second, 6).await.done(201);
    // The name is taken: what is not its next version is refused, and nothing changes.
    fixture.commit(FORK, alice, &fixture.fork("other"), 7).await.refused(409, "head_moved");
    assert_eq!(fixture.get(VERSIONS, alice).await.json()["versions"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_fork_follows_the_desktop_it_names() {
    let fixture = Fixture::new().await;
    let (alice, bob) = (&fixture.tokens.alice, &fixture.tokens.bob);
    let fork = fixture.fork("mine");
    let elsewhere = "/v1/desktops/work.laptop-b-3fa2/versions?fork-of=play";
    fixture.commit(elsewhere, alice, &fork, 6).await.refused(404, "not_found");
    let first = Manifest { parent: None, sequence: 1, ..fork.clone() };
    let said = fixture.commit(FORK, alice, &first, 6).await.refused(400, "bad_request");
    assert!(said.contains("`parent`"), "{said}");
    let skipping = Manifest { sequence: 7, ..fork.clone() };
    let said = fixture.commit(FORK, alice, &skipping, 6).await.refused(400, "bad_request");
    assert!(said.contains("`sequence` is 7, but must be 2"), "{said}");
    fixture.commit(FORK, bob, &fork, 6).await.refused(403, "forbidden");
    // Made on a version this server has lost, when it was set back to an older state.
    let lost = Manifest { parent: Some(ManifestId::of(b"lost")), sequence: 9, ..fork };
    fixture.commit(FORK, alice, &lost, 6).await.done(201);
    // Of a desktop that was begun after that state.
    let unknown = "/v1/desktops/other.laptop-b-3fa2/versions?fork-of=other";
    let subject =
        Subject::Desktop { owner: "alice".parse().unwrap(), desktop: "other.laptop-b-3fa2".parse().unwrap() };
    fixture.commit(unknown, alice, &Manifest { subject, ..lost }, 6).await.done(201);
}

#[tokio::test]
async fn a_holder_is_asked_to_hand_over_and_may_say_why_not() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let ask = json!({"machine": "laptop-b"}).to_string();
    let wanted = format!("{LEASE}/wanted");
    assert_eq!(fixture.post(&wanted, alice, ask.as_bytes()).await.done(200).json()["lease"], Value::Null);
    fixture.lease(&fixture.wish(5, "laptop-a")).await.done(200);
    fixture.post(&wanted, alice, ask.as_bytes()).await.done(200);
    let renewed = fixture.lease(&fixture.wish(5, "laptop-a")).await.done(200).json();
    assert_eq!(renewed["lease"]["wanted"]["machine"], "laptop-b");
    let mut refusal = fixture.wish(5, "laptop-a");
    refusal["refusal"] = "its disks are in use".into();
    fixture.lease(&refusal).await.done(200);
    assert_eq!(fixture.get(LEASE, alice).await.json()["lease"]["refusal"], "its disks are in use");
    // Who waits hears it, and who asks anew is answered anew.
    let again = json!({"machine": "laptop-b", "again": true}).to_string();
    fixture.post(&wanted, alice, again.as_bytes()).await.done(200);
    assert_eq!(fixture.get(LEASE, alice).await.json()["lease"]["refusal"], "its disks are in use");
    fixture.post(&wanted, alice, ask.as_bytes()).await.done(200);
    assert_eq!(fixture.get(LEASE, alice).await.json()["lease"]["refusal"], Value::Null);
    // Who does not ask again does not wait any more.
    let mut tx = fixture.app.database.begin().await.unwrap();
    sqlx::query("UPDATE leases SET wanted_ms = wanted_ms - 60000").execute(&mut *tx).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(fixture.get(LEASE, alice).await.json()["lease"]["wanted"], Value::Null);
    let renewed = fixture.lease(&fixture.wish(5, "laptop-a")).await.done(200).json();
    assert_eq!(renewed["lease"]["wanted"], Value::Null);
}

#[tokio::test]
async fn what_a_machine_that_lost_its_lease_stands_on_is_kept_with_its_golden_version() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let golden = fixture.publish_next(&fixture.image.manifest).await;
    let third = fixture.publish_next(&golden).await;
    fixture.publish_next(&third).await;
    fixture.lease(&fixture.wish(5, "laptop-a")).await.done(200);
    let on = |golden: &Manifest, parent: &Manifest| {
        let next = Manifest { note: None, ..testing::next(parent, "") };
        let version = ManifestId::of(&golden.encode().unwrap());
        Manifest { base: next.base.map(|base| chunk_format::Base { version, ..base }), ..next }
    };
    let second = on(&golden, &fixture.desktop.manifest);
    fixture.commit(VERSIONS, alice, &second, 5).await.done(201);
    let mut take = fixture.wish(6, "laptop-b");
    take["take"] = true.into();
    fixture.lease(&take).await.done(200);
    let mut head = second.clone();
    for _ in 0..2 {
        head = on(&fixture.image.manifest, &head);
        fixture.commit(VERSIONS, alice, &head, 6).await.done(201);
    }
    assert_eq!(
        fixture.prune_after(0, false).await,
        ["work@3"],
        "the second has its machine, the fourth is new"
    );
    // Half a year on nobody is thought to come back with it.
    assert_eq!(fixture.prune_after(181, true).await, ["work@2", "debian@2"]);
    // A machine that is refused is heard of all the same.
    let mut back = fixture.wish(5, "laptop-a");
    back["version"] = json!(ManifestId::of(&second.encode().unwrap()));
    fixture.lease(&back).await.refused(409, "lease_held");
    fixture.send(Method::DELETE, &format!("{LEASE}?key={}", key(5)), alice, b"").await.done(204);
    assert_eq!(fixture.prune_after(179, false).await, [""; 0]);
    let subject = fixture.fork("mine").subject;
    let fork = Manifest { subject, ..testing::next(&second, "written offline") };
    fixture.commit(FORK, alice, &fork, 5).await.done(201);
}

#[tokio::test]
async fn a_commit_repeated_after_its_version_was_pruned_is_told_that_the_head_has_moved() {
    let fixture = Fixture::new().await;
    let alice = &fixture.tokens.alice;
    let mut head = fixture.desktop.manifest.clone();
    let mut versions = Vec::new();
    for _ in 0..3 {
        head = Manifest { note: None, ..testing::next(&head, "") };
        fixture.commit(VERSIONS, alice, &head, 5).await.done(201);
        versions.push(head.clone());
    }
    fixture.commit(VERSIONS, alice, &versions[0], 5).await.done(200);
    assert_eq!(fixture.prune_after(0, false).await, ["work@3", "work@2"]);
    let refused = fixture.commit(VERSIONS, alice, &versions[0], 5).await;
    refused.refused(409, "head_moved");
    assert_eq!(refused.json()["error"]["head"]["sequence"], 4);
    // The work goes on as a fork of what is kept.
    let subject = fixture.fork("mine").subject;
    fixture.commit(FORK, alice, &Manifest { subject, ..versions[0].clone() }, 5).await.done(201);
}

#[tokio::test]
async fn a_bad_wish_is_refused_by_name() {
    let fixture = Fixture::new().await;
    let good = fixture.wish(5, "laptop-a");
    for (field, value) in [
        ("key", json!("ed25519:00")),
        ("machine", json!("")),
        ("machine", json!("a\u{1b}[2J")),
        ("version", json!(ManifestId::of(b"unknown"))),
        ("refusal", json!("x".repeat(1001))),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        fixture.lease(&bad).await.refused(400, "bad_request");
    }
    fixture.send(Method::DELETE, LEASE, &fixture.tokens.alice, b"").await.refused(400, "bad_request");
    fixture.get(LEASE, &fixture.tokens.bob).await.refused(404, "not_found");
}
