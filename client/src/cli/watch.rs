//! `satchel status --watch`

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};

use chunk_format::Name;
use rustix::termios::tcgetwinsize;
use satchel_client::control::{Connection, ControlError, Request};
use satchel_client::status::{DesktopStatus, DiskActivity, DiskStatus, LiveStatus};
use serde::Serialize;

use super::Context;
use super::quantity::ByteSize;

/// What a disk does in a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
struct DiskRates {
    read_bytes_per_s: f64,
    reads_per_s: f64,
    written_bytes_per_s: f64,
    /// Reads that did not wait, of all, per cent.
    hit_percent: f64,
    /// Seconds that reads waited, a second.
    stall_s_per_s: f64,
}

impl DiskRates {
    #[expect(clippy::cast_precision_loss, reason = "for show")]
    fn between(before: &DiskActivity, now: &DiskActivity, elapsed: Duration) -> Self {
        let seconds = elapsed.as_secs_f64().max(0.001);
        let grown = |before: u64, now: u64| now.saturating_sub(before) as f64;
        let (reads, missed) = (grown(before.reads, now.reads), grown(before.missed_reads, now.missed_reads));
        Self {
            read_bytes_per_s: grown(before.read_bytes, now.read_bytes) / seconds,
            reads_per_s: reads / seconds,
            written_bytes_per_s: grown(before.written_bytes, now.written_bytes) / seconds,
            hit_percent: if reads == 0.0 { 100.0 } else { 100.0 * (1.0 - missed / reads).max(0.0) },
            stall_s_per_s: grown(before.stall_ms, now.stall_ms) / 1000.0 / seconds,
        }
    }
}

#[derive(Serialize)]
struct Sample<'a> {
    #[serde(flatten)]
    status: &'a DesktopStatus,
    rates: &'a [DiskRates],
    fetched_bytes_per_s: f64,
}

pub(crate) async fn run(context: &Context, desktop: &Name, interval: Duration) -> anyhow::Result<()> {
    let directory = context.state()?.desktop_path(desktop);
    let terminal = io::stdout().is_terminal() && !context.json;
    let mut before: Option<(DesktopStatus, Instant)> = None;
    let mut ticks = tokio::time::interval(interval);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = tokio::signal::ctrl_c() => return Ok(()),
        }
        let status: DesktopStatus = match Connection::open(&directory).await {
            Ok(mut connection) => serde_json::from_value(connection.ask(&Request::Status, |_| {}).await?)?,
            Err(ControlError::NotMounted) if before.is_some() => {
                context.printer.message(&format!("desktop {desktop} is not mounted any more"));
                return Ok(());
            }
            Err(ControlError::NotMounted) => {
                anyhow::bail!("desktop {desktop} is not mounted; there is nothing to watch")
            }
            Err(error) => return Err(error.into()),
        };
        let now = Instant::now();
        let (rates, fetched_bytes_per_s) = match &before {
            Some((before, at)) => rates(before, &status, now - *at),
            None => (vec![DiskRates::default(); status.disks.len()], 0.0),
        };
        let shown = if context.json {
            let sample = Sample { status: &status, rates: &rates, fetched_bytes_per_s };
            format!("{}\n", serde_json::to_string(&sample)?)
        } else if terminal {
            // Each line is written over the one before and cleared to its end: nothing flickers.
            let page = fitted(&page(&status, &rates, fetched_bytes_per_s), Screen::of_stdout());
            format!("\x1b[H{page}\x1b[J")
        } else {
            format!("{}\n", line(&status, &rates, fetched_bytes_per_s))
        };
        let mut out = io::stdout().lock();
        out.write_all(shown.as_bytes())?;
        out.flush()?;
        before = Some((status, now));
    }
}

/// How much a terminal shows at once.
#[derive(Clone, Copy, Debug)]
struct Screen {
    columns: usize,
    rows: usize,
}

impl Screen {
    /// What it says; all there is to show, where it does not know.
    fn of_stdout() -> Self {
        let known = |said: u16| if said == 0 { usize::MAX } else { usize::from(said) };
        match tcgetwinsize(io::stdout()) {
            Ok(size) => Self { columns: known(size.ws_col), rows: known(size.ws_row) },
            Err(_) => Self { columns: usize::MAX, rows: usize::MAX },
        }
    }
}

/// A page cut to the screen, each line cleared to its end: a line that wraps, or a page that scrolls, is not where the next page
/// is written over it. The last column stays free, or clearing would take what it shows; and the last row, for the cursor.
fn fitted(page: &str, screen: Screen) -> String {
    let mut out = String::new();
    for line in page.lines().take(screen.rows - 1) {
        let mut left = screen.columns - 1;
        // What is not ASCII may be two columns wide.
        let fits = |char: &char| {
            left.checked_sub(if char.is_ascii() { 1 } else { 2 }).map(|rest| left = rest).is_some()
        };
        out.extend(line.chars().take_while(fits));
        out.push_str("\x1b[K\n");
    }
    out
}

#[expect(clippy::cast_precision_loss, reason = "for show")]
fn rates(before: &DesktopStatus, now: &DesktopStatus, elapsed: Duration) -> (Vec<DiskRates>, f64) {
    let activity = |disk: &DiskStatus| disk.activity.unwrap_or_default();
    let disks = before
        .disks
        .iter()
        .zip(&now.disks)
        .map(|(before, now)| DiskRates::between(&activity(before), &activity(now), elapsed))
        .collect();
    let fetched = |status: &DesktopStatus| status.live.as_ref().map_or(0, |live| live.fetched_bytes);
    let grown = fetched(now).saturating_sub(fetched(before)) as f64;
    (disks, grown / elapsed.as_secs_f64().max(0.001))
}

fn per_second(bytes: f64) -> String {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "for show, never negative")]
    let bytes = bytes as u64;
    format!("{}/s", ByteSize(bytes))
}

fn local(disk: &DiskStatus) -> String {
    disk.local.map_or(String::new(), |local| format!("{:.0}%", local.percent(64 << 20)))
}

/// Everything, as a page of at most 80 columns.
fn page(status: &DesktopStatus, rates: &[DiskRates], fetched_bytes_per_s: f64) -> String {
    let mut out = String::new();
    // Writing into a string does not fail.
    let _ = writeln!(out, "{}, version {}", status.desktop, status.head.sequence);
    let _ = writeln!(
        out,
        "{:<7} {:>11} {:>8} {:>11} {:>6} {:>8} {:>9} {:>6}",
        "DISK", "READ", "READS", "WRITTEN", "HITS", "STALL", "STALLED", "LOCAL"
    );
    for (disk, rates) in status.disks.iter().zip(rates) {
        let stalled_ms = disk.activity.map_or(0, |activity| activity.stall_ms);
        let _ = writeln!(
            out,
            "{:<7} {:>11} {:>6.0}/s {:>11} {:>5.0}% {:>6.2} s {:>7.1} s {:>6}",
            disk.role.as_str(),
            per_second(rates.read_bytes_per_s),
            rates.reads_per_s,
            per_second(rates.written_bytes_per_s),
            rates.hit_percent,
            rates.stall_s_per_s,
            Duration::from_millis(stalled_ms).as_secs_f64(),
            local(disk)
        );
    }
    if let Some(live) = &status.live {
        let _ = writeln!(out, "\nlink    {}", link(live));
        let _ = writeln!(
            out,
            "fetched {} at {}, {} chunks queued, {} on their way",
            ByteSize(live.fetched_bytes),
            per_second(fetched_bytes_per_s),
            live.queued_chunks,
            live.in_flight_chunks
        );
        let _ = writeln!(
            out,
            "ahead   {} chunks in time, {} late, {} used, {} not yet, {} wasted",
            live.foreseen.in_time,
            live.foreseen.late,
            live.foreseen.used,
            live.foreseen.unread,
            live.foreseen.wasted
        );
        if let Some(profile) = &status.profile {
            let _ = writeln!(
                out,
                "start   {:.0}% of what a start reads is here, stream {} of {}",
                profile.percent(64 << 20),
                ByteSize(live.boot_received_bytes),
                ByteSize(live.boot_stream_bytes)
            );
        }
    }
    out
}

fn link(live: &LiveStatus) -> String {
    match &live.offline_reason {
        Some(reason) => format!("down: {reason}"),
        None => {
            let rate = u64::try_from(u128::from(live.link.rate_bytes_per_s) * 8 / 1_000_000).unwrap_or(0);
            format!(
                "up, {rate} Mbit/s seen, {:.1} ms away, {} may be under way",
                Duration::from_micros(live.link.distance_us).as_secs_f64() * 1e3,
                ByteSize(live.link.window_bytes)
            )
        }
    }
}

/// The same in one line.
fn line(status: &DesktopStatus, rates: &[DiskRates], fetched_bytes_per_s: f64) -> String {
    let mut out = String::new();
    for (disk, rates) in status.disks.iter().zip(rates) {
        let _ = write!(
            out,
            "{}: read {}, write {}, {:.0}% hits, stall {:.2} s/s, {} here; ",
            disk.role.as_str(),
            per_second(rates.read_bytes_per_s),
            per_second(rates.written_bytes_per_s),
            rates.hit_percent,
            rates.stall_s_per_s,
            local(disk)
        );
    }
    let _ = write!(out, "fetched {}", per_second(fetched_bytes_per_s));
    if let Some(live) = &status.live {
        let _ = write!(out, ", {} on their way, {} wasted", live.in_flight_chunks, live.foreseen.wasted);
        if let Some(reason) = &live.offline_reason {
            let _ = write!(out, ", link down: {reason}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_cut_to_what_the_terminal_shows() {
        let page = "0123456789\n\nab\u{4e16}\u{754c}cd\nlast\n";
        let fitted = |columns, rows| fitted(page, Screen { columns, rows }).replace("\x1b[K\n", "|");
        assert_eq!(fitted(usize::MAX, usize::MAX), "0123456789||ab\u{4e16}\u{754c}cd|last|");
        assert_eq!(fitted(11, 5), "0123456789||ab\u{4e16}\u{754c}cd|last|");
        assert_eq!(fitted(10, 4), "012345678||ab\u{4e16}\u{754c}cd|");
        assert_eq!(fitted(6, 5), "01234||ab\u{4e16}|last|");
        assert_eq!(fitted(1, 1), "");
    }

    #[test]
    fn rates_are_what_grew_in_a_second() {
        let before = DiskActivity {
            reads: 10,
            read_bytes: 1000,
            missed_reads: 10,
            stall_ms: 500,
            ..DiskActivity::default()
        };
        let now = DiskActivity { reads: 30, read_bytes: 5000, missed_reads: 15, stall_ms: 1500, ..before };
        let rates = DiskRates::between(&before, &now, Duration::from_secs(2));
        let expected = DiskRates {
            read_bytes_per_s: 2000.0,
            reads_per_s: 10.0,
            written_bytes_per_s: 0.0,
            hit_percent: 75.0,
            stall_s_per_s: 0.5,
        };
        assert_eq!(rates, expected);
        assert_eq!(DiskRates::between(&now, &now, Duration::from_secs(1)).hit_percent, 100.0);
        // A mount that began anew counts from nothing.
        assert_eq!(DiskRates::between(&now, &before, Duration::from_secs(1)).reads_per_s, 0.0);
    }
}
