//! The copy-on-write layer: what was written to one disk since a version.
//!
//! In place: a sparse data file in disk order beside a map of two bits a block. Sequential stays sequential, freezing
//! is a new overlay on top, and a write costs one `pwrite`. The guarantees rest on one order, kept by
//! [`Overlay::flush`]: data is synced before the map that promises it, so that at any instant the map on disk speaks
//! only of data on disk. What a flush has covered survives power loss; what came later may or may not, sector by
//! sector, as on a real disk. See `docs/semantics.md`.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use chunk_format::{DiskSize, ManifestId};

use crate::volume::{Volume, VolumeFile};

mod block;
mod header;
mod map;

pub use block::{BLOCK_BYTES, BlockIndex, BlockState, blocks_inside, blocks_touching};
pub use header::OverlayIdentity;

use header::{HEADER_BYTES, Header};
use map::{BlockMap, MapSector, SECTOR_BYTES};

/// What can go wrong with an overlay.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// A file operation failed.
    #[error("cannot {action} the overlay file {file}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file's name in its volume.
        file: String,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// The disk the overlay lies on is full; nothing was lost, and the write may be tried again.
    #[error("no space left for the overlay file {file}: free some space, the write will then go on")]
    Full {
        /// The file's name in its volume.
        file: String,
    },
    /// The file's bytes are not what was written.
    #[error("the overlay file {file} is damaged: {reason}")]
    Damaged {
        /// The file's name in its volume.
        file: String,
        /// What does not match.
        reason: String,
    },
    /// Written by another version of the program.
    #[error(
        "the overlay file {file} has format version {found}, which this program does not read: update Satchel"
    )]
    UnsupportedVersion {
        /// The file's name in its volume.
        file: String,
        /// Its version.
        found: u16,
    },
    /// The file belongs to another disk, desktop or generation.
    #[error("the overlay file {file} belongs to {found}, not to {expected}")]
    Foreign {
        /// The file's name in its volume.
        file: String,
        /// Whose it is.
        found: String,
        /// Whose it should be.
        expected: String,
    },
    /// An earlier sync failed: what is on disk is no longer known, so nothing more is promised.
    #[error(
        "the overlay file {file} failed to reach the disk earlier; stop the machine and check the disk below it"
    )]
    Failed {
        /// The file's name in its volume.
        file: String,
    },
}

/// One copy-on-write layer of one disk.
///
/// Reads and writes of different blocks go on at once and take no lock; [`Overlay::flush`] takes `flushing`, which is
/// taken last of all locks.
pub struct Overlay {
    identity: OverlayIdentity,
    beneath: ManifestId,
    nonce: u64,
    data: Arc<dyn VolumeFile>,
    data_name: String,
    map_file: Arc<dyn VolumeFile>,
    map_name: String,
    map: BlockMap,
    /// Something was written or punched since the last data sync began. True after opening: an earlier process may
    /// have left writes in the page cache, and whoever has read them may rely on them after a flush.
    unsynced: AtomicBool,
    /// The same of the map file.
    map_unsynced: AtomicBool,
    /// A sync failed: see [`OverlayError::Failed`].
    failed: AtomicBool,
    flushing: Mutex<()>,
}

impl Overlay {
    /// Makes the files of an empty overlay. They are durable, but their names only after the volume's `sync_names`.
    ///
    /// # Errors
    /// `Io`, `Full`.
    pub fn create(
        volume: &dyn Volume,
        identity: OverlayIdentity,
        beneath: ManifestId,
        nonce: u64,
    ) -> Result<Self, OverlayError> {
        let blocks = identity.size.bytes().div_ceil(BLOCK_BYTES);
        let header = Header { identity, beneath, nonce }.encode();
        let (data_name, map_name) = file_names(&identity);
        // Leftovers of a creation that a crash cut short: no record names them.
        for name in [&data_name, &map_name] {
            volume.remove(name).map_err(|e| io_error("replace", name, e))?;
        }
        let make =
            |name: &str, len_bytes| volume.create(name, len_bytes).map_err(|e| io_error("create", name, e));
        let data = make(&data_name, blocks * BLOCK_BYTES + HEADER_BYTES as u64)?;
        data.write_all_at(&header, blocks * BLOCK_BYTES)
            .and_then(|()| data.sync_data())
            .map_err(|e| io_error("write", &data_name, e))?;
        let sectors = BlockMap::sectors(blocks);
        let map_file = make(&map_name, (HEADER_BYTES + sectors * SECTOR_BYTES) as u64)?;
        write_zeros(&*map_file, HEADER_BYTES as u64, sectors * SECTOR_BYTES)
            .and_then(|()| map_file.write_all_at(&header, 0))
            .and_then(|()| map_file.sync_data())
            .map_err(|e| io_error("write", &map_name, e))?;
        Ok(Self {
            identity,
            beneath,
            nonce,
            data,
            data_name,
            map_file,
            map_name,
            map: BlockMap::new(blocks),
            unsynced: AtomicBool::new(false),
            map_unsynced: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            flushing: Mutex::new(()),
        })
    }

    /// Bytes of disk space an empty overlay of a disk takes.
    pub fn empty_bytes(size: DiskSize) -> u64 {
        let map_bytes = BlockMap::sectors(size.bytes().div_ceil(BLOCK_BYTES)) * SECTOR_BYTES;
        // Each of the two files has a header of its own, in a block that is taken whole.
        map_bytes as u64 + 2 * BLOCK_BYTES
    }

    /// Opens an overlay and reads its map.
    ///
    /// # Errors
    /// `Io`, `Damaged`, `UnsupportedVersion`, or `Foreign` when the files are another disk's or another generation's.
    pub fn open(volume: &dyn Volume, identity: OverlayIdentity) -> Result<Self, OverlayError> {
        let blocks = identity.size.bytes().div_ceil(BLOCK_BYTES);
        let (data_name, map_name) = file_names(&identity);
        let open = |name: &str| volume.open(name).map_err(|e| io_error("open", name, e));
        let (data, map_file) = (open(&data_name)?, open(&map_name)?);
        let header = read_header(&*map_file, &map_name, 0)?;
        check_identity(&header, &identity, &map_name)?;
        let other = read_header(&*data, &data_name, blocks * BLOCK_BYTES)?;
        if other != header {
            let reason = format!("it does not belong together with {map_name}");
            return Err(OverlayError::Damaged { file: data_name, reason });
        }
        let map = BlockMap::new(blocks);
        for at in 0..BlockMap::sectors(blocks) {
            let mut sector = MapSector { at, bytes: [0; SECTOR_BYTES] };
            map_file
                .read_exact_at(&mut sector.bytes, (HEADER_BYTES + at * SECTOR_BYTES) as u64)
                .map_err(|e| read_error(&map_name, e))?;
            map.load_sector(&sector, header.nonce, &map_name)?;
        }
        Ok(Self {
            identity,
            beneath: header.beneath,
            nonce: header.nonce,
            data,
            data_name,
            map_file,
            map_name,
            map,
            unsynced: AtomicBool::new(true),
            map_unsynced: AtomicBool::new(true),
            failed: AtomicBool::new(false),
            flushing: Mutex::new(()),
        })
    }

    /// Removes an overlay's files; no error when they are gone already.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove(volume: &dyn Volume, identity: &OverlayIdentity) -> Result<(), OverlayError> {
        let (data_name, map_name) = file_names(identity);
        [data_name, map_name]
            .iter()
            .try_for_each(|name| volume.remove(name).map_err(|e| io_error("remove", name, e)))
    }

    /// What the overlay belongs to.
    pub fn identity(&self) -> &OverlayIdentity {
        &self.identity
    }

    /// The version the overlay was begun on.
    pub fn beneath(&self) -> ManifestId {
        self.beneath
    }

    /// Blocks of the disk.
    pub fn blocks(&self) -> u64 {
        self.map.blocks()
    }

    /// Where a block's content is, and how many blocks from it on, up to `end`, are the same.
    pub fn run(&self, block: BlockIndex, end: BlockIndex) -> (BlockState, u64) {
        self.map.run(block.0, end.0)
    }

    /// Where a block's content is.
    pub fn state(&self, block: BlockIndex) -> BlockState {
        self.map.get(block.0)
    }

    /// Whether nothing was written since it began.
    pub fn is_empty(&self) -> bool {
        self.map.run(0, self.map.blocks()) == (BlockState::Base, self.map.blocks())
    }

    /// Bytes of disk space the data takes.
    ///
    /// # Errors
    /// `Io`.
    pub fn allocated_bytes(&self) -> Result<u64, OverlayError> {
        self.data.allocated_bytes().map_err(|e| io_error("look at", &self.data_name, e))
    }

    /// Reads bytes of blocks in state [`BlockState::Data`].
    ///
    /// # Errors
    /// `Io`.
    pub fn read_data(&self, offset: u64, buf: &mut [u8]) -> Result<(), OverlayError> {
        self.data.read_exact_at(buf, offset).map_err(|e| io_error("read", &self.data_name, e))
    }

    /// Writes whole blocks; they may be partial only at the end of the disk, or when already in state
    /// [`BlockState::Data`], where the rest of the block is kept.
    ///
    /// Not durable before [`Overlay::flush`].
    ///
    /// # Errors
    /// `Io`, `Full`, or `Failed` after a failed flush.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), OverlayError> {
        self.check_usable()?;
        let range = offset..offset + bytes.len() as u64;
        let written = self.data.write_all_at(bytes, offset);
        // After the write, which a flush that sees this covers. Also after an error, which may have left half of it behind.
        self.unsynced.store(true, Ordering::SeqCst);
        if written.is_ok() {
            self.map.set(blocks_touching(&range), BlockState::Data);
        }
        written.map_err(|e| io_error("write", &self.data_name, e))
    }

    /// Makes whole blocks read as zeros and gives their space back.
    ///
    /// Not durable before [`Overlay::flush`].
    ///
    /// # Errors
    /// `Io`, or `Failed` after a failed flush.
    pub fn zero(&self, blocks: Range<u64>) -> Result<(), OverlayError> {
        self.check_usable()?;
        // State first: should the punch fail, the blocks are zeros all the same, only their space is kept. A crash
        // that keeps the punch but not the state leaves a hole in state data, which reads as zeros too.
        let had_data = {
            let mut at = blocks.start;
            let mut had_data = false;
            while at < blocks.end && !had_data {
                let (state, len) = self.map.run(at, blocks.end);
                had_data = state == BlockState::Data;
                at += len.max(1);
            }
            had_data
        };
        self.map.set(blocks.clone(), BlockState::Zero);
        let punched = if had_data {
            self.data.punch(blocks.start * BLOCK_BYTES, (blocks.end - blocks.start) * BLOCK_BYTES)
        } else {
            Ok(())
        };
        self.unsynced.store(true, Ordering::SeqCst);
        punched.map_err(|e| io_error("punch holes into", &self.data_name, e))
    }

    /// Makes every write and zeroing that finished before the call durable.
    ///
    /// # Errors
    /// `Io`: the overlay has then failed for good, because what the disk holds of the unsynced writes is unknown and
    /// a second sync would claim success for writes the kernel has dropped. `Failed` after that. `Full` when there is no space
    /// to write what changed of the map over, as on a file system that writes elsewhere: another flush goes on when there is.
    pub fn flush(&self) -> Result<(), OverlayError> {
        let _flushing = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        self.check_usable()?;
        match self.flush_locked() {
            Err(FlushError::NoRoomForMap) => Err(OverlayError::Full { file: self.map_name.clone() }),
            Err(FlushError::Final(error)) => {
                self.failed.store(true, Ordering::SeqCst);
                // Whoever opens it next reads what is there, and not what the kernel remembers.
                self.data.forget_cached();
                self.map_file.forget_cached();
                Err(error)
            }
            Ok(()) => Ok(()),
        }
    }

    fn flush_locked(&self) -> Result<(), FlushError> {
        // Collected before the data sync, so that every state collected speaks of a write that this sync covers; also of one that
        // has come no further than its state.
        let sectors = self.map.collect_changed(self.nonce);
        if self.unsynced.swap(false, Ordering::SeqCst) || !sectors.is_empty() {
            self.data.sync_data().map_err(|e| sync_error(&self.data_name, e))?;
        }
        if sectors.is_empty() && !self.map_unsynced.load(Ordering::SeqCst) {
            return Ok(());
        }
        for neighbours in sectors.chunk_by(|a, b| a.at + 1 == b.at) {
            let bytes: Vec<u8> = neighbours.iter().flat_map(|sector| sector.bytes).collect();
            let at = (HEADER_BYTES + neighbours[0].at * SECTOR_BYTES) as u64;
            if let Err(error) = self.map_file.write_all_at(&bytes, at) {
                let error = io_error("write", &self.map_name, error);
                if !matches!(error, OverlayError::Full { .. }) {
                    return Err(error.into());
                }
                // The data is durable, and nothing of the map was promised: all of it is written again.
                self.map.mark_changed(&sectors);
                self.map_unsynced.store(true, Ordering::SeqCst);
                return Err(FlushError::NoRoomForMap);
            }
        }
        self.map_file.sync_data().map_err(|e| sync_error(&self.map_name, e))?;
        self.map_unsynced.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn check_usable(&self) -> Result<(), OverlayError> {
        if self.failed.load(Ordering::SeqCst) {
            return Err(OverlayError::Failed { file: self.data_name.clone() });
        }
        Ok(())
    }
}

/// Why a flush did not make everything durable.
#[derive(Debug, thiserror::Error)]
enum FlushError {
    /// What changed of the map could not be written; nothing is lost.
    #[error("no room for the map")]
    NoRoomForMap,
    /// What the files hold is unknown.
    #[error("{0}")]
    Final(#[from] OverlayError),
}

impl std::fmt::Debug for Overlay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Whether a file name is an overlay file's; and if so, of which role and generation.
pub fn parse_file_name(name: &str) -> Option<(&str, u64)> {
    let (stem, _) =
        name.strip_prefix("overlay-")?.rsplit_once('.').filter(|(_, ext)| matches!(*ext, "data" | "map"))?;
    let (role, generation) = stem.split_once('-')?;
    Some((role, generation.parse().ok()?))
}

fn file_names(identity: &OverlayIdentity) -> (String, String) {
    let stem = format!("overlay-{}-{}", identity.role, identity.generation);
    (format!("{stem}.data"), format!("{stem}.map"))
}

fn read_header(file: &dyn VolumeFile, name: &str, offset: u64) -> Result<Header, OverlayError> {
    let mut bytes = [0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, offset).map_err(|source| read_error(name, source))?;
    Header::decode(&bytes, name)
}

/// Why something could not be read that every whole file has.
fn read_error(name: &str, source: io::Error) -> OverlayError {
    match source.kind() {
        io::ErrorKind::UnexpectedEof => {
            OverlayError::Damaged { file: name.to_owned(), reason: "it is cut short".to_owned() }
        }
        _ => io_error("read", name, source),
    }
}

fn check_identity(header: &Header, expected: &OverlayIdentity, name: &str) -> Result<(), OverlayError> {
    if header.identity == *expected {
        return Ok(());
    }
    let describe = |identity: &OverlayIdentity| {
        let id = identity.desktop.to_string();
        format!(
            "the {} disk of desktop {}… ({} bytes, generation {})",
            identity.role,
            &id[..12],
            identity.size.bytes(),
            identity.generation
        )
    };
    Err(OverlayError::Foreign {
        file: name.to_owned(),
        found: describe(&header.identity),
        expected: describe(expected),
    })
}

fn write_zeros(file: &dyn VolumeFile, offset: u64, len: usize) -> io::Result<()> {
    let zeros = vec![0; len.min(1 << 20)];
    let mut done = 0;
    while done < len {
        let step = zeros.len().min(len - done);
        file.write_all_at(&zeros[..step], offset + done as u64)?;
        done += step;
    }
    Ok(())
}

/// A sync that says that there is no room may have lost what it was to make last, and is no matter of making some.
fn sync_error(file: &str, source: io::Error) -> OverlayError {
    OverlayError::Io { action: "sync", file: file.to_owned(), source }
}

fn io_error(action: &'static str, file: &str, source: io::Error) -> OverlayError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            OverlayError::Full { file: file.to_owned() }
        }
        _ => OverlayError::Io { action, file: file.to_owned(), source },
    }
}

#[cfg(test)]
mod tests;
