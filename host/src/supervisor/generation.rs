//! One worker as its supervisor sees it: a process, a channel, a board, and what it said last.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Reason;
use super::bundle::Bundle;
use super::watchdog::{Finding, Limits, Watchdog, thread_sample};
use crate::breadcrumb::{Board, By, Crumb, Kind};
use crate::channel::message::{ModuleCopy, ModuleSays, Report, ToSupervisor, ToWorker};
use crate::channel::{self, Received, Receiver, Sender};
use crate::worker::process::FURTHER_PLACES;

/// Calls outside of requests may take so many times as long as those that a request waits for, and
const LONG_FACTOR: u32 = 10;
/// this long at least.
const LONG_LEAST: Duration = Duration::from_secs(10);

/// Between a worker's last word and the end of its process.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// A generation with a process.
pub(super) struct Generation {
    pub(super) number: u64,
    pub(super) bundle: Arc<Bundle>,
    pub(super) reason: Reason,
    pub(super) phase: Phase,
    pub(super) started: Instant,
    /// When it began to serve.
    pub(super) ready: Option<Instant>,
    /// Its modules as it was given them.
    pub(super) copies: Vec<ModuleCopy>,
    /// What those that it opened say of themselves.
    pub(super) says: Vec<Option<ModuleSays>>,
    pub(super) report: Report,
    /// It was condemned for this.
    pub(super) hang: Option<Blame>,
    child: Child,
    process: OwnedFd,
    to: Option<Sender<ToWorker>>,
    from: Option<Receiver<ToSupervisor>>,
    board: Board,
    watchdog: Watchdog,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It opens modules and builds balancers.
    Building { until: Instant },
    /// It has its sockets.
    Opening { until: Instant },
    /// New connections are its.
    Serving,
    /// It finishes what runs.
    Draining { until: Instant },
    /// It has said its last word, and its process is about to end.
    Ended { until: Instant },
}

/// What a generation did wrong, as far as a module is to blame for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blame {
    /// Index in the configuration.
    pub(super) module: usize,
    pub(super) cluster: Option<usize>,
}

/// How its process ended.
pub(super) enum End {
    /// As it was to.
    Orderly,
    /// Somehow else; what is to be said of it, and whose fault it is if that is known.
    Death { text: String, blame: Option<Blame> },
}

impl Generation {
    /// Starts a process for it, which waits to be told what to run.
    pub(super) fn spawn(
        number: u64,
        bundle: Arc<Bundle>,
        copies: Vec<ModuleCopy>,
        reason: Reason,
        log_level: &str,
    ) -> io::Result<Self> {
        let limit = bundle.config.supervision.module_time_limit;
        let limits = Limits { call: limit, long: (limit * LONG_FACTOR).max(LONG_LEAST) };
        let board = Board::create(bundle.config.threads + FURTHER_PLACES)?;
        let (here, there) = channel::pair()?;
        channel::set_nonblocking(&here)?;
        let mut child = Command::new("/proc/self/exe")
            .arg0("trylist")
            .args(["worker", "--log-level", log_level])
            // A terminal's signals are the supervisor's to understand.
            .process_group(0)
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_PID")
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .stdin(Stdio::from(there))
            .spawn()?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).inspect_err(|_| {
            // Nobody would hear of its end.
            let _ = child.kill().and_then(|()| child.wait());
        })?;
        let (to, from) = channel::connect(here);
        let started = Instant::now();
        Ok(Self {
            number,
            reason,
            phase: Phase::Building { until: started + bundle.config.supervision.start_timeout },
            started,
            ready: None,
            says: Vec::new(),
            report: Report::default(),
            hang: None,
            child,
            process,
            to: Some(to),
            from: Some(from),
            board,
            watchdog: Watchdog::new(limits),
            bundle,
            copies,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn board(&self) -> BorrowedFd<'_> {
        self.board.fd()
    }

    /// What to wait for: words, and its end.
    pub(super) fn interests(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        [Some(self.process.as_fd()), self.from.as_ref().map(|from| from.as_fd())].into_iter().flatten()
    }

    /// Tells it something. It not taking it is no reason to wait: it is stuck or dead then, which shows elsewhere.
    pub(super) fn tell(&self, message: &ToWorker, descriptors: &[BorrowedFd<'_>]) {
        if let Err(error) = self.order(message, descriptors) {
            tracing::debug!(generation = self.number, "the worker cannot be told: {error}");
        }
    }

    /// Tells it something that it cannot do without.
    pub(super) fn order(&self, message: &ToWorker, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.to.as_ref().map_or(Ok(()), |to| to.send(message, descriptors))
    }

    /// What it has said, since the last time.
    pub(super) fn hear(&mut self) -> Vec<ToSupervisor> {
        let mut heard = Vec::new();
        while let Some(from) = &mut self.from {
            match from.receive() {
                Ok(Received::Message(message, _)) => heard.push(message),
                Ok(Received::Nothing) => break,
                // Its process's end is what tells.
                Ok(Received::End) => self.from = None,
                Err(error) => {
                    tracing::error!(generation = self.number, "what its worker says cannot be read: {error}");
                    self.from = None;
                    self.kill();
                }
            }
        }
        heard
    }

    /// It has said its last word. The end of the connection is what it waits for now.
    pub(super) fn has_ended(&mut self) {
        self.phase = Phase::Ended { until: Instant::now() + END_TIMEOUT };
        self.from = None;
        self.to = None;
    }

    /// Nothing more is expected of it.
    pub(super) fn give_up(&mut self) {
        self.kill();
        self.report.in_flight.clear();
        self.has_ended();
    }

    /// Ends the process at once.
    pub(super) fn kill(&self) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Whether it has been told to end, or has.
    pub(super) fn is_leaving(&self) -> bool {
        matches!(self.phase, Phase::Draining { .. } | Phase::Ended { .. })
    }

    /// By when it is to have got on.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Building { until } | Phase::Opening { until } => Some(until),
            Phase::Draining { until } | Phase::Ended { until } => Some(until),
            Phase::Serving => None,
        }
    }

    /// How often to look after its calls into modules.
    pub(super) fn look_interval(&self) -> Duration {
        self.watchdog.interval()
    }

    /// Looks after its calls into modules.
    pub(super) fn look(&mut self, now: Instant) -> Vec<Finding> {
        let pid = self.pid();
        self.watchdog.look(now, &self.board.look(), |tid| thread_sample(pid, tid))
    }

    /// Where it is inside a module right now, if anywhere: for one that is not ready in time.
    pub(super) fn inside(&self) -> Option<Blame> {
        self.board.look().into_iter().find_map(|seen| seen.crumb).and_then(|crumb| self.blame(crumb))
    }

    /// Where it is inside a module with something that no request waits for, if anywhere.
    pub(super) fn inside_for_long(&self) -> Option<Blame> {
        let crumbs = self.board.look().into_iter().filter_map(|seen| seen.crumb);
        crumbs.filter(|crumb| crumb.kind == Kind::Long).find_map(|crumb| self.blame(crumb))
    }

    /// Whether every thread that serves hangs.
    pub(super) fn do_all_hang(&self) -> bool {
        self.watchdog.n_hanging(self.bundle.config.threads) >= self.bundle.config.threads
    }

    /// Whether a thread of it hangs while, as far as it last said, nothing is on its way to a server: what is may be another
    /// thread's, and end. What hangs does so before there is a server to go to, most often.
    pub(super) fn has_only_what_hangs(&self) -> bool {
        let hangs = self.watchdog.n_hanging(self.bundle.config.threads) > 0;
        hangs && self.report.is_draining && self.report.in_flight.is_empty()
    }

    /// A crumb is what a process wrote into shared memory that a module may have run wild in: it may be anything.
    pub(super) fn blame(&self, crumb: Crumb) -> Option<Blame> {
        self.copies.get(crumb.module)?;
        let is_there = |cluster: &usize| *cluster < self.bundle.config.clusters.len();
        Some(Blame { module: crumb.module, cluster: crumb.cluster.filter(is_there) })
    }

    /// `module "greedy" 1.0.0, cluster "api"`.
    pub(super) fn describe(&self, blame: Blame) -> String {
        let mut text = format!("module \"{}\"", self.bundle.config.modules[blame.module].id);
        if let Some(Some(says)) = self.says.get(blame.module) {
            text += &format!(" {}", says.version);
        }
        if let Some(cluster) = blame.cluster {
            text += &format!(", cluster \"{}\"", self.bundle.config.clusters[cluster].name);
        }
        text
    }

    /// How its process ended, if it has.
    pub(super) fn end(&mut self) -> Option<End> {
        let status = match self.child.try_wait() {
            Ok(Some(status)) => status,
            Ok(None) => return None,
            Err(error) => {
                let text = format!("its end cannot be waited for: {error}");
                return Some(End::Death { text, blame: None });
            }
        };
        // The board may hold what a module wrote there: it counts where it fits the end.
        let fatal = self.board.fatal().filter(|fatal| match fatal.by {
            By::Signal(signal) => status.signal() == Some(signal),
            By::Exit => status.code().is_some(),
        });
        let blame = fatal.and_then(|fatal| fatal.crumb).and_then(|crumb| self.blame(crumb));
        if matches!(self.phase, Phase::Ended { .. }) && blame.is_none() {
            return Some(End::Orderly);
        }
        // A SIGKILL, which leaves no record, is the kernel's for want of memory, or an operator's: no module's, whatever one
        // was doing.
        let mut text = died_by(status);
        if let Some(blame) = blame {
            text += &format!(" while inside {}", self.describe(blame));
        }
        Some(End::Death { text, blame })
    }
}

impl Drop for Generation {
    /// A worker whose supervisor ends early has nothing to work for.
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.kill();
            let _ = self.child.wait();
        }
    }
}

fn died_by(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("died by {}", signal_name(signal)),
        (None, Some(code)) => format!("ended by itself with exit code {code}"),
        (None, None) => "ended somehow".to_owned(),
    }
}

fn signal_name(signal: i32) -> String {
    let known = nix::sys::signal::Signal::try_from(signal);
    known.map_or_else(|_| format!("signal {signal}"), |signal| signal.as_str().to_owned())
}
