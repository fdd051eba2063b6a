//! Reading a stored pack and checking all that is in it, a window at a time.

use std::ops::Range;

use bytes::Bytes;
use chunk_format::{
    FormatError, FrameDecoder, PACK_HEADER_BYTES, PACK_TRAILER_BYTES, PackEntry, PackFooter, PackTrailer,
};
use object_store::path::Path;

use crate::app::App;
use crate::http::error::ApiError;
use crate::storage::{Storage, StorageError};

/// Bytes of frames read at once. A frame of the largest chunk size is a window of its own.
const WINDOW_BYTES: usize = 1 << 20;

/// Checks header, table and every frame of a pack in the staging place.
///
/// # Errors
/// `Damaged` naming what is wrong; `Internal` when the store or the machine fails.
pub(crate) async fn check(app: &App, path: &Path, len_bytes: u64) -> Result<PackFooter, ApiError> {
    let footer = read_footer(&app.storage, path, len_bytes).await?.map_err(ApiError::Damaged)?;
    let _turn = app.decoders.acquire().await.map_err(ApiError::internal)?;
    let mut decoder = PackDecoder::new(&footer).map_err(ApiError::internal)?;
    for window in windows(&footer.entries) {
        let bytes = app.storage.read_range(path, bytes_of(&footer.entries[window.clone()])).await?;
        let entries = footer.entries[window].to_vec();
        let decoded = tokio::task::spawn_blocking(move || {
            let checked = decoder.check(&bytes, &entries);
            (decoder, checked)
        });
        let checked;
        (decoder, checked) = decoded.await.map_err(ApiError::internal)?;
        checked.map_err(ApiError::Damaged)?;
    }
    Ok(footer)
}

/// Reads and checks a pack's table and header.
pub(crate) async fn read_footer(
    storage: &Storage,
    path: &Path,
    len_bytes: u64,
) -> Result<Result<PackFooter, FormatError>, StorageError> {
    let shortest = (PACK_HEADER_BYTES + PACK_TRAILER_BYTES) as u64;
    if len_bytes < shortest {
        return Ok(Err(FormatError::Truncated { what: "pack", len_bytes, needed_bytes: shortest }));
    }
    let trailer = storage.read_range(path, len_bytes - PACK_TRAILER_BYTES as u64..len_bytes).await?;
    let footer_len = match PackTrailer::decode(&trailer, len_bytes) {
        Ok(trailer) => trailer.footer_len() as u64,
        Err(error) => return Ok(Err(error)),
    };
    let tail = storage.read_range(path, len_bytes - footer_len..len_bytes).await?;
    let head = storage.read_range(path, 0..PACK_HEADER_BYTES as u64).await?;
    Ok(PackFooter::decode(&tail, len_bytes).and_then(|footer| footer.check_header(&head).map(|()| footer)))
}

/// Cuts the entries into runs of frames that are read together.
pub(crate) fn windows(entries: &[PackEntry]) -> Vec<Range<usize>> {
    let mut windows = Vec::new();
    let mut start = 0;
    for at in 1..=entries.len() {
        let is_full = || entries[at].range().end - entries[start].range().start > WINDOW_BYTES;
        if at == entries.len() || is_full() {
            windows.push(start..at);
            start = at;
        }
    }
    windows
}

/// Where the frames of neighbouring entries lie in the pack file.
pub(crate) fn bytes_of(entries: &[PackEntry]) -> Range<u64> {
    let start = entries.first().map_or(0, |entry| entry.range().start);
    let end = entries.last().map_or(0, |entry| entry.range().end);
    start as u64..end as u64
}

/// What decoding needs between windows.
pub(crate) struct PackDecoder {
    zstd: FrameDecoder,
    chunk: Vec<u8>,
}

impl PackDecoder {
    pub(crate) fn new(footer: &PackFooter) -> Result<Self, FormatError> {
        Ok(Self { zstd: FrameDecoder::new()?, chunk: vec![0; footer.chunk_size.bytes()] })
    }

    /// Decodes and hashes the frames of a window; `bytes` starts with the first of them.
    pub(crate) fn check(&mut self, bytes: &Bytes, entries: &[PackEntry]) -> Result<(), FormatError> {
        entries.iter().try_for_each(|entry| self.check_one(bytes, entries, entry))
    }

    /// Decodes and hashes one frame of a window.
    pub(crate) fn check_one(
        &mut self,
        bytes: &Bytes,
        entries: &[PackEntry],
        entry: &PackEntry,
    ) -> Result<(), FormatError> {
        let base = entries.first().map_or(0, |entry| entry.range().start);
        let (start, end) = (entry.range().start - base, entry.range().end - base);
        let Some(frame) = bytes.get(start..end) else {
            let (len_bytes, needed_bytes) = (bytes.len() as u64, end as u64);
            return Err(FormatError::Truncated { what: "pack", len_bytes, needed_bytes });
        };
        self.zstd.decode_chunk(frame, entry.chunk, &mut self.chunk)
    }
}

#[cfg(test)]
mod tests {
    use chunk_format::ChunkId;

    use super::*;

    fn entries(lengths: &[u32]) -> Vec<PackEntry> {
        let mut offset = 16;
        let entry = |frame_len: &u32| {
            let entry = PackEntry { chunk: ChunkId::of(b"x"), offset, frame_len: *frame_len };
            offset += frame_len;
            entry
        };
        lengths.iter().map(entry).collect()
    }

    #[test]
    fn windows_cover_every_entry_once_and_stay_small() {
        let mib = 1 << 20;
        let cases: [(&[u32], usize); 5] = [
            (&[5], 1),
            (&[mib], 1),
            (&[mib, 1], 2),
            (&[4 * mib, 4 * mib], 2),
            (&[mib / 2, mib / 2, mib / 2], 2),
        ];
        for (lengths, expected) in cases {
            let entries = entries(lengths);
            let windows = windows(&entries);
            assert_eq!(windows.len(), expected, "{lengths:?}");
            assert_eq!(
                windows.iter().cloned().flatten().collect::<Vec<_>>(),
                (0..entries.len()).collect::<Vec<_>>()
            );
            for window in windows {
                let span = bytes_of(&entries[window.clone()]);
                assert!(window.len() == 1 || span.end - span.start <= u64::from(mib));
            }
        }
        assert!(windows(&[]).is_empty());
    }
}
