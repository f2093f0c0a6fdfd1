//! The members of a cluster and the balancers that order them, as of one publication. A snapshot never changes.
//!
//! An endpoint has two numbers: its *index* in a snapshot, which lasts as long as the snapshot, and its *place*, which lasts as
//! long as the member. Choices use indices; data of members uses places.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use lb_api::wire;

use crate::cluster::endpoint::{Endpoint, Which};
use crate::cluster::live::InstanceState;
use crate::cluster::sticky::Sticky;
use crate::cluster::tier_loads::{self, TierHealth};
use crate::config::{AllDown, Spill};
use crate::module::balancer::Balancer;

/// The members of a cluster as of one publication.
#[derive(Debug)]
pub struct Snapshot {
    /// The number of the publication, from 1.
    pub number: u64,
    /// The members, those of a tier side by side.
    pub endpoints: Box<[Arc<Endpoint>]>,
    /// The tiers in the order of their use: each is used once no endpoint of those before it is left, or by its share. None where
    /// the cluster has no members.
    pub tiers: Box<[Tier]>,
    /// Where requests of a session stay with their endpoint.
    pub(crate) sticky: Option<Sticky>,
    /// Whether any member limits its concurrent requests.
    pub has_limits: bool,
    /// Whether a balancer asks for the key.
    pub uses_key: bool,
    /// The fate of a request where no endpoint is available.
    pub(super) all_down: AllDown,
    /// The order in which tiers are used.
    pub(super) spill: Spill,
    /// The index of each place, or `NO_INDEX`.
    pub(super) by_place: Box<[u32]>,
    /// It was superseded so often that its trylists are to end: the requests go on without.
    pub(super) is_over: AtomicBool,
}

/// In [`Snapshot::by_place`]: the place belongs to no member.
pub(super) const NO_INDEX: u32 = u32::MAX;

/// Endpoints that are ordered by balancers of their own. In calls of modules their indices begin at 0.
#[derive(Clone, Debug)]
pub struct Tier {
    /// Index of its first endpoint in the snapshot.
    pub first: usize,
    /// How many endpoints it has; at least 1.
    pub n_endpoints: usize,
    /// Its balancers.
    pub instance: Arc<Instance>,
}

/// The balancers of one tier, built together over the same endpoints. Publications that change nothing of the tier share them.
#[derive(Debug)]
pub struct Instance {
    /// Number of the tier, as configured.
    pub tier: u16,
    /// The members that it was built over.
    pub endpoints: Box<[Arc<Endpoint>]>,
    /// The balancer; none where its module, or the module's file, was in quarantine at the build. To begin a trylist, ask [`Tier::chooser`].
    pub balancer: Option<Balancer>,
    /// The balancer of requests without a key.
    pub keyless: KeylessChooser,
    /// The counts over all endpoints that its balancers see.
    pub(crate) state: Arc<InstanceState>,
    /// A module refuses these endpoints, so the host chooses among them.
    pub(super) refused: Option<RefusedInstance>,
}

/// An instance that has no balancers because a module refuses its endpoints.
#[derive(Debug)]
pub(super) struct RefusedInstance {
    /// The last one of the tier that was built: what was learned goes on from there.
    pub(super) last_built: Option<Arc<Instance>>,
}

/// The balancer of a tier's requests without a key.
#[derive(Debug)]
pub enum KeylessChooser {
    /// The balancer of all requests.
    Same,
    /// Another module's balancer.
    Own(Balancer),
    /// The host: that other module, or its file, was in quarantine at the build.
    Host,
}

impl Snapshot {
    /// The endpoints of one of its tiers.
    #[inline]
    pub(crate) fn endpoints_of(&self, tier: &Tier) -> &[Arc<Endpoint>] {
        &self.endpoints[tier.first..tier.first + tier.n_endpoints]
    }

    /// The member at this place, if it is one.
    pub(crate) fn at_place(&self, place: usize) -> Option<&Arc<Endpoint>> {
        self.endpoints.get(self.index_of_place(place)?)
    }

    /// Whether trylists of it are to end, though their requests run.
    #[inline]
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// One more than the highest place of any member that the cluster ever had.
    pub(crate) fn n_places(&self) -> usize {
        self.by_place.len()
    }

    /// The same member in this snapshot.
    pub(crate) fn by_id(&self, member: &Endpoint) -> Option<&Arc<Endpoint>> {
        // Members keep their places.
        self.at_place(member.place).filter(|known| known.id == member.id)
    }

    /// The index of the member at this place, if it is one.
    #[inline]
    pub(crate) fn index_of_place(&self, place: usize) -> Option<usize> {
        self.by_place.get(place).filter(|idx| **idx != NO_INDEX).map(|idx| *idx as usize)
    }

    /// The tier that a request begins with, and which of the endpoints it may go to; `None` where the cluster has no members.
    /// `draw` is asked where tiers have shares: 64 uniform bits, or a hash of the request.
    #[inline]
    pub(crate) fn first_tier(&self, draw: impl FnOnce() -> u64) -> Option<(usize, Which)> {
        if self.tiers.len() == 1 && self.all_down == AllDown::Fail {
            return Some((0, Which::Available));
        }
        if self.has_tier_shares()
            && let Some(tier) = tier_loads::tier_of(self.tiers.iter().map(Tier::health), draw())
        {
            return Some((tier, Which::Available));
        }
        match (self.available_tier(0), self.all_down) {
            (Some(tier), _) => Some((tier, Which::Available)),
            (None, _) if self.tiers.is_empty() => None,
            (None, AllDown::Fail) => Some((0, Which::Available)),
            (None, AllDown::TryAll) => Some((0, Which::NotDraining)),
        }
    }

    /// Whether tiers get shares of the requests by their health.
    #[inline]
    pub(crate) fn has_tier_shares(&self) -> bool {
        self.spill == Spill::Health && self.tiers.len() > 1
    }

    /// The share of new requests of each tier, in percent.
    pub(crate) fn tier_loads(&self) -> Vec<u64> {
        let by_health = || tier_loads::loads(self.tiers.iter().map(Tier::health));
        match self.has_tier_shares().then(by_health).flatten() {
            Some(loads) => loads.collect(),
            None => {
                let first = self.available_tier(0);
                (0..self.tiers.len()).map(|tier| if first == Some(tier) { 100 } else { 0 }).collect()
            }
        }
    }

    /// The first tier, from this one on, that has an endpoint available.
    #[inline]
    pub(crate) fn available_tier(&self, from: usize) -> Option<usize> {
        (from..self.tiers.len()).find(|&tier| self.tiers[tier].n_available() > 0)
    }

    /// Whether a tier other than the one of this number has an endpoint available.
    pub(crate) fn has_another_tier(&self, number: u16) -> bool {
        self.tiers.iter().any(|tier| tier.number() != number && tier.n_available() > 0)
    }

    /// Whether an endpoint beside this one is available.
    pub(crate) fn has_another(&self, endpoint: &Endpoint) -> bool {
        let is_available = endpoint.counters.state.load(Relaxed) == wire::STATE_AVAILABLE;
        let own = self.tiers.iter().find(|tier| tier.number() == endpoint.tier);
        let n_available = own.map_or(0, Tier::n_available);
        n_available > u32::from(is_available) || self.has_another_tier(endpoint.tier)
    }

    /// The host's own choice, for when the module gives none that can be used: of two available endpoints drawn at
    /// random by weight, the one with fewer in flight. Indices are those of the tier. `random` yields uniform bits. One
    /// pass over the endpoints.
    pub(crate) fn fall_back(
        &self,
        tier: &Tier,
        which: Which,
        is_tried: impl Fn(usize) -> bool,
        mut random: impl FnMut() -> u64,
    ) -> Option<usize> {
        let endpoints = self.endpoints_of(tier);
        let mut total = 0_u64;
        let mut drawn = [None; 2];
        for (i, endpoint) in endpoints.iter().enumerate() {
            let weight = u64::from(endpoint.effective_weight());
            if weight == 0 || is_tried(i) || !endpoint.takes(which) {
                continue;
            }
            total += weight;
            for draw in &mut drawn {
                // Keeps each of those seen so far with a chance of its weight's share.
                if random() % total < weight {
                    *draw = Some(i);
                }
            }
        }
        let [a, b] = drawn;
        a.zip(b).map(|(a, b)| if endpoints[b].in_flight() < endpoints[a].in_flight() { b } else { a })
    }

    /// All balancers.
    pub(crate) fn balancers(&self) -> impl Iterator<Item = &Balancer> {
        self.tiers.iter().flat_map(|tier| tier.instance.balancers())
    }

    /// Whether the host chooses in one of its tiers, because a module refuses the members.
    pub(super) fn is_refused(&self) -> bool {
        self.tiers.iter().any(|tier| tier.instance.refused.is_some())
    }
}

impl Tier {
    /// Its number, as configured.
    pub(crate) fn number(&self) -> u16 {
        self.instance.tier
    }

    /// Its endpoints that are available.
    #[inline]
    pub(crate) fn n_available(&self) -> u32 {
        self.instance.state.n_available()
    }

    fn health(&self) -> TierHealth {
        (self.n_available(), self.n_endpoints)
    }

    /// The balancer for a request that begins now, and has a key or has none; `None` where the host chooses.
    #[inline]
    pub(crate) fn chooser(&self, has_key: bool) -> Option<&Balancer> {
        self.instance.balancer_of(has_key).filter(|balancer| !balancer.is_quarantined())
    }
}

impl Instance {
    /// No thread chooses in it any more.
    pub(super) fn unlist(&self) {
        self.endpoints.iter().for_each(|endpoint| endpoint.live.unlist(&self.state));
    }

    /// The balancer of requests that have a key or have none, in quarantine or not.
    #[inline]
    pub(crate) fn balancer_of(&self, has_key: bool) -> Option<&Balancer> {
        match &self.keyless {
            KeylessChooser::Own(balancer) if !has_key => Some(balancer),
            KeylessChooser::Host if !has_key => None,
            _ => self.balancer.as_ref(),
        }
    }

    /// All of its balancers.
    pub(crate) fn balancers(&self) -> impl Iterator<Item = &Balancer> {
        let keyless = match &self.keyless {
            KeylessChooser::Own(balancer) => Some(balancer),
            KeylessChooser::Same | KeylessChooser::Host => None,
        };
        self.balancer.iter().chain(keyless)
    }
}
