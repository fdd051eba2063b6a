//! When bytes arrive: the arithmetic of a link, without sockets.

use std::time::Duration;

use tokio::time::Instant;

/// What one direction of a link does to bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Direction {
    /// Bits a second, shared by all connections; `None` is as fast as the machine.
    pub rate_bps: Option<u64>,
    /// Time each byte is under way, after it was sent.
    pub delay: Duration,
}

/// What a link does to bytes in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Shape {
    /// From the client to the server.
    pub up: Direction,
    /// From the server to the client.
    pub down: Direction,
}

impl Shape {
    /// Describes a link with the same rate both ways and half the round trip each way.
    pub fn symmetric(rate_bps: u64, round_trip: Duration) -> Self {
        let direction = Direction { rate_bps: Some(rate_bps), delay: round_trip / 2 };
        Self { up: direction, down: direction }
    }

    /// Returns the time from a client's word to the server's answer, both short.
    pub(super) fn round_trip(&self) -> Duration {
        self.up.delay + self.down.delay
    }
}

/// One direction of a link as a queue before a sender of fixed rate, and a distance behind it.
///
/// Pieces are sent one after the other, whichever connection they belong to; each is then under way for the delay while
/// the next ones are sent. There is no loss, and no slow start.
#[derive(Debug)]
pub(super) struct Wire {
    direction: Direction,
    free_at: Instant,
}

/// When a piece leaves the sender and when it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Passage {
    pub(super) sent_at: Instant,
    pub(super) arrives_at: Instant,
}

impl Wire {
    pub(super) fn new(direction: Direction, now: Instant) -> Self {
        Self { direction, free_at: now }
    }

    pub(super) fn direction(&self) -> Direction {
        self.direction
    }

    /// Changes the direction for pieces to come.
    pub(super) fn set_direction(&mut self, direction: Direction) {
        self.direction = direction;
    }

    /// Takes the next place in the queue for `len` bytes.
    pub(super) fn carry(&mut self, now: Instant, len: usize) -> Passage {
        let sent_at = self.free_at.max(now) + self.sending_time(len);
        self.free_at = sent_at;
        Passage { sent_at, arrives_at: sent_at + self.direction.delay }
    }

    fn sending_time(&self, len: usize) -> Duration {
        let Some(rate_bps) = self.direction.rate_bps else {
            return Duration::ZERO;
        };
        let nanoseconds = len as u128 * 8 * 1_000_000_000 / u128::from(rate_bps.max(1));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire(rate_bps: u64, delay_ms: u64, now: Instant) -> Wire {
        Wire::new(Direction { rate_bps: Some(rate_bps), delay: Duration::from_millis(delay_ms) }, now)
    }

    proptest! {
        /// However a sender cuts its bytes and whenever it sends: the rate is never exceeded, a busy wire never idles,
        /// order is kept, and every byte is under way for exactly the delay.
        #[test]
        fn rate_and_delay_are_exact(
            rate_bps in 100_000_u64..10_000_000_000,
            delay_ms in 0_u64..500,
            pieces in prop::collection::vec((1_usize..65_536, 0_u64..20_000), 1..100),
        ) {
            let start = Instant::now();
            let mut wire = wire(rate_bps, delay_ms, start);
            let mut now = start;
            let mut busy_since = start;
            let mut busy_bytes = 0_u64;
            let mut last = start;
            for (len, pause_us) in pieces {
                now += Duration::from_micros(pause_us);
                if now > last {
                    (busy_since, busy_bytes) = (now, 0);
                }
                let passage = wire.carry(now, len);
                busy_bytes += len as u64;
                prop_assert_eq!(passage.arrives_at - passage.sent_at, Duration::from_millis(delay_ms));
                prop_assert!(passage.sent_at >= last);
                let exact = busy_bytes as f64 * 8.0 / rate_bps as f64;
                let taken = (passage.sent_at - busy_since).as_secs_f64();
                // Each piece is rounded down to the nanosecond.
                prop_assert!((taken - exact).abs() < 1e-7 + 100.0 * 1e-9, "{} bytes took {}, not {}", busy_bytes, taken, exact);
                last = passage.sent_at;
            }
        }
    }

    #[test]
    fn connections_share_one_rate() {
        let now = Instant::now();
        let mut wire = wire(8_000, 10, now);
        // 1,000 bytes a second: two pieces handed over at once leave one after the other.
        let first = wire.carry(now, 500);
        let second = wire.carry(now, 500);
        assert_eq!(first.sent_at - now, Duration::from_millis(500));
        assert_eq!(second.sent_at - now, Duration::from_millis(1000));
        assert_eq!(second.arrives_at - now, Duration::from_millis(1010));
    }

    #[test]
    fn without_a_rate_only_the_delay_counts() {
        let now = Instant::now();
        let mut wire = Wire::new(Direction { rate_bps: None, delay: Duration::from_millis(7) }, now);
        let passage = wire.carry(now, usize::MAX);
        assert_eq!((passage.sent_at, passage.arrives_at), (now, now + Duration::from_millis(7)));
    }
}
