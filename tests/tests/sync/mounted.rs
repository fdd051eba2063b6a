//! A sync of a desktop in use.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use satchel_tests::model::open_for_writing;
use satchel_tests::{Publication, Rng, require};

use super::story::{Disks, HOME_BYTES, sync, versions};

const BLOCK_BYTES: u64 = 4096;

/// A block that says which write of it this was.
fn block(place: u64, turn: u64) -> [u8; 4096] {
    let mut block = [0; 4096];
    Rng::of_part(place, turn).fill(&mut block);
    block[..8].copy_from_slice(&turn.to_le_bytes());
    block
}

/// Which write of a block is on a disk; 0 when it was never written. It is one of the writes, whole.
fn turn_of(bytes: &[u8], place: u64) -> u64 {
    let turn = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    if turn == 0 {
        assert!(bytes.iter().all(|byte| *byte == 0), "block {place} is torn");
    } else {
        assert!(bytes == block(place, turn), "block {place} is torn in turn {turn}");
    }
    turn
}

#[test]
fn a_desktop_is_synced_while_it_is_written_to() {
    require!(fuse);
    const PLACES: u64 = 512;
    let published = Publication::new(30, 4 << 20);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    let mount = laptop.mount("work");
    let (done, turn) = (AtomicBool::new(false), AtomicU64::new(0));
    let flushed: Vec<AtomicU64> = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            // Writes blocks in order of time, in no order of place; what is flushed is noted.
            let disk = open_for_writing(&mount.home());
            let mut rng = Rng::new(30);
            let mut unflushed = Vec::new();
            while !done.load(Ordering::Acquire) {
                let now = turn.fetch_add(1, Ordering::AcqRel) + 1;
                let place = rng.below(PLACES);
                disk.write_all_at(&block(place, now), place * BLOCK_BYTES)
                    .expect("a mounted disk can be written");
                unflushed.push((place, now));
                if now % 16 == 0 {
                    disk.sync_data().expect("a mounted disk can be flushed");
                    unflushed.drain(..).for_each(|(place, now)| {
                        flushed[usize::try_from(place).unwrap()].store(now, Ordering::Release)
                    });
                }
            }
        });
        for _ in 0..5 {
            let before: Vec<u64> = flushed.iter().map(|turn| turn.load(Ordering::Acquire)).collect();
            sync(&laptop);
            let after = turn.load(Ordering::Acquire);
            let seen = other.mount_with("work", &["--read-only"]);
            let bytes = std::fs::read(seen.home()).expect("a mounted disk can be read");
            let turns: Vec<u64> = (0..PLACES)
                .zip(bytes.as_chunks::<4096>().0)
                .map(|(place, bytes)| turn_of(bytes, place))
                .collect();
            for (place, (turn, flushed)) in turns.iter().zip(&before).enumerate() {
                assert!(
                    turn >= flushed,
                    "block {place}: turn {flushed} was flushed before the sync, {turn} was synced"
                );
                assert!(*turn <= after, "block {place} is from the future");
            }
            seen.unmount();
        }
        done.store(true, Ordering::Release);
    });
    // What was written during the last sync is in the next one.
    let mut last = sync(&laptop);
    if last["version"].is_null() {
        last = laptop.status("work")["head"].clone();
    }
    let expected = std::fs::read(mount.home()).unwrap();
    assert_eq!(expected.len() as u64, HOME_BYTES);
    mount.unmount();
    let seen = other.mount("work");
    assert!(
        std::fs::read(seen.home()).unwrap() == expected,
        "version {last} is not what the first machine had"
    );
    seen.unmount();
    published.server.verify();
}

#[test]
fn a_freeze_is_one_instant_for_both_disks() {
    require!(fuse);
    let published = Publication::new(31, 4 << 20);
    let (laptop, other) = (published.machine_with_desktop("laptop"), published.machine("other"));
    let mount = laptop.mount("work");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // The home disk is always written first: a version in which it is behind mixes two instants.
            let (home, system) = (open_for_writing(&mount.home()), open_for_writing(&mount.system()));
            for turn in 1.. {
                for disk in [&home, &system] {
                    disk.write_all_at(&block(0, turn), 8 * BLOCK_BYTES)
                        .expect("a mounted disk can be written");
                }
                if done.load(Ordering::Acquire) {
                    break;
                }
            }
        });
        for _ in 0..5 {
            sync(&laptop);
            let seen = other.mount_with("work", &["--read-only"]);
            let turn = |path: &std::path::Path| {
                let mut bytes = [0; 4096];
                open_for_writing(path).read_exact_at(&mut bytes, 8 * BLOCK_BYTES).unwrap();
                turn_of(&bytes, 0)
            };
            let (home, system) = (turn(&seen.home()), turn(&seen.system()));
            assert!(home == system || home == system + 1, "home is at {home}, system at {system}");
            seen.unmount();
        }
        done.store(true, Ordering::Release);
    });
    mount.unmount();
}

#[test]
fn syncs_at_once_are_one_after_the_other() {
    require!(fuse);
    let published = Publication::new(32, 4 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let mut disks = Disks::new(&published);
    let mount = laptop.mount("work");
    disks.change(&mount, 30, &mut Rng::new(32));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| sync(&laptop));
        }
    });
    disks.assert_in(&mount);
    assert_eq!(versions(&laptop), [2, 1]);
    mount.unmount();
    disks.assert_on_another_machine(&published);
}
