//! How a cluster is built: its endpoints, then the balancers of each tier, then what an earlier generation knew.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use lb_api::wire;
use tokio::sync::Notify;

use super::{Cluster, KeylessChooser, Tier, WaitQueue};
use crate::cluster::ejection::Outlier;
use crate::cluster::endpoint::Endpoint;
use crate::cluster::learned::{Learned, LearnedCluster};
use crate::cluster::retries::Retries;
use crate::cluster::slow_start::SlowStart;
use crate::cluster::sticky::Sticky;
use crate::config::{self, Setting};
use crate::module::balancer::{self, Balancer, BuildError, BuildInput, BuildProblem};
use crate::module::registry::Registry;
use crate::net::per_client::PerClient;

/// What the tiers of a cluster are built from.
struct TierBuilder<'a> {
    cluster_idx: usize,
    config: &'a config::ClusterConfig,
    registry: &'a Registry,
    known: Option<&'a LearnedCluster>,
    fault_limit: u32,
}

impl Cluster {
    /// Builds the endpoints and the balancers, which begin with what an earlier generation learned. A module in quarantine has
    /// no balancer, and the host chooses among the endpoints. `idx` is the cluster's index in the configuration; `fault_limit`
    /// is [`BuildInput::fault_limit`].
    ///
    /// # Errors
    /// The module refuses its settings or its endpoints.
    ///
    /// # Panics
    /// If a module of the cluster is not in the registry, which the checked configuration rules out.
    pub fn build(
        idx: usize,
        config: &config::ClusterConfig,
        registry: &Registry,
        learned: &Learned,
        fault_limit: u32,
    ) -> Result<Self, BuildError> {
        for id in config.modules() {
            assert!(
                registry.module(id).is_some() || registry.is_quarantined(id),
                "a checked cluster names modules that are loaded"
            );
        }
        let known = learned.cluster(&config.name);
        let endpoints = Endpoint::of_cluster(config);
        if let Some(known) = known {
            known.restore(&endpoints);
        }
        let tiers =
            TierBuilder { cluster_idx: idx, config, registry, known, fault_limit }.tiers(&endpoints)?;
        let cluster = Self::over(config, endpoints, tiers, learned.secret());
        if let Some(known) = known {
            cluster.take_over_health(known.health());
        }
        Ok(cluster)
    }

    /// A cluster without requests. All of its endpoints are as the configuration says.
    fn over(
        config: &config::ClusterConfig,
        endpoints: Box<[Endpoint]>,
        tiers: Box<[Tier]>,
        secret: &[u8; 32],
    ) -> Self {
        let sticky = config.sticky.as_ref();
        let has_slow_start = !config.slow_start.is_zero();
        Self {
            config: config.clone(),
            has_limits: config.servers.iter().any(|server| server.max_requests > 0),
            slow_start: has_slow_start
                .then(|| SlowStart::new(config.slow_start, config.slow_start_aggression)),
            sticky: sticky.map(|sticky| Sticky::new(&config.name, sticky, &endpoints, secret)),
            outlier: Outlier::new(&config.ejection, tiers.iter().map(|tier| tier.n_endpoints)),
            queue: WaitQueue::new(config.queue_order),
            queue_shares: (config.queue_per_client > 0)
                .then(|| Arc::new(PerClient::new(config.queue_per_client, config.queue))),
            retries: Retries::default(),
            endpoints,
            tiers,
            panics: AtomicBool::new(false),
            changed: Notify::new(),
            requests: AtomicU32::new(0),
            requests_elsewhere: AtomicU32::new(0),
        }
    }
}

impl TierBuilder<'_> {
    /// One for each run of endpoints of the same tier.
    fn tiers(&self, endpoints: &[Endpoint]) -> Result<Box<[Tier]>, BuildError> {
        let mut first = 0;
        let tiers = endpoints.chunk_by(|a, b| a.tier == b.tier).map(|endpoints| {
            let tier = self.tier(first, endpoints);
            first += endpoints.len();
            tier
        });
        tiers.collect()
    }

    fn tier(&self, first: usize, endpoints: &[Endpoint]) -> Result<Tier, BuildError> {
        let state = new_state(endpoints);
        let balancer = self.balancer(endpoints, state, &self.config.module, &self.config.settings)?;
        let keyless = match &self.config.key_missing {
            None => KeylessChooser::Same,
            Some(missing) => match self.balancer(endpoints, state, &missing.module, &missing.settings)? {
                Some(balancer) if balancer.needs().key => return Err(self.needs_a_key(missing)),
                Some(balancer) => KeylessChooser::Own(balancer),
                None => KeylessChooser::Host,
            },
        };
        Ok(Tier { first, n_endpoints: endpoints.len(), balancer, keyless, state })
    }

    /// None where the module is in quarantine.
    fn balancer(
        &self,
        endpoints: &[Endpoint],
        state: &'static wire::ClusterState,
        id: &Arc<str>,
        settings: &[Setting],
    ) -> Result<Option<Balancer>, BuildError> {
        let Some(module) = self.registry.module(id) else { return Ok(None) };
        let seen: Vec<balancer::EndpointInput<'_>> = endpoints.iter().map(seen).collect();
        let input = BuildInput {
            cluster: &self.config.name,
            cluster_idx: Some(self.cluster_idx),
            endpoints: &seen,
            state,
            settings,
            previous: None,
            saved: self.known.and_then(|known| known.saved(endpoints[0].tier, id)),
            fault_limit: self.fault_limit,
        };
        Balancer::build(module, input).map(Some)
    }

    /// The balancer for requests without a key must do without one.
    fn needs_a_key(&self, missing: &config::KeyMissing) -> BuildError {
        let text = "needs a key, but is to balance requests without one (name another module in key_missing)";
        BuildError {
            cluster: (&*self.config.name).into(),
            module: (&*missing.module).into(),
            problems: vec![BuildProblem {
                path: "".into(),
                text: text.into(),
                place: Some(missing.place.clone()),
            }],
        }
    }
}

/// An endpoint as a balancer sees it.
fn seen(endpoint: &Endpoint) -> balancer::EndpointInput<'_> {
    balancer::EndpointInput {
        id: endpoint.id,
        url: &endpoint.url,
        name: &endpoint.name,
        port: endpoint.port,
        address: endpoint.addresses.as_fixed().map(|address| address.ip()),
        weight: endpoint.weight,
        metadata: &endpoint.metadata,
        counters: endpoint.counters,
    }
}

/// What a balancer of these endpoints sees of them as a whole.
fn new_state(endpoints: &[Endpoint]) -> &'static wire::ClusterState {
    let is_available = |e: &&Endpoint| e.counters.state.load(Ordering::Relaxed) == wire::STATE_AVAILABLE;
    let n_available = endpoints.iter().filter(is_available).count();
    // Never freed, like the endpoints' counters: modules may keep the reference.
    Box::leak(Box::new(wire::ClusterState {
        size: size_of::<wire::ClusterState>() as u32,
        n_available: AtomicU32::new(u32::try_from(n_available).unwrap_or(u32::MAX)),
        epoch: AtomicU64::new(0),
    }))
}
