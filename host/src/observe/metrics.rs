//! The numbers: counted by worker threads without sharing a cache line, summed when somebody scrapes.
//!
//! Each worker thread owns one [`Shard`] and is its only writer, so that counting is a plain load and store of memory
//! that stays in that core's cache: no lock, no read-modify-write, no allocation, and no look-up, because everything
//! is indexed by what the configuration fixed. [`Metrics::text`] adds the shards up. It may see one thread's request
//! counted and its bytes not yet; every counter by itself only rises.
//!
//! What earlier generations counted is [`Totals`], and part of the text once [`Metrics::set_base`] was told of it.

mod cells;
mod families;
mod format;
mod labels;
mod layout;
#[cfg(test)]
mod tests;
mod text;
mod totals;

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use lb_api::wire;

use crate::observe::access_log::LineCounts;

pub use self::format::Format;
pub use self::labels::{ConnectionOrigin, ModuleCall, QueueEnd, failure, outcome, state, try_result};
pub use self::layout::{BalancerLayout, ClusterLayout, EndpointLayout, MetricsLayout};
pub use self::totals::{Totals, TotalsBounds};

use self::cells::{BalancerCells, ClusterCells, EndpointCells, ListenerCells, RequestCells};
use self::labels::{FAILURES, OUTCOMES, STATUS_CLASSES, TRY_RESULTS, code_labels, code_slot, kind_idx};
use self::layout::{ClusterNames, distinct};

/// A request that is over, as [`Shard::request`] counts it.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndedRequest {
    /// Where it was routed; `None` for requests that were refused before, or matched no route.
    pub cluster: Option<usize>,
    /// One of [`wire`]'s `OUTCOME_*`; 0 where no trylist was asked for.
    pub outcome: u32,
    /// Status that the client got; 0 where it got none.
    pub status: u16,
    /// From the end of the request's head to the end of the response.
    pub duration_ns: u64,
    /// From the end of the request's head to the response's head; `None` where no server answered.
    pub first_byte_ns: Option<u64>,
    /// Bytes from the client, head included.
    pub received_bytes: u64,
    /// Bytes to the client, head included.
    pub sent_bytes: u64,
}

/// A try that is over, as [`Shard::try_ended`] counts it.
#[derive(Clone, Copy, Debug, Default)]
pub struct EndedTry {
    /// One of [`wire`]'s `TRY_*`.
    pub result: u32,
    /// One of [`wire`]'s `FAILURE_*`: why it was not established.
    pub failure: Option<u32>,
    /// Status of the server's response, also of one that was not passed on; 0 where none came.
    pub status: u16,
    /// How long it took.
    pub duration_ns: u64,
}

/// All numbers of one worker.
#[derive(Debug)]
pub struct Metrics {
    shards: Box<[Arc<Shard>]>,
    listeners: Vec<String>,
    clusters: Vec<ClusterNames>,
    codes: Vec<String>,
    access_log: Option<Arc<LineCounts>>,
    started: Instant,
    started_at: SystemTime,
    /// What other generations counted.
    base: ArcSwap<Totals>,
}

/// One thread's numbers. Only that thread may call its methods: two writers would lose counts (a debug build panics).
/// Indices are those of the [`MetricsLayout`]; one that it does not have panics.
#[derive(Debug)]
pub struct Shard {
    listeners: Box<[ListenerCells]>,
    unrouted: RequestCells,
    clusters: Box<[ClusterCells]>,
    #[cfg(debug_assertions)]
    owner: std::sync::OnceLock<std::thread::ThreadId>,
}

impl Metrics {
    /// Numbers for `n_threads` threads, all zero.
    pub fn new(layout: &MetricsLayout, n_threads: usize) -> Arc<Self> {
        Arc::new(Self {
            shards: (0..n_threads).map(|_| Arc::new(Shard::new(layout))).collect(),
            listeners: distinct(layout.listeners.iter()),
            clusters: layout.clusters.iter().map(ClusterNames::new).collect(),
            codes: code_labels(),
            access_log: layout.access_log.clone(),
            started: Instant::now(),
            started_at: SystemTime::now(),
            base: ArcSwap::default(),
        })
    }

    /// The numbers of one thread, which becomes their only writer.
    ///
    /// # Panics
    /// Where there are fewer threads.
    pub fn shard(&self, thread: usize) -> Arc<Shard> {
        Arc::clone(&self.shards[thread])
    }

    /// Sets what other generations counted so far, in place of what was set before. From any thread.
    ///
    /// It is shown only where this generation has the series too: what was counted for a cluster, a server or a listener
    /// that the configuration no longer has is not shown, and is there again if that comes back.
    pub fn set_base(&self, base: impl Into<Arc<Totals>>) {
        self.base.store(base.into());
    }
}

impl Shard {
    fn new(layout: &MetricsLayout) -> Self {
        Self {
            listeners: layout.listeners.iter().map(|_| ListenerCells::default()).collect(),
            unrouted: RequestCells::default(),
            clusters: layout
                .clusters
                .iter()
                .map(|cluster| ClusterCells::new(cluster.balancers.len(), cluster.endpoints.len()))
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

    /// Accepting failed, as it does when descriptors run out.
    pub fn accept_failed(&self, listener: usize) {
        self.listener(listener).accept_failures.add(1);
    }

    /// The listener stopped accepting because it has as many connections as it may.
    pub fn listener_full(&self, listener: usize) {
        self.listener(listener).full.add(1);
    }

    /// A connection was closed at once because its client has as many as it may.
    pub fn client_full(&self, listener: usize) {
        self.listener(listener).over_per_client.add(1);
    }

    /// A connection was closed because it did not begin with a PROXY header.
    pub fn bad_proxy_header(&self, listener: usize) {
        self.listener(listener).bad_proxy_headers.add(1);
    }

    /// A client's TLS handshake failed, or took too long.
    pub fn handshake_failed(&self, listener: usize) {
        self.listener(listener).failed_handshakes.add(1);
    }

    /// A request is over.
    pub fn request(&self, end: &EndedRequest) {
        let cells = match end.cluster {
            Some(cluster) => &self.cluster(cluster).requests,
            None => {
                self.assert_owner();
                &self.unrouted
            }
        };
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

    /// A try is over.
    pub fn try_ended(&self, cluster: usize, endpoint: usize, end: &EndedTry) {
        let cells = self.endpoint(cluster, endpoint);
        cells.tries[kind_idx(end.result, TRY_RESULTS.len(), wire::TRY_BAD_RESPONSE)].add(1);
        if let Some(kind) = end.failure {
            cells.failures[kind_idx(kind, FAILURES.len(), wire::FAILURE_CONNECT)].add(1);
        }
        if end.status != 0 {
            let class = usize::from(end.status / 100).wrapping_sub(1).min(STATUS_CLASSES.len() - 1);
            cells.statuses[class].add(1);
        }
        cells.time_ns.add(end.duration_ns);
    }

    /// A try got its connection, or found a kept one stale.
    pub fn upstream_connection(&self, cluster: usize, endpoint: usize, connection: ConnectionOrigin) {
        self.endpoint(cluster, endpoint).connections[connection as usize].add(1);
    }

    /// This module of this cluster was called.
    pub fn module_call(&self, cluster: usize, module: usize, call: ModuleCall) {
        self.balancer(cluster, module).calls[call as usize].add(1);
    }

    /// Time that one sampled request spent in all its calls into the module. The caller samples: reading the clock
    /// twice for every call would cost more than most of the calls.
    pub fn module_time(&self, cluster: usize, module: usize, ns: u64) {
        self.balancer(cluster, module).time.add(ns);
    }

    /// The host itself chose the endpoints of a request, in this module's place.
    pub fn fallback(&self, cluster: usize, module: usize) {
        self.balancer(cluster, module).fallbacks.add(1);
    }

    /// The module answered with an endpoint that takes no requests now, which is not its fault.
    pub fn declined(&self, cluster: usize, module: usize) {
        self.balancer(cluster, module).declined.add(1);
    }

    /// The module answered that all endpoints are full.
    pub fn busy(&self, cluster: usize, module: usize) {
        self.balancer(cluster, module).busy.add(1);
    }

    /// A request began to wait for an endpoint; [`Self::queue_left`] follows on the same thread.
    pub fn queue_entered(&self, cluster: usize) {
        self.cluster(cluster).queue_entered.add(1);
    }

    /// A request no longer waits.
    pub fn queue_left(&self, cluster: usize, end: QueueEnd, waited_ns: u64) {
        let cells = self.cluster(cluster);
        cells.queue_left[end as usize].add(1);
        cells.queue_time_ns.add(waited_ns);
    }

    /// A request would have waited, but too many do already.
    pub fn queue_full(&self, cluster: usize) {
        self.cluster(cluster).queue_full.add(1);
    }

    /// A request was refused because its client has as many in the queue as it may.
    pub fn queue_client_full(&self, cluster: usize) {
        self.cluster(cluster).queue_client_full.add(1);
    }

    /// A request that was sent before is being sent again.
    pub fn retried(&self, cluster: usize) {
        self.cluster(cluster).retries.add(1);
    }

    /// A request would have been sent again, but for the cluster's retry budget.
    pub fn retry_denied(&self, cluster: usize) {
        self.cluster(cluster).retries_denied.add(1);
    }

    /// A request was refused because the cluster has as many as it may.
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

    fn endpoint(&self, cluster: usize, idx: usize) -> &EndpointCells {
        &self.cluster(cluster).endpoints[idx]
    }

    #[cfg(debug_assertions)]
    fn assert_owner(&self) {
        let here = std::thread::current().id();
        assert_eq!(*self.owner.get_or_init(|| here), here, "a shard of the metrics has two writers");
    }

    #[cfg(not(debug_assertions))]
    fn assert_owner(&self) {}
}
