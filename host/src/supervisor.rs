//! The supervisor: a small process that holds the listening sockets for ever, opens no module, and starts, watches and
//! replaces the workers that do the work.
//!
//! ```text
//! trylist run ─► supervisor ── Start, Serve ─► worker, generation 1        drains after a reload, then it ends
//!                  │   ▲  └─── Start, Serve ─► worker, generation 2        accepts on the same sockets
//!                  │   └── board (where each thread is), reports, what was learned
//!                  └── control socket ◄── trylist reload, status, stop, …
//! ```
//!
//! One thread waits for all events: signals, commands, messages of workers, their deaths, and timers. It never waits for a
//! worker or for a client of the control socket. In reading order:
//!
//! | files | what |
//! |---|---|
//! | `orders`, `commands`, `signals` | what operators ask for, and how it comes in |
//! | `requests`, `start`, `changes` | how a new generation comes to serve |
//! | `reports`, `worker_scope`, `allowance`, `shared_counts` | what workers say, what of it is accepted, and what others hear of it |
//! | `deaths`, `blame`, `presence`, `watchdog`, `pulse`, `quarantine` | workers that die or hang, and the modules to blame |
//! | `scouting` | the process that asks sources who the servers are, and what it says |
//! | `asking`, `events` | how the worker that serves is, for those who ask; the last events of all processes |
//! | `acts`, `applying` | what operators changed of servers, and how it comes into use |
//! | `generation`, `bundle`, `held` | one worker; its files; the sockets |
//! | `environment`, `notify`, `oom`, `own_log`, `pid_file`, `state_folder`, `loads` | details |

mod acts;
mod allowance;
mod applying;
mod asking;
mod blame;
mod bundle;
mod changes;
mod commands;
mod deaths;
mod environment;
mod events;
mod generation;
mod held;
mod loads;
mod notify;
mod oom;
mod orders;
mod own_log;
mod pid_file;
mod presence;
mod pulse;
mod quarantine;
mod reports;
mod requests;
mod scouting;
mod shared_counts;
mod signals;
mod start;
mod state_folder;
mod worker_scope;
mod watchdog;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Pid;

use crate::cluster::learned::Learned;
use crate::config::Config;
use crate::observe::events::Numbered;
use crate::observe::metrics::Totals;
use crate::process::control::{self, Exit, Refused};
use crate::process::preflight::Lacks;
use crate::process::privileges;
use crate::process::sockets::{self, Shortage};
use crate::process::strangers::Strangers;

use self::acts::Acts;
use self::applying::Applying;
use self::asking::Asking;
use self::blame::{Culprit, WorkerEnd};
use self::bundle::Bundle;
use self::commands::Commands;
use self::generation::{Generation, GenerationPhase, HearingTurn};
use self::held::HeldSockets;
use self::notify::Notify;
use self::oom::OomScore;
use self::own_log::OwnLog;
use self::pid_file::PidFile;
use self::quarantine::{Backoff, FileQuarantine};
use self::requests::WaitingStart;
use self::scouting::Scouting;
use self::signals::Signals;
use self::start::{StartReason, Starting};

/// After the time that a worker has for its drain, before it is killed.
const DRAIN_GRACE: Duration = Duration::from_secs(2);
/// For workers to end that were told to stop at once; they need milliseconds, unless a module does not return.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);
/// How often generations are told of each other's load, at most: as often as each tells its own.
const LOADS_EVERY: Duration = Duration::from_millis(50);
/// How often what other generations counted goes to the one that serves, while any of them drains.
const BASE_EVERY: Duration = Duration::from_secs(1);
/// With nothing to wait for, the supervisor looks about at least this often.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Options of `trylist run`.
#[derive(Clone, Debug)]
pub struct Options {
    /// The configuration's file.
    pub config: PathBuf,
    /// The log level of the command line, for all processes; without one the configuration decides.
    pub log_level: Option<String>,
}

/// Runs the proxy until it is told to stop.
///
/// # Errors
/// It did not start, or requests were cut off at its end.
pub fn run(options: Options) -> Result<(), Refused> {
    // Before anything listens, so that no signal ends the process unseen.
    let signals =
        Signals::new().map_err(|error| Refused::failed(format_args!("no signal handler: {error}")))?;
    // Before a worker is started, in which code of modules runs.
    sockets::keep_descriptors()
        .map_err(|error| Refused::failed(format_args!("/proc: {error}; mount it, workers need it too")))?;
    Supervisor::new(options, signals)?.run()
}

struct Supervisor {
    options: Options,
    signals: Signals,
    own_log: OwnLog,
    /// Before the control socket, whose end is the end for whoever asked to stop.
    pid_file: Option<PidFile>,
    commands: Commands,
    notify: Notify,
    held: HeldSockets,
    /// Generations that have a process, the oldest first.
    generations: Vec<Generation>,
    n_generations: u64,
    /// Number of the one that new connections go to.
    serving: Option<u64>,
    starting: Option<Starting>,
    /// A request that waits for the present start.
    waiting: Option<WaitingStart>,
    /// The files of the generation that serves, or served last.
    bundle: Arc<Bundle>,
    /// The files that served before the last reload.
    previous: Option<Arc<Bundle>>,
    quarantine: FileQuarantine,
    backoff: Backoff,
    strangers: Strangers,
    /// When a worker is to be started in place of one that died.
    replace_at: Option<Instant>,
    /// Operators' changes of servers.
    acts: Acts,
    /// Those who wait until that is in use.
    applying: Applying,
    /// The last events of all processes.
    events: Numbered,
    /// Those who wait for the state of a worker.
    asking: Asking,
    /// Sources of servers, and who asks them.
    scouting: Scouting,
    /// Metrics of generations that have ended.
    totals: Totals,
    base_sent: Instant,
    /// When generations were told of each other's load.
    loads_told: Instant,
    /// It has changed since.
    are_loads_new: bool,
    /// The state that workers saved last.
    state: Learned,
    /// As it was said last.
    shortage: Option<Shortage>,
    /// The score that the service was started with, if known.
    oom_score: Option<OomScore>,
    started: Instant,
    looked: Instant,
    /// A stop was asked for: when its drain begins. Until then everything goes on, but nothing is ready.
    leaving: Option<Instant>,
    stopping: Option<Stopping>,
}

/// The end has begun.
#[derive(Default)]
struct Stopping {
    /// Connections that were cut off.
    cut_off: usize,
    /// It was said twice.
    is_at_once: bool,
}

impl Supervisor {
    fn new(options: Options, signals: Signals) -> Result<Self, Refused> {
        let bundle = Bundle::read(&options.config)?;
        let lacks = Lacks::of(&bundle.config).errors;
        if !lacks.is_empty() {
            return Err(Refused { exit: Exit::Failed, lines: lacks });
        }
        let own_log = OwnLog::begin(&bundle.config.log, options.log_level.as_deref())?;
        for warning in &bundle.warnings {
            tracing::warn!("{warning}");
        }
        let commands = Commands::listen(control::socket_of(&bundle.config)).map_err(Refused::failed)?;
        sockets::raise_descriptor_limit();
        let now = Instant::now();
        let pid_file = bundle.config.pid_file.as_deref().map(PidFile::write);
        let pid_file = pid_file.transpose().map_err(Refused::failed)?;
        warn_of_user(&bundle.config);
        if !bundle.config.core_dumps
            && let Err(error) = privileges::leave_no_core_dump()
        {
            tracing::warn!("core_dumps: cannot be disabled for the supervisor: {error}");
        }
        Ok(Self {
            notify: Notify::new(),
            held: HeldSockets::inherited(),
            options,
            signals,
            own_log,
            commands,
            generations: Vec::new(),
            n_generations: 0,
            serving: None,
            starting: None,
            waiting: None,
            bundle: Arc::new(bundle),
            previous: None,
            quarantine: FileQuarantine::default(),
            backoff: Backoff::default(),
            strangers: Strangers::adopt(),
            replace_at: None,
            acts: Acts::default(),
            applying: Applying::default(),
            events: Numbered::default(),
            asking: Asking::default(),
            scouting: Scouting::default(),
            totals: Totals::default(),
            base_sent: now,
            loads_told: now,
            are_loads_new: false,
            state: Learned::new(),
            shortage: None,
            pid_file,
            oom_score: OomScore::lower(),
            started: now,
            looked: now,
            leaving: None,
            stopping: None,
        })
    }

    fn run(mut self) -> Result<(), Refused> {
        self.begin(Arc::clone(&self.bundle), StartReason::First, Vec::new())?;
        loop {
            self.wait();
            for asked in self.signals.take() {
                self.obey_signal(asked)?;
            }
            for (client, command) in self.commands.take() {
                self.obey(client, command)?;
            }
            self.hear()?;
            self.hear_scout()?;
            self.bury()?;
            self.look_after_threads()?;
            self.keep_time()?;
            self.share_loads();
            self.share_events();
            if let Some(stopping) = self.stopping.as_ref().filter(|_| self.generations.is_empty()) {
                self.strangers.end_all(&self.own_processes());
                return stopping.result();
            }
        }
    }

    /// Waits until something happens, or it is time for something.
    fn wait(&self) {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(self.commands.interests().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        let interests = self.generations.iter().flat_map(Generation::interests);
        let interests = interests.chain(self.scouting.interests());
        fds.extend(interests.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        let timeout = self.due().saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        // After any event, and after an error, everything is looked at; none of it waits.
        let _ = poll(&mut fds, Some(&timeout));
    }

    /// When there is something to do though nothing happens.
    fn due(&self) -> Instant {
        let mut due = Instant::now() + LONGEST_WAIT;
        let mut or = |other: Option<Instant>| due = other.map_or(due, |other| due.min(other));
        or(self.commands.due());
        or(self.notify.due());
        or(self.replace_at);
        or(self.leaving);
        or(self.strangers.due());
        or(self.held.due());
        or(self.acts_due());
        or(self.asking.due());
        or(self.scouting.due());
        or(self.starting.as_ref().and_then(Starting::due));
        for generation in &self.generations {
            or(generation.due());
            or(Some(self.looked + generation.look_interval()));
        }
        if self.is_any_draining() {
            or(Some(self.base_sent + BASE_EVERY));
        }
        or(self.are_loads_new.then(|| self.loads_told + LOADS_EVERY));
        due
    }

    /// Removes generations whose process has ended.
    fn bury(&mut self) -> Result<(), Refused> {
        let mut idx = 0;
        while idx < self.generations.len() {
            let Some(end) = self.generations[idx].end() else {
                idx += 1;
                continue;
            };
            // It may have said why, and no more been heard.
            self.hear_one(idx, HearingTurn::WHOLE)?;
            let generation = self.generations.remove(idx);
            let number = generation.number;
            self.strangers.end(&self.own_processes(), Instant::now());
            self.keep_totals(&generation.report.totals);
            match end {
                // An orderly end that was not ordered counts as a death.
                WorkerEnd::Orderly if self.stopping.is_none() && self.serving == Some(generation.number) => {
                    self.died(&generation, "ended by itself", Culprit::Unknown)?;
                }
                WorkerEnd::Orderly => {}
                WorkerEnd::Death { text, after_all: true, .. }
                    if self.stopping.is_some() || self.serving != Some(number) =>
                {
                    self.died_after_all(&generation, &text);
                }
                WorkerEnd::Death { text, culprit, .. } => self.died(&generation, &text, culprit)?,
            }
            // Last, since a start that failed may still have given it something.
            self.held.ended(number);
            self.are_loads_new = true;
            self.tell_base();
            self.leave_sources();
        }
        Ok(())
    }

    /// Acts on timers.
    fn keep_time(&mut self) -> Result<(), Refused> {
        let now = Instant::now();
        self.notify.alive(now);
        if self.leaving.is_some_and(|at| now >= at) {
            self.begin_to_stop("stop_delay is over");
        }
        let own = self.own_processes();
        self.strangers.reap(&own, now);
        self.strangers.look(&own, now);
        if self.replace_at.is_some_and(|at| now >= at) && self.starting.is_none() {
            self.replace_at = None;
            self.begin(Arc::clone(&self.bundle), StartReason::Replace, Vec::new())?;
        }
        if self.is_any_draining() && now >= self.base_sent + BASE_EVERY {
            self.tell_base();
        }
        self.start_waiting()?;
        self.keep_acts(now);
        self.keep_asking(now);
        let readers = self.held.close_leaving(now);
        self.tell_readers(&readers, false);
        self.give_up_saving(now)?;
        self.give_up_discovering(now)?;
        self.keep_scout(now);
        let late: Vec<u64> = self
            .generations
            .iter()
            .filter(|generation| generation.due().is_some_and(|due| now >= due))
            .map(|generation| generation.number)
            .collect();
        for number in late {
            self.is_late(number)?;
        }
        Ok(())
    }

    /// A deadline of a generation has passed.
    fn is_late(&mut self, number: u64) -> Result<(), Refused> {
        let Some(generation) = self.generation(number) else { return Ok(()) };
        match generation.phase {
            GenerationPhase::Building { .. } | GenerationPhase::Opening { .. } => {
                let timeout = generation.bundle.config.supervision.start_timeout;
                let mut text = format!("generation {number} is not ready after {timeout:?}");
                if let Some(blame) = generation.inside() {
                    text += &format!("; a thread is inside {}", generation.describe(blame));
                }
                generation.give_up();
                self.start_failed(number, Refused::failed(text))
            }
            GenerationPhase::Draining { .. } => {
                tracing::warn!("generation {number} did not drain in time; killed");
                generation.give_up();
                if let Some(stopping) = &mut self.stopping {
                    stopping.cut_off += 1;
                }
                Ok(())
            }
            GenerationPhase::Ended { .. } => {
                // Once killed, it ends when the kernel lets it.
                let hangs_itself = !generation.is_given_up;
                generation.give_up();
                if hangs_itself {
                    self.hung_after_all(number);
                }
                Ok(())
            }
            GenerationPhase::Serving => Ok(()),
        }
    }

    /// The processes that it started.
    fn own_processes(&self) -> HashSet<Pid> {
        let workers = self.generations.iter().map(|generation| Pid::from_child(&generation.child));
        workers.chain(self.scout_pids()).collect()
    }

    fn is_any_draining(&self) -> bool {
        self.generations.iter().any(Generation::is_leaving)
    }

    fn generation(&mut self, number: u64) -> Option<&mut Generation> {
        self.generations.iter_mut().find(|generation| generation.number == number)
    }
}

impl Stopping {
    fn result(&self) -> Result<(), Refused> {
        match self.cut_off {
            _ if self.is_at_once => {
                Err(Refused::failed("stopped by a second signal before all requests had ended"))
            }
            0 => Ok(()),
            n => Err(Refused::failed(format_args!("{n} connections closed by the drain timeout"))),
        }
    }
}

/// Warns of settings that are probably not intended.
fn warn_of_user(config: &Config) {
    match (rustix::process::geteuid().is_root(), &config.run_as.user) {
        (true, None) => tracing::warn!("modules run as root; set the key user to run them as another user"),
        (false, Some((user, place))) => {
            tracing::warn!("{place}: user \"{user}\" is ignored unless root starts the proxy");
        }
        _ => {}
    }
}
