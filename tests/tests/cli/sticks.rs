//! State on a stick: one that is not plugged in.

use satchel_tests::{Client, Publication};

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
