//! Which file of a desktop is meant, and on which disk.

use std::str::FromStr;

use chunk_format::DiskRole;
use clap::ValueEnum;

/// A path on a disk of something: `DESKTOP:PATH`.
#[derive(Clone, Debug)]
pub(super) struct FilePlace<T> {
    pub(super) of: T,
    pub(super) path: String,
}

impl<T: FromStr<Err: std::fmt::Display>> FromStr for FilePlace<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The name of an image has colons of its own, and no version has a slash.
        let colon = text.find(":/").or_else(|| text.rfind(':'));
        let parts =
            colon.map(|colon| (&text[..colon], &text[colon + 1..])).filter(|(_, path)| !path.is_empty());
        let (of, path) = parts.ok_or_else(|| format!("`{text}` names no file: write DESKTOP:/PATH"))?;
        Ok(Self { of: of.parse().map_err(|error: T::Err| error.to_string())?, path: path.to_owned() })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum DiskArg {
    /// The disk that boots
    System,
    /// The person's own disk
    Home,
}

impl DiskArg {
    pub(super) fn role(self) -> DiskRole {
        match self {
            Self::System => DiskRole::System,
            Self::Home => DiskRole::Home,
        }
    }
}
