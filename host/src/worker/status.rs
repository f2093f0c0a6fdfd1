//! The status of a worker, gathered where it is asked for. It reads what others write anyway; no request pays for it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Instant, SystemTime};

use lb_api::wire;

use crate::cluster::endpoint::{Endpoint, shown_weight};
use crate::cluster::health::{HealthSource, ToldReason, unix_ms};
use crate::cluster::{Cluster, Clusters, Snapshot, Tier};
use crate::observe::metrics::{self, CountedServer, Metrics};
use crate::observe::status::{
    ClusterModule, ClusterStatus, ReasonStatus, ServerStates, ServerStatus, TierStatus, WorkerStatus,
    rfc3339, seconds_since,
};

/// Most servers of one answer over the control socket: some tens of megabytes.
const MAX_SERVERS_TOLD: usize = 20_000;

/// Reads how a worker is.
#[derive(Clone, Debug)]
pub(super) struct StatusReader {
    pub(super) clusters: Clusters,
    pub(super) metrics: Arc<Metrics>,
}

impl StatusReader {
    /// The status of all clusters with their servers, or of the one of this name.
    pub(super) fn status(&self, cluster: Option<&str>) -> WorkerStatus {
        let mut status = WorkerStatus { at: rfc3339(unix_ms(SystemTime::now())), ..WorkerStatus::default() };
        let is_wanted =
            |(_, known): &(usize, &Cluster)| cluster.is_none_or(|name| *known.config.name == *name);
        let mut room = MAX_SERVERS_TOLD;
        for (idx, cluster) in self.clusters.iter().enumerate().filter(is_wanted) {
            let members = cluster.newest().clone();
            let mut told = self.cluster(idx, &members);
            let n = members.endpoints.len();
            if n <= room {
                told.servers = self.servers(idx, &members);
                room -= n;
            } else {
                status.servers_left_out += n;
            }
            status.clusters.push(told);
        }
        status
    }

    /// A cluster without its servers.
    pub(super) fn cluster(&self, idx: usize, members: &Snapshot) -> ClusterStatus {
        let cluster = &self.clusters[idx];
        let refusal = cluster.refusal();
        let module = |(module, numbers, quarantined): (Arc<str>, _, _)| ClusterModule {
            module: module.to_string(),
            quarantined,
            numbers,
        };
        let tiers: Vec<TierStatus> = members.tiers.iter().map(|tier| tier_status(members, tier)).collect();
        ClusterStatus {
            cluster: cluster.config.name.to_string(),
            module: cluster.config.module.to_string(),
            publication: members.number,
            states: states(members),
            in_panic: cluster.is_in_panic(),
            refused: refusal.map(|refusal| refusal.why.clone()),
            in_flight: tiers.iter().map(|tier| tier.in_flight).sum(),
            max_requests: cluster.config.max_requests,
            queue: cluster.queue.n_waiting() as u64,
            max_queue: cluster.config.queue as u64,
            retries_under_way: cluster.retries.n_under_way(),
            tiers,
            modules: self.metrics.counted_modules(idx).into_iter().map(module).collect(),
            numbers: self.metrics.counted_cluster(idx),
            servers: Vec::new(),
        }
    }

    /// The servers of a cluster.
    pub(super) fn servers(&self, idx: usize, members: &Snapshot) -> Vec<ServerStatus> {
        let (wall, now) = (SystemTime::now(), Instant::now());
        let mut counted = self.metrics.counted_servers(idx);
        let cluster = &self.clusters[idx];
        let server = |endpoint: &Arc<Endpoint>| {
            // None where it has just come, or gone.
            let numbers = counted.remove(&endpoint.place).unwrap_or_else(|| CountedServer {
                label: Arc::clone(&endpoint.url),
                numbers: metrics::ServerNumbers::default(),
            });
            server_status(cluster, endpoint, numbers, wall, now)
        };
        members.endpoints.iter().map(server).collect()
    }
}

fn server_status(
    cluster: &Cluster,
    endpoint: &Endpoint,
    counted: CountedServer,
    wall: SystemTime,
    now: Instant,
) -> ServerStatus {
    let (counters, health) = (endpoint.counters, &endpoint.health);
    let latency_ns = counters.latency_ns.load(Relaxed);
    let left = cluster.outlier.as_ref().and_then(|outlier| outlier.time_left(&health.traffic, now));
    let reason = |told: ToldReason| ReasonStatus {
        source: told.source.name().to_owned(),
        since: rfc3339(told.since_ms),
        for_s: seconds_since(told.since_ms, wall),
        why: told.why,
        left_s: left.filter(|_| told.source == HealthSource::Ejection).map(|left| left.as_secs()),
    };
    let mut reasons: Vec<ToldReason> = health.reasons();
    reasons.sort_by_key(|told| strength(told.source));
    let since_ms = health.told.since_ms();
    ServerStatus {
        cluster: cluster.config.name.to_string(),
        server: counted.label.to_string(),
        tier: endpoint.tier,
        state: metrics::state(counters.state.load(Relaxed)).to_owned(),
        since: rfc3339(since_ms),
        for_s: seconds_since(since_ms, wall),
        reasons: reasons.into_iter().map(reason).collect(),
        on_trial: endpoint.is_on_trial(),
        weight: endpoint.live.weight(),
        effective_weight: shown_weight(counters.effective_weight.load(Relaxed)),
        in_flight: counters.in_flight.load(Relaxed),
        in_flight_older: counters.in_flight_older.load(Relaxed),
        max_requests: endpoint.limit,
        latency_ms: (latency_ns > 0).then(|| (latency_ns as f64 / 1e3).round() / 1e3),
        keeps_sessions: health.keeps_sessions(),
        session: endpoint.route.as_ref().map(ToString::to_string),
        numbers: counted.numbers,
    }
}

/// The place of a source among those that hold at once: which one the state follows from.
fn strength(source: HealthSource) -> u8 {
    match source {
        HealthSource::Gone => 0,
        HealthSource::Maintenance => 1,
        HealthSource::Drain => 2,
        HealthSource::Check => 3,
        HealthSource::Ejection => 4,
    }
}

fn tier_status(members: &Snapshot, tier: &Tier) -> TierStatus {
    let endpoints = members.endpoints_of(tier);
    let in_flight = |endpoint: &Arc<Endpoint>| u64::from(endpoint.counters.in_flight.load(Relaxed));
    TierStatus {
        tier: tier.number(),
        servers: endpoints.len() as u64,
        available: tier.n_available().into(),
        in_flight: endpoints.iter().map(in_flight).sum(),
        host_chooses: tier.chooser(true).is_none(),
    }
}

fn states(members: &Snapshot) -> ServerStates {
    let mut states = ServerStates { servers: members.endpoints.len() as u64, ..ServerStates::default() };
    for endpoint in &members.endpoints {
        *match endpoint.counters.state.load(Relaxed) {
            wire::STATE_AVAILABLE => &mut states.available,
            wire::STATE_DOWN => &mut states.down,
            wire::STATE_EJECTED => &mut states.ejected,
            _ => &mut states.draining,
        } += 1;
    }
    states
}
