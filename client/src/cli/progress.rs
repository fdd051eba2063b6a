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

/// Shows how far an upload is, wherever its numbers come from.
pub(crate) struct UploadReporter {
    began: Instant,
    last_plain: Instant,
    bar: Option<ProgressBar>,
    terminal: bool,
}

impl UploadReporter {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { began: now, last_plain: now, bar: None, terminal: std::io::stderr().is_terminal() }
    }

    /// Shows the numbers of a reply; does nothing for other replies.
    pub(crate) fn show(&mut self, reply: &Reply) {
        let Reply::Progress { total_bytes, hashed_bytes, new_bytes, sent_bytes, sent_raw_bytes } = *reply
        else {
            return;
        };
        let elapsed = self.began.elapsed();
        if elapsed < SILENCE || total_bytes == 0 {
            return;
        }
        // Done is what was read and need not be sent, and what was sent.
        let done = hashed_bytes.saturating_sub(new_bytes) + sent_raw_bytes;
        let text = describe(total_bytes, hashed_bytes, new_bytes, sent_bytes, done, elapsed);
        if self.terminal {
            let bar = self.bar.get_or_insert_with(new_bar);
            bar.set_length(total_bytes);
            bar.set_position(done.min(total_bytes));
            bar.set_message(text);
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

impl Drop for UploadReporter {
    fn drop(&mut self) {
        self.finish();
    }
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

fn describe(total: u64, hashed: u64, new: u64, sent: u64, done: u64, elapsed: Duration) -> String {
    let percent = (done * 100).checked_div(total).unwrap_or(100);
    let seconds = elapsed.as_secs_f64();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "for show"
    )]
    let (rate, left_s) = {
        let rate = done as f64 / seconds.max(0.001);
        (rate as u64, (total.saturating_sub(done) as f64 / rate.max(1.0)) as u64)
    };
    let left = if done == 0 { "?".to_owned() } else { format!("{}:{:02}", left_s / 60, left_s % 60) };
    let known = hashed.saturating_sub(new);
    format!(
        "{percent}% of {}, {} known, {} new, {} sent, {}/s, {left} left",
        ByteSize(total),
        ByteSize(known),
        ByteSize(new),
        ByteSize(sent),
        ByteSize(rate)
    )
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

/// Shows what was fetched for work that says nothing else.
pub(crate) async fn while_fetching<T>(
    what: &str,
    fetched_bytes: impl Fn() -> u64,
    work: impl Future<Output = T>,
) -> T {
    let mut last_plain = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let mut bar: Option<ProgressBar> = None;
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + SILENCE, REDRAW);
    tokio::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => {
                if let Some(bar) = bar {
                    bar.finish_and_clear();
                }
                return result;
            }
            _ = ticks.tick() => {
                let text = format!("{what}: {} fetched", ByteSize(fetched_bytes()));
                if terminal {
                    bar.get_or_insert_with(ProgressBar::new_spinner).set_message(text);
                } else if last_plain.elapsed() >= PLAIN_INTERVAL {
                    last_plain = Instant::now();
                    eprint_line(&text);
                }
            }
        }
    }
}
