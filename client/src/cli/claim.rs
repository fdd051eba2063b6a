//! Who may open a desktop: what the flags say, asking its holder to hand over, and what a person is told of it.

use std::time::{Duration, Instant};

use anyhow::bail;
use chunk_format::Name;
use satchel_client::lease::{self, Claim};
use satchel_client::session::{Notice, SessionError};
use satchel_client::state::StateDir;

use super::output::moment;
use super::{Context, machine_name};

/// How often it is looked whether the holder has handed over.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How often it is asked again: who does not is not waiting any more.
const ASK_AGAIN_INTERVAL: Duration = Duration::from_secs(20);
/// How long a holder that was heard of may take: its machine has to shut down and to sync.
const PATIENCE: Duration = Duration::from_secs(600);
/// A machine that has a desktop mounted is heard of every minute. One that is not may be away, or be done and keep the desktop.
const QUIET_MS: u64 = 180_000;
const QUIET: &str =
    " (it may be off, without a network, or keep the desktop for work without one: `satchel pin`)";
const DAY_MS: u64 = 86_400_000;
const HOUR_MS: u64 = 3_600_000;
const MINUTE_MS: u64 = 60_000;

/// Asks whoever has the desktop in use to hand it over, and waits for that.
pub(crate) async fn ask(context: &Context, state: &StateDir, desktop: &Name) -> anyhow::Result<()> {
    let (_, remote) = state.remote()?;
    let key = state.machine_key()?.public();
    let answer = remote.want_lease(desktop, &machine_name(), false).await?;
    let Some(held) = answer.lease.filter(|lease| !lease::is_ours(lease, &key)) else { return Ok(()) };
    context.printer.message(&format!(
        "asked {} to hand {desktop} over; it was last heard of {} ago. Waiting until it has synced, interrupt to stop",
        held.machine,
        span(answer.now_ms.saturating_sub(held.renewed_ms))
    ));
    let waited = async {
        let mut asked_at = Instant::now();
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let answer = match asked_at.elapsed() >= ASK_AGAIN_INTERVAL {
                true => {
                    asked_at = Instant::now();
                    remote.want_lease(desktop, &machine_name(), true).await
                }
                false => remote.lease(desktop).await,
            };
            let lease = match answer {
                Ok(answer) => answer.lease,
                Err(error) if error.is_transient() => continue,
                Err(error) => return Err(error.into()),
            };
            match lease.filter(|lease| !lease::is_ours(lease, &key)) {
                None => return Ok(()),
                Some(lease) => {
                    if let Some(reason) = lease.refusal {
                        bail!(
                            "{} does not hand over: {reason}\nhint: ask whoever sits there, and then again; or `--take` takes the \
                             desktop at once: what was not synced there becomes a fork, and nothing is lost",
                            lease.machine
                        );
                    }
                }
            }
        }
    };
    match tokio::time::timeout(PATIENCE, waited).await {
        Ok(outcome) => outcome,
        Err(_) => bail!(
            "{} has not handed over within {} minutes; `--take` takes the desktop, and what was not synced there \
             becomes a fork",
            held.machine,
            PATIENCE.as_secs() / 60
        ),
    }
}

/// What is said when another machine has the desktop: who, where, since when, how far its last sync is.
pub(crate) fn held(error: &SessionError) -> Option<String> {
    let SessionError::LeaseHeld { desktop, lease, now_ms } = error else { return None };
    let heard = span(now_ms.saturating_sub(lease.renewed_ms));
    let is_quiet = now_ms.saturating_sub(lease.renewed_ms) > QUIET_MS;
    let quiet = if is_quiet { QUIET } else { "" };
    Some(format!(
        "desktop {desktop} is in use on {} since {}; it was last heard of {heard} ago{quiet}, and its last sync is version {} of {}",
        lease.machine,
        moment(lease.since_ms),
        lease.version.sequence,
        moment(lease.version.committed_ms)
    ))
}

/// What a person is told of a notice that has to do with leases and forks, where the desktop was opened so; none of another.
pub(crate) fn notice(desktop: &Name, notice: &Notice, claim: Claim) -> Option<String> {
    Some(match notice {
        // Nothing is written then that could become a fork.
        Notice::NoLease if claim == Claim::IfFree => return None,
        Notice::WorkIsInFork { fork } => format!(
            "what was done here before is desktop {fork} now, and this is the newest version of {desktop} itself; `satchel diff {desktop} \
             {fork}` compares them, `satchel run {fork}` opens it"
        ),
        Notice::OnFork { fork } => format!(
            "what was done here belongs to the fork {fork} and is not synced yet; it is opened as it is, and {desktop} itself \
             as soon as it is synced"
        ),
        Notice::NoLease => format!(
            "it is not known whether {desktop} is in use elsewhere: if it is, what is done here becomes a fork"
        ),
        Notice::Taken { machine } => format!(
            "{desktop} was taken from {machine}: what was not synced there becomes a fork at its next sync"
        ),
        Notice::LeaseEnding { left_ms } => format!(
            "the server was not heard of for long: in {} this desktop can only be looked at until it is reached once",
            span(*left_ms)
        ),
        Notice::LeaseExpired => "the server was not heard of for longer than is allowed here: this desktop can be looked \
             at, and what is written now is thrown away at the end. What was written before is kept and is synced when \
             the server can be reached"
            .to_owned(),
        _ => return None,
    })
}

/// A length of time, roughly: `3 days`, `5 hours`, `2 minutes`.
pub(crate) fn span(ms: u64) -> String {
    let (count, unit) = match ms {
        0..MINUTE_MS => (ms / 1000, "second"),
        MINUTE_MS..HOUR_MS => (ms / MINUTE_MS, "minute"),
        HOUR_MS..DAY_MS => (ms / HOUR_MS, "hour"),
        _ => (ms / DAY_MS, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_writes_nothing_is_not_warned_of_a_fork() {
        let said = |claim| notice(&"work".parse().unwrap(), &Notice::NoLease, claim);
        assert_eq!(said(Claim::IfFree), None);
        assert!(said(Claim::Write).unwrap().contains("becomes a fork"));
    }

    #[test]
    fn spans_are_rough() {
        for (ms, text) in [
            (0, "0 seconds"),
            (1000, "1 second"),
            (61_000, "1 minute"),
            (7_200_000, "2 hours"),
            (DAY_MS * 9, "9 days"),
        ] {
            assert_eq!(span(ms), text);
        }
    }
}
