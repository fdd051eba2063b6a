//! What two versions of a disk have in common, file by file.
//!
//! Cheap first: disks whose chunks are all the same are not looked into. Else both trees are walked; a file whose size
//! is the same is compared block by block, and blocks that lie in the same chunk on both sides, at the same place in
//! it, are the same without being read. Times alone are no change.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use chunk_format::ChunkIndex;
use serde::Serialize;

use super::{DiskFiles, Entry, FileKind, FileSystem, FilesError, FoundFileSystem, Inode, InodeNumber, shown};
use crate::past::ChunkedDisk;

/// The deepest directory that is looked into.
const MAX_DEPTH: usize = 512;
/// Differences that are told one by one.
const MAX_CHANGES: usize = 1 << 20;
/// Bytes that are compared at a time.
const STEP_BYTES: usize = 256 << 10;

/// A file system in a version.
#[derive(Clone)]
pub struct Side {
    /// The file system.
    pub fs: Arc<FileSystem>,
    /// The disk it is on.
    pub disk: Arc<dyn ChunkedDisk>,
}

/// What became of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It is on the second side only.
    Added,
    /// It is on both sides, and not the same.
    Changed,
    /// It is on the first side only.
    Removed,
}

/// A file that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its path, from `/` on, safe to print.
    pub path: String,
    /// What became of it.
    pub fate: Fate,
    /// What it is, or was when it is no more.
    pub kind: &'static str,
    /// Bytes on the first side.
    pub before_bytes: Option<u64>,
    /// Bytes on the second side.
    pub after_bytes: Option<u64>,
    /// What changed: `content`, `kind`, `mode`, `owner`, `target`, `device`.
    pub what: Vec<&'static str>,
}

/// What is not the same in two file systems.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Difference {
    /// The files, in the order of their paths; no more than a million.
    pub changes: Vec<Change>,
    /// Files, directories and others that were added.
    pub added: u64,
    /// That were changed.
    pub changed: u64,
    /// That were removed.
    pub removed: u64,
    /// Paths that could not be compared, and why.
    pub unreadable: Vec<String>,
}

impl Difference {
    /// Whether all is the same.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.unreadable.is_empty()
    }

    fn note(&mut self, change: Change) {
        match change.fate {
            Fate::Added => self.added += 1,
            Fate::Changed => self.changed += 1,
            Fate::Removed => self.removed += 1,
        }
        if self.changes.len() < MAX_CHANGES {
            self.changes.push(change);
        }
    }
}

/// Compares two file systems; a missing side counts as empty. To be called where waiting for what must be fetched is
/// fine.
///
/// # Errors
/// `Disk`; what is damaged or cannot be read is told in the result.
pub fn compare(before: Option<&Side>, after: Option<&Side>) -> Result<Difference, FilesError> {
    let mut walk = Walk { difference: Difference::default(), seen: [HashSet::new(), HashSet::new()] };
    let root = |side: Option<&Side>| side.map(|side| side.fs.root()).transpose();
    let (old, new) = (root(before)?, root(after)?);
    let sides = Sides { before, after };
    walk.directories(&sides, &mut Vec::new(), old.as_ref(), new.as_ref(), 0)?;
    Ok(walk.difference)
}

/// A disk in a version.
#[derive(Clone)]
pub struct DiskSide {
    /// The disk.
    pub disk: Arc<dyn ChunkedDisk>,
    /// What is on it.
    pub files: Arc<DiskFiles>,
}

/// Compares all that is on two disks; a missing one counts as empty. Paths begin with `pN:` when there are several file
/// systems.
///
/// # Errors
/// As [`compare`].
pub fn compare_disks(before: Option<&DiskSide>, after: Option<&DiskSide>) -> Result<Difference, FilesError> {
    let found = |disk: Option<&DiskSide>| -> BTreeMap<u32, Side> {
        let found = disk.iter().flat_map(|disk| disk.files.readable().map(move |found| (disk, found)));
        let side = |(disk, (found, fs)): (&&DiskSide, (&FoundFileSystem, &Arc<FileSystem>))| {
            (found.partition, Side { fs: Arc::clone(fs), disk: Arc::clone(&disk.disk) })
        };
        found.map(side).collect()
    };
    let (mut before, mut after) = (found(before), found(after));
    if before.len() <= 1 && after.len() <= 1 {
        return compare(before.values().next(), after.values().next());
    }
    let mut all = Difference::default();
    let numbers: BTreeSet<u32> = before.keys().chain(after.keys()).copied().collect();
    for number in numbers {
        let part = compare(before.remove(&number).as_ref(), after.remove(&number).as_ref())?;
        all.added += part.added;
        all.changed += part.changed;
        all.removed += part.removed;
        let named = |path: String| format!("p{number}:{path}");
        all.changes
            .extend(part.changes.into_iter().map(|change| Change { path: named(change.path), ..change }));
        all.unreadable.extend(part.unreadable.into_iter().map(named));
    }
    Ok(all)
}

struct Sides<'a> {
    before: Option<&'a Side>,
    after: Option<&'a Side>,
}

struct Walk {
    difference: Difference,
    /// Directories that were looked into, on either side: a directory has one name.
    seen: [HashSet<InodeNumber>; 2],
}

impl Walk {
    /// Compares two directories of one path; at least one is there.
    fn directories(
        &mut self,
        sides: &Sides<'_>,
        path: &mut Vec<u8>,
        old: Option<&Inode>,
        new: Option<&Inode>,
        depth: usize,
    ) -> Result<(), FilesError> {
        if depth > MAX_DEPTH {
            self.difference.unreadable.push(format!("{}: too deep", shown(path)));
            return Ok(());
        }
        let old = self.names(0, sides.before, old, path)?;
        let new = self.names(1, sides.after, new, path)?;
        let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return Ok(()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((old, _)), Some((new, _))) => old.cmp(new),
            };
            let old = if order == Ordering::Greater { None } else { old.next() };
            let new = if order == Ordering::Less { None } else { new.next() };
            let Some((name, _)) = old.or(new) else { return Ok(()) };
            let len = path.len();
            path.push(b'/');
            path.extend_from_slice(name);
            self.pair(sides, path, old.map(|(_, inode)| *inode), new.map(|(_, inode)| *inode), depth)?;
            path.truncate(len);
        }
    }

    /// A directory's names in order.
    fn names(
        &mut self,
        at: usize,
        side: Option<&Side>,
        directory: Option<&Inode>,
        path: &[u8],
    ) -> Result<BTreeMap<Vec<u8>, InodeNumber>, FilesError> {
        let (Some(side), Some(directory)) = (side, directory) else { return Ok(BTreeMap::new()) };
        if !self.seen[at].insert(directory.number) {
            self.difference.unreadable.push(format!("{}: a directory in a circle", shown(path)));
            return Ok(BTreeMap::new());
        }
        let entries = self.readable(path, side.fs.entries(directory))?.unwrap_or_default();
        Ok(entries.into_iter().map(|Entry { name, inode, .. }| (name, inode)).collect())
    }

    /// What is damaged is noted and passed over; a disk that cannot be read ends the comparison.
    fn readable<T>(&mut self, path: &[u8], result: Result<T, FilesError>) -> Result<Option<T>, FilesError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error @ FilesError::Disk { .. }) => Err(error),
            Err(error) => {
                self.difference.unreadable.push(format!("{}: {error}", shown(path)));
                Ok(None)
            }
        }
    }

    fn pair(
        &mut self,
        sides: &Sides<'_>,
        path: &mut Vec<u8>,
        old: Option<InodeNumber>,
        new: Option<InodeNumber>,
        depth: usize,
    ) -> Result<(), FilesError> {
        let load = |side: Option<&Side>, number: Option<InodeNumber>| match (side, number) {
            (Some(side), Some(number)) => side.fs.inode(number).map(Some),
            _ => Ok(None),
        };
        let Some(old) = self.readable(path, load(sides.before, old))? else { return Ok(()) };
        let Some(new) = self.readable(path, load(sides.after, new))? else { return Ok(()) };
        let what = match (&old, &new) {
            (Some(old), Some(new)) => {
                let what = self.what(sides, path, old, new)?;
                if what.is_empty() { None } else { Some((Fate::Changed, what)) }
            }
            (Some(_), None) => Some((Fate::Removed, Vec::new())),
            (None, _) => Some((Fate::Added, Vec::new())),
        };
        if let (Some((fate, what)), Some(inode)) = (what, new.as_ref().or(old.as_ref())) {
            let bytes = |inode: &Inode| match inode.kind {
                FileKind::Directory => 0,
                _ => inode.size_bytes,
            };
            self.difference.note(Change {
                path: shown(path),
                fate,
                kind: inode.kind.as_str(),
                before_bytes: old.as_ref().map(bytes),
                after_bytes: new.as_ref().map(bytes),
                what,
            });
        }
        let is_directory =
            |inode: &Option<Inode>| inode.as_ref().filter(|inode| inode.kind == FileKind::Directory).cloned();
        let (old, new) = (is_directory(&old), is_directory(&new));
        if old.is_some() || new.is_some() {
            self.directories(sides, path, old.as_ref(), new.as_ref(), depth + 1)?;
        }
        Ok(())
    }

    fn what(
        &mut self,
        sides: &Sides<'_>,
        path: &[u8],
        old: &Inode,
        new: &Inode,
    ) -> Result<Vec<&'static str>, FilesError> {
        let (Some(before), Some(after)) = (sides.before, sides.after) else { return Ok(Vec::new()) };
        if old.kind != new.kind {
            return Ok(vec!["kind"]);
        }
        let mut what = Vec::new();
        if old.permissions != new.permissions {
            what.push("mode");
        }
        if (old.uid, old.gid) != (new.uid, new.gid) {
            what.push("owner");
        }
        match old.kind {
            FileKind::File => {
                let differs = old.size_bytes != new.size_bytes
                    || self.readable(path, content_differs(before, old, after, new))?.unwrap_or(false);
                if differs {
                    what.push("content");
                }
            }
            FileKind::Symlink => {
                let targets = before.fs.target(old).and_then(|old| Ok((old, after.fs.target(new)?)));
                if self.readable(path, targets)?.is_some_and(|(old, new)| old != new) {
                    what.push("target");
                }
            }
            FileKind::BlockDevice | FileKind::CharacterDevice if old.device != new.device => {
                what.push("device")
            }
            _ => {}
        }
        Ok(what)
    }
}

/// Whether two files of one size have different bytes.
fn content_differs(before: &Side, old: &Inode, after: &Side, new: &Inode) -> Result<bool, FilesError> {
    let size = new.size_bytes;
    let (mut left, mut right) = (vec![0; STEP_BYTES], vec![0; STEP_BYTES]);
    let mut at = 0;
    while at < size {
        let same = same_chunks(before, old, after, new, at)?;
        if same > 0 {
            at = at.saturating_add(same);
            continue;
        }
        let step = STEP_BYTES.min(usize::try_from(size - at).unwrap_or(STEP_BYTES));
        // Up to the end of a block, so that the next step may be spared.
        let block_bytes =
            usize::try_from(before.fs.block_bytes().max(after.fs.block_bytes())).unwrap_or(STEP_BYTES);
        let step = step.min(block_bytes - usize::try_from(at).unwrap_or(0) % block_bytes);
        let (left, right) = (&mut left[..step], &mut right[..step]);
        before.fs.read(old, at, left)?;
        after.fs.read(new, at, right)?;
        if left != right {
            return Ok(true);
        }
        at += step as u64;
    }
    Ok(false)
}

/// How many bytes of two files from an offset on are the same without looking: both zeros, or in the same chunks.
fn same_chunks(before: &Side, old: &Inode, after: &Side, new: &Inode, at: u64) -> Result<u64, FilesError> {
    let (Some(old), Some(new)) = (place(before, old, at)?, place(after, new, at)?) else { return Ok(0) };
    let len = old.len.min(new.len);
    match (old.disk_offset, new.disk_offset) {
        (None, None) => Ok(len),
        (Some(left), Some(right)) if before.disk.chunk_size() == after.disk.chunk_size() => {
            let size = before.disk.chunk_size();
            let within = left % size.bytes_u64();
            if within != right % size.bytes_u64() {
                return Ok(0);
            }
            let id = |side: &Side, offset: u64| {
                let chunk = ChunkIndex::containing(offset, size);
                side.disk.chunk_id(chunk).map_err(|source| FilesError::Disk { offset, source })
            };
            let is_same = id(before, left)? == id(after, right)?;
            Ok(if is_same { len.min(size.bytes_u64() - within) } else { 0 })
        }
        _ => Ok(0),
    }
}

/// Where a byte of a file lies, and how many after it follow there.
struct Place {
    disk_offset: Option<u64>,
    len: u64,
}

/// `None` when only reading tells.
fn place(side: &Side, inode: &Inode, at: u64) -> Result<Option<Place>, FilesError> {
    let Some(run) = side.fs.run_in_place(inode, at)? else { return Ok(None) };
    let block_bytes = side.fs.block_bytes();
    let within = at % block_bytes;
    let len = run.blocks.saturating_mul(block_bytes) - within;
    let start = side.fs.area().start;
    let disk_offset = run.physical.map(|physical| start + physical * block_bytes + within);
    Ok(Some(Place { disk_offset, len }))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io;
    use std::ops::Range;
    use std::sync::atomic::{AtomicU64, Ordering as Order};

    use chunk_format::{ChunkId, ChunkSize};

    use super::*;
    use crate::files::ext4::tests::Made;
    use crate::image::DiskImage;

    /// A disk that knows its chunks, and counts what is read of it.
    struct Counted {
        image: Arc<dyn DiskImage>,
        read_bytes: AtomicU64,
    }

    impl DiskImage for Counted {
        fn size_bytes(&self) -> u64 {
            self.image.size_bytes()
        }

        fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
            self.image.data_ranges()
        }

        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
            self.read_bytes.fetch_add(buf.len() as u64, Order::Relaxed);
            self.image.read_at(buf, offset)
        }
    }

    impl ChunkedDisk for Counted {
        fn chunk_size(&self) -> ChunkSize {
            ChunkSize::DEFAULT
        }

        fn chunk_id(&self, chunk: ChunkIndex) -> io::Result<ChunkId> {
            let mut bytes = vec![0; 65_536];
            self.image.read_at(&mut bytes, chunk.offset_bytes(ChunkSize::DEFAULT))?;
            Ok(ChunkId::of_chunk(&bytes))
        }
    }

    fn side(made: &Made) -> (Side, Arc<Counted>) {
        let disk = Arc::new(Counted { image: made.image(), read_bytes: AtomicU64::new(0) });
        let image: Arc<dyn DiskImage> = disk.clone();
        let area = 0..image.size_bytes();
        let fs = Arc::new(FileSystem::open(image, area).unwrap().unwrap());
        (Side { fs, disk: disk.clone() }, disk)
    }

    fn told(difference: &Difference) -> Vec<(String, Fate, Vec<&'static str>)> {
        let told = difference.changes.iter();
        told.map(|change| (change.path.clone(), change.fate, change.what.clone())).collect()
    }

    #[test]
    fn files_are_told_by_path_and_equal_chunks_are_not_read() {
        let made = Made::new();
        let tree = made.tree();
        let noise: Vec<u8> =
            (0..8_u64 << 20).map(|at| ((at * 2_654_435_761) >> 13).to_le_bytes()[0]).collect();
        fs::create_dir_all(tree.join("d/e")).unwrap();
        fs::write(tree.join("large"), &noise).unwrap();
        fs::write(tree.join("d/gone"), "old").unwrap();
        fs::write(tree.join("d/e/same"), "same").unwrap();
        fs::write(tree.join("edited"), "before").unwrap();
        if !made.make(32 << 20, &["-b", "4096"]) {
            return;
        }
        let (before, _) = side(&made);
        // A second disk, changed in place.
        let other = Made::new();
        fs::copy(made.disk(), other.disk()).unwrap();
        let new = other.directory.path().join("new");
        fs::write(&new, "after!").unwrap();
        let new = new.display().to_string();
        other.debugfs(&format!(
            "rm /edited\nwrite {new} edited\ncd /d\nrm gone\nmkdir fresh\ncd fresh\nwrite {new} file\n\
             set_inode_field /d/e/same uid 1234\nset_inode_field /large mtime @77\n"
        ));
        let (after, counted) = side(&other);
        counted.read_bytes.store(0, Order::Relaxed);
        let difference = compare(Some(&before), Some(&after)).unwrap();
        assert_eq!(
            told(&difference),
            [
                ("/d/e/same".to_owned(), Fate::Changed, vec!["owner"]),
                ("/d/fresh".to_owned(), Fate::Added, vec![]),
                ("/d/fresh/file".to_owned(), Fate::Added, vec![]),
                ("/d/gone".to_owned(), Fate::Removed, vec![]),
                ("/edited".to_owned(), Fate::Changed, vec!["content"]),
            ]
        );
        assert!(difference.unreadable.is_empty());
        let read = counted.read_bytes.load(Order::Relaxed);
        assert!(read < 1 << 20, "{read} bytes read, though the large file lies in the same chunks");
        let all = compare(None, Some(&after)).unwrap();
        assert_eq!((all.added, all.changed, all.removed), (8, 0, 0), "{:?}", told(&all));
        assert!(compare(Some(&before), Some(&before)).unwrap().is_empty());
    }
}
