//! Local time, as syslog's lines have it. The standard library has none.

#![allow(unsafe_code, reason = "the system's call writes to a struct of the caller's")]

use std::mem::MaybeUninit;
use std::time::{SystemTime, UNIX_EPOCH};

/// A time as RFC 3164 writes it: `Dec  1 04:12:15`. The system reads its time zone once, when this is called first.
pub(super) fn rfc3164(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seconds = libc::time_t::try_from(seconds).unwrap_or_default();
    let mut local = MaybeUninit::<libc::tm>::uninit();
    // SAFETY: both pointers are valid for the call, which keeps neither, and it fills the struct unless it returns null.
    let local = unsafe {
        if libc::localtime_r(&raw const seconds, local.as_mut_ptr()).is_null() {
            return String::new();
        }
        local.assume_init()
    };
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = usize::try_from(local.tm_mon).ok().and_then(|month| MONTHS.get(month)).unwrap_or(&"Jan");
    format!("{month} {:>2} {:02}:{:02}:{:02}", local.tm_mday, local.tm_hour, local.tm_min, local.tm_sec)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn days_of_one_digit_have_a_space_before_them() {
        // Noon, so that most time zones have the same day.
        let text = rfc3164(UNIX_EPOCH + Duration::from_secs(4 * 86_400 + 43_200));
        assert!(text.starts_with("Jan  ") && text.len() == "Jan  5 12:00:00".len(), "{text}");
    }
}
