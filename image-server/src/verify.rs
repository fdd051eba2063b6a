//! Re-reading all that is stored: every byte of every object, and every row against its object.
//!
//! May run beside a server: objects are durable before their rows, so whatever has a row must be whole, and what has none
//! yet is counted as left over. Nothing is changed, and nothing need be: a copy that may not be written to is checked, too.

mod listing;
mod packs;
mod profiles;
mod segments;
mod versions;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::Path;

use chunk_format::{Namespace, PackId, SegmentId};
use serde::Serialize;

use crate::cause::chain;
use crate::clock::now_ms;
use crate::database::namespaces::{self, NamespaceId};
use crate::database::packs::{self as pack_rows, PackRowId};
use crate::database::segments::SegmentRowId;
use crate::database::{Database, DatabaseError};
use crate::identity;
use crate::layout::{DataDir, LayoutError};
use crate::storage::{Leftovers, Opening, Patience, Storage, StorageError};

/// Unknown files named in a report; the rest is only counted.
const MAX_NAMED_UNKNOWN: usize = 1000;

/// Why the check could not be made: not what it found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The database does not answer.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The object store does not answer.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The bucket was out of reach for a time: nothing can be said of what was asked for then.
    #[error("the check was not finished, and says nothing of what is damaged: {reason}")]
    Away {
        /// How that showed first.
        reason: String,
    },
    /// A thread could not be used.
    #[error("a check was cut short")]
    Cut(#[source] tokio::task::JoinError),
    /// The decoder got no memory.
    #[error(transparent)]
    Decoder(chunk_format::FormatError),
}

/// Something that is damaged.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// The object's path in the store, or `database`.
    pub object: String,
    /// What is wrong with it.
    pub problem: String,
    /// The versions that cannot be read whole because of it, as far as that is known.
    pub affects: BTreeSet<String>,
    /// Why more versions may be affected than are named, a line each; none when these are all.
    pub unsure: BTreeSet<String>,
    /// What can be done.
    pub advice: &'static str,
    /// Whether it is a part of the content that is certain to be lost here: [`crate::repair`] has it sent again.
    pub is_lost: bool,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// What is damaged; nothing when all is well.
    pub findings: Vec<Finding>,
    /// Packs read.
    pub packs: u64,
    /// Bytes in them.
    pub pack_bytes: u64,
    /// Segments read.
    pub segments: u64,
    /// Versions read.
    pub versions: u64,
    /// Boot profiles read.
    pub profiles: u64,
    /// Objects of boot streams read.
    pub streams: u64,
    /// Chunks that lie in whole packs and have no row: harmless, they are sent again by whoever needs them.
    pub unindexed_chunks: u64,
    /// What uploads and writes that were cut short left: harmless.
    pub unfinished: Leftovers,
    /// Whole objects nothing refers to, mostly of uploads that were never committed: harmless.
    pub unreferenced: Leftovers,
    /// Files that are none of ours, by path.
    pub unknown: Vec<String>,
    /// How many of those there are.
    pub unknown_files: u64,
}

/// Hears how far the check is. Called from several threads.
pub trait Progress: Send + Sync {
    /// A part of the check begins, of `total` steps.
    fn begin(&self, part: Part, total: u64);
    /// Some steps are done.
    fn advance(&self, steps: u64);
}

/// A part of the check, and what its steps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Reading packs; steps are bytes.
    Packs,
    /// Reading segments; steps are segments.
    Segments,
    /// Reading versions; steps are versions.
    Versions,
    /// Reading boot profiles and streams; steps are objects.
    Profiles,
    /// Looking for files without rows; steps are files, of an unknown number.
    Files,
    /// Of a repair: what becomes of segments that are lost; steps are segments.
    Lost,
}

/// Where a finding stands in the report.
type FindingAt = usize;

/// What the parts of the check learn for each other.
struct Check<'a> {
    database: Database,
    storage: Storage,
    names: HashMap<NamespaceId, Namespace>,
    progress: &'a dyn Progress,
    begun_ms: i64,
    report: Report,
    bad_packs: HashMap<(Namespace, PackId), BadPack>,
    bad_segments: HashMap<(NamespaceId, SegmentId), BadSegment>,
}

/// A damaged pack.
struct BadPack {
    row: PackRowId,
    finding: FindingAt,
    /// Offsets of the frames that are damaged; none when nothing in the pack can be trusted.
    frames: Option<HashSet<u32>>,
    /// Whether that is certain, and not only that the store did not give it.
    is_lost: bool,
}

impl BadPack {
    /// Whether the frame at this offset cannot be read.
    fn spoils(&self, offset: u32) -> bool {
        self.frames.as_ref().is_none_or(|frames| frames.contains(&offset))
    }
}

/// A segment that cannot be read whole.
pub(crate) struct BadSegment {
    pub(crate) row: SegmentRowId,
    findings: Vec<FindingAt>,
    /// Whether that is certain, and not only that the store did not give something.
    pub(crate) is_lost: bool,
    /// The versions that need it, as far as they can be read.
    pub(crate) affects: BTreeSet<String>,
}

/// What a check found, for who acts on it.
pub(crate) struct Checked {
    pub(crate) report: Report,
    /// Packs that cannot be read whole, and whether they are certain to be lost.
    pub(crate) packs: HashMap<PackRowId, bool>,
    pub(crate) segments: Vec<BadSegment>,
}

/// Checks the server in `root`.
///
/// # Errors
/// What kept the check from being made. What is damaged is in the report.
pub async fn verify(root: &Path, progress: &dyn Progress) -> Result<Report, VerifyError> {
    let dir = DataDir::open(root)?;
    let lock = dir.lock()?;
    let database = Database::open_to_read(&dir.database()).await?;
    drop(lock);
    let identity = identity::read(&dir.identity_key())?.public();
    let has_packs = pack_rows::any_counts(database.readers()).await?;
    let opening = Opening { patience: Patience::OfPrograms, has_packs, marks: false };
    let storage = Storage::of(&dir, &identity, opening).await?;
    let checked = check(database.clone(), storage, progress).await;
    database.close().await;
    checked
}

/// Checks what is stored here.
pub(crate) async fn check(
    database: Database,
    storage: Storage,
    progress: &dyn Progress,
) -> Result<Report, VerifyError> {
    Ok(look_over(database, storage, progress).await?.report)
}

/// The same, for who acts on what is found.
pub(crate) async fn look_over(
    database: Database,
    storage: Storage,
    progress: &dyn Progress,
) -> Result<Checked, VerifyError> {
    let names = namespaces::list(database.readers()).await?.into_iter().collect();
    let mut check = Check {
        database,
        storage,
        names,
        progress,
        begun_ms: now_ms(),
        report: Report::default(),
        bad_packs: HashMap::new(),
        bad_segments: HashMap::new(),
    };
    for problem in check.database.check().await? {
        let finding = check.find("database", problem, ADVICE_DATABASE);
        check.unsure(finding, "what is lost of the database is not known");
    }
    check.packs().await?;
    check.segments().await?;
    check.versions().await?;
    check.profiles().await?;
    let listed = check.files().await;
    if listed.is_err() {
        // What it says is remembered, and told in place of what was listed.
        let _ = check.storage.check_reach().await;
    }
    check.reachable()?;
    match listed {
        Err(VerifyError::Storage(error)) => {
            // All that was read before is found out, whatever the last step meets.
            check.find(
                "objects",
                format!("its files cannot all be listed: {}", chain(&error)),
                ADVICE_LISTING,
            );
        }
        listed => listed?,
    }
    check.leave_out_garbage().await?;
    let packs = check.bad_packs.values().map(|bad| (bad.row, bad.is_lost)).collect();
    Ok(Checked { report: check.report, packs, segments: check.bad_segments.into_values().collect() })
}

const ADVICE_LISTING: &str = "run this as the user that the server runs as, who must be able to read every directory there; if that \
    is so, look at the disk";
const ADVICE_DATABASE: &str = "restore the database from a backup taken with the objects";
const ADVICE_LOST: &str = "restore the file from a backup, or run `satchel-server repair`, after which whoever has its content sends it again";
const ADVICE_WITHHELD: &str = "look at the disk, and at whether the file belongs to the user that the server runs as, who must run this, too: \
    the file may be whole";
const ADVICE_PROFILE: &str =
    "record the version's profile again (`satchel profile record`): until then, machines start without it";
const ADVICE_SIGNATURE: &str = "none is needed for clients, who are answered from the database; for whoever else reads the store, restore the \
    file from a backup";
const ADVICE_VERSION: &str = "restore the file from a backup, or from a client that has this version";

impl Check<'_> {
    /// What a bucket did not answer is no damage: called before anything is read, and in the end.
    fn reachable(&self) -> Result<(), VerifyError> {
        match self.storage.away() {
            Some(reason) => Err(VerifyError::Away { reason: reason.to_owned() }),
            None => Ok(()),
        }
    }

    /// Leaves out what was found of packs that are noted as lost and of which nothing needs what is damaged: whoever had it has
    /// sent it again, and the rest is the garbage collector's.
    async fn leave_out_garbage(&mut self) -> Result<(), DatabaseError> {
        let needed: HashSet<FindingAt> =
            self.bad_segments.values().flat_map(|bad| bad.findings.iter().copied()).collect();
        let lost: HashSet<PackRowId> =
            pack_rows::list_lost(self.database.readers()).await?.into_iter().map(|pack| pack.row).collect();
        let left_out: HashSet<FindingAt> = self
            .bad_packs
            .values()
            .filter(|bad| lost.contains(&bad.row) && !needed.contains(&bad.finding))
            .map(|bad| bad.finding)
            .filter(|finding| self.report.findings[*finding].unsure.is_empty())
            .collect();
        let mut at = 0;
        self.report.findings.retain(|_| {
            at += 1;
            !left_out.contains(&(at - 1))
        });
        Ok(())
    }

    fn find(&mut self, object: impl ToString, problem: String, advice: &'static str) -> FindingAt {
        let (object, affects, unsure) = (object.to_string(), BTreeSet::new(), BTreeSet::new());
        let is_lost = false;
        self.report.findings.push(Finding { object, problem, affects, unsure, advice, is_lost });
        self.report.findings.len() - 1
    }

    /// Notes that a part of the content is lost, or only withheld.
    fn find_content(&mut self, object: impl ToString, problem: String, is_lost: bool) -> FindingAt {
        let finding = self.find(object, problem, if is_lost { ADVICE_LOST } else { ADVICE_WITHHELD });
        self.report.findings[finding].is_lost = is_lost;
        finding
    }

    /// Notes why a finding may affect more than it names.
    fn unsure(&mut self, finding: FindingAt, reason: impl ToString) {
        self.report.findings[finding].unsure.insert(reason.to_string());
    }

    /// Reads the names of namespaces again when some are not known: somebody has sent something for the first time meanwhile.
    async fn know(&mut self, mut ids: impl Iterator<Item = NamespaceId>) -> Result<(), DatabaseError> {
        if ids.any(|id| !self.names.contains_key(&id)) {
            self.names = namespaces::list(self.database.readers()).await?.into_iter().collect();
        }
        Ok(())
    }

    /// The name of a namespace that has rows.
    fn name(&self, id: NamespaceId) -> Result<Namespace, DatabaseError> {
        self.names.get(&id).cloned().ok_or_else(|| DatabaseError::Value {
            what: "namespace",
            found: format!("none with the row {id:?}"),
        })
    }
}

/// How many objects are read at once: decoding is what takes the time.
fn readers() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
