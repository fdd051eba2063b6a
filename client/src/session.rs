//! Opens a desktop on this machine: takes its lock, brings it up to date with the server if the server can be
//! reached, and puts its disks together.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chunk_format::{ChunkSize, ManifestId, Name, PublicKey, Subject};
use rustix::fs::{FlockOperation, flock};
use tokio::runtime::Handle;

use crate::cache::{Cache, CacheConfig, CacheError};
use crate::desktop::{DesktopError, DesktopStore, NewDesktop, OpenDesktop, Version, layouts};
use crate::fetch::{Fetcher, OnMissing, SegmentStore};
use crate::lease::{self, Asked, Claim, LeaseRecord, Standing};
use crate::profile::ProfileStore;
use crate::remote::{AfterExpiry, DesktopInfo, LeaseInfo, LeaseWish, Remote, RemoteError};
use crate::source::{
    ChunkSource, HttpSource, ImagesOnly, NoSource, SourceAddress, SourceList, SourceListError,
};
use crate::state::{Login, StateDir, StateError, make_private_dir};
use crate::versions::{VersionError, fetch_unjudged, fetch_version};
use crate::volume::{DirVolume, Volume};

/// How long opening waits for the server before it goes on with what is here.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(10);

/// The most that is told of why a desktop is not handed over: any character takes at most 4 of the server's 1,000 bytes.
const MAX_REFUSAL_CHARS: usize = 250;

/// How often the server is asked what the image's channel names.
pub const ASK_EVERY: Duration = Duration::from_secs(30);

/// Why a desktop could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The state directory failed.
    #[error("{0}")]
    State(#[from] StateError),
    /// Another process has the desktop open.
    #[error("desktop {desktop} is in use by another process on this machine (pid {pid})")]
    InUse {
        /// The desktop.
        desktop: Name,
        /// The process, as far as it is known.
        pid: String,
    },
    /// The lock could not be taken.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The lock file.
        path: PathBuf,
        /// What the file system said.
        #[source]
        source: std::io::Error,
    },
    /// There is no such desktop, here or on the server.
    #[error("there is no desktop {desktop}, neither on this machine nor on the server")]
    NoSuchDesktop {
        /// The desktop.
        desktop: Name,
    },
    /// Nothing of the desktop is on this machine, and the server cannot be reached.
    #[error("nothing of desktop {desktop} is on this machine yet, and the server cannot be asked")]
    NotHere {
        /// The desktop.
        desktop: Name,
        /// Why the server cannot be asked.
        #[source]
        source: RemoteError,
    },
    /// The desktop's files failed.
    #[error("cannot open desktop {desktop} in {}", path.display())]
    Desktop {
        /// The desktop.
        desktop: Name,
        /// Its directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: DesktopError,
    },
    /// Another machine may write the desktop.
    #[error("desktop {desktop} is in use on {}", lease.machine)]
    LeaseHeld {
        /// The desktop.
        desktop: Name,
        /// The lease.
        lease: Box<LeaseInfo>,
        /// The server's time, milliseconds since 1970 UTC, or this machine's.
        now_ms: u64,
    },
    /// The server was not heard of for longer than a lease holds, and the operator wants it then not to be opened.
    #[error(
        "the server was not heard of for {} days, and desktop {desktop} may not be opened without it for longer",
        lease_ms / 86_400_000
    )]
    LeaseExpired {
        /// The desktop.
        desktop: Name,
        /// How long a lease holds, milliseconds.
        lease_ms: u64,
    },
    /// A version from the server does not hold.
    #[error("{0}")]
    Version(#[from] VersionError),
    /// The cache could not be opened.
    #[error("{0}")]
    Cache(#[from] CacheError),
    /// The list of the desktop's sources failed.
    #[error("{0}")]
    Sources(#[from] SourceListError),
    /// A source cannot be used.
    #[error("cannot use the source {address}")]
    BadSource {
        /// The source.
        address: SourceAddress,
        /// Why.
        #[source]
        source: RemoteError,
    },
}

/// How to open a desktop.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// What this machine is called.
    pub machine: String,
    /// Most bytes of fetched chunks to keep.
    pub cache_bytes: u64,
    /// What to do when no source has the right bytes.
    pub on_missing: OnMissing,
    /// Contact nobody.
    pub offline: bool,
    /// What is to be done with it.
    pub claim: Claim,
    /// The time, milliseconds since 1970 UTC: leases go by it.
    pub now_ms: fn() -> u64,
}

/// What a person should know about how the desktop was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The server could not be reached; the desktop is at the version this machine had.
    Offline {
        /// Why, in words.
        reason: String,
    },
    /// Another machine's version was taken up.
    MovedTo {
        /// The version's number.
        sequence: u64,
        /// The machine it was made on.
        machine: String,
    },
    /// Another machine made a version while this one holds changes of its own.
    Diverged {
        /// The server's newest version.
        sequence: u64,
        /// The machine it was made on.
        machine: String,
    },
    /// The server knows only versions older than the one here.
    ServerIsBehind {
        /// The server's newest version.
        server: u64,
        /// The version here.
        here: u64,
    },
    /// The server does not know the desktop any more.
    GoneFromServer,
    /// What was done here before is a fork, and synced; this is the desktop's own newest version.
    WorkIsInFork {
        /// The fork.
        fork: Name,
    },
    /// What is opened is a fork that was not yet synced to its end.
    OnFork {
        /// The fork.
        fork: Name,
    },
    /// It is not known whether another machine works on it: the server cannot be asked, and no lease is held.
    NoLease,
    /// Another machine's lease was taken.
    Taken {
        /// The machine.
        machine: String,
    },
    /// Without a word of the server, work may go on for so long.
    LeaseEnding {
        /// Milliseconds.
        left_ms: u64,
    },
    /// The server was not heard of for longer than a lease holds: what is written is thrown away at the end.
    LeaseExpired,
}

/// A desktop that is open on this machine. Its lock is held until this is dropped.
#[derive(Debug)]
pub struct Session {
    /// The desktop.
    pub desktop: OpenDesktop,
    /// What it is a desktop of.
    pub subject: Subject,
    /// Its server.
    pub remote: Remote,
    /// What a person should know.
    pub notices: Vec<Notice>,
    /// Whether nobody is contacted.
    pub offline: bool,
    /// This machine's key and name, by which it holds leases.
    pub holder: Holder,
    /// How often the server is asked what the image's channel names.
    pub ask_every: Duration,
    _lock: DesktopLock,
}

/// Who holds leases here.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The machine's key.
    pub key: PublicKey,
    /// What the machine is called.
    pub machine: String,
}

/// The lock of a desktop's directory. The kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct DesktopLock {
    _file: File,
}

impl DesktopLock {
    /// Takes the lock.
    ///
    /// # Errors
    /// `InUse`, `Lock`.
    pub fn take(directory: &Path, desktop: &Name) -> Result<Self, SessionError> {
        let path = directory.join("lock");
        let failed = |source| SessionError::Lock { path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                // Only for the message; who holds the lock writes its number right after taking it.
                let _ = file.take(16).read_to_string(&mut pid);
                let pid = match pid.trim() {
                    "" => "unknown".to_owned(),
                    pid => pid.to_owned(),
                };
                return Err(SessionError::InUse { desktop: desktop.clone(), pid });
            }
            Err(error) => return Err(failed(error.into())),
        }
        let pid = format!("{}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(pid.as_bytes()))
            .map_err(failed)?;
        Ok(Self { _file: file })
    }
}

impl Session {
    /// Opens a desktop.
    ///
    /// # Errors
    /// [`SessionError`].
    pub async fn open(
        state: &StateDir,
        desktop: &Name,
        options: &SessionOptions,
    ) -> Result<Self, SessionError> {
        let (login, remote) = state.remote()?;
        let directory = state.desktop_path(desktop);
        let opening = Opening { login: &login, remote: &remote, desktop, directory: &directory };
        let answer = match options.offline {
            true => Ok(Err(RemoteError::Offline)),
            false => tokio::time::timeout(REFRESH_TIMEOUT, remote.desktop(desktop)).await,
        };
        let found = match answer {
            Ok(Ok(info)) => Ok(Some(info)),
            Ok(Err(error)) if error.code() == Some("not_found") => Ok(None),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(RemoteError::Unexpected {
                url: login.url.clone(),
                reason: format!("no answer within {} s", REFRESH_TIMEOUT.as_secs()),
            }),
        };
        if !directory.exists() && matches!(found, Ok(None)) {
            return Err(SessionError::NoSuchDesktop { desktop: desktop.clone() });
        }
        for path in
            [&directory, &directory.join("segments"), &directory.join("cache"), &directory.join("profiles")]
        {
            make_private_dir(path)?;
        }
        let lock = DesktopLock::take(&directory, desktop)?;
        if let Ok(Some(info)) = &found {
            opening.note_mirrors(&info.base.mirrors)?;
        }
        let mut notices = Vec::new();
        let holder = Holder { key: state.machine_key()?.public(), machine: options.machine.clone() };
        let (found, is_read_only) = opening.claim(options, &holder, found, &mut notices).await?;
        let stood_on = opening.stands_on();
        let store = opening.bring_up_to_date(found, &mut notices).await?;
        let head = store.record().head;
        let is_held = || LeaseRecord::load(store.volume()).is_some_and(|record| record.is_held);
        if !is_read_only && stood_on.is_some_and(|version| version != head) && is_held() {
            // It has moved since it asked; if this is not heard, the next renewal says so.
            let told = lease::ask(&remote, desktop, &holder.wish(head, false, None)).await;
            tracing::debug!(heard = told.is_ok(), "the server was told what this machine stands on");
        }
        let runtime = Handle::current();
        let desktop = opening.assemble(store, options, &runtime, is_read_only)?;
        desktop.set_head_lost(notices.iter().any(|notice| matches!(notice, Notice::ServerIsBehind { .. })));
        let subject = opening.subject();
        Ok(Self {
            desktop,
            subject,
            remote,
            notices,
            offline: options.offline,
            holder,
            ask_every: ASK_EVERY,
            _lock: lock,
        })
    }

    /// The session with the desktop's disks put together anew, after it moved to another version.
    ///
    /// # Errors
    /// [`DesktopError`].
    pub fn reassembled(self) -> Result<Self, DesktopError> {
        Ok(Self { desktop: self.desktop.reassembled()?, ..self })
    }

    /// The desktop's name.
    pub fn name(&self) -> Option<&Name> {
        match &self.subject {
            Subject::Desktop { desktop, .. } => Some(desktop),
            Subject::Image { .. } => None,
        }
    }

    /// Whether what was written here is to be synced before anything else: it belongs to another version than the
    /// desktop's newest.
    pub fn has_other_work(&self) -> bool {
        self.notices.iter().any(|notice| {
            matches!(notice, Notice::Diverged { .. } | Notice::OnFork { .. } | Notice::ServerIsBehind { .. })
        })
    }

    /// How often the operator wants the desktop synced by itself while it is in use; zero for never, none when that was never
    /// heard.
    pub fn sync_every(&self) -> Option<Duration> {
        let record = LeaseRecord::load(self.desktop.store().volume())?;
        // Whatever a server says: no more than once a minute, and once a week.
        let seconds = record.sync_every_s?;
        Some(Duration::from_secs(if seconds == 0 { 0 } else { seconds.clamp(60, 604_800) }))
    }

    /// Renews the lease, and says what the server said.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub async fn renew_lease(&self, now_ms: u64, refusal: Option<String>) -> Result<Asked, RemoteError> {
        let Some(name) = self.name() else { return Err(RemoteError::Offline) };
        let version = self.desktop.store().record().head;
        let wish = self.holder.wish(version, false, refusal);
        let asked = lease::ask(&self.remote, name, &wish).await?;
        if let Asked::Held(answer) = &asked {
            self.note(&LeaseRecord::heard(answer, true, now_ms));
        }
        Ok(asked)
    }

    /// Notes when the desktop was closed, and gives the lease back, when nothing is left here that the server does not have.
    pub async fn release_lease(&self, now_ms: u64) {
        let Some(name) = self.name() else { return };
        // A clock that is set back while the desktop is closed gives no more time.
        if let Some(record) = LeaseRecord::load(self.desktop.store().volume()) {
            self.note(&record.seen(now_ms));
        }
        if self.offline || self.desktop.is_read_only() || self.desktop.has_changes() {
            return;
        }
        match self.remote.release_lease(name, &self.holder.key).await {
            Ok(()) => {
                if let Some(record) = LeaseRecord::load(self.desktop.store().volume()) {
                    self.note(&record.given_back(now_ms));
                }
            }
            // It runs out by itself.
            Err(error) => tracing::info!(%error, "the lease was not given back"),
        }
    }

    fn note(&self, record: &LeaseRecord) {
        if let Err(error) = record.store(self.desktop.store().volume()) {
            tracing::warn!(%error, "what is known of the lease was not written down");
        }
    }
}

impl Holder {
    /// What to ask the server for.
    fn wish(&self, version: ManifestId, take: bool, refusal: Option<String>) -> LeaseWish {
        let refusal = refusal.map(|reason| {
            // The server takes one line.
            let one_line = reason.chars().map(|char| if char.is_control() { ' ' } else { char });
            one_line.take(MAX_REFUSAL_CHARS).collect()
        });
        LeaseWish { key: self.key, machine: self.machine.clone(), version, take, refusal }
    }
}

/// Checks that there is such a desktop, on this machine or on the server.
///
/// # Errors
/// `NoSuchDesktop`; `NotHere`, when nothing of it is here and the server cannot be asked.
pub async fn check_exists(
    directory: &Path,
    remote: &Remote,
    desktop: &Name,
    offline: bool,
) -> Result<(), SessionError> {
    if directory.exists() {
        return Ok(());
    }
    let asked = if offline { Err(RemoteError::Offline) } else { remote.desktop(desktop).await };
    match asked {
        Ok(_) => Ok(()),
        Err(error) if error.code() == Some("not_found") => {
            Err(SessionError::NoSuchDesktop { desktop: desktop.clone() })
        }
        Err(source) => Err(SessionError::NotHere { desktop: desktop.clone(), source }),
    }
}

/// A desktop on its way to being open.
struct Opening<'a> {
    login: &'a Login,
    remote: &'a Remote,
    desktop: &'a Name,
    directory: &'a Path,
}

impl Opening<'_> {
    /// Takes the lease, or finds out what may be done without it. Answers what the server knows of the desktop, and
    /// whether it is only to be looked at.
    ///
    /// The lease comes before the look at the newest version: what another machine commits at its end is then seen.
    async fn claim(
        &self,
        options: &SessionOptions,
        holder: &Holder,
        found: Result<Option<DesktopInfo>, RemoteError>,
        notices: &mut Vec<Notice>,
    ) -> Result<(Result<Option<DesktopInfo>, RemoteError>, bool), SessionError> {
        if options.claim == Claim::ReadOnly {
            return Ok((found, true));
        }
        let now_ms = (options.now_ms)();
        let volume = DirVolume::open(self.directory)
            .map_err(|source| SessionError::Lock { path: self.directory.to_owned(), source })?;
        let info = match found {
            Ok(Some(info)) => info,
            Ok(None) => return Ok((found, false)),
            Err(_) => {
                let is_read_only = self.claim_unheard(options, &volume, now_ms, notices)?;
                return Ok((found, is_read_only));
            }
        };
        let take = options.claim == Claim::Take;
        let before = info.lease.as_ref().filter(|lease| !lease::is_ours(lease, &holder.key));
        let taken_from = before.map(|lease| lease.machine.clone());
        // What this machine stands on is kept for it, whatever becomes of the lease.
        let stands_on = self.stands_on();
        let wish = holder.wish(stands_on.unwrap_or(info.head.id), take, None);
        let asked = match lease::ask(self.remote, self.desktop, &wish).await {
            // The server was set back to a state without it.
            Err(error) if error.code() == Some("bad_request") && stands_on.is_some() => {
                lease::ask(self.remote, self.desktop, &holder.wish(info.head.id, take, None)).await
            }
            asked => asked,
        };
        match asked {
            Ok(Asked::Held(answer)) => {
                notices.extend(taken_from.map(|machine| Notice::Taken { machine }));
                let record = LeaseRecord::heard(&answer, true, now_ms);
                record.store(&volume).map_err(|source| SessionError::Lock {
                    path: self.directory.join("lease.json"),
                    source,
                })?;
                let info = match answer.head.id == info.head.id {
                    true => info,
                    false => match self.remote.desktop(self.desktop).await {
                        Ok(info) => info,
                        Err(error) => return Ok((Err(error), false)),
                    },
                };
                Ok((Ok(Some(info)), false))
            }
            Ok(Asked::HeldElsewhere(_)) if options.claim == Claim::IfFree => Ok((Ok(Some(info)), false)),
            Ok(Asked::HeldElsewhere(lease)) => {
                Err(SessionError::LeaseHeld { desktop: self.desktop.clone(), lease, now_ms })
            }
            Err(error) => {
                tracing::info!(error = &error as &dyn std::error::Error, "no lease could be had");
                let is_read_only = self.claim_unheard(options, &volume, now_ms, notices)?;
                Ok((Err(error), is_read_only))
            }
        }
    }

    /// The version below what is on this machine, if anything is.
    fn stands_on(&self) -> Option<ManifestId> {
        let volume = DirVolume::open(self.directory).ok()?;
        Some(DesktopStore::read_only(Arc::new(volume)).ok()?.record().head)
    }

    /// What may be done when the server cannot be asked; answers whether the desktop is only to be looked at.
    fn claim_unheard(
        &self,
        options: &SessionOptions,
        volume: &DirVolume,
        now_ms: u64,
        notices: &mut Vec<Notice>,
    ) -> Result<bool, SessionError> {
        let Some(record) = LeaseRecord::load(volume) else {
            notices.push(Notice::NoLease);
            return Ok(false);
        };
        let standing = record.standing(now_ms);
        let (is_held, lease_ms) = (record.is_held, record.lease_ms);
        if let Err(error) = record.seen(now_ms).store(volume) {
            tracing::warn!(%error, "what is known of the lease was not written down");
        }
        match standing {
            Standing::Expired { .. } if options.claim == Claim::IfFree => Ok(false),
            Standing::Expired { after: AfterExpiry::ReadOnly } => {
                notices.push(Notice::LeaseExpired);
                Ok(true)
            }
            Standing::Expired { after: AfterExpiry::Refuse } => {
                Err(SessionError::LeaseExpired { desktop: self.desktop.clone(), lease_ms })
            }
            Standing::Ending { left_ms } => {
                notices.push(Notice::LeaseEnding { left_ms });
                Ok(false)
            }
            Standing::Good => {
                notices.extend((!is_held).then_some(Notice::NoLease));
                Ok(false)
            }
        }
    }

    fn subject(&self) -> Subject {
        Subject::Desktop { owner: self.login.user.clone(), desktop: self.desktop.clone() }
    }

    fn failed(&self, source: DesktopError) -> SessionError {
        SessionError::Desktop { desktop: self.desktop.clone(), path: self.directory.to_owned(), source }
    }

    /// Opens the desktop's files, begins them if there are none, and takes up a newer version if nothing here
    /// speaks against it.
    async fn bring_up_to_date(
        &self,
        found: Result<Option<DesktopInfo>, RemoteError>,
        notices: &mut Vec<Notice>,
    ) -> Result<DesktopStore, SessionError> {
        let volume: Arc<dyn Volume> = Arc::new(
            DirVolume::open(self.directory)
                .map_err(|source| SessionError::Lock { path: self.directory.to_owned(), source })?,
        );
        let opened =
            DesktopStore::open(Arc::clone(&volume), &self.login.server, &self.login.user, self.desktop);
        let store = match opened {
            Err(DesktopError::NotHere) => return self.begin(volume, found).await,
            opened => opened.map_err(|source| self.failed(source))?,
        };
        match found {
            Err(RemoteError::Offline) => {}
            Err(error) => notices.push(Notice::Offline { reason: error.to_string() }),
            Ok(None) => notices.push(Notice::GoneFromServer),
            Ok(Some(info)) => self.catch_up(&store, &info, notices).await?,
        }
        Ok(store)
    }

    async fn begin(
        &self,
        volume: Arc<dyn Volume>,
        found: Result<Option<DesktopInfo>, RemoteError>,
    ) -> Result<DesktopStore, SessionError> {
        let desktop = self.desktop.clone();
        let info = match found {
            Ok(Some(info)) => info,
            Ok(None) => return Err(SessionError::NoSuchDesktop { desktop }),
            Err(source) => return Err(SessionError::NotHere { desktop, source }),
        };
        let (head, base) = self.fetch(&info).await?;
        let publisher = base.signature.key;
        let new = NewDesktop {
            server: self.login.server,
            owner: self.login.user.clone(),
            desktop,
            id: info.id,
            publisher,
        };
        DesktopStore::create(volume, new, &head, &base).map_err(|source| self.failed(source))
    }

    async fn catch_up(
        &self,
        store: &DesktopStore,
        info: &DesktopInfo,
        notices: &mut Vec<Notice>,
    ) -> Result<(), SessionError> {
        let record = store.record();
        let server = &info.head;
        // A version of ours whose commit was not yet heard of is the next sync's business.
        if server.id == record.head || record.pending.is_some_and(|pending| pending.manifest == server.id) {
            return Ok(());
        }
        let here = store.version(record.head).map_err(|source| self.failed(source))?;
        if let Subject::Desktop { desktop: fork, .. } = &here.manifest.subject
            && fork != self.desktop
        {
            let fork = fork.clone();
            if has_changes(store, &here).map_err(|source| self.failed(source))? {
                notices.push(Notice::OnFork { fork });
            } else {
                let (head, base) = self.fetch(info).await?;
                store.move_to(&head, &base).map_err(|source| self.failed(source))?;
                notices.push(Notice::WorkIsInFork { fork });
            }
            return Ok(());
        }
        let (sequence, machine) = (server.sequence, server.machine.clone());
        if sequence <= here.manifest.sequence {
            notices.push(Notice::ServerIsBehind { server: sequence, here: here.manifest.sequence });
        } else if has_changes(store, &here).map_err(|source| self.failed(source))? {
            // A renewal of ours whose commit was not heard of is the next sync's business.
            if record.renewal != Some(server.id) {
                notices.push(Notice::Diverged { sequence, machine });
            }
        } else {
            let (head, base) = self.fetch(info).await?;
            store.move_to(&head, &base).map_err(|source| self.failed(source))?;
            notices.push(Notice::MovedTo { sequence, machine });
        }
        Ok(())
    }

    /// Fetches a version of the desktop, signed as its listing says, and the golden version below it, signed by the
    /// publisher the desktop's version names.
    async fn fetch(&self, info: &DesktopInfo) -> Result<(Version, Version), SessionError> {
        let listed = Subject::Image { image: info.base.image.clone() };
        let subject = self.subject();
        // The listing's word is enough to begin with; the signed version has the last.
        let (head, golden) = tokio::try_join!(
            fetch_version(self.remote, &subject, info.head.id, &info.head.key),
            fetch_unjudged(self.remote, &listed, info.base.version)
        )?;
        let Some(base) = &head.manifest.base else {
            let what = format!("desktop {}", self.desktop);
            return Err(VersionError::OtherSubject { id: info.head.id, what }.into());
        };
        let image = Subject::Image { image: base.image.clone() };
        let base = match (&image, base.version) == (&listed, info.base.version) {
            true => golden.judge(&image, &base.publisher)?,
            false => fetch_version(self.remote, &image, base.version, &base.publisher).await?,
        };
        Ok((head, base))
    }

    /// Remembers the mirrors the server names, for when it cannot be asked.
    fn note_mirrors(&self, named: &[String]) -> Result<(), SessionError> {
        let volume = DirVolume::open(self.directory)
            .map_err(|source| SessionError::Lock { path: self.directory.to_owned(), source })?;
        let mut list = SourceList::load(&volume)?;
        // What this program cannot use is not its business, and whose cache is asked is for its person to say.
        let mirrors = named.iter().filter_map(|mirror| mirror.parse().ok());
        let mirrors: Vec<SourceAddress> =
            mirrors.filter(|mirror| !matches!(mirror, SourceAddress::Cache(_))).collect();
        if mirrors != list.mirrors {
            list.mirrors = mirrors;
            list.store(&volume)?;
        }
        Ok(())
    }

    /// What a person added first, then the mirrors, the server last.
    fn sources(&self, options: &SessionOptions) -> Result<Vec<Arc<dyn ChunkSource>>, SessionError> {
        let volume = DirVolume::open(self.directory)
            .map_err(|source| SessionError::Lock { path: self.directory.to_owned(), source })?;
        let list = SourceList::load(&volume)?;
        let open = |address: &SourceAddress| {
            address.open().map_err(|source| SessionError::BadSource { address: address.clone(), source })
        };
        let usable = |address: &&SourceAddress| address.is_local() || !options.offline;
        let mut sources = Vec::new();
        for address in list.added.iter().filter(usable) {
            sources.push(open(address)?);
        }
        for address in list.mirrors.iter().filter(usable).filter(|mirror| !list.added.contains(mirror)) {
            // Whoever named it is not here to mend it, and there are others.
            match open(address) {
                Ok(source) => sources.push(Arc::new(ImagesOnly(source))),
                Err(error) => {
                    tracing::warn!(error = &error as &dyn std::error::Error, "a mirror is left out");
                }
            }
        }
        sources.push(match options.offline {
            true => Arc::new(NoSource),
            false => Arc::new(HttpSource::new(self.remote.clone())),
        });
        Ok(sources)
    }

    fn assemble(
        &self,
        store: DesktopStore,
        options: &SessionOptions,
        runtime: &Handle,
        is_read_only: bool,
    ) -> Result<OpenDesktop, SessionError> {
        let record = store.record();
        let head = store.version(record.head).map_err(|source| self.failed(source))?;
        let chunk_size = head.manifest.disks.first().map_or(ChunkSize::DEFAULT, |disk| disk.chunk_size);
        let config =
            CacheConfig { chunk_size, limit_bytes: options.cache_bytes, owner: *record.id.as_bytes() };
        let cache = Arc::new(Cache::open(&self.directory.join("cache"), &config)?);
        let segments = SegmentStore::new(self.directory.join("segments"));
        let mut wanted = vec![head];
        if let Some(pending) = record.pending {
            wanted.push(store.version(pending.manifest).map_err(|source| self.failed(source))?);
        }
        let disks = wanted.iter().flat_map(|version| version.manifest.disks.iter());
        segments.retain(&disks.flat_map(|disk| disk.segments.iter().copied()).collect());
        let fetcher =
            Fetcher::new(runtime, self.sources(options)?, Arc::clone(&cache), segments, options.on_missing);
        let profiles = ProfileStore::new(self.directory.join("profiles"));
        profiles.retain(&HashSet::from([store.record().base]));
        if is_read_only {
            let head = store.version(record.head).map_err(|source| self.failed(source))?;
            store.add_discarded_generation(&layouts(&head.manifest)).map_err(|source| self.failed(source))?;
        }
        OpenDesktop::assemble(store, cache, fetcher, profiles, runtime.clone())
            .map_err(|source| self.failed(source))
    }
}

/// Whether some overlay of the desktop holds anything.
pub(crate) fn has_changes(store: &DesktopStore, head: &Version) -> Result<bool, DesktopError> {
    if store.record().pending.is_some() {
        return Ok(true);
    }
    for disk in head.manifest.disks.iter().filter(|disk| !store.is_volatile(disk.role)) {
        let layout = crate::desktop::DiskLayout { role: disk.role, size: disk.size };
        if store.open_overlays(layout)?.iter().any(|overlay| !overlay.is_empty()) {
            return Ok(true);
        }
    }
    Ok(false)
}
