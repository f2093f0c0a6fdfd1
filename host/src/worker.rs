//! A worker: built from a configuration and bound sockets, serving on a thread per core until it is drained.
//!
//! ```text
//!  configuration ─ prepared ─► modules, balancers ─ Worker::start_on(sockets) ─► serving, one thread a core ─► drained
//!                                                                           └─► background
//! ```
//!
//! In two steps, so that everything that can fail has failed before a socket is touched: [`Prepared::new`] loads the
//! modules and builds the balancers, [`Worker::start`] starts the threads. [`process`] does the same as a process of its own.

mod answers;
mod background;
mod control;
mod events;
mod layout;
mod memberships;
mod orders;
mod pace;
mod prepared;
mod relay;
pub mod process;
mod reporter;
mod serving;
mod status;
mod upkeep;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::runtime;
use tokio::sync::watch;

pub use self::answers::{AskedServer, AskedSource, ask_sources};
pub use self::control::Control;
pub use self::prepared::{Prepared, StartError};
pub use self::relay::Relay;

use self::background::Background;
use self::memberships::Memberships;
use self::process::{FIRST_BUILDER, n_builders};
use self::status::StatusReader;
use self::upkeep::Upkeep;
use crate::cluster::checks::FirstCheck;
use crate::cluster::discovery::Watch;
use crate::cluster::learned::Learned;
use crate::cluster::{Clusters, Snapshot};
use crate::config::Config;
use crate::module::board::Board;
use crate::net::address::Address;
use crate::observe::access_log::AccessLog;
use crate::observe::admin::{AdminAccess, AdminServed};
use crate::observe::events::EventLog;
use crate::observe::metrics::{Metrics, Totals};
use crate::process::sockets::{self, Bound, InTheWay, Shortage, SocketFile};
use crate::serve::drain::Phase;
use crate::serve::listener::Gate;
use crate::serve::route::Routes;
use crate::serve::thread::Thread;
use crate::tls::tickets::TicketKeys;

/// For a module to return from `build` at the end of the worker.
const BUILDER_TIMEOUT: Duration = Duration::from_secs(1);

/// Builder threads are so much nicer than those that serve.
const BUILDER_NICE: i32 = 5;

/// A running worker. Dropping it stops it at once.
#[derive(Debug)]
pub struct Worker {
    addresses: Vec<Address>,
    admin_address: Option<Address>,
    phase: Arc<watch::Sender<Phase>>,
    drain_timeout: Duration,
    threads: Vec<JoinHandle<usize>>,
    background: Option<JoinHandle<()>>,
    /// Set once the threads have ended.
    has_served: watch::Sender<bool>,
    /// Counts publications of members: threads switch to each.
    published: watch::Sender<u64>,
    metrics: Arc<Metrics>,
    clusters: Clusters,
    access_log: Option<Arc<AccessLog>>,
    ticket_keys: Arc<TicketKeys>,
    gates: Arc<[Arc<Gate>]>,
    shortage: Option<Shortage>,
    board: Option<&'static Board>,
    memberships: Arc<Memberships>,
    reader: StatusReader,
    builders: Vec<JoinHandle<()>>,
    /// Files of Unix sockets that this process has bound.
    _files: Vec<SocketFile>,
}

/// Things that a supervisor gives to a worker process.
#[derive(Debug, Default)]
pub struct Given {
    /// The access log's file, which the worker may not be allowed to open.
    pub access_log: Option<File>,
    /// It serves, but is not ready.
    pub is_leaving: bool,
    /// Where its threads say which module they are inside of. Thread `i` has place `i`, the background the one behind them.
    pub board: Option<&'static Board>,
    /// Counts of other generations.
    pub base: Totals,
    /// Number of its generation.
    pub generation: Option<u64>,
    /// The way to the supervisor.
    pub relay: Option<Arc<Relay>>,
}

/// Sockets for all that a worker listens on.
#[derive(Debug)]
pub struct Sockets {
    /// In the order of the configuration's listeners.
    pub listeners: Vec<Bound>,
    /// The admin listener's, if there is one.
    pub admin: Option<Bound>,
}

impl Sockets {
    /// Binds everything that a configuration listens on.
    ///
    /// # Errors
    /// [`StartError::Bind`], with every address that could not be bound.
    pub fn bind(config: &Config) -> Result<Self, StartError> {
        let mut listeners = Vec::new();
        let mut failed = Vec::new();
        for listener in &config.listeners {
            match sockets::bind(listener, config.threads, InTheWay::Others) {
                Ok(bound) => listeners.push(bound),
                Err(e) => failed.push(e),
            }
        }
        let admin = config.admin.as_ref().map(|admin| sockets::bind_admin(admin, InTheWay::Others));
        let admin = match admin.transpose() {
            Ok(admin) => admin,
            Err(e) => {
                failed.push(e);
                None
            }
        };
        if failed.is_empty() { Ok(Self { listeners, admin }) } else { Err(StartError::Bind(failed)) }
    }
}

impl Worker {
    /// Prepares, binds and starts.
    ///
    /// # Errors
    /// Any [`StartError`]; nothing is left running then.
    pub fn start(config: Arc<Config>) -> Result<Self, StartError> {
        let prepared = Prepared::new(config)?;
        for warning in &prepared.warnings {
            tracing::warn!("{warning}");
        }
        let sockets = Sockets::bind(&prepared.config)?;
        let worker = Self::start_on(prepared, sockets, Given::default())?;
        worker.shortage.as_ref().inspect(|shortage| tracing::warn!("{shortage}"));
        Ok(worker)
    }

    /// Starts on sockets that somebody else has bound.
    ///
    /// # Errors
    /// [`StartError::System`].
    pub fn start_on(prepared: Prepared, sockets: Sockets, given: Given) -> Result<Self, StartError> {
        let Prepared { config, clusters, ticket_keys, membership, loaded_bytes, .. } = prepared;
        let access_log = AccessLog::open(&config.access_log, given.access_log)
            .map_err(|e| StartError::System(format!("access log {}", config.access_log), e))?
            .map(|log| Arc::new(log.with_format(&config.access_log_format)));
        let Sockets { mut listeners, mut admin } = sockets;
        let addresses: Vec<_> = listeners.iter().map(|bound| bound.address.clone()).collect();
        let admin_address = admin.as_ref().map(|bound| bound.address.clone());
        let files = listeners.iter_mut().chain(&mut admin).filter_map(|bound| bound.file.take()).collect();
        let layout = layout::of(&config, &addresses, &clusters, access_log.as_deref(), loaded_bytes);
        let metrics = Metrics::new(&layout, config.threads);
        metrics.set_base(given.base);
        let reader = StatusReader {
            config: Arc::clone(&config),
            addresses: addresses.iter().map(ToString::to_string).collect(),
            clusters: Arc::clone(&clusters),
            metrics: Arc::clone(&metrics),
            events: Arc::new(EventLog::new(given.relay.clone().map(events::to_relay))),
            relay: given.relay,
            generation: given.generation,
            is_leaving: Arc::new(given.is_leaving.into()),
            started: Instant::now(),
        };
        let (phase, published) = (watch::channel(Phase::Serving).0, watch::channel(0).0);
        let runtime = new_runtime("background")?;
        let handle = runtime.handle().clone();
        let upkeep = Arc::new(Upkeep::new(handle, &clusters, &config.resolver, phase.subscribe()));
        let memberships = {
            let (counts, upkeep) = (Arc::clone(&metrics), Arc::clone(&upkeep));
            let prepare = move |cluster: usize, snapshot: &Snapshot| counts.prepare(cluster, snapshot);
            let follow = move |cluster| upkeep.follow(cluster, FirstCheck::AtOnce);
            Memberships::new(&config, &clusters, membership, published.clone(), prepare, follow)
        };
        let mut worker = Self {
            addresses,
            admin_address,
            phase: Arc::new(phase),
            drain_timeout: config.timeouts.drain,
            threads: Vec::new(),
            background: None,
            has_served: watch::channel(false).0,
            published,
            metrics,
            clusters,
            access_log,
            ticket_keys,
            gates: Arc::default(),
            shortage: None,
            board: given.board,
            memberships,
            reader,
            builders: Vec::new(),
            _files: files,
        };
        // From here on dropping `worker` stops whatever was started.
        worker.background = Some(worker.spawn_background(runtime, &config, admin, upkeep)?);
        worker.spawn_builders(&config)?;
        worker.spawn_threads(&config, listeners)?;
        Ok(worker)
    }

    /// Where it listens, in the order of the configuration.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Where its admin listener is, if it has one.
    pub fn admin_address(&self) -> Option<&Address> {
        self.admin_address.as_ref()
    }

    /// Its clusters, in the order of the configuration: for who changes the state of an endpoint.
    pub fn clusters(&self) -> &Clusters {
        &self.clusters
    }

    /// The keys of its TLS tickets: another worker that takes over needs them.
    pub fn ticket_keys(&self) -> &Arc<TicketKeys> {
        &self.ticket_keys
    }

    /// How often each module did wrong in this worker, over all its clusters; in quarantine or not, all that clusters
    /// name are in it.
    pub fn faults(&self) -> BTreeMap<Arc<str>, u64> {
        layout::faults(&self.clusters)
    }

    /// The learned state so far, for the next generation. Calls modules: only on a thread that may wait.
    pub fn learned(&self) -> Learned {
        Learned::of(&self.clusters, &self.ticket_keys, &self.memberships.addresses())
    }

    /// The shortage of descriptors, if there is one.
    pub(crate) fn shortage(&self) -> Option<&Shortage> {
        self.shortage.as_ref()
    }

    /// Reads how it is.
    pub(crate) fn reader(&self) -> &StatusReader {
        &self.reader
    }

    /// The members of its clusters.
    fn memberships(&self) -> &Arc<Memberships> {
        &self.memberships
    }

    /// Its numbers.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// A handle for others.
    pub fn control(&self) -> Control {
        Control {
            phase: Arc::clone(&self.phase),
            drain_timeout: self.drain_timeout,
            access_log: self.access_log.clone(),
            gates: Arc::clone(&self.gates),
        }
    }

    /// Waits until it has ended, after somebody had it drain or stop, and says how many connections were cut off. The
    /// admin listener may finish its responses until the drain ends.
    pub fn wait(mut self) -> usize {
        // A thread that panicked has said so.
        let cut_off = self.threads.drain(..).map(|thread| thread.join().unwrap_or(0)).sum();
        self.has_served.send_replace(true);
        self.memberships.end();
        if let Some(background) = self.background.take() {
            let _ = background.join();
        }
        cut_off
    }

    fn spawn_background(
        &self,
        runtime: runtime::Runtime,
        config: &Config,
        admin: Option<Bound>,
        upkeep: Arc<Upkeep>,
    ) -> Result<JoinHandle<()>, StartError> {
        let has_names = self.clusters.iter().any(|cluster| !cluster.names().is_empty());
        let addresses = self.memberships.addresses();
        let resolver = (has_names || !addresses.is_empty()).then(|| upkeep.resolver()).transpose();
        let resolver = resolver.map_err(|e| StartError::System("resolver".into(), e))?;
        let memberships = Arc::clone(&self.memberships);
        let watch = Watch::new(addresses, move |name, addresses| memberships.set_addresses(name, addresses));
        let background = Background {
            clusters: Arc::clone(&self.clusters),
            served: self.served(config),
            metrics: Arc::clone(&self.metrics),
            module_slow: config.supervision.module_slow,
            events: Arc::clone(&self.reader.events),
            ticket_keys: Arc::clone(&self.ticket_keys),
            phase: self.phase.subscribe(),
            has_served: self.has_served.subscribe(),
            board: self.board.map(|board| (board, config.threads)),
            admin,
            upkeep,
            watch: resolver.map(|resolver| (watch, resolver)),
        };
        spawn("background", move || background.run(runtime))
    }

    /// The view for its admin listener.
    fn served(&self, config: &Config) -> Arc<AdminServed> {
        let admin = config.admin.as_ref();
        let mut hosts = admin.map_or_else(Vec::new, |admin| admin.hosts.clone());
        // The machine's own name. A page of another site cannot have it.
        let own = std::fs::read_to_string("/proc/sys/kernel/hostname");
        hosts.extend(own.ok().map(|name| name.trim().trim_end_matches('.').to_ascii_lowercase().into()));
        let access = AdminAccess { allow: admin.and_then(|admin| admin.allow.clone()), hosts };
        let (metrics, reader) = (Arc::clone(&self.metrics), self.reader.clone());
        AdminServed::new(metrics, Arc::new(reader), Arc::clone(&self.reader.events), access)
    }

    /// Threads that build and publish memberships. They alone call what may take a module long.
    fn spawn_builders(&mut self, config: &Config) -> Result<(), StartError> {
        let first = config.threads + FIRST_BUILDER;
        // The supervisor may have seen another number of cores.
        let n_builders = self.board.map_or_else(n_builders, |board| board.n_slots().saturating_sub(first));
        for i in 0..n_builders {
            let memberships = Arc::clone(&self.memberships);
            let place = self.board.map(|board| (board, first + i));
            self.builders.push(spawn(&format!("builder-{i}"), move || {
                // Requests come first. Without it builds only take more of their time.
                let _ = rustix::process::nice(BUILDER_NICE);
                memberships.run(place);
            })?);
        }
        Ok(())
    }

    fn spawn_threads(&mut self, config: &Arc<Config>, listeners: Vec<Bound>) -> Result<(), StartError> {
        let routes = Arc::new(Routes::new(config));
        self.clusters.iter().for_each(|cluster| cluster.serve_on(config.threads));
        let epoch = Instant::now();
        let (limits, shortage) = sockets::connection_limits(&config.listeners, config.threads);
        self.shortage = shortage;
        let gate = |(i, (max, bound)): (usize, (usize, &Bound))| {
            let listener = &config.listeners[i];
            let tls = listener.tls.as_ref().map(|tls| tls.acceptor(&self.ticket_keys));
            Arc::new(Gate::new(i, bound.address.clone(), max, listener, tls))
        };
        self.gates = limits.into_iter().zip(&listeners).enumerate().map(gate).collect();
        let shares = serving::shares(listeners, &self.gates, config.threads);
        let shares = shares.map_err(|(address, e)| StartError::System(format!("listener {address}"), e))?;
        for (i, share) in shares.into_iter().enumerate() {
            let config = Arc::clone(config);
            let (routes, clusters) = (Arc::clone(&routes), Arc::clone(&self.clusters));
            let (metrics, writer) = (self.metrics.shard(i), self.access_log.as_ref().map(|log| log.writer()));
            let (phase, place) = (self.phase.subscribe(), self.board.map(|board| (board, i)));
            let published = self.published.subscribe();
            let runtime = new_runtime("worker")?;
            self.threads.push(spawn(&format!("worker-{i}"), move || {
                let start = || Thread::new(config, routes, clusters, metrics, writer, epoch, i);
                serving::run(&runtime, place, start, share, phase, published)
            })?);
        }
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.control().stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.memberships.end();
        if let Some(background) = self.background.take() {
            let _ = background.join();
        }
        // A module should not run while the process ends; but one that hangs in `build` is not waited for.
        let until = Instant::now() + BUILDER_TIMEOUT;
        for builder in self.builders.drain(..) {
            while !builder.is_finished() && Instant::now() < until {
                thread::park_timeout(Duration::from_millis(1));
            }
        }
    }
}

fn new_runtime(what: &str) -> Result<runtime::Runtime, StartError> {
    runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|e| StartError::System(format!("{what} runtime"), e))
}

fn spawn<T: Send + 'static>(
    name: &str,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StartError> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(run)
        .map_err(|e| StartError::System(format!("thread \"{name}\""), e))
}
