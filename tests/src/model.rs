//! What a disk must hold, kept beside it while it is written to.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};

use crate::disk::{BLOCK_BYTES, Content, assert_holds};
use crate::seed::Rng;

/// The longest single access, bytes: more than the kernel sends in one request.
const LONGEST_BYTES: u64 = 1_200_000;

/// An array of bytes that every write goes to as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    bytes: Vec<u8>,
}

/// How bytes are made to read as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zeroing {
    /// As a discard does: the space is given back.
    Punch,
    /// As a write of zeros without the zeros.
    Range,
}

impl Model {
    /// Takes a disk of zeros.
    pub fn zeros(size_bytes: u64) -> Self {
        Self { bytes: vec![0; len(size_bytes)] }
    }

    /// Takes a disk with generated content.
    pub fn of(content: Content, size_bytes: u64) -> Self {
        Self { bytes: content.bytes(0, len(size_bytes)) }
    }

    /// Returns the bytes of the disk.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the size of the disk, bytes.
    pub fn size_bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Writes to the disk.
    #[track_caller]
    pub fn write(&mut self, disk: &File, offset: u64, bytes: &[u8]) {
        disk.write_all_at(bytes, offset)
            .unwrap_or_else(|error| panic!("cannot write {} bytes at {offset}: {error}", bytes.len()));
        self.wrote(offset, bytes);
    }

    /// Notes bytes that were written in another way.
    pub fn wrote(&mut self, offset: u64, bytes: &[u8]) {
        let start = len(offset);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Makes bytes of the disk read as zeros.
    #[track_caller]
    pub fn zero(&mut self, disk: &File, offset: u64, count: u64, how: Zeroing) {
        let flags = match how {
            Zeroing::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            Zeroing::Range => FallocateFlags::ZERO_RANGE,
        };
        fallocate(disk, flags, offset, count)
            .unwrap_or_else(|error| panic!("cannot zero {count} bytes at {offset} ({how:?}): {error}"));
        self.bytes[len(offset)..len(offset + count)].fill(0);
    }

    /// Reads from the disk and compares.
    #[track_caller]
    pub fn read(&self, disk: &File, offset: u64, count: u64) {
        let mut found = vec![0; len(count)];
        disk.read_exact_at(&mut found, offset)
            .unwrap_or_else(|error| panic!("cannot read {count} bytes at {offset}: {error}"));
        let expected = &self.bytes[len(offset)..len(offset + count)];
        if let Some(at) = found.iter().zip(expected).position(|(found, expected)| found != expected) {
            let byte = offset + at as u64;
            panic!(
                "a read of {count} bytes at {offset} is wrong from byte {byte} ({byte:#x}) on: {} instead of {}",
                found[at], expected[at]
            );
        }
    }

    /// Does one thing to the disk that chance decides: a write, zeroing, a flush, or a read that must be right, of any
    /// size and alignment.
    #[track_caller]
    pub fn act(&mut self, disk: &File, rng: &mut Rng) {
        let (offset, count) = self.place(rng);
        match rng.below(10) {
            0..4 => {
                let mut bytes = vec![0; len(count)];
                // One in four is zeros, which a disk may keep in another way.
                if rng.below(4) > 0 {
                    rng.fill(&mut bytes);
                }
                self.write(disk, offset, &bytes);
            }
            4 => self.zero(disk, offset, count, Zeroing::Punch),
            5 => self.zero(disk, offset, count, Zeroing::Range),
            6 => disk.sync_data().expect("the disk can be flushed"),
            _ => self.read(disk, offset, count),
        }
    }

    /// Chooses a place on the disk: often a few blocks, sometimes odd bytes, now and then very much.
    fn place(&self, rng: &mut Rng) -> (u64, u64) {
        let size = self.size_bytes();
        let block = BLOCK_BYTES as u64;
        let longest = match rng.below(8) {
            0 => LONGEST_BYTES,
            1..3 => 100_000,
            3..5 => 10_000,
            _ => block * 4,
        };
        let (mut offset, mut count) = (rng.below(size), 1 + rng.below(longest));
        if rng.below(2) == 0 {
            (offset, count) = (offset / block * block, count.div_ceil(block) * block);
        }
        (offset, count.min(size - offset))
    }

    /// Checks that a file holds these bytes, all of them.
    #[track_caller]
    pub fn assert_in(&self, path: &Path) {
        assert_holds(path, &self.bytes);
    }

    /// Checks `reads` random places of a file.
    #[track_caller]
    pub fn assert_at_random(&self, path: &Path, reads: u64, rng: &mut Rng) {
        let disk = open_for_reading(path);
        for _ in 0..reads {
            let (offset, count) = self.place(rng);
            self.read(&disk, offset, count);
        }
    }
}

/// Opens a disk for reading and writing.
#[track_caller]
pub fn open_for_writing(path: &Path) -> File {
    let disk = OpenOptions::new().read(true).write(true).open(path);
    disk.unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
}

#[track_caller]
fn open_for_reading(path: &Path) -> File {
    File::open(path).unwrap_or_else(|error| panic!("cannot open {}: {error}", path.display()))
}

fn len(number: u64) -> usize {
    usize::try_from(number).expect("what is kept in memory fits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_file_behaves_as_its_model() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let content = Content::new(8);
        content.write_to(&path, 4 << 20);
        let mut model = Model::of(content, 4 << 20);
        let (disk, mut rng) = (open_for_writing(&path), Rng::new(1));
        // ZERO_RANGE is not everywhere: not on tmpfs, for example.
        if fallocate(&disk, FallocateFlags::ZERO_RANGE, 0, 4096).is_ok() {
            model.wrote(0, &[0; 4096]);
            (0..500).for_each(|_| model.act(&disk, &mut rng));
        }
        model.assert_in(&path);
        model.assert_at_random(&path, 50, &mut rng);
    }

    #[test]
    #[should_panic(expected = "is wrong from byte 70000 (0x11170) on: 9 instead of 0")]
    fn a_wrong_byte_is_named() {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(1 << 20).unwrap();
        disk.write_all_at(&[9], 70_000).unwrap();
        Model::zeros(1 << 20).read(&disk, 65_536, 8192);
    }
}
