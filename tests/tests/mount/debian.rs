//! A real system's disk: 8 GiB, of which a good part is data.

use std::os::unix::fs::FileExt;
use std::process::Command;

use satchel_tests::disk::assert_same;
use satchel_tests::{Client, Rng, TestServer, images, require};

/// The most memory a mount may take, bytes.
const MEMORY_LIMIT_BYTES: u64 = 200_000_000;

#[test]
fn a_debian_disk_is_published_once_from_both_formats_and_streams_in_bounded_memory() {
    require!(fuse, image("plain"), tool("qemu-img"));
    let plain = images::plain();
    let server = TestServer::start();
    let publisher = Client::new("build-machine");
    publisher.login(&server.access("it", "publisher"));
    let publish = |disk: &std::path::Path| {
        let arguments =
            ["--json".as_ref(), "publish".as_ref(), disk.as_os_str(), "--image".as_ref(), "debian".as_ref()];
        publisher.satchel(arguments).ok().json()
    };
    let first = publish(&plain);
    assert_eq!((&first["unchanged"], &first["sequence"]), (&false.into(), &1.into()), "{first}");

    // Laid out otherwise, the same disk: nothing to send, and no new version.
    let qcow2 = publisher.directory().join("plain.qcow2");
    let converted = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .arg(&plain)
        .arg(&qcow2)
        .status()
        .expect("qemu-img can be run");
    assert!(converted.success());
    let second = publish(&qcow2);
    assert_eq!(second["version"], first["version"], "{second}");
    assert_eq!((&second["unchanged"], &second["new_bytes"]), (&true.into(), &0.into()), "{second}");
    std::fs::remove_file(&qcow2).expect("a file of the test's own");

    let laptop = Client::new("laptop");
    laptop.login(&server.access("alice", "user"));
    laptop.create("work", "debian", Some("1G"));
    let mut mount = laptop.mount("work");
    assert_same(&plain, &mount.system());
    let peak = mount.process().peak_memory_bytes();
    assert!(peak < MEMORY_LIMIT_BYTES, "streaming the disk took {peak} bytes of memory");
    // Again, from the cache, in no order.
    let (expected, found) = (super::open(&plain), super::open(&mount.system()));
    let size = expected.metadata().expect("an open file has metadata").len();
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut rng = Rng::new(80);
    for _ in 0..300 {
        let offset = rng.below(size - left.len() as u64);
        expected.read_exact_at(&mut left, offset).expect("the image can be read");
        found.read_exact_at(&mut right, offset).expect("the mount can be read");
        assert!(left == right, "1 MiB at {offset} differs");
    }
    drop(found);
    let peak = mount.process().peak_memory_bytes();
    assert!(peak < MEMORY_LIMIT_BYTES, "reading from the cache took it to {peak} bytes of memory");
    mount.unmount();
    println!("peak memory of the mount: {} MB", peak / 1_000_000);
}
