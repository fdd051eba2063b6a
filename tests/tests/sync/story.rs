//! A desktop whose disks are known.

use std::path::PathBuf;

use satchel_tests::model::open_for_writing;
use satchel_tests::{Client, FaultyHttps, Model, Mount, Publication, Rng, Zeroing};

pub(crate) const IMAGE_BYTES: u64 = 4 << 20;
pub(crate) const HOME_BYTES: u64 = 16 << 20;

/// What both disks of a desktop must hold.
#[derive(Clone)]
pub(crate) struct Disks {
    pub(crate) system: Model,
    pub(crate) home: Model,
}

impl Disks {
    pub(crate) fn new(published: &Publication) -> Self {
        Self { system: Model::of(published.content, IMAGE_BYTES), home: Model::zeros(HOME_BYTES) }
    }

    #[track_caller]
    pub(crate) fn assert_in(&self, mount: &Mount) {
        self.system.assert_in(&mount.system());
        self.home.assert_in(&mount.home());
    }

    /// Checks that a machine which knows nothing but the server finds exactly this.
    #[track_caller]
    pub(crate) fn assert_on_another_machine(&self, published: &Publication) {
        let mount = published.machine("other").mount_with("work", &["--read-only"]);
        self.assert_in(&mount);
        mount.unmount();
    }

    /// Whether a mounted desktop holds exactly this.
    pub(crate) fn are_in(&self, mount: &Mount) -> bool {
        let holds = |model: &Model, path: PathBuf| {
            std::fs::read(path).expect("a mounted disk can be read") == model.bytes()
        };
        holds(&self.home, mount.home()) && holds(&self.system, mount.system())
    }

    /// Changes the desktop on a machine, which mounts it for that.
    #[track_caller]
    pub(crate) fn change_on(&mut self, machine: &Client, writes: u64, rng: &mut Rng) {
        let mount = machine.mount("work");
        self.change(&mount, writes, rng);
        mount.unmount();
    }

    /// Changes both disks here and there, and flushes them.
    #[track_caller]
    pub(crate) fn change(&mut self, mount: &Mount, writes: u64, rng: &mut Rng) {
        let (system, home) = (open_for_writing(&mount.system()), open_for_writing(&mount.home()));
        for _ in 0..writes {
            let (model, disk) =
                if rng.below(3) == 0 { (&mut self.system, &system) } else { (&mut self.home, &home) };
            let mut bytes = vec![0; usize::try_from(1 + rng.below(60_000)).expect("small")];
            rng.fill(&mut bytes);
            let offset = rng.below(model.size_bytes() - bytes.len() as u64);
            if rng.below(8) == 0 {
                model.zero(disk, offset, bytes.len() as u64, Zeroing::Punch);
            } else {
                model.write(disk, offset, &bytes);
            }
        }
        system.sync_all().and_then(|()| home.sync_all()).expect("disks can be flushed");
    }
}

/// A machine of alice's behind a proxy that sees its requests, with the desktop `work`.
#[track_caller]
pub(crate) fn behind_a_proxy(published: &Publication) -> (FaultyHttps, Client) {
    let proxy = FaultyHttps::start(&published.server.url(), published.server.fingerprint());
    let laptop = published.machine("laptop");
    laptop.login(&published.access().through_faulty(&proxy));
    laptop.create("work", "golden", Some("16M"));
    (proxy, laptop)
}

/// Runs `satchel --json sync work`, which must succeed; what it did.
#[track_caller]
pub(crate) fn sync(machine: &Client) -> serde_json::Value {
    machine.satchel(["--json", "sync", "work"]).ok().json()
}

/// The numbers of a desktop's versions on the server, newest first; they have no gaps.
#[track_caller]
pub(crate) fn versions(machine: &Client) -> Vec<u64> {
    let history = machine.history("work");
    let versions = history.as_array().expect("a history is a list");
    let numbers: Vec<u64> =
        versions.iter().map(|version| version["sequence"].as_u64().expect("a number")).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).rev().collect::<Vec<_>>(), "{history}");
    for pair in versions.windows(2) {
        assert_eq!(pair[0]["parent"], pair[1]["id"], "{history}");
    }
    numbers
}

/// Bytes on a machine that no version holds.
#[track_caller]
pub(crate) fn unsynced_bytes(machine: &Client) -> u64 {
    machine.status("work")["unsynced_bytes"].as_u64().expect("a number")
}
