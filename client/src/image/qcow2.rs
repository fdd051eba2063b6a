//! qcow2 images, through the `imago` crate.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, Mapping};

use super::{DiskImage, ImageError};

/// The header of version 2, which later ones begin with, bytes.
const HEADER_BYTES: usize = 72;
/// Incompatible features of version 3 that are not read here, by their bits. Source: as at [`tables_end`].
const UNREAD_FEATURES: [(u32, &str); 2] =
    [(3, "its clusters are compressed with zstd"), (4, "it has extended L2 entries")];
/// Clusters have up to 2 MiB.
const MAX_CLUSTER_BITS: u64 = 21;
/// As much of a first-level table as QEMU reads, bytes.
const MAX_L1_BYTES: u64 = 32 << 20;

pub(super) struct Qcow2Image {
    image: FormatAccess<File>,
    /// Data ranges, found at opening: that also finds an image whose end is missing.
    ranges: Vec<Range<u64>>,
}

impl Qcow2Image {
    /// Opens an image whose file has `file_bytes`.
    pub(super) fn open(path: &Path, file_bytes: u64) -> Result<Self, ImageError> {
        let unusable = |reason: String| ImageError::Unusable { path: path.to_owned(), reason };
        let tables_end = tables_end(path, file_bytes)
            .map_err(|source| ImageError::Io { path: path.to_owned(), source })?;
        if tables_end > file_bytes {
            return Err(unusable(cut_short(tables_end, file_bytes)));
        }
        let unread = unread_feature(path, file_bytes)
            .map_err(|source| ImageError::Io { path: path.to_owned(), source })?;
        if let Some(feature) = unread {
            let path = path.display();
            return Err(unusable(format!(
                "{feature}; convert it first (`qemu-img convert -O qcow2 {path} NEW.qcow2`)"
            )));
        }
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
            return Err(unusable(cut_short(needed_bytes, file_bytes)));
        }
        Ok(Self { image, ranges })
    }
}

fn cut_short(needed_bytes: u64, file_bytes: u64) -> String {
    format!(
        "it is cut short: its tables speak of {needed_bytes} bytes and the file has {file_bytes}; copy it again"
    )
}

/// What the image has that is not read here, in words.
fn unread_feature(path: &Path, file_bytes: u64) -> io::Result<Option<&'static str>> {
    let mut header = [0; HEADER_BYTES + 8];
    if file_bytes < header.len() as u64 {
        return Ok(None);
    }
    std::fs::File::open(path)?.read_exact_at(&mut header, 0)?;
    let field =
        |at: usize, len: usize| header[at..at + len].iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    let features = if field(4, 4) < 3 { 0 } else { field(HEADER_BYTES, 8) };
    Ok(UNREAD_FEATURES.iter().find(|(bit, _)| features >> bit & 1 == 1).map(|(_, what)| *what))
}

/// Where the last of the image's mapping tables ends, or the first that does not end in the file: what is past the end
/// of a file reads as zeros, and an empty table is an empty disk. Source: qcow2 specification (QEMU,
/// docs/interop/qcow2.rst), header and "L1 table entry".
fn tables_end(path: &Path, file_bytes: u64) -> io::Result<u64> {
    const L2_OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
    let file = std::fs::File::open(path)?;
    let mut header = [0; HEADER_BYTES];
    if file_bytes < header.len() as u64 {
        return Ok(header.len() as u64);
    }
    file.read_exact_at(&mut header, 0)?;
    let field =
        |at: usize, len: usize| header[at..at + len].iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
    let (cluster_bits, l1_entries, l1_offset) = (field(20, 4), field(36, 4), field(40, 8));
    if l1_entries * 8 > MAX_L1_BYTES {
        let reason = format!("its first-level table has {l1_entries} entries, more than any disk needs");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    let l1_end = l1_offset.saturating_add(l1_entries * 8);
    if l1_end > file_bytes {
        return Ok(l1_end);
    }
    let cluster_bytes = 1 << cluster_bits.min(MAX_CLUSTER_BITS);
    let mut end = l1_end;
    let mut part = vec![0; 65_536];
    let mut at = l1_offset;
    while at < l1_end {
        let len = usize::try_from(l1_end - at).unwrap_or(usize::MAX).min(part.len());
        let part = &mut part[..len];
        file.read_exact_at(part, at)?;
        for entry in part.as_chunks::<8>().0 {
            let l2_offset = u64::from_be_bytes(*entry) & L2_OFFSET;
            if l2_offset != 0 {
                end = end.max(l2_offset + cluster_bytes);
            }
        }
        at += len as u64;
    }
    Ok(end)
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
