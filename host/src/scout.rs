//! The scout: the process that asks who the servers are. It parses what strangers say and holds the credentials of sources; so it
//! runs as the workers' user, loads no module, and has no key and no socket of a listener.
//!
//! ```text
//! supervisor ── Follow, Accept, Leave ─► scout ─► a task for each source ─► files, …
//!            ◄─ the newest answer and report of each, as soon as the supervisor takes them ─┘
//! ```
//!
//! It keeps nothing but what `state` writes to a disk, for another run of the proxy: where it dies another one is started, which
//! is handed the last answers. All that it says is complete and replaces what it said of that source before, so that nothing has
//! to wait in order.

mod keeping;
mod state;

use std::collections::{BTreeMap, VecDeque};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal as Blocked};
use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use self::keeping::{Keeping, KeptActs};

use crate::config::ResolverConfig;
use crate::discovery;
use crate::discovery::answer::SourceAnswer;
pub use crate::discovery::exec::become_command;
use crate::discovery::follow::{SourceNews, SourceReport};
use crate::os::log::{self, LogSettings};
use crate::process::channel::scouting::{FromScout, ScoutSetup, ToScout};
use crate::process::channel::{self, Received, Receiver, Sender};
use crate::process::privileges;
use crate::process::sandbox::{self, SandboxTerms};

/// Its name in lists of processes.
const NAME: &CStr = c"trylist-scout";
/// What there is no memory for is said after this.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// Orders to one source that wait.
const MOST_ORDERS: usize = 8;

/// Runs the scout on the socket that the supervisor gave as standard input, until the supervisor is gone.
///
/// # Errors
/// It was not started by a supervisor, or cannot become the user that it is to be; in words.
pub fn run() -> Result<(), String> {
    // Only for people; nothing depends on it.
    let _ = rustix::thread::set_name(NAME);
    // The supervisor decides what signals mean, also those sent to all processes of a service.
    let mut signals = SigSet::empty();
    for signal in [Blocked::SIGTERM, Blocked::SIGINT, Blocked::SIGHUP, Blocked::SIGUSR1, Blocked::SIGUSR2] {
        signals.add(signal);
    }
    signals.thread_block().map_err(|error| error.to_string())?;
    let socket = channel::take_stdin().map_err(|error| error.to_string())?;
    let (to, mut from) = channel::connect(socket);
    end_with_supervisor(&from);
    let (setup, mut files) = loop {
        match from.receive().map_err(|error| error.to_string())? {
            Received::Message(ToScout::Start(setup), files) => break (setup, files),
            Received::Part => {}
            Received::Message(..) | Received::Nothing | Received::Lost => {
                return Err("it was not told how to start".to_owned());
            }
            Received::End => return Ok(()),
        }
    };
    let resolver = Arc::new(setup.resolver.clone());
    let state = setup.state.clone();
    let log_settings = setup.log.clone();
    let log_file = log_settings.file().filter(|_| !files.is_empty()).map(|_| File::from(files.remove(0)));
    log::apply(&log_settings, log_file).map_err(|error| format!("log: {error}"))?;
    confine(*setup)?;
    // The system forgets it when the user changes.
    end_with_supervisor(&from);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let files: Option<[OwnedFd; 4]> = files.try_into().ok();
    let (keeping, acts) = match state.zip(files) {
        Some((path, [answers_0, answers_1, acts_0, acts_1])) => {
            let keeping = Keeping::on(&path, [answers_0, answers_1]);
            (keeping, KeptActs::on(&path, [acts_0, acts_1]))
        }
        None => (Keeping::nowhere(), KeptActs::nowhere()),
    };
    let result =
        runtime.block_on(async { Scout::new(to, resolver, keeping, acts, log_settings)?.serve(from).await });
    // A read of a disk that does not answer is not waited for.
    runtime.shutdown_background();
    result.map_err(|error| error.to_string())
}

/// Gives up all that asking sources does not need.
fn confine(setup: ScoutSetup) -> Result<(), String> {
    let ScoutSetup { core_dumps, has_sandbox, .. } = setup;
    privileges::drop_to(&setup.run_as())?;
    privileges::allow_core_dumps(core_dumps).map_err(|error| format!("core_dumps: {error}"))?;
    if has_sandbox {
        // Files, name servers and HTTP are only read, and the files of the state are open already. Workers say it where the kernel
        // lacks something.
        let lacks = sandbox::confine(SandboxTerms { tells_exits: false, holds_limits: true }).lacks();
        tracing::debug!("confined; lacks: {lacks:?}");
    }
    Ok(())
}

/// Has the process end at once with its supervisor, and its commands with it.
fn end_with_supervisor(from: &Receiver<ToScout>) {
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    // It may have ended before that.
    if from.is_closed() {
        let _ = kill_process(getpid(), Signal::KILL);
    }
}

/// All sources that are followed, and what is still to be said of them.
struct Scout {
    to: Sender<FromScout>,
    resolver: Arc<ResolverConfig>,
    log: LogSettings,
    keeping: Keeping,
    acts: KeptActs,
    sources: BTreeMap<u64, Followed>,
    /// By source, the newest only.
    unsaid: BTreeMap<u64, Unsaid>,
    accepted: VecDeque<(u64, Option<u32>)>,
    /// Without a bound, because each source has a pause after its news, and this thread takes them at once.
    news: mpsc::UnboundedReceiver<(u64, SourceNews)>,
    tell: mpsc::UnboundedSender<(u64, SourceNews)>,
}

/// A source that is followed, as long as this lives.
struct Followed {
    /// Its cluster and its own name.
    name: (String, String),
    task: JoinHandle<()>,
    orders: mpsc::Sender<()>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// News that the supervisor did not take yet.
#[derive(Default)]
struct Unsaid {
    answer: Option<Arc<SourceAnswer>>,
    /// The memory of the answer, once it is to be said.
    sealed: Option<OwnedFd>,
    report: SourceReport,
}

/// How much of what there is to say is said.
enum Said {
    All,
    /// The socket is full.
    Part,
    /// There is no memory for more.
    Stuck,
}

impl Scout {
    fn new(
        to: Sender<FromScout>,
        resolver: Arc<ResolverConfig>,
        keeping: Keeping,
        acts: KeptActs,
        log: LogSettings,
    ) -> io::Result<Self> {
        channel::set_nonblocking(&to)?;
        let (tell, news) = mpsc::unbounded_channel();
        let (sources, unsaid, accepted) = (BTreeMap::new(), BTreeMap::new(), VecDeque::new());
        Ok(Self { to, resolver, log, keeping, acts, sources, unsaid, accepted, news, tell })
    }

    /// Until the supervisor is gone.
    async fn serve(mut self, mut from: Receiver<ToScout>) -> io::Result<()> {
        // Only its readiness is asked for.
        let socket = UnixStream::from_std(StdUnixStream::from(from.as_fd().try_clone_to_owned()?))?;
        loop {
            let said = self.say()?;
            tokio::select! {
                () = self.keeping.step() => {}
                () = self.acts.step() => {}
                ready = socket.readable() => {
                    ready?;
                    let step = socket.try_io(Interest::READABLE, || match from.receive()? {
                        Received::Nothing => Err(io::ErrorKind::WouldBlock.into()),
                        step => Ok(step),
                    });
                    match step {
                        Ok(Received::Message(order, descriptors)) => self.obey(order, descriptors),
                        Ok(Received::Part | Received::Nothing) => {}
                        // A source may be missing; another scout is told of all.
                        Ok(Received::Lost) => return Err(io::Error::other("out of descriptors")),
                        Ok(Received::End) => {
                            tokio::join!(self.keeping.finish(), self.acts.finish());
                            return Ok(());
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Err(error),
                    }
                }
                ready = socket.writable(), if matches!(said, Said::Part) => {
                    ready?;
                    // It was found full; there is room when the next event says so.
                    let full = || Err(io::ErrorKind::WouldBlock.into());
                    let _ = socket.try_io(Interest::WRITABLE, || match self.say()? {
                        Said::Part => full(),
                        Said::All | Said::Stuck => Ok(()),
                    });
                }
                () = sleep(RETRY_EVERY), if matches!(said, Said::Stuck) => {}
                Some((source, news)) = self.news.recv() => self.hear(source, news),
            }
        }
    }

    fn obey(&mut self, order: ToScout, descriptors: Vec<OwnedFd>) {
        match order {
            ToScout::Start(_) => {}
            ToScout::Follow { source, spec } => {
                let name = (spec.cluster.clone(), spec.name.clone());
                let last = descriptors.into_iter().next().and_then(|memory| {
                    let last = channel::unseal::<SourceAnswer>(memory);
                    last.inspect_err(|error| tracing::error!("the last answer of a source is lost: {error}"))
                        .ok()
                });
                let last = last.map(Arc::new).or_else(|| self.recall(source, &name));
                if let Some(last) = &last {
                    // Also where the files have it: what is written before this moment is without it.
                    self.keeping.keep(name.clone(), Arc::clone(last));
                }
                let (orders, inbox) = mpsc::channel(MOST_ORDERS);
                let tell = self.tell.clone();
                let follow = discovery::follow(&Arc::from(spec), &self.resolver, last, inbox, move |news| {
                    // The other end lives as long as this task.
                    let _ = tell.send((source, news));
                });
                let task = tokio::spawn(follow);
                self.sources.insert(source, Followed { name, task, orders });
            }
            ToScout::Leave { source } => {
                let left = self.sources.remove(&source);
                self.unsaid.remove(&source);
                // Another one may go on under its name.
                let left = left.filter(|left| !self.sources.values().any(|other| other.name == left.name));
                if let Some(left) = left {
                    self.keeping.leave(&left.name);
                }
            }
            ToScout::Accept { source } => {
                let followed = self.sources.get(&source);
                if followed.is_none_or(|followed| followed.orders.try_send(()).is_err()) {
                    self.accepted.push_back((source, None));
                }
            }
            ToScout::KeepActs { number, body } => self.acts.keep(number, body),
            ToScout::ReopenOwnLog => {
                if let (Some(file), Some(path)) = (descriptors.into_iter().next(), self.log.file()) {
                    log::reopen_with(File::from(file), path);
                }
            }
        }
    }

    /// The last answer of an earlier run, which is said at once: the source itself may be down.
    fn recall(&mut self, source: u64, name: &(String, String)) -> Option<Arc<SourceAnswer>> {
        let answer = self.keeping.recall(name)?;
        let n_members = answer.members.len();
        tracing::info!(
            "cluster \"{}\": source \"{}\": its last {n_members} servers are those of before the start, until it answers",
            name.0,
            name.1
        );
        self.unsaid.insert(source, Unsaid { answer: Some(Arc::clone(&answer)), ..Unsaid::default() });
        Some(answer)
    }

    /// A source has something to tell.
    fn hear(&mut self, source: u64, news: SourceNews) {
        let Some(followed) = self.sources.get(&source) else { return };
        match news {
            SourceNews::Answer(answer, report) => {
                self.keeping.keep(followed.name.clone(), Arc::clone(&answer));
                self.unsaid.insert(source, Unsaid { answer: Some(answer), sealed: None, report });
            }
            SourceNews::Report(report) => self.unsaid.entry(source).or_default().report = report,
            SourceNews::Accepted(n_members) => self.accepted.push_back((source, n_members)),
        }
    }

    /// Says what there is to say, as far as the supervisor takes it now.
    fn say(&mut self) -> io::Result<Said> {
        let is_full = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
        while let Some(mut unsaid) = self.unsaid.first_entry() {
            let source = *unsaid.key();
            let Unsaid { answer, sealed, report } = unsaid.get_mut();
            if let (Some(answer), None) = (&answer, &sealed) {
                match channel::seal(&**answer) {
                    Ok(memory) => *sealed = Some(memory),
                    Err(error) => {
                        tracing::error!("no memory for an answer: {error}; next attempt in {RETRY_EVERY:?}");
                        return Ok(Said::Stuck);
                    }
                }
            }
            let report = report.clone();
            let sent = match (answer, sealed) {
                (Some(answer), Some(memory)) => {
                    let n_members = u32::try_from(answer.members.len()).unwrap_or(u32::MAX);
                    self.to.send(&FromScout::Answer { source, n_members, report }, &[memory.as_fd()])
                }
                _ => self.to.send(&FromScout::Report { source, report }, &[]),
            };
            match sent {
                Ok(()) => drop(self.unsaid.pop_first()),
                Err(error) if is_full(&error) => return Ok(Said::Part),
                Err(error) => return Err(error),
            }
        }
        while let Some(&(source, n_members)) = self.accepted.front() {
            match self.to.send(&FromScout::Accepted { source, n_members }, &[]) {
                Ok(()) => drop(self.accepted.pop_front()),
                Err(error) if is_full(&error) => return Ok(Said::Part),
                Err(error) => return Err(error),
            }
        }
        if let Some((number, error)) = self.acts.unsaid() {
            match self.to.send(&FromScout::ActsKept { number, error }, &[]) {
                Ok(()) => self.acts.is_said(),
                Err(error) if is_full(&error) => return Ok(Said::Part),
                Err(error) => return Err(error),
            }
        }
        Ok(Said::All)
    }
}
