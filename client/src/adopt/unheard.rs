//! The end of an adoption, noted before it is asked for: `adopting.FORK.json` in the state directory. Where the answer is lost, a
//! repeat finds by it that the adoption is done, and is not one more, which would undo it.

use std::path::Path;

use chunk_format::{ManifestId, Name};
use serde::{Deserialize, Serialize};

use crate::volume::{DirVolume, Volume};

const MAX_BYTES: usize = 4096;

/// An adoption whose last answer was not heard yet.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Unheard {
    /// The number of the desktop's version that has the fork's disks.
    pub(super) version: u64,
    /// The fork's version that ends it.
    pub(super) fork_version: ManifestId,
}

impl Unheard {
    /// What was noted last of a fork, if it can be read.
    pub(super) fn load(state: &Path, fork: &Name) -> Option<Self> {
        serde_json::from_slice(&DirVolume::open(state).ok()?.read(&file_name(fork), MAX_BYTES).ok()?).ok()
    }

    /// Writes it down. Where that fails a person who repeats the adoption has to look first.
    pub(super) fn note(&self, state: &Path, fork: &Name) {
        let noted = DirVolume::open(state)
            .and_then(|volume| volume.replace(&file_name(fork), &serde_json::to_vec_pretty(self)?));
        if let Err(error) = noted {
            tracing::warn!(%error, "that an adoption is about to end was not written down");
        }
    }

    /// The answer was heard. What stays of a note names a version that does not become the head of the fork once more.
    pub(super) fn forget(state: &Path, fork: &Name) {
        let forgotten = DirVolume::open(state).and_then(|volume| volume.remove(&file_name(fork)));
        if let Err(error) = forgotten {
            tracing::warn!(%error, "the note of an adoption that has ended was not removed");
        }
    }
}

fn file_name(fork: &Name) -> String {
    format!("adopting.{fork}.json")
}
