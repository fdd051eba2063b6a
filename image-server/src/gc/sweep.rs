//! The second half: what stopped counting longer ago than the grace is deleted.
//!
//! Objects go first and their rows with the commit, all under the database's write lock. A crash in between leaves rows
//! that do not count without their objects; the next run of the same grace removes them, and an upload of the same object
//! heals them.

use std::time::Instant;

use super::{GcError, Part, Run};
use crate::database::{Connection, commit, garbage};
use crate::storage::{Object, ObjectKey};

const VERSIONS_AT_ONCE: u32 = 16;
const PROFILES_AT_ONCE: u32 = 16;
const SEGMENTS_AT_ONCE: u32 = 64;
const PACKS_AT_ONCE: u32 = 16;
const STREAMS_AT_ONCE: u32 = 16;
/// A dry run counts all at once.
const ALL: u32 = u32::MAX;

#[derive(Clone, Copy)]
enum Kind {
    Versions,
    Profiles,
    Segments,
    Packs,
    Streams,
}

impl Run {
    pub(super) async fn sweep(&mut self) -> Result<(), GcError> {
        self.progress.begin(Part::Garbage, 0);
        for kind in [Kind::Versions, Kind::Profiles, Kind::Segments, Kind::Packs, Kind::Streams] {
            loop {
                self.step()?;
                let before = self.report.clone();
                // A dry run only reads, and holds nobody up.
                let mut tx = match self.options.dry_run {
                    true => self.database.snapshot().await?,
                    false => self.database.begin().await?,
                };
                let begun = Instant::now();
                let more = match self.delete_some(&mut tx, kind).await {
                    Ok(more) => more,
                    Err(error) => {
                        self.report = before;
                        return Err(error);
                    }
                };
                if self.options.dry_run {
                    break;
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

    async fn delete_some(&mut self, connection: &mut Connection, kind: Kind) -> Result<bool, GcError> {
        match kind {
            Kind::Versions => self.purge_versions(connection).await,
            Kind::Profiles => self.delete_profiles(connection).await,
            Kind::Segments => self.delete_segments(connection).await,
            Kind::Packs => self.delete_packs(connection).await,
            Kind::Streams => self.delete_streams(connection).await,
        }
    }

    fn rows(&self, rows: u32) -> u32 {
        if self.options.dry_run { ALL } else { self.batch(rows) }
    }

    /// Deletes objects of one row, of whatever namespace; whether the row is to go as well.
    async fn delete(&mut self, keys: &[ObjectKey]) -> Result<bool, GcError> {
        self.progress.advance(1);
        if self.options.dry_run {
            return Ok(false);
        }
        for key in keys {
            self.step()?;
            self.storage.remove(key).await?;
        }
        self.step()?;
        Ok(true)
    }

    async fn purge_versions(&mut self, connection: &mut Connection) -> Result<bool, GcError> {
        let limit = self.rows(VERSIONS_AT_ONCE);
        let rows = garbage::unpurged_versions(&mut *connection, self.before_ms, limit).await?;
        let more = !rows.is_empty();
        for row in rows {
            let profiles = garbage::profiles_of(&mut *connection, row.row).await?;
            self.report.deleted.profiles += profiles.len() as u64;
            let objects = profiles
                .into_iter()
                .flat_map(|id| [Object::Profile(id), Object::ProfileSignature(id)])
                .chain([
                    Object::ManifestProfile(row.id),
                    Object::ManifestSignature(row.id),
                    Object::Manifest(row.id),
                ]);
            let keys: Vec<_> =
                objects.map(|object| ObjectKey { namespace: row.namespace.clone(), object }).collect();
            if self.delete(&keys).await? {
                garbage::purge(connection, row.row, self.now_ms()).await?;
            }
            self.report.deleted.versions += 1;
        }
        Ok(more)
    }

    async fn delete_profiles(&mut self, connection: &mut Connection) -> Result<bool, GcError> {
        let limit = self.rows(PROFILES_AT_ONCE);
        let rows = garbage::replaced_profiles(&mut *connection, self.before_ms, limit).await?;
        let more = !rows.is_empty();
        for row in rows {
            let keys = [Object::Profile(row.profile), Object::ProfileSignature(row.profile)]
                .map(|object| ObjectKey { namespace: row.namespace.clone(), object });
            if self.delete(&keys).await? {
                garbage::remove_profile(&mut *connection, row.row).await?;
            }
            self.report.deleted.profiles += 1;
        }
        Ok(more)
    }

    async fn delete_segments(&mut self, connection: &mut Connection) -> Result<bool, GcError> {
        let limit = self.rows(SEGMENTS_AT_ONCE);
        let rows = garbage::condemned_segments(&mut *connection, self.before_ms, limit).await?;
        let more = !rows.is_empty();
        for row in rows {
            let keys = [
                self.key(row.namespace, Object::Locator(row.segment)).await?,
                self.key(row.namespace, Object::Segment(row.segment)).await?,
            ];
            if self.delete(&keys).await? {
                garbage::remove_segment(&mut *connection, row.row).await?;
            }
            self.report.deleted.segments += 1;
        }
        Ok(more)
    }

    async fn delete_packs(&mut self, connection: &mut Connection) -> Result<bool, GcError> {
        let limit = self.rows(PACKS_AT_ONCE);
        let rows = garbage::condemned_packs(&mut *connection, self.before_ms, limit).await?;
        let more = !rows.is_empty();
        for row in rows {
            let key = self.key(row.namespace, Object::Pack(row.pack)).await?;
            if self.delete(&[key]).await? {
                garbage::remove_pack(&mut *connection, row.row).await?;
            }
            self.report.deleted.packs += 1;
            self.report.deleted.bytes += u64::from(row.len_bytes);
        }
        Ok(more)
    }

    async fn delete_streams(&mut self, connection: &mut Connection) -> Result<bool, GcError> {
        let limit = self.rows(STREAMS_AT_ONCE);
        let rows = garbage::condemned_streams(&mut *connection, self.before_ms, limit).await?;
        let more = !rows.is_empty();
        for row in rows {
            let key = self.key(row.namespace, Object::Stream(row.stream)).await?;
            if self.delete(&[key]).await? {
                garbage::remove_stream(&mut *connection, row.row).await?;
            }
            self.report.deleted.streams += 1;
            self.report.deleted.bytes += row.len_bytes;
        }
        Ok(more)
    }
}
