//! Progress of long work: silent for a quarter of a second, then a line that is kept up to date on a terminal, or a
//! plain line now and then elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use satchel_client::control::Reply;
use satchel_client::mount::progress_reply;
use satchel_client::upload::UploadProgress;

use super::quantity::ByteSize;

const SILENCE: Duration = Duration::from_millis(250);
const REDRAW: Duration = Duration::from_millis(100);
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// A line that says how far some work is. It goes when this does.
pub(crate) struct ProgressLine {
    began: Instant,
    last_plain: Instant,
    bar: Option<ProgressBar>,
    terminal: bool,
}

impl ProgressLine {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { began: now, last_plain: now, bar: None, terminal: std::io::stderr().is_terminal() }
    }

    /// How long the work takes so far.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Says how far the work is, if it is time to.
    pub(crate) fn show(&mut self, text: String) {
        self.draw(text, ProgressBar::new_spinner, ProgressBar::tick);
    }

    /// The same, and draws the part that is done.
    pub(crate) fn show_part(&mut self, done: u64, total: u64, text: String) {
        self.draw(text, new_bar, |bar| {
            bar.set_length(total);
            bar.set_position(done.min(total));
        });
    }

    fn draw(&mut self, text: String, new: impl FnOnce() -> ProgressBar, update: impl FnOnce(&ProgressBar)) {
        if self.elapsed() < SILENCE {
            return;
        }
        if self.terminal {
            let bar = self.bar.get_or_insert_with(new);
            bar.set_message(text);
            update(bar);
        } else if self.last_plain.elapsed() >= PLAIN_INTERVAL {
            self.last_plain = Instant::now();
            eprint_line(&text);
        }
    }

    /// Takes the line away.
    pub(crate) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Shows what there is to say of some work, given how long it takes so far, until it is done.
pub(crate) async fn while_working<T>(said: impl Fn(Duration) -> String, work: impl Future<Output = T>) -> T {
    let mut line = ProgressLine::new();
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + SILENCE, REDRAW);
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = ticks.tick() => line.show(said(line.elapsed())),
        }
    }
}

/// Shows what was fetched for work that says nothing else.
pub(crate) async fn while_fetching<T>(
    what: &str,
    fetched_bytes: impl Fn() -> u64,
    work: impl Future<Output = T>,
) -> T {
    while_working(|_| format!("{what}: {} fetched", ByteSize(fetched_bytes())), work).await
}

/// What was done, a second.
pub(crate) fn per_second(done: u64, elapsed: Duration) -> u64 {
    let millis = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX).max(1);
    done.saturating_mul(1000) / millis
}

/// How long the rest takes at a rate, as minutes and seconds.
pub(crate) fn time_left(rest: u64, rate: u64) -> String {
    match rest.checked_div(rate) {
        Some(left_s) => format!("{}:{:02} left", left_s / 60, left_s % 60),
        None => "time left unknown".to_owned(),
    }
}

/// Shows how far an upload is, wherever its numbers come from.
pub(crate) struct UploadReporter {
    line: ProgressLine,
}

impl UploadReporter {
    pub(crate) fn new() -> Self {
        Self { line: ProgressLine::new() }
    }

    /// Shows the numbers of a reply; does nothing for other replies.
    pub(crate) fn show(&mut self, reply: &Reply) {
        if let Some(UploadLine { done, total, text }) = describe(reply, self.line.elapsed()) {
            self.line.show_part(done, total, text);
        }
    }
}

/// How far an upload is, to be shown.
struct UploadLine {
    done: u64,
    total: u64,
    text: String,
}

/// What there is to show of an upload after so long; nothing for other replies.
fn describe(reply: &Reply, elapsed: Duration) -> Option<UploadLine> {
    let Reply::Progress {
        changed_segments,
        planned_segments,
        total_bytes: total,
        hashed_bytes,
        known_bytes,
        new_bytes,
        sent_bytes,
        sent_raw_bytes,
        new_segments,
        sent_segments,
    } = *reply
    else {
        return None;
    };
    if planned_segments < changed_segments {
        let text = format!("looking at what changed: {planned_segments} of {changed_segments} parts");
        return Some(UploadLine { done: planned_segments, total: changed_segments, text });
    }
    if sent_segments < new_segments {
        let text = format!(
            "{} read, {} sent; telling the server what lies where: {sent_segments} of {new_segments} parts",
            ByteSize(hashed_bytes),
            ByteSize(sent_bytes)
        );
        return Some(UploadLine { done: sent_segments, total: new_segments, text });
    }
    // Done is what need not be sent, and what was: what was only read waits for the server's word.
    let done = known_bytes + sent_raw_bytes;
    let percent = done.saturating_mul(100).checked_div(total)?;
    let rate = per_second(done, elapsed);
    let text = format!(
        "{percent}% of {}, {} read, {} known, {} new, {} sent, {}/s, {}",
        ByteSize(total),
        ByteSize(hashed_bytes),
        ByteSize(known_bytes),
        ByteSize(new_bytes),
        ByteSize(sent_bytes),
        ByteSize(rate),
        time_left(total.saturating_sub(done), rate)
    );
    Some(UploadLine { done, total, text })
}

/// Shows an upload of this process until the work is done.
pub(crate) async fn while_uploading<T>(progress: Arc<UploadProgress>, work: impl Future<Output = T>) -> T {
    let mut reporter = UploadReporter::new();
    let mut ticks = tokio::time::interval(REDRAW);
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = ticks.tick() => reporter.show(&progress_reply(&progress)),
        }
    }
}

fn new_bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
    // The template is ours and right; without it the bar is only plainer.
    if let Ok(style) = ProgressStyle::with_template("{bar:20} {msg}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn eprint_line(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    const MIB: u64 = 1 << 20;

    /// What `describe` says of an upload, after two seconds.
    fn shown(set: impl FnOnce(&UploadProgress)) -> Option<(u64, String)> {
        let progress = UploadProgress::default();
        set(&progress);
        describe(&progress_reply(&progress), Duration::from_secs(2)).map(|line| (line.done, line.text))
    }

    #[test]
    fn what_the_server_was_not_asked_about_is_not_done() {
        let read = shown(|progress| {
            progress.total_bytes.store(8 * MIB, Relaxed);
            progress.hashed_bytes.store(8 * MIB, Relaxed);
        });
        let text = "0% of 8.0 MiB, 8.0 MiB read, 0 B known, 0 B new, 0 B sent, 0 B/s, time left unknown";
        assert_eq!(read, Some((0, text.to_owned())));
        let sending = shown(|progress| {
            progress.total_bytes.store(8 * MIB, Relaxed);
            progress.hashed_bytes.store(8 * MIB, Relaxed);
            progress.known_bytes.store(2 * MIB, Relaxed);
            progress.new_bytes.store(6 * MIB, Relaxed);
            progress.sent_bytes.store(MIB, Relaxed);
            progress.sent_raw_bytes.store(2 * MIB, Relaxed);
        });
        let text =
            "50% of 8.0 MiB, 8.0 MiB read, 2.0 MiB known, 6.0 MiB new, 1.0 MiB sent, 2.0 MiB/s, 0:02 left";
        assert_eq!(sending, Some((4 * MIB, text.to_owned())));
        assert!(describe(&Reply::GoOn, Duration::from_secs(2)).is_none());
    }

    #[test]
    fn what_comes_before_the_bytes_and_after_them_is_told() {
        assert_eq!(shown(|_| {}), None);
        let planning = shown(|progress| {
            progress.changed_segments.store(1000, Relaxed);
            progress.planned_segments.store(32, Relaxed);
        });
        assert_eq!(planning, Some((32, "looking at what changed: 32 of 1000 parts".to_owned())));
        let ending = shown(|progress| {
            progress.total_bytes.store(8 * MIB, Relaxed);
            progress.hashed_bytes.store(8 * MIB, Relaxed);
            progress.sent_bytes.store(MIB, Relaxed);
            progress.sent_raw_bytes.store(8 * MIB, Relaxed);
            progress.new_segments.store(16_384, Relaxed);
            progress.sent_segments.store(5, Relaxed);
        });
        let text = "8.0 MiB read, 1.0 MiB sent; telling the server what lies where: 5 of 16384 parts";
        assert_eq!(ending, Some((5, text.to_owned())));
    }
}
