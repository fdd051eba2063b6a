//! Makes a server's directory, so that a cut at any moment leaves one that can be made again.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use chunk_format::{PublicKey, SecretKey};

use crate::database::{Database, DatabaseError};
use crate::identity;
use crate::layout::{DataDir, LayoutError, io_error, sync_dir, write_durably};
use crate::role::Role;
use crate::secret::{NoRandomness, Secret};
use crate::storage::{Bucket, Storage, StorageError};
use crate::tls::{Fingerprint, TlsError, make_certificate};
use crate::tokens::{NewToken, TokenError, issue_in};

/// The user the first token belongs to.
const FIRST_USER: &str = "admin";

/// Why a server's directory could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InitError {
    /// The directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The certificate could not be made.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The database could not be made.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// No randomness for keys.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// The object store cannot be the server's.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The first token could not be made.
    #[error(transparent)]
    Token(#[from] TokenError),
}

/// What its maker must know of a new server.
#[derive(Debug)]
pub struct Initialised {
    /// A token of the user `admin` with the role admin.
    pub token: Secret,
    /// What clients check the certificate by.
    pub fingerprint: Fingerprint,
    /// The server's identity, which outlives its certificates.
    pub server: PublicKey,
}

/// Makes a server in `root`: keys, a certificate for `names`, database and object store, in a bucket if one is named.
///
/// The directory must be missing, empty, or left by an `init` that was cut short; the bucket must be empty.
///
/// # Errors
/// `Layout` when the directory holds a server or anything else; `Storage` when the bucket does, or cannot be used; `Tls` for a
/// bad name; otherwise what failed.
pub async fn init(root: &Path, names: &[String], bucket: Option<Bucket>) -> Result<Initialised, InitError> {
    let made = make_certificate(names)?;
    let dir = DataDir::new(root).with_bucket(bucket);
    let _unfinished = begin(&dir)?;
    clear(&dir)?;

    // Of an init that was cut short, if it is whole: the bucket may be its server's already.
    let key = match identity::read(&dir.identity_key()) {
        Ok(key) => key,
        Err(_) => {
            let key = SecretKey::from_bytes(&crate::secret::random()?);
            identity::write(&dir.identity_key(), &key)?;
            key
        }
    };
    make_dir(&dir.tls())?;
    write_durably(&dir.certificate(), made.certificate_pem.as_bytes(), 0o644)?;
    write_durably(&dir.certificate_key(), made.key_pem.as_bytes(), 0o600)?;
    sync_dir(&dir.tls())?;
    if dir.bucket().is_none() {
        make_dir(&dir.objects())?;
    }

    let database = Database::create(&dir.database()).await?;
    let first = NewToken {
        user: FIRST_USER.parse().map_err(TokenError::Name)?,
        role: Role::Admin,
        label: Some("made by init".to_owned()),
        expires_ms: None,
    };
    let token = issue_in(&database, &first).await;
    database.close().await;
    let token = token?;
    sync_dir(root)?;

    Storage::claim(&dir, &key.public()).await?;
    dir.write_marker()?;
    fs::remove_file(dir.unfinished()).map_err(io_error("remove", &dir.unfinished()))?;
    sync_dir(root)?;
    Ok(Initialised { token, fingerprint: made.fingerprint, server: key.public() })
}

/// Claims the directory: from here until the marker is written it counts as unfinished.
fn begin(dir: &DataDir) -> Result<File, LayoutError> {
    let root = dir.root();
    if !root.exists() {
        let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty());
        if let Some(parent) = parent {
            fs::create_dir_all(parent).map_err(io_error("create", parent))?;
        }
        make_dir(root)?;
    }
    refuse_finished(dir)?;
    let mut entries = fs::read_dir(root).map_err(io_error("list", root))?;
    if entries.next().is_some() && !dir.unfinished().exists() {
        dir.refuse_without_marker()?;
        return Err(LayoutError::NotEmpty { path: root.to_owned() });
    }
    fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(io_error("restrict", root))?;
    let path = dir.unfinished();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(io_error("create", &path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(LayoutError::InitRunning { path: root.to_owned() }),
        Err(TryLockError::Error(source)) => return Err(io_error("lock", &path)(source)),
    }
    // Another init may have finished between the look and the lock.
    refuse_finished(dir)?;
    sync_dir(root)?;
    Ok(file)
}

fn refuse_finished(dir: &DataDir) -> Result<(), LayoutError> {
    if dir.marker().exists() {
        return Err(LayoutError::AlreadyInitialised { path: dir.root().to_owned() });
    }
    Ok(())
}

/// Removes what an `init` that was cut short may have left.
fn clear(dir: &DataDir) -> Result<(), LayoutError> {
    for path in [dir.tls(), dir.objects()] {
        absent_is_fine(fs::remove_dir_all(&path)).map_err(io_error("remove", &path))?;
    }
    let database = dir.database();
    for suffix in ["", "-wal", "-shm", "-journal"] {
        let mut path = database.clone().into_os_string();
        path.push(suffix);
        absent_is_fine(fs::remove_file(&path)).map_err(io_error("remove", Path::new(&path)))?;
    }
    Ok(())
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn make_dir(path: &Path) -> Result<(), LayoutError> {
    DirBuilder::new().mode(0o700).create(path).map_err(io_error("create", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_is_made_once() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("deep/server");
        let made = init(&root, &["files.example.org".to_owned()], None).await.unwrap();
        assert!(made.token.reveal().starts_with("satchel_"));
        assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
        let dir = DataDir::open(&root).unwrap();
        for secret in [dir.identity_key(), dir.certificate_key()] {
            assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600, "{secret:?}");
        }
        let key = fs::read(dir.identity_key()).unwrap();
        let error = init(&root, &[], None).await.unwrap_err();
        assert!(matches!(error, InitError::Layout(LayoutError::AlreadyInitialised { .. })), "{error}");
        assert_eq!(fs::read(dir.identity_key()).unwrap(), key);
    }

    #[tokio::test]
    async fn a_directory_with_other_things_is_left_alone() {
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join("thesis.txt"), "important").unwrap();
        let error = init(temp.path(), &[], None).await.unwrap_err();
        assert!(matches!(error, InitError::Layout(LayoutError::NotEmpty { .. })), "{error}");
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn an_init_cut_short_anywhere_is_made_again() {
        let whole = tempfile::tempdir().unwrap();
        init(whole.path(), &[], None).await.unwrap();
        let mut names: Vec<_> =
            fs::read_dir(whole.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| name != "server.json");
        names.sort();
        for kept in 0..=names.len() {
            let temp = tempfile::tempdir().unwrap();
            fs::write(temp.path().join("unfinished"), "").unwrap();
            for name in &names[..kept] {
                let target = temp.path().join(name);
                if whole.path().join(name).is_dir() {
                    fs::create_dir(&target).unwrap();
                    fs::write(target.join("cert.pem"), "half").unwrap();
                } else {
                    fs::write(&target, "half").unwrap();
                }
            }
            assert!(matches!(DataDir::open(temp.path()), Err(LayoutError::Unfinished { .. })));
            init(temp.path(), &[], None).await.unwrap();
            DataDir::open(temp.path()).unwrap();
        }
    }

    #[tokio::test]
    async fn two_inits_at_once_do_not_mix() {
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::new(temp.path());
        let _held = begin(&dir).unwrap();
        let error = init(temp.path(), &[], None).await.unwrap_err();
        assert!(matches!(error, InitError::Layout(LayoutError::InitRunning { .. })), "{error}");
    }
}
