//! Things that do not exist, exist already, or cannot be called that.

use satchel_tests::Publication;

use super::{IMAGE_BYTES, assert_refused};

#[test]
fn unknown_images_channels_and_versions_are_named() {
    let published = Publication::new(10, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let create = |image: &str| laptop.satchel(["create", "work", "--image", image]);
    let advice = ["satchel images"];
    assert_refused(create("nothing"), &["there is no image nothing"], &advice);
    assert_refused(create("golden:beta"), &["golden", "no channel beta", "stable"], &advice);
    assert_refused(create("golden@7"), &["golden", "no version 7"], &advice);
    assert_refused(create("golden@0123456789abcdef"), &["golden", "no version 0123456789abcdef"], &advice);
    assert_refused(create("golden@xyz"), &["`xyz`", "names no version"], &advice);
    assert_refused(create("golden@"), &["names no version"], &advice);
    assert_refused(
        laptop.satchel(["history", "--image", "nothing"]),
        &["there is no image nothing"],
        &advice,
    );
    let desktops = laptop.satchel(["--json", "desktops"]).ok().json();
    assert_eq!(desktops, serde_json::json!([]), "a desktop was made of nothing");
}

#[test]
fn unknown_desktops_are_named_and_leave_nothing_behind() {
    let published = Publication::new(11, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    let directory = laptop.new_directory();
    let said = ["there is no desktop nothing"];
    let advice = ["satchel desktops", "satchel create"];
    for command in ["status", "sync", "history", "run"] {
        assert_refused(laptop.satchel([command, "nothing"]), &said, &advice);
    }
    let mount = ["mount".as_ref(), "nothing".as_ref(), directory.as_os_str()];
    assert_refused(laptop.satchel(mount), &said, &advice);
    assert!(!laptop.desktop_directory("nothing").exists(), "a directory was made for a desktop that is none");
}

#[test]
fn a_desktop_that_exists_is_not_made_again() {
    let published = Publication::new(12, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let before = laptop.history("work");
    assert_refused(
        laptop.satchel(["create", "work", "--image", "golden"]),
        &["there is a desktop work already"],
        &["another name"],
    );
    assert_eq!(laptop.history("work"), before);
}

#[test]
fn names_and_numbers_that_are_none_are_bad_usage() {
    let published = Publication::new(13, IMAGE_BYTES);
    let laptop = published.machine("laptop");
    for command in [
        ["create", "Work", "--image", "golden"].as_slice(),
        &["create", "../work", "--image", "golden"],
        &["create", "", "--image", "golden"],
        &["create", "work", "--image", "gol den"],
        &["create", "work", "--image", "golden", "--home", "much"],
        &["create", "work"],
        &["status", "a/b"],
        &["history"],
        &["history", "work", "--image", "golden"],
        &["run", "work", "--cpus", "0"],
        &["run", "work", "--engine", "abacus"],
        &["mount", "work"],
        &["nonsense"],
        &[],
    ] {
        let refused = laptop.satchel(command).exited(2);
        assert_eq!(refused.stdout, "", "{command:?}");
        super::assert_clean(&refused.stderr);
        assert!(
            refused.stderr.contains("Usage: satchel") || refused.stderr.contains("--help"),
            "{}",
            refused.stderr
        );
    }
    assert_refused(
        laptop.satchel(["create", "work", "--image", "golden", "--home", "1M"]),
        &["home disk", "16M"],
        &[],
    );
    assert_refused(
        laptop.satchel(["create", "work", "--image", "golden", "--home", "9000T"]),
        &["home"],
        &[],
    );
}
