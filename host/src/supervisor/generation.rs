//! One worker as its supervisor sees it: a process, a channel, a board, and what it said last.

use std::collections::VecDeque;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::allowance::Allowance;
use super::bundle::Bundle;
use super::pulse::{self, Pulse, Verdict};
use super::watchdog::{Finding, Limits, Watchdog, thread_sample};
use super::{DRAIN_GRACE, Reason};
use crate::module::board::{Board, CallKind, Crumb, FatalCause};
use crate::process::channel::message::{Load, ModuleCopy, ModuleSays, Report, ToSupervisor, ToWorker};
use crate::process::channel::{self, Received, Receiver, Sender};
use crate::worker::process::FURTHER_PLACES;

/// Calls outside of requests may take so many times as long as those that a request waits for, and
const LONG_FACTOR: u32 = 10;
/// this long at least.
const LONG_LEAST: Duration = Duration::from_secs(10);

/// Between a worker's last word and the end of its process.
const END_TIMEOUT: Duration = Duration::from_secs(2);

/// Messages of a worker that are read before others have their turn, and bytes of them.
const MESSAGES_A_TURN: usize = 64;
const BYTES_A_TURN: u64 = 64 << 20;
/// Orders that wait for a worker to take them. Operators give them; more are lost on a worker that takes none.
const MOST_ORDERS: usize = 1000;

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
    /// What it has on its way, as last said; none before it has said so.
    pub(super) load: Option<Load>,
    /// As it last said together with its load.
    is_draining: bool,
    /// What it was last told of the load of others.
    pub(super) told_elsewhere: Load,
    /// It was asked to tell its load.
    tells_load: bool,
    /// Why another one is to take its place.
    condemned: Option<Condemned>,
    /// Its supervisor does not listen to it any more.
    is_unheard: bool,
    /// What it did not take yet, with descriptors of its own.
    orders: VecDeque<(ToWorker, Vec<OwnedFd>)>,
    child: Child,
    process: OwnedFd,
    to: Option<Sender<ToWorker>>,
    from: Option<Receiver<ToSupervisor>>,
    allowance: Allowance,
    board: Board,
    watchdog: Watchdog,
    pulse: Pulse,
}

/// Why another generation is to take the place of one.
struct Condemned {
    why: String,
    is_for_good: bool,
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
        oom_score_adj: Option<i32>,
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
            .env_clear()
            .envs(environment(env::vars_os(), &bundle.config.pass_environment))
            .stdin(Stdio::from(there))
            .spawn()?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).inspect_err(|_| {
            // Nobody would hear of its end.
            let _ = child.kill().and_then(|()| child.wait());
        })?;
        if let Some(value) = oom_score_adj {
            // Where memory runs out, a worker can be replaced. To be killed sooner needs no right.
            let _ = fs::write(format!("/proc/{}/oom_score_adj", child.id()), value.to_string());
        }
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
            load: None,
            is_draining: false,
            told_elsewhere: Load::default(),
            tells_load: false,
            condemned: None,
            is_unheard: false,
            orders: VecDeque::new(),
            child,
            process,
            to: Some(to),
            from: Some(from),
            allowance: Allowance::new(started),
            board,
            watchdog: Watchdog::new(limits),
            pulse: Pulse::default(),
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

    /// What to wait for: words, its end, and that it takes what it was not told yet.
    pub(super) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let end = Some((self.process.as_fd(), PollFlags::IN));
        let words = self.from.as_ref().map(|from| (from.as_fd(), PollFlags::IN));
        let to = self.to.as_ref().filter(|_| !self.orders.is_empty());
        let room = to.map(|to| (to.as_fd(), PollFlags::OUT));
        [end, words, room].into_iter().flatten()
    }

    /// Tells it something. One that takes nothing now is told later; nobody waits for it.
    pub(super) fn tell(&mut self, message: ToWorker, descriptors: &[BorrowedFd<'_>]) {
        let sent = if self.orders.is_empty() { self.order(&message, descriptors) } else { Err(again()) };
        let Err(error) = sent else { return };
        let is_full = error.kind() == io::ErrorKind::WouldBlock && self.orders.len() < MOST_ORDERS;
        let own: io::Result<Vec<_>> = descriptors.iter().map(BorrowedFd::try_clone_to_owned).collect();
        match own {
            Ok(own) if is_full => self.orders.push_back((message, own)),
            _ => tracing::debug!(generation = self.number, "the worker cannot be told: {error}"),
        }
    }

    /// Tells it what it did not take before, as far as it does now.
    pub(super) fn tell_on(&mut self) {
        while let Some((message, descriptors)) = self.orders.front() {
            let descriptors: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
            match self.order(message, &descriptors) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // What it cannot be told, and why, shows elsewhere.
                Ok(()) | Err(_) => drop(self.orders.pop_front()),
            }
        }
    }

    /// Tells it something, or says why not.
    pub(super) fn order(&self, message: &ToWorker, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.to.as_ref().map_or(Ok(()), |to| to.send(message, descriptors))
    }

    /// Has it tell its load from now on, or no longer.
    pub(super) fn ask_for_load(&mut self, tells: bool) {
        if self.tells_load != tells {
            self.tells_load = tells;
            self.load = None;
            self.tell(ToWorker::TellLoad(tells), &[]);
        }
    }

    /// Takes in its load.
    pub(super) fn told_load(&mut self, load: Load, is_draining: bool) {
        self.is_draining = is_draining;
        // What it said before it heard that nobody asks any more is out of date when somebody does again.
        self.load = Some(load).filter(|_| self.tells_load);
    }

    /// Has another one take its place. True where nothing was to before. `is_for_good` says that no recovery is possible.
    pub(super) fn condemn(&mut self, why: &str, is_for_good: bool) -> bool {
        let is_first = self.condemned.is_none();
        if self.condemned.as_ref().is_none_or(|condemned| !condemned.is_for_good) {
            self.condemned = Some(Condemned { why: why.to_owned(), is_for_good });
        }
        is_first
    }

    /// It goes on, if it can.
    pub(super) fn recovers(&mut self) {
        self.condemned.take_if(|condemned| !condemned.is_for_good);
    }

    /// Why another one is to take its place, if one is.
    pub(super) fn condemned(&self) -> Option<&str> {
        self.condemned.as_ref().map(|condemned| condemned.why.as_str())
    }

    /// Its threads that are stuck outside of modules, by their place on the board, and in which state.
    pub(super) fn stuck(&self) -> Vec<(usize, char)> {
        self.pulse.stuck()
    }

    /// The next that it has said, if it has said more and the turn is not over.
    ///
    /// # Errors
    /// What it says cannot be read, or is too much: in words that follow its name. It is not listened to any more.
    pub(super) fn hear(&mut self, turn: &mut Turn) -> Result<Option<ToSupervisor>, String> {
        loop {
            if turn.n_messages == 0 || turn.n_bytes == 0 {
                return Ok(None);
            }
            let Some(from) = &mut self.from else { return Ok(None) };
            turn.n_messages -= 1;
            let now = Instant::now();
            let allowed = match from.receive() {
                Ok(Received::Message(message, _)) => {
                    turn.n_bytes = turn.n_bytes.saturating_sub(from.n_bytes());
                    match self.allowance.take(message.kind(), from.n_bytes(), now) {
                        Ok(()) => return Ok(Some(message)),
                        Err(why) => Err(why),
                    }
                }
                Ok(Received::Part) => self.allowance.take_part(now),
                Ok(Received::Nothing) => return Ok(None),
                // Its process's end is what tells.
                Ok(Received::End) => {
                    self.from = None;
                    return Ok(None);
                }
                Err(error) => Err(format!("says what cannot be read ({error})")),
            };
            if let Err(why) = allowed {
                self.is_unheard = true;
                if let Some(from) = self.from.take() {
                    from.close();
                }
                return Err(why);
            }
        }
    }

    /// It has said its last word. The end of the connection is what it waits for now.
    pub(super) fn has_ended(&mut self) {
        self.phase = Phase::Ended { until: Instant::now() + END_TIMEOUT };
        self.from = None;
        self.to = None;
        self.orders.clear();
    }

    /// Nothing more is expected of it.
    pub(super) fn give_up(&mut self) {
        self.kill();
        self.load = None;
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

    /// Whether requests may be on their way in it.
    pub(super) fn runs(&self) -> bool {
        matches!(self.phase, Phase::Opening { .. } | Phase::Serving | Phase::Draining { .. })
    }

    /// What is left of its drain's time.
    pub(super) fn drain_left(&self, now: Instant) -> Option<Duration> {
        match self.phase {
            Phase::Draining { until } => {
                Some(until.saturating_duration_since(now).saturating_sub(DRAIN_GRACE))
            }
            _ => None,
        }
    }

    /// By when it is to have got on.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Building { until } | Phase::Opening { until } => Some(until),
            Phase::Draining { until } | Phase::Ended { until } => Some(until),
            Phase::Serving => None,
        }
    }

    /// How often to look at what its threads do.
    pub(super) fn look_interval(&self) -> Duration {
        self.watchdog.interval().min(pulse::LOOK_EVERY)
    }

    /// Looks at what its threads do: after its calls into modules, and for threads that do not get on outside of them, by
    /// their place on the board.
    pub(super) fn look(&mut self, now: Instant) -> (Vec<Finding>, Vec<(usize, Verdict)>) {
        let (pid, seen) = (self.pid(), self.board.look());
        let findings = if self.watchdog.is_due(now) {
            self.watchdog.look(now, &seen, |tid| thread_sample(pid, tid))
        } else {
            Vec::new()
        };
        // Those that serve, and the background.
        let n_places = self.bundle.config.threads + 1;
        (findings, self.pulse.look(now, &seen, n_places, |tid| thread_sample(pid, tid)))
    }

    /// What a thread is called, by its place on the board.
    pub(super) fn thread_name(&self, place: usize) -> String {
        if place < self.bundle.config.threads { format!("worker-{place}") } else { "background".to_owned() }
    }

    /// Where it is inside a module right now, if anywhere: for one that is not ready in time.
    pub(super) fn inside(&self) -> Option<Blame> {
        self.board.look().into_iter().find_map(|seen| seen.crumb).and_then(|crumb| self.blame(crumb))
    }

    /// Where it is inside a module with something that no request waits for, if anywhere.
    pub(super) fn inside_for_long(&self) -> Option<Blame> {
        let crumbs = self.board.look().into_iter().filter_map(|seen| seen.crumb);
        crumbs.filter(|crumb| crumb.kind == CallKind::Long).find_map(|crumb| self.blame(crumb))
    }

    /// Whether every thread that serves hangs.
    pub(super) fn do_all_hang(&self) -> bool {
        self.watchdog.n_hanging(self.bundle.config.threads) >= self.bundle.config.threads
    }

    /// Whether a thread of it hangs while, as far as it last said, nothing is on its way to a server: what is may be another
    /// thread's, and end. What hangs does so before there is a server to go to, most often.
    pub(super) fn has_only_what_hangs(&self) -> bool {
        let hangs = self.watchdog.n_hanging(self.bundle.config.threads) > 0;
        hangs && self.is_draining && self.load.as_ref().is_some_and(|load| load.endpoints.is_empty())
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
            FatalCause::Signal(signal) => status.signal() == Some(signal),
            FatalCause::Exit => status.code().is_some(),
        });
        let blame = fatal.and_then(|fatal| fatal.crumb).and_then(|crumb| self.blame(crumb));
        // One that is not listened to cannot say that it has ended.
        let is_done = self.is_unheard && self.is_leaving() && status.success();
        if (matches!(self.phase, Phase::Ended { .. }) || is_done) && blame.is_none() {
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

/// How much of what a worker says is left to be read before others have their turn.
pub(super) struct Turn {
    n_messages: usize,
    n_bytes: u64,
}

impl Turn {
    /// All that there is, as far as its allowance goes.
    pub(super) const WHOLE: Self = Self { n_messages: usize::MAX, n_bytes: u64::MAX };
}

impl Default for Turn {
    fn default() -> Self {
        Self { n_messages: MESSAGES_A_TURN, n_bytes: BYTES_A_TURN }
    }
}

fn again() -> io::Error {
    io::ErrorKind::WouldBlock.into()
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

/// What workers get of the environment: code of modules runs there, and what the supervisor was started with may hold
/// secrets. These are names that the system's libraries and this program look at, and those that are configured.
fn environment(
    all: impl Iterator<Item = (OsString, OsString)>,
    configured: &[Box<str>],
) -> impl Iterator<Item = (OsString, OsString)> {
    let is_passed = |name: &OsString| {
        let name = name.as_encoded_bytes();
        PASSED.iter().any(|passed| passed.as_bytes() == name)
            || PASSED_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning.as_bytes()))
            || configured.iter().any(|passed| passed.as_bytes() == name)
    };
    all.filter(move |(name, _)| is_passed(name))
}

/// - `PATH`, `HOME`, `USER`, `LOGNAME`, `LANG`, `TZ`: as for any program.
/// - `TMPDIR`, `RUNTIME_DIRECTORY`, `XDG_RUNTIME_DIR`: where private copies of modules go.
/// - `SSL_CERT_*`: the issuers that the system trusts.
/// - `NO_COLOR`, `TERM`, `RUST_*`: how the log and backtraces look.
/// - `LOCALDOMAIN`, `RES_OPTIONS`: how names are looked up.
const PASSED: [&str; 18] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LANGUAGE",
    "TZ",
    "TMPDIR",
    "RUNTIME_DIRECTORY",
    "XDG_RUNTIME_DIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NO_COLOR",
    "TERM",
    "RUST_BACKTRACE",
    "RUST_LIB_BACKTRACE",
    "LOCALDOMAIN",
    "RES_OPTIONS",
];
/// `LC_*`, and how the dynamic linker and the allocators work: `LD_*`, `GLIBC_TUNABLES`, `MALLOC_*`, `MIMALLOC_*`; sanitizers
/// and coverage: `ASAN_OPTIONS` and the like, `LLVM_PROFILE_FILE`.
const PASSED_BEGINNINGS: [&str; 10] =
    ["LC_", "LD_", "GLIBC_", "MALLOC_", "MIMALLOC_", "ASAN_", "LSAN_", "TSAN_", "UBSAN_", "LLVM_PROFILE_"];

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_get_what_they_need_of_the_environment_and_what_is_configured() {
        let all = [
            "TZ",
            "LC_ALL",
            "LD_LIBRARY_PATH",
            "AWS_SECRET_ACCESS_KEY",
            "LISTEN_FDS",
            "NOTIFY_SOCKET",
            "MINE",
            "MINE2",
        ];
        let all = all.map(|name| (name.into(), "value".into()));
        let passed: Vec<_> = environment(all.into_iter(), &["MINE".into()])
            .map(|(name, _)| name.into_string().unwrap())
            .collect();
        assert_eq!(passed, ["TZ", "LC_ALL", "LD_LIBRARY_PATH", "MINE"]);
    }
}
