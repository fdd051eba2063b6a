//! Which objects count.

use crate::database::{Database, DatabaseError, packs, profiles, segments, versions};
use crate::storage::{Object, ObjectKey};

/// Whether an object counts. What lies in the store without its row was never finished, and is not shown to anyone.
pub(crate) async fn counts(database: &Database, key: &ObjectKey) -> Result<bool, DatabaseError> {
    let (readers, namespace) = (database.readers(), &key.namespace);
    match key.object {
        Object::Pack(id) => packs::exists(readers, namespace, id).await,
        Object::Segment(id) | Object::Locator(id) => segments::exists(readers, namespace, id).await,
        Object::Manifest(id) | Object::ManifestSignature(id) => Ok(versions::find(readers, namespace, id)
            .await?
            .is_some_and(|version| version.purged_ms.is_none())),
        Object::ManifestProfile(id) => match versions::find(readers, namespace, id).await? {
            Some(version) if version.purged_ms.is_some() => Ok(false),
            Some(version) => Ok(profiles::current(readers, version.row).await?.is_some()),
            None => Ok(false),
        },
        Object::Profile(id) | Object::ProfileSignature(id) => profiles::exists(readers, namespace, id).await,
        Object::Stream(id) => profiles::stream_exists(readers, namespace, id).await,
    }
}
