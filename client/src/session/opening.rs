//! What opening a desktop takes: the lease, the newest version, its sources, its disks.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use chunk_format::{ChunkSize, ManifestId, Name, Namespace, Subject};
use futures_util::future::{Either, select};
use tokio::runtime::Handle;

use super::{Holder, Notice, SessionError, SessionOptions, has_changes};
use crate::cache::{Cache, CacheConfig};
use crate::desktop::{
    DesktopError, DesktopRecord, DesktopStore, NewDesktop, OpenDesktop, Version, layouts, with_room,
};
use crate::fetch::{Fetcher, SegmentStore};
use crate::lease::{self, Asked, Claim, LeaseRecord, Standing};
use crate::profile::{ProfileStore, UnjudgedProfile};
use crate::remote::{AfterExpiry, DesktopInfo, NamedVersion, Remote, RemoteError};
use crate::source::{ChunkSource, HttpSource, ImagesOnly, NoSource, SourceAddress, SourceList};
use crate::state::Login;
use crate::versions::{VersionError, fetch_unjudged, fetch_version, is_listed};
use crate::volume::{DirVolume, Volume};

/// A desktop on its way to being open.
pub(super) struct Opening<'a> {
    pub(super) login: &'a Login,
    pub(super) remote: &'a Remote,
    pub(super) desktop: &'a Name,
    pub(super) directory: &'a Path,
}

/// What a desktop begins with on a machine: its newest version with the golden one below, and the profile of that.
pub(super) struct Beginnings {
    /// The version that was asked for.
    head: ManifestId,
    versions: Result<(Version, Version), SessionError>,
    profile: Option<UnjudgedProfile>,
}

impl Opening<'_> {
    /// Takes the lease, or finds out what may be done without it. Answers what the server knows of the desktop, and
    /// whether it is only to be looked at.
    ///
    /// The lease comes before the look at the newest version: what another machine commits at its end is then seen.
    pub(super) async fn claim(
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
        // Without being told to take it, a machine gets it when the other one has given it back since.
        let before = info.lease.as_ref().filter(|lease| take && !lease::is_ours(lease, &holder.key));
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
                LeaseRecord::heard(&answer, true, now_ms).note(&volume);
                let info = match answer.head.id == info.head.id {
                    true => info,
                    false => match self.remote.desktop(self.desktop).await {
                        Ok(info) => info,
                        Err(error) => return Ok((Err(error), false)),
                    },
                };
                Ok((Ok(Some(info)), false))
            }
            Ok(Asked::HeldElsewhere(lease)) => {
                if let Some(record) = LeaseRecord::load(&volume).filter(|record| record.is_held) {
                    record.taken(lease.machine.clone(), now_ms).note(&volume);
                }
                if options.claim == Claim::IfFree {
                    return Ok((Ok(Some(info)), false));
                }
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
    pub(super) fn stands_on(&self) -> Option<ManifestId> {
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
        record.seen(now_ms).note(volume);
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

    pub(super) fn subject(&self) -> Subject {
        Subject::Desktop { owner: self.login.user.clone(), desktop: self.desktop.clone() }
    }

    pub(super) fn failed(&self, source: DesktopError) -> SessionError {
        SessionError::Desktop { desktop: self.desktop.clone(), path: self.directory.to_owned(), source }
    }

    /// Opens the desktop's files, begins them if there are none, and takes up a newer version if nothing here
    /// speaks against it.
    pub(super) async fn bring_up_to_date(
        &self,
        found: Result<Option<DesktopInfo>, RemoteError>,
        ahead: Option<Beginnings>,
        options: &SessionOptions,
        holder: &Holder,
        notices: &mut Vec<Notice>,
    ) -> Result<DesktopStore, SessionError> {
        let volume: Arc<dyn Volume> = Arc::new(
            DirVolume::open(self.directory)
                .map_err(|source| SessionError::Lock { path: self.directory.to_owned(), source })?,
        );
        let opened =
            DesktopStore::open(Arc::clone(&volume), &self.login.server, &self.login.user, self.desktop);
        let store = match opened {
            Err(DesktopError::NotHere) => return self.begin(volume, found, ahead, holder).await,
            opened => opened.map_err(|source| self.failed(source))?,
        };
        match found {
            Err(RemoteError::Offline) => {}
            Err(error) => notices.push(Notice::Offline { reason: error.to_string() }),
            Ok(None) => self.look_at_gone(&store, notices).await?,
            Ok(Some(info)) => self.catch_up(&store, &info, options, holder, notices).await?,
        }
        self.look_at_base(&store, notices).await?;
        Ok(store)
    }

    async fn begin(
        &self,
        volume: Arc<dyn Volume>,
        found: Result<Option<DesktopInfo>, RemoteError>,
        ahead: Option<Beginnings>,
        holder: &Holder,
    ) -> Result<DesktopStore, SessionError> {
        let desktop = self.desktop.clone();
        let info = match found {
            Ok(Some(info)) => info,
            Ok(None) => return Err(SessionError::NoSuchDesktop { desktop }),
            Err(source) => return Err(SessionError::NotHere { desktop, source }),
        };
        let beginnings = match ahead.filter(|ahead| ahead.head == info.head.id) {
            Some(ahead) => ahead,
            None => self.fetch_beginnings(&info, holder).await,
        };
        let (head, base) = beginnings.versions?;
        if let Some(profile) = beginnings.profile
            && let Some(profile) = profile.judge(&base)
        {
            self.profiles().keep(&profile);
        }
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

    /// Fetches what a desktop begins with on this machine, when nothing of it is here: beside the lease, so that a far server is
    /// waited for once.
    pub(super) async fn fetch_ahead(
        &self,
        info: Option<&DesktopInfo>,
        holder: &Holder,
    ) -> Option<Beginnings> {
        let volume = DirVolume::open(self.directory).ok()?;
        match DesktopStore::read_only(Arc::new(volume)) {
            Err(DesktopError::NotHere) => Some(self.fetch_beginnings(info?, holder).await),
            _ => None,
        }
    }

    async fn fetch_beginnings(&self, info: &DesktopInfo, holder: &Holder) -> Beginnings {
        // This machine stands on nothing yet, so that it may be told before what is fetched holds.
        let noted = lease::note_standing(self.remote, self.desktop, &holder.key, info.head.id);
        let image = Namespace::Image(info.base.image.clone());
        let profile = async { UnjudgedProfile::fetch(self.remote, image, info.base.profile?).await };
        let began = Instant::now();
        let versions = async { tokio::join!(self.fetch(info), noted).0 };
        let (versions, profile) = match select(pin!(versions), pin!(profile)).await {
            // It is no reason to wait for long: whoever needs it asks again, and others than the server.
            Either::Left((versions, profile)) => {
                (versions, tokio::time::timeout(began.elapsed(), profile).await.ok().flatten())
            }
            Either::Right((profile, versions)) => (versions.await, profile),
        };
        Beginnings { head: info.head.id, versions, profile }
    }

    async fn catch_up(
        &self,
        store: &DesktopStore,
        info: &DesktopInfo,
        options: &SessionOptions,
        holder: &Holder,
        notices: &mut Vec<Notice>,
    ) -> Result<(), SessionError> {
        let record = store.record();
        let server = &info.head;
        // A version of ours whose commit was not yet heard of is the next sync's business.
        if server.id == record.head || record.pending.is_some_and(|pending| pending.manifest == server.id) {
            return Ok(());
        }
        let here = store.version(record.head).map_err(|source| self.failed(source))?;
        let is_own = here.manifest.subject == self.subject();
        if is_own && info.id == record.id && server.sequence <= here.manifest.sequence {
            let (server, here) = (server.sequence, here.manifest.sequence);
            notices.push(Notice::ServerIsBehind { server, here });
            return Ok(());
        }
        // What only this machine has is not left for what others have made since, whatever its number.
        match self.is_known(info, &record, &here).await {
            Ok(true) => {}
            Ok(false) => return self.leave_removed(store, info, &here, options, holder, notices).await,
            Err(error) => {
                notices.push(Notice::Offline { reason: error.to_string() });
                return Ok(());
            }
        }
        if let Subject::Desktop { desktop: fork, .. } = &here.manifest.subject
            && fork != self.desktop
        {
            let fork = fork.clone();
            if has_changes(store, &here).map_err(|source| self.failed(source))? {
                notices.push(Notice::OnFork { fork });
            } else {
                self.move_to_head(store, info, options, holder).await?;
                notices.push(Notice::WorkIsInFork { fork });
            }
            return Ok(());
        }
        let (sequence, machine) = (server.sequence, server.machine.clone());
        if has_changes(store, &here).map_err(|source| self.failed(source))? {
            // A renewal of ours whose commit was not heard of is the next sync's business.
            if record.renewal != Some(server.id) {
                notices.push(Notice::Diverged { sequence, machine });
            }
        } else {
            let note = store.record().note;
            self.move_to_head(store, info, options, holder).await?;
            notices.extend(note.map(|note| Notice::CheckpointGone { note: note.text }));
            notices.push(Notice::MovedTo { sequence, machine });
        }
        Ok(())
    }

    /// Leaves a version that the server does not list: what was removed is not gone on with, unless something was changed here; of
    /// anything else this machine may have the only copy.
    async fn leave_removed(
        &self,
        store: &DesktopStore,
        info: &DesktopInfo,
        here: &Version,
        options: &SessionOptions,
        holder: &Holder,
        notices: &mut Vec<Notice>,
    ) -> Result<(), SessionError> {
        let removed = match self.remote.removed(here.id).await {
            Ok(Some(removed)) => removed.desktop,
            Ok(None) => {
                notices.push(Notice::HeadUnknown { here: here.manifest.sequence });
                return Ok(());
            }
            Err(error) => {
                notices.push(Notice::Offline { reason: error.to_string() });
                return Ok(());
            }
        };
        // A checkpoint that waits to be sent is of a state that is in no version any more.
        if store.record().note.is_some() || has_changes(store, here).map_err(|source| self.failed(source))? {
            notices.push(Notice::OnRemoved { removed });
            return Ok(());
        }
        self.move_to_head(store, info, options, holder).await?;
        notices.push(Notice::MovedFromRemoved { removed, sequence: info.head.sequence });
        Ok(())
    }

    /// Whether the server still has the version here in its history, be its content pruned or not.
    async fn is_known(
        &self,
        info: &DesktopInfo,
        record: &DesktopRecord,
        here: &Version,
    ) -> Result<bool, RemoteError> {
        let subject = &here.manifest.subject;
        // A fork has a history of its own, whatever became of the desktop it began on.
        if *subject == self.subject() && info.id != record.id {
            return Ok(false);
        }
        let version = NamedVersion { id: record.head, sequence: here.manifest.sequence };
        is_listed(self.remote, subject, version, true).await
    }

    /// Finds out what became of a desktop that the server does not know: whether it was removed, and whether there is the fork that
    /// this machine stands on, if it stands on one.
    async fn look_at_gone(
        &self,
        store: &DesktopStore,
        notices: &mut Vec<Notice>,
    ) -> Result<(), SessionError> {
        let here = store.version(store.record().head).map_err(|source| self.failed(source))?;
        match self.remote.removed(here.id).await {
            Ok(Some(removed)) => {
                notices.push(Notice::Removed { removed_ms: removed.removed_ms });
                return Ok(());
            }
            Ok(None) => notices.push(Notice::GoneFromServer),
            Err(error) => {
                notices.push(Notice::Offline { reason: error.to_string() });
                return Ok(());
            }
        }
        if here.manifest.subject == self.subject() {
            return Ok(());
        }
        let version = NamedVersion { id: here.id, sequence: here.manifest.sequence };
        match is_listed(self.remote, &here.manifest.subject, version, true).await {
            Ok(true) => {}
            Ok(false) => notices.push(Notice::HeadUnknown { here: version.sequence }),
            Err(error) => notices.push(Notice::Offline { reason: error.to_string() }),
        }
        Ok(())
    }

    /// Looks whether a server that does not know the version here knows the golden one below it: nothing can be committed on
    /// one that it does not know.
    async fn look_at_base(
        &self,
        store: &DesktopStore,
        notices: &mut Vec<Notice>,
    ) -> Result<(), SessionError> {
        let is_lost = |notice: &Notice| {
            matches!(
                notice,
                Notice::ServerIsBehind { .. } | Notice::HeadUnknown { .. } | Notice::GoneFromServer
            )
        };
        if !notices.iter().any(is_lost) {
            return Ok(());
        }
        let golden = store.version(store.record().base).map_err(|source| self.failed(source))?;
        let Subject::Image { image } = &golden.manifest.subject else { return Ok(()) };
        let version = NamedVersion { id: golden.id, sequence: golden.manifest.sequence };
        match is_listed(self.remote, &golden.manifest.subject, version, false).await {
            Ok(true) => {}
            Ok(false) => {
                let (image, sequence) = (image.clone(), version.sequence);
                notices.push(Notice::BaseUnknown { image, sequence });
            }
            Err(error) => notices.push(Notice::Offline { reason: error.to_string() }),
        }
        Ok(())
    }

    /// Has the files here stand on the desktop's newest version, of which the server is told first: it keeps that then.
    async fn move_to_head(
        &self,
        store: &DesktopStore,
        info: &DesktopInfo,
        options: &SessionOptions,
        holder: &Holder,
    ) -> Result<(), SessionError> {
        let (head, base) = self.fetch(info).await?;
        lease::note_standing(self.remote, self.desktop, &holder.key, head.id).await;
        let moving = || match info.id == store.record().id {
            true => store.move_to(&head, &base),
            false => store.move_to_another(info.id, &head, &base),
        };
        let moved = match moving() {
            // All that the cache holds is on the server: it knows the version here.
            Err(error) if error.is_full() => with_room(&self.cache(store, options)?, moving),
            moved => moved,
        };
        moved.map_err(|source| self.failed(source))
    }

    fn profiles(&self) -> ProfileStore {
        ProfileStore::new(self.directory.join("profiles"))
    }

    /// The desktop's cache, as it is for the version the files stand on.
    fn cache(&self, store: &DesktopStore, options: &SessionOptions) -> Result<Cache, SessionError> {
        let record = store.record();
        let head = store.version(record.head).map_err(|source| self.failed(source))?;
        let chunk_size = head.manifest.disks.first().map_or(ChunkSize::DEFAULT, |disk| disk.chunk_size);
        let config =
            CacheConfig { chunk_size, limit_bytes: options.cache_bytes, owner: *record.id.as_bytes() };
        Ok(Cache::open(&self.directory.join("cache"), &config)?)
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
    pub(super) fn note_mirrors(&self, named: &[String]) -> Result<(), SessionError> {
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

    pub(super) fn assemble(
        &self,
        store: DesktopStore,
        options: &SessionOptions,
        runtime: &Handle,
        is_read_only: bool,
        is_head_lost: bool,
    ) -> Result<OpenDesktop, SessionError> {
        let cache = Arc::new(self.cache(&store, options)?);
        // Before anything is written down that would have the cache give space.
        cache.set_sole(is_head_lost);
        let segments = SegmentStore::new(self.directory.join("segments"));
        let fetcher =
            Fetcher::new(runtime, self.sources(options)?, Arc::clone(&cache), segments, options.on_missing);
        if is_read_only {
            let head = store.version(store.record().head).map_err(|source| self.failed(source))?;
            with_room(&cache, || store.add_discarded_generation(&layouts(&head.manifest)))
                .map_err(|source| self.failed(source))?;
        }
        OpenDesktop::assemble(store, cache, fetcher, self.profiles(), runtime.clone())
            .map_err(|source| self.failed(source))
    }
}
