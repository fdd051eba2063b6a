//! Having what is damaged here sent again by whoever has it.
//!
//! Content that the store has lost counts as there as long as its rows say so: "missing" answers that it need not be sent, and
//! publishing the very disk again would send nothing. So a repair checks all there is ([`crate::verify`]) and notes packs that are
//! damaged, and segments that cannot be read whole, as *lost*. What is lost is neither deleted nor does it keep a version from being
//! committed on; but it does not count for uploads any more, and nothing new is made to need it. What arrives afterwards lies in other
//! packs: segments that are sent again lead there at once, and a repair that comes later has all others lead there, too, and takes up
//! again what was restored from a backup.
//!
//! Works beside a server: what was sent after the check began is left as it is.

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::Instant;

use chunk_format::{FrameDecoder, Namespace, Segment};
use serde::Serialize;

use crate::clock::now_ms;
use crate::database::namespaces::{self, NamespaceId};
use crate::database::packs::{self, PackRow, PackRowId};
use crate::database::segments::{self, Known, SegmentRow, SegmentRowId};
use crate::database::{Database, DatabaseError, commit};
use crate::gc::{MIN_PAUSE, pause_after};
use crate::identity;
use crate::layout::{DataDir, LayoutError};
use crate::limits::MAX_SEGMENT_FRAME_BYTES;
use crate::locating::{LocateError, Located, locate};
use crate::pack_check::read_footer;
use crate::storage::{Object, ObjectKey, Opening, Patience, Storage, StorageError};
use crate::verify::{self, Checked, Finding, Part, Progress, VerifyError};

/// Why a repair was not made, or not to its end. What was noted before stays noted, and the next one goes on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// The directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The object store failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The check could not be made.
    #[error(transparent)]
    Check(#[from] VerifyError),
    /// A decoder got no memory, or a locator could not be written down.
    #[error(transparent)]
    Format(#[from] chunk_format::FormatError),
}

/// What a repair did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Packs that were noted as lost now.
    pub lost_packs: u64,
    /// Bytes in them.
    pub lost_pack_bytes: u64,
    /// Segments that were noted as lost now.
    pub lost_segments: u64,
    /// Packs that were lost and are whole again.
    pub whole_packs: u64,
    /// Segments that were lost and can be read again, where they were.
    pub whole_segments: u64,
    /// Segments that were lost and lead to what was sent since.
    pub led_segments: u64,
    /// Segments that are lost still.
    pub still_lost_segments: u64,
    /// Segments that could not be read, and were sent again, or condemned, during the check: the next repair finds out.
    pub unsure_segments: u64,
    /// The versions that need one that is lost still, as far as that is known.
    pub affects: BTreeSet<String>,
    /// What the check found that a repair does nothing about.
    pub findings: Vec<Finding>,
}

/// Repairs the server in `root`.
///
/// # Errors
/// [`RepairError`].
pub async fn repair(root: &Path, progress: &dyn Progress) -> Result<Report, RepairError> {
    let dir = DataDir::open(root)?;
    let lock = dir.lock()?;
    let database = Database::open(&dir.database()).await?;
    drop(lock);
    let identity = identity::read(&dir.identity_key())?.public();
    let has_packs = packs::any_counts(database.readers()).await?;
    let opening = Opening { patience: Patience::OfServers, has_packs, marks: true };
    let storage = Storage::of(&dir, &identity, opening).await?;
    let repaired = async {
        let since_ms = now_ms();
        let checked = verify::look_over(database.clone(), storage, progress).await?;
        // Once more: a volume that was unmounted meanwhile has lost nothing.
        let storage = Storage::of(&dir, &identity, opening).await?;
        let names = namespaces::list(database.readers()).await?.into_iter().collect();
        let database = database.clone();
        let run = Run { database, storage, names, since_ms, progress, report: Report::default() };
        run.repair(checked).await
    };
    let repaired = repaired.await;
    database.close().await;
    repaired
}

struct Run<'a> {
    database: Database,
    storage: Storage,
    names: HashMap<NamespaceId, Namespace>,
    /// When the check began.
    since_ms: i64,
    progress: &'a dyn Progress,
    report: Report,
}

impl Run<'_> {
    async fn repair(mut self, checked: Checked) -> Result<Report, RepairError> {
        self.note_lost(&checked).await?;
        self.take_up_packs(&checked).await?;
        self.take_up_segments(&checked).await?;
        self.report.findings =
            checked.report.findings.into_iter().filter(|finding| !finding.is_lost).collect();
        Ok(self.report)
    }

    async fn note_lost(&mut self, checked: &Checked) -> Result<(), RepairError> {
        let since_ms = self.since_ms;
        let lost = checked.packs.iter().filter(|(_, is_lost)| **is_lost);
        let lost_packs: Vec<PackRowId> = lost.map(|(row, _)| *row).collect();
        let lost = checked.segments.iter().filter(|segment| segment.is_lost);
        let lost_segments: Vec<SegmentRowId> = lost.map(|segment| segment.row).collect();
        let mut tx = self.database.begin().await?;
        let (packs, bytes) = packs::lose(&mut *tx, &lost_packs, since_ms, now_ms()).await?;
        let segments = segments::lose(&mut *tx, &lost_segments, since_ms, now_ms()).await?;
        commit(tx).await?;
        (self.report.lost_packs, self.report.lost_pack_bytes) = (packs, bytes);
        self.report.lost_segments = segments;
        Ok(())
    }

    /// Packs that were lost and of which the check found nothing: somebody has put the file back.
    async fn take_up_packs(&mut self, checked: &Checked) -> Result<(), RepairError> {
        for row in packs::list_lost(self.database.readers()).await? {
            if !checked.packs.contains_key(&row.row) && self.take_up_pack(&row).await? {
                self.report.whole_packs += 1;
            }
        }
        Ok(())
    }

    async fn take_up_pack(&self, row: &PackRow) -> Result<bool, RepairError> {
        let Some(namespace) = self.names.get(&row.namespace).cloned() else { return Ok(false) };
        let key = ObjectKey { namespace, object: Object::Pack(row.pack) };
        let len_bytes = u64::from(row.len_bytes);
        // The object is looked for while the database is ours: the garbage collector removes it in the same way.
        let mut tx = self.database.begin().await?;
        let footer = match read_footer(&self.storage, &key.path(), len_bytes).await {
            Ok(Ok(footer)) => footer,
            Err(error) if error.is_outage() => return Err(error.into()),
            Ok(Err(_)) | Err(_) => return Ok(false),
        };
        packs::insert(&mut tx, row.namespace, row.pack, len_bytes, row.chunk_size, &footer.entries, now_ms())
            .await?;
        commit(tx).await?;
        Ok(true)
    }

    async fn take_up_segments(&mut self, checked: &Checked) -> Result<(), RepairError> {
        let mut bad: HashMap<SegmentRowId, &verify::BadSegment> =
            checked.segments.iter().map(|segment| (segment.row, segment)).collect();
        let lost = segments::list_lost(self.database.readers()).await?;
        self.progress.begin(Part::Lost, lost.len() as u64);
        let mut turn = Instant::now();
        for row in lost {
            // Others write half of the time: whoever begins one transaction after the other keeps them all out.
            if turn.elapsed() >= MIN_PAUSE {
                tokio::time::sleep(pause_after(turn.elapsed())).await;
                turn = Instant::now();
            }
            self.progress.advance(1);
            let bad = bad.remove(&row.row);
            if bad.is_none() && self.take_up_segment(&row).await? {
                self.report.whole_segments += 1;
            } else if self.lead(&row).await? {
                self.report.led_segments += 1;
            } else {
                self.report.still_lost_segments += 1;
                self.report.affects.extend(bad.iter().flat_map(|bad| bad.affects.iter().cloned()));
            }
        }
        self.report.unsure_segments = bad.values().filter(|segment| segment.is_lost).count() as u64;
        Ok(())
    }

    /// Notes that a segment of which the check found nothing can be read where it was.
    async fn take_up_segment(&self, row: &SegmentRow) -> Result<bool, RepairError> {
        let mut tx = self.database.begin().await?;
        let is_found = segments::take_up(&mut *tx, row.row, self.since_ms).await?;
        commit(tx).await?;
        Ok(is_found)
    }

    /// Has a segment lead to where its chunks are by now; false when some are nowhere.
    async fn lead(&self, row: &SegmentRow) -> Result<bool, RepairError> {
        let Some(namespace) = self.names.get(&row.namespace) else { return Ok(false) };
        let object = ObjectKey { namespace: namespace.clone(), object: Object::Segment(row.segment) };
        let segment = match self.storage.read(&object, MAX_SEGMENT_FRAME_BYTES as u64 + 1).await {
            Ok(frame) => Segment::decode(&frame, row.segment, &mut FrameDecoder::new()?),
            Err(error) if error.is_outage() => return Err(error.into()),
            Err(_) => return Ok(false),
        };
        let Ok(segment) = segment else { return Ok(false) };
        let sources = segments::sources_of(self.database.readers(), row.row).await?;
        let also: Vec<Namespace> = sources.iter().filter_map(|id| self.names.get(id)).cloned().collect();
        let located = match locate(&self.database, namespace, &also, row.segment, &segment).await {
            Ok(located) => located,
            Err(error) => return not_led(error),
        };
        self.write(row, namespace, &located).await
    }

    /// Writes a locator in place of another; false when a pack it names is lost, or was condemned meanwhile. The packs of both are
    /// noted before, so that whichever a crash leaves, its packs are kept.
    async fn write(
        &self,
        row: &SegmentRow,
        namespace: &Namespace,
        located: &Located,
    ) -> Result<bool, RepairError> {
        let key = ObjectKey { namespace: namespace.clone(), object: Object::Locator(row.segment) };
        let places = located.places();
        let mut tx = self.database.begin().await?;
        if let Err(error) = located.check(&mut tx).await {
            return not_led(error);
        }
        if located.is_lost(&mut tx).await? {
            return Ok(false);
        }
        let known = segments::keep_packs(&mut tx, row.namespace, row.segment, &places, now_ms()).await?;
        commit(tx).await?;
        if known != Known::Lost {
            // It was sent again, or condemned, meanwhile.
            return Ok(true);
        }
        let mut tx = self.database.begin().await?;
        if let Err(error) = located.check(&mut tx).await {
            return not_led(error);
        }
        if located.is_lost(&mut tx).await? {
            return Ok(false);
        }
        if segments::lead(&mut tx, row.row, &places).await? {
            self.storage.put(&key, located.locator.clone().into()).await?;
            commit(tx).await?;
        }
        Ok(true)
    }
}

/// What it means that a segment's chunks were not found: it stays lost, or nothing can be said.
fn not_led(error: LocateError) -> Result<bool, RepairError> {
    match error {
        LocateError::Missing { .. } | LocateError::Segment(_) => Ok(false),
        LocateError::Locator(error) => Err(error.into()),
        LocateError::Database(error) => Err(error.into()),
    }
}
