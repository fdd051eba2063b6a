//! Sizes, times and notes as people write and read them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chunk_format::{MAX_NOTE_BYTES, check_note, misleads};

/// A number of bytes: `4096`, `512M`, `32G`, `1.5T`; powers of 1,024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no size: write 4096, 512M, 32G or 1.5T");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KB" | "KIB" => 10,
            "M" | "MB" | "MIB" => 20,
            "G" | "GB" | "GIB" => 30,
            "T" | "TB" | "TIB" => 40,
            _ => return Err(wrong()),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !is_number(whole) || !is_number(fraction) || fraction.len() > 3 {
            return Err(wrong());
        }
        let thousandths: u64 = format!("{fraction:0<3}").parse().map_err(|_| wrong())?;
        let whole: u64 = whole.parse().map_err(|_| wrong())?;
        let bytes =
            whole.checked_mul(1 << shift).and_then(|bytes| bytes.checked_add((thousandths << shift) / 1000));
        bytes.map(Self).ok_or_else(wrong)
    }
}

/// What is said of a version: something, in one line, and no more than a version holds.
pub(crate) fn note(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("say something".to_owned());
    }
    if text.len() > MAX_NOTE_BYTES {
        return Err(format!("it has {} bytes, and a version holds {MAX_NOTE_BYTES} at most", text.len()));
    }
    if let Some(character) = text.chars().find(|character| misleads(*character)) {
        let number = u32::from(character);
        return Err(format!(
            "write one line of plain text: a version holds no tabs, line breaks or other characters that do not show, as U+{number:04X}"
        ));
    }
    check_note(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

/// A number of bytes a second that gets something done.
pub(crate) fn rate(text: &str) -> Result<ByteSize, String> {
    match text.parse()? {
        ByteSize(0) => Err("it would never get done: give at least 1 byte a second".to_owned()),
        rate => Ok(rate),
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut unit = 0;
        let mut scale: u64 = 1;
        while unit + 1 < UNITS.len() && self.0 / scale >= 1024 {
            scale *= 1024;
            unit += 1;
        }
        let (whole, tenths) = (self.0 / scale, self.0 % scale * 10 / scale);
        if unit == 0 || whole >= 100 {
            write!(f, "{whole} {}", UNITS[unit])
        } else {
            write!(f, "{whole}.{tenths} {}", UNITS[unit])
        }
    }
}

/// How often something is done: every so many seconds, minutes or hours, a second to a week; or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Every(pub(crate) Option<Duration>);

const LONGEST_S: u64 = 7 * 86_400;

impl FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "never" {
            return Ok(Self(None));
        }
        let (number, unit_s) = match text.split_at_checked(text.len().saturating_sub(1)) {
            Some((number, "s")) => (number, 1),
            Some((number, "m")) => (number, 60),
            Some((number, "h")) => (number, 3600),
            _ => return Err("give a time with its unit, as 10m, 90s or 2h, or never".to_owned()),
        };
        let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit_s));
        match seconds.filter(|seconds| (1..=LONGEST_S).contains(seconds)) {
            Some(seconds) => Ok(Self(Some(Duration::from_secs(seconds)))),
            None => Err("it must be a second to a week, or never".to_owned()),
        }
    }
}

impl fmt::Display for Every {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.map(|every| every.as_secs()) {
            None => f.write_str("never"),
            Some(seconds) if seconds.is_multiple_of(3600) => write!(f, "{}h", seconds / 3600),
            Some(seconds) if seconds.is_multiple_of(60) => write!(f, "{}m", seconds / 60),
            Some(seconds) => write!(f, "{seconds}s"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_shown() {
        for (text, bytes, shown) in [
            ("4096", 4096, "4.0 KiB"),
            ("512M", 512 << 20, "512 MiB"),
            ("32G", 32 << 30, "32.0 GiB"),
            ("1.5t", 3 << 39, "1.5 TiB"),
            ("0", 0, "0 B"),
            ("10KiB", 10_240, "10.0 KiB"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.0, size.to_string()), (bytes, shown.to_owned()), "{text}");
        }
        assert_eq!(rate("512K"), Ok(ByteSize(512 << 10)));
        assert!(rate("0").is_err_and(|said| said.contains("at least")) && rate("fast").is_err());
        for bad in ["", "G", "-1", "1.2345G", "1,5G", "99999999999T", "1X", "0x10", "1..2"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_said_of_a_version_is_what_a_version_holds() {
        assert_eq!(note("B\u{fc}ro, before"), Ok("B\u{fc}ro, before".to_owned()));
        assert!(note(&"x".repeat(MAX_NOTE_BYTES)).is_ok());
        for bad in ["", " \t", "a\tb", "before\nthe upgrade", "a\u{202e}b", &"x".repeat(MAX_NOTE_BYTES + 1)] {
            assert!(note(bad).is_err(), "{bad:?}");
        }
        assert!(note("a\tb").is_err_and(|said| said.contains("U+0009")));
    }

    #[test]
    fn times_are_read_and_shown() {
        for text in ["10m", "90s", "2h", "never", "1s", "168h"] {
            assert_eq!(text.parse::<Every>().unwrap().to_string(), text);
        }
        assert_eq!("120s".parse::<Every>().unwrap().to_string(), "2m");
        for text in [
            "",
            "10",
            "0m",
            "169h",
            "m",
            "-1m",
            "1.5h",
            "99999999999999999999h",
            "18446744073709551615h",
            "10\u{e4}",
        ] {
            assert!(text.parse::<Every>().is_err(), "{text}");
        }
    }
}
