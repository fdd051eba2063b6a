//! Segments kept on this machine, so that a disk opens without its source.

use std::io::Write;
use std::path::{Path, PathBuf};

use chunk_format::{FrameDecoder, SEGMENT_BYTES, Segment, SegmentId, frame_len_max};

/// A directory of framed segments. A hint like the cache: each is checked against its id when read, and what does not
/// match is fetched again.
#[derive(Clone, Debug)]
pub struct SegmentStore {
    dir: PathBuf,
}

impl SegmentStore {
    /// Uses a directory that exists.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The segment, if it is here and whole.
    pub fn load(&self, id: SegmentId) -> Option<Segment> {
        self.load_frame(id).map(|(segment, _)| segment)
    }

    /// The segment and its frame, if it is here and whole.
    pub fn load_frame(&self, id: SegmentId) -> Option<(Segment, Vec<u8>)> {
        let path = self.path(id);
        let length = std::fs::metadata(&path).ok()?.len();
        if length > frame_len_max(SEGMENT_BYTES) as u64 {
            return None;
        }
        let frame = std::fs::read(&path).ok()?;
        let segment = Segment::decode(&frame, id, &mut FrameDecoder::new().ok()?).ok()?;
        Some((segment, frame))
    }

    /// Whether a file of this name is here.
    pub fn contains(&self, id: SegmentId) -> bool {
        self.path(id).exists()
    }

    /// Keeps a framed segment; failing to is no more than a fetch lost.
    pub fn keep(&self, id: SegmentId, frame: &[u8]) {
        if let Err(error) = write_whole(&self.dir, &self.path(id), frame) {
            tracing::debug!(segment = %id, %error, "a segment was not kept");
        }
    }

    /// Removes all segments but these, and what other processes left unfinished.
    pub fn retain(&self, wanted: &std::collections::HashSet<SegmentId>) {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return };
        let ours = staged_prefix();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_superfluous = match name.parse::<SegmentId>() {
                Ok(id) => !wanted.contains(&id),
                Err(_) => name.starts_with('.') && !name.starts_with(&ours),
            };
            if is_superfluous {
                // What cannot be removed now is looked at again next time.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn path(&self, id: SegmentId) -> PathBuf {
        self.dir.join(id.to_string())
    }
}

/// What the names of unfinished files of this process begin with.
fn staged_prefix() -> String {
    format!(".{}.", std::process::id())
}

pub(crate) fn write_whole(dir: &Path, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let staged = dir.join(staged_prefix() + &name);
    let written = std::fs::File::create(&staged)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| std::fs::rename(&staged, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&staged);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use chunk_format::{ChunkId, FrameEncoder};

    use super::*;

    #[test]
    fn a_kept_segment_is_read_back_only_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = SegmentStore::new(dir.path().to_owned());
        let segment = Segment::new(vec![ChunkId::of(b"a")]).unwrap();
        let id = segment.id();
        assert!(store.load(id).is_none());
        store.keep(id, &segment.encode(&mut FrameEncoder::new().unwrap()).unwrap());
        assert_eq!(store.load(id).unwrap(), segment);
        let path = dir.path().join(id.to_string());
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(store.load(id).is_none());
    }

    #[test]
    fn only_wanted_segments_stay() {
        let dir = tempfile::tempdir().unwrap();
        let store = SegmentStore::new(dir.path().to_owned());
        let (kept, dropped) = (SegmentId::of(b"1"), SegmentId::of(b"2"));
        store.keep(kept, b"x");
        store.keep(dropped, b"y");
        store.retain(&HashSet::from([kept]));
        assert!(store.contains(kept));
        assert!(!store.contains(dropped));
    }
}
