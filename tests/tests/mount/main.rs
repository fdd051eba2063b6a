//! Mounted desktops: the real client, server and kernel, one file that must behave as a disk.

mod cache;
mod crash;
mod debian;
mod exercisers;
mod free;
mod network;
mod offline;
mod point;
mod power;
mod reading;
mod running;
mod sources;
mod space;
mod stand_in;
mod watch;
mod writing;

use std::fs::File;
use std::path::Path;

use satchel_tests::{Model, Rng};

/// Size of the images these tests publish, bytes: 320 chunks, of which about a quarter are zeros.
const IMAGE_BYTES: u64 = 20 << 20;

/// Opens a disk for reading.
fn open(disk: &Path) -> File {
    File::open(disk).unwrap_or_else(|error| panic!("cannot open {}: {error}", disk.display()))
}

/// Reads random places of a disk from several threads at once; all must be right.
fn read_by_many(model: &Model, disk: &Path, threads: u64, reads: u64, seed: u64) {
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || model.assert_at_random(disk, reads, &mut Rng::of_part(seed, thread)));
        }
    });
}
