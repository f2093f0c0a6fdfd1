//! A cluster as requests see it: its endpoints and the balancers that order them, built once and never changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

use lb_api::wire;
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::config::{self, AllDown, HostHeader, KeySource};
use crate::endpoint::{Declined, Endpoint, Which};
use crate::module::Module;
use crate::module::balancer::{self, Balancer, BuildError, BuildInput};
use crate::module::registry::Registry;
use crate::retry::Retries;
use crate::slow_start::SlowStart;
use crate::sticky::Sticky;

/// One cluster. Shared by all threads; what changes in it is atomic.
#[derive(Debug)]
pub struct Cluster {
    /// What the configuration says of it.
    pub config: config::Cluster,
    /// Its endpoints, those of a tier side by side; their index is their name everywhere but in module calls.
    pub endpoints: Box<[Endpoint]>,
    /// Who orders them, at least one: in this order, each used once no endpoint of those before it is left.
    pub tiers: Box<[Tier]>,
    /// Whether any of its endpoints has a limit of requests at once.
    pub has_limits: bool,
    /// Where endpoints that become available get little at first.
    pub slow_start: Option<SlowStart>,
    /// Where requests of a session stay with their endpoint.
    pub sticky: Option<Sticky>,
    /// Requests that wait because every endpoint is full.
    pub queue: Queue,
    /// Retries that are under way.
    pub retries: Retries,
    /// Requests under way; counted only where they have a limit.
    requests: AtomicU32,
}

/// Endpoints that a balancer of their own orders. In its calls their indices begin at 0.
#[derive(Debug)]
pub struct Tier {
    /// Index of its first endpoint in the cluster.
    pub first: usize,
    /// How many endpoints it has; at least 1.
    pub n_endpoints: usize,
    /// Its balancer.
    pub balancer: Balancer,
    /// What its balancer sees of it as a whole.
    pub state: &'static wire::ClusterState,
}

/// Requests that wait for an endpoint to come free.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: AtomicUsize,
    freed: Notify,
}

/// A place in the queue; leaves when dropped.
#[derive(Debug)]
pub struct Waiting<'a> {
    queue: &'a Queue,
    /// Nobody waited before.
    pub is_first: bool,
}

/// A request that was let in; counted until this is dropped.
#[derive(Debug)]
pub struct Admitted<'a>(&'a AtomicU32);

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cluster {
    /// Builds the endpoints and the balancers.
    ///
    /// # Errors
    /// What the module has against its settings or its endpoints.
    ///
    /// # Panics
    /// If the cluster's module is not in the registry, which the checked configuration rules out.
    pub fn build(config: &config::Cluster, registry: &Registry) -> Result<Self, BuildError> {
        let module =
            registry.module(&config.module).expect("a checked cluster names a module that is loaded");
        let endpoints = Endpoint::of_cluster(config);
        let mut first = 0;
        let tiers: Result<Box<[Tier]>, BuildError> = endpoints
            .chunk_by(|a, b| a.tier == b.tier)
            .map(|endpoints| {
                let tier = Tier::build(config, module, first, endpoints);
                first += endpoints.len();
                tier
            })
            .collect();
        let has_limits = config.servers.iter().any(|server| server.max_requests > 0);
        let slow_start = (!config.slow_start.is_zero())
            .then(|| SlowStart::new(config.slow_start, config.slow_start_aggression));
        let sticky = config.sticky.as_ref().map(|sticky| Sticky::new(&config.name, sticky, &endpoints));
        Ok(Self {
            sticky,
            config: config.clone(),
            endpoints,
            tiers: tiers?,
            has_limits,
            slow_start,
            queue: Queue::default(),
            retries: Retries::default(),
            requests: AtomicU32::new(0),
        })
    }

    /// Changes an endpoint's state to one of [`wire`]'s `STATE_*`. From any thread, but no request's business: it may wait
    /// for another that does the same.
    ///
    /// # Panics
    /// Where there is no such endpoint.
    pub fn set_state(&self, endpoint: usize, state: u32) {
        let of = |tier: &&Tier| endpoint - tier.first < tier.n_endpoints;
        let tier = self.tiers.iter().rev().find(|tier| tier.first <= endpoint).filter(of);
        let tier = tier.expect("every endpoint is of a tier");
        let changed = self.endpoints[endpoint].set_state(state, tier.state, self.slow_start.as_ref());
        if changed && state == wire::STATE_AVAILABLE {
            // It may take more than one of them.
            self.queue.freed.notify_waiters();
        }
    }

    /// The endpoints of one of its tiers.
    #[inline]
    pub fn endpoints_of(&self, tier: &Tier) -> &[Endpoint] {
        &self.endpoints[tier.first..tier.first + tier.n_endpoints]
    }

    /// The tier that a request begins with, and which of the endpoints it may go to.
    #[inline]
    pub fn first_tier(&self) -> (usize, Which) {
        if self.tiers.len() == 1 && self.config.all_down == AllDown::Fail {
            return (0, Which::Available);
        }
        match (self.available_tier(0), self.config.all_down) {
            (Some(tier), _) => (tier, Which::Available),
            (None, AllDown::Fail) => (0, Which::Available),
            (None, AllDown::TryAll) => (0, Which::NotDraining),
        }
    }

    /// The first tier, from this one on, that has an endpoint available.
    #[inline]
    pub fn available_tier(&self, from: usize) -> Option<usize> {
        (from..self.tiers.len()).find(|&tier| self.tiers[tier].state.n_available.load(Ordering::Relaxed) > 0)
    }

    /// Lets a request in, those that wait included, unless the cluster has as many as it may.
    ///
    /// # Errors
    /// It has.
    #[inline]
    pub fn admit(&self) -> Result<Option<Admitted<'_>>, Declined> {
        match self.config.max_requests {
            0 => Ok(None),
            max => {
                let next = |n: u32| (n < max).then(|| n + 1);
                let entered = self.requests.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
                entered.map(|_| Some(Admitted(&self.requests))).map_err(|_| Declined)
            }
        }
    }

    /// Requests on their way to an endpoint, and those that wait for one. Looks at every endpoint.
    pub fn n_requests(&self) -> u64 {
        let in_flight = |e: &Endpoint| u64::from(e.counters.in_flight.load(Ordering::Relaxed));
        self.endpoints.iter().map(in_flight).sum::<u64>() + self.queue.waiting.load(Ordering::Relaxed) as u64
    }

    /// The host's own choice, for when the module gives none that can be used: of two available endpoints drawn at
    /// random by weight, the one with fewer in flight. Indices are those of the tier. `random` yields uniform bits. One
    /// pass over the endpoints.
    pub fn fall_back(
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
        a.zip(b).map(|(a, b)| {
            let in_flight = |i: usize| endpoints[i].counters.in_flight.load(Ordering::Relaxed);
            if in_flight(b) < in_flight(a) { b } else { a }
        })
    }

    /// `Host` for requests to this endpoint, or `None` to keep the client's.
    pub fn host_header<'a>(&'a self, route: Option<&'a HostHeader>, endpoint: usize) -> Option<&'a str> {
        match route.unwrap_or(&self.config.host_header) {
            HostHeader::Keep => None,
            HostHeader::Server => Some(&self.endpoints[endpoint].authority),
            HostHeader::Fixed(host) => Some(host),
        }
    }

    /// Where requests get their key from, if the balancer asked for one.
    pub fn key_source(&self) -> Option<&KeySource> {
        self.config.key.as_ref().filter(|_| self.tiers.iter().any(|tier| tier.balancer.needs().key))
    }
}

impl Tier {
    fn build(
        config: &config::Cluster,
        module: &Arc<Module>,
        first: usize,
        endpoints: &[Endpoint],
    ) -> Result<Self, BuildError> {
        let seen: Vec<balancer::Endpoint<'_>> = endpoints
            .iter()
            .map(|e| balancer::Endpoint {
                id: e.id,
                url: &e.url,
                name: &e.name,
                port: e.port,
                address: e.addresses.as_fixed().map(|a| a.ip()),
                weight: e.weight,
                metadata: &e.metadata,
                counters: e.counters,
            })
            .collect();
        let is_available = |e: &&Endpoint| e.counters.state.load(Ordering::Relaxed) == wire::STATE_AVAILABLE;
        let n_available = endpoints.iter().filter(is_available).count();
        // Like the endpoints' slots never freed: modules may keep the reference.
        let state: &'static wire::ClusterState = Box::leak(Box::new(wire::ClusterState {
            size: size_of::<wire::ClusterState>() as u32,
            n_available: AtomicU32::new(u32::try_from(n_available).unwrap_or(u32::MAX)),
            epoch: AtomicU64::new(0),
        }));
        let balancer = Balancer::build(
            module,
            BuildInput {
                cluster: &config.name,
                endpoints: &seen,
                state,
                settings: &config.settings,
                previous: None,
                saved: None,
            },
        )?;
        Ok(Self { first, n_endpoints: endpoints.len(), balancer, state })
    }
}

impl Queue {
    /// Takes a place, unless `limit` requests wait already.
    pub fn enter(&self, limit: usize) -> Option<Waiting<'_>> {
        let before = self.waiting.fetch_add(1, Ordering::SeqCst);
        let waiting = Waiting { queue: self, is_first: before == 0 };
        (before < limit).then_some(waiting)
    }

    /// Whether anybody waits: who comes then has to wait too, or it would take what those were woken for.
    #[inline]
    pub fn is_waited_in(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Tells those who wait that an endpoint may have come free. Costs one load where nobody waits.
    #[inline]
    pub fn freed(&self) {
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.freed.notify_one();
        }
    }
}

impl Waiting<'_> {
    /// Completes when an endpoint may have come free since this was enabled, for each that did so for one of those who
    /// wait, in the order in which they enabled it.
    pub fn freed(&self) -> Notified<'_> {
        self.queue.freed.notified()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.queue.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The clusters of a worker, shared by its threads.
pub type Clusters = Arc<[Cluster]>;
