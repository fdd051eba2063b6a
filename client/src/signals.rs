//! The signals that end what goes on until it is told to stop.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndSignal {
    /// SIGINT: a person wants the end. Who sends it once more means it.
    Interrupt,
    /// SIGTERM or SIGHUP: the session or the host ends. Both are sent then, one right after the other, and say no more than one.
    Terminate,
}

/// SIGINT, SIGTERM and SIGHUP, from when they are watched on: whoever sends one then is not just killed.
#[derive(Debug)]
pub struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
    /// None when this program was started to outlive its terminal, as `nohup` does it.
    hangup: Option<Signal>,
}

impl EndSignals {
    /// Begins to watch for them.
    ///
    /// # Errors
    /// What the system said.
    pub fn watch() -> io::Result<Self> {
        let hangup = match is_ignored(SignalKind::hangup()) {
            true => None,
            false => Some(signal(SignalKind::hangup())?),
        };
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, hangup })
    }

    /// Waits for the next one. Nothing is lost when this is dropped before.
    pub async fn received(&mut self) -> EndSignal {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => EndSignal::Interrupt,
            _ = self.terminate.recv() => EndSignal::Terminate,
            _ = hangup => EndSignal::Terminate,
        }
    }
}

/// Whether whoever started this program has it ignore a signal.
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (kind.as_raw_value() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    /// As between the end of a machine and its sync.
    #[tokio::test]
    async fn a_signal_that_comes_while_nobody_waits_is_heard_by_who_waits_next() {
        let mut signals = EndSignals::watch().unwrap();
        let nobody_sent = tokio::time::timeout(Duration::from_millis(1), signals.received()).await;
        assert!(nobody_sent.is_err());
        kill_process(getpid(), Signal::TERM).unwrap();
        assert_eq!(signals.received().await, EndSignal::Terminate);
    }
}
