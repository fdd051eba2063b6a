//! Where the files of a disk lie, and which files lie at a place of it.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use super::{DiskFiles, Effort, FileKind, FileSystem, FilesError, Inode};

/// The longest path that is looked at: what Linux takes.
const MAX_PATH_BYTES: usize = 4096;
/// Names that are looked at: several times those of a full desktop.
const MAX_NAMES: usize = 2 << 20;
/// Pieces of files that are kept.
const MAX_PIECES: usize = 4 << 20;
/// The text of all paths, bytes.
const MAX_PATHS_BYTES: usize = 256 << 20;

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
    path: Arc<[u8]>,
    /// Where its inode lies on the disk, bytes.
    inode_offset: u64,
    /// Its pieces, in the order of the file.
    pieces: Range<usize>,
}

/// Where the files, directories and long links of a disk lie. A file of several names has the first of them. What cannot be read
/// is left out.
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
        let readable: Vec<_> = disk.readable().collect();
        for (found, fs) in &readable {
            // So that what two file systems of a disk call the same is two files.
            let root = if readable.len() > 1 { found.folder().into_bytes() } else { Vec::new() };
            walk.seen.clear();
            walk.tree(fs, root)?;
        }
        Ok(walk.places.in_order())
    }

    fn in_order(mut self) -> Self {
        self.by_place = (0..self.pieces.len()).collect();
        self.by_place.sort_by_key(|at| self.pieces[*at].place.start);
        self
    }

    /// The file with a path, which has no `/` in front.
    pub fn find_path(&self, path: &[u8]) -> Option<FileIndex> {
        self.by_path.get(path).copied()
    }

    /// The path of a file.
    pub fn path(&self, file: FileIndex) -> &[u8] {
        self.files.get(file.0).map_or(&[], |file| &file.path)
    }

    /// The paths of all files, in no order.
    pub fn paths(&self) -> impl Iterator<Item = (&[u8], FileIndex)> {
        self.by_path.iter().map(|(path, file)| (&**path, *file))
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
        self.pieces(file).iter().map(|piece| piece.place.end - piece.place.start).sum()
    }

    /// What of files lies at a place of the disk, in its order.
    pub fn at(&self, place: Range<u64>) -> Vec<Piece> {
        let pieces = |at: &usize| self.pieces.get(*at);
        // Pieces of a sound file system do not overlap; of another one some are not found.
        let first =
            self.by_place.partition_point(|at| pieces(at).is_some_and(|at| at.place.end <= place.start));
        let later = self.by_place.get(first..).unwrap_or(&[]);
        let here = later.iter().filter_map(pieces).take_while(|piece| piece.place.start < place.end);
        here.filter_map(|piece| piece.at(&place)).collect()
    }

    /// Where a part of a file lies.
    pub fn places_of(&self, file: FileIndex, part: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        self.pieces(file).iter().filter_map(move |piece| {
            let end = piece.offset + (piece.place.end - piece.place.start);
            let (from, to) = (piece.offset.max(part.start), end.min(part.end));
            let start = piece.place.start + from.checked_sub(piece.offset)?;
            (from < to).then(|| start..start + (to - from))
        })
    }
}

/// A way through all directories.
#[derive(Default)]
struct Walk {
    places: FilePlaces,
    /// Inodes of the file system at hand that have been seen.
    seen: HashSet<super::InodeNumber>,
    names: usize,
    paths_bytes: usize,
}

impl Walk {
    fn tree(&mut self, fs: &FileSystem, root: Vec<u8>) -> Result<(), FilesError> {
        let Some(inode) = readable(fs.root())? else { return Ok(()) };
        self.seen.insert(inode.number);
        self.add(fs, &inode, &root)?;
        let mut directories = vec![(root, inode)];
        while let Some((path, directory)) = directories.pop() {
            let Some(mut entries) = readable(fs.entries(&directory))? else { continue };
            self.names += entries.len();
            // Whichever name of a file comes first does so in the next version, too.
            entries.sort_by(|one, other| one.name.cmp(&other.name));
            for entry in entries {
                let len = path.len() + 1 + entry.name.len();
                if len > MAX_PATH_BYTES || !self.seen.insert(entry.inode) {
                    continue;
                }
                let Some(inode) = readable(fs.inode(entry.inode))? else { continue };
                let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                let path = [&path, separator, &entry.name].concat();
                self.add(fs, &inode, &path)?;
                if inode.kind == FileKind::Directory {
                    directories.push((path, inode));
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, fs: &FileSystem, inode: &Inode, path: &[u8]) -> Result<(), FilesError> {
        let begin = self.places.pieces.len();
        let file = FileIndex(self.places.files.len());
        if has_blocks(inode) && readable(self.add_pieces(fs, inode, file))?.is_none() {
            self.places.pieces.truncate(begin);
        }
        let Some(inode_offset) = readable(fs.inode_offset(inode.number))? else {
            self.places.pieces.truncate(begin);
            return Ok(());
        };
        self.paths_bytes += path.len();
        if self.names > MAX_NAMES
            || self.places.pieces.len() > MAX_PIECES
            || self.paths_bytes > MAX_PATHS_BYTES
        {
            return Err(FilesError::unsupported("it has too many files"));
        }
        let path: Arc<[u8]> = path.into();
        self.places.by_path.insert(Arc::clone(&path), file);
        self.places.files.push(PlacedFile { path, inode_offset, pieces: begin..self.places.pieces.len() });
        Ok(())
    }

    fn add_pieces(&mut self, fs: &FileSystem, inode: &Inode, file: FileIndex) -> Result<(), FilesError> {
        let block_bytes = fs.block_bytes();
        let blocks = inode.size_bytes.div_ceil(block_bytes);
        let mut effort = Effort::of(&[fs]);
        let mut logical = 0;
        while logical < blocks {
            let run = fs.run(inode, logical)?;
            let count = run.blocks.min(blocks - logical);
            if let Some(physical) = run.physical {
                effort.spend(inode, count.saturating_mul(block_bytes))?;
                let start = fs.area().start + physical * block_bytes;
                let place = start..start + count * block_bytes;
                self.places.pieces.push(Piece { file, offset: logical * block_bytes, place });
            } else {
                effort.spend(inode, block_bytes)?;
            }
            if self.places.pieces.len() > MAX_PIECES {
                return Err(FilesError::unsupported("it has too many pieces"));
            }
            logical += count;
        }
        Ok(())
    }
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
            places.files.push(PlacedFile { path, inode_offset, pieces });
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
                let file = places.find_path(path.as_bytes()).unwrap();
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
            let sparse = places.find_path(b"sparse").unwrap();
            assert!(places.bytes(sparse) < 64 << 10, "{}", places.bytes(sparse));
            assert!(places.find_path(b"usr/second").is_none(), "a file has one path");
            assert!(places.pieces(places.find_path(b"link").unwrap()).is_empty());
            assert_eq!(places.pieces(places.find_path(b"long-link").unwrap()).len(), 1);
            assert_eq!(places.pieces(places.find_path(b"usr/lib").unwrap()).len(), 1);
            let long = places.find_path(b"usr/lib/long").unwrap();
            let part: u64 =
                places.places_of(long, 100_000..200_000).map(|place| place.end - place.start).sum();
            assert_eq!(part, 100_000);
        }
    }
}
