//! `satchel-server gc`

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use image_server::Leftovers;
use image_server::gc::{self, Counts, Options, Part, Progress, Report};
use indicatif::HumanBytes;

use super::output;
use super::progress::{Shown, Steps};

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Delete what no version that is kept needs. Works while a server runs, and beside uploads
///
/// A run condemns what nothing needs any more, and deletes what earlier runs condemned longer ago than the grace. Until
/// then it can be read, and an upload of the same content takes it back.
#[derive(Args)]
pub(crate) struct Gc {
    /// The server's directory
    dir: PathBuf,
    /// Hours that what nothing needs can still be read, and that what was uploaded is left alone; fourteen times as long
    /// while no version was committed with it
    #[arg(long, value_name = "HOURS", default_value_t = 24)]
    grace: u32,
    /// Look through the whole store for objects that a crash left behind, too: those that are older than the grace, and than
    /// a day
    #[arg(long)]
    leftovers: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

impl Gc {
    pub(crate) async fn run(self, json: bool) -> anyhow::Result<ExitCode> {
        let options = Options { grace: HOUR * self.grace, dry_run: self.dry_run, leftovers: self.leftovers };
        let report = gc::collect(&self.dir, options, Arc::new(Told(Shown::new("looking through")))).await?;
        if json {
            output::json(&report)?;
        } else {
            for line in lines(&report, self.grace) {
                output::data(&line)?;
            }
        }
        let Some(reason) = report.unlisted else { return Ok(ExitCode::SUCCESS) };
        output::message(&format!(
            "not all objects could be listed: what uploads that were cut short, and crashes, left among the others is still \
             there: {reason}"
        ));
        Ok(ExitCode::FAILURE)
    }
}

/// Tells how far the collection is.
struct Told(Shown);

impl Progress for Told {
    fn begin(&self, part: Part, total: u64) {
        let (name, steps) = match part {
            Part::Garbage => ("garbage", Steps::Unknown),
            Part::Versions => ("versions", Steps::Counted),
            Part::Segments => ("segments", Steps::Unknown),
            Part::Packs => ("packs", Steps::Unknown),
            Part::Streams => ("streams", Steps::Unknown),
            Part::Files => ("files", Steps::Unknown),
        };
        self.0.begin(name, steps, total);
    }

    fn advance(&self, steps: u64) {
        self.0.advance(steps);
    }
}

fn lines(report: &Report, grace_hours: u32) -> Vec<String> {
    let would = if report.dry_run { "would have " } else { "" };
    let mut lines = vec![
        format!("{would}deleted {}", counted(&report.deleted)),
        format!(
            "{would}condemned {}, to be deleted by a run in {grace_hours} hours or later",
            counted(&report.condemned)
        ),
    ];
    let removed = |what: &str, found: Leftovers| {
        let (files, bytes) = (found.files, HumanBytes(found.bytes));
        (files > 0).then(|| format!("{would}removed {files} {what} ({bytes})"))
    };
    lines.extend(removed("files of uploads that were cut short", report.unfinished));
    lines.extend(removed("objects without rows", report.leftovers));
    lines.push(format!("{} versions are kept", report.kept_versions));
    lines
}

fn counted(counts: &Counts) -> String {
    let parts = [
        (counts.versions, "manifests"),
        (counts.segments, "segments"),
        (counts.packs, "packs"),
        (counts.profiles, "boot profiles"),
        (counts.streams, "stream objects"),
    ];
    let mut text: Vec<String> = parts
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    if text.is_empty() {
        return "nothing".to_owned();
    }
    if counts.bytes > 0 {
        text.push(format!("{} in all", HumanBytes(counts.bytes)));
    }
    text.join(", ")
}
