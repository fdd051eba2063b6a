//! Every pack: all its bytes hashed, every frame decoded, every chunk's row compared.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use bytes::Bytes;
use chunk_format::{
    ChunkId, FormatError, ID_BYTES, PACK_HEADER_BYTES, PackEntry, PackFooter, PackHasher, PackId,
};
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;

use super::{ADVICE_DATABASE, BadPack, Check, Part, VerifyError, readers};
use crate::database::packs::{self, PackRow, PackRowId};
use crate::database::{chunks, failed};
use crate::pack_check::{PackDecoder, bytes_of, read_footer, windows};
use crate::storage::{Object, ObjectKey, StorageError};

const ROWS_AT_ONCE: u32 = 64;
/// Damaged frames named in one finding; the rest is only counted.
const MAX_NAMED_FRAMES: usize = 3;
const READ_BYTES: u64 = 1 << 20;

/// What one pack's check found.
#[derive(Default)]
struct PackState {
    /// What is wrong with the file, if anything.
    problem: Option<String>,
    /// The frames that cannot be read; none for all of them.
    bad_frames: Option<HashSet<u32>>,
    /// Whether that is because the store did not give it: it may yet.
    is_withheld: bool,
    /// Chunks of its table that have no row.
    unindexed: u64,
    /// What is wrong with the rows of its chunks.
    rows_problem: Option<String>,
    /// Rows of chunks that rightly point into this pack.
    rows: u64,
}

impl PackState {
    fn unreadable(problem: impl ToString) -> Self {
        Self { problem: Some(problem.to_string()), ..Self::default() }
    }
}

impl Check<'_> {
    pub(super) async fn packs(&mut self) -> Result<(), VerifyError> {
        // Counted before packs are listed: a pack that arrives meanwhile is then in neither.
        let mut connection = self.database.readers().acquire().await.map_err(failed("answer"))?;
        let rows_of: HashMap<PackRowId, u64> =
            chunks::count_by_pack(&mut connection).await?.into_iter().collect();
        let astray = chunks::count_without_pack(&mut connection).await?;
        drop(connection);
        for (row, count) in astray {
            let problem = format!("{count} chunks lie in a pack that has no row or is condemned ({})", row.0);
            let finding = self.find("database", problem, ADVICE_DATABASE);
            self.unsure(finding, "the database does not say which pack that was");
        }
        let (_, total_bytes) = packs::totals(self.database.readers()).await?;
        self.progress.begin(Part::Packs, total_bytes);
        let mut after = PackRowId(0);
        loop {
            let rows = packs::list_after(self.database.readers(), after, ROWS_AT_ONCE).await?;
            let Some(last) = rows.last() else { break };
            after = last.row;
            self.know(rows.iter().map(|row| row.namespace)).await?;
            let checked: Vec<_> = {
                let this = &*self;
                let states = rows.into_iter().map(|row| async move {
                    let state = this.pack(&row).await?;
                    Ok::<_, VerifyError>((row, state))
                });
                stream::iter(states).buffered(readers()).try_collect::<Vec<_>>().await?
            };
            for (row, state) in checked {
                self.note_pack(&row, state, rows_of.get(&row.row).copied()).await?;
            }
        }
        Ok(())
    }

    async fn note_pack(
        &mut self,
        row: &PackRow,
        state: PackState,
        rows: Option<u64>,
    ) -> Result<(), VerifyError> {
        self.report.packs += 1;
        self.report.pack_bytes += u64::from(row.len_bytes);
        let namespace = self.name(row.namespace)?;
        let key = ObjectKey { namespace: namespace.clone(), object: Object::Pack(row.pack) };
        if let Some(problem) = state.problem {
            let (frames, is_lost) = (state.bad_frames, !state.is_withheld);
            let finding = self.find_content(&key, problem, is_lost);
            let bad = BadPack { row: row.row, finding, frames, is_lost };
            self.bad_packs.insert((namespace, row.pack), bad);
            return Ok(());
        }
        // A pack that was there when rows were counted has all its rows counted.
        let stray = rows.unwrap_or(0).saturating_sub(state.rows);
        let is_odd = state.unindexed > 0 || state.rows_problem.is_some() || stray > 0;
        if is_odd && !packs::keeps_rows(self.database.readers(), row.row, self.begun_ms).await? {
            // It was condemned meanwhile, and its chunks' rows went with that; or it was lost, and they go to whoever brings them.
            return Ok(());
        }
        self.report.unindexed_chunks += state.unindexed;
        if let Some(problem) = state.rows_problem {
            self.find("database", format!("pack {key}: {problem}"), ADVICE_DATABASE);
        } else if stray > 0 {
            let problem = format!("pack {key}: {stray} chunks are said to lie there and do not");
            self.find("database", problem, ADVICE_DATABASE);
        }
        Ok(())
    }

    async fn pack(&self, row: &PackRow) -> Result<PackState, VerifyError> {
        self.reachable()?;
        let key = ObjectKey { namespace: self.name(row.namespace)?, object: Object::Pack(row.pack) };
        let state = match self.read_pack(&key.path(), row).await {
            Ok(state) => state,
            Err(VerifyError::Storage(error @ StorageError::NotFound { .. })) => {
                // A pack that was condemned meanwhile is not missing.
                match packs::is_live(self.database.readers(), &key.namespace, row.pack).await? {
                    true => PackState::unreadable(format!("it is missing: {error}")),
                    false => PackState::default(),
                }
            }
            Err(VerifyError::Storage(error)) => {
                PackState { is_withheld: true, ..PackState::unreadable(crate::cause::chain(&error)) }
            }
            Err(error) => return Err(error),
        };
        self.progress.advance(u64::from(row.len_bytes));
        Ok(state)
    }

    async fn read_pack(&self, path: &Path, row: &PackRow) -> Result<PackState, VerifyError> {
        let len_bytes = self.storage.len(path).await?;
        if len_bytes != u64::from(row.len_bytes) {
            let problem = format!("it has {len_bytes} bytes, the database says {}", row.len_bytes);
            return Ok(PackState::unreadable(problem));
        }
        let footer = match read_footer(&self.storage, path, len_bytes).await? {
            Ok(footer) => footer,
            Err(error) => return Ok(PackState::unreadable(error)),
        };
        if footer.chunk_size != row.chunk_size {
            let (found, expected) = (footer.chunk_size.bytes(), row.chunk_size.bytes());
            let problem = format!("it has chunks of {found} bytes, the database says {expected}");
            return Ok(PackState::unreadable(problem));
        }
        let read = self.read_frames(path, len_bytes, &footer).await?;
        let mut state = PackState::default();
        if let Some(problem) = read.problem(row.pack) {
            state.problem = Some(problem);
            state.bad_frames = Some(read.bad_frames.into_keys().collect());
            return Ok(state);
        }
        self.compare_rows(row, &footer, &mut state).await?;
        Ok(state)
    }

    /// Reads the whole file once, hashing all of it and decoding each frame.
    async fn read_frames(
        &self,
        path: &Path,
        len_bytes: u64,
        footer: &PackFooter,
    ) -> Result<ReadPack, VerifyError> {
        let decoder = PackDecoder::new(footer).map_err(VerifyError::Decoder)?;
        let mut reader = PackReader { decoder, hash: PackHasher::default(), bad_frames: HashMap::new() };
        let head = self.storage.read_range(path, 0..PACK_HEADER_BYTES as u64).await?;
        reader.hash.update(&head);
        let mut end = PACK_HEADER_BYTES as u64;
        for window in windows(&footer.entries) {
            let range = bytes_of(&footer.entries[window.clone()]);
            end = range.end;
            let bytes = self.storage.read_range(path, range).await?;
            let entries = footer.entries[window].to_vec();
            let read = tokio::task::spawn_blocking(move || {
                reader.read(&bytes, &entries);
                reader
            });
            reader = read.await.map_err(VerifyError::Cut)?;
        }
        for range in pieces(end..len_bytes) {
            reader.hash.update(&self.storage.read_range(path, range).await?);
        }
        Ok(ReadPack { id: reader.hash.finish(), bad_frames: reader.bad_frames })
    }

    /// Compares the rows of a pack's chunks with its table. A chunk may well lie in another pack as far as rows go: the
    /// first one that brought it.
    async fn compare_rows(
        &self,
        row: &PackRow,
        footer: &PackFooter,
        state: &mut PackState,
    ) -> Result<(), VerifyError> {
        let mut ids: Vec<[u8; ID_BYTES]> =
            footer.entries.iter().map(|entry| *entry.chunk.as_bytes()).collect();
        ids.sort_unstable();
        ids.dedup();
        let entries: HashSet<(ChunkId, u32, u32)> =
            footer.entries.iter().map(|entry| (entry.chunk, entry.offset, entry.frame_len)).collect();
        let mut connection = self.database.readers().acquire().await.map_err(failed("answer"))?;
        let places = chunks::locate(&mut connection, &[row.namespace], &ids).await?;
        let mut wrong = 0u64;
        for (id, place) in ids.into_iter().zip(places) {
            match place {
                // Its row named another pack and went with that one: it is sent again by whoever needs it.
                None => state.unindexed += 1,
                Some(place) if place.row != row.row => {}
                Some(place) => {
                    state.rows += 1;
                    let known = entries.contains(&(ChunkId::from_bytes(id), place.offset, place.frame_len));
                    wrong += u64::from(!known);
                }
            }
        }
        if wrong > 0 {
            state.rows_problem = Some(format!("{wrong} of its chunks have a wrong row"));
        }
        Ok(())
    }
}

/// A range in pieces that may be in memory.
fn pieces(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let starts = (range.start..range.end).step_by(usize::try_from(READ_BYTES).unwrap_or(usize::MAX));
    starts.map(move |start| start..range.end.min(start + READ_BYTES))
}

struct PackReader {
    decoder: PackDecoder,
    hash: PackHasher,
    bad_frames: HashMap<u32, FormatError>,
}

impl PackReader {
    fn read(&mut self, bytes: &Bytes, entries: &[PackEntry]) {
        self.hash.update(bytes);
        for entry in entries {
            if let Err(error) = self.decoder.check_one(bytes, entries, entry) {
                self.bad_frames.insert(entry.offset, error);
            }
        }
    }
}

/// A pack read to its end.
struct ReadPack {
    id: PackId,
    bad_frames: HashMap<u32, FormatError>,
}

impl ReadPack {
    fn problem(&self, expected: PackId) -> Option<String> {
        let mut offsets: Vec<&u32> = self.bad_frames.keys().collect();
        offsets.sort_unstable();
        let named: Vec<String> = offsets
            .iter()
            .take(MAX_NAMED_FRAMES)
            .map(|offset| format!("at byte {offset}: {}", self.bad_frames[offset]))
            .collect();
        match (self.bad_frames.len(), self.id == expected) {
            (0, true) => None,
            (0, false) => Some(format!("its bytes have the id {}, though every frame is whole", self.id)),
            (count, _) => Some(format!("{count} of its frames cannot be read; {}", named.join("; "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_cover_a_range_once() {
        assert_eq!(pieces(5..5).count(), 0);
        assert!(pieces(5..6).eq(std::iter::once(5..6)));
        let end = 2 * READ_BYTES + 10;
        assert_eq!(
            pieces(5..end).collect::<Vec<_>>(),
            [5..5 + READ_BYTES, 5 + READ_BYTES..5 + 2 * READ_BYTES, 5 + 2 * READ_BYTES..end]
        );
    }
}
