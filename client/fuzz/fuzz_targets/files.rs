//! A disk that a guest wrote, read as files: nothing panics, all of it ends, no name of it drives a terminal, and it is
//! the same as itself.

#![no_main]

use std::io;
use std::ops::Range;
use std::sync::Arc;

use chunk_format::{ChunkId, ChunkIndex, ChunkSize, DiskRole};
use libfuzzer_sys::fuzz_target;
use satchel_client::files::diff::{DiskSide, compare_disks};
use satchel_client::files::{DiskFiles, FileKind, FileSystem, packages};
use satchel_client::image::DiskImage;
use satchel_client::past::ChunkedDisk;

/// Files that are looked at one by one.
const MAX_FILES: usize = 300;
const PART_BYTES: usize = 5000;

struct Bytes(Vec<u8>);

impl DiskImage for Bytes {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }

    fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        Ok(vec![0..self.size_bytes()])
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap().min(self.0.len());
        let there = &self.0[from..self.0.len().min(from + buf.len())];
        buf[..there.len()].copy_from_slice(there);
        buf[there.len()..].fill(0);
        Ok(())
    }
}

impl ChunkedDisk for Bytes {
    fn chunk_size(&self) -> ChunkSize {
        ChunkSize::DEFAULT
    }

    fn chunk_id(&self, chunk: ChunkIndex) -> io::Result<ChunkId> {
        assert!(chunk.offset_bytes(ChunkSize::DEFAULT) < self.size_bytes());
        Ok(ChunkId::of_chunk(&[]))
    }
}

fn look(fs: &FileSystem) {
    let _ = packages::installed(fs);
    let Ok(root) = fs.root() else { return };
    let mut todo = vec![root];
    for _ in 0..MAX_FILES {
        let Some(inode) = todo.pop() else { break };
        let mut part = vec![0; PART_BYTES];
        for at in [0, inode.size_bytes / 2, inode.size_bytes.saturating_sub(7), u64::MAX - 7] {
            let left = inode.size_bytes.saturating_sub(at);
            if let Ok(read) = fs.read(&inode, at, &mut part) {
                assert_eq!(read as u64, left.min(PART_BYTES as u64));
            }
            if let Ok(Some(run)) = fs.run_in_place(&inode, at) {
                assert!(run.blocks > 0 && run.logical == at / fs.block_bytes());
            }
        }
        let _ = fs.target(&inode);
        if inode.kind != FileKind::Directory {
            continue;
        }
        let entries = fs.entries(&inode).unwrap_or_default();
        let (mut listed, mut at) = (Vec::new(), 0);
        while let Ok(part) = fs.entries_from(&inode, at, 3)
            && let Some((_, next)) = part.last()
        {
            assert!(*next > at);
            at = *next;
            listed.extend(part.into_iter().map(|(entry, _)| entry));
        }
        assert!(listed.starts_with(&entries));
        for entry in entries.iter().take(MAX_FILES) {
            assert!(!entry.name.contains(&b'/') && fs.lookup(&inode, &entry.name).unwrap().is_some());
            todo.extend(fs.inode(entry.inode).ok());
        }
    }
    for path in [&b"/a/b"[..], b"/link", b"/../a/./link/x"] {
        let _ = fs.resolve(path, true);
    }
}

fuzz_target!(|data: &[u8]| {
    let bytes = Arc::new(Bytes(data.to_vec()));
    let disk: Arc<dyn DiskImage> = bytes.clone();
    let Ok(files) = DiskFiles::find(DiskRole::Home, &disk) else { return };
    let notes = files.notes();
    assert!(!notes.iter().any(|note| note.chars().any(char::is_control)), "{notes:?}");
    files.readable().for_each(|(_, fs)| look(fs));
    let side = DiskSide { disk: bytes, files: Arc::new(files) };
    if let Ok(difference) = compare_disks(Some(&side), Some(&side)) {
        assert!(difference.changes.is_empty(), "{:?}", difference.changes);
        assert!(!difference.unreadable.iter().any(|said| said.chars().any(char::is_control)));
    }
});
