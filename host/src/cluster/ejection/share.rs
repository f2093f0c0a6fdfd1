//! How much of a tier may be ejected at once.

use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};

use super::trial::end_trial;
use super::{CLAIMED, NEVER, Outlier};
use crate::cluster::Cluster;
use crate::cluster::endpoint::Endpoint;

/// How much of one tier is ejected.
#[derive(Debug)]
pub(super) struct Share {
    /// Number of the tier.
    tier: u16,
    /// Its members as they are now.
    n_endpoints: AtomicU32,
    /// The share of them that may be ejected if no other tier has an endpoint available.
    max_percent: u8,
    pub(super) n_ejected: AtomicU32,
}

/// Why an endpoint is not ejected.
pub(super) enum Needed {
    /// As many of its tier are ejected as may be.
    Share { ejected: u32, of: u32 },
    /// No other endpoint of its cluster is available.
    Last,
    /// Its cluster has no other.
    Only,
}

impl Share {
    /// Of the tier of this number, which has no members yet.
    pub(super) fn new(tier: u16, max_percent: u8) -> Self {
        Self { tier, n_endpoints: AtomicU32::new(0), max_percent, n_ejected: AtomicU32::new(0) }
    }

    /// Most endpoints of it that may be ejected if no other tier has one available: at least one, but never the only one.
    pub(super) fn max_ejected(&self) -> u32 {
        match self.n_endpoints.load(Relaxed) {
            0 | 1 => 0,
            n => u32::try_from(u64::from(n) * u64::from(self.max_percent) / 100).unwrap_or(u32::MAX).max(1),
        }
    }

    /// Whether the operator allows all of it to be ejected.
    pub(super) fn may_all(&self) -> bool {
        self.max_ejected() == self.n_endpoints.load(Relaxed)
    }
}

impl Outlier {
    /// A tier has so many members from now on.
    pub(crate) fn set_members(&self, tier: u16, n: usize) {
        self.share(tier).n_endpoints.store(u32::try_from(n).unwrap_or(u32::MAX), Relaxed);
    }

    /// An endpoint has left the cluster: its ejection and its trial end, and count no longer.
    pub(crate) fn left(&self, cluster: &Cluster, endpoint: &Endpoint) {
        let ejected = |until_ns: u64| (until_ns != NEVER && until_ns != CLAIMED).then_some(NEVER);
        if endpoint.health.traffic.until_ns.fetch_update(AcqRel, Relaxed, ejected).is_ok() {
            self.share(endpoint.tier).n_ejected.fetch_sub(1, AcqRel);
        }
        end_trial(endpoint);
        self.show(cluster, endpoint);
    }

    /// The share of a tier. Members are of no tiers but those of the configuration.
    pub(super) fn share(&self, tier: u16) -> &Share {
        let known = self.tiers.iter().find(|share| share.tier == tier);
        known.unwrap_or_else(|| self.tiers.last().expect("a cluster has a tier"))
    }

    /// Counts the endpoint as ejected, if its tier and its cluster can do without it.
    pub(super) fn take_place(&self, cluster: &Cluster, endpoint: &Endpoint) -> Result<(), Needed> {
        let (share, newest) = (self.share(endpoint.tier), cluster.newest());
        if newest.endpoints.len() < 2 {
            return Err(Needed::Only);
        }
        if !share.may_all() && !newest.has_another(endpoint) {
            return Err(Needed::Last);
        }
        let of = share.n_endpoints.load(Relaxed);
        let max = if newest.has_another_tier(endpoint.tier) { of } else { share.max_ejected() };
        let room = |n: u32| (n < max).then_some(n + 1);
        let taken = share.n_ejected.fetch_update(AcqRel, Relaxed, room);
        taken.map(|_| ()).map_err(|ejected| Needed::Share { ejected, of })
    }
}

impl fmt::Display for Needed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share { ejected, of } => write!(f, "{ejected} of {of} servers are already ejected"),
            Self::Last => f.write_str("no other server is available"),
            Self::Only => f.write_str("it is the only server"),
        }
    }
}
