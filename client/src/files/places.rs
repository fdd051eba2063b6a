//! Where the files of a disk lie, and which files lie at a place of it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::{DiskFiles, FileKind, FileSystem, FilesError, Inode, InodeNumber};

/// The longest path that is looked at: what Linux takes.
const MAX_PATH_BYTES: usize = 4096;
/// Names that are looked at: several times those of a full desktop.
const MAX_NAMES: usize = 2 << 20;
/// Pieces of files that are kept.
const MAX_PIECES: usize = 4 << 20;
/// The text of all paths, bytes.
const MAX_PATHS_BYTES: usize = 256 << 20;
/// Runs of blocks and blocks of directories that are looked at.
const MAX_STEPS: usize = 8 << 20;

/// A file of a [`FilePlaces`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIndex(usize);

/// Bytes of a file that follow one another on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The file.
    pub file: FileIndex,
    /// The first of them, counted from the beginning of the file.
    pub offset: u64,
    /// Where they lie on the disk, bytes; whole blocks, so that the last one may reach past the file's end.
    pub place: Range<u64>,
}

impl Piece {
    /// What of it lies at a place.
    fn at(&self, place: &Range<u64>) -> Option<Self> {
        let (start, end) = (self.place.start.max(place.start), self.place.end.min(place.end));
        let offset = self.offset + start.checked_sub(self.place.start)?;
        (start < end).then_some(Self { file: self.file, offset, place: start..end })
    }
}

struct PlacedFile {
    /// Its first name.
    path: Arc<[u8]>,
    /// Where its inode lies on the disk, bytes.
    inode_offset: u64,
    /// Its pieces, in the order of the file.
    pieces: Range<usize>,
    /// Bytes of all of them.
    bytes: u64,
}

/// Where the files, directories and long links of a disk lie. What cannot be read is left out.
#[derive(Default)]
pub struct FilePlaces {
    files: Vec<PlacedFile>,
    by_path: HashMap<Arc<[u8]>, FileIndex>,
    /// In the order of the files.
    pieces: Vec<Piece>,
    /// The pieces in the order of the disk.
    by_place: Vec<usize>,
}

impl FilePlaces {
    /// Looks at all files of a disk. To be called where waiting for what must be fetched is fine.
    ///
    /// # Errors
    /// `Disk`; `Unsupported` when there are more files than anyone keeps.
    pub fn find(disk: &DiskFiles) -> Result<Self, FilesError> {
        let mut walk = Walk::default();
        for (found, fs) in disk.readable() {
            walk.tree(fs, found.folder().into_bytes())?;
        }
        Ok(walk.places.in_order())
    }

    fn in_order(mut self) -> Self {
        self.by_place = (0..self.pieces.len()).collect();
        self.by_place.sort_by_key(|at| self.pieces[*at].place.start);
        // Of those that overlap, as in no sound file system, the first counts.
        let mut end = 0;
        self.by_place.retain(|at| {
            let place = &self.pieces[*at].place;
            let is_behind = place.start >= end;
            end = end.max(place.end);
            is_behind
        });
        self
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// The file with a path: the folder of its file system ([`FoundFileSystem::folder`](super::FoundFileSystem::folder)), `/` and any of its
    /// names there.
    pub fn find_path(&self, path: &[u8]) -> Option<FileIndex> {
        self.by_path.get(path).copied()
    }

    /// The path of a file, by its first name.
    pub fn path(&self, file: FileIndex) -> &[u8] {
        self.files.get(file.0).map_or(&[], |file| &file.path)
    }

    /// All paths, in no order.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.by_path.keys().map(|path| &**path)
    }

    /// Where a file's inode lies on the disk, bytes.
    pub fn inode_offset(&self, file: FileIndex) -> Option<u64> {
        self.files.get(file.0).map(|file| file.inode_offset)
    }

    /// All pieces of a file, in its order.
    pub fn pieces(&self, file: FileIndex) -> &[Piece] {
        self.files.get(file.0).and_then(|file| self.pieces.get(file.pieces.clone())).unwrap_or(&[])
    }

    /// Bytes of a file's pieces.
    pub fn bytes(&self, file: FileIndex) -> u64 {
        self.files.get(file.0).map_or(0, |file| file.bytes)
    }

    /// What of files lies at a place of the disk, in its order.
    pub fn at(&self, place: Range<u64>) -> Vec<Piece> {
        let pieces = |at: &usize| self.pieces.get(*at);
        let first =
            self.by_place.partition_point(|at| pieces(at).is_some_and(|at| at.place.end <= place.start));
        let later = self.by_place.get(first..).unwrap_or(&[]);
        let here = later.iter().filter_map(pieces).take_while(|piece| piece.place.start < place.end);
        here.filter_map(|piece| piece.at(&place)).collect()
    }

    /// Where a part of a file lies.
    pub fn places_of(&self, file: FileIndex, part: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let end = |piece: &Piece| piece.offset + (piece.place.end - piece.place.start);
        let pieces = self.pieces(file);
        let first = pieces.partition_point(|piece| end(piece) <= part.start);
        let later = pieces.get(first..).unwrap_or(&[]).iter();
        later.take_while(move |piece| piece.offset < part.end).filter_map(move |piece| {
            let (from, to) = (piece.offset.max(part.start), end(piece).min(part.end));
            let start = piece.place.start + from.checked_sub(piece.offset)?;
            (from < to).then_some(start..start + to.checked_sub(from)?)
        })
    }
}

/// A way through all directories.
#[derive(Default)]
struct Walk {
    places: FilePlaces,
    names: usize,
    paths_bytes: usize,
    steps: usize,
}

impl Walk {
    fn tree(&mut self, fs: &FileSystem, root: Vec<u8>) -> Result<(), FilesError> {
        let Some(inode) = readable(fs.root())? else { return Ok(()) };
        // What was found of inodes.
        let mut seen: HashMap<InodeNumber, Option<FileIndex>> = HashMap::new();
        let file = self.add(fs, &inode, &root)?;
        seen.insert(inode.number, file);
        let mut directories = vec![(root, inode)];
        while let Some((path, directory)) = directories.pop() {
            let blocks = directory.size_bytes / fs.block_bytes();
            self.step(usize::try_from(blocks).unwrap_or(usize::MAX))?;
            let Some(mut entries) = readable(fs.entries(&directory))? else { continue };
            self.names += entries.len();
            check(self.names, MAX_NAMES)?;
            // So that of a file's names mostly the same comes first in the next version.
            entries.sort_by(|one, other| one.name.cmp(&other.name));
            for entry in entries {
                if path.len() + 1 + entry.name.len() > MAX_PATH_BYTES {
                    continue;
                }
                let path = [&path, &b"/"[..], &entry.name].concat();
                if let Some(file) = seen.get(&entry.inode) {
                    if let Some(file) = *file {
                        self.name(file, path.into())?;
                    }
                    continue;
                }
                seen.insert(entry.inode, None);
                let Some(inode) = readable(fs.inode(entry.inode))? else { continue };
                let file = self.add(fs, &inode, &path)?;
                seen.insert(entry.inode, file);
                if inode.kind == FileKind::Directory {
                    directories.push((path, inode));
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, fs: &FileSystem, inode: &Inode, path: &[u8]) -> Result<Option<FileIndex>, FilesError> {
        let begin = self.places.pieces.len();
        let file = FileIndex(self.places.files.len());
        if has_blocks(inode) && readable(self.add_pieces(fs, inode, file))?.is_none() {
            self.places.pieces.truncate(begin);
        }
        check(self.places.pieces.len(), MAX_PIECES)?;
        self.step(1)?;
        let Some(inode_offset) = readable(fs.inode_offset(inode.number))? else {
            self.places.pieces.truncate(begin);
            return Ok(None);
        };
        let path: Arc<[u8]> = path.into();
        let pieces = begin..self.places.pieces.len();
        let added = self.places.pieces.get(pieces.clone()).unwrap_or(&[]);
        let bytes = added.iter().map(|piece| piece.place.end - piece.place.start).sum();
        self.places.files.push(PlacedFile { path: Arc::clone(&path), inode_offset, pieces, bytes });
        self.name(file, path)?;
        Ok(Some(file))
    }

    fn name(&mut self, file: FileIndex, path: Arc<[u8]>) -> Result<(), FilesError> {
        self.paths_bytes += path.len();
        check(self.paths_bytes, MAX_PATHS_BYTES)?;
        self.places.by_path.insert(path, file);
        Ok(())
    }

    fn step(&mut self, steps: usize) -> Result<(), FilesError> {
        self.steps = self.steps.saturating_add(steps);
        check(self.steps, MAX_STEPS)
    }

    /// Adds the pieces of a file, at most one more than there may be in all.
    fn add_pieces(&mut self, fs: &FileSystem, inode: &Inode, file: FileIndex) -> Result<(), FilesError> {
        let block_bytes = fs.block_bytes();
        let blocks = inode.size_bytes.div_ceil(block_bytes);
        let mut logical = 0;
        while logical < blocks && self.places.pieces.len() <= MAX_PIECES && self.steps <= MAX_STEPS {
            self.steps += 1;
            let run = fs.run(inode, logical)?;
            let count = run.blocks.min(blocks - logical);
            if let Some(physical) = run.physical {
                let start = fs.area().start + physical * block_bytes;
                let place = start..start + count * block_bytes;
                self.places.pieces.push(Piece { file, offset: logical * block_bytes, place });
            }
            logical += count;
        }
        Ok(())
    }
}

fn check(found: usize, most: usize) -> Result<(), FilesError> {
    if found > most { Err(FilesError::unsupported("it has too many files")) } else { Ok(()) }
}

/// Whether a file's bytes are in blocks of their own.
fn has_blocks(inode: &Inode) -> bool {
    /// Links as long as this have a block.
    const LONG_LINK_BYTES: u64 = 60;
    match inode.kind {
        FileKind::File | FileKind::Directory => inode.allocated_bytes > 0,
        FileKind::Symlink => inode.size_bytes >= LONG_LINK_BYTES,
        _ => false,
    }
}

/// What is damaged or unknown is left out; a disk that cannot be read is an error.
fn readable<T>(result: Result<T, FilesError>) -> Result<Option<T>, FilesError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error @ FilesError::Disk { .. }) => Err(error),
        Err(error) => {
            tracing::debug!(%error, "a file is not looked for");
            Ok(None)
        }
    }
}

#[cfg(test)]
impl FilePlaces {
    /// Of files with these paths, inodes and pieces.
    pub(crate) fn of(files: &[(&str, u64, &[Range<u64>])]) -> Self {
        let mut places = Self::default();
        for (path, inode_offset, pieces) in files {
            let (file, begin) = (FileIndex(places.files.len()), places.pieces.len());
            let mut offset = 0;
            for place in *pieces {
                places.pieces.push(Piece { file, offset, place: place.clone() });
                offset += place.end - place.start;
            }
            let path: Arc<[u8]> = path.as_bytes().into();
            places.by_path.insert(Arc::clone(&path), file);
            let (inode_offset, pieces) = (*inode_offset, begin..places.pieces.len());
            places.files.push(PlacedFile { path, inode_offset, pieces, bytes: offset });
        }
        places.in_order()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt, symlink};

    use chunk_format::DiskRole;

    use super::super::ext4::tests::Made;
    use super::*;

    #[test]
    fn files_lie_where_they_are_said_to() {
        let made = Made::new();
        let tree = made.tree();
        std::fs::create_dir_all(tree.join("usr/lib")).unwrap();
        let content = |seed: u8, len: usize| -> Vec<u8> {
            (0..len).map(|at| seed.wrapping_add((at / 7 + at % 251).to_le_bytes()[0])).collect()
        };
        let files = [("usr/lib/long", 300_000), ("usr/lib/short", 10), ("first", 4096)];
        for (seed, (path, len)) in (1..).zip(files) {
            std::fs::write(tree.join(path), content(seed, len)).unwrap();
        }
        let sparse = File::create(tree.join("sparse")).unwrap();
        sparse.write_all_at(&content(9, 5000), 1 << 20).unwrap();
        std::fs::hard_link(tree.join("first"), tree.join("usr/second")).unwrap();
        symlink("short", tree.join("link")).unwrap();
        symlink("x/".repeat(100), tree.join("long-link")).unwrap();
        for options in [&["-b", "4096"][..], &["-b", "1024", "-O", "^extents,^64bit"]] {
            if !made.make(16 << 20, options) {
                eprintln!("SKIPPED: mkfs.ext4 is not there");
                return;
            }
            let disk = made.image();
            let places = FilePlaces::find(&DiskFiles::find(DiskRole::System, &disk).unwrap()).unwrap();
            for path in files.map(|(path, _)| path).into_iter().chain(["sparse"]) {
                let expected = std::fs::read(tree.join(path)).unwrap();
                let file = places.find_path(format!("p0/{path}").as_bytes()).unwrap();
                let mut found = vec![0; expected.len().next_multiple_of(4096)];
                for piece in places.pieces(file) {
                    let from = usize::try_from(piece.offset).unwrap();
                    let len = usize::try_from(piece.place.end - piece.place.start).unwrap();
                    disk.read_at(&mut found[from..from + len], piece.place.start).unwrap();
                    assert_eq!(places.at(piece.place.clone()), std::slice::from_ref(piece));
                    let inside = places.at(piece.place.start + 5..piece.place.start + 6);
                    assert_eq!(inside.len(), 1);
                    assert_eq!((inside[0].file, inside[0].offset), (file, piece.offset + 5));
                }
                assert!(found[..expected.len()] == expected, "{path}");
                // Its size is in the inode (Linux, Documentation/filesystems/ext4/inodes.rst).
                let mut size = [0; 4];
                disk.read_at(&mut size, places.inode_offset(file).unwrap() + 4).unwrap();
                assert_eq!(u64::from(u32::from_le_bytes(size)), tree.join(path).metadata().unwrap().size());
            }
            let sparse = places.find_path(b"p0/sparse").unwrap();
            assert!(places.bytes(sparse) < 64 << 10, "{}", places.bytes(sparse));
            let second = places.find_path(b"p0/usr/second");
            assert_eq!(second, places.find_path(b"p0/first"), "one file");
            assert_eq!(places.path(second.unwrap()), b"p0/first");
            assert!(places.pieces(places.find_path(b"p0/link").unwrap()).is_empty());
            assert_eq!(places.pieces(places.find_path(b"p0/long-link").unwrap()).len(), 1);
            assert_eq!(places.pieces(places.find_path(b"p0/usr/lib").unwrap()).len(), 1);
            let long = places.find_path(b"p0/usr/lib/long").unwrap();
            let part: u64 =
                places.places_of(long, 100_000..200_000).map(|place| place.end - place.start).sum();
            assert_eq!(part, 100_000);
        }
    }
    #[test]
    fn a_damaged_file_system_is_walked_through_without_harm() {
        let made = Made::new();
        for number in 0..40 {
            let directory = made.tree().join(format!("directory-{}", number % 4));
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join(format!("file-{number}")), vec![7; number * 1000]).unwrap();
        }
        if !made.make(4 << 20, &["-b", "1024", "-N", "128"]) {
            eprintln!("SKIPPED: mkfs.ext4 is not there");
            return;
        }
        let good = std::fs::read(made.disk()).unwrap();
        // The metadata is at the beginning, but for directories.
        let mut state = 1_u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).unwrap() % below
        };
        let file = File::options().write(true).open(made.disk()).unwrap();
        let (mut found_files, rounds) = (0, 400);
        for _ in 0..rounds {
            file.write_all_at(&good, 0).unwrap();
            for _ in 0..20 {
                let at = random(good.len() / 4);
                file.write_all_at(&[random(256).to_le_bytes()[0]], at as u64).unwrap();
            }
            let disk = made.image();
            let Ok(places) =
                DiskFiles::find(DiskRole::System, &disk).and_then(|disk| FilePlaces::find(&disk))
            else {
                continue;
            };
            found_files += places.files.len();
            let all = places.at(0..u64::MAX);
            assert!(all.iter().all(|piece| piece.place.start < piece.place.end));
            assert!(all.windows(2).all(|pair| pair[0].place.end <= pair[1].place.start));
            assert!(all.last().is_none_or(|piece| piece.place.end <= good.len() as u64));
        }
        assert!(found_files > 10 * rounds, "{found_files}: most of what is tried is not looked at");
    }
}
