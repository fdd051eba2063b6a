//! One thread of an upload: takes segments, hashes their chunks, packs what the server lacks.

use std::collections::HashMap;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use chunk_format::{ChunkId, ChunkIndex, FrameEncoder, PackBuilder, Segment};

use super::{SegmentDone, SegmentWork, Shared, UploadError, UploadProgress};

/// A thread's own tools.
struct Tools {
    encoder: FrameEncoder,
    builder: PackBuilder,
    chunk: Vec<u8>,
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
            let work = self.work.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(work) = work else { break };
            let done = self.bring_up_to_date(work, &mut tools)?;
            self.done.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        }
        match tools.builder.seal() {
            Some(pack) => self.sink.send(pack),
            None => Ok(()),
        }
    }

    fn bring_up_to_date(&self, work: SegmentWork, tools: &mut Tools) -> Result<SegmentDone, UploadError> {
        let progress = &self.upload.progress;
        let chunk_bytes = self.upload.chunk_size.bytes();
        let SegmentWork { disk, index, before, positions, zeroed } = work;
        let before = before.unwrap_or_else(Segment::zero);
        let mut segment = before.clone();
        for at in zeroed {
            segment.set(at, ChunkId::ZERO)?;
        }
        for at in &positions {
            self.read(disk, index.first_chunk(), *at, &mut tools.chunk)?;
            let id = ChunkId::of_chunk(&tools.chunk);
            self.reader.seen(&id, &tools.chunk);
            segment.set(*at, id)?;
            UploadProgress::add(&progress.hashed_bytes, chunk_bytes);
        }
        let lacking = if self.upload.known_segments.contains(&segment.id()) {
            Vec::new()
        } else {
            let changed = positions.iter().filter_map(|at| {
                let id = segment.chunks()[*at];
                (!id.is_zero() && id != before.chunks()[*at]).then_some((id, *at))
            });
            self.lacking(changed)?
        };
        UploadProgress::add(&progress.known_bytes, (positions.len() - lacking.len()) * chunk_bytes);
        UploadProgress::add(&progress.new_bytes, lacking.len() * chunk_bytes);
        UploadProgress::add(&progress.new_chunks, lacking.len());
        for (id, at) in lacking {
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
        self.reader.renewed(&segment);
        Ok(SegmentDone { disk, index, segment })
    }

    /// Which of these chunks this thread must send: the server lacks them and no other thread has claimed them.
    fn lacking(
        &self,
        changed: impl Iterator<Item = (ChunkId, usize)>,
    ) -> Result<Vec<(ChunkId, usize)>, UploadError> {
        let mut candidates = HashMap::new();
        {
            let mut claimed = self.claimed.lock().unwrap_or_else(PoisonError::into_inner);
            for (id, at) in changed {
                if claimed.insert(id) {
                    candidates.insert(id, at);
                }
            }
        }
        let mut candidates: Vec<(ChunkId, usize)> = candidates.into_iter().collect();
        candidates.sort_by_key(|(_, at)| *at);
        if candidates.is_empty() {
            return Ok(candidates);
        }
        let ids: Vec<ChunkId> = candidates.iter().map(|(id, _)| *id).collect();
        let upload = &self.upload;
        let ask = || upload.upstream.missing_chunks(&upload.place, &ids);
        let missing = self.runtime.block_on(upload.patience.retry(ask))?;
        Ok(candidates
            .into_iter()
            .zip(missing)
            .filter_map(|(chunk, missing)| missing.then_some(chunk))
            .collect())
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
