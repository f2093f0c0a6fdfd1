//! How much of a tier may be ejected at once.

use std::fmt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};

use super::Outlier;
use crate::cluster::Cluster;

/// How much of one tier is ejected.
#[derive(Debug)]
pub(super) struct Share {
    pub(super) n_endpoints: u32,
    /// What `max_percent` allows if no other tier has an endpoint available.
    pub(super) max_ejected: u32,
    pub(super) n_ejected: AtomicU32,
}

/// Why an endpoint is not ejected.
pub(super) enum Needed {
    /// As many of its tier are ejected as may be.
    Share { ejected: u32, of: u32 },
    /// No other endpoint of its cluster is available.
    Last,
}

impl Share {
    /// Of a tier with so many endpoints. One may always be ejected, unless it is the only one.
    pub(super) fn new(n_endpoints: usize, max_percent: u32) -> Self {
        let n_endpoints = u32::try_from(n_endpoints).unwrap_or(u32::MAX);
        let percent = u64::from(n_endpoints) * u64::from(max_percent) / 100;
        let max_ejected =
            if n_endpoints == 1 { 0 } else { u32::try_from(percent).unwrap_or(u32::MAX).max(1) };
        Self { n_endpoints, max_ejected, n_ejected: AtomicU32::new(0) }
    }

    /// Whether the operator allows all of it to be ejected.
    pub(super) fn may_all(&self) -> bool {
        self.max_ejected == self.n_endpoints
    }
}

impl Outlier {
    /// Counts the endpoint as ejected, if its tier and its cluster can do without it.
    pub(super) fn take_place(&self, cluster: &Cluster, endpoint: usize) -> Result<(), Needed> {
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
}

impl fmt::Display for Needed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Share { ejected, of } => write!(f, "{ejected} of {of} servers are already ejected"),
            Self::Last => f.write_str("no other server is available"),
        }
    }
}
