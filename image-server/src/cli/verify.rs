//! `satchel-server verify`

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use image_server::Leftovers;
use image_server::verify::{Finding, Part, Progress, Report, verify};
use indicatif::HumanBytes;

use super::output;
use super::progress::{Shown, Steps};

/// Reasons named of those for which it is not known what a finding affects.
const MAX_REASONS: usize = 3;

/// Re-read everything that is stored and check it. A line for each finding; exit 1 when something is damaged. Nothing is
/// changed: a backup or a snapshot may be checked where it lies, on a file system that is read-only, too
#[derive(Args)]
pub(crate) struct Verify {
    /// The server's directory
    dir: PathBuf,
}

impl Verify {
    pub(crate) async fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let progress = Told(Shown::new("checking"));
        let report = verify(&self.dir, &progress).await?;
        drop(progress);
        if json {
            output::json(&report)?;
        } else {
            for line in lines(&report) {
                output::data(&line)?;
            }
        }
        Ok(if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Tells how far the check is.
pub(super) struct Told(pub(super) Shown);

fn lines(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    lines.extend(report.findings.iter().map(told));
    lines.extend(report.unknown.iter().map(|path| format!("unknown {path}: no file of ours; not touched")));
    let unnamed = report.unknown_files - report.unknown.len() as u64;
    if unnamed > 0 {
        lines.push(format!("unknown: {unnamed} more files"));
    }
    let left_over = |what: &str, leftovers: Leftovers| {
        let (files, bytes) = (leftovers.files, HumanBytes(leftovers.bytes));
        (files > 0).then(|| format!("left over: {files} {what} ({bytes}), harmless"))
    };
    lines.extend(left_over("files of uploads that were cut short", report.unfinished));
    lines.extend(left_over("objects nothing refers to", report.unreferenced));
    if report.unindexed_chunks > 0 {
        lines.push(format!("not indexed: {} stored chunks, harmless", report.unindexed_chunks));
    }
    let result = match report.findings.len() {
        0 => "clean".to_owned(),
        count => format!("{count} findings"),
    };
    lines.push(format!(
        "{result}: read {} packs ({}), {} segments, {} versions, {} boot profiles",
        report.packs,
        HumanBytes(report.pack_bytes),
        report.segments,
        report.versions,
        report.profiles
    ));
    lines
}

/// A finding as one line.
pub(super) fn told(finding: &Finding) -> String {
    let Finding { object, problem, advice, .. } = finding;
    format!("damaged {object}: {problem}. {}. To do: {advice}", affected(finding))
}

/// What a finding affects, and why more may be affected.
fn affected(finding: &Finding) -> String {
    let joined = |texts: &BTreeSet<String>, most: usize, with: &str| {
        let named: Vec<&str> = texts.iter().map(String::as_str).take(most).collect();
        let more = texts.len() - named.len();
        let more = if more > 0 { format!("{with}and {more} more") } else { String::new() };
        format!("{}{more}", named.join(with))
    };
    let affects = joined(&finding.affects, usize::MAX, ", ");
    let unsure = joined(&finding.unsure, MAX_REASONS, "; ");
    match (finding.affects.is_empty(), finding.unsure.is_empty()) {
        (true, true) => "Affects no version".to_owned(),
        (false, true) => format!("Affects {affects}"),
        (true, false) => format!("What it affects is not known: {unsure}"),
        (false, false) => format!("Affects {affects}; what else is not known: {unsure}"),
    }
}

fn name(part: Part) -> &'static str {
    match part {
        Part::Packs => "packs",
        Part::Segments => "segments",
        Part::Versions => "versions",
        Part::Profiles => "boot profiles",
        Part::Files => "files",
        Part::Lost => "what is lost",
    }
}

impl Progress for Told {
    fn begin(&self, part: Part, total: u64) {
        let steps = match part {
            Part::Packs => Steps::Bytes,
            Part::Segments | Part::Versions | Part::Profiles | Part::Lost => Steps::Counted,
            Part::Files => Steps::Unknown,
        };
        self.0.begin(name(part), steps, total);
    }

    fn advance(&self, steps: u64) {
        self.0.advance(steps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_version_is_said_to_be_affected_only_when_that_is_certain() {
        let set = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let finding = |affects: &[&str], unsure: &[&str]| Finding {
            object: "object".to_owned(),
            problem: "problem".to_owned(),
            affects: set(affects),
            unsure: set(unsure),
            advice: "advice",
            is_lost: false,
        };
        assert_eq!(affected(&finding(&[], &[])), "Affects no version");
        assert_eq!(affected(&finding(&["one", "two"], &[])), "Affects one, two");
        assert_eq!(affected(&finding(&[], &["a"])), "What it affects is not known: a");
        assert_eq!(
            affected(&finding(&["one"], &["a", "b", "c", "d", "e"])),
            "Affects one; what else is not known: a; b; c; and 2 more"
        );
    }
}
