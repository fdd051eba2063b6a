//! Taking up golden versions: at a start, when told to, and back again. A desktop's home is never touched.
//!
//! A renewal is a version of the desktop: `base` and the system disk are those of the golden version, the rest is the
//! head's. It is made only when everything written here is committed, so that nothing lies above the head: first the
//! version is noted and committed, then the desktop here moves to it. A crash in between finds a newer version on the server
//! at the next start, and takes it up as any other; so does a start after one whose commit was not answered, unless work has
//! gone on below meanwhile. That work follows the renewal all the same, and undoes it: it is this machine's own.

mod ahead;
mod decide;
mod heard;
mod stranded;
mod watch;

use std::path::Path;
use std::time::Duration;

use chunk_format::{
    Base, Disk, DiskRole, FormatError, Manifest, ManifestId, Name, PublicKey, Subject, SystemMode,
};

pub use decide::{Standing, due};
pub use heard::Heard;
pub use watch::{Ready, watch};

use crate::desktop::{DesktopError, OpenDesktop, Version, with_room};
use crate::remote::{ImageInfo, NamedVersion, Placing, RemoteError, Rollout, VersionInfo};
use crate::session::{Notice, Session};
use crate::starts::{self, Starts, unless_noted, while_held};
use crate::state::{Sighting, StateDir, StateError};
use crate::sync::{SyncError, Syncer};
use crate::upstream::CommitError;
use crate::versions::{VersionError, check_not_back, check_publisher, fetch_version, find_version};

/// How long a start waits for what the server says of the channel.
const CHANNEL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a start waits to tell the server what became of earlier ones.
const TELL_TIMEOUT: Duration = Duration::from_secs(5);
/// Versions of a history asked for at once.
const PAGE: u32 = 100;

/// Why a desktop was not renewed. It is where it was, but for a failure of its own files.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    /// What was written here could not be committed first.
    #[error("what was changed here could not be synced first")]
    Sync(#[from] SyncError),
    /// The golden version cannot be used.
    #[error("{0}")]
    Version(#[from] VersionError),
    /// The server could not be asked.
    #[error("{0}")]
    Remote(#[from] RemoteError),
    /// The desktop's files failed: whether it is where it was is not known.
    #[error("{0}")]
    Desktop(#[from] DesktopError),
    /// The state directory failed.
    #[error("{0}")]
    State(#[from] StateError),
    /// The version could not be written down.
    #[error("{0}")]
    Format(#[from] FormatError),
    /// The version could not be committed.
    #[error("{0}")]
    Commit(#[from] CommitError),
    /// The golden version does not fit the desktop.
    #[error("version {sequence} of image {image} does not fit this desktop: {reason}")]
    Unfit {
        /// The image.
        image: Name,
        /// The golden version's number.
        sequence: u64,
        /// Why.
        reason: &'static str,
    },
    /// The server does not know the golden version below, and only a desktop that renews its system disk can go over to another
    /// with what it holds.
    #[error(
        "the server does not know version {sequence} of image {image}, which the system disk of this desktop was written on"
    )]
    Stranded {
        /// The image.
        image: Name,
        /// The golden version's number.
        sequence: u64,
    },
    /// The server did not answer in time.
    #[error("the server does not say what the channel names")]
    NoAnswer,
    /// There is nothing to move to.
    #[error("{0}")]
    Nowhere(String),
}

/// What a desktop moved to.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Renewed {
    /// The image.
    pub image: Name,
    /// The golden version it stood on, by number.
    pub from: u64,
    /// The one it stands on.
    pub to: NamedVersion,
    /// Whether the one before did not start.
    pub reverted: bool,
    /// The version that holds it.
    pub version: VersionInfo,
    /// The fork that version is of: the server did not know the golden version before, nor therefore what stood on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fork: Option<Name>,
    /// The golden version that its channel names, and that is not taken up on this machine as long as it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<NamedVersion>,
}

/// A desktop that has another mode.
#[derive(Clone, Debug, serde::Serialize)]
pub struct ModeChanged {
    /// The mode before.
    pub from: SystemMode,
    /// The mode it has.
    pub to: SystemMode,
    /// The desktop's version before, which has the system disk as it was.
    pub before: u64,
    /// The desktop's version that has the mode.
    pub version: VersionInfo,
}

/// Where a person wants a desktop to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// What the channel names, whether or not its move has reached this desktop.
    Channel,
    /// One golden version, as a person names it.
    Version(String),
    /// The base and system disk before the last renewal.
    Undo,
}

/// What renewing a desktop needs.
pub struct Renewer<'a> {
    /// Knows the images' pins.
    pub state: &'a StateDir,
    /// Commits.
    pub syncer: &'a Syncer,
    /// The desktop's directory.
    pub directory: &'a Path,
}

/// A desktop as it stands before it is renewed.
struct Now {
    head: Version,
    base: Base,
    golden: NamedVersion,
    mode: SystemMode,
    publisher: PublicKey,
    desktop: ManifestId,
}

impl Now {
    fn of(session: &Session) -> Result<Self, RenewError> {
        let store = session.desktop.store();
        let record = store.record();
        let head = store.version(record.head)?;
        let golden = store.version(record.base)?;
        let base = head.manifest.base.clone();
        let base = base.ok_or_else(|| RenewError::Nowhere("it stands on no image".to_owned()))?;
        Ok(Self {
            golden: NamedVersion { id: golden.id, sequence: golden.manifest.sequence },
            mode: head.manifest.mode(),
            publisher: record.publisher,
            desktop: record.id,
            base,
            head,
        })
    }

    /// How the channel finds it, with what a person or bad starts say of what it names now.
    fn standing(&self, starts: &Starts, directory: &Path, rollout: &Rollout) -> Standing {
        let mut starts = starts.clone();
        starts.hear(rollout);
        unless_noted(starts::note_heard(directory, rollout));
        let (skipped, held) = (starts.skipped(), starts.held());
        Standing { desktop: self.desktop, base: self.golden, skipped, held }
    }

    /// What the channel names while a person wants the desktop on a golden version; none where the channel has no say, or names that
    /// one.
    fn held_on(&self, to: ManifestId, rollout: Option<&Rollout>) -> Option<NamedVersion> {
        let named = rollout.map(|rollout| rollout.version)?;
        (self.mode != SystemMode::Own && named.id != to).then_some(named)
    }

    fn image(&self) -> Subject {
        Subject::Image { image: self.base.image.clone() }
    }
}

impl Renewer<'_> {
    /// Takes up what the channel wants of a desktop that is about to start, or else goes back from a version that does not start
    /// here. The session's disks are out of date when this answers something: put them together anew.
    ///
    /// # Errors
    /// [`RenewError`]; the desktop is where it was, and can be started there.
    pub async fn at_start(&self, session: &Session) -> Result<Option<Renewed>, RenewError> {
        let is_unheard = |notice: &Notice| {
            matches!(notice, Notice::Offline { .. } | Notice::GoneFromServer | Notice::Removed { .. })
        };
        if session.offline || session.notices.iter().any(is_unheard) {
            return Ok(None);
        }
        let now = Now::of(session)?;
        let starts = Starts::load(self.directory);
        let told = tokio::time::timeout(TELL_TIMEOUT, self.tell(session, None)).await;
        if told.is_err() {
            tracing::info!("the server was not told what became of earlier starts");
        }
        if now.mode == SystemMode::Own {
            return Ok(None);
        }
        // The channel comes first: what mends a version that does not start is better than the one before it, which may be
        // gone from the server.
        let named = self.named_by_channel(session, &now, &starts).await;
        if let Ok(Some((golden, note))) = named {
            return self.take_up(session, now, &golden, None, note, false).await.map(Some);
        }
        if starts.on(now.golden.id).is_some_and(starts::GoldenStarts::is_bad)
            && let Some(good) = starts.last_good_before(now.golden)
        {
            return self.revert(session, now, good).await.map(Some);
        }
        named.map(|_| None)
    }

    /// The golden version that the channel wants of a desktop, and what to say of the move there.
    async fn named_by_channel(
        &self,
        session: &Session,
        now: &Now,
        starts: &Starts,
    ) -> Result<Option<(Version, String)>, RenewError> {
        let Some(channel) = now.base.channel.clone() else { return Ok(None) };
        let asked = tokio::time::timeout(CHANNEL_TIMEOUT, session.remote.image(&now.base.image)).await;
        let info = asked.map_err(|_| RenewError::NoAnswer)??;
        let Some(rollout) = info.rollouts.get(&channel) else { return Ok(None) };
        Heard::of(&info.image, &channel, rollout).store(self.directory);
        match due(&now.standing(starts, self.directory, rollout), rollout) {
            Some(to) => {
                let golden = self.fetch_named(session, now, &info, Some(&channel), to).await?;
                Ok(Some((golden, format!("renewed to {}@{}", info.image, to.sequence))))
            }
            None => Ok(None),
        }
    }

    /// Moves a desktop where a person wants it, whatever its mode.
    ///
    /// # Errors
    /// [`RenewError`].
    pub async fn rebase(&self, session: &Session, wanted: &Wanted) -> Result<Renewed, RenewError> {
        let now = Now::of(session)?;
        if *wanted == Wanted::Undo {
            return self.undo(session, now).await;
        }
        let info = session.remote.image(&now.base.image).await?;
        let channel = now.base.channel.clone();
        let rollout = self.hear(&now, &info);
        let (to, by_channel) = match (wanted, rollout) {
            (Wanted::Version(wanted), _) => {
                let found = find_version(&session.remote, &now.image(), wanted).await?;
                (NamedVersion { id: found.id, sequence: found.sequence }, None)
            }
            (_, Some(rollout)) => (rollout.version, channel.as_ref()),
            (_, None) => {
                let text = "it follows no channel: say which version with --to VERSION";
                return Err(RenewError::Nowhere(text.to_owned()));
            }
        };
        if to.id == now.golden.id {
            let text = format!("it stands on version {} of image {} already", to.sequence, info.image);
            return Err(RenewError::Nowhere(text));
        }
        let golden = self.fetch_named(session, &now, &info, by_channel, to).await?;
        let note = format!("moved to {}@{}", info.image, to.sequence);
        let held = now.held_on(to.id, rollout);
        self.take_up_and_hold(session, now, &golden, None, note, held).await
    }

    /// What the desktop's channel names, noted down.
    fn hear<'a>(&self, now: &Now, info: &'a ImageInfo) -> Option<&'a Rollout> {
        let channel = now.base.channel.as_ref()?;
        let rollout = info.rollouts.get(channel)?;
        Heard::of(&info.image, channel, rollout).store(self.directory);
        Some(rollout)
    }

    /// Takes up a golden version where a person says so, who means it for more than one start.
    async fn take_up_and_hold(
        &self,
        session: &Session,
        now: Now,
        golden: &Version,
        system: Option<Disk>,
        note: String,
        held: Option<NamedVersion>,
    ) -> Result<Renewed, RenewError> {
        let moving = self.take_up(session, now, golden, system, note, false);
        let is_unheard = |error: &RenewError| matches!(error, RenewError::Commit(CommitError::Remote(_)));
        let renewed = while_held(self.directory, held, moving, is_unheard).await?;
        Ok(Renewed { skipped: held, ..renewed })
    }

    /// Gives a desktop another mode. One that is to renew its system disk begins with that of the golden version it stands on; in
    /// the other modes the system disk stays as it is.
    ///
    /// # Errors
    /// [`RenewError`].
    pub async fn set_mode(&self, session: &Session, mode: SystemMode) -> Result<ModeChanged, RenewError> {
        let now = Now::of(session)?;
        if now.mode == mode {
            return Err(RenewError::Nowhere(format!("its mode is {mode} already")));
        }
        let head = self.settle(session).await?;
        let golden = session.desktop.store().version(now.golden.id)?;
        let disks = if mode == SystemMode::Renew { &golden.manifest } else { &head.manifest };
        let system = disks.disk(DiskRole::System).cloned().ok_or_else(|| RenewError::Unfit {
            image: now.base.image.clone(),
            sequence: now.golden.sequence,
            reason: "it has no system disk",
        })?;
        let note = format!("mode {mode}, before {}", now.mode);
        let next = next_manifest(&head, &now.base, &golden, system, (self.syncer.now_ms)(), note);
        let next = Manifest { system_mode: Some(mode), ..next };
        let version = self.commit(session, next, &golden).await?;
        Ok(ModeChanged { from: now.mode, to: mode, before: head.manifest.sequence, version })
    }

    /// Tells the server what became of starts here; what cannot be told is told another time.
    pub async fn tell(&self, session: &Session, running: Option<ManifestId>) {
        tell(session, self.directory, &self.syncer.machine, running).await;
    }

    async fn fetch_named(
        &self,
        session: &Session,
        now: &Now,
        info: &ImageInfo,
        channel: Option<&Name>,
        to: NamedVersion,
    ) -> Result<Version, RenewError> {
        let pin = self.state.pin(&info.image)?;
        check_publisher(info, pin.as_ref())?;
        let golden = fetch_version(&session.remote, &now.image(), to.id, &now.publisher).await?;
        let sequence = golden.manifest.sequence;
        // Forward is forward, whatever other desktops of this machine have seen: a roll-out reaches them one by one.
        let is_back = sequence < now.golden.sequence;
        if let Some(channel) = channel.filter(|_| is_back) {
            let seen = pin.map(|pin| pin.seen_on(channel).newest).unwrap_or_default();
            check_not_back(info, channel, &golden, seen.max(now.golden.sequence))?;
        }
        let sighting = channel.map(|channel| {
            let is_staged = |rollout: &Rollout| rollout.version.id == to.id && !rollout.is_done();
            let for_all = !info.rollouts.get(channel).is_some_and(is_staged);
            Sighting { channel, sequence, for_all, is_back }
        });
        self.state.note_seen(&info.image, now.publisher, sighting)?;
        Ok(golden)
    }

    async fn revert(&self, session: &Session, now: Now, good: NamedVersion) -> Result<Renewed, RenewError> {
        let golden = fetch_version(&session.remote, &now.image(), good.id, &now.publisher).await?;
        let bad = now.golden;
        let note = format!(
            "reverted to {}@{}: version {} did not start {} times",
            now.base.image,
            good.sequence,
            bad.sequence,
            starts::BAD_STARTS
        );
        // Before it is left: should the end not be heard, it is not taken up again at once.
        unless_noted(starts::note_left(self.directory, bad.id, false));
        let renewed = self.take_up(session, now, &golden, None, note, true).await?;
        unless_noted(starts::note_left(self.directory, bad.id, true));
        if tokio::time::timeout(TELL_TIMEOUT, self.tell(session, None)).await.is_err() {
            tracing::info!("the server was not told that a version was left");
        }
        Ok(renewed)
    }

    /// Goes back to the base and the system disk of the desktop's newest version that stood on another base.
    async fn undo(&self, session: &Session, now: Now) -> Result<Renewed, RenewError> {
        let subject = now.head.manifest.subject.clone();
        let info = session.remote.image(&now.base.image).await?;
        let rollout = self.hear(&now, &info);
        let mut before = Some(now.head.manifest.sequence);
        while let Some(below) = before {
            let page = session.remote.versions(&subject, PAGE, Some(below)).await?;
            before = page.last().map(|last| last.sequence);
            for listed in page {
                if listed.golden.as_ref().is_some_and(|golden| golden.id == now.golden.id) {
                    continue;
                }
                let version = fetch_version(&session.remote, &subject, listed.id, &listed.key).await?;
                let (Some(base), Some(system)) =
                    (&version.manifest.base, version.manifest.disk(DiskRole::System))
                else {
                    continue;
                };
                if base.version == now.golden.id {
                    continue;
                }
                let golden =
                    fetch_version(&session.remote, &now.image(), base.version, &now.publisher).await?;
                let note = format!("back to {}@{}", base.image, golden.manifest.sequence);
                let (system, held) = (Some(system.clone()), now.held_on(golden.id, rollout));
                return self.take_up_and_hold(session, now, &golden, system, note, held).await;
            }
        }
        Err(RenewError::Nowhere("it was never renewed: there is nothing to go back to".to_owned()))
    }

    /// Commits a version on a golden one, with that one's system disk or another, and moves to it.
    async fn take_up(
        &self,
        session: &Session,
        now: Now,
        golden: &Version,
        system: Option<Disk>,
        note: String,
        reverted: bool,
    ) -> Result<Renewed, RenewError> {
        let sequence = golden.manifest.sequence;
        let unfit = |reason| RenewError::Unfit { image: now.base.image.clone(), sequence, reason };
        let system = system.or_else(|| golden.manifest.disk(DiskRole::System).cloned());
        let system = system.ok_or_else(|| unfit("it has no system disk"))?;
        if now.head.manifest.disks.iter().any(|disk| disk.chunk_size != system.chunk_size) {
            return Err(unfit("its chunks have another size"));
        }
        session.desktop.set_awaited(golden);
        let (committed, fork) = if session.is_base_unknown() {
            let (committed, fork) = self.go_over(session, &now, golden, system, note).await?;
            (committed, Some(fork))
        } else {
            let head = self.settle(session).await?;
            let next = next_manifest(&head, &now.base, golden, system, (self.syncer.now_ms)(), note);
            (self.commit(session, next, golden).await?, None)
        };
        let to = NamedVersion { id: golden.id, sequence };
        unless_noted(starts::note_moved(self.directory, to));
        Ok(Renewed {
            image: now.base.image,
            from: now.golden.sequence,
            to,
            reverted,
            version: committed,
            fork,
            skipped: None,
        })
    }

    /// Commits what was written here; answers the head that the next version stands on.
    async fn settle(&self, session: &Session) -> Result<Version, RenewError> {
        self.syncer.sync(&session.desktop, None).await?;
        // The sync may have made a version.
        let store = session.desktop.store();
        let head = store.version(store.record().head)?;
        if head.manifest.subject != session.subject {
            return Err(RenewError::Nowhere(
                "what was done here has become a fork, which stays as it is".to_owned(),
            ));
        }
        head.manifest.check_writable()?;
        Ok(head)
    }

    async fn commit(
        &self,
        session: &Session,
        next: Manifest,
        golden: &Version,
    ) -> Result<VersionInfo, RenewError> {
        let bytes = Manifest { machine: self.syncer.machine.clone(), ..next }.encode()?;
        let version = Version::decode(bytes.clone(), self.syncer.key.sign(&bytes))?;
        commit_renewal(self.syncer, &session.desktop, &version, golden).await
    }
}

/// Commits a renewal and moves the desktop's files to it. It is noted before: should the answer be lost, the desktop stays
/// where it was, and what is written there next is no fork of a version that this machine made itself.
pub(crate) async fn commit_renewal(
    syncer: &Syncer,
    desktop: &OpenDesktop,
    version: &Version,
    golden: &Version,
) -> Result<VersionInfo, RenewError> {
    let (store, cache) = (desktop.store(), desktop.cache());
    let before = store.record().renewal;
    with_room(cache, || store.set_renewal(version.id))?;
    let commit = || {
        let (subject, bytes) = (&version.manifest.subject, version.bytes.clone());
        syncer.upstream.commit(subject, Placing::default(), bytes, &version.signature)
    };
    match syncer.patience.retry(commit).await {
        Ok(committed) => {
            with_room(cache, || store.move_to(version, golden))?;
            Ok(committed)
        }
        Err(error) => {
            // An earlier one arrived late.
            if let CommitError::HeadMoved { head } = &error
                && before == Some(head.id)
            {
                with_room(cache, || store.set_renewal(head.id))?;
            }
            Err(error.into())
        }
    }
}

/// The desktop's next version: on another golden one, with another system disk, everything else as it is.
pub(crate) fn next_manifest(
    head: &Version,
    base: &Base,
    golden: &Version,
    system: Disk,
    now_ms: u64,
    note: String,
) -> Manifest {
    let mut disks = vec![system];
    disks.extend(head.manifest.disks.iter().filter(|disk| disk.role != DiskRole::System).cloned());
    Manifest {
        features: chunk_format::Features::default(),
        base: Some(Base { version: golden.id, ..base.clone() }),
        parent: Some(head.id),
        sequence: head.manifest.sequence + 1,
        created_ms: now_ms,
        note: Some(note),
        disks,
        boot: golden.manifest.boot,
        ..head.manifest.clone()
    }
}

/// Tells the server what became of starts of a desktop on this machine.
async fn tell(session: &Session, directory: &Path, machine: &str, running: Option<ManifestId>) {
    let Subject::Desktop { desktop, .. } = &session.subject else { return };
    for (golden, outcome, begun) in Starts::load(directory).untold(running) {
        let said = match outcome {
            crate::remote::Outcome::Good => None,
            _ => Some(format!("{begun} starts in a row did not come up")),
        };
        let told = session.remote.note_start(desktop, golden.id, outcome, machine, said.as_deref()).await;
        match told {
            Ok(()) => {
                unless_noted(starts::note_told(directory, golden.id, outcome));
            }
            Err(error) => {
                tracing::info!(
                    error = &error as &dyn std::error::Error,
                    "the server was not told of a start"
                );
                return;
            }
        }
    }
}
