//! `satchel sync`

use std::sync::Arc;
use std::time::Duration;

use chunk_format::Name;
use clap::Args;
use satchel_client::control::{Connection, ControlError, Request};
use satchel_client::fork::ForkReason;
use satchel_client::lease::Claim;
use satchel_client::remote::RemoteError;
use satchel_client::sync::{LostSegments, SyncReport, Syncer};
use satchel_client::upload::UploadProgress;
use serde::Serialize;

use super::open::{OnMissingArg, OpenArgs};
use super::output::{count, short};
use super::progress::{UploadReporter, while_uploading};
use super::quantity::{ByteSize, note};
use super::{Context, mount, status};

#[derive(Debug, Args)]
pub(super) struct SyncArgs {
    /// The desktop
    desktop: Name,
    /// Wait for the server as long as it cannot be reached, and go on then
    #[arg(long)]
    wait: bool,
    /// What to say of this version
    #[arg(long, short, value_name = "TEXT", value_parser = note)]
    message: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct CheckpointArgs {
    /// The desktop
    desktop: Name,
    /// What to say of this version; there is one even if nothing changed
    #[arg(long, short, value_name = "TEXT", value_parser = note)]
    message: String,
}

/// How often a sync that waits for the server tries again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Serialize)]
pub(super) struct Synced<'a> {
    pub(super) desktop: &'a Name,
    #[serde(flatten)]
    pub(super) report: &'a SyncReport,
}

pub(crate) async fn run(context: &Context, mut args: SyncArgs) -> anyhow::Result<()> {
    let mut has_said = false;
    let report = loop {
        match sync(context, &args).await {
            Err(error) if args.wait && is_unreachable(&error) => {
                if !std::mem::replace(&mut has_said, true) {
                    context.printer.message(&format!("{error:#}; waiting for it, interrupt to stop"));
                }
                // Once it is kept, the next sync sends it: asked for again it would be made twice.
                if args.message.is_some() && args.message == kept_note(context, &args.desktop).await.flatten()
                {
                    args.message = None;
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            report => break report?,
        }
    };
    tell(context, &args.desktop, &report)
}

fn tell(context: &Context, desktop: &Name, report: &SyncReport) -> anyhow::Result<()> {
    context.printer.result(&Synced { desktop, report }, |_| summary(desktop.as_str(), report))?;
    Ok(())
}

/// The note of a checkpoint that waits to be sent; none when it cannot be told.
async fn kept_note(context: &Context, desktop: &Name) -> Option<Option<String>> {
    let status = status::find(&context.state().ok()?, desktop).await.ok()??;
    Some(status.uncommitted_note)
}

/// `satchel checkpoint`: a sync that makes a version in any case.
pub(crate) async fn checkpoint(context: &Context, args: CheckpointArgs) -> anyhow::Result<()> {
    let CheckpointArgs { desktop, message } = args;
    let sync = SyncArgs { desktop: desktop.clone(), wait: false, message: Some(message.clone()) };
    let before = kept_note(context, &desktop).await.flatten();
    let report = match self::sync(context, &sync).await {
        Ok(report) => report,
        Err(error) => {
            match (before, kept_note(context, &desktop).await) {
                (None, Some(Some(kept))) if kept == message => {
                    context
                        .printer
                        .message("the checkpoint was made on this machine; the next sync sends it");
                }
                (Some(before), Some(Some(kept))) if kept == before => context.printer.message(&format!(
                    "no checkpoint was made; the one before, `{before}`, waits on this machine to be sent"
                )),
                (_, Some(_)) => context.printer.message("no checkpoint was made"),
                (_, None) => {}
            }
            return Err(error);
        }
    };
    tell(context, &desktop, &report)
}

/// Whether the server cannot be reached at present; the process that has the desktop mounted says so in words.
fn is_unreachable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<RemoteError>().is_some_and(|error| {
            matches!(error, RemoteError::Unreachable { .. } | RemoteError::Stalled { .. })
                || error.code() == Some("store_unreachable")
        }) || cause.downcast_ref::<ControlError>().is_some_and(
            |error| matches!(error, ControlError::Failed { message } if message.starts_with("cannot reach ")),
        )
    })
}

async fn sync(context: &Context, args: &SyncArgs) -> anyhow::Result<SyncReport> {
    let state = context.state()?;
    let directory = state.desktop_path(&args.desktop);
    let note = args.message.clone();
    Ok(match Connection::open(&directory).await {
        Ok(mut connection) => {
            let mut reporter = UploadReporter::new();
            let request = Request::Sync { note };
            let result = connection.ask(&request, |reply| reporter.show(reply)).await?;
            serde_json::from_value(result)?
        }
        Err(ControlError::NotMounted) => {
            let open = OpenArgs::for_command(None, OnMissingArg::Wait);
            let session = mount::open(context, &state, &args.desktop, &open, Claim::IfFree).await?;
            let progress = Arc::new(UploadProgress::default());
            let syncer = Syncer { progress: Arc::clone(&progress), ..mount::syncer(&state, &session)? };
            let report = while_uploading(progress, syncer.sync_whole(&session.desktop, note)).await?;
            mount::close(&session).await?;
            report
        }
        Err(error) => return Err(error.into()),
    })
}

/// A sync in one line, or two when the work became a fork; and what the server had lost.
pub(crate) fn summary(desktop: &str, report: &SyncReport) -> String {
    let LostSegments { sent, left } = report.lost;
    let mut lines = vec![committed(desktop, report)];
    if sent > 0 {
        lines.push(format!("sent {} of it again that the server had lost", count(sent, "part")));
    }
    if left > 0 {
        lines.push(format!(
            "the server has lost {} of it, and not all is on this machine: sync on one that has the desktop pinned, and tell who runs the \
             server",
            count(left, "part")
        ));
    }
    lines.join("\n")
}

fn committed(desktop: &str, report: &SyncReport) -> String {
    match &report.version {
        Some(version) if report.fork.is_some() => {
            let (name, reason) = report
                .fork
                .as_ref()
                .map_or((desktop, None), |fork| (fork.fork.as_str(), fork.reason.as_ref()));
            let next = match reason {
                // There is no such desktop to compare it with, nor to adopt it.
                Some(ForkReason::Gone) => format!(
                    "`satchel run {name}` goes on with it, `satchel adopt {name}` says how it becomes {desktop} again"
                ),
                _ => format!(
                    "`satchel diff {desktop} {name}` compares them, `satchel adopt {name}` makes it {desktop}, `satchel forks` lists all"
                ),
            };
            let reason = reason.map_or(String::new(), |reason| format!(": {reason}"));
            format!(
                "kept the work as the fork {name}, version {} ({}){reason}\n{next}",
                version.sequence,
                short(&version.id)
            )
        }
        Some(version) => format!(
            "synced {desktop}: version {} ({}), {} changed, {} sent",
            version.sequence,
            short(&version.id),
            count(report.dirty_chunks, "chunk"),
            ByteSize(report.sent_bytes)
        ),
        None => format!("{desktop} has no changes to sync"),
    }
}
