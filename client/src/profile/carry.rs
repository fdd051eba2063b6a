//! What a start of a version will read, by what a start of the version before read.
//!
//! A chunk that is the same in both versions is read again, wherever it is now. Of one that is not, the files that lay in it are
//! looked for by their names: an update writes them anew, elsewhere. What belongs to no file stays where it is.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use chunk_format::{ChunkId, ChunkIndex};

use super::successors::Successors;
use crate::files::places::{FileIndex, FilePlaces, Piece};

/// One disk of a version.
#[derive(Default)]
pub(super) struct VersionDisk {
    /// The stored chunks, and where they are.
    pub(super) chunks: HashMap<ChunkIndex, ChunkId>,
    /// Where each of them is first.
    pub(super) places: HashMap<ChunkId, ChunkIndex>,
    /// Its files; nothing where they cannot be told.
    pub(super) files: FilePlaces,
    pub(super) chunk_bytes: u64,
}

impl VersionDisk {
    pub(super) fn new(chunks: Vec<(ChunkIndex, ChunkId)>, chunk_bytes: u64) -> Self {
        let mut places = HashMap::new();
        for (chunk, id) in &chunks {
            places.entry(*id).or_insert(*chunk);
        }
        Self { chunks: chunks.into_iter().collect(), places, files: FilePlaces::default(), chunk_bytes }
    }

    fn place(&self, chunk: ChunkIndex) -> Range<u64> {
        let start = chunk.0.saturating_mul(self.chunk_bytes);
        start..start.saturating_add(self.chunk_bytes)
    }

    fn chunks_of(&self, place: Range<u64>) -> impl Iterator<Item = ChunkIndex> {
        (place.start / self.chunk_bytes..place.end.div_ceil(self.chunk_bytes)).map(ChunkIndex)
    }
}

/// Follows a profile from one version to the next, on one disk.
pub(super) struct Carrying<'a> {
    old: &'a VersionDisk,
    new: &'a VersionDisk,
    successors: Successors<'a>,
    /// How much of the old version's files is in chunks that were read.
    read_bytes: HashMap<FileIndex, u64>,
    /// Files of the new version that are named as a whole.
    whole: HashSet<FileIndex>,
    named: HashSet<ChunkIndex>,
    /// What was named and not taken yet.
    carried: Vec<ChunkIndex>,
}

impl<'a> Carrying<'a> {
    /// For all the chunks of the disk that a start of the old version read.
    pub(super) fn new(read: &[ChunkIndex], old: &'a VersionDisk, new: &'a VersionDisk) -> Self {
        let mut read_bytes: HashMap<FileIndex, u64> = HashMap::new();
        for piece in read.iter().flat_map(|chunk| old.files.at(old.place(*chunk))) {
            *read_bytes.entry(piece.file).or_default() += len(&piece.place);
        }
        let successors = Successors::new(&old.files, &new.files);
        let (whole, named, carried) = (HashSet::new(), HashSet::new(), Vec::new());
        Self { old, new, successors, read_bytes, whole, named, carried }
    }

    /// What a start reads, in this order, where one of the version before read a chunk; without what was answered before.
    pub(super) fn follow(&mut self, chunk: ChunkIndex) -> Vec<ChunkIndex> {
        self.chunk(chunk);
        std::mem::take(&mut self.carried)
    }

    fn chunk(&mut self, chunk: ChunkIndex) {
        let id = self.old.chunks.get(&chunk);
        let same = id.filter(|id| self.new.chunks.get(&chunk) == Some(*id)).map(|_| chunk);
        let same = same.or_else(|| self.new.places.get(id?).copied());
        let pieces = self.old.files.at(self.old.place(chunk));
        let successors: Vec<Option<FileIndex>> =
            pieces.iter().map(|piece| self.successors.of(piece.file)).collect();
        // The old kernel, say: its chunks are there still, and nobody reads them.
        let is_left = !pieces.is_empty() && successors.iter().all(Option::is_some);
        if !is_left {
            match same {
                Some(same) => self.name(same),
                None if self.stays(chunk, &pieces) => self.name(chunk),
                None => {}
            }
        }
        for (piece, successor) in pieces.iter().zip(successors) {
            let is_here = same.is_some() && !is_left;
            let file = match successor {
                // Others in the chunk may have been what was read.
                Some(_) if is_here && !self.is_read(piece.file, 1, 2) => continue,
                Some(successor) => successor,
                None if is_here => continue,
                None => match self.new.files.find_path(self.old.files.path(piece.file)) {
                    Some(file) => file,
                    None => continue,
                },
            };
            self.file(file, piece);
        }
    }

    /// Whether what was read of a chunk that has changed is still in the same place: a file, or what belongs to none.
    fn stays(&self, chunk: ChunkIndex, pieces: &[Piece]) -> bool {
        let of_files: u64 = pieces.iter().map(|piece| len(&piece.place)).sum();
        if of_files * 2 < self.old.chunk_bytes {
            return true;
        }
        let here = self.new.place(chunk);
        pieces.iter().any(|piece| {
            let file = self.new.files.find_path(self.old.files.path(piece.file));
            let mut places = file.into_iter().flat_map(|file| self.new.files.places_of(file, part(piece)));
            places.any(|place| place.start < here.end && here.start < place.end)
        })
    }

    /// Whether so much of a file of the old version is in chunks that were read.
    fn is_read(&self, file: FileIndex, numerator: u64, denominator: u64) -> bool {
        let read = self.read_bytes.get(&file).copied().unwrap_or(0);
        read.saturating_mul(denominator) >= self.old.files.bytes(file).saturating_mul(numerator)
    }

    /// Names what a start reads of a file, when one of the version before read a piece of the old one.
    fn file(&mut self, file: FileIndex, piece: &Piece) {
        let inode = self.new.files.inode_offset(file);
        if let Some(inode) = inode {
            self.name(ChunkIndex(inode / self.new.chunk_bytes));
        }
        let is_long = self.old.files.bytes(piece.file) > self.old.chunk_bytes;
        // What was read as a whole is again, also where it has become longer.
        let part = match is_long && self.is_read(piece.file, 9, 10) {
            true if !self.whole.insert(file) => return,
            true => 0..u64::MAX,
            false => part(piece),
        };
        let places: Vec<Range<u64>> = self.new.files.places_of(file, part).collect();
        for place in places {
            for chunk in self.new.chunks_of(place) {
                self.name(chunk);
            }
        }
    }

    /// Names a chunk, unless it is one of zeros.
    fn name(&mut self, chunk: ChunkIndex) {
        if self.new.chunks.contains_key(&chunk) && self.named.insert(chunk) {
            self.carried.push(chunk);
        }
    }
}

/// Which part of its file a piece is.
fn part(piece: &Piece) -> Range<u64> {
    piece.offset..piece.offset.saturating_add(len(&piece.place))
}

fn len(place: &Range<u64>) -> u64 {
    place.end - place.start
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK_BYTES: u64 = 64 << 10;

    /// A disk with these contents in its chunks, a letter each; a space is a chunk of zeros.
    fn disk(contents: &str, files: &[(&str, u64, &[Range<u64>])]) -> VersionDisk {
        let stored = (0..).map(ChunkIndex).zip(contents.bytes()).filter(|(_, content)| *content != b' ');
        let stored = stored.map(|(chunk, content)| (chunk, ChunkId::of(&[content]))).collect();
        VersionDisk { files: FilePlaces::of(files), ..VersionDisk::new(stored, CHUNK_BYTES) }
    }

    fn kib(from: u64, to: u64) -> Range<u64> {
        from << 10..to << 10
    }

    /// What a profile becomes: the contents of the new version's chunks.
    fn carried(read: &[u64], old: &VersionDisk, new: &VersionDisk) -> Vec<u64> {
        let read: Vec<ChunkIndex> = read.iter().map(|chunk| ChunkIndex(*chunk)).collect();
        let mut carrying = Carrying::new(&read, old, new);
        read.iter().flat_map(|chunk| carrying.follow(*chunk)).map(|chunk| chunk.0).collect()
    }

    #[test]
    fn without_files_a_chunk_is_where_it_went_or_what_is_in_its_place() {
        let (old, new) = (disk("abcde", &[]), disk("axdf c", &[]));
        assert_eq!(carried(&[2, 0, 1, 3, 4], &old, &new), [5, 0, 1, 2], "the last one is of zeros now");
        assert!(carried(&[9], &old, &new).is_empty(), "it was never stored");
    }

    #[test]
    fn a_file_that_was_written_anew_is_followed_and_its_old_place_is_not() {
        let old = disk(
            "mabxyz",
            &[("lib", 0, &[kib(64, 192)]), ("beside", 0, &[kib(192, 256)]), ("other", 0, &[kib(256, 320)])],
        );
        // Its inode, in chunk 0, has changed with it; what took its place belongs to nobody who was read.
        let new = disk(
            "MnoxyzAB",
            &[("lib", 0, &[kib(384, 512)]), ("beside", 0, &[kib(192, 256)]), ("new", 0, &[kib(64, 192)])],
        );
        assert_eq!(carried(&[0, 1, 2, 3], &old, &new), [0, 6, 7, 3]);
        // Only a part of it was read, and nobody knows of its inode.
        assert_eq!(carried(&[2], &old, &new), [0, 7]);
    }

    #[test]
    fn the_new_kernel_is_read_in_whole_and_the_old_one_is_not() {
        let kernel = ("boot/vmlinuz-6.1-50", 0, &[kib(64, 192)][..]);
        let notes = ("notes", 0, &[kib(192, 256)][..]);
        let old = disk("mabc", &[kernel, notes]);
        let new = disk(
            "mabc  ABC",
            &[kernel, notes, ("boot/vmlinuz-6.1-57", kib(0, 64).end - 256, &[kib(384, 576)])],
        );
        assert_eq!(carried(&[1, 2, 3], &old, &new), [0, 6, 7, 8, 3]);
        // It was hardly read: by somebody else than who starts it, perhaps, so that only what was read is.
        let long = ("boot/vmlinuz-6.1-50", 0, &[kib(64, 640)][..]);
        let (old, new) = (
            disk("mabcdefghi", &[long]),
            disk("mabcdefghiABCDEFGHI", &[long, ("boot/vmlinuz-6.1-57", 0, &[kib(640, 1216)])]),
        );
        assert_eq!(carried(&[2], &old, &new), [0, 11]);
    }

    #[test]
    fn what_a_kernel_shares_a_chunk_with_is_read_where_it_is() {
        let config = ("boot/config-6.1-50", 0, &[kib(0, 16)][..]);
        let other = ("etc/fstab", 0, &[kib(16, 64)][..]);
        let next = ("boot/config-6.1-57", kib(128, 192).start, &[kib(64, 80)][..]);
        let (old, new) = (disk("a", &[config, other]), disk("abc", &[config, other, next]));
        // Both were read.
        assert_eq!(carried(&[0], &old, &new), [0, 2, 1]);
        let large = ("boot/config-6.1-50", 0, &[kib(0, 16), kib(64, 128)][..]);
        let (old, new) = (disk("ab", &[large, other]), disk("abcd", &[large, other, next]));
        // Of the larger one a small part was: the other one, more likely.
        assert_eq!(carried(&[0], &old, &new), [0]);
    }

    #[test]
    fn files_that_share_a_changed_chunk_are_all_followed() {
        let old =
            disk("a", &[("one", 0, &[kib(0, 16)]), ("two", 0, &[kib(16, 48)]), ("gone", 0, &[kib(48, 64)])]);
        let new = disk("xyz", &[("one", 0, &[kib(64, 80)]), ("two", 0, &[kib(128, 160)])]);
        // The first is where the inodes are.
        assert_eq!(carried(&[0], &old, &new), [0, 1, 2]);
        let new = disk(
            "xyz",
            &[("one", kib(64, 128).start, &[kib(0, 16)]), ("two", kib(64, 128).start, &[kib(128, 160)])],
        );
        assert_eq!(carried(&[0], &old, &new), [0, 1, 2], "one of them stays");
    }
}
