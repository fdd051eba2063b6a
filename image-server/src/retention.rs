//! Which versions are kept.
//!
//! A policy keeps, as `restic forget` does, the newest N versions, and the newest version of each of the last N hours,
//! days and weeks (UTC, weeks from Monday) that have one. A version that no rule keeps is pruned: it leaves the listings, its
//! row stays, and the garbage collector ([`crate::gc`]) deletes what only it needed. Never pruned, whatever the policy
//! says: the newest version of a series; a desktop's first, which names it; a desktop's versions with a note a person
//! made; golden versions that a channel names or a kept version stands on; versions a fork began on; the version the
//! machine with a desktop's lease stands on; and the version each machine stood on that was heard of in the last 180 days,
//! with its golden version: what is written there offline has no other place to go. Of a desktop that was removed long enough ago
//! ([`crate::removal`]) only what others need is kept.

use std::collections::HashSet;
use std::path::Path;

use chunk_format::{ManifestId, Name, Namespace};
use serde::{Deserialize, Serialize};

use crate::clock::now_ms;
use crate::database::retention::{self as rows, KeptVersion, OwnedSeries};
use crate::database::versions::VersionRowId;
use crate::database::{Connection, Database, DatabaseError, commit};
use crate::layout::{DataDir, LayoutError};
use crate::removal;

const HOUR_MS: i64 = 60 * 60 * 1000;
const DAY_MS: i64 = 24 * HOUR_MS;

/// Why versions were not pruned. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetentionError {
    /// The directory cannot be used.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// There is nothing of this name.
    #[error("there is no {namespace} here, or nothing was committed to it")]
    NoSuch {
        /// The image or user.
        namespace: Namespace,
    },
}

/// How many versions a series keeps. A rule of 0 keeps none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The newest versions.
    #[serde(default)]
    pub keep_last: u32,
    /// Hours of which the newest version is kept.
    #[serde(default)]
    pub keep_hourly: u32,
    /// Days of which the newest version is kept.
    #[serde(default)]
    pub keep_daily: u32,
    /// Weeks of which the newest version is kept.
    #[serde(default)]
    pub keep_weekly: u32,
}

impl Policy {
    /// No rule: only what is never pruned stays.
    pub const NONE: Self = Self { keep_last: 0, keep_hourly: 0, keep_daily: 0, keep_weekly: 0 };
}

impl Default for Policy {
    /// A day by the hour, two weeks by the day, two months by the week, and always the last ten.
    fn default() -> Self {
        Self { keep_last: 10, keep_hourly: 24, keep_daily: 14, keep_weekly: 8 }
    }
}

/// What to prune.
#[derive(Clone, Debug, Default)]
pub struct Pruning {
    /// The policy in place of the server's own; desktops with one of their own keep theirs.
    pub policy: Option<Policy>,
    /// Whether it becomes the server's own, whatever is pruned by it now.
    pub set: bool,
    /// One image, or one user's desktops; everything when none is named.
    pub only: Option<Namespace>,
    /// Whether to change nothing.
    pub dry_run: bool,
}

/// What was pruned.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The policy of series without one of their own.
    pub policy: Policy,
    /// Whether it became the server's own.
    pub set: bool,
    /// Whether nothing was changed: what is told would have been done.
    pub dry_run: bool,
    /// Versions that are kept.
    pub kept: u64,
    /// The versions that are not.
    pub pruned: Vec<PrunedVersion>,
}

/// A version that is kept no longer.
#[derive(Clone, Debug, Serialize)]
pub struct PrunedVersion {
    /// `image/IMAGE` or `user/USER`.
    pub namespace: String,
    /// The image or desktop.
    pub name: Name,
    /// The version's number.
    pub sequence: u64,
    /// The version.
    pub id: ManifestId,
}

/// Prunes versions of the server in `root`; works beside a server.
///
/// # Errors
/// [`RetentionError`].
pub async fn prune(root: &Path, wish: &Pruning) -> Result<Report, RetentionError> {
    let dir = DataDir::open(root)?;
    let lock = dir.lock()?;
    let database = Database::open(&dir.database()).await?;
    drop(lock);
    let pruned = prune_in(&database, wish, now_ms()).await;
    database.close().await;
    pruned
}

/// Decides in one transaction, so that what is decided on cannot change meanwhile.
pub(crate) async fn prune_in(
    database: &Database,
    wish: &Pruning,
    now_ms: i64,
) -> Result<Report, RetentionError> {
    let mut tx = database.begin().await?;
    if let (Some(policy), true) = (wish.policy, wish.set) {
        rows::set_policy(&mut tx, None, Some(policy)).await?;
    }
    let own = rows::policy(&mut *tx, None).await?.unwrap_or_default();
    let policy = wish.policy.unwrap_or(own);
    let set = wish.set && wish.policy.is_some();
    let mut report = Report { policy, set, dry_run: wish.dry_run, kept: 0, pruned: Vec::new() };
    let all = rows::all_series(&mut *tx).await?;
    let (images, desktops): (Vec<_>, Vec<_>) = all
        .into_iter()
        .filter(|series| wish.only.as_ref().is_none_or(|only| *only == series.namespace))
        .partition(|series| matches!(series.namespace, Namespace::Image(_)));
    if let Some(namespace) = &wish.only
        && images.is_empty()
        && desktops.is_empty()
    {
        return Err(RetentionError::NoSuch { namespace: namespace.clone() });
    }
    // Desktops first: golden versions nothing stands on any more are then pruned in the same run.
    for series in [desktops, images] {
        let needed = rows::needed_versions(&mut tx, now_ms).await?;
        for series in series {
            prune_series(&mut tx, &series, policy, &needed, now_ms, &mut report).await?;
        }
    }
    if !wish.dry_run {
        commit(tx).await?;
    }
    Ok(report)
}

async fn prune_series(
    connection: &mut Connection,
    series: &OwnedSeries,
    policy: Policy,
    needed: &HashSet<VersionRowId>,
    now_ms: i64,
    report: &mut Report,
) -> Result<(), RetentionError> {
    let policy = rows::policy(&mut *connection, Some(series.id)).await?.unwrap_or(policy);
    let versions = rows::kept_versions(&mut *connection, series.id).await?;
    let is_desktop = matches!(series.namespace, Namespace::User(_));
    let is_gone = series.removed_ms.is_some_and(|removed_ms| removal::is_over(removed_ms, now_ms));
    if series.removed_ms.is_some() && !is_gone {
        // It is taken back as it was.
        report.kept += versions.len() as u64;
        return Ok(());
    }
    let times: Vec<i64> = versions.iter().map(|version| version.committed_ms).collect();
    for (at, (version, by_policy)) in versions.iter().zip(kept_by(policy, &times)).enumerate() {
        let is_end = at == 0 || (is_desktop && at + 1 == versions.len());
        let is_named = is_desktop && has_note_of_person(version);
        let is_kept = !is_gone && (by_policy || is_end || is_named);
        if is_kept || needed.contains(&version.row) {
            report.kept += 1;
            continue;
        }
        rows::prune(&mut *connection, version.row, now_ms).await?;
        report.pruned.push(PrunedVersion {
            namespace: series.namespace.to_string(),
            name: series.name.clone(),
            sequence: version.sequence,
            id: version.id,
        });
    }
    Ok(())
}

fn has_note_of_person(version: &KeptVersion) -> bool {
    version.note.as_deref().is_some_and(|note| !note.is_empty() && !is_note_of_program(note))
}

/// Whether a note has, from its beginning to its end, a form that programs write. What differs from it in anything was
/// written by a person.
fn is_note_of_program(note: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    let is_name = |text: &str| text.parse::<Name>().is_ok();
    let is_golden = |text: &str| {
        text.split_once('@').is_some_and(|(image, sequence)| is_name(image) && is_number(sequence))
    };
    if let Some(rest) = note.strip_prefix("rolled back to version ") {
        let parts = [", the system disk only", ", the home disk only"];
        return is_number(parts.iter().find_map(|part| rest.strip_suffix(part)).unwrap_or(rest));
    }
    if let Some(rest) = note.strip_prefix("reverted to ") {
        return rest.split_once(": version ").is_some_and(|(golden, why)| {
            let why = why.strip_suffix(" times").and_then(|why| why.split_once(" did not start "));
            is_golden(golden) && why.is_some_and(|(bad, times)| is_number(bad) && is_number(times))
        });
    }
    let renewals = ["renewed to ", "moved to ", "back to "];
    if renewals.iter().find_map(|start| note.strip_prefix(start)).is_some_and(is_golden) {
        return true;
    }
    let adopted = note.strip_prefix("adopted ").and_then(|rest| rest.split_once(", version "));
    let left = note.split_once(" as it was before version ");
    adopted.or(left).is_some_and(|(desktop, sequence)| is_name(desktop) && is_number(sequence))
}

/// Which versions a policy keeps, by the times of their commits, newest first.
fn kept_by(policy: Policy, times_ms: &[i64]) -> Vec<bool> {
    let mut kept: Vec<bool> = (0..times_ms.len()).map(|at| at < policy.keep_last as usize).collect();
    let hour: fn(i64) -> i64 = |time| time.div_euclid(HOUR_MS);
    let day: fn(i64) -> i64 = |time| time.div_euclid(DAY_MS);
    // 1970 began on a Thursday.
    let week: fn(i64) -> i64 = |time| (time.div_euclid(DAY_MS) + 3).div_euclid(7);
    for (keep, period) in [(policy.keep_hourly, hour), (policy.keep_daily, day), (policy.keep_weekly, week)] {
        let (mut left, mut last) = (keep, None);
        for (kept, time) in kept.iter_mut().zip(times_ms) {
            if left > 0 && last != Some(period(*time)) {
                last = Some(period(*time));
                left -= 1;
                *kept = true;
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(policy: Policy, times_ms: &[i64]) -> Vec<usize> {
        let kept = kept_by(policy, times_ms);
        kept.into_iter().enumerate().filter(|(_, kept)| *kept).map(|(at, _)| at).collect()
    }

    #[test]
    fn each_rule_keeps_the_newest_version_of_each_of_its_periods() {
        let at = |days: i64, hours: i64, minutes: i64| days * DAY_MS + hours * HOUR_MS + minutes * 60_000;
        let times = [
            at(20, 10, 30),
            at(20, 10, 5),
            at(20, 9, 59),
            at(20, 3, 0),
            at(19, 23, 59),
            at(19, 1, 0),
            at(12, 0, 0),
            at(4, 0, 0),
            at(3, 23, 0),
        ];
        assert_eq!(kept(Policy::NONE, &times), [0; 0]);
        assert_eq!(kept(Policy { keep_last: 2, ..Policy::NONE }, &times), [0, 1]);
        assert_eq!(kept(Policy { keep_hourly: 3, ..Policy::NONE }, &times), [0, 2, 3]);
        assert_eq!(kept(Policy { keep_daily: 3, ..Policy::NONE }, &times), [0, 4, 6]);
        // Day 18 and day 4 are Mondays: days 18 to 24 are one week, 11 to 17, 4 to 10 and the one before the others.
        assert_eq!(kept(Policy { keep_weekly: 9, ..Policy::NONE }, &times), [0, 6, 7, 8]);
        assert_eq!(kept(Policy { keep_last: 2, keep_daily: 2, ..Policy::NONE }, &times), [0, 1, 4]);
        assert_eq!(kept(Policy::default(), &times), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn notes_of_programs_keep_nothing() {
        let version = |note: Option<&str>| KeptVersion {
            row: VersionRowId(1),
            id: ManifestId::of(b"a"),
            sequence: 1,
            committed_ms: 0,
            note: note.map(str::to_owned),
        };
        assert!(has_note_of_person(&version(Some("before the upgrade"))));
        for note in [
            "",
            "rolled back to version 3",
            "rolled back to version 3, the home disk only",
            "renewed to debian@2",
            "moved to debian@12",
            "back to debian@1",
            "reverted to debian@1: version 2 did not start 3 times",
            "adopted work.b-1, version 4",
            "work as it was before version 5",
        ] {
            assert!(!has_note_of_person(&version(Some(note))), "{note}");
        }
        for note in [
            "moved to the new flat",
            "moved to debian@2 at last",
            "back to work",
            "renewed to my liking",
            "adopted a cat",
            "adopted tabs, version 2 of the style guide",
            "rolled back to version 3, before the mess",
            "reverted to debian@1",
            "the desk as it was before version 5",
        ] {
            assert!(has_note_of_person(&version(Some(note))), "{note}");
        }
        assert!(!has_note_of_person(&version(None)));
    }
}
