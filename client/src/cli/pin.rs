//! `satchel pin`

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chunk_format::Name;
use clap::Args;
use satchel_client::cache::Look;
use satchel_client::control::{Connection, ControlError, Reply, Request};
use satchel_client::desktop::OpenDesktop;
use satchel_client::fetch::{DownCause, LinkState};
use satchel_client::lease::Claim;
use satchel_client::local::{self, Shelf};
use satchel_client::mount::{FillReport, fill_reply, fill_report};
use satchel_client::session::Session;
use serde::Serialize;

use super::open::{OnMissingArg, OpenArgs};
use super::output::Printer;
use super::progress::{ProgressLine, per_second, time_left};
use super::quantity::{self, ByteSize};
use super::{Context, mount, now_ms};

#[derive(Debug, Args)]
pub(super) struct PinArgs {
    /// The desktop
    desktop: Name,
    /// The most to take of the link, bytes a second (without it: all that nobody else needs)
    #[arg(long, value_name = "SIZE", value_parser = quantity::rate)]
    limit_rate: Option<ByteSize>,
    /// No longer keep all of it, nor the right to write it, unless it is in use or has changes that are not synced
    #[arg(long, conflicts_with_all = ["pause", "resume", "limit_rate"])]
    unpin: bool,
    /// Stop fetching in the background while the desktop is mounted
    #[arg(long, conflicts_with = "resume")]
    pause: bool,
    /// Go on with fetching in the background
    #[arg(long)]
    resume: bool,
    /// The most disk space to use for what was fetched (without it: 20G, or as much as it has)
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<ByteSize>,
}

const REDRAW: Duration = Duration::from_millis(200);
/// What came in so long tells the rate.
const RATE_WINDOW: Duration = Duration::from_secs(5);
const SAVE_INTERVAL: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Paused<'a> {
    desktop: &'a Name,
    paused: bool,
}

#[derive(Serialize)]
struct Pinned<'a> {
    desktop: &'a Name,
    pinned: bool,
    /// Whether this machine keeps the lease though nothing uses the desktop.
    keeps_lease: bool,
    #[serde(flatten)]
    report: Option<FillReport>,
}

pub(crate) async fn run(context: &Context, args: PinArgs) -> anyhow::Result<()> {
    let state = context.state()?;
    let limit_bytes_per_s = args.limit_rate.map(|rate| rate.0);
    let directory = state.desktop_path(&args.desktop);
    let running = match Connection::open(&directory).await {
        Ok(connection) => Some(connection),
        Err(ControlError::NotMounted) => None,
        Err(error) => return Err(error.into()),
    };
    if args.pause || args.resume {
        let Some(mut connection) = running else {
            anyhow::bail!(
                "nothing fetches for desktop {}: it is not mounted. `satchel pin {0}` fetches all of it",
                args.desktop
            );
        };
        connection.ask(&Request::Pause { paused: args.pause }, |_| {}).await?;
        let paused = Paused { desktop: &args.desktop, paused: args.pause };
        context.printer.result(&paused, |paused| {
            let what = if paused.paused { "stopped; reads of the machine still fetch" } else { "goes on" };
            format!("fetching in the background {what}")
        })?;
        return Ok(());
    }
    let mut keeps_lease = false;
    let report = match running {
        Some(mut connection) => {
            let mut reporter = FillReporter::new();
            let request = Request::Pin { pinned: !args.unpin, limit_bytes_per_s };
            let result = connection.ask(&request, |reply| reporter.show(reply)).await?;
            if args.unpin { None } else { Some(serde_json::from_value(result)?) }
        }
        None => {
            let open = OpenArgs {
                offline: args.unpin,
                ..OpenArgs::for_command(args.cache_size, OnMissingArg::Wait)
            };
            let session = mount::open(context, &state, &args.desktop, &open, Claim::IfFree).await?;
            let report = fill_here(context.printer, &session, &args, limit_bytes_per_s).await;
            // The lease stays: who pins means to work where nobody can be asked for it.
            tokio::task::block_in_place(|| session.desktop.close())?;
            let report = report?;
            if args.unpin
                && let Err(error) = session.end_kept_lease(now_ms()).await
            {
                context.printer.warning(&format!("the right to write it was not given back: {error}"));
            }
            keeps_lease = session.is_lease_kept();
            report
        }
    };
    let pinned = Pinned { desktop: &args.desktop, pinned: !args.unpin, keeps_lease, report };
    context.printer.result(&pinned, said)?;
    Ok(())
}

fn said(pinned: &Pinned) -> String {
    let Pinned { desktop, keeps_lease, .. } = pinned;
    let mut text = match &pinned.report {
        Some(report) => format!(
            "all of desktop {desktop} is on this machine ({}) and stays; it works without a network",
            ByteSize(report.total_bytes)
        ),
        None => {
            format!("desktop {desktop} no longer has to be here; what is stays until its space is needed")
        }
    };
    if *keeps_lease {
        let until = match pinned.pinned {
            true => format!(
                ", for work without a network, until `satchel sync {desktop}`, a start with one, or `satchel pin {desktop} --unpin`"
            ),
            false => format!(" until `satchel sync {desktop}` leaves nothing unsynced"),
        };
        text.push_str(&format!(
            "\nthis machine keeps the right to write it{until}: on others it is in use here meanwhile"
        ));
    }
    text
}

/// Whether all of the disks is here, as far as the cache's index says.
fn is_whole(desktop: &OpenDesktop) -> bool {
    let shelf = Shelf::of_open(desktop, Look::Index);
    desktop.disks().iter().all(|disk| local::of_disk(&disk.view().base, &shelf).is_whole())
}

async fn fill_here(
    printer: Printer,
    session: &Session,
    args: &PinArgs,
    limit_bytes_per_s: Option<u64>,
) -> anyhow::Result<Option<FillReport>> {
    let desktop = &session.desktop;
    if args.unpin {
        desktop.unpin().await?;
        return Ok(None);
    }
    desktop.fetcher().limit_background(limit_bytes_per_s);
    let mut reporter = FillReporter::new();
    let filling = desktop.pin(limit_bytes_per_s, async {
        // Then nobody has to be asked for anything.
        if is_whole(desktop) {
            return desktop.fill(Look::Bytes).await;
        }
        let begun = match limit_bytes_per_s {
            // What a start needs first, as one download.
            None => desktop.fetch_for_start().await,
            // That knows of no limit.
            Some(_) => desktop.load_profile().await.map(drop),
        };
        if let Err(error) = begun {
            tracing::info!(error = &error as &dyn std::error::Error, "no profile is known");
        }
        desktop.fill(Look::Bytes).await
    });
    tokio::pin!(filling);
    let mut link = desktop.fetcher().link();
    let mut ticks = tokio::time::interval(REDRAW);
    let mut save = tokio::time::interval(SAVE_INTERVAL);
    loop {
        tokio::select! {
            result = &mut filling => {
                result?;
                return Ok(Some(fill_report(desktop)));
            }
            Ok(()) = link.changed() => {
                reporter.line.finish();
                match link.borrow_and_update().clone() {
                    LinkState::Up => printer.message("the server answers again; it goes on"),
                    LinkState::Down { reason, cause, .. } => {
                        let what = match cause {
                            DownCause::Silent => format!("the server does not answer ({reason}); waiting for it"),
                            DownCause::Refuses => format!(
                                "the server refuses this machine ({reason}). `satchel login` in another terminal, with a token that \
                                 is valid, lets it go on"
                            ),
                            DownCause::Untrusted => format!(
                                "what answers may not be the server ({reason}), and is told nothing. Ask the server's operator before \
                                 you trust another certificate"
                            ),
                        };
                        printer.warning(&format!("{what}. Interrupt to stop: what is here stays"));
                    }
                }
            }
            _ = ticks.tick() => reporter.show(&fill_reply(desktop)),
            _ = save.tick() => {
                // However this ends, the next one goes on from here.
                let cache = Arc::clone(desktop.cache());
                drop(tokio::task::spawn_blocking(move || cache.save_index()));
            }
        }
    }
}

/// Shows how far a fill is.
struct FillReporter {
    line: ProgressLine,
    recent: Recent,
}

impl FillReporter {
    fn new() -> Self {
        Self { line: ProgressLine::new(), recent: Recent::default() }
    }

    fn show(&mut self, reply: &Reply) {
        let Reply::Filling { total_bytes, local_bytes, fetched_bytes, paused } = *reply else { return };
        if total_bytes == 0 {
            return;
        }
        let now = Sample { at: Instant::now(), local_bytes, fetched_bytes };
        let text = describe(total_bytes, self.recent.since(now), now, paused);
        self.line.show(text);
    }
}

/// How far a fill was at a time.
#[derive(Clone, Copy)]
struct Sample {
    at: Instant,
    local_bytes: u64,
    fetched_bytes: u64,
}

/// What a rate is told by: one of all the time would go on while nothing comes.
#[derive(Default)]
struct Recent(VecDeque<Sample>);

impl Recent {
    /// Adds a sample, and answers the one from which on its rate is told.
    fn since(&mut self, now: Sample) -> Sample {
        while self.0.get(1).is_some_and(|second| now.at - second.at >= RATE_WINDOW) {
            self.0.pop_front();
        }
        self.0.push_back(now);
        self.0.front().copied().unwrap_or(now)
    }
}

/// The rate is the link's; the time left goes by what becomes of that on the disks, which is more: it comes compressed.
fn describe(total: u64, since: Sample, now: Sample, paused: bool) -> String {
    let percent = (now.local_bytes * 100).checked_div(total).unwrap_or(100);
    let elapsed = now.at - since.at;
    let local = now.local_bytes.saturating_sub(since.local_bytes);
    let state = match now.fetched_bytes.saturating_sub(since.fetched_bytes) {
        _ if paused => "paused; `satchel pin --resume` goes on".to_owned(),
        0 if local > 0 => "looking at what is here".to_owned(),
        0 => "waiting for the link".to_owned(),
        fetched => format!(
            "{}/s, {}",
            ByteSize(per_second(fetched, elapsed)),
            time_left(total.saturating_sub(now.local_bytes), per_second(local, elapsed))
        ),
    };
    format!("{percent}% of {} is here, {state}", ByteSize(total))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn progress_tells_the_rate_of_the_link_and_none_when_nothing_comes() {
        let began = Instant::now();
        let mut recent = Recent::default();
        let mut said = |after_s: u64, local: u64, fetched: u64| {
            let at = began + Duration::from_secs(after_s);
            let now = Sample { at, local_bytes: local * MIB, fetched_bytes: fetched * MIB };
            describe(1000 * MIB, recent.since(now), now, false)
        };
        assert_eq!(said(0, 0, 0), "0% of 1000 MiB is here, waiting for the link");
        assert_eq!(said(1, 300, 0), "30% of 1000 MiB is here, looking at what is here");
        assert_eq!(said(10, 380, 40), "38% of 1000 MiB is here, 4.4 MiB/s, 1:09 left");
        assert_eq!(said(15, 480, 90), "48% of 1000 MiB is here, 10.0 MiB/s, 0:26 left");
        // The server has gone: what came before is forgotten.
        assert_eq!(said(17, 480, 90), "48% of 1000 MiB is here, 7.1 MiB/s, 0:36 left");
        assert_eq!(said(21, 480, 90), "48% of 1000 MiB is here, waiting for the link");
        let now = Sample { at: began, local_bytes: 5 * MIB, fetched_bytes: 0 };
        assert!(describe(10 * MIB, now, now, true).contains("paused"));
    }
}
