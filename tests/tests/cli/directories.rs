//! Directories in the wrong place: state of another desktop or server, mount points that are none.

use std::path::Path;
use std::process::Command;

use satchel_tests::model::open_for_writing;
use satchel_tests::{Client, Model, Publication, Signal, require, wait};

use super::assert_refused;

const IMAGE_BYTES: u64 = 1 << 20;

fn mount(machine: &Client, desktop: &str) -> satchel_tests::Output {
    let directory = machine.new_directory();
    machine.satchel(["mount".as_ref(), desktop.as_ref(), directory.as_os_str()])
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp can be run");
    assert!(copied.success());
}

/// A machine with the desktops `work` and `play`, both opened before; in the first something is written.
fn with_two_desktops(published: &Publication) -> (Client, Model) {
    let laptop = published.machine_with_desktop("laptop");
    laptop.create("play", "golden", Some("16M"));
    laptop.mount("play").unmount();
    let mut home = Model::zeros(16 << 20);
    let disks = laptop.mount("work");
    let disk = open_for_writing(&disks.home());
    home.write(&disk, 5 << 20, &[1; 70_000]);
    drop(disk);
    disks.unmount();
    (laptop, home)
}

#[test]
fn a_desktops_directory_under_another_name_is_refused() {
    require!(fuse);
    let published = Publication::new(60, IMAGE_BYTES);
    let (laptop, home) = with_two_desktops(&published);
    let (work, play, stray) = (
        laptop.desktop_directory("work"),
        laptop.desktop_directory("play"),
        laptop.desktop_directory("stray"),
    );
    let advice = ["copied or renamed"];

    // Renamed to one that does not exist, and copied over one that does.
    std::fs::rename(&work, &stray).unwrap();
    assert_refused(
        mount(&laptop, "stray"),
        &["desktops/stray", "the desktop work of alice", "not to the desktop stray"],
        &advice,
    );
    assert_refused(laptop.satchel(["sync", "stray"]), &["the desktop work of alice"], &advice);
    std::fs::rename(&stray, &work).unwrap();
    let aside = laptop.directory().join("aside");
    std::fs::rename(&play, &aside).unwrap();
    copy(&work, &play);
    assert_refused(
        mount(&laptop, "play"),
        &["desktops/play", "the desktop work of alice", "not to the desktop play"],
        &advice,
    );
    std::fs::remove_dir_all(&play).unwrap();
    std::fs::rename(&aside, &play).unwrap();

    // Only what was written, between desktops of one size.
    let (mine, theirs) = (work.join("overlay-home-1.data"), play.join("overlay-home-1.data"));
    copy(&theirs, &laptop.directory().join("kept"));
    copy(&mine, &theirs);
    let refused = mount(&laptop, "play").exited(1);
    assert!(
        refused.stderr.contains("overlay-home-1.data") && refused.stderr.contains("belong"),
        "{}",
        refused.stderr
    );
    copy(&work.join("overlay-home-1.map"), &play.join("overlay-home-1.map"));
    let refused = mount(&laptop, "play").exited(1);
    assert!(
        refused.stderr.contains("overlay-home-1.map") && refused.stderr.contains("belong"),
        "{}",
        refused.stderr
    );
    super::assert_clean(&refused.stderr);

    let disks = laptop.mount("work");
    home.assert_in(&disks.home());
    disks.unmount();
}

#[test]
fn another_desktops_cache_is_not_believed() {
    require!(fuse);
    let published = Publication::new(61, IMAGE_BYTES);
    let (laptop, home) = with_two_desktops(&published);
    let other = Publication::new(62, IMAGE_BYTES);
    let elsewhere = other.machine_with_desktop("elsewhere");
    let disks = elsewhere.mount_with("work", &["--cache-size", "8M"]);
    other.content.assert_in(&disks.system());
    disks.unmount();
    let cache = laptop.desktop_directory("work").join("cache");
    std::fs::remove_dir_all(&cache).unwrap();
    copy(&elsewhere.desktop_directory("work").join("cache"), &cache);
    let disks = laptop.mount_with("work", &["--cache-size", "8M"]);
    published.content.assert_in(&disks.system());
    home.assert_in(&disks.home());
    disks.unmount();
}

#[test]
fn a_state_directory_stays_with_its_server() {
    require!(fuse);
    let (published, other) = (Publication::new(63, IMAGE_BYTES), Publication::new(64, IMAGE_BYTES));
    let (laptop, home) = with_two_desktops(&published);
    let access = other.access();
    let login = laptop.satchel([
        "login",
        &access.url,
        "--token",
        &access.token,
        "--fingerprint",
        &access.fingerprint,
    ]);
    assert_refused(
        login,
        &["belong to the server ed25519:", &access.url, &laptop.state().display().to_string()],
        &["another state directory", "--state DIR login"],
    );
    let disks = laptop.mount("work");
    home.assert_in(&disks.home());
    disks.unmount();

    // A desktop's directory carried over by hand to where another server has one of the same name.
    let elsewhere = other.machine_with_desktop("elsewhere");
    std::fs::create_dir_all(elsewhere.state().join("desktops")).unwrap();
    copy(&laptop.desktop_directory("work"), &elsewhere.desktop_directory("work"));
    assert_refused(
        mount(&elsewhere, "work"),
        &["desktops/work", "on the server ed25519:"],
        &["copied or renamed"],
    );
    std::fs::remove_dir_all(elsewhere.desktop_directory("work")).unwrap();
    let disks = elsewhere.mount("work");
    other.content.assert_in(&disks.system());
    disks.unmount();

    // Another user of the same server.
    let bob = Client::new("bob");
    bob.login(&published.server.access("bob", "user"));
    bob.create("work", "golden", Some("16M"));
    std::fs::create_dir_all(bob.state().join("desktops")).unwrap();
    copy(&laptop.desktop_directory("work"), &bob.desktop_directory("work"));
    assert_refused(
        mount(&bob, "work"),
        &["the desktop work of alice", "the desktop work of bob"],
        &["copied or renamed"],
    );
}

#[test]
fn what_cannot_be_mounted_on_is_named() {
    require!(fuse);
    let published = Publication::new(65, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let on = |directory: &Path| laptop.satchel(["mount".as_ref(), "work".as_ref(), directory.as_os_str()]);
    let name = |path: &Path| path.display().to_string();

    let missing = laptop.directory().join("missing");
    assert_refused(on(&missing), &[&name(&missing), "No such file or directory"], &["mkdir -p"]);
    let file = laptop.directory().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert_refused(on(&file), &[&name(&file), "directory"], &[]);
    let full = laptop.new_directory();
    std::fs::write(full.join("precious"), "").unwrap();
    assert_refused(on(&full), &[&name(&full), "not an empty directory"], &["new directory"]);
    assert_refused(on(Path::new("/proc")), &["mounted on /proc already"], &["findmnt"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    assert!(full.join("precious").exists());
    // None of it left the desktop locked.
    let taken = laptop.mount("work");
    let taken_directory = taken.directory().to_owned();
    laptop.create("play", "golden", Some("16M"));
    let refused = laptop.satchel(["mount".as_ref(), "play".as_ref(), taken_directory.as_os_str()]);
    assert_refused(refused, &[&name(&taken_directory), "mounted on"], &["findmnt"]);
    taken.unmount();
}

#[test]
fn a_state_directory_that_cannot_be_is_named() {
    let published = Publication::new(66, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let file = laptop.directory().join("file");
    std::fs::write(&file, "precious").unwrap();
    for state in [file.clone(), file.join("below"), "/proc/nowhere".into()] {
        let broken = Client::with_state("broken", &state);
        let refused = broken.satchel(["images"]).exited(1);
        super::assert_clean(&refused.stderr);
        assert!(refused.stderr.contains(&state.display().to_string()), "{}", refused.stderr);
    }
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
}

#[test]
fn a_desktop_that_is_mounted_is_asked_and_not_opened_again() {
    require!(fuse);
    let published = Publication::new(67, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mut disks = laptop.mount("work");
    let status = laptop.status("work");
    assert_eq!(status["mounted_at"], disks.directory().display().to_string());
    // A process that hangs holds the desktop: the others say who it is rather than wait for ever.
    disks.process().signal(Signal::STOP);
    let refused = mount(&laptop, "work");
    let pid = disks.process().id().to_string();
    assert_refused(refused, &["in use", &pid], &["satchel status"]);
    disks.process().signal(Signal::CONT);
    wait::until("it answers again", wait::PATIENCE, || {
        laptop.satchel(["status", "work"]).code.filter(|code| *code == 0)
    });
    disks.unmount();
    assert_eq!(laptop.status("work")["mounted_at"], serde_json::Value::Null);
}
