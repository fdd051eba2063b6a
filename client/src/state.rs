//! The state directory: everything this machine knows, in one place a person can move or delete.
//!
//! ```text
//! server.json   where the server is, its certificate, its identity, who we are there
//! token         the server token (0600)
//! machine.key   signs this machine's desktop versions; made on first use (0600)
//! publisher.key signs the images published from here; made on first use (0600)
//! pins.json     for each image: its publisher's key and the newest versions seen, by channel
//! lock          locked for a read and a write of a key or of pins.json
//! adopting.FORK.json the end of an adoption that was not heard yet
//! desktops/NAME one directory a desktop: see `desktop`
//! past/NAME     what was fetched to look into versions: see `past`
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use chunk_format::{Name, PublicKey, SecretKey};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::remote::{Endpoint, Fingerprint, Remote, RemoteError, Trust};
use crate::volume::{DirVolume, Volume};

mod fit;

/// The longest file of this directory anyone reads, bytes.
const MAX_FILE_BYTES: usize = 1 << 20;
const FORMAT_VERSION: u32 = 1;
const LOCK_NAME: &str = "lock";

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: io::Error,
    },
    /// A file holds what no Satchel wrote.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file was written by another version of the program.
    #[error("{} has format version {found}; this program reads version {FORMAT_VERSION}: update Satchel", path.display())]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// No server is known yet.
    #[error("this machine is not logged in to any server")]
    NotLoggedIn,
    /// There is no state directory, or one that holds nothing, such as the place where a disk is to be mounted.
    #[error("this machine is not logged in to any server: {} is empty or not there", path.display())]
    NotThere {
        /// The state directory.
        path: PathBuf,
    },
    /// The file system cannot carry a state directory.
    #[error("the file system that {} is on keeps no {lacks}", path.display())]
    Unfit {
        /// The state directory.
        path: PathBuf,
        /// What it lacks.
        lacks: String,
    },
    /// The directory belongs to another server.
    #[error("the desktops in {} belong to the server {known}, and {url} is {found}", path.display())]
    OtherServer {
        /// The state directory.
        path: PathBuf,
        /// The server that was logged in to.
        url: String,
        /// The server the desktops belong to.
        known: PublicKey,
        /// The identity of the server logged in to.
        found: PublicKey,
    },
    /// The directory belongs to another user of the server.
    #[error("the desktops in {} belong to {known}, and this token is of {found}", path.display())]
    OtherUser {
        /// The state directory.
        path: PathBuf,
        /// Whose the desktops are.
        known: Name,
        /// Whose token it is.
        found: Name,
    },
    /// The operating system gave no randomness for a key.
    #[error("cannot make a key: {reason}")]
    NoRandomness {
        /// Why.
        reason: String,
    },
    /// The server cannot be asked as the directory says.
    #[error("{0}")]
    Remote(#[from] RemoteError),
}

/// Where the server is and who we are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    version: u32,
    /// The server's URL.
    pub url: String,
    /// Its pinned certificate; none when an authority vouches for it.
    pub fingerprint: Option<Fingerprint>,
    /// Its identity.
    pub server: PublicKey,
    /// The user the token stands for.
    pub user: Name,
}

impl Login {
    /// A login as it is stored.
    pub fn new(endpoint: &Endpoint, server: PublicKey, user: Name) -> Self {
        let fingerprint = match endpoint.trust {
            Trust::Pinned(fingerprint) => Some(fingerprint),
            Trust::Authorities => None,
        };
        Self { version: FORMAT_VERSION, url: endpoint.url.clone(), fingerprint, server, user }
    }
}

/// What is known of an image: later versions must be signed with the same key, and a channel may not lead back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The key its versions are signed with.
    pub publisher: PublicKey,
    /// The newest version seen by a program that did not tell channels apart. On which channel that was is not known, so that
    /// it counts for each that has no pin of its own.
    #[serde(default)]
    newest_sequence: u64,
    /// What was seen of each channel: one that lags behind another does not lead back.
    #[serde(default)]
    channels: BTreeMap<Name, ChannelPin>,
}

/// What was seen of a channel, by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChannelPin {
    /// The newest version that it named, be it for some desktops only.
    pub newest: u64,
    /// The newest that it named for all of them, and that its publisher has not taken back since.
    pub for_all: u64,
}

/// A version that a channel names, and that was judged.
#[derive(Clone, Copy, Debug)]
pub struct Sighting<'a> {
    /// The channel.
    pub channel: &'a Name,
    /// The version's number.
    pub sequence: u64,
    /// Whether the channel names it for all desktops, or did before a move that does not reach all.
    pub for_all: bool,
    /// Whether the publisher has signed that the channel goes back to it.
    pub is_back: bool,
}

impl Pin {
    /// What was seen of a channel.
    pub fn seen_on(&self, channel: &Name) -> ChannelPin {
        let unknown = ChannelPin { newest: self.newest_sequence, for_all: self.newest_sequence };
        self.channels.get(channel).copied().unwrap_or(unknown)
    }

    fn note(&mut self, sighting: Sighting<'_>) {
        let Sighting { channel, sequence, for_all, is_back } = sighting;
        let seen = self.seen_on(channel);
        let newest = seen.newest.max(sequence);
        let for_all = match (is_back, for_all) {
            (true, _) => sequence,
            (false, true) => seen.for_all.max(sequence),
            (false, false) => seen.for_all,
        };
        self.channels.insert(channel.clone(), ChannelPin { newest, for_all });
    }
}

#[derive(Default, Serialize, Deserialize)]
struct Pins {
    version: u32,
    images: BTreeMap<Name, Pin>,
}

/// An open state directory.
#[derive(Clone, Debug)]
pub struct StateDir {
    path: PathBuf,
    volume: Arc<DirVolume>,
}

impl StateDir {
    /// Opens the directory, making it (0700) when there is none.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        make_private_dir(path)?;
        let volume = DirVolume::open(path).map_err(|source| io_error("open", path, source))?;
        Ok(Self { path: path.to_owned(), volume: Arc::new(volume) })
    }

    /// Opens a directory that somebody has logged in with.
    ///
    /// # Errors
    /// `NotThere`, `Io`.
    pub fn open_existing(path: &Path) -> Result<Self, StateError> {
        match std::fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
            Ok(true) => return Err(StateError::NotThere { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StateError::NotThere { path: path.to_owned() });
            }
            // One that cannot be listed may be read all the same.
            Ok(false) | Err(_) => {}
        }
        Self::open(path)
    }

    /// Checks that its file system keeps what desktops are made of, and secrets from others.
    ///
    /// # Errors
    /// `Unfit`; `Io`, also where nothing may be written.
    pub fn check_fit(&self) -> Result<(), StateError> {
        let lacks = fit::lacks(&self.path).map_err(|source| io_error("write to", &self.path, source))?;
        if lacks.is_empty() {
            return Ok(());
        }
        Err(StateError::Unfit { path: self.path.clone(), lacks: lacks.join(", no ") })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a desktop's own directory is, or will be.
    pub fn desktop_path(&self, desktop: &Name) -> PathBuf {
        self.path.join("desktops").join(desktop.as_str())
    }

    /// The desktops that have a directory here.
    ///
    /// # Errors
    /// `Io`.
    pub fn desktops(&self) -> Result<Vec<Name>, StateError> {
        let path = self.path.join("desktops");
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(io_error("list", &path, source)),
        };
        let mut names: Vec<Name> =
            entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
        names.sort();
        Ok(names)
    }

    /// The login, if there is one.
    ///
    /// # Errors
    /// `Io`, `Damaged`, `UnsupportedVersion`.
    pub fn login(&self) -> Result<Option<Login>, StateError> {
        let login: Option<Login> = self.read_json("server.json")?;
        if let Some(login) = &login {
            self.check_version("server.json", login.version)?;
        }
        Ok(login)
    }

    /// Stores a login and its token.
    ///
    /// # Errors
    /// `OtherServer` and `OtherUser` when there are desktops of another one here; `Io`.
    pub fn store_login(&self, login: &Login, token: &str) -> Result<(), StateError> {
        if let Some(known) = self.login()?
            && (&known.server, &known.user) != (&login.server, &login.user)
            && !self.desktops()?.is_empty()
        {
            let (path, url) = (self.path.clone(), login.url.clone());
            return Err(match known.server == login.server {
                true => StateError::OtherUser { path, known: known.user, found: login.user.clone() },
                false => StateError::OtherServer { path, url, known: known.server, found: login.server },
            });
        }
        // The token first: a token without its server is ignored, a server without its token is an error.
        self.write("token", format!("{token}\n").as_bytes())?;
        self.write_json("server.json", login)
    }

    /// The server, ready to be asked.
    ///
    /// # Errors
    /// `NotLoggedIn`, `Io`, `Damaged`, `Remote`.
    pub fn remote(&self) -> Result<(Login, Remote), StateError> {
        let login = self.login()?.ok_or(StateError::NotLoggedIn)?;
        let token = self.token()?.ok_or(StateError::NotLoggedIn)?;
        let trust = login.fingerprint.map_or(Trust::Authorities, Trust::Pinned);
        let endpoint = Endpoint::new(&login.url, trust)?;
        // No other server is given this one's token, nor is anybody taken for another user.
        let (state, known) = (self.clone(), login.clone());
        let newest = move || match state.login() {
            Ok(Some(login)) if login == known => state.token().ok()?,
            _ => None,
        };
        Ok((login, Remote::new(endpoint, &token)?.renewing(newest)))
    }

    fn token(&self) -> Result<Option<String>, StateError> {
        let Some(token) = self.read("token")? else { return Ok(None) };
        let token = String::from_utf8(token).map_err(|_| self.damaged("token", "it is not text"))?;
        Ok(Some(token.trim().to_owned()))
    }

    /// The key that signs this machine's desktop versions; made on first use.
    ///
    /// # Errors
    /// `Io`, `Damaged`, `NoRandomness`.
    pub fn machine_key(&self) -> Result<SecretKey, StateError> {
        self.key("machine.key")
    }

    /// The key that signs the images published from here; made on first use.
    ///
    /// # Errors
    /// `Io`, `Damaged`, `NoRandomness`.
    pub fn publisher_key(&self) -> Result<SecretKey, StateError> {
        self.key("publisher.key")
    }

    /// What is known of an image.
    ///
    /// # Errors
    /// `Io`, `Damaged`, `UnsupportedVersion`.
    pub fn pin(&self, image: &Name) -> Result<Option<Pin>, StateError> {
        Ok(self.pins()?.images.remove(image))
    }

    /// Notes an image's publisher, if none is known, and what was seen of a channel.
    ///
    /// # Errors
    /// `Io`, `Damaged`, `UnsupportedVersion`.
    pub fn note_seen(
        &self,
        image: &Name,
        publisher: PublicKey,
        sighting: Option<Sighting<'_>>,
    ) -> Result<(), StateError> {
        let noted = |before: Option<Pin>| {
            let unknown = Pin { publisher, newest_sequence: 0, channels: BTreeMap::new() };
            let mut pin = before.unwrap_or(unknown);
            sighting.into_iter().for_each(|sighting| pin.note(sighting));
            pin
        };
        let before = self.pin(image)?;
        if before.is_some() && before == Some(noted(before.clone())) {
            return Ok(());
        }
        let _lock = self.lock()?;
        let mut pins = self.pins()?;
        let pin = noted(pins.images.remove(image));
        pins.images.insert(image.clone(), pin);
        self.write_json("pins.json", &pins)
    }

    fn pins(&self) -> Result<Pins, StateError> {
        let pins =
            self.read_json("pins.json")?.unwrap_or(Pins { version: FORMAT_VERSION, images: BTreeMap::new() });
        self.check_version("pins.json", pins.version)?;
        Ok(pins)
    }

    fn key(&self, name: &'static str) -> Result<SecretKey, StateError> {
        if let Some(key) = self.known_key(name)? {
            return Ok(key);
        }
        // Two that make one at once would each go on with its own, and what one of them signed could never be signed again.
        let _lock = self.lock()?;
        if let Some(key) = self.known_key(name)? {
            return Ok(key);
        }
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)
            .map_err(|error| StateError::NoRandomness { reason: error.to_string() })?;
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).chain(["\n".to_owned()]).collect();
        self.write(name, text.as_bytes())?;
        Ok(SecretKey::from_bytes(&bytes))
    }

    fn known_key(&self, name: &'static str) -> Result<Option<SecretKey>, StateError> {
        let Some(text) = self.read(name)? else { return Ok(None) };
        let bytes = std::str::from_utf8(&text).ok().and_then(|text| parse_hex(text.trim()));
        let bytes = bytes.ok_or_else(|| self.damaged(name, "it is not 64 hex digits"))?;
        Ok(Some(SecretKey::from_bytes(&bytes)))
    }

    /// Held for a read and a write of what several commands may write at once.
    fn lock(&self) -> Result<File, StateError> {
        self.volume.lock(LOCK_NAME).map_err(|source| io_error("lock", &self.path.join(LOCK_NAME), source))
    }

    fn read_json<T: DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, StateError> {
        let Some(bytes) = self.read(name)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| self.damaged(name, &error.to_string()))
    }

    fn write_json(&self, name: &'static str, value: &impl Serialize) -> Result<(), StateError> {
        let mut bytes =
            serde_json::to_vec_pretty(value).map_err(|error| self.damaged(name, &error.to_string()))?;
        bytes.push(b'\n');
        self.write(name, &bytes)
    }

    fn read(&self, name: &'static str) -> Result<Option<Vec<u8>>, StateError> {
        match self.volume.read(name, MAX_FILE_BYTES) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io_error("read", &self.path.join(name), source)),
        }
    }

    fn write(&self, name: &'static str, bytes: &[u8]) -> Result<(), StateError> {
        self.volume.replace(name, bytes).map_err(|source| io_error("write", &self.path.join(name), source))
    }

    fn check_version(&self, name: &str, found: u32) -> Result<(), StateError> {
        if found == FORMAT_VERSION {
            return Ok(());
        }
        Err(StateError::UnsupportedVersion { path: self.path.join(name), found })
    }

    fn damaged(&self, name: &str, reason: &str) -> StateError {
        StateError::Damaged { path: self.path.join(name), reason: reason.to_owned() }
    }
}

/// Makes a directory and its parents, readable by their owner only; no error when it is there.
///
/// # Errors
/// `Io`.
pub fn make_private_dir(path: &Path) -> Result<(), StateError> {
    let failed = |source| io_error("make the directory", path, source);
    if path.is_dir() {
        return Ok(());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let make = || std::fs::DirBuilder::new().mode(0o700).create(path);
    let made = match (make(), parent) {
        (Err(error), Some(parent)) if error.kind() == io::ErrorKind::NotFound => {
            make_private_dir(parent)?;
            make()
        }
        (made, _) => made,
    };
    match made {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => Err(failed(error)),
        // What is made durable in it would be lost with its name.
        // A parent that this user may not read is its owner's to keep.
        _ => {
            File::open(parent.unwrap_or(Path::new("."))).map_or(Ok(()), |dir| dir.sync_all()).map_err(failed)
        }
    }
}

fn io_error(action: &'static str, path: &Path, source: io::Error) -> StateError {
    StateError::Io { action, path: path.to_owned(), source }
}

fn parse_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn login(key: u8) -> Login {
        let endpoint =
            Endpoint::new("127.0.0.1:7440", Trust::Pinned("ab".repeat(32).parse().unwrap())).unwrap();
        Login::new(&endpoint, SecretKey::from_bytes(&[key; 32]).public(), "alice".parse().unwrap())
    }

    #[test]
    fn secrets_are_for_their_owner_only_and_keys_stay_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/state");
        let state = StateDir::open(&path).unwrap();
        assert!(matches!(state.remote(), Err(StateError::NotLoggedIn)));
        state.store_login(&login(1), "satchel_secret").unwrap();
        let machine = state.machine_key().unwrap().public();
        assert_eq!(state.machine_key().unwrap().public(), machine);
        assert_ne!(state.publisher_key().unwrap().public(), machine);
        assert_eq!(state.login().unwrap(), Some(login(1)));
        state.remote().unwrap();
        for name in ["", "token", "machine.key", "publisher.key", "server.json"] {
            let mode = std::fs::metadata(path.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{name}");
        }
    }

    #[test]
    fn a_directory_that_is_empty_or_not_there_is_named_and_not_made() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("stick/state")] {
            let error = StateDir::open_existing(&path).unwrap_err();
            assert!(matches!(error, StateError::NotThere { .. }), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
        assert!(!dir.path().join("stick").exists());
        StateDir::open(dir.path()).unwrap().store_login(&login(1), "t").unwrap();
        StateDir::open_existing(dir.path()).unwrap().remote().unwrap();
    }

    #[test]
    fn a_key_that_many_make_at_once_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let start = std::sync::Barrier::new(8);
        let make = || {
            start.wait();
            StateDir::open(dir.path()).unwrap().publisher_key().unwrap().public()
        };
        let keys: Vec<PublicKey> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(make)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let kept = StateDir::open(dir.path()).unwrap().publisher_key().unwrap().public();
        assert_eq!(keys, [kept; 8]);
    }

    #[test]
    fn a_directory_with_desktops_stays_with_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        state.store_login(&login(1), "t").unwrap();
        state.store_login(&login(2), "t").unwrap();
        make_private_dir(&state.desktop_path(&"work".parse().unwrap())).unwrap();
        state.store_login(&login(2), "t2").unwrap();
        assert!(matches!(state.store_login(&login(1), "t"), Err(StateError::OtherServer { .. })));
    }

    #[test]
    fn what_was_seen_counts_by_channel_and_of_old_for_all_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let name = |text: &str| text.parse::<Name>().unwrap();
        let (image, stable, beta) = (name("debian"), name("stable"), name("beta"));
        let publisher = SecretKey::from_bytes(&[3; 32]).public();
        let see = |channel, sequence, for_all, is_back| {
            let sighting = Sighting { channel, sequence, for_all, is_back };
            state.note_seen(&image, publisher, Some(sighting)).unwrap();
        };
        let seen = |channel| {
            let ChannelPin { newest, for_all } = state.pin(&image).unwrap().unwrap().seen_on(channel);
            (newest, for_all)
        };
        see(&beta, 5, true, false);
        assert_eq!((seen(&beta), seen(&stable)), ((5, 5), (0, 0)));
        see(&stable, 2, true, false);
        see(&stable, 3, false, false);
        assert_eq!(seen(&stable), (3, 2), "for some is not for all");
        see(&stable, 1, true, false);
        assert_eq!(seen(&stable), (3, 2), "nothing lowers it by itself");
        see(&stable, 1, true, true);
        assert_eq!((seen(&stable), seen(&beta)), ((3, 1), (5, 5)), "it was taken back");

        let old = format!(
            r#"{{"version":1,"images":{{"debian":{{"publisher":"{publisher}","newest_sequence":4}}}}}}"#
        );
        std::fs::write(dir.path().join("pins.json"), old).unwrap();
        assert_eq!((seen(&beta), seen(&stable)), ((4, 4), (4, 4)));
        see(&beta, 5, true, false);
        assert_eq!((seen(&beta), seen(&stable)), ((5, 5), (4, 4)));
    }

    #[test]
    fn damaged_and_newer_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("pins.json"), "{").unwrap();
        let error = state.pin(&"debian".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("pins.json"), "{error}");
        std::fs::write(dir.path().join("pins.json"), r#"{"version":9,"images":{}}"#).unwrap();
        assert!(matches!(
            state.pin(&"debian".parse().unwrap()),
            Err(StateError::UnsupportedVersion { found: 9, .. })
        ));
        std::fs::write(dir.path().join("machine.key"), "short").unwrap();
        assert!(matches!(state.machine_key(), Err(StateError::Damaged { .. })));
    }
}
