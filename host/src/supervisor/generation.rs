//! One worker as its supervisor sees it: a process, a channel, a board, and what it said last.

use std::collections::{BTreeSet, VecDeque};
use std::env;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::allowance::Allowance;
use super::bundle::Bundle;
use super::environment::environment;
use super::pulse::{self, Pulse, PulseVerdict};
use super::watchdog::{CallLimits, Finding, Watchdog, sample_of_known};
use super::{DRAIN_GRACE, StartReason};
use crate::cluster::membership::ServerAct;
use crate::config::Config;
use crate::module::board::Board;
use crate::observe::events::Numbered;
use crate::observe::status::{SourceStatus, Status};
use crate::process::channel::message::{Load, ModuleCopy, ModuleSays, ToSupervisor, ToWorker, WorkerReport};
use crate::process::channel::{self, Received, Receiver, Sender};
use crate::process::sandbox::Confinement;
use crate::worker::process::{FIRST_BUILDER, n_places};

/// Calls outside of requests may take so many times as long as those that a request waits for, and
const LONG_FACTOR: u32 = 10;
/// this long at least.
const LONG_LEAST: Duration = Duration::from_secs(10);

/// Between a worker's last message and the end of its process.
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
    pub(super) reason: StartReason,
    pub(super) phase: GenerationPhase,
    pub(super) started: Instant,
    /// When it began to serve.
    pub(super) ready: Option<Instant>,
    /// Its modules as it was given them.
    pub(super) copies: Vec<ModuleCopy>,
    /// ID and version of the modules that it opened.
    pub(super) says: Vec<Option<ModuleSays>>,
    /// How it has confined itself, once it has.
    pub(super) confinement: Option<Confinement>,
    pub(super) report: WorkerReport,
    /// Its requests in flight, as last reported.
    pub(super) load: Option<Load>,
    /// As it last said together with its load.
    pub(super) is_draining: bool,
    /// The load of others, as last sent to it.
    pub(super) told_elsewhere: Load,
    /// Number of the change of servers that it was started with.
    pub(super) started_with: u64,
    /// How many servers were added so far, each of which it may report on.
    pub(super) n_added: usize,
    /// Numbers of the sources of servers that its configuration has, in its order.
    pub(super) sources: Vec<u64>,
    /// Number of the newest event that it was told of.
    told_events: u64,
    /// It was asked to tell its load.
    tells_load: bool,
    /// Why another one is to take its place.
    condemned: Option<Condemned>,
    /// Its supervisor does not listen to it any more.
    pub(super) is_unheard: bool,
    /// Its supervisor has killed it.
    pub(super) is_given_up: bool,
    /// Orders that it did not take yet, with their descriptors.
    orders: VecDeque<(ToWorker, Vec<OwnedFd>)>,
    owed: OwedAnswers,
    pub(super) child: Child,
    process: OwnedFd,
    to: Option<Sender<ToWorker>>,
    from: Option<Receiver<ToSupervisor>>,
    allowance: Allowance,
    /// A message of it was ignored; said once.
    has_sent_nonsense: bool,
    pub(super) board: Board,
    pub(super) watchdog: Watchdog,
    pulse: Pulse,
}

/// Why another generation is to take the place of one.
struct Condemned {
    why: String,
    is_for_good: bool,
}

/// The phase of a generation's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GenerationPhase {
    /// It opens modules and builds balancers.
    Building { until: Instant },
    /// It has its sockets.
    Opening { until: Instant },
    /// It gets the new connections.
    Serving,
    /// It finishes what runs.
    Draining { until: Instant },
    /// It has sent its last message, and its process is about to end.
    Ended { until: Instant },
}

impl Generation {
    /// Starts a process for it, which waits to be told what to run.
    pub(super) fn spawn(
        number: u64,
        bundle: Arc<Bundle>,
        copies: Vec<ModuleCopy>,
        reason: StartReason,
        log_level: &str,
        oom_score_adj: Option<i32>,
    ) -> io::Result<Self> {
        let limit = bundle.config.supervision.module_time_limit;
        let limits = CallLimits { call: limit, long: (limit * LONG_FACTOR).max(LONG_LEAST) };
        let board = Board::create(n_places(bundle.config.threads))?;
        let (here, there) = channel::pair()?;
        channel::set_nonblocking(&here)?;
        let mut child = start_process("worker", &bundle.config, log_level, there)?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).inspect_err(|_| {
            // Without a descriptor its end would go unnoticed.
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
            phase: GenerationPhase::Building { until: started + bundle.config.supervision.start_timeout },
            started,
            ready: None,
            says: Vec::new(),
            confinement: None,
            report: WorkerReport::default(),
            load: None,
            is_draining: false,
            told_elsewhere: Load::default(),
            started_with: 0,
            n_added: 0,
            sources: Vec::new(),
            told_events: 0,
            tells_load: false,
            condemned: None,
            is_unheard: false,
            is_given_up: false,
            orders: VecDeque::new(),
            owed: OwedAnswers::default(),
            child,
            process,
            to: Some(to),
            from: Some(from),
            allowance: Allowance::new(&bundle.scope, started),
            has_sent_nonsense: false,
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

    /// Descriptors to poll: for messages, for its end, and for room to send pending orders.
    pub(super) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let end = Some((self.process.as_fd(), PollFlags::IN));
        let words = self.from.as_ref().map(|from| (from.as_fd(), PollFlags::IN));
        let to = self.to.as_ref().filter(|_| !self.orders.is_empty() || self.owed.awaits_room);
        let room = to.map(|to| (to.as_fd(), PollFlags::OUT));
        [end, words, room].into_iter().flatten()
    }

    /// Sends an order now, or later if it takes nothing now. Never waits.
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

    /// So many servers may be in its reports besides those of its configuration.
    pub(super) fn expect_added(&mut self, n_added: usize) {
        self.n_added = n_added;
        self.allowance.expect_added(&self.bundle.scope, n_added);
    }

    /// Sends what operators changed of servers, in place of what it did not take yet. Returns the number of that.
    pub(super) fn tell_acts(&mut self, number: u64, acts: Vec<ServerAct>, n_added: usize) -> Option<u64> {
        self.expect_added(n_added);
        let mut replaced = None;
        self.orders.retain(|(order, _)| match order {
            ToWorker::Acts { number, .. } => {
                replaced = Some(*number);
                false
            }
            _ => true,
        });
        self.allowance.ask_for_applied();
        self.tell(ToWorker::Acts { number, acts }, &[]);
        replaced
    }

    /// A source has an answer that it is to get.
    pub(super) fn owe_answer(&mut self, source: u64) {
        if self.sources.contains(&source) && !matches!(self.phase, GenerationPhase::Ended { .. }) {
            self.owed.sources.insert(source);
        }
    }

    /// It could not open what was sent.
    pub(super) fn has_lost(&mut self) {
        self.owed.are_lost = true;
    }

    /// Owes it all answers again, if it has lost anything. True if it did.
    pub(super) fn owe_lost(&mut self) -> bool {
        let are_lost = std::mem::take(&mut self.owed.are_lost);
        if are_lost {
            self.owed.sources.extend(&self.sources);
        }
        are_lost
    }

    /// Sends the newest answers that it did not get yet, as far as it takes them now. `newest` has the number and the memory of a
    /// source's.
    pub(super) fn tell_answers<'a>(&mut self, newest: impl Fn(u64) -> Option<(u64, BorrowedFd<'a>)>) {
        // Those orders came first.
        if !self.orders.is_empty() {
            return;
        }
        let mut owed = std::mem::take(&mut self.owed);
        owed.pay(|source| {
            let Some((number, memory)) = newest(source) else { return Ok(()) };
            self.order(&ToWorker::Answer { source, number }, &[memory])
        });
        self.owed = owed;
    }

    /// Sends how the sources of servers are, in place of what it did not take yet.
    pub(super) fn tell_sources(&mut self, sources: Vec<SourceStatus>) {
        self.orders.retain(|(order, _)| !matches!(order, ToWorker::Sources(_)));
        self.tell(ToWorker::Sources(sources), &[]);
    }

    /// Sends pending orders, as far as it takes them now.
    pub(super) fn tell_on(&mut self) {
        while let Some((message, descriptors)) = self.orders.front() {
            let descriptors: Vec<_> = descriptors.iter().map(OwnedFd::as_fd).collect();
            match self.order(message, &descriptors) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // If the channel is broken, its end is noticed elsewhere.
                Ok(()) | Err(_) => drop(self.orders.pop_front()),
            }
        }
    }

    /// Sends an order.
    pub(super) fn order(&self, message: &ToWorker, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.to.as_ref().map_or(Ok(()), |to| to.send(message, descriptors))
    }

    /// Tells it of events that it has not heard of; later, if it has not taken those before.
    pub(super) fn tell_events(&mut self, events: &Numbered) {
        let is_busy = self.orders.iter().any(|(order, _)| matches!(order, ToWorker::Events(_)));
        if events.newest() > self.told_events && !is_busy {
            let new = events.after(self.told_events);
            self.told_events = events.newest();
            if !new.is_empty() {
                self.tell(ToWorker::Events(new), &[]);
            }
        }
    }

    /// Tells it how everything is, in place of what it did not take yet.
    pub(super) fn tell_status(&mut self, status: Status) {
        self.orders.retain(|(order, _)| !matches!(order, ToWorker::Status(_)));
        self.tell(ToWorker::Status(Box::new(status)), &[]);
    }

    /// Asks how it is; only the cluster of this name, if one is given.
    pub(super) fn ask_for_state(&mut self, number: u64, cluster: Option<String>) {
        self.allowance.ask_for_state();
        self.tell(ToWorker::TellState { number, cluster }, &[]);
    }

    /// Asks for what it has learned.
    pub(super) fn ask_for_save(&mut self) {
        self.allowance.ask_for_save();
        self.tell(ToWorker::Save, &[]);
    }

    /// Ignores a message; what is wrong with it is logged the first time.
    pub(super) fn ignore(&mut self, what: &str) {
        if !std::mem::replace(&mut self.has_sent_nonsense, true) {
            let (number, pid) = (self.number, self.pid());
            tracing::error!("generation {number}: ignored what its worker (pid {pid}) reports: {what}");
        }
    }

    /// Switches its reports of load on or off.
    pub(super) fn ask_for_load(&mut self, tells: bool) {
        if self.tells_load != tells {
            self.tells_load = tells;
            self.load = None;
            self.tell(ToWorker::TellLoad(tells), &[]);
        }
    }

    /// Has it report its load at once, where it reports at all, instead of at its next turn.
    pub(super) fn ask_for_load_now(&mut self) {
        if self.tells_load {
            self.tell(ToWorker::TellLoad(true), &[]);
        }
    }

    /// Stores its load.
    pub(super) fn told_load(&mut self, load: Load, is_draining: bool) {
        self.is_draining = is_draining;
        // A late report, from before it was switched off, is out of date.
        self.load = Some(load).filter(|_| self.tells_load);
    }

    /// Marks it to be replaced. True if it was not marked before. With `is_for_good` it cannot recover.
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
    /// An invalid message, or too many; in words that follow its name. It is ignored from now on.
    pub(super) fn hear(&mut self, turn: &mut HearingTurn) -> Result<Option<ToSupervisor>, String> {
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
                    match self.allowance.take(&message, from.n_bytes(), now) {
                        Ok(()) => return Ok(Some(message)),
                        Err(why) => Err(why),
                    }
                }
                // Only the memory of a long message comes by descriptor: a report, of which there will be others.
                Ok(Received::Part | Received::Lost) => self.allowance.take_part(now),
                Ok(Received::Nothing) => return Ok(None),
                // Its process's end is what tells.
                Ok(Received::End) => {
                    self.from = None;
                    return Ok(None);
                }
                Err(error) => Err(format!("sends invalid messages ({error})")),
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

    /// It has sent its last message, and waits for the end of the connection.
    pub(super) fn has_ended(&mut self) {
        self.phase = GenerationPhase::Ended { until: Instant::now() + END_TIMEOUT };
        self.from = None;
        self.to = None;
        self.orders.clear();
        self.owed = OwedAnswers::default();
    }

    /// Kills it; nothing more is expected.
    pub(super) fn give_up(&mut self) {
        self.kill();
        self.is_given_up = true;
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
        matches!(self.phase, GenerationPhase::Draining { .. } | GenerationPhase::Ended { .. })
    }

    /// Whether requests may be on their way in it.
    pub(super) fn runs(&self) -> bool {
        matches!(
            self.phase,
            GenerationPhase::Opening { .. } | GenerationPhase::Serving | GenerationPhase::Draining { .. }
        )
    }

    /// The time left to drain.
    pub(super) fn drain_left(&self, now: Instant) -> Option<Duration> {
        match self.phase {
            GenerationPhase::Draining { until } => {
                Some(until.saturating_duration_since(now).saturating_sub(DRAIN_GRACE))
            }
            _ => None,
        }
    }

    /// Its next deadline.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.phase {
            GenerationPhase::Building { until } | GenerationPhase::Opening { until } => Some(until),
            GenerationPhase::Draining { until } | GenerationPhase::Ended { until } => Some(until),
            GenerationPhase::Serving => None,
        }
    }

    /// How often to look at what its threads do.
    pub(super) fn look_interval(&self) -> Duration {
        self.watchdog.interval().min(pulse::LOOK_EVERY)
    }

    /// Looks at what its threads do: after its calls into modules, and for threads that do not get on outside of them, by
    /// their place on the board.
    pub(super) fn look(&mut self, now: Instant) -> (Vec<Finding>, Vec<(usize, PulseVerdict)>) {
        let (pid, seen) = (self.pid(), self.board.look());
        let findings = if self.watchdog.is_due(now) {
            self.watchdog.look(now, &seen, |tid| sample_of_known(pid, tid))
        } else {
            Vec::new()
        };
        // The serving threads, and the background.
        let n_places = self.bundle.config.threads + 1;
        (findings, self.pulse.look(now, &seen, n_places, |tid| sample_of_known(pid, tid)))
    }

    /// A thread's name, by its place on the board.
    pub(super) fn thread_name(&self, place: usize) -> String {
        match place.checked_sub(self.bundle.config.threads) {
            None => format!("worker-{place}"),
            Some(0) => "background".to_owned(),
            Some(1) => "main".to_owned(),
            Some(2) => "saver".to_owned(),
            Some(n) => format!("builder-{}", n - FIRST_BUILDER),
        }
    }
}

/// Sources whose newest answer a worker did not get yet. The answer itself is not kept here, so that none is lost where many orders
/// wait, and that a worker which is busy gets the newest one only.
#[derive(Default)]
struct OwedAnswers {
    sources: BTreeSet<u64>,
    /// It has lost something; nobody knows what.
    are_lost: bool,
    /// The socket was full.
    awaits_room: bool,
}

impl OwedAnswers {
    /// Sends them until that fails; the rest, with the one that failed, is sent later.
    fn pay(&mut self, mut send: impl FnMut(u64) -> io::Result<()>) {
        self.awaits_room = false;
        while let Some(source) = self.sources.first() {
            match send(*source) {
                Ok(()) => drop(self.sources.pop_first()),
                Err(error) => return self.awaits_room = error.kind() == io::ErrorKind::WouldBlock,
            }
        }
    }
}

/// How much of what a worker says is left to be read before others have their turn.
pub(super) struct HearingTurn {
    n_messages: usize,
    n_bytes: u64,
}

impl HearingTurn {
    /// All that there is, as far as its allowance goes.
    pub(super) const WHOLE: Self = Self { n_messages: usize::MAX, n_bytes: u64::MAX };
}

impl Default for HearingTurn {
    fn default() -> Self {
        Self { n_messages: MESSAGES_A_TURN, n_bytes: BYTES_A_TURN }
    }
}

/// Starts a process of this program, a worker say, whose standard input is this end of the channel.
pub(super) fn start_process(
    command: &str,
    config: &Config,
    log_level: &str,
    channel: OwnedFd,
) -> io::Result<Child> {
    Command::new("/proc/self/exe")
        .arg0("trylist")
        .args([command, "--log-level", log_level])
        // A terminal's signals are the supervisor's to understand.
        .process_group(0)
        .env_clear()
        .envs(environment(env::vars_os(), &config.pass_environment))
        .stdin(Stdio::from(channel))
        .spawn()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_a_worker_cannot_be_sent_is_owed_until_it_can() {
        let mut owed = OwedAnswers::default();
        owed.sources.extend([3, 1, 2]);
        let mut sent = Vec::new();
        let mut pay = |owed: &mut OwedAnswers, failing: u64, kind: io::ErrorKind| {
            owed.pay(|source| {
                if source == failing {
                    return Err(kind.into());
                }
                sent.push(source);
                Ok(())
            });
        };
        pay(&mut owed, 2, io::ErrorKind::WouldBlock);
        assert!(owed.awaits_room);
        // Out of descriptors: room in the socket is no reason to try again.
        pay(&mut owed, 2, io::ErrorKind::Other);
        assert!(!owed.awaits_room);
        owed.sources.insert(1);
        pay(&mut owed, 0, io::ErrorKind::Other);
        assert_eq!((sent, owed.sources.len()), (vec![1, 1, 2, 3], 0));
    }
}
