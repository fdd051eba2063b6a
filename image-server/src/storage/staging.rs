//! An object being received: under a random name until it is whole and checked.

use std::fs::{self, Metadata};
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use chrono::TimeDelta;
use object_store::path::Path;
use object_store::{
    Error as StoreError, MultipartUpload, ObjectMeta, ObjectStore, ObjectStoreExt, PutPayload,
    Result as StoreResult,
};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::{Leftovers, ObjectKey, StorageError, not_written};

/// How far apart the clocks may be of those that keep one bucket.
const CLOCKS_APART: TimeDelta = TimeDelta::minutes(5);

/// An upload on its way: written in parts, one part being written while the next one arrives. Dropped at any point, it
/// leaves nothing behind.
pub(crate) struct Staging {
    store: Arc<dyn ObjectStore>,
    path: Path,
    part_bytes: usize,
    /// Whether the store can give an object another name at once.
    renames: bool,
    /// What is to be copied, if it is.
    staged: Option<ObjectMeta>,
    state: State,
    pending: Vec<Bytes>,
    pending_bytes: usize,
    writing: Option<JoinHandle<StoreResult<()>>>,
}

enum State {
    Receiving(Box<dyn MultipartUpload>),
    /// Whole and durable under its random name.
    Whole,
    /// Under its own name, or gone.
    Done,
}

impl Staging {
    pub(super) async fn start(
        store: Arc<dyn ObjectStore>,
        path: Path,
        part_bytes: usize,
        renames: bool,
    ) -> Result<Self, StorageError> {
        let upload = store.put_multipart(&path).await.map_err(not_written("start", &path))?;
        Ok(Self {
            store,
            path,
            part_bytes,
            renames,
            staged: None,
            state: State::Receiving(upload),
            pending: Vec::new(),
            pending_bytes: 0,
            writing: None,
        })
    }

    /// The random name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the next bytes. All parts but the last have one length: there are buckets that take no others.
    pub(crate) async fn write(&mut self, mut bytes: Bytes) -> Result<(), StorageError> {
        while self.pending_bytes + bytes.len() >= self.part_bytes {
            self.pending.push(bytes.split_to(self.part_bytes - self.pending_bytes));
            self.flush().await?;
        }
        if !bytes.is_empty() {
            self.pending_bytes += bytes.len();
            self.pending.push(bytes);
        }
        Ok(())
    }

    /// Makes what was written whole and durable.
    pub(crate) async fn finish(&mut self) -> Result<(), StorageError> {
        if self.pending_bytes > 0 {
            self.flush().await?;
        }
        self.settle().await?;
        if let State::Receiving(upload) = &mut self.state {
            upload.complete().await.map_err(not_written("finish", &self.path))?;
            self.state = State::Whole;
        }
        Ok(())
    }

    /// Does what takes long of giving the object its own name, in a store that copies for that.
    pub(crate) async fn prepare(&mut self, key: &ObjectKey) -> Result<(), StorageError> {
        if self.renames {
            return Ok(());
        }
        let staged = self.store.head(&self.path).await.map_err(not_written("look at", &self.path))?;
        self.staged = Some(staged);
        self.copy(&key.path()).await
    }

    /// Gives the object its own name. What had that name before is replaced.
    pub(crate) async fn publish(&mut self, key: &ObjectKey) -> Result<(), StorageError> {
        let to = key.path();
        if self.renames {
            self.store.rename(&self.path, &to).await.map_err(not_written("name", &to))?;
            self.state = State::Done;
            return Ok(());
        }
        // A copy may fail though it is said to be done, and the collector may have removed what was copied.
        if self.has_arrived(&to).await? {
            return Ok(());
        }
        self.copy(&to).await?;
        match self.has_arrived(&to).await? {
            true => Ok(()),
            false => {
                let source = "what was copied there is not".into();
                Err(not_written("name", &to)(StoreError::NotFound { path: to.to_string(), source }))
            }
        }
    }

    async fn copy(&mut self, to: &Path) -> Result<(), StorageError> {
        self.store.copy(&self.path, to).await.map_err(not_written("name", to))
    }

    /// Whether the copy is there, and no older object that it was to replace.
    async fn has_arrived(&mut self, to: &Path) -> Result<bool, StorageError> {
        let Some(staged) = &self.staged else { return Ok(false) };
        match self.store.head(to).await {
            Ok(found) => {
                let is_as_new = found.last_modified >= staged.last_modified - CLOCKS_APART;
                Ok(found.size == staged.size && is_as_new)
            }
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(source) => Err(not_written("look at", to)(source)),
        }
    }

    /// Removes what has its own name now under the random one as well. What is left is removed by a later start.
    pub(crate) async fn discard(mut self) {
        if matches!(std::mem::replace(&mut self.state, State::Done), State::Whole)
            && let Err(error) = self.store.delete(&self.path).await
        {
            tracing::warn!(path = %self.path, %error, "an upload could not be removed where it was staged");
        }
    }

    async fn flush(&mut self) -> Result<(), StorageError> {
        self.settle().await?;
        if let State::Receiving(upload) = &mut self.state {
            let part = upload.put_part(PutPayload::from_iter(std::mem::take(&mut self.pending)));
            self.pending_bytes = 0;
            self.writing = Some(tokio::spawn(part));
        }
        Ok(())
    }

    /// Waits for the part being written.
    async fn settle(&mut self) -> Result<(), StorageError> {
        let Some(writing) = self.writing.take() else { return Ok(()) };
        let written = writing.await.unwrap_or_else(|source| Err(source.into()));
        written.map_err(not_written("write", &self.path))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Done);
        if matches!(state, State::Done) {
            return;
        }
        let (store, path, writing) = (self.store.clone(), self.path.clone(), self.writing.take());
        // Without a runtime the process is ending: the next start sweeps what is left.
        let Ok(runtime) = Handle::try_current() else { return };
        runtime.spawn(async move {
            if let Some(writing) = writing {
                writing.await.ok();
            }
            let removed = match state {
                State::Receiving(mut upload) => upload.abort().await,
                State::Whole | State::Done => store.delete(&path).await,
            };
            if let Err(error) = removed {
                tracing::warn!(%path, %error, "an upload that was given up could not be removed; a later start will");
            }
        });
    }
}

/// Counts, and removes if `remove` says so, the files a local store keeps of uploads that were never finished: all, or those
/// older than `older_than`. They are in no listing of the store. What cannot be read or removed now is left for another time.
pub(super) fn partial(dir: &FsPath, older_than: Option<Duration>, remove: bool) -> Leftovers {
    let mut found = Leftovers::default();
    for (path, metadata) in files(dir) {
        if !is_partial(&path) {
            continue;
        }
        if let Some(limit) = older_than {
            let age = metadata.modified().ok().and_then(|time| SystemTime::now().duration_since(time).ok());
            if age.is_none_or(|age| age < limit) {
                continue;
            }
        }
        if remove && fs::remove_file(path).is_err() {
            continue;
        }
        found.add(metadata.len());
    }
    found
}

/// Counts the same files in all of a local store but its staging place.
pub(super) fn count_partial(root: &FsPath, staging: &FsPath) -> Leftovers {
    let mut found = Leftovers::default();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for (path, metadata) in files(&dir) {
            if path == staging {
                continue;
            }
            if metadata.is_dir() {
                dirs.push(path);
            } else if is_partial(&path) {
                found.add(metadata.len());
            }
        }
    }
    found
}

fn files(dir: &FsPath) -> impl Iterator<Item = (PathBuf, Metadata)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
}

/// A local store writes to `NAME#1`, `NAME#2`, … and renames when the file is whole. No name of ours has a `#`.
fn is_partial(path: &FsPath) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.contains('#'))
}
