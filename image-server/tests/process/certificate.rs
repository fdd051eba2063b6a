//! The certificate: what it is told by, and another one taken up while the server runs.

use std::path::Path;

use crate::program::{Asker, Serving, init, run, said, text};

/// Puts another server's certificate, and its key, in place of a server's own.
fn replace(dir: &Path, other: &Path) {
    for file in ["tls/cert.pem", "tls/key.pem"] {
        std::fs::copy(other.join(file), dir.join(file)).unwrap();
    }
}

fn fingerprint(dir: &Path) -> String {
    let told: serde_json::Value = serde_json::from_str(&said(&["fingerprint", text(dir), "--json"])).unwrap();
    told["fingerprint"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_new_certificate_is_taken_up_and_connections_go_on() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, other) = (temp.path().join("server"), temp.path().join("other"));
    let token = init(&dir);
    init(&other);
    let mut serving = Serving::start(&dir, &[]);
    let before = Asker::new(&dir, &serving, &token);
    assert_eq!(before.get("/v1/server").await.unwrap().status(), 200);

    // One that cannot be used leaves the one there is.
    let key = std::fs::read(dir.join("tls/key.pem")).unwrap();
    std::fs::copy(other.join("tls/key.pem"), dir.join("tls/key.pem")).unwrap();
    serving.reload();
    serving.wait_for_log("cannot be used with its key");
    std::fs::write(dir.join("tls/key.pem"), key).unwrap();
    assert_eq!(Asker::new(&dir, &serving, &token).get("/v1/server").await.unwrap().status(), 200);

    replace(&dir, &other);
    serving.reload();
    serving.wait_for_log(&fingerprint(&other));
    assert_eq!(before.get("/v1/server").await.unwrap().status(), 200);
    assert_eq!(Asker::new(&other, &serving, &token).get("/v1/server").await.unwrap().status(), 200);
    let log = serving.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("certificate")).collect();
    assert!(told.len() == 2 && told[0].contains("ERROR") && told[1].contains("INFO"), "{log}");
    assert_eq!(serving.terminate().code(), Some(0));
}

#[test]
fn the_fingerprint_is_told_at_any_time() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, other) = (temp.path().join("server"), temp.path().join("other"));
    let made = |dir: &Path| said(&["init", text(dir)]).lines().nth(1).unwrap().to_owned();
    let (first, second) = (made(&dir), made(&other));
    let printed = said(&["fingerprint", text(&dir)]);
    let lines: Vec<&str> = printed.lines().collect();
    let [line, until] = lines[..] else { panic!("{printed}") };
    assert_eq!(line, first);
    let until = until.strip_prefix("valid until: ").unwrap();
    let (year, _) = until.split_once('-').unwrap();
    assert!((2030..2200).contains(&year.parse().unwrap()) && until.ends_with("T00:00:00Z"), "{until}");
    let told: serde_json::Value =
        serde_json::from_str(&said(&["fingerprint", text(&dir), "--json"])).unwrap();
    assert!(told["valid_until_ms"].as_i64() > Some(1_900_000_000_000), "{told}");

    replace(&dir, &other);
    assert_eq!(said(&["fingerprint", text(&dir)]).lines().next(), Some(&*second));
    std::fs::write(dir.join("tls/cert.pem"), "no certificate").unwrap();
    let refused = run(&["fingerprint", text(&dir)]);
    assert_eq!(refused.status.code(), Some(1));
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains("cert.pem"), "{message}");
}
