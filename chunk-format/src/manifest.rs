//! Manifests: what one version of an image or a desktop is. JSON, signed over its exact bytes; its SHA-256 is the
//! version's id. Field table and example: `docs/format.md`.

use serde::{Deserialize, Serialize};

use crate::error::FormatError;
use crate::id::{ManifestId, SegmentId, preview};
use crate::namespace::Name;
use crate::signature::PublicKey;
use crate::text::{check_machine, check_note};
use crate::units::{ChunkSize, DiskSize, MAX_SEGMENTS_PER_DISK};

mod features;
mod json;
mod subject;

pub use features::Features;
pub use subject::Subject;

const WHAT: &str = "manifest";
const FORMAT: &str = "satchel-manifest";
const VERSION: u64 = 1;
pub(crate) const MAX_DISKS: usize = 4;
const MAX_SEGMENTS: usize = MAX_SEGMENTS_PER_DISK as usize;
/// The largest number every JSON reader keeps exact.
const MAX_EXACT: u64 = (1 << 53) - 1;

/// The longest manifest anyone accepts, bytes: two disks of the most segments fit.
pub const MAX_MANIFEST_BYTES: usize = 12 << 20;

/// The golden version a desktop's system disk stands on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// The image.
    pub image: Name,
    /// The channel the desktop follows; none when it was made from one version.
    pub channel: Option<Name>,
    /// The golden version.
    pub version: ManifestId,
    /// The key that signs the image's versions: the owner's next machine learns it here, not from the server.
    pub publisher: PublicKey,
}

/// What a disk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskRole {
    /// The disk that boots, from an image.
    System,
    /// The person's own disk.
    Home,
}

impl DiskRole {
    /// `system` or `home`: also the stem of the disk's file name in a mount.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Home => "home",
        }
    }
}

impl std::fmt::Display for DiskRole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One disk of a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// What it is for; each role appears once.
    #[serde(deserialize_with = "json::name")]
    pub role: DiskRole,
    /// Its size.
    #[serde(rename = "size_bytes")]
    pub size: DiskSize,
    /// Bytes per chunk.
    #[serde(rename = "chunk_size_bytes")]
    pub chunk_size: ChunkSize,
    /// Its segments in order; as many as cover the disk.
    #[serde(deserialize_with = "json::list::<_, _, MAX_SEGMENTS>")]
    pub segments: Vec<SegmentId>,
}

/// How a disk's boot code is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// A boot sector, by a BIOS.
    Bios,
    /// An EFI system partition, by UEFI firmware.
    Uefi,
}

/// The processor a disk's programs are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86_64,
}

/// What an engine needs to know to start the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFacts {
    /// How its boot code is started.
    #[serde(deserialize_with = "json::name")]
    pub firmware: Firmware,
    /// The processor it needs.
    #[serde(deserialize_with = "json::name")]
    pub architecture: Architecture,
}

/// How a desktop takes up new golden versions of its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SystemMode {
    /// The system disk is the golden one at every start: what is written to it lasts until the machine is off.
    Renew,
    /// What is written to the system disk is kept until the channel names another version.
    Keep,
    /// The system disk is the desktop's own; it moves only when told to.
    Own,
}

impl SystemMode {
    /// Its name, as in a manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Renew => "renew",
            Self::Keep => "keep",
            Self::Own => "own",
        }
    }
}

impl std::fmt::Display for SystemMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One version of an image or a desktop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// What it uses beyond version 1 of the format.
    pub features: Features,
    /// What it is a version of.
    pub subject: Subject,
    /// The golden version below; for desktops only.
    pub base: Option<Base>,
    /// The version before this one; none for the first.
    pub parent: Option<ManifestId>,
    /// 1 for the first version, then one more than the parent's, below 2^53: clients refuse to go back in it unless
    /// told.
    pub sequence: u64,
    /// When it was made, by the maker's clock, milliseconds since 1970 UTC, below 2^53. For people; nothing is decided by
    /// it.
    pub created_ms: u64,
    /// The machine it was made on, for people; at most [`crate::MAX_MACHINE_BYTES`].
    pub machine: String,
    /// What its maker says of it; at most [`crate::MAX_NOTE_BYTES`].
    pub note: Option<String>,
    /// Its disks; the system disk first.
    pub disks: Vec<Disk>,
    /// How to start it.
    pub boot: BootFacts,
    /// How a desktop takes up new golden versions ([`SystemMode::Own`] when absent); of an image, what desktops made from
    /// it do unless told otherwise.
    pub system_mode: Option<SystemMode>,
}

/// The manifest's fields as JSON has them, with the format's own name and version in front.
#[derive(Serialize, Deserialize)]
struct Document {
    format: String,
    version: u64,
    #[serde(default, deserialize_with = "json::object")]
    features: Features,
    #[serde(deserialize_with = "json::object")]
    subject: Subject,
    #[serde(default, deserialize_with = "json::optional_object")]
    base: Option<Base>,
    parent: Option<ManifestId>,
    sequence: u64,
    created_ms: u64,
    machine: String,
    note: Option<String>,
    #[serde(deserialize_with = "json::objects::<_, _, MAX_DISKS>")]
    disks: Vec<Disk>,
    #[serde(deserialize_with = "json::object")]
    boot: BootFacts,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "json::optional_name")]
    system_mode: Option<SystemMode>,
}

/// What is read first: an unknown version or feature may have changed all other fields.
#[derive(Deserialize)]
struct Preamble {
    format: String,
    version: u64,
    #[serde(default, deserialize_with = "json::object")]
    features: Features,
}

impl Manifest {
    /// The manifest's bytes: what is signed, hashed, sent and stored.
    ///
    /// # Errors
    /// `Field` when a value is out of range: what this writes, [`Manifest::decode`] reads.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let document = Document {
            format: FORMAT.to_owned(),
            version: VERSION,
            features: self.features.clone(),
            subject: self.subject.clone(),
            base: self.base.clone(),
            parent: self.parent,
            sequence: self.sequence,
            created_ms: self.created_ms,
            machine: self.machine.clone(),
            note: self.note.clone(),
            disks: self.disks.clone(),
            boot: self.boot,
            system_mode: self.system_mode,
        };
        let mut bytes = serde_json::to_vec_pretty(&document)
            .map_err(|error| FormatError::Json { what: WHAT, reason: error.to_string() })?;
        bytes.push(b'\n');
        check_length(&bytes)?;
        Ok(bytes)
    }

    /// Reads a manifest; any input is safe to pass. Its signature and id are the caller's to check.
    ///
    /// # Errors
    /// `TooLong`, `Json`, `UnsupportedVersion`, `UnsupportedFeatures`, or `Field` naming what is out of range.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        check_length(bytes)?;
        let preamble: Preamble = json::read(WHAT, bytes)?;
        if preamble.format != FORMAT {
            return Err(FormatError::field(WHAT, "format", preview(&preamble.format), FORMAT));
        }
        if preamble.version != VERSION {
            let (found, supported) = (preamble.version, VERSION);
            return Err(FormatError::UnsupportedVersion { what: WHAT, found, supported });
        }
        let features = Features::unknown(&preamble.features.incompatible);
        if !features.is_empty() {
            return Err(FormatError::UnsupportedFeatures { what: WHAT, features });
        }
        let document: Document = json::read(WHAT, bytes)?;
        let manifest = Self {
            features: document.features,
            subject: document.subject,
            base: document.base,
            parent: document.parent,
            sequence: document.sequence,
            created_ms: document.created_ms,
            machine: document.machine,
            note: document.note,
            disks: document.disks,
            boot: document.boot,
            system_mode: document.system_mode,
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks that a new version may be made on top of this one.
    ///
    /// # Errors
    /// `UnsupportedFeatures` when it uses read-only-compatible features this library does not know.
    pub fn check_writable(&self) -> Result<(), FormatError> {
        let features = Features::unknown(&self.features.read_only_compatible);
        if features.is_empty() {
            return Ok(());
        }
        Err(FormatError::UnsupportedFeatures { what: WHAT, features })
    }

    /// How a desktop takes up new golden versions.
    pub fn mode(&self) -> SystemMode {
        self.system_mode.unwrap_or(SystemMode::Own)
    }

    /// The disk with this role.
    pub fn disk(&self, role: DiskRole) -> Option<&Disk> {
        self.disks.iter().find(|disk| disk.role == role)
    }

    fn check(&self) -> Result<(), FormatError> {
        self.features.check()?;
        match (&self.subject, &self.base) {
            (Subject::Image { .. }, Some(_)) => {
                return Err(FormatError::field(WHAT, "base", "present", "absent for an image"));
            }
            (Subject::Desktop { .. }, None) => {
                return Err(FormatError::field(WHAT, "base", "absent", "present for a desktop"));
            }
            _ => {}
        }
        if self.sequence == 0 || (self.sequence == 1) != self.parent.is_none() {
            let found =
                format!("{} with {} parent", self.sequence, if self.parent.is_some() { "a" } else { "no" });
            return Err(FormatError::field(WHAT, "sequence", found, "1 without a parent, more with one"));
        }
        for (field, number) in [("sequence", self.sequence), ("created_ms", self.created_ms)] {
            if number > MAX_EXACT {
                return Err(FormatError::field(WHAT, field, number, format!("at most {MAX_EXACT}")));
            }
        }
        check_machine(&self.machine)?;
        self.note.as_deref().map_or(Ok(()), check_note)?;
        if self.disks.is_empty() || self.disks.len() > MAX_DISKS {
            return Err(FormatError::field(WHAT, "disks", self.disks.len(), format!("1 to {MAX_DISKS}")));
        }
        if self.disks[0].role != DiskRole::System {
            return Err(FormatError::field(WHAT, "disks", self.disks[0].role, "the system disk first"));
        }
        for (at, disk) in self.disks.iter().enumerate() {
            if self.disks[..at].iter().any(|other| other.role == disk.role) {
                return Err(FormatError::field(WHAT, "role", disk.role, "used once"));
            }
            let expected = disk.size.segments(disk.chunk_size)?;
            if disk.segments.len() as u64 != u64::from(expected) {
                return Err(FormatError::field(
                    WHAT,
                    "segments",
                    disk.segments.len(),
                    format!("{expected}, at most {MAX_SEGMENTS_PER_DISK}, for {} bytes", disk.size.bytes()),
                ));
            }
        }
        Ok(())
    }
}

fn check_length(bytes: &[u8]) -> Result<(), FormatError> {
    if bytes.len() > MAX_MANIFEST_BYTES {
        let (len_bytes, limit_bytes) = (bytes.len() as u64, MAX_MANIFEST_BYTES as u64);
        return Err(FormatError::TooLong { what: WHAT, len_bytes, limit_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
