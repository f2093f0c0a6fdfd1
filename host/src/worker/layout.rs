//! The layout of a worker's metrics, and the faults of its modules.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::cluster::{Cluster, Clusters, MembershipRefusal};
use crate::config::Config;
use crate::module::balancer::ModuleFault;
use crate::net::address::Address;
use crate::observe::access_log::AccessLog;
use crate::observe::metrics::{BalancerLayout, CertificateLayout, ClusterLayout, MetricsLayout};
use crate::process::channel::message::RefusedServers;

/// How often each module did wrong, over all clusters.
pub(super) fn faults(clusters: &[Cluster]) -> BTreeMap<Arc<str>, u64> {
    let mut faults = BTreeMap::new();
    for cluster in clusters {
        for module in cluster.config.modules() {
            let of_cluster: u64 =
                ModuleFault::ALL.into_iter().map(|fault| cluster.faults(module, fault)).sum();
            *faults.entry(Arc::clone(module)).or_default() += of_cluster;
        }
    }
    faults
}

/// The clusters whose servers are not in use as they should be.
pub(super) fn refused(clusters: &[Cluster]) -> Vec<RefusedServers> {
    let refused = |(idx, cluster): (usize, &Cluster)| {
        let MembershipRefusal { mut why, host_chooses } = Arc::unwrap_or_clone(cluster.refusal()?);
        let fits = |n: &usize| *n <= RefusedServers::MAX_BYTES && why.is_char_boundary(*n);
        why.truncate((0..=why.len()).rev().find(fits).unwrap_or(0));
        Some(RefusedServers { cluster: idx, why, host_chooses })
    };
    clusters.iter().enumerate().filter_map(refused).collect()
}

/// The layout of its listeners, clusters and access log.
pub(super) fn of(
    config: &Config,
    addresses: &[Address],
    clusters: &Clusters,
    access_log: Option<&AccessLog>,
    loaded_bytes: Option<u64>,
) -> MetricsLayout {
    let cluster = |idx: usize| {
        let cluster = &clusters[idx];
        let (judged, changed) = (Arc::clone(clusters), Arc::clone(clusters));
        let balancer = |module: &Arc<str>| {
            let (counted, watched) = (Arc::clone(clusters), Arc::clone(clusters));
            let (of, id) = (Arc::clone(module), Arc::clone(module));
            BalancerLayout {
                module: Arc::clone(module),
                faults: Arc::new(move |fault| counted[idx].faults(&of, fault)),
                is_quarantined: Arc::new(move || watched[idx].is_quarantined(&id)),
            }
        };
        ClusterLayout {
            name: Arc::clone(&cluster.config.name),
            endpoints: cluster.newest().endpoints.iter().map(|endpoint| (&**endpoint).into()).collect(),
            balancers: cluster.config.modules().map(balancer).collect(),
            panics: Arc::new(move || judged[idx].is_in_panic()),
            is_refused: Arc::new(move || changed[idx].refusal().is_some()),
        }
    };
    let certificates = config.listeners.iter().enumerate().flat_map(|(listener, config)| {
        let all = config.tls.iter().flat_map(|tls| tls.certificates().iter());
        all.enumerate().map(move |(number, facts)| CertificateLayout {
            listener,
            number: number.to_string(),
            name: facts.names.first().map_or("", |name| name).into(),
            not_after_s: facts.not_after.as_secs_f64(),
        })
    });
    MetricsLayout {
        certificates: certificates.collect(),
        routes: config.routes.iter().map(|route| route.label().into()).collect(),
        listeners: addresses.iter().map(|address| address.to_string().into()).collect(),
        clusters: (0..clusters.len()).map(cluster).collect(),
        access_log: access_log.map(AccessLog::lines),
        loaded_bytes,
    }
}
