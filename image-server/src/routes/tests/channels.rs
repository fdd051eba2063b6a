//! Channels moving, staged and back, and what desktops say of the versions they lead to.

use axum::http::Method;
use chunk_format::{Manifest, ManifestId, SecretKey, rollback_statement};
use serde_json::{Value, json};

use super::{Answer, Fixture, request};
use crate::testing;

const CHANNEL: &str = "/v1/images/debian/channels/stable";
const IMAGE: &str = "/v1/images/debian";

/// Adds versions 2 and on; the ids of all. The channel stays at the first.
async fn publish(fixture: &Fixture, versions: usize) -> Vec<String> {
    let mut last: Manifest = fixture.image.manifest.clone();
    let mut ids = vec![fixture.image.version.to_string()];
    for number in 2..=versions {
        last = testing::next(&last, &format!("version {number}"));
        let path = "/v1/images/debian/versions";
        let answer = fixture.commit(path, &fixture.tokens.publisher, &last, 1).await.done(201).json();
        ids.push(answer["id"].as_str().unwrap().to_owned());
    }
    ids
}

async fn put(fixture: &Fixture, body: Value) -> Answer {
    fixture.put(CHANNEL, &fixture.tokens.publisher, body.to_string().as_bytes()).await
}

async fn rollout(fixture: &Fixture) -> Value {
    let image = fixture.get(IMAGE, &fixture.tokens.alice).await.done(200).json();
    assert_eq!(image["channels"]["stable"], image["rollouts"]["stable"]["version"]["id"]);
    image["rollouts"]["stable"].clone()
}

fn back_signature(version: &str, newest: u64, key: u8) -> String {
    let version: ManifestId = version.parse().unwrap();
    let statement =
        rollback_statement(&"debian".parse().unwrap(), &"stable".parse().unwrap(), version, newest);
    SecretKey::from_bytes(&[key; 32]).sign(&statement).to_string()
}

#[tokio::test]
async fn a_staged_move_keeps_the_version_before_it() {
    let fixture = Fixture::new().await;
    let ids = publish(&fixture, 4).await;
    let before = rollout(&fixture).await;
    assert_eq!(
        (&before["percent"], &before["paused"], &before["previous"]),
        (&json!(100), &json!(false), &json!(null))
    );
    let moved =
        put(&fixture, json!({"version": ids[1], "percent": 10, "from": ids[0]})).await.done(200).json();
    assert_eq!(moved["previous"]["id"], ids[0].as_str());
    assert_eq!((&moved["version"]["sequence"], &moved["percent"]), (&json!(2), &json!(10)));
    // What is not said stays as it is, and the next staged move leaves the others where they are.
    let paused = put(&fixture, json!({"version": ids[1], "paused": true})).await.done(200).json();
    assert_eq!((&paused["percent"], &paused["paused"]), (&json!(10), &json!(true)));
    let next = put(&fixture, json!({"version": ids[2], "percent": 50})).await.done(200).json();
    assert_eq!((&next["previous"]["id"], &next["paused"]), (&json!(ids[0]), &json!(false)));
    // Once it has reached all, it is what the next one keeps.
    put(&fixture, json!({"version": ids[2], "percent": 100})).await.done(200);
    let last = put(&fixture, json!({"version": ids[3]})).await.done(200).json();
    assert_eq!(last["previous"]["id"], ids[2].as_str());
    assert_eq!(last["moves"].as_array().unwrap().len(), 6);
    assert_eq!(last["moves"][0]["sequence"], 4);
    assert_eq!(fixture.get(CHANNEL, &fixture.tokens.alice).await.done(200).json(), last);
}

#[tokio::test]
async fn a_move_back_is_the_publishers_word() {
    let fixture = Fixture::new().await;
    let ids = publish(&fixture, 3).await;
    put(&fixture, json!({"version": ids[2]})).await.done(200);
    let back = |signature: Option<String>| json!({"version": ids[0], "from": ids[2], "signature": signature});
    assert!(put(&fixture, back(None)).await.refused(400, "bad_request").contains("signature"));
    let other_key = back(Some(back_signature(&ids[0], 3, 9)));
    put(&fixture, other_key).await.refused(403, "publisher_key");
    // A word from before the newest version is none.
    put(&fixture, back(Some(back_signature(&ids[0], 2, 1)))).await.refused(422, "damaged");
    put(&fixture, back(Some(back_signature(&ids[1], 3, 1)))).await.refused(422, "damaged");
    let staged = json!({"version": ids[0], "percent": 50, "signature": back_signature(&ids[0], 3, 1)});
    put(&fixture, staged).await.refused(400, "bad_request");
    assert_eq!(rollout(&fixture).await["version"]["sequence"], 3);

    let signature = back_signature(&ids[0], 3, 1);
    let moved = put(&fixture, back(Some(signature.clone()))).await.done(200).json();
    assert_eq!((&moved["version"]["sequence"], &moved["previous"]), (&json!(1), &json!(null)));
    assert_eq!(rollout(&fixture).await["rollback"], json!({"newest": 3, "signature": signature}));
    // Forward again: the word is gone, and the version before is kept.
    let forward = put(&fixture, json!({"version": ids[1]})).await.done(200).json();
    assert_eq!((&forward["rollback"], &forward["previous"]["sequence"]), (&json!(null), &json!(1)));
}

#[tokio::test]
async fn the_word_for_a_move_back_is_given_anew_while_the_channel_stays() {
    let fixture = Fixture::new().await;
    let ids = publish(&fixture, 3).await;
    let stay = |newest: u64, key: u8| {
        let signature = back_signature(&ids[0], newest, key);
        json!({"version": ids[0], "from": ids[0], "signature": signature})
    };
    // A channel that was not taken back has no word to renew.
    assert_eq!(put(&fixture, stay(3, 1)).await.done(200).json()["rollback"], json!(null));
    put(&fixture, json!({"version": ids[2]})).await.done(200);
    let first = back_signature(&ids[0], 3, 1);
    put(&fixture, json!({"version": ids[0], "signature": first})).await.done(200);

    let third = testing::next(&fixture.image.manifest, "version 2");
    let third = testing::next(&third, "version 3");
    let path = "/v1/images/debian/versions?channel=testing";
    let fourth = testing::next(&third, "version 4");
    fixture.commit(path, &fixture.tokens.publisher, &fourth, 1).await.done(201);
    // Without a word, the one there is stays.
    let same = put(&fixture, json!({"version": ids[0], "from": ids[0]})).await.done(200).json();
    assert_eq!(same["rollback"], json!({"newest": 3, "signature": first}));
    put(&fixture, stay(3, 1)).await.refused(422, "damaged");
    put(&fixture, stay(4, 9)).await.refused(403, "publisher_key");
    let anew = put(&fixture, stay(4, 1)).await.done(200).json();
    let word = json!({"newest": 4, "signature": back_signature(&ids[0], 4, 1)});
    assert_eq!((&anew["rollback"], &anew["version"]["sequence"]), (&word, &json!(1)));
    assert_eq!((&anew["previous"], &anew["percent"]), (&json!(null), &json!(100)));
    assert_eq!(rollout(&fixture).await["rollback"], word);
}

#[tokio::test]
async fn a_move_names_a_version_of_the_image_and_the_channel_as_it_is() {
    let fixture = Fixture::new().await;
    let ids = publish(&fixture, 2).await;
    let desktop = fixture.desktop.version;
    for strange in [desktop.to_string(), ManifestId::of(b"never").to_string()] {
        let message = put(&fixture, json!({"version": strange})).await.refused(400, "bad_request");
        assert!(message.contains("is no version of image debian"), "{message}");
    }
    let answer = put(&fixture, json!({"version": ids[1], "from": ids[1]})).await;
    answer.refused(409, "channel_moved");
    assert_eq!(answer.json()["error"]["present"], ids[0].as_str());
    put(&fixture, json!({"version": ids[1], "percent": 101})).await.refused(400, "bad_request");
    put(&fixture, json!({"version": ids[1], "percentage": 1})).await.refused(400, "bad_request");
    put(&fixture, json!({})).await.refused(400, "bad_request");
    // A channel that does not exist yet is made by its first move.
    let path = "/v1/images/debian/channels/beta";
    fixture.get(path, &fixture.tokens.alice).await.refused(404, "not_found");
    let body = json!({"version": ids[1]}).to_string();
    fixture.put(path, &fixture.tokens.publisher, body.as_bytes()).await.done(200);
    assert_eq!(fixture.get(path, &fixture.tokens.alice).await.json()["version"]["sequence"], 2);
}

#[tokio::test]
async fn a_channel_without_a_version_before_is_for_all() {
    let fixture = Fixture::new().await;
    let ids = publish(&fixture, 2).await;
    let path = "/v1/images/debian/channels/beta";
    let put_new =
        async |body: Value| fixture.put(path, &fixture.tokens.publisher, body.to_string().as_bytes()).await;
    for staged in [json!({"percent": 99}), json!({"percent": 0}), json!({"paused": true})] {
        let mut body = staged.clone();
        body["version"] = json!(ids[1]);
        let message = put_new(body).await.refused(400, "bad_request");
        assert!(message.contains("channel beta has no version before 2"), "{message}");
    }
    fixture.get(path, &fixture.tokens.alice).await.refused(404, "not_found");
    put_new(json!({"version": ids[0], "percent": 100, "paused": false})).await.done(200);
    // It still has none before its first, where those would begin who come new; but it may be paused.
    put_new(json!({"version": ids[0], "percent": 10})).await.refused(400, "bad_request");
    put_new(json!({"version": ids[0], "paused": true})).await.done(200);
    let moved = put_new(json!({"version": ids[1], "percent": 10})).await.done(200).json();
    assert_eq!((&moved["previous"]["sequence"], &moved["percent"]), (&json!(1), &json!(10)));
    put_new(json!({"version": ids[1], "percent": 20})).await.done(200);
}

#[tokio::test]
async fn a_channel_is_not_moved_to_a_version_that_was_pruned() {
    let fixture = Fixture::new().await;
    let ids = publish(&fixture, 3).await;
    put(&fixture, json!({"version": ids[2], "percent": 10})).await.done(200);
    put(&fixture, json!({"version": ids[0], "signature": back_signature(&ids[0], 3, 1)})).await.done(200);
    assert_eq!(fixture.prune_after(0, false).await, ["debian@2"]);
    let message = put(&fixture, json!({"version": ids[1]})).await.refused(400, "bad_request");
    assert!(message.contains("is no version of image debian"), "{message}");
    assert_eq!(rollout(&fixture).await["version"]["sequence"], 1);
}

#[tokio::test]
async fn who_knows_an_image_as_it_is_is_told_so() {
    let fixture = Fixture::new().await;
    let ids = publish(&fixture, 2).await;
    let alice = &fixture.tokens.alice;
    let etag = fixture.get(IMAGE, alice).await.done(200).header("etag").to_owned();
    let again = fixture.get_with(IMAGE, alice, &[("if-none-match", &etag)]).await.done(304);
    assert!(again.body.is_empty());
    put(&fixture, json!({"version": ids[1], "percent": 1})).await.done(200);
    fixture.get_with(IMAGE, alice, &[("if-none-match", &etag)]).await.done(200);
}

#[tokio::test]
async fn desktops_are_counted_by_version_and_state() {
    let fixture = Fixture::new().await;
    let ids = publish(&fixture, 3).await;
    let (publisher, alice) = (&fixture.tokens.publisher, &fixture.tokens.alice);
    let say = async |version: &str, outcome: &str, said: Option<&str>| {
        let body = json!({"version": version, "outcome": outcome, "machine": "laptop", "said": said});
        fixture.post("/v1/desktops/work/starts", alice, body.to_string().as_bytes()).await
    };
    say(&ids[0], "good", None).await.done(204);
    say(&ids[1], "bad", Some("no network")).await.done(204);
    say(&ids[1], "reverted", Some("three bad starts")).await.done(204);
    let states = fixture.get("/v1/images/debian/states", publisher).await.done(200).json();
    let row = |sequence: u64, desktops: u64, good: u64, reverted: u64, said: Value| {
        json!({"version": ids[usize::try_from(sequence).unwrap() - 1], "sequence": sequence, "desktops": desktops,
               "good": good, "bad": 0, "reverted": reverted, "said": said})
    };
    let expected = [row(2, 0, 0, 1, json!("three bad starts")), row(1, 1, 1, 0, json!(null))];
    assert_eq!(states["versions"], json!(expected));
    say(&fixture.desktop.version.to_string(), "good", None).await.refused(400, "bad_request");
    say(&ids[0], "perhaps", None).await.refused(400, "bad_request");
    say(&ids[0], "bad", Some("two\nlines")).await.refused(400, "bad_request");
    say(&ids[0], "bad", Some(&"x".repeat(1001))).await.refused(400, "bad_request");
    let request = request(Method::POST, "/v1/desktops/none/starts", alice).header("content-length", 2);
    fixture.ask(request.body("{}".into()).unwrap()).await.refused(400, "bad_request");
}
