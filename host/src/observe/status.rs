//! The status: how everything is, in the form in which commands, the admin listener and tests see it.
//!
//! ```text
//! Status: the supervisor ─┬─ generations, each with its modules
//!                         └─ quarantine, acts
//! WorkerStatus: the generation that serves ─┬─ listeners, modules, events
//!                                           └─ clusters ─┬─ servers
//!                                                        └─ tiers, modules, queue, retries
//! ```
//! Counts are those of the metrics. Maps leave out what is zero.

use serde::{Deserialize, Serialize};

use crate::observe::events::Event;
use crate::observe::metrics::{ClusterNumbers, ListenerNumbers, ModuleNumbers, ServerNumbers};

pub use super::sources::SourceStatus;

/// The status of a running proxy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Process ID of the supervisor.
    pub pid: u32,
    /// Version of the program.
    pub version: String,
    /// Uptime, seconds.
    pub uptime_s: u64,
    /// The configuration's file.
    pub config: String,
    /// The control socket, if there is one.
    pub control: Option<String>,
    /// Where it listens.
    pub listeners: Vec<String>,
    /// Where its admin listener is.
    pub admin: Option<String>,
    /// Generations that have a process, the oldest first.
    pub generations: Vec<GenerationStatus>,
    /// Module files that are not opened.
    pub quarantine: Vec<QuarantineStatus>,
    /// The changes of servers by operators that are in force.
    pub acts: Vec<ActStatus>,
    /// Sources of servers.
    pub discovery: Vec<SourceStatus>,
    /// The start that waits, and its reason.
    pub waiting: Option<String>,
}

/// One generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerationStatus {
    /// Its number, from 1.
    pub generation: u64,
    /// Process ID of its worker.
    pub pid: u32,
    /// "starting", "serving", "draining" or "ended".
    pub state: String,
    /// Uptime, seconds.
    pub uptime_s: u64,
    /// The reason of its waiting, where it neither serves nor has ended.
    #[serde(default)]
    pub waits_for: Option<String>,
    /// For how long it may still drain, seconds.
    pub drain_left_s: Option<u64>,
    /// Why another one takes its place, if it is not for a reload.
    pub trouble: Option<String>,
    /// Hash of the files of its configuration.
    pub config_sha256: String,
    /// Connections that are open, as it last said.
    pub connections: u64,
    /// How its modules are confined; none before it is built.
    #[serde(default)]
    pub sandbox: Option<String>,
    /// Its modules.
    pub modules: Vec<SupervisedModule>,
    /// Clusters whose servers are not in use as they should be, as last reported.
    pub refused: Vec<RefusedStatus>,
}

/// A cluster whose servers are not in use as they should be, since the last change of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefusedStatus {
    /// Name of the cluster.
    pub cluster: String,
    /// The modules that refuse them, with their reasons.
    pub why: String,
    /// They are in use, and the host chooses among them; otherwise the servers of before are in use.
    pub host_chooses: bool,
}

/// A module of a generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SupervisedModule {
    /// Its ID.
    pub id: String,
    /// Its own version, where it was opened.
    pub version: Option<String>,
    /// The file that it was read from.
    pub file: String,
    /// Hash of the bytes that run.
    pub sha256: String,
    /// Its faults in this generation, as last reported.
    pub faults: u64,
    /// This generation did not open it.
    pub quarantined: bool,
}

/// A module file that is not opened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuarantineStatus {
    /// The ID that it had.
    pub module: String,
    /// Hash of its bytes.
    pub sha256: String,
    /// For how long, seconds.
    pub for_s: u64,
    /// The reason.
    pub reason: String,
}

/// A change of a server that an operator made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActStatus {
    /// Name of the cluster.
    pub cluster: String,
    /// URL of the server.
    pub url: String,
    /// "drain", "maint", "ready", "weight N", "added" or "removed".
    pub what: String,
    /// Name of the user who asked for it, or its number.
    pub by: String,
    /// Age, seconds.
    pub age_s: u64,
    /// When it ends by itself, in seconds from now.
    pub left_s: Option<u64>,
}

/// The status of one generation, as its worker says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// In a few numbers.
    #[serde(flatten)]
    pub summary: WorkerSummary,
    /// Its listeners, in the order of the configuration.
    pub listeners: Vec<ListenerStatus>,
    /// Its modules, in the order of the configuration.
    pub modules: Vec<ModuleStatus>,
    /// Its clusters, in the order of the configuration.
    pub clusters: Vec<ClusterStatus>,
    /// Servers that are left out, because there are too many for one answer.
    pub servers_left_out: usize,
    /// The last events.
    pub events: Vec<Event>,
}

/// A worker in a few numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerSummary {
    /// When it was so: RFC 3339, in UTC.
    pub at: String,
    /// Version of the program.
    pub version: String,
    /// Process ID.
    pub worker_pid: u32,
    /// Number of its generation; none without a supervisor.
    pub generation: Option<u64>,
    /// Uptime, seconds.
    pub worker_uptime_s: u64,
    /// Client connections that are open.
    pub connections: u64,
    /// Requests on their way to servers.
    pub in_flight: u64,
    /// How many clusters it has.
    pub n_clusters: u64,
    /// Its servers over all clusters, by state.
    pub states: ServerStates,
}

/// A listener.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// Its address.
    pub listener: String,
    /// How many connections it may have.
    pub max_connections: u64,
    /// Its counts.
    #[serde(flatten)]
    pub numbers: ListenerNumbers,
    /// Its certificates, the default first; none without TLS.
    pub certificates: Vec<CertificateStatus>,
}

/// A certificate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CertificateStatus {
    /// The names that it is for.
    pub names: Vec<String>,
    /// Valid from this time on: RFC 3339, in UTC.
    pub not_before: String,
    /// Valid until this time.
    pub not_after: String,
    /// Days until then; below zero once it has expired.
    pub days_left: i64,
}

/// A module, over all clusters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModuleStatus {
    /// Its ID.
    pub module: String,
    /// Its version; none where it was not opened, or no cluster uses it.
    pub version: Option<String>,
    /// Its file, as configured.
    pub file: String,
    /// Calls into it.
    pub calls: u64,
    /// Part of the time of all threads that serve which passed in its calls, over the last 10 s, from 0 to 1.
    #[serde(default)]
    pub thread_share: f64,
    /// Growth of the worker's anonymous memory since its modules were loaded, in bytes: of the proxy and all modules, and so the
    /// same for each.
    #[serde(default)]
    pub worker_growth_bytes: Option<u64>,
    /// Its faults.
    pub faults: u64,
    /// Clusters in which it is in quarantine.
    pub quarantined_in: Vec<String>,
    /// The same by cluster.
    pub clusters: Vec<ModuleInCluster>,
}

/// A module in one of its clusters.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ModuleInCluster {
    /// Name of the cluster.
    pub cluster: String,
    /// Its counts there.
    #[serde(flatten)]
    pub numbers: ModuleNumbers,
}

/// A cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Its name.
    pub cluster: String,
    /// ID of its module.
    pub module: String,
    /// Number of the publication of its servers, from 1.
    pub publication: u64,
    /// How many servers it has, by state.
    pub states: ServerStates,
    /// It is in panic: too few servers are available, so all but drained ones get requests.
    pub in_panic: bool,
    /// Why its servers are not in use as they should be, if they are not.
    pub refused: Option<String>,
    /// Requests on their way to its servers.
    pub in_flight: u64,
    /// Maximum concurrent requests; 0 is no limit.
    pub max_requests: u32,
    /// Requests in the queue, and
    pub queue: u64,
    /// how many there may be.
    pub max_queue: u64,
    /// Retries under way.
    pub retries_under_way: u32,
    /// Its tiers, in the order of their use.
    pub tiers: Vec<TierStatus>,
    /// Its modules: its own, then that of requests without a key.
    pub modules: Vec<ClusterModule>,
    /// Its counts.
    #[serde(flatten)]
    pub numbers: ClusterNumbers,
    /// Its servers, by tier and in the order of the configuration. Not in lists of clusters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<ServerStatus>,
}

/// How many servers are in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStates {
    /// All of them.
    pub servers: u64,
    /// Those that take requests.
    pub available: u64,
    /// Those that their checks say are down.
    pub down: u64,
    /// Those whose traffic failed.
    pub ejected: u64,
    /// Those that were taken out: drained, in maintenance, or leaving.
    pub draining: u64,
}

/// A tier of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierStatus {
    /// Its number.
    pub tier: u16,
    /// Its servers.
    pub servers: u64,
    /// Those that are available.
    pub available: u64,
    /// The share of new requests that it gets, in percent.
    pub load: u64,
    /// Requests on their way to them.
    pub in_flight: u64,
    /// The host chooses in it: its module refuses the servers, or is in quarantine.
    pub host_chooses: bool,
}

/// A module of a cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterModule {
    /// Its ID.
    pub module: String,
    /// It is in quarantine here.
    pub quarantined: bool,
    /// Its counts.
    #[serde(flatten)]
    pub numbers: ModuleNumbers,
}

/// A server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Name of its cluster.
    pub cluster: String,
    /// Its URL, as in the label `endpoint` of metrics.
    pub server: String,
    /// Its tier.
    pub tier: u16,
    /// "available", "down", "ejected" or "draining".
    pub state: String,
    /// Since when.
    pub since: String,
    /// For how long, seconds.
    pub for_s: u64,
    /// Why it takes no requests, the strongest source first. A cluster in panic passes over "check" and "ejection".
    pub reasons: Vec<ReasonStatus>,
    /// It was readmitted on trial: one request at a time.
    pub on_trial: bool,
    /// Configured weight.
    pub weight: u16,
    /// The weight now; slow start has it rise.
    pub effective_weight: f64,
    /// Requests on their way to it.
    pub in_flight: u32,
    /// The same of generations that drain.
    pub in_flight_older: u32,
    /// Maximum concurrent requests; 0 is no limit.
    pub max_requests: u32,
    /// Smoothed time to its response headers, in milliseconds; none while unknown.
    pub latency_ms: Option<f64>,
    /// It keeps the sessions that it has.
    pub keeps_sessions: bool,
    /// Its name in clients' sessions, where servers name them.
    pub session: Option<String>,
    /// Its counts.
    #[serde(flatten)]
    pub numbers: ServerNumbers,
}

/// Why a server takes no requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonStatus {
    /// "drain", "check", "ejection", "maint" or "gone".
    pub source: String,
    /// Since when.
    pub since: String,
    /// For how long, seconds.
    pub for_s: u64,
    /// Why, in words.
    pub why: Option<String>,
    /// How much longer, in seconds; of an ejection.
    pub left_s: Option<u64>,
}
