//! Profiles on this machine, and how they come here.

use std::collections::HashSet;
use std::path::PathBuf;

use chunk_format::{
    FormatError, MAX_PROFILE_BYTES, MAX_SIGNATURE_BYTES, ManifestId, Namespace, Profile, ProfileId,
    PublicKey, Signature,
};

use crate::desktop::Version;
use crate::fetch::{FetchError, Fetcher, OnMissing, write_whole};
use crate::remote::Remote;
use crate::source::{HttpSource, Object, ObjectPath, get_whole};

/// A pointer is an id in text and a line end.
const MAX_POINTER_BYTES: usize = 80;

/// Why a version's profile is not used.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It could not be had; the version may have none.
    #[error("the version's profile cannot be had")]
    Fetch(#[from] FetchError),
    /// It is signed, but not by the image's publisher.
    #[error("the profile is signed by {found}, but {expected} must sign it")]
    WrongKey {
        /// The key that signed it.
        found: PublicKey,
        /// The key that must.
        expected: PublicKey,
    },
    /// It is another version's.
    #[error("the profile was recorded on version {found}, not on {expected}")]
    OtherVersion {
        /// The version it names.
        found: ManifestId,
        /// The version it should name.
        expected: ManifestId,
    },
    /// Its bytes do not hold.
    #[error("the profile does not hold")]
    Bad(#[from] FormatError),
}

/// A profile with the bytes it was signed by.
#[derive(Clone, Debug)]
pub struct SignedProfile {
    /// What it says.
    pub profile: Profile,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The signature over them.
    pub signature: Signature,
}

impl SignedProfile {
    /// Reads a profile and checks that it is of this version, and signed by who signed that.
    ///
    /// # Errors
    /// `Bad`, `WrongKey`, `OtherVersion`.
    pub fn decode(bytes: Vec<u8>, signature: Signature, version: &Version) -> Result<Self, ProfileError> {
        signature.verify("profile", &bytes)?;
        let expected = version.signature.key;
        if signature.key != expected {
            return Err(ProfileError::WrongKey { found: signature.key, expected });
        }
        let profile = Profile::decode(&bytes)?;
        if profile.manifest != version.id {
            return Err(ProfileError::OtherVersion { found: profile.manifest, expected: version.id });
        }
        Ok(Self { profile, bytes, signature })
    }
}

/// A profile's bytes and its signature, as they came.
#[derive(Debug)]
pub(crate) struct UnjudgedProfile {
    bytes: Vec<u8>,
    signature: Signature,
}

impl UnjudgedProfile {
    /// Fetches a profile of an image's from the server; none when it cannot be had, for it is asked for again when it is needed.
    pub(crate) async fn fetch(remote: &Remote, image: Namespace, id: ProfileId) -> Option<Self> {
        let source = HttpSource::new(remote.clone());
        let path = |object| ObjectPath { namespace: image.clone(), object };
        let (profile, signature) = (path(Object::Profile(id)), path(Object::ProfileSignature(id)));
        let fetched = tokio::try_join!(
            get_whole(&source, &profile, MAX_PROFILE_BYTES),
            get_whole(&source, &signature, MAX_SIGNATURE_BYTES)
        );
        let (bytes, signature) = match fetched {
            Ok(fetched) => fetched,
            Err(error) => {
                tracing::info!(error = &error as &dyn std::error::Error, "no profile was fetched ahead");
                return None;
            }
        };
        // The signature is over the bytes: whether they are those of the id does not matter.
        Some(Self { bytes, signature: Signature::decode(&signature).ok()? })
    }

    /// The profile, if it is this version's.
    pub(crate) fn judge(self, version: &Version) -> Option<SignedProfile> {
        SignedProfile::decode(self.bytes, self.signature, version)
            .inspect_err(|error| tracing::info!(%error, "a profile that was fetched ahead is not used"))
            .ok()
    }
}

/// Fetches the profile of a golden version, and judges it.
///
/// # Errors
/// [`ProfileError`].
pub async fn fetch_profile(fetcher: &Fetcher, version: &Version) -> Result<SignedProfile, ProfileError> {
    let namespace = version.manifest.subject.namespace();
    let path = |object| ObjectPath { namespace: namespace.clone(), object };
    let pointer = path(Object::ManifestProfile(version.id));
    let id = fetcher.object(&pointer, MAX_POINTER_BYTES, OnMissing::Fail, pointed_at).await?;
    let (profile, signature) = (path(Object::Profile(id)), path(Object::ProfileSignature(id)));
    let (bytes, signature) = tokio::try_join!(
        fetcher.object(&profile, MAX_PROFILE_BYTES, OnMissing::Fail, |bytes| {
            id.verify(bytes).map(|()| bytes.to_vec())
        }),
        fetcher.object(&signature, MAX_SIGNATURE_BYTES, OnMissing::Fail, Signature::decode)
    )?;
    SignedProfile::decode(bytes, signature, version)
}

fn pointed_at(bytes: &[u8]) -> Result<ProfileId, FormatError> {
    String::from_utf8_lossy(bytes).trim_end().parse()
}

/// A directory of profiles: the signature's line, then the profile, under the version's id. Each is judged again when
/// read.
#[derive(Clone, Debug)]
pub struct ProfileStore {
    dir: PathBuf,
}

impl ProfileStore {
    /// Uses a directory that exists.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The profile of a version, if it is here and holds.
    pub fn load(&self, version: &Version) -> Option<SignedProfile> {
        let path = self.dir.join(version.id.to_string());
        if std::fs::metadata(&path).ok()?.len() > (MAX_PROFILE_BYTES + MAX_SIGNATURE_BYTES) as u64 {
            return None;
        }
        let bytes = std::fs::read(&path).ok()?;
        let line = bytes.iter().position(|byte| *byte == b'\n')?;
        let signature = Signature::decode(bytes.get(..line)?).ok()?;
        SignedProfile::decode(bytes.get(line + 1..)?.to_vec(), signature, version).ok()
    }

    /// Keeps a profile; failing to is no more than a fetch lost.
    pub fn keep(&self, profile: &SignedProfile) {
        let mut bytes = profile.signature.encode().trim_ascii_end().to_vec();
        bytes.push(b'\n');
        bytes.extend_from_slice(&profile.bytes);
        let path = self.dir.join(profile.profile.manifest.to_string());
        if let Err(error) = write_whole(&self.dir, &path, &bytes) {
            tracing::debug!(version = %profile.profile.manifest, %error, "a profile was not kept");
        }
    }

    /// Removes the profiles of all other versions.
    pub fn retain(&self, wanted: &HashSet<ManifestId>) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        for entry in entries.flatten() {
            let id = entry.file_name().to_str().and_then(|name| name.parse::<ManifestId>().ok());
            if !id.is_some_and(|id| wanted.contains(&id)) {
                // What cannot be removed now is looked at again next time.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use chunk_format::{
        Architecture, BootFacts, ChunkIndex, ChunkSize, Disk, DiskRole, DiskSize, Features, Firmware,
        Manifest, ProfileEntry, SecretKey, SegmentId, Subject,
    };

    use super::*;

    fn golden(sequence: u64, key: &SecretKey) -> Version {
        let manifest = Manifest {
            features: Features::default(),
            subject: Subject::Image { image: "debian".parse().unwrap() },
            base: None,
            parent: (sequence > 1).then(|| ManifestId::of(b"before")),
            sequence,
            created_ms: 0,
            machine: "build-7".to_owned(),
            note: None,
            disks: vec![Disk {
                role: DiskRole::System,
                size: DiskSize::new(64 << 20).unwrap(),
                chunk_size: ChunkSize::DEFAULT,
                segments: vec![SegmentId::of(b"segment")],
            }],
            boot: BootFacts { firmware: Firmware::Bios, architecture: Architecture::X86_64 },
            system_mode: None,
        };
        let bytes = manifest.encode().unwrap();
        Version::decode(bytes.clone(), key.sign(&bytes)).unwrap()
    }

    fn unjudged(version: &Version, key: &SecretKey) -> UnjudgedProfile {
        let entries = vec![ProfileEntry { disk: 0, chunk: ChunkIndex(7) }];
        let bytes = Profile { manifest: version.id, entries, streams: Vec::new() }.encode().unwrap();
        let signature = key.sign(&bytes);
        UnjudgedProfile { bytes, signature }
    }

    #[test]
    fn a_profile_is_kept_only_if_the_publisher_signed_it_for_this_version() {
        let (publisher, other) = (SecretKey::from_bytes(&[1; 32]), SecretKey::from_bytes(&[2; 32]));
        let (version, next) = (golden(1, &publisher), golden(2, &publisher));
        assert!(unjudged(&version, &other).judge(&version).is_none());
        assert!(unjudged(&next, &publisher).judge(&version).is_none());
        let mut altered = unjudged(&version, &publisher);
        *altered.bytes.last_mut().unwrap() ^= 1;
        assert!(altered.judge(&version).is_none());

        let profile = unjudged(&version, &publisher).judge(&version).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = ProfileStore::new(dir.path().to_owned());
        assert!(store.load(&version).is_none());
        store.keep(&profile);
        assert_eq!(store.load(&version).unwrap().profile, profile.profile);
        assert!(store.load(&next).is_none());
        // What lies under a version's name is judged as what comes from elsewhere.
        let misplaced = dir.path().join(next.id.to_string());
        std::fs::copy(dir.path().join(version.id.to_string()), misplaced).unwrap();
        assert!(store.load(&next).is_none());
    }
}
