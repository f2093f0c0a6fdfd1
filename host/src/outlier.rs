//! Passive ejection: a server whose tries fail gets nothing for a while, told by its traffic alone.
//!
//! A try's end costs one load while all is well. The try that is one too many ejects its endpoint where it ends, so that the
//! next request already sees it; readmission, and the failure rate where that is looked at, are the background runtime's
//! ([`Outlier::keep`]). As in Envoy's outlier detection, time out grows with each ejection and shrinks while all is well,
//! and only a share of the cluster is ever ejected. As in nginx, a readmitted server is on trial: its first failure ejects
//! it again, so that a server that is dead costs one try each time, and not a row of them.

use std::fmt;
use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use lb_api::wire;
use tokio::sync::Notify;
use tokio::time::MissedTickBehavior;

use crate::cluster::Cluster;
use crate::config::{CountedStatuses, Ejection};
use crate::endpoint::{Endpoint, Source};
use crate::module::wire::ns;
use crate::random::{Random, fraction};

/// Up to this part of an ejection's time is added at random, so that servers that failed together do not come back together.
const JITTER: f64 = 10.0;

/// A cluster's rules, and what is counted of it as a whole.
#[derive(Debug)]
pub struct Outlier {
    rules: Ejection,
    /// Zero of the times in [`Record`]s.
    epoch: Instant,
    max_ejected: u32,
    n_ejected: AtomicU32,
    /// An endpoint was ejected, or pardoned: when the next is to be readmitted has changed.
    ejected: Notify,
}

/// What the traffic of one endpoint showed.
#[derive(Debug, Default)]
pub(crate) struct Record {
    /// Failures since the last success.
    in_row: AtomicU32,
    /// Tries of this interval that succeeded and that failed, where the rate is looked at.
    served: AtomicU32,
    failed: AtomicU32,
    /// When its ejection ends; [`NEVER`] while it is not ejected, [`CLAIMED`] while that is being decided.
    until_ns: AtomicU64,
    /// How often it was ejected, less what it was forgiven; and when it was readmitted last.
    ejections: AtomicU32,
    readmitted_ns: AtomicU64,
    total: AtomicU64,
}

const NEVER: u64 = 0;
const CLAIMED: u64 = u64::MAX;

/// How a try ended, as far as it says something of the server.
#[derive(Clone, Copy, Debug)]
pub struct TryEnd {
    /// One of [`wire`]'s `TRY_*`.
    pub result: u32,
    /// One of [`wire`]'s `FAILURE_*` and the system's error, where the try was not established.
    pub failure: Option<(u32, Option<i32>)>,
    /// The response's, 0 where there is none.
    pub status: u16,
}

/// What a try's end says of its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Bad,
    /// The client, or the proxy itself, was at fault.
    Nothing,
}

/// Why an endpoint is ejected, as the log says it.
enum Why<'a> {
    InRow(u32, &'a TryEnd),
    Rate {
        failed: u32,
        of: u32,
    },
    /// An earlier worker ejected it.
    Inherited,
}

impl Outlier {
    /// For a cluster of so many endpoints. `None` where the rules let nobody be ejected.
    pub fn new(rules: &Ejection, n_endpoints: usize) -> Option<Self> {
        let is_on = rules.failures > 0 || rules.failure_percent > 0;
        // Without the only server there is nothing left to try: as in nginx, it is never ejected.
        (is_on && n_endpoints > 1).then(|| Self {
            rules: rules.clone(),
            epoch: Instant::now(),
            max_ejected: u32::try_from((n_endpoints * usize::from(rules.max_percent) / 100).max(1))
                .unwrap_or(u32::MAX),
            n_ejected: AtomicU32::new(0),
            ejected: Notify::new(),
        })
    }

    /// A try of this endpoint has ended. From any thread; allocates and waits for nothing unless it ejects.
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
            Verdict::Good => {
                // Most often it is zero, and a store would take the line from all other threads.
                if record.in_row.load(Relaxed) != 0 {
                    record.in_row.store(0, Relaxed);
                }
                if self.rules.failure_percent > 0 {
                    record.served.fetch_add(1, Relaxed);
                }
            }
            Verdict::Bad => self.failed(cluster, endpoint, end, now, random()),
            Verdict::Nothing => {}
        }
    }

    #[cold]
    fn failed(&self, cluster: &Cluster, endpoint: usize, end: &TryEnd, now: Instant, random: u64) {
        let record = &cluster.endpoints[endpoint].health.traffic;
        if self.rules.failure_percent > 0 {
            record.failed.fetch_add(1, Relaxed);
        }
        let in_row = record.in_row.fetch_add(1, Relaxed).saturating_add(1);
        if self.rules.failures > 0 && in_row >= self.rules.failures {
            self.eject(cluster, endpoint, &Why::InRow(in_row, end), now, random);
        }
    }

    fn eject(&self, cluster: &Cluster, endpoint: usize, why: &Why<'_>, now: Instant, random: u64) {
        let record = &cluster.endpoints[endpoint].health.traffic;
        if record.until_ns.compare_exchange(NEVER, CLAIMED, AcqRel, Relaxed).is_err() {
            return;
        }
        let room = |n: u32| (n < self.max_ejected).then_some(n + 1);
        let (name, url) = (&*cluster.config.name, &*cluster.endpoints[endpoint].url);
        if self.n_ejected.fetch_update(AcqRel, Relaxed, room).is_err() {
            // It is asked again after another row, and not with each failure.
            record.in_row.store(0, Relaxed);
            record.until_ns.store(NEVER, Release);
            tracing::warn!(
                "cluster \"{name}\": endpoint \"{url}\" is not ejected: {why}, but {} of {} are ejected already",
                self.max_ejected,
                cluster.endpoints.len()
            );
            return;
        }
        let ejections = self.remembered(record, now) + 1;
        record.ejections.store(ejections, Relaxed);
        record.total.fetch_add(1, Relaxed);
        let time = self.time(ejections);
        let jitter = time.mul_f64(fraction(random) / JITTER);
        self.hold(cluster, endpoint, self.ns(now + time + jitter));
        tracing::warn!("cluster \"{name}\": endpoint \"{url}\" ejected for {time:?}: {why}");
    }

    /// Has the endpoint, whose record is claimed, be ejected until then.
    fn hold(&self, cluster: &Cluster, endpoint: usize, until_ns: u64) {
        cluster.set_source(endpoint, Source::Ejection, true);
        cluster.endpoints[endpoint].health.traffic.until_ns.store(until_ns, Release);
        self.ejected.notify_one();
    }

    /// Ejections that still count: one is forgiven for each time (that of a first ejection) without another.
    fn remembered(&self, record: &Record, now: Instant) -> u32 {
        let since = self.ns(now).saturating_sub(record.readmitted_ns.load(Relaxed));
        let forgiven = since / ns(self.rules.time).max(1);
        record.ejections.load(Relaxed).saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }

    /// How long the n-th ejection in a row lasts.
    fn time(&self, n: u32) -> Duration {
        self.rules.time.saturating_mul(n).min(self.rules.max_time.max(self.rules.time))
    }

    /// Readmits who has been out long enough, and says when the next one is due.
    pub fn readmit(&self, cluster: &Cluster, now: Instant) -> Option<Instant> {
        let now_ns = self.ns(now);
        let mut next = None;
        for (idx, endpoint) in cluster.endpoints.iter().enumerate() {
            let record = &endpoint.health.traffic;
            let until_ns = record.until_ns.load(Acquire);
            if until_ns == NEVER || until_ns == CLAIMED {
                continue;
            }
            if until_ns > now_ns {
                next = Some(next.map_or(until_ns, |next: u64| next.min(until_ns)));
                continue;
            }
            record.in_row.store(self.rules.failures.saturating_sub(1), Relaxed);
            record.served.store(0, Relaxed);
            record.failed.store(0, Relaxed);
            record.readmitted_ns.store(now_ns, Relaxed);
            self.n_ejected.fetch_sub(1, AcqRel);
            cluster.set_source(idx, Source::Ejection, false);
            let n = record.ejections.load(Relaxed);
            tracing::info!(
                "cluster \"{}\": endpoint \"{}\" readmitted on trial, after {n} ejections in a row",
                cluster.config.name,
                endpoint.url
            );
            // From here on it may be ejected again.
            record.until_ns.store(NEVER, Release);
        }
        next.map(|ns| self.epoch + Duration::from_nanos(ns))
    }

    /// Ends an ejection before its time, because something better than its traffic says that the endpoint is well.
    pub(crate) fn pardon(&self, endpoint: &Endpoint) {
        let due = |until_ns: u64| (until_ns != NEVER && until_ns != CLAIMED).then_some(1);
        if endpoint.health.traffic.until_ns.fetch_update(AcqRel, Relaxed, due).is_ok() {
            self.ejected.notify_one();
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
                self.eject(cluster, idx, &Why::Rate { failed, of }, now, random());
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
                () = self.ejected.notified() => {}
                () = due => {}
                _ = interval.tick(), if looks => {
                    self.look_at_rates(cluster, Instant::now(), || random.next());
                }
            }
        }
    }

    /// How much longer the endpoint is ejected.
    pub(crate) fn time_left(&self, record: &Record, now: Instant) -> Option<Duration> {
        match record.until_ns.load(Acquire) {
            NEVER | CLAIMED => None,
            until_ns => Some(Duration::from_nanos(until_ns.saturating_sub(self.ns(now)))),
        }
    }

    /// Ejections of it that still count.
    pub(crate) fn ejections(&self, record: &Record, now: Instant) -> u32 {
        match record.until_ns.load(Acquire) {
            NEVER | CLAIMED => self.remembered(record, now),
            _ => record.ejections.load(Relaxed),
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
        record.readmitted_ns.store(self.ns(now), Relaxed);
        let Some(left) = left else { return };
        if record.until_ns.compare_exchange(NEVER, CLAIMED, AcqRel, Relaxed).is_err() {
            return;
        }
        let room = |n: u32| (n < self.max_ejected).then_some(n + 1);
        if self.n_ejected.fetch_update(AcqRel, Relaxed, room).is_err() {
            record.until_ns.store(NEVER, Release);
            return;
        }
        // The rules may have changed.
        let left = left.min(self.rules.max_time.max(self.rules.time));
        self.hold(cluster, endpoint, self.ns(now + left));
        let (name, url) = (&*cluster.config.name, &*cluster.endpoints[endpoint].url);
        tracing::info!("cluster \"{name}\": endpoint \"{url}\" ejected for {left:?}: {}", Why::Inherited);
    }

    /// A time as in [`Record`]s, never one of the two that mean something else.
    fn ns(&self, time: Instant) -> u64 {
        ns(time.saturating_duration_since(self.epoch)).max(1)
    }
}

impl Record {
    /// How often it was ejected by this worker.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Relaxed)
    }
}

impl TryEnd {
    fn verdict(&self, counted: CountedStatuses) -> Verdict {
        match (self.result, self.failure) {
            (wire::TRY_NOT_ESTABLISHED, Some((wire::FAILURE_LOCAL, _))) | (wire::TRY_ABORTED, _) => {
                Verdict::Nothing
            }
            (wire::TRY_SERVED, _) if counted.contain(self.status) => Verdict::Bad,
            (wire::TRY_SERVED, _) => Verdict::Good,
            _ => Verdict::Bad,
        }
    }
}

impl fmt::Display for TryEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match (self.result, self.failure) {
            (_, Some((wire::FAILURE_RESOLVE, _))) => "look-up failed",
            (_, Some((wire::FAILURE_CONNECT_TIMEOUT, _))) => "no connection in time",
            (_, Some((wire::FAILURE_TLS, _))) => "TLS handshake failed",
            (_, Some((_, Some(os_error)))) => {
                let text = io::Error::from_raw_os_error(os_error).to_string();
                let text = text.split(" (os error").next().unwrap_or_default();
                return f.write_str(&text.to_lowercase());
            }
            (wire::TRY_NOT_ESTABLISHED, _) => "no connection",
            (wire::TRY_CLOSED_EARLY, _) => "connection closed before a response",
            (wire::TRY_TIMED_OUT, _) => "no response in time",
            (wire::TRY_BROKEN, _) => "response broke off",
            (wire::TRY_SERVED, _) => return write!(f, "status {}", self.status),
            _ => "bad response",
        };
        f.write_str(text)
    }
}

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InRow(1, last) => write!(f, "1 failure ({last})"),
            Self::InRow(n, last) => write!(f, "{n} consecutive failures ({last})"),
            Self::Rate { failed, of } => write!(f, "{failed} of {of} tries failed"),
            Self::Inherited => f.write_str("as it was before the reload"),
        }
    }
}

#[cfg(test)]
mod tests;
