//! A worker as a process of its own, which does what its supervisor says: see [`message`](crate::process::channel::message).
//!
//! The main thread listens to the supervisor. Beside the worker's own threads there are one that reports, one that asks
//! modules what to save, and one that waits for the worker's end.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal as Blocked};
use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};

use crate::cluster::discovery::{self, Watch};
use crate::cluster::endpoint::Endpoint;
use crate::cluster::health::HealthSource;
use crate::cluster::learned::Learned;
use crate::cluster::names::HostName;
use crate::cluster::{Cluster, Clusters, Tier};
use crate::config::{self, Config};
use crate::module::balancer::{Balancer, ModuleFault};
use crate::module::board::Board;
use crate::module::crash;
use crate::module::load::Copied;
use crate::module::registry::Registry;
use crate::net::address::Address;
use crate::observe::metrics::Metrics;
use crate::process::channel::message::{Load, Mark, ModuleSays, Report, Start, ToSupervisor, ToWorker};
use crate::process::channel::{self, Received, Receiver, Sender};
use crate::process::control::Refused;
use crate::process::privileges;
use crate::process::sockets::{Bound, address_of};
use crate::serve::drain::Idle;
use crate::tls::tickets::TicketKeys;

use super::{Control, Given, Prepared, Sockets, StartError, Worker};

/// How often the supervisor hears how it goes.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// The same while the worker drains: what it counts is added to what another one shows.
const REPORT_DRAINING_EVERY: Duration = Duration::from_secs(1);
/// How often the load is looked at while other generations run: with as long again in the supervisor, each hears of the
/// others every 100 ms.
const LOAD_EVERY: Duration = Duration::from_millis(50);
/// How often what was learned goes to the supervisor, so that a crash forgets little.
const SAVE_EVERY: Duration = Duration::from_secs(5);
/// The first time is sooner.
const FIRST_SAVE: Duration = Duration::from_secs(2);

/// For a module that saves to return, before the process ends under it.
const SAVER_TIMEOUT: Duration = Duration::from_secs(1);

/// After the time that it has for its drain, before an orphan ends whatever still runs.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// The name of a worker in lists of processes, at most 15 bytes. The kernel would name it after its program, `/proc/self/exe`.
const NAME: &CStr = c"trylist-worker";

/// Places on the board behind those of the worker's threads: the background, this process's main thread, the saver.
pub const FURTHER_PLACES: usize = 3;

/// Why the process ends before it served.
#[derive(Debug)]
pub enum Failure {
    /// Who started it is no supervisor, or is gone.
    NoSupervisor(io::Error),
    /// The supervisor was told why.
    Reported,
    /// The system gives no thread.
    NoThread(io::Error),
}

/// What the supervisor wants of a worker, and the means to tell it what comes of that.
struct Process {
    to: Sender<ToSupervisor>,
    from: Receiver<ToWorker>,
    /// What came before there was a worker.
    early: Vec<(ToWorker, Vec<OwnedFd>)>,
}

/// Runs a worker on the socket that the supervisor gave as standard input, until the supervisor has it end or is gone.
///
/// # Errors
/// It never served.
pub fn run() -> Result<(), Failure> {
    // Only for people; nothing depends on it.
    let _ = rustix::thread::set_name(NAME);
    // The supervisor decides what signals mean, also those sent to all processes of a service.
    let mut signals = SigSet::empty();
    for signal in [Blocked::SIGTERM, Blocked::SIGINT, Blocked::SIGHUP, Blocked::SIGUSR1, Blocked::SIGUSR2] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|e| Failure::NoSupervisor(e.into()))?;
    let socket = take_stdin().map_err(Failure::NoSupervisor)?;
    let (to, from) = channel::connect(socket);
    Process { to, from, early: Vec::new() }.run()
}

/// Standard input's descriptor, with nothing in its place.
fn take_stdin() -> io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), RawFd::from(3_u8))?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket)
}

impl Process {
    fn run(mut self) -> Result<(), Failure> {
        self.end_with_supervisor();
        let Some((ToWorker::Start(start), descriptors)) = self.next()? else {
            return Err(Failure::NoSupervisor(io::Error::other("it did not say what to run")));
        };
        let (worker, config) = match self.start(*start, descriptors) {
            Ok(started) => started,
            Err(Some(refused)) => {
                let Refused { exit, lines } = refused;
                let _ = self.to.send(&ToSupervisor::Failed { exit: exit as u8, lines }, &[]);
                return Err(Failure::Reported);
            }
            // The supervisor has given it up, or is gone.
            Err(None) => return Ok(()),
        };
        let _ = self.to.send(&ToSupervisor::Ready { shortage: worker.shortage().cloned() }, &[]);
        self.serve(worker, &config).map_err(Failure::NoThread)
    }

    fn next(&mut self) -> Result<Option<(ToWorker, Vec<OwnedFd>)>, Failure> {
        loop {
            match self.from.receive().map_err(Failure::NoSupervisor)? {
                Received::Message(message, descriptors) => return Ok(Some((message, descriptors))),
                Received::Part => {}
                Received::Nothing | Received::End => return Ok(None),
            }
        }
    }

    /// Everything that comes before serving. `None` as an error: there is nobody who wants to hear of one.
    fn start(
        &mut self,
        start: Start,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(Worker, Arc<Config>), Option<Refused>> {
        let Start { config, n_threads, files, modules, has_access_log, state, marks, base, generation: _ } =
            start;
        let mut descriptors = descriptors.into_iter();
        let mut descriptor = || descriptors.next().ok_or_else(|| Refused::failed("a descriptor is missing"));
        let mut files = files.sealed();
        let (mut config, _) = config::load_from(&config, &mut files).map_err(Refused::from)?;
        // Wiped: keys are in use now, and nobody reads their files again.
        drop(files);
        config.threads = n_threads;
        apply_marks(&mut config, &marks);
        let board = Board::open(descriptor()?)
            .map_err(|e| Refused::failed(format_args!("no memory shared with the supervisor: {e}")))?;
        let board: &'static Board = Box::leak(Box::new(board));
        crash::take_place(board, config.threads + 1);
        crash::install(board).map_err(|e| Refused::failed(format_args!("no handler for crashes: {e}")))?;
        let access_log = if has_access_log { Some(File::from(descriptor()?)) } else { None };
        let mut copies = Vec::new();
        for module in modules {
            let copied = |image| Copied::from_parts(module.file, module.sha256, image);
            copies.push(if module.is_quarantined { None } else { Some(copied(descriptor()?)) });
        }
        privileges::drop_to(&config.run_as).map_err(Refused::failed)?;
        privileges::allow_core_dumps(config.core_dumps)
            .map_err(|e| Refused::failed(format_args!("core_dumps: {e}")))?;
        // The system forgets it when the user changes.
        self.end_with_supervisor();
        let names = discovery::expand(&mut config, state.answers())
            .map_err(|e| Refused::failed(format_args!("no resolver for servers' names: {e}")))?;
        let config = Arc::new(config);
        // Code of modules runs from here on.
        let registry = Registry::open(&config.modules, copies.into_iter().map(Ok))
            .map_err(|e| Refused::from(StartError::Modules(e)))?;
        let prepared = Prepared::over(Arc::clone(&config), registry, &state).map_err(Refused::from)?;
        let says = |module: &config::ModuleFile| {
            let module = prepared.registry.module(&module.id)?;
            Some(ModuleSays { id: module.id().to_owned(), version: module.version().to_owned() })
        };
        let modules = config.modules.iter().map(says).collect();
        let built = ToSupervisor::Built { modules, warnings: prepared.warnings.clone() };
        self.to.send(&built, &[]).map_err(|_| None)?;
        let (n_sockets, has_admin, descriptors) = loop {
            match self.next() {
                Ok(Some((ToWorker::Serve { n_sockets, has_admin }, descriptors))) => {
                    break (n_sockets, has_admin, descriptors);
                }
                // Limits hold from the first request on.
                Ok(Some((ToWorker::Elsewhere(load), _))) => set_elsewhere(&prepared.clusters, &load),
                // An operator's mark, say: there is nobody yet whom it could be told.
                Ok(Some(early)) => self.early.push(early),
                Ok(None) | Err(_) => return Err(None),
            }
        };
        let sockets = sockets(&config, &n_sockets, has_admin, descriptors)
            .map_err(|e| Refused::failed(format_args!("the listening sockets: {e}")))?;
        let to = self.to.clone();
        let watch = Watch::new(names, move |name, addresses| {
            // A supervisor that is gone wants nothing.
            let _ = to.send(&ToSupervisor::Moved { name: name.into(), addresses: addresses.to_vec() }, &[]);
        });
        let given = Given { access_log, board: Some(board), base, watch: Some(watch) };
        let worker = Worker::start_on(prepared, sockets, given).map_err(Refused::from)?;
        // From here on `serve` hears of the supervisor's end, and lets requests end first.
        let _ = set_parent_process_death_signal(None);
        Ok((worker, config))
    }

    /// Has the process end at once with its supervisor: until it serves it has nothing to finish, and a module that does not
    /// return would keep it for ever.
    fn end_with_supervisor(&self) {
        let _ = set_parent_process_death_signal(Some(Signal::KILL));
        // It may have ended before that.
        if self.from.is_closed() {
            let _ = kill_process(getpid(), Signal::KILL);
        }
    }

    /// Does what the supervisor says, until it is gone.
    fn serve(mut self, worker: Worker, config: &Arc<Config>) -> io::Result<()> {
        let control = worker.control();
        let (clusters, metrics) = (Arc::clone(worker.clusters()), Arc::clone(worker.metrics()));
        let reporter = Reporter::start(&worker, config, self.to.clone())?;
        let (ended, end) = mpsc::channel();
        std::thread::Builder::new().name("end".into()).spawn({
            let (metrics, reporter, to) = (Arc::clone(&metrics), reporter.stopper(), self.to.clone());
            move || {
                let cut_off = worker.wait();
                let _ = ended.send(());
                // What it would say is in the last word.
                reporter.stop();
                let last = ToSupervisor::Ended { cut_off, totals: metrics.totals() };
                if to.send(&last, &[]).is_err() {
                    // A supervisor that listens to this worker no more does not answer by closing the connection, which is
                    // what the main thread waits for.
                    to.close();
                }
            }
        })?;
        for (message, descriptors) in std::mem::take(&mut self.early) {
            obey(message, descriptors, &control, &clusters, &metrics, &reporter);
        }
        loop {
            match self.next() {
                Ok(Some((message, descriptors))) => {
                    obey(message, descriptors, &control, &clusters, &metrics, &reporter);
                }
                // A supervisor that has gone closed its sockets, and those who come find this worker's until they are
                // drained too.
                Ok(None) => break,
                Err(Failure::NoSupervisor(error)) => {
                    tracing::error!(
                        "what the supervisor says cannot be read, so this worker drains: {error}"
                    );
                    break;
                }
                Err(Failure::Reported | Failure::NoThread(_)) => break,
            }
        }
        if end.try_recv() == Err(TryRecvError::Empty) {
            tracing::warn!("the supervisor is gone: requests may end, then this worker does too");
            control.drain(Idle::Close);
            if end.recv_timeout(config.timeouts.drain + DRAIN_GRACE) == Err(RecvTimeoutError::Timeout) {
                tracing::error!(
                    "a thread does not end, and nobody is left who would mind: this worker ends without it"
                );
            }
        }
        Ok(())
    }
}

fn obey(
    message: ToWorker,
    descriptors: Vec<OwnedFd>,
    control: &Control,
    clusters: &Clusters,
    metrics: &Metrics,
    reporter: &Reporter,
) {
    match message {
        ToWorker::Save => reporter.save(),
        ToWorker::Mark(mark) => apply_drain(clusters, &mark),
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
        ToWorker::Drain => control.drain(Idle::Close),
        ToWorker::Stop => control.stop(),
        ToWorker::ReopenLog => match descriptors.into_iter().next() {
            Some(file) => control.reopen_access_log_with(File::from(file)),
            None => tracing::error!("the access log's new file has not come; the old one goes on"),
        },
        // They have come.
        ToWorker::Start(_) | ToWorker::Serve { .. } => {}
    }
}

/// What is known before anything is built is as good as configured. Weights are part of what balancers are built from.
fn apply_marks(config: &mut Config, marks: &[Mark]) {
    for mark in marks {
        let clusters = config.clusters.iter_mut().filter(|cluster| *cluster.name == *mark.cluster);
        for server in clusters.flat_map(|cluster| &mut cluster.servers) {
            if *server.url == *mark.url {
                server.weight = mark.weight.unwrap_or(server.weight);
                server.drain = mark.drain.unwrap_or(server.drain);
            }
        }
    }
}

fn apply_drain(clusters: &Clusters, mark: &Mark) {
    let Some(drains) = mark.drain else { return };
    for cluster in clusters.iter().filter(|cluster| *cluster.config.name == *mark.cluster) {
        for (idx, endpoint) in cluster.endpoints.iter().enumerate() {
            if endpoint.is_of(&mark.url) {
                cluster.set_source(idx, HealthSource::Drain, drains);
            }
        }
    }
}

/// A call that does not return keeps its thread; nobody else is to be lost to the same.
fn overrun(clusters: &Clusters, cluster: Option<usize>, module: &str, charged: Duration, goes_on: bool) {
    let Some(cluster) = cluster.and_then(|cluster| clusters.get(cluster)) else { return };
    let is_its = |balancer: &&Balancer| balancer.module().id() == module;
    for balancer in cluster.tiers.iter().flat_map(Tier::balancers).filter(is_its) {
        if goes_on {
            balancer.quarantine(&format_args!("a call has not returned after {charged:.1?}"));
        } else {
            balancer.fault(ModuleFault::Overrun, &format_args!("a call took {charged:.1?}"));
        }
    }
}

fn set_elsewhere(clusters: &Clusters, load: &Load) {
    let endpoints: HashMap<u64, u32> = load.endpoints.iter().copied().collect();
    let requests: HashMap<&str, u32> = load.clusters.iter().map(|(name, n)| (name.as_str(), *n)).collect();
    for cluster in clusters.iter() {
        cluster.set_requests_elsewhere(requests.get(&*cluster.config.name).copied().unwrap_or(0));
        for (idx, endpoint) in cluster.endpoints.iter().enumerate() {
            cluster.set_in_flight_older(idx, endpoints.get(&endpoint.id).copied().unwrap_or(0));
        }
    }
}

fn load_of(clusters: &[Cluster]) -> Load {
    let endpoint = |endpoint: &Endpoint| {
        let n = endpoint.counters.in_flight.load(Ordering::Relaxed);
        (n > 0).then_some((endpoint.id, n))
    };
    let cluster = |cluster: &Cluster| {
        let n = cluster.n_counted();
        (n > 0).then(|| (cluster.config.name.to_string(), n))
    };
    Load {
        endpoints: clusters.iter().flat_map(|cluster| &cluster.endpoints).filter_map(endpoint).collect(),
        clusters: clusters.iter().filter_map(cluster).collect(),
    }
}

fn sockets(
    config: &Config,
    n_sockets: &[usize],
    has_admin: bool,
    descriptors: Vec<OwnedFd>,
) -> io::Result<Sockets> {
    let mut descriptors = descriptors.into_iter();
    let mut socket = || {
        let missing = || io::Error::other("one is missing");
        descriptors.next().ok_or_else(missing)
    };
    // The kernel knows the port that it chose; a Unix socket may have been bound by another name.
    let address = |configured: Option<&Address>, socket: &OwnedFd| match configured {
        Some(unix @ Address::Unix(_)) => Ok(unix.clone()),
        _ => address_of(socket),
    };
    let mut listeners = Vec::new();
    for (idx, &n) in n_sockets.iter().enumerate() {
        let sockets = (0..n).map(|_| socket()).collect::<io::Result<Vec<_>>>()?;
        let first = sockets.first().ok_or_else(|| io::Error::other("a listener has none"))?;
        let configured = config.listeners.get(idx).map(|listener| &listener.address);
        listeners.push(Bound { address: address(configured, first)?, sockets, file: None });
    }
    let admin = if has_admin { Some(socket()?) } else { None };
    let admin = admin.map(|socket| {
        let configured = config.admin.as_ref().map(|admin| &admin.address);
        Ok::<_, io::Error>(Bound {
            address: address(configured, &socket)?,
            sockets: vec![socket],
            file: None,
        })
    });
    let admin = admin.transpose()?;
    Ok(Sockets { listeners, admin })
}

/// Tells the supervisor how it goes, from a thread of its own, and what was learned, from another: modules are asked for
/// that, and none of them keeps others from hearing of the load.
struct Reporter {
    orders: mpsc::Sender<Order>,
    saves: mpsc::Sender<()>,
    /// Closed when the thread that saves has ended.
    saver_end: mpsc::Receiver<()>,
}

enum Order {
    TellLoad(bool),
    Draining,
    Stop,
}

/// Ends a reporter from elsewhere.
struct Stopper(mpsc::Sender<Order>);

struct Reporting {
    to: Sender<ToSupervisor>,
    clusters: Clusters,
    metrics: Arc<Metrics>,
    config: Arc<Config>,
    is_draining: bool,
    tells_load: bool,
    /// As it was told last.
    told: Option<(bool, Load)>,
}

struct Saver {
    to: Sender<ToSupervisor>,
    clusters: Clusters,
    ticket_keys: Arc<TicketKeys>,
    watched: Vec<Arc<HostName>>,
    /// Tells that the worker drains: what it learns from then on is of no use.
    control: Control,
    board: Option<&'static Board>,
    place: usize,
}

impl Reporter {
    fn start(worker: &Worker, config: &Arc<Config>, to: Sender<ToSupervisor>) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let (saves, wanted) = mpsc::channel();
        let (end, saver_end) = mpsc::channel();
        let reporting = Reporting {
            to: to.clone(),
            clusters: Arc::clone(worker.clusters()),
            metrics: Arc::clone(worker.metrics()),
            config: Arc::clone(config),
            is_draining: false,
            tells_load: false,
            told: None,
        };
        let saver = Saver {
            to,
            clusters: Arc::clone(worker.clusters()),
            ticket_keys: Arc::clone(worker.ticket_keys()),
            watched: worker.watched().to_vec(),
            control: worker.control(),
            board: worker.board,
            place: config.threads + 2,
        };
        std::thread::Builder::new().name("reporter".into()).spawn(move || reporting.run(&inbox))?;
        std::thread::Builder::new().name("saver".into()).spawn(move || {
            let _end: mpsc::Sender<()> = end;
            saver.run(&wanted);
        })?;
        Ok(Self { orders, saves, saver_end })
    }

    fn save(&self) {
        let _ = self.saves.send(());
    }

    fn tell_load(&self, tells: bool) {
        let _ = self.orders.send(Order::TellLoad(tells));
    }

    fn drains(&self) {
        let _ = self.orders.send(Order::Draining);
    }

    fn stopper(&self) -> Stopper {
        Stopper(self.orders.clone())
    }
}

impl Stopper {
    fn stop(&self) {
        let _ = self.0.send(Order::Stop);
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        let _ = self.orders.send(Order::Stop);
        self.saves = mpsc::channel().0;
        // Code of a module should not run while the process ends; but what hangs in there is not waited for.
        let _ = self.saver_end.recv_timeout(SAVER_TIMEOUT);
    }
}

impl Reporting {
    fn run(mut self, inbox: &mpsc::Receiver<Order>) {
        let mut reported = Instant::now();
        loop {
            let report_at = reported + if self.is_draining { REPORT_DRAINING_EVERY } else { REPORT_EVERY };
            let wait = report_at.saturating_duration_since(Instant::now());
            match inbox.recv_timeout(if self.tells_load { wait.min(LOAD_EVERY) } else { wait }) {
                Ok(Order::TellLoad(tells)) => {
                    self.tells_load = tells;
                    self.told = None;
                }
                Ok(Order::Draining) => self.is_draining = true,
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.tells_load {
                self.tell_load();
            }
            if Instant::now() >= report_at {
                reported = Instant::now();
                self.report();
            }
        }
    }

    fn tell_load(&mut self) {
        let now = Some((self.is_draining, load_of(&self.clusters)));
        if now == self.told {
            return;
        }
        if let Some((is_draining, load)) = &now {
            let message = ToSupervisor::Load { is_draining: *is_draining, load: load.clone() };
            // A supervisor that is gone wants nothing.
            let _ = self.to.send(&message, &[]);
        }
        self.told = now;
    }

    fn report(&self) {
        let faults = super::faults(&self.clusters);
        let of_module = |module: &config::ModuleFile| faults.get(&module.id).copied().unwrap_or(0);
        let report = Report {
            totals: self.metrics.totals(),
            faults: self.config.modules.iter().map(of_module).collect(),
            connections: self.metrics.open_connections(),
        };
        let _ = self.to.send(&ToSupervisor::Report(Box::new(report)), &[]);
    }
}

impl Saver {
    fn run(self, wanted: &mpsc::Receiver<()>) {
        if let Some(board) = self.board {
            crash::take_place(board, self.place);
        }
        // A crash soon after the start should not forget what names stand for.
        let mut wait = FIRST_SAVE;
        loop {
            match wanted.recv_timeout(wait) {
                Ok(()) => self.save(true),
                Err(RecvTimeoutError::Timeout) if self.control.is_ending() => {}
                Err(RecvTimeoutError::Timeout) => self.save(false),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            wait = SAVE_EVERY;
        }
    }

    fn save(&self, is_answer: bool) {
        let mut state = Learned::of(&self.clusters, &self.ticket_keys).with_answers(&self.watched);
        for (cluster, module) in state.shorten() {
            tracing::warn!(
                cluster,
                module,
                "the balancer's state is not saved: all balancers together saved too much"
            );
        }
        let _ = self.to.send(&ToSupervisor::Saved { state, is_answer }, &[]);
    }
}
