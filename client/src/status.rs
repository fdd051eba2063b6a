//! What a desktop is doing: for people, scripts and the control socket.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use chunk_format::{ChunkSize, DiskRole, ManifestId, Name, SEGMENT_CHUNKS, Subject, SystemMode};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::cache::Look;
use crate::desktop::{DesktopError, DesktopStore, DiskLayout, OpenDesktop, Version};
use crate::disk::{Base, Disk};
use crate::fetch::{DownCause, LinkEstimate, LinkState};
use crate::lease::LeaseRecord;
use crate::local::{self, LocalShare, Shelf};
use crate::overlay::{BLOCK_BYTES, BlockIndex, BlockState, Overlay};
use crate::profile::ProfileStore;
use crate::remote::{Contact, NamedVersion};
use crate::renew::Heard;
use crate::session::Session;
use crate::starts::Starts;
use crate::volume::Volume;

/// A desktop as it is on this machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DesktopStatus {
    /// The desktop.
    pub desktop: Name,
    /// The user it belongs to.
    pub owner: Name,
    /// Where it is mounted, if it is.
    pub mounted_at: Option<String>,
    /// The version below what was written here.
    pub head: VersionStatus,
    /// The fork that version is of, when the work of this machine could not be the desktop's next version.
    #[serde(default)]
    pub fork: Option<Name>,
    /// The golden version below that.
    pub base: VersionStatus,
    /// The image it is a version of.
    #[serde(default)]
    pub image: Option<Name>,
    /// How the desktop takes up new golden versions.
    #[serde(default)]
    pub system_mode: Option<SystemMode>,
    /// The channel it follows.
    #[serde(default)]
    pub channel: Option<Name>,
    /// Where the channel was last heard to point.
    #[serde(default)]
    pub channel_version: Option<Heard>,
    /// What the channel names, where that is not taken up here as long as it does: a person moved the desktop elsewhere, or it did
    /// not start.
    #[serde(default)]
    pub passed_over: Option<NamedVersion>,
    /// Bytes written here that no committed version holds; none of what was discarded.
    pub unsynced_bytes: u64,
    /// Bytes discarded here where the version below has something.
    #[serde(default)]
    pub discarded_bytes: u64,
    /// The note of a checkpoint that was made here and that the server was not heard to have.
    #[serde(default)]
    pub uncommitted_note: Option<String>,
    /// Whether it is open to be looked at only: what is written is thrown away at the end.
    #[serde(default)]
    pub read_only: bool,
    /// Whether this machine has the right to write it, as far as it knows.
    #[serde(default)]
    pub lease_held: bool,
    /// The machine that took that from this one.
    #[serde(default)]
    pub taken_by: Option<String>,
    /// Whether all of it is to be on this machine.
    #[serde(default)]
    pub pinned: bool,
    /// Its disks, the system disk first.
    pub disks: Vec<DiskStatus>,
    /// How much of what a start touches is on this machine; none when it was never recorded what that is.
    #[serde(default)]
    pub profile: Option<LocalShare>,
    /// What its cache and fetcher are doing; only while it is mounted.
    pub live: Option<LiveStatus>,
}

/// A version, in short.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VersionStatus {
    /// Its id.
    pub id: ManifestId,
    /// Its number.
    pub sequence: u64,
    /// The machine it was made on.
    pub machine: String,
    /// When it was made, milliseconds since 1970 UTC.
    pub created_ms: u64,
}

/// One disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DiskStatus {
    /// What it is for.
    pub role: DiskRole,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes written here that no committed version holds; none of what was discarded.
    pub unsynced_bytes: u64,
    /// Bytes discarded here where the version below has something.
    #[serde(default)]
    pub discarded_bytes: u64,
    /// What was done with it since it was mounted.
    pub activity: Option<DiskActivity>,
    /// How much of what lies below the changes is on this machine; none when that cannot be told.
    #[serde(default)]
    pub local: Option<LocalShare>,
}

/// What was done with a disk since it was mounted.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct DiskActivity {
    /// Reads.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Reads that waited for a fetch.
    pub missed_reads: u64,
    /// Time reads waited, milliseconds, summed over reads.
    pub stall_ms: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Bytes zeroed or discarded.
    pub zeroed_bytes: u64,
    /// Flushes.
    pub flushes: u64,
}

/// What cache and fetcher are doing.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LiveStatus {
    /// Whether the sources answer.
    pub online: bool,
    /// The last failure, while they do not.
    pub offline_reason: Option<String>,
    /// Whether the server answered when it was last asked for anything, be it by a sync or for the lease; none when it was not
    /// asked.
    #[serde(default)]
    pub server_answers: Option<bool>,
    /// Why that came to nothing, if it did.
    #[serde(default)]
    pub server_failure: Option<String>,
    /// Bytes fetched since it was mounted.
    pub fetched_bytes: u64,
    /// Chunks fetched.
    pub fetched_chunks: u64,
    /// Requests made.
    pub requests: u64,
    /// Answers that were not what was asked for.
    pub damaged: u64,
    /// Requests that failed otherwise.
    pub failures: u64,
    /// Chunks waiting for a request.
    pub queued_chunks: u64,
    /// Chunks on their way, those that wait for a request included.
    #[serde(default)]
    pub in_flight_chunks: u64,
    /// Bytes of chunks in the cache.
    pub cached_bytes: u64,
    /// The most the cache keeps, bytes.
    pub cache_limit_bytes: u64,
    /// Cached chunks that did not match their id and were fetched again.
    pub cache_corrupt: u64,
    /// Chunks that came before anyone asked, and of those in the cache: read since, evicted unread, and not yet read.
    #[serde(default)]
    pub foreseen: Foreseen,
    /// What the link to the sources is found to be.
    #[serde(default)]
    pub link: LinkStatus,
    /// Bytes of the boot stream that was asked for, and of it that came.
    #[serde(default)]
    pub boot_stream_bytes: u64,
    /// See above.
    #[serde(default)]
    pub boot_received_bytes: u64,
    /// Whether all of the desktop is to be on this machine.
    #[serde(default)]
    pub pinned: bool,
    /// Whether fetching in the background was stopped.
    #[serde(default)]
    pub paused: bool,
}

/// Chunks that were fetched before anyone asked for them.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Foreseen {
    /// Those that came in time.
    pub in_time: u64,
    /// Those that somebody had to wait for all the same.
    pub late: u64,
    /// Those that came in time and were read since.
    pub used: u64,
    /// Those that were evicted unread.
    pub wasted: u64,
    /// Those that nobody has read yet.
    pub unread: u64,
}

/// What a link is found to be.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct LinkStatus {
    /// Bytes it carries in a second; 0 before anything was measured.
    pub rate_bytes_per_s: u64,
    /// The shortest time to an answer, microseconds.
    pub distance_us: u64,
    /// Bytes that may be under way for what nobody waits for.
    pub window_bytes: u64,
}

impl DesktopStatus {
    /// The status of an open desktop.
    ///
    /// # Errors
    /// [`DesktopError`].
    pub fn of_open(session: &Session, mounted_at: Option<String>) -> Result<Self, DesktopError> {
        let desktop = &session.desktop;
        let shelf = Shelf::of_open(desktop, Look::Index);
        let disks: Vec<DiskStatus> = desktop
            .disks()
            .iter()
            .map(|disk| {
                let Unsynced { written_bytes, discarded_bytes } = unsynced_of(desktop, disk);
                DiskStatus {
                    role: disk.role(),
                    size_bytes: disk.size().bytes(),
                    unsynced_bytes: written_bytes,
                    discarded_bytes,
                    activity: Some(activity(disk)),
                    local: Some(local::of_disk(&disk.view().base, &shelf)),
                }
            })
            .collect();
        // What cannot be read of the desktop's files is told where it is needed.
        let profile = local::for_start(desktop, Look::Index).ok().and_then(|needs| needs.profile);
        let status = Self::new(desktop.store(), mounted_at, disks, Some(live(session)))?;
        Ok(Self { read_only: desktop.is_read_only(), profile, ..status })
    }

    /// The status of a desktop that no process has open, from its files. What of it is here takes long to look up where much is, and is
    /// looked for where its directory is given.
    ///
    /// # Errors
    /// [`DesktopError`].
    pub fn of_files(volume: Arc<dyn Volume>, directory: Option<&Path>) -> Result<Self, DesktopError> {
        let store = DesktopStore::read_only(volume)?;
        let head = store.version(store.record().head)?;
        let below = directory.and_then(|directory| below(&store, &head, directory));
        let Below { shares, profile } = below.unwrap_or_default();
        let disks = head
            .manifest
            .disks
            .iter()
            .map(|disk| {
                let overlays = match store.is_volatile(disk.role) {
                    true => Vec::new(),
                    false => store.open_overlays(DiskLayout { role: disk.role, size: disk.size })?,
                };
                let is_below = |at: usize| disk.segments.get(at).is_some_and(|id| !id.is_zero());
                let Unsynced { written_bytes, discarded_bytes } =
                    Unsynced::of(&overlays, disk.chunk_size, is_below);
                Ok(DiskStatus {
                    role: disk.role,
                    size_bytes: disk.size.bytes(),
                    unsynced_bytes: written_bytes,
                    discarded_bytes,
                    activity: None,
                    local: shares.get(&disk.role).copied(),
                })
            })
            .collect::<Result<_, DesktopError>>()?;
        Ok(Self { profile, ..Self::new(&store, None, disks, None)? })
    }

    fn new(
        store: &DesktopStore,
        mounted_at: Option<String>,
        disks: Vec<DiskStatus>,
        live: Option<LiveStatus>,
    ) -> Result<Self, DesktopError> {
        let record = store.record();
        let version = |id| {
            let version = store.version(id)?;
            Ok::<_, DesktopError>(VersionStatus {
                id,
                sequence: version.manifest.sequence,
                machine: version.manifest.machine,
                created_ms: version.manifest.created_ms,
            })
        };
        let head = store.version(record.head)?.manifest;
        let fork = match &head.subject {
            Subject::Desktop { desktop, .. } if *desktop != record.desktop => Some(desktop.clone()),
            _ => None,
        };
        let (system_mode, base) = (Some(head.mode()), head.base.clone());
        let channel = base.as_ref().and_then(|base| base.channel.clone());
        let channel_version = Heard::load(store.volume()).filter(|heard| {
            let image = base.as_ref().map(|base| &base.image);
            (image, &channel) == (Some(&heard.image), &Some(heard.channel.clone()))
        });
        let starts = Starts::load_from(store.volume());
        let is_passed_over = |named: &NamedVersion| {
            named.id != record.base
                && head.mode() != SystemMode::Own
                && (starts.skipped() == Some(named.id) || starts.held() == Some(*named))
        };
        let passed_over = channel_version.as_ref().map(|heard| heard.version).filter(is_passed_over);
        let lease = LeaseRecord::load(store.volume());
        Ok(Self {
            lease_held: lease.as_ref().is_some_and(|lease| lease.is_held),
            taken_by: lease.and_then(|lease| lease.taken_by),
            image: base.map(|base| base.image),
            system_mode,
            channel,
            channel_version,
            passed_over,
            desktop: record.desktop.clone(),
            owner: record.owner.clone(),
            mounted_at,
            uncommitted_note: store.uncommitted_note()?,
            read_only: false,
            pinned: record.pinned,
            fork,
            head: version(record.head)?,
            base: version(record.base)?,
            unsynced_bytes: disks.iter().map(|disk| disk.unsynced_bytes).sum(),
            discarded_bytes: disks.iter().map(|disk| disk.discarded_bytes).sum(),
            disks,
            profile: None,
            live,
        })
    }
}

/// What is here of what lies below the changes.
#[derive(Default)]
struct Below {
    shares: HashMap<DiskRole, LocalShare>,
    profile: Option<LocalShare>,
}

/// What of it is in a desktop's directory; none when that cannot be told, which is told where it is needed.
fn below(store: &DesktopStore, head: &Version, directory: &Path) -> Option<Below> {
    let record = store.record();
    let golden = store.version(record.base).ok()?;
    let chunk_size = head.manifest.disks.first()?.chunk_size;
    let shelf = Shelf::of_files(directory, chunk_size, record.id.as_bytes()).ok()?;
    let base = |disk| Arc::new(Base::new(disk, |_| head.manifest.subject.namespace()));
    let disks: HashMap<DiskRole, Arc<Base>> =
        head.manifest.disks.iter().map(|disk| (disk.role, base(disk))).collect();
    let shares = disks.iter().map(|(role, disk)| (*role, local::of_disk(disk, &shelf))).collect();
    let profile = ProfileStore::new(directory.join("profiles")).load(&golden).map(|signed| {
        let now = golden.manifest.disks.iter();
        let now: Vec<_> =
            now.map(|disk| disks.get(&disk.role).cloned().unwrap_or_else(|| base(disk))).collect();
        local::of_start(&signed.profile, &now, &shelf).0
    });
    Some(Below { shares, profile })
}

impl From<LinkEstimate> for LinkStatus {
    fn from(link: LinkEstimate) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an estimate, never negative"
        )]
        let rate_bytes_per_s = link.rate_bytes_per_s as u64;
        let distance_us = u64::try_from(link.distance.as_micros()).unwrap_or(u64::MAX);
        Self { rate_bytes_per_s, distance_us, window_bytes: link.window_bytes }
    }
}

fn activity(disk: &Disk) -> DiskActivity {
    let stats = disk.stats();
    DiskActivity {
        reads: stats.reads,
        read_bytes: stats.read_bytes,
        missed_reads: stats.missed_reads,
        stall_ms: stats.stall_us / 1000,
        written_bytes: stats.written_bytes,
        zeroed_bytes: stats.zeroed_bytes,
        flushes: stats.flushes,
    }
}

fn live(session: &Session) -> LiveStatus {
    let desktop = &session.desktop;
    let (fetch, cache) = (desktop.fetcher().stats(), desktop.cache().stats());
    let chunk_bytes = desktop.cache().chunk_size().bytes_u64();
    let link = desktop.fetcher().link().borrow().clone();
    let boot = desktop.fetcher().boot_progress();
    let (server_answers, server_failure) = server(&link, session.remote.last_contact());
    LiveStatus {
        server_answers,
        server_failure,
        online: link == LinkState::Up,
        offline_reason: match link {
            LinkState::Up => None,
            LinkState::Down { reason, .. } => Some(reason),
        },
        fetched_bytes: fetch.fetched_bytes,
        fetched_chunks: fetch.chunks,
        requests: fetch.requests,
        damaged: fetch.damaged,
        failures: fetch.failures,
        queued_chunks: desktop.fetcher().queued().iter().sum(),
        in_flight_chunks: desktop.fetcher().in_flight(),
        cached_bytes: cache.occupied * chunk_bytes,
        cache_limit_bytes: cache.slots * chunk_bytes,
        cache_corrupt: cache.corrupt,
        foreseen: Foreseen {
            in_time: fetch.in_time,
            late: fetch.late,
            used: cache.foreseen,
            wasted: cache.wasted,
            unread: cache.unread,
        },
        link: LinkStatus::from(desktop.fetcher().link_estimate()),
        boot_stream_bytes: boot.stream_bytes,
        boot_received_bytes: boot.received_bytes,
        pinned: desktop.store().record().pinned,
        paused: desktop.fetcher().is_background_paused(),
    }
}

/// Whether the server answers, and why it is of no use if it is not, by whatever heard of it last. A fetch that was given up
/// as silent is no request that has ended.
fn server(link: &LinkState, last: Option<(Contact, Instant)>) -> (Option<bool>, Option<String>) {
    let last = match (link, last) {
        (LinkState::Down { at, .. }, Some((_, asked_at))) if asked_at < *at => None,
        (_, last) => last,
    };
    match (last, link) {
        (Some((Contact::Served, _)), _) => (Some(true), None),
        (Some((Contact::Failed { answers, reason }, _)), _) => (Some(answers), Some(reason)),
        (None, LinkState::Down { reason, cause, .. }) => {
            (Some(*cause == DownCause::Refuses), Some(reason.clone()))
        }
        (None, LinkState::Up) => (None, None),
    }
}

/// Bytes written to an open desktop that no committed version holds, and that are kept.
pub(crate) fn unsynced_bytes(desktop: &OpenDesktop) -> u64 {
    desktop.disks().iter().map(|disk| unsynced_of(desktop, disk).written_bytes).sum()
}

fn unsynced_of(desktop: &OpenDesktop, disk: &Disk) -> Unsynced {
    if desktop.is_volatile(disk) {
        return Unsynced::default();
    }
    let discard_from = desktop.store().record().discard_from.unwrap_or(u64::MAX);
    let view = disk.view();
    let mut overlays = view.overlays.clone();
    overlays.retain(|overlay| overlay.identity().generation < discard_from);
    let is_below = |at: usize| view.base.segments().get(at).is_some_and(|segment| !segment.id.is_zero());
    Unsynced::of(&overlays, view.base.chunk_size(), is_below)
}

/// What overlays hold that no committed version does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Unsynced {
    /// Bytes of blocks that were written.
    written_bytes: u64,
    /// Bytes of blocks that were zeroed, in segments that are not all zeros below: making a file system discards a whole disk,
    /// and what was nothing before is no work.
    discarded_bytes: u64,
}

impl Unsynced {
    /// Counts by the maps of the overlays, the newest first; `is_below` says whether the version below has anything in a segment.
    fn of(overlays: &[Arc<Overlay>], chunk_size: ChunkSize, is_below: impl Fn(usize) -> bool) -> Self {
        let mut unsynced = Self::default();
        let blocks = overlays.first().map_or(0, |overlay| overlay.blocks());
        let segment_blocks = (SEGMENT_CHUNKS as u64 * chunk_size.bytes_u64() / BLOCK_BYTES).max(1);
        let mut at = 0;
        while at < blocks {
            let segment = at / segment_blocks;
            let mut end = blocks.min((segment + 1) * segment_blocks);
            let mut newest = BlockState::Base;
            for overlay in overlays {
                let (state, len) = overlay.run(BlockIndex(at), BlockIndex(end));
                end = at + len.max(1);
                newest = state;
                if state != BlockState::Base {
                    break;
                }
            }
            let bytes = (end - at) * BLOCK_BYTES;
            match newest {
                BlockState::Data => unsynced.written_bytes += bytes,
                BlockState::Zero if usize::try_from(segment).is_ok_and(&is_below) => {
                    unsynced.discarded_bytes += bytes;
                }
                BlockState::Zero | BlockState::Base => {}
            }
            at = end;
        }
        unsynced
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use chunk_format::DiskSize;

    use super::*;
    use crate::overlay::OverlayIdentity;
    use crate::volume::SimulatedVolume;

    const SEGMENT_BLOCKS: u64 = 1024 * 16;

    fn overlay(volume: &SimulatedVolume, generation: u64) -> Overlay {
        let identity = OverlayIdentity {
            desktop: ManifestId::of(b"desktop"),
            role: DiskRole::Home,
            size: DiskSize::new(3 * SEGMENT_BLOCKS * BLOCK_BYTES).unwrap(),
            generation,
        };
        Overlay::create(volume, identity, ManifestId::of(b"head"), 7).unwrap()
    }

    #[test]
    fn what_was_nothing_before_and_was_discarded_is_no_work() {
        let volume = SimulatedVolume::default();
        let (older, newer) = (overlay(&volume, 1), overlay(&volume, 2));
        let block = |at: u64| at * BLOCK_BYTES;
        older.write(block(10), &[1; 5 * 4096]).unwrap();
        // All of the disk, of which only the second segment has anything below; then something is written.
        newer.zero(0..3 * SEGMENT_BLOCKS).unwrap();
        newer.write(block(12), &[2; 4096]).unwrap();
        newer.write(block(SEGMENT_BLOCKS), &[2; 2 * 4096]).unwrap();
        let overlays = [Arc::new(newer), Arc::new(older)];
        let unsynced = |overlays| Unsynced::of(overlays, ChunkSize::DEFAULT, |segment| segment == 1);
        assert_eq!(
            unsynced(&overlays[..]),
            Unsynced { written_bytes: block(3), discarded_bytes: block(SEGMENT_BLOCKS - 2) }
        );
        assert_eq!(unsynced(&overlays[1..]), Unsynced { written_bytes: block(5), discarded_bytes: 0 });
        assert_eq!(unsynced(&[]), Unsynced::default());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_heard_of_the_server_last_says_whether_it_answers() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let down = |at| LinkState::Down { reason: "silent".to_owned(), cause: DownCause::Silent, at };
        let silent = (Some(false), Some("silent".to_owned()));
        assert_eq!(server(&LinkState::Up, None), (None, None));
        assert_eq!(server(&down(now), None), silent);
        assert_eq!(server(&down(later), Some((Contact::Served, now))), silent);
        assert_eq!(server(&down(now), Some((Contact::Served, later))), (Some(true), None));
        let failed = Contact::Failed { answers: false, reason: "a sync failed".to_owned() };
        let told = (Some(false), Some("a sync failed".to_owned()));
        assert_eq!(server(&LinkState::Up, Some((failed, now))), told);
        let refusing =
            LinkState::Down { reason: "who are you".to_owned(), cause: DownCause::Refuses, at: now };
        assert_eq!(server(&refusing, None), (Some(true), Some("who are you".to_owned())));
    }
}
