//! Durations in a module's settings, written as in the host's configuration.

use std::fmt;
use std::time::Duration;

use crate::serde::{Deserialize, Deserializer, de};

/// A duration as a setting: `"250ms"`, `"10s"`, `"5m"`, `"1h"`. Anything else is refused with these as examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(
    /// The duration; whole milliseconds.
    pub Duration,
);

fn parse(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let millis = match unit.trim_start_matches(' ') {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(millis).map(Duration::from_millis)
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            0 => f.write_str("0s"),
            millis if millis % 3_600_000 == 0 => write!(f, "{}h", millis / 3_600_000),
            millis if millis % 60_000 == 0 => write!(f, "{}m", millis / 60_000),
            millis if millis % 1_000 == 0 => write!(f, "{}s", millis / 1_000),
            millis => write!(f, "{millis}ms"),
        }
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Time;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration such as \"250ms\", \"10s\", \"5m\" or \"1h\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Time, E> {
                let wrong = || E::invalid_value(de::Unexpected::Str(text), &self);
                parse(text).map(Time).ok_or_else(wrong)
            }
        }

        deserializer.deserialize_str(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in ["0s", "1ms", "250ms", "10s", "90s", "5m", "1h"] {
            let time = Time(parse(text).unwrap());
            assert_eq!(parse(&time.to_string()), Some(time.0), "{text}");
        }
        assert_eq!(parse("90s"), Some(Duration::from_secs(90)));
        assert_eq!(parse("3 m"), Some(Duration::from_secs(180)));
        assert_eq!(Time(Duration::from_secs(120)).to_string(), "2m");
        for wrong in
            ["", "s", "10", "10 parsecs", "-1s", "1.5s", "99999999999999999999s", "9999999999999999h"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
