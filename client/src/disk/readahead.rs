//! Tells which bytes a reader will probably want next.

use std::ops::Range;

/// Sequential streams followed at once: a guest reads several files side by side.
const STREAMS: usize = 4;
const FIRST_WINDOW_BYTES: u64 = 64 << 10;
const LARGEST_WINDOW_BYTES: u64 = 4 << 20;
/// A read this near to where a stream stands still belongs to it: queues deliver slightly out of order.
const TOLERANCE_BYTES: u64 = 256 << 10;

/// Follows the reads of one disk.
#[derive(Debug, Default)]
pub(super) struct Readahead {
    streams: [Stream; STREAMS],
    reads: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// Where the stream stands: the end of its furthest read.
    next: u64,
    /// How far beyond that is fetched.
    window: u64,
    /// How far has been asked for.
    asked: u64,
    /// Whether some read of it found nothing and expected nothing. While all it reads is here, there is no need to guess.
    missed: bool,
    last_used: u64,
}

impl Readahead {
    /// Notes a read, and whether it wanted what was neither here nor on its way; answers the bytes worth fetching ahead,
    /// beyond what was answered before.
    pub(super) fn observe(&mut self, read: Range<u64>, missed: bool) -> Option<Range<u64>> {
        self.reads += 1;
        let now = self.reads;
        let found = self.streams.iter_mut().find(|stream| {
            stream.last_used > 0
                && read.start <= stream.next + TOLERANCE_BYTES
                && read.end + TOLERANCE_BYTES >= stream.next
        });
        let Some(stream) = found else {
            let oldest = self.streams.iter_mut().min_by_key(|stream| stream.last_used)?;
            *oldest = Stream { next: read.end, window: 0, asked: read.end, missed, last_used: now };
            return None;
        };
        stream.last_used = now;
        stream.missed |= missed;
        if read.end <= stream.next {
            return None;
        }
        stream.next = read.end;
        stream.window = (stream.window * 2).clamp(FIRST_WINDOW_BYTES, LARGEST_WINDOW_BYTES);
        if !stream.missed {
            return None;
        }
        stream.asked = stream.asked.max(read.end);
        let wanted = stream.next + stream.window;
        // In steps of half a window, so that requests are long.
        if wanted < stream.asked + stream.window / 2 {
            return None;
        }
        let ahead = stream.asked..wanted;
        stream.asked = wanted;
        Some(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = 128 << 10;

    #[test]
    fn a_sequential_reader_gets_a_growing_window_without_gaps() {
        let mut readahead = Readahead::default();
        assert_eq!(readahead.observe(0..STEP, true), None, "one read is no pattern");
        let mut end = STEP;
        let mut largest = 0;
        for step in 1..200 {
            let read = step * STEP..(step + 1) * STEP;
            if let Some(ahead) = readahead.observe(read.clone(), false) {
                assert!(ahead.start <= end.max(read.end), "a gap before {ahead:?}");
                end = ahead.end;
                largest = largest.max(ahead.end - read.end);
            }
        }
        assert_eq!(largest, LARGEST_WINDOW_BYTES);
    }

    #[test]
    fn a_random_reader_gets_nothing() {
        let mut readahead = Readahead::default();
        let mut at: u64 = 1;
        for _ in 0..1000 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let offset = at >> 24;
            assert_eq!(readahead.observe(offset..offset + 4096, true), None);
        }
    }

    #[test]
    fn who_finds_everything_here_gets_nothing_until_something_lacks() {
        let mut readahead = Readahead::default();
        for step in 0..20 {
            assert_eq!(readahead.observe(step * STEP..(step + 1) * STEP, false), None);
        }
        let ahead = readahead.observe(20 * STEP..21 * STEP, true).unwrap();
        assert_eq!(ahead.start, 21 * STEP, "what was passed is not asked for");
        assert_eq!(ahead.end - ahead.start, LARGEST_WINDOW_BYTES);
    }

    #[test]
    fn an_out_of_order_read_is_forgiven() {
        let mut readahead = Readahead::default();
        for step in [0, 1, 2, 4, 3] {
            readahead.observe(step * STEP..(step + 1) * STEP, true);
        }
        let ahead = readahead.observe(5 * STEP..6 * STEP, false);
        assert!(ahead.is_none_or(|ahead| ahead.end > 6 * STEP));
        assert!(readahead.streams.iter().any(|stream| stream.window >= FIRST_WINDOW_BYTES * 4));
    }

    #[test]
    fn several_streams_are_followed_side_by_side() {
        let mut readahead = Readahead::default();
        let mut answered = [false; 3];
        for step in 0..10 {
            for (file, answered) in (0u64..).zip(&mut answered) {
                let start = file * (1 << 30) + step * STEP;
                *answered |= readahead.observe(start..start + STEP, step == 0).is_some();
            }
        }
        assert_eq!(answered, [true; 3]);
    }
}
