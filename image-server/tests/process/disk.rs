//! A disk that is really full.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use crate::program::{Asker, PROGRAM, Serving, text};
use crate::testing;

/// Makes and serves a server on a file system of its own of 12 MiB, in a mount namespace that ends with the process.
const ON_SMALL_DISK: &str = r#"
    mount -t tmpfs -o size=12m satchel-test "$1" || exit 1
    "$2" init "$1/server" >"$3" || exit 1
    exec "$2" serve "$1/server" --listen 127.0.0.1:0
"#;

/// Says that this machine cannot run the test, where `make test` looks for it.
pub(crate) fn skip(reason: &str) {
    let test = std::thread::current().name().unwrap_or("disk").to_owned();
    let _ = writeln!(io::stderr().lock(), "SKIPPED {test}: {reason}");
    if let Some(log) = std::env::var_os("SATCHEL_SKIP_LOG") {
        let mut log = OpenOptions::new().create(true).append(true).open(log).unwrap();
        writeln!(log, "image-server::{test}\t{reason}").unwrap();
    }
}

/// Whether this machine lets anybody mount something, in a namespace that is its own.
pub(crate) fn may_mount(at: &Path) -> bool {
    let mounted = Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "x", text(at)]).output();
    mounted.is_ok_and(|output| output.status.success())
}

#[tokio::test]
async fn a_full_disk_refuses_uploads_and_serves_what_it_has() {
    let temp = tempfile::tempdir().unwrap();
    if !may_mount(temp.path()) {
        return skip("`unshare -rm` cannot mount a tmpfs here");
    }
    let disk = temp.path().join("disk");
    let printed = temp.path().join("printed");
    std::fs::create_dir(&disk).unwrap();
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", ON_SMALL_DISK, "sh", text(&disk), PROGRAM, text(&printed)]);
    let mut serving = Serving::spawn(command, &temp.path().join("log"));
    let printed = std::fs::read_to_string(printed).unwrap();
    let token = printed.lines().find_map(|line| line.strip_prefix("token: ")).unwrap();
    // Its files are seen through the process: its mount is in no other.
    let dir = std::path::PathBuf::from(format!("/proc/{}/root{}/server", serving.id(), disk.display()));
    let pem = std::fs::read(dir.join("tls/cert.pem")).unwrap();
    let asker = Asker::with_certificate(&pem, &serving, token);

    let mut stored = Vec::new();
    let refused = loop {
        let first = stored.len() as u64 * 40;
        let pack = testing::pack(first..first + 40);
        let path = format!("/v1/data/image/debian/packs/{}", pack.id);
        let status = asker.put(&path, pack.bytes.clone()).await.unwrap();
        match status.as_u16() {
            201 => stored.push((path, pack.bytes)),
            507 => break path,
            other => panic!("{other}: {}", serving.log()),
        }
        assert!(stored.len() < 100, "a disk of 12 MiB takes no end of packs");
    };
    assert!(stored.len() > 2, "only {} packs found room", stored.len());
    for _ in 0..3 {
        let pack = testing::pack(10_000..10_040);
        let path = format!("/v1/data/image/debian/packs/{}", pack.id);
        assert_eq!(asker.put(&path, pack.bytes).await.unwrap(), 507);
    }
    assert_eq!(asker.get(&refused).await.unwrap().status(), 404);
    assert_eq!(asker.get("/healthz").await.unwrap().status(), 200);
    assert_eq!(asker.get("/v1/images").await.unwrap().status(), 200);
    for (path, bytes) in &stored {
        assert_eq!(asker.get(path).await.unwrap().bytes().await.unwrap(), bytes[..]);
    }
    assert!(serving.log().contains("no space left"), "{}", serving.log());
    assert_eq!(std::fs::read_dir(dir.join("objects/staging")).unwrap().count(), 0);

    // Room is made: the same upload goes through.
    let (path, bytes) = &stored[0];
    std::fs::remove_file(dir.join(path.replacen("/v1/data", "objects", 1))).unwrap();
    assert_eq!(asker.put(path, bytes.clone()).await.unwrap(), 200);
    assert_eq!(serving.terminate().code(), Some(0));
}
