//! Keeps a mounted desktop's lease, and tells when another machine asks for it or has taken it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chunk_format::PublicKey;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::desktop::DesktopRecord;
use crate::lease::{self, Asked, LeaseRecord};
use crate::remote::LeaseAnswer;
use crate::session::Session;

/// How often it is looked whether another machine asks for the desktop.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// How often the lease is renewed: a write on the server, and one here.
const RENEW_INTERVAL: Duration = Duration::from_secs(60);
/// How long it may take to tell the server why a desktop is not handed over.
const REFUSE_TIMEOUT: Duration = Duration::from_secs(5);

/// What happened to the lease.
#[derive(Clone, Debug)]
pub(super) enum LeaseEvent {
    /// Another machine asks for the desktop, and nobody here attends to that.
    Wanted {
        /// The machine.
        machine: String,
    },
    /// Another machine has it.
    Taken {
        /// The machine.
        machine: String,
    },
}

/// What the other commands of this machine have to do with the lease.
#[derive(Debug)]
pub(super) struct LeaseDesk {
    /// Who asks for the desktop.
    wanted: watch::Sender<Option<String>>,
    /// Commands that attend to it.
    attending: AtomicUsize,
    /// Why it is not handed over, to be told to the server.
    refusals: mpsc::UnboundedSender<Refusal>,
}

/// Why a desktop is not handed over, and who waits until that is told.
#[derive(Debug)]
pub(super) struct Refusal {
    reason: String,
    told: oneshot::Sender<()>,
}

impl LeaseDesk {
    pub(super) fn new() -> (Arc<Self>, mpsc::UnboundedReceiver<Refusal>) {
        let (refusals, told) = mpsc::unbounded_channel();
        let wanted = watch::channel(None).0;
        (Arc::new(Self { wanted, attending: AtomicUsize::new(0), refusals }), told)
    }

    /// Waits until another machine asks for the desktop; that machine. Whoever waits here attends to it.
    pub(super) async fn wanted(&self) -> String {
        let _attending = Attending::new(&self.attending);
        let mut wanted = self.wanted.subscribe();
        loop {
            let machine = wanted.wait_for(Option::is_some).await.ok().and_then(|machine| machine.clone());
            match machine {
                Some(machine) => return machine,
                None => std::future::pending::<()>().await,
            }
        }
    }

    /// Has the asking machine told why the desktop is not handed over; returns when it was, or cannot be.
    pub(super) async fn refuse(&self, reason: String) {
        let (told, is_told) = oneshot::channel();
        // Without a task that tells it, the mount is ending.
        if self.refusals.send(Refusal { reason, told }).is_ok() {
            let _ = tokio::time::timeout(REFUSE_TIMEOUT, is_told).await;
        }
    }
}

struct Attending<'a>(&'a AtomicUsize);

impl<'a> Attending<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Attending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Keeps the lease for as long as the desktop is mounted.
pub(super) async fn keep(
    session: Arc<Session>,
    desk: Arc<LeaseDesk>,
    mut refusals: mpsc::UnboundedReceiver<Refusal>,
    now_ms: fn() -> u64,
    events: mpsc::UnboundedSender<LeaseEvent>,
) {
    if session.offline || session.desktop.is_read_only() {
        return;
    }
    let Some(name) = session.name().cloned() else { return };
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.tick().await;
    let mut renewed_at = Instant::now();
    let mut taken_by = None;
    // Why the desktop is not handed over, until the server knows.
    let mut untold = None;
    loop {
        let told = tokio::select! {
            _ = look.tick() => None,
            refusal = refusals.recv() => refusal.map(|Refusal { reason, told }| {
                untold = Some(reason);
                told
            }),
        };
        let Ok(answer) = session.remote.lease(&name).await else { continue };
        let is_due = untold.is_some() || renewed_at.elapsed() >= RENEW_INTERVAL;
        let may_renew = taken_by.is_none()
            && is_renewable(&answer, &session.desktop.store().record(), &session.holder.key);
        let lease = if is_due && may_renew {
            renewed_at = Instant::now();
            let asked = session.renew_lease(now_ms(), untold.clone()).await;
            // Who waits for it does not wait for another attempt.
            let _ = told.map(|told| told.send(()));
            match asked {
                Ok(Asked::Held(answer)) => {
                    untold = None;
                    answer.lease
                }
                Ok(Asked::HeldElsewhere(lease)) => Some(*lease),
                Err(_) => continue,
            }
        } else {
            answer.lease
        };
        let Some(lease) = lease else { continue };
        if !lease::is_ours(&lease, &session.holder.key) {
            // From here on this machine only looks: what it writes goes to a fork, whether or not the other is done.
            untold = None;
            if taken_by.as_ref() != Some(&lease.key) {
                taken_by = Some(lease.key);
                let volume = session.desktop.store().volume();
                if let Some(record) = LeaseRecord::load(volume) {
                    record.taken(lease.machine.clone(), now_ms()).note(volume);
                }
                let _ = events.send(LeaseEvent::Taken { machine: lease.machine });
            }
            continue;
        }
        let machine = lease.wanted.filter(|_| lease.refusal.is_none()).map(|wanted| wanted.machine);
        let is_news = desk.wanted.send_if_modified(|known| {
            let is_news = *known != machine;
            known.clone_from(&machine);
            is_news
        });
        if let Some(machine) = machine.filter(|_| is_news)
            && desk.attending.load(Ordering::Relaxed) == 0
        {
            let _ = events.send(LeaseEvent::Wanted { machine });
        }
    }
}

/// Whether the lease is this machine's to renew: it has it, or nobody does and nobody has committed anything meanwhile. A
/// machine that slept through the end of its lease would else take the desktop back from under the one that went on.
fn is_renewable(answer: &LeaseAnswer, record: &DesktopRecord, key: &PublicKey) -> bool {
    match &answer.lease {
        Some(lease) => lease::is_ours(lease, key),
        None => record.is_ours(answer.head.id),
    }
}

#[cfg(test)]
mod tests {
    use chunk_format::{ManifestId, SecretKey};
    use serde_json::json;

    use super::*;

    fn key(seed: u8) -> PublicKey {
        SecretKey::from_bytes(&[seed; 32]).public()
    }

    fn version(text: &str) -> serde_json::Value {
        json!({"id": ManifestId::of(text.as_bytes()), "sequence": 1, "parent": null, "created_ms": 0, "committed_ms": 0,
               "machine": "laptop", "note": null, "key": key(1), "size_bytes": 0})
    }

    fn answer(holder: Option<u8>, head: &str) -> LeaseAnswer {
        let lease = holder.map(|holder| {
            json!({"key": key(holder), "machine": "laptop", "since_ms": 0, "renewed_ms": 0, "expires_ms": 0,
                   "version": version("v1"), "wanted": null, "refusal": null})
        });
        let answer = json!({"lease": lease, "head": version(head), "now_ms": 0, "lease_ms": 1,
                            "after_expiry": "read_only"});
        serde_json::from_value(answer).unwrap()
    }

    #[test]
    fn a_lease_is_not_taken_back_from_a_machine_that_went_on() {
        let id = |text: &str| ManifestId::of(text.as_bytes());
        let record = json!({"version": 1, "server": key(9), "owner": "alice", "desktop": "work", "id": id("v1"),
                            "head": id("v1"), "base": id("golden"), "publisher": key(9), "generations": [],
                            "next_generation": 1, "renewal": id("renewal"),
                            "pending": {"manifest": id("v2"), "through_generation": 1}});
        let record: DesktopRecord = serde_json::from_value(record).unwrap();
        let is_renewable = |holder, head: &str| is_renewable(&answer(holder, head), &record, &key(1));
        assert!(is_renewable(Some(1), "v1"));
        assert!(is_renewable(Some(1), "v7"), "asked or not, what is ours is ours");
        assert!(!is_renewable(Some(2), "v1"));
        // Run out, or given back by whoever took it.
        assert!(is_renewable(None, "v1"));
        assert!(is_renewable(None, "v2"), "its own version, about to be heard of");
        assert!(is_renewable(None, "renewal"));
        assert!(!is_renewable(None, "v7"));
    }
}
