//! Which file of a desktop is meant, and on which disk.

use std::str::FromStr;

use chunk_format::DiskRole;
use clap::ValueEnum;
use satchel_client::past;

/// A path on a disk of something: `DESKTOP:PATH`.
#[derive(Clone, Debug)]
pub(super) struct FilePlace<T> {
    pub(super) of: T,
    pub(super) path: String,
}

impl<T: FromStr<Err: std::fmt::Display>> FromStr for FilePlace<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // What a golden version is called has colons of its own, and no slash.
        let colon = match text.starts_with(past::IMAGE) {
            true => text.find(":/").or_else(|| text.rfind(':')),
            false => text.find(':'),
        };
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

#[cfg(test)]
mod tests {
    use satchel_client::past::PastRef;

    use super::*;

    #[test]
    fn a_place_is_something_and_a_path_in_it() {
        let place = |text: &str| {
            let FilePlace { of, path } = text.parse::<FilePlace<PastRef>>()?;
            Ok::<_, String>((of.to_string(), path))
        };
        for (text, of, path) in [
            ("work:/a", "work", "/a"),
            ("work@3:a:b", "work@3", "a:b"),
            ("work:/a:/b", "work", "/a:/b"),
            ("image:/a", "image", "/a"),
            ("image:debian:/a:b", "image:debian:stable", "/a:b"),
            ("image:debian:beta:/a", "image:debian:beta", "/a"),
            ("image:debian@3:/a", "image:debian@3", "/a"),
        ] {
            assert_eq!(place(text), Ok((of.to_owned(), path.to_owned())), "{text}");
        }
        for text in ["work", "work:", "a b:/c", "image:a b:/c"] {
            assert!(place(text).is_err(), "{text}");
        }
    }
}
