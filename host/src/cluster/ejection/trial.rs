//! Endpoints on trial: which requests they get, and what follows from their end.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::time::{Duration, Instant};

use super::{CLAIMED, NEVER, ON_TRIAL, Outlier, TRIAL_HIDDEN, TRIAL_NONE, TRIAL_OFFERED, TRIAL_SHARED};
use crate::cluster::Cluster;
use crate::cluster::endpoint::{Declined, Endpoint, InFlight, Which};
use crate::cluster::health::HealthSource;
use crate::module::wire::ns;

/// An endpoint passes its trial this long after it answered, even if the response is still under way: streams and tunnels may
/// last for hours.
const ANSWERED_FOR: Duration = Duration::from_secs(1);

/// The part of a try in the trial of its endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trial {
    /// The endpoint was not on trial when the try began.
    #[default]
    None,
    /// It is the one request that the endpoint has on trial.
    Own,
    /// It was let in beside that one, because no other endpoint was available.
    Beside,
}

impl Outlier {
    /// Ends the endpoint's trial well if it answered some time ago. Returns when that will be.
    pub(super) fn pass_if_answered(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        now: Instant,
    ) -> Option<u64> {
        let answered_ns = endpoint.health.traffic.answered_ns.load(Relaxed);
        if answered_ns == 0 {
            return None;
        }
        let due_ns = answered_ns.saturating_add(ns(ANSWERED_FOR));
        if due_ns > self.ns(now) {
            return Some(due_ns);
        }
        self.pass(cluster, endpoint, now);
        None
    }

    /// Counts a request on its way to an endpoint on trial: only one at a time, unless no other endpoint is available.
    ///
    /// # Errors
    /// The endpoint has its request already, is full, or its state takes none.
    #[cold]
    pub(crate) fn enter(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        which: Which,
    ) -> Result<(InFlight, Trial), Declined> {
        let tried = endpoint;
        let record = &tried.health.traffic;
        let is_bound = which == Which::Available && is_bound(cluster, endpoint);
        let taken = if is_bound { TRIAL_HIDDEN } else { TRIAL_SHARED };
        let is_own = record.trial.compare_exchange(TRIAL_OFFERED, taken, SeqCst, SeqCst).is_ok();
        if !is_own && is_bound {
            return Err(Declined);
        }
        match (tried.enter_on_trial(which), is_own) {
            (Ok(in_flight), true) => {
                record.answered_ns.store(0, Relaxed);
                hide_if_bound(cluster, endpoint);
                self.show(cluster, endpoint);
                Ok((in_flight, Trial::Own))
            }
            (Ok(in_flight), false) => Ok((in_flight, Trial::Beside)),
            (Err(Declined), is_own) => {
                if is_own {
                    self.offer_again(cluster, endpoint);
                }
                Err(Declined)
            }
        }
    }

    /// An endpoint has become available, or panic has ended. Hides those on trial again that were shared for want of another.
    #[cold]
    pub(crate) fn hide_shared(&self, cluster: &Cluster) {
        for endpoint in &cluster.newest().endpoints {
            if hide_if_bound(cluster, endpoint) {
                self.show(cluster, endpoint);
            }
        }
    }

    /// The request of an endpoint's trial has a response, with this status.
    #[cold]
    pub(crate) fn answered(&self, endpoint: &Endpoint, status: u16, now: Instant) {
        if !self.rules.statuses.contain(status) {
            endpoint.health.traffic.answered_ns.store(self.ns(now), Relaxed);
            self.changed.notify_one();
        }
    }

    /// The request of an endpoint's trial says nothing of it: the next request is its trial.
    #[cold]
    pub(super) fn offer_again(&self, cluster: &Cluster, endpoint: &Endpoint) {
        let record = &endpoint.health.traffic;
        record.answered_ns.store(0, Relaxed);
        for taken in [TRIAL_HIDDEN, TRIAL_SHARED] {
            // If it is neither, the trial is over.
            let _ = record.trial.compare_exchange(taken, TRIAL_OFFERED, SeqCst, Relaxed);
        }
        self.show(cluster, endpoint);
    }

    /// A request of its trial was served.
    pub(super) fn pass(&self, cluster: &Cluster, endpoint: &Endpoint, now: Instant) {
        if !end_trial(endpoint) {
            return;
        }
        endpoint.health.traffic.well_ns.store(self.ns(now), Relaxed);
        self.show(cluster, endpoint);
        self.changed.notify_one();
        let (name, url) = (&cluster.config.name, &endpoint.url);
        tracing::info!("cluster \"{name}\": server \"{url}\" passed its trial");
    }

    /// No endpoint of the cluster is available any more. Shows endpoints on trial to all requests. If there are none, readmits
    /// at once those that were ejected because another tier had an endpoint available.
    #[cold]
    pub(crate) fn relieve(&self, cluster: &Cluster) {
        let newest = cluster.newest();
        for endpoint in &newest.endpoints {
            let trial = &endpoint.health.traffic.trial;
            if trial.compare_exchange(TRIAL_HIDDEN, TRIAL_SHARED, SeqCst, Relaxed).is_ok() {
                self.show(cluster, endpoint);
            }
        }
        for tier in &newest.tiers {
            if newest.available_tier(0).is_some() {
                return;
            }
            let share = self.share(tier.number());
            let n_ejected = share.n_ejected.load(Acquire);
            let endpoints = newest.endpoints_of(tier).iter().map(|endpoint| &endpoint.health);
            let mut ejected: Vec<_> = endpoints
                .filter(|health| !health.holds(HealthSource::Drain) && !health.holds(HealthSource::Check))
                .map(|health| (health.traffic.until_ns.load(Acquire), &health.traffic))
                .filter(|(until_ns, _)| *until_ns != NEVER && *until_ns != CLAIMED)
                .collect();
            ejected.sort_by_key(|(until_ns, _)| *until_ns);
            let least = u32::from(!share.may_all());
            let n = n_ejected.saturating_sub(share.max_ejected()).max(least) as usize;
            for (_, record) in ejected.into_iter().take(n) {
                self.pardon(record);
            }
        }
    }
}

/// Whether an endpoint on trial takes one request at a time: another endpoint is available, beside those that are shared
/// as this one would be.
fn is_bound(cluster: &Cluster, endpoint: &Endpoint) -> bool {
    let is_another = |other: &Arc<Endpoint>| {
        other.place != endpoint.place
            && other.is_usable(Which::Available)
            && other.health.traffic.trial.load(SeqCst) != TRIAL_SHARED
    };
    let newest = cluster.newest();
    newest.has_another(endpoint) && !cluster.is_in_panic() && newest.endpoints.iter().any(is_another)
}

fn hide_if_bound(cluster: &Cluster, endpoint: &Endpoint) -> bool {
    let trial = &endpoint.health.traffic.trial;
    trial.load(SeqCst) == TRIAL_SHARED
        && is_bound(cluster, endpoint)
        && trial.compare_exchange(TRIAL_SHARED, TRIAL_HIDDEN, SeqCst, Relaxed).is_ok()
}

/// Ends the endpoint's trial, if it is on trial. [`Outlier::show`] is to follow.
pub(super) fn end_trial(endpoint: &Endpoint) -> bool {
    let ended = endpoint;
    let record = &ended.health.traffic;
    if record.trial.swap(TRIAL_NONE, SeqCst) == TRIAL_NONE {
        return false;
    }
    record.in_row.fetch_and(!ON_TRIAL, Relaxed);
    ended.set_on_trial(false);
    true
}
