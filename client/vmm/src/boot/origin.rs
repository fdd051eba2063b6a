//! Where a kernel comes from, for people and for programs.

use std::fmt;

use serde::Serialize;

use super::partitions::Partition;

/// Characters of one text of the disk that are shown.
const MAX_SHOWN_CHARS: usize = 200;

/// A part of the disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// Number of the partition; `None` for the whole disk.
    pub partition: Option<u32>,
    /// Its first byte.
    pub start: u64,
    /// Its length.
    pub bytes: u64,
}

impl From<&Partition> for Place {
    fn from(partition: &Partition) -> Place {
        Place {
            partition: Some(partition.number).filter(|number| *number != 0),
            start: partition.range.start,
            bytes: partition.range.end.saturating_sub(partition.range.start),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partition {
            Some(number) => write!(f, "partition {number}"),
            None => f.write_str("the whole disk"),
        }
    }
}

/// Where a kernel was found, and why it was taken. Its texts come from the disk; they are without control characters,
/// and shortened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Origin {
    /// Where the kernel's file is.
    pub place: Place,
    /// The configuration that names it; `None` when it is the newest of its directory.
    pub config: Option<String>,
    /// The entry of the configuration.
    pub title: Option<String>,
    /// Path of the kernel.
    pub kernel: String,
    /// Paths of its initrds.
    pub initrds: Vec<String>,
    /// What the kernel says it is; empty when it does not say.
    pub version: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let release = self.version.split(' ').next().unwrap_or_default();
        let release = if release.is_empty() { "of an unknown version" } else { release };
        write!(f, "Linux {release}, {} in {}", self.kernel, self.place)?;
        match (&self.config, &self.title) {
            (Some(config), Some(title)) => write!(f, ", chosen by `{title}` in {config}"),
            (Some(config), None) => write!(f, ", chosen by {config}"),
            (None, _) => f.write_str(", the newest there is"),
        }
    }
}

/// Text of the disk as it may be shown.
pub(super) fn shown(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut shown: String = text.chars().take(MAX_SHOWN_CHARS).map(plain).collect();
    if text.chars().nth(MAX_SHOWN_CHARS).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_one_line_for_a_person() {
        let mut origin = Origin {
            place: Place { partition: Some(1), start: 1 << 20, bytes: 1 << 30 },
            config: Some("/boot/grub/grub.cfg".to_owned()),
            title: Some("Debian GNU/Linux".to_owned()),
            kernel: "/boot/vmlinuz-6.1.0-18-amd64".to_owned(),
            initrds: Vec::new(),
            version: "6.1.0-18-amd64 (debian) #1".to_owned(),
        };
        assert_eq!(
            origin.to_string(),
            "Linux 6.1.0-18-amd64, /boot/vmlinuz-6.1.0-18-amd64 in partition 1, chosen by `Debian GNU/Linux` in \
             /boot/grub/grub.cfg"
        );
        origin.config = None;
        origin.place.partition = None;
        assert_eq!(
            origin.to_string(),
            "Linux 6.1.0-18-amd64, /boot/vmlinuz-6.1.0-18-amd64 in the whole disk, the newest there is"
        );
    }

    #[test]
    fn text_of_the_disk_cannot_play_with_a_terminal() {
        assert_eq!(shown("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(shown(&"é".repeat(1000)).chars().count(), MAX_SHOWN_CHARS + 1);
    }
}
