//! Reading files in pieces larger than the store itself would.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use bytes::Bytes;
use futures_util::{Stream, stream};

/// Bytes read at once: few enough for many downloads at once, enough for few hand-overs between threads.
const PIECE_BYTES: usize = 128 << 10;

/// The bytes of a range as they are asked for: never more than a piece of them in memory.
pub(super) fn pieces(
    file: File,
    range: Range<u64>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((file, range), |(mut file, range)| async move {
        if range.is_empty() {
            return Ok(None);
        }
        let read = tokio::task::spawn_blocking(move || {
            let len = (range.end - range.start).min(PIECE_BYTES as u64);
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(PIECE_BYTES)];
            file.seek(SeekFrom::Start(range.start))?;
            file.read_exact(&mut bytes)?;
            Ok::<_, io::Error>((Bytes::from(bytes), (file, range.start + len..range.end)))
        });
        read.await.map_err(io::Error::other)?.map(Some)
    })
}
