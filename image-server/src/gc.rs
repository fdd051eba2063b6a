//! Garbage collection: deletes what no version that is kept needs, beside a running server and its uploads.
//!
//! A run has two halves, with a grace between what the one does and what the other takes. It *condemns* segments that no
//! kept version names, packs that no segment which counts needs, and stream objects that no profile names: in one
//! transaction each batch stops counting, so that commits and uploads that come later send them anew. And it *deletes* what
//! was condemned, pruned or replaced longer ago than the grace. In between everything can still be read, for machines
//! that have an older version open. What was sent within the grace is not condemned, nor for fourteen times as long what no
//! version was committed with: an upload may be under way whose commit comes last.
//!
//! A wrong guess costs an upload and never a byte: every step is checked again in its transaction, which has the database's
//! write lock. Objects are given their names, and lose them, under that lock too (`docs/semantics.md` has the order).

mod condemn;
mod dry_run;
mod leftovers;
mod mark;
mod sweep;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chunk_format::Namespace;
use serde::Serialize;

use crate::cause::chain;
use crate::clock::now_ms;
use crate::database::garbage::Old;
use crate::database::namespaces::{self, NamespaceId};
use crate::database::{Database, DatabaseError, packs};
use crate::identity;
use crate::layout::{DataDir, LayoutError};
use crate::server::STAGING_KEPT;
use crate::storage::{Leftovers, Object, ObjectKey, Opening, Patience, Storage, StorageError};

/// The shortest pause between two batches. SQLite's other writers look for the lock every 100 ms at the latest, in no order:
/// one that takes it again at once keeps them all out.
pub(crate) const MIN_PAUSE: Duration = Duration::from_millis(100);
/// In a bucket, a part of what is handled in one transaction elsewhere, one over this number.
const REMOTE_PART: u32 = 8;

/// How many graces what was sent is left alone while no version was committed with it: what a slow link sends within a day
/// may be the smaller part of a home, and its commit comes last.
const GRACES_OF_AN_UPLOAD: i64 = 14;

/// The grace when none is given.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(24 * 60 * 60);

/// Why nothing more was collected. What was done before stays done, and the next run goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GcError {
    /// The directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The object store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// An object that says what is needed cannot be read, so that nothing may be condemned.
    #[error("{object} does not say what is needed: {reason}; `satchel-server verify` says what to do")]
    Unreadable {
        /// The object's path in the store.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The database knows of nothing that was ever stored, and the store is not empty.
    #[error(
        "the database knows of no pack and no version, and {object} is in the store: nothing was changed, since this looks as if the \
         database were not the one that belongs to these objects. Restore it from a backup; if it is a new server's, on which \
         an upload was cut short, publish something first"
    )]
    Stranger {
        /// An object's path in the store.
        object: String,
    },
    /// The run was cut short where a test wanted it.
    #[cfg(test)]
    #[error("cut short")]
    Cut,
}

/// How to collect.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long what nothing needs any more stays readable, and what was sent is left alone.
    pub grace: Duration,
    /// Whether to change nothing.
    pub dry_run: bool,
    /// Whether to look through the whole store for objects that crashes left without rows: those older than the grace, and
    /// than a day.
    pub leftovers: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { grace: DEFAULT_GRACE, dry_run: false, leftovers: false }
    }
}

/// Numbers of objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Segments.
    pub segments: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes in the packs and stream objects.
    pub bytes: u64,
    /// Objects of boot streams.
    pub streams: u64,
    /// Boot profiles.
    pub profiles: u64,
    /// Manifests of pruned versions.
    pub versions: u64,
}

/// What a run did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Versions that are kept.
    pub kept_versions: u64,
    /// What stopped counting, to be deleted after the grace.
    pub condemned: Counts,
    /// What was deleted.
    pub deleted: Counts,
    /// Files of uploads that were cut short, removed.
    pub unfinished: Leftovers,
    /// Objects without rows, removed.
    pub leftovers: Leftovers,
    /// Why not every object could be looked at for these two, if so.
    pub unlisted: Option<String>,
}

/// Hears how far a run is.
pub trait Progress: Send + Sync {
    /// A part of the run begins, of `total` steps; 0 when that is not known.
    fn begin(&self, part: Part, total: u64);
    /// Some steps are done.
    fn advance(&self, steps: u64);
}

/// A part of a run, and what its steps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Deleting what stopped counting long ago; steps are rows.
    Garbage,
    /// Reading what kept versions need; steps are versions, of a known number.
    Versions,
    /// Looking for segments that nothing needs; steps are segments.
    Segments,
    /// Looking for packs that nothing needs; steps are packs.
    Packs,
    /// Looking for stream objects that nothing needs; steps are objects.
    Streams,
    /// Looking for objects without rows; steps are objects.
    Files,
}

/// Tells nobody.
struct Untold;

impl Progress for Untold {
    fn begin(&self, _part: Part, _total: u64) {}
    fn advance(&self, _steps: u64) {}
}

/// Collects the garbage of the server in `root`; works beside a server.
///
/// # Errors
/// [`GcError`].
pub async fn collect(root: &Path, options: Options, progress: Arc<dyn Progress>) -> Result<Report, GcError> {
    let dir = DataDir::open(root)?;
    let lock = dir.lock()?;
    let database = Database::open(&dir.database()).await?;
    drop(lock);
    let identity = identity::read(&dir.identity_key())?.public();
    let has_packs = packs::any_counts(database.readers()).await?;
    let opening = Opening { patience: Patience::OfServers, has_packs, marks: !options.dry_run };
    let storage = Storage::of(&dir, &identity, opening).await?;
    let mut run = Run::new(database.clone(), storage, options, now_ms()).await?;
    run.progress = progress;
    run.is_shared = true;
    let collected = run.collect().await;
    database.close().await;
    collected
}

/// One run.
pub(crate) struct Run {
    database: Database,
    storage: Storage,
    options: Options,
    begun_ms: i64,
    begun: Instant,
    /// What is older than the grace when the run begins.
    before_ms: i64,
    /// What may be condemned when nothing needs it.
    old: Old,
    names: HashMap<NamespaceId, Namespace>,
    report: Report,
    progress: Arc<dyn Progress>,
    /// Whether others may wait to write to the database.
    is_shared: bool,
    /// Steps until a test cuts the run short.
    #[cfg(test)]
    steps_left: Option<usize>,
}

impl Run {
    pub(crate) async fn new(
        database: Database,
        storage: Storage,
        options: Options,
        now_ms: i64,
    ) -> Result<Self, GcError> {
        let grace_ms = i64::try_from(options.grace.as_millis()).unwrap_or(i64::MAX);
        let before_ms = now_ms.saturating_sub(grace_ms);
        let uncommitted_ms = now_ms.saturating_sub(grace_ms.saturating_mul(GRACES_OF_AN_UPLOAD));
        let names = namespaces::list(database.readers()).await?.into_iter().collect();
        Ok(Self {
            database,
            storage,
            options,
            begun_ms: now_ms,
            begun: Instant::now(),
            before_ms,
            old: Old { committed_ms: before_ms, uncommitted_ms },
            names,
            report: Report { dry_run: options.dry_run, ..Report::default() },
            progress: Arc::new(Untold),
            is_shared: false,
            #[cfg(test)]
            steps_left: None,
        })
    }

    /// The time by the clock the run began with. A run may take longer than a grace, which begins when something is condemned.
    fn now_ms(&self) -> i64 {
        let elapsed_ms = i64::try_from(self.begun.elapsed().as_millis()).unwrap_or(i64::MAX);
        self.begun_ms.saturating_add(elapsed_ms)
    }

    /// Deletes what was condemned in earlier runs, then condemns.
    pub(crate) async fn collect(&mut self) -> Result<Report, GcError> {
        if self.options.leftovers {
            self.refuse_strangers().await?;
        }
        self.sweep().await?;
        self.condemn().await?;
        let unfinished = match self.options.dry_run {
            true => self.storage.count_staging(Some(STAGING_KEPT)).await,
            false => self.storage.sweep_staging(STAGING_KEPT).await,
        };
        match unfinished {
            Ok(unfinished) => self.report.unfinished = unfinished,
            // What was done before is done, and is told.
            Err(error) => self.report.unlisted = Some(chain(&error)),
        }
        if self.options.leftovers {
            self.sweep_leftovers().await?;
        }
        Ok(self.report.clone())
    }

    /// Cuts the run short before its nth step, as a crash would.
    #[cfg(test)]
    pub(crate) fn cut_before_step(&mut self, steps: usize) {
        self.steps_left = Some(steps);
    }

    /// How many of so many objects are read or deleted in one transaction: where each is a request, nobody else writes for
    /// as long as those take.
    fn batch(&self, objects: u32) -> u32 {
        if self.storage.is_remote() { (objects / REMOTE_PART).max(1) } else { objects }
    }

    /// Leaves the database to others after a batch that kept it from them for this long.
    async fn give_way(&self, held: Duration) {
        if self.is_shared {
            tokio::time::sleep(pause_after(held)).await;
        }
    }

    /// An object in a namespace that has rows. A namespace made after the run began is looked up by whoever needs it: its
    /// objects are younger than any grace, or were never named by a version.
    async fn key(&mut self, namespace: NamespaceId, object: Object) -> Result<ObjectKey, GcError> {
        if !self.names.contains_key(&namespace) {
            self.names = namespaces::list(self.database.readers()).await?.into_iter().collect();
        }
        let namespace = self.names.get(&namespace).cloned().ok_or_else(|| DatabaseError::Value {
            what: "namespace",
            found: format!("none with the row {namespace:?}"),
        })?;
        Ok(ObjectKey { namespace, object })
    }

    /// Called before every step that changes something.
    #[cfg_attr(
        not(test),
        expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests cut a run here")
    )]
    fn step(&mut self) -> Result<(), GcError> {
        #[cfg(test)]
        if let Some(left) = &mut self.steps_left {
            *left = left.checked_sub(1).ok_or(GcError::Cut)?;
        }
        Ok(())
    }

    fn unreadable(key: &ObjectKey, reason: impl ToString) -> GcError {
        GcError::Unreadable { object: key.to_string(), reason: reason.to_string() }
    }
}

/// How long others have the write lock after it was held for this long: half of the time at least.
pub(crate) fn pause_after(held: Duration) -> Duration {
    held.max(MIN_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_may_write_half_of_the_time_and_long_enough_to_notice() {
        assert_eq!(pause_after(Duration::from_millis(1)), Duration::from_millis(100));
        assert_eq!(pause_after(Duration::from_secs(2)), Duration::from_secs(2));
    }
}
