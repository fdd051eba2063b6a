//! What lies where in a server's directory.
//!
//! ```text
//! DIR/                    0700
//!   server.json           format, version and the bucket of the objects, if they lie in one; written last by `init`:
//!                         without it the directory is not a server's
//!   unfinished            there while `init` runs, and after one that was cut short
//!   identity.key          0600, the server's Ed25519 key
//!   tls/cert.pem key.pem  the certificate clients pin; may be replaced by one of a public authority
//!   database.sqlite       and its -wal and -shm
//!   objects/              the object store: image/..., user/... as in the data plane, staging/, and owner, the server's public
//!                         key; absent when a bucket is
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::storage::Bucket;

const FORMAT: &str = "satchel-server";
/// Of a server that has its objects in its directory, and of one that has them in a bucket.
const VERSION: u64 = 1;
const VERSION_WITH_BUCKET: u64 = 2;

/// Why a directory cannot be used as a server's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// There is no server here.
    #[error("{} is not a server's directory: make one with `satchel-server init {}`", path.display(), path.display())]
    NotInitialised {
        /// The directory.
        path: PathBuf,
    },
    /// What says that a server is here is not, and the rest is.
    #[error(
        "{} has a server's {found} and no server.json, without which nothing here is used: restore that file from a backup of \
         the directory", path.display()
    )]
    MarkerLost {
        /// The directory.
        path: PathBuf,
        /// What of a server is there.
        found: &'static str,
    },
    /// `init` was cut short here.
    #[error(
        "the initialisation of {} was not finished: run `satchel-server init {}` again, with the options it had",
        path.display(), path.display()
    )]
    Unfinished {
        /// The directory.
        path: PathBuf,
    },
    /// There is a server here already.
    #[error("{} is already initialised: nothing was changed", path.display())]
    AlreadyInitialised {
        /// The directory.
        path: PathBuf,
    },
    /// Something else is here.
    #[error("{} is not empty and not a server's directory: name a new or an empty one", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// Another `init` works on it.
    #[error("another `satchel-server init` is at work in {}", path.display())]
    InitRunning {
        /// The directory.
        path: PathBuf,
    },
    /// Made by another program, or a newer one.
    #[error(
        "{} says format {format:?}, version {version}; this program knows {FORMAT:?}, versions {VERSION} and \
         {VERSION_WITH_BUCKET}: use the one that wrote it, or a newer one", path.display()
    )]
    Unknown {
        /// The marker file.
        path: PathBuf,
        /// The format it names.
        format: String,
        /// The version it names.
        version: u64,
    },
    /// A file of the directory does not hold what it should.
    #[error("{} cannot be read: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// Adds what was tried, on what, to the system's reason.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LayoutError {
    move |source| LayoutError::Io { action, path: path.to_owned(), source }
}

/// The first thing read of a directory: whether this program can use it.
#[derive(Serialize, Deserialize)]
struct Marker {
    format: String,
    version: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bucket: Option<Bucket>,
}

/// A server's directory.
#[derive(Clone, Debug)]
pub(crate) struct DataDir {
    root: PathBuf,
    bucket: Option<Bucket>,
}

impl DataDir {
    /// Names a directory without looking at it.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), bucket: None }
    }

    /// Names the bucket of the objects.
    pub(crate) fn with_bucket(self, bucket: Option<Bucket>) -> Self {
        Self { bucket, ..self }
    }

    /// Takes a directory that `init` has finished.
    ///
    /// # Errors
    /// `NotInitialised`, `MarkerLost`, `Unfinished`, `Unknown`, `Invalid` or `Io`.
    pub(crate) fn open(root: &Path) -> Result<Self, LayoutError> {
        let dir = Self::new(root);
        let path = dir.marker();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let path = root.to_owned();
                if dir.unfinished().exists() {
                    return Err(LayoutError::Unfinished { path });
                }
                dir.refuse_without_marker()?;
                return Err(LayoutError::NotInitialised { path });
            }
            Err(source) => return Err(io_error("read", &path)(source)),
        };
        let marker: Marker = serde_json::from_slice(&text)
            .map_err(|error| LayoutError::Invalid { path: path.clone(), reason: error.to_string() })?;
        let Marker { format, version, bucket } = marker;
        if format != FORMAT || ![VERSION, VERSION_WITH_BUCKET].contains(&version) {
            return Err(LayoutError::Unknown { path, format, version });
        }
        if version != version_of(bucket.as_ref()) {
            let reason = match bucket {
                None => format!(
                    "it is of version {version}, of servers with their objects in a bucket, and names no bucket"
                ),
                Some(_) => format!(
                    "it is of version {version}, of servers with their objects in the directory, and names a bucket"
                ),
            };
            return Err(LayoutError::Invalid { path, reason: format!("{reason}: restore it from a backup") });
        }
        Ok(dir.with_bucket(bucket))
    }

    /// Where the objects lie, unless in the directory.
    pub(crate) fn bucket(&self) -> Option<&Bucket> {
        self.bucket.as_ref()
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn marker(&self) -> PathBuf {
        self.root.join("server.json")
    }

    pub(crate) fn unfinished(&self) -> PathBuf {
        self.root.join("unfinished")
    }

    pub(crate) fn identity_key(&self) -> PathBuf {
        self.root.join("identity.key")
    }

    pub(crate) fn tls(&self) -> PathBuf {
        self.root.join("tls")
    }

    pub(crate) fn certificate(&self) -> PathBuf {
        self.tls().join("cert.pem")
    }

    pub(crate) fn certificate_key(&self) -> PathBuf {
        self.tls().join("key.pem")
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("database.sqlite")
    }

    pub(crate) fn objects(&self) -> PathBuf {
        self.root.join("objects")
    }

    /// Refuses a directory without a marker that has what is a server's all the same.
    ///
    /// # Errors
    /// `MarkerLost`.
    pub(crate) fn refuse_without_marker(&self) -> Result<(), LayoutError> {
        let parts = [
            (self.database(), "database.sqlite"),
            (self.identity_key(), "identity.key"),
            (self.objects(), "objects"),
        ];
        match parts.into_iter().find(|(part, _)| part.exists()) {
            Some((_, found)) => Err(LayoutError::MarkerLost { path: self.root.clone(), found }),
            None => Ok(()),
        }
    }

    /// Marks the directory as a finished server's, durably: the last step of `init`.
    pub(crate) fn write_marker(&self) -> Result<(), LayoutError> {
        let (bucket, version) = (self.bucket.clone(), version_of(self.bucket.as_ref()));
        let marker = Marker { format: FORMAT.to_owned(), version, bucket };
        let text = serde_json::to_vec(&marker)
            .map_err(|error| LayoutError::Invalid { path: self.marker(), reason: error.to_string() })?;
        let staged = self.root.join("server.json.new");
        write_durably(&staged, &text, 0o644)?;
        fs::rename(&staged, self.marker()).map_err(io_error("rename", &staged))?;
        sync_dir(&self.root)
    }

    /// Waits until no other process of ours opens or upgrades the database; held until the file is dropped.
    pub(crate) fn lock(&self) -> Result<File, LayoutError> {
        let path = self.marker();
        let file = File::open(&path).map_err(io_error("open", &path))?;
        file.lock().map_err(io_error("lock", &path))?;
        Ok(file)
    }
}

/// A program that knows no buckets must not take such a server for one without objects.
fn version_of(bucket: Option<&Bucket>) -> u64 {
    if bucket.is_some() { VERSION_WITH_BUCKET } else { VERSION }
}

/// Writes a file with these permissions and waits until it is on disk.
pub(crate) fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> Result<(), LayoutError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(io_error("write", path))
}

/// Waits until a directory's entries are on disk.
pub(crate) fn sync_dir(path: &Path) -> Result<(), LayoutError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(io_error("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_a_servers_only_with_its_marker() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::new(temp.path());
        assert!(matches!(DataDir::open(temp.path()).unwrap_err(), LayoutError::NotInitialised { .. }));
        fs::write(dir.unfinished(), "").unwrap();
        assert!(matches!(DataDir::open(temp.path()).unwrap_err(), LayoutError::Unfinished { .. }));
        dir.write_marker().unwrap();
        DataDir::open(temp.path()).unwrap();
        let opened_as = |version: u64| {
            fs::write(dir.marker(), format!(r#"{{"format":"satchel-server","version":{version}}}"#)).unwrap();
            DataDir::open(temp.path()).unwrap_err()
        };
        assert!(matches!(opened_as(3), LayoutError::Unknown { version: 3, .. }));
        assert!(matches!(opened_as(2), LayoutError::Invalid { .. }));
        fs::write(dir.marker(), "").unwrap();
        assert!(matches!(DataDir::open(temp.path()).unwrap_err(), LayoutError::Invalid { .. }));
    }

    #[test]
    fn the_marker_names_the_bucket() {
        let temp = tempfile::tempdir().unwrap();
        let bucket: Bucket = "s3://desktops/prod".parse().unwrap();
        DataDir::new(temp.path()).with_bucket(Some(bucket.clone())).write_marker().unwrap();
        let text = fs::read_to_string(temp.path().join("server.json")).unwrap();
        assert_eq!(
            text,
            r#"{"format":"satchel-server","version":2,"bucket":{"bucket":"desktops","prefix":"prod"}}"#
        );
        assert_eq!(DataDir::open(temp.path()).unwrap().bucket(), Some(&bucket));
        fs::write(temp.path().join("server.json"), text.replace("\"version\":2", "\"version\":1")).unwrap();
        assert!(matches!(DataDir::open(temp.path()).unwrap_err(), LayoutError::Invalid { .. }));
    }
}
