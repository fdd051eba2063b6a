//! A file system on the disk, read with a bound on everything.

use std::cell::Cell;
use std::error::Error;
use std::sync::Arc;

use ext4_view::{Ext4, Ext4Error, Ext4Read, Path, PathBuf};
use thiserror::Error;

use super::bounded::SharedDisk;
use super::partitions::Partition;
use super::superblock::{self, Superblock};

/// Names that are read of one directory.
const MAX_NAMES: usize = 4096;
/// Bytes of a directory that is looked into.
const MAX_DIRECTORY_BYTES: u64 = 16 << 20;
/// Links that are followed on the way to one file, as Linux does.
const MAX_LINKS: usize = 40;
/// Bytes of a path, and of a link's target.
const MAX_PATH_BYTES: usize = 4095;
/// Names of a path, links put in.
const MAX_STEPS: usize = 512;
/// Bytes that are read at a time.
const STEP_BYTES: usize = 1 << 20;

/// Why a file cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// There is none.
    #[error("it does not exist")]
    Missing,
    /// Something else than a file.
    #[error("it is no file")]
    NotAFile,
    /// Longer than anything that is booted.
    #[error("it has {actual} bytes; {limit} are the most that is read")]
    TooLong {
        /// Its bytes.
        actual: u64,
        /// The most there may be.
        limit: u64,
    },
    /// Links, names or directories without an end.
    #[error("the way to it is too long")]
    TooFar,
    /// The file system is damaged, or the disk is.
    #[error("it cannot be read")]
    FileSystem(#[source] Ext4Error),
}

impl From<Ext4Error> for ReadError {
    fn from(error: Ext4Error) -> ReadError {
        match error {
            Ext4Error::NotFound | Ext4Error::NotADirectory => ReadError::Missing,
            Ext4Error::IsADirectory | Ext4Error::IsASpecialFile => ReadError::NotAFile,
            Ext4Error::TooManySymlinks | Ext4Error::PathTooLong | Ext4Error::MalformedPath => {
                ReadError::TooFar
            }
            other => ReadError::FileSystem(other),
        }
    }
}

/// A partition with a file system that could be read.
pub(super) struct Volume {
    /// Where it lies.
    pub(super) partition: Partition,
    /// The UUID of its file system.
    pub(super) uuid: String,
    fs: Ext4,
}

impl Volume {
    /// Opens the file system of a partition. Writes that are still in its journal are taken as done; where the library
    /// cannot read the journal they are not, as if the power had failed before them.
    pub(super) fn open(disk: &SharedDisk, partition: &Partition) -> Result<Option<Volume>, Ext4Error> {
        let superblock =
            Superblock::read(disk.as_ref(), partition).map_err(|error| Ext4Error::Io(Box::new(error)))?;
        let Some(superblock) = superblock else { return Ok(None) };
        let load = |with_journal| {
            let shown = superblock.shown(with_journal);
            Ext4::load(Box::new(Window {
                disk: Arc::clone(disk),
                partition: partition.clone(),
                superblock: shown,
            }))
        };
        let mut loaded = load(superblock.is_journal_readable());
        if superblock.needs_recovery() && superblock.is_journal_readable() && loaded.is_err() {
            loaded = load(false);
        }
        let fs = loaded?;
        Ok(Some(Volume { partition: partition.clone(), uuid: fs.uuid().to_string(), fs }))
    }

    /// The bytes of a file.
    pub(super) fn read(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>, ReadError> {
        let mut bytes = Vec::new();
        self.append(path, max_bytes, &mut bytes)?;
        Ok(bytes)
    }

    /// Puts the bytes of a file behind others.
    pub(super) fn append(&self, path: &str, max_bytes: u64, bytes: &mut Vec<u8>) -> Result<(), ReadError> {
        let path = self.resolve(path)?;
        let actual = self.metadata(&path)?.len();
        if actual > max_bytes {
            return Err(ReadError::TooLong { actual, limit: max_bytes });
        }
        let mut file = self.fs.open(&path)?;
        let mut left =
            usize::try_from(actual).map_err(|_| ReadError::TooLong { actual, limit: max_bytes })?;
        bytes.reserve_exact(left);
        while left > 0 {
            let mut at = bytes.len();
            // Zeros once for each step: the library reads a block at a time.
            bytes.resize(at.saturating_add(left.min(STEP_BYTES)), 0);
            while let Some(rest) = bytes.get_mut(at..).filter(|rest| !rest.is_empty()) {
                let read = file.read_bytes(rest)?;
                if read == 0 {
                    // Shorter than it said it was.
                    bytes.truncate(at);
                    return Ok(());
                }
                at = at.saturating_add(read);
                left = left.saturating_sub(read);
            }
        }
        Ok(())
    }

    /// Length of a file.
    pub(super) fn file_bytes(&self, path: &str) -> Option<u64> {
        let metadata = self.metadata(&self.resolve(path).ok()?).ok()?;
        metadata.file_type().is_regular_file().then(|| metadata.len())
    }

    /// Whether something is there.
    pub(super) fn exists(&self, path: &str) -> bool {
        self.resolve(path).is_ok()
    }

    /// Names in a directory, as many as are read; none when there is no directory.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let Ok(path) = self.resolve(path) else { return Vec::new() };
        let Ok(entries) = self.fs.read_dir(&path) else { return Vec::new() };
        let names = entries.take(MAX_NAMES).map_while(Result::ok);
        names.filter_map(|entry| entry.file_name().as_str().ok().map(str::to_owned)).collect()
    }

    fn metadata(&self, path: &PathBuf) -> Result<ext4_view::Metadata, ReadError> {
        Ok(self.fs.symlink_metadata(path)?)
    }

    /// The path of what a path leads to, without links. The library follows links too, but keeps as much memory for a
    /// target as the link claims to have.
    fn resolve(&self, path: &str) -> Result<PathBuf, ReadError> {
        let links = Cell::new(0);
        let mut todo: Vec<Vec<u8>> = Vec::new();
        push_names(&mut todo, path.as_bytes())?;
        let mut done: Vec<Vec<u8>> = Vec::new();
        for _ in 0..MAX_STEPS {
            let Some(name) = todo.pop() else { return joined(&done) };
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(name),
            }
            let here = joined(&done)?;
            let metadata = self.metadata(&here)?;
            if metadata.is_dir() && metadata.len() > MAX_DIRECTORY_BYTES {
                return Err(ReadError::TooFar);
            }
            if !metadata.is_symlink() {
                continue;
            }
            links.set(links.get() + 1);
            if links.get() > MAX_LINKS || metadata.len() > MAX_PATH_BYTES as u64 {
                return Err(ReadError::TooFar);
            }
            let target = self.fs.read_link(&here)?;
            let target: &[u8] = target.as_ref();
            done.pop();
            if target.starts_with(b"/") {
                done.clear();
            }
            push_names(&mut todo, target)?;
        }
        Err(ReadError::TooFar)
    }
}

/// Puts the names of a path on the pile, the first one on top.
fn push_names(todo: &mut Vec<Vec<u8>>, path: &[u8]) -> Result<(), ReadError> {
    let names = path.split(|byte| *byte == b'/').rev().filter(|name| !name.is_empty());
    todo.extend(names.map(<[u8]>::to_vec));
    if path.len() > MAX_PATH_BYTES || todo.len() > MAX_STEPS { Err(ReadError::TooFar) } else { Ok(()) }
}

fn joined(names: &[Vec<u8>]) -> Result<PathBuf, ReadError> {
    let mut path = Vec::new();
    for name in names {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    if path.is_empty() {
        path.push(b'/');
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(ReadError::TooFar);
    }
    // What has a zero or too long a name cannot exist.
    Path::try_from(path.as_slice()).map(PathBuf::from).map_err(|_| ReadError::Missing)
}

/// A partition as the library reads it: with a superblock of our making.
struct Window {
    disk: SharedDisk,
    partition: Partition,
    superblock: Vec<u8>,
}

impl Ext4Read for Window {
    fn read(
        &mut self,
        start_byte: u64,
        dst: &mut [u8],
    ) -> Result<(), Box<dyn Error + Send + Sync + 'static>> {
        if start_byte == superblock::PLACE && dst.len() == superblock::BYTES {
            dst.copy_from_slice(&self.superblock);
            return Ok(());
        }
        let start = self.partition.range.start.checked_add(start_byte).ok_or("a block lies nowhere")?;
        let end = start.checked_add(dst.len() as u64).ok_or("a block lies nowhere")?;
        if end > self.partition.range.end {
            return Err("a block lies outside of its partition".into());
        }
        Ok(self.disk.read_at(dst, start)?)
    }
}
