//! A worker as a process of its own, which does what its supervisor says: see [`message`](crate::channel::message).
//!
//! The main thread listens to the supervisor. Beside the worker's own threads there are one that reports and saves, and
//! one that waits for the worker's end.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};

use crate::breadcrumb::{self, Board};
use crate::channel::message::{Mark, ModuleSays, Report, Start, ToSupervisor, ToWorker};
use crate::channel::{self, Received, Receiver, Sender};
use crate::cluster::{Clusters, Tier};
use crate::config::{self, Config};
use crate::control::Refused;
use crate::crash;
use crate::discovery::{self, Watch};
use crate::drain::Idle;
use crate::endpoint::{Endpoint, Source};
use crate::handover::State;
use crate::metrics::Metrics;
use crate::module::balancer::{Balancer, Fault};
use crate::module::load::Copied;
use crate::module::registry::Registry;
use crate::privileges;
use crate::sockets::{Bound, address_of};
use crate::tls::tickets::TicketKeys;

use super::{Control, Given, Prepared, Sockets, StartError, Worker};

/// How often the supervisor hears how it goes.
const REPORT_EVERY: Duration = Duration::from_secs(2);
/// The same while the worker drains, when others count with what it still has on its way.
const REPORT_DRAINING_EVERY: Duration = Duration::from_millis(100);
/// How often what was learned goes to the supervisor, so that a crash forgets little.
const SAVE_EVERY: Duration = Duration::from_secs(5);

/// After the time that it has for its drain, before an orphan ends whatever still runs.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// The name of a worker in lists of processes, at most 15 bytes. The kernel would name it after its program, `/proc/self/exe`.
const NAME: &CStr = c"trylist-worker";

/// Places on the board behind those of the worker's threads: the background, this process's main thread, the reporter.
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
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
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
        match self.from.receive().map_err(Failure::NoSupervisor)? {
            Received::Message(message, descriptors) => Ok(Some((message, descriptors))),
            Received::Nothing | Received::End => Ok(None),
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
        config.threads = n_threads;
        apply_marks(&mut config, &marks);
        let board = Board::open(descriptor()?)
            .map_err(|e| Refused::failed(format_args!("no memory shared with the supervisor: {e}")))?;
        let board: &'static Board = Box::leak(Box::new(board));
        breadcrumb::take_place(board, config.threads + 1);
        crash::install(board).map_err(|e| Refused::failed(format_args!("no handler for crashes: {e}")))?;
        let access_log = if has_access_log { Some(File::from(descriptor()?)) } else { None };
        let mut copies = Vec::new();
        for module in modules {
            let copied = |image| Copied::from_parts(module.file, module.sha256, image);
            copies.push(if module.is_quarantined { None } else { Some(copied(descriptor()?)) });
        }
        privileges::drop_to(&config.run_as).map_err(Refused::failed)?;
        let names = discovery::expand(&mut config, state.names())
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
                // An operator's mark, say: there is nobody yet whom it could be told.
                Ok(Some(early)) => self.early.push(early),
                Ok(None) | Err(_) => return Err(None),
            }
        };
        let sockets = sockets(&n_sockets, has_admin, descriptors)
            .map_err(|e| Refused::failed(format_args!("the listening sockets: {e}")))?;
        let to = self.to.clone();
        let watch = Watch::new(names, move |name, addresses| {
            // A supervisor that is gone wants nothing.
            let _ = to.send(&ToSupervisor::Moved { name: name.into(), addresses: addresses.to_vec() }, &[]);
        });
        let given = Given { access_log, board: Some(board), base, watch: Some(watch) };
        let worker = Worker::start_on(prepared, sockets, given).map_err(Refused::from)?;
        Ok((worker, config))
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
                let _ = to.send(&ToSupervisor::Ended { cut_off, totals: metrics.totals() }, &[]);
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
        ToWorker::Older(in_flight) => set_older(clusters, &in_flight),
        ToWorker::Overrun { cluster, module, charged, goes_on } => {
            overrun(clusters, cluster, &module, charged, goes_on);
        }
        ToWorker::HandOver { removed } => {
            control.hand_over(&removed);
            reporter.hurry();
        }
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
                cluster.set_source(idx, Source::Drain, drains);
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
            balancer.fault(Fault::Overrun, &format_args!("a call took {charged:.1?}"));
        }
    }
}

fn set_older(clusters: &Clusters, in_flight: &[(u64, u32)]) {
    let in_flight: HashMap<u64, u32> = in_flight.iter().copied().collect();
    for cluster in clusters.iter() {
        for (idx, endpoint) in cluster.endpoints.iter().enumerate() {
            cluster.set_in_flight_older(idx, in_flight.get(&endpoint.id).copied().unwrap_or(0));
        }
    }
}

fn sockets(n_sockets: &[usize], has_admin: bool, descriptors: Vec<OwnedFd>) -> io::Result<Sockets> {
    let mut descriptors = descriptors.into_iter();
    let mut socket = || {
        let missing = || io::Error::other("one is missing");
        descriptors.next().ok_or_else(missing)
    };
    let mut listeners = Vec::new();
    for &n in n_sockets {
        let sockets = (0..n).map(|_| socket()).collect::<io::Result<Vec<_>>>()?;
        let first = sockets.first().ok_or_else(|| io::Error::other("a listener has none"))?;
        listeners.push(Bound { address: address_of(first)?, sockets, file: None });
    }
    let admin = if has_admin { Some(socket()?) } else { None };
    let admin = admin.map(|socket| {
        Ok::<_, io::Error>(Bound { address: address_of(&socket)?, sockets: vec![socket], file: None })
    });
    let admin = admin.transpose()?;
    Ok(Sockets { listeners, admin })
}

/// Tells the supervisor how it goes, from a thread of its own.
struct Reporter {
    orders: mpsc::Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Save,
    Hurry,
    Stop,
}

/// Ends a reporter from elsewhere.
struct Stopper(mpsc::Sender<Order>);

struct Reporting {
    to: Sender<ToSupervisor>,
    clusters: Clusters,
    metrics: Arc<Metrics>,
    ticket_keys: Arc<TicketKeys>,
    config: Arc<Config>,
    board: Option<&'static Board>,
    place: usize,
}

impl Reporter {
    fn start(worker: &Worker, config: &Arc<Config>, to: Sender<ToSupervisor>) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let reporting = Reporting {
            to,
            clusters: Arc::clone(worker.clusters()),
            metrics: Arc::clone(worker.metrics()),
            ticket_keys: Arc::clone(worker.ticket_keys()),
            config: Arc::clone(config),
            board: worker.board,
            place: config.threads + 2,
        };
        let thread =
            std::thread::Builder::new().name("reporter".into()).spawn(move || reporting.run(&inbox))?;
        Ok(Self { orders, thread: Some(thread) })
    }

    fn save(&self) {
        let _ = self.orders.send(Order::Save);
    }

    /// What is on its way counts for others from now on.
    fn hurry(&self) {
        let _ = self.orders.send(Order::Hurry);
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
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Reporting {
    fn run(self, inbox: &mpsc::Receiver<Order>) {
        if let Some(board) = self.board {
            breadcrumb::take_place(board, self.place);
        }
        let mut is_draining = false;
        let mut saved = Instant::now();
        loop {
            let wait = if is_draining { REPORT_DRAINING_EVERY } else { REPORT_EVERY };
            match inbox.recv_timeout(wait) {
                Ok(Order::Save) => self.save(true),
                Ok(Order::Hurry) => {
                    is_draining = true;
                    self.report(true);
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.report(is_draining);
                    if !is_draining && saved.elapsed() >= SAVE_EVERY {
                        saved = Instant::now();
                        self.save(false);
                    }
                }
            }
        }
    }

    fn save(&self, is_answer: bool) {
        let state = State::of(&self.clusters, &self.ticket_keys);
        // A supervisor that is gone wants nothing.
        let _ = self.to.send(&ToSupervisor::Saved { state, is_answer }, &[]);
    }

    fn report(&self, is_draining: bool) {
        let in_flight = |endpoint: &Endpoint| {
            let n = endpoint.counters.in_flight.load(Ordering::Relaxed);
            (n > 0).then_some((endpoint.id, n))
        };
        let faults = super::faults(&self.clusters);
        let endpoints = || self.clusters.iter().flat_map(|cluster| &cluster.endpoints);
        let report = Report {
            totals: self.metrics.totals(),
            faults: self
                .config
                .modules
                .iter()
                .map(|module| faults.get(&module.id).copied().unwrap_or(0))
                .collect(),
            connections: self.metrics.open_connections(),
            is_draining,
            in_flight: if is_draining { endpoints().filter_map(in_flight).collect() } else { Vec::new() },
        };
        let _ = self.to.send(&ToSupervisor::Report(Box::new(report)), &[]);
    }
}
