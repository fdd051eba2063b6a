//! Fills the cache with all of a disk, in the background of everything else.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chunk_format::{ChunkId, ChunkIndex, SEGMENT_CHUNKS};
use tokio_util::sync::CancellationToken;

use super::flight::Flight;
use super::{Class, FetchError, Fetcher, Wish};
use crate::cache::{Look, Room};
use crate::disk::Base;

/// Chunks asked for at once: long enough for the longest requests, short enough to notice what arrived meanwhile.
const BATCH: usize = 512;
/// How often it is looked whether the last chunks are in the cache.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// How far a fill is.
#[derive(Debug, Default)]
pub struct FillProgress {
    /// Chunks of the disks that are stored at all, as far as it is known.
    pub total_chunks: AtomicU64,
    /// Those that are here.
    pub local_chunks: AtomicU64,
}

/// Why a disk could not be filled.
#[derive(Debug, thiserror::Error)]
pub enum FillError {
    /// It does not have to be here any more.
    #[error("it was ended: not all of it has to be here any more")]
    Ended,
    /// A chunk could not be had.
    #[error("cannot fetch everything")]
    Fetch(#[source] Arc<FetchError>),
    /// The cache is too small, or the disk it is on is full.
    #[error("the cache has no room for all of it: {kept} of {stored} chunks could be kept")]
    NoRoom {
        /// Chunks that are kept.
        kept: u64,
        /// Chunks there are.
        stored: u64,
    },
    /// The disk that the cache is on has too little space.
    #[error(
        "the disk has no room for all of it: {} MiB are needed, and {} MiB of what is free may be used",
        needed_bytes.div_ceil(1 << 20),
        free_bytes >> 20
    )]
    NoSpace {
        /// Bytes that what lacks takes.
        needed_bytes: u64,
        /// Bytes that there are for it.
        free_bytes: u64,
    },
    /// What was fetched is here, and might not be after a power cut.
    #[error("what was fetched could not be made durable")]
    NotDurable(#[source] std::io::Error),
}

/// The fills of one desktop: one at a time, and ended when it no longer has to be here.
#[derive(Debug, Default)]
pub struct Filling {
    progress: FillProgress,
    turn: tokio::sync::Mutex<()>,
    /// Ends those that have been asked for.
    end: Mutex<CancellationToken>,
}

impl Filling {
    /// Fetches every chunk of these disks that is not here, and pins all of them; `disks` are those of the time when it is its
    /// turn. Answers how many chunks were not here.
    ///
    /// # Errors
    /// [`FillError`].
    pub async fn fill(
        &self,
        fetcher: &Fetcher,
        look: Look,
        disks: impl FnOnce() -> Vec<Arc<Base>>,
    ) -> Result<u64, FillError> {
        let end = self.lock_end().clone();
        let filled = async {
            let _turn = self.turn.lock().await;
            fetcher.fill(&disks(), look, &self.progress).await
        };
        tokio::select! {
            filled = filled => filled,
            () = end.cancelled() => Err(FillError::Ended),
        }
    }

    /// Ends the fills that have been asked for; returns when none pins anything any more, and none begins while the answer is
    /// held.
    pub async fn end(&self) -> tokio::sync::MutexGuard<'_, ()> {
        std::mem::take(&mut *self.lock_end()).cancel();
        self.turn.lock().await
    }

    /// How far it is.
    pub fn progress(&self) -> &FillProgress {
        &self.progress
    }

    fn lock_end(&self) -> MutexGuard<'_, CancellationToken> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FillError {
    /// Whether not all of it can be kept, whatever is fetched.
    pub fn is_want_of_room(&self) -> bool {
        matches!(self, Self::NoRoom { .. } | Self::NoSpace { .. })
    }
}

impl Fetcher {
    /// Checks that the cache and its disk have room for all of these disks. Fetches no more than what says what they hold.
    ///
    /// # Errors
    /// `NoRoom`, `NoSpace`; `Fetch`.
    pub async fn check_room(&self, disks: &[Arc<Base>]) -> Result<(), FillError> {
        let mut wanted = HashSet::new();
        for disk in disks {
            let stored = self.stored_chunks(disk).await.map_err(|error| FillError::Fetch(Arc::new(error)))?;
            wanted.extend(stored.into_iter().map(|(_, id)| id));
        }
        self.check_room_for(&wanted)
    }

    fn check_room_for(&self, wanted: &HashSet<ChunkId>) -> Result<(), FillError> {
        let slots = self.shared.cache.stats().slots;
        if wanted.len() as u64 > slots {
            return Err(FillError::NoRoom { kept: slots, stored: wanted.len() as u64 });
        }
        let Room { needed_bytes, free_bytes } = self.shared.cache.room_for(wanted);
        if needed_bytes > free_bytes {
            return Err(FillError::NoSpace { needed_bytes, free_bytes });
        }
        Ok(())
    }

    /// Fetches every chunk of these disks that is not here, as far as it is looked, and pins them and nothing else in the cache.
    /// Goes on for as long as it takes; what arrived stays when it is dropped. Answers how many chunks were not here.
    ///
    /// # Errors
    /// [`FillError`].
    pub async fn fill(
        &self,
        disks: &[Arc<Base>],
        look: Look,
        progress: &FillProgress,
    ) -> Result<u64, FillError> {
        let stopped = |error| FillError::Fetch(Arc::new(error));
        let mut stored: Vec<Vec<(ChunkIndex, ChunkId)>> = Vec::with_capacity(disks.len());
        for disk in disks {
            stored.push(self.stored_chunks(disk).await.map_err(stopped)?);
        }
        let cache = &self.shared.cache;
        let distinct: HashSet<ChunkId> = stored.iter().flatten().map(|(_, id)| *id).collect();
        // Of versions before, which nobody reads any more.
        cache.unpin_all_but(&distinct);
        cache.look_for_space();
        // Said before the work, not after it.
        self.check_room_for(&distinct)?;
        let total = stored.iter().map(Vec::len).sum::<usize>() as u64;
        progress.total_chunks.store(total, Ordering::Relaxed);
        let (mut local, mut lacked) = (0, 0);
        for (disk, chunks) in disks.iter().zip(&stored) {
            let mut before: Vec<(ChunkIndex, Arc<Flight>)> = Vec::new();
            for batch in chunks.chunks(BATCH) {
                // Before it is looked what lacks: what the batch before brings then takes the place of none of these.
                cache.set_pinned(batch.iter().map(|(_, id)| *id), true);
                let missing = self.missing_of(batch.to_vec(), look).await.map_err(stopped)?;
                let wishes = self.want(disk, &missing, Class::Background).await.map_err(stopped)?;
                let flights = missing.iter().zip(wishes).filter_map(|(chunk, wish)| match wish {
                    Wish::Flight(flight) => Some((*chunk, flight)),
                    Wish::Here => None,
                });
                // The next batch waits in the queue while this one comes, so that the link never waits.
                let mut landing = std::mem::replace(&mut before, flights.collect());
                local += (batch.len() - missing.len()) as u64;
                lacked += missing.len() as u64;
                self.land_all(disk, &mut landing, &mut local, progress).await?;
                cache.set_pinned(batch.iter().map(|(_, id)| *id), true);
            }
            self.land_all(disk, &mut before, &mut local, progress).await?;
        }
        let ids = || stored.iter().flatten().map(|(_, id)| *id);
        // What has arrived may still be on its way into the cache.
        while ids().any(|id| !cache.contains(&id) && self.shared.lock_flights().contains_key(&id)) {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        let (kept, total) = (cache.set_pinned(distinct.iter().copied(), true), distinct.len() as u64);
        match kept == total {
            true => Ok(lacked),
            false => Err(FillError::NoRoom { kept, stored: total }),
        }
    }

    /// Those of some chunks that are not here.
    async fn missing_of(
        &self,
        chunks: Vec<(ChunkIndex, ChunkId)>,
        look: Look,
    ) -> Result<Vec<ChunkIndex>, FetchError> {
        let cache = Arc::clone(&self.shared.cache);
        let missing = move || {
            let missing = chunks.into_iter().filter(|(_, id)| !cache.has(id, look));
            missing.map(|(chunk, _)| chunk).collect()
        };
        tokio::task::spawn_blocking(missing).await.map_err(|_| FetchError::Stopped)
    }

    async fn land_all(
        &self,
        disk: &Base,
        flights: &mut Vec<(ChunkIndex, Arc<Flight>)>,
        local: &mut u64,
        progress: &FillProgress,
    ) -> Result<(), FillError> {
        for (chunk, flight) in flights.drain(..) {
            self.land(disk, chunk, &flight).await.map_err(FillError::Fetch)?;
            *local += 1;
            progress.local_chunks.store(*local, Ordering::Relaxed);
        }
        progress.local_chunks.store(*local, Ordering::Relaxed);
        Ok(())
    }

    /// The chunks of a disk that are stored at all.
    async fn stored_chunks(&self, disk: &Base) -> Result<Vec<(ChunkIndex, ChunkId)>, FetchError> {
        let mut stored = Vec::new();
        for (index, segment) in (0u64..).zip(disk.segments()) {
            if segment.id.is_zero() {
                continue;
            }
            let chunks = self.segment(segment).await?.chunks();
            let first = index * SEGMENT_CHUNKS as u64;
            stored.extend(
                (first..)
                    .zip(chunks)
                    .filter(|(_, id)| !id.is_zero())
                    .map(|(chunk, id)| (ChunkIndex(chunk), *id)),
            );
        }
        Ok(stored)
    }
}
