//! `satchel export`

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use satchel_client::export::{ExportProgress, Exporter};
use satchel_client::source::HttpSource;
use satchel_client::versions::{ImageRef, fetch_golden};
use serde::Serialize;

use super::Context;
use super::quantity::ByteSize;

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The version: NAME, NAME:CHANNEL or NAME@VERSION
    #[arg(value_name = "NAME[:CHANNEL|@VERSION]")]
    image: ImageRef,
    /// The directory; several versions may share one
    dir: PathBuf,
}

const REDRAW: Duration = Duration::from_millis(250);
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Serialize)]
struct Report {
    image: String,
    version: String,
    sequence: u64,
    directory: String,
    files: u64,
    bytes: u64,
    fetched_bytes: u64,
    has_profile: bool,
}

pub(crate) async fn run(context: &Context, args: ExportArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    let (_, remote) = state.remote()?;
    let directory = std::path::absolute(&args.dir)?;
    let version = fetch_golden(&remote, &state, &args.image).await?;
    std::fs::create_dir_all(&directory)?;
    let progress = ExportProgress::default();
    let exporter =
        Exporter { source: Arc::new(HttpSource::new(remote)), directory: &directory, progress: &progress };
    let exported = while_exporting(context, &progress, exporter.export(&version)).await?;
    let report = Report {
        image: args.image.image.to_string(),
        version: version.id.to_string(),
        sequence: version.manifest.sequence,
        directory: directory.display().to_string(),
        files: exported.files,
        bytes: exported.bytes,
        fetched_bytes: progress.fetched_bytes.load(Ordering::Relaxed),
        has_profile: exported.has_profile,
    };
    context.printer.result(&report, |report| {
        format!(
            "{} version {} is in {}: {} in {} files, {} fetched now\nuse it: satchel source DESKTOP --add file:{}",
            report.image,
            report.sequence,
            report.directory,
            ByteSize(report.bytes),
            report.files,
            ByteSize(report.fetched_bytes),
            report.directory
        )
    })?;
    Ok(())
}

async fn while_exporting<T>(
    context: &Context,
    progress: &ExportProgress,
    work: impl Future<Output = T>,
) -> T {
    let began = Instant::now();
    let mut said = began;
    let bar = std::io::stderr().is_terminal().then(ProgressBar::new_spinner);
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + REDRAW, REDRAW);
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => {
                if let Some(bar) = bar {
                    bar.finish_and_clear();
                }
                return result;
            }
            _ = ticks.tick() => {
                let text = describe(progress, began.elapsed());
                match &bar {
                    Some(bar) => {
                        bar.set_message(text);
                        bar.tick();
                    }
                    None if said.elapsed() >= PLAIN_INTERVAL => {
                        said = Instant::now();
                        context.printer.message(&text);
                    }
                    None => {}
                }
            }
        }
    }
}

fn describe(progress: &ExportProgress, elapsed: Duration) -> String {
    let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let (total, done, fetched) =
        (read(&progress.total_bytes), read(&progress.done_bytes), read(&progress.fetched_bytes));
    if total == 0 {
        return format!("looking at the version: {} fetched", ByteSize(fetched));
    }
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = fetched.saturating_mul(1000) / millis;
    let left = total.saturating_sub(done).checked_div(rate);
    let left = left.map_or("?".to_owned(), |left_s| format!("{}:{:02}", left_s / 60, left_s % 60));
    let percent = done * 100 / total;
    format!("{percent}% of {}, {}/s, {left} left", ByteSize(total), ByteSize(rate))
}
