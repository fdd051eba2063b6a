//! Opens a desktop on this machine: takes its lock, brings it up to date with the server if the server can be
//! reached, and puts its disks together.

mod lock;
mod opening;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use chunk_format::{ManifestId, Name, PublicKey, Subject};
use futures_util::future::FutureExt;
use tokio::runtime::Handle;

use crate::cache::CacheError;
use crate::desktop::{DesktopError, DesktopStore, OpenDesktop, Version};
use crate::fetch::OnMissing;
use crate::lease::{self, Asked, Claim, LeaseRecord};
use crate::remote::{DesktopInfo, LeaseInfo, LeaseWish, Remote, RemoteError};
use crate::source::{SourceAddress, SourceListError};
use crate::state::{StateDir, StateError, make_private_dir};
use crate::versions::VersionError;
use crate::volume::DirVolume;
pub use lock::DesktopLock;
use opening::Opening;

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
    #[error("nothing of desktop {desktop} is on this machine yet")]
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
    /// Most bytes of fetched chunks to keep; without it, as many as before.
    pub cache_bytes: Option<u64>,
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
    /// A checkpoint that was made here was not sent before another machine's version came, and is not made any more.
    CheckpointGone {
        /// What it was to say.
        note: String,
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
    /// The server does not know the version here, though what it has may be newer.
    HeadUnknown {
        /// The version here.
        here: u64,
    },
    /// Nor does it know the golden version below it, on which therefore nothing can be committed.
    BaseUnknown {
        /// The image.
        image: Name,
        /// The golden version's number.
        sequence: u64,
    },
    /// The server does not know the desktop any more.
    GoneFromServer,
    /// The desktop was removed; what is opened is what this machine has of it.
    Removed {
        /// When, milliseconds since 1970 UTC.
        removed_ms: u64,
    },
    /// What this machine stood on was removed, and nothing was changed here since: this is the desktop's newest version.
    MovedFromRemoved {
        /// The fork, or an earlier desktop of the name.
        removed: Name,
        /// The version's number.
        sequence: u64,
    },
    /// What was changed here was changed on what is removed by now.
    OnRemoved {
        /// The fork, or an earlier desktop of the name.
        removed: Name,
    },
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

impl Session {
    /// Opens a desktop. A lease that was taken for it is given back when that fails.
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
        if let Ok(Some(info)) = &found
            && let Err(error) = opening.note_mirrors(&info.base.mirrors)
        {
            // On a full disk, for example; the server and what was noted before are still there.
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the mirrors the server names were not noted"
            );
        }
        let holder = Holder { key: state.machine_key()?.public(), machine: options.machine.clone() };
        // As long as the lock is held, the lease is nobody else's on this machine.
        let was_held = is_lease_held(&directory);
        let opened = Self::open_locked(&opening, &holder, found, options).await;
        if opened.is_err() && !was_held && is_lease_held(&directory) {
            give_back_lease(&opening, &holder, (options.now_ms)()).await;
        }
        let (desktop, notices) = opened?;
        Ok(Self {
            desktop,
            subject: opening.subject(),
            notices,
            offline: options.offline,
            holder,
            ask_every: ASK_EVERY,
            _lock: lock,
            remote,
        })
    }

    /// Takes the lease, and puts the desktop's disks together.
    async fn open_locked(
        opening: &Opening<'_>,
        holder: &Holder,
        found: Result<Option<DesktopInfo>, RemoteError>,
        options: &SessionOptions,
    ) -> Result<(OpenDesktop, Vec<Notice>), SessionError> {
        let info = found.as_ref().ok().cloned().flatten();
        let mut notices = Vec::new();
        let ahead = opening.fetch_ahead(info.as_ref(), holder);
        let claim = opening.claim(options, holder, found, &mut notices);
        let ((found, is_read_only), ahead) = tokio::try_join!(claim, ahead.map(Ok))?;
        let stood_on = opening.stands_on();
        let store = opening.bring_up_to_date(found, ahead, options, holder, &mut notices).await?;
        let head = store.record().head;
        let is_held = || LeaseRecord::load(store.volume()).is_some_and(|record| record.is_held);
        if !is_read_only && stood_on.is_some_and(|version| version != head) && is_held() {
            // It has moved since it asked; if this is not heard, the next renewal says so.
            let wish = holder.wish(head, false, None);
            let told = lease::ask(opening.remote, opening.desktop, &wish).await;
            tracing::debug!(heard = told.is_ok(), "the server was told what this machine stands on");
        }
        let runtime = Handle::current();
        // Of a desktop that the server does not know, what this machine has is sent once: as a fork, on which it stands then.
        let subject = opening.subject();
        let on = store.version(head).map_err(|source| opening.failed(source))?;
        // Whether the server has that fork is not always heard.
        let is_unheard = notices.iter().any(|notice| matches!(notice, Notice::Offline { .. }));
        let is_on_fork = on.manifest.subject != subject && !is_unheard;
        let has_work = has_changes(&store, &on).map_err(|source| opening.failed(source))?;
        let is_lost = |notice: &Notice| match notice {
            Notice::ServerIsBehind { .. } | Notice::HeadUnknown { .. } => true,
            Notice::GoneFromServer => !is_on_fork,
            // What was erased with it may be nowhere else.
            Notice::Removed { .. } => !is_on_fork && has_work,
            _ => false,
        };
        let is_head_lost = notices.iter().any(is_lost);
        let desktop = opening.assemble(store, options, &runtime, is_read_only, is_head_lost)?;
        Ok((desktop, notices))
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
            matches!(
                notice,
                Notice::Diverged { .. }
                    | Notice::OnFork { .. }
                    | Notice::OnRemoved { .. }
                    | Notice::ServerIsBehind { .. }
                    | Notice::HeadUnknown { .. }
            )
        })
    }

    /// Whether the server does not know the golden version that the desktop stands on.
    pub(crate) fn is_base_unknown(&self) -> bool {
        self.notices.iter().any(|notice| matches!(notice, Notice::BaseUnknown { .. }))
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
            LeaseRecord::heard(answer, true, now_ms).note(self.desktop.store().volume());
        }
        Ok(asked)
    }

    /// Notes when the desktop was closed, and gives the lease back, when nothing is left here that the server does not have.
    pub async fn release_lease(&self, now_ms: u64) {
        let Some(name) = self.name() else { return };
        // A clock that is set back while the desktop is closed gives no more time.
        if let Some(record) = LeaseRecord::load(self.desktop.store().volume()) {
            record.seen(now_ms).note(self.desktop.store().volume());
        }
        if self.offline || self.desktop.is_read_only() || self.desktop.has_work() {
            return;
        }
        // It runs out by itself.
        if let Err(error) = self.give_lease_back(name, now_ms).await {
            tracing::info!(%error, "the lease was not given back");
        }
    }

    /// Whether this machine keeps the lease, as far as it knows.
    pub fn is_lease_kept(&self) -> bool {
        LeaseRecord::load(self.desktop.store().volume()).is_some_and(|record| record.is_held)
    }

    /// Gives back a lease that was kept for work without a network, also where nobody was asked for anything else; not where
    /// something is left here that the server does not have.
    ///
    /// # Errors
    /// [`RemoteError`]: the server was not told, and the lease is still kept.
    pub async fn end_kept_lease(&self, now_ms: u64) -> Result<(), RemoteError> {
        let Some(name) = self.name().filter(|_| self.is_lease_kept() && !self.desktop.has_work()) else {
            return Ok(());
        };
        let giving_back = self.give_lease_back(name, now_ms);
        tokio::time::timeout(REFRESH_TIMEOUT, giving_back).await.unwrap_or_else(|_| {
            let reason = format!("no answer within {} s", REFRESH_TIMEOUT.as_secs());
            Err(RemoteError::Unexpected { url: self.remote.endpoint().url.clone(), reason })
        })
    }

    async fn give_lease_back(&self, name: &Name, now_ms: u64) -> Result<(), RemoteError> {
        self.remote.release_lease(name, &self.holder.key).await?;
        if let Some(record) = LeaseRecord::load(self.desktop.store().volume()) {
            record.given_back(now_ms).note(self.desktop.store().volume());
        }
        Ok(())
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

fn is_lease_held(directory: &Path) -> bool {
    let record = DirVolume::open(directory).ok().and_then(|volume| LeaseRecord::load(&volume));
    record.is_some_and(|record| record.is_held)
}

/// Gives the lease of a desktop back that could not be opened, when it is certain that nothing is here that the server does not have.
/// The caller holds the desktop's lock.
async fn give_back_lease(opening: &Opening<'_>, holder: &Holder, now_ms: u64) {
    let Ok(volume) = DirVolume::open(opening.directory) else { return };
    let volume = Arc::new(volume);
    let has_work = match DesktopStore::read_only(Arc::clone(&volume) as Arc<_>) {
        Err(DesktopError::NotHere) => Ok(false),
        Err(error) => Err(error),
        Ok(store) => store
            .version(store.record().head)
            .and_then(|head| Ok(store.record().note.is_some() || has_changes(&store, &head)?)),
    };
    if !matches!(has_work, Ok(false)) {
        return;
    }
    let giving = opening.remote.release_lease(opening.desktop, &holder.key);
    match tokio::time::timeout(REFRESH_TIMEOUT, giving).await {
        Ok(Ok(())) => {
            if let Some(record) = LeaseRecord::load(&*volume) {
                record.given_back(now_ms).note(&*volume);
            }
        }
        // It runs out by itself.
        Ok(Err(error)) => tracing::info!(%error, "the lease was not given back"),
        Err(_) => tracing::info!("the lease was not given back in time"),
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
