//! After an ejection: readmission on trial, forgiveness, and failure rates, on the background runtime.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::verdict::EjectionReason;
use super::{CLAIMED, FORGIVABLE, NEVER, ON_TRIAL, Outlier, PARDONED, TRIAL_NONE, TRIAL_OFFERED};
use crate::cluster::Cluster;
use crate::cluster::endpoint::Endpoint;
use crate::cluster::health::Record;
use crate::cluster::random::Random;
use crate::module::wire::ns;

impl Outlier {
    /// Does what is due: readmits endpoints on trial when their ejection is over, ends trials that went well, and makes
    /// ejections forgivable. Returns when it is to be called next. Only one caller at a time. Public for tests.
    pub fn readmit(&self, cluster: &Cluster, now: Instant) -> Option<Instant> {
        let now_ns = self.ns(now);
        let newest = cluster.newest();
        let next_ns = newest
            .endpoints
            .iter()
            .filter_map(|endpoint| {
                let record = &endpoint.health.traffic;
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

    /// Readmits an endpoint whose ejection is over. With health checks it waits for one that passes; the result is how long at
    /// most.
    fn readmit_one(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        until_ns: u64,
        now: Instant,
    ) -> Option<u64> {
        let (url, health) = (&endpoint.url, &endpoint.health);
        let record = &health.traffic;
        let now_ns = self.ns(now);
        if let Some(check) = cluster.config.health_check.as_ref().filter(|_| until_ns != PARDONED) {
            if record.asked_ns.load(Relaxed) == 0 {
                record.asked_ns.store(now_ns, Relaxed);
                health.check_now.notify_one();
            }
            // Not for ever: a generation that drains makes no checks.
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
        endpoint.set_on_trial(true);
        self.share(endpoint.tier).n_ejected.fetch_sub(1, AcqRel);
        // From here on it may be ejected again.
        record.until_ns.store(NEVER, SeqCst);
        let n = record.ejections.load(Relaxed);
        tracing::info!(
            "cluster \"{}\": server \"{url}\" readmitted on trial after {n} consecutive ejections",
            cluster.config.name,
        );
        self.show(cluster, endpoint);
        None
    }

    pub(super) fn make_forgivable(&self, record: &Record, now_ns: u64) -> Option<u64> {
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

    /// A health check of the endpoint has ended. One that passes readmits the endpoint if its ejection is over.
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

    /// Ends an interval: ejects endpoints of whose tries too many failed, and counts from zero.
    pub fn look_at_rates(&self, cluster: &Cluster, now: Instant, mut random: impl FnMut() -> u64) {
        for endpoint in &cluster.newest().endpoints {
            let record = &endpoint.health.traffic;
            let failed = record.failed.swap(0, Relaxed);
            let of = record.served.swap(0, Relaxed).saturating_add(failed);
            let share_reached =
                u64::from(failed) * 100 >= u64::from(of) * u64::from(self.rules.failure_percent);
            if of >= self.rules.min_requests && share_reached {
                self.eject(cluster, endpoint, &EjectionReason::Rate { failed, of }, now, random());
            }
        }
    }

    /// Readmits, and looks at failure rates if the rules say so: for ever, on the background runtime.
    pub(crate) async fn keep(&self, cluster: &Cluster) {
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
}
