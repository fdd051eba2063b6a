//! Every durable change to a desktop on this machine, each in an order that a power cut at any instant leaves whole.
//!
//! The record is replaced atomically and durably, and names only what is durable already; what it no longer names is
//! removed afterwards, and leftovers are removed at the next opening. So a power cut leaves the state before the
//! replacement or the one after it, plus files nobody names.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chunk_format::{
    DiskRole, DiskSize, FormatError, MAX_MANIFEST_BYTES, MAX_SIGNATURE_BYTES, ManifestId, Name, PublicKey,
    Signature,
};

use super::record::{DesktopRecord, FILE_NAME, KeptNote, Pending, VERSION, Version};
use crate::overlay::{self, Overlay, OverlayError, OverlayIdentity};
use crate::volume::{UNFINISHED, Volume, is_full};

/// The longest record anyone reads, bytes.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// Why a desktop's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DesktopError {
    /// A file operation failed.
    #[error("cannot {action} {file}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file, in the desktop's directory.
        file: String,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// The desktop has no files on this machine yet.
    #[error("there is nothing of this desktop on this machine yet")]
    NotHere,
    /// A file holds what no Satchel wrote.
    #[error("{file} is damaged: {reason}")]
    Damaged {
        /// The file, in the desktop's directory.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The record was written by another version of the program.
    #[error("{FILE_NAME} has format version {found}; this program reads version {VERSION}: update Satchel")]
    UnsupportedVersion {
        /// Its version.
        found: u32,
    },
    /// The directory belongs to another desktop, user or server.
    #[error("these files belong to {found}, not to {expected}")]
    Foreign {
        /// Whose they are.
        found: String,
        /// Whose they should be.
        expected: String,
    },
    /// A version on this machine does not hold.
    #[error("version {id} on this machine does not hold")]
    BadVersion {
        /// The version.
        id: ManifestId,
        /// Why.
        #[source]
        source: FormatError,
    },
    /// The disks of one version have different chunk sizes, which one cache cannot serve.
    #[error(
        "the {role} disk has another chunk size than the system disk, which this program does not support"
    )]
    MixedChunkSizes {
        /// The disk that differs.
        role: DiskRole,
    },
    /// An overlay cannot be used.
    #[error("{0}")]
    Overlay(#[from] OverlayError),
    /// The operating system gave no randomness.
    #[error("the operating system gives no randomness: {reason}")]
    NoRandomness {
        /// Why.
        reason: String,
    },
}

impl DesktopError {
    /// Whether there was no space on the disk.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Overlay(OverlayError::Full { .. }) => true,
            Self::Io { source, .. } => is_full(source),
            _ => false,
        }
    }
}

/// A disk for which overlays are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskLayout {
    /// What it is for.
    pub role: DiskRole,
    /// Its size.
    pub size: DiskSize,
}

/// A desktop's files.
///
/// `record` is held while files change; it is taken before anything in an overlay.
pub struct DesktopStore {
    volume: Arc<dyn Volume>,
    record: Mutex<DesktopRecord>,
}

/// Who a desktop is, before there is a record of it.
#[derive(Clone, Debug)]
pub struct NewDesktop {
    /// The server it belongs to.
    pub server: PublicKey,
    /// The user it belongs to.
    pub owner: Name,
    /// Its name.
    pub desktop: Name,
    /// Its first version.
    pub id: ManifestId,
    /// The key that signs the image's versions.
    pub publisher: PublicKey,
}

impl DesktopStore {
    /// Begins a desktop on this machine, at a version and the golden one below it.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(
        volume: Arc<dyn Volume>,
        new: NewDesktop,
        head: &Version,
        base: &Version,
    ) -> Result<Self, DesktopError> {
        store_version(&*volume, head)?;
        store_version(&*volume, base)?;
        let record = DesktopRecord {
            version: VERSION,
            server: new.server,
            owner: new.owner,
            desktop: new.desktop,
            id: new.id,
            head: head.id,
            base: base.id,
            publisher: new.publisher,
            generations: Vec::new(),
            next_generation: 1,
            pending: None,
            note: None,
            renewal: None,
            discard_from: None,
            volatile_system: None,
            pinned: false,
            pin_rate_bytes_per_s: None,
        };
        store_record(&*volume, &record)?;
        Ok(Self { volume, record: Mutex::new(record) })
    }

    /// Opens a desktop's files and removes what a crash left over.
    ///
    /// # Errors
    /// `NotHere`, `Io`, `Damaged`, `UnsupportedVersion`, or `Foreign` when they are not this desktop's.
    pub fn open(
        volume: Arc<dyn Volume>,
        server: &PublicKey,
        owner: &Name,
        desktop: &Name,
    ) -> Result<Self, DesktopError> {
        let record = load_record(&*volume)?;
        if (&record.server, &record.owner, &record.desktop) != (server, owner, desktop) {
            let describe = |server: &PublicKey, owner: &Name, desktop: &Name| {
                format!("the desktop {desktop} of {owner} on the server {server}")
            };
            return Err(DesktopError::Foreign {
                found: describe(&record.server, &record.owner, &record.desktop),
                expected: describe(server, owner, desktop),
            });
        }
        let store = Self { volume, record: Mutex::new(record) };
        store.remove_unfinished();
        store.discard()?;
        store.remove_leftovers(&store.lock());
        Ok(store)
    }

    /// Reads a desktop's files as they are, without its lock and changing nothing. What was written while it was opened to be
    /// looked at is no part of them.
    ///
    /// # Errors
    /// `NotHere`, `Io`, `Damaged`, `UnsupportedVersion`.
    pub fn read_only(volume: Arc<dyn Volume>) -> Result<Self, DesktopError> {
        let mut record = load_record(&*volume)?;
        record.forget_discarded();
        Ok(Self { volume, record: Mutex::new(record) })
    }

    /// Where its files are.
    pub fn volume(&self) -> &dyn Volume {
        &*self.volume
    }

    /// The record as it is now.
    pub fn record(&self) -> DesktopRecord {
        self.lock().clone()
    }

    /// A version the record names.
    ///
    /// # Errors
    /// `Io`, or `BadVersion` when its bytes, id and signature do not belong together.
    pub fn version(&self, id: ManifestId) -> Result<Version, DesktopError> {
        let (name, signature_name) = version_files(id);
        let read = |name: &str, limit| self.volume.read(name, limit).map_err(|e| io_error("read", name, e));
        let bytes = read(&name, MAX_MANIFEST_BYTES)?;
        let signature = read(&signature_name, MAX_SIGNATURE_BYTES)?;
        id.verify(&bytes)
            .and_then(|()| Version::decode(bytes, Signature::decode(&signature)?))
            .map_err(|source| DesktopError::BadVersion { id, source })
    }

    /// Opens the overlays of one disk, newest first.
    ///
    /// # Errors
    /// `Overlay`.
    pub fn open_overlays(&self, disk: DiskLayout) -> Result<Vec<Arc<Overlay>>, DesktopError> {
        let record = self.lock();
        let volatile = record.volatile_system.filter(|_| disk.role == DiskRole::System);
        let generations = volatile.as_ref().map_or(record.generations.as_slice(), std::slice::from_ref);
        generations
            .iter()
            .rev()
            .map(|generation| {
                Ok(Arc::new(Overlay::open(&*self.volume, identity(&record, disk, *generation))?))
            })
            .collect()
    }

    /// Whether what is written to a disk is dropped at the next start.
    pub fn is_volatile(&self, role: DiskRole) -> bool {
        role == DiskRole::System && self.lock().volatile_system.is_some()
    }

    /// Begins a start of a desktop whose system disk is volatile: an empty overlay takes the place of the one before, which
    /// is removed. After a power cut the record names one or the other, and neither is ever read again.
    ///
    /// # Errors
    /// `Io`, `Overlay`, `NoRandomness`; nothing has changed then.
    pub fn begin_volatile(&self, system: DiskLayout) -> Result<(), DesktopError> {
        let mut record = self.lock();
        let generation = record.next_generation;
        Overlay::create(&*self.volume, identity(&record, system, generation), record.head, nonce()?)?;
        self.volume.sync_names().map_err(|e| io_error("sync", "the directory", e))?;
        let next = DesktopRecord {
            volatile_system: Some(generation),
            next_generation: generation + 1,
            ..record.clone()
        };
        self.replace_record(&mut record, next)?;
        self.remove_leftovers(&record);
        Ok(())
    }

    /// Adds a generation of empty overlays, one for each disk, in their order. They are durable and named by the
    /// record when this returns: whoever writes to them next loses nothing. The note is for the version that is made of the
    /// generations before it, and is kept until there is one.
    ///
    /// # Errors
    /// `Io`, `Overlay`, `NoRandomness`; nothing has changed then.
    pub fn add_generation(
        &self,
        disks: &[DiskLayout],
        note: Option<&str>,
    ) -> Result<Vec<Arc<Overlay>>, DesktopError> {
        let mut record = self.lock();
        let generation = record.next_generation;
        let nonce = nonce()?;
        let overlays = disks
            .iter()
            .map(|disk| {
                let identity = identity(&record, *disk, generation);
                Ok(Arc::new(Overlay::create(&*self.volume, identity, record.head, nonce)?))
            })
            .collect::<Result<Vec<_>, DesktopError>>()?;
        self.volume.sync_names().map_err(|e| io_error("sync", "the directory", e))?;
        let mut next = record.clone();
        if let (Some(text), Some(last)) = (note, record.generations.last()) {
            next.note = Some(KeptNote { text: text.to_owned(), through_generation: *last });
        }
        next.generations.push(generation);
        next.next_generation = generation + 1;
        self.replace_record(&mut record, next)?;
        Ok(overlays)
    }

    /// Adds a generation as [`add_generation`](Self::add_generation) does; it and all after it are thrown away when the
    /// desktop is opened next.
    ///
    /// # Errors
    /// As `add_generation`.
    pub fn add_discarded_generation(&self, disks: &[DiskLayout]) -> Result<(), DesktopError> {
        {
            // Before there is anything to discard: a crash in between leaves a mark that finds nothing.
            let mut record = self.lock();
            let next = DesktopRecord { discard_from: Some(record.next_generation), ..record.clone() };
            self.replace_record(&mut record, next)?;
        }
        self.add_generation(disks, None).map(drop)
    }

    /// Throws away what was written while the desktop was opened to be looked at. The files go first, since the record takes
    /// space, which they may have taken: while it names them still, nothing reads them.
    pub(super) fn discard(&self) -> Result<(), DesktopError> {
        let mut record = self.lock();
        if record.discard_from.is_none() {
            return Ok(());
        }
        let mut next = record.clone();
        next.forget_discarded();
        next.discard_from = None;
        self.remove_leftovers(&next);
        self.replace_record(&mut record, next)
    }

    /// Keeps what was to be thrown away. It is durable.
    pub(super) fn keep_discarded(&self) -> Result<(), DesktopError> {
        let mut record = self.lock();
        let next = DesktopRecord { discard_from: None, ..record.clone() };
        self.replace_record(&mut record, next)
    }

    /// Notes that a version is about to be committed, before the server is asked to: should the answer be lost, the
    /// next sync knows its own version when it meets it.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_pending(&self, version: &Version, through_generation: u64) -> Result<(), DesktopError> {
        let mut record = self.lock();
        store_version(&*self.volume, version)?;
        let pending = Some(Pending { manifest: version.id, through_generation });
        let next = DesktopRecord { pending, ..record.clone() };
        self.replace_record(&mut record, next)
    }

    /// Notes that a renewal is about to be committed, before the server is asked to: should the answer be lost, the next
    /// sync does not take it for another machine's version. A version that is committed, or moved to, ends the note.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_renewal(&self, version: ManifestId) -> Result<(), DesktopError> {
        let mut record = self.lock();
        let next = DesktopRecord { renewal: Some(version), ..record.clone() };
        self.replace_record(&mut record, next)
    }

    /// The note of a version that was made here and was not heard to be committed.
    ///
    /// # Errors
    /// `Io`, `BadVersion`.
    pub fn uncommitted_note(&self) -> Result<Option<String>, DesktopError> {
        let record = self.record();
        let of_pending = match record.pending {
            Some(pending) => self.version(pending.manifest)?.manifest.note,
            None => None,
        };
        Ok(of_pending.or(record.note.map(|note| note.text)))
    }

    /// Forgets a version that was never committed.
    ///
    /// # Errors
    /// `Io`.
    pub fn clear_pending(&self) -> Result<(), DesktopError> {
        let mut record = self.lock();
        let next = DesktopRecord { pending: None, ..record.clone() };
        self.replace_record(&mut record, next)
    }

    /// Notes whether all of the desktop is to be on this machine, and how fast at most it is to come.
    ///
    /// # Errors
    /// `Io`.
    pub fn set_pinned(&self, pinned: bool, pin_rate_bytes_per_s: Option<u64>) -> Result<(), DesktopError> {
        let mut record = self.lock();
        let next = DesktopRecord { pinned, pin_rate_bytes_per_s, ..record.clone() };
        self.replace_record(&mut record, next)
    }

    /// Makes a committed version the head and drops the overlays it holds. The overlay files go last: until then
    /// they are only superfluous.
    ///
    /// # Errors
    /// `Io`, `Overlay`.
    pub fn fold(&self, committed: Pending) -> Result<(), DesktopError> {
        let mut record = self.lock();
        // What was written over with what was there before is no version: the renewal may still be the head.
        let renewal = record.renewal.filter(|_| committed.manifest == record.head);
        let note = record.note.clone().filter(|note| note.through_generation > committed.through_generation);
        let mut next =
            DesktopRecord { head: committed.manifest, pending: None, note, renewal, ..record.clone() };
        next.generations.retain(|generation| *generation > committed.through_generation);
        self.replace_record(&mut record, next)?;
        self.remove_leftovers(&record);
        Ok(())
    }

    /// Moves to a newer version that another machine made. Only for a desktop without overlays that hold anything:
    /// they are dropped.
    ///
    /// # Errors
    /// `Io`, `Overlay`.
    pub fn move_to(&self, head: &Version, base: &Version) -> Result<(), DesktopError> {
        let record = self.lock();
        let (id, publisher) = (record.id, record.publisher);
        self.stand_on(record, id, publisher, head, base)
    }

    /// Moves to a version of another desktop that has this one's name: it was made on a server that knew this one no more.
    /// As [`move_to`](Self::move_to); what names the desktop by its id, as the cache, is begun anew.
    ///
    /// # Errors
    /// As `move_to`.
    pub fn move_to_another(
        &self,
        id: ManifestId,
        head: &Version,
        base: &Version,
    ) -> Result<(), DesktopError> {
        self.stand_on(self.lock(), id, base.signature.key, head, base)
    }

    fn stand_on(
        &self,
        mut record: MutexGuard<'_, DesktopRecord>,
        id: ManifestId,
        publisher: PublicKey,
        head: &Version,
        base: &Version,
    ) -> Result<(), DesktopError> {
        store_version(&*self.volume, head)?;
        store_version(&*self.volume, base)?;
        let next = DesktopRecord {
            id,
            publisher,
            head: head.id,
            base: base.id,
            generations: Vec::new(),
            pending: None,
            note: None,
            renewal: None,
            volatile_system: None,
            ..record.clone()
        };
        self.replace_record(&mut record, next)?;
        self.remove_leftovers(&record);
        Ok(())
    }

    fn replace_record(
        &self,
        record: &mut MutexGuard<'_, DesktopRecord>,
        next: DesktopRecord,
    ) -> Result<(), DesktopError> {
        let stored = store_record(&*self.volume, &next);
        if stored.is_ok() {
            **record = next;
        } else if let Ok(found) = load_record(&*self.volume) {
            // It may have been replaced all the same, only not for good: what others find is what holds.
            **record = found;
        }
        stored
    }

    /// Removes overlays and versions that the record does not name. What cannot be removed stays for the next opening:
    /// it only takes space.
    fn remove_leftovers(&self, record: &DesktopRecord) {
        let versions: BTreeSet<String> =
            [Some(record.head), Some(record.base), record.pending.map(|p| p.manifest)]
                .into_iter()
                .flatten()
                .flat_map(|id| <[String; 2]>::from(version_files(id)))
                .collect();
        let names = self.volume.list().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list the desktop's directory");
            Vec::new()
        });
        for name in names {
            let superfluous = match overlay::parse_file_name(&name) {
                Some((_, generation)) => {
                    !record.generations.contains(&generation) && record.volatile_system != Some(generation)
                }
                None => is_version_file(&name) && !versions.contains(&name),
            };
            if superfluous {
                self.remove(&name);
            }
        }
    }

    /// Removes what replacements that were cut short left behind. At the opening only: later, others are under way.
    fn remove_unfinished(&self) {
        let names = self.volume.list().unwrap_or_default();
        names.iter().filter(|name| name.ends_with(UNFINISHED)).for_each(|name| self.remove(name));
    }

    fn remove(&self, name: &str) {
        if let Err(error) = self.volume.remove(name) {
            tracing::warn!(file = name, %error, "cannot remove a file that is no longer needed");
        }
    }

    fn lock(&self) -> MutexGuard<'_, DesktopRecord> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for DesktopStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DesktopStore").field("record", &*self.lock()).finish_non_exhaustive()
    }
}

fn identity(record: &DesktopRecord, disk: DiskLayout, generation: u64) -> OverlayIdentity {
    OverlayIdentity { desktop: record.id, role: disk.role, size: disk.size, generation }
}

fn nonce() -> Result<u64, DesktopError> {
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(|error| DesktopError::NoRandomness { reason: error.to_string() })?;
    Ok(u64::from_le_bytes(nonce))
}

fn load_record(volume: &dyn Volume) -> Result<DesktopRecord, DesktopError> {
    #[derive(serde::Deserialize)]
    struct Preamble {
        version: u32,
    }
    let bytes = match volume.read(FILE_NAME, MAX_RECORD_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(DesktopError::NotHere),
        Err(source) => return Err(io_error("read", FILE_NAME, source)),
    };
    let damaged = |error: serde_json::Error| DesktopError::Damaged {
        file: FILE_NAME.to_owned(),
        reason: error.to_string(),
    };
    let preamble: Preamble = serde_json::from_slice(&bytes).map_err(damaged)?;
    if preamble.version != VERSION {
        return Err(DesktopError::UnsupportedVersion { found: preamble.version });
    }
    serde_json::from_slice(&bytes).map_err(damaged)
}

fn store_record(volume: &dyn Volume, record: &DesktopRecord) -> Result<(), DesktopError> {
    let mut bytes = serde_json::to_vec_pretty(record)
        .map_err(|error| DesktopError::Damaged { file: FILE_NAME.to_owned(), reason: error.to_string() })?;
    bytes.push(b'\n');
    volume.replace(FILE_NAME, &bytes).map_err(|e| io_error("write", FILE_NAME, e))
}

fn store_version(volume: &dyn Volume, version: &Version) -> Result<(), DesktopError> {
    let (name, signature_name) = version_files(version.id);
    volume.replace(&name, &version.bytes).map_err(|e| io_error("write", &name, e))?;
    volume
        .replace(&signature_name, &version.signature.encode())
        .map_err(|e| io_error("write", &signature_name, e))
}

fn version_files(id: ManifestId) -> (String, String) {
    (format!("{id}.json"), format!("{id}.sig"))
}

fn is_version_file(name: &str) -> bool {
    name.split_once('.')
        .is_some_and(|(stem, ext)| stem.parse::<ManifestId>().is_ok() && matches!(ext, "json" | "sig"))
}

fn io_error(action: &'static str, file: &str, source: io::Error) -> DesktopError {
    DesktopError::Io { action, file: file.to_owned(), source }
}
