//! Passive ejection: a server whose tries fail gets no requests for a while, judged by its traffic alone.
//!
//! A successful try costs one load while all is well. The try that is one too many ejects its endpoint where it ends, so that
//! the next request already sees it. Readmission, forgiveness and failure rates are the background runtime's
//! ([`Outlier::keep`]).
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
//! - As in Envoy, the time grows with each ejection, and only a share of a tier is ejected at once. A tier is ejected whole
//!   where another tier has an endpoint available. The last available endpoint of a cluster is ejected only where `max_percent`
//!   lets all of its tier be.
//! - As in nginx, an endpoint on trial has one request at a time: while one is under way it is shown as ejected to all others.
//!   Where no other endpoint is available, it takes all requests.
//! - An ejection is forgiven after a time without another, and with a success in that time. Silence forgives nothing.
//! - Tries that began before an endpoint was readmitted say nothing of it any more.

mod trial;
mod verdict;

use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::cluster::Cluster;
use crate::cluster::endpoint::Endpoint;
use crate::cluster::health::{HealthSource, Record};
use crate::cluster::random::{Random, fraction};
use crate::config::Ejection;
use crate::module::wire::ns;

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
    /// What [`Outlier::readmit`] has to look at has changed.
    changed: Notify,
}

/// How much of one tier is ejected.
#[derive(Debug)]
struct Share {
    n_endpoints: u32,
    /// What `max_percent` allows where no other tier has an endpoint available.
    max_ejected: u32,
    n_ejected: AtomicU32,
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
    /// For a cluster with so many endpoints in each of its tiers. `None` where the rules let no endpoint be ejected.
    pub fn new(rules: &Ejection, tiers: impl IntoIterator<Item = usize>) -> Option<Self> {
        let share = |n: usize| {
            let n_endpoints = u32::try_from(n).unwrap_or(u32::MAX);
            let percent = u64::from(n_endpoints) * u64::from(rules.max_percent) / 100;
            let max_ejected = if n == 1 { 0 } else { u32::try_from(percent).unwrap_or(u32::MAX).max(1) };
            Share { n_endpoints, max_ejected, n_ejected: AtomicU32::new(0) }
        };
        let tiers: Box<[Share]> = tiers.into_iter().map(share).collect();
        let is_on = rules.failures > 0 || rules.failure_percent > 0;
        // Without the only server there is nothing left to try: as in nginx, it is never ejected.
        let n_endpoints: u32 = tiers.iter().map(|share| share.n_endpoints).sum();
        (is_on && n_endpoints > 1).then(|| Self {
            rules: rules.clone(),
            epoch: Instant::now(),
            tiers,
            changed: Notify::new(),
        })
    }

    /// A try of this endpoint has ended. From any thread. One load for a success while all is well; allocates and waits for
    /// nothing unless it ejects.
    #[inline]
    pub fn try_ended(
        &self,
        cluster: &Cluster,
        endpoint: usize,
        end: &TryEnd,
        now: Instant,
        random: impl FnOnce() -> u64,
    ) {
        let record = &cluster.endpoints[endpoint].health.traffic;
        match end.verdict(self.rules.statuses) {
            TryVerdict::Good => {
                // Most often it is zero, and a store would take the line from all other threads.
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
    fn succeeded(&self, cluster: &Cluster, endpoint: usize, end: &TryEnd, now: Instant) {
        let record = &cluster.endpoints[endpoint].health.traffic;
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
    fn failed(&self, cluster: &Cluster, endpoint: usize, end: &TryEnd, now: Instant, random: u64) {
        let record = &cluster.endpoints[endpoint].health.traffic;
        if self.rules.failure_percent > 0 {
            record.failed.fetch_add(1, Relaxed);
        }
        // A trial's own request may have come before the readmission that it was then let in by.
        let began_ns = self.ns(now).saturating_sub(ns(end.total));
        if end.trial == Trial::None && began_ns < record.readmitted_ns.load(Relaxed) {
            return;
        }
        if end.trial != Trial::None && end_trial(cluster, endpoint) {
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

    fn eject(&self, cluster: &Cluster, endpoint: usize, why: &EjectionReason<'_>, now: Instant, random: u64) {
        let record = &cluster.endpoints[endpoint].health.traffic;
        if record.until_ns.compare_exchange(NEVER, CLAIMED, AcqRel, Relaxed).is_err() {
            return;
        }
        let (name, url) = (&*cluster.config.name, &*cluster.endpoints[endpoint].url);
        if let Err(needed) = self.take_place(cluster, endpoint) {
            // It is asked again after another row, and not with each failure.
            record.in_row.fetch_and(FLAGS, Relaxed);
            record.until_ns.store(NEVER, Release);
            self.show(cluster, endpoint);
            tracing::warn!("cluster \"{name}\": endpoint \"{url}\" is not ejected: {why}, but {needed}");
            return;
        }
        end_trial(cluster, endpoint);
        let ejections = record.ejections.load(Relaxed).saturating_add(1);
        record.ejections.store(ejections, Relaxed);
        record.total.fetch_add(1, Relaxed);
        let time = self.time(ejections);
        let jitter = time.mul_f64(fraction(random) / JITTER);
        self.hold(cluster, endpoint, self.ns(now + time + jitter));
        tracing::warn!("cluster \"{name}\": endpoint \"{url}\" ejected for {time:?}: {why}");
    }

    /// Counts the endpoint as ejected, if its tier and its cluster can do without.
    fn take_place(&self, cluster: &Cluster, endpoint: usize) -> Result<(), Needed> {
        let tier = cluster.tier_idx(endpoint);
        let share = &self.tiers[tier];
        if !share.may_all() && !cluster.has_another(endpoint) {
            return Err(Needed::Last);
        }
        let of = share.n_endpoints;
        let max = if cluster.has_another_tier(tier) { of } else { share.max_ejected };
        let room = |n: u32| (n < max).then_some(n + 1);
        let taken = share.n_ejected.fetch_update(AcqRel, Relaxed, room);
        taken.map(|_| ()).map_err(|ejected| Needed::Share { ejected, of })
    }

    /// Has the endpoint, whose record is claimed, be ejected until then.
    fn hold(&self, cluster: &Cluster, endpoint: usize, until_ns: u64) {
        let record = &cluster.endpoints[endpoint].health.traffic;
        record.asked_ns.store(0, Relaxed);
        record.until_ns.store(until_ns.max(PARDONED), Release);
        self.show(cluster, endpoint);
        self.changed.notify_one();
    }

    /// Has the endpoint's state follow from what its record says. To be called after each change of it: of several that change
    /// it at once, the last to look sets what holds.
    fn show(&self, cluster: &Cluster, endpoint: usize) {
        let record = &cluster.endpoints[endpoint].health.traffic;
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

    /// Does what is due: readmits endpoints whose time is over, on trial; has those pass that answer well; makes ejections
    /// forgivable. Says when it is to be called next. Only one caller at a time.
    pub fn readmit(&self, cluster: &Cluster, now: Instant) -> Option<Instant> {
        let now_ns = self.ns(now);
        let next_ns = (0..cluster.endpoints.len())
            .filter_map(|endpoint| {
                let record = &cluster.endpoints[endpoint].health.traffic;
                match (record.until_ns.load(Acquire), record.trial.load(Acquire)) {
                    (CLAIMED, _) => None,
                    (NEVER, TRIAL_NONE) => self.make_forgivable(record, now_ns),
                    (NEVER, _) => self.pass_if_answered(cluster, endpoint, now),
                    (until_ns, _) if until_ns > now_ns => Some(until_ns),
                    (until_ns, _) => self.readmit_one(cluster, endpoint, until_ns, now),
                }
            })
            .min();
        next_ns.map(|ns| self.epoch + Duration::from_nanos(ns))
    }

    /// Readmits an endpoint whose time is over. Where the cluster has checks, one that passes comes first; says until when
    /// that is waited for.
    fn readmit_one(&self, cluster: &Cluster, endpoint: usize, until_ns: u64, now: Instant) -> Option<u64> {
        let (url, health) = (&cluster.endpoints[endpoint].url, &cluster.endpoints[endpoint].health);
        let record = &health.traffic;
        let now_ns = self.ns(now);
        if let Some(check) = cluster.config.health_check.as_ref().filter(|_| until_ns != PARDONED) {
            if record.asked_ns.load(Relaxed) == 0 {
                record.asked_ns.store(now_ns, Relaxed);
                health.check_now.notify_one();
            }
            // A generation that drains has no checks.
            let patience = (check.interval + check.timeout).saturating_mul(2);
            let given_up_ns = record.asked_ns.load(Relaxed).saturating_add(ns(patience));
            if now_ns < given_up_ns {
                return Some(given_up_ns);
            }
        }
        if record.until_ns.compare_exchange(until_ns, CLAIMED, AcqRel, Relaxed).is_err() {
            return None;
        }
        record.in_row.store(ON_TRIAL, Relaxed);
        record.served.store(0, Relaxed);
        record.failed.store(0, Relaxed);
        record.answered_ns.store(0, Relaxed);
        record.readmitted_ns.store(now_ns, Relaxed);
        record.trial.store(TRIAL_OFFERED, SeqCst);
        cluster.endpoints[endpoint].set_on_trial(true);
        self.tiers[cluster.tier_idx(endpoint)].n_ejected.fetch_sub(1, AcqRel);
        // From here on it may be ejected again.
        record.until_ns.store(NEVER, SeqCst);
        let n = record.ejections.load(Relaxed);
        tracing::info!(
            "cluster \"{}\": endpoint \"{url}\" readmitted on trial, after {n} ejections in a row",
            cluster.config.name,
        );
        self.show(cluster, endpoint);
        None
    }

    fn make_forgivable(&self, record: &Record, now_ns: u64) -> Option<u64> {
        if record.ejections.load(Relaxed) == 0 || record.in_row.load(Relaxed) & FORGIVABLE != 0 {
            return None;
        }
        let due_ns = record.well_ns.load(Relaxed).saturating_add(ns(self.rules.time));
        if due_ns > now_ns {
            return Some(due_ns);
        }
        record.in_row.fetch_or(FORGIVABLE, Relaxed);
        None
    }

    /// Ends an ejection before its time.
    pub(crate) fn pardon(&self, record: &Record) {
        let ejected = |until_ns: u64| (until_ns != NEVER && until_ns != CLAIMED).then_some(PARDONED);
        if record.until_ns.fetch_update(AcqRel, Relaxed, ejected).is_ok() {
            self.changed.notify_one();
        }
    }

    /// A check of the endpoint has ended. One that passes readmits it where its time is over.
    pub(crate) fn checked(&self, endpoint: &Endpoint, has_passed: bool) {
        let record = &endpoint.health.traffic;
        let now_ns = self.ns(Instant::now());
        if record.asked_ns.load(Relaxed) == 0 {
            return;
        }
        if has_passed {
            self.pardon(record);
        } else {
            record.asked_ns.store(now_ns, Relaxed);
        }
    }

    /// Ends an interval: ejects those of whose tries too many failed, and counts anew.
    pub fn look_at_rates(&self, cluster: &Cluster, now: Instant, mut random: impl FnMut() -> u64) {
        for (idx, endpoint) in cluster.endpoints.iter().enumerate() {
            let record = &endpoint.health.traffic;
            let failed = record.failed.swap(0, Relaxed);
            let of = record.served.swap(0, Relaxed).saturating_add(failed);
            let share_reached =
                u64::from(failed) * 100 >= u64::from(of) * u64::from(self.rules.failure_percent);
            if of >= self.rules.min_requests && share_reached {
                self.eject(cluster, idx, &EjectionReason::Rate { failed, of }, now, random());
            }
        }
    }

    /// Readmits, and looks at the rates where the rules say so: for ever, on the background runtime.
    pub async fn keep(&self, cluster: &Cluster) {
        let looks = self.rules.failure_percent > 0;
        let mut interval = tokio::time::interval(self.rules.interval);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first is at once.
        interval.tick().await;
        let random = Random::new();
        loop {
            let next = self.readmit(cluster, Instant::now());
            let due = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.changed.notified() => {}
                () = due => {}
                _ = interval.tick(), if looks => {
                    self.look_at_rates(cluster, Instant::now(), || random.next());
                }
            }
        }
    }

    /// How much longer the endpoint is ejected; zero while it is on trial, which the next worker begins anew.
    pub(crate) fn time_left(&self, record: &Record, now: Instant) -> Option<Duration> {
        match (record.until_ns.load(Acquire), record.trial.load(Acquire)) {
            (NEVER | CLAIMED, TRIAL_NONE) => None,
            (NEVER | CLAIMED, _) => Some(Duration::ZERO),
            (until_ns, _) => Some(Duration::from_nanos(until_ns.saturating_sub(self.ns(now)))),
        }
    }

    /// Takes over what an earlier worker knew: the ejections that count, and how much longer it is out.
    pub(crate) fn take_over(
        &self,
        cluster: &Cluster,
        endpoint: usize,
        ejections: u32,
        left: Option<Duration>,
        now: Instant,
    ) {
        let record = &cluster.endpoints[endpoint].health.traffic;
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
        // The rules may have changed.
        let left = left.min(self.rules.max_time.max(self.rules.time));
        self.hold(cluster, endpoint, self.ns(now + left));
        if !left.is_zero() {
            let (name, url) = (&*cluster.config.name, &*cluster.endpoints[endpoint].url);
            tracing::info!(
                "cluster \"{name}\": endpoint \"{url}\" ejected for {left:?}: {}",
                EjectionReason::Inherited
            );
        }
    }

    /// A time as in [`Record`]s, never one of those that mean something else.
    fn ns(&self, time: Instant) -> u64 {
        ns(time.saturating_duration_since(self.epoch)).max(PARDONED + 1)
    }
}

/// Why an endpoint is not ejected.
enum Needed {
    /// As many of its tier as may be are ejected.
    Share { ejected: u32, of: u32 },
    /// No other endpoint of its cluster is available.
    Last,
}

impl fmt::Display for Needed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share { ejected, of } => write!(f, "{ejected} of {of} are ejected already"),
            Self::Last => f.write_str("no other is available"),
        }
    }
}

impl Share {
    /// Whether the operator wants all of it to be ejected where all fail.
    fn may_all(&self) -> bool {
        self.max_ejected == self.n_endpoints
    }
}

#[cfg(test)]
mod tests;
