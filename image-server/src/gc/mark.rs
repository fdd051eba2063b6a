//! What is needed: the segments of all versions that are kept, the streams of all profiles.

use std::collections::HashSet;
use std::sync::Arc;

use chunk_format::{
    MAX_MANIFEST_BYTES, MAX_PROFILE_BYTES, Manifest, Namespace, Profile, ProfileId, SegmentId, StreamId,
};

use super::{GcError, Part, Progress, Run};
use crate::database::garbage::{self, StoredProfile};
use crate::database::profiles::{self, ProfileRowId};
use crate::database::versions::{self, VersionRow, VersionRowId};
use crate::database::{Connection, failed, namespaces};
use crate::storage::{Object, ObjectKey, Storage, StorageError};

const ROWS_AT_ONCE: u32 = 64;

/// What is needed by all versions and profiles up to a row. Rows are only ever added, so that what came later is found
/// by looking on from there.
pub(super) struct Needed {
    segments: HashSet<(namespaces::NamespaceId, SegmentId)>,
    streams: HashSet<(Namespace, StreamId)>,
    last_version: VersionRowId,
    last_profile: ProfileRowId,
    pub(super) versions: u64,
    progress: Arc<dyn Progress>,
}

impl Needed {
    /// Reads all there is at present. Others may go on committing.
    pub(super) async fn read(run: &Run) -> Result<Self, GcError> {
        let mut needed = Self {
            segments: HashSet::new(),
            streams: HashSet::new(),
            last_version: VersionRowId(0),
            last_profile: ProfileRowId(0),
            versions: 0,
            progress: Arc::clone(&run.progress),
        };
        run.progress.begin(Part::Versions, versions::count(run.database.readers()).await?);
        let mut connection = run.database.readers().acquire().await.map_err(failed("answer"))?;
        needed.catch_up(&mut connection, &run.storage).await?;
        Ok(needed)
    }

    /// Adds what was committed since; within the transaction that condemns, so that nothing is missed.
    pub(super) async fn catch_up(
        &mut self,
        connection: &mut Connection,
        storage: &Storage,
    ) -> Result<(), GcError> {
        loop {
            let rows = versions::list_after(&mut *connection, self.last_version, ROWS_AT_ONCE).await?;
            let Some(last) = rows.last() else { break };
            self.last_version = last.row;
            for row in rows {
                self.add_version(connection, storage, &row).await?;
                self.progress.advance(1);
            }
        }
        loop {
            let rows = garbage::profiles_after(&mut *connection, self.last_profile, ROWS_AT_ONCE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            self.last_profile = last.row;
            for row in rows {
                self.add_profile(connection, storage, row).await?;
            }
        }
    }

    /// A version's segments lie in its own namespace or in its image's; in both, they are kept in both.
    async fn add_version(
        &mut self,
        connection: &mut Connection,
        storage: &Storage,
        row: &VersionRow,
    ) -> Result<(), GcError> {
        let (namespace, _) = versions::series_of(&mut *connection, row.row).await?;
        let key = ObjectKey { namespace, object: Object::Manifest(row.id) };
        let bytes = storage.read(&key, MAX_MANIFEST_BYTES as u64).await?;
        let manifest = row.id.verify(&bytes).and_then(|()| Manifest::decode(&bytes));
        let manifest = manifest.map_err(|error| Run::unreadable(&key, error))?;
        let base = manifest.base.as_ref().map(|base| Namespace::Image(base.image.clone()));
        for holder in std::iter::once(&key.namespace).chain(&base) {
            let Some(holder) = namespaces::find(&mut *connection, holder).await? else { continue };
            let stored = manifest.disks.iter().flat_map(|disk| &disk.segments);
            self.segments.extend(stored.filter(|id| !id.is_zero()).map(|id| (holder.id, *id)));
        }
        self.versions += 1;
        Ok(())
    }

    /// A profile that another has replaced, or whose version was pruned, needs nothing once it cannot be read: a run that was
    /// cut may have deleted it and left its row.
    async fn add_profile(
        &mut self,
        connection: &mut Connection,
        storage: &Storage,
        row: StoredProfile,
    ) -> Result<(), GcError> {
        let key = ObjectKey { namespace: row.namespace, object: Object::Profile(row.profile) };
        let profile = match read_profile(storage, &key, row.profile).await {
            Ok(profile) => profile,
            Err(GcError::Storage(StorageError::NotFound { .. }) | GcError::Unreadable { .. })
                if !profiles::is_current(&mut *connection, row.row).await? =>
            {
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.streams.extend(profile.streams.iter().map(|stream| (key.namespace.clone(), stream.id)));
        Ok(())
    }

    pub(super) fn has_segment(&self, namespace: namespaces::NamespaceId, segment: SegmentId) -> bool {
        self.segments.contains(&(namespace, segment))
    }

    pub(super) fn has_stream(&self, namespace: &Namespace, stream: StreamId) -> bool {
        self.streams.contains(&(namespace.clone(), stream))
    }
}

async fn read_profile(storage: &Storage, key: &ObjectKey, id: ProfileId) -> Result<Profile, GcError> {
    let bytes = storage.read(key, MAX_PROFILE_BYTES as u64).await?;
    let profile = id.verify(&bytes).and_then(|()| Profile::decode(&bytes));
    profile.map_err(|error| Run::unreadable(key, error))
}
