//! The object store: one object per path of the data plane, so that the same tree can be served by any static host.

mod bucket;
mod error;
mod key;
mod owner;
mod reading;
mod staging;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use chrono::{TimeDelta, Utc};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    Error as StoreError, GetOptions, GetRange, GetResultPayload, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutPayload,
};

use error::{failed, is_past_the_end, not_written};
use owner::{OWNER, Owned};

pub(crate) use bucket::Patience;
pub use bucket::{Bucket, BucketError};
pub use error::StorageError;
pub(crate) use key::{Object, ObjectKey};
pub(crate) use owner::Opening;
pub(crate) use staging::Staging;

/// Where uploads lie until they are checked.
const STAGING: &str = "staging";
/// What uploads leave free of a local file system, or a 64th of it where that is less: the database mostly lies there too, and
/// to delete what nothing needs takes some room first.
const KEPT_FREE_BYTES: u64 = 256 << 20;
const KEPT_FREE_PART: u64 = 64;
/// Bytes handed to a local file system at once.
const LOCAL_PART_BYTES: usize = 1 << 20;
/// The smallest part S3 takes; only the last may be smaller.
const REMOTE_PART_BYTES: usize = 5 << 20;

/// Whether an upload of this length leaves free what is kept free.
fn has_room(free_bytes: u64, all_bytes: u64, len_bytes: u64) -> bool {
    free_bytes.saturating_sub(len_bytes) >= KEPT_FREE_BYTES.min(all_bytes / KEPT_FREE_PART)
}

/// The object store with our paths, errors and durability.
#[derive(Clone, Debug)]
pub(crate) struct Storage {
    store: Arc<dyn ObjectStore>,
    part_bytes: usize,
    /// The directory of a local store: what a crash leaves there is not in the store's own listing.
    local_root: Option<PathBuf>,
    /// A bucket that was seen to be ours.
    owned: Option<Owned>,
    /// Why it could not be reached when that was first so: for a check, which must not take that for damage.
    away: Arc<OnceLock<String>>,
}

/// What is read of an opened object.
enum Content {
    /// A local store's file: what is read of it is of one object, even if another takes its name meanwhile.
    File(File),
    /// These bytes, on their way.
    Stream(Range<u64>, BoxStream<'static, Result<Bytes, StoreError>>),
    /// Nothing yet.
    Unasked,
}

/// What will be read of an object that is opened.
pub(crate) enum Likely {
    Whole,
    Part(Range<u64>),
    Unknown,
}

/// An object found and not yet read.
pub(crate) struct Opened {
    pub(crate) len_bytes: u64,
    content: Content,
}

/// What is left of uploads that were cut short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Leftovers {
    /// Files.
    pub files: u64,
    /// Bytes in them.
    pub bytes: u64,
}

impl Leftovers {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

impl Storage {
    /// Opens the store in a local directory; every write is on disk before it counts as done.
    pub(crate) fn local(root: PathBuf) -> Result<Self, StorageError> {
        let store = LocalFileSystem::new_with_prefix(&root)
            .map_err(|source| StorageError::Open { path: root.clone(), source })?
            .with_fsync(true);
        Ok(Self { part_bytes: LOCAL_PART_BYTES, local_root: Some(root), ..Self::remote(Arc::new(store)) })
    }

    /// Takes a store that is durable by itself.
    pub(crate) fn remote(store: Arc<dyn ObjectStore>) -> Self {
        Self { store, part_bytes: REMOTE_PART_BYTES, local_root: None, owned: None, away: Arc::default() }
    }

    /// Opens an object; `likely` is what will be read of it, if that is known: a store far away is then asked once.
    pub(crate) async fn open(&self, key: &ObjectKey, likely: Likely) -> Result<Opened, StorageError> {
        let path = key.path();
        let range = match (self.local_root.is_some(), likely) {
            (true, _) | (false, Likely::Whole) => None,
            (false, Likely::Part(range)) => Some(GetRange::Bounded(range)),
            (false, Likely::Unknown) => {
                return Ok(Opened { len_bytes: self.len(&path).await?, content: Content::Unasked });
            }
        };
        let options = GetOptions { range, ..GetOptions::default() };
        let ask = async || match self.store.get_opts(&path, options.clone()).await {
            Err(error) if options.range.is_some() && is_past_the_end(&error) => Ok(None),
            found => found.map(Some).map_err(failed("open", &path)),
        };
        let Some(found) = self.asked(ask).await? else {
            return Ok(Opened { len_bytes: self.len(&path).await?, content: Content::Unasked });
        };
        let (len_bytes, range) = (found.meta.size, found.range.clone());
        let content = match found.payload {
            GetResultPayload::File(file, _) => Content::File(file),
            GetResultPayload::Stream(stream) => Content::Stream(range, stream),
        };
        Ok(Opened { len_bytes, content })
    }

    /// Reads a range of an opened object, a piece at a time.
    pub(crate) async fn stream(
        &self,
        key: &ObjectKey,
        opened: Opened,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, StorageError> {
        match opened.content {
            Content::File(file) => return Ok(reading::pieces(file, range).boxed()),
            Content::Stream(asked, stream) if asked == range => {
                return Ok(stream.map_err(io::Error::other).boxed());
            }
            Content::Stream(..) | Content::Unasked => {}
        }
        let path = key.path();
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let ask = async || self.store.get_opts(&path, options.clone()).await.map_err(failed("read", &path));
        let found = self.asked(ask).await?;
        Ok(found.into_stream().map_err(io::Error::other).boxed())
    }

    /// Reads an object of at most `limit_bytes`; a longer one is cut there, which its id or checksum will tell.
    pub(crate) async fn read(&self, key: &ObjectKey, limit_bytes: u64) -> Result<Bytes, StorageError> {
        let path = key.path();
        let ask = async || {
            let found = self.store.get(&path).await.map_err(failed("read", &path))?;
            if found.meta.size <= limit_bytes {
                return found.bytes().await.map_err(failed("read", &path));
            }
            self.store.get_range(&path, 0..limit_bytes).await.map_err(failed("read", &path))
        };
        self.asked(ask).await
    }

    /// Reads a range of the object at a path.
    pub(crate) async fn read_range(&self, path: &Path, range: Range<u64>) -> Result<Bytes, StorageError> {
        let ask = async || self.store.get_range(path, range.clone()).await.map_err(failed("read", path));
        self.asked(ask).await
    }

    /// The length of an object, bytes.
    pub(crate) async fn len(&self, path: &Path) -> Result<u64, StorageError> {
        let ask = async || self.store.head(path).await.map(|meta| meta.size).map_err(failed("look at", path));
        self.asked(ask).await
    }

    /// Writes an object whose name says what is in it: writing it again changes nothing, or heals it.
    pub(crate) async fn put(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StorageError> {
        let path = key.path();
        let payload = PutPayload::from_bytes(bytes);
        self.store.put(&path, payload).await.map(drop).map_err(not_written("write", &path))
    }

    /// Writes an object where there is none. For one that was written before and may have been collected since.
    pub(crate) async fn ensure(&self, key: &ObjectKey, bytes: Bytes) -> Result<(), StorageError> {
        match self.len(&key.path()).await {
            Err(StorageError::NotFound { .. }) => self.put(key, bytes).await,
            found => found.map(drop),
        }
    }

    /// Removes an object; one that is gone already counts as removed.
    pub(crate) async fn remove(&self, key: &ObjectKey) -> Result<(), StorageError> {
        let path = key.path();
        let ask = async || self.store.delete(&path).await.map_err(failed("remove", &path));
        match self.asked(ask).await {
            Err(StorageError::NotFound { .. }) => Ok(()),
            removed => removed,
        }
    }

    /// Whether the objects lie where every request is a way over a network.
    pub(crate) fn is_remote(&self) -> bool {
        self.local_root.is_none()
    }

    /// Writes an object unless there is one; false when there is.
    pub(crate) async fn put_new(&self, key: &ObjectKey, bytes: Bytes) -> Result<bool, StorageError> {
        let path = key.path();
        match self.store.put_opts(&path, PutPayload::from_bytes(bytes), PutMode::Create.into()).await {
            Ok(_) => Ok(true),
            Err(StoreError::AlreadyExists { .. }) => Ok(false),
            Err(source) => Err(not_written("write", &path)(source)),
        }
    }

    /// Looks whether a local file system has room for an upload. One that does not say takes it, and is full when it is.
    ///
    /// # Errors
    /// `Kept`.
    pub(crate) async fn check_room(&self, len_bytes: u64) -> Result<(), StorageError> {
        let Some(root) = self.local_root.clone() else { return Ok(()) };
        let asked = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&root));
        let Ok(Ok(found)) = asked.await else { return Ok(()) };
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        let free_bytes = bytes(found.f_bavail);
        match has_room(free_bytes, bytes(found.f_blocks), len_bytes) {
            true => Ok(()),
            false => Err(StorageError::Kept { free_bytes }),
        }
    }

    /// Starts receiving an object under a random name.
    pub(crate) async fn stage(&self, name: &str) -> Result<Staging, StorageError> {
        let path = Path::from_iter([STAGING, name]);
        Staging::start(self.store.clone(), path, self.part_bytes, !self.is_remote()).await
    }

    /// All objects outside the staging place, in no order, but what says whose they are.
    pub(crate) fn list(&self) -> BoxStream<'static, Result<ObjectMeta, StorageError>> {
        let root = Path::default();
        let (staging, owner) = (Path::from(STAGING), Path::from(OWNER));
        self.store
            .list(None)
            .try_filter(move |meta| {
                let outside = !meta.location.prefix_matches(&staging) && meta.location != owner;
                futures_util::future::ready(outside)
            })
            .map_err(move |source| failed("list", &root)(source))
            .boxed()
    }

    /// Counts what uploads that were cut short left in the staging place: all of it, or what is older than `older_than`.
    pub(crate) async fn count_staging(
        &self,
        older_than: Option<Duration>,
    ) -> Result<Leftovers, StorageError> {
        self.staged(older_than, false).await
    }

    /// Removes what uploads that were cut short left in the staging place and is older than `older_than`, and counts it.
    pub(crate) async fn sweep_staging(&self, older_than: Duration) -> Result<Leftovers, StorageError> {
        self.staged(Some(older_than), true).await
    }

    async fn staged(&self, older_than: Option<Duration>, remove: bool) -> Result<Leftovers, StorageError> {
        let prefix = Path::from(STAGING);
        let before = older_than
            .and_then(|age| TimeDelta::from_std(age).ok())
            .and_then(|age| Utc::now().checked_sub_signed(age));
        let mut found = Leftovers::default();
        let mut listing = self.store.list(Some(&prefix));
        while let Some(meta) = listing.try_next().await.map_err(failed("list", &prefix))? {
            if self.is_remote() && meta.location.parts_count() != 2 {
                // No upload of ours.
                continue;
            }
            if older_than.is_some() && before.is_none_or(|before| meta.last_modified >= before) {
                continue;
            }
            if remove {
                match self.store.delete(&meta.location).await {
                    Ok(()) | Err(StoreError::NotFound { .. }) => {}
                    Err(source) => return Err(failed("remove", &meta.location)(source)),
                }
            }
            found.add(meta.size);
        }
        if let Some(root) = self.local_root.clone() {
            let partial = move || staging::partial(&root.join(STAGING), older_than, remove);
            let partial = tokio::task::spawn_blocking(partial).await.unwrap_or_default();
            found.files += partial.files;
            found.bytes += partial.bytes;
        }
        Ok(found)
    }

    /// Counts what writes that were cut short left in a local store beside its staging place.
    pub(crate) async fn count_partial_outside_staging(&self) -> Leftovers {
        let Some(root) = self.local_root.clone() else { return Leftovers::default() };
        let count = move || staging::count_partial(&root, &root.join(STAGING));
        tokio::task::spawn_blocking(count).await.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &[u8]) -> ObjectKey {
        let object = Object::Segment(chunk_format::SegmentId::of(name));
        ObjectKey { namespace: "image/debian".parse().unwrap(), object }
    }

    #[tokio::test]
    async fn objects_lie_where_the_data_plane_has_them() {
        let temp = tempfile::tempdir().unwrap();
        let storage = Storage::local(temp.path().to_owned()).unwrap();
        storage.put(&key(b"a"), Bytes::from_static(b"bytes")).await.unwrap();
        let file =
            temp.path().join("image/debian/segments").join(chunk_format::SegmentId::of(b"a").to_string());
        assert_eq!(std::fs::read(file).unwrap(), b"bytes");
        assert_eq!(storage.read(&key(b"a"), 3).await.unwrap(), &b"byt"[..]);
        let error = storage.read(&key(b"b"), 3).await.unwrap_err();
        assert!(matches!(error, StorageError::NotFound { .. }), "{error}");
    }

    #[test]
    fn uploads_leave_room_for_what_makes_room() {
        const MIB: u64 = 1 << 20;
        let large = 1 << 40;
        assert!(has_room(288 * MIB, large, 32 * MIB));
        assert!(!has_room(287 * MIB, large, 32 * MIB));
        assert!(!has_room(MIB, large, 32 * MIB));
        assert!(has_room(33 * MIB, 64 * MIB, 32 * MIB));
        assert!(!has_room(32 * MIB, 64 * MIB, 32 * MIB));
    }

    #[tokio::test]
    async fn put_new_leaves_what_is_there() {
        let temp = tempfile::tempdir().unwrap();
        let storage = Storage::local(temp.path().to_owned()).unwrap();
        assert!(storage.put_new(&key(b"a"), Bytes::from_static(b"first")).await.unwrap());
        assert!(!storage.put_new(&key(b"a"), Bytes::from_static(b"second")).await.unwrap());
        assert_eq!(storage.read(&key(b"a"), 100).await.unwrap(), &b"first"[..]);
    }

    #[tokio::test]
    async fn staging_is_swept_by_age() {
        let temp = tempfile::tempdir().unwrap();
        let storage = Storage::local(temp.path().to_owned()).unwrap();
        let dir = temp.path().join(STAGING);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("whole"), "1234").unwrap();
        std::fs::write(dir.join("partial#1"), "12").unwrap();
        let all = Leftovers { files: 2, bytes: 6 };
        assert_eq!(storage.count_staging(None).await.unwrap(), all);
        let day = Duration::from_secs(86_400);
        assert_eq!(storage.sweep_staging(day).await.unwrap(), Leftovers::default());
        assert_eq!(storage.count_staging(Some(day)).await.unwrap(), Leftovers::default());
        assert_eq!(storage.count_staging(None).await.unwrap(), all);
        let old = std::time::SystemTime::now() - 2 * day;
        for name in ["whole", "partial#1"] {
            File::options().write(true).open(dir.join(name)).unwrap().set_modified(old).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(storage.count_staging(Some(day)).await.unwrap(), all);
        }
        assert_eq!(storage.sweep_staging(day).await.unwrap(), all);
        assert_eq!(storage.count_staging(None).await.unwrap(), Leftovers::default());
    }
}
