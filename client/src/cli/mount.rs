//! `satchel mount`

use std::fmt::Write;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use chunk_format::Name;
use clap::Args;
use satchel_client::cache::Look;
use satchel_client::fetch::{DownCause, OnMissing};
use satchel_client::fs::fuse::MountOptions;
use satchel_client::lease::Claim;
use satchel_client::local::{self, LocalShare, StartNeeds};
use satchel_client::mount::{self, Event, Services, Trickle};
use satchel_client::renew::{Ready, RenewError, Renewed, Renewer};
use satchel_client::session::{Notice, Session, SessionOptions};
use satchel_client::state::StateDir;
use satchel_client::sync::Syncer;
use satchel_client::upload::{Patience, UploadProgress};
use satchel_client::{hint, metrics};
use serde::Serialize;

use super::open::{OnMissingArg, OpenArgs};
use super::output::{Printer, moment};
use super::progress::while_uploading;
use super::quantity::{ByteSize, Every};
use super::{Context, claim, machine_name, now_ms, sync, worker_threads};

#[derive(Debug, Args)]
pub(super) struct MountArgs {
    /// The desktop
    desktop: Name,
    /// An empty directory; DIR/system.raw and DIR/home.raw appear in it
    dir: PathBuf,
    #[command(flatten)]
    open: OpenArgs,
    /// Let other users of this machine use the disks
    #[arg(long)]
    allow_other: bool,
}

/// Threads that answer the kernel: as many requests as can wait for this machine's own disk at once.
const FUSE_THREADS: usize = 4;
/// Ranges that lack, told one by one.
const RANGES_SHOWN: usize = 20;

#[derive(Serialize)]
struct Mounted {
    desktop: String,
    mounted_at: String,
    version: u64,
    read_only: bool,
}

pub(crate) async fn run(context: &Context, args: MountArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    // Before the lease is taken.
    state.check_fit()?;
    let directory = std::path::absolute(&args.dir)?;
    let metrics = match args.open.metrics {
        Some(address) => {
            let listener = metrics::listen(address).await?;
            context.printer.message(&format!("metrics are at http://{}/metrics", listener.local_addr()?));
            Some(listener)
        }
        None => None,
    };
    if args.open.ask {
        claim::ask(context, &state, &args.desktop).await?;
    }
    let mut session = open(context, &state, &args.desktop, &args.open, args.open.claim()).await?;
    if !session.desktop.is_read_only() {
        if session.has_other_work() {
            session = settle(context, &state, session, &args).await?;
        }
        session = renewed(context, &state, &args.desktop, session).await?;
    }
    session.ask_every = Duration::from_secs(args.open.ask_every);
    if args.open.offline {
        check_offline(context, &args.desktop, &session)?;
    }
    let syncer = syncer(&state, &session)?;
    let record = session.desktop.store().record();
    let version = session.desktop.store().version(record.head)?.manifest.sequence;
    let options = MountOptions {
        name: format!("satchel:{}", args.desktop),
        allow_other: args.allow_other,
        threads: FUSE_THREADS.max(std::thread::available_parallelism().map_or(1, usize::from)),
    };
    let printer = context.printer;
    let mounted = Mounted {
        desktop: args.desktop.to_string(),
        mounted_at: directory.display().to_string(),
        version,
        read_only: session.desktop.is_read_only(),
    };
    let events = |event| {
        say(printer, &mounted.desktop, &mounted.mounted_at, event, || {
            // Whoever waits for this line reads it; if nobody does, the mount is there all the same.
            let _ = printer.result(&mounted, |mounted| {
                let how = if mounted.read_only {
                    ", read-only: what is written is thrown away at the end"
                } else {
                    ""
                };
                format!(
                    "mounted {} (version {}) on {}{how}",
                    mounted.desktop, mounted.version, mounted.mounted_at
                )
            });
        });
    };
    let desktop_directory = state.desktop_path(&args.desktop);
    let services = Services { syncer, trickle: trickle(&args.open, &session), metrics };
    mount::serve(session, &desktop_directory, &directory, &options, services, events).await?;
    Ok(())
}

/// How a desktop that is opened so is synced by itself.
fn trickle(args: &OpenArgs, session: &Session) -> Trickle {
    let by_operator = || session.sync_every().unwrap_or(mount::DEFAULT_INTERVAL);
    Trickle {
        every: args
            .sync_every
            .map_or_else(|| Some(by_operator()), |Every(every)| every)
            .filter(|every| !every.is_zero()),
        limit_bytes_per_s: args.sync_rate.and_then(|rate| NonZeroU64::new(rate.0)),
    }
}

/// Says what happens to a mount on a directory; `mounted` prints the result once it is there.
pub(crate) fn say(printer: Printer, desktop: &str, directory: &str, event: Event, mounted: impl FnOnce()) {
    match event {
        Event::StaleMountCleared => {
            printer.message(&format!("cleared away what a crashed process left mounted on {directory}"));
        }
        Event::Mounted => mounted(),
        Event::LinkDown { reason, cause: DownCause::Refuses } => printer.warning(&format!(
            "the server refuses this machine ({reason}); reads of what is not here wait, everything else goes on. `satchel login` \
             in another terminal, with a token that is valid, lets them go on"
        )),
        Event::LinkDown { reason, cause: DownCause::Untrusted } => printer.warning(&format!(
            "what answers may not be the server ({reason}), and is told nothing; reads of what is not here wait, everything else goes \
             on. Ask the server's operator before you trust another certificate"
        )),
        Event::LinkDown { reason, cause: DownCause::Silent } => printer.warning(&format!(
            "the server does not answer ({reason}); reads of what is not here wait, everything else goes on"
        )),
        Event::Wanted { machine } => {
            printer.message(&format!("{machine} asks for this desktop; it is synced and unmounted if nothing uses it"));
        }
        Event::NotHandedOver => printer.message(&format!(
            "{directory} is in use, so it stays, and the other machine is told. To hand over, close what uses it \
             (`fuser -vm {directory}`) and unmount it; the next sync sends what was written"
        )),
        Event::LeftUnsynced { bytes } => printer.message(&format!(
            "{} are on this machine only: `satchel sync {desktop}` sends them",
            ByteSize(bytes)
        )),
        Event::Taken { machine } => printer.warning(&format!(
            "{machine} has taken this desktop: nothing is lost, and what is done here from now on goes to a fork"
        )),
        // A person who works does not want to read so every few minutes; a fork is another matter.
        Event::Synced { desktop, report, is_routine: true } if !report.begins_fork() => {
            tracing::info!("{}", sync::summary(desktop.as_str(), &report));
        }
        Event::Synced { desktop, report, .. } => printer.message(&sync::summary(desktop.as_str(), &report)),
        Event::NotSynced { reason, is_routine: true } => printer.warning(&format!(
            "what was written is kept on this machine, but could not be synced by itself, which is tried again: {reason}"
        )),
        Event::NotSynced { reason, is_routine: false } => {
            printer.warning(&format!("what was written is kept on this machine, but was not synced: {reason}"));
        }
        Event::LinkUp => printer.message("the server answers again; waiting reads go on"),
        Event::NextReady(Ready { image, sequence, only_if_told: false }) => {
            printer.message(&format!("version {sequence} of {image} is ready for the next start"));
        }
        Event::NextReady(Ready { image, sequence, only_if_told: true }) => printer.message(&format!(
            "there is version {sequence} of {image}; `satchel rebase {desktop}` takes it up"
        )),
        Event::Unmounting => printer.message(&format!("unmounting {directory}")),
        Event::Busy => printer.warning(&format!(
            "{directory} is in use (`fuser -vm {directory}` shows by what); it is unmounted as soon as it is free. \
             Interrupt again to take it away now"
        )),
    }
}

/// Opens a desktop and says what a person should know about it.
pub(crate) async fn open(
    context: &Context,
    state: &StateDir,
    desktop: &Name,
    args: &OpenArgs,
    claim: Claim,
) -> anyhow::Result<Session> {
    let options = SessionOptions {
        cache_bytes: args.cache_size.map(|size| size.0),
        on_missing: match args.on_missing {
            OnMissingArg::Wait => OnMissing::Wait,
            OnMissingArg::Fail => OnMissing::Fail,
        },
        offline: args.offline,
        claim,
        machine: machine_name(),
        now_ms,
    };
    let session = match Session::open(state, desktop, &options).await {
        Ok(session) => session,
        Err(error) => {
            if let Some(said) = claim::held(&error) {
                context.printer.message(&said);
            }
            return Err(error.into());
        }
    };
    for notice in &session.notices {
        if let Some(said) = claim::notice(desktop, notice, claim) {
            match notice {
                Notice::WorkIsInFork { .. } | Notice::Taken { .. } => context.printer.message(&said),
                _ => context.printer.warning(&said),
            }
            continue;
        }
        match notice {
            Notice::Offline { reason } => context.printer.warning(&format!(
                "{reason}; opening the version this machine has"
            )),
            Notice::CheckpointGone { note } => context.printer.warning(&format!(
                "the checkpoint `{note}` of this machine was not sent before {desktop} went on elsewhere, and is not made: nothing was \
                 changed for it"
            )),
            Notice::MovedTo { sequence, machine } => {
                context.printer.message(&format!("continuing with version {sequence} from {machine}"));
            }
            Notice::Diverged { sequence, machine } => context.printer.warning(&format!(
                "version {sequence} was made on {machine} meanwhile, and this machine has changes of its own: syncing \
                 them makes them a fork"
            )),
            Notice::ServerIsBehind { server, here } => context.printer.warning(&format!(
                "the server's newest version is {server}, this machine has {here}: was the server restored from an \
                 older backup? What this machine has is kept"
            )),
            Notice::HeadUnknown { here } => context.printer.warning(&format!(
                "the server does not know version {here}, which this machine has: was the server restored from an older \
                 backup? What this machine has is kept"
            )),
            Notice::BaseUnknown { image, sequence } => context.printer.warning(&format!(
                "nor does it know version {sequence} of {image}, on which {desktop} stands: what is written is kept on this \
                 machine, and can only be synced on a version that the server knows. A desktop in mode renew goes over to the \
                 next one that is published as version {sequence} or higher, or at once to another: `satchel rebase {desktop} --to VERSION`"
            )),
            Notice::GoneFromServer => context.printer.warning(
                "the server does not know this desktop any more; opening what this machine has of it",
            ),
            Notice::Removed { removed_ms } => context.printer.warning(&format!(
                "{desktop} was removed on {}; opening what this machine has of it. What is changed becomes a fork when it is synced; \
                 `satchel remove {desktop}` takes it off this machine, too",
                moment(*removed_ms)
            )),
            Notice::MovedFromRemoved { removed, sequence } => context.printer.message(&format!(
                "{removed}, which this machine stood on, was removed; continuing with version {sequence} of {desktop}"
            )),
            Notice::OnRemoved { removed } => context.printer.warning(&format!(
                "what was changed on this machine belongs to {removed}, which was removed: syncing makes it a fork"
            )),
            _ => {}
        }
    }
    Ok(session)
}

/// Closes a desktop that a command had open for itself, and gives the lease back where nothing is left to sync.
pub(super) async fn close(session: &Session) -> anyhow::Result<()> {
    tokio::task::block_in_place(|| session.desktop.close())?;
    session.release_lease(now_ms()).await;
    Ok(())
}

/// Syncs work that belongs to another version than the desktop's newest, which makes it a fork or completes one, and
/// opens the newest. What cannot be synced is opened as it is.
async fn settle(
    context: &Context,
    state: &StateDir,
    session: Session,
    args: &MountArgs,
) -> anyhow::Result<Session> {
    context.printer.message("syncing what was written on this machine first");
    let progress = Arc::new(UploadProgress::default());
    let syncer = Syncer { progress: Arc::clone(&progress), ..syncer(state, &session)? };
    match while_uploading(progress, syncer.sync(&session.desktop, None)).await {
        Ok(report) => {
            context.printer.message(&sync::summary(args.desktop.as_str(), &report));
            tokio::task::block_in_place(|| session.desktop.close())?;
            drop(session);
            open(context, state, &args.desktop, &args.open, args.open.claim()).await
        }
        Err(error) => {
            context.printer.warning(&format!("it was not synced: {}", hint::explain(&error)));
            Ok(session)
        }
    }
}

/// Takes up what the image's channel names for this desktop, before it starts; says what happened.
async fn renewed(
    context: &Context,
    state: &StateDir,
    desktop: &Name,
    session: Session,
) -> anyhow::Result<Session> {
    let progress = Arc::new(UploadProgress::default());
    let syncer = Syncer { progress: Arc::clone(&progress), ..syncer(state, &session)? };
    let directory = state.desktop_path(desktop);
    let renewer = Renewer { state, syncer: &syncer, directory: &directory };
    match while_uploading(progress, renewer.at_start(&session)).await {
        Ok(None) => Ok(session),
        Ok(Some(renewed)) => {
            let text = say_renewed(desktop, &renewed);
            match renewed.reverted {
                true => context.printer.warning(&text),
                false => context.printer.message(&text),
            }
            Ok(session.reassembled()?)
        }
        Err(error @ RenewError::Desktop(_)) => Err(error.into()),
        Err(error) => {
            context.printer.warning(&format!(
                "{}; starting on the version of the image this machine has",
                hint::chain(&error)
            ));
            Ok(session)
        }
    }
}

/// What a renewal did, in a line.
pub(crate) fn say_renewed(desktop: &Name, renewed: &Renewed) -> String {
    let Renewed { image, from, to, reverted, version, fork, skipped } = renewed;
    if let Some(fork) = fork {
        return format!(
            "version {from} of {image}, which the server does not know, is left for version {}: the home of {desktop} is kept in \
             the fork {fork}, version {}\n\
             `satchel adopt {fork}` makes it {desktop}, `satchel forks` lists all",
            to.sequence, version.sequence
        );
    }
    match reverted {
        true => format!(
            "version {from} of {image} did not start three times in a row: {desktop} is back on version {}, with its home as it \
             was (version {} of the desktop), until {image} moves on",
            to.sequence, version.sequence
        ),
        false => {
            let stays = skipped.map_or(String::new(), |skipped| {
                format!(
                    "; on this machine it stays there until its channel names another version than {}, and `satchel rebase {desktop}` takes that up",
                    skipped.sequence
                )
            });
            format!(
                "{desktop} is renewed from version {from} of {image} to version {} (version {} of the desktop){stays}",
                to.sequence, version.sequence
            )
        }
    }
}

/// Whether a start needs nothing that is not here; says what is not.
fn check_offline(context: &Context, desktop: &Name, session: &Session) -> anyhow::Result<()> {
    let needs = tokio::task::block_in_place(|| local::for_start(&session.desktop, Look::Bytes))?;
    if !needs.are_met() {
        bail!("{}", offline_refusal(desktop, &needs));
    }
    if !needs.disks.is_whole() {
        context.printer.warning(&format!(
            "what a start reads is here, but {} are not: a program that reads them waits until \
             the desktop is started with a network. `satchel pin {desktop}` fetches everything",
            lacking(&needs.disks, " of the disks")
        ));
    }
    Ok(())
}

/// What is not here: bytes of what is known, and parts of which it is not known what they hold.
fn lacking(share: &LocalShare, of: &str) -> String {
    let bytes = ByteSize(share.missing_bytes());
    match (share.missing_bytes(), share.unknown_segments) {
        (_, 0) => format!("{bytes}{of}"),
        (0, count) => format!("{count} parts{of} of 64 MiB at most, of which nothing is known here,"),
        (_, count) => format!("{bytes}{of} and {count} parts of which nothing is known here"),
    }
}

fn offline_refusal(desktop: &Name, needs: &StartNeeds) -> String {
    let Some(profile) = &needs.profile else {
        return format!(
            "not all of desktop {desktop} is on this machine: {} lack. What a start reads was never recorded. \
             With a network, `satchel pin {desktop}` fetches everything",
            lacking(&needs.disks, "")
        );
    };
    let mut text = format!(
        "{} of the {} that a start of desktop {desktop} reads are not on this machine. With a network, \
         `satchel pin {desktop}` fetches everything. These lack:",
        ByteSize(profile.missing_bytes()),
        ByteSize(profile.stored_bytes)
    );
    for (role, range) in needs.missing.iter().take(RANGES_SHOWN) {
        // Writing into a string does not fail.
        let _ = write!(text, "\n  {role}: {} at {}", ByteSize(range.end - range.start), range.start);
    }
    if needs.missing.len() > RANGES_SHOWN {
        let _ = write!(text, "\n  and {} more ranges", needs.missing.len() - RANGES_SHOWN);
    }
    text
}

/// What syncs a session's desktop.
pub(crate) fn syncer(state: &StateDir, session: &Session) -> anyhow::Result<Syncer> {
    Ok(Syncer {
        upstream: Arc::new(session.remote.clone()),
        key: Arc::new(state.machine_key()?),
        machine: machine_name(),
        progress: Arc::default(),
        threads: worker_threads(),
        patience: Patience::DEFAULT,
        now_ms,
        guest: None,
        pace: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_what_lacks_also_where_it_is_not_known_what_that_holds() {
        let refusal = |stored_bytes, unknown_segments| {
            let disks = LocalShare { stored_bytes, local_bytes: 0, unknown_segments };
            let needs = StartNeeds { profile: None, missing: Vec::new(), disks };
            offline_refusal(&"work".parse().unwrap(), &needs)
        };
        assert!(refusal(1 << 20, 0).contains("1.0 MiB lack"), "{}", refusal(1 << 20, 0));
        assert!(refusal(0, 7).contains("7 parts") && !refusal(0, 7).contains("0 B"), "{}", refusal(0, 7));
        let both = refusal(1 << 20, 7);
        assert!(both.contains("1.0 MiB and 7 parts"), "{both}");
    }
}
