//! The subjects of metrics: listeners, clusters, modules and endpoints, in the index spaces of the configuration.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::members::{EndpointLayout, MemberTable};
use super::pace::ThreadShare;
use crate::cluster::endpoint::Endpoint;
use crate::module::balancer::ModuleFault;
use crate::observe::access_log::LineCounts;

/// The subjects of metrics, in the index spaces of the configuration.
#[derive(Default)]
pub struct MetricsLayout {
    /// Addresses of the listeners, as bound.
    pub listeners: Vec<Arc<str>>,
    /// Their certificates.
    pub certificates: Vec<CertificateLayout>,
    /// Names of the routes; a second one of the same name is labelled `NAME #2`.
    pub routes: Vec<Arc<str>>,
    /// Clusters in the order of the configuration.
    pub clusters: Vec<ClusterLayout>,
    /// Lines of the access log, if there is one.
    pub access_log: Option<Arc<LineCounts>>,
    /// Anonymous memory of this process once its modules were loaded and built.
    pub loaded_bytes: Option<u64>,
}

/// A certificate of a listener.
#[derive(Clone, Debug)]
pub struct CertificateLayout {
    /// The listener.
    pub listener: usize,
    /// Its number among those of the listener, from 0.
    pub number: String,
    /// The first name that it is for.
    pub name: Arc<str>,
    /// Valid until this time, in seconds since 1970.
    pub not_after_s: f64,
}

/// Metrics of one cluster.
pub struct ClusterLayout {
    /// Its name.
    pub name: Arc<str>,
    /// Its modules, in the order of [`config::ClusterConfig::modules`](crate::config::ClusterConfig::modules).
    pub balancers: Vec<BalancerLayout>,
    /// Its first members, in their order.
    pub endpoints: Vec<EndpointLayout>,
    /// Whether it is in panic. Called at each scrape.
    pub panics: ClusterFlag,
    /// Whether its members are refused. Called at each scrape.
    pub is_refused: ClusterFlag,
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

/// Returns whether something holds of a cluster.
pub(super) type ClusterFlag = Arc<dyn Fn() -> bool + Send + Sync>;

impl From<&Endpoint> for EndpointLayout {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            id: endpoint.id,
            place: endpoint.place,
            url: Arc::clone(&endpoint.url),
            counters: endpoint.counters,
            health: Arc::clone(&endpoint.health),
        }
    }
}

/// A cluster, and what it has series for.
pub(super) struct ClusterNames {
    pub(super) name: Arc<str>,
    /// Replaced by [`Metrics::prepare`](super::Metrics::prepare).
    pub(super) members: ArcSwap<MemberTable>,
    pub(super) balancers: Vec<BalancerLayout>,
    /// By balancer.
    pub(super) shares: Box<[ThreadShare]>,
    pub(super) panics: ClusterFlag,
    pub(super) is_refused: ClusterFlag,
}

impl ClusterNames {
    pub(super) fn new(layout: &ClusterLayout) -> Self {
        Self {
            name: Arc::clone(&layout.name),
            balancers: layout.balancers.clone(),
            shares: layout.balancers.iter().map(|_| ThreadShare::default()).collect(),
            panics: Arc::clone(&layout.panics),
            is_refused: Arc::clone(&layout.is_refused),
            members: ArcSwap::default(),
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
