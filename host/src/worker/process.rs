//! A worker as a process of its own. It does what its supervisor orders (`process/channel/message.rs`).
//!
//! The main thread listens to the supervisor. Beside the worker's own threads there are one that reports, one that asks
//! modules what to save, and one that waits for the worker's end.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal as Blocked};
use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};

use super::answers::{self, Sources};
use super::memberships::{Membership, SourceAnswers};
use super::orders::{Orders, set_elsewhere, take_answer};
use super::reporter::Reporter;
use super::{Given, Prepared, Relay, Sockets, StartError, Worker};
use crate::cluster::{Clusters, IfRefused, discovery};
use crate::config::{self, Config, Files};
use crate::module::board::Board;
use crate::module::crash;
use crate::module::guarded;
use crate::module::load::Copied;
use crate::module::registry::Registry;
use crate::net::address::Address;
use crate::os::log;
use crate::process::channel::message::{ModuleCopy, ModuleSays, Start, ToSupervisor, ToWorker};
use crate::process::channel::{self, Received, Receiver, Sender};
use crate::process::control::Refused;
use crate::process::privileges;
use crate::process::sandbox::{self, Confinement, SandboxTerms};
use crate::process::sockets::{Bound, address_of};
use crate::serve::drain::Idle;

/// After the time that it has for its drain, before an orphan ends whatever still runs.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// For threads that have said their last word to end. One that a module keeps is not waited for.
const LET_GO_TIMEOUT: Duration = Duration::from_millis(500);

/// For answers of sources that came during the start to be in use, before the generation is ready all the same.
const EARLY_ANSWERS: Duration = Duration::from_secs(5);

/// The name of a worker in lists of processes, at most 15 bytes. The kernel would name it after its program, `/proc/self/exe`.
const NAME: &CStr = c"trylist-worker";

/// Of the places on the board behind those of the worker's threads the first is the background's, then come this process's main
/// thread and the saver, then the builders.
pub(crate) const FIRST_BUILDER: usize = 3;

/// Places on the board for a worker with so many threads that serve.
pub(crate) fn n_places(n_threads: usize) -> usize {
    n_threads + FIRST_BUILDER + n_builders()
}

/// Threads that build memberships: a quarter of the cores, which leaves requests the rest. At least two: one may be with a module
/// that does not return.
pub(super) fn n_builders() -> usize {
    let n_cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    (n_cores / 4).max(2)
}

/// The reason why the process ends before it served.
#[derive(Debug)]
pub enum WorkerFailure {
    /// It was not started by a supervisor, or the supervisor is gone.
    NoSupervisor(io::Error),
    /// The supervisor was told why.
    Reported,
    /// The system gives no thread.
    NoThread(io::Error),
}

/// The reason why there is no worker.
enum NotStarted {
    Refused(Refused),
    /// The supervisor has given this start up, or is gone: nobody wants to hear why.
    GivenUp,
}

impl From<Refused> for NotStarted {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

/// A worker that serves.
struct Started {
    worker: Worker,
    config: Arc<Config>,
    sources: Sources,
}

/// The worker process and its channel to the supervisor.
struct Process {
    to: Sender<ToSupervisor>,
    from: Receiver<ToWorker>,
    /// Orders that came before the worker was started.
    early: Vec<(ToWorker, Vec<OwnedFd>)>,
}

/// Runs a worker on the socket that the supervisor gave as standard input, until the supervisor has it end or is gone.
///
/// # Errors
/// It never served.
pub fn run() -> Result<(), WorkerFailure> {
    // Only for people; nothing depends on it.
    let _ = rustix::thread::set_name(NAME);
    // The supervisor decides what signals mean, also those sent to all processes of a service.
    let mut signals = SigSet::empty();
    for signal in [Blocked::SIGTERM, Blocked::SIGINT, Blocked::SIGHUP, Blocked::SIGUSR1, Blocked::SIGUSR2] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|e| WorkerFailure::NoSupervisor(e.into()))?;
    let socket = channel::take_stdin().map_err(WorkerFailure::NoSupervisor)?;
    let (to, from) = channel::connect(socket);
    Process { to, from, early: Vec::new() }.run()
}

impl Process {
    fn run(mut self) -> Result<(), WorkerFailure> {
        self.end_with_supervisor();
        let Some((ToWorker::Start(start), descriptors)) = self.next()? else {
            return Err(WorkerFailure::NoSupervisor(io::Error::other("it did not say what to run")));
        };
        let Started { worker, config, sources } = match self.start(*start, descriptors) {
            Ok(started) => started,
            Err(NotStarted::Refused(Refused { exit, lines })) => {
                let _ = self.to.send(&ToSupervisor::Failed { exit: exit as u8, lines }, &[]);
                return Err(WorkerFailure::Reported);
            }
            Err(NotStarted::GivenUp) => return Ok(()),
        };
        let _ = self.to.send(&ToSupervisor::Ready { shortage: worker.shortage().cloned() }, &[]);
        self.serve(worker, &config, sources).map_err(WorkerFailure::NoThread)
    }

    fn next(&mut self) -> Result<Option<(ToWorker, Vec<OwnedFd>)>, WorkerFailure> {
        loop {
            match self.from.receive().map_err(WorkerFailure::NoSupervisor)? {
                Received::Message(message, descriptors) => return Ok(Some((message, descriptors))),
                Received::Part => {}
                Received::Lost => {
                    // A supervisor that is gone is noticed by the next step.
                    let _ = self.to.send(&ToSupervisor::Lost, &[]);
                }
                Received::Nothing | Received::End => return Ok(None),
            }
        }
    }

    /// Prepares and starts the worker.
    fn start(&mut self, start: Start, descriptors: Vec<OwnedFd>) -> Result<Started, NotStarted> {
        let mut descriptors = Descriptors(descriptors.into_iter());
        let board = descriptors.take()?;
        let mut files: Files = channel::unseal(descriptors.take()?)
            .map_err(|e| Refused::failed(format_args!("the configuration's files: {e}")))?;
        let (mut config, _) = config::load_from(&start.config, &mut files).map_err(Refused::from)?;
        // Wiped: keys are in use now, and nobody reads their files again.
        drop(files);
        config.threads = start.n_threads;
        let board = open_board(board, config.threads)?;
        let access_log = if start.has_access_log { Some(File::from(descriptors.take()?)) } else { None };
        let log = if config.log.file().is_some() { Some(File::from(descriptors.take()?)) } else { None };
        log::apply(&config.log, log).map_err(|e| Refused::failed(format_args!("log: {e}")))?;
        let copies = copies(start.modules, &mut descriptors)?;
        let sources = Sources::of(&config, start.sources.iter().map(|(number, _)| *number));
        let sources = sources.map_err(Refused::failed)?;
        let answers = first_answers(&config, &sources, &start.sources, &mut descriptors)?;
        self.drop_privileges(&config)?;
        let (copies, confinement) = confine(&config, copies)?;
        let addresses = discovery::first_addresses(&config, start.state.answers())
            .map_err(|e| Refused::failed(format_args!("no resolver for servers' names: {e}")))?;
        let membership = Membership { addresses, acts: start.acts, answers };
        let if_refused = if start.must_serve { IfRefused::HostChooses } else { IfRefused::Nothing };
        let config = Arc::new(config);
        guarded::guard(&copies.iter().flatten().map(Copied::number).collect::<Vec<_>>());
        // Code of modules runs from here on.
        let registry = Registry::open(&config.modules, copies.into_iter().map(Ok))
            .map_err(|e| Refused::from(StartError::Modules(e)))?;
        let prepared = Prepared::with(Arc::clone(&config), registry, &start.state, membership, if_refused);
        let prepared = prepared.map_err(Refused::from)?;
        guarded::leave();
        self.tell_built(&prepared, confinement)?;
        let sockets = self.receive_sockets(&prepared)?;
        let relay = Relay::start(self.to.clone())
            .map_err(|e| Refused::failed(format_args!("no thread for messages to the supervisor: {e}")))?;
        let (generation, is_leaving) = (Some(start.generation), start.is_leaving);
        let given = Given {
            access_log,
            board: Some(board),
            base: start.base,
            generation,
            relay: Some(relay),
            is_leaving,
        };
        let worker = Worker::start_on(prepared, sockets, given).map_err(Refused::from)?;
        self.take_early_answers(&worker, &config, &sources);
        // From here on `serve` hears of the supervisor's end, and lets requests end first.
        let _ = set_parent_process_death_signal(None);
        Ok(Started { worker, config, sources })
    }

    /// Uses answers of sources that came since the start, before it is ready.
    fn take_early_answers(&mut self, worker: &Worker, config: &Config, sources: &Sources) {
        let is_answer = |(order, _): &mut (ToWorker, _)| matches!(order, ToWorker::Answer { .. });
        let until = Instant::now() + EARLY_ANSWERS;
        for (order, descriptors) in self.early.extract_if(.., is_answer) {
            let ToWorker::Answer { source, .. } = order else { continue };
            let (done, is_done) = mpsc::channel();
            let done = Box::new(move |_| _ = done.send(()));
            take_answer(worker.memberships(), config, sources, source, descriptors, done);
            // A module that builds for longer does not keep this generation from serving.
            let _ = is_done.recv_timeout(until.saturating_duration_since(Instant::now()));
        }
    }

    fn drop_privileges(&self, config: &Config) -> Result<(), Refused> {
        privileges::drop_to(&config.run_as).map_err(Refused::failed)?;
        privileges::allow_core_dumps(config.core_dumps)
            .map_err(|e| Refused::failed(format_args!("core_dumps: {e}")))?;
        // The system forgets it when the user changes.
        self.end_with_supervisor();
        Ok(())
    }

    fn tell_built(&self, prepared: &Prepared, confinement: Confinement) -> Result<(), NotStarted> {
        let says = |module: &config::ModuleFile| {
            let module = prepared.registry.module(&module.id)?;
            let (id, version) = (module.id().to_owned(), module.version().to_owned());
            Some(ModuleSays { id, version, code: module.code().clone() })
        };
        let modules = prepared.config.modules.iter().map(says).collect();
        let built = ToSupervisor::Built { modules, confinement, warnings: prepared.warnings.clone() };
        self.to.send(&built, &[]).map_err(|_| NotStarted::GivenUp)
    }

    /// The listening sockets, which come when everything else has succeeded.
    fn receive_sockets(&mut self, prepared: &Prepared) -> Result<Sockets, NotStarted> {
        loop {
            match self.next() {
                Ok(Some((ToWorker::Serve { n_sockets, has_admin }, descriptors))) => {
                    let sockets = sockets(&prepared.config, &n_sockets, has_admin, descriptors);
                    let refused = |e| Refused::failed(format_args!("the listening sockets: {e}"));
                    return Ok(sockets.map_err(refused)?);
                }
                // Limits hold from the first request on.
                Ok(Some((ToWorker::Elsewhere(load), _))) => set_elsewhere(&prepared.clusters, &load),
                // An operator's act, say: there is nobody yet whom it could be told.
                Ok(Some(early)) => self.early.push(early),
                Ok(None) | Err(_) => return Err(NotStarted::GivenUp),
            }
        }
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

    /// Obeys the supervisor until it is gone.
    fn serve(mut self, worker: Worker, config: &Arc<Config>, sources: Sources) -> io::Result<()> {
        let _clusters = LastClusters(Arc::clone(worker.clusters()));
        let reporter = Reporter::start(&worker, config, self.to.clone())?;
        let orders = Orders {
            control: worker.control(),
            clusters: Arc::clone(worker.clusters()),
            memberships: Arc::clone(worker.memberships()),
            config: Arc::clone(config),
            sources,
            metrics: Arc::clone(worker.metrics()),
            reader: worker.reader().clone(),
            reporter,
            to: self.to.clone(),
        };
        let end = self.tell_of_the_end(worker, &orders)?;
        for (message, descriptors) in std::mem::take(&mut self.early) {
            orders.obey(message, descriptors);
        }
        loop {
            match self.next() {
                Ok(Some((message, descriptors))) => orders.obey(message, descriptors),
                // A supervisor that has gone closed its sockets, and those who come find this worker's until they are
                // drained too.
                Ok(None) => break,
                Err(WorkerFailure::NoSupervisor(error)) => {
                    tracing::error!("invalid message from the supervisor; draining: {error}");
                    break;
                }
                Err(WorkerFailure::Reported | WorkerFailure::NoThread(_)) => break,
            }
        }
        if end.try_recv() == Err(TryRecvError::Empty) {
            tracing::warn!("the supervisor is gone; draining");
            orders.control.drain(Idle::Close);
            if end.recv_timeout(config.timeouts.drain + DRAIN_GRACE) == Err(RecvTimeoutError::Timeout) {
                tracing::error!("drain timeout: a thread hangs; exiting without it");
            }
        }
        Ok(())
    }

    /// Starts a thread that waits for the worker's end, and then says its last word. Returns where it says so here, too.
    fn tell_of_the_end(&self, worker: Worker, orders: &Orders) -> io::Result<mpsc::Receiver<()>> {
        let (ended, end) = mpsc::channel();
        let (metrics, reporter) = (Arc::clone(&orders.metrics), orders.reporter.stopper());
        let (to, access_log) = (self.to.clone(), worker.access_log.clone());
        std::thread::Builder::new().name("end".into()).spawn(move || {
            let cut_off = worker.wait();
            // Before the last word: the supervisor gives the process little time after that.
            access_log.inspect(|log| log.end());
            let _ = ended.send(());
            // The last message has its counts.
            reporter.stop();
            let last = ToSupervisor::Ended { cut_off, totals: metrics.totals() };
            if to.send(&last, &[]).is_err() {
                // A supervisor that listens to this worker no more does not answer by closing the connection, which is
                // what the main thread waits for.
                to.close();
            }
        })?;
        Ok(end)
    }
}

/// Clusters that are dropped last, after other threads have let go of them. So modules drop their balancers on this thread, whose place
/// on the board says so, and before the process ends.
struct LastClusters(Clusters);

impl Drop for LastClusters {
    fn drop(&mut self) {
        let until = Instant::now() + LET_GO_TIMEOUT;
        while Arc::strong_count(&self.0) > 1 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The descriptors of [`ToWorker::Start`].
struct Descriptors(std::vec::IntoIter<OwnedFd>);

impl Descriptors {
    fn take(&mut self) -> Result<OwnedFd, Refused> {
        self.0.next().ok_or_else(|| Refused::failed("a descriptor is missing"))
    }
}

fn open_board(memory: OwnedFd, n_threads: usize) -> Result<&'static Board, Refused> {
    let board = Board::open(memory)
        .map_err(|e| Refused::failed(format_args!("no memory shared with the supervisor: {e}")))?;
    let board: &'static Board = Box::leak(Box::new(board));
    crash::take_place(board, n_threads + 1);
    crash::install(board).map_err(|e| Refused::failed(format_args!("no handler for crashes: {e}")))?;
    Ok(board)
}

fn copies(modules: Vec<ModuleCopy>, descriptors: &mut Descriptors) -> Result<Vec<Option<Copied>>, Refused> {
    let copy = |module: ModuleCopy| match module.is_quarantined {
        true => Ok(None),
        false => Ok(Some(Copied::from_parts(module.file, module.sha256, descriptors.take()?))),
    };
    modules.into_iter().map(copy).collect()
}

/// The servers that sources named when this generation was started.
fn first_answers(
    config: &Config,
    sources: &Sources,
    given: &[(u64, bool)],
    descriptors: &mut Descriptors,
) -> Result<SourceAnswers, Refused> {
    let mut answers = SourceAnswers::new();
    for (number, _) in given.iter().filter(|(_, has_answer)| *has_answer) {
        let memory = descriptors.take()?;
        let Some(place) = sources.place(*number) else { continue };
        match answers::members_of(config, place, memory) {
            Ok(members) => drop(answers.insert(place, members)),
            Err(why) => tracing::error!("{}: an answer is ignored: {why}", answers::name_of(config, place)),
        }
    }
    Ok(answers)
}

/// Confines this process, if that is configured. Copies that may not run where they are go into files before, which it may not make
/// afterwards.
fn confine(
    config: &Config,
    copies: Vec<Option<Copied>>,
) -> Result<(Vec<Option<Copied>>, Confinement), Refused> {
    if !config.supervision.sandbox {
        return Ok((copies, Confinement::default()));
    }
    let runnable = |copied: Option<Copied>| copied.map(Copied::runnable).transpose();
    let copies = copies.into_iter().map(runnable).collect::<Result<_, _>>();
    let copies = copies.map_err(|e| Refused::failed(format_args!("modules: {e}")))?;
    Ok((copies, sandbox::confine(SandboxTerms { tells_exits: true, holds_limits: true })))
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
