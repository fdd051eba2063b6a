//! Disk content that a seed repeats, and comparisons that say where two disks part.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::seed::Rng;

/// The unit content is made in, bytes.
pub const BLOCK_BYTES: usize = 4096;

/// Blocks that share one kind of content: 32 KiB, so a chunk mixes kinds.
const RUN_BLOCKS: u64 = 8;

/// How many different blocks the repeated kind draws from.
const REPEATED_BLOCKS: u64 = 16;

/// Content of a disk of any size, every block computable on its own: a third zero, a third text that compresses well, a
/// quarter noise, the rest blocks that occur again and again, all in runs of 32 KiB. The first block has a partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    seed: u64,
}

impl Content {
    /// Names the content of `seed`.
    pub fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Returns block number `index`.
    pub fn block(&self, index: u64) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        if index == 0 {
            PARTITION_TABLE.iter().for_each(|(at, byte)| block[*at] = *byte);
            return block;
        }
        let kind = Rng::of_part(self.seed, index / RUN_BLOCKS).below(12);
        let mut rng = Rng::of_part(!self.seed, index);
        match kind {
            0..4 => {}
            4..8 => fill_with_text(&mut rng, &mut block),
            8..11 => rng.fill(&mut block),
            _ => Rng::of_part(self.seed, u64::MAX - rng.below(REPEATED_BLOCKS)).fill(&mut block),
        }
        block
    }

    /// Returns `len` bytes from `offset` on.
    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let block_bytes = BLOCK_BYTES as u64;
        let end = offset + len as u64;
        let mut bytes = Vec::with_capacity(len);
        for index in offset / block_bytes..end.div_ceil(block_bytes) {
            let start = index * block_bytes;
            let from = offset.saturating_sub(start).min(block_bytes);
            let to = (end - start).min(block_bytes);
            bytes.extend_from_slice(&self.block(index)[in_block(from)..in_block(to)]);
        }
        bytes
    }

    /// Makes `path` a sparse raw disk of `size_bytes`, a multiple of 4,096, with this content.
    pub fn write_to(&self, path: &Path, size_bytes: u64) {
        assert!(
            size_bytes.is_multiple_of(BLOCK_BYTES as u64),
            "a disk has whole blocks, not {size_bytes} bytes"
        );
        let disk =
            File::create(path).unwrap_or_else(|error| panic!("cannot create {}: {error}", path.display()));
        let written = disk.set_len(size_bytes).and_then(|()| {
            (0..size_bytes / BLOCK_BYTES as u64).try_for_each(|index| {
                let block = self.block(index);
                if block == [0; BLOCK_BYTES] {
                    return Ok(());
                }
                disk.write_all_at(&block, index * BLOCK_BYTES as u64)
            })
        });
        written.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    }

    /// Checks that `path` holds this content, all of it.
    ///
    /// # Panics
    /// Where it does not, with the first difference.
    #[track_caller]
    pub fn assert_in(&self, path: &Path) {
        let disk = Disk::open(path);
        let expected = |offset: u64, len: usize| self.bytes(offset, len);
        compare(&format!("the content of seed {}", self.seed), expected, &disk, disk.size_bytes);
    }
}

/// Marks a disk as one: an empty-looking partition table (MBR) with one partition, as tools that look for one expect.
const PARTITION_TABLE: [(usize, u8); 4] = [(450, 0x83), (454, 8), (510, 0x55), (511, 0xaa)];

/// Fills `block` with words and numbers, as logs and configuration have: about a fifth of its size compressed.
fn fill_with_text(rng: &mut Rng, block: &mut [u8]) {
    const WORDS: [&str; 16] = [
        "disk", "desktop", "started", "service", "the", "network", "user", "session", "opened", "error",
        "kernel", "for", "device", "usb", "root", "closed",
    ];
    let mut text = String::with_capacity(block.len() + 16);
    while text.len() < block.len() {
        let word = WORDS[in_block(rng.below(WORDS.len() as u64))];
        text.push_str(word);
        match rng.below(8) {
            0 => text.push('\n'),
            1 => write!(text, "={} ", rng.below(1000)).expect("a string takes any text"),
            _ => text.push(' '),
        }
    }
    block.copy_from_slice(&text.as_bytes()[..block.len()]);
}

/// Narrows a number known to be small, such as an offset in a block.
fn in_block(number: u64) -> usize {
    usize::try_from(number).expect("a number within a block fits")
}

/// Checks that two files hold the same bytes, and as many.
///
/// # Panics
/// Where they do not, with the first difference.
#[track_caller]
pub fn assert_same(expected: &Path, found: &Path) {
    let (left, right) = (Disk::open(expected), Disk::open(found));
    assert_eq!(
        left.size_bytes,
        right.size_bytes,
        "{} and {} differ in size",
        expected.display(),
        found.display()
    );
    compare(&expected.display().to_string(), |offset, len| left.read(offset, len), &right, left.size_bytes);
}

/// Checks that a file holds exactly these bytes.
///
/// # Panics
/// When it does not, with the first difference.
#[track_caller]
pub fn assert_holds(path: &Path, bytes: &[u8]) {
    let disk = Disk::open(path);
    assert_eq!(disk.size_bytes, bytes.len() as u64, "the size of {}", path.display());
    let expected = |offset: u64, len: usize| {
        let start = usize::try_from(offset).expect("an offset in memory fits");
        bytes[start..start + len].to_vec()
    };
    compare("what it must hold", expected, &disk, disk.size_bytes);
}

/// Returns `len` bytes at `offset` of a file, both multiples of 4,096, read past the page cache (`O_DIRECT`).
///
/// # Panics
/// When the file system has no direct reads, or the file ends before that.
#[track_caller]
pub fn read_direct(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).expect("open flags fit an i32");
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .unwrap_or_else(|error| panic!("cannot open {} for direct reads: {error}", path.display()));
    // The kernel wants the memory aligned as well.
    let mut buffer = vec![0; len + BLOCK_BYTES];
    let start = buffer.as_ptr().align_offset(BLOCK_BYTES);
    let aligned = &mut buffer[start..start + len];
    file.read_exact_at(aligned, offset).unwrap_or_else(|error| {
        panic!("cannot read {len} bytes at {offset} of {} directly: {error}", path.display())
    });
    aligned.to_vec()
}

/// Writes bytes past the page cache (`O_DIRECT`); offset and length are multiples of 512.
///
/// # Panics
/// When the file system has no direct writes, or the write fails.
#[track_caller]
pub fn write_direct(path: &Path, offset: u64, bytes: &[u8]) {
    let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).expect("open flags fit an i32");
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(flags)
        .open(path)
        .unwrap_or_else(|error| panic!("cannot open {} for direct writes: {error}", path.display()));
    let mut buffer = vec![0; bytes.len() + BLOCK_BYTES];
    let start = buffer.as_ptr().align_offset(BLOCK_BYTES);
    let aligned = &mut buffer[start..start + bytes.len()];
    aligned.copy_from_slice(bytes);
    file.write_all_at(aligned, offset).unwrap_or_else(|error| {
        panic!("cannot write {} bytes at {offset} of {} directly: {error}", bytes.len(), path.display())
    });
}

struct Disk<'a> {
    path: &'a Path,
    file: File,
    size_bytes: u64,
}

impl<'a> Disk<'a> {
    #[track_caller]
    fn open(path: &'a Path) -> Self {
        let file = File::open(path).unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()));
        let size_bytes =
            file.metadata().unwrap_or_else(|error| panic!("cannot stat {}: {error}", path.display())).len();
        Self { path, file, size_bytes }
    }

    #[track_caller]
    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, offset).unwrap_or_else(|error| {
            panic!("cannot read {len} bytes at {offset} of {}: {error}", self.path.display())
        });
        bytes
    }
}

/// Compares in steps of 1 MiB; reports the first differing byte and how many blocks differ in all.
#[track_caller]
fn compare(name: &str, expected: impl Fn(u64, usize) -> Vec<u8>, found: &Disk<'_>, size_bytes: u64) {
    const STEP_BYTES: u64 = 1 << 20;
    let mut first = None;
    let mut blocks = 0_u64;
    let mut offset = 0;
    while offset < size_bytes {
        let len = usize::try_from((size_bytes - offset).min(STEP_BYTES)).expect("a step fits");
        let (left, right) = (expected(offset, len), found.read(offset, len));
        if left != right {
            let pairs = left.chunks(BLOCK_BYTES).zip(right.chunks(BLOCK_BYTES));
            blocks += pairs.filter(|(left, right)| left != right).count() as u64;
            let at = left.iter().zip(&right).position(|(left, right)| left != right).unwrap_or_default();
            first.get_or_insert_with(|| (offset + at as u64, excerpt(&left[at..]), excerpt(&right[at..])));
        }
        offset += len as u64;
    }
    if let Some((at, left, right)) = first {
        panic!(
            "{} differs from {name} in {blocks} blocks of 4 KiB, first at byte {at} ({at:#x})\n  expected {left}\n  found    {right}",
            found.path.display()
        );
    }
}

fn excerpt(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(16)];
    shown.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const SIZE_BYTES: u64 = 8 << 20;

    #[test]
    fn content_mixes_its_kinds_and_repeats() {
        let content = Content::new(5);
        let mut seen: HashMap<[u8; BLOCK_BYTES], u64> = HashMap::new();
        let blocks = SIZE_BYTES / BLOCK_BYTES as u64;
        for index in 0..blocks {
            *seen.entry(content.block(index)).or_default() += 1;
        }
        let zero = seen[&[0; BLOCK_BYTES]];
        let repeated: u64 = seen.values().filter(|&&count| count > 1).sum::<u64>() - zero;
        let text = seen.keys().filter(|block| block.is_ascii() && **block != [0; BLOCK_BYTES]).count() as u64;
        assert!((blocks / 5..blocks / 2).contains(&zero), "{zero} of {blocks} are zero");
        assert!((blocks / 50..blocks / 5).contains(&repeated), "{repeated} of {blocks} occur again");
        assert!((blocks / 5..blocks / 2).contains(&text), "{text} of {blocks} are text");
        assert_ne!(Content::new(6).bytes(0, 1 << 20), content.bytes(0, 1 << 20));
    }

    #[test]
    fn any_part_is_the_same_part() {
        let content = Content::new(9);
        let all = content.bytes(0, 100_000);
        for (offset, len) in [(0, 0), (0, 1), (4095, 2), (4096, 4096), (5000, 90_000), (99_999, 1)] {
            assert_eq!(
                content.bytes(offset, len),
                all[in_block(offset)..in_block(offset) + len],
                "{offset}+{len}"
            );
        }
    }

    #[test]
    fn a_written_disk_is_sparse_and_compares_equal() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        let content = Content::new(3);
        content.write_to(&one, SIZE_BYTES);
        content.write_to(&other, SIZE_BYTES);
        content.assert_in(&one);
        assert_same(&one, &other);
        let metadata = std::fs::metadata(&one).unwrap();
        assert_eq!(metadata.len(), SIZE_BYTES);
        assert!(metadata.blocks() * 512 < SIZE_BYTES * 4 / 5, "{} blocks", metadata.blocks());
    }

    #[test]
    #[should_panic(expected = "in 2 blocks of 4 KiB, first at byte 5000000 (0x4c4b40)")]
    fn a_difference_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let content = Content::new(3);
        content.write_to(&path, SIZE_BYTES);
        let disk = OpenOptions::new().write(true).open(&path).unwrap();
        for offset in [5_000_000, 7_000_000] {
            let damaged = !content.bytes(offset, 1)[0];
            disk.write_all_at(&[damaged], offset).unwrap();
        }
        content.assert_in(&path);
    }

    #[test]
    fn direct_reads_see_what_was_written() {
        // Not in /tmp: a tmpfs there may not do direct reads.
        let beside = std::env::current_exe().unwrap();
        let directory = tempfile::tempdir_in(beside.parent().unwrap()).unwrap();
        let path = directory.path().join("disk");
        Content::new(4).write_to(&path, 1 << 20);
        assert_eq!(read_direct(&path, 8192, 65536), Content::new(4).bytes(8192, 65536));
    }
}
