//! Tells whoever runs a guest on the disks when they are about to be frozen.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};

use crate::control::{Connection, Reply, Request};
use crate::sync::guest::{Guest, Still};

/// How long a guest may take to hold still: longer than its agent is given, so that an answer is heard.
const HOLD_TIMEOUT: Duration = Duration::from_secs(5);

/// Who attends to freezes, and what it was like.
#[derive(Debug, Default)]
pub(super) struct FreezeDesk {
    attendant: Mutex<Option<mpsc::Sender<Ask>>>,
    /// How long the guest took last time, milliseconds; 0 before.
    took_ms: AtomicU64,
}

/// A wish that the guest holds still; who attends to it answers.
type Ask = oneshot::Sender<Option<Still>>;

impl FreezeDesk {
    /// How long the guest took to hold still last time, or to say that it does not; its programs could write nothing meanwhile.
    pub(super) fn last_took(&self) -> Duration {
        Duration::from_millis(self.took_ms.load(Ordering::Relaxed))
    }

    /// Serves a connection that attends to freezes, until it ends.
    pub(super) async fn attend(&self, connection: &mut Connection) {
        let (sender, mut asks) = mpsc::channel(1);
        *self.attendant() = Some(sender.clone());
        loop {
            let ask = tokio::select! {
                Some(ask) = asks.recv() => ask,
                // Whatever it says, it has ended.
                _ = connection.receive::<Request>() => break,
            };
            if self.ask(connection, ask).await.is_none() {
                break;
            }
        }
        let mut attendant = self.attendant();
        if attendant.as_ref().is_some_and(|attendant| attendant.same_channel(&sender)) {
            *attendant = None;
        }
    }

    /// Has the guest hold still for as long as who asked wants; none when the connection is of no use any more.
    async fn ask(&self, connection: &mut Connection, ask: Ask) -> Option<()> {
        connection.send(&Reply::HoldStill).await.ok()?;
        let Ok(Some(Request::Still { held, took_ms })) = connection.receive::<Request>().await else {
            return None;
        };
        // One that was not done in time has held its programs up as well.
        self.took_ms.store(took_ms, Ordering::Relaxed);
        if held {
            let (still, dropped) = Still::new();
            // Who asked may have given up: then it is dropped at once.
            drop(ask.send(Some(still)));
            let _ = dropped.await;
        } else {
            drop(ask.send(None));
        }
        connection.send(&Reply::GoOn).await.ok()
    }

    async fn hold_still(&self) -> Option<Still> {
        let attendant = self.attendant().clone()?;
        let (ask, answer) = oneshot::channel();
        let asked = async {
            attendant.send(ask).await.ok()?;
            answer.await.ok()?
        };
        tokio::time::timeout(HOLD_TIMEOUT, asked).await.unwrap_or_else(|_| {
            let took_ms = u64::try_from(HOLD_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
            self.took_ms.store(took_ms, Ordering::Relaxed);
            None
        })
    }

    fn attendant(&self) -> MutexGuard<'_, Option<mpsc::Sender<Ask>>> {
        self.attendant.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guest for FreezeDesk {
    fn hold_still(&self) -> BoxFuture<'_, Option<Still>> {
        Box::pin(FreezeDesk::hold_still(self))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::net::UnixStream;

    use super::*;

    /// A desk that is attended to over the connection that is returned.
    async fn attended() -> (Arc<FreezeDesk>, Connection) {
        let desk = Arc::new(FreezeDesk::default());
        let (ours, theirs) = UnixStream::pair().unwrap();
        let serving = Arc::clone(&desk);
        tokio::spawn(async move { serving.attend(&mut Connection::new(ours)).await });
        while desk.attendant().is_none() {
            tokio::task::yield_now().await;
        }
        (desk, Connection::new(theirs))
    }

    async fn hears(guest: &mut Connection) -> Reply {
        guest.receive::<Reply>().await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn a_guest_holds_still_until_it_may_go_on() {
        let (desk, mut guest) = attended().await;
        for round in 0..3 {
            let asking = Arc::clone(&desk);
            let asked = tokio::spawn(async move { asking.hold_still().await });
            assert!(matches!(hears(&mut guest).await, Reply::HoldStill));
            guest.send(&Request::Still { held: round != 1, took_ms: 7 + round }).await.unwrap();
            let still = asked.await.unwrap();
            assert_eq!(still.is_some(), round != 1);
            drop(still);
            assert!(matches!(hears(&mut guest).await, Reply::GoOn));
        }
        assert_eq!(desk.last_took(), Duration::from_millis(9));
        drop(guest);
        while desk.attendant().is_some() {
            tokio::task::yield_now().await;
        }
        assert!(desk.hold_still().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_does_not_answer_is_not_waited_for_and_one_that_answers_late_goes_on() {
        let (desk, mut guest) = attended().await;
        assert!(desk.hold_still().await.is_none());
        assert!(matches!(hears(&mut guest).await, Reply::HoldStill));
        guest.send(&Request::Still { held: true, took_ms: 6000 }).await.unwrap();
        assert!(matches!(hears(&mut guest).await, Reply::GoOn));
    }
}
