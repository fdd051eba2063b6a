//! How an upload that nobody waits for leaves room for others on the link.

use std::num::NonZeroU64;
use std::time::Duration;

use tokio::sync::watch;

/// Lets an upload rest between its packs: it takes at most half of the link's time, and at most a given rate. Who waits for
/// its end has it hurry.
#[derive(Debug)]
pub struct Pace {
    limit_bytes_per_s: Option<NonZeroU64>,
    hurrying: watch::Sender<usize>,
}

/// While this lives, nobody rests.
#[derive(Debug)]
pub struct Hurry<'a>(&'a Pace);

impl Pace {
    /// A pace of at most so many bytes a second; without a limit, half of what the link carries.
    pub fn new(limit_bytes_per_s: Option<NonZeroU64>) -> Self {
        Self { limit_bytes_per_s, hurrying: watch::channel(0).0 }
    }

    /// Has uploads at this pace go as fast as they can.
    pub fn hurry(&self) -> Hurry<'_> {
        self.hurrying.send_modify(|count| *count += 1);
        Hurry(self)
    }

    /// Rests after a pack that took so long.
    pub(super) async fn rest(&self, bytes: usize, took: Duration) {
        let at_limit = self.limit_bytes_per_s.map_or(Duration::ZERO, |limit| {
            let nanos = bytes as u128 * 1_000_000_000 / u128::from(limit.get());
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        });
        let rest = took.max(at_limit.saturating_sub(took));
        let mut hurrying = self.hurrying.subscribe();
        let hurried = hurrying.wait_for(|count| *count > 0);
        // Either way the rest is over.
        let _ = tokio::time::timeout(rest, hurried).await;
    }
}

impl Drop for Hurry<'_> {
    fn drop(&mut self) {
        self.0.hurrying.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    async fn rested(pace: &Pace, bytes: usize, took_ms: u64) -> u128 {
        let begun = Instant::now();
        pace.rest(bytes, Duration::from_millis(took_ms)).await;
        begun.elapsed().as_millis()
    }

    #[tokio::test(start_paused = true)]
    async fn it_takes_half_of_the_link_and_no_more_than_its_limit() {
        let half = Pace::new(None);
        assert!((300..=301).contains(&rested(&half, 1 << 20, 300).await));
        let limited = Pace::new(NonZeroU64::new(100_000));
        // A second's worth, in 0.3 s; and in 0.8 s, of which half would be less.
        assert!((700..=701).contains(&rested(&limited, 100_000, 300).await));
        assert!((800..=801).contains(&rested(&limited, 100_000, 800).await));
        let hurry = limited.hurry();
        assert_eq!(rested(&limited, 100_000, 300).await, 0);
        drop(hurry);
        let hurried_after = tokio::join!(rested(&limited, 100_000, 300), async {
            tokio::time::sleep(Duration::from_millis(40)).await;
            limited.hurry()
        });
        assert!((40..=41).contains(&hurried_after.0), "{hurried_after:?}");
    }
}
