//! `satchel channel`

use std::collections::BTreeMap;

use anyhow::{anyhow, bail};
use chunk_format::{Name, Subject, rollback_statement};
use clap::Args;
use satchel_client::remote::{ChannelInfo, ChannelMove, ImageInfo, NamedVersion, Remote, Rollout, States};
use satchel_client::versions::{VersionError, find_version};
use serde::Serialize;

use super::Context;
use super::output::{moment, short, table};

#[derive(Debug, Args)]
pub(super) struct ChannelArgs {
    /// The image
    image: Name,
    /// The channel
    channel: Option<Name>,
    /// Where it is to point: a version's number, or its id. The version it was taken back to, named again, reaches machines
    /// that have seen newer ones since
    #[arg(requires = "channel", conflicts_with = "rollback")]
    version: Option<String>,
    /// The share of desktops that follow, per cent; the others stay on the version before
    #[arg(long, value_name = "N", requires = "channel", value_parser = clap::value_parser!(u8).range(0..=100))]
    percent: Option<u8>,
    /// No further desktop follows for the time being
    #[arg(long, requires = "channel", conflicts_with = "resume")]
    pause: bool,
    /// Desktops follow again
    #[arg(long, requires = "channel")]
    resume: bool,
    /// Take the last move back, at once and for all desktops
    #[arg(long, requires = "channel", conflicts_with_all = ["percent", "pause", "resume"])]
    rollback: bool,
}

/// All channels of an image, and how desktops get on with what they lead to.
#[derive(Serialize)]
struct Channels {
    image: Name,
    channels: BTreeMap<Name, Rollout>,
    /// Only for the image's publisher.
    states: Option<Vec<States>>,
}

pub(crate) async fn run(context: &Context, args: ChannelArgs) -> anyhow::Result<()> {
    let (_, remote) = context.state()?.remote()?;
    let info = match remote.image(&args.image).await {
        Err(error) if error.code() == Some("not_found") => {
            return Err(VersionError::NoSuchImage { image: args.image }.into());
        }
        info => info?,
    };
    let Some(channel) = &args.channel else { return list(context, &remote, info).await };
    let present = info.rollouts.get(channel);
    let moves = args.version.is_some() || args.rollback;
    let changes = args.percent.is_some() || args.pause || args.resume;
    let shown = if moves || changes {
        let to = target(&remote, &args, channel, present).await?;
        let is_staged = args.percent.is_some_and(|percent| percent < 100) || args.pause;
        if present.is_none() && is_staged {
            let (image, version) = (&args.image, to.sequence);
            let instead = format!("make it for all first: satchel channel {image} {channel} {version}");
            return Err(not_staged(image, channel, &instead));
        }
        if let Some(present) = present {
            check_others(&args.image, channel, present, to, args.percent)?;
        }
        let signature = match present {
            Some(present) if needs_word(&info, present, to, args.version.is_some()) => {
                Some(sign_back(context, &info, channel, to)?)
            }
            _ => None,
        };
        let paused = (args.pause || args.resume).then_some(args.pause);
        let wish = ChannelMove {
            version: to.id,
            from: present.map(|present| present.version.id),
            percent: args.percent,
            paused,
            signature,
        };
        remote.move_channel(&args.image, channel, &wish).await?
    } else {
        remote.channel(&args.image, channel).await?
    };
    context.printer.result(&shown, text)?;
    Ok(())
}

/// Why a channel that is yet to be made is not moved for some desktops alone.
pub(super) fn not_staged(image: &Name, channel: &Name, instead: &str) -> anyhow::Error {
    anyhow!(
        "image {image} has no channel {channel} yet, and so no version on which the other desktops could stay; {instead}"
    )
}

/// Checks that a channel has another version before the one that it is to name for some desktops alone.
pub(super) fn check_others(
    image: &Name,
    channel: &Name,
    present: &Rollout,
    to: NamedVersion,
    percent: Option<u8>,
) -> anyhow::Result<()> {
    let is_first = present.version.id == to.id && present.previous.is_none();
    if is_first && percent.is_some_and(|percent| percent < 100) {
        bail!(
            "channel {channel} of image {image} has named version {} alone, and so none on which the other desktops could stay: leave \
             --percent out, and give it with the version after it",
            to.sequence
        );
    }
    Ok(())
}

/// Where the channel is to point.
async fn target(
    remote: &Remote,
    args: &ChannelArgs,
    channel: &Name,
    present: Option<&Rollout>,
) -> anyhow::Result<NamedVersion> {
    let image = &args.image;
    if let Some(wanted) = &args.version {
        let subject = Subject::Image { image: image.clone() };
        let found = find_version(remote, &subject, wanted).await?;
        return Ok(NamedVersion { id: found.id, sequence: found.sequence });
    }
    let Some(present) = present else {
        bail!(
            "image {image} has no channel {channel} yet; make it: satchel channel {image} {channel} VERSION"
        );
    };
    match (args.rollback, present.previous) {
        (false, _) => Ok(present.version),
        (true, Some(previous)) => Ok(previous),
        (true, None) => bail!(
            "there is no move of channel {channel} to take back; name a version: satchel channel {image} {channel} VERSION"
        ),
    }
}

/// Whether a move is one back, or names the version a channel was taken back to before newer ones were published: for
/// machines that have seen those, the word that was given then is void.
fn needs_word(info: &ImageInfo, present: &Rollout, to: NamedVersion, is_named: bool) -> bool {
    let is_void = present.rollback.as_ref().is_some_and(|word| word.newest < info.latest.sequence);
    to.sequence < present.version.sequence || (is_named && to.id == present.version.id && is_void)
}

/// The publisher's word that a channel goes back: clients take nothing back without it.
fn sign_back(
    context: &Context,
    info: &ImageInfo,
    channel: &Name,
    to: NamedVersion,
) -> anyhow::Result<String> {
    let key = context.state()?.publisher_key()?;
    if key.public() != info.publisher {
        bail!(
            "a channel goes back with the publisher's key only: image {} is signed by {}, the key of this machine is {}",
            info.image,
            info.publisher,
            key.public()
        );
    }
    let statement = rollback_statement(&info.image, channel, to.id, info.latest.sequence);
    Ok(key.sign(&statement).to_string())
}

async fn list(context: &Context, remote: &Remote, info: ImageInfo) -> anyhow::Result<()> {
    let states = match remote.states(&info.image).await {
        Err(error) if error.code() == Some("forbidden") => None,
        states => Some(states?),
    };
    let channels = Channels { image: info.image, channels: info.rollouts, states };
    context.printer.result(&channels, |channels| {
        let rows: Vec<Vec<String>> =
            channels.channels.iter().map(|(name, rollout)| row(name, rollout)).collect();
        let mut text = table(&["CHANNEL", "VERSION", "ID", "REACHES", "BEFORE", "MOVED"], &rows);
        if let Some(states) = channels.states.as_ref().filter(|states| !states.is_empty()) {
            let rows: Vec<Vec<String>> = states
                .iter()
                .map(|states| {
                    let mut row = vec![states.sequence.to_string(), short(&states.version)];
                    let counts = [states.desktops, states.good, states.bad, states.reverted];
                    row.extend(counts.map(|count| count.to_string()));
                    row.push(states.said.clone().unwrap_or_default());
                    row
                })
                .collect();
            text.push('\n');
            text.push_str(&table(&["VERSION", "ID", "DESKTOPS", "GOOD", "BAD", "REVERTED", "SAID"], &rows));
        }
        text
    })?;
    Ok(())
}

fn row(name: &Name, rollout: &Rollout) -> Vec<String> {
    vec![
        name.to_string(),
        rollout.version.sequence.to_string(),
        short(&rollout.version.id),
        reach(rollout.percent, rollout.paused),
        rollout.previous.map_or(String::new(), |previous| previous.sequence.to_string()),
        moment(rollout.moved_ms),
    ]
}

fn reach(percent: u8, paused: bool) -> String {
    format!("{percent} %{}", if paused { ", paused" } else { "" })
}

fn text(info: &ChannelInfo) -> String {
    let mut text = table(
        &["CHANNEL", "VERSION", "ID", "REACHES", "BEFORE", "MOVED"],
        &[row(&info.channel, &info.rollout)],
    );
    let rows: Vec<Vec<String>> = info
        .moves
        .iter()
        .map(|made| {
            vec![
                moment(made.moved_ms),
                made.sequence.to_string(),
                short(&made.version),
                reach(made.percent, made.paused),
            ]
        })
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        text.push_str(&table(&["MOVED", "TO", "ID", "REACHES"], &rows));
    }
    text
}
