//! What there is to count: listeners, clusters, modules and endpoints, in the index spaces of the configuration.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use lb_api::wire;

use crate::cluster::health::Health;
use crate::module::balancer::ModuleFault;
use crate::observe::access_log::LineCounts;

/// What there is to count, in the index spaces of the configuration.
#[derive(Default)]
pub struct MetricsLayout {
    /// Addresses of the listeners, as bound.
    pub listeners: Vec<Arc<str>>,
    /// Clusters in the order of the configuration.
    pub clusters: Vec<ClusterLayout>,
    /// Lines of the access log, if there is one.
    pub access_log: Option<Arc<LineCounts>>,
}

/// Metrics of one cluster.
pub struct ClusterLayout {
    /// Its name.
    pub name: Arc<str>,
    /// Its modules, in the order of [`config::ClusterConfig::modules`](crate::config::ClusterConfig::modules).
    pub balancers: Vec<BalancerLayout>,
    /// Its endpoints in the order of the configuration.
    pub endpoints: Vec<EndpointLayout>,
    /// Whether it is in panic. Called at each scrape.
    pub panics: Panics,
}

/// Metrics of one module of a cluster: its own, or the one for requests without a key.
#[derive(Clone)]
pub struct BalancerLayout {
    /// Its module's ID.
    pub module: Arc<str>,
    /// [`Cluster::faults`](crate::cluster::Cluster::faults), called at each scrape. The cluster counts faults, because some
    /// happen on threads without a shard.
    pub faults: Faults,
    /// [`Cluster::is_quarantined`](crate::cluster::Cluster::is_quarantined). Called at each scrape.
    pub is_quarantined: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// Returns the number of faults of this kind so far.
pub(super) type Faults = Arc<dyn Fn(ModuleFault) -> u64 + Send + Sync>;

/// Returns whether a cluster is in panic.
pub(super) type Panics = Arc<dyn Fn() -> bool + Send + Sync>;

/// Metrics of one endpoint.
#[derive(Clone, Debug)]
pub struct EndpointLayout {
    /// The URL as written. A second one of the same URL in a cluster is labelled `URL #2`.
    pub url: Arc<str>,
    /// The address, for an endpoint that is one of several addresses of a name.
    pub address: Option<IpAddr>,
    /// Its live numbers, read at each scrape.
    pub counters: &'static wire::Counters,
    /// What is known of its health, read at each scrape.
    pub health: Arc<Health>,
}

/// A cluster with a label for each endpoint.
pub(super) struct ClusterNames {
    pub(super) name: Arc<str>,
    pub(super) endpoints: Vec<(String, EndpointLayout)>,
    pub(super) balancers: Vec<BalancerLayout>,
    pub(super) panics: Panics,
}

impl ClusterNames {
    pub(super) fn new(layout: &ClusterLayout) -> Self {
        let urls = distinct(layout.endpoints.iter().map(|endpoint| &endpoint.url));
        Self {
            name: Arc::clone(&layout.name),
            balancers: layout.balancers.clone(),
            panics: Arc::clone(&layout.panics),
            endpoints: urls.into_iter().zip(layout.endpoints.iter().cloned()).collect(),
        }
    }
}

impl fmt::Debug for ClusterNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClusterNames").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Makes names unique, because two series must not have the same labels: the n-th of one name becomes `name #n`.
pub(super) fn distinct<'a>(names: impl Iterator<Item = &'a Arc<str>>) -> Vec<String> {
    let mut seen = HashMap::new();
    names
        .map(|name| {
            let occurrence = seen.entry(name).and_modify(|n| *n += 1).or_insert(1);
            if *occurrence == 1 { name.to_string() } else { format!("{name} #{occurrence}") }
        })
        .collect()
}
