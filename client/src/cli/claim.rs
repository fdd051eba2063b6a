//! Who may open a desktop: what the flags say, asking its holder to hand over, and what a person is told of it.

use std::time::{Duration, Instant};

use anyhow::bail;
use chunk_format::Name;
use satchel_client::lease::{self, Claim};
use satchel_client::remote::{LeaseAnswer, RemoteError};
use satchel_client::session::{Notice, SessionError};
use satchel_client::state::StateDir;

use super::output::{count, moment};
use super::{Context, machine_name};

/// How often it is looked whether the holder has handed over.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// How often it is asked again: who does not is not waiting any more.
const ASK_AGAIN_INTERVAL: Duration = Duration::from_secs(20);
/// How often it is told how long the holder was not heard of.
const TELL_INTERVAL: Duration = Duration::from_secs(60);
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
        let mut waiting = Waiting::since(asked_at);
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            let answer = match asked_at.elapsed() >= ASK_AGAIN_INTERVAL {
                true => {
                    asked_at = Instant::now();
                    remote.want_lease(desktop, &machine_name(), true).await
                }
                false => remote.lease(desktop).await,
            };
            let answer = match answer {
                Err(error) if !error.is_transient() => return Err(error.into()),
                answer => answer,
            };
            for said in waiting.heard(Instant::now(), answer.as_ref()) {
                context.printer.message(&said);
            }
            let Ok(answer) = answer else { continue };
            match answer.lease.filter(|lease| !lease::is_ours(lease, &key)) {
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

/// What is told while it is waited for a hand-over.
struct Waiting {
    is_server_away: bool,
    told_at: Instant,
}

impl Waiting {
    fn since(told_at: Instant) -> Self {
        Self { is_server_away: false, told_at }
    }

    /// What there is to tell after the server was asked.
    fn heard(&mut self, now: Instant, answer: Result<&LeaseAnswer, &RemoteError>) -> Vec<String> {
        let mut said = Vec::new();
        let lease = match answer {
            Err(error) => {
                if !std::mem::replace(&mut self.is_server_away, true) {
                    said.push(format!(
                        "the server cannot be asked ({error}); waiting for it, interrupt to stop"
                    ));
                }
                None
            }
            Ok(answer) => {
                if std::mem::take(&mut self.is_server_away) {
                    said.push("the server answers again".to_owned());
                }
                answer.lease.as_ref().map(|lease| (lease, answer.now_ms.saturating_sub(lease.renewed_ms)))
            }
        };
        if let Some((lease, quiet_ms)) = lease
            && now - self.told_at >= TELL_INTERVAL
        {
            self.told_at = now;
            let quiet = if quiet_ms > QUIET_MS { QUIET } else { "" };
            said.push(format!(
                "still waiting for {}, which was last heard of {} ago{quiet}. Interrupt to stop: `--read-only` looks at the desktop \
                 without writing, `--take` takes it, and what was not synced there becomes a fork",
                lease.machine,
                span(quiet_ms)
            ));
        }
        said
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
    let (number, unit) = match ms {
        0..MINUTE_MS => (ms / 1000, "second"),
        MINUTE_MS..HOUR_MS => (ms / MINUTE_MS, "minute"),
        HOUR_MS..DAY_MS => (ms / HOUR_MS, "hour"),
        _ => (ms / DAY_MS, "day"),
    };
    count(number, unit)
}

#[cfg(test)]
mod tests {
    use chunk_format::SecretKey;

    use super::*;

    #[test]
    fn what_writes_nothing_is_not_warned_of_a_fork() {
        let said = |claim| notice(&"work".parse().unwrap(), &Notice::NoLease, claim);
        assert_eq!(said(Claim::IfFree), None);
        assert!(said(Claim::Write).unwrap().contains("becomes a fork"));
    }

    #[test]
    fn who_waits_is_told_once_that_the_server_is_away_and_now_and_then_how_long_the_holder_is_not_heard_of() {
        let key = SecretKey::from_bytes(&[6; 32]).public();
        let version = serde_json::json!({
            "id": "b".repeat(64), "sequence": 3, "size_bytes": 0, "machine": "laptop-b", "created_ms": 0, "committed_ms": 0, "key": key,
        });
        let answer = |quiet_ms: u64| -> LeaseAnswer {
            serde_json::from_value(serde_json::json!({
                "lease": {
                    "key": key, "machine": "laptop-b", "since_ms": 0, "renewed_ms": 0, "expires_ms": DAY_MS, "version": version,
                },
                "head": version, "now_ms": quiet_ms, "lease_ms": DAY_MS, "after_expiry": "read_only",
            }))
            .unwrap()
        };
        let began = Instant::now();
        let mut waiting = Waiting::since(began);
        let mut heard = |after_s, answer: Result<&LeaseAnswer, &RemoteError>| {
            waiting.heard(began + Duration::from_secs(after_s), answer).join("\n")
        };
        assert_eq!(heard(2, Ok(&answer(2000))), "");
        let away = RemoteError::Stalled { url: "https://server".to_owned(), seconds: 9 };
        assert!(heard(4, Err(&away)).contains("the server cannot be asked (cannot reach https://server"));
        assert_eq!(heard(70, Err(&away)), "", "it is said once");
        let said = heard(72, Ok(&answer(72_000)));
        assert!(
            said.contains("answers again")
                && said.contains("laptop-b, which was last heard of 1 minute ago. ")
        );
        assert_eq!(heard(74, Ok(&answer(74_000))), "");
        let said = heard(400, Ok(&answer(400_000)));
        assert!(said.contains("6 minutes ago (it may be off") && said.contains("--take"), "{said}");
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
