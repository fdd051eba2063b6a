//! Conditional and partial reads (RFC 9110 sections 13 and 14).

use std::ops::Range;

use axum::http::HeaderMap;
use axum::http::header::{IF_NONE_MATCH, IF_RANGE, RANGE};

/// What of an object a request wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// All of it.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// Bytes past its end.
    NotThere,
}

/// Whether the client has this very object already.
pub(crate) fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|list| {
        list.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
    })
}

/// Which bytes of an object of this length are wanted.
///
/// A `range` this server does not serve (another unit, several ranges, one it cannot read) is ignored, as the standard
/// has it, and so is one whose `if-range` names another object.
pub(crate) fn wanted(headers: &HeaderMap, etag: &str, len_bytes: u64) -> Wanted {
    let mut ranges = headers.get_all(RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return Wanted::Whole };
    if headers.get(IF_RANGE).is_some_and(|condition| condition.as_bytes() != etag.as_bytes()) {
        return Wanted::Whole;
    }
    range.to_str().ok().and_then(|range| parse(range, len_bytes)).unwrap_or(Wanted::Whole)
}

fn parse(range: &str, len_bytes: u64) -> Option<Wanted> {
    let (unit, range) = range.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = range.trim().split_once('-')?;
    let (start, end) = match (position(first)?, position(last)?) {
        (None, None) => return None,
        (None, Some(suffix)) => (len_bytes.saturating_sub(suffix), len_bytes),
        (Some(start), None) => (start, len_bytes),
        (Some(start), Some(last)) if start <= last => (start, len_bytes.min(last.saturating_add(1))),
        (Some(_), Some(_)) => return None,
    };
    Some(if start < end { Wanted::Part(start..end) } else { Wanted::NotThere })
}

/// A decimal number, or nothing at all. Digits beyond what a number holds lie past every end.
fn position(text: &str) -> Option<Option<u64>> {
    if text.is_empty() {
        return Some(None);
    }
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| Some(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const ETAG: &str = "\"abc\"";

    fn asked(range: &str, if_range: Option<&str>) -> Wanted {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, HeaderValue::from_str(range).unwrap());
        if let Some(if_range) = if_range {
            headers.insert(IF_RANGE, HeaderValue::from_str(if_range).unwrap());
        }
        wanted(&headers, ETAG, 100)
    }

    #[test]
    fn one_range_of_bytes_is_served() {
        let cases = [
            ("bytes=0-0", Wanted::Part(0..1)),
            ("bytes=10-19", Wanted::Part(10..20)),
            ("bytes=90-", Wanted::Part(90..100)),
            ("bytes=90-1000", Wanted::Part(90..100)),
            ("bytes=-10", Wanted::Part(90..100)),
            ("bytes=-1000", Wanted::Part(0..100)),
            ("Bytes=5-5", Wanted::Part(5..6)),
            ("bytes=0-99999999999999999999999", Wanted::Part(0..100)),
            ("bytes=100-", Wanted::NotThere),
            ("bytes=100-200", Wanted::NotThere),
            ("bytes=-0", Wanted::NotThere),
            ("bytes=99999999999999999999999-", Wanted::NotThere),
        ];
        for (range, expected) in cases {
            assert_eq!(asked(range, None), expected, "{range}");
        }
    }

    #[test]
    fn ranges_that_are_not_served_are_ignored() {
        for range in [
            "bytes",
            "bytes=",
            "bytes=-",
            "bytes=5-4",
            "bytes=0-1,5-6",
            "bytes=a-b",
            "bytes=+1-2",
            "lines=0-1",
        ] {
            assert_eq!(asked(range, None), Wanted::Whole, "{range}");
        }
        let mut headers = HeaderMap::new();
        headers.append(RANGE, HeaderValue::from_static("bytes=0-1"));
        headers.append(RANGE, HeaderValue::from_static("bytes=5-6"));
        assert_eq!(wanted(&headers, ETAG, 100), Wanted::Whole);
    }

    #[test]
    fn a_range_holds_for_the_object_if_range_names() {
        assert_eq!(asked("bytes=0-0", Some(ETAG)), Wanted::Part(0..1));
        for other in ["\"xyz\"", "W/\"abc\"", "Sat, 01 Jan 2000 00:00:00 GMT"] {
            assert_eq!(asked("bytes=0-0", Some(other)), Wanted::Whole, "{other}");
        }
    }

    #[test]
    fn known_objects_are_told_by_any_tag_in_the_list() {
        let known = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(IF_NONE_MATCH, HeaderValue::from_static(value));
            is_known(&headers, ETAG)
        };
        for value in ["\"abc\"", "*", "\"x\", \"abc\"", "W/\"abc\""] {
            assert!(known(value), "{value}");
        }
        for value in ["\"x\"", "abc", ""] {
            assert!(!known(value), "{value}");
        }
    }
}
