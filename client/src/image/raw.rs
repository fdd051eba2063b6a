//! Raw images: files and block devices, read around their holes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;

use rustix::fs::{SeekFrom, seek};

use super::{DiskImage, ImageError};

pub(super) struct RawImage {
    file: File,
    size_bytes: u64,
}

impl RawImage {
    pub(super) fn open(path: &Path) -> Result<Self, ImageError> {
        let io = |source| ImageError::Io { path: path.to_owned(), source };
        let kind = std::fs::metadata(path).map_err(io)?.file_type();
        // Looked at before opening: opening a pipe would wait for its writer.
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ImageError::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(io)?;
        let size_bytes = seek(&file, SeekFrom::End(0)).map_err(|error| io(error.into()))?;
        Ok(Self { file, size_bytes })
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }
}

impl DiskImage for RawImage {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        let mut ranges = Vec::new();
        let mut at = 0;
        while at < self.size_bytes {
            let start = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) => start,
                Err(rustix::io::Errno::NXIO) => break,
                // No holes on this file system, or a device: all of it may be data.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => at,
                Err(error) => return Err(error.into()),
            };
            let end = seek(&self.file, SeekFrom::Hole(start)).unwrap_or(self.size_bytes).min(self.size_bytes);
            if end <= start {
                break;
            }
            ranges.push(start..end);
            at = end;
        }
        Ok(ranges)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.file.read_at(&mut buf[filled..], offset + filled as u64) {
                Ok(0) if offset + (filled as u64) < self.size_bytes => {
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "it was cut short while it was read",
                    ));
                }
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        buf[filled..].fill(0);
        Ok(())
    }
}
