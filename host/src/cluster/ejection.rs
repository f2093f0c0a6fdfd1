//! Passive ejection: a server whose tries fail gets no requests for a while, judged by its traffic alone.
//!
//! A successful try costs one load while all is well. The try that is one failure too many ejects its endpoint where it ends,
//! so that the next request sees it. Readmission, forgiveness and failure rates run in the background ([`Outlier::keep`]).
//!
//! The life of an endpoint here:
//!
//! ```text
//!   in service ──failures──► ejected ──time over, and a check passed where there are checks──► on trial
//!       ▲                       ▲                                                              │    │
//!       └──────── a try that began on trial succeeds ◄─────────────────────────────────────────┘    │
//!                               └──────── it fails ◄────────────────────────────────────────────────┘
//! ```
//!
//! - As in Envoy, the time grows with each ejection, and only a share of a tier is ejected at once (`share`). A whole tier is
//!   ejected if another tier has an endpoint available. The last available endpoint of a cluster is ejected only if
//!   `max_percent` allows all of its tier.
//! - As in nginx, an endpoint on trial has one request at a time (`trial`): while one is under way, all others see the endpoint
//!   as ejected. If no other endpoint is available, it takes all requests.
//! - An ejection is forgiven after a time without another and with a success (`readmit`). Silence forgives nothing.
//! - Tries that began before an endpoint was readmitted are ignored (`verdict` says what counts).

mod readmit;
mod share;
mod trial;
mod verdict;

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::cluster::Cluster;
use crate::cluster::endpoint::Endpoint;
use crate::cluster::health::{HealthSource, Record};
use crate::cluster::journal::NoteKind;
use crate::cluster::random::fraction;
use crate::config::Ejection;
use crate::module::wire::ns;

use self::share::{Needed, Share};
pub use self::trial::Trial;
use self::trial::end_trial;
pub use self::verdict::TryEnd;
use self::verdict::{EjectionReason, TryVerdict};

/// Up to this part of an ejection's time is added at random, so that servers that failed together do not come back together.
const JITTER: f64 = 10.0;

/// A cluster's rules, and what is counted of it as a whole.
#[derive(Debug)]
pub struct Outlier {
    rules: Ejection,
    /// Zero of the times in [`Record`]s.
    epoch: Instant,
    /// Of each tier, in the cluster's order.
    tiers: Box<[Share]>,
    /// [`Outlier::readmit`] has something to look at.
    changed: Notify,
}

/// It is not ejected.
const NEVER: u64 = 0;
/// It is to be readmitted at once, without a check.
const PARDONED: u64 = 1;
/// Whether it is ejected is being decided.
const CLAIMED: u64 = u64::MAX;

/// It is not on trial.
const TRIAL_NONE: u32 = 0;
/// It is, and waits for a request.
const TRIAL_OFFERED: u32 = 1;
/// A request is under way, and none else is available: others are let in too.
const TRIAL_SHARED: u32 = 2;
/// A request is under way, and others see it as ejected.
const TRIAL_HIDDEN: u32 = 3;

/// In [`Record::in_row`](Record): it is on trial.
const ON_TRIAL: u32 = 1 << 31;
/// In [`Record::in_row`](Record): the next success forgives an ejection.
const FORGIVABLE: u32 = 1 << 30;
const FLAGS: u32 = ON_TRIAL | FORGIVABLE;

impl Outlier {
    /// For a cluster with these tiers, by number. `None` if the rules let no endpoint be ejected.
    pub fn new(rules: &Ejection, tiers: impl IntoIterator<Item = u16>) -> Option<Self> {
        let is_on = rules.failures > 0 || rules.failure_percent > 0;
        is_on.then(|| Self {
            rules: rules.clone(),
            epoch: Instant::now(),
            tiers: tiers.into_iter().map(|tier| Share::new(tier, rules.max_percent)).collect(),
            changed: Notify::new(),
        })
    }

    /// A try of this endpoint has ended. From any thread. One load for a success while all is well; allocates and waits for
    /// nothing unless it ejects.
    #[inline]
    pub fn try_ended(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        end: &TryEnd,
        now: Instant,
        random: impl FnOnce() -> u64,
    ) {
        let record = &endpoint.health.traffic;
        match end.verdict(self.rules.statuses) {
            TryVerdict::Good => {
                // It is zero most of the time, and a store would take the cache line from all other threads.
                if record.in_row.load(Relaxed) != 0 {
                    self.succeeded(cluster, endpoint, end, now);
                }
                if self.rules.failure_percent > 0 {
                    record.served.fetch_add(1, Relaxed);
                }
            }
            TryVerdict::Bad => self.failed(cluster, endpoint, end, now, random()),
            TryVerdict::Nothing => {
                if end.trial == Trial::Own {
                    self.offer_again(cluster, endpoint);
                }
            }
        }
    }

    #[cold]
    fn succeeded(&self, cluster: &Cluster, endpoint: &Endpoint, end: &TryEnd, now: Instant) {
        let record = &endpoint.health.traffic;
        let mut before = record.in_row.load(Relaxed);
        loop {
            if before & ON_TRIAL != 0 && end.trial == Trial::None {
                // It began before the trial.
                return;
            }
            match record.in_row.compare_exchange(before, 0, AcqRel, Relaxed) {
                Ok(_) => break,
                Err(now) => before = now,
            }
        }
        if before & ON_TRIAL != 0 {
            self.pass(cluster, endpoint, now);
        } else if before & FORGIVABLE != 0 {
            // Never refused.
            let _ = record.ejections.fetch_update(Relaxed, Relaxed, |n| Some(n.saturating_sub(1)));
            record.well_ns.store(self.ns(now), Relaxed);
            self.changed.notify_one();
        }
    }

    #[cold]
    fn failed(&self, cluster: &Cluster, endpoint: &Endpoint, end: &TryEnd, now: Instant, random: u64) {
        let record = &endpoint.health.traffic;
        if self.rules.failure_percent > 0 {
            record.failed.fetch_add(1, Relaxed);
        }
        // A request of the trial may itself have come before the readmission that let it in.
        let began_ns = self.ns(now).saturating_sub(ns(end.total));
        if end.trial == Trial::None && began_ns < record.readmitted_ns.load(Relaxed) {
            return;
        }
        if end.trial != Trial::None && end_trial(endpoint) {
            self.eject(cluster, endpoint, &EjectionReason::Trial(end), now, random);
            return self.show(cluster, endpoint);
        }
        let next = |bits: u32| (bits & !FLAGS < !FLAGS).then_some(bits + 1);
        let before = record.in_row.fetch_update(Relaxed, Relaxed, next).unwrap_or_else(|bits| bits);
        let in_row = (before & !FLAGS).saturating_add(1);
        if self.rules.failures > 0 && in_row >= self.rules.failures && before & ON_TRIAL == 0 {
            self.eject(cluster, endpoint, &EjectionReason::InRow(in_row, end), now, random);
        }
    }

    fn eject(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        why: &EjectionReason<'_>,
        now: Instant,
        random: u64,
    ) {
        let record = &endpoint.health.traffic;
        if record.until_ns.compare_exchange(NEVER, CLAIMED, AcqRel, Relaxed).is_err() {
            return;
        }
        let (name, url) = (&*cluster.config.name, &*endpoint.url);
        if let Err(needed) = self.take_place(cluster, endpoint) {
            // As in nginx, the only server is never ejected, and nobody need hear of it.
            let is_only = matches!(needed, Needed::Only);
            // Not looked at again with each failure, but after as many more.
            record.in_row.fetch_and(FLAGS, Relaxed);
            record.until_ns.store(NEVER, Release);
            self.show(cluster, endpoint);
            if !is_only {
                tracing::warn!("cluster \"{name}\": server \"{url}\" is not ejected: {why}, but {needed}");
                let note = || format!("is not ejected: {why}, but {needed}");
                cluster.note(Some(endpoint), NoteKind::Server, note);
            }
            return;
        }
        end_trial(endpoint);
        let ejections = record.ejections.load(Relaxed).saturating_add(1);
        record.ejections.store(ejections, Relaxed);
        record.total.fetch_add(1, Relaxed);
        let time = self.time(ejections);
        let jitter = time.mul_f64(fraction(random) / JITTER);
        endpoint.health.told.because(HealthSource::Ejection, why);
        self.hold(cluster, endpoint, self.ns(now + time + jitter));
        if endpoint.health.holds(HealthSource::Gone) {
            // It left, and what still ran on it failed. Nobody would readmit it.
            return self.left(cluster, endpoint);
        }
        tracing::warn!("cluster \"{name}\": server \"{url}\" ejected for {time:?}: {why}");
    }

    /// Ejects the endpoint, whose record is claimed, until then.
    fn hold(&self, cluster: &Cluster, endpoint: &Endpoint, until_ns: u64) {
        let record = &endpoint.health.traffic;
        record.asked_ns.store(0, Relaxed);
        record.until_ns.store(until_ns.max(PARDONED), Release);
        self.show(cluster, endpoint);
        self.changed.notify_one();
    }

    /// Sets the endpoint's state as its record says. To be called after each change of the record: of several threads that
    /// change it at once, the last to look sets what holds.
    fn show(&self, cluster: &Cluster, endpoint: &Endpoint) {
        let record = &endpoint.health.traffic;
        let is_out = || record.until_ns.load(SeqCst) != NEVER || record.trial.load(SeqCst) == TRIAL_HIDDEN;
        loop {
            let out = is_out();
            cluster.set_source(endpoint, HealthSource::Ejection, out);
            if is_out() == out {
                return;
            }
        }
    }

    /// How long the n-th ejection in a row lasts.
    fn time(&self, n: u32) -> Duration {
        self.rules.time.saturating_mul(n).min(self.rules.max_time.max(self.rules.time))
    }

    /// How much longer the endpoint is ejected; zero while it is on trial, which the next worker starts again.
    pub(crate) fn time_left(&self, record: &Record, now: Instant) -> Option<Duration> {
        match (record.until_ns.load(Acquire), record.trial.load(Acquire)) {
            (NEVER | CLAIMED, TRIAL_NONE) => None,
            (NEVER | CLAIMED, _) => Some(Duration::ZERO),
            (until_ns, _) => Some(Duration::from_nanos(until_ns.saturating_sub(self.ns(now)))),
        }
    }

    /// Takes over what an earlier worker knew: the ejections that count, and how much longer this one lasts.
    pub(crate) fn take_over(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        ejections: u32,
        left: Option<Duration>,
        now: Instant,
    ) {
        let record = &endpoint.health.traffic;
        record.ejections.store(ejections, Relaxed);
        record.well_ns.store(self.ns(now), Relaxed);
        let Some(left) = left else { return };
        if record.until_ns.compare_exchange(NEVER, CLAIMED, AcqRel, Relaxed).is_err() {
            return;
        }
        if self.take_place(cluster, endpoint).is_err() {
            record.until_ns.store(NEVER, Release);
            return self.show(cluster, endpoint);
        }
        endpoint.health.told.because(HealthSource::Ejection, &EjectionReason::Inherited);
        // The rules may have changed.
        let left = left.min(self.rules.max_time.max(self.rules.time));
        self.hold(cluster, endpoint, self.ns(now + left));
        if !left.is_zero() {
            let (name, url) = (&*cluster.config.name, &*endpoint.url);
            tracing::info!(
                "cluster \"{name}\": server \"{url}\" ejected for {left:?}: {}",
                EjectionReason::Inherited
            );
        }
    }

    /// A time as in [`Record`]s, never one of those that mean something else.
    fn ns(&self, time: Instant) -> u64 {
        ns(time.saturating_duration_since(self.epoch)).max(PARDONED + 1)
    }
}

#[cfg(test)]
mod tests;
