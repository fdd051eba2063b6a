//! Boot profiles: the chunks a start touches, in the order of first touch. Written by the publisher, signed like a
//! manifest, named by the SHA-256 of its bytes.
//!
//! | len          | field      | values                                                             |
//! |--------------|------------|--------------------------------------------------------------------|
//! | 8            | magic      | `SATPROF\x1a`                                                      |
//! | 2            | version    | 1                                                                  |
//! | 32           | manifest   | the version it was recorded on                                     |
//! | 4            | entries    | at most 1,048,576                                                  |
//! | 2            | streams    | at most 1,024                                                      |
//! | streams x 40 | stream     | 32 id, u32 bytes, u32 entries, both above 0, bytes at most 17 MiB: the streams hold the entries in order |
//! | entries x 5  | entry      | u8 disk (position in the manifest, below 4), u32 chunk index; each chunk once |

use std::collections::HashSet;

use crate::boot_stream::MAX_STREAM_BYTES;
use crate::error::FormatError;
use crate::id::{ManifestId, StreamId};
use crate::manifest::MAX_DISKS;
use crate::reader::Reader;
use crate::units::{ChunkIndex, MAX_SEGMENTS_PER_DISK};

const WHAT: &str = "boot profile";
const MAGIC: &[u8; 8] = b"SATPROF\x1a";
const VERSION: u16 = 1;
const MAX_ENTRIES: usize = 1 << 20;
const MAX_STREAMS: usize = 1024;
const MAX_CHUNK_INDEX: u64 = MAX_SEGMENTS_PER_DISK as u64 * crate::segment::SEGMENT_CHUNKS as u64;

/// The longest profile anyone accepts, bytes.
pub const MAX_PROFILE_BYTES: usize = 8 + 2 + 32 + 4 + 2 + MAX_STREAMS * 40 + MAX_ENTRIES * 5;

/// A chunk a boot touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProfileEntry {
    /// Position of the disk in the manifest.
    pub disk: u8,
    /// The chunk on that disk.
    pub chunk: ChunkIndex,
}

/// One object of the boot stream: some of the profile's chunks, compressed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootStream {
    /// The object's name.
    pub id: StreamId,
    /// Its length, bytes.
    pub len_bytes: u32,
    /// How many of the profile's entries it holds, following those of the stream before it.
    pub entries: u32,
}

/// A recorded start of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The version it was recorded on.
    pub manifest: ManifestId,
    /// The chunks in the order of first touch.
    pub entries: Vec<ProfileEntry>,
    /// The same chunks as objects to download in order; empty when only packs hold them.
    pub streams: Vec<BootStream>,
}

impl Profile {
    /// The profile's bytes: what is signed, hashed, sent and stored.
    ///
    /// # Errors
    /// `Field` when a count or an index is out of range.
    pub fn encode(&self) -> Result<Vec<u8>, FormatError> {
        self.check()?;
        let mut out = Vec::with_capacity(64 + self.streams.len() * 40 + self.entries.len() * 5);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(self.manifest.as_bytes());
        out.extend_from_slice(&u32::try_from(self.entries.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&u16::try_from(self.streams.len()).unwrap_or(u16::MAX).to_le_bytes());
        for stream in &self.streams {
            out.extend_from_slice(stream.id.as_bytes());
            out.extend_from_slice(&stream.len_bytes.to_le_bytes());
            out.extend_from_slice(&stream.entries.to_le_bytes());
        }
        for entry in &self.entries {
            out.push(entry.disk);
            out.extend_from_slice(&u32::try_from(entry.chunk.0).unwrap_or(u32::MAX).to_le_bytes());
        }
        Ok(out)
    }

    /// Reads a profile; any input is safe to pass. Its signature and id are the caller's to check.
    ///
    /// # Errors
    /// `Truncated`, `TooLong`, `BadMagic`, `UnsupportedVersion`, or `Field` naming what is out of range.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        if bytes.len() > MAX_PROFILE_BYTES {
            let (len_bytes, limit_bytes) = (bytes.len() as u64, MAX_PROFILE_BYTES as u64);
            return Err(FormatError::TooLong { what: WHAT, len_bytes, limit_bytes });
        }
        let mut reader = Reader::new(WHAT, bytes);
        reader.magic(MAGIC)?;
        reader.version(VERSION)?;
        let manifest = ManifestId::from_bytes(reader.array()?);
        let (entry_count, stream_count) = (reader.u32()? as usize, usize::from(reader.u16()?));
        let mut stream_bytes = Reader::new(WHAT, reader.take(stream_count * 40)?);
        let mut entry_bytes = Reader::new(WHAT, reader.take(entry_count.saturating_mul(5))?);
        reader.end()?;
        let streams = (0..stream_count)
            .map(|_| {
                let id = StreamId::from_bytes(stream_bytes.array()?);
                Ok(BootStream { id, len_bytes: stream_bytes.u32()?, entries: stream_bytes.u32()? })
            })
            .collect::<Result<_, FormatError>>()?;
        let entries = (0..entry_count)
            .map(|_| {
                let disk = entry_bytes.u8()?;
                Ok(ProfileEntry { disk, chunk: ChunkIndex(u64::from(entry_bytes.u32()?)) })
            })
            .collect::<Result<_, FormatError>>()?;
        let profile = Self { manifest, entries, streams };
        profile.check()?;
        Ok(profile)
    }

    fn check(&self) -> Result<(), FormatError> {
        if self.entries.len() > MAX_ENTRIES {
            let expected = format!("at most {MAX_ENTRIES}");
            return Err(FormatError::field(WHAT, "entries", self.entries.len(), expected));
        }
        if self.streams.len() > MAX_STREAMS {
            let expected = format!("at most {MAX_STREAMS}");
            return Err(FormatError::field(WHAT, "streams", self.streams.len(), expected));
        }
        if let Some(entry) = self.entries.iter().find(|entry| entry.chunk.0 >= MAX_CHUNK_INDEX) {
            return Err(FormatError::field(WHAT, "chunk", entry.chunk, format!("below {MAX_CHUNK_INDEX}")));
        }
        if let Some(entry) = self.entries.iter().find(|entry| usize::from(entry.disk) >= MAX_DISKS) {
            return Err(FormatError::field(WHAT, "disk", entry.disk, format!("below {MAX_DISKS}")));
        }
        let mut seen = HashSet::with_capacity(self.entries.len());
        if let Some(entry) = self.entries.iter().find(|entry| !seen.insert(**entry)) {
            let found = format!("{} of disk {} again", entry.chunk, entry.disk);
            return Err(FormatError::field(WHAT, "chunk", found, "in the profile once"));
        }
        let fits = |stream: &BootStream| {
            stream.entries > 0 && (1..=MAX_STREAM_BYTES as u64).contains(&u64::from(stream.len_bytes))
        };
        if let Some(stream) = self.streams.iter().find(|stream| !fits(stream)) {
            let found = format!("{} entries in {} bytes", stream.entries, stream.len_bytes);
            let expected = format!("not empty, and at most {MAX_STREAM_BYTES} bytes");
            return Err(FormatError::field(WHAT, "stream", found, expected));
        }
        let streamed: u64 = self.streams.iter().map(|stream| u64::from(stream.entries)).sum();
        if !self.streams.is_empty() && streamed != self.entries.len() as u64 {
            let expected = format!("{} entries in all streams", self.entries.len());
            return Err(FormatError::field(WHAT, "stream entries", streamed, expected));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Profile {
        let entry = |chunk| ProfileEntry { disk: 0, chunk: ChunkIndex(chunk) };
        Profile {
            manifest: ManifestId::of(b"golden"),
            entries: vec![entry(0), entry(7), entry(3)],
            streams: vec![
                BootStream { id: StreamId::of(b"1"), len_bytes: 100, entries: 2 },
                BootStream { id: StreamId::of(b"2"), len_bytes: 50, entries: 1 },
            ],
        }
    }

    #[test]
    fn a_profile_reads_back_and_keeps_the_order_of_touch() {
        assert_eq!(Profile::decode(&sample().encode().unwrap()).unwrap(), sample());
    }

    #[test]
    fn counts_that_do_not_fit_the_bytes_are_refused() {
        let bytes = sample().encode().unwrap();
        for len in 0..bytes.len() {
            assert!(Profile::decode(&bytes[..len]).is_err(), "{len}");
        }
        let mut huge = bytes.clone();
        huge[42..46].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Profile::decode(&huge).is_err());
        let mut profile = sample();
        profile.streams[0].entries = 1;
        assert!(profile.encode().is_err());
    }

    #[test]
    fn a_chunk_is_in_a_profile_once() {
        let mut profile = sample();
        profile.entries[2] = profile.entries[0];
        assert!(profile.encode().is_err());
        let mut bytes = sample().encode().unwrap();
        let last = bytes.len() - 5;
        bytes.copy_within(last - 5..last, last);
        let error = Profile::decode(&bytes).unwrap_err();
        assert!(matches!(error, FormatError::Field { field: "chunk", .. }), "{error}");
    }

    #[test]
    fn entries_and_streams_out_of_range_are_named() {
        type Edit = fn(&mut Profile);
        let cases: [(&str, Edit); 5] = [
            ("disk", |profile| profile.entries[1].disk = 4),
            ("chunk", |profile| profile.entries[1].chunk = ChunkIndex(MAX_CHUNK_INDEX)),
            ("stream", |profile| profile.streams[1].len_bytes = 0),
            ("stream", |profile| {
                profile.streams[0].entries = 3;
                profile.streams[1].entries = 0;
            }),
            ("stream entries", |profile| profile.streams[0].entries = u32::MAX),
        ];
        for (expected, edit) in cases {
            let mut profile = sample();
            edit(&mut profile);
            match profile.encode().unwrap_err() {
                FormatError::Field { field, .. } => assert_eq!(field, expected),
                other => panic!("{other}"),
            }
        }
    }
}
