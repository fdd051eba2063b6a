//! `satchel status`

use std::fmt::Write;
use std::io::ErrorKind;
use std::sync::Arc;

use chunk_format::Name;
use clap::Args;
use satchel_client::control::{Connection, ControlError, Request};
use satchel_client::desktop::DesktopError;
use satchel_client::local::LocalShare;
use satchel_client::past::PastRef;
use satchel_client::renew::Heard;
use satchel_client::state::StateDir;
use satchel_client::status::{DesktopStatus, LiveStatus, VersionStatus};
use satchel_client::versions::DesktopRef;
use satchel_client::volume::DirVolume;

use super::Context;
use super::output::{moment, short};
use super::quantity::ByteSize;

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// The desktop
    pub(super) desktop: Name,
    /// Show it again and again until interrupted
    #[arg(long, short)]
    pub(super) watch: bool,
    /// Seconds from one look to the next
    #[arg(long, value_name = "SECONDS", default_value_t = 1, requires = "watch", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(super) interval: u64,
}

pub(crate) async fn run(context: &Context, desktop: &Name) -> anyhow::Result<()> {
    let state = context.state()?;
    let found = look(&state, desktop, Look::AtAll).await?;
    let Some(status) = found else { return not_here(&state, desktop).await };
    context.printer.result(&status, text)?;
    Ok(())
}

/// How far it is looked, of a desktop that is not mounted.
#[derive(Clone, Copy)]
enum Look {
    /// At what was written here.
    AtChanges,
    /// At what of it is here, too.
    AtAll,
}

/// What was written to a desktop here, told by the process that has it mounted, or else by its files; none where there are none.
pub(crate) async fn find(state: &StateDir, desktop: &Name) -> anyhow::Result<Option<DesktopStatus>> {
    look(state, desktop, Look::AtChanges).await
}

async fn look(state: &StateDir, desktop: &Name, look: Look) -> anyhow::Result<Option<DesktopStatus>> {
    let directory = state.desktop_path(desktop);
    match Connection::open(&directory).await {
        Ok(mut connection) => {
            Ok(Some(serde_json::from_value(connection.ask(&Request::Status, |_| {}).await?)?))
        }
        Err(ControlError::NotMounted) => {
            let volume = match DirVolume::open(&directory) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                volume => volume?,
            };
            let shares_in = matches!(look, Look::AtAll).then_some(directory.as_path());
            match DesktopStatus::of_files(Arc::new(volume), shares_in) {
                Err(DesktopError::NotHere) => Ok(None),
                status => Ok(Some(status?)),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// Warns of what was written to desktops on this machine and is in none of their versions, which alone are looked at.
pub(crate) async fn warn_of_unsynced(context: &Context, state: &StateDir, looked_at: &[&PastRef]) {
    for at in looked_at {
        let PastRef::Desktop(at @ DesktopRef { version: None, .. }) = at else { continue };
        // What cannot be told here is no reason not to look at a version.
        let Ok(Some(status)) = find(state, &at.desktop).await else { continue };
        if status.unsynced_bytes > 0 {
            context.printer.warning(&format!(
                "{} written to {} on this machine are in no version yet, and are not looked at: `satchel sync {}` makes them one",
                ByteSize(status.unsynced_bytes),
                at.desktop,
                at.desktop
            ));
        }
    }
}

async fn not_here(state: &StateDir, desktop: &Name) -> anyhow::Result<()> {
    let (_, remote) = state.remote()?;
    match remote.desktop(desktop).await {
        Ok(info) => anyhow::bail!(
            "nothing of desktop {desktop} is on this machine yet; the server has version {} of it, from {}. Run or \
             mount it to begin",
            info.head.sequence,
            info.head.machine
        ),
        Err(error) if error.code() == Some("not_found") => {
            Err(satchel_client::session::SessionError::NoSuchDesktop { desktop: desktop.clone() }.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Parts of a disk are 64 MiB long.
const SEGMENT_BYTES: u64 = 64 << 20;

fn share(local: &LocalShare) -> String {
    match local.is_whole() {
        true => "all here".to_owned(),
        false => format!("{:.0}% here", local.percent(SEGMENT_BYTES)),
    }
}

/// What a start without a network would miss; none when what is here cannot be told.
fn offline(status: &DesktopStatus) -> Option<String> {
    let lacks = |share: &LocalShare| {
        format!("{:.0}% here, {} lack", share.percent(SEGMENT_BYTES), ByteSize(share.missing_bytes()))
    };
    let shares: Option<Vec<LocalShare>> = status.disks.iter().map(|disk| disk.local).collect();
    let whole = shares?.iter().all(LocalShare::is_whole);
    Some(match &status.profile {
        _ if whole => "works: all of it is here".to_owned(),
        Some(profile) if profile.is_whole() => {
            "starts: what a start reads is here, but not everything".to_owned()
        }
        Some(profile) => format!("does not start yet: of what a start reads, {}", lacks(profile)),
        None => "not known: what a start reads was never recorded, and not everything is here".to_owned(),
    })
}

/// Who may write the desktop, where that is not as one thinks.
fn lease(status: &DesktopStatus) -> Option<String> {
    match (&status.taken_by, status.lease_held, &status.mounted_at) {
        (Some(machine), ..) => {
            Some(format!("{machine} has taken it: what is not synced here becomes a fork at the next sync"))
        }
        (None, true, None) => Some("kept by this machine, also while it is not mounted".to_owned()),
        _ => None,
    }
}

/// How the server is found to be, by whatever was last asked of it.
fn server(live: &LiveStatus) -> String {
    match (live.server_answers, &live.server_failure) {
        (Some(true), None) => "answers".to_owned(),
        (Some(true), Some(reason)) => format!("answers, but not as it should: {reason}"),
        (Some(false), Some(reason)) => format!("does not answer: {reason}"),
        (Some(false), None) => "does not answer".to_owned(),
        (None, _) => "was not asked".to_owned(),
    }
}

/// How far a channel's move has got, where it is not through.
fn how_far(heard: &Heard) -> String {
    match (heard.percent, heard.paused) {
        (100, false) => String::new(),
        (percent, false) => format!(", for {percent} % of the desktops"),
        (percent, true) => format!(", for {percent} % of the desktops, paused"),
    }
}

fn text(status: &DesktopStatus) -> String {
    let mut out = String::new();
    // Writing into a string does not fail.
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "{name:<11}{value}");
    };
    let version = |version: &VersionStatus| {
        format!(
            "version {} ({}), {} on {}",
            version.sequence,
            short(&version.id),
            moment(version.created_ms),
            version.machine
        )
    };
    line("desktop", format!("{} of {}", status.desktop, status.owner));
    line("head", version(&status.head));
    if let Some(fork) = &status.fork {
        line(
            "fork",
            format!("that is a version of {fork}: the next start moves to {} itself", status.desktop),
        );
    }
    line("image", version(&status.base));
    if let Some(mode) = status.system_mode {
        line("mode", mode.to_string());
    }
    if let Some(heard) = &status.channel_version {
        let here = match status.passed_over {
            Some(_) => format!(
                ", which is not taken up here until it names another; `satchel rebase {}` takes it up",
                status.desktop
            ),
            None if heard.version.id == status.base.id => ", which it stands on".to_owned(),
            None => String::new(),
        };
        let (image, channel, named) = (&heard.image, &heard.channel, heard.version.sequence);
        line("channel", format!("{image}:{channel} names version {named}{here}{}", how_far(heard)));
    }
    line(
        "mounted",
        match &status.mounted_at {
            None => "no".to_owned(),
            Some(at) if status.read_only => {
                format!("{at}, read-only: what is written now is thrown away at the end")
            }
            Some(at) => at.clone(),
        },
    );
    if let Some(lease) = lease(status) {
        line("lease", lease);
    }
    line(
        "unsynced",
        match (status.unsynced_bytes, status.discarded_bytes) {
            (0, 0) => "nothing".to_owned(),
            (written, 0) => format!("{} written since the head", ByteSize(written)),
            (written, discarded) => {
                format!("{} written since the head, {} discarded", ByteSize(written), ByteSize(discarded))
            }
        },
    );
    if let Some(note) = &status.uncommitted_note {
        line("checkpoint", format!("`{note}` was made here, and is sent by the next sync"));
    }
    if status.pinned {
        line("pinned", "all of it is to be here: what lacks comes while it is mounted".to_owned());
    }
    for disk in &status.disks {
        let mut value = format!("{}, {} unsynced", ByteSize(disk.size_bytes), ByteSize(disk.unsynced_bytes));
        if let Some(activity) = &disk.activity {
            let _ = write!(
                value,
                ", {} read, {} written, {} reads waited {}.{:03} s",
                ByteSize(activity.read_bytes),
                ByteSize(activity.written_bytes),
                activity.missed_reads,
                activity.stall_ms / 1000,
                activity.stall_ms % 1000
            );
        }
        if let Some(local) = &disk.local {
            let _ = write!(value, ", {}", share(local));
        }
        line(disk.role.as_str(), value);
    }
    if let Some(offline) = offline(status) {
        line("offline", offline);
    }
    if let Some(live) = &status.live {
        line("server", server(live));
        line(
            "fetched",
            format!(
                "{} in {} requests, {} chunks",
                ByteSize(live.fetched_bytes),
                live.requests,
                live.fetched_chunks
            ),
        );
        line(
            "cache",
            format!("{} of at most {}", ByteSize(live.cached_bytes), ByteSize(live.cache_limit_bytes)),
        );
        if live.damaged + live.cache_corrupt > 0 {
            line(
                "damaged",
                format!(
                    "{} answers and {} cached chunks were wrong and not used",
                    live.damaged, live.cache_corrupt
                ),
            );
        }
    }
    out
}
