//! `satchel export`

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use satchel_client::export::{ExportProgress, Exporter};
use satchel_client::source::HttpSource;
use satchel_client::versions::{ImageRef, fetch_golden};
use serde::Serialize;

use super::Context;
use super::progress::{per_second, time_left, while_working};
use super::quantity::ByteSize;

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// The version: NAME, NAME:CHANNEL or NAME@VERSION
    #[arg(value_name = "NAME[:CHANNEL|@VERSION]")]
    image: ImageRef,
    /// The directory; several versions may share one
    dir: PathBuf,
    /// Read what is there, too, and fetch anew what does not hold
    #[arg(long)]
    check: bool,
}

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
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    let progress = ExportProgress::default();
    let source = Arc::new(HttpSource::new(remote));
    let exporter = Exporter::new(source, directory.clone(), args.check, &progress);
    let exported = while_working(|elapsed| describe(&progress, elapsed), exporter.export(&version)).await?;
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

fn describe(progress: &ExportProgress, elapsed: Duration) -> String {
    let read = |count: &std::sync::atomic::AtomicU64| count.load(Ordering::Relaxed);
    let (total, done, fetched) =
        (read(&progress.total_bytes), read(&progress.done_bytes), read(&progress.fetched_bytes));
    let Some(percent) = (done * 100).checked_div(total) else {
        return format!("looking at the version: {} fetched", ByteSize(fetched));
    };
    let rate = per_second(fetched, elapsed);
    let left = time_left(total.saturating_sub(done), rate);
    format!("{percent}% of {}, {}/s, {left}", ByteSize(total), ByteSize(rate))
}
