//! The metrics: counted by worker threads without shared cache lines, summed at each scrape.
//!
//! Each worker thread owns one [`Shard`] and is its only writer. Counting is a plain load and store in that core's cache: no
//! lock, no read-modify-write, no allocation and no look-up, because the configuration fixes all indices. [`Metrics::text`] adds
//! the shards. It may see a request without its bytes, but each counter only rises.
//!
//! [`Totals`] are the counts of earlier generations, part of the text after [`Metrics::set_base`].

mod cells;
mod families;
mod format;
mod labels;
mod layout;
mod members;
mod numbers;
mod pace;
#[cfg(test)]
mod tests;
mod text;
mod totals;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use lb_api::wire;

use crate::cluster::Snapshot;
use crate::observe::access_log::LineCounts;
use crate::observe::sources::SourceStatus;

pub use self::format::Format;
pub use self::labels::{ConnectionOrigin, ModuleCall, QueueEnd, failure, outcome, state, try_result};
pub use self::layout::{BalancerLayout, CertificateLayout, ClusterLayout, MetricsLayout};
pub use self::members::EndpointLayout;
pub(crate) use self::members::MOST_LEFT;
pub(crate) use self::numbers::CountedServer;
pub use self::numbers::{ByName, ClusterNumbers, ListenerNumbers, ModuleNumbers, ServerNumbers};
pub(crate) use self::pace::{ModulePace, SlowModule};
pub use self::totals::{Totals, TotalsBounds};

use self::cells::{
    BalancerCells, ClusterCells, EndpointCells, EndpointCounts, ListenerCells, RequestCells, RouteCells,
};
use self::labels::{FAILURES, OUTCOMES, TRY_RESULTS, class_idx, code_labels, code_slot, kind_idx};
use self::layout::{ClusterNames, distinct};

/// A request that has ended, for [`Shard::request`].
#[derive(Clone, Copy, Debug, Default)]
pub struct EndedRequest {
    /// Its listener.
    pub listener: usize,
    /// Its route; `None` if none matched or it was refused before routing.
    pub route: Option<usize>,
    /// Its cluster; `None` if no route matched or it was refused before routing.
    pub cluster: Option<usize>,
    /// One of [`wire`]'s `OUTCOME_*`; 0 without a trylist.
    pub outcome: u32,
    /// Status sent to the client; 0 if none.
    pub status: u16,
    /// From the end of the request's head to the end of the response.
    pub duration_ns: u64,
    /// From the end of the request's head to the response's head; `None` if no server answered.
    pub first_byte_ns: Option<u64>,
    /// Bytes from the client, head included.
    pub received_bytes: u64,
    /// Bytes to the client, head included.
    pub sent_bytes: u64,
}

/// A try that has ended, for [`Shard::try_ended`].
#[derive(Clone, Copy, Debug, Default)]
pub struct EndedTry {
    /// One of [`wire`]'s `TRY_*`.
    pub result: u32,
    /// One of [`wire`]'s `FAILURE_*`, if no connection was established.
    pub failure: Option<u32>,
    /// Status of the server's response, passed on or not; 0 if none.
    pub status: u16,
    /// How long it took.
    pub duration_ns: u64,
}

/// All metrics of one worker.
#[derive(Debug)]
pub struct Metrics {
    shards: Box<[Arc<Shard>]>,
    listeners: Vec<String>,
    certificates: Vec<CertificateLayout>,
    routes: Vec<String>,
    clusters: Vec<ClusterNames>,
    codes: Vec<String>,
    access_log: Option<Arc<LineCounts>>,
    started: Instant,
    started_at: SystemTime,
    /// Counts of other generations.
    base: ArcSwap<Totals>,
    /// Anonymous memory of this process once its modules were loaded and built.
    loaded_bytes: Option<u64>,
    /// Sources of servers, and when the supervisor said how they are.
    sources: ArcSwapOption<(Vec<SourceStatus>, Instant)>,
}

/// The metrics of one thread. Only that thread may call its methods: two writers would lose counts (a debug build panics).
/// Indices are those of the [`MetricsLayout`]; others panic.
#[derive(Debug)]
pub struct Shard {
    listeners: Box<[ListenerCells]>,
    routes: Box<[RouteCells]>,
    unrouted: RequestCells,
    clusters: Box<[ClusterCells]>,
    #[cfg(debug_assertions)]
    owner: std::sync::OnceLock<std::thread::ThreadId>,
}

impl Metrics {
    /// Metrics for `n_threads` threads, all zero.
    pub fn new(layout: &MetricsLayout, n_threads: usize) -> Arc<Self> {
        let metrics = Self {
            shards: (0..n_threads).map(|_| Arc::new(Shard::new(layout))).collect(),
            listeners: distinct(layout.listeners.iter()),
            certificates: layout.certificates.clone(),
            routes: distinct(layout.routes.iter()),
            clusters: layout.clusters.iter().map(ClusterNames::new).collect(),
            codes: code_labels(),
            access_log: layout.access_log.clone(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            loaded_bytes: layout.loaded_bytes,
            base: ArcSwap::default(),
            sources: ArcSwapOption::empty(),
        };
        for (idx, cluster) in layout.clusters.iter().enumerate() {
            metrics.set_members(idx, &cluster.endpoints, metrics.started);
        }
        Arc::new(metrics)
    }

    /// Sources of servers are so, as their supervisor says.
    pub(crate) fn set_sources(&self, sources: Vec<SourceStatus>) {
        self.sources.store(Some(Arc::new((sources, Instant::now()))));
    }

    /// Has series for the members of this snapshot. To be called before a thread can use it, by one thread at a time for each
    /// cluster. Costs O(members).
    pub(crate) fn prepare(&self, cluster: usize, snapshot: &Snapshot) {
        let members: Vec<EndpointLayout> =
            snapshot.endpoints.iter().map(|endpoint| (&**endpoint).into()).collect();
        self.set_members(cluster, &members, Instant::now());
    }

    fn set_members(&self, cluster: usize, members: &[EndpointLayout], now: Instant) {
        let n_places = members.iter().map(|member| member.place + 1).max().unwrap_or(0);
        self.shards.iter().for_each(|shard| shard.clusters[cluster].endpoints.grow(n_places));
        let table = &self.clusters[cluster].members;
        let next = table.load().next(members, now, |place| self.counted_at(cluster, place));
        table.store(Arc::new(next));
    }

    /// The counts of all threads at this place.
    fn counted_at(&self, cluster: usize, place: usize) -> EndpointCounts {
        let mut counts = EndpointCounts::default();
        self.shards.iter().for_each(|shard| counts.add_cells(shard.clusters[cluster].endpoints.at(place)));
        counts
    }

    /// The shard of one thread, which becomes its only writer.
    ///
    /// # Panics
    /// If there are fewer threads.
    pub fn shard(&self, thread: usize) -> Arc<Shard> {
        Arc::clone(&self.shards[thread])
    }

    /// Sets the counts of other generations, replacing earlier ones. From any thread.
    ///
    /// A series of a cluster, server or listener that the configuration no longer has is not shown. It is shown again if that
    /// comes back.
    pub fn set_base(&self, base: impl Into<Arc<Totals>>) {
        self.base.store(base.into());
    }
}

impl Shard {
    fn new(layout: &MetricsLayout) -> Self {
        Self {
            listeners: layout.listeners.iter().map(|_| ListenerCells::default()).collect(),
            routes: layout.routes.iter().map(|_| RouteCells::default()).collect(),
            unrouted: RequestCells::default(),
            clusters: layout
                .clusters
                .iter()
                .map(|cluster| ClusterCells::new(cluster.balancers.len()))
                .collect(),
            #[cfg(debug_assertions)]
            owner: std::sync::OnceLock::new(),
        }
    }

    /// A client connected.
    pub fn connection_opened(&self, listener: usize) {
        self.listener(listener).opened.add(1);
    }

    /// A client's connection ended.
    pub fn connection_closed(&self, listener: usize) {
        self.listener(listener).closed.add(1);
    }

    /// Accept failed, such as when file descriptors run out.
    pub fn accept_failed(&self, listener: usize) {
        self.listener(listener).accept_failures.add(1);
    }

    /// The listener stopped accepting at its connection limit.
    pub fn listener_full(&self, listener: usize) {
        self.listener(listener).full.add(1);
    }

    /// A connection was closed because its client is at its connection limit.
    pub fn client_full(&self, listener: usize) {
        self.listener(listener).over_per_client.add(1);
    }

    /// A connection was closed because of its PROXY header.
    pub fn bad_proxy_header(&self, listener: usize) {
        self.listener(listener).bad_proxy_headers.add(1);
    }

    /// A client's TLS handshake failed or timed out.
    pub fn handshake_failed(&self, listener: usize) {
        self.listener(listener).failed_handshakes.add(1);
    }

    /// A request has ended.
    pub fn request(&self, end: &EndedRequest) {
        let cells = match end.cluster {
            Some(cluster) => &self.cluster(cluster).requests,
            None => {
                self.assert_owner();
                &self.unrouted
            }
        };
        let class = class_idx(end.status);
        self.listener(end.listener).requests[class].add(1);
        if let Some(route) = end.route {
            self.routes[route].requests[class].add(1);
            self.routes[route].time_ns.add(end.duration_ns);
        }
        cells.codes[code_slot(end.status)].add(1);
        if end.outcome != 0 {
            cells.outcomes[kind_idx(end.outcome, OUTCOMES.len(), wire::OUTCOME_FAILED)].add(1);
        }
        cells.duration.add(end.duration_ns);
        if let Some(first_byte_ns) = end.first_byte_ns {
            cells.first_byte.add(first_byte_ns);
        }
        cells.received_bytes.add(end.received_bytes);
        cells.sent_bytes.add(end.sent_bytes);
    }

    /// A try has ended.
    pub fn try_ended(&self, cluster: usize, place: usize, end: &EndedTry) {
        let cells = self.endpoint(cluster, place);
        cells.tries[kind_idx(end.result, TRY_RESULTS.len(), wire::TRY_BAD_RESPONSE)].add(1);
        if let Some(kind) = end.failure {
            cells.failures[kind_idx(kind, FAILURES.len(), wire::FAILURE_CONNECT)].add(1);
        }
        if end.status != 0 {
            cells.statuses[class_idx(end.status)].add(1);
        }
        cells.time_ns.add(end.duration_ns);
    }

    /// A try got a connection, or found a reused one stale.
    pub fn upstream_connection(&self, cluster: usize, place: usize, connection: ConnectionOrigin) {
        self.endpoint(cluster, place).connections[connection as usize].add(1);
    }

    /// This module of this cluster was called.
    pub fn module_call(&self, cluster: usize, module: usize, call: ModuleCall) {
        self.balancer(cluster, module).calls[call as usize].add(1);
    }

    /// Time of one sampled request in its `n_calls` calls into the module. The caller samples, because two clock reads would cost more than
    /// most calls.
    pub fn module_time(&self, cluster: usize, module: usize, ns: u64, n_calls: u32) {
        let cells = self.balancer(cluster, module);
        cells.time.add(ns);
        cells.timed_calls.add(u64::from(n_calls));
    }

    /// The host chose endpoints instead of this module.
    pub fn fallback(&self, cluster: usize, module: usize) {
        self.balancer(cluster, module).fallbacks.add(1);
    }

    /// The module answered an endpoint that is unavailable or full, which is not its fault.
    pub fn declined(&self, cluster: usize, module: usize) {
        self.balancer(cluster, module).declined.add(1);
    }

    /// The module answered that all endpoints are full.
    pub fn busy(&self, cluster: usize, module: usize) {
        self.balancer(cluster, module).busy.add(1);
    }

    /// A request entered the queue; [`Self::queue_left`] follows on the same thread.
    pub fn queue_entered(&self, cluster: usize) {
        self.cluster(cluster).queue_entered.add(1);
    }

    /// A request left the queue.
    pub fn queue_left(&self, cluster: usize, end: QueueEnd, waited_ns: u64) {
        let cells = self.cluster(cluster);
        cells.queue_left[end as usize].add(1);
        cells.queue_time_ns.add(waited_ns);
    }

    /// A request was refused because the queue is full.
    pub fn queue_full(&self, cluster: usize) {
        self.cluster(cluster).queue_full.add(1);
    }

    /// A request was refused because its client has as many in the queue as it may.
    pub fn queue_client_full(&self, cluster: usize) {
        self.cluster(cluster).queue_client_full.add(1);
    }

    /// A request is retried.
    pub fn retried(&self, cluster: usize) {
        self.cluster(cluster).retries.add(1);
    }

    /// A retry was denied by the cluster's retry budget.
    pub fn retry_denied(&self, cluster: usize) {
        self.cluster(cluster).retries_denied.add(1);
    }

    /// A request was refused because the cluster is at its limit.
    pub fn overloaded(&self, cluster: usize) {
        self.cluster(cluster).overloaded.add(1);
    }

    /// A connection has switched protocols; [`Self::tunnel_closed`] follows on the same thread.
    pub fn tunnel_opened(&self, cluster: usize) {
        self.cluster(cluster).tunnels_opened.add(1);
    }

    /// A tunnel has ended.
    pub fn tunnel_closed(&self, cluster: usize) {
        self.cluster(cluster).tunnels_closed.add(1);
    }

    fn listener(&self, idx: usize) -> &ListenerCells {
        self.assert_owner();
        &self.listeners[idx]
    }

    fn cluster(&self, idx: usize) -> &ClusterCells {
        self.assert_owner();
        &self.clusters[idx]
    }

    fn balancer(&self, cluster: usize, idx: usize) -> &BalancerCells {
        &self.cluster(cluster).balancers[idx]
    }

    fn endpoint(&self, cluster: usize, place: usize) -> &EndpointCells {
        self.cluster(cluster).endpoints.at(place)
    }

    #[cfg(debug_assertions)]
    fn assert_owner(&self) {
        let here = std::thread::current().id();
        assert_eq!(*self.owner.get_or_init(|| here), here, "a shard of the metrics has two writers");
    }

    #[cfg(not(debug_assertions))]
    fn assert_owner(&self) {}
}
