//! Orders of the supervisor to a worker.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::Control;
use super::reporter::Reporter;
use crate::cluster::health::HealthSource;
use crate::cluster::{Clusters, Tier};
use crate::config::Config;
use crate::module::balancer::{Balancer, ModuleFault};
use crate::observe::metrics::Metrics;
use crate::process::channel::message::{Load, OperatorMark, ToWorker};
use crate::serve::drain::Idle;

/// The parts of a worker that orders act on.
pub(super) struct Orders {
    pub(super) control: Control,
    pub(super) clusters: Clusters,
    pub(super) metrics: Arc<Metrics>,
    pub(super) reporter: Reporter,
}

impl Orders {
    pub(super) fn obey(&self, message: ToWorker, descriptors: Vec<OwnedFd>) {
        let Self { control, clusters, metrics, reporter } = self;
        match message {
            ToWorker::Save => reporter.save(),
            ToWorker::Mark(mark) => apply_drain(clusters, &mark),
            ToWorker::Base(totals) => metrics.set_base(totals),
            ToWorker::TellLoad(tells) => reporter.tell_load(tells),
            ToWorker::Elsewhere(load) => set_elsewhere(clusters, &load),
            ToWorker::Overrun { cluster, module, charged, goes_on } => {
                overrun(clusters, cluster, &module, charged, goes_on);
            }
            ToWorker::HandOver { removed } => {
                control.hand_over(&removed);
                reporter.drains();
            }
            ToWorker::Removed { listeners, are_back } => control.decide_removed(&listeners, are_back),
            ToWorker::Drain => control.drain(Idle::Close),
            ToWorker::Stop => control.stop(),
            ToWorker::ReopenLog => match descriptors.into_iter().next() {
                Some(file) => control.reopen_access_log_with(File::from(file)),
                None => tracing::error!("the new access log file is missing; the old one stays in use"),
            },
            // They have come.
            ToWorker::Start(_) | ToWorker::Serve { .. } => {}
        }
    }
}

/// What is known before anything is built is as good as configured. Weights are part of what balancers are built from.
pub(super) fn apply_marks(config: &mut Config, marks: &[OperatorMark]) {
    for mark in marks {
        let clusters = config.clusters.iter_mut().filter(|cluster| *cluster.name == *mark.cluster);
        for server in clusters.flat_map(|cluster| &mut cluster.servers) {
            if *server.url == *mark.url {
                server.weight = mark.weight.unwrap_or(server.weight);
                server.drain = mark.drain.unwrap_or(server.drain);
            }
        }
    }
}

fn apply_drain(clusters: &Clusters, mark: &OperatorMark) {
    let Some(drains) = mark.drain else { return };
    for cluster in clusters.iter().filter(|cluster| *cluster.config.name == *mark.cluster) {
        for (idx, endpoint) in cluster.endpoints.iter().enumerate() {
            if endpoint.is_of(&mark.url) {
                cluster.set_source(idx, HealthSource::Drain, drains);
            }
        }
    }
}

/// A call that does not return keeps its thread; nobody else is to be lost to the same.
fn overrun(clusters: &Clusters, cluster: Option<usize>, module: &str, charged: Duration, goes_on: bool) {
    let Some(cluster) = cluster.and_then(|cluster| clusters.get(cluster)) else { return };
    let is_its = |balancer: &&Balancer| balancer.module().id() == module;
    for balancer in cluster.tiers.iter().flat_map(Tier::balancers).filter(is_its) {
        if goes_on {
            balancer.quarantine(&format_args!("a call has not returned after {charged:.1?}"));
        } else {
            balancer.fault(ModuleFault::Overrun, &format_args!("a call took {charged:.1?}"));
        }
    }
}

pub(super) fn set_elsewhere(clusters: &Clusters, load: &Load) {
    let endpoints: HashMap<u64, u32> = load.endpoints.iter().copied().collect();
    let requests: HashMap<&str, u32> = load.clusters.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    for cluster in clusters.iter() {
        cluster.set_requests_elsewhere(requests.get(&*cluster.config.name).copied().unwrap_or(0));
        for (idx, endpoint) in cluster.endpoints.iter().enumerate() {
            cluster.set_in_flight_older(idx, endpoints.get(&endpoint.id).copied().unwrap_or(0));
        }
    }
}
