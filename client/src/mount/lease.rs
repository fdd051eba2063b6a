//! Keeps a mounted desktop's lease, and tells when another machine asks for it or has taken it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::lease::{self, Asked};
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
    loop {
        let refusal = tokio::select! {
            _ = look.tick() => None,
            refusal = refusals.recv() => refusal,
        };
        let lease = if refusal.is_some() || renewed_at.elapsed() >= RENEW_INTERVAL {
            renewed_at = Instant::now();
            let (reason, told) = refusal.map(|Refusal { reason, told }| (reason, told)).unzip();
            let asked = session.renew_lease(now_ms(), reason).await;
            // Who waits for it does not wait for another attempt.
            let _ = told.map(|told| told.send(()));
            match asked {
                Ok(Asked::Held(answer)) => answer.lease,
                Ok(Asked::HeldElsewhere(lease)) => Some(*lease),
                Err(_) => continue,
            }
        } else {
            match session.remote.lease(&name).await {
                Ok(answer) => answer.lease,
                Err(_) => continue,
            }
        };
        let Some(lease) = lease else { continue };
        if !lease::is_ours(&lease, &session.holder.key) {
            if taken_by.as_ref() != Some(&lease.key) {
                taken_by = Some(lease.key);
                let _ = events.send(LeaseEvent::Taken { machine: lease.machine });
            }
            continue;
        }
        taken_by = None;
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
