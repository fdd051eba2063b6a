//! What the log tells, and what it never tells.

use crate::program::{Asker, Serving, init, said, text};
use crate::testing;

#[tokio::test]
async fn no_token_key_or_body_is_ever_logged() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("server");
    let admin = init(&dir);
    let alice = said(&["token", text(&dir), "--user", "alice", "--role", "user"]).trim().to_owned();
    let revoked = said(&["token", text(&dir), "--user", "alice", "--role", "user"]).trim().to_owned();
    said(&["token", text(&dir), "--revoke", "3"]);
    for format in ["text", "json"] {
        let mut serving = Serving::start(&dir, &["--log", "trace", "--log-format", format]);
        let mut almost = admin.clone();
        almost.pop();
        for token in [&admin, &alice, &revoked, &almost] {
            let asker = Asker::new(&dir, &serving, token);
            let pack = testing::pack(0..3);
            let path = format!("/v1/data/image/debian/packs/{}", pack.id);
            asker.get("/v1/server").await.unwrap();
            asker.get(&format!("/v1/images?token={token}")).await.unwrap();
            asker.put(&path, pack.bytes).await.unwrap();
            asker.get(&path).await.unwrap();
            asker
                .post("/v1/missing/image/debian/chunks", b"a-body-that-is-not-logged".to_vec())
                .await
                .unwrap();
            let manifest = testing::image_manifest("debian", vec![chunk_format::SegmentId::of(b"x")]);
            asker.commit("/v1/images/debian/versions", &manifest, 1).await.unwrap();
        }
        // A failure, whose cause is logged.
        let (packs, aside) = (dir.join("objects/image/debian/packs"), dir.join("objects/aside"));
        std::fs::rename(&packs, &aside).unwrap();
        let pack = testing::pack(0..3);
        let answer = Asker::new(&dir, &serving, &alice)
            .get(&format!("/v1/data/image/debian/packs/{}", pack.id))
            .await
            .unwrap();
        assert_eq!(answer.status(), 500);
        let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
        serving.terminate();
        std::fs::rename(&aside, &packs).unwrap();

        let log = serving.log();
        for secret in [&admin, &alice, &revoked, &almost] {
            assert!(!log.contains(&secret["satchel_".len()..]), "{log}");
        }
        for secret in ["Bearer", "uthorization", "a-body-that", "satchel-signature"] {
            assert!(!log.contains(secret), "{secret}: {log}");
        }
        let failure = log.lines().find(|line| line.contains(&id)).unwrap();
        assert!(failure.contains("there is no object image/debian/packs/"), "{failure}");
        assert!(log.contains("/v1/server") && log.contains("alice"), "{log}");
    }
}

#[tokio::test]
async fn at_info_changes_and_failures_are_logged_with_who_asked_from_where() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("server");
    let admin = init(&dir);
    let mut serving = Serving::start(&dir, &["--log-format", "json"]);
    let asker = Asker::new(&dir, &serving, &admin);
    let pack = testing::pack(0..3);
    let path = format!("/v1/data/image/debian/packs/{}", pack.id);
    let len = pack.bytes.len() as u64;
    assert_eq!(asker.put(&path, pack.bytes).await.unwrap(), 201);
    asker.get(&path).await.unwrap().bytes().await.unwrap();
    asker.get("/healthz").await.unwrap();
    asker.get("/v1/images").await.unwrap();
    asker.post("/v1/missing/image/debian/chunks", vec![0; 32]).await.unwrap();
    asker.get("/v1/data/image/debian/packs/x").await.unwrap();
    Asker::new(&dir, &serving, "satchel_none").get("/v1/server").await.unwrap();
    serving.terminate();
    let lines: Vec<serde_json::Value> =
        serving.log().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let requests: Vec<_> = lines.iter().filter(|line| line["message"] == "request").collect();
    let told: Vec<(&str, &str, u64)> = requests
        .iter()
        .map(|line| {
            let text = |field: &str| line[field].as_str().unwrap();
            (text("method"), text("path"), line["status"].as_u64().unwrap())
        })
        .collect();
    let expected = [
        ("PUT", path.as_str(), 201),
        ("GET", "/v1/data/image/debian/packs/x", 400),
        ("GET", "/v1/server", 401),
    ];
    // A request is written down when its answer is gone, which the next one does not wait for.
    let sorted = |requests: &[(&str, &str, u64)]| {
        let mut sorted: Vec<String> = requests.iter().map(|request| format!("{request:?}")).collect();
        sorted.sort_unstable();
        sorted
    };
    assert_eq!(sorted(&told), sorted(&expected));
    let put = requests.iter().find(|line| line["method"] == "PUT").unwrap();
    assert_eq!(
        (put["received"].as_u64(), put["user"].as_str(), put["whole"].as_bool()),
        (Some(len), Some("admin"), Some(true))
    );
    assert_eq!(put["id"].as_str().unwrap().len(), 16);
    for request in &requests {
        let from: std::net::SocketAddr = request["from"].as_str().unwrap().parse().unwrap();
        assert!(from.ip().is_loopback() && from.port() != 0, "{request}");
        // What `token --list` shows, of a token that is known.
        let token = if request["status"] == 401 { None } else { Some(1) };
        assert_eq!(request["token"].as_i64(), token, "{request}");
    }
}
