//! Servers, or whoever has their disks, that offer what the publisher did not sign.

use std::path::PathBuf;

use ed25519_dalek::{Signer, SigningKey};
use satchel_tests::{Client, Publication, TestServer, require};

use super::{IMAGE_BYTES, alter, assert_refused};

/// The one manifest of a namespace that is not yet known, and its signature.
fn newest_manifest(server: &TestServer, namespace: &str) -> (PathBuf, PathBuf) {
    let entries =
        std::fs::read_dir(server.objects(&format!("{namespace}/manifests"))).expect("there are manifests");
    let mut manifests: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a directory can be read").path())
        .filter(|path| path.extension().is_none())
        .collect();
    manifests.sort_by_key(|path| {
        std::fs::metadata(path).and_then(|found| found.modified()).expect("a file has a time")
    });
    let manifest = manifests.pop().expect("there is one");
    let signature = manifest.with_extension("sig");
    (manifest, signature)
}

fn create(machine: &Client, desktop: &str) -> satchel_tests::Output {
    machine.satchel(["create", desktop, "--image", "golden", "--home", "16M"])
}

#[test]
fn a_manifest_or_signature_that_was_altered_is_not_used() {
    require!(fuse);
    let published = Publication::new(40, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let new_machine = published.machine("new");
    let (manifest, signature) = newest_manifest(&published.server, "image/golden");
    let id = manifest.file_name().unwrap().to_str().unwrap().to_owned();
    let (good_manifest, good_signature) =
        (std::fs::read(&manifest).unwrap(), std::fs::read(&signature).unwrap());
    let verify = ["satchel-server verify"];
    let everywhere = |said: &[&str]| {
        assert_refused(create(&laptop, "another"), said, &verify);
        let directory = new_machine.new_directory();
        let mount = ["mount".as_ref(), "work".as_ref(), directory.as_os_str()];
        assert_refused(new_machine.satchel(mount), said, &verify);
    };

    // One byte, in a place where it is JSON all the same.
    let mut bad = good_manifest.clone();
    let at = bad.windows(6).position(|word| word == b"golden").unwrap();
    bad[at] = b'b';
    std::fs::write(&manifest, &bad).unwrap();
    everywhere(&[&id, "image golden", "does not hold"]);
    std::fs::write(&manifest, &good_manifest[..good_manifest.len() - 1]).unwrap();
    everywhere(&[&id, "image golden", "does not hold"]);
    std::fs::write(&manifest, &good_manifest).unwrap();

    // The signature that counts is the database's: what lies beside the manifest is for those who copy the store.
    let verified = |problem: &str| {
        let found = published.server.run(&["verify"], &[]).exited(1);
        assert!(found.stdout.contains(&id) && found.stdout.contains(problem), "{}", found.stdout);
    };
    std::fs::write(&signature, "satchel-signature-v1 nonsense\n").unwrap();
    verified("answered from the database");
    std::fs::remove_file(&signature).unwrap();
    verified("it is missing");
    let _ = create(&laptop, "beside").ok();
    std::fs::write(&signature, &good_signature).unwrap();
    let good_line = String::from_utf8(good_signature).unwrap();
    let sign = |line: &str| {
        let statement =
            format!("UPDATE versions SET signature = '{line}' WHERE hex(manifest) = upper('{id}')");
        alter(&published.server, statement);
    };

    let last = good_line.trim_end().len() - 1;
    let digit = if good_line.as_bytes()[last] == b'0' { "1" } else { "0" };
    sign(&format!("{}{digit}", &good_line[..last]));
    everywhere(&[&id, "image golden", "does not hold"]);

    // Signed, and rightly so, by someone else.
    let rival = SigningKey::from_bytes(&[7; 32]);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let key = hex(rival.verifying_key().as_bytes());
    sign(&format!("satchel-signature-v1 ed25519:{key} {}", hex(&rival.sign(&good_manifest).to_bytes())));
    everywhere(&[&id, "image golden", &format!("signed by ed25519:{key}"), "must sign it"]);

    // What the operator is told to do finds it.
    verified("another signature");
    sign(good_line.trim_end());
    published.server.verify();
    let mount = new_machine.mount("work");
    published.content.assert_in(&mount.system());
    mount.unmount();
    let _ = create(&laptop, "another").ok();
}

#[test]
fn an_altered_version_of_a_desktop_is_not_used() {
    require!(fuse);
    let published = Publication::new(41, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let (manifest, _) = newest_manifest(&published.server, "user/alice");
    let good = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(
        &manifest,
        good.replace("\"sequence\": 1", "\"sequence\": 2").replace("\"sequence\":1", "\"sequence\":2"),
    )
    .unwrap();
    let directory = laptop.new_directory();
    let mount = ["mount".as_ref(), "work".as_ref(), directory.as_os_str()];
    assert_refused(laptop.satchel(mount), &["desktop work", "does not hold"], &["satchel-server verify"]);
    std::fs::write(&manifest, good).unwrap();
    laptop.mount("work").unmount();
}

#[test]
fn a_server_that_went_back_in_time_is_noticed() {
    require!(fuse);
    let mut published = Publication::new(42, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let backup = published.server.back_up();
    let _ = published.publisher.publish(&second_disk(&published), "golden");
    let _ = create(&laptop, "newer").ok();
    let mount = laptop.mount("work");
    let disk = satchel_tests::model::open_for_writing(&mount.home());
    let mut home = satchel_tests::Model::zeros(16 << 20);
    home.write(&disk, 0, b"synced and then gone from the server");
    let _ = laptop.sync("work");
    drop(disk);
    mount.unmount();

    published.server.restore(&backup);
    assert_refused(
        create(&laptop, "another"),
        &["image golden", "version 1", "older than version 2"],
        &["golden@1"],
    );
    let _ = laptop.satchel(["create", "another", "--image", "golden@1", "--home", "0"]).ok();
    // It says what it found, and what this machine has is on the server again, beside what the server has.
    let mut mount = laptop.mount("work");
    let said = mount.process().stderr();
    assert!(said.contains("the server's newest version is 1, this machine has 2"), "{said}");
    mount.unmount();
    let forks = laptop.satchel(["--json", "forks", "work"]).ok().json();
    let _ = laptop.satchel(["adopt", forks[0]["desktop"].as_str().expect("a name")]).ok();
    let mount = laptop.mount("work");
    home.assert_in(&mount.home());
    published.content.assert_in(&mount.system());
    mount.unmount();
}

#[test]
fn an_image_with_another_publisher_than_before_is_not_used() {
    let mut published = Publication::new(43, IMAGE_BYTES);
    let rival = Client::new("rival");
    rival.login(&published.server.access("eve", "publisher"));
    let laptop = published.machine("laptop");
    let backup = published.server.back_up();
    let _ = published.publisher.publish(&published.disk, "theirs");
    let _ = laptop.satchel(["create", "first", "--image", "theirs", "--home", "0"]).ok();
    // The server is made to forget the image, and someone else publishes one of that name.
    published.server.restore(&backup);
    let _ = rival.publish(&published.disk, "theirs");
    assert_refused(
        laptop.satchel(["create", "second", "--image", "theirs", "--home", "0"]),
        &["image theirs", "now signed by ed25519:", "pinned on this machine is ed25519:"],
        &["ask who publishes the image", "pins.json"],
    );
    let refused = laptop.satchel([
        "create",
        "third",
        "--image",
        "golden",
        "--home",
        "0",
        "--publisher",
        &format!("ed25519:{}", "1".repeat(64)),
    ]);
    assert_refused(refused, &["image golden", "signed by", "not by"], &[]);
}

/// A disk that is not the one that was published.
fn second_disk(published: &Publication) -> PathBuf {
    let path = published.publisher.directory().join("second.raw");
    satchel_tests::disk::Content::new(99).write_to(&path, IMAGE_BYTES);
    path
}
