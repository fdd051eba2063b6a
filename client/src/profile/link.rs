//! What a start would take over a given link.

use std::str::FromStr;
use std::time::Duration;

/// Round trips before the first byte of a boot stream: connection, TLS, desktop, versions, profile, segments.
const ROUND_TRIPS: u32 = 8;

/// A link as a person writes it: `25mbit/40ms`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkShape {
    /// Bits it carries in a second.
    pub rate_bits_per_s: f64,
    /// The time there and back.
    pub round_trip: Duration,
}

/// Text that names no link.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no link: write its rate and round trip, as in 25mbit/40ms or 1gbit/2ms")]
pub struct BadLink {
    text: String,
}

impl LinkShape {
    /// How long it takes to start downloading, and to download `bytes`.
    pub fn seconds_for(&self, bytes: u64) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let bits = bytes as f64 * 8.0;
        bits / self.rate_bits_per_s + (self.round_trip * ROUND_TRIPS).as_secs_f64()
    }
}

impl FromStr for LinkShape {
    type Err = BadLink;

    fn from_str(text: &str) -> Result<Self, BadLink> {
        let parse = || {
            let (rate, round_trip) = text.split_once('/')?;
            let units = [("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3)];
            let rate = units.iter().find_map(|(unit, factor)| {
                let number: f64 = rate.strip_suffix(unit)?.parse().ok()?;
                Some(number * factor)
            })?;
            let millis: f64 = round_trip.strip_suffix("ms")?.parse().ok()?;
            let is_sound = (1e3..1e13).contains(&rate) && (0.0..1e6).contains(&millis);
            is_sound
                .then(|| Self { rate_bits_per_s: rate, round_trip: Duration::from_secs_f64(millis / 1e3) })
        };
        parse().ok_or_else(|| BadLink { text: text.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_written_as_rate_and_round_trip() {
        let link: LinkShape = "25mbit/40ms".parse().unwrap();
        assert_eq!(link, LinkShape { rate_bits_per_s: 25e6, round_trip: Duration::from_millis(40) });
        assert!((link.seconds_for(25_000_000) - 8.32).abs() < 0.001);
        assert_eq!("1.5gbit/0.5ms".parse::<LinkShape>().unwrap().rate_bits_per_s, 1.5e9);
        for bad in [
            "",
            "25mbit",
            "25/40",
            "fast/40ms",
            "25mbit/40",
            "0mbit/1ms",
            "-1mbit/1ms",
            "1mbit/-1ms",
            "nanmbit/1ms",
            "1mbit/nanms",
        ] {
            assert!(bad.parse::<LinkShape>().is_err(), "{bad}");
        }
    }
}
