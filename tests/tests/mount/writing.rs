//! What was written is what is read, whatever was written how.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;

use rustix::fs::OFlags;
use satchel_tests::disk::{read_direct, write_direct};
use satchel_tests::model::open_for_writing;
use satchel_tests::{Model, Mount, Publication, Rng, Zeroing, require};

use super::IMAGE_BYTES;

const HOME_BYTES: u64 = 16 << 20;

/// Both disks of a desktop, and what they must hold.
struct Disks {
    system: Model,
    home: Model,
}

impl Disks {
    fn new(published: &Publication) -> Self {
        Self { system: Model::of(published.content, IMAGE_BYTES), home: Model::zeros(HOME_BYTES) }
    }

    fn act(&mut self, mount: &Mount, times: u64, rng: &mut Rng) {
        let (system, home) = (open_for_writing(&mount.system()), open_for_writing(&mount.home()));
        for _ in 0..times {
            if rng.below(2) == 0 { self.system.act(&system, rng) } else { self.home.act(&home, rng) }
        }
    }

    fn assert_in(&self, mount: &Mount) {
        self.system.assert_in(&mount.system());
        self.home.assert_in(&mount.home());
    }
}

#[test]
fn both_disks_behave_as_arrays_of_bytes() {
    require!(fuse);
    let seed = 40;
    let published = Publication::new(seed, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let (mut disks, mut rng) = (Disks::new(&published), Rng::new(seed));
    // Cold: half of the writes cover part of a block that must first be fetched.
    let mount = laptop.mount("work");
    disks.act(&mount, 400, &mut rng);
    disks.assert_in(&mount);
    mount.unmount();

    let mount = laptop.mount("work");
    disks.assert_in(&mount);
    disks.act(&mount, 150, &mut rng);
    let _ = laptop.sync("work");
    disks.assert_in(&mount);
    disks.act(&mount, 150, &mut rng);
    disks.assert_in(&mount);
    mount.unmount();
    let mount = laptop.mount("work");
    disks.assert_in(&mount);
    mount.unmount();
}

#[test]
fn writers_of_neighbouring_bytes_do_not_disturb_one_another() {
    const WRITERS: u64 = 4;
    const STRIPE_BYTES: u64 = 1000;
    require!(fuse);
    let published = Publication::new(41, IMAGE_BYTES);
    let mount = published.machine_with_desktop("laptop").mount("work");
    let mut model = Model::of(published.content, IMAGE_BYTES);
    let stripes = 400;
    // Every writer has each fourth stripe, so that all of them change parts of the same blocks at once.
    let stripe = |writer: u64, number: u64| {
        let mut bytes = vec![0; usize::try_from(STRIPE_BYTES).unwrap()];
        Rng::of_part(writer, number).fill(&mut bytes);
        ((number * WRITERS + writer) * STRIPE_BYTES, bytes)
    };
    thread::scope(|scope| {
        for writer in 0..WRITERS {
            let disk = open_for_writing(&mount.system());
            scope.spawn(move || {
                for number in 0..stripes {
                    let (offset, bytes) = stripe(writer, number);
                    disk.write_all_at(&bytes, offset).unwrap();
                }
            });
        }
    });
    for writer in 0..WRITERS {
        for number in 0..stripes {
            let (offset, bytes) = stripe(writer, number);
            model.wrote(offset, &bytes);
        }
    }
    model.assert_in(&mount.system());
    mount.unmount();
}

#[test]
fn direct_writes_are_read_back_both_ways() {
    require!(fuse);
    let published = Publication::new(42, IMAGE_BYTES);
    let mount = published.machine_with_desktop("laptop").mount("work");
    let mut model = Model::of(published.content, IMAGE_BYTES);
    let mut rng = Rng::new(42);
    for _ in 0..60 {
        // Sectors, not blocks: what a disk with sectors of 512 bytes must take.
        let sector = rng.below(IMAGE_BYTES / 512);
        let sectors = (1 + rng.below(300)).min(IMAGE_BYTES / 512 - sector);
        let mut bytes = vec![0; usize::try_from(sectors * 512).unwrap()];
        rng.fill(&mut bytes);
        write_direct(&mount.system(), sector * 512, &bytes);
        model.wrote(sector * 512, &bytes);
        assert_eq!(read_direct(&mount.system(), sector * 512, bytes.len()), bytes, "sector {sector}");
    }
    model.assert_in(&mount.system());
    mount.unmount();
}

#[test]
fn the_size_and_the_names_of_disks_are_fixed() {
    require!(fuse);
    let published = Publication::new(44, IMAGE_BYTES);
    let mount = published.machine_with_desktop("laptop").mount("work");
    let disk = open_for_writing(&mount.home());
    for size in [0, HOME_BYTES - 1, HOME_BYTES + 1] {
        assert!(disk.set_len(size).is_err(), "a disk of {HOME_BYTES} bytes took the size {size}");
    }
    disk.set_len(HOME_BYTES).unwrap();
    let last = [7; 4096];
    let wrote = disk.write_at(&last, HOME_BYTES - 1000).unwrap();
    assert_eq!(wrote, 1000, "what fits is written");
    let past = disk.write_at(&last, HOME_BYTES).unwrap_err();
    assert_eq!(past.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()));
    let mut model = Model::zeros(HOME_BYTES);
    model.wrote(HOME_BYTES - 1000, &last[..1000]);
    model.assert_in(&mount.home());
    assert!(File::create(mount.directory().join("other.raw")).is_err());
    assert!(std::fs::remove_file(mount.home()).is_err());
    assert!(std::fs::rename(mount.home(), mount.directory().join("other.raw")).is_err());
    let mut names: Vec<_> = std::fs::read_dir(mount.directory())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["home.raw", "system.raw"]);
    drop(disk);
    mount.unmount();
}

#[test]
fn discarding_the_whole_disk_leaves_zeros() {
    require!(fuse);
    let published = Publication::new(45, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mount = laptop.mount("work");
    let mut model = Model::of(published.content, IMAGE_BYTES);
    let disk = open_for_writing(&mount.system());
    let noise = published.content.bytes(0, 1 << 20);
    model.write(&disk, 3 << 20, &noise);
    model.zero(&disk, 0, IMAGE_BYTES, Zeroing::Punch);
    disk.sync_all().unwrap();
    model.assert_in(&mount.system());
    model.write(&disk, 5 << 20, &noise);
    disk.sync_all().unwrap();
    drop(disk);
    mount.unmount();
    let mount = laptop.mount("work");
    model.assert_in(&mount.system());
    mount.unmount();
}

#[test]
fn whoever_opens_a_disk_for_durable_writes_gets_them() {
    require!(fuse);
    let published = Publication::new(44, IMAGE_BYTES);
    let laptop = published.machine_with_desktop("laptop");
    let mount = laptop.mount("work");
    let flushes = || laptop.status("work")["disks"][0]["activity"]["flushes"].as_u64().expect("a number");
    let open = |flags: OFlags| {
        let mut options = File::options();
        options
            .write(true)
            .custom_flags(flags.bits().cast_signed())
            .open(mount.system())
            .expect("it is there")
    };
    let before = flushes();
    open(OFlags::empty()).write_all_at(&[7; 4096], 0).expect("written");
    assert_eq!(flushes(), before, "as fast as it goes");
    let durable = open(OFlags::DSYNC);
    durable.write_all_at(&[8; 4096], 8192).expect("written");
    assert_eq!(flushes(), before + 1);
    // What lies below has to be fetched first.
    durable.write_all_at(&[9; 100], IMAGE_BYTES / 2 + 100).expect("written");
    assert_eq!(flushes(), before + 2);
    drop(durable);
    mount.unmount();
}
