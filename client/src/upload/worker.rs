//! One thread of an upload: takes segments, hashes their chunks, packs what the server lacks.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use chunk_format::{ChunkId, ChunkIndex, FrameEncoder, PackBuilder, SEGMENT_CHUNKS, Segment};

use super::{SegmentDone, SegmentWork, Shared, UploadError, UploadProgress};

/// As many chunks as the largest segment has: so much is read before the server is asked.
const BATCH_CHUNKS: usize = SEGMENT_CHUNKS;
/// Chunks that the reader is told of before they are read: what it fetches for them is not to push anything out of the cache.
const CHUNKS_AHEAD: usize = 256;

/// A thread's own tools.
struct Tools {
    encoder: FrameEncoder,
    builder: PackBuilder,
    chunk: Vec<u8>,
}

/// A segment as it was read.
struct Read {
    work: SegmentWork,
    segment: Segment,
}

/// A chunk that may have to be sent: which segment of a batch, and where there.
struct Candidate {
    id: ChunkId,
    segment: usize,
    at: usize,
}

impl Shared {
    /// Takes work until there is none.
    pub(super) fn work_through(&self) -> Result<(), UploadError> {
        let mut tools = Tools {
            encoder: FrameEncoder::new()?,
            builder: PackBuilder::new(self.upload.chunk_size),
            chunk: vec![0; self.upload.chunk_size.bytes()],
        };
        loop {
            let batch = self.next_batch();
            if batch.is_empty() {
                break;
            }
            let done = self.bring_up_to_date(batch, &mut tools)?;
            self.done.lock().unwrap_or_else(PoisonError::into_inner).extend(done);
        }
        match tools.builder.seal() {
            Some(pack) => self.sink.send(pack),
            None => Ok(()),
        }
    }

    /// Segments that are dealt with together, so that few chunks of many cost no more questions than many of one; no more of them
    /// than this thread's share.
    fn next_batch(&self) -> Vec<SegmentWork> {
        let mut left = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut batch, mut chunks) = (Vec::new(), 0);
        while chunks < BATCH_CHUNKS && batch.len() < self.share {
            let Some(work) = left.next() else { break };
            chunks += work.positions.len();
            batch.push(work);
        }
        batch
    }

    fn bring_up_to_date(
        &self,
        batch: Vec<SegmentWork>,
        tools: &mut Tools,
    ) -> Result<Vec<SegmentDone>, UploadError> {
        let progress = &self.upload.progress;
        let chunk_bytes = self.upload.chunk_size.bytes();
        let (mut read, mut expected) = (Vec::with_capacity(batch.len()), 0);
        for at in 0..batch.len() {
            if at == expected && self.upload.pace.is_none() {
                expected = self.expect(&batch, at);
            }
            read.push(self.read_segment(&batch[at], tools)?);
        }
        let read: Vec<Read> =
            batch.into_iter().zip(read).map(|(work, segment)| Read { work, segment }).collect();
        let lacking = self.lacking(&read)?;
        let chunks: usize = read.iter().map(|read| read.work.positions.len()).sum();
        UploadProgress::add(&progress.known_bytes, (chunks - lacking.len()) * chunk_bytes);
        UploadProgress::add(&progress.new_bytes, lacking.len() * chunk_bytes);
        UploadProgress::add(&progress.new_chunks, lacking.len());
        for Candidate { id, segment, at } in lacking {
            let SegmentWork { disk, index, .. } = read[segment].work;
            self.read(disk, index.first_chunk(), at, &mut tools.chunk)?;
            if ChunkId::of_chunk(&tools.chunk) != id {
                return Err(UploadError::Changed { offset: self.offset(index.first_chunk(), at) });
            }
            tools.builder.add(id, &tools.chunk, &mut tools.encoder)?;
            if self.upload.is_enough(&tools.builder) {
                let full = std::mem::replace(&mut tools.builder, PackBuilder::new(self.upload.chunk_size));
                if let Some(pack) = full.seal() {
                    self.sink.send(pack)?;
                }
            }
        }
        let done = read.into_iter().map(|Read { work, segment }| {
            self.reader.renewed(&segment);
            SegmentDone { disk: work.disk, index: work.index, segment }
        });
        Ok(done.collect())
    }

    /// Has what is read next come, from one segment of a batch on; answers how far it has.
    fn expect(&self, batch: &[SegmentWork], from: usize) -> usize {
        let mut chunks = Vec::new();
        let mut next = from;
        while let Some(work) = batch.get(next).filter(|_| chunks.len() < CHUNKS_AHEAD) {
            let first = work.index.first_chunk().0;
            chunks.extend(work.positions.iter().map(|at| (work.disk, ChunkIndex(first + *at as u64))));
            next += 1;
        }
        self.reader.expect(&chunks);
        next
    }

    /// Reads what is to be read of a segment; the segment as it is now.
    fn read_segment(&self, work: &SegmentWork, tools: &mut Tools) -> Result<Segment, UploadError> {
        let mut segment = work.before.clone().unwrap_or_else(Segment::zero);
        for at in &work.zeroed {
            segment.set(*at, ChunkId::ZERO)?;
        }
        for at in &work.positions {
            self.read(work.disk, work.index.first_chunk(), *at, &mut tools.chunk)?;
            let id = ChunkId::of_chunk(&tools.chunk);
            self.reader.seen(&id, &tools.chunk);
            segment.set(*at, id)?;
            UploadProgress::add(&self.upload.progress.hashed_bytes, self.upload.chunk_size.bytes());
        }
        Ok(segment)
    }

    /// Which chunks of some segments this thread must send: the server lacks them and no other thread has claimed them.
    fn lacking(&self, read: &[Read]) -> Result<Vec<Candidate>, UploadError> {
        let mut candidates = Vec::new();
        {
            let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
            for (segment, read) in read.iter().enumerate() {
                if self.upload.known_segments.contains(&read.segment.id()) {
                    continue;
                }
                for at in &read.work.positions {
                    let id = read.segment.chunks()[*at];
                    let before =
                        read.work.before.as_ref().map_or(ChunkId::ZERO, |before| before.chunks()[*at]);
                    if !id.is_zero() && id != before && claimed.insert(id) {
                        candidates.push(Candidate { id, segment, at: *at });
                    }
                }
            }
        }
        if candidates.is_empty() {
            return Ok(candidates);
        }
        let ids: Vec<ChunkId> = candidates.iter().map(|candidate| candidate.id).collect();
        let upload = &self.upload;
        let ask = || upload.upstream.missing_chunks(&upload.place, &ids);
        let missing = self.runtime.block_on(upload.patience.retry(ask))?;
        let lacking = candidates.into_iter().zip(missing);
        Ok(lacking.filter_map(|(candidate, missing)| missing.then_some(candidate)).collect())
    }

    fn read(&self, disk: usize, first: ChunkIndex, at: usize, chunk: &mut [u8]) -> Result<(), UploadError> {
        if self.is_given_up.load(Ordering::Relaxed) {
            return Err(UploadError::Stopped);
        }
        let index = ChunkIndex(first.0 + at as u64);
        self.reader
            .read_chunk(disk, index, chunk)
            .map_err(|source| UploadError::Read { offset: self.offset(first, at), source })
    }

    fn offset(&self, first: ChunkIndex, at: usize) -> u64 {
        ChunkIndex(first.0 + at as u64).offset_bytes(self.upload.chunk_size)
    }
}
