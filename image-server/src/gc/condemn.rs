//! The first half: what nothing needs stops counting.

use std::time::Instant;

use chunk_format::{FrameDecoder, Locator, MAX_LOCATOR_BYTES, frame_len_max};

use super::mark::Needed;
use super::{GcError, Part, Run};
use crate::database::garbage::StoredSegment;
use crate::database::packs::{PackRow, PackRowId};
use crate::database::profiles::StreamRowId;
use crate::database::segments::{self, Places, SegmentRowId};
use crate::database::{Connection, commit, garbage};
use crate::pack_check::read_footer;
use crate::storage::Object;

/// Rows looked at in one transaction.
const SEGMENTS_AT_ONCE: u32 = 1000;
const STREAMS_AT_ONCE: u32 = 1000;
/// Objects read in one transaction.
const LOCATORS_AT_ONCE: u32 = 32;
const PACKS_AT_ONCE: u32 = 16;
/// Rows of packs looked at in one transaction for some that nothing needs.
const PACKS_LOOKED_AT: u32 = 4096;

/// How far each kind is.
struct Cursor {
    needed: Needed,
    segment: SegmentRowId,
    pack: PackRowId,
    stream: StreamRowId,
}

/// The kinds, in their order: a pack is needed by segments that count.
#[derive(Clone, Copy)]
enum Kind {
    Segments,
    Locators,
    Packs,
    Streams,
}

impl Run {
    pub(super) async fn condemn(&mut self) -> Result<(), GcError> {
        let needed = Needed::read(self).await?;
        self.report.kept_versions = needed.versions;
        if self.options.dry_run {
            return self.count_condemned(needed).await;
        }
        let (segment, pack, stream) = (SegmentRowId(0), PackRowId(0), StreamRowId(0));
        let mut cursor = Cursor { needed, segment, pack, stream };
        let kinds = [Kind::Segments, Kind::Locators, Kind::Packs, Kind::Streams];
        for kind in kinds {
            self.begin(kind);
            loop {
                self.step()?;
                let before = self.report.clone();
                let mut tx = self.database.begin().await?;
                let begun = Instant::now();
                let more = self.condemn_some(&mut tx, &mut cursor, kind).await?;
                if let Err(cut) = self.step() {
                    self.report = before;
                    return Err(cut);
                }
                commit(tx).await?;
                if !more {
                    break;
                }
                self.give_way(begun.elapsed()).await;
            }
        }
        Ok(())
    }

    fn begin(&self, kind: Kind) {
        match kind {
            Kind::Segments => self.progress.begin(Part::Segments, 0),
            // Of few segments, once in their life.
            Kind::Locators => {}
            Kind::Packs => self.progress.begin(Part::Packs, 0),
            Kind::Streams => self.progress.begin(Part::Streams, 0),
        }
    }

    /// A batch of one kind; false when it was the last.
    async fn condemn_some(
        &mut self,
        connection: &mut Connection,
        cursor: &mut Cursor,
        kind: Kind,
    ) -> Result<bool, GcError> {
        match kind {
            Kind::Segments => self.condemn_segments(connection, cursor).await,
            Kind::Locators => self.note_packs(connection).await,
            Kind::Packs => self.condemn_packs(connection, cursor).await,
            Kind::Streams => self.condemn_streams(connection, cursor).await,
        }
    }

    async fn condemn_segments(
        &mut self,
        connection: &mut Connection,
        cursor: &mut Cursor,
    ) -> Result<bool, GcError> {
        cursor.needed.catch_up(connection, &self.storage).await?;
        let rows =
            garbage::old_segments(&mut *connection, cursor.segment, self.old, SEGMENTS_AT_ONCE).await?;
        let Some(last) = rows.last() else { return Ok(false) };
        cursor.segment = last.row;
        self.progress.advance(rows.len() as u64);
        for row in rows {
            if !cursor.needed.has_segment(row.namespace, row.segment) {
                garbage::condemn_segment(&mut *connection, row.row, self.now_ms()).await?;
                self.report.condemned.segments += 1;
            }
        }
        Ok(true)
    }

    /// Reads the locators of segments that are older than the table of what packs they keep: once in their life.
    async fn note_packs(&mut self, connection: &mut Connection) -> Result<bool, GcError> {
        let rows =
            garbage::segments_without_packs(&mut *connection, SegmentRowId(0), self.batch(LOCATORS_AT_ONCE))
                .await?;
        let more = !rows.is_empty();
        for row in rows {
            let packs = self.packs_of(&mut *connection, &row).await?;
            segments::add_places(connection, row.row, &Places { sources: &[], packs: &packs }).await?;
            garbage::set_has_packs(&mut *connection, row.row).await?;
        }
        Ok(more)
    }

    /// The packs that a segment's locator names.
    pub(super) async fn packs_of(
        &mut self,
        connection: &mut Connection,
        row: &StoredSegment,
    ) -> Result<Vec<PackRowId>, GcError> {
        let key = self.key(row.namespace, Object::Locator(row.segment)).await?;
        let frame = self.storage.read(&key, frame_len_max(MAX_LOCATOR_BYTES) as u64).await?;
        let locator = FrameDecoder::new()
            .and_then(|mut decoder| Locator::decode(&frame, row.segment, &mut decoder))
            .map_err(|error| Self::unreadable(&key, error))?;
        let mut packs = Vec::with_capacity(locator.packs().len());
        for pack in locator.packs() {
            let found = garbage::pack_row(&mut *connection, &pack.namespace, pack.pack).await?;
            let missing = || Self::unreadable(&key, format!("it names pack {}, which has no row", pack.pack));
            packs.push(found.ok_or_else(missing)?);
        }
        Ok(packs)
    }

    async fn condemn_packs(
        &mut self,
        connection: &mut Connection,
        cursor: &mut Cursor,
    ) -> Result<bool, GcError> {
        let Some(through) = garbage::pack_rows_on(&mut *connection, cursor.pack, PACKS_LOOKED_AT).await?
        else {
            return Ok(false);
        };
        let within = cursor.pack..through;
        let limit = self.batch(PACKS_AT_ONCE);
        let rows = garbage::unneeded_packs(&mut *connection, &within, self.old, limit).await?;
        // A batch that is full may not be all there is up to here.
        cursor.pack = match rows.last() {
            Some(last) if rows.len() >= usize::try_from(limit).unwrap_or(usize::MAX) => last.row,
            _ => through,
        };
        self.progress.advance(rows.len() as u64);
        for row in rows {
            self.condemn_pack(connection, &row).await?;
            self.report.condemned.packs += 1;
            self.report.condemned.bytes += u64::from(row.len_bytes);
        }
        Ok(true)
    }

    async fn condemn_pack(&mut self, connection: &mut Connection, row: &PackRow) -> Result<(), GcError> {
        let key = self.key(row.namespace, Object::Pack(row.pack)).await?;
        let footer = read_footer(&self.storage, &key.path(), u64::from(row.len_bytes)).await;
        let chunks: Option<Vec<_>> = match footer {
            Ok(Ok(footer)) => Some(footer.entries.iter().map(|entry| entry.chunk).collect()),
            // What would be said of every pack.
            Err(error) if error.is_outage() => return Err(error.into()),
            // Damaged or lost: it goes away all the same.
            Ok(Err(_)) | Err(_) => None,
        };
        Ok(garbage::condemn_pack(connection, row, chunks.as_deref(), self.now_ms()).await?)
    }

    async fn condemn_streams(
        &mut self,
        connection: &mut Connection,
        cursor: &mut Cursor,
    ) -> Result<bool, GcError> {
        cursor.needed.catch_up(connection, &self.storage).await?;
        let rows =
            garbage::old_streams(&mut *connection, cursor.stream, self.before_ms, STREAMS_AT_ONCE).await?;
        let Some(last) = rows.last() else { return Ok(false) };
        cursor.stream = last.row;
        self.progress.advance(rows.len() as u64);
        for row in rows {
            let key = self.key(row.namespace, Object::Stream(row.stream)).await?;
            if !cursor.needed.has_stream(&key.namespace, row.stream) {
                garbage::condemn_stream(&mut *connection, row.row, self.now_ms()).await?;
                self.report.condemned.streams += 1;
                self.report.condemned.bytes += row.len_bytes;
            }
        }
        Ok(true)
    }
}
