//! qcow2 images, through the `imago` crate.

use std::io;
use std::ops::Range;
use std::path::Path;

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, Mapping};

use super::{DiskImage, ImageError};

pub(super) struct Qcow2Image {
    image: FormatAccess<File>,
    /// Data ranges, found at opening: that also finds an image whose end is missing.
    ranges: Vec<Range<u64>>,
}

impl Qcow2Image {
    /// Opens an image whose file has `file_bytes`.
    pub(super) fn open(path: &Path, file_bytes: u64) -> Result<Self, ImageError> {
        let unusable = |reason: String| ImageError::Unusable { path: path.to_owned(), reason };
        // Opens this one file only, whatever others its header names.
        let driver = Qcow2::<File>::open_path(path, false)
            .map_err(|source| ImageError::Io { path: path.to_owned(), source })?;
        if let Some(backing) = driver.implicit_backing_file() {
            return Err(unusable(format!(
                "it is only the difference from `{backing}`; make it whole first \
                 (`qemu-img convert -O qcow2 {} NEW.qcow2`)",
                path.display()
            )));
        }
        if driver.requires_external_data_file() {
            return Err(unusable("its data is in another file; publish that one, it is raw".to_owned()));
        }
        let image = FormatAccess::new(driver);
        let (ranges, needed_bytes) =
            map_data(&image).map_err(|source| ImageError::Io { path: path.to_owned(), source })?;
        if needed_bytes > file_bytes {
            return Err(unusable(format!(
                "it is cut short: its tables speak of {needed_bytes} bytes and the file has {file_bytes}; copy it again"
            )));
        }
        Ok(Self { image, ranges })
    }
}

/// The ranges of the disk that hold data, and how long the file must at least be for all of it to be there.
fn map_data(image: &FormatAccess<File>) -> io::Result<(Vec<Range<u64>>, u64)> {
    let size = image.size();
    let mut ranges: Vec<Range<u64>> = Vec::new();
    let (mut at, mut needed_bytes) = (0, 0);
    while at < size {
        let (mapping, len) = image.get_mapping(at, size - at)?;
        if len == 0 {
            break;
        }
        let is_data = match mapping {
            Mapping::Raw { offset, .. } => {
                // The last cluster of a file may end where its data ends.
                let in_file = len.min(size - at);
                needed_bytes = needed_bytes.max(offset.saturating_add(in_file) / 512 * 512);
                true
            }
            Mapping::Zero { .. } | Mapping::Eof { .. } => false,
            _ => true,
        };
        if is_data {
            match ranges.last_mut() {
                Some(last) if last.end == at => last.end = at + len,
                _ => ranges.push(at..at + len),
            }
        }
        at += len;
    }
    Ok((ranges, needed_bytes))
}

impl DiskImage for Qcow2Image {
    fn size_bytes(&self) -> u64 {
        self.image.size()
    }

    fn data_ranges(&self) -> io::Result<Vec<Range<u64>>> {
        Ok(self.ranges.clone())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let inside =
            usize::try_from(self.image.size().saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let (inside, padding) = buf.split_at_mut(inside);
        padding.fill(0);
        if inside.is_empty() { Ok(()) } else { self.image.read(inside, offset) }
    }
}
