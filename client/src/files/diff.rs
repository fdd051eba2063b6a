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

use super::{
    DiskFiles, Effort, Entry, FileKind, FileSystem, FilesError, FoundFileSystem, Inode, InodeNumber, shown,
};
use crate::past::ChunkedDisk;

/// The deepest directory that is looked into.
const MAX_DEPTH: usize = 256;
/// The longest path that is looked at: what Linux takes.
const MAX_PATH_BYTES: usize = 4096;
/// Differences that are told one by one.
const MAX_CHANGES: usize = 1 << 20;
/// The text of all that is told, bytes.
const MAX_TOLD_BYTES: usize = 256 << 20;
/// Paths that are told when they cannot be compared.
const MAX_UNREADABLE: usize = 10_000;
/// Names that are looked at on either side: several times those of a full desktop.
const MAX_NAMES: usize = 16 << 20;
/// Names of the directories on the way to where the comparison is that are kept.
const MAX_HELD_NAMES: usize = 4 << 20;
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
    /// Paths that could not be compared, and why; no more than ten thousand.
    pub unreadable: Vec<String>,
}

impl Difference {
    /// Whether all is the same.
    pub fn is_empty(&self) -> bool {
        self.added + self.changed + self.removed == 0 && self.unreadable.is_empty()
    }
}

/// Compares two file systems; a missing side counts as empty. To be called where waiting for what must be fetched is
/// fine.
///
/// # Errors
/// `Disk`; what is damaged or cannot be read is told in the result.
pub fn compare(before: Option<&Side>, after: Option<&Side>) -> Result<Difference, FilesError> {
    compare_further(before, after, &mut 0)
}

/// Compares two file systems after so many bytes were told of others.
fn compare_further(
    before: Option<&Side>,
    after: Option<&Side>,
    told_bytes: &mut usize,
) -> Result<Difference, FilesError> {
    let mut walk = Walk { told_bytes: *told_bytes, ..Walk::default() };
    let root = |side: Option<&Side>| side.map(|side| side.fs.root()).transpose();
    let (old, new) = (root(before)?, root(after)?);
    let sides = Sides { before, after };
    walk.directories(&sides, &mut Vec::new(), old.as_ref(), new.as_ref(), 0)?;
    *told_bytes = walk.told_bytes;
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
    let (mut all, mut told_bytes) = (Difference::default(), 0);
    let numbers: BTreeSet<u32> = before.keys().chain(after.keys()).copied().collect();
    for number in numbers {
        let (before, after) = (before.remove(&number), after.remove(&number));
        let part = compare_further(before.as_ref(), after.as_ref(), &mut told_bytes)?;
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

/// What is in a directory, in the order of the names.
type Names = BTreeMap<Vec<u8>, InodeNumber>;

struct Sides<'a> {
    before: Option<&'a Side>,
    after: Option<&'a Side>,
}

#[derive(Default)]
struct Walk {
    difference: Difference,
    told_bytes: usize,
    /// Directories that were looked into, on either side: a directory has one name.
    seen: [HashSet<InodeNumber>; 2],
    /// Names that were looked at, on either side.
    names: [usize; 2],
    held_names: usize,
}

impl Walk {
    fn note(&mut self, change: Change) {
        let difference = &mut self.difference;
        match change.fate {
            Fate::Added => difference.added += 1,
            Fate::Changed => difference.changed += 1,
            Fate::Removed => difference.removed += 1,
        }
        if difference.changes.len() < MAX_CHANGES && self.told_bytes < MAX_TOLD_BYTES {
            self.told_bytes += change.path.len() + size_of::<Change>();
            difference.changes.push(change);
        }
    }

    fn pass_over(&mut self, path: &[u8], why: &str) {
        let unreadable = &mut self.difference.unreadable;
        if unreadable.len() < MAX_UNREADABLE {
            unreadable.push(format!("{}: {why}", shown(path)));
        }
    }

    /// Compares two directories of one path; at least one is there.
    fn directories(
        &mut self,
        sides: &Sides<'_>,
        path: &mut Vec<u8>,
        old: Option<&Inode>,
        new: Option<&Inode>,
        depth: usize,
    ) -> Result<(), FilesError> {
        if depth > MAX_DEPTH || path.len() > MAX_PATH_BYTES {
            self.pass_over(path, "too deep");
            return Ok(());
        }
        // Of what cannot be read it is not known what is gone or new.
        let Some(old) = self.names(0, sides.before, old, path)? else { return Ok(()) };
        let Some(new) = self.names(1, sides.after, new, path)? else { return Ok(()) };
        let held = old.len() + new.len();
        self.held_names += held;
        self.merge(sides, path, &old, &new, depth)?;
        self.held_names -= held;
        Ok(())
    }

    /// Compares what two directories have, name by name.
    fn merge(
        &mut self,
        sides: &Sides<'_>,
        path: &mut Vec<u8>,
        old: &Names,
        new: &Names,
        depth: usize,
    ) -> Result<(), FilesError> {
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

    /// A directory's names in order; none of one that is not there, and `None` of one that is passed over.
    fn names(
        &mut self,
        at: usize,
        side: Option<&Side>,
        directory: Option<&Inode>,
        path: &[u8],
    ) -> Result<Option<Names>, FilesError> {
        let (Some(side), Some(directory)) = (side, directory) else { return Ok(Some(Names::new())) };
        if !self.seen[at].insert(directory.number) {
            self.pass_over(path, "a directory in a circle");
            return Ok(None);
        }
        let Some(entries) = self.readable(path, side.fs.entries(directory))? else { return Ok(None) };
        self.names[at] += entries.len();
        if self.names[at] > MAX_NAMES || self.held_names + entries.len() > MAX_HELD_NAMES {
            self.pass_over(path, "too many files");
            return Ok(None);
        }
        Ok(Some(entries.into_iter().map(|Entry { name, inode, .. }| (name, inode)).collect()))
    }

    /// What is damaged is noted and passed over; a disk that cannot be read ends the comparison.
    fn readable<T>(&mut self, path: &[u8], result: Result<T, FilesError>) -> Result<Option<T>, FilesError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error @ FilesError::Disk { .. }) => Err(error),
            Err(error) => {
                self.pass_over(path, &error.to_string());
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
            self.note(Change {
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
    let mut effort = Effort::of(&[&before.fs, &after.fs]);
    let mut at = 0;
    while at < size {
        if let Some(Same { len, cost }) = same_chunks(before, old, after, new, at)? {
            effort.spend(new, cost)?;
            at = at.saturating_add(len);
            continue;
        }
        let step = STEP_BYTES.min(usize::try_from(size - at).unwrap_or(STEP_BYTES));
        // Up to the end of a block, so that the next step may be spared.
        let block_bytes =
            usize::try_from(before.fs.block_bytes().max(after.fs.block_bytes())).unwrap_or(STEP_BYTES);
        let step = step.min(block_bytes - usize::try_from(at).unwrap_or(0) % block_bytes);
        effort.spend(new, step as u64)?;
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

/// Bytes that two files have in common.
struct Same {
    /// How many.
    len: u64,
    /// What they count for an [`Effort`].
    cost: u64,
}

/// The bytes of two files from an offset on that are the same without looking: both zeros, or in the same chunks.
fn same_chunks(
    before: &Side,
    old: &Inode,
    after: &Side,
    new: &Inode,
    at: u64,
) -> Result<Option<Same>, FilesError> {
    let (Some(old), Some(new)) = (place(before, old, at)?, place(after, new, at)?) else { return Ok(None) };
    let len = old.len.min(new.len);
    match (old.disk_offset, new.disk_offset) {
        (None, None) => Ok(Some(Same { len, cost: len.min(after.fs.block_bytes()) })),
        (Some(left), Some(right)) if before.disk.chunk_size() == after.disk.chunk_size() => {
            let size = before.disk.chunk_size();
            let within = left % size.bytes_u64();
            if within != right % size.bytes_u64() {
                return Ok(None);
            }
            let id = |side: &Side, offset: u64| {
                let chunk = ChunkIndex::containing(offset, size);
                side.disk.chunk_id(chunk).map_err(|source| FilesError::Disk { offset, source })
            };
            let is_same = id(before, left)? == id(after, right)?;
            let len = len.min(size.bytes_u64() - within);
            Ok(is_same.then_some(Same { len, cost: len }))
        }
        _ => Ok(None),
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

    #[test]
    fn a_tree_without_end_and_a_file_without_end_are_passed_over() {
        let made = Made::new();
        fs::create_dir_all(made.tree().join(["d"; MAX_DEPTH + 9].join("/"))).unwrap();
        if !crate::files::ext4::tests::make_loop(&made) {
            return;
        }
        let (side, _) = side(&made);
        let difference = compare(Some(&side), Some(&side)).unwrap();
        assert!(difference.changes.is_empty());
        let [deep, long] = difference.unreadable.as_slice() else { panic!("{:?}", difference.unreadable) };
        assert!(deep.ends_with("/d: too deep"), "{deep}");
        assert!(long.starts_with("/loop: ") && long.ends_with("more bytes than its file system"), "{long}");
    }

    #[test]
    fn what_a_damaged_directory_has_is_neither_gone_nor_new() {
        let made = Made::new();
        fs::create_dir(made.tree().join("d")).unwrap();
        fs::write(made.tree().join("d/file"), "kept").unwrap();
        fs::write(made.tree().join("gone"), "gone").unwrap();
        if !made.make(16 << 20, &["-b", "4096"]) {
            return;
        }
        let (before, _) = side(&made);
        let other = Made::new();
        fs::copy(made.disk(), other.disk()).unwrap();
        other.debugfs("set_inode_field /d block[0] 0\nrm /gone\n");
        let (after, _) = side(&other);
        for (before, after, fate) in [(&before, &after, Fate::Removed), (&after, &before, Fate::Added)] {
            let difference = compare(Some(before), Some(after)).unwrap();
            let told: Vec<_> = told(&difference).into_iter().filter(|(path, ..)| path != "/d").collect();
            assert_eq!(told, [("/gone".to_owned(), fate, vec![])]);
            assert!(difference.unreadable[0].starts_with("/d: "), "{:?}", difference.unreadable);
        }
    }

    #[test]
    fn what_is_told_is_bounded() {
        let mut walk = Walk { told_bytes: MAX_TOLD_BYTES, ..Walk::default() };
        for number in 0..MAX_UNREADABLE + 1 {
            walk.pass_over(&number.to_le_bytes(), "damaged");
        }
        let (path, kind) = ("/a".to_owned(), "file");
        let (before_bytes, after_bytes, what) = (None, Some(1), Vec::new());
        walk.note(Change { path, fate: Fate::Added, kind, before_bytes, after_bytes, what });
        let difference = walk.difference;
        assert_eq!(difference.unreadable.len(), MAX_UNREADABLE);
        assert_eq!((difference.added, difference.changes.len()), (1, 0));
        assert!(!difference.is_empty());
    }
}
