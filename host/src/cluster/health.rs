//! The health of one endpoint: its sources, its traffic, and its checks. Data only: [`ejection`](super::ejection) and
//! [`checks`](super::checks) decide.

mod sources;
mod told;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};

use tokio::sync::Notify;

#[cfg(test)]
use crate::cluster::listing::AvailableCount;
use crate::cluster::listing::Listing;
use crate::config::HealthCheck;

pub use self::sources::HealthSource;
pub(in crate::cluster) use self::sources::PANIC;
pub(crate) use self::sources::{is_available, keeps_sessions, state_of};
use self::told::Told;
pub(crate) use self::told::{ToldReason, unix_ms};

/// The health of an endpoint. A cache line of its own: requests read it, and it rarely changes.
#[derive(Debug)]
#[repr(align(64))]
pub struct Health {
    /// Why it takes no requests, and the instances that count it.
    pub(super) listing: Listing,
    /// The record of its traffic.
    pub(crate) traffic: Record,
    /// Results of its active checks.
    pub(crate) checks: Streak,
    /// Its next check is wanted at once.
    pub(crate) check_now: Notify,
    /// Since when, and why.
    pub(crate) told: Told,
}

impl Default for Health {
    fn default() -> Self {
        Self::new(0)
    }
}

impl Health {
    /// Of an endpoint with these reasons to take no requests.
    pub(super) fn new(reasons: u8) -> Self {
        Self {
            listing: Listing::new(reasons, AtomicU64::new),
            traffic: Record::default(),
            checks: Streak::default(),
            check_now: Notify::new(),
            told: Told::new(),
        }
    }

    /// Whether this source says that the endpoint takes no requests.
    pub fn holds(&self, source: HealthSource) -> bool {
        self.listing.reasons() & source.bit() != 0
    }

    /// The sources that say so, since when and why.
    pub(crate) fn reasons(&self) -> Vec<ToldReason> {
        let holding = HealthSource::ALL.into_iter().filter(|source| self.holds(*source));
        holding.map(|source| self.told.of(source)).collect()
    }

    /// Has a source say that the endpoint takes no requests, where no instance counts it.
    #[cfg(test)]
    pub(crate) fn set(&self, source: HealthSource) {
        struct Uncounted;
        impl AvailableCount for Uncounted {
            fn raise(&self) {}
            fn lower(&self) {}
        }
        let _ = self.listing.change(|reasons| reasons | source.bit(), is_available, |_, _| Some(Uncounted));
    }

    /// Whether its cluster is in panic.
    pub(crate) fn is_in_panic(&self) -> bool {
        self.listing.reasons() & PANIC != 0
    }

    /// Whether neither its operator nor its source has taken it out.
    pub(super) fn is_in_service(&self) -> bool {
        let out = [HealthSource::Drain, HealthSource::Maintenance, HealthSource::Gone];
        let reasons = self.listing.reasons();
        out.iter().all(|source| reasons & source.bit() == 0)
    }

    /// Whether it keeps its sessions, though it may take no new ones.
    pub(crate) fn keeps_sessions(&self) -> bool {
        keeps_sessions(self.listing.reasons())
    }
}

/// The record of an endpoint's traffic.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Failures since the last success, below the flags of [`ejection`](super::ejection). Zero while all is well; a success
    /// looks at nothing else.
    pub(super) in_row: AtomicU32,
    /// Tries of this interval that succeeded and that failed, if the failure rate counts.
    pub(super) served: AtomicU32,
    pub(super) failed: AtomicU32,
    /// When its ejection ends; or one of the marks of [`ejection`](super::ejection).
    pub(super) until_ns: AtomicU64,
    /// One of the `TRIAL_*`.
    pub(super) trial: AtomicU32,
    /// When the request of its trial got a response; 0 before.
    pub(super) answered_ns: AtomicU64,
    /// When a check was asked for, or failed last; 0 if none is asked for.
    pub(super) asked_ns: AtomicU64,
    /// Ejections that are not forgiven.
    pub(super) ejections: AtomicU32,
    /// When it was readmitted last.
    pub(super) readmitted_ns: AtomicU64,
    /// When it last passed its trial, or was forgiven an ejection.
    pub(super) well_ns: AtomicU64,
    pub(super) total: AtomicU64,
}

impl Record {
    /// How often it was ejected by this worker.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }

    /// Ejections of it that are not forgiven.
    pub(crate) fn ejections(&self) -> u32 {
        self.ejections.load(Relaxed)
    }
}

/// Results of the checks of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Streak {
    /// Consecutive passes, or below zero failures; 0 before the first check.
    in_row: AtomicI32,
    passed: AtomicU64,
    failed: AtomicU64,
}

impl Streak {
    /// Consecutive results: above zero passes, below failures, 0 before the first.
    pub(crate) fn get(&self) -> i32 {
        self.in_row.load(Relaxed)
    }

    /// Continues from an earlier worker's results.
    pub(crate) fn set(&self, in_row: i32) {
        self.in_row.store(in_row, Relaxed);
    }

    /// Checks that passed and that failed, so far.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.passed.load(Relaxed), self.failed.load(Relaxed))
    }

    /// Counts a result. `Some(true)` if the endpoint is up by now, `Some(false)` if down. Only one caller at a time.
    pub(super) fn count(&self, passed: bool, check: &HealthCheck) -> Option<bool> {
        let before = self.get();
        let in_row = match (passed, before) {
            (true, 1..) => before.saturating_add(1),
            (true, _) => 1,
            (false, ..0) => before.saturating_sub(1),
            (false, _) => -1,
        };
        self.set(in_row);
        if passed { &self.passed } else { &self.failed }.fetch_add(1, Relaxed);
        let wanted = if passed { check.rise } else { check.fall };
        (before == 0 || in_row.unsigned_abs() >= wanted).then_some(passed)
    }
}
