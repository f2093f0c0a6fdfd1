//! Times as they are shown.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) use crate::cluster::health::unix_ms;

/// A time as the status shows it: RFC 3339, in UTC, to the millisecond.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    let time = UNIX_EPOCH + Duration::from_millis(unix_ms);
    // `Mon, 23 Nov 2026 01:40:34 GMT`, which has every part in a fixed place.
    let http = httpdate::fmt_http_date(time);
    let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let month = months.find(&http[8..11]).map_or(0, |at| at / 3 + 1);
    format!("{}-{month:02}-{}T{}.{:03}Z", &http[12..16], &http[5..7], &http[17..25], unix_ms % 1000)
}

/// How long ago a time was, seconds.
pub(crate) fn seconds_since(unix_ms: u64, now: SystemTime) -> u64 {
    let time = UNIX_EPOCH + Duration::from_millis(unix_ms);
    now.duration_since(time).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_796_089_234_056), "2026-12-01T01:40:34.056Z");
    }
}
