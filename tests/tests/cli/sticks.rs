//! State on a stick: one that is not plugged in, or has a file system of another system.

use std::process::Command;

use satchel_tests::{Access, Client, Publication, require};

use super::{IMAGE_BYTES, assert_refused};

#[test]
fn a_stick_that_is_not_plugged_in_is_named() {
    let published = Publication::new(51, IMAGE_BYTES);
    let place = tempfile::tempdir().expect("a temporary directory");
    for state in [place.path().join("stick/state"), place.path().to_owned()] {
        let laptop = Client::with_state("laptop", &state);
        let named = state.display().to_string();
        for command in [&["desktops"][..], &["mount", "work", "/nowhere"], &["status", "work"]] {
            assert_refused(
                laptop.satchel(command),
                &["not logged in", &named, "empty or not there"],
                &["plugged in", "satchel login URL"],
            );
        }
    }
    let left: Vec<_> = std::fs::read_dir(place.path()).expect("it can be listed").collect();
    assert!(left.is_empty(), "{left:?} was made where the stick belongs");
    let laptop = Client::with_state("laptop", &place.path().join("stick/state"));
    laptop.login(&published.access());
    let _ = laptop.satchel(["desktops"]).ok();
}

#[test]
fn a_file_system_that_cannot_carry_a_state_directory_is_refused_before_a_secret_is_on_it() {
    require!(root, fuse, tool("mkfs.exfat"), tool("mount.exfat-fuse"));
    let published = Publication::new(52, IMAGE_BYTES);
    let place = tempfile::tempdir().expect("a temporary directory");
    let image = place.path().join("image");
    let stick = place.path().join("stick");
    std::fs::create_dir(&stick).expect("a directory can be made");
    std::fs::File::create(&image).and_then(|file| file.set_len(32 << 20)).expect("a file can be made");
    let run = |command: &mut Command| {
        assert!(command.status().is_ok_and(|status| status.success()), "{command:?} failed");
    };
    run(Command::new("mkfs.exfat").arg(&image).stdout(std::process::Stdio::null()));
    let mut mount = Command::new("mount");
    mount.args(["-t", "exfat-fuse", "-o", "loop"]).arg(&image).arg(&stick);
    run(mount.stdout(std::process::Stdio::null()));
    let state = stick.join("state");
    let laptop = Client::with_state("laptop", &state);
    let Access { url, token, fingerprint } = published.access();
    let refused = laptop.satchel(["login", &url, "--token", &token, "--fingerprint", &fingerprint]);
    let left: Vec<_> =
        std::fs::read_dir(&state).expect("it can be listed").flatten().map(|file| file.file_name()).collect();
    run(Command::new("umount").arg(&stick));
    assert!(left.is_empty(), "{left:?}");
    assert_refused(refused, &["permissions", "holes", "sockets", "state"], &["ext4", "--state DIR"]);
}
