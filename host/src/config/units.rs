//! Durations, sizes and statuses as people write them.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::de::{self, Deserialize, Deserializer, Visitor};

/// A duration: `"250ms"`, `"10s"`, `"5m"`, `"1h"`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TimeValue(pub(super) Duration);

/// A number of bytes: `4096`, `"64KiB"`, `"1MiB"`, `"2GiB"`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct SizeValue(pub(super) u64);

/// Statuses of responses: `200`, `"200"`, `"2xx"`, `"200-399"`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StatusRange(pub(super) RangeInclusive<u16>);

/// Longer is a mistake of unit rather than a wish, and far from what clocks can be asked to add.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Reads a duration as [`TimeValue`] does.
pub(super) fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected {TIME}, found the string {text:?}");
    let (number, unit) = split_unit(text);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(wrong()),
    };
    let time = number.checked_mul(millis).map(Duration::from_millis);
    time.filter(|&time| time <= LONGEST).ok_or_else(|| format!("{text:?} is more than the longest time, 24h"))
}

fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("expected {SIZE}, found the string {text:?}");
    let (number, unit) = split_unit(text);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(factor).ok_or_else(|| format!("{text:?} is too large"))
}

fn parse_statuses(text: &str) -> Option<StatusRange> {
    let status = |text: &str| text.parse().ok().filter(|status| STATUS.contains(status) && text.len() == 3);
    let range = match (text.strip_suffix("xx"), text.split_once('-')) {
        (Some(class), _) => {
            let class: u16 = class.parse().ok().filter(|class| (1..=5).contains(class) && text.len() == 3)?;
            class * 100..=class * 100 + 99
        }
        (None, Some((first, last))) => status(first)?..=status(last)?,
        (None, None) => status(text)?..=status(text)?,
    };
    (!range.is_empty()).then_some(StatusRange(range))
}

fn split_unit(text: &str) -> (&str, &str) {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    (&text[..digits], text[digits..].trim_start_matches(' '))
}

/// How a duration is written so that reading it gives the same.
pub(super) fn show_time(time: Duration) -> String {
    match time.as_millis() {
        0 => "0s".to_owned(),
        millis if millis % 3_600_000 == 0 => format!("{}h", millis / 3_600_000),
        millis if millis % 60_000 == 0 => format!("{}m", millis / 60_000),
        millis if millis % 1000 == 0 => format!("{}s", millis / 1000),
        millis => format!("{millis}ms"),
    }
}

const STATUS: RangeInclusive<u16> = 100..=599;
const STATUSES: &str = "a status such as 200, \"2xx\" or \"200-399\"";
const TIME: &str = "a duration such as \"250ms\", \"10s\", \"5m\" or \"1h\"";
const SIZE: &str = "a size such as 4096, \"64KiB\" or \"1MiB\"";

impl<'de> Deserialize<'de> for TimeValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TimeValueVisitor;

        impl Visitor<'_> for TimeValueVisitor {
            type Value = TimeValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(TIME)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<TimeValue, E> {
                parse_time(text).map(TimeValue).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(TimeValueVisitor)
    }
}

impl<'de> Deserialize<'de> for SizeValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SizeValueVisitor;

        impl Visitor<'_> for SizeValueVisitor {
            type Value = SizeValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(SIZE)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SizeValue, E> {
                parse_size(text).map(SizeValue).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<SizeValue, E> {
                u64::try_from(bytes)
                    .map(SizeValue)
                    .map_err(|_| E::invalid_type(de::Unexpected::Signed(bytes), &self))
            }
        }

        deserializer.deserialize_any(SizeValueVisitor)
    }
}

impl<'de> Deserialize<'de> for StatusRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StatusesVisitor;

        impl Visitor<'_> for StatusesVisitor {
            type Value = StatusRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(STATUSES)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<StatusRange, E> {
                let wrong = || E::custom(format!("expected {STATUSES}, found the string {text:?}"));
                parse_statuses(text).ok_or_else(wrong)
            }

            fn visit_i64<E: de::Error>(self, status: i64) -> Result<StatusRange, E> {
                let known = u16::try_from(status).ok().filter(|status| STATUS.contains(status));
                let wrong = || E::custom(format!("expected {STATUSES}, found the integer {status}"));
                known.map(|status| StatusRange(status..=status)).ok_or_else(wrong)
            }
        }

        deserializer.deserialize_any(StatusesVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_durations_and_shows_them_again() {
        for (text, millis) in
            [("250ms", 250), ("10s", 10_000), ("90s", 90_000), ("5m", 300_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_time(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(
                parse_time(&show_time(Duration::from_millis(millis))),
                Ok(Duration::from_millis(millis))
            );
        }
    }

    #[test]
    fn refuses_what_is_no_duration() {
        for text in ["", "10", "s", "10 sec", "1.5s", "-1s", "1d", "10S", "99999999999999999999s"] {
            let error = parse_time(text).unwrap_err();
            assert_eq!(error, format!("expected {TIME}, found the string {text:?}"));
        }
        assert_eq!(parse_time("25h").unwrap_err(), r#""25h" is more than the longest time, 24h"#);
        assert!(parse_time("18446744073709551615h").unwrap_err().contains("24h"));
    }

    #[test]
    fn reads_statuses() {
        for (text, range) in
            [("200", 200..=200), ("2xx", 200..=299), ("200-399", 200..=399), ("5xx", 500..=599)]
        {
            assert_eq!(parse_statuses(text), Some(StatusRange(range)), "{text}");
        }
        for text in
            ["", "0", "99", "600", "6xx", "0xx", "xx", "2x", "+200", "0200", "300-200", "200-", "2xx-3xx"]
        {
            assert_eq!(parse_statuses(text), None, "{text}");
        }
    }

    #[test]
    fn reads_sizes() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("64KiB", 65_536), ("1 MiB", 1 << 20), ("2GiB", 2 << 30)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "64k", "64KB", "1.5MiB", "-1", "KiB"] {
            let error = parse_size(text).unwrap_err();
            assert_eq!(error, format!("expected {SIZE}, found the string {text:?}"));
        }
        assert_eq!(parse_size("99999999999GiB").unwrap_err(), r#""99999999999GiB" is too large"#);
    }
}
