//! Orders of the supervisor to a worker.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::Control;
use super::answers::{self, Sources};
use super::memberships::{Done, Memberships};
use super::reporter::Reporter;
use super::status::StatusReader;
use crate::cluster::{Clusters, InFlightById};
use crate::config::Config;
use crate::module::balancer::ModuleFault;
use crate::observe::metrics::Metrics;
use crate::os::log;
use crate::process::channel::Sender;
use crate::process::channel::message::{ActsResult, Load, ToSupervisor, ToWorker};
use crate::serve::drain::Idle;

/// The parts of a worker that orders act on.
pub(super) struct Orders {
    pub(super) control: Control,
    pub(super) clusters: Clusters,
    pub(super) memberships: Arc<Memberships>,
    pub(super) config: Arc<Config>,
    pub(super) sources: Sources,
    pub(super) metrics: Arc<Metrics>,
    pub(super) reader: StatusReader,
    pub(super) reporter: Reporter,
    pub(super) to: Sender<ToSupervisor>,
}

impl Orders {
    pub(super) fn obey(&self, message: ToWorker, descriptors: Vec<OwnedFd>) {
        let Self { control, clusters, memberships, metrics, reader, reporter, to, .. } = self;
        match message {
            ToWorker::Save => reporter.save(),
            ToWorker::Acts { number, acts } => {
                let to = to.clone();
                let done = move |result: ActsResult| {
                    // A supervisor that is gone wants nothing.
                    let _ = to.send(&ToSupervisor::Applied { number, result }, &[]);
                };
                memberships.set_acts(acts, Box::new(done));
            }
            ToWorker::TellState { number, cluster } => reporter.tell_state(number, cluster),
            ToWorker::Answer { source, .. } => {
                take_answer(memberships, &self.config, &self.sources, source, descriptors, Box::new(|_| ()));
            }
            ToWorker::Status(status) => reader.told(status),
            ToWorker::Events(events) => reader.events.push(events),
            ToWorker::Sources(sources) => metrics.set_sources(sources),
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
            ToWorker::Leave => reader.leave(),
            ToWorker::Drain => control.drain(Idle::Close),
            ToWorker::Stop => control.stop(),
            ToWorker::ReopenLog => match descriptors.into_iter().next() {
                Some(file) => control.reopen_access_log_with(File::from(file)),
                None => tracing::error!("the new access log file is missing; the old one stays in use"),
            },
            ToWorker::ReopenOwnLog => {
                if let (Some(file), Some(path)) = (descriptors.into_iter().next(), self.config.log.file()) {
                    log::reopen_with(File::from(file), path);
                }
            }
            // They have come.
            ToWorker::Start(_) | ToWorker::Serve { .. } => {}
        }
    }
}

/// A source names other servers.
pub(super) fn take_answer(
    memberships: &Memberships,
    config: &Config,
    sources: &Sources,
    number: u64,
    descriptors: Vec<OwnedFd>,
    done: Done,
) {
    let (Some(place), Some(memory)) = (sources.place(number), descriptors.into_iter().next()) else { return };
    match answers::members_of(config, place, memory) {
        Ok(members) => memberships.set_answer(place, &members, done),
        Err(why) => tracing::error!("{}: an answer is ignored: {why}", answers::name_of(config, place)),
    }
}

/// A call that does not return keeps its thread; nobody else is to be lost to the same.
fn overrun(clusters: &Clusters, cluster: Option<usize>, module: &str, charged: Duration, goes_on: bool) {
    let Some(cluster) = cluster.and_then(|cluster| clusters.get(cluster)) else { return };
    let Some(module) = cluster.scope_of(module) else { return };
    if goes_on {
        module.enter_quarantine(&format_args!("a call has not returned after {charged:.1?}"));
    } else {
        module.fault(ModuleFault::Overrun, &format_args!("a call took {charged:.1?}"));
    }
}

pub(super) fn set_elsewhere(clusters: &Clusters, load: &Load) {
    let endpoints: Arc<InFlightById> = Arc::new(load.endpoints.iter().copied().collect());
    let requests: HashMap<&str, u32> = load.clusters.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    for cluster in clusters.iter() {
        cluster.set_requests_elsewhere(requests.get(&*cluster.config.name).copied().unwrap_or(0));
        cluster.set_in_flight_elsewhere(&endpoints);
    }
}
