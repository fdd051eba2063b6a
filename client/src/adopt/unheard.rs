//! The ends of adoptions, each noted before it is asked for: `adopting.json` in the state directory, by fork. Where the answer is
//! lost, a repeat finds by it that the adoption is done, and is not one more, which would undo it.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use chunk_format::{ManifestId, Name};
use serde::{Deserialize, Serialize};

use crate::volume::{DirVolume, Volume};

const FILE_NAME: &str = "adopting.json";
/// For some thousands of forks.
const MAX_BYTES: usize = 1 << 20;

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
        all(&DirVolume::open(state).ok()?).remove(fork)
    }

    /// Writes it down. Where that fails a person who repeats the adoption has to look first.
    pub(super) fn note(self, state: &Path, fork: &Name) {
        let noted = change(state, |all| all.insert(fork.clone(), self));
        if let Err(error) = noted {
            tracing::warn!(%error, "that an adoption is about to end was not written down");
        }
    }

    /// The answer was heard. What stays of a note names a version that does not become the head of the fork once more.
    pub(super) fn forget(state: &Path, fork: &Name) {
        let forgotten = change(state, |all| all.remove(fork));
        if let Err(error) = forgotten {
            tracing::warn!(%error, "the note of an adoption that has ended was not removed");
        }
    }
}

/// All that is noted; nothing where it cannot be read.
fn all(volume: &dyn Volume) -> BTreeMap<Name, Unheard> {
    let read = volume.read(FILE_NAME, MAX_BYTES).ok();
    read.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

fn change<T>(state: &Path, changing: impl FnOnce(&mut BTreeMap<Name, Unheard>) -> T) -> io::Result<()> {
    let volume = DirVolume::open(state)?;
    let mut all = all(&volume);
    changing(&mut all);
    match all.is_empty() {
        true => volume.remove(FILE_NAME),
        false => volume.replace(FILE_NAME, &serde_json::to_vec_pretty(&all)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fork_has_a_note_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let (state, file) = (directory.path(), directory.path().join(FILE_NAME));
        let [one, other]: [Name; 2] = ["one", "other"].map(|name| name.parse().unwrap());
        let note =
            |version| Unheard { version, fork_version: ManifestId::of(&[u8::try_from(version).unwrap()]) };
        let version = |fork| Unheard::load(state, fork).map(|noted| noted.version);
        note(7).note(state, &one);
        note(8).note(state, &other);
        note(9).note(state, &one);
        assert_eq!((version(&one), version(&other)), (Some(9), Some(8)));
        Unheard::forget(state, &one);
        assert_eq!((version(&one), version(&other)), (None, Some(8)));
        Unheard::forget(state, &other);
        assert!(!file.exists());
        std::fs::write(&file, b"not json").unwrap();
        assert_eq!(version(&one), None);
        note(7).note(state, &one);
        assert_eq!(version(&one), Some(7), "what cannot be read is written anew");
    }
}
