//! Names made of content: the SHA-256 of the bytes.

use std::fmt;
use std::str::FromStr;

use crate::digest::sha256;
use crate::error::FormatError;
use serde::{Deserialize, Serialize};

/// Bytes of an id.
pub const ID_BYTES: usize = 32;

macro_rules! content_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; ID_BYTES]);

        impl $name {
            /// The id of these bytes: their SHA-256.
            pub fn of(bytes: &[u8]) -> Self {
                Self(sha256(bytes))
            }

            /// Takes the 32 bytes of an id as they are stored.
            pub const fn from_bytes(bytes: [u8; ID_BYTES]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes of the id.
            pub const fn as_bytes(&self) -> &[u8; ID_BYTES] {
                &self.0
            }

            /// Checks that bytes are the ones this id names.
            ///
            /// # Errors
            /// `IdMismatch` naming both ids.
            pub fn verify(&self, bytes: &[u8]) -> Result<(), FormatError> {
                let found = Self::of(bytes);
                if found == *self {
                    return Ok(());
                }
                Err(FormatError::IdMismatch { what: $what, expected: self.to_string(), found: found.to_string() })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = FormatError;

            /// Reads 64 lower-case hexadecimal digits, and nothing else: an id is also a file name.
            fn from_str(text: &str) -> Result<Self, FormatError> {
                parse_hex(text).map(Self).ok_or_else(|| {
                    FormatError::field($what, "id", preview(text), "64 lower-case hexadecimal digits")
                })
            }
        }

        impl TryFrom<String> for $name {
            type Error = FormatError;
            fn try_from(text: String) -> Result<Self, FormatError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.to_string()
            }
        }
    };
}

content_id!(
    /// Names a chunk: the SHA-256 of its bytes, or [`ChunkId::ZERO`].
    ChunkId, "chunk"
);
content_id!(
    /// Names a pack file by all its bytes.
    PackId, "pack"
);
content_id!(
    /// Names a segment by its 32 KiB of chunk ids, or [`SegmentId::ZERO`].
    SegmentId, "segment"
);
content_id!(
    /// Names a manifest, and so a version, by its exact JSON bytes.
    ManifestId, "manifest"
);
content_id!(
    /// Names a boot profile by its bytes.
    ProfileId, "profile"
);
content_id!(
    /// Names one object of a boot stream by its bytes.
    StreamId, "boot stream"
);

impl ChunkId {
    /// The reserved id of the all-zero chunk, of every size: never stored, never fetched.
    pub const ZERO: Self = Self([0; ID_BYTES]);

    /// The id of a whole chunk: [`ChunkId::ZERO`] when every byte is zero, its SHA-256 otherwise.
    pub fn of_chunk(chunk: &[u8]) -> Self {
        if is_zero(chunk) { Self::ZERO } else { Self::of(chunk) }
    }

    /// Whether this is the reserved id of the all-zero chunk.
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

impl SegmentId {
    /// The reserved id of a segment of zero chunks only: never stored, never fetched.
    pub const ZERO: Self = Self([0; ID_BYTES]);

    /// Whether this is the reserved id of a segment of zero chunks only.
    pub fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }
}

/// Whether every byte is zero. Stops at the first 256 bytes that are not.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut blocks = bytes.chunks_exact(256);
    blocks.by_ref().all(|block| block.iter().fold(0u8, |acc, byte| acc | byte) == 0)
        && blocks.remainder().iter().all(|byte| *byte == 0)
}

pub(crate) fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Reads exactly `2 * N` lower-case hexadecimal digits.
pub(crate) fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return None;
    }
    let mut bytes = [0u8; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex_digit(pair[0])? << 4 | hex_digit(pair[1])?;
    }
    Some(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// The start of a foreign string, safe to put into a message.
pub(crate) fn preview(text: &str) -> String {
    let mut shown: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        shown.push('…');
    }
    format!("\"{shown}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_sha_256_of_the_bytes() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(ChunkId::of(b"abc").to_string(), expected);
        assert_eq!(expected.parse::<ChunkId>().unwrap(), ChunkId::of(b"abc"));
    }

    #[test]
    fn ids_are_read_strictly_because_they_become_file_names() {
        let upper = "BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD";
        for text in
            ["", "abc", upper, "../../../../../../../../../../../../../../../../../../../../etc/passwd"]
        {
            assert!(text.parse::<PackId>().is_err(), "{text}");
        }
        assert!(("é".repeat(32)).parse::<PackId>().is_err());
    }

    #[test]
    fn the_zero_chunk_has_the_reserved_id_whatever_its_size() {
        assert_eq!(ChunkId::of_chunk(&[0; 4096]), ChunkId::ZERO);
        assert_eq!(ChunkId::of_chunk(&[0; 65_536]), ChunkId::ZERO);
        let mut almost = vec![0; 65_536];
        almost[65_535] = 1;
        assert_eq!(ChunkId::of_chunk(&almost), ChunkId::of(&almost));
    }

    #[test]
    fn is_zero_sees_every_position() {
        assert!(is_zero(&[]));
        for len in [1, 255, 256, 257, 1000] {
            assert!(is_zero(&vec![0; len]));
            for at in 0..len {
                let mut bytes = vec![0; len];
                bytes[at] = 0x80;
                assert!(!is_zero(&bytes), "{at} of {len}");
            }
        }
    }

    #[test]
    fn messages_quote_foreign_text_safely() {
        assert_eq!(preview("a\u{1b}[2J"), "\"a\\u{1b}[2J\"");
        assert!(preview(&"x".repeat(1000)).chars().count() < 100);
    }
}
