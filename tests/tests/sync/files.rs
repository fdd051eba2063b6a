//! Disks as files: looking into any version, telling versions apart, and taking a file back.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use satchel_tests::{Client, Fault, FaultyHttps, Mount, Publication, Rule, Signal, TestServer, require};
use serde_json::Value;

use super::story::sync;

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

fn run(program: &str, arguments: &[&str], file: &Path) {
    let output = Command::new(program).args(arguments).arg(file).env("PATH", PATH).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes a file system with the content of a directory on a file or disk.
fn format(tree: &Path, disk: &Path) {
    run("mkfs.ext4", &["-q", "-F", "-d", tree.to_str().expect("a path of the test is text")], disk);
}

fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    };
    (0..len).map(|_| next()).collect()
}

struct Story {
    server: TestServer,
    publisher: Client,
    tree: PathBuf,
    disk: PathBuf,
}

impl Story {
    fn new() -> Self {
        let server = TestServer::start();
        let publisher = Client::new("build-machine");
        publisher.login(&server.access("it", "publisher"));
        let tree = publisher.new_directory();
        fs::create_dir_all(tree.join("etc")).expect("a file of the test can be made");
        fs::create_dir_all(tree.join("var/lib/dpkg")).expect("a file of the test can be made");
        fs::write(tree.join("etc/hostname"), "golden\n").expect("a file of the test can be made");
        fs::write(tree.join("etc/large"), noise(1 << 20, 7)).expect("a file of the test can be made");
        let package = |name: &str, version: &str| {
            format!(
                "Package: {name}\nStatus: install ok installed\nArchitecture: amd64\nVersion: {version}\n\n"
            )
        };
        let status = package("bash", "5.2-1") + &package("vim", "9.0");
        fs::write(tree.join("var/lib/dpkg/status"), status).expect("a file of the test can be made");
        let disk = publisher.directory().join("disk.raw");
        let story = Self { server, publisher, tree, disk };
        story.make_disk();
        story
    }

    fn make_disk(&self) {
        let _ = fs::remove_file(&self.disk);
        fs::File::create(&self.disk)
            .expect("a file of the test can be made")
            .set_len(16 << 20)
            .expect("a file of the test can be made");
        format(&self.tree, &self.disk);
    }

    /// A machine of alice's with the desktop `work`.
    fn laptop(&self) -> Client {
        let laptop = Client::new("laptop");
        laptop.login(&self.server.access("alice", "user"));
        laptop.create("work", "golden", Some("16M"));
        laptop
    }

    fn publish(&self, more: &[&str]) -> Value {
        let arguments = [
            "--json",
            "publish",
            self.disk.to_str().expect("a path of the test is text"),
            "--image",
            "golden",
        ];
        self.publisher.satchel(arguments.iter().chain(more)).ok().json()
    }
}

fn browse(machine: &Client, version: &str) -> Mount {
    let directory = machine.new_directory();
    let process = machine.start(["browse".as_ref(), version.as_ref(), directory.as_os_str()]);
    machine.mounted(version, &directory, process)
}

/// A message of success for what the next start throws away would be a loss.
#[test]
fn nothing_is_copied_to_where_it_would_not_be_kept() {
    require!(fuse);
    let story = Story::new();
    story.publish(&[]);
    let proxy = FaultyHttps::start(&story.server.url(), story.server.fingerprint());
    let laptop = Client::new("laptop");
    laptop.login(&story.server.access("alice", "user").through_faulty(&proxy));
    let words = ["create", "work", "--image", "golden", "--home", "16M", "--mode", "renew"];
    let _ = laptop.satchel(words).ok();
    let mount = laptop.mount("work");
    format(&laptop.new_directory(), &mount.home());
    mount.unmount();
    let copy =
        |disk| laptop.satchel(["copy", "--disk", disk, "work:/lost+found", "work:/copied"]).exited(1).stderr;
    let said = copy("system");
    assert!(said.contains("the system disk of work is new at each start (mode renew)"), "{said}");
    let _ = laptop.sync("work");

    // As if the machine had not heard of the server for eight days, and cannot renew its lease now.
    let path = laptop.desktop_directory("work").join("lease.json");
    let mut lease: Value = serde_json::from_slice(&fs::read(&path).expect("a lease")).expect("JSON");
    let week_ms = 8 * 24 * 3_600_000;
    lease["heard_ms"] = (lease["heard_ms"].as_u64().expect("a time") - week_ms).into();
    fs::write(&path, lease.to_string()).expect("a lease can be edited");
    proxy.inject(Rule::new(Fault::Status(502)).method("PUT"));
    let said = copy("home");
    assert!(said.contains("desktop work can only be looked at now"), "{said}");
    proxy.heal();
    assert_eq!(sync(&laptop)["version"], Value::Null);
}

#[test]
fn a_file_of_an_old_version_is_looked_at_compared_and_taken_back() {
    require!(fuse);
    let story = Story::new();
    story.publish(&[]);
    let laptop = story.laptop();

    let tree = laptop.new_directory();
    fs::create_dir(tree.join("user")).expect("a file of the test can be made");
    let letter = noise(300_000, 5);
    fs::write(tree.join("user/letter"), &letter).expect("a file of the test can be made");
    fs::set_permissions(tree.join("user/letter"), fs::Permissions::from_mode(0o640))
        .expect("a file of the test can be made");
    fs::write(tree.join("user/kept"), "kept").expect("a file of the test can be made");
    symlink("letter", tree.join("user/link")).expect("a file of the test can be made");
    let mount = laptop.mount("work");
    format(&tree, &mount.home());
    mount.unmount();
    let _ = laptop.sync("work");

    // Someone deletes the letter.
    let mount = laptop.mount("work");
    run("debugfs", &["-w", "-R", "rm /user/letter"], &mount.home());
    let _ = laptop.sync("work");

    // Beside the mounted desktop, the old version is there.
    let mut browsed = browse(&laptop, "work@2");
    let file = browsed.directory().join("home/user/letter");
    assert!(fs::read(&file).expect("a file of the test can be made") == letter);
    let metadata = fs::metadata(&file).expect("a file of the test can be made");
    let expected = fs::metadata(tree.join("user/letter")).expect("a file of the test can be made");
    assert_eq!((metadata.mode(), metadata.uid()), (expected.mode(), expected.uid()));
    assert_eq!((metadata.mtime(), metadata.len()), (expected.mtime(), 300_000));
    assert_eq!(
        fs::read_link(browsed.directory().join("home/user/link")).expect("a file of the test can be made"),
        Path::new("letter")
    );
    assert!(
        fs::read(browsed.directory().join("home/user/link")).expect("a file of the test can be made")
            == letter
    );
    assert_eq!(
        fs::read_to_string(browsed.directory().join("system/etc/hostname"))
            .expect("a file of the test can be made"),
        "golden\n"
    );
    assert!(
        fs::read(browsed.directory().join("system/etc/large")).expect("a file of the test can be made")
            == noise(1 << 20, 7)
    );
    assert!(fs::write(browsed.directory().join("home/user/new"), "x").is_err(), "it is read-only");
    assert!(browsed.process().status().is_none());
    browsed.unmount();
    let first = browse(&laptop, "work@1");
    assert_eq!(
        fs::read_dir(first.directory().join("home")).expect("a file of the test can be made").count(),
        0
    );
    let mut first = first;
    let status = first.process().stop(Signal::INT, Duration::from_secs(60));
    assert!(status.success());
    assert!(first.process().report().contains("the home disk is blank"), "{}", first.process().report());
    drop(first);
    // A copy needs the desktop for itself.
    let arguments = ["--json", "copy", "work@2:/user/letter", "work:/user/letter"];
    let refused = laptop.satchel(arguments).exited(1);
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    mount.unmount();

    let changes = |arguments: &[&str]| {
        let difference = laptop.satchel(["--json", "diff"].iter().chain(arguments)).ok().json();
        difference["disks"].as_array().expect("a file of the test can be made").clone()
    };
    let disks = changes(&["work@2", "work@3"]);
    assert_eq!(disks[0]["identical"], true, "{disks:?}");
    let told = |disk: &Value| {
        let changes = disk["changes"].as_array().expect("a file of the test can be made").iter();
        changes
            .map(|change| {
                format!(
                    "{} {}",
                    change["fate"].as_str().expect("a file of the test can be made"),
                    change["path"].as_str().expect("a file of the test can be made")
                )
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(told(&disks[1]), ["removed /user/letter"]);

    let copied = laptop.satchel(arguments).ok().json();
    assert_eq!((&copied["files"], &copied["bytes"]), (&1.into(), &300_000.into()), "{copied}");
    let again = laptop.satchel(arguments).exited(1);
    assert!(
        again.stderr.contains("is there already") && again.stderr.contains("--force"),
        "{}",
        again.stderr
    );
    let _ = laptop.satchel(arguments.iter().chain(&["--force"])).ok();
    // What is in no version is not looked at, and that is said.
    let unsynced = laptop.satchel(["diff", "work@2", "work"]).ok().stderr;
    assert!(
        unsynced.contains("are in no version yet") && unsynced.contains("satchel sync work"),
        "{unsynced}"
    );
    let mount = laptop.mount("work");
    run("e2fsck", &["-f", "-n"], &mount.home());
    mount.unmount();
    let _ = laptop.sync("work");
    // What is refused leaves the desktop as it was, and nobody waiting for it.
    let nowhere = ["copy", "work@2:/user/letter", "work:/nowhere/letter"];
    for refused in [&arguments[1..], &nowhere, &["copy", "work@2:/user", "work:/"]] {
        let _ = laptop.satchel(refused).exited(1);
        let status = laptop.status("work");
        let left = (&status["unsynced_bytes"], &status["lease_held"]);
        assert_eq!(left, (&0.into(), &false.into()), "{refused:?}: {status}");
    }
    let disks = changes(&["work@2", "work", "--disk", "home"]);
    assert_eq!(told(&disks[0]), Vec::<String>::new(), "{disks:?}");
    let text = laptop.satchel(["diff", "work@3", "work"]).ok().stdout;
    assert!(text.contains("+ home/user/letter  292 KiB"), "{text}");
    story.server.verify();
}

#[test]
fn disks_whose_files_cannot_be_told_are_said_to_differ() {
    require!(fuse);
    let published = Publication::new(67, 1 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let mount = laptop.mount("work");
    let home = satchel_tests::model::open_for_writing(&mount.home());
    std::os::unix::fs::FileExt::write_all_at(&home, &noise(100_000, 67), 0).expect("the disk takes it");
    drop(home);
    mount.unmount();
    let _ = laptop.sync("work");
    let text = laptop.satchel(["diff", "work@1", "work"]).ok().stdout;
    assert!(text.contains("home: it differs; its files cannot be compared"), "{text}");
    let report = laptop.satchel(["--json", "diff", "work@1", "work"]).ok().json();
    let home = &report["disks"][1];
    assert_eq!((&home["identical"], &home["compared"]), (&false.into(), &false.into()), "{report}");
}

#[test]
fn publishing_tells_what_changed_and_keeps_to_a_budget() {
    let story = Story::new();
    let first = story.publish(&[]);
    assert_eq!(first["summary"], Value::Null);
    fs::write(story.tree.join("etc/added"), noise(500_000, 9)).expect("a file of the test can be made");
    fs::write(story.tree.join("etc/hostname"), "golden two\n").expect("a file of the test can be made");
    let status = story.tree.join("var/lib/dpkg/status");
    let packages = fs::read_to_string(&status).expect("a file of the test can be made");
    fs::write(&status, packages.replace("5.2-1", "5.2-2").replace("vim", "nano"))
        .expect("a file of the test can be made");
    story.make_disk();
    let refused = story.publisher.satchel([
        "publish".as_ref(),
        story.disk.as_os_str(),
        "--image".as_ref(),
        "golden".as_ref(),
        "--max-update".as_ref(),
        "100K".as_ref(),
    ]);
    let refused = refused.exited(1);
    // What it would change is told, as after a publication.
    for said in ["nothing was published", "+ /etc/added", "- vim", "+ nano"] {
        assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
    }
    let history = story.publisher.satchel(["--json", "history", "--image", "golden"]).ok().json();
    assert_eq!(history.as_array().map(Vec::len), Some(1), "{history}");

    let second = story.publish(&["--max-update", "8M"]);
    let summary = &second["summary"];
    let files = &summary["files"];
    assert_eq!(
        (&files["added"], &files["changed"], &files["removed"]),
        (&1.into(), &2.into(), &0.into()),
        "{second}"
    );
    assert_eq!(files["largest"][0]["path"], "/etc/added");
    let packages = &summary["packages"];
    assert_eq!(packages["added"][0]["package"], "nano", "{second}");
    assert_eq!(packages["removed"][0]["package"], "vim", "{second}");
    assert_eq!(packages["upgraded"][0]["after"], "5.2-2", "{second}");
    let full = summary["full_bytes"].as_u64().expect("a file of the test can be made");
    assert!((500_000..2_000_000).contains(&full), "{full}");

    fs::write(story.tree.join("etc/hostname"), "golden three\n").expect("a file of the test can be made");
    story.make_disk();
    assert_eq!(story.publish(&["--no-summary"])["summary"], Value::Null);
}

#[test]
fn golden_versions_are_looked_into_and_compared_with_each_other_and_with_desktops() {
    require!(fuse);
    let story = Story::new();
    story.publish(&[]);
    let laptop = story.laptop();
    fs::write(story.tree.join("etc/hostname"), "golden two\n").expect("a file of the test can be made");
    story.make_disk();
    story.publish(&[]);

    let difference = |before: &str, after: &str| {
        let difference = laptop.satchel(["--json", "diff", before, after, "--disk", "system"]).ok().json();
        let changes = difference["disks"][0]["changes"].as_array().expect("a list").clone();
        let paths = changes.iter().map(|change| change["path"].as_str().expect("a path").to_owned());
        (paths.collect::<Vec<_>>(), difference)
    };
    let (changed, told) = difference("image:golden@1", "image:golden");
    assert_eq!(changed, ["/etc/hostname"], "{told}");
    assert_eq!((&told["after"]["desktop"], &told["after"]["sequence"]), (&"image:golden".into(), &2.into()));
    let (changed, told) = difference("work", "image:golden:stable");
    assert_eq!(changed, ["/etc/hostname"], "{told}");

    let browsed = browse(&story.publisher, "image:golden@2");
    let hostname = fs::read_to_string(browsed.directory().join("system/etc/hostname"));
    assert_eq!(hostname.expect("it is there"), "golden two\n");
    browsed.unmount();
    let words =
        ["--json", "copy", "--disk", "system", "image:golden@2:/etc/hostname", "work:/etc/hostname.new"];
    let copied = laptop.satchel(words).ok().json();
    assert_eq!((&copied["from"], &copied["files"]), (&"image:golden@2".into(), &1.into()), "{copied}");

    let said = laptop.satchel(["diff", "image:silver", "work"]).exited(1).stderr;
    assert!(said.contains("there is no image silver"), "{said}");
    let _ = laptop.satchel(["browse", "image:", "/tmp"]).exited(2);
}

#[test]
fn a_copy_that_finds_no_room_or_is_killed_leaves_what_was_there() {
    require!(fuse);
    let story = Story::new();
    story.publish(&[]);
    let laptop = story.laptop();
    let tree = laptop.new_directory();
    fs::write(tree.join("letter"), noise(3 << 20, 5)).expect("a file of the test can be made");
    let mount = laptop.mount("work");
    format(&tree, &mount.home());
    mount.unmount();
    let _ = laptop.sync("work");
    // Another letter, in no version yet, and no room for the old one.
    fs::write(tree.join("letter"), "three hours of work").expect("a file of the test can be made");
    fs::write(tree.join("much"), noise(11 << 20, 6)).expect("a file of the test can be made");
    let mount = laptop.mount("work");
    format(&tree, &mount.home());
    let before = fs::read(mount.home()).expect("a mounted disk can be read");
    mount.unmount();

    let arguments = ["copy", "--force", "work@2:/letter", "work:/letter"];
    let said = laptop.satchel(arguments).exited(1).stderr;
    assert!(
        said.contains("has no room for /letter; nothing was copied") && said.contains("hint: "),
        "{said}"
    );
    for wait_ms in [100, 300, 500, 700] {
        let mut copying = laptop.start(arguments);
        std::thread::sleep(Duration::from_millis(wait_ms));
        copying.kill();
        copying.wait(Duration::from_secs(60));
    }
    // Also where a killed one has left a mount.
    let mount = laptop.mount("work");
    assert!(fs::read(mount.home()).expect("a mounted disk can be read") == before, "the home has changed");
    mount.unmount();
    let _ = laptop.satchel(["remove", "work", "--yes", "--force"]).ok();
    assert!(!laptop.desktop_directory("work").exists());
}
