//! The identity written into both files of an overlay, so that neither is ever used with another disk.
//!
//! One 4 KiB block at the front of the map file and, the same bytes, at the end of the data file:
//!
//! | at   | len | field       | values                                                           |
//! |------|-----|-------------|------------------------------------------------------------------|
//! |    0 |  8  | magic       | `SATOVER\x1a`                                                    |
//! |    8 |  2  | version     | 1                                                                |
//! |   10 |  1  | role        | 0 system, 1 home                                                 |
//! |   11 |  5  | reserved    | 0                                                                |
//! |   16 | 32  | desktop     | id of the desktop's first version                                |
//! |   48 | 32  | beneath     | id of the version it was begun on                                |
//! |   80 |  8  | generation  | counts overlays of the desktop; higher is newer                  |
//! |   88 |  8  | size        | bytes of the disk                                                |
//! |   96 |  8  | nonce       | random: pairs the data file with its map                         |
//! | 4092 |  4  | checksum    | CRC-32 of bytes 0 to 4091                                        |
//!
//! Numbers are little-endian.

use chunk_format::{DiskRole, DiskSize, ID_BYTES, ManifestId};

use super::OverlayError;

/// Bytes of an encoded header.
pub(super) const HEADER_BYTES: usize = 4096;

const MAGIC: &[u8; 8] = b"SATOVER\x1a";
const VERSION: u16 = 1;

/// What an overlay belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverlayIdentity {
    /// The desktop, by its first version.
    pub desktop: ManifestId,
    /// Which of its disks.
    pub role: DiskRole,
    /// The disk's size.
    pub size: DiskSize,
    /// Counts the desktop's overlays; higher is newer.
    pub generation: u64,
}

/// An identity as it is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) identity: OverlayIdentity,
    pub(super) beneath: ManifestId,
    pub(super) nonce: u64,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(10, &[role_code(self.identity.role)]);
        put(16, self.identity.desktop.as_bytes());
        put(48, self.beneath.as_bytes());
        put(80, &self.identity.generation.to_le_bytes());
        put(88, &self.identity.size.bytes().to_le_bytes());
        put(96, &self.nonce.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER_BYTES], file: &str) -> Result<Self, OverlayError> {
        let damaged = |reason: String| OverlayError::Damaged { file: file.to_owned(), reason };
        if bytes[..8] != *MAGIC {
            return Err(damaged("it is not an overlay file".to_owned()));
        }
        let version = u16::from_le_bytes(array(bytes, 8));
        if version != VERSION {
            return Err(OverlayError::UnsupportedVersion { file: file.to_owned(), found: version });
        }
        let checksum = u32::from_le_bytes(array(bytes, HEADER_BYTES - 4));
        if checksum != crc32fast::hash(&bytes[..HEADER_BYTES - 4]) {
            return Err(damaged("its header's checksum is wrong".to_owned()));
        }
        let role = match bytes[10] {
            0 => DiskRole::System,
            1 => DiskRole::Home,
            other => return Err(damaged(format!("its header names the unknown disk role {other}"))),
        };
        let size = DiskSize::new(u64::from_le_bytes(array(bytes, 88))).map_err(|e| damaged(e.to_string()))?;
        Ok(Self {
            identity: OverlayIdentity {
                desktop: ManifestId::from_bytes(array::<ID_BYTES>(bytes, 16)),
                role,
                size,
                generation: u64::from_le_bytes(array(bytes, 80)),
            },
            beneath: ManifestId::from_bytes(array::<ID_BYTES>(bytes, 48)),
            nonce: u64::from_le_bytes(array(bytes, 96)),
        })
    }
}

fn role_code(role: DiskRole) -> u8 {
    match role {
        DiskRole::System => 0,
        DiskRole::Home => 1,
    }
}

fn array<const N: usize>(bytes: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[at..at + N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back_and_every_flipped_byte_is_found() {
        let header = Header {
            identity: OverlayIdentity {
                desktop: ManifestId::of(b"desktop"),
                role: DiskRole::Home,
                size: DiskSize::new(1 << 30).unwrap(),
                generation: 7,
            },
            beneath: ManifestId::of(b"head"),
            nonce: 42,
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes, "x").unwrap(), header);
        for at in 0..HEADER_BYTES {
            let mut flipped = bytes;
            flipped[at] ^= 1;
            assert!(Header::decode(&flipped, "x").is_err(), "byte {at}");
        }
    }
}
