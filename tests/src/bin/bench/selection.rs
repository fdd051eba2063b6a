//! What a run of the benchmarks is to measure.

use std::path::{Path, PathBuf};
use std::time::Duration;

use satchel_tests::Shape;

/// How to ask for less than everything.
pub(crate) const USAGE: &str = "\
usage: bench [SECTION]... [--image plain|desktop]... [--link RATE/ROUND-TRIP]... [--only CONTENDER]... [--no-profile] \
[--page FILE]
  RATE/ROUND-TRIP is such as 25mbit/40ms or 1gbit/2ms";

/// A link, as it is written: `25mbit/40ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkShape {
    pub(crate) rate_bps: u64,
    pub(crate) round_trip: Duration,
}

impl LinkShape {
    pub(crate) const fn new(rate_mbps: u64, round_trip_ms: u64) -> Self {
        Self { rate_bps: rate_mbps * 1_000_000, round_trip: Duration::from_millis(round_trip_ms) }
    }

    pub(crate) fn shape(self) -> Shape {
        Shape::symmetric(self.rate_bps, self.round_trip)
    }

    /// The seconds that so many bytes take on it, once they flow.
    pub(crate) fn seconds_for(self, bytes: u64) -> f64 {
        bytes as f64 * 8.0 / self.rate_bps as f64
    }

    fn parse(text: &str) -> Option<Self> {
        let (rate, round_trip) = text.split_once('/')?;
        let rate_mbps = match (rate.strip_suffix("mbit"), rate.strip_suffix("gbit")) {
            (Some(mbit), _) => mbit.parse().ok()?,
            (_, Some(gbit)) => gbit.parse::<u64>().ok()?.checked_mul(1000)?,
            _ => return None,
        };
        let round_trip_ms = round_trip.strip_suffix("ms")?.parse().ok()?;
        (1..=1_000_000).contains(&rate_mbps).then(|| Self::new(rate_mbps, round_trip_ms))
    }
}

impl std::fmt::Display for LinkShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (mbit, ms) = (self.rate_bps / 1_000_000, self.round_trip.as_millis());
        if mbit % 1000 == 0 {
            write!(f, "{}gbit/{ms}ms", mbit / 1000)
        } else {
            write!(f, "{mbit}mbit/{ms}ms")
        }
    }
}

/// What was asked for; empty lists stand for everything.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    pub(crate) sections: Vec<String>,
    images: Vec<String>,
    links: Vec<LinkShape>,
    only: Vec<String>,
    pub(crate) without_profile: bool,
    /// Where the page goes; in its place in the repository when everything is measured and nothing else is said.
    page: Option<PathBuf>,
}

impl Selection {
    /// Reads the command line.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut selection = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let mut values = || {
                let value = words.next().ok_or_else(|| format!("{word} needs a value"))?;
                Ok::<Vec<String>, String>(value.split(',').map(str::to_owned).collect())
            };
            match word.as_str() {
                "--image" => selection.images.extend(values()?),
                "--only" => selection.only.extend(values()?),
                "--link" => {
                    for text in values()? {
                        let link = LinkShape::parse(&text);
                        selection.links.push(link.ok_or_else(|| format!("{text} is no link"))?);
                    }
                }
                "--page" => selection.page = values()?.pop().map(PathBuf::from),
                "--no-profile" => selection.without_profile = true,
                _ if word.starts_with('-') => return Err(format!("{word} is no option")),
                _ => selection.sections.push(word),
            }
        }
        Ok(selection)
    }

    /// Where the page goes; nowhere when only a part of it is measured and nothing is said.
    pub(crate) fn page(&self) -> Option<PathBuf> {
        let Self { sections, images, links, only, without_profile, page } = self;
        let is_whole = sections.is_empty() && images.is_empty() && links.is_empty() && only.is_empty();
        let usual = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/benchmarks.md");
        page.clone().or_else(|| (is_whole && !without_profile).then_some(usual))
    }

    pub(crate) fn has_section(&self, name: &str) -> bool {
        has(&self.sections, name)
    }

    pub(crate) fn has_image(&self, name: &str) -> bool {
        has(&self.images, name)
    }

    pub(crate) fn has_contender(&self, name: &str) -> bool {
        has(&self.only, name)
    }

    /// The links to measure over: those asked for, or else `usual`.
    pub(crate) fn links(&self, usual: &[LinkShape]) -> Vec<LinkShape> {
        if self.links.is_empty() { usual.to_vec() } else { self.links.clone() }
    }
}

fn has(list: &[String], name: &str) -> bool {
    list.is_empty() || list.iter().any(|wanted| wanted == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_read_as_they_are_written() {
        for (text, link) in [("25mbit/40ms", LinkShape::new(25, 40)), ("1gbit/2ms", LinkShape::new(1000, 2))]
        {
            assert_eq!(LinkShape::parse(text), Some(link));
            assert_eq!(link.to_string(), text);
        }
        for bad in ["25/40ms", "25mbit", "25mbit/40", "0mbit/1ms", "-1mbit/1ms"] {
            assert_eq!(LinkShape::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn less_than_everything_is_told_apart() {
        let parse = |line: &str| Selection::parse(line.split_whitespace().map(str::to_owned));
        assert!(parse("").unwrap().page().is_some_and(|page| page.ends_with("docs/benchmarks.md")));
        let one = parse("replay --link 25mbit/40ms --image desktop --only satchel,raw").unwrap();
        assert!(one.page().is_none() && one.has_section("replay") && !one.has_section("boot"));
        assert!(one.has_contender("raw") && !one.has_contender("qemu") && !one.has_image("plain"));
        assert!(parse("--link").is_err() && parse("--what 1").is_err() && parse("--link x").is_err());
    }
}
