//! Disk images as publishers have them: raw files and qcow2, read without their holes.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chunk_format::{BootFacts, DiskSize, FormatError};

mod ext4;
mod free;
mod inspect;
pub(crate) mod partitions;
mod qcow2;
mod raw;

pub use free::KeptFree;
use qcow2::Qcow2Image;
use raw::RawImage;

/// Why a file cannot be published.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file operation failed.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the file system or the image format said.
        #[source]
        source: io::Error,
    },
    /// It holds something of before and something of after.
    #[error("{} was changed while it was read", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// The file is a directory, a pipe or the like.
    #[error("{} is neither a file nor a block device", path.display())]
    NotAFile {
        /// What was given.
        path: PathBuf,
    },
    /// The file is a disk image of a kind Satchel does not read.
    #[error("{} is {kind}, which Satchel does not read: {remedy}", path.display())]
    ForeignFormat {
        /// The file.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
        /// What to do about it.
        remedy: String,
    },
    /// Nothing in the file says that it is a disk.
    #[error("{} does not look like a disk: it has no partition table and no file system known here", path.display())]
    NotADisk {
        /// The file.
        path: PathBuf,
    },
    /// The disk's size is not one a disk can have.
    #[error("{} cannot be a disk", path.display())]
    BadSize {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// The file is empty, or a qcow2 file that leans on other files or whose end is missing.
    #[error("{} cannot be published: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
}

/// A disk image, open for reading from several threads.
pub trait DiskImage: Send + Sync + 'static {
    /// Size of the disk, bytes.
    fn size_bytes(&self) -> u64;

    /// The ranges that may hold something other than zeros, in order, not touching.
    ///
    /// # Errors
    /// What the file system or the image format says.
    fn data_ranges(&self) -> io::Result<Vec<Range<u64>>>;

    /// Fills the buffer from an offset of the disk; past its end with zeros.
    ///
    /// # Errors
    /// What the file system or the image format says.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

/// An image that was opened and looked at.
pub struct OpenImage {
    /// Its content.
    pub image: Arc<dyn DiskImage>,
    /// Size of the disk.
    pub size: DiskSize,
    /// How the disk boots, as far as its partition table tells.
    pub boot: BootFacts,
    /// `raw` or `qcow2`.
    pub format: &'static str,
    path: PathBuf,
    file: std::fs::File,
    before: std::fs::Metadata,
}

impl OpenImage {
    /// Checks that nobody has written to the file since it was opened: what was read is then what it held at one time. What others
    /// write to a device is not seen.
    ///
    /// # Errors
    /// `Changed`, `Io`.
    pub fn check_unchanged(&self) -> Result<(), ImageError> {
        let io = |source| ImageError::Io { path: self.path.clone(), source };
        let now = self.file.metadata().map_err(io)?;
        let (modified, len) = (self.before.modified().map_err(io)?, self.before.len());
        if now.is_file() && (now.modified().map_err(io)?, now.len()) != (modified, len) {
            return Err(ImageError::Changed { path: self.path.clone() });
        }
        Ok(())
    }

    /// Makes the free blocks of clean ext4 file systems read as zeros: what was deleted is not published. Answers with the
    /// file systems whose free blocks stay as they are.
    ///
    /// # Errors
    /// What reading the image says.
    pub fn leave_out_free(&mut self) -> io::Result<Vec<KeptFree>> {
        let (image, kept) = free::without_free(Arc::clone(&self.image))?;
        self.image = image;
        Ok(kept)
    }
}

impl std::fmt::Debug for OpenImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenImage")
            .field("size", &self.size)
            .field("format", &self.format)
            .finish_non_exhaustive()
    }
}

/// Opens a disk image and finds out what it is. `force` takes a raw file that does not look like a disk.
///
/// # Errors
/// [`ImageError`].
pub fn open(path: &Path, force: bool) -> Result<OpenImage, ImageError> {
    let io = |source| ImageError::Io { path: path.to_owned(), source };
    let raw = RawImage::open(path)?;
    let file = raw.file().try_clone().map_err(io)?;
    let before = file.metadata().map_err(io)?;
    if raw.size_bytes() == 0 {
        return Err(ImageError::Unusable { path: path.to_owned(), reason: "it is empty".to_owned() });
    }
    let mut head = vec![0; inspect::HEAD_BYTES];
    raw.read_at(&mut head, 0).map_err(io)?;
    let (image, format): (Arc<dyn DiskImage>, _) = match inspect::container(&head) {
        Some(inspect::Container::Qcow2) => {
            let image = Qcow2Image::open(path, raw.size_bytes())?;
            image.read_at(&mut head, 0).map_err(io)?;
            (Arc::new(image), "qcow2")
        }
        Some(inspect::Container::Foreign { kind, unpack }) if !force => {
            let shown = path.display();
            let remedy = match unpack {
                Some(command) => format!("unpack it first (`{command} {shown}`)"),
                None => format!("convert it first (`qemu-img convert -O qcow2 {shown} NEW.qcow2`)"),
            };
            return Err(ImageError::ForeignFormat { path: path.to_owned(), kind, remedy });
        }
        _ => (Arc::new(raw), "raw"),
    };
    let boot = match inspect::boot_facts(&head) {
        Some(boot) => boot,
        None if force => inspect::UNKNOWN_BOOT,
        None => return Err(ImageError::NotADisk { path: path.to_owned() }),
    };
    let size = DiskSize::new(image.size_bytes())
        .map_err(|source| ImageError::BadSize { path: path.to_owned(), source })?;
    Ok(OpenImage { image, size, boot, format, path: path.to_owned(), file, before })
}

#[cfg(test)]
mod tests;
