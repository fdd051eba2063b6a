//! How much may be under way at once for what nobody waits for: enough to keep the link full, little enough that a
//! request somebody waits for does not queue behind it.
//!
//! The window is the product of what the link carries and how far it is, both measured, as in BBR (Cardwell et al.,
//! "BBR: Congestion-Based Congestion Control", 2016): the highest rate of delivery and the shortest time to an answer
//! seen of late, with a little more for the queue. It doubles with each round trip until the rate stops growing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Class;

/// The window before anything was measured: a desktop is just starting, and nobody waits for anything else yet.
const FIRST_WINDOW_BYTES: u64 = 512 << 10;
/// The least window: a request or two on any link.
const LEAST_WINDOW_BYTES: u64 = 128 << 10;
const LARGEST_WINDOW_BYTES: u64 = 32 << 20;
/// Share of the window in one request: several are under way, so that the link never waits for the next.
const REQUESTS_IN_WINDOW: u64 = 4;
const SHORTEST_REQUEST_BYTES: u64 = 32 << 10;
const LONGEST_REQUEST_BYTES: u64 = 16 << 20;
/// The window in products of rate and distance, once the rate has stopped growing: half a round trip of queue.
const STEADY_GAIN: f64 = 1.5;
/// And while it grows.
const GROWING_GAIN: f64 = 2.9;
/// The rate has stopped growing when as many round trips did not raise it by a quarter.
const GROWTH: f64 = 1.25;
const ROUNDS_WITHOUT_GROWTH: u32 = 3;
/// Beyond the product: what a sender may have ready while a timer of a few milliseconds passes.
const SLACK: Duration = Duration::from_millis(8);
/// How long a measured rate or distance counts. What is measured is kept in two halves.
const RATE_MEMORY: Duration = Duration::from_secs(10);
const DISTANCE_MEMORY: Duration = Duration::from_secs(60);
/// How long the background stays off the link after somebody waited for something.
const DEMAND_REST: Duration = Duration::from_millis(200);
/// An answer that takes this many times as long as it should tells of others on the link; the background makes room.
const CROWDED: u32 = 3;
const CROWDED_REST: Duration = Duration::from_millis(500);

/// What a source's link is found to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkEstimate {
    /// Bytes it carries in a second; 0 before anything was measured.
    pub rate_bytes_per_s: f64,
    /// The shortest time to an answer.
    pub distance: Duration,
    /// Bytes that may be under way.
    pub window_bytes: u64,
}

/// Admits requests to the link.
pub(super) struct Pace {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    window_bytes: u64,
    in_flight_bytes: u64,
    /// Askers that wait, by class.
    waiting: [u32; Class::ALL.len()],
    demand: u32,
    /// When the background may go on after others.
    background_from: Instant,
    /// When it may by its own limit.
    limited_until: Instant,
    rate: Best<f64>,
    distance: Best<f64>,
    delivered_bytes: u64,
    growing: bool,
    round_ends_at_bytes: u64,
    round_rate: f64,
    rounds_without_growth: u32,
    limit_bytes_per_s: Option<u64>,
    paused: bool,
}

/// The best value seen within the last one to two spans.
struct Best<T> {
    better: fn(T, T) -> T,
    span: Duration,
    since: Instant,
    now: Option<T>,
    before: Option<T>,
}

impl<T: Copy> Best<T> {
    fn new(span: Duration, better: fn(T, T) -> T) -> Self {
        Self { better, span, since: Instant::now(), now: None, before: None }
    }

    fn note(&mut self, value: T) {
        if self.since.elapsed() >= self.span {
            self.before = self.now.take();
            self.since = Instant::now();
        }
        self.now = Some(self.now.map_or(value, |now| (self.better)(now, value)));
    }

    fn get(&self) -> Option<T> {
        match (self.now, self.before) {
            (Some(now), Some(before)) => Some((self.better)(now, before)),
            (now, before) => now.or(before),
        }
    }
}

/// A request under way. What it was admitted for counts until it arrived, or until this is dropped.
pub(super) struct Admitted {
    pace: Arc<Pace>,
    class: Class,
    left_bytes: u64,
    /// When it was sent, and what had been delivered by then.
    sent: Instant,
    delivered_bytes: u64,
    was_answered: bool,
}

impl Pace {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                window_bytes: FIRST_WINDOW_BYTES,
                in_flight_bytes: 0,
                waiting: [0; Class::ALL.len()],
                demand: 0,
                background_from: Instant::now(),
                limited_until: Instant::now(),
                rate: Best::new(RATE_MEMORY / 2, f64::max),
                distance: Best::new(DISTANCE_MEMORY / 2, f64::min),
                delivered_bytes: 0,
                growing: true,
                round_ends_at_bytes: 0,
                round_rate: 0.0,
                rounds_without_growth: 0,
                limit_bytes_per_s: None,
                paused: false,
            }),
            changed: Notify::new(),
        }
    }

    /// What the link is found to be.
    pub(super) fn estimate(&self) -> LinkEstimate {
        let state = self.lock();
        LinkEstimate {
            rate_bytes_per_s: state.rate.get().unwrap_or(0.0),
            distance: Duration::from_secs_f64(state.distance.get().unwrap_or(0.0)),
            window_bytes: state.window_bytes,
        }
    }

    /// How long a request should be at present, bytes.
    pub(super) fn request_bytes(&self) -> u64 {
        let window = self.lock().window_bytes;
        (window / REQUESTS_IN_WINDOW).clamp(SHORTEST_REQUEST_BYTES, LONGEST_REQUEST_BYTES)
    }

    /// Bounds what the background may take of the link, bytes a second; `None` lifts the bound.
    pub(super) fn limit_background(&self, bytes_per_s: Option<u64>) {
        let mut state = self.lock();
        state.limit_bytes_per_s = bytes_per_s;
        // What was asked for under another limit is no debt under this one.
        state.limited_until = Instant::now();
        drop(state);
        self.changed.notify_waiters();
    }

    /// Stops the background, or lets it go on.
    pub(super) fn pause_background(&self, paused: bool) {
        self.lock().paused = paused;
        self.changed.notify_waiters();
    }

    /// Whether the background was told to stop.
    pub(super) fn is_background_paused(&self) -> bool {
        self.lock().paused
    }

    /// Forgets what was measured: another source is asked now.
    pub(super) fn begin_anew(&self) {
        let mut state = self.lock();
        state.rate = Best::new(RATE_MEMORY / 2, f64::max);
        state.distance = Best::new(DISTANCE_MEMORY / 2, f64::min);
        state.window_bytes = FIRST_WINDOW_BYTES;
        (state.growing, state.rounds_without_growth, state.round_rate) = (true, 0, 0.0);
    }

    /// Waits until a request of a class may be sent. Somebody's demand is never made to wait.
    pub(super) async fn admit(self: &Arc<Self>, class: Class, bytes: u64) -> Admitted {
        if class != Class::Waiting {
            let _asking = Asking::new(self, class);
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                let obstacle = self.lock().obstacle(class, bytes);
                match obstacle {
                    None => break,
                    Some(Obstacle::Until(time)) => {
                        tokio::select! {
                            () = changed => {}
                            () = tokio::time::sleep_until(time) => {}
                        }
                    }
                    Some(Obstacle::Others) => changed.await,
                }
            }
        }
        let mut state = self.lock();
        state.in_flight_bytes += bytes;
        state.demand += u32::from(class == Class::Waiting);
        if class == Class::Background {
            // The next one no sooner than this one's share of the time.
            state.limited_until = state.limited_until.max(Instant::now()) + state.limited_time(bytes);
        }
        Admitted {
            pace: Arc::clone(self),
            class,
            left_bytes: bytes,
            sent: Instant::now(),
            delivered_bytes: state.delivered_bytes,
            was_answered: false,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Obstacle {
    /// The window is full, somebody more urgent asks, or it is paused: another's step ends it.
    Others,
    Until(Instant),
}

/// An asker in the queue of its class.
struct Asking<'a> {
    pace: &'a Pace,
    class: Class,
}

impl<'a> Asking<'a> {
    fn new(pace: &'a Pace, class: Class) -> Self {
        pace.lock().waiting[class as usize] += 1;
        Self { pace, class }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.pace.lock().waiting[self.class as usize] -= 1;
        self.pace.changed.notify_waiters();
    }
}

impl State {
    /// How long the background takes for so much within its limit.
    fn limited_time(&self, bytes: u64) -> Duration {
        self.limit_bytes_per_s
            .map_or(Duration::ZERO, |limit| Duration::from_secs_f64(bytes as f64 / limit.max(1) as f64))
    }

    fn obstacle(&self, class: Class, bytes: u64) -> Option<Obstacle> {
        let is_outranked = self.waiting.iter().take(class as usize).any(|waiting| *waiting > 0);
        let is_full = self.in_flight_bytes > 0 && self.in_flight_bytes + bytes > self.window_bytes;
        if is_outranked || is_full {
            return Some(Obstacle::Others);
        }
        if class == Class::Background {
            if self.paused || self.demand > 0 {
                return Some(Obstacle::Others);
            }
            let from = self.background_from.max(self.limited_until);
            if from > Instant::now() {
                return Some(Obstacle::Until(from));
            }
        }
        None
    }

    fn deliver(&mut self, bytes: u64, sent: Instant, delivered_then: u64) {
        self.delivered_bytes += bytes;
        let elapsed = sent.elapsed().as_secs_f64();
        if elapsed > 0.0 {
            self.rate.note((self.delivered_bytes - delivered_then) as f64 / elapsed);
        }
        if self.delivered_bytes >= self.round_ends_at_bytes {
            self.end_round();
        }
    }

    /// A round trip's worth of bytes has arrived.
    fn end_round(&mut self) {
        self.round_ends_at_bytes = self.delivered_bytes + self.in_flight_bytes.max(SHORTEST_REQUEST_BYTES);
        let rate = self.rate.get().unwrap_or(0.0);
        if self.growing {
            if rate >= self.round_rate * GROWTH {
                (self.round_rate, self.rounds_without_growth) = (rate, 0);
            } else {
                self.rounds_without_growth += 1;
                self.growing = self.rounds_without_growth < ROUNDS_WITHOUT_GROWTH;
            }
        }
        let gain = if self.growing { GROWING_GAIN } else { STEADY_GAIN };
        let distance = self.distance.get().unwrap_or(0.0);
        let window = rate * (distance * gain + SLACK.as_secs_f64());
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, is never negative, and is bounded next"
        )]
        let window = window as u64;
        self.window_bytes = window.clamp(LEAST_WINDOW_BYTES, LARGEST_WINDOW_BYTES);
    }
}

impl Admitted {
    /// Corrects for how many bytes the request was made.
    pub(super) fn resize(&mut self, bytes: u64) {
        let mut state = self.pace.lock();
        state.in_flight_bytes = state.in_flight_bytes - self.left_bytes + bytes;
        if self.class == Class::Background {
            let begin = state.limited_until.checked_sub(state.limited_time(self.left_bytes));
            state.limited_until = begin.unwrap_or_else(Instant::now) + state.limited_time(bytes);
        }
        self.left_bytes = bytes;
    }

    /// Notes that the request is being sent, for the first time or again.
    pub(super) fn sent(&mut self) {
        self.sent = Instant::now();
        self.was_answered = false;
        self.delivered_bytes = self.pace.lock().delivered_bytes;
    }

    /// Notes that the answer has begun.
    pub(super) fn answered(&mut self) {
        if std::mem::replace(&mut self.was_answered, true) {
            return;
        }
        let took = self.sent.elapsed();
        let mut state = self.pace.lock();
        state.distance.note(took.as_secs_f64());
        let rate = state.rate.get().unwrap_or(0.0).max(1.0);
        let queue = Duration::from_secs_f64(state.window_bytes as f64 / rate);
        if self.class == Class::Background && took > queue.max(SLACK) * CROWDED {
            state.background_from = state.background_from.max(Instant::now() + CROWDED_REST);
        }
    }

    /// Notes bytes that arrived.
    pub(super) fn arrived(&mut self, bytes: u64) {
        let landed = bytes.min(self.left_bytes);
        self.left_bytes -= landed;
        let mut state = self.pace.lock();
        state.in_flight_bytes -= landed;
        state.deliver(bytes, self.sent, self.delivered_bytes);
        drop(state);
        self.pace.changed.notify_waiters();
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut state = self.pace.lock();
        state.in_flight_bytes -= self.left_bytes;
        if self.class == Class::Waiting {
            state.demand -= 1;
            let rest = Instant::now() + DEMAND_REST;
            state.background_from = state.background_from.max(rest);
        }
        drop(state);
        self.pace.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A link that carries `rate` bytes a second and is `distance` away, as a queue would show it.
    struct Line {
        rate: f64,
        distance: Duration,
        free_at: Instant,
    }

    impl Line {
        async fn carry(&mut self, bytes: u64) -> (Instant, Instant) {
            let began = (Instant::now() + self.distance).max(self.free_at);
            self.free_at = began + Duration::from_secs_f64(bytes as f64 / self.rate);
            (began, self.free_at)
        }
    }

    const PIECE_BYTES: u64 = 16 << 10;

    /// Downloads for a while; answers the bytes that came in the last half of it, and the longest wait for an answer there.
    async fn download(
        pace: &Arc<Pace>,
        rate: f64,
        distance: Duration,
        span: Duration,
    ) -> Arc<Mutex<(u64, Duration)>> {
        let line = Arc::new(tokio::sync::Mutex::new(Line { rate, distance, free_at: Instant::now() }));
        let (begin, counted) = (Instant::now(), Arc::new(Mutex::new((0, Duration::ZERO))));
        while begin.elapsed() < span {
            let bytes = pace.request_bytes();
            let mut admitted = pace.admit(Class::Profile, bytes).await;
            let (line, counted) = (Arc::clone(&line), Arc::clone(&counted));
            tokio::spawn(async move {
                admitted.sent();
                let sent = Instant::now();
                let (began, ended) = line.lock().await.carry(bytes).await;
                tokio::time::sleep_until(began).await;
                admitted.answered();
                // As it comes from a socket: in pieces.
                let pieces = bytes.div_ceil(PIECE_BYTES);
                for piece in 1..=pieces {
                    let at = (ended - began).mul_f64(piece as f64 / pieces as f64);
                    tokio::time::sleep_until(began + at).await;
                    admitted.arrived(PIECE_BYTES.min(bytes - (piece - 1) * PIECE_BYTES));
                }
                if begin.elapsed() > span / 2 {
                    let mut counted = counted.lock().unwrap();
                    counted.0 += bytes;
                    counted.1 = counted.1.max(began - sent);
                }
            });
        }
        counted
    }

    #[tokio::test(start_paused = true)]
    async fn links_of_all_kinds_are_filled_and_not_crowded() {
        for (mbit, distance_ms) in [(25.0, 40), (1000.0, 2), (100.0, 150), (2.0, 600), (8.0, 20)] {
            let pace = Arc::new(Pace::new());
            let (rate, distance) = (mbit * 125_000.0, Duration::from_millis(distance_ms));
            let span = Duration::from_secs(40);
            let (bytes, wait) = *download(&pace, rate, distance, span).await.lock().unwrap();
            let share = bytes as f64 / (rate * span.as_secs_f64() / 2.0);
            assert!(share > 0.95, "{mbit} Mbit/s {distance_ms} ms: {share} of the link");
            // The least window may be more than a short, slow link needs.
            let queue = Duration::from_secs_f64(LEAST_WINDOW_BYTES as f64 / rate).max(distance);
            assert!(wait < distance + queue + SLACK * 2, "{mbit} Mbit/s {distance_ms} ms: {wait:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_urgent_go_first_and_demand_waits_for_nobody() {
        let pace = Arc::new(Pace::new());
        let full = pace.admit(Class::Profile, FIRST_WINDOW_BYTES).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let ask = |class| {
            let (pace, order) = (Arc::clone(&pace), Arc::clone(&order));
            tokio::spawn(async move {
                let _admitted = pace.admit(class, FIRST_WINDOW_BYTES).await;
                order.lock().unwrap().push(class);
            })
        };
        let mut tasks = vec![ask(Class::Background), ask(Class::Profile)];
        tokio::time::sleep(Duration::from_millis(1)).await;
        tasks.push(ask(Class::Readahead));
        tokio::time::sleep(Duration::from_millis(1)).await;
        drop(pace.admit(Class::Waiting, 1 << 20).await);
        drop(full);
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(*order.lock().unwrap(), [Class::Readahead, Class::Profile, Class::Background]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_background_keeps_to_its_limit_and_stops_when_told() {
        let pace = Arc::new(Pace::new());
        pace.limit_background(Some(1 << 20));
        let begin = Instant::now();
        for _ in 0..16 {
            drop(pace.admit(Class::Background, 1 << 19).await);
        }
        let took = begin.elapsed().as_secs_f64();
        assert!((7.0..8.5).contains(&took), "{took}");
        pace.pause_background(true);
        let asked = tokio::time::timeout(Duration::from_secs(60), pace.admit(Class::Background, 1));
        assert!(asked.await.is_err());
        pace.pause_background(false);
        drop(pace.admit(Class::Background, 1).await);
    }

    #[tokio::test(start_paused = true)]
    async fn the_background_is_charged_for_what_it_takes() {
        let pace = Arc::new(Pace::new());
        pace.limit_background(Some(1 << 20));
        let begin = Instant::now();
        for _ in 0..16 {
            pace.admit(Class::Background, 1 << 20).await.resize(1 << 16);
        }
        let took = begin.elapsed().as_secs_f64();
        assert!((0.9..1.1).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn another_limit_holds_from_now_on() {
        let pace = Arc::new(Pace::new());
        for limit in [None, Some(1 << 20)] {
            pace.limit_background(Some(1));
            drop(pace.admit(Class::Background, 1 << 20).await);
            pace.limit_background(limit);
            let begin = Instant::now();
            drop(pace.admit(Class::Background, 1).await);
            assert_eq!(begin.elapsed(), Duration::ZERO, "{limit:?}");
        }
    }
}
