//! The record: the one small file that says what a desktop is made of. Every step of a freeze, a sync or a fold is
//! one replacement of it.

use chunk_format::{MAX_NOTE_BYTES, Manifest, ManifestId, Name, PublicKey, Signature, presentable};
use serde::{Deserialize, Deserializer, Serialize};

pub(super) const FILE_NAME: &str = "desktop.json";
pub(super) const VERSION: u32 = 1;

/// What a desktop is made of on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesktopRecord {
    pub(super) version: u32,
    /// The server it belongs to.
    pub server: PublicKey,
    /// The user it belongs to.
    pub owner: Name,
    /// Its name.
    pub desktop: Name,
    /// Its first version: names it for ever.
    pub id: ManifestId,
    /// The version below the overlays.
    pub head: ManifestId,
    /// The golden version the head stands on.
    pub base: ManifestId,
    /// The key that signs the image's versions.
    pub publisher: PublicKey,
    /// The generations of overlays above the head, oldest first; writes go to the last, the others are frozen.
    pub generations: Vec<u64>,
    /// The generation the next overlay gets; never used twice.
    pub next_generation: u64,
    /// A version that was about to be committed: it may be the server's head or not.
    pub pending: Option<Pending>,
    /// What the version of some frozen generations is to say, until there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<KeptNote>,
    /// A renewal whose commit was not heard of: should the server's head be this one, nobody but this machine made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renewal: Option<ManifestId>,
    /// The first generation of what is thrown away at the end: the desktop was opened to be looked at.
    #[serde(default)]
    pub discard_from: Option<u64>,
    /// The generation of the system disk's overlay when that is volatile: never frozen, never synced, and replaced by an
    /// empty one at each start. The generations above are those of the other disks then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volatile_system: Option<u64>,
    /// Whether all of it is to be on this machine.
    #[serde(default)]
    pub pinned: bool,
    /// How fast at most what lacks of it is fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_rate_bytes_per_s: Option<u64>,
}

impl DesktopRecord {
    /// Whether a version on the server is the one this machine stands on, or one that it is about to stand on.
    pub fn is_ours(&self, version: ManifestId) -> bool {
        let pending = self.pending.map(|pending| pending.manifest);
        [Some(self.head), pending, self.renewal].contains(&Some(version))
    }

    /// Drops the generations that are thrown away when the desktop is opened next.
    pub(super) fn forget_discarded(&mut self) {
        if let Some(from) = self.discard_from {
            self.generations.retain(|generation| *generation < from);
        }
    }
}

/// A version about to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The version.
    pub manifest: ManifestId,
    /// The newest generation it holds.
    pub through_generation: u64,
}

/// A note of a version that is to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptNote {
    /// What it says, as a version can bear it.
    #[serde(deserialize_with = "note")]
    pub text: String,
    /// The newest generation that the version holds.
    pub through_generation: u64,
}

/// Reads a note. One that no version can bear would keep the desktop from ever being synced.
fn note<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(presentable(&String::deserialize(deserializer)?, MAX_NOTE_BYTES))
}

/// A version with the bytes it was signed by.
#[derive(Clone, Debug)]
pub struct Version {
    /// Its id.
    pub id: ManifestId,
    /// What it says.
    pub manifest: Manifest,
    /// The bytes it was read from.
    pub bytes: Vec<u8>,
    /// The signature over them, checked.
    pub signature: Signature,
}

impl Version {
    /// Reads a version and checks its signature; whose key it is, is the caller's to judge.
    ///
    /// # Errors
    /// What the formats say.
    pub fn decode(bytes: Vec<u8>, signature: Signature) -> Result<Self, chunk_format::FormatError> {
        signature.verify("manifest", &bytes)?;
        let manifest = Manifest::decode(&bytes)?;
        Ok(Self { id: ManifestId::of(&bytes), manifest, bytes, signature })
    }
}
