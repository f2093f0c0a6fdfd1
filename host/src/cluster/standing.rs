//! Which endpoints take requests: the only way to change that, and what the next worker is told of it.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::time::{Duration, Instant};

use lb_api::wire;
use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use super::{Cluster, Clusters};
use crate::cluster::checks;
use crate::cluster::health::{Health, HealthSource};

/// What one worker knew of an endpoint's health, for the next. Drain marks are not in it: the supervisor keeps those.
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
    ///
    /// # Panics
    /// If there is no such endpoint.
    pub fn set_source(&self, endpoint: usize, source: HealthSource, holds: bool) -> bool {
        let changed = self.endpoints[endpoint].health.set(source, holds);
        if changed {
            self.update_state(endpoint);
            if self.config.panic_threshold > 0 {
                self.changed.notify_one();
            }
            if let Some(outlier) = self.outlier.as_ref().filter(|_| holds && self.available_tier(0).is_none())
            {
                outlier.relieve(self);
            }
        }
        changed
    }

    fn update_state(&self, endpoint: usize) {
        let tier = &self.tiers[self.tier_idx(endpoint)];
        // In panic the load is spread over all endpoints at once.
        let slow_start = self.slow_start.as_ref().filter(|_| !self.endpoints[endpoint].health.is_in_panic());
        if self.endpoints[endpoint].update_state(tier.state, slow_start) {
            self.queue.all_may_ask();
            if let Some(outlier) = &self.outlier {
                outlier.hide_shared(self);
            }
        }
    }

    /// The tier of this endpoint.
    pub(crate) fn tier_idx(&self, endpoint: usize) -> usize {
        let tier = self.tiers.iter().rposition(|tier| tier.first <= endpoint);
        tier.expect("every endpoint is of a tier")
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
        for tier in &self.tiers {
            let health = || self.endpoints_of(tier).iter().map(|endpoint| &endpoint.health);
            let is_well =
                |h: &&Arc<Health>| !h.holds(HealthSource::Check) && !h.holds(HealthSource::Ejection);
            let of = health().filter(|h| !h.holds(HealthSource::Drain));
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
        for (idx, endpoint) in self.endpoints.iter().enumerate() {
            if let Some(slow_start) = self.slow_start.as_ref().filter(|_| panics) {
                let tier = &self.tiers[self.tier_idx(idx)];
                slow_start.skip(endpoint.counters, endpoint.weight, tier.state);
            }
            if endpoint.health.set_panic(panics) {
                self.update_state(idx);
            }
        }
        if let Some(outlier) = self.outlier.as_ref().filter(|_| !panics) {
            outlier.hide_shared(self);
        }
    }

    /// What is known of its endpoints' health, without those of which nothing is.
    pub fn health_facts(&self) -> Vec<HealthFacts> {
        let now = Instant::now();
        let facts = self.endpoints.iter().map(|endpoint| {
            let health = &endpoint.health;
            let left = self.outlier.as_ref().and_then(|outlier| outlier.time_left(&health.traffic, now));
            let rising =
                self.slow_start.as_ref().and_then(|slow_start| slow_start.elapsed(endpoint.counters));
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
        for facts in facts {
            let Some(idx) = self.endpoints.iter().position(|endpoint| endpoint.id == facts.id) else {
                continue;
            };
            if self.config.health_check.is_some() {
                self.endpoints[idx].health.checks.set(facts.checks);
                self.set_source(idx, HealthSource::Check, facts.down);
            }
            if let Some(outlier) = &self.outlier {
                let left = facts.ejected_ms.map(Duration::from_millis);
                outlier.take_over(self, idx, facts.ejections, left, now);
            }
            let endpoint = &self.endpoints[idx];
            if let Some(before) = facts.rising_ms.map(Duration::from_millis)
                && let Some(slow_start) = &self.slow_start
                && endpoint.counters.state.load(Relaxed) == wire::STATE_AVAILABLE
            {
                let tier = self.tiers[self.tier_idx(idx)].state;
                slow_start.go_on(endpoint.counters, endpoint.weight, tier, before);
                tier.epoch.fetch_add(1, Release);
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

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Starts the background work of all clusters: slow start, readmission, panic, checks. It runs until the background runtime
/// ends. The handles returned end the checks before.
pub(crate) fn keep(clusters: &Clusters) -> Vec<AbortHandle> {
    let mut checks = Vec::new();
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
        if cluster.config.health_check.is_some() {
            for endpoint in 0..cluster.endpoints.len() {
                let task = tokio::spawn(checks::keep_checked(Arc::clone(clusters), idx, endpoint));
                checks.push(task.abort_handle());
            }
        }
    }
    checks
}
