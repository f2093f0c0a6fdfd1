//! Since when something holds of an endpoint, and why, for those who look on. Nothing decides by it.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use serde::{Deserialize, Serialize};

use super::HealthSource;

/// The longest reason that is kept: a line of text.
const MAX_WHY_BYTES: usize = 256;

/// The story of an endpoint's present state.
#[derive(Debug)]
pub(crate) struct Told {
    /// When its state changed last.
    since_ms: AtomicU64,
    sources: [SourceTold; HealthSource::ALL.len()],
}

#[derive(Debug, Default)]
struct SourceTold {
    since_ms: AtomicU64,
    why: ArcSwapOption<String>,
}

/// A source that says that an endpoint takes no requests, since when, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ToldReason {
    /// The source.
    pub source: HealthSource,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Why, in words; where more is to be said than the source's name.
    pub why: Option<String>,
}

impl Told {
    /// Of an endpoint that is new.
    pub(super) fn new() -> Self {
        let now = unix_ms(SystemTime::now());
        let source = || SourceTold { since_ms: now.into(), why: ArcSwapOption::empty() };
        Self { since_ms: now.into(), sources: std::array::from_fn(|_| source()) }
    }

    /// When its state changed last, in milliseconds since 1970.
    pub(crate) fn since_ms(&self) -> u64 {
        self.since_ms.load(Relaxed)
    }

    /// Its state has changed.
    pub(crate) fn changed(&self) {
        self.since_ms.store(unix_ms(SystemTime::now()), Relaxed);
    }

    /// This is why a source is about to say that it takes no requests.
    pub(crate) fn because(&self, source: HealthSource, why: &impl ToString) {
        let mut why = why.to_string();
        let end = (0..=MAX_WHY_BYTES.min(why.len())).rev().find(|end| why.is_char_boundary(*end));
        why.truncate(end.unwrap_or(0));
        self.sources[source as usize].why.store(Some(Arc::new(why)));
    }

    /// A source begins to say so.
    pub(crate) fn began(&self, source: HealthSource) {
        self.sources[source as usize].since_ms.store(unix_ms(SystemTime::now()), Relaxed);
    }

    /// The facts of a source, if it holds.
    pub(crate) fn of(&self, source: HealthSource) -> ToldReason {
        let SourceTold { since_ms, why } = &self.sources[source as usize];
        let why = why.load().as_deref().cloned();
        ToldReason { source, since_ms: since_ms.load(Relaxed), why }
    }

    /// An earlier worker told this of a state that still holds.
    pub(crate) fn go_on(&self, since_ms: u64) {
        self.since_ms.store(since_ms, Relaxed);
    }

    /// The same of a source.
    pub(crate) fn go_on_with(&self, reason: ToldReason) {
        let SourceTold { since_ms, why } = &self.sources[reason.source as usize];
        since_ms.store(reason.since_ms, Relaxed);
        why.store(reason.why.map(Arc::new));
    }
}

/// A time in milliseconds since 1970.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
