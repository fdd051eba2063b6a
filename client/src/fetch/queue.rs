//! Chunks waiting to be fetched: strictly by class; neighbours in a pack together, and those asked for by their ids in the
//! order in which they are wanted.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use chunk_format::{ChunkId, Namespace, PackId, PackRef};
use tokio::sync::OwnedSemaphorePermit;

use super::flight::Flight;
use crate::disk::BaseSegment;

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

/// What a chunk whose frame is not known is taken for, bytes: half of a chunk.
const UNPLACED_BYTES: u64 = 32 << 10;

/// The longest run of neighbours that is fetched in one request while somebody waits for its end, bytes.
pub(super) const DEMAND_RUN_BYTES: u64 = 1 << 20;

/// A chunk to fetch, and who waits for it.
pub(super) struct Job {
    pub(super) id: ChunkId,
    pub(super) place: Place,
    pub(super) class: Class,
    pub(super) flight: Arc<Flight>,
    /// Sources that were found to lack it, by their position.
    pub(super) passed_over: Vec<usize>,
    /// Room for its decoded bytes; taken when it leaves the queue.
    pub(super) room: Option<OwnedSemaphorePermit>,
}

/// What is known of where a chunk lies.
#[derive(Clone)]
pub(super) enum Place {
    /// Its position in a segment of a disk: enough to ask by its id.
    Unplaced { segment: BaseSegment, at: usize },
    /// Its frame.
    Packed(PlacedFrame),
}

/// Where the frame of a chunk lies.
#[derive(Clone)]
pub(super) struct PlacedFrame {
    pub(super) pack: Arc<PackRef>,
    pub(super) offset: u32,
    pub(super) len: u32,
}

impl PlacedFrame {
    pub(super) fn start(&self) -> u64 {
        u64::from(self.offset)
    }

    pub(super) fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.len)
    }

    fn key(&self) -> (PackId, u32) {
        (self.pack.pack, self.offset)
    }
}

impl Job {
    pub(super) fn frame(&self) -> Option<&PlacedFrame> {
        match &self.place {
            Place::Packed(frame) => Some(frame),
            Place::Unplaced { .. } => None,
        }
    }

    /// Whether it may be asked for by its id together with another one.
    fn goes_along_by_id(&self, other: &Self) -> bool {
        let namespace = |job: &'_ Self| match &job.place {
            Place::Unplaced { segment, .. } => Some(segment.namespace.clone()),
            Place::Packed(_) => None,
        };
        namespace(self).is_some()
            && namespace(self) == namespace(other)
            && self.passed_over == other.passed_over
    }
}

/// Chunks to be fetched in one request.
pub(super) enum Run {
    /// Frames of one pack, in its order.
    Packed { pack: Arc<PackRef>, jobs: Vec<Job> },
    /// Chunks of one namespace to be asked for by their ids, in the order in which they are wanted; none is placed.
    ById { namespace: Namespace, jobs: Vec<Job> },
}

impl Run {
    pub(super) fn jobs_mut(&mut self) -> &mut Vec<Job> {
        match self {
            Self::Packed { jobs, .. } | Self::ById { jobs, .. } => jobs,
        }
    }

    /// Bytes from the first frame to the end of the last, or what the chunks are taken for.
    pub(super) fn len_bytes(&self) -> u64 {
        match self {
            Self::Packed { jobs, .. } => match (jobs.first(), jobs.last()) {
                (Some(first), Some(last)) => {
                    let start = first.frame().map_or(0, PlacedFrame::start);
                    last.frame().map_or(0, PlacedFrame::end).saturating_sub(start)
                }
                _ => 0,
            },
            Self::ById { jobs, .. } => jobs.len() as u64 * UNPLACED_BYTES,
        }
    }
}

/// How much one request may be for.
#[derive(Clone, Copy)]
pub(super) struct RunLimit {
    /// Bytes, unless the first chunk alone has more.
    pub(super) bytes: u64,
    /// Chunks: there must be room for all of them at once.
    pub(super) chunks: usize,
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
        if let Some(frame) = job.frame() {
            self.by_place.insert(frame.key(), job.id);
        }
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

    /// Takes the first chunk of the most urgent class, with what goes along: its neighbours in the pack of the same or a
    /// more urgent class, or of the next one; or, when it is not placed, those behind it in its class that are not either.
    pub(super) fn pop_run(&mut self, least_urgent: Class, limit: RunLimit) -> Option<Run> {
        let class = self.first_class(least_urgent)?;
        let first = self.front(class)?;
        let first = self.take(first)?;
        match first.place.clone() {
            Place::Packed(frame) => Some(self.pop_neighbours(class, limit, first, frame)),
            Place::Unplaced { segment, .. } => {
                Some(Run::ById { namespace: segment.namespace, jobs: self.pop_by_id(class, limit, first) })
            }
        }
    }

    fn pop_by_id(&mut self, class: Class, limit: RunLimit, first: Job) -> Vec<Job> {
        let fitting = usize::try_from(limit.bytes / UNPLACED_BYTES).unwrap_or(usize::MAX).min(limit.chunks);
        let mut jobs = vec![first];
        while jobs.len() < fitting
            && let Some(next) = self.front(class)
            && let Some(next) =
                self.take_if(next, |job| jobs.first().is_some_and(|first| job.goes_along_by_id(first)))
        {
            jobs.push(next);
        }
        jobs
    }

    fn pop_neighbours(&mut self, class: Class, limit: RunLimit, first: Job, frame: PlacedFrame) -> Run {
        let pack = Arc::clone(&frame.pack);
        let (mut start, mut end) = (frame.start(), frame.end());
        let passed_over = first.passed_over.clone();
        let joins = |job: &Job, fits: &dyn Fn(&PlacedFrame) -> bool| {
            job.class as usize <= class as usize + 1
                && job.passed_over == passed_over
                && job.frame().is_some_and(fits)
        };
        let mut jobs = VecDeque::from([first]);
        while jobs.len() < limit.chunks
            && let Some(next) = self.place_after(pack.pack, end)
            && let Some(next) = self
                .take_if(next, |job| joins(job, &|frame: &PlacedFrame| frame.end() - start <= limit.bytes))
        {
            end = next.frame().map_or(end, PlacedFrame::end);
            jobs.push_back(next);
        }
        while jobs.len() < limit.chunks
            && let Some(before) = self.place_before(pack.pack, start)
            && let Some(before) = self
                .take_if(before, |job| joins(job, &|frame: &PlacedFrame| end - frame.start() <= limit.bytes))
        {
            start = before.frame().map_or(start, PlacedFrame::start);
            jobs.push_front(before);
        }
        Run::Packed { pack, jobs: jobs.into() }
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

    fn place_after(&self, pack: PackId, end: u64) -> Option<ChunkId> {
        let from = (pack, u32::try_from(end).ok()?);
        let to = (pack, u32::try_from(end + GAP_LIMIT_BYTES).unwrap_or(u32::MAX));
        self.by_place.range(from..=to).next().map(|(_, id)| *id)
    }

    fn place_before(&self, pack: PackId, start: u64) -> Option<ChunkId> {
        let (place, id) = self.by_place.range(..(pack, u32::try_from(start).ok()?)).next_back()?;
        let end = self.jobs.get(id)?.frame()?.end();
        (place.0 == pack && end + GAP_LIMIT_BYTES >= start).then_some(*id)
    }

    fn take_if(&mut self, id: ChunkId, fits: impl FnOnce(&Job) -> bool) -> Option<Job> {
        if self.jobs.get(&id).is_some_and(fits) { self.take(id) } else { None }
    }

    fn take(&mut self, id: ChunkId) -> Option<Job> {
        let job = self.jobs.remove(&id)?;
        if let Some(frame) = job.frame() {
            self.by_place.remove(&frame.key());
        }
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use chunk_format::SegmentId;

    use super::*;

    fn job(pack: &str, offset: u32, class: Class) -> Job {
        let pack = Arc::new(PackRef {
            namespace: "image/a".parse().unwrap(),
            pack: PackId::of(pack.as_bytes()),
            pack_len: 32 << 20,
        });
        let id = ChunkId::of(format!("{}{offset}", pack.pack).as_bytes());
        let place = Place::Packed(PlacedFrame { pack, offset, len: 1000 });
        Job { id, place, class, flight: Arc::default(), passed_over: Vec::new(), room: None }
    }

    fn unplaced(namespace: &str, at: usize, class: Class) -> Job {
        let segment = BaseSegment::new(SegmentId::of(b"a"), namespace.parse().unwrap());
        let id = ChunkId::of(format!("{namespace}{at}").as_bytes());
        let place = Place::Unplaced { segment, at };
        Job { id, place, class, flight: Arc::default(), passed_over: Vec::new(), room: None }
    }

    const LIMIT: RunLimit = RunLimit { bytes: 1 << 20, chunks: 512 };

    fn offsets(run: &Run) -> Vec<u32> {
        let Run::Packed { jobs, .. } = run else { panic!("it is placed") };
        jobs.iter().filter_map(|job| Some(job.frame()?.offset)).collect()
    }

    fn ats(run: &Run) -> Vec<usize> {
        let Run::ById { jobs, .. } = run else { panic!("it is not placed") };
        let at = |job: &Job| match &job.place {
            Place::Unplaced { at, .. } => *at,
            Place::Packed(_) => panic!("it is not placed"),
        };
        jobs.iter().map(at).collect()
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
        assert_eq!(offsets(&queue.pop_run(Class::Waiting, LIMIT).unwrap()), [4000, 5000, 7000]);
        assert_eq!(offsets(&queue.pop_run(Class::Waiting, LIMIT).unwrap()), [60_000]);
        assert!(queue.pop_run(Class::Waiting, LIMIT).is_none());
        assert_eq!(queue.first_class(Class::Profile), None);
        assert_eq!(queue.first_class(Class::Background), Some(Class::Background));
        assert_eq!(offsets(&queue.pop_run(Class::Background, LIMIT).unwrap()), [10_000, 11_000, 12_000]);
        assert_eq!(queue.waiting(), [0; 4]);
    }

    #[test]
    fn a_waiting_run_does_not_drag_the_background_along() {
        let mut queue = Queue::default();
        queue.push(job("a", 1000, Class::Waiting));
        queue.push(job("a", 2000, Class::Background));
        assert_eq!(offsets(&queue.pop_run(Class::Background, LIMIT).unwrap()), [1000]);
        assert_eq!(offsets(&queue.pop_run(Class::Background, LIMIT).unwrap()), [2000]);
    }

    #[test]
    fn a_run_is_bounded() {
        let mut queue = Queue::default();
        for at in 0..2000 {
            queue.push(job("a", 16 + at * 1000, Class::Waiting));
        }
        let limit = RunLimit { chunks: 2000, ..LIMIT };
        assert_eq!(offsets(&queue.pop_run(Class::Waiting, limit).unwrap()).len(), 1048, "by its bytes");
        assert_eq!(offsets(&queue.pop_run(Class::Waiting, LIMIT).unwrap()).len(), 512, "by its chunks");
    }

    #[test]
    fn what_is_not_placed_goes_in_the_order_in_which_it_is_wanted() {
        let mut queue = Queue::default();
        for at in [7, 3, 900, 4] {
            queue.push(unplaced("image/a", at, Class::Profile));
        }
        queue.push(unplaced("user/a", 1, Class::Profile));
        queue.push(unplaced("image/a", 5, Class::Profile));
        queue.push(job("a", 0, Class::Profile));
        queue.push(unplaced("image/a", 1, Class::Waiting));
        queue.push(unplaced("image/a", 2, Class::Background));
        assert_eq!(ats(&queue.pop_run(Class::Background, LIMIT).unwrap()), [1]);
        assert_eq!(ats(&queue.pop_run(Class::Background, LIMIT).unwrap()), [7, 3, 900, 4]);
        assert_eq!(ats(&queue.pop_run(Class::Background, LIMIT).unwrap()), [1], "of one namespace");
        assert_eq!(ats(&queue.pop_run(Class::Background, LIMIT).unwrap()), [5]);
        assert_eq!(offsets(&queue.pop_run(Class::Background, LIMIT).unwrap()), [0]);
        assert_eq!(ats(&queue.pop_run(Class::Background, LIMIT).unwrap()), [2]);
    }

    #[test]
    fn a_run_by_ids_is_bounded_and_of_what_the_same_sources_lack() {
        let mut queue = Queue::default();
        for at in 0..100 {
            queue.push(unplaced("image/a", at, Class::Background));
        }
        assert_eq!(ats(&queue.pop_run(Class::Background, LIMIT).unwrap()).len(), 32, "by its bytes");
        let few = RunLimit { chunks: 5, ..LIMIT };
        assert_eq!(ats(&queue.pop_run(Class::Background, few).unwrap()).len(), 5, "by its chunks");
        let mut queue = Queue::default();
        queue.push(job("a", 1000, Class::Background));
        queue.push(Job { passed_over: vec![0], ..job("a", 2000, Class::Background) });
        queue.push(Job { passed_over: vec![0], ..job("a", 3000, Class::Background) });
        assert_eq!(offsets(&queue.pop_run(Class::Background, LIMIT).unwrap()), [1000]);
        assert_eq!(offsets(&queue.pop_run(Class::Background, LIMIT).unwrap()), [2000, 3000]);
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
        let mut run = queue.pop_run(Class::Background, LIMIT).unwrap();
        assert_eq!(run.jobs_mut()[0].id, id);
        assert!(queue.pop_run(Class::Background, LIMIT).is_some());
        assert!(queue.pop_run(Class::Background, LIMIT).is_none());
    }
}
