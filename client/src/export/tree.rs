//! The directory of an export: files that get their names when they are whole.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::ExportError;
use crate::source::ObjectPath;

/// A directory laid out as the data plane. All it does is done on threads that may wait: a stick takes its time, and what is
/// being fetched must not stand still for it.
#[derive(Clone, Debug)]
pub(super) struct Tree(PathBuf);

/// How much the disk that a tree is on can take.
pub(super) struct Space {
    pub(super) free_bytes: u64,
    /// What files are taken in multiples of.
    pub(super) block_bytes: u64,
}

impl Tree {
    pub(super) fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    pub(super) fn directory(&self) -> &Path {
        &self.0
    }

    /// What space there is; none when it cannot be told.
    pub(super) async fn space(&self) -> Option<Space> {
        let directory = self.0.clone();
        let disk = blocking(move || Ok(rustix::fs::statvfs(&directory)?)).await.ok()?;
        if disk.f_blocks == 0 {
            return None;
        }
        let block_bytes = disk.f_frsize.max(1);
        Some(Space { free_bytes: disk.f_bavail.saturating_mul(block_bytes), block_bytes })
    }

    fn file(&self, path: &ObjectPath) -> PathBuf {
        self.0.join(path.to_string())
    }

    /// The length of a file; none when there is none.
    pub(super) async fn len_bytes(&self, path: &ObjectPath) -> Option<u64> {
        let file = self.file(path);
        blocking(move || fs::metadata(file)).await.ok().map(|found| found.len())
    }

    /// What a file holds; none when it cannot be read, or is longer than `limit_bytes`.
    pub(super) async fn read(&self, path: &ObjectPath, limit_bytes: usize) -> Option<Vec<u8>> {
        let file = self.file(path);
        let read = move || {
            let mut bytes = Vec::new();
            File::open(file)?.take(limit_bytes as u64 + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        blocking(read).await.ok().filter(|bytes| bytes.len() <= limit_bytes)
    }

    /// Writes a file under another name first, so that what has its name is whole.
    pub(super) async fn write(&self, path: &ObjectPath, bytes: Vec<u8>) -> Result<(), ExportError> {
        let file = self.file(path);
        blocking(move || Ok(write(&file, &bytes))).await.unwrap_or_else(|source| {
            let path = self.file(path);
            Err(ExportError::Io { action: "write", path, source })
        })
    }

    /// Makes everything durable, names too.
    pub(super) async fn sync(&self) -> Result<(), ExportError> {
        let directory = self.0.clone();
        let synced = blocking(move || Ok(rustix::fs::syncfs(File::open(directory)?)?)).await;
        synced.map_err(|source| ExportError::Io { action: "sync", path: self.0.clone(), source })
    }
}

fn write(file: &Path, bytes: &[u8]) -> Result<(), ExportError> {
    let failed = |action, path: &Path| {
        let path = path.to_owned();
        move |source| ExportError::Io { action, path, source }
    };
    let Some(parent) = file.parent() else { return Ok(()) };
    fs::create_dir_all(parent).map_err(failed("make the directory", parent))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let partial = parent.join(format!(".{name}.partial"));
    let written = File::create(&partial).and_then(|mut out| {
        out.write_all(bytes)?;
        out.sync_data()
    });
    if let Err(error) = written {
        // On a full disk it is in the way of what is to come.
        let _ = fs::remove_file(&partial);
        return Err(failed("write", &partial)(error));
    }
    fs::rename(&partial, file).map_err(failed("rename", &partial))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}
