//! The status of a worker, gathered where it is asked for. It reads what others write anyway; no request pays for it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use lb_api::wire;
use rustc_hash::FxHashSet;

use super::relay::Relay;
use crate::cluster::endpoint::{Endpoint, shown_weight};
use crate::cluster::health::{HealthSource, ToldReason};
use crate::cluster::{Cluster, Clusters, Snapshot, Tier};
use crate::config::{Config, ModuleFile};
use crate::observe::admin::{Paging, StateSource, SupervisorAnswer, WantedServers};
use crate::observe::events::EventLog;
use crate::observe::metrics::{self, CountedServer, Metrics, ServerNumbers};
use crate::observe::status::{
    CertificateStatus, ClusterModule, ClusterStatus, ListenerStatus, ModuleInCluster, ModuleStatus,
    ReasonStatus, ServerStates, ServerStatus, Status, TierStatus, WorkerStatus, WorkerSummary,
};
use crate::observe::time::{rfc3339, seconds_since, unix_ms};
use crate::tls::certificate::CertificateFacts;
use crate::tls::server::ServerTls;

/// Most servers of one answer over the control socket: some tens of megabytes.
const MAX_SERVERS_TOLD: usize = 20_000;

/// Reads how a worker is.
#[derive(Clone, Debug)]
pub(crate) struct StatusReader {
    pub(super) config: Arc<Config>,
    /// Of its listeners, as bound.
    pub(super) addresses: Arc<[String]>,
    pub(super) clusters: Clusters,
    pub(super) metrics: Arc<Metrics>,
    pub(super) events: Arc<EventLog>,
    pub(super) relay: Option<Arc<Relay>>,
    pub(super) generation: Option<u64>,
    /// The proxy stops soon.
    pub(super) is_leaving: Arc<AtomicBool>,
    pub(super) started: Instant,
}

impl StatusReader {
    /// The status of all clusters with their servers, or of the one of this name.
    pub(super) fn status(&self, cluster: Option<&str>) -> WorkerStatus {
        let mut status = WorkerStatus {
            summary: self.summary(),
            listeners: self.listeners(),
            modules: self.modules(),
            events: self.events.after(0),
            ..WorkerStatus::default()
        };
        let is_wanted =
            |(_, known): &(usize, &Cluster)| cluster.is_none_or(|name| *known.config.name == *name);
        let mut room = MAX_SERVERS_TOLD;
        for (idx, cluster) in self.clusters.iter().enumerate().filter(is_wanted) {
            let members = cluster.newest().clone();
            let mut told = self.cluster_status(idx, &members);
            let n = members.endpoints.len();
            if n <= room {
                told.servers = self.servers_of(idx, members.endpoints.iter());
                room -= n;
            } else {
                status.servers_left_out += n;
            }
            status.clusters.push(told);
        }
        status
    }

    /// The supervisor has said how it is.
    pub(super) fn told(&self, status: Box<Status>) {
        if let Some(relay) = &self.relay {
            relay.told(status);
        }
    }

    /// A cluster without its servers.
    fn cluster_status(&self, idx: usize, members: &Snapshot) -> ClusterStatus {
        let cluster = &self.clusters[idx];
        let refusal = cluster.refusal();
        let module = |(module, numbers, quarantined): (Arc<str>, _, _)| ClusterModule {
            module: module.to_string(),
            quarantined,
            numbers,
        };
        let tiers = members.tiers.iter().zip(members.tier_loads());
        let tiers: Vec<TierStatus> = tiers.map(|(tier, load)| tier_status(members, tier, load)).collect();
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

    /// These servers of a cluster.
    fn servers_of<'a>(
        &self,
        idx: usize,
        endpoints: impl Iterator<Item = &'a Arc<Endpoint>> + Clone,
    ) -> Vec<ServerStatus> {
        let (wall, now) = (SystemTime::now(), Instant::now());
        let places: FxHashSet<usize> = endpoints.clone().map(|endpoint| endpoint.place).collect();
        let mut counted = self.metrics.counted_servers(idx, |place| places.contains(&place));
        let cluster = &self.clusters[idx];
        let server = |endpoint: &Arc<Endpoint>| {
            // None where it has just come, or gone.
            let numbers = counted.remove(&endpoint.place).unwrap_or_else(|| CountedServer {
                label: Arc::clone(&endpoint.url),
                numbers: ServerNumbers::default(),
            });
            server_status(cluster, endpoint, numbers, wall, now)
        };
        endpoints.map(server).collect()
    }

    fn named(&self, cluster: &str) -> Option<usize> {
        self.clusters.iter().position(|known| *known.config.name == *cluster)
    }
}

impl StatusReader {
    /// From now on it is not ready.
    pub(super) fn leave(&self) {
        self.is_leaving.store(true, Relaxed);
    }
}

impl StateSource for StatusReader {
    fn unready(&self) -> Option<String> {
        if self.is_leaving.load(Relaxed) {
            return Some("stopping".to_owned());
        }
        let needs = self.config.admin.iter().flat_map(|admin| &admin.ready_needs);
        let clusters = needs.filter_map(|idx| self.clusters.get(*idx));
        let without: Vec<_> = clusters
            .filter(|cluster| cluster.newest().tiers.iter().all(|tier| tier.n_available() == 0))
            .map(|cluster| format!("cluster \"{}\" has no available server", cluster.config.name))
            .collect();
        (!without.is_empty()).then(|| without.join("; "))
    }

    fn summary(&self) -> WorkerSummary {
        let mut all = ServerStates::default();
        let mut in_flight = 0;
        for cluster in self.clusters.iter() {
            let members = cluster.newest();
            let of = states(&members);
            all.servers += of.servers;
            all.available += of.available;
            all.down += of.down;
            all.ejected += of.ejected;
            all.draining += of.draining;
            let each = members.endpoints.iter();
            in_flight +=
                each.map(|endpoint| u64::from(endpoint.counters.in_flight.load(Relaxed))).sum::<u64>();
        }
        WorkerSummary {
            at: rfc3339(unix_ms(SystemTime::now())),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            worker_pid: std::process::id(),
            generation: self.generation,
            worker_uptime_s: self.started.elapsed().as_secs(),
            connections: self.metrics.open_connections(),
            in_flight,
            n_clusters: self.clusters.len() as u64,
            states: all,
        }
    }

    fn clusters(&self, page: Paging) -> (usize, Vec<ClusterStatus>) {
        let wanted = (0..self.clusters.len()).skip(page.offset).take(page.limit);
        let of = |idx: usize| self.cluster_status(idx, &self.clusters[idx].newest());
        (self.clusters.len(), wanted.map(of).collect())
    }

    fn cluster(&self, name: &str, page: Paging) -> Option<ClusterStatus> {
        let idx = self.named(name)?;
        let members = self.clusters[idx].newest().clone();
        let endpoints = members.endpoints.iter().skip(page.offset).take(page.limit);
        let mut status = self.cluster_status(idx, &members);
        status.servers = self.servers_of(idx, endpoints);
        Some(status)
    }

    fn servers(&self, wanted: &WantedServers<'_>, page: Paging) -> Option<(usize, Vec<ServerStatus>)> {
        let clusters = match wanted.cluster {
            Some(name) => self.named(name).map(|idx| idx..idx + 1)?,
            None => 0..self.clusters.len(),
        };
        let (mut total, mut servers) = (0, Vec::new());
        for idx in clusters {
            let members = self.clusters[idx].newest().clone();
            let is_wanted = |endpoint: &&Arc<Endpoint>| {
                let state = metrics::state(endpoint.counters.state.load(Relaxed));
                wanted.state.is_none_or(|wanted| wanted == state)
            };
            let found: Vec<&Arc<Endpoint>> = members.endpoints.iter().filter(is_wanted).collect();
            let skipped = page.offset.saturating_sub(total);
            let shown = found.iter().copied().skip(skipped).take(page.limit - servers.len());
            servers.extend(self.servers_of(idx, shown));
            total += found.len();
        }
        Some((total, servers))
    }

    fn listeners(&self) -> Vec<ListenerStatus> {
        let listener = |(idx, address): (usize, &String)| {
            let config = self.config.listeners.get(idx);
            let certificates = config.and_then(|config| config.tls.as_ref()).map(ServerTls::certificates);
            ListenerStatus {
                listener: address.clone(),
                max_connections: config.map_or(0, |config| config.max_connections as u64),
                certificates: certificates.iter().flat_map(|all| all.iter()).map(certificate).collect(),
                numbers: self.metrics.counted_listener(idx),
            }
        };
        self.addresses.iter().enumerate().map(listener).collect()
    }

    fn modules(&self) -> Vec<ModuleStatus> {
        let growth = self.metrics.memory_growth();
        let mut modules: Vec<ModuleStatus> =
            self.config.modules.iter().map(|file| module(file, growth)).collect();
        for (idx, cluster) in self.clusters.iter().enumerate() {
            for (id, numbers, is_quarantined) in self.metrics.counted_modules(idx) {
                let Some(known) = modules.iter_mut().find(|known| *known.module == *id) else { continue };
                let newest = cluster.newest();
                let balancer = newest.balancers().find(|balancer| balancer.module().id() == &*id);
                known.version =
                    balancer.map(|known| known.module().version().to_owned()).or(known.version.take());
                known.calls += numbers.calls.values().sum::<u64>();
                known.thread_share = (known.thread_share + numbers.thread_share).min(1.0);
                known.faults += numbers.faults.values().sum::<u64>();
                let cluster = cluster.config.name.to_string();
                known.quarantined_in.extend(is_quarantined.then(|| cluster.clone()));
                known.clusters.push(ModuleInCluster { cluster, numbers });
            }
        }
        modules
    }

    fn supervisor(&self) -> SupervisorAnswer {
        let relay = self.relay.clone();
        Box::pin(async move {
            match relay {
                Some(relay) => relay.status().await.map(Some),
                None => Ok(None),
            }
        })
    }
}

fn module(module: &ModuleFile, worker_growth_bytes: Option<u64>) -> ModuleStatus {
    ModuleStatus {
        module: module.id.to_string(),
        file: module.file.display().to_string(),
        worker_growth_bytes,
        ..ModuleStatus::default()
    }
}

fn certificate(facts: &CertificateFacts) -> CertificateStatus {
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let seconds = |ms: u64| i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    let left = seconds(ms(facts.not_after)) - seconds(unix_ms(SystemTime::now()));
    CertificateStatus {
        names: facts.names.iter().map(ToString::to_string).collect(),
        not_before: rfc3339(ms(facts.not_before)),
        not_after: rfc3339(ms(facts.not_after)),
        days_left: left.div_euclid(86_400),
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

fn tier_status(members: &Snapshot, tier: &Tier, load: u64) -> TierStatus {
    let endpoints = members.endpoints_of(tier);
    let in_flight = |endpoint: &Arc<Endpoint>| u64::from(endpoint.counters.in_flight.load(Relaxed));
    TierStatus {
        tier: tier.number(),
        servers: endpoints.len() as u64,
        available: tier.n_available().into(),
        load,
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
