//! Why tries of a request failed, in words, for the error log and the access log.

use std::fmt;
use std::sync::Arc;

/// Why tries of a request failed, in words.
#[derive(Debug, Default)]
pub(super) struct FailureNotes(Vec<FailureNote>);

#[derive(Debug)]
struct FailureNote {
    /// Which of the request's tries.
    try_idx: usize,
    url: Arc<str>,
    text: Box<str>,
}

impl FailureNotes {
    /// This try of the request, at the server with this URL, failed for this reason.
    pub(super) fn add(&mut self, try_idx: usize, url: Arc<str>, text: &str) {
        self.0.push(FailureNote { try_idx, url, text: text.into() });
    }

    /// No try has failed.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Why this try failed, if it did.
    pub(super) fn of(&self, try_idx: usize) -> Option<&str> {
        self.0.iter().find(|note| note.try_idx == try_idx).map(|note| &*note.text)
    }
}

/// With the server of each.
impl fmt::Display for FailureNotes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, FailureNote { url, text, .. }) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            write!(f, "{separator}{url}: {text}")?;
        }
        Ok(())
    }
}
