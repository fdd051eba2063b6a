//! Files that cannot be published.

use std::path::{Path, PathBuf};
use std::process::Command;

use satchel_tests::{Client, Publication, require};

use super::{IMAGE_BYTES, assert_refused};

fn publish(publisher: &Client, file: &Path) -> satchel_tests::Output {
    publisher.satchel(["publish".as_ref(), file.as_os_str(), "--image".as_ref(), "golden".as_ref()])
}

/// Makes `name` in the publisher's directory with these bytes.
fn file(publisher: &Client, name: &str, bytes: &[u8]) -> PathBuf {
    let path = publisher.directory().join(name);
    std::fs::write(&path, bytes).expect("a file can be made");
    path
}

fn qemu_img(arguments: &[&std::ffi::OsStr]) {
    let output = Command::new("qemu-img").args(arguments).output().expect("qemu-img can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_is_no_disk_image_is_named_and_nothing_is_published() {
    require!(tool("qemu-img"));
    let published = Publication::new(20, IMAGE_BYTES);
    let publisher = &published.publisher;
    let name = |path: &Path| path.display().to_string();

    let missing = publisher.directory().join("missing.raw");
    assert_refused(publish(publisher, &missing), &[&name(&missing), "No such file"], &[]);
    assert_refused(
        publish(publisher, publisher.directory()),
        &[&name(publisher.directory()), "neither a file nor a block device"],
        &[],
    );
    assert_refused(
        publish(publisher, Path::new("/dev/null")),
        &["/dev/null", "neither a file nor a block device"],
        &[],
    );
    let empty = file(publisher, "empty.raw", b"");
    assert_refused(publish(publisher, &empty), &[&name(&empty), "empty"], &[]);
    let text = file(publisher, "notes.txt", &b"not a disk at all\n".repeat(10_000));
    assert_refused(publish(publisher, &text), &[&name(&text), "does not look like a disk"], &["--force"]);
    let gzip = file(publisher, "disk.raw.gz", &[b"\x1f\x8b\x08\0".as_slice(), &[7; 9000]].concat());
    assert_refused(publish(publisher, &gzip), &[&name(&gzip), "gzip", "gunzip"], &[]);
    let mut odd = std::fs::read(&published.disk).unwrap();
    odd.truncate(odd.len() - 100);
    let odd = file(publisher, "odd.raw", &odd);
    assert_refused(publish(publisher, &odd), &[&name(&odd), "512"], &[]);

    let vmdk = publisher.directory().join("disk.vmdk");
    let convert = ["convert".as_ref(), "-f".as_ref(), "raw".as_ref()];
    qemu_img(
        &[
            convert.as_slice(),
            &["-O".as_ref(), "vmdk".as_ref(), published.disk.as_os_str(), vmdk.as_os_str()],
        ]
        .concat(),
    );
    assert_refused(publish(publisher, &vmdk), &[&name(&vmdk), "VMDK", "qemu-img convert -O qcow2"], &[]);

    let qcow2 = publisher.directory().join("disk.qcow2");
    qemu_img(
        &[
            convert.as_slice(),
            &["-O".as_ref(), "qcow2".as_ref(), published.disk.as_os_str(), qcow2.as_os_str()],
        ]
        .concat(),
    );
    let whole = std::fs::read(&qcow2).unwrap();
    let cut = file(publisher, "cut.qcow2", &whole[..whole.len() * 2 / 3]);
    assert_refused(publish(publisher, &cut), &[&name(&cut), "cut short"], &[]);
    for len in [8, 200, 70_000] {
        let cut = file(publisher, "shorter.qcow2", &whole[..len]);
        assert_refused(publish(publisher, &cut), &[&name(&cut)], &[]);
    }
    let difference = publisher.directory().join("difference.qcow2");
    qemu_img(&[
        "create".as_ref(),
        "-q".as_ref(),
        "-f".as_ref(),
        "qcow2".as_ref(),
        "-F".as_ref(),
        "qcow2".as_ref(),
        "-b".as_ref(),
        qcow2.as_os_str(),
        difference.as_os_str(),
    ]);
    assert_refused(
        publish(publisher, &difference),
        &[&name(&difference), "difference from", "disk.qcow2", "qemu-img convert"],
        &[],
    );

    let history = publisher.satchel(["--json", "history", "--image", "golden"]).ok().json();
    assert_eq!(history.as_array().map(Vec::len), Some(1), "something was published");
    // And the whole one is fine.
    let _ = publish(publisher, &qcow2).ok();
}

#[test]
fn a_file_that_may_not_be_read_is_named() {
    require!(root);
    let published = Publication::new(21, IMAGE_BYTES);
    // Even root reads no file that fails to be read.
    let path = Path::new("/proc/self/mem");
    let refused = publish(&published.publisher, path).exited(1);
    assert!(refused.stderr.contains("/proc/self/mem"), "{}", refused.stderr);
    super::assert_clean(&refused.stderr);
}
