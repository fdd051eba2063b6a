//! `satchel-server verify`

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Args;
use image_server::Leftovers;
use image_server::verify::{Part, Progress, Report, verify};
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output;

/// The pause between two lines of progress where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Re-read everything that is stored and check it. A line for each finding; exit 1 when something is damaged
#[derive(Args)]
pub(crate) struct Verify {
    /// The server's directory
    dir: PathBuf,
    /// Print one JSON value
    #[arg(long)]
    json: bool,
}

impl Verify {
    pub(crate) async fn run(self) -> anyhow::Result<ExitCode> {
        let progress: Box<dyn Progress> =
            if io::stderr().is_terminal() { Box::new(Bar::new()) } else { Box::new(Lines::default()) };
        let report = verify(&self.dir, progress.as_ref()).await?;
        drop(progress);
        if self.json {
            output::json(&report)?;
        } else {
            for line in lines(&report) {
                output::data(&line)?;
            }
        }
        Ok(if report.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn lines(report: &Report) -> Vec<String> {
    let mut lines = Vec::new();
    for finding in &report.findings {
        let affected: Vec<&str> = finding.affects.iter().map(String::as_str).collect();
        let affected = if affected.is_empty() { "no version".to_owned() } else { affected.join(", ") };
        let (object, problem, advice) = (&finding.object, &finding.problem, finding.advice);
        lines.push(format!("damaged {object}: {problem}. Affects {affected}. To do: {advice}"));
    }
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

fn name(part: Part) -> &'static str {
    match part {
        Part::Packs => "packs",
        Part::Segments => "segments",
        Part::Versions => "versions",
        Part::Profiles => "boot profiles",
        Part::Files => "files",
    }
}

/// Progress on a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        Self(ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)))
    }
}

impl Progress for Bar {
    fn begin(&self, part: Part, total: u64) {
        let counter = match part {
            Part::Packs => "{bytes} of {total_bytes}, {bytes_per_sec}",
            Part::Segments | Part::Versions | Part::Profiles => "{pos} of {len}",
            Part::Files => "{pos}",
        };
        let template = format!("{{msg:8}} {{wide_bar}} {counter}");
        if let Ok(style) = ProgressStyle::with_template(&template) {
            self.0.set_style(style);
        }
        self.0.reset();
        self.0.set_length(total);
        self.0.set_message(name(part));
    }

    fn advance(&self, steps: u64) {
        self.0.inc(steps);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Progress in a log.
#[derive(Default)]
struct Lines(Mutex<Option<Counting>>);

struct Counting {
    part: Part,
    done: u64,
    total: u64,
    told: Instant,
}

impl Progress for Lines {
    fn begin(&self, part: Part, total: u64) {
        output::message(&format!("checking {}", name(part)));
        let counting = Counting { part, done: 0, total, told: Instant::now() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(counting);
    }

    fn advance(&self, steps: u64) {
        let mut counting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(counting) = counting.as_mut() else { return };
        counting.done += steps;
        if counting.told.elapsed() < LINE_INTERVAL {
            return;
        }
        counting.told = Instant::now();
        let percent = counting.done.saturating_mul(100).checked_div(counting.total);
        let far = percent.map_or_else(|| counting.done.to_string(), |percent| format!("{percent} %"));
        output::message(&format!("checking {}: {far}", name(counting.part)));
    }
}
