//! Which chunks a reader touches, and in which order: what a boot profile is made of.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chunk_format::ChunkIndex;

/// Chunks of a disk's base in the order in which they were first read.
#[derive(Debug, Default)]
pub struct Touches {
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    seen: HashSet<ChunkIndex>,
    order: Vec<ChunkIndex>,
    last_new: Option<Instant>,
}

impl Touches {
    /// Notes that a chunk is read.
    pub(super) fn note(&self, chunk: ChunkIndex) {
        let mut noted = self.lock();
        if noted.seen.insert(chunk) {
            noted.order.push(chunk);
            noted.last_new = Some(Instant::now());
        }
    }

    /// The chunks read so far, in the order of first touch.
    pub fn order(&self) -> Vec<ChunkIndex> {
        self.lock().order.clone()
    }

    /// How many different chunks were read.
    pub fn count(&self) -> usize {
        self.lock().order.len()
    }

    /// How long ago a chunk was read for the first time; `None` before any was.
    pub fn quiet_for(&self) -> Option<Duration> {
        self.lock().last_new.map(|at| at.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_chunk_is_noted_where_it_came_first() {
        let touches = Touches::default();
        assert_eq!(touches.quiet_for(), None);
        for chunk in [5, 2, 5, 9, 2] {
            touches.note(ChunkIndex(chunk));
        }
        assert_eq!(touches.order(), [ChunkIndex(5), ChunkIndex(2), ChunkIndex(9)]);
        assert_eq!(touches.count(), 3);
        assert!(touches.quiet_for().is_some());
    }
}
