//! What can be wrong with bytes that claim to be one of our formats.

/// Why bytes were refused. The text names the structure, the field and the value found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// Fewer bytes than the structure needs.
    #[error("{what} is cut short: {len_bytes} bytes where at least {needed_bytes} are needed")]
    Truncated {
        /// The structure being read.
        what: &'static str,
        /// Bytes there are.
        len_bytes: u64,
        /// Bytes needed to go on.
        needed_bytes: u64,
    },
    /// More bytes than this structure may have.
    #[error("{what} is too long: {len_bytes} bytes, the limit is {limit_bytes}")]
    TooLong {
        /// The structure being read.
        what: &'static str,
        /// Bytes there are.
        len_bytes: u64,
        /// The most this structure may have.
        limit_bytes: u64,
    },
    /// The first (or last) bytes are not this structure's magic bytes.
    #[error("this is not a {what}: its magic bytes are {found:02x?}")]
    BadMagic {
        /// The structure expected.
        what: &'static str,
        /// The bytes found instead.
        found: Vec<u8>,
    },
    /// Written by a program with another format version.
    #[error(
        "{what} has format version {found}; this program reads version {supported}: update Satchel on this side"
    )]
    UnsupportedVersion {
        /// The structure being read.
        what: &'static str,
        /// The version found.
        found: u64,
        /// The version this library reads.
        supported: u64,
    },
    /// Uses features this library does not know and must not ignore.
    #[error("{what} needs features this program does not have ({}): update Satchel on this side", features.join(", "))]
    UnsupportedFeatures {
        /// The structure being read.
        what: &'static str,
        /// The unknown feature names.
        features: Vec<String>,
    },
    /// A field's value is out of its range or contradicts another field.
    #[error("{what}: `{field}` is {found}, but must be {expected}")]
    Field {
        /// The structure being read.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// The value found.
        found: String,
        /// What it must be.
        expected: String,
    },
    /// The bytes do not have the checksum written beside them.
    #[error("{what} is damaged: its checksum does not match its bytes")]
    Checksum {
        /// The structure being read.
        what: &'static str,
    },
    /// The bytes do not have the id they were asked for by.
    #[error("{what} {expected} is damaged or replaced: its bytes have the id {found}")]
    IdMismatch {
        /// The structure being read.
        what: &'static str,
        /// The id asked for.
        expected: String,
        /// The id the bytes have.
        found: String,
    },
    /// zstd refused the bytes, or they hold more or less than they should.
    #[error("{what} cannot be decompressed: {reason}")]
    Decompress {
        /// The structure being read.
        what: &'static str,
        /// zstd's reason, or ours.
        reason: String,
    },
    /// zstd could not compress (out of memory).
    #[error("cannot compress {what}: {reason}")]
    Compress {
        /// The structure being written.
        what: &'static str,
        /// zstd's reason.
        reason: String,
    },
    /// The bytes are not the JSON this structure is written in.
    #[error("{what} is not valid: {reason}")]
    Json {
        /// The structure being read.
        what: &'static str,
        /// The parser's reason, with line and column, cut to a length and escaped: it quotes the bytes refused.
        reason: String,
    },
    /// The signature was not made by this key over these bytes.
    #[error("{what} is not signed by {key}")]
    BadSignature {
        /// The signed structure.
        what: &'static str,
        /// The key that should have signed it.
        key: String,
    },
}

impl FormatError {
    pub(crate) fn field(
        what: &'static str,
        field: &'static str,
        found: impl ToString,
        expected: impl ToString,
    ) -> Self {
        Self::Field { what, field, found: found.to_string(), expected: expected.to_string() }
    }
}
