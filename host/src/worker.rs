//! A worker: built from a configuration and bound sockets, serving on a thread per core until it is drained.
//!
//! In two steps, so that everything that can fail has failed before a socket is touched: [`Prepared::new`] loads the
//! modules and builds the balancers, [`Worker::start`] starts the threads.

pub mod process;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime;
use tokio::sync::watch;
use tokio::task::{AbortHandle, LocalSet};

use crate::cluster::discovery::Watch;
use crate::cluster::learned::Learned;
use crate::cluster::names::{HostName, Resolver};
use crate::cluster::{self, Cluster, Clusters};
use crate::config::Config;
use crate::module::balancer::{BuildError, ModuleFault};
use crate::module::board::{self, Board};
use crate::module::crash;
use crate::module::refusal::LoadError;
use crate::module::registry::Registry;
use crate::net::address::Address;
use crate::net::listening::Listening;
use crate::observe::access_log::{self, AccessLog};
use crate::observe::admin;
use crate::observe::metrics::{
    BalancerLayout, ClusterLayout, EndpointLayout, Metrics, MetricsLayout, Totals,
};
use crate::process::control::{Exit, Refused};
use crate::process::sockets::{self, BindError, Bound, InTheWay, Shortage, SocketFile};
use crate::serve::drain::{Idle, Phase};
use crate::serve::listener::{self, Fate, Gate};
use crate::serve::route::Routes;
use crate::serve::thread::Thread;
use crate::tls::tickets::TicketKeys;

/// How often a thread looks after its idle server connections and its access log, and shows that it gets on.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// For idle connections to close that are told to; it takes them a turn of their task.
const IDLE_CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// A configuration with its modules loaded and its balancers built; nothing is bound or started.
#[derive(Debug)]
pub struct Prepared {
    /// The configuration.
    pub config: Arc<Config>,
    /// Its modules.
    pub registry: Registry,
    clusters: Clusters,
    /// What its operator has written to no effect, a line each.
    pub warnings: Vec<String>,
    /// What TLS sessions are resumed by: new ones, unless whoever hands over puts those of the worker before here.
    pub ticket_keys: Arc<TicketKeys>,
}

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
    metrics: Arc<Metrics>,
    clusters: Clusters,
    access_log: Option<Arc<AccessLog>>,
    ticket_keys: Arc<TicketKeys>,
    gates: Arc<[Arc<Gate>]>,
    shortage: Option<Shortage>,
    board: Option<&'static Board>,
    /// Names of which each address is a server.
    watched: Vec<Arc<HostName>>,
    /// Of Unix sockets, where no supervisor holds them.
    _files: Vec<SocketFile>,
}

/// A handle to a worker for whoever does not own it, such as a signal handler's thread.
#[derive(Clone, Debug)]
pub struct Control {
    phase: Arc<watch::Sender<Phase>>,
    drain_timeout: Duration,
    access_log: Option<Arc<AccessLog>>,
    gates: Arc<[Arc<Gate>]>,
}

/// What a worker that is a process of its own is given by its supervisor.
#[derive(Debug, Default)]
pub struct Given {
    /// The access log's file, which the worker may not be allowed to open.
    pub access_log: Option<File>,
    /// Where its threads say which module they are inside of. Thread `i` has place `i`, the background the one behind them.
    pub board: Option<&'static Board>,
    /// What other generations counted.
    pub base: Totals,
    /// Names of which its servers are.
    pub watch: Option<Watch>,
}

/// Sockets for all that a worker listens on.
#[derive(Debug)]
pub struct Sockets {
    /// In the order of the configuration's listeners.
    pub listeners: Vec<Bound>,
    /// The admin listener's, if there is one.
    pub admin: Option<Bound>,
}

/// Why a worker did not start. Every problem of its kind, not just the first.
#[derive(Debug)]
pub enum StartError {
    /// Modules that were refused.
    Modules(Vec<LoadError>),
    /// Balancers that their modules refused to build.
    Balancers(Vec<BuildError>),
    /// Addresses that could not be bound.
    Bind(Vec<BindError>),
    /// Something that the system did not give; what for, and why.
    System(String, io::Error),
}

impl From<StartError> for Refused {
    fn from(error: StartError) -> Self {
        let exit = match error {
            StartError::Modules(_) | StartError::Balancers(_) => Exit::Module,
            StartError::Bind(_) | StartError::System(..) => Exit::Failed,
        };
        Self { exit, lines: error.to_string().lines().map(str::to_owned).collect() }
    }
}

impl Prepared {
    /// Loads the modules and builds the balancers.
    ///
    /// # Errors
    /// [`StartError::Modules`] or [`StartError::Balancers`].
    pub fn new(config: Arc<Config>) -> Result<Self, StartError> {
        Self::without(config, &BTreeSet::new())
    }

    /// As [`Self::new`], but modules with these IDs are in quarantine: their files are not opened, and the host chooses
    /// the servers of their clusters.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn without(config: Arc<Config>, quarantined: &BTreeSet<Arc<str>>) -> Result<Self, StartError> {
        let registry = Registry::load_except(&config.modules, quarantined).map_err(StartError::Modules)?;
        Self::over(config, registry, &Learned::new())
    }

    /// Builds the balancers of modules that are loaded already; they begin with what an earlier generation learned.
    ///
    /// # Errors
    /// [`StartError::Balancers`].
    pub fn over(config: Arc<Config>, registry: Registry, state: &Learned) -> Result<Self, StartError> {
        let mut clusters = Vec::new();
        let mut refused = Vec::new();
        for (idx, cluster) in config.clusters.iter().enumerate() {
            match Cluster::build(idx, cluster, &registry, state, config.supervision.module_faults) {
                Ok(cluster) => clusters.push(cluster),
                Err(e) => refused.push(e),
            }
        }
        if !refused.is_empty() {
            return Err(StartError::Balancers(refused));
        }
        let endpoints = || clusters.iter().flat_map(|cluster| &cluster.endpoints);
        for name in endpoints().filter_map(|endpoint| endpoint.addresses.name()) {
            if let Some(known) = state.answers().get(name.host()) {
                name.recall(known, config.resolver.family);
            }
        }
        let ticket_keys = state
            .ticket_keys()
            .map_err(|e| StartError::System("keys of TLS tickets".into(), io::Error::other(e)))?;
        let warnings = clusters.iter().flat_map(Cluster::warnings).collect();
        let ticket_keys = Arc::new(ticket_keys);
        Ok(Self { config, registry, clusters: clusters.into(), warnings, ticket_keys })
    }
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
        let Prepared { config, registry: _, clusters, warnings: _, ticket_keys } = prepared;
        let access_log = AccessLog::open(&config.access_log, given.access_log)
            .map_err(|e| StartError::System(format!("access log {}", config.access_log), e))?
            .map(Arc::new);
        let Sockets { mut listeners, mut admin } = sockets;
        let addresses: Vec<_> = listeners.iter().map(|bound| bound.address.clone()).collect();
        let admin_address = admin.as_ref().map(|bound| bound.address.clone());
        let files = listeners.iter_mut().chain(&mut admin).filter_map(|bound| bound.file.take()).collect();
        let metrics = Metrics::new(&layout(&addresses, &clusters, access_log.as_deref()), config.threads);
        metrics.set_base(given.base);
        let (phase, _) = watch::channel(Phase::Serving);
        let mut worker = Self {
            addresses,
            admin_address,
            phase: Arc::new(phase),
            drain_timeout: config.timeouts.drain,
            threads: Vec::new(),
            background: None,
            has_served: watch::channel(false).0,
            metrics,
            clusters: Arc::clone(&clusters),
            access_log,
            ticket_keys,
            gates: Arc::default(),
            shortage: None,
            board: given.board,
            watched: given.watch.iter().flat_map(Watch::names).cloned().collect(),
            _files: files,
        };
        // From here on dropping `worker` stops whatever was started.
        worker.background = Some(worker.spawn_background(&clusters, &config, admin, given.watch)?);
        worker.spawn_threads(&config, &clusters, listeners)?;
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

    /// What its TLS sessions are resumed by: for who hands over to another worker.
    pub fn ticket_keys(&self) -> &Arc<TicketKeys> {
        &self.ticket_keys
    }

    /// How often each module did wrong in this worker, over all its clusters; in quarantine or not, all that clusters
    /// name are in it.
    pub fn faults(&self) -> BTreeMap<Arc<str>, u64> {
        faults(&self.clusters)
    }

    /// What there are too few descriptors for, if there are.
    pub fn shortage(&self) -> Option<&Shortage> {
        self.shortage.as_ref()
    }

    /// Names of which each address is a server.
    pub fn watched(&self) -> &[Arc<HostName>] {
        &self.watched
    }

    /// Its numbers.
    pub fn metrics(&self) -> &Arc<Metrics> {
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
        if let Some(background) = self.background.take() {
            let _ = background.join();
        }
        cut_off
    }

    fn spawn_background(
        &self,
        clusters: &Clusters,
        config: &Config,
        admin: Option<Bound>,
        watch: Option<Watch>,
    ) -> Result<JoinHandle<()>, StartError> {
        let endpoints = clusters.iter().flat_map(|cluster| &cluster.endpoints);
        let names: Vec<_> = endpoints.filter_map(|endpoint| endpoint.addresses.name()).cloned().collect();
        let clusters = Arc::clone(clusters);
        let metrics = Arc::clone(&self.metrics);
        let (mut phase, has_served) = (self.phase.subscribe(), self.has_served.subscribe());
        let ticket_keys = Arc::clone(&self.ticket_keys);
        let (runtime, board) = (new_runtime("background")?, self.board);
        let (place, watch) = (config.threads, watch.filter(|watch| !watch.is_empty()));
        // Without names nobody need be asked, nor be known.
        let has_names = !names.is_empty() || watch.is_some();
        let resolver = has_names.then(|| Resolver::new(&config.resolver)).transpose();
        let resolver = resolver.map_err(|e| StartError::System("resolver".into(), e))?.map(Arc::new);
        spawn("background", move || {
            board.inspect(|board| crash::take_place(board, place));
            runtime.block_on(async {
                let mut asking = Vec::new();
                if let Some(resolver) = resolver {
                    for name in names {
                        tokio::spawn(look_up_until_ending(name, Arc::clone(&resolver), phase.clone()));
                    }
                    asking.extend(watch.into_iter().flat_map(|watch| watch.begin(&resolver)));
                }
                tokio::spawn(ticket_keys.keep_rotating());
                if board.is_some() {
                    tokio::spawn(keep_ticking());
                }
                asking.extend(cluster::keep(&clusters));
                let (ready, readiness) = watch::channel(admin::Readiness::Ready);
                let serve_admin = async move {
                    if let Some(Bound { address, mut sockets, .. }) = admin
                        && let Some(socket) = sockets.pop()
                        && let Err(e) = admin::serve(&address, socket, metrics, readiness).await
                    {
                        tracing::error!("admin listener: {e}");
                    }
                };
                let admin = tokio::spawn(serve_admin);
                // A sender that is gone means the same as a stop.
                let ending =
                    phase.wait_for(|phase| phase.is_ending()).await.map_or(Phase::Stopped, |phase| *phase);
                // One generation asks servers and name servers how they are, and that is the one that serves.
                asking.iter().for_each(AbortHandle::abort);
                let _ = ready.send(match ending {
                    Phase::Draining { idle: Idle::AnswerOneMore, .. } => admin::Readiness::HandedOver,
                    _ => admin::Readiness::Draining,
                });
                tokio::select! {
                    _ = phase.wait_for(|phase| *phase == Phase::Stopped) => {}
                    () = finish_admin(has_served, ending, ready, admin) => {}
                }
            });
            // A look-up may still run in a thread of the runtime's, and nobody waits for its answer.
            runtime.shutdown_background();
            board::leave_place();
        })
    }

    fn spawn_threads(
        &mut self,
        config: &Arc<Config>,
        clusters: &Clusters,
        listeners: Vec<Bound>,
    ) -> Result<(), StartError> {
        let routes = Arc::new(Routes::new(config));
        let epoch = Instant::now();
        let (limits, shortage) = sockets::connection_limits(&config.listeners, config.threads);
        self.shortage = shortage;
        let gates: Vec<Arc<Gate>> = limits
            .into_iter()
            .zip(&listeners)
            .enumerate()
            .map(|(i, (max, bound))| {
                let listener = &config.listeners[i];
                let tls = listener.tls.as_ref().map(|tls| tls.acceptor(&self.ticket_keys));
                Arc::new(Gate::new(i, bound.address.clone(), max, listener, tls))
            })
            .collect();
        self.gates = gates.as_slice().into();
        let mut shares: Vec<Vec<(OwnedFd, Arc<Gate>)>> = (0..config.threads).map(|_| Vec::new()).collect();
        for (bound, gate) in listeners.into_iter().zip(&gates) {
            let n_sockets = bound.sockets.len();
            // Where there are fewer sockets than threads, threads share them: their number is fixed when they are bound.
            for (i, share) in shares.iter_mut().enumerate().skip(n_sockets) {
                let socket = bound.sockets[i % n_sockets].try_clone();
                let socket =
                    socket.map_err(|e| StartError::System(format!("listener {}", bound.address), e))?;
                share.push((socket, Arc::clone(gate)));
            }
            for (i, socket) in bound.sockets.into_iter().enumerate() {
                shares[i % config.threads].push((socket, Arc::clone(gate)));
            }
        }
        for (i, share) in shares.into_iter().enumerate() {
            let (config, routes, clusters) = (Arc::clone(config), Arc::clone(&routes), Arc::clone(clusters));
            let metrics = self.metrics.shard(i);
            let writer = self.access_log.as_ref().map(|log| log.writer());
            let phase = self.phase.subscribe();
            let (runtime, board) = (new_runtime("worker")?, self.board);
            self.threads.push(spawn(&format!("worker-{i}"), move || {
                board.inspect(|board| crash::take_place(board, i));
                // Its sockets would have nobody who reads them. With a supervisor, another process is the better end.
                let _end = board.map(|_| AbortOnPanic);
                let thread = Rc::new(Thread::new(config, routes, clusters, metrics, writer, epoch));
                let local = LocalSet::new();
                let cut_off = local.block_on(&runtime, run_thread(thread, share, phase));
                // Requests that were cut off tell their modules as their tasks are dropped here, on the runtime.
                let _entered = runtime.enter();
                drop(local);
                board::leave_place();
                cut_off
            })?);
        }
        Ok(())
    }
}

impl Control {
    /// Accepts nothing more and lets running requests end, for as long as the configuration says.
    pub fn drain(&self, idle: Idle) {
        let until = Instant::now() + self.drain_timeout;
        self.enter(Phase::Draining { until, idle });
    }

    /// Accepts nothing more because another generation reads the sockets from now on, all but those of these listeners
    /// (by their place in the configuration), which are read until they are empty.
    pub fn hand_over(&self, removed: &[usize]) {
        self.decide(removed, Fate::Removed);
        self.drain(Idle::AnswerOneMore);
    }

    /// Says what becomes of listeners that were removed when this worker handed over: another worker reads them again, or
    /// nobody does, so that this one reads until nobody waits there any more.
    pub fn decide_removed(&self, listeners: &[usize], are_back: bool) {
        self.decide(listeners, if are_back { Fate::HandedOver } else { Fate::Last });
    }

    fn decide(&self, listeners: &[usize], fate: Fate) {
        for gate in listeners.iter().filter_map(|listener| self.gates.get(*listener)) {
            gate.decide(fate);
        }
    }

    /// Cuts everything off.
    pub fn stop(&self) {
        self.enter(Phase::Stopped);
    }

    /// Whether it was told to drain or to stop.
    pub fn is_ending(&self) -> bool {
        self.phase.borrow().is_ending()
    }

    /// Opens the access log's file anew.
    pub fn reopen_access_log(&self) {
        if let Some(log) = &self.access_log {
            log.reopen();
        }
    }

    /// Goes on with this file as the access log, which somebody else has opened.
    pub fn reopen_access_log_with(&self, file: File) {
        if let Some(log) = &self.access_log {
            log.reopen_with(file);
        }
    }

    fn enter(&self, next: Phase) {
        self.phase.send_if_modified(|phase| {
            let later = match (*phase, next) {
                (Phase::Stopped, _) | (_, Phase::Serving) => false,
                // Those that were promised one more answer close when nobody takes over any more.
                (Phase::Draining { idle, .. }, Phase::Draining { idle: then, .. }) => {
                    idle == Idle::AnswerOneMore && then == Idle::Close
                }
                (Phase::Serving | Phase::Draining { .. }, _) => true,
            };
            if later {
                *phase = next;
            }
            later
        });
    }
}

/// Ends the process where its thread panics.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.control().stop();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        if let Some(background) = self.background.take() {
            let _ = background.join();
        }
    }
}

/// What one worker thread does all its life. Returns how many connections are left, to be cut off.
async fn run_thread(
    thread: Rc<Thread>,
    sockets: Vec<(OwnedFd, Arc<Gate>)>,
    mut phase: watch::Receiver<Phase>,
) -> usize {
    let accepting: Vec<_> = sockets
        .into_iter()
        .filter_map(|(socket, gate)| match Listening::new(&gate.address, socket) {
            Ok(socket) => {
                let accept = listener::accept(Rc::clone(&thread), socket, gate, phase.clone());
                Some(tokio::task::spawn_local(accept))
            }
            Err(e) => {
                tracing::error!(listener = %gate.address, "cannot wait for connections: {e}");
                None
            }
        })
        .collect();
    let keeper = tokio::task::spawn_local(keep_house(Rc::clone(&thread)));
    let serving = phase.wait_for(|phase| phase.is_ending()).await.map_or(Phase::Stopped, |phase| *phase);
    thread.enter_phase(serving);
    for task in accepting {
        // One that panicked has said so.
        let _ = task.await;
    }
    drain(&thread, phase).await;
    keeper.abort();
    thread.pool.clear();
    thread.n_connections()
}

/// Waits for the connections to end, for as long as they may.
async fn drain(thread: &Thread, mut phase: watch::Receiver<Phase>) {
    let drained = async || {
        while thread.n_connections() > 0 {
            thread.a_connection_ended().await;
        }
    };
    loop {
        let now = *phase.borrow_and_update();
        let Phase::Draining { until, idle } = now else { return };
        thread.enter_phase(now);
        tokio::select! {
            () = drained() => return,
            changed = phase.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            () = tokio::time::sleep_until(until.into()) => {}
        }
        if idle == Idle::AnswerOneMore {
            // Those that are idle still are no loss.
            thread.enter_phase(Phase::Draining { until, idle: Idle::Close });
            let _ = tokio::time::timeout(IDLE_CLOSE_TIMEOUT, drained()).await;
        }
        if thread.n_connections() > 0 {
            tracing::warn!(
                connections = thread.n_connections(),
                "drain time is over, cutting off what still runs"
            );
        }
        return;
    }
}

/// Once the threads have ended, lets the admin listener finish its responses until the drain ends, so that a large scrape is
/// not cut off where no requests are left to wait for.
async fn finish_admin(
    mut has_served: watch::Receiver<bool>,
    ending: Phase,
    ready: watch::Sender<admin::Readiness>,
    admin: tokio::task::JoinHandle<()>,
) {
    // A sender that is gone means the same.
    let _ = has_served.wait_for(|has_served| *has_served).await;
    ready.send_replace(admin::Readiness::HandedOver);
    if let Phase::Draining { until, .. } = ending {
        // One that panicked has said so.
        let _ = tokio::time::timeout_at(until.into(), admin).await;
    }
}

/// Looks a name up for as long as the worker serves; longer only where requests still wait for its first answer.
async fn look_up_until_ending(
    name: Arc<HostName>,
    resolver: Arc<Resolver>,
    mut phase: watch::Receiver<Phase>,
) {
    let is_over = async {
        let _ = phase.wait_for(|phase| phase.is_ending()).await;
        let _ = name.addresses().await;
    };
    tokio::select! {
        () = Arc::clone(&name).keep_resolved(resolver) => {}
        () = is_over => {}
    }
}

async fn keep_house(thread: Rc<Thread>) {
    let mut interval = tokio::time::interval(HOUSEKEEPING);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        board::tick();
        thread.pool.sweep(&thread.clusters, Instant::now());
        if let Some(log) = &thread.access_log {
            log.borrow_mut().flush();
        }
    }
}

/// Shows the supervisor that the background gets on.
async fn keep_ticking() {
    let mut interval = tokio::time::interval(HOUSEKEEPING);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        board::tick();
    }
}

fn faults(clusters: &[Cluster]) -> BTreeMap<Arc<str>, u64> {
    let mut faults = BTreeMap::new();
    for cluster in clusters {
        for module in cluster.config.modules() {
            let of_cluster: u64 =
                ModuleFault::ALL.into_iter().map(|fault| cluster.faults(module, fault)).sum();
            *faults.entry(Arc::clone(module)).or_default() += of_cluster;
        }
    }
    faults
}

fn layout(addresses: &[Address], clusters: &Clusters, access_log: Option<&AccessLog>) -> MetricsLayout {
    let cluster = |idx: usize| {
        let cluster = &clusters[idx];
        let judged = Arc::clone(clusters);
        let balancer = |module: &Arc<str>| {
            let (counted, watched) = (Arc::clone(clusters), Arc::clone(clusters));
            let (of, id) = (Arc::clone(module), Arc::clone(module));
            BalancerLayout {
                module: Arc::clone(module),
                faults: Arc::new(move |fault| counted[idx].faults(&of, fault)),
                is_quarantined: Arc::new(move || watched[idx].is_quarantined(&id)),
            }
        };
        ClusterLayout {
            name: Arc::clone(&cluster.config.name),
            endpoints: cluster
                .endpoints
                .iter()
                .map(|e| EndpointLayout {
                    url: Arc::clone(&e.url),
                    counters: e.counters,
                    health: Arc::clone(&e.health),
                })
                .collect(),
            balancers: cluster.config.modules().map(balancer).collect(),
            panics: Arc::new(move || judged[idx].is_in_panic()),
        }
    };
    MetricsLayout {
        listeners: addresses.iter().map(|address| address.to_string().into()).collect(),
        clusters: (0..clusters.len()).map(cluster).collect(),
        access_log: access_log.map(access_log::AccessLog::lines),
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

impl fmt::Display for StartError {
    /// One line for each problem.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn lines<T: fmt::Display>(f: &mut fmt::Formatter<'_>, problems: &[T]) -> fmt::Result {
            for (i, problem) in problems.iter().enumerate() {
                if i > 0 {
                    f.write_str("\n")?;
                }
                problem.fmt(f)?;
            }
            Ok(())
        }
        match self {
            Self::Modules(problems) => lines(f, problems),
            Self::Balancers(problems) => lines(f, problems),
            Self::Bind(problems) => lines(f, problems),
            Self::System(what, e) => write!(f, "cannot start: {what}: {e}"),
        }
    }
}

impl std::error::Error for StartError {}
