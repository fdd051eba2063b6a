//! A directory as a source: an exported tree on a disk or a stick.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{StreamExt, unfold};
use tokio::sync::Semaphore;

use super::{ChunkSource, FailureKind, ObjectBody, ObjectPath, SourceError};

/// Bytes read at once.
const PIECE_BYTES: u64 = 256 << 10;

/// Calls at once: one that hangs keeps its thread for as long, whoever stops waiting, and the process has only so many.
const CALLS: usize = 8;

/// Objects below a directory. When the directory is gone (a stick was pulled out) the source is unreachable, not empty.
#[derive(Clone, Debug)]
pub struct DirectorySource {
    root: PathBuf,
    calls: Arc<Semaphore>,
}

impl DirectorySource {
    /// Uses a directory, which need not be there at present.
    pub fn new(root: PathBuf) -> Self {
        Self { root, calls: Arc::new(Semaphore::new(CALLS)) }
    }

    async fn error(&self, path: &ObjectPath, cause: io::Error) -> SourceError {
        let root = self.root.clone();
        let is_missing = cause.kind() == io::ErrorKind::NotFound
            && self.off_the_runtime(move || Ok(has_content(&root))).await.unwrap_or(false);
        let kind = if is_missing { FailureKind::NotFound } else { FailureKind::Unreachable };
        let (origin, object) = (self.origin(), path.to_string());
        SourceError { origin, object, kind, retry_after: None, cause: cause.into() }
    }

    /// A stick may take its time; the threads that answer the kernel must not wait for it.
    async fn off_the_runtime<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let call = Arc::clone(&self.calls).acquire_owned().await.map_err(io::Error::other)?;
        let called = tokio::task::spawn_blocking(move || {
            let _call = call;
            work()
        });
        called.await.map_err(io::Error::other)?
    }
}

/// Whether this is the directory that was meant, and not the empty mount point of a stick that is gone.
fn has_content(root: &Path) -> bool {
    std::fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some())
}

impl ChunkSource for DirectorySource {
    fn origin(&self) -> String {
        format!("file:{}", self.root.display())
    }

    fn get<'a>(
        &'a self,
        path: &'a ObjectPath,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<ObjectBody, SourceError>> {
        Box::pin(async move {
            // An object's path leads nowhere else: names and ids have no slash, and none begins with a dot.
            let file = self.root.join(path.to_string());
            let opened = self.off_the_runtime(move || {
                let file = File::open(file)?;
                let len = file.metadata()?.len();
                Ok((file, len))
            });
            let (file, len) = match opened.await {
                Ok(opened) => opened,
                Err(error) => return Err(self.error(path, error).await),
            };
            let range = range.unwrap_or(0..len);
            if range.end > len {
                let cause = format!("it has {len} bytes, {} to {} were asked for", range.start, range.end);
                return Err(super::damaged(self, path, cause));
            }
            let (file, source, path) = (Arc::new(file), self.clone(), path.clone());
            let body = unfold(Some(range), move |left| {
                let (file, source, path) = (Arc::clone(&file), source.clone(), path.clone());
                async move {
                    let left = left.filter(|left| !left.is_empty())?;
                    let end = left.end.min(left.start + PIECE_BYTES);
                    let read = source.off_the_runtime(move || {
                        let mut piece = vec![0; usize::try_from(end - left.start).unwrap_or(0)];
                        file.read_exact_at(&mut piece, left.start)?;
                        Ok(Bytes::from(piece))
                    });
                    match read.await {
                        Ok(piece) => Some((Ok(piece), Some(end..left.end))),
                        Err(error) => Some((Err(source.error(&path, error).await), None)),
                    }
                }
            });
            Ok(body.boxed())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chunk_format::PackId;
    use futures_util::stream::TryStreamExt;

    use super::*;
    use crate::source::Object;

    async fn read(
        source: &DirectorySource,
        path: &ObjectPath,
        range: Option<Range<u64>>,
    ) -> Result<Vec<u8>, FailureKind> {
        let kind = |error: SourceError| error.kind;
        let parts: Vec<Bytes> =
            source.get(path, range).await.map_err(kind)?.try_collect().await.map_err(kind)?;
        Ok(parts.concat())
    }

    #[tokio::test]
    async fn objects_are_read_and_a_missing_stick_is_told_from_a_missing_object() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("stick");
        let source = DirectorySource::new(root.clone());
        let path = |name: &[u8]| ObjectPath {
            namespace: "image/debian".parse().unwrap(),
            object: Object::Pack(PackId::of(name)),
        };
        assert_eq!(read(&source, &path(b"a"), None).await, Err(FailureKind::Unreachable));
        std::fs::create_dir(&root).unwrap();
        assert_eq!(
            read(&source, &path(b"a"), None).await,
            Err(FailureKind::Unreachable),
            "an empty mount point"
        );
        let bytes: Vec<u8> = (0..600_000u32).flat_map(u32::to_le_bytes).collect();
        std::fs::create_dir_all(root.join("image/debian/packs")).unwrap();
        std::fs::write(root.join(path(b"a").to_string()), &bytes).unwrap();
        assert_eq!(read(&source, &path(b"a"), None).await.unwrap(), bytes);
        assert_eq!(read(&source, &path(b"a"), Some(7..500_000)).await.unwrap(), bytes[7..500_000]);
        assert_eq!(read(&source, &path(b"b"), None).await, Err(FailureKind::NotFound));
        let past = Some(7..bytes.len() as u64 + 1);
        assert_eq!(read(&source, &path(b"a"), past).await, Err(FailureKind::Damaged));
    }

    #[test]
    fn a_directory_that_hangs_leaves_threads_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let path =
            ObjectPath { namespace: "image/debian".parse().unwrap(), object: Object::Pack(PackId::of(b"a")) };
        let file = dir.path().join(path.to_string());
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        // Whoever opens it to read hangs until somebody opens it to write.
        rustix::fs::mkfifoat(rustix::fs::CWD, &file, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .unwrap();
        let source = DirectorySource::new(dir.path().to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(CALLS + 1)
            .build()
            .unwrap();
        let is_left = runtime.block_on(async {
            for _ in 0..50 {
                let asked = tokio::time::timeout(Duration::from_millis(1), source.get(&path, Some(0..1)));
                assert!(asked.await.is_err());
            }
            let other = tokio::task::spawn_blocking(|| ());
            tokio::time::timeout(Duration::from_secs(10), other).await.is_ok()
        });
        runtime.shutdown_background();
        drop(File::options().write(true).open(&file).unwrap());
        assert!(is_left);
    }
}
