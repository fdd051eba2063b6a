//! Where a segment's chunks lie: found by the database, written down in its locator.

use std::collections::HashMap;

use chunk_format::{
    ChunkId, ChunkPlace, ChunkSize, FormatError, FrameEncoder, ID_BYTES, Locator, Namespace, PackRef,
    Segment, SegmentId,
};

use crate::database::chunks::{self, Place};
use crate::database::namespaces::{self, NamespaceId};
use crate::database::packs::{self, PackRowId};
use crate::database::segments::Places;
use crate::database::{Connection, Database, DatabaseError, failed};

/// Why a segment has no locator.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocateError {
    /// Some of its chunks are not here.
    #[error("{count} of its chunks are not here")]
    Missing {
        /// How many, or in how many packs.
        count: usize,
    },
    /// It is none that a disk may have.
    #[error(transparent)]
    Segment(FormatError),
    /// The locator could not be written down.
    #[error("its locator cannot be written down")]
    Locator(#[source] FormatError),
    /// The database does not answer.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// A segment's chunks, found.
pub(crate) struct Located {
    pub(crate) locator: Vec<u8>,
    pub(crate) chunk_size: ChunkSize,
    /// The other namespaces some of the chunks lie in.
    sources: Vec<NamespaceId>,
    /// The packs the locator names.
    packs: Vec<PackRowId>,
}

impl Located {
    /// Whether some of the chunks lie in packs that are lost.
    pub(crate) async fn is_lost(&self, connection: &mut Connection) -> Result<bool, DatabaseError> {
        packs::any_lost(connection, &self.packs).await
    }

    pub(crate) fn places(&self) -> Places<'_> {
        Places { sources: &self.sources, packs: &self.packs }
    }

    /// Checks that none of the packs was condemned since they were found.
    pub(crate) async fn check(&self, connection: &mut Connection) -> Result<(), LocateError> {
        match packs::count_gone(connection, &self.packs).await? {
            0 => Ok(()),
            count => Err(LocateError::Missing { count }),
        }
    }
}

/// Finds every chunk of the segment and writes down where.
///
/// A chunk that lies in several namespaces is taken from the segment's own: so a segment depends on as few others as it
/// can, and what keeps it alive stays in its owner's hands. After that the order of `also` decides.
pub(crate) async fn locate(
    database: &Database,
    namespace: &Namespace,
    also: &[Namespace],
    id: SegmentId,
    segment: &Segment,
) -> Result<Located, LocateError> {
    let mut wanted: Vec<[u8; ID_BYTES]> =
        segment.chunks().iter().filter(|chunk| !chunk.is_zero()).map(|chunk| *chunk.as_bytes()).collect();
    wanted.sort_unstable();
    wanted.dedup();

    let mut connection = database.readers().acquire().await.map_err(failed("answer"))?;
    let mut names = HashMap::new();
    let mut rows = Vec::new();
    let mut own = None;
    for asked in std::iter::once(namespace).chain(also) {
        if let Some(row) = namespaces::find(&mut *connection, asked).await? {
            own = if asked == namespace { Some(row.id) } else { own };
            if names.insert(row.id, asked.clone()).is_none() {
                rows.push(row.id);
            }
        }
    }
    let found = chunks::locate(&mut connection, &rows, &wanted).await?;
    drop(connection);

    let count = found.iter().filter(|place| place.is_none()).count();
    if count > 0 {
        return Err(LocateError::Missing { count });
    }
    let places: HashMap<ChunkId, Place> = wanted
        .into_iter()
        .zip(found)
        .filter_map(|(id, place)| Some((ChunkId::from_bytes(id), place?)))
        .collect();
    let chunk_size = one_chunk_size(&places)?;
    let locator = locator(id, segment, &places, &names).map_err(LocateError::Locator)?;
    let mut sources: Vec<NamespaceId> = places.values().map(|place| place.namespace).collect();
    sources.sort_unstable();
    sources.dedup();
    sources.retain(|source| Some(*source) != own);
    let mut packs: Vec<PackRowId> = places.values().map(|place| place.row).collect();
    packs.sort_unstable();
    packs.dedup();
    Ok(Located { locator, chunk_size, sources, packs })
}

/// All chunks of a disk have one size, and so have those of a segment.
fn one_chunk_size(places: &HashMap<ChunkId, Place>) -> Result<ChunkSize, LocateError> {
    let mut sizes = places.values().map(|place| place.chunk_size);
    let first = sizes.next().unwrap_or(ChunkSize::DEFAULT);
    match sizes.find(|size| *size != first) {
        None => Ok(first),
        Some(other) => Err(LocateError::Segment(FormatError::Field {
            what: "segment",
            field: "chunks",
            found: format!("of {} and of {} bytes", first.bytes(), other.bytes()),
            expected: "of one size".to_owned(),
        })),
    }
}

fn locator(
    id: SegmentId,
    segment: &Segment,
    places: &HashMap<ChunkId, Place>,
    names: &HashMap<NamespaceId, Namespace>,
) -> Result<Vec<u8>, FormatError> {
    let mut packs: Vec<PackRef> = Vec::new();
    let mut position_of: HashMap<PackRowId, u16> = HashMap::new();
    let mut located = Vec::with_capacity(segment.chunks().len());
    for chunk in segment.chunks() {
        // Zero chunks lie nowhere; all others were found.
        let place = places.get(chunk).and_then(|place| Some((place, names.get(&place.namespace)?)));
        let Some((place, namespace)) = place else {
            located.push(None);
            continue;
        };
        let pack = *position_of.entry(place.row).or_insert_with(|| {
            packs.push(PackRef { namespace: namespace.clone(), pack: place.pack, pack_len: place.pack_len });
            // At most one pack per chunk: 1,024.
            u16::try_from(packs.len() - 1).unwrap_or(u16::MAX)
        });
        located.push(Some(ChunkPlace { pack, offset: place.offset, frame_len: place.frame_len }));
    }
    Locator::new(id, packs, located)?.encode(&mut FrameEncoder::new()?)
}
