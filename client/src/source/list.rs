//! The sources of a desktop, beside its server: a file in its directory.

use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::cache_address::without_secret;
use super::{CacheAddress, SourceAddress};
use crate::volume::{DirVolume, Volume};

const FILE_NAME: &str = "sources.json";
const FORMAT_VERSION: u32 = 1;
const MAX_FILE_BYTES: usize = 64 << 10;
/// Sources a desktop may have beside its server.
const MAX_SOURCES: usize = 16;

/// Why the list could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum SourceListError {
    /// The file could not be read or written.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// The file does not hold.
    #[error("{} does not hold: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There are too many.
    #[error("a desktop has at most {MAX_SOURCES} sources beside its server")]
    TooMany,
    /// There is no such source.
    #[error("{address} is no source of this desktop")]
    NoSuch {
        /// The source, as it may be shown.
        address: String,
    },
}

/// The sources of a desktop beside its server, in the order in which they are asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceList {
    /// What a person added: asked first.
    pub added: Vec<SourceAddress>,
    /// Mirrors the server named when it was last asked: asked for what is the image's.
    pub mirrors: Vec<SourceAddress>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    #[serde(default)]
    added: Vec<SourceAddress>,
    #[serde(default)]
    mirrors: Vec<SourceAddress>,
}

impl SourceList {
    /// Reads the list in a desktop's directory; empty when there is none.
    ///
    /// # Errors
    /// `Io`, `Damaged`.
    pub fn load(volume: &DirVolume) -> Result<Self, SourceListError> {
        let path = volume.path().join(FILE_NAME);
        let bytes = match volume.read(FILE_NAME, MAX_FILE_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(SourceListError::Io { action: "read", path, source }),
        };
        let damaged = |reason: String| SourceListError::Damaged { path: path.clone(), reason };
        let stored: Stored =
            serde_json::from_slice(&bytes).map_err(|error| damaged(without_secret(&error.to_string())))?;
        if stored.version != FORMAT_VERSION {
            return Err(damaged(format!(
                "it has version {}, this program reads {FORMAT_VERSION}",
                stored.version
            )));
        }
        Ok(Self { added: stored.added, mirrors: stored.mirrors })
    }

    /// Writes the list.
    ///
    /// # Errors
    /// `Io`, `TooMany`.
    pub fn store(&self, volume: &DirVolume) -> Result<(), SourceListError> {
        if self.added.len() > MAX_SOURCES {
            return Err(SourceListError::TooMany);
        }
        let path = volume.path().join(FILE_NAME);
        let failed = |source| SourceListError::Io { action: "write", path: path.clone(), source };
        let stored =
            Stored { version: FORMAT_VERSION, added: self.added.clone(), mirrors: self.mirrors.clone() };
        let mut bytes = serde_json::to_vec_pretty(&stored).map_err(|error| failed(error.into()))?;
        bytes.push(b'\n');
        volume.replace(FILE_NAME, &bytes).map_err(failed)
    }

    /// Adds a source, as the first or the last; one that is there moves, and one that is shown as it is gives way to it.
    pub fn add(&mut self, address: SourceAddress, first: bool) {
        let shown = address.to_string();
        self.added.retain(|other| other.to_string() != shown);
        let at = if first { 0 } else { self.added.len() };
        self.added.insert(at, address);
    }

    /// Removes a source, by its address or as it is shown.
    ///
    /// # Errors
    /// `NoSuch`.
    pub fn remove(&mut self, address: &str) -> Result<(), SourceListError> {
        let shown = match address.parse::<SourceAddress>() {
            Ok(address) => address.to_string(),
            // A cache without its secret is no address, but names one.
            Err(_) => CacheAddress::shown_of(address).unwrap_or_else(|| without_secret(address)),
        };
        let before = self.added.len();
        self.added.retain(|other| other.to_string() != shown);
        match self.added.len() < before {
            true => Ok(()),
            false => Err(SourceListError::NoSuch { address: shown }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_kept_in_its_order() {
        let dir = tempfile::tempdir().unwrap();
        let volume = DirVolume::open(dir.path()).unwrap();
        let mut list = SourceList::load(&volume).unwrap();
        assert_eq!(list, SourceList::default());
        let [a, b, c] =
            ["file:/a", "https://b", "file:/c"].map(|text| text.parse::<SourceAddress>().unwrap());
        list.add(a.clone(), false);
        list.add(b.clone(), false);
        list.add(c.clone(), true);
        list.add(a.clone(), true);
        assert_eq!(list.added, [a.clone(), c.clone(), b.clone()]);
        list.store(&volume).unwrap();
        assert_eq!(SourceList::load(&volume).unwrap(), list);
        list.remove("file:/c").unwrap();
        assert!(matches!(list.remove("file:///c"), Err(SourceListError::NoSuch { .. })));
        std::fs::write(dir.path().join(FILE_NAME), r#"{"version":1,"added":["ftp://x"]}"#).unwrap();
        assert!(matches!(SourceList::load(&volume), Err(SourceListError::Damaged { .. })));
        std::fs::write(dir.path().join(FILE_NAME), r#"{"version":2}"#).unwrap();
        assert!(matches!(SourceList::load(&volume), Err(SourceListError::Damaged { .. })));
    }

    #[test]
    fn a_cache_is_known_by_what_is_shown_of_it_and_its_secret_is_kept_from_others() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let volume = DirVolume::open(dir.path()).unwrap();
        let address = |token: &str| -> SourceAddress {
            format!("cache://office:7443/#{}.{}", "ab".repeat(32), token.repeat(32)).parse().unwrap()
        };
        let mut list = SourceList::default();
        list.add("file:/a".parse().unwrap(), false);
        list.add(address("cd"), false);
        list.add(address("ef"), true);
        assert_eq!(list.added, [address("ef"), "file:/a".parse().unwrap()], "one of a machine");
        list.store(&volume).unwrap();
        assert_eq!(SourceList::load(&volume).unwrap(), list);
        let mode = std::fs::metadata(dir.path().join(FILE_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let refused = list.remove(&format!("cache://other/#{}", "ef".repeat(32))).unwrap_err().to_string();
        assert!(!refused.contains("efef"), "{refused}");
        for shown in ["cache://office:7443", "cache://office", "cache://Office:7443/"] {
            list.clone().remove(shown).unwrap();
        }
        let broken = format!(r#"{{"version":1,"added":"cache://office/#{}"}}"#, "ef".repeat(32));
        std::fs::write(dir.path().join(FILE_NAME), broken).unwrap();
        let said = SourceList::load(&volume).unwrap_err().to_string();
        assert!(said.contains("does not hold") && !said.contains("efef"), "{said}");
    }
}
