//! The disk that is looked into.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

/// A disk that can be read at any byte.
pub trait ReadDisk {
    /// Size of the disk, bytes; 0 when nothing can be read.
    fn size_bytes(&self) -> u64;

    /// Fills the buffer from an offset of the disk.
    ///
    /// # Errors
    /// What reading says, and that the disk ends before the buffer does.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadDisk for File {
    fn size_bytes(&self) -> u64 {
        // Of a block device, only seeking tells the size. The place is shared with every copy of the descriptor, but nothing
        // here reads from it.
        (&mut &*self).seek(SeekFrom::End(0)).unwrap_or(0)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buf, offset)
    }
}

impl ReadDisk for [u8] {
    fn size_bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(buf.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        buf.copy_from_slice(self.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl ReadDisk for Vec<u8> {
    fn size_bytes(&self) -> u64 {
        self.as_slice().size_bytes()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.as_slice().read_at(buf, offset)
    }
}

/// `len` bytes of the disk; `None` when it ends before.
pub(super) fn read_vec(disk: &dyn ReadDisk, offset: u64, len: usize) -> io::Result<Option<Vec<u8>>> {
    if offset.checked_add(len as u64).is_none_or(|end| end > disk.size_bytes()) {
        return Ok(None);
    }
    let mut bytes = vec![0; len];
    disk.read_at(&mut bytes, offset)?;
    Ok(Some(bytes))
}

/// `N` bytes at a place of a record; zeros past its end.
pub(super) fn bytes_at<const N: usize>(record: &[u8], at: usize) -> [u8; N] {
    at.checked_add(N)
        .and_then(|end| record.get(at..end))
        .and_then(|slice| slice.try_into().ok())
        .unwrap_or([0; N])
}

/// The little-endian number at a place of a record; 0 past its end.
pub(super) fn u16_at(record: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(record, at))
}

/// The little-endian number at a place of a record; 0 past its end.
pub(super) fn u32_at(record: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(record, at))
}

/// The little-endian number at a place of a record; 0 past its end.
pub(super) fn u64_at(record: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(record, at))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_and_its_bytes_are_the_same_disk() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let disks: [&dyn ReadDisk; 2] = [&file, &bytes];
        for disk in disks {
            assert_eq!(disk.size_bytes(), 256);
            let mut buf = [0; 4];
            disk.read_at(&mut buf, 252).unwrap();
            assert_eq!(buf, [252, 253, 254, 255]);
            let past = disk.read_at(&mut buf, 253).unwrap_err();
            assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
            assert!(disk.read_at(&mut buf, u64::MAX - 1).is_err());
            assert_eq!(read_vec(disk, u64::MAX, 2).unwrap(), None);
        }
    }
}
