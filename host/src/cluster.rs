//! A cluster as requests see it: its endpoints and the balancers that order them, built once and never changed.
//!
//! ```text
//!  build ─► endpoint (its live numbers, health) ◄─ standing ◄─ checks, ejection, panic: may it be asked?
//!              ▲                                      │
//!  names ─► dial: a connection                        └─► slow_start, queue
//! ```

mod build;
mod queue;
mod standing;
pub mod endpoint;
pub mod health;
pub(crate) mod checks;
pub mod ejection;
pub(crate) mod slow_start;
pub(crate) mod sticky;
pub(crate) mod retries;
pub(crate) mod names;
pub(crate) mod discovery;
pub(crate) mod dial;
pub mod learned;
pub(crate) mod random;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use lb_api::wire;
use tokio::sync::Notify;

use crate::cluster::ejection::{Outlier, Trial};
use crate::cluster::endpoint::{Declined, Endpoint, InFlight, Which};
use crate::cluster::retries::Retries;
use crate::cluster::slow_start::SlowStart;
use crate::cluster::sticky::Sticky;
use crate::config::{self, AllDown, HostHeader, KeySource};
use crate::module::balancer::{Balancer, ModuleFault};
use crate::net::per_client::PerClient;

pub(crate) use self::queue::{QueuePlace, QueueSignal, WaitQueue, Wanted};
pub use self::standing::HealthFacts;
pub(crate) use self::standing::keep;

/// One cluster. Shared by all threads; what changes in it is atomic.
#[derive(Debug)]
pub struct Cluster {
    /// Its configuration.
    pub config: config::ClusterConfig,
    /// Its endpoints, those of a tier side by side. Their index here is used everywhere but in module calls.
    pub endpoints: Box<[Endpoint]>,
    /// Its tiers, at least one. Each is used when the tiers before it have no endpoint left.
    pub tiers: Box<[Tier]>,
    /// Whether any of its endpoints has a limit of concurrent requests.
    pub(crate) has_limits: bool,
    /// Slow start, if it is on.
    pub(crate) slow_start: Option<SlowStart>,
    /// Sticky sessions, if they are on.
    pub(crate) sticky: Option<Sticky>,
    /// Ejection, if it is on.
    pub outlier: Option<Outlier>,
    /// Requests that wait because every endpoint is full.
    pub(crate) queue: WaitQueue,
    /// How many of them are each client's, where that is limited.
    pub(crate) queue_shares: Option<Arc<PerClient>>,
    panics: AtomicBool,
    /// A health source of some endpoint has changed.
    changed: Notify,
    /// Retries that are under way.
    pub(crate) retries: Retries,
    /// Requests under way; counted only if they have a limit.
    requests: AtomicU32,
    /// Requests of other generations, as last reported.
    requests_elsewhere: AtomicU32,
}

/// Endpoints with a balancer of their own. In its calls their indices begin at 0.
#[derive(Debug)]
pub struct Tier {
    /// Index of its first endpoint in the cluster.
    pub first: usize,
    /// How many endpoints it has; at least 1.
    pub n_endpoints: usize,
    /// Its balancer; `None` if its module's file is in quarantine. A trylist begins with [`Tier::chooser`].
    pub balancer: Option<Balancer>,
    /// What balances requests without a key.
    pub keyless: KeylessChooser,
    /// What its balancer sees of it as a whole.
    pub state: &'static wire::ClusterState,
}

/// What balances the requests of a tier that have no key.
#[derive(Debug)]
pub enum KeylessChooser {
    /// The balancer of all requests.
    Same,
    /// Another module's balancer.
    Own(Balancer),
    /// The host: that other module's file is in quarantine.
    Host,
}

/// An admitted request, counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Admitted<'a>(&'a AtomicU32);

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Cluster {
    /// Sets how many requests of other generations (other processes) are on their way to an endpoint. They count towards its
    /// limit and when the less busy of two is chosen. If the number falls, waiting requests are woken. From any thread.
    /// Public for tests.
    ///
    /// # Panics
    /// If there is no such endpoint.
    pub fn set_in_flight_older(&self, endpoint: usize, n: u32) {
        let n_freed = self.endpoints[endpoint].set_in_flight_older(n);
        self.queue.freed_several(endpoint, n_freed as usize);
    }

    /// Sets how many requests of other generations this cluster has under way. They count towards its limit. From any thread.
    pub(crate) fn set_requests_elsewhere(&self, n: u32) {
        self.requests_elsewhere.store(n, Ordering::Relaxed);
    }

    /// Requests of this generation that count towards the cluster's limit, here and in other generations. Without a limit here
    /// it looks at every endpoint.
    pub(crate) fn n_counted(&self) -> u32 {
        match self.config.max_requests {
            0 => u32::try_from(self.n_requests()).unwrap_or(u32::MAX),
            _ => self.requests.load(Ordering::Relaxed),
        }
    }

    /// The endpoints of one of its tiers.
    #[inline]
    pub(crate) fn endpoints_of(&self, tier: &Tier) -> &[Endpoint] {
        &self.endpoints[tier.first..tier.first + tier.n_endpoints]
    }

    /// The tier that a request begins with, and which of the endpoints it may go to.
    #[inline]
    pub(crate) fn first_tier(&self) -> (usize, Which) {
        if self.tiers.len() == 1 && self.config.all_down == AllDown::Fail {
            return (0, Which::Available);
        }
        match (self.available_tier(0), self.config.all_down) {
            (Some(tier), _) => (tier, Which::Available),
            (None, AllDown::Fail) => (0, Which::Available),
            (None, AllDown::TryAll) => (0, Which::NotDraining),
        }
    }

    /// The first tier from this one on that has an endpoint available.
    #[inline]
    pub(crate) fn available_tier(&self, from: usize) -> Option<usize> {
        (from..self.tiers.len()).find(|&tier| self.tiers[tier].state.n_available.load(Ordering::Relaxed) > 0)
    }

    /// Whether another tier has an endpoint available.
    pub(crate) fn has_another_tier(&self, tier: usize) -> bool {
        let mut tiers = self.tiers.iter().enumerate();
        tiers.any(|(idx, other)| idx != tier && other.state.n_available.load(Ordering::Relaxed) > 0)
    }

    /// Whether another endpoint is available.
    pub(crate) fn has_another(&self, endpoint: usize) -> bool {
        let is_available =
            self.endpoints[endpoint].counters.state.load(Ordering::Relaxed) == wire::STATE_AVAILABLE;
        let tier = self.tier_idx(endpoint);
        let n_available = self.tiers[tier].state.n_available.load(Ordering::Relaxed);
        n_available > u32::from(is_available) || self.has_another_tier(tier)
    }

    /// Counts a request as on its way to an endpoint that declined it, if the endpoint is on trial and may have it.
    ///
    /// # Errors
    /// It is not on trial, or may not have it.
    #[cold]
    pub(crate) fn enter_on_trial(
        &self,
        endpoint: usize,
        which: Which,
    ) -> Result<(InFlight, Trial), Declined> {
        let outlier = self.outlier.as_ref().filter(|_| self.endpoints[endpoint].is_on_trial());
        outlier.map_or(Err(Declined), |outlier| outlier.enter(self, endpoint, which))
    }

    /// Admits a request, unless the cluster has reached its limit. Waiting requests count, and those of other generations as last
    /// reported. `None` where there is no limit.
    ///
    /// # Errors
    /// The cluster has reached its limit.
    #[inline]
    pub(crate) fn admit(&self) -> Result<Option<Admitted<'_>>, Declined> {
        match self.config.max_requests {
            0 => Ok(None),
            max => {
                let elsewhere = self.requests_elsewhere.load(Ordering::Relaxed);
                let next = |n: u32| (n.saturating_add(elsewhere) < max).then(|| n + 1);
                let entered = self.requests.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
                entered.map(|_| Some(Admitted(&self.requests))).map_err(|_| Declined)
            }
        }
    }

    /// Requests on their way to an endpoint, and those that wait for one. Looks at every endpoint.
    pub(crate) fn n_requests(&self) -> u64 {
        let in_flight = |e: &Endpoint| u64::from(e.counters.in_flight.load(Ordering::Relaxed));
        self.endpoints.iter().map(in_flight).sum::<u64>() + self.queue.n_waiting() as u64
    }

    /// The host's own choice, if the module gives none that can be used: of two available endpoints drawn at random by weight,
    /// the one with fewer requests in flight. Indices are the tier's. `random` yields uniform bits. One pass over the endpoints.
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
                // Each endpoint seen so far is the draw with a chance of its weight's share.
                if random() % total < weight {
                    *draw = Some(i);
                }
            }
        }
        let [a, b] = drawn;
        a.zip(b).map(|(a, b)| if endpoints[b].in_flight() < endpoints[a].in_flight() { b } else { a })
    }

    /// `Host` for requests to this endpoint, or `None` to keep the client's.
    pub(crate) fn host_header<'a>(
        &'a self,
        route: Option<&'a HostHeader>,
        endpoint: usize,
    ) -> Option<&'a str> {
        match route.unwrap_or(&self.config.host_header) {
            HostHeader::Keep => None,
            HostHeader::Server => Some(&self.endpoints[endpoint].authority),
            HostHeader::Fixed(host) => Some(host),
        }
    }

    /// The source of requests' keys, if a balancer uses keys or requests without one have their own.
    pub(crate) fn key_source(&self) -> Option<&KeySource> {
        let mut balancers = self.tiers.iter().filter_map(|tier| tier.balancer.as_ref());
        let is_used = self.config.key_missing.is_some() || balancers.any(|balancer| balancer.needs().key);
        self.config.key.as_ref().filter(|_| is_used)
    }

    /// What its operator may not have meant, one line each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut balancers = self.tiers.iter().filter_map(|tier| tier.balancer.as_ref()).peekable();
        let config::ClusterConfig { name, module, key, place, .. } = &self.config;
        // What a module in quarantine needs is unknown.
        let is_known = balancers.peek().is_some();
        let text = match (key, balancers.any(|balancer| balancer.needs().key)) {
            // It would scatter requests that belong together, and nobody would see why.
            (None, true) => format!(
                "module \"{module}\" needs a key, but none is set (for example, key = \"client\"): all requests count \
                 as requests without a key"
            ),
            (Some(_), false) if is_known => {
                format!("key: ignored, because module \"{module}\" does not use one")
            }
            _ => return Vec::new(),
        };
        vec![format!("{place}: cluster \"{name}\": {text}")]
    }

    /// ID of the module of requests with a key, or without.
    pub(crate) fn module(&self, has_key: bool) -> &Arc<str> {
        let keyless = self.config.key_missing.as_ref().filter(|_| !has_key);
        keyless.map_or(&self.config.module, |missing| &missing.module)
    }

    /// Its index among [`config::ClusterConfig::modules`].
    #[inline]
    pub(crate) fn module_idx(&self, has_key: bool) -> usize {
        usize::from(!has_key && self.config.key_missing.is_some())
    }

    /// Whether the host chooses in one of its tiers, because this module's file or the tier's balancer is in quarantine.
    pub(crate) fn is_quarantined(&self, module: &str) -> bool {
        let has_key = *self.config.module == *module;
        self.tiers.iter().any(|tier| tier.chooser(has_key).is_none())
    }

    /// How often this module of the cluster did this wrong.
    pub(crate) fn faults(&self, module: &str, fault: ModuleFault) -> u64 {
        let balancers = self.tiers.iter().flat_map(Tier::balancers);
        balancers.filter(|balancer| balancer.module().id() == module).map(|b| b.faults(fault)).sum()
    }
}

impl Tier {
    /// The balancer for a request that begins now, and has a key or has none; `None` where the host chooses.
    #[inline]
    pub(crate) fn chooser(&self, has_key: bool) -> Option<&Balancer> {
        let balancer = match &self.keyless {
            KeylessChooser::Own(balancer) if !has_key => Some(balancer),
            KeylessChooser::Host if !has_key => None,
            _ => self.balancer.as_ref(),
        };
        balancer.filter(|balancer| !balancer.is_quarantined())
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

/// The clusters of a worker, shared by its threads.
pub type Clusters = Arc<[Cluster]>;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;
    use crate::cluster::learned::Learned;
    use crate::module::registry::Registry;

    /// Two servers, without a module.
    pub(super) fn cluster(keys: &str) -> Cluster {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\na = \"a.so\"\n[[cluster]]\nname = \"c\"\n\
             servers = [{{ url = \"http://127.0.0.1:1\"{keys} }}, {{ url = \"http://127.0.0.1:2\"{keys} }}]\n\
             [[route]]\npath = \"/\"\ncluster = \"c\"\n"
        );
        let (config, _) = config::parse("t.toml", &text, config::Syntax::Toml).expect("a good file");
        let registry =
            Registry::load_except(&config.modules, &BTreeSet::from(["a".into()])).expect("none to load");
        Cluster::build(0, &config.clusters[0], &registry, &Learned::new(), 10)
            .expect("no module that could refuse")
    }

    #[test]
    fn as_many_as_places_came_free_are_woken_when_older_requests_end() {
        let cluster = cluster(", max_requests = 2");
        cluster.set_in_flight_older(0, 2);
        let places = [(); 3].map(|()| cluster.queue.enter(9, Wanted::Any).expect("there is room"));
        let mut cx = Context::from_waker(Waker::noop());
        let mut told = || places.each_ref().map(|place| pin!(place.told()).poll(&mut cx).is_ready());
        cluster.set_in_flight_older(0, 2);
        assert_eq!(told(), [false; 3], "nothing came free");
        cluster.set_in_flight_older(0, 0);
        assert_eq!(told(), [true, true, false], "two places, and not three");
    }

    #[test]
    fn the_fallback_prefers_whom_older_generations_use_less() {
        let cluster = cluster("");
        let weight = u64::from(cluster.endpoints[0].effective_weight());
        for (busy, idle) in [(0, 1), (1, 0)] {
            cluster.set_in_flight_older(busy, 3);
            cluster.set_in_flight_older(idle, 0);
            // The first endpoint is kept for certain; these draw one of them first and the other second.
            for bits in [[0, 0, 0, weight], [0, 0, weight, 0]] {
                let mut bits = bits.into_iter();
                let random = || bits.next().expect("two draws for each of two");
                let chosen = cluster.fall_back(&cluster.tiers[0], Which::Available, |_| false, random);
                assert_eq!(chosen, Some(idle));
            }
        }
    }
}
