//! Directories and files that may not be written to, whoever asks.

use std::path::Path;
use std::process::{Command, Output};

use crate::disk::{may_mount, skip};
use crate::program::{Asker, PROGRAM, Serving, init, text};
use crate::testing;

/// Runs a command where nothing may be written at a path, in a mount namespace that ends with it.
const READ_ONLY: &str = r#"
    at="$1"; shift
    mount --bind "$at" "$at" && mount -o remount,ro,bind "$at" || exit 99
    exec "$@"
"#;

fn run_read_only(at: &Path, arguments: &[&str]) -> Output {
    let unshare = ["-rm", "sh", "-c", READ_ONLY, "sh", text(at), PROGRAM];
    Command::new("unshare").args(unshare).args(arguments).output().unwrap()
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").args(["-a", text(from), text(to)]).status().unwrap().success());
}

#[tokio::test]
async fn a_copy_is_verified_where_nothing_may_be_written() {
    let temp = tempfile::tempdir().unwrap();
    if !may_mount(temp.path()) {
        return skip("`unshare -rm` cannot mount a tmpfs here");
    }
    let dir = temp.path().join("server");
    let token = init(&dir);
    let verify = |dir: &Path| {
        let output = run_read_only(dir, &["verify", text(dir)]);
        let texts = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (output.status.code(), texts.concat())
    };
    let mut serving = Serving::start(&dir, &[]);
    let pack = testing::pack(0..5);
    let path = format!("/v1/data/image/debian/packs/{}", pack.id);
    assert_eq!(Asker::new(&dir, &serving, &token).put(&path, pack.bytes).await.unwrap(), 201);

    // A snapshot of a server at work: the newest rows are in the -wal file.
    let snapshot = temp.path().join("snapshot");
    copy(&dir, &snapshot);
    assert!(snapshot.join("database.sqlite-wal").metadata().unwrap().len() > 0);
    let (code, printed) = verify(&snapshot);
    assert!(code == Some(0) && printed.contains("clean: read 1 packs"), "{printed}");
    // Of which a copy lacks the index.
    std::fs::remove_file(snapshot.join("database.sqlite-shm")).unwrap();
    let (code, printed) = verify(&snapshot);
    assert!(code == Some(1) && printed.contains("check a copy that may be written to"), "{printed}");

    assert_eq!(serving.terminate().code(), Some(0));
    assert!(!dir.join("database.sqlite-wal").exists());
    let (code, printed) = verify(&dir);
    assert!(code == Some(0) && printed.contains("clean: read 1 packs"), "{printed}");
    std::fs::remove_file(dir.join(path.replacen("/v1/data", "objects", 1))).unwrap();
    let other = dir.join("objects/image/debian/packs").join(testing::pack(5..6).id.to_string());
    std::fs::write(other, "another").unwrap();
    let (code, printed) = verify(&dir);
    assert!(code == Some(1) && printed.contains("1 findings: read 1 packs"), "{printed}");
    assert!(!dir.join("database.sqlite-wal").exists());
}

#[test]
fn a_server_does_not_start_on_a_database_that_it_may_not_write() {
    let temp = tempfile::tempdir().unwrap();
    if !may_mount(temp.path()) {
        return skip("`unshare -rm` cannot mount a tmpfs here");
    }
    let dir = temp.path().join("server");
    init(&dir);
    let serve = ["serve", text(&dir), "--listen", "127.0.0.1:0"];
    for read_only in [dir.join("database.sqlite"), dir.clone()] {
        let output = run_read_only(&read_only, &serve);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{message}");
        assert!(message.contains("cannot write the database"), "{message}");
    }
}
