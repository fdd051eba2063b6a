//! Every segment and its locator: each chunk must lie where the locator says.

use std::collections::{BTreeSet, HashMap};

use chunk_format::{
    ChunkId, ChunkPlace, FormatError, FrameDecoder, ID_BYTES, Locator, MAX_LOCATOR_BYTES, Namespace, PackRef,
    SEGMENT_CHUNKS, Segment, frame_len_max,
};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{BadSegment, Check, FindingAt, Part, VerifyError, readers};
use crate::database::segments::{self, SegmentRow, SegmentRowId};
use crate::database::{Connection, chunks, failed, namespaces, packs};
use crate::limits::MAX_SEGMENT_FRAME_BYTES;
use crate::pack_check::read_footer;
use crate::storage::{Object, ObjectKey, StorageError};

const ROWS_AT_ONCE: u32 = 256;

/// What one segment's check found.
#[derive(Default)]
struct SegmentState {
    /// What is wrong, and with which object.
    problems: Vec<(Object, Problem)>,
    /// Findings about packs this segment needs.
    packs: Vec<FindingAt>,
    /// Findings about packs of which it cannot be told whether it needs what is damaged there.
    perhaps: Vec<FindingAt>,
    /// Whether one of the packs it needs is lost.
    needs_lost: bool,
}

/// Places that a locator has wrong.
#[derive(Default)]
struct Misplaced {
    chunks: u64,
    /// Why some could not be looked at.
    unlooked: Option<String>,
}

/// What is wrong with an object.
struct Problem {
    text: String,
    /// Whether that is because the store did not give it: it may yet.
    is_withheld: bool,
}

impl From<String> for Problem {
    fn from(text: String) -> Self {
        Self { text, is_withheld: false }
    }
}

impl From<FormatError> for Problem {
    fn from(error: FormatError) -> Self {
        error.to_string().into()
    }
}

impl Check<'_> {
    pub(super) async fn segments(&mut self) -> Result<(), VerifyError> {
        let total = segments::count(self.database.readers()).await?;
        self.progress.begin(Part::Segments, total);
        let mut after = SegmentRowId(0);
        loop {
            let rows = segments::list_after(self.database.readers(), after, ROWS_AT_ONCE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.row;
            self.know(rows.iter().map(|row| row.namespace)).await?;
            let checked: Vec<_> = {
                let this = &*self;
                let states = rows.into_iter().map(|row| async move {
                    let state = this.segment(&row).await?;
                    Ok::<_, VerifyError>((row, state))
                });
                stream::iter(states).buffered(2 * readers()).try_collect::<Vec<_>>().await?
            };
            for (row, state) in checked {
                self.note_segment(&row, state)?;
            }
        }
    }

    fn note_segment(&mut self, row: &SegmentRow, state: SegmentState) -> Result<(), VerifyError> {
        self.report.segments += 1;
        let mut findings = state.packs;
        let mut is_lost = state.needs_lost;
        for (object, problem) in state.problems {
            let key = ObjectKey { namespace: self.name(row.namespace)?, object };
            is_lost |= !problem.is_withheld;
            findings.push(self.find_content(&key, problem.text, !problem.is_withheld));
            for perhaps in &state.perhaps {
                self.unsure(*perhaps, format!("{key} cannot be read"));
            }
        }
        if !findings.is_empty() {
            findings.sort_unstable();
            findings.dedup();
            let bad = BadSegment { row: row.row, findings, is_lost, affects: BTreeSet::new() };
            self.bad_segments.insert((row.namespace, row.segment), bad);
        }
        Ok(())
    }

    async fn segment(&self, row: &SegmentRow) -> Result<SegmentState, VerifyError> {
        self.reachable()?;
        let namespace = self.name(row.namespace)?;
        let mut state = SegmentState::default();
        let mut decoder = FrameDecoder::new().map_err(VerifyError::Decoder)?;

        let object = Object::Segment(row.segment);
        let segment = match self.read_small(&namespace, object, MAX_SEGMENT_FRAME_BYTES + 1).await? {
            Ok(frame) => Segment::decode(&frame, row.segment, &mut decoder).map_err(Problem::from),
            Err(problem) => Err(problem),
        };
        let locating = Object::Locator(row.segment);
        let locator =
            match self.read_small(&namespace, locating, frame_len_max(MAX_LOCATOR_BYTES) + 1).await? {
                Ok(frame) => Locator::decode(&frame, row.segment, &mut decoder).map_err(Problem::from),
                Err(problem) => Err(problem),
            };
        match (segment, locator) {
            (Ok(segment), Ok(locator)) => self.places(row, &segment, &locator, &mut state).await?,
            (Err(problem), Ok(locator)) => {
                state.problems.push((object, problem));
                self.located(&locator, &mut state);
            }
            (segment, Err(problem)) => {
                let unread = segment.err().map(|problem| (object, problem));
                state.problems.extend(unread.into_iter().chain([(locating, problem)]));
            }
        }
        if !state.problems.is_empty()
            && !segments::is_live(self.database.readers(), &namespace, row.segment).await?
        {
            // It was condemned meanwhile, and its objects may be gone.
            state = SegmentState::default();
        }
        if !state.problems.is_empty() {
            self.recorded(row, &mut state).await?;
        }
        self.progress.advance(1);
        Ok(state)
    }

    async fn read_small(
        &self,
        namespace: &Namespace,
        object: Object,
        limit_bytes: usize,
    ) -> Result<Result<bytes::Bytes, Problem>, VerifyError> {
        let key = ObjectKey { namespace: namespace.clone(), object };
        match self.storage.read(&key, limit_bytes as u64).await {
            Ok(bytes) => Ok(Ok(bytes)),
            Err(error @ StorageError::NotFound { .. }) => Ok(Err(format!("it is missing: {error}").into())),
            Err(error) => Ok(Err(Problem { text: crate::cause::chain(&error), is_withheld: true })),
        }
    }

    /// Checks every chunk's place.
    async fn places(
        &self,
        row: &SegmentRow,
        segment: &Segment,
        locator: &Locator,
        state: &mut SegmentState,
    ) -> Result<(), VerifyError> {
        let mut problems = Misplaced::default();
        let mut by_namespace: HashMap<&Namespace, Vec<(ChunkId, ChunkPlace, &PackRef)>> = HashMap::new();
        for (at, chunk) in segment.chunks().iter().enumerate() {
            match (chunk.is_zero(), locator.place(at)) {
                (true, None) => {}
                (true, Some(_)) | (false, None) => problems.chunks += 1,
                (false, Some(place)) => match locator.pack(&place) {
                    Some(pack) => {
                        by_namespace.entry(&pack.namespace).or_default().push((*chunk, place, pack))
                    }
                    None => problems.chunks += 1,
                },
            }
        }
        let mut connection = self.database.readers().acquire().await.map_err(failed("answer"))?;
        for (namespace, places) in by_namespace {
            self.places_in(&mut connection, row, namespace, &places, &mut problems).await?;
            places.iter().for_each(|(_, place, pack)| self.look_up(pack, place, state));
        }
        let Misplaced { chunks, unlooked } = problems;
        if chunks > 0 {
            let problem = format!("{chunks} of its chunks do not lie where it says");
            state.problems.push((Object::Locator(row.segment), problem.into()));
        }
        if let Some(reason) = unlooked {
            let text = format!("whether its chunks lie where it says could not be looked at: {reason}");
            state.problems.push((Object::Locator(row.segment), Problem { text, is_withheld: true }));
        }
        Ok(())
    }

    /// Notes the finding that says that what lies at this place cannot be read, if there is one.
    fn look_up(&self, pack: &PackRef, place: &ChunkPlace, state: &mut SegmentState) {
        let bad = self.bad_packs.get(&(pack.namespace.clone(), pack.pack));
        if let Some(bad) = bad.filter(|bad| bad.spoils(place.offset)) {
            state.packs.push(bad.finding);
            state.needs_lost |= bad.is_lost;
        }
    }

    /// Finds the damaged packs of a segment that cannot be read, as its locator has them.
    fn located(&self, locator: &Locator, state: &mut SegmentState) {
        for place in (0..SEGMENT_CHUNKS).filter_map(|at| locator.place(at)) {
            if let Some(pack) = locator.pack(&place) {
                self.look_up(pack, &place, state);
            }
        }
    }

    /// Finds the damaged packs of a segment that is damaged, too, as the database has them: it knows packs, and no places in
    /// them. Nothing says that a locator is right but the segment and the packs.
    async fn recorded(&self, row: &SegmentRow, state: &mut SegmentState) -> Result<(), VerifyError> {
        if self.bad_packs.is_empty() {
            return Ok(());
        }
        let mut connection = self.database.readers().acquire().await.map_err(failed("answer"))?;
        let noted = segments::packs_of(&mut connection, row.row).await?;
        for bad in self.bad_packs.values() {
            match (noted.packs.contains(&bad.row), &bad.frames) {
                (true, None) => state.packs.push(bad.finding),
                (false, _) if noted.are_all => {}
                _ if state.packs.contains(&bad.finding) => {}
                _ => state.perhaps.push(bad.finding),
            }
        }
        Ok(())
    }

    /// Counts the places among these that are wrong.
    async fn places_in(
        &self,
        connection: &mut Connection,
        row: &SegmentRow,
        namespace: &Namespace,
        places: &[(ChunkId, ChunkPlace, &PackRef)],
        misplaced: &mut Misplaced,
    ) -> Result<(), VerifyError> {
        let Some(found) = namespaces::find(&mut *connection, namespace).await? else {
            misplaced.chunks += places.len() as u64;
            return Ok(());
        };
        let ids: Vec<[u8; ID_BYTES]> = places.iter().map(|(chunk, _, _)| *chunk.as_bytes()).collect();
        let known = chunks::locate(&mut *connection, &[found.id], &ids).await?;
        for ((chunk, place, pack), known) in places.iter().zip(known) {
            let is_known = known.is_some_and(|known| {
                (known.pack, known.pack_len) == (pack.pack, pack.pack_len)
                    && (known.offset, known.frame_len) == (place.offset, place.frame_len)
                    && known.chunk_size == row.chunk_size
            });
            // The chunk's row may name another pack that holds it too: then this pack's own table decides.
            if is_known {
                continue;
            }
            match self.is_in_table(connection, namespace, pack, *chunk, place).await? {
                Ok(true) => {}
                Ok(false) => misplaced.chunks += 1,
                Err(reason) => misplaced.unlooked = Some(reason),
            }
        }
        Ok(())
    }

    async fn is_in_table(
        &self,
        connection: &mut Connection,
        namespace: &Namespace,
        pack: &PackRef,
        chunk: ChunkId,
        place: &ChunkPlace,
    ) -> Result<Result<bool, String>, VerifyError> {
        if self.bad_packs.contains_key(&(namespace.clone(), pack.pack)) {
            // Told already, as the pack's own damage.
            return Ok(Ok(true));
        }
        // On the connection at hand: segments that are checked at once, each waiting for a second one, wait for each other.
        if !packs::is_live(connection, namespace, pack.pack).await? {
            return Ok(Ok(false));
        }
        let key = ObjectKey { namespace: namespace.clone(), object: Object::Pack(pack.pack) };
        match read_footer(&self.storage, &key.path(), u64::from(pack.pack_len)).await {
            Ok(Ok(footer)) => Ok(Ok(footer.entries.iter().any(|entry| {
                entry.chunk == chunk && entry.offset == place.offset && entry.frame_len == place.frame_len
            }))),
            Ok(Err(_)) | Err(StorageError::NotFound { .. }) => Ok(Ok(false)),
            Err(error) => Ok(Err(crate::cause::chain(&error))),
        }
    }
}
