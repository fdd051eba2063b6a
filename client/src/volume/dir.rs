//! A volume that is a directory of the host.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Advice, FallocateFlags, FlockOperation, fadvise, fallocate, flock};

use super::{UNFINISHED, Volume, VolumeFile};

/// A directory on a local file system; its files are readable by their owner only.
#[derive(Debug)]
pub struct DirVolume {
    path: PathBuf,
    dir: File,
}

impl DirVolume {
    /// Opens a directory that exists.
    ///
    /// # Errors
    /// `NotFound`, or what the file system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), dir: File::open(path)? })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the lock of this name, for as long as what is returned lives: among whoever reads and replaces a file.
    ///
    /// # Errors
    /// What the file system says.
    pub fn lock(&self, name: &str) -> io::Result<File> {
        let file = Self::options().create(true).truncate(false).open(self.path.join(name))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    fn options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        options
    }
}

impl Volume for DirVolume {
    fn create(&self, name: &str, len_bytes: u64) -> io::Result<Arc<dyn VolumeFile>> {
        let file = Self::options().create_new(true).open(self.path.join(name))?;
        file.set_len(len_bytes)?;
        Ok(Arc::new(DirFile(file)))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn VolumeFile>> {
        let path = self.path.join(name);
        match Self::options().open(&path) {
            // To look at it is all that can be done there.
            Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                Ok(Arc::new(DirFile(File::open(path)?)))
            }
            file => Ok(Arc::new(DirFile(file?))),
        }
    }

    fn read(&self, name: &str, limit_bytes: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path.join(name))?.take(limit_bytes as u64 + 1).read_to_end(&mut bytes)?;
        if bytes.len() > limit_bytes {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("longer than {limit_bytes} bytes"),
            ));
        }
        Ok(bytes)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        // Two processes may replace a file at once: the last one wins, with all of its bytes.
        static REPLACED: AtomicU64 = AtomicU64::new(0);
        let (process, number) = (std::process::id(), REPLACED.fetch_add(1, Ordering::Relaxed));
        let staged = self.path.join(format!("{name}.{process}-{number}{UNFINISHED}"));
        let file = Self::options().create(true).truncate(true).open(&staged)?;
        let written = file.write_all_at(bytes, 0).and_then(|()| file.sync_all());
        let replaced = written.and_then(|()| std::fs::rename(&staged, self.path.join(name)));
        if let Err(error) = replaced {
            // The space matters more than the leftover: this is often a full disk.
            let _ = std::fs::remove_file(&staged);
            return Err(error);
        }
        self.sync_names()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        std::fs::read_dir(&self.path)?
            .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
            .collect()
    }

    fn sync_names(&self) -> io::Result<()> {
        self.dir.sync_all()
    }
}

struct DirFile(File);

impl VolumeFile for DirFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }

    fn punch(&self, offset: u64, len_bytes: u64) -> io::Result<()> {
        if len_bytes == 0 {
            return Ok(());
        }
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.0, flags, offset, len_bytes) {
            Ok(()) => Ok(()),
            // A file system without holes keeps the space; the bytes must become zeros all the same.
            Err(rustix::io::Errno::OPNOTSUPP) => self.write_zeros(offset, len_bytes),
            Err(error) => Err(error.into()),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn forget_cached(&self) {
        // A wish; a kernel that does not hear it keeps what it has.
        let _ = fadvise(&self.0, 0, None, Advice::DontNeed);
    }

    fn len_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.blocks() * 512)
    }
}

impl DirFile {
    fn write_zeros(&self, mut offset: u64, mut len_bytes: u64) -> io::Result<()> {
        static ZEROS: [u8; 65_536] = [0; 65_536];
        while len_bytes > 0 {
            let step = len_bytes.min(ZEROS.len() as u64);
            self.0.write_all_at(&ZEROS[..usize::try_from(step).unwrap_or(ZEROS.len())], offset)?;
            offset += step;
            len_bytes -= step;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let volume = DirVolume::open(dir.path()).unwrap();
        volume.replace("record", b"one").unwrap();
        volume.replace("record", b"two").unwrap();
        assert_eq!(volume.read("record", 10).unwrap(), b"two");
        assert_eq!(volume.read("record", 2).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(volume.list().unwrap(), ["record"]);
        let mode = std::fs::metadata(dir.path().join("record")).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn punching_gives_space_back_and_reads_as_zeros() {
        let dir = tempfile::tempdir().unwrap();
        let file = DirVolume::open(dir.path()).unwrap().create("data", 1 << 20).unwrap();
        file.write_all_at(&[7; 1 << 20], 0).unwrap();
        file.sync_data().unwrap();
        let full = file.allocated_bytes().unwrap();
        file.punch(65_536, 1 << 19).unwrap();
        let mut block = [1; 4096];
        file.read_exact_at(&mut block, 65_536).unwrap();
        assert_eq!(block, [0; 4096]);
        file.read_exact_at(&mut block, 0).unwrap();
        assert_eq!(block, [7; 4096]);
        assert!(file.allocated_bytes().unwrap() < full);
        assert_eq!(file.len_bytes().unwrap(), 1 << 20);
    }
}
