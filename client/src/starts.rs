//! What became of a desktop's starts on this machine, by golden version, and where a person wants it to stay: `starts.json` in its
//! directory.
//!
//! A start is written down, durably, before its machine begins, and counts as bad until somebody calls it good: whatever ends
//! a machine that does not come up, a power cut included, leaves a start that nobody called good. One that the person ended
//! says nothing either way. Whoever changes the file
//! holds a lock on `starts.lock` beside it; it is replaced as a whole.

use std::io;
use std::path::{Path, PathBuf};

use chunk_format::ManifestId;
use serde::{Deserialize, Serialize};

use crate::remote::{NamedVersion, Outcome, Rollout};
use crate::volume::{DirVolume, Volume};

const FILE_NAME: &str = "starts.json";
const LOCK_NAME: &str = "starts.lock";
const VERSION: u32 = 1;
const MAX_BYTES: usize = 1 << 16;
/// Golden versions that are remembered, the latest.
const MAX_VERSIONS: usize = 16;

/// Starts in a row that were not good, after which a version that never was good here is given up.
pub const BAD_STARTS: u32 = 3;

/// Why starts could not be noted.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct StartsError {
    /// What was being done.
    action: &'static str,
    /// The file.
    path: PathBuf,
    /// What the file system said.
    #[source]
    source: io::Error,
}

/// A desktop's starts on one golden version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoldenStarts {
    /// The golden version.
    #[serde(flatten)]
    pub golden: NamedVersion,
    /// Starts begun since the last good one, or since the desktop moved to the version.
    pub begun: u32,
    /// Good starts.
    pub good: u32,
    /// Whether the desktop went back from it because it did not start.
    #[serde(default)]
    pub reverted: bool,
    /// What of this was told to the server.
    #[serde(default)]
    pub told: Option<Outcome>,
}

impl GoldenStarts {
    /// Whether the version never was good here and does not seem to become so.
    pub fn is_bad(&self) -> bool {
        self.good == 0 && self.begun >= BAD_STARTS
    }

    /// What became of the latest start, if it is not under way.
    fn outcome(&self) -> Option<Outcome> {
        match self {
            Self { reverted: true, .. } => Some(Outcome::Reverted),
            Self { begun: 1.., .. } => Some(Outcome::Bad),
            Self { good: 1.., .. } => Some(Outcome::Good),
            _ => None,
        }
    }
}

/// A desktop's starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Starts {
    version: u32,
    /// By golden version, the one that was started on last at the end.
    golden: Vec<GoldenStarts>,
    /// A golden version that did not start, and is not taken up as long as the channel names it.
    skipped: Option<ManifestId>,
    /// What the channel named when a person moved the desktop elsewhere: it stays there as long as the channel names that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<NamedVersion>,
}

impl Default for Starts {
    fn default() -> Self {
        Self { version: VERSION, golden: Vec::new(), skipped: None, held: None }
    }
}

impl Starts {
    /// What is known. Nothing is, too, when the file cannot be read: it decides about nothing that is kept.
    pub fn load(directory: &Path) -> Self {
        Self::of(DirVolume::open(directory).and_then(|volume| volume.read(FILE_NAME, MAX_BYTES)))
    }

    /// As [`load`](Self::load), of a desktop's directory that is open.
    pub fn load_from(volume: &dyn Volume) -> Self {
        Self::of(volume.read(FILE_NAME, MAX_BYTES))
    }

    fn of(found: io::Result<Vec<u8>>) -> Self {
        let bytes = match found {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::default(),
            Err(error) => {
                tracing::warn!(%error, "what became of earlier starts cannot be read");
                return Self::default();
            }
        };
        match serde_json::from_slice::<Self>(&bytes) {
            Ok(starts) if starts.version == VERSION => starts,
            Ok(_) => Self::default(),
            Err(error) => {
                tracing::warn!(%error, "what became of earlier starts cannot be read");
                Self::default()
            }
        }
    }

    /// The starts on a golden version.
    pub fn on(&self, golden: ManifestId) -> Option<&GoldenStarts> {
        self.golden.iter().find(|starts| starts.golden.id == golden)
    }

    /// The golden version before this one that was good here, the one used last. Not a later one: its publisher went back from it.
    pub fn last_good_before(&self, bad: NamedVersion) -> Option<NamedVersion> {
        let is_good = |starts: &&GoldenStarts| starts.good > 0 && starts.golden.sequence < bad.sequence;
        self.golden.iter().rev().find(is_good).map(|starts| starts.golden)
    }

    /// A golden version that did not start, and is not taken up as long as the channel names it.
    pub fn skipped(&self) -> Option<ManifestId> {
        self.skipped
    }

    /// What the channel named when a person moved the desktop elsewhere: it stays there as long as the channel names that.
    pub fn held(&self) -> Option<NamedVersion> {
        self.held
    }

    /// Forgets what held as long as the channel named what it does not name any more.
    pub fn hear(&mut self, rollout: &Rollout) {
        self.skipped = self.skipped.filter(|skipped| rollout.names(*skipped));
        self.held = self.held.filter(|held| held.id == rollout.version.id);
    }

    /// What the server was not told yet; of the version that is running now only what is sure.
    pub fn untold(&self, running: Option<ManifestId>) -> Vec<(NamedVersion, Outcome, u32)> {
        let outcome = |starts: &GoldenStarts| {
            let outcome = starts.outcome()?;
            let is_open = outcome == Outcome::Bad && running == Some(starts.golden.id);
            (starts.told != Some(outcome) && !is_open).then_some((starts.golden, outcome, starts.begun))
        };
        self.golden.iter().filter_map(outcome).collect()
    }

    /// The entry of a golden version, moved to the end.
    fn entry(&mut self, golden: NamedVersion) -> &mut GoldenStarts {
        let at = self.golden.iter().position(|starts| starts.golden.id == golden.id);
        let entry = match at {
            Some(at) => self.golden.remove(at),
            None => GoldenStarts { golden, begun: 0, good: 0, reverted: false, told: None },
        };
        self.golden.push(entry);
        if self.golden.len() > MAX_VERSIONS {
            self.golden.remove(0);
        }
        let last = self.golden.len() - 1;
        &mut self.golden[last]
    }

    fn existing(&mut self, golden: ManifestId) -> Option<&mut GoldenStarts> {
        self.golden.iter_mut().find(|starts| starts.golden.id == golden)
    }
}

/// Notes that a machine is about to start on a golden version. Durable when this returns.
///
/// # Errors
/// [`StartsError`].
pub fn note_begun(directory: &Path, golden: NamedVersion) -> Result<(), StartsError> {
    change(directory, |starts| {
        let entry = starts.entry(golden);
        entry.begun = entry.begun.saturating_add(1);
    })
}

/// Takes a start back that says nothing of its version: no machine could be made, or the person switched it off before it
/// could be called good, and the guest obeyed.
///
/// # Errors
/// [`StartsError`].
pub fn note_neutral(directory: &Path, golden: ManifestId) -> Result<(), StartsError> {
    change(directory, |starts| {
        if let Some(entry) = starts.existing(golden) {
            entry.begun = entry.begun.saturating_sub(1);
        }
    })
}

/// Notes that the start under way on a golden version is good.
///
/// # Errors
/// [`StartsError`].
pub fn note_good(directory: &Path, golden: ManifestId) -> Result<(), StartsError> {
    change(directory, |starts| {
        if let Some(entry) = starts.existing(golden).filter(|entry| entry.begun > 0) {
            entry.good = entry.good.saturating_add(1);
            entry.begun = 0;
            entry.reverted = false;
        }
    })
}

/// Notes that a desktop has moved to a golden version: its starts there are counted anew, and it is skipped no more.
///
/// # Errors
/// [`StartsError`].
pub fn note_moved(directory: &Path, golden: NamedVersion) -> Result<(), StartsError> {
    change(directory, |starts| {
        let entry = starts.entry(golden);
        (entry.begun, entry.reverted) = (0, false);
        starts.skipped = starts.skipped.filter(|skipped| *skipped != golden.id);
    })
}

/// Notes that a desktop has left a golden version, which is not taken up again as long as the channel names it.
///
/// # Errors
/// [`StartsError`].
pub fn note_left(directory: &Path, golden: ManifestId, reverted: bool) -> Result<(), StartsError> {
    change(directory, |starts| {
        starts.skipped = Some(golden);
        if let Some(entry) = starts.existing(golden) {
            entry.reverted |= reverted;
        }
    })
}

/// Notes what the channel names while a desktop stays elsewhere, as a person says; none when it stays nowhere.
///
/// # Errors
/// [`StartsError`].
pub fn note_held(directory: &Path, held: Option<NamedVersion>) -> Result<(), StartsError> {
    change(directory, |starts| starts.held = held)
}

/// Notes where the channel was heard to point.
///
/// # Errors
/// [`StartsError`].
pub fn note_heard(directory: &Path, rollout: &Rollout) -> Result<(), StartsError> {
    change(directory, |starts| starts.hear(rollout))
}

/// Moves a desktop where a person wants it, and notes what the channel names meanwhile. That is noted first: should the end of the
/// move not be heard, it is not undone at once. What fails for certain leaves what held before.
///
/// # Errors
/// Those of the move.
pub async fn while_held<T, E>(
    directory: &Path,
    held: Option<NamedVersion>,
    moving: impl Future<Output = Result<T, E>>,
    is_unheard: impl FnOnce(&E) -> bool,
) -> Result<T, E> {
    let before = Starts::load(directory).held;
    unless_noted(note_held(directory, held));
    let moved = moving.await;
    if let Err(error) = &moved
        && !is_unheard(error)
    {
        unless_noted(note_held(directory, before));
    }
    moved
}

/// What is not noted only makes the next decision a poorer one.
pub fn unless_noted(noted: Result<(), StartsError>) {
    if let Err(error) = noted {
        tracing::warn!(error = &error as &dyn std::error::Error, "what became of starts was not noted");
    }
}

/// Notes what the server was told.
///
/// # Errors
/// [`StartsError`].
pub fn note_told(directory: &Path, golden: ManifestId, outcome: Outcome) -> Result<(), StartsError> {
    change(directory, |starts| {
        if let Some(entry) = starts.existing(golden) {
            entry.told = Some(outcome);
        }
    })
}

fn change(directory: &Path, change: impl FnOnce(&mut Starts)) -> Result<(), StartsError> {
    let failed = |action, name: &str| {
        let path = directory.join(name);
        move |source| StartsError { action, path, source }
    };
    let volume = DirVolume::open(directory).map_err(|source| StartsError {
        action: "open",
        path: directory.to_owned(),
        source,
    })?;
    let _lock = volume.lock(LOCK_NAME).map_err(failed("lock", LOCK_NAME))?;
    let mut starts = Starts::load(directory);
    let before = starts.clone();
    change(&mut starts);
    if starts == before {
        return Ok(());
    }
    let bytes =
        serde_json::to_vec_pretty(&starts).map_err(io::Error::from).map_err(failed("write", FILE_NAME))?;
    volume.replace(FILE_NAME, &bytes).map_err(failed("write", FILE_NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(sequence: u64) -> NamedVersion {
        NamedVersion { id: ManifestId::of(&sequence.to_le_bytes()), sequence }
    }

    #[test]
    fn three_starts_that_nobody_called_good_make_a_version_bad() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (golden(1), golden(2));
        note_begun(dir.path(), old).unwrap();
        note_good(dir.path(), old.id).unwrap();
        for expected in [false, false, true] {
            note_begun(dir.path(), new).unwrap();
            let starts = Starts::load(dir.path());
            assert_eq!(starts.on(new.id).unwrap().is_bad(), expected);
            assert!(!starts.on(old.id).unwrap().is_bad());
        }
        let starts = Starts::load(dir.path());
        assert_eq!(starts.last_good_before(new), Some(old));
        assert_eq!(starts.last_good_before(old), None);
        let before = NamedVersion { sequence: old.sequence - 1, ..golden(9) };
        assert_eq!(starts.last_good_before(before), None, "its publisher went back to it");
        // One that was good once is never given up by itself.
        note_good(dir.path(), new.id).unwrap();
        (0..5).for_each(|_| note_begun(dir.path(), new).unwrap());
        assert!(!Starts::load(dir.path()).on(new.id).unwrap().is_bad());
    }

    #[test]
    fn a_start_without_a_machine_is_none() {
        let dir = tempfile::tempdir().unwrap();
        note_begun(dir.path(), golden(1)).unwrap();
        note_neutral(dir.path(), golden(1).id).unwrap();
        assert_eq!(Starts::load(dir.path()).on(golden(1).id).unwrap().begun, 0);
        // Nor is one good that was never begun.
        note_good(dir.path(), golden(1).id).unwrap();
        note_good(dir.path(), golden(2).id).unwrap();
        assert_eq!(Starts::load(dir.path()).last_good_before(golden(3)), None);
    }

    #[test]
    fn starts_that_the_person_ends_are_neither_good_nor_bad() {
        let dir = tempfile::tempdir().unwrap();
        let version = golden(1);
        let starts = || *Starts::load(dir.path()).on(version.id).unwrap();
        for _ in 0..BAD_STARTS + 1 {
            note_begun(dir.path(), version).unwrap();
            note_neutral(dir.path(), version.id).unwrap();
            assert!(!starts().is_bad());
            assert!(Starts::load(dir.path()).untold(None).is_empty());
        }
        assert_eq!((starts().begun, starts().good), (0, 0));
        // Bad ones beside them count as ever.
        (0..BAD_STARTS).for_each(|_| note_begun(dir.path(), version).unwrap());
        assert!(starts().is_bad());
        // The guest answered before it was switched off: that stays good.
        note_good(dir.path(), version.id).unwrap();
        note_neutral(dir.path(), version.id).unwrap();
        assert_eq!((starts().begun, starts().good), (0, 1));
    }

    #[test]
    fn the_server_is_told_each_outcome_once() {
        let dir = tempfile::tempdir().unwrap();
        let version = golden(1);
        let untold = |running| {
            Starts::load(dir.path())
                .untold(running)
                .iter()
                .map(|(_, outcome, _)| *outcome)
                .collect::<Vec<_>>()
        };
        note_begun(dir.path(), version).unwrap();
        assert_eq!(untold(Some(version.id)), []);
        assert_eq!(untold(None), [Outcome::Bad]);
        note_good(dir.path(), version.id).unwrap();
        assert_eq!(untold(Some(version.id)), [Outcome::Good]);
        note_told(dir.path(), version.id, Outcome::Good).unwrap();
        assert_eq!(untold(None), []);
        note_left(dir.path(), version.id, true).unwrap();
        assert_eq!(untold(None), [Outcome::Reverted]);
        assert_eq!(Starts::load(dir.path()).skipped(), Some(version.id));
        // Moved to again, it has another chance.
        note_moved(dir.path(), version).unwrap();
        assert_eq!(Starts::load(dir.path()).on(version.id).unwrap().begun, 0);
    }

    #[test]
    fn what_holds_is_forgotten_when_the_channel_names_another_version() {
        let dir = tempfile::tempdir().unwrap();
        let rollout = |target: u64, previous: Option<u64>, percent| Rollout {
            version: golden(target),
            previous: previous.map(golden),
            percent,
            paused: false,
            moved_ms: 0,
            rollback: None,
        };
        let starts = || Starts::load(dir.path());
        note_held(dir.path(), Some(golden(3))).unwrap();
        note_left(dir.path(), golden(2).id, true).unwrap();
        // What a move does not reach yet is named as well.
        note_heard(dir.path(), &rollout(3, Some(2), 10)).unwrap();
        assert_eq!((starts().held(), starts().skipped()), (Some(golden(3)), Some(golden(2).id)));
        note_heard(dir.path(), &rollout(3, Some(2), 100)).unwrap();
        assert_eq!((starts().held(), starts().skipped()), (Some(golden(3)), None));
        note_heard(dir.path(), &rollout(4, Some(3), 0)).unwrap();
        assert_eq!(starts().held(), None);
        // As files of before have it.
        let old = format!(r#"{{"version":1,"golden":[],"skipped":"{}"}}"#, golden(2).id);
        std::fs::write(dir.path().join(FILE_NAME), old).unwrap();
        assert_eq!((starts().held(), starts().skipped()), (None, Some(golden(2).id)));
    }

    #[tokio::test]
    async fn a_move_that_failed_holds_nothing_and_one_that_was_not_heard_of_does() {
        let dir = tempfile::tempdir().unwrap();
        for (moved, is_unheard, held) in [(Ok(()), false, 2), (Err(()), true, 2), (Err(()), false, 1)] {
            note_held(dir.path(), Some(golden(1))).unwrap();
            let done = while_held(dir.path(), Some(golden(2)), async { moved }, |()| is_unheard).await;
            assert_eq!((done, Starts::load(dir.path()).held()), (moved, Some(golden(held))));
        }
    }

    #[test]
    fn what_cannot_be_read_is_as_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE_NAME), "{").unwrap();
        assert_eq!(Starts::load(dir.path()), Starts::default());
        note_begun(dir.path(), golden(1)).unwrap();
        assert_eq!(Starts::load(dir.path()).on(golden(1).id).unwrap().begun, 1);
        for sequence in 0..40 {
            note_begun(dir.path(), golden(sequence)).unwrap();
        }
        assert_eq!(Starts::load(dir.path()).golden.len(), MAX_VERSIONS);
    }
}
