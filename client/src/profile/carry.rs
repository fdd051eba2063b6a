//! What a start of a version will read, by what a start of the version before read.
//!
//! A chunk that is the same in both versions is read again, wherever it is now. Of one that is not, the files that lay in it are
//! looked for by their names: an update writes them anew, elsewhere. What belongs to no file stays where it is.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use chunk_format::{ChunkId, ChunkIndex};

use super::successors::{Fate, Successors};
use crate::files::places::{FileIndex, FilePlaces, Piece};

/// How many times as much as of a file of the old version is named of the one that is read instead.
const MOST_OF_A_FILE: u64 = 4;
/// How many chunks are named of files for each one that was read, at most.
const MOST_FOR_EACH: usize = 2;

/// One disk of a version.
pub(super) struct VersionDisk {
    /// The stored chunks.
    pub(super) chunks: HashMap<ChunkIndex, ChunkId>,
    /// Its files; nothing where they cannot be told.
    pub(super) files: FilePlaces,
    pub(super) chunk_bytes: u64,
}

impl VersionDisk {
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
    /// Where each chunk of the new version is first.
    places: HashMap<ChunkId, ChunkIndex>,
    successors: Successors<'a>,
    /// How much of the old version's files is in chunks that were read.
    read_bytes: HashMap<FileIndex, u64>,
    /// Files of the new version that are named as a whole.
    whole: HashSet<FileIndex>,
    named: HashSet<ChunkIndex>,
    /// Chunks that may still be named of files.
    left: usize,
    /// What was named and not taken yet.
    carried: Vec<ChunkIndex>,
}

impl<'a> Carrying<'a> {
    /// For all the chunks of the disk that a start of the old version read.
    pub(super) fn new(read: &[ChunkIndex], old: &'a VersionDisk, new: &'a VersionDisk) -> Self {
        let mut places: HashMap<ChunkId, ChunkIndex> = HashMap::with_capacity(new.chunks.len());
        for (chunk, id) in &new.chunks {
            let first = places.entry(*id).or_insert(*chunk);
            *first = (*first).min(*chunk);
        }
        let mut read_bytes: HashMap<FileIndex, u64> = HashMap::new();
        for piece in read.iter().flat_map(|chunk| old.files.at(old.place(*chunk))) {
            *read_bytes.entry(piece.file).or_default() += len(&piece.place);
        }
        Self {
            old,
            new,
            places,
            successors: Successors::new(&old.files, &new.files),
            read_bytes,
            whole: HashSet::new(),
            named: HashSet::new(),
            left: read.len().saturating_mul(MOST_FOR_EACH),
            carried: Vec::new(),
        }
    }

    /// What a start reads, in this order, where one of the version before read a chunk; without what was answered before.
    pub(super) fn follow(&mut self, chunk: ChunkIndex) -> Vec<ChunkIndex> {
        let id = self.old.chunks.get(&chunk);
        let same = id.filter(|id| self.new.chunks.get(&chunk) == Some(*id)).map(|_| chunk);
        let same = same.or_else(|| self.places.get(id?).copied());
        let pieces = self.old.files.at(self.old.place(chunk));
        let fates: Vec<Fate> = pieces.iter().map(|piece| self.successors.of(piece.file)).collect();
        let of_files: u64 = pieces.iter().map(|piece| len(&piece.place)).sum();
        let is_of_files = of_files * 2 >= self.old.chunk_bytes;
        // Of the old kernel, say: its chunks are there still, and nobody reads them.
        let is_left = is_of_files && fates.iter().all(|fate| matches!(fate, Fate::Followed(_)));
        if !is_left {
            match same {
                Some(same) => self.name(same),
                None if !is_of_files || self.stays(chunk, &pieces, &fates) => self.name(chunk),
                None => {}
            }
        }
        let is_here = same.is_some() && !is_left;
        for (piece, fate) in pieces.iter().zip(fates) {
            match fate {
                Fate::Same(_) if is_here => {}
                // Others in the chunk may have been what was read.
                Fate::Followed(_) if is_here && !self.is_read(piece.file, 1, 2) => {}
                Fate::Same(file) | Fate::Followed(file) => self.file(file, piece),
                Fate::Gone => {}
            }
        }
        std::mem::take(&mut self.carried)
    }

    /// Whether one of the files in a chunk that has changed still has its part there.
    fn stays(&self, chunk: ChunkIndex, pieces: &[Piece], fates: &[Fate]) -> bool {
        let here = self.new.place(chunk);
        pieces.iter().zip(fates).any(|(piece, fate)| {
            let Fate::Same(file) = fate else { return false };
            let mut places = self.new.files.places_of(*file, part(piece));
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
        // What was read as a whole is again, also where it has become longer.
        let part = match self.is_read(piece.file, 9, 10) {
            true if !self.whole.insert(file) => return,
            true => 0..self.old.files.bytes(piece.file).saturating_mul(MOST_OF_A_FILE),
            false => part(piece),
        };
        let inode = self.new.files.inode_offset(file);
        let inode = inode.map(|inode| ChunkIndex(inode / self.new.chunk_bytes));
        let new = self.new;
        let content = new.files.places_of(file, part).flat_map(|place| new.chunks_of(place));
        for chunk in inode.into_iter().chain(content) {
            if self.left == 0 {
                return;
            }
            let before = self.carried.len();
            self.name(chunk);
            self.left -= self.carried.len() - before;
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
        let chunks = stored.map(|(chunk, content)| (chunk, ChunkId::of(&[content]))).collect();
        VersionDisk { chunks, files: FilePlaces::of(files), chunk_bytes: CHUNK_BYTES }
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
            &[
                ("p0/lib", 0, &[kib(64, 192)]),
                ("p0/beside", 0, &[kib(192, 256)]),
                ("p0/other", 0, &[kib(256, 320)]),
            ],
        );
        // Its inode, in chunk 0, has changed with it; what took its place belongs to nobody who was read.
        let new = disk(
            "MnoxyzAB",
            &[
                ("p0/lib", 0, &[kib(384, 512)]),
                ("p0/beside", 0, &[kib(192, 256)]),
                ("p0/new", 0, &[kib(64, 192)]),
            ],
        );
        assert_eq!(carried(&[0, 1, 2, 3], &old, &new), [0, 6, 7, 3]);
        // Only a part of it was read, and nobody knows of its inode.
        assert_eq!(carried(&[2], &old, &new), [0, 7]);
    }

    /// These say which kernels there are.
    const BEFORE: (&str, u64, &[Range<u64>]) = ("p0/boot/vmlinuz-6.1-50", 0, &[]);
    const AFTER: (&str, u64, &[Range<u64>]) = ("p0/boot/vmlinuz-6.1-57", 0, &[]);

    #[test]
    fn the_new_kernel_is_read_in_whole_and_the_old_one_is_not() {
        let kernel = ("p0/vmlinuz-6.1-50", 0, &[kib(64, 192)][..]);
        let notes = ("p0/notes", 0, &[kib(192, 256)][..]);
        let next = ("p0/vmlinuz-6.1-57", kib(0, 64).end - 256, &[kib(384, 576)][..]);
        let old = disk("mabc", &[BEFORE, kernel, notes]);
        let new = disk("mabc  ABC", &[BEFORE, kernel, notes, AFTER, next]);
        assert_eq!(carried(&[1, 2, 3], &old, &new), [0, 6, 7, 8, 3]);
        // It was hardly read: by somebody else than who starts it, perhaps, so that only what was read is.
        let long = ("p0/vmlinuz-6.1-50", 0, &[kib(64, 640)][..]);
        let (old, new) = (
            disk("mabcdefghi", &[BEFORE, long]),
            disk("mabcdefghiABCDEFGHI", &[BEFORE, long, AFTER, ("p0/vmlinuz-6.1-57", 0, &[kib(640, 1216)])]),
        );
        assert_eq!(carried(&[2], &old, &new), [0, 11]);
    }

    #[test]
    fn what_a_kernel_shares_a_chunk_with_is_read_where_it_is() {
        let config = ("p0/config-6.1-50", 0, &[kib(0, 16)][..]);
        let other = ("p0/etc/fstab", 0, &[kib(16, 64)][..]);
        let next = ("p0/config-6.1-57", kib(128, 192).start, &[kib(64, 80)][..]);
        let (old, new) = (
            disk("ad", &[BEFORE, config, other, ("p0/read", 0, &[kib(64, 128)])]),
            disk("abcd", &[BEFORE, config, other, AFTER, next]),
        );
        // Both were read.
        assert_eq!(carried(&[0, 1], &old, &new), [0, 2, 1, 3]);
        // Tables of the file system are beside it: they are read as before.
        let (old, new) = (disk("ad", &[BEFORE, config]), disk("abcd", &[BEFORE, config, AFTER, next]));
        assert_eq!(carried(&[0, 1], &old, &new), [0, 2, 1, 3]);
        let large = ("p0/config-6.1-50", 0, &[kib(0, 16), kib(64, 128)][..]);
        let (old, new) =
            (disk("ab", &[BEFORE, large, other]), disk("abcd", &[BEFORE, large, other, AFTER, next]));
        // Of the larger one a small part was: the other one, more likely.
        assert_eq!(carried(&[0], &old, &new), [0]);
    }

    #[test]
    fn files_that_share_a_changed_chunk_are_all_followed() {
        let old = disk(
            "ade",
            &[("p0/one", 0, &[kib(0, 16)]), ("p0/two", 0, &[kib(16, 48)]), ("p0/gone", 0, &[kib(48, 64)])],
        );
        let new = disk("xyzde", &[("p0/one", 0, &[kib(64, 80)]), ("p0/two", 0, &[kib(128, 160)])]);
        // The first is where the inodes are.
        assert_eq!(carried(&[0, 1, 2], &old, &new), [0, 1, 2, 3, 4]);
        let inode = kib(64, 128).start;
        let new = disk("xyzde", &[("p0/one", inode, &[kib(0, 16)]), ("p0/two", inode, &[kib(128, 160)])]);
        assert_eq!(carried(&[0, 1, 2], &old, &new), [0, 1, 2, 3, 4], "one of them stays");
    }

    #[test]
    fn a_file_that_has_become_huge_is_not_named_in_full() {
        let letters: String = ('A'..='Z').collect();
        let old = disk("mabcdefgh", &[("p0/log", 0, &[kib(64, 128)])]);
        let new = disk(&format!("m{letters}"), &[("p0/log", 0, &[kib(64, 64 + 20 * 64)])]);
        assert_eq!(carried(&[1, 2, 3, 4], &old, &new), [1, 0, 2, 3, 4]);
        assert_eq!(
            carried(&[1], &old, &new),
            [1, 0, 2],
            "twice as much as was read, and what is in its place"
        );
    }
}
