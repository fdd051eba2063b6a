//! Chunks waiting to be fetched: strictly by class, neighbours in a pack together.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use chunk_format::{ChunkId, PackId, PackRef};
use tokio::sync::OwnedSemaphorePermit;

use super::flight::Flight;
use crate::disk::{BaseSegment, Located};

/// How urgent a fetch is; a lower one never goes before a higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// The guest waits for it.
    Waiting,
    /// The guest will probably ask for it next.
    Readahead,
    /// A start of this version touches it.
    Profile,
    /// To have it all.
    Background,
}

impl Class {
    /// All classes, the most urgent first.
    pub const ALL: [Self; 4] = [Self::Waiting, Self::Readahead, Self::Profile, Self::Background];
}

/// Bytes of a pack between two wanted frames that are fetched and dropped rather than asked around: less than what
/// another request costs.
pub(crate) const GAP_LIMIT_BYTES: u64 = 16 << 10;

/// The longest run of neighbours that is fetched in one request while somebody waits for its end, bytes.
pub(super) const DEMAND_RUN_BYTES: u64 = 1 << 20;

/// A chunk to fetch, and who waits for it.
pub(super) struct Job {
    pub(super) id: ChunkId,
    pub(super) pack: Arc<PackRef>,
    pub(super) offset: u32,
    pub(super) frame_len: u32,
    /// Where it stands in a disk, and who says that it lies there.
    pub(super) segment: BaseSegment,
    pub(super) at: usize,
    pub(super) located: Arc<Located>,
    pub(super) class: Class,
    pub(super) flight: Arc<Flight>,
    /// Room for its decoded bytes; taken when it leaves the queue.
    pub(super) room: Option<OwnedSemaphorePermit>,
    /// Whether it was asked for in vain before.
    pub(super) is_late: bool,
}

impl Job {
    fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.frame_len)
    }

    fn place(&self) -> (PackId, u32) {
        (self.pack.pack, self.offset)
    }
}

/// Frames of one pack, in its order, to be fetched in one request.
pub(super) struct Run {
    pub(super) pack: Arc<PackRef>,
    pub(super) jobs: Vec<Job>,
}

impl Run {
    /// Bytes from the first frame to the end of the last.
    pub(super) fn len_bytes(&self) -> u64 {
        match (self.jobs.first(), self.jobs.last()) {
            (Some(first), Some(last)) => last.end() - u64::from(first.offset),
            _ => 0,
        }
    }
}

#[derive(Default)]
pub(super) struct Queue {
    jobs: HashMap<ChunkId, Job>,
    order: [VecDeque<ChunkId>; Class::ALL.len()],
    by_place: BTreeMap<(PackId, u32), ChunkId>,
}

impl Queue {
    pub(super) fn push(&mut self, job: Job) {
        self.order[job.class as usize].push_back(job.id);
        self.by_place.insert(job.place(), job.id);
        self.jobs.insert(job.id, job);
    }

    /// Makes a waiting chunk more urgent; false when it is on its way already, or was as urgent before.
    pub(super) fn promote(&mut self, id: &ChunkId, class: Class) -> bool {
        match self.jobs.get_mut(id) {
            Some(job) if class < job.class => {
                // Its old entry in the order is skipped when it comes up.
                job.class = class;
                self.order[class as usize].push_back(*id);
                true
            }
            _ => false,
        }
    }

    /// How many chunks of each class wait.
    pub(super) fn waiting(&self) -> [u64; Class::ALL.len()] {
        let mut counts = [0; Class::ALL.len()];
        self.jobs.values().for_each(|job| counts[job.class as usize] += 1);
        counts
    }

    /// The most urgent class of which a chunk waits, of those down to this one.
    pub(super) fn first_class(&mut self, least_urgent: Class) -> Option<Class> {
        Class::ALL
            .into_iter()
            .filter(|class| *class <= least_urgent)
            .find(|class| self.front(*class).is_some())
    }

    /// Takes the first chunk of the most urgent class, with its neighbours in the pack of the same or a more urgent
    /// class, or of the next one: at most `limit` bytes unless the first alone is longer, and at most `most` chunks, however
    /// short their frames are.
    pub(super) fn pop_run(&mut self, least_urgent: Class, limit: u64, most: usize) -> Option<Run> {
        let class = self.first_class(least_urgent)?;
        let first = self.front(class)?;
        let first = self.take(first)?;
        let pack = Arc::clone(&first.pack);
        let (mut start, mut end) = (u64::from(first.offset), first.end());
        let mut jobs = VecDeque::from([first]);
        while jobs.len() < most
            && let Some(next) = self.neighbour_after(pack.pack, end, class)
        {
            let Some(next) = self.take_if(next, |job| job.end() - start <= limit) else { break };
            end = next.end();
            jobs.push_back(next);
        }
        while jobs.len() < most
            && let Some(before) = self.neighbour_before(pack.pack, start, class)
        {
            let Some(before) = self.take_if(before, |job| end - u64::from(job.offset) <= limit) else {
                break;
            };
            start = u64::from(before.offset);
            jobs.push_front(before);
        }
        Some(Run { pack, jobs: jobs.into() })
    }

    fn front(&mut self, class: Class) -> Option<ChunkId> {
        let order = &mut self.order[class as usize];
        while let Some(id) = order.front() {
            if self.jobs.get(id).is_some_and(|job| job.class == class) {
                return Some(*id);
            }
            order.pop_front();
        }
        None
    }

    fn neighbour_after(&self, pack: PackId, end: u64, class: Class) -> Option<ChunkId> {
        let from = (pack, u32::try_from(end).ok()?);
        let to = (pack, u32::try_from(end + GAP_LIMIT_BYTES).unwrap_or(u32::MAX));
        let (_, id) = self.by_place.range(from..=to).next()?;
        self.joins(id, class).then_some(*id)
    }

    fn neighbour_before(&self, pack: PackId, start: u64, class: Class) -> Option<ChunkId> {
        let (place, id) = self.by_place.range(..(pack, u32::try_from(start).ok()?)).next_back()?;
        let job = self.jobs.get(id)?;
        let near = place.0 == pack && job.end() + GAP_LIMIT_BYTES >= start;
        (near && self.joins(id, class)).then_some(*id)
    }

    fn joins(&self, id: &ChunkId, class: Class) -> bool {
        self.jobs.get(id).is_some_and(|job| job.class as usize <= class as usize + 1)
    }

    fn take_if(&mut self, id: ChunkId, fits: impl FnOnce(&Job) -> bool) -> Option<Job> {
        if self.jobs.get(&id).is_some_and(fits) { self.take(id) } else { None }
    }

    fn take(&mut self, id: ChunkId) -> Option<Job> {
        let job = self.jobs.remove(&id)?;
        self.by_place.remove(&job.place());
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use chunk_format::{Locator, SEGMENT_CHUNKS, SegmentId};

    use super::*;

    fn job(pack: &str, offset: u32, class: Class) -> Job {
        let pack = Arc::new(PackRef {
            namespace: "image/a".parse().unwrap(),
            pack: PackId::of(pack.as_bytes()),
            pack_len: 32 << 20,
        });
        let id = ChunkId::of(format!("{}{offset}", pack.pack).as_bytes());
        let segment = BaseSegment::new(SegmentId::ZERO, pack.namespace.clone());
        let places = vec![None; SEGMENT_CHUNKS];
        let locator = Locator::new(segment.id, vec![PackRef::clone(&pack)], places).unwrap();
        let located = Arc::new(Located { locator, source: 0 });
        let flight = Arc::default();
        Job {
            id,
            pack,
            offset,
            frame_len: 1000,
            segment,
            at: 0,
            located,
            class,
            flight,
            room: None,
            is_late: false,
        }
    }

    fn offsets(run: &Run) -> Vec<u32> {
        run.jobs.iter().map(|job| job.offset).collect()
    }

    #[test]
    fn the_urgent_go_first_and_neighbours_go_along() {
        let mut queue = Queue::default();
        for offset in [10_000, 11_000, 12_000] {
            queue.push(job("a", offset, Class::Background));
        }
        queue.push(job("b", 5000, Class::Waiting));
        queue.push(job("b", 4000, Class::Waiting));
        queue.push(job("b", 7000, Class::Readahead));
        queue.push(job("b", 60_000, Class::Waiting));
        assert_eq!(offsets(&queue.pop_run(Class::Waiting, 1 << 20, 5000).unwrap()), [4000, 5000, 7000]);
        assert_eq!(offsets(&queue.pop_run(Class::Waiting, 1 << 20, 5000).unwrap()), [60_000]);
        assert!(queue.pop_run(Class::Waiting, 1 << 20, 5000).is_none());
        assert_eq!(queue.first_class(Class::Profile), None);
        assert_eq!(queue.first_class(Class::Background), Some(Class::Background));
        assert_eq!(
            offsets(&queue.pop_run(Class::Background, 1 << 20, 5000).unwrap()),
            [10_000, 11_000, 12_000]
        );
        assert_eq!(queue.waiting(), [0; 4]);
    }

    #[test]
    fn a_waiting_run_does_not_drag_the_background_along() {
        let mut queue = Queue::default();
        queue.push(job("a", 1000, Class::Waiting));
        queue.push(job("a", 2000, Class::Background));
        assert_eq!(offsets(&queue.pop_run(Class::Background, 1 << 20, 5000).unwrap()), [1000]);
        assert_eq!(offsets(&queue.pop_run(Class::Background, 1 << 20, 5000).unwrap()), [2000]);
    }

    #[test]
    fn a_run_is_bounded() {
        let mut queue = Queue::default();
        for at in 0..2000 {
            queue.push(job("a", 16 + at * 1000, Class::Waiting));
        }
        let run = queue.pop_run(Class::Waiting, 1 << 20, 5000).unwrap();
        assert_eq!(run.jobs.len(), 1048);
        let run = queue.pop_run(Class::Waiting, 1 << 20, 100).unwrap();
        assert_eq!(run.jobs.len(), 100);
    }

    #[test]
    fn a_promoted_chunk_goes_first_and_once() {
        let mut queue = Queue::default();
        let (first, second) = (job("a", 0, Class::Background), job("b", 0, Class::Background));
        let id = second.id;
        queue.push(first);
        queue.push(second);
        assert!(queue.promote(&id, Class::Waiting));
        assert!(!queue.promote(&id, Class::Readahead));
        assert_eq!(queue.waiting(), [1, 0, 0, 1]);
        assert_eq!(queue.pop_run(Class::Background, 1 << 20, 5000).unwrap().jobs[0].id, id);
        assert!(queue.pop_run(Class::Background, 1 << 20, 5000).is_some());
        assert!(queue.pop_run(Class::Background, 1 << 20, 5000).is_none());
    }
}
