//! What the first half would condemn, counted on one moment's state of the database: nothing is written, no lock is held,
//! and the server goes on beside it.

use std::collections::HashSet;

use super::mark::Needed;
use super::{GcError, Part, Run};
use crate::database::packs::PackRowId;
use crate::database::profiles::StreamRowId;
use crate::database::segments::SegmentRowId;
use crate::database::{Connection, garbage};
use crate::storage::Object;

const ROWS_AT_ONCE: u32 = 1000;

/// What a run would have written down by now.
#[derive(Default)]
struct Would {
    condemned: HashSet<SegmentRowId>,
    /// Packs of segments that are older than the table of what packs they keep.
    kept_packs: HashSet<PackRowId>,
}

impl Run {
    pub(super) async fn count_condemned(&mut self, mut needed: Needed) -> Result<(), GcError> {
        let mut snapshot = self.database.snapshot().await?;
        needed.catch_up(&mut snapshot, &self.storage).await?;
        let mut would = Would::default();
        self.count_segments(&mut snapshot, &needed, &mut would).await?;
        self.count_packs(&mut snapshot, &would).await?;
        self.count_streams(&mut snapshot, &needed).await
    }

    async fn count_segments(
        &mut self,
        snapshot: &mut Connection,
        needed: &Needed,
        would: &mut Would,
    ) -> Result<(), GcError> {
        self.progress.begin(Part::Segments, 0);
        let mut after = SegmentRowId(0);
        loop {
            let rows = garbage::old_segments(&mut *snapshot, after, self.old, ROWS_AT_ONCE).await?;
            let Some(last) = rows.last() else { break };
            after = last.row;
            self.progress.advance(rows.len() as u64);
            let unneeded = rows.iter().filter(|row| !needed.has_segment(row.namespace, row.segment));
            would.condemned.extend(unneeded.map(|row| row.row));
        }
        self.report.condemned.segments += would.condemned.len() as u64;
        let mut after = SegmentRowId(0);
        loop {
            let rows = garbage::segments_without_packs(&mut *snapshot, after, ROWS_AT_ONCE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.row;
            for row in rows.iter().filter(|row| !would.condemned.contains(&row.row)) {
                let packs = self.packs_of(&mut *snapshot, row).await?;
                would.kept_packs.extend(packs);
            }
        }
    }

    async fn count_packs(&mut self, snapshot: &mut Connection, would: &Would) -> Result<(), GcError> {
        self.progress.begin(Part::Packs, 0);
        let mut after = PackRowId(0);
        loop {
            let rows = garbage::old_packs(&mut *snapshot, after, self.old, ROWS_AT_ONCE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.row;
            self.progress.advance(rows.len() as u64);
            for row in rows.iter().filter(|row| !would.kept_packs.contains(&row.row)) {
                let holders = garbage::counting_segments_of(&mut *snapshot, row.row).await?;
                if holders.iter().all(|segment| would.condemned.contains(segment)) {
                    self.report.condemned.packs += 1;
                    self.report.condemned.bytes += u64::from(row.len_bytes);
                }
            }
        }
    }

    async fn count_streams(&mut self, snapshot: &mut Connection, needed: &Needed) -> Result<(), GcError> {
        self.progress.begin(Part::Streams, 0);
        let mut after = StreamRowId(0);
        loop {
            let rows = garbage::old_streams(&mut *snapshot, after, self.before_ms, ROWS_AT_ONCE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.row;
            self.progress.advance(rows.len() as u64);
            for row in rows {
                let key = self.key(row.namespace, Object::Stream(row.stream)).await?;
                if !needed.has_stream(&key.namespace, row.stream) {
                    self.report.condemned.streams += 1;
                    self.report.condemned.bytes += row.len_bytes;
                }
            }
        }
    }
}
