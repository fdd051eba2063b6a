//! The formats of Satchel: how a disk becomes chunks, and how chunks are stored, located, described and signed.
//!
//! Pure functions over bytes: no I/O, no async, no unsafe. Every decoder takes any bytes safely: lengths are capped
//! before memory is asked for, arithmetic is checked, decompression is bounded, and what is wrong comes back as a
//! [`FormatError`] naming the field and the value. The byte tables are in `docs/format.md`; `tests/golden/` pins them.
//!
//! ```
//! use chunk_format::{ChunkId, ChunkSize, FrameDecoder, FrameEncoder};
//!
//! let chunk = vec![7u8; ChunkSize::DEFAULT.bytes()];
//! let id = ChunkId::of_chunk(&chunk);
//! let frame = FrameEncoder::new()?.encode(&chunk)?;
//!
//! let mut decoded = vec![0u8; chunk.len()];
//! FrameDecoder::new()?.decode_chunk(&frame, id, &mut decoded)?;
//! assert_eq!(decoded, chunk);
//! # Ok::<(), chunk_format::FormatError>(())
//! ```

mod boot_stream;
mod digest;
mod error;
mod frame;
mod id;
mod locator;
mod manifest;
mod namespace;
mod pack;
mod profile;
mod reader;
mod rollout;
mod segment;
mod signature;
mod text;
mod units;

pub use boot_stream::{
    MAX_STREAM_BYTES, MAX_STREAM_CONTENT_BYTES, STREAM_CONTENT_BYTES, STREAM_HISTORY_BYTES, StreamDecoder,
    StreamWindow, encode_stream_object,
};
pub use digest::PackHasher;
pub use error::FormatError;
pub use frame::{FrameDecoder, FrameEncoder, frame_len_max};
pub use id::{ChunkId, ID_BYTES, ManifestId, PackId, ProfileId, SegmentId, StreamId, is_zero};
pub use locator::{ChunkPlace, Locator, MAX_LOCATOR_BYTES, PackRef};
pub use manifest::{
    Architecture, Base, BootFacts, Disk, DiskRole, Features, Firmware, MAX_MANIFEST_BYTES, Manifest, Subject,
    SystemMode,
};
pub use namespace::{MAX_NAME_BYTES, Name, Namespace};
pub use pack::{
    MAX_PACK_BYTES, MAX_PACK_CHUNKS, MAX_PACK_PAYLOAD_BYTES, PACK_HEADER_BYTES, PACK_TARGET_BYTES,
    PACK_TRAILER_BYTES, PackBuilder, PackEntry, PackFooter, PackTrailer, SealedPack, pack_chunks_max,
};
pub use profile::{BootStream, MAX_PROFILE_BYTES, Profile, ProfileEntry};
pub use rollout::{is_in_rollout, rollback_statement};
pub use segment::{SEGMENT_BYTES, SEGMENT_CHUNKS, Segment};
pub use signature::{MAX_SIGNATURE_BYTES, PublicKey, SecretKey, Signature};
pub use text::{MAX_MACHINE_BYTES, MAX_NOTE_BYTES, check_note, misleads, presentable};
pub use units::{ChunkIndex, ChunkSize, DiskSize, MAX_SEGMENTS_PER_DISK, SECTOR_BYTES, SegmentIndex};
