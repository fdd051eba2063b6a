//! Syncs a mounted desktop by itself, every few minutes, without anybody noticing.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::freezes::FreezeDesk;
use crate::hint::explain;
use crate::session::Session;
use crate::sync::guest::Guest;
use crate::sync::{SyncReport, Syncer};
use crate::upload::{Pace, UploadProgress};

/// How often a desktop is synced by itself, when neither a person nor the operator says otherwise.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(600);

/// A guest that took longer to hold still has many writes to get out first, and its programs wait for all of them. It is
/// not asked again for a while: its file systems replay their journals instead.
const LONGEST_STILL: Duration = Duration::from_millis(200);
/// After so many syncs without.
const SYNCS_WITHOUT: u32 = 6;

/// How a desktop is synced by itself.
#[derive(Clone, Copy, Debug)]
pub struct Trickle {
    /// How often; none for never.
    pub every: Option<Duration>,
    /// The most that is sent, bytes a second; none for half of what the link carries.
    pub limit_bytes_per_s: Option<NonZeroU64>,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum TrickleEvent {
    /// A version was committed.
    Synced(Box<SyncReport>),
    /// The first failure after a success; it is tried again, and what was written is safe here.
    NotSynced {
        /// Why.
        reason: String,
    },
}

/// Syncs a session every few minutes, for as long as it is mounted.
pub(super) async fn trickle(
    session: Arc<Session>,
    syncer: Syncer,
    freezes: Arc<FreezeDesk>,
    pace: Arc<Pace>,
    every: Duration,
    events: mpsc::UnboundedSender<TrickleEvent>,
) {
    if session.offline || session.desktop.is_read_only() {
        return;
    }
    let Some(name) = session.name().cloned() else { return };
    let mut ticks = tokio::time::interval_at(Instant::now() + every, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut is_failing = false;
    let mut without = 0;
    loop {
        ticks.tick().await;
        if !session.desktop.has_work() {
            continue;
        }
        // Without a server nothing is frozen: a frozen generation costs space for as long as it is not committed. One that does
        // not know the desktop any more takes the work as a fork.
        if let Err(error) = session.remote.desktop(&name).await
            && error.code() != Some("not_found")
        {
            tracing::info!(%error, "the desktop is not synced by itself: the server cannot be asked");
            // That the network is gone is said elsewhere, and ends by itself.
            if !error.is_transient() && !std::mem::replace(&mut is_failing, true) {
                let _ = events.send(TrickleEvent::NotSynced { reason: explain(&error) });
            }
            continue;
        }
        let asks_guest = without == 0;
        let syncer = Syncer {
            threads: 1,
            progress: Arc::new(UploadProgress::default()),
            guest: asks_guest.then(|| Arc::clone(&freezes) as Arc<dyn Guest>),
            pace: Some(Arc::clone(&pace)),
            ..syncer.clone()
        };
        match syncer.sync(&session.desktop, None).await {
            Ok(report) => {
                is_failing = false;
                without = match asks_guest {
                    true if freezes.last_took() > LONGEST_STILL => SYNCS_WITHOUT,
                    true => 0,
                    false => without - 1,
                };
                let _ = events.send(TrickleEvent::Synced(Box::new(report)));
            }
            Err(error) => {
                tracing::info!(%error, "the desktop was not synced by itself");
                if !std::mem::replace(&mut is_failing, true) {
                    let _ = events.send(TrickleEvent::NotSynced { reason: explain(&error) });
                }
            }
        }
    }
}
