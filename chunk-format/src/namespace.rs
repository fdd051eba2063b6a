//! Who an object belongs to.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::FormatError;
use crate::id::preview;

/// The longest name, bytes.
pub const MAX_NAME_BYTES: usize = 64;

/// A name a person chose for an image, a desktop, a user or a channel.
///
/// 1 to 64 of `a-z 0-9 . _ -`, starting with a letter or digit: safe as a path segment and in a URL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        let allowed = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if text.len() > MAX_NAME_BYTES || !starts_well || !text.bytes().all(allowed) {
            return Err(FormatError::field(
                "name",
                "name",
                preview(text),
                "1 to 64 of a-z, 0-9, '.', '_' and '-', starting with a letter or digit",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Name {
    type Error = FormatError;
    fn try_from(text: String) -> Result<Self, FormatError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who an object belongs to: an image or a user. Written `image/NAME` or `user/NAME`; also the path of its root.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Namespace {
    /// The golden versions of one image.
    Image(Name),
    /// The desktops of one user.
    User(Name),
}

impl Namespace {
    /// `image` or `user`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Image(_) => "image",
            Self::User(_) => "user",
        }
    }

    /// The image's or user's name.
    pub fn name(&self) -> &Name {
        match self {
            Self::Image(name) | Self::User(name) => name,
        }
    }
}

impl FromStr for Namespace {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        match text.split_once('/') {
            Some(("image", name)) => Ok(Self::Image(name.parse()?)),
            Some(("user", name)) => Ok(Self::User(name.parse()?)),
            _ => Err(FormatError::field("namespace", "namespace", preview(text), "image/NAME or user/NAME")),
        }
    }
}

impl TryFrom<String> for Namespace {
    type Error = FormatError;
    fn try_from(text: String) -> Result<Self, FormatError> {
        text.parse()
    }
}

impl From<Namespace> for String {
    fn from(namespace: Namespace) -> String {
        namespace.to_string()
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind(), self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_as_path_segments() {
        for good in ["debian", "debian-12.5", "a", "0", "win_11"] {
            assert_eq!(good.parse::<Name>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", ".hidden", "-x", "a/b", "A", "a b", "ä", "a\0", &"x".repeat(65)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn namespaces_round_trip_as_text() {
        for text in ["image/debian", "user/alice"] {
            assert_eq!(text.parse::<Namespace>().unwrap().to_string(), text);
        }
        for bad in ["", "image", "image/", "images/debian", "image/a/b", "/image/a", "image/.."] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad:?}");
        }
    }
}
