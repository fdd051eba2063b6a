//! `satchel publish`

use std::sync::Arc;

use satchel_client::publish::{Publisher, Request};
use satchel_client::upload::UploadProgress;
use serde::Serialize;

use super::quantity::ByteSize;
use super::{Context, PublishArgs, machine_name, now_ms, output, profile, progress, worker_threads};

#[derive(Serialize)]
struct Published {
    image: String,
    channel: String,
    version: String,
    sequence: u64,
    unchanged: bool,
    size_bytes: u64,
    data_bytes: u64,
    free_bytes: u64,
    new_bytes: u64,
    sent_bytes: u64,
    profile: Option<profile::Attachment>,
}

pub(crate) async fn run(context: &Context, args: PublishArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    let (_, remote) = state.remote()?;
    let previous = match &args.profile_from {
        Some(wanted) => Some(profile::find_profiled(&remote, &state, &args.image, wanted).await?),
        None => None,
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
    let request = Request {
        file: &args.file,
        image: &args.image,
        channel: Some(&args.channel),
        note: args.message,
        force: args.force,
        keep_free: args.keep_free,
    };
    let report = progress::while_uploading(progress, publisher.publish(request)).await?;
    for kept in &report.kept_free {
        context.printer.message(&format!(
            "the free space of the ext4 file system at {} is published as it is: {}",
            ByteSize(kept.offset),
            kept.reason
        ));
    }
    let carried = match previous {
        Some(previous) if previous.id != report.version.id => Some(
            profile::carry_over(context, &remote, &state, &args.image, &previous, report.version.id).await?,
        ),
        _ => None,
    };
    let published = Published {
        image: args.image.to_string(),
        channel: args.channel.to_string(),
        version: report.version.id.to_string(),
        sequence: report.version.sequence,
        unchanged: report.unchanged,
        size_bytes: report.size_bytes,
        data_bytes: report.data_bytes,
        free_bytes: report.free_bytes,
        new_bytes: report.new_bytes,
        sent_bytes: report.sent_bytes,
        profile: carried,
    };
    context.printer.result(&published, |published| {
        let name = format!(
            "{} version {} ({}) is {}",
            published.image,
            published.sequence,
            output::short(&published.version),
            published.channel
        );
        if published.unchanged {
            return format!("{name}: it already holds this disk");
        }
        let free = match published.free_bytes {
            0 => String::new(),
            bytes => format!(" ({} of free space left out)", ByteSize(bytes)),
        };
        let profile =
            published.profile.as_ref().map_or(String::new(), |profile| format!("\n{}", profile.text()));
        format!(
            "{name}: {} disk, {} of data{free}, {} of it new, {} sent{profile}",
            ByteSize(published.size_bytes),
            ByteSize(published.data_bytes),
            ByteSize(published.new_bytes),
            ByteSize(published.sent_bytes)
        )
    })?;
    Ok(())
}
