//! Where a desktop is mounted, how often, and by whom.

use std::os::unix::process::CommandExt;
use std::process::Command;

use satchel_tests::wait::{self, PATIENCE};
use satchel_tests::{Client, Model, Process, Publication, Signal, require};

use super::IMAGE_BYTES;

#[test]
fn a_second_mount_of_a_desktop_is_refused() {
    require!(fuse);
    let published = Publication::new(70, 1 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let mut mount = laptop.mount("work");
    let directory = laptop.new_directory();
    let refused = laptop.satchel(["mount".as_ref(), "work".as_ref(), directory.as_os_str()]).exited(1);
    let expected = format!("in use by another process on this machine (pid {})", mount.process().id());
    assert!(refused.stderr.contains(&expected), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: see `satchel status"), "{}", refused.stderr);
    assert_eq!(refused.stdout, "");
    published.content.assert_in(&mount.system());
    mount.unmount();
    // And then it is free.
    laptop.mount_at("work", &directory, &[]).unmount();
}

#[test]
fn a_dead_mount_is_cleared_away_by_the_next_one() {
    require!(fuse);
    let published = Publication::new(71, 1 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let mount = laptop.mount("work");
    published.content.assert_in(&mount.system());
    let directory = mount.abandon();
    let stale = std::fs::read_dir(&directory).unwrap_err();
    assert_eq!(stale.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error()));
    let mut mount = laptop.mount_at("work", &directory, &[]);
    let said = mount.process().stderr();
    assert!(said.contains("cleared away what a crashed process left mounted"), "{said}");
    published.content.assert_in(&mount.system());
    mount.unmount();
}

#[test]
fn a_mount_ends_well_however_it_is_ended() {
    require!(fuse);
    let published = Publication::new(72, 1 << 20);
    let laptop = published.machine_with_desktop("laptop");
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut mount = laptop.mount("work");
        assert!(mount.process().stop(signal, PATIENCE).success(), "{}", mount.process().report());
    }
    let mut mount = laptop.mount("work");
    let unmounted = Command::new("umount").arg(mount.directory()).status().expect("umount can be run");
    if unmounted.success() {
        assert!(mount.process().wait(PATIENCE).success(), "{}", mount.process().report());
    }
    drop(mount);

    // While a file is open it stays until that is closed; what was written meanwhile is kept.
    let mut mount = laptop.mount("work");
    let disk = satchel_tests::model::open_for_writing(&mount.home());
    mount.process().signal(Signal::INT);
    wait::until("it says that it is in use", PATIENCE, || {
        mount.process().stderr().contains("is in use").then_some(())
    });
    let mut model = Model::zeros(16 << 20);
    model.write(&disk, 12_345, b"written while it was asked to end");
    drop(disk);
    assert!(mount.process().wait(PATIENCE).success(), "{}", mount.process().report());
    drop(mount);
    let mount = laptop.mount("work");
    model.assert_in(&mount.home());
    mount.unmount();
}

#[test]
fn who_interrupts_twice_takes_the_disks_away_from_whoever_uses_them() {
    require!(fuse);
    let published = Publication::new(75, 1 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let mut mount = laptop.mount("work");
    let mut model = Model::zeros(16 << 20);
    let disk = satchel_tests::model::open_for_writing(&mount.home());
    model.write(&disk, 12_345, b"written before that");
    disk.sync_all().expect("the disks are there");
    mount.process().signal(Signal::INT);
    wait::until("it says that it is in use", PATIENCE, || {
        mount.process().stderr().contains("is in use").then_some(())
    });
    assert!(mount.process().stop(Signal::INT, PATIENCE).success(), "{}", mount.process().report());
    let gone = std::os::unix::fs::FileExt::write_all_at(&disk, b"after it", 0).expect_err("nobody takes it");
    assert_eq!(gone.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error()), "{gone}");
    assert!(mount.process().stderr().contains("are on this machine only: `satchel sync work`"));
    drop(mount);
    let mount = laptop.mount("work");
    model.assert_in(&mount.home());
    mount.unmount();
}

#[test]
fn a_mount_in_use_outlives_the_end_of_the_session_until_it_is_free() {
    require!(fuse);
    let published = Publication::new(74, 1 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let mut mount = laptop.mount("work");
    let disk = satchel_tests::model::open_for_writing(&mount.home());
    for (count, signal) in [(1, Signal::TERM), (2, Signal::HUP), (3, Signal::TERM)] {
        mount.process().signal(signal);
        wait::until("it says that it is in use", PATIENCE, || {
            (mount.process().stderr().matches("is in use").count() == count).then_some(())
        });
    }
    let mut model = Model::zeros(16 << 20);
    model.write(&disk, 12_345, b"written while the session ended");
    disk.sync_all().expect("the disks are still there");
    drop(disk);
    assert!(mount.process().wait(PATIENCE).success(), "{}", mount.process().report());
    drop(mount);
    let mount = laptop.mount("work");
    model.assert_in(&mount.home());
    mount.unmount();
}

/// A user that every Debian has and that may do nothing.
const NOBODY: u32 = 65_534;

#[test]
fn an_ordinary_user_mounts_and_syncs_too() {
    require!(root, fuse, user_fuse);
    let published = Publication::new(73, IMAGE_BYTES);
    let laptop = Client::new("laptop");
    // What a user can reach: this workspace may lie where only root may look.
    let program = laptop.directory().join("satchel");
    let ours = laptop.command(["--version"]).get_program().to_owned();
    std::fs::copy(&ours, &program).expect("the program can be copied");
    std::os::unix::fs::chown(laptop.directory(), Some(NOBODY), Some(NOBODY))
        .expect("root may give files away");
    let as_nobody = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        command
            .env_clear()
            .envs([("HOME", laptop.directory().as_os_str()), ("PATH", "/usr/bin:/bin".as_ref())])
            .current_dir(laptop.directory())
            .arg("--state")
            .arg(laptop.state())
            .args(arguments)
            .uid(NOBODY)
            .gid(NOBODY);
        command
    };
    let run = |arguments: &[&str]| {
        let output = as_nobody(arguments).output().expect("the client can be run");
        assert!(
            output.status.success(),
            "satchel {arguments:?} as an ordinary user: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let access = published.access();
    run(&["login", &access.url, "--token", &access.token, "--fingerprint", &access.fingerprint]);
    run(&["create", "work", "--image", "golden", "--home", "16M"]);
    let directory = laptop.new_directory();
    std::os::unix::fs::chown(&directory, Some(NOBODY), Some(NOBODY)).expect("root may give files away");
    let arguments = ["mount", "work", directory.to_str().expect("a temporary directory's name is text")];
    let process = Process::start("satchel as an ordinary user", &mut as_nobody(&arguments));
    let mut mount = laptop.mounted("work", &directory, process);
    // Not even root looks into another user's mount, so another process of that user does.
    let copy = laptop.directory().join("copy.raw");
    let mut cp = Command::new("sh");
    let script = "cp --sparse=always \"$1/system.raw\" \"$2\" && printf hello | dd of=\"$1/home.raw\" bs=1 seek=70000 \
                  conv=notrunc,fsync status=none";
    cp.args(["-c", script, "sh"]).arg(&directory).arg(&copy).uid(NOBODY).gid(NOBODY);
    assert!(cp.status().expect("sh can be run").success());
    published.content.assert_in(&copy);
    let said = run(&["sync", "work"]);
    assert!(said.contains("version 2"), "{said}");
    assert!(mount.process().stop(Signal::INT, PATIENCE).success(), "{}", mount.process().report());

    let mut home = Model::zeros(16 << 20);
    home.wrote(70_000, b"hello");
    let other = published.machine("other").mount("work");
    home.assert_in(&other.home());
    other.unmount();
}
