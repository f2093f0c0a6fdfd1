//! Which endpoints take requests: the only way to change that, and what the next worker is told of it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use lb_api::wire;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use super::{Cluster, Clusters};
use crate::cluster::endpoint::Endpoint;
use crate::cluster::health::{Health, HealthSource, PANIC, is_available, state_of};
use crate::cluster::journal::NoteKind;
use crate::cluster::listing::ReasonChange;

/// The health of an endpoint that one worker hands to the next. Drain marks are not in it: the supervisor keeps those.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HealthFacts {
    /// [`Endpoint::id`](crate::cluster::endpoint::Endpoint::id), unique in its cluster.
    pub id: u64,
    /// Its active checks say that it is down.
    pub down: bool,
    /// Consecutive checks that passed, or, below zero, that failed.
    pub checks: i32,
    /// How much longer it is ejected, in milliseconds; `None` where it is not.
    pub ejected_ms: Option<u64>,
    /// Ejections that still count and make the next one longer.
    pub ejections: u32,
    /// How far into slow start it is, in milliseconds; `None` where its weight does not rise.
    pub rising_ms: Option<u64>,
}

impl HealthFacts {
    /// Whether it says anything.
    fn is_news(&self) -> bool {
        *self != Self { id: self.id, ..Self::default() }
    }
}

impl Cluster {
    /// Sets whether a source says that an endpoint takes no requests. The state that modules see follows from all sources.
    /// False if nothing changed. From any thread; with `holds` it does not block.
    pub fn set_source(&self, endpoint: &Endpoint, source: HealthSource, holds: bool) -> bool {
        let Some(change) = endpoint.live.set_source(source, holds) else { return false };
        if holds {
            endpoint.health.told.began(source);
        }
        self.show(endpoint, change);
        if self.config.panic_threshold > 0 {
            self.changed.notify_one();
        }
        if let Some(outlier) =
            self.outlier.as_ref().filter(|_| holds && self.newest().available_tier(0).is_none())
        {
            outlier.relieve(self);
        }
        true
    }

    /// Shows modules and waiting requests what follows from a change of an endpoint's reasons.
    fn show(&self, endpoint: &Endpoint, change: ReasonChange) {
        if state_of(change.before) == state_of(change.after) {
            return;
        }
        endpoint.health.told.changed();
        self.note(Some(endpoint), NoteKind::Server, || changed_to(endpoint, change.after));
        let became_available = is_available(change.after);
        // In panic the load is spread over all endpoints at once.
        if let Some(slow_start) =
            self.slow_start.as_ref().filter(|_| became_available && !endpoint.health.is_in_panic())
        {
            slow_start.begin(&endpoint.live);
        }
        endpoint.live.show();
        if became_available {
            self.queue.all_may_ask();
            if let Some(outlier) = &self.outlier {
                outlier.hide_shared(self);
            }
        }
    }

    /// Whether it is in panic: too few endpoints are available, so all get requests but those that drain.
    pub(crate) fn is_in_panic(&self) -> bool {
        self.panics.load(Relaxed)
    }

    /// Starts or ends panic. It starts when no tier has its share of endpoints available; while one has, requests go there.
    /// Only one caller at a time, the cluster's keeper.
    fn judge_panic(&self) {
        let mut counted = (0, 0);
        let mut any_has_enough = false;
        let newest = self.newest();
        for tier in &newest.tiers {
            let health = || newest.endpoints_of(tier).iter().map(|endpoint| &endpoint.health);
            let is_well =
                |h: &&Arc<Health>| !h.holds(HealthSource::Check) && !h.holds(HealthSource::Ejection);
            let of = health().filter(|h| h.is_in_service());
            let (well, of) = (of.clone().filter(is_well).count(), of.count());
            any_has_enough |= of > 0 && well * 100 >= of * usize::from(self.config.panic_threshold);
            counted = (counted.0 + well, counted.1 + of);
        }
        let (well, of) = counted;
        let panics = !any_has_enough && of > 0;
        if self.panics.swap(panics, Relaxed) == panics {
            return;
        }
        let (name, threshold) = (&self.config.name, self.config.panic_threshold);
        if panics {
            tracing::warn!(
                "cluster \"{name}\": {well} of {of} servers are available, less than {threshold}%: panic, all get requests"
            );
        } else {
            tracing::info!("cluster \"{name}\": {well} of {of} servers are available: panic is over");
        }
        self.note(None, NoteKind::Panic, || {
            let what = if panics { "panic, all get requests" } else { "panic is over" };
            format!("{well} of {of} servers are available: {what}")
        });
        for endpoint in &newest.endpoints {
            if let Some(slow_start) = self.slow_start.as_ref().filter(|_| panics) {
                slow_start.skip(&endpoint.live);
            }
            if let Some(change) = endpoint.live.set_reason(PANIC, panics) {
                self.show(endpoint, change);
            }
        }
        if let Some(outlier) = self.outlier.as_ref().filter(|_| !panics) {
            outlier.hide_shared(self);
        }
    }

    /// The health of its endpoints, without those of unknown health.
    pub fn health_facts(&self) -> Vec<HealthFacts> {
        let now = Instant::now();
        let newest = self.newest();
        let facts = newest.endpoints.iter().map(|endpoint| {
            let health = &endpoint.health;
            let left = self.outlier.as_ref().and_then(|outlier| outlier.time_left(&health.traffic, now));
            let rising = self.slow_start.as_ref().and_then(|slow_start| slow_start.elapsed(&endpoint.live));
            HealthFacts {
                id: endpoint.id,
                down: health.holds(HealthSource::Check),
                checks: health.checks.get(),
                ejected_ms: left.map(milliseconds),
                ejections: health.traffic.ejections(),
                rising_ms: rising.map(milliseconds),
            }
        });
        facts.filter(HealthFacts::is_news).collect()
    }

    /// Takes over what an earlier worker knew of endpoints that are still there. To be called before this worker serves. A dead
    /// server stays known as dead, and slow start goes on where it was. Public for tests.
    pub fn take_over_health(&self, facts: &[HealthFacts]) {
        let now = Instant::now();
        let newest = self.newest();
        let known: FxHashMap<u64, &HealthFacts> = facts.iter().map(|facts| (facts.id, facts)).collect();
        for endpoint in &newest.endpoints {
            let Some(facts) = known.get(&endpoint.id) else { continue };
            if self.config.health_check.is_some() {
                endpoint.health.checks.set(facts.checks);
                self.set_source(endpoint, HealthSource::Check, facts.down);
            }
            if let Some(outlier) = &self.outlier {
                let left = facts.ejected_ms.map(Duration::from_millis);
                outlier.take_over(self, endpoint, facts.ejections, left, now);
            }
            if let Some(before) = facts.rising_ms.map(Duration::from_millis)
                && let Some(slow_start) = &self.slow_start
                && endpoint.counters.state.load(Relaxed) == wire::STATE_AVAILABLE
            {
                slow_start.go_on(&endpoint.live, before);
                endpoint.live.changed();
            }
        }
    }

    /// Starts and ends panic as its sources change, for ever.
    async fn keep_from_panic(&self) {
        loop {
            self.judge_panic();
            self.changed.notified().await;
        }
    }
}

/// The state that follows from these reasons, and why, in words.
fn changed_to(endpoint: &Endpoint, reasons: u8) -> String {
    let told = |source: HealthSource| endpoint.health.told.of(source).why;
    let holds = |source: HealthSource| reasons & source.bit() != 0;
    let (what, why) = match state_of(reasons) {
        wire::STATE_DOWN => ("is down", told(HealthSource::Check)),
        wire::STATE_EJECTED => ("is ejected", told(HealthSource::Ejection)),
        wire::STATE_DRAINING if holds(HealthSource::Gone) => ("leaves the cluster", None),
        wire::STATE_DRAINING if holds(HealthSource::Maintenance) => ("is in maintenance", None),
        wire::STATE_DRAINING => ("is drained", None),
        _ if reasons & PANIC != 0 => ("is available, because its cluster is in panic", None),
        _ => ("is available", None),
    };
    why.map_or_else(|| what.to_owned(), |why| format!("{what}: {why}"))
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Starts the background work of all clusters: slow start, readmission, panic. It runs until the background runtime ends.
pub(crate) fn keep(clusters: &Clusters) {
    for (idx, cluster) in clusters.iter().enumerate() {
        if cluster.slow_start.is_some() {
            let clusters = Arc::clone(clusters);
            tokio::spawn(async move {
                if let Some(slow_start) = &clusters[idx].slow_start {
                    slow_start.run().await;
                }
            });
        }
        if cluster.outlier.is_some() {
            let clusters = Arc::clone(clusters);
            tokio::spawn(async move {
                if let Some(outlier) = &clusters[idx].outlier {
                    outlier.keep(&clusters[idx]).await;
                }
            });
        }
        if cluster.config.panic_threshold > 0 {
            let clusters = Arc::clone(clusters);
            tokio::spawn(async move { clusters[idx].keep_from_panic().await });
        }
    }
}
