//! The messages between supervisor and worker.
//!
//! ```text
//! supervisor                          worker
//! Start: configuration, modules ─────►  opens the modules, builds the balancers
//!             ◄───────────────────────  Built, or Failed
//! Serve: sockets ────────────────────►  its threads begin to accept
//!             ◄───────────────────────  Ready
//!             ◄───────────────────────  Report, now and then
//! TellLoad, while others run ────────►
//!             ◄───────────────────────  Load, whenever it has changed
//! Elsewhere: all others' loads ──────►
//! Acts, whenever they change ────────►  merges, builds, publishes
//! Answer, whenever there is one ─────►  the same
//!             ◄───────────────────────  Applied; Lost, where it could open no descriptor for what came
//! TellState, for who asks ───────────►
//!             ◄───────────────────────  State
//! Save ──────────────────────────────►
//!             ◄───────────────────────  Saved
//! HandOver, or Drain ────────────────►  finishes what runs
//! Removed ───────────────────────────►  reads listeners that are gone no more
//!             ◄───────────────────────  Ended
//! ```
//! The worker ends when the socket does; a supervisor that died has closed it too.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ChannelMessage;
use crate::cluster::learned::{self, Learned};
use crate::cluster::membership::ServerAct;
use crate::module::code::CodeRanges;
use crate::observe::events::Event;
use crate::observe::metrics::Totals;
use crate::observe::status::SourceStatus;
use crate::observe::status::Status;
use crate::process::sandbox::Confinement;
use crate::process::sockets::Shortage;

/// To a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// First of all, and before anything else is done. Descriptors: the board; the files of the configuration, sealed; the
    /// access log's file if [`Start::has_access_log`]; the log's file if it has one; the image of each module that is not in quarantine, in the order
    /// of the configuration; and the newest answers of sources.
    Start(Box<Start>),
    /// Then. Descriptors: the sockets of each listener in the order of the configuration, then the admin listener's.
    Serve {
        /// How many sockets each listener has.
        n_sockets: Vec<usize>,
        /// Whether there is an admin listener.
        has_admin: bool,
    },
    /// Send the learned state.
    Save,
    /// All changes of servers by operators that are in force. Answered by [`ToSupervisor::Applied`].
    Acts {
        /// Counts changes.
        number: u64,
        /// In place of all that came before.
        acts: Vec<ServerAct>,
    },
    /// Say how everything is. Answered by [`ToSupervisor::State`].
    TellState {
        /// Names the question.
        number: u64,
        /// Only the cluster of this name.
        cluster: Option<String>,
    },
    /// The newest answer of a source. Descriptor: its memory, sealed.
    Answer {
        /// The number of the source, as in [`Start::sources`].
        source: u64,
        /// Counts answers.
        number: u64,
    },
    /// The answer to [`ToSupervisor::AskStatus`].
    Status(Box<Status>),
    /// Events with their numbers, which it did not have before.
    Events(Vec<Event>),
    /// How the sources of servers are, for metrics.
    Sources(Vec<SourceStatus>),
    /// Counts of other generations.
    Base(Totals),
    /// Whether other generations run too, so that each has to know the load of all.
    TellLoad(bool),
    /// The load of all other generations together.
    Elsewhere(Load),
    /// A module call took longer than it may, but ended; or it goes on, and its balancers are to be left alone.
    Overrun {
        /// Index of the cluster in the configuration; none for what belongs to no cluster, such as loading.
        cluster: Option<usize>,
        /// ID of the module.
        module: String,
        /// The time charged to the call.
        charged: Duration,
        /// It has not ended.
        goes_on: bool,
    },
    /// Another generation serves from now on.
    HandOver {
        /// Listeners that the other one does not have, by their place in the configuration. They are read on until
        /// [`ToWorker::Removed`] says what becomes of them.
        removed: Vec<usize>,
    },
    /// The fate of listeners that were removed after this generation.
    Removed {
        /// Which, by their place in its configuration.
        listeners: Vec<usize>,
        /// Another generation reads them; else this one is the last to.
        are_back: bool,
    },
    /// Say that it is not ready, and serve as before: the proxy stops soon.
    Leave,
    /// Drain; no other generation takes over.
    Drain,
    /// Close all connections.
    Stop,
    /// The access log is to go on in another file. Descriptor: that file.
    ReopenLog,
    /// The same of the log of this process.
    ReopenOwnLog,
}

/// All that a worker is started from.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// Number of the generation.
    pub(crate) generation: u64,
    /// Threads that serve: the board has places for so many, whatever the machine says of its processors by now.
    pub(crate) n_threads: usize,
    /// The configuration's file, as the operator named it.
    pub(crate) config: PathBuf,
    /// Its modules, in its order.
    pub(crate) modules: Vec<ModuleCopy>,
    /// Whether an access log's file is among the descriptors.
    pub(crate) has_access_log: bool,
    /// As [`ToWorker::Leave`], from the start.
    pub(crate) is_leaving: bool,
    /// The state that the generation before saved.
    pub(crate) state: Learned,
    /// Operators' changes of servers.
    pub(crate) acts: Vec<ServerAct>,
    /// The sources of servers, in the order of the configuration: their numbers, and whether an answer's memory is among the
    /// last descriptors.
    pub(crate) sources: Vec<(u64, bool)>,
    /// Nobody else would serve: where a module refuses its servers, the host chooses among them.
    pub(crate) must_serve: bool,
    /// Counts of other generations.
    pub(crate) base: Totals,
}

/// A module's file as the supervisor read it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ModuleCopy {
    /// The file.
    pub(crate) file: PathBuf,
    /// Hash of its bytes.
    pub(crate) sha256: [u8; 32],
    /// It is not to be opened.
    pub(crate) is_quarantined: bool,
}

/// From a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToSupervisor {
    /// All modules are open and all balancers built.
    Built {
        /// ID and version of the modules, in the order of the configuration; `None` for one in quarantine.
        modules: Vec<Option<ModuleSays>>,
        /// How it has confined itself.
        confinement: Confinement,
        /// Warnings for the operator.
        warnings: Vec<String>,
    },
    /// The start has failed.
    Failed {
        /// The exit code for this failure.
        exit: u8,
        /// Why, a line for each problem.
        lines: Vec<String>,
    },
    /// It accepts connections.
    Ready {
        /// Connections that there are no descriptors for.
        shortage: Option<Shortage>,
    },
    /// A regular report.
    Report(Box<WorkerReport>),
    /// The last thread uses what [`ToWorker::Acts`] asked for, or it was refused.
    Applied {
        /// The number of the acts.
        number: u64,
        /// Their result.
        result: ActsResult,
    },
    /// The state learned so far: the answer to `Save`, and sent every few seconds.
    Saved {
        /// The state.
        state: Learned,
        /// It was asked for.
        is_answer: bool,
    },
    /// The last message: nothing runs any more.
    Ended {
        /// Connections that were cut off.
        cut_off: usize,
        /// All that it counted.
        totals: Totals,
    },
    /// Requests in flight, since `TellLoad`: at once, and after each change.
    Load {
        /// It has been told to drain.
        is_draining: bool,
        /// The load of this generation.
        load: Load,
    },
    /// How everything is: the answer to [`ToWorker::TellState`].
    State {
        /// The question's.
        number: u64,
        /// A [`WorkerStatus`](crate::observe::status::WorkerStatus) as JSON, on one line. The supervisor passes it on unread.
        json: String,
    },
    /// Somebody reads here how the supervisor is.
    AskStatus,
    /// These have happened. The supervisor gives them numbers.
    Events(Vec<Event>),
    /// A message to it is lost, which may have been an answer of a source.
    Lost,
}

/// Kinds of [`ToSupervisor`].
pub(crate) const N_KINDS: usize = 12;

impl ToSupervisor {
    /// Number of its variant.
    pub(crate) fn kind(&self) -> usize {
        match self {
            Self::Built { .. } => 0,
            Self::Failed { .. } => 1,
            Self::Ready { .. } => 2,
            Self::Report(_) => 3,
            Self::Applied { .. } => 4,
            Self::Saved { .. } => 5,
            Self::Ended { .. } => 6,
            Self::Load { .. } => 7,
            Self::State { .. } => 8,
            Self::AskStatus => 9,
            Self::Events(_) => 10,
            Self::Lost => 11,
        }
    }
}

impl ChannelMessage for ToSupervisor {
    /// The one of the memory that it is in.
    const MOST_DESCRIPTORS: usize = 1;

    fn most_bytes(kind: u8) -> u64 {
        match kind {
            // Lines of text.
            0..=2 | 4 => 4 << 20,
            // Metrics: more than 1,000 bytes for each of 65,535 endpoints.
            3 | 6 | 8 => 64 << 20,
            5 => learned::MOST_BYTES,
            7 => 8 << 20,
            9..=11 => 1 << 20,
            _ => 0,
        }
    }
}

impl ChannelMessage for ToWorker {
    /// Sockets, one for each thread and listener, and the images of modules.
    const MOST_DESCRIPTORS: usize = usize::MAX;

    /// It comes from the supervisor, which a worker trusts.
    fn most_bytes(_: u8) -> u64 {
        1 << 30
    }
}

/// The result of acts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ActsResult {
    /// They are in use.
    InUse,
    /// They are in use, but the host chooses among the servers, because a module refuses them for this reason.
    HostChooses(String),
    /// They are not in use, for this reason.
    Refused(String),
}

/// ID and version of a module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ModuleSays {
    /// Its ID.
    pub(crate) id: String,
    /// Its version.
    pub(crate) version: String,
    /// Where its code is in the worker.
    pub(crate) code: CodeRanges,
}

/// A worker's report.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct WorkerReport {
    /// All that it counted.
    pub(crate) totals: Totals,
    /// Faults of each module so far, in the order of the configuration.
    pub(crate) faults: Vec<u64>,
    /// Connections that are open.
    pub(crate) connections: u64,
    /// Clusters whose servers are not in use as they should be.
    pub(crate) refused: Vec<RefusedServers>,
}

/// A cluster whose servers are not in use as they should be, since the last change of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RefusedServers {
    /// Its index in the configuration.
    pub(crate) cluster: usize,
    /// The modules that refuse them, with their reasons.
    pub(crate) why: String,
    /// They are in use, and the host chooses among them; otherwise the servers of before are.
    pub(crate) host_chooses: bool,
}

impl RefusedServers {
    /// The longest reason in a report.
    pub(crate) const MAX_BYTES: usize = 1024;
}

/// Requests on their way; what has none is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Load {
    /// By the ID of the endpoint.
    pub(crate) endpoints: Vec<(u64, u32)>,
    /// By the name of the cluster, with those that wait.
    pub(crate) clusters: Vec<(String, u32)>,
}
