//! The `Date` header, formatted at most twice a second.

use std::cell::RefCell;
use std::time::{Instant, SystemTime};

/// Maximum age of the text.
const MAX_AGE_MS: u128 = 500;

/// The text of the `Date` header, kept by one thread.
#[derive(Debug, Default)]
pub struct Date(RefCell<Made>);

#[derive(Debug, Default)]
struct Made {
    at: Option<Instant>,
    text: String,
}

impl Date {
    /// Appends the current date (RFC 9110 section 5.6.7), up to 500 ms late.
    pub fn write(&self, now: Instant, out: &mut Vec<u8>) {
        let mut made = self.0.borrow_mut();
        if made.at.is_none_or(|at| now.saturating_duration_since(at).as_millis() >= MAX_AGE_MS) {
            *made = Made { at: Some(now), text: httpdate::fmt_http_date(SystemTime::now()) };
        }
        out.extend_from_slice(made.text.as_bytes());
    }
}
