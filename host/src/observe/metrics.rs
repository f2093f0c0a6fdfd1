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
#[cfg(test)]
mod tests;
mod text;
mod totals;

use std::fmt;
use std::sync::Arc;

use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use lb_api::wire;

use crate::cluster::health::Health;
use crate::module::balancer::ModuleFault;
use crate::observe::access_log;

pub use self::format::Format;
pub use self::totals::{Totals, TotalsBounds};

use self::cells::{BalancerCells, Cell, ClusterCells, EndpointCells, Histogram, ListenerCells, RequestCells};

/// What there is to count, in the index spaces of the configuration.
#[derive(Default)]
pub struct MetricsLayout {
    /// Addresses of the listeners, as bound.
    pub listeners: Vec<Arc<str>>,
    /// Clusters in the order of the configuration.
    pub clusters: Vec<ClusterLayout>,
    /// What the access log lost, if there is one.
    pub access_log: Option<Arc<access_log::Lines>>,
}

/// One cluster.
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

/// One module of a cluster: its own, or the one for requests without a key.
#[derive(Clone)]
pub struct BalancerLayout {
    /// Its module's ID.
    pub module: Arc<str>,
    /// [`Cluster::faults`](crate::cluster::Cluster::faults): faults are counted there, because
    /// not all happen on a thread that has a shard. Called at each scrape.
    pub faults: Faults,
    /// [`Cluster::is_quarantined`](crate::cluster::Cluster::is_quarantined). Called at each scrape.
    pub is_quarantined: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// How often a module did this wrong, so far.
pub type Faults = Arc<dyn Fn(ModuleFault) -> u64 + Send + Sync>;

/// Whether a cluster is in panic.
pub type Panics = Arc<dyn Fn() -> bool + Send + Sync>;

/// One endpoint.
#[derive(Clone, Debug)]
pub struct EndpointLayout {
    /// The URL as written. A second one of the same URL in a cluster is labelled `URL #2`.
    pub url: Arc<str>,
    /// Its live numbers, read at each scrape.
    pub counters: &'static wire::Counters,
    /// What is known of its health, read at each scrape.
    pub health: Arc<Health>,
}

/// A request that is over, as [`Shard::request`] counts it.
#[derive(Clone, Copy, Debug, Default)]
pub struct RequestEnd {
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
pub struct TryEnd {
    /// One of [`wire`]'s `TRY_*`.
    pub result: u32,
    /// One of [`wire`]'s `FAILURE_*`: why it was not established.
    pub failure: Option<u32>,
    /// Status of the server's response, also of one that was not passed on; 0 where none came.
    pub status: u16,
    /// How long it took.
    pub duration_ns: u64,
}

/// An enum whose variants are the values of one label.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            const TEXT: &[&str] = &[$($text,)+];
            const N: usize = Self::TEXT.len();

            /// The label's value.
            pub fn as_str(self) -> &'static str {
                Self::TEXT[self as usize]
            }
        }
    };
}

label! {
    /// A call into a module.
    Call {
        /// The hook.
        LoadBalance = "load_balance",
        /// For the endpoint of a try.
        Next = "next",
        /// A try could not be established.
        ReportFailure = "report_failure",
        /// A try goes on.
        Observe = "observe",
        /// The request's end.
        Finish = "finish",
        /// The trylist's end.
        Drop = "drop",
    }
}

label! {
    /// How a wait in a cluster's queue ended.
    QueueEnd {
        /// An endpoint came free.
        Admitted = "admitted",
        /// None came free in time.
        TimedOut = "timed_out",
        /// The client went away, or the worker's drain ended.
        Abandoned = "abandoned",
        /// A newer request needed the place.
        Displaced = "displaced",
    }
}

label! {
    /// Where the connection of a try came from.
    Connection {
        /// Made for it.
        New = "new",
        /// Kept alive from an earlier request.
        Reused = "reused",
        /// Kept alive, but closed by the server meanwhile: replaced by another, which counts by itself.
        Stale = "stale",
    }
}

/// The word for one of [`wire`]'s `TRY_*` constants, as in labels and the access log.
pub fn try_result(result: u32) -> &'static str {
    TRY_RESULTS[kind_idx(result, TRY_RESULTS.len(), wire::TRY_BAD_RESPONSE)]
}

/// The word for one of [`wire`]'s `FAILURE_*` constants, as in labels and the access log.
pub fn failure(kind: u32) -> &'static str {
    FAILURES[kind_idx(kind, FAILURES.len(), wire::FAILURE_CONNECT)]
}

/// The word for one of [`wire`]'s `OUTCOME_*` constants, as in labels.
pub fn outcome(kind: u32) -> &'static str {
    OUTCOMES[kind_idx(kind, OUTCOMES.len(), wire::OUTCOME_FAILED)]
}

/// The word for one of [`wire`]'s `STATE_*` constants, as in labels.
pub fn state(state: u32) -> &'static str {
    STATES.get(state as usize).copied().unwrap_or("unknown")
}

/// Words for the wire's constants, which count from 1.
const TRY_RESULTS: [&str; 7] =
    ["served", "not_established", "closed_early", "bad_response", "timed_out", "broken", "aborted"];
/// Classes of statuses by their first digit, less one.
const STATUS_CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "other"];
const FAILURES: [&str; 5] = ["resolve", "connect", "connect_timeout", "tls", "local"];
const OUTCOMES: [&str; 6] = ["served", "no_endpoint", "failed", "timed_out", "broken", "aborted"];
const STATES: [&str; 4] = ["available", "down", "ejected", "draining"];

/// All numbers of one worker.
#[derive(Debug)]
pub struct Metrics {
    shards: Box<[Arc<Shard>]>,
    listeners: Vec<String>,
    clusters: Vec<ClusterNames>,
    codes: Vec<String>,
    access_log: Option<Arc<access_log::Lines>>,
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
    pub fn request(&self, end: &RequestEnd) {
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
    pub fn try_ended(&self, cluster: usize, endpoint: usize, end: &TryEnd) {
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
    pub fn upstream_connection(&self, cluster: usize, endpoint: usize, connection: Connection) {
        self.endpoint(cluster, endpoint).connections[connection as usize].add(1);
    }

    /// This module of this cluster was called.
    pub fn module_call(&self, cluster: usize, module: usize, call: Call) {
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

// ---- labels ---------------------------------------------------------------------------------------------------------

/// Statuses that have a label of their own. A server may answer with any number, and a label for each would let it fill
/// the memory of whoever collects; others are counted by class.
const CODES: [u16; 47] = [
    100, 101, 200, 201, 202, 204, 206, 207, 301, 302, 303, 304, 307, 308, 400, 401, 403, 404, 405, 406, 408,
    409, 410, 411, 412, 413, 414, 415, 416, 417, 421, 422, 425, 426, 428, 429, 431, 451, 499, 500, 501, 502,
    503, 504, 505, 507, 511,
];
/// After the codes: classes 1xx to 5xx, no status, and anything else.
const N_CODES: usize = CODES.len() + 7;
const CODE_NONE: usize = CODES.len() + 5;
const CODE_OTHER: usize = CODES.len() + 6;

static CODE_SLOTS: [u8; 600] = {
    let mut slots = [CODE_OTHER as u8; 600];
    slots[0] = CODE_NONE as u8;
    let mut code = 100;
    while code < 600 {
        slots[code] = (CODES.len() + code / 100 - 1) as u8;
        code += 1;
    }
    let mut slot = 0;
    while slot < CODES.len() {
        slots[CODES[slot] as usize] = slot as u8;
        slot += 1;
    }
    slots
};

fn code_slot(status: u16) -> usize {
    CODE_SLOTS.get(usize::from(status)).map_or(CODE_OTHER, |slot| usize::from(*slot))
}

fn code_labels() -> Vec<String> {
    let classes = (1..=5).map(|class| format!("{class}xx"));
    CODES.iter().map(u16::to_string).chain(classes).chain(["none".into(), "other".into()]).collect()
}

/// Index of a wire constant that counts from 1; `default` is what an unknown one is read as.
fn kind_idx(kind: u32, n: usize, default: u32) -> usize {
    let known = (1..=n as u32).contains(&kind);
    (if known { kind } else { default }) as usize - 1
}

struct ClusterNames {
    name: Arc<str>,
    endpoints: Vec<(String, EndpointLayout)>,
    balancers: Vec<BalancerLayout>,
    panics: Panics,
}

impl ClusterNames {
    fn new(layout: &ClusterLayout) -> Self {
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

/// Two series must not have the same labels: the n-th of the same name becomes `name #n`.
fn distinct<'a>(names: impl Iterator<Item = &'a Arc<str>>) -> Vec<String> {
    let mut seen = std::collections::HashMap::new();
    names
        .map(|name| {
            let occurrence = seen.entry(name).and_modify(|n| *n += 1).or_insert(1);
            if *occurrence == 1 { name.to_string() } else { format!("{name} #{occurrence}") }
        })
        .collect()
}
