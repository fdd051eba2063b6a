//! Whose a bucket or a directory is: it says so itself, and nobody else may use it.

use std::path::PathBuf;

use bytes::Bytes;
use chunk_format::PublicKey;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{
    Error as StoreError, ObjectStore, ObjectStoreExt, PutMode, PutPayload, Result as StoreResult,
};

use super::bucket::{Bucket, Patience};
use super::error::failed;
use super::{ObjectKey, REMOTE_PART_BYTES, STAGING, Storage, StorageError};
use crate::layout::DataDir;

/// Says in a bucket or a directory whose it is: the server's public key.
pub(super) const OWNER: &str = "owner";
const MAX_OWNER_BYTES: u64 = 256;

/// A bucket, and what its `owner` must hold.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    bucket: Bucket,
    owner: String,
}

/// What whoever opens a store knows of it, and does there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    pub(crate) patience: Patience,
    /// Whether the database knows of packs that are there.
    pub(crate) has_packs: bool,
    /// Whether a directory of before directories said whose they are is made to.
    pub(crate) marks: bool,
}

impl Storage {
    /// Opens the store that a server's directory names, which must be the server's: a bucket, or `objects/` in the directory.
    ///
    /// # Errors
    /// `Bucket`, `BucketNotOurs`; `Open`, `DirectoryNotOurs`, `NotMounted`; otherwise what kept it from being looked at.
    pub(crate) async fn of(
        dir: &DataDir,
        server: &PublicKey,
        opening: Opening,
    ) -> Result<Self, StorageError> {
        let Opening { patience, .. } = opening;
        let Some(bucket) = dir.bucket() else {
            return Self::in_directory(dir.objects(), server, opening).await;
        };
        // Whether it can be reached at all is told within seconds, however patient what comes then is.
        let owner = owner(&*bucket.open(Patience::OfServers)?)
            .await
            .map_err(|source| bucket.failed("read who owns it", source))?;
        if owner.as_deref() != Some(&server.to_string()) {
            return Err(StorageError::BucketNotOurs { bucket: bucket.clone(), owner });
        }
        let owned = Owned { bucket: bucket.clone(), owner: server.to_string() };
        Ok(Self { owned: Some(owned), ..Self::remote(bucket.open(patience)?) })
    }

    /// Opens a local store that says whose it is, or was made before they did.
    async fn in_directory(root: PathBuf, server: &PublicKey, opening: Opening) -> Result<Self, StorageError> {
        let storage = Self::local(root.clone())?;
        let store = &*storage.store;
        let path = Path::from(OWNER);
        let mut found = owner(store).await.map_err(failed("read", &path))?;
        // Also where it says that it is ours: a volume may have been mounted over what `init` made.
        if opening.has_packs && !holds_objects(store).await? {
            return Err(StorageError::NotMounted { path: root });
        }
        if found.is_none() && opening.marks {
            mark(store, server).await.map_err(failed("write", &path))?;
            found = owner(store).await.map_err(failed("read", &path))?;
        }
        match found {
            Some(owner) if owner != server.to_string() => {
                Err(StorageError::DirectoryNotOurs { path: root, owner })
            }
            _ => Ok(storage),
        }
    }

    /// Makes the store of a new server the server's.
    ///
    /// # Errors
    /// Those of the bucket, when one is named; otherwise what kept the directory from being written to.
    pub(crate) async fn claim(dir: &DataDir, server: &PublicKey) -> Result<(), StorageError> {
        match dir.bucket() {
            Some(bucket) => Self::claim_bucket(bucket, server).await,
            None => {
                let storage = Self::local(dir.objects())?;
                mark(&*storage.store, server).await.map_err(failed("write", &Path::from(OWNER)))
            }
        }
    }

    /// Makes an empty bucket, or one that was claimed by it before, a server's, once all that is done in one works there.
    async fn claim_bucket(bucket: &Bucket, server: &PublicKey) -> Result<(), StorageError> {
        let store = bucket.open(Patience::OfServers)?;
        let failed = |action| move |source| bucket.failed(action, source);
        let found = owner(&*store).await.map_err(failed("read who owns it"))?;
        refuse_within(bucket).await?;
        if found.as_deref() != Some(&server.to_string()) {
            if let Some(found) = store.list(None).try_next().await.map_err(failed("list what is in it"))? {
                let path = found.location.to_string();
                return Err(StorageError::BucketNotEmpty { bucket: bucket.clone(), path });
            }
            mark(&*store, server).await.map_err(failed("write who owns it"))?;
        }
        // Signatures of versions are written once: whoever comes second must be told.
        match put_owner(&*store, server).await {
            Err(StoreError::AlreadyExists { .. }) => {}
            Err(source) => return Err(bucket.failed("write who owns it", source)),
            Ok(_) => return Err(StorageError::BucketOverwrites { bucket: bucket.clone() }),
        }
        let found = owner(&*store).await.map_err(failed("read who owns it"))?;
        if found.as_deref() != Some(&server.to_string()) {
            return Err(StorageError::BucketNotOurs { bucket: bucket.clone(), owner: found });
        }
        rehearse(&*store).await.map_err(|(action, source)| bucket.failed(action, source))
    }

    /// Asks for something, and once more when that fails though the bucket is there and ours to read: a gateway before one that
    /// restarts may say of everything that it is not there, and a bucket refuses everything when a token has ended. What fails
    /// twice while the bucket answers is a failure of that object.
    pub(super) async fn asked<T, F>(&self, ask: impl Fn() -> F) -> Result<T, StorageError>
    where
        F: Future<Output = Result<T, StorageError>>,
    {
        let error = match ask().await {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        if self.owned.is_none() || matches!(error, StorageError::Full { .. } | StorageError::Kept { .. }) {
            return Err(error);
        }
        self.check_reach().await?;
        ask().await.map_err(|error| match error {
            StorageError::Unreachable { action, path, source } => {
                StorageError::Failed { action, path, source }
            }
            error => error,
        })
    }

    /// Looks whether a bucket can be reached, and is ours still.
    ///
    /// # Errors
    /// `Unreachable`, `BucketNotOurs`; also noted for [`Storage::away`].
    pub(crate) async fn check_reach(&self) -> Result<(), StorageError> {
        let Some(Owned { bucket, owner: expected }) = &self.owned else { return Ok(()) };
        let error = match owner(&*self.store).await {
            Ok(Some(found)) if found == *expected => return Ok(()),
            Ok(owner) => StorageError::BucketNotOurs { bucket: bucket.clone(), owner },
            Err(source) => StorageError::Unreachable { action: "read", path: OWNER.to_owned(), source },
        };
        self.away.get_or_init(|| crate::cause::chain(&error));
        Err(error)
    }

    /// Why the bucket could not be reached when that was first so.
    pub(crate) fn away(&self) -> Option<&str> {
        self.away.get().map(String::as_str)
    }
}

/// Who owns a bucket, in words that are safe to print; nobody when it does not say.
async fn owner(store: &dyn ObjectStore) -> StoreResult<Option<String>> {
    match store.get_range(&Path::from(OWNER), 0..MAX_OWNER_BYTES).await {
        Ok(owner) => Ok(Some(String::from_utf8_lossy(&owner).escape_debug().to_string())),
        Err(StoreError::NotFound { .. }) => Ok(None),
        Err(source) => Err(source),
    }
}

/// Writes whose a store is, unless it says so.
async fn mark(store: &dyn ObjectStore, server: &PublicKey) -> StoreResult<()> {
    match put_owner(store, server).await {
        // Also when the answer to the first try was lost.
        Err(StoreError::AlreadyExists { .. }) => Ok(()),
        put => put,
    }
}

async fn put_owner(store: &dyn ObjectStore, server: &PublicKey) -> StoreResult<()> {
    let payload = PutPayload::from(server.to_string());
    store.put_opts(&Path::from(OWNER), payload, PutMode::Create.into()).await.map(drop)
}

/// Whether there is any object of ours. What else there is, as in the root of a volume, says nothing.
async fn holds_objects(store: &dyn ObjectStore) -> Result<bool, StorageError> {
    for kind in ["image", "user"] {
        let prefix = Path::from(kind);
        let mut listing = store.list(Some(&prefix));
        while let Some(found) = listing.try_next().await.map_err(failed("list", &prefix))? {
            if ObjectKey::parse(found.location.as_ref()).is_some() {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// A server whose bucket begins further out counts all that lies within as its own.
async fn refuse_within(bucket: &Bucket) -> Result<(), StorageError> {
    for outer in bucket.outer() {
        // Whoever may not look there is told nothing; most are not allowed to.
        let found = owner(&*outer.open(Patience::OfServers)?).await.unwrap_or_default();
        if let Some(owner) = found {
            return Err(StorageError::BucketWithin { bucket: bucket.clone(), owner, outer: Box::new(outer) });
        }
    }
    Ok(())
}

/// Does once all that is done in a bucket: what is not allowed, or not known there, is better found out now.
async fn rehearse(store: &dyn ObjectStore) -> Result<(), (&'static str, StoreError)> {
    let failed = |action| move |source| (action, source);
    // The bucket is one server's by now, and nobody else writes there; what is left of a failure is swept with uploads.
    let [from, to] = ["rehearsal", "rehearsal-copy"].map(|name| Path::from_iter([STAGING, name]));
    let parts = [Bytes::from(vec![1; REMOTE_PART_BYTES]), Bytes::from_static(b"the last")];
    let len_bytes: usize = parts.iter().map(Bytes::len).sum();
    let mut upload = store.put_multipart(&from).await.map_err(failed("begin an upload in parts"))?;
    for part in parts {
        upload.put_part(part.into()).await.map_err(failed("upload a part"))?;
    }
    upload.complete().await.map_err(failed("complete an upload in parts"))?;
    store.copy(&from, &to).await.map_err(failed("copy an object"))?;
    let found = store.head(&to).await.map_err(failed("look at an object"))?;
    let end = store.get_range(&to, len_bytes as u64 - 8..len_bytes as u64).await;
    if found.size != len_bytes as u64 || end.map_err(failed("read a range"))? != b"the last"[..] {
        let source = "what was uploaded in parts and copied is not what was sent".into();
        return Err(("read what was written", StoreError::Generic { store: "bucket", source }));
    }
    for path in [&from, &to] {
        store.delete(path).await.map_err(failed("delete an object"))?;
    }
    match store.head(&to).await {
        Err(StoreError::NotFound { .. }) => Ok(()),
        Err(source) => Err(("look for an object that was deleted", source)),
        Ok(_) => {
            let source = "an object that was deleted is still there".into();
            Err(("delete an object", StoreError::Generic { store: "bucket", source }))
        }
    }
}
