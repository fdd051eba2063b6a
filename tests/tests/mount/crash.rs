//! Killed clients: whatever they were doing, the next one reads what was published and what was flushed.

use std::fs::File;
use std::time::Duration;
use std::{env, thread};

use satchel_tests::disk::BLOCK_BYTES;
use satchel_tests::model::open_for_writing;
use satchel_tests::{Model, Publication, Rng, require};

use super::{IMAGE_BYTES, read_by_many};

/// How many times a client is killed, `$SATCHEL_KILL_ROUNDS`.
fn rounds() -> u64 {
    env::var("SATCHEL_KILL_ROUNDS").map_or(12, |text| text.parse().expect("SATCHEL_KILL_ROUNDS is a number"))
}

#[test]
fn a_client_killed_while_it_reads_reads_right_after_a_restart() {
    require!(fuse);
    let seed = 30;
    let published = Publication::new(seed, IMAGE_BYTES);
    let model = Model::of(published.content, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mut rng = Rng::new(seed);
    for round in 0..rounds() {
        let mount = laptop.mount_with("work", &["--cache-size", "8M"]);
        // What the last one kept is right; what it was keeping when it died is not believed.
        model.assert_at_random(&mount.system(), 5, &mut rng);
        let (path, model) = (mount.system(), model.clone());
        let reader = thread::spawn(move || {
            let mut rng = Rng::of_part(seed, round);
            // Ends with an error once the mount is gone; a wrong byte before that must be seen.
            while File::open(&path).is_ok_and(|disk| reads_right(&model, &disk, &mut rng)) {}
        });
        thread::sleep(Duration::from_millis(rng.below(300)));
        mount.kill9();
        reader.join().unwrap_or_else(|_| panic!("a read was wrong in round {round} of seed {seed}"));
    }
    let mount = laptop.mount("work");
    read_by_many(&model, &mount.system(), 4, 20, seed);
    published.content.assert_in(&mount.system());
    mount.unmount();
}

/// Reads a random place; false when that fails.
fn reads_right(model: &Model, disk: &File, rng: &mut Rng) -> bool {
    let offset = rng.below(IMAGE_BYTES - 100_000);
    let mut found = vec![0; 100_000];
    if std::os::unix::fs::FileExt::read_exact_at(disk, &mut found, offset).is_err() {
        return false;
    }
    let start = usize::try_from(offset).expect("an offset in memory fits");
    assert!(found == model.bytes()[start..start + found.len()], "100,000 bytes at {offset} are wrong");
    true
}

#[test]
fn what_was_flushed_before_a_kill_is_there_after_it() {
    require!(fuse);
    let seed = 31;
    let published = Publication::new(seed, 4 << 20);
    let laptop = published.machine_with_desktop("laptop");
    let mut model = Model::zeros(16 << 20);
    let mut rng = Rng::new(seed);
    for _ in 0..rounds() {
        let mount = laptop.mount("work");
        model.assert_in(&mount.home());
        let disk = open_for_writing(&mount.home());
        (0..20).for_each(|_| model.act(&disk, &mut rng));
        disk.sync_all().unwrap();
        // What was not flushed is there or not, block by block.
        let mut states = vec![model.clone()];
        for _ in 0..5 {
            model.act(&disk, &mut rng);
            states.push(model.clone());
        }
        drop(disk);
        mount.kill9();
        let mount = laptop.mount("work");
        model = one_of(&states, &std::fs::read(mount.home()).unwrap());
        mount.unmount();
    }
    let mount = laptop.mount("work");
    model.assert_in(&mount.home());
    mount.unmount();
}

/// Checks that every block is as it was in some of these states; what is found is what must be there from now on.
fn one_of(states: &[Model], found: &[u8]) -> Model {
    assert_eq!(found.len(), states[0].bytes().len());
    let mut model = states[0].clone();
    for (block, bytes) in found.chunks(BLOCK_BYTES).enumerate() {
        let range = block * BLOCK_BYTES..block * BLOCK_BYTES + bytes.len();
        let known = states.iter().any(|state| state.bytes()[range.clone()] == *bytes);
        assert!(known, "block {block} is neither what was flushed nor anything that was written later");
        model.wrote(range.start as u64, bytes);
    }
    model
}
