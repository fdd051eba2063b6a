//! `satchel publish`

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::Arc;

use chunk_format::Name;
use clap::Args;
use satchel_client::files::diff::Fate;
use satchel_client::profile::fetch_profile;
use satchel_client::publish::{PublishError, Publisher, Request, Summarizer, Summary};
use satchel_client::remote::{ChannelMove, NamedVersion, Remote, Rollout};
use satchel_client::upload::UploadProgress;
use serde::Serialize;

use super::channel::{check_others, not_staged};
use super::create::ModeArg;
use super::quantity::{ByteSize, note};
use super::{Context, machine_name, now_ms, output, profile, progress, worker_threads};

#[derive(Debug, Args)]
pub(super) struct PublishArgs {
    /// The disk image: raw or qcow2
    file: PathBuf,
    /// The image it is a version of
    #[arg(long, value_name = "NAME")]
    image: Name,
    /// The channel that moves to the new version
    #[arg(long, value_name = "CHANNEL", default_value = "stable")]
    channel: Name,
    /// What to say of this version
    #[arg(long, short, value_name = "TEXT", value_parser = note)]
    message: Option<String>,
    /// Publish a file that does not look like a disk
    #[arg(long)]
    force: bool,
    /// Publish the free blocks of ext4 file systems as they are, and not as zeros
    #[arg(long)]
    keep_free: bool,
    /// Carry the profile of an earlier version over to this one: its number or id, or `newest`
    #[arg(long, value_name = "VERSION")]
    profile_from: Option<String>,
    /// Do not tell what changed against the version before
    #[arg(long)]
    no_summary: bool,
    /// Refuse a version of which a client with the one before would have to fetch more
    #[arg(long, value_name = "SIZE")]
    max_update: Option<ByteSize>,
    /// The share of desktops that the channel leads to this version, per cent; the others stay on the one before
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
    percent: Option<u8>,
    /// What desktops made from this image do with their system disk (without it: as the version before)
    #[arg(long, value_name = "MODE", value_enum)]
    mode: Option<ModeArg>,
}

#[derive(Serialize)]
struct Published {
    image: String,
    channel: String,
    version: String,
    sequence: u64,
    unchanged: bool,
    /// Whether the version says what it was to say of it; none where nothing was to be said.
    note_kept: Option<bool>,
    size_bytes: u64,
    data_bytes: u64,
    free_bytes: u64,
    new_bytes: u64,
    sent_bytes: u64,
    summary: Option<Summary>,
    profile: Option<profile::Attachment>,
}

pub(crate) async fn run(context: &Context, args: PublishArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    let (_, remote) = state.remote()?;
    let present = match args.percent {
        Some(0..100) => Some(present(&remote, &args.image, &args.channel).await?),
        _ => None,
    };
    let previous = match &args.profile_from {
        Some(wanted) => Some(profile::find_profiled(&remote, &state, &args.image, wanted).await?),
        None => None,
    };
    let summarizer = match args.no_summary && args.max_update.is_none() && previous.is_none() {
        true => None,
        false => {
            let past = profile::open_past(&remote, &state, &args.image)?;
            let profile = match &previous {
                Some(version) => {
                    Some((version.clone(), fetch_profile(past.fetcher(), version).await?.profile))
                }
                None => None,
            };
            Some(Summarizer { past, profile, with_files: !args.no_summary })
        }
    };
    let progress = Arc::new(UploadProgress::default());
    let publisher = Publisher {
        remote: remote.clone(),
        key: Arc::new(state.publisher_key()?),
        machine: machine_name(),
        progress: Arc::clone(&progress),
        threads: worker_threads(),
        now_ms,
    };
    let message = args.message.clone();
    let request = Request {
        file: &args.file,
        image: &args.image,
        // A staged move is one of its own, after there is a version to move to.
        channel: Some(&args.channel).filter(|_| args.percent.is_none()),
        note: args.message,
        force: args.force,
        keep_free: args.keep_free,
        summarizer: summarizer.as_ref(),
        max_update_bytes: args.max_update.map(|size| size.0),
        mode: args.mode.map(Into::into),
    };
    let report = progress::while_uploading(progress, publisher.publish(request)).await;
    if let Some(summarizer) = summarizer {
        summarizer.past.close();
    }
    let report = report.inspect_err(|error| {
        if let PublishError::OverBudget { summary, .. } = error {
            context.printer.message(text(summary).trim_start());
        }
    })?;
    let start = report.summary.as_ref().and_then(|summary| summary.start.clone());
    let summary = report.summary.filter(|_| !args.no_summary);
    for note in summary.iter().flat_map(|summary| &summary.notes) {
        context.printer.message(note);
    }
    if let Some(percent) = args.percent {
        if let Some(present) = &present {
            let to = NamedVersion { id: report.version.id, sequence: report.version.sequence };
            check_others(&args.image, &args.channel, present, to, args.percent)?;
        }
        let to = ChannelMove {
            version: report.version.id,
            from: None,
            percent: Some(percent),
            paused: None,
            signature: None,
        };
        remote.move_channel(&args.image, &args.channel, &to).await?;
    }
    for kept in &report.kept_free {
        let of = match kept.offset {
            Some(offset) => format!("the ext4 file system at {}", ByteSize(offset)),
            None => "the disk".to_owned(),
        };
        context.printer.message(&format!("the free space of {of} is published as it is: {}", kept.reason));
    }
    let carried = match previous {
        Some(previous) if previous.id != report.version.id => {
            let version = report.version.id;
            Some(profile::carry_over(&remote, &state, &args.image, &previous, version, start).await?)
        }
        _ => None,
    };
    // A publication that is repeated, since its end was not heard, finds its own.
    let note_kept =
        message.as_ref().map(|message| !report.unchanged || report.version.note.as_ref() == Some(message));
    if note_kept == Some(false) {
        context.printer.warning(&format!(
            "the note was not kept: version {} of {} already holds this disk, so that no version was made for it",
            report.version.sequence, args.image
        ));
    }
    let published = Published {
        image: args.image.to_string(),
        channel: args.channel.to_string(),
        version: report.version.id.to_string(),
        sequence: report.version.sequence,
        unchanged: report.unchanged,
        note_kept,
        size_bytes: report.size_bytes,
        data_bytes: report.data_bytes,
        free_bytes: report.free_bytes,
        new_bytes: report.new_bytes,
        sent_bytes: report.sent_bytes,
        summary,
        profile: carried,
    };
    context.printer.result(&published, |published| {
        let name = format!(
            "{} version {} ({}) is {}{}",
            published.image,
            published.sequence,
            output::short(&published.version),
            published.channel,
            args.percent.map_or(String::new(), |percent| format!(" for {percent} % of the desktops"))
        );
        let profile =
            published.profile.as_ref().map_or(String::new(), |profile| format!("\n{}", profile.text()));
        if published.unchanged {
            let anew = if profile.is_empty() { "" } else { "; what a start downloads was made anew" };
            return format!("{name}: it already holds this disk{anew}{profile}");
        }
        let free = match published.free_bytes {
            0 => String::new(),
            bytes => format!(" ({} of free space left out)", ByteSize(bytes)),
        };
        let summary = published.summary.as_ref().map_or(String::new(), text);
        format!(
            "{name}: {} disk, {} of data{free}, {} of it new, {} sent{summary}{profile}",
            ByteSize(published.size_bytes),
            ByteSize(published.data_bytes),
            ByteSize(published.new_bytes),
            ByteSize(published.sent_bytes)
        )
    })?;
    Ok(())
}

/// What the channel names, on which those stay whom a staged move does not reach: looked for before anything is published.
async fn present(remote: &Remote, image: &Name, channel: &Name) -> anyhow::Result<Rollout> {
    let present = match remote.image(image).await {
        Err(error) if error.code() == Some("not_found") => None,
        info => info?.rollouts.remove(channel),
    };
    present.ok_or_else(|| not_staged(image, channel, "publish it without --percent, for all"))
}

/// What a version changes, in lines that each begin with a line break.
fn text(summary: &Summary) -> String {
    let mut text = format!(
        "\na client with version {} fetches {} to have all of it",
        summary.previous,
        ByteSize(summary.full_bytes)
    );
    // Writing into a string does not fail.
    if let Some(bytes) = summary.boot_bytes {
        let _ = write!(text, ", {} of that to start", ByteSize(bytes));
    }
    if let Some(files) = &summary.files {
        let (added, changed, removed) = (files.added, files.changed, files.removed);
        let _ = write!(text, "\nfiles: {added} added, {changed} changed, {removed} removed");
        for change in &files.largest {
            let sign = if change.fate == Fate::Added { '+' } else { '~' };
            let bytes = ByteSize(change.after_bytes.unwrap_or(0));
            let _ = write!(text, "\n  {sign} {}  {bytes}", change.path);
        }
    }
    if let Some(packages) = &summary.packages {
        let (added, removed, upgraded) = (&packages.added, &packages.removed, &packages.upgraded);
        let _ = write!(
            text,
            "\npackages: {} added, {} removed, {} upgraded",
            added.len(),
            removed.len(),
            upgraded.len()
        );
        for (sign, named) in
            added.iter().map(|named| ('+', named)).chain(removed.iter().map(|named| ('-', named)))
        {
            let _ = write!(text, "\n  {sign} {} {}", named.package, named.version);
        }
        for upgraded in upgraded {
            let _ = write!(text, "\n  ~ {} {} -> {}", upgraded.package, upgraded.before, upgraded.after);
        }
    }
    text
}
