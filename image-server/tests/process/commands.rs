//! What commands print, and how they end.

use std::process::Output;

use crate::program::{Asker, Serving, init, run, said, text};

/// Checks that a command failed with this code, printed no data, and said why once.
#[track_caller]
fn refused(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(message.matches("error: ").count(), 1, "{message}");
    message
}

#[test]
fn init_prints_two_lines_of_data_and_does_it_once() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("server");
    let printed = said(&["init", text(&dir), "--name", "files.example.org", "--name", "10.0.0.7"]);
    let lines: Vec<&str> = printed.lines().collect();
    let [token, fingerprint] = lines[..] else { panic!("{printed}") };
    let token = token.strip_prefix("token: satchel_").unwrap();
    assert_eq!(token.len(), 43);
    let digits = fingerprint.strip_prefix("fingerprint: SHA256:").unwrap();
    assert!(digits.len() == 64 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')));
    let message = refused(&run(&["init", text(&dir)]), 1);
    assert!(message.contains("already initialised"), "{message}");
    let message = refused(&run(&["init", text(&temp.path().join("other")), "--name", "a b"]), 1);
    assert!(message.contains("\"a b\""), "{message}");
    assert!(!temp.path().join("other").exists());

    let json = said(&["init", text(&temp.path().join("json")), "--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["token"].as_str().unwrap().starts_with("satchel_"));
    assert!(json["fingerprint"].as_str().unwrap().starts_with("SHA256:"));
    assert!(json["server"].as_str().unwrap().starts_with("ed25519:"));
}

#[tokio::test]
async fn tokens_are_made_listed_and_revoked_while_the_server_runs() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("server");
    init(&dir);
    let serving = Serving::start(&dir, &[]);
    let printed = said(&["token", text(&dir), "--user", "alice", "--role", "user", "--label", "laptop"]);
    let token = printed.strip_suffix('\n').unwrap();
    assert!(token.starts_with("satchel_") && !token.contains(char::is_whitespace));
    let asker = Asker::new(&dir, &serving, token);
    assert_eq!(asker.get("/v1/server").await.unwrap().status(), 200);
    let brief =
        said(&["token", text(&dir), "--user", "bob", "--role", "publisher", "--expires-days", "1", "--json"]);
    let brief: serde_json::Value = serde_json::from_str(&brief).unwrap();
    assert!(brief["expires_ms"].is_i64());

    let table = said(&["token", text(&dir), "--list"]);
    let line = table.lines().find(|line| line.contains("alice")).unwrap();
    assert!(line.starts_with("2 ") && line.contains("laptop") && line.ends_with("valid"), "{table}");
    said(&["token", text(&dir), "--revoke", "2"]);
    let answer = asker.get("/v1/server").await.unwrap();
    assert_eq!(answer.status(), 401);
    assert!(answer.text().await.unwrap().contains("revoked"));
    let listed: serde_json::Value =
        serde_json::from_str(&said(&["token", text(&dir), "--list", "--json"])).unwrap();
    assert_eq!(listed["tokens"][1]["state"], "revoked");
    assert_eq!(listed["tokens"].as_array().unwrap().len(), 3);
    refused(&run(&["token", text(&dir), "--revoke", "99"]), 1);
}

#[test]
fn bad_usage_is_told_from_failure() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("server");
    init(&dir);
    for arguments in [
        &["token", text(&dir)][..],
        &["token", text(&dir), "--user", "alice"],
        &["token", text(&dir), "--user", "Alice", "--role", "user"],
        &["token", text(&dir), "--user", "alice", "--role", "king"],
        &["token", text(&dir), "--user", "alice", "--role", "user", "--expires-days", "0"],
        &["token", text(&dir), "--list", "--revoke", "1"],
        &["serve", text(&dir), "--listen", "localhost"],
        &["serve"],
        &["frobnicate"],
        &[],
    ] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    // What `--set` changes holds for the whole server.
    for only in [["--image", "debian"], ["--user", "alice"]] {
        let arguments = [&["retention", text(&dir), "--set", "--keep-last", "3"][..], &only].concat();
        let message = refused(&run(&arguments), 2);
        assert!(message.contains("--set") && message.contains(only[0]), "{message}");
        assert!(message.contains("\nhint: ") && message.contains("without"), "{message}");
    }
    let policy: serde_json::Value =
        serde_json::from_str(&said(&["retention", text(&dir), "--json"])).unwrap();
    assert_eq!(policy["policy"]["keep_last"], 10);
    for command in ["serve", "verify"] {
        let message = refused(&run(&[command, text(&temp.path().join("nowhere"))]), 1);
        assert!(message.contains("satchel-server init"), "{message}");
    }
    assert_eq!(run(&["--version"]).status.code(), Some(0));
}

#[test]
fn a_change_of_the_servers_policy_is_told() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("server");
    init(&dir);
    let told = "the server's policy is now: last 3, hourly 0, daily 0, weekly 0";
    let once = said(&["retention", text(&dir), "--keep-last", "3"]);
    assert!(!once.contains("the server's policy"), "{once}");
    let tried = said(&["retention", text(&dir), "--keep-last", "3", "--set", "--dry-run"]);
    assert!(tried.contains("the server's policy would be: last 3"), "{tried}");
    let set = said(&["retention", text(&dir), "--keep-last", "3", "--set"]);
    assert!(set.lines().any(|line| line == told), "{set}");
    let json = |arguments: &[&str]| -> serde_json::Value {
        let all = [&["retention", text(&dir), "--json"][..], arguments].concat();
        serde_json::from_str(&said(&all)).unwrap()
    };
    assert_eq!(json(&["--keep-last", "4", "--set"])["set"], true);
    let read = json(&[]);
    assert_eq!((&read["set"], &read["policy"]["keep_last"]), (&false.into(), &4.into()));
}

#[test]
fn a_directory_without_its_server_json_is_told_what_it_lacks() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("server");
    init(&dir);
    let marker = dir.join("server.json");
    for (version, part) in
        [("2", "names no bucket"), ("1,\"bucket\":{\"bucket\":\"b\",\"prefix\":\"\"}", "names a bucket")]
    {
        std::fs::write(&marker, format!("{{\"format\":\"satchel-server\",\"version\":{version}}}")).unwrap();
        let message = refused(&run(&["serve", text(&dir)]), 1);
        assert!(message.contains(part) && message.contains("backup"), "{message}");
        assert!(!message.contains("this program knows"), "{message}");
    }
    std::fs::remove_file(&marker).unwrap();
    for command in ["serve", "init", "verify"] {
        let message = refused(&run(&[command, text(&dir)]), 1);
        assert!(message.contains("server.json") && message.contains("backup"), "{message}");
        assert!(!message.contains("satchel-server init"), "{message}");
    }
}

#[test]
fn json_is_asked_for_anywhere() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("server");
    let json = |arguments: &[&str]| -> serde_json::Value {
        let printed = said(arguments);
        assert_eq!(printed.lines().count(), 1, "{printed}");
        serde_json::from_str(&printed).unwrap()
    };
    let made = json(&["--json", "init", text(&dir)]);
    assert!(made["token"].is_string());
    for arguments in
        [["--json", "policy", text(&dir)], ["policy", "--json", text(&dir)], ["policy", text(&dir), "--json"]]
    {
        assert_eq!(json(&arguments)["lease_days"], 7);
    }
    assert_eq!(json(&["--json", "token", text(&dir), "--revoke", "1"]), serde_json::json!({ "revoked": 1 }));
    let serving = Serving::start(&dir, &["--json"]);
    let printed: serde_json::Value = serde_json::from_str(&serving.printed()).unwrap();
    assert_eq!(printed["url"], serving.url);
    assert_eq!(printed["fingerprint"], made["fingerprint"]);
}

#[test]
fn serve_ends_well_when_asked_and_says_why_it_cannot_begin() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("server");
    init(&dir);
    let mut serving = Serving::start(&dir, &[]);
    let address = serving.url.strip_prefix("https://").unwrap().to_owned();
    let message = refused(&run(&["serve", text(&dir), "--listen", &address]), 1);
    assert!(message.contains(&address) && message.contains("--listen"), "{message}");
    assert_eq!(serving.terminate().code(), Some(0));
    assert!(serving.log().contains("SHA256:"), "{}", serving.log());
    // A certificate that is not one.
    std::fs::write(dir.join("tls/cert.pem"), "not a certificate").unwrap();
    let message = refused(&run(&["serve", text(&dir), "--listen", "127.0.0.1:0"]), 1);
    assert!(message.contains("cert.pem"), "{message}");
}

#[tokio::test]
async fn verify_tells_clean_from_damaged() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("server");
    let token = init(&dir);
    let serving = Serving::start(&dir, &[]);
    let asker = Asker::new(&dir, &serving, &token);
    let pack = crate::testing::pack(0..5);
    let path = format!("/v1/data/image/debian/packs/{}", pack.id);
    assert_eq!(asker.put(&path, pack.bytes.clone()).await.unwrap(), 201);
    let printed = said(&["verify", text(&dir)]);
    assert!(printed.starts_with("clean: read 1 packs"), "{printed}");
    let file = dir.join(path.replacen("/v1/data", "objects", 1));
    std::fs::write(&file, &pack.bytes[1..]).unwrap();
    let output = run(&["verify", text(&dir)]);
    assert_eq!(output.status.code(), Some(1));
    let printed = String::from_utf8(output.stdout).unwrap();
    let (finding, summary) = printed.split_once('\n').unwrap();
    assert!(
        finding.starts_with("damaged image/debian/packs/") && finding.contains("Affects no version"),
        "{printed}"
    );
    assert!(summary.starts_with("1 findings"), "{printed}");
    let json = run(&["verify", text(&dir), "--json"]);
    assert_eq!(json.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["findings"].as_array().unwrap().len(), 1);
    // The same pack once more heals it.
    assert_eq!(asker.put(&path, pack.bytes).await.unwrap(), 200);
    said(&["verify", text(&dir)]);
}

#[tokio::test]
async fn a_database_that_was_lost_is_not_taken_for_a_new_one() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("server");
    let token = init(&dir);
    let pack = crate::testing::pack(0..5);
    let path = format!("/v1/data/image/debian/packs/{}", pack.id);
    let mut serving = Serving::start(&dir, &[]);
    assert_eq!(Asker::new(&dir, &serving, &token).put(&path, pack.bytes).await.unwrap(), 201);
    assert_eq!(serving.terminate().code(), Some(0));
    let file = dir.join(path.replacen("/v1/data", "objects", 1));
    let long_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(90 * 86_400);
    std::fs::File::options().write(true).open(&file).unwrap().set_modified(long_ago).unwrap();

    let database = dir.join("database.sqlite");
    std::fs::write(&database, "").unwrap();
    for arguments in [
        &["serve", text(&dir), "--listen", "127.0.0.1:0"][..],
        &["verify", text(&dir)],
        &["gc", text(&dir), "--leftovers"],
        &["retention", text(&dir)],
        &["policy", text(&dir)],
        &["mirror", text(&dir), "debian"],
        &["token", text(&dir), "--list"],
    ] {
        let message = refused(&run(arguments), 1);
        assert!(message.contains("is empty") && message.contains("backup"), "{arguments:?}: {message}");
    }
    assert_eq!(database.metadata().unwrap().len(), 0);
    // One that `init` made, and not for these objects.
    let other = temp.path().join("other");
    init(&other);
    std::fs::copy(other.join("database.sqlite"), &database).unwrap();
    for more in [&["--leftovers"][..], &["--leftovers", "--dry-run"]] {
        let message = refused(&run(&[&["gc", text(&dir)], more].concat()), 1);
        assert!(message.contains("the database knows of no pack and no version"), "{message}");
    }
    assert!(file.exists());
}

#[tokio::test]
async fn a_directory_of_objects_that_is_not_the_servers_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, other) = (temp.path().join("server"), temp.path().join("other"));
    let token = init(&dir);
    init(&other);
    let (objects, kept) = (dir.join("objects"), temp.path().join("kept"));
    let marker = std::fs::read(objects.join("owner")).unwrap();
    assert!(marker.starts_with(b"ed25519:"));
    let serve = || Serving::start(&dir, &[]).terminate();
    let refuses = |words: &str| {
        let (serve, dry) =
            (["serve", text(&dir), "--listen", "127.0.0.1:0"], ["gc", text(&dir), "--dry-run"]);
        for arguments in [&serve[..], &["verify", text(&dir)], &["gc", text(&dir), "--leftovers"], &dry] {
            let message = refused(&run(arguments), 1);
            assert!(message.contains(words), "{arguments:?}: {message}");
        }
    };

    // A volume that is mounted over what `init` made, before anything is stored.
    std::fs::rename(&objects, &kept).unwrap();
    std::fs::create_dir(&objects).unwrap();
    said(&["verify", text(&dir)]);
    said(&["gc", text(&dir), "--dry-run"]);
    assert!(!objects.join("owner").exists());
    assert_eq!(serve().code(), Some(0));
    assert_eq!(std::fs::read(objects.join("owner")).unwrap(), marker);

    let mut serving = Serving::start(&dir, &[]);
    let pack = crate::testing::pack(0..5);
    let path = format!("/v1/data/image/debian/packs/{}", pack.id);
    assert_eq!(Asker::new(&dir, &serving, &token).put(&path, pack.bytes).await.unwrap(), 201);
    assert_eq!(serving.terminate().code(), Some(0));
    let printed = said(&["verify", text(&dir)]);
    assert!(printed.starts_with("clean") && !printed.contains("owner"), "{printed}");
    said(&["gc", text(&dir), "--leftovers"]);

    // It is not mounted: what `init` made is seen, or an empty directory, or another server's.
    let volume = temp.path().join("volume");
    std::fs::rename(&objects, &volume).unwrap();
    std::fs::rename(&kept, &objects).unwrap();
    refuses("is the volume mounted");
    std::fs::remove_file(objects.join("owner")).unwrap();
    std::fs::create_dir(objects.join("lost+found")).unwrap();
    refuses("is the volume mounted");
    assert!(!objects.join("owner").exists());
    std::fs::rename(&objects, &kept).unwrap();
    std::fs::rename(&volume, &objects).unwrap();
    std::fs::copy(other.join("objects/owner"), objects.join("owner")).unwrap();
    refuses("says that it is that of the server ed25519:");

    // One that was made before directories said whose they are.
    std::fs::remove_file(objects.join("owner")).unwrap();
    said(&["verify", text(&dir)]);
    assert!(!objects.join("owner").exists());
    assert_eq!(serve().code(), Some(0));
    assert_eq!(std::fs::read(objects.join("owner")).unwrap(), marker);
}
