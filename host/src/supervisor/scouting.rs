//! The scout as its supervisor sees it, and the newest answer of each source.
//!
//! ```text
//! configurations ─ sources ─► scout ─ answer, in sealed memory ─► kept, unread ─► every generation that has the source
//!                               └ dies: another one is started, with the last answers; nothing else changes
//! ```
//!
//! A source has a number, which it keeps over reloads as long as its configuration says the same of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::Supervisor;
use super::bundle::Bundle;
use super::commands::ClientId;
use super::generation::{Generation, start_process};
use super::quarantine::{self, Backoff};
use super::state_folder::StateFolder;
use crate::config::{Config, SourceKind, SourceSpec};
use crate::discovery::answer::{MOST_MEMBERS, MOST_SEALED_BYTES};
use crate::discovery::follow::SourceReport;
use crate::os::log::LogTarget;
use crate::process::channel::scouting::{FromScout, ScoutSetup, ToScout};
use crate::process::channel::{self, Received, Receiver, Sender};
use crate::process::control::{Refused, SourceStatus};

/// How often workers are told how sources are, at most.
const TELL_EVERY: Duration = Duration::from_secs(1);
/// For a scout that is to end.
const END_TIMEOUT: Duration = Duration::from_secs(1);
/// The end of the supervisor waits for no longer than twice this for a scout to end.
const LAST_TIMEOUT: Timespec = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
/// Messages of the scout that are read before others have their turn.
const MESSAGES_A_TURN: usize = 64;

/// All sources of all generations, and the process that asks them.
#[derive(Default)]
pub(super) struct Scouting {
    scout: Option<ScoutProcess>,
    /// Processes that were told to end.
    ending: Vec<ScoutProcess>,
    /// The files whose sources are asked: the scout has the rights that they say.
    bundle: Option<Arc<Bundle>>,
    /// Where the scout keeps the last answers, and operators' acts.
    state: Option<StateFolder>,
    sources: Vec<KnownSource>,
    n_sources: u64,
    n_answers: u64,
    backoff: Backoff,
    /// When a scout is to be started; not before another one has given the files of `state` back.
    start_at: Option<Instant>,
    /// When workers were told how sources are, and whether anything has changed since.
    told_at: Option<Instant>,
    is_new: bool,
    /// Operators who wait until a source obeys what it held back.
    asked: Vec<(ClientId, u64)>,
}

/// A source that a generation has.
struct KnownSource {
    number: u64,
    spec: SourceSpec,
    newest: Option<NewestAnswer>,
    /// As it said last; nothing before it was asked.
    report: Option<SourceReport>,
    /// The most servers that it has named.
    most_members: usize,
}

/// The newest answer of a source. The supervisor does not read it.
struct NewestAnswer {
    number: u64,
    n_members: u32,
    memory: Arc<OwnedFd>,
    at: Instant,
}

/// The process.
struct ScoutProcess {
    setup: ScoutSetup,
    /// The files that it was given.
    state: Option<StateFolder>,
    child: Child,
    process: OwnedFd,
    started: Instant,
    /// When it is killed, if it has not ended.
    kill_at: Option<Instant>,
    /// Until it is told to end.
    to: Option<Sender<ToScout>>,
    from: Option<Receiver<FromScout>>,
    /// Orders that it did not take yet.
    orders: Vec<(ToScout, Vec<Arc<OwnedFd>>)>,
}

/// After a crash of a supervisor its scout is killed by the kernel, a moment later, and holds the lock of `state` until then. A
/// start waits for that; a reload does not, since it would keep the supervisor from its work.
const DYING_SCOUT: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Has the sources of a configuration be asked. One without sources and `state` leaves all as it is.
    ///
    /// # Errors
    /// The folder for their last answers cannot be used. Nothing has changed then.
    pub(super) fn scout_for(&mut self, bundle: &Arc<Bundle>) -> Result<(), Refused> {
        if specs(&bundle.config).next().is_none() && bundle.config.state.is_none() {
            return Ok(());
        }
        let state = bundle.config.state.as_deref();
        if state != path_of(&self.scouting.state) {
            let patience = if self.generations.is_empty() { DYING_SCOUT } else { Duration::ZERO };
            let state = state.map(|path| self.scouting.open_state(path, patience)).transpose();
            self.scouting.state = state.map_err(Refused::failed)?;
        }
        self.scout_with(bundle);
        Ok(())
    }

    /// The same for a start that must not fail of it: without that folder, where it cannot be used.
    pub(super) fn scout_anyhow_for(&mut self, bundle: &Arc<Bundle>) {
        if let Err(refused) = self.scout_for(bundle) {
            for line in &refused.lines {
                tracing::error!("{line}; the last answers of sources are not saved");
            }
            self.scouting.state = None;
            self.scout_with(bundle);
        }
    }

    /// The same, with the folder that is open.
    fn scout_with(&mut self, bundle: &Arc<Bundle>) {
        for spec in specs(&bundle.config) {
            self.scouting.follow(spec);
        }
        self.scouting.bundle = Some(Arc::clone(bundle));
        let setup = self.scouting.setup(&bundle.config);
        let is_other = |scout: &ScoutProcess| {
            scout.setup != setup || path_of(&scout.state) != path_of(&self.scouting.state)
        };
        if self.scouting.scout.as_ref().is_some_and(is_other) {
            self.end_scout("another scout is started; ask again");
            tracing::info!("another scout is started: its user, its rights or its log have changed");
        }
        if self.scouting.scout.is_none() {
            self.scouting.start_at = Some(Instant::now());
            self.start_scout_if_due(Instant::now());
        }
    }

    /// A start has failed: the sources of the files that serve are asked, with the rights that those say.
    pub(super) fn scout_as_before(&mut self) {
        self.scout_anyhow_for(&Arc::clone(&self.bundle));
        self.leave_sources();
    }

    /// The sources of a configuration: their numbers, and the newest answers.
    pub(super) fn sources_of(&self, config: &Config) -> Vec<(u64, Option<Arc<OwnedFd>>)> {
        let known = specs(config).filter_map(|spec| self.scouting.sources.iter().find(|s| s.spec == *spec));
        known
            .map(|source| (source.number, source.newest.as_ref().map(|newest| Arc::clone(&newest.memory))))
            .collect()
    }

    /// Whether each source of a configuration has answered, or cannot.
    pub(super) fn have_answered(&self, config: &Config) -> bool {
        let is_new = |spec: &SourceSpec| {
            let source = self.scouting.sources.iter().find(|source| source.spec == *spec);
            source.is_some_and(|source| source.report.is_none())
        };
        !specs(config).any(is_new)
    }

    /// Servers that operators have added and that the sources of a generation have named, so that it may report on them.
    pub(super) fn n_further(&self, sources: &[u64]) -> usize {
        let named = self.scouting.sources.iter().filter(|source| sources.contains(&source.number));
        // Those of before may still be in use.
        let n_named: usize = named.map(|source| 2 * source.most_members).sum();
        self.applying.n_added.saturating_add(n_named)
    }

    /// Reads what the scout says, and sends it what it did not take yet.
    pub(super) fn hear_scout(&mut self) -> Result<(), Refused> {
        for _ in 0..MESSAGES_A_TURN {
            let Some(scout) = &mut self.scouting.scout else { break };
            scout.tell_on();
            let Some(from) = &mut scout.from else { break };
            match from.receive() {
                Ok(Received::Message(message, descriptors)) => {
                    if let Err(why) = self.scout_says(message, descriptors) {
                        self.give_scout_up(&why);
                    }
                }
                Ok(Received::Part) => {}
                // Another one says it again, when its time has come.
                Ok(Received::Lost) => self.give_scout_up("has an answer that no descriptor is left for"),
                Ok(Received::Nothing) => break,
                // Its process's end is what tells.
                Ok(Received::End) => scout.ends_soon(),
                Err(error) => self.give_scout_up(&format!("sends invalid messages ({error})")),
            }
        }
        self.tell_answers();
        self.bury_scout();
        self.scouting.bury_ending();
        self.first_answers_came()
    }

    fn scout_says(&mut self, message: FromScout, descriptors: Vec<OwnedFd>) -> Result<(), String> {
        self.scouting.is_new = true;
        match message {
            FromScout::Answer { source, n_members, report } => {
                let memory = descriptors.into_iter().next().ok_or("sends an answer without its memory")?;
                if n_members as usize > MOST_MEMBERS {
                    return Err(format!(
                        "sends an answer of {n_members} servers, {MOST_MEMBERS} are the most"
                    ));
                }
                channel::check_sealed(&memory, MOST_SEALED_BYTES)
                    .map_err(|error| format!("sends an answer that is none ({error})"))?;
                self.answered(source, n_members, report, memory);
            }
            FromScout::Report { source, report } => {
                if let Some(source) = self.scouting.source(source) {
                    source.report = Some(report);
                }
            }
            FromScout::Accepted { source, n_members } => self.accepted(source, n_members),
            FromScout::ActsKept { number, error } => self.acts_kept(number, error),
        }
        Ok(())
    }

    /// Keeps an answer, and hands it to every generation that has its source.
    fn answered(&mut self, number: u64, n_members: u32, report: SourceReport, memory: OwnedFd) {
        let Scouting { sources, n_answers, .. } = &mut self.scouting;
        let Some(source) = sources.iter_mut().find(|source| source.number == number) else { return };
        *n_answers += 1;
        let memory = Arc::new(memory);
        source.report = Some(report);
        source.most_members = source.most_members.max(n_members as usize);
        source.newest = Some(NewestAnswer { number: *n_answers, n_members, memory, at: Instant::now() });
        for idx in 0..self.generations.len() {
            let n_further = self.n_further(&self.generations[idx].sources);
            let generation = &mut self.generations[idx];
            generation.expect_added(n_further);
            generation.owe_answer(number);
        }
    }

    /// Sends each generation the answers that it did not get yet.
    fn tell_answers(&mut self) {
        let sources = &self.scouting.sources;
        let newest = |number: u64| {
            let source = sources.iter().find(|source| source.number == number)?;
            source.newest.as_ref().map(|newest| (newest.number, newest.memory.as_fd()))
        };
        for generation in &mut self.generations {
            generation.tell_answers(newest);
        }
    }

    /// Forgets sources that no generation has any more; without any, there is no scout.
    pub(super) fn leave_sources(&mut self) {
        let starting = self.starting.as_ref().map(|starting| &starting.bundle.config);
        let running = self.generations.iter().map(|generation| &generation.bundle.config);
        // A replacement of a worker that died has the same.
        let configs: Vec<&Config> = running.chain(starting).chain([&self.bundle.config]).collect();
        let has_state = configs.iter().any(|config| config.state.is_some());
        let is_used = |source: &KnownSource| {
            configs.iter().any(|config| specs(config).any(|spec| *spec == source.spec))
        };
        let left: Vec<KnownSource> =
            self.scouting.sources.extract_if(.., |source| !is_used(source)).collect();
        for KnownSource { number, spec, .. } in left {
            self.scouting.tell(ToScout::Leave { source: number }, Vec::new());
            let text = format!("cluster \"{}\": source \"{}\": is asked no more", spec.cluster, spec.name);
            self.refuse_asked(&text, |of| of == number);
        }
        if self.scouting.sources.is_empty() && !has_state {
            self.end_scout("no source is asked any more");
            (self.scouting.bundle, self.scouting.state) = (None, None);
        }
    }

    /// Has the scout end. `why` is for those who wait for an answer of it.
    pub(super) fn end_scout(&mut self, why: &str) {
        self.scouting.end();
        self.refuse_asked(why, |_| true);
    }

    /// Answers those who wait for a source to obey: nothing comes of it.
    fn refuse_asked(&mut self, why: &str, is_of: impl Fn(u64) -> bool) {
        let over: Vec<_> = self.scouting.asked.extract_if(.., |(_, of)| is_of(*of)).collect();
        for (client, _) in over {
            self.answer(&[client], &Refused::failed(why));
        }
    }

    /// Starts a scout, and has it follow all sources.
    fn start_scout(&mut self, config: &Config) {
        self.scouting.start_at = None;
        let setup = self.scouting.setup(config);
        let log_level = self.own_log.level_of(&config.log);
        // Nothing else shall depend on that file.
        let log = self.own_log.file_for(&config.log).ok().flatten();
        match ScoutProcess::spawn(config, setup, log_level, log, self.scouting.state.as_ref()) {
            Ok(scout) => {
                tracing::info!("scout started (pid {})", scout.child.id());
                self.scouting.scout = Some(scout);
                self.applying.saving.begin_anew();
                for idx in 0..self.scouting.sources.len() {
                    self.scouting.tell_source(idx);
                }
            }
            Err(error) => {
                let wait = self.scouting.backoff.died(Duration::ZERO).max(Duration::from_millis(100));
                tracing::error!("no process for the scout: {error}; {}", quarantine::next_attempt(wait));
                self.scouting.start_at = Some(Instant::now() + wait);
            }
        }
    }

    /// The scout's process, if there is one.
    pub(super) fn scout_pids(&self) -> impl Iterator<Item = Pid> {
        let scouts = self.scouting.scout.iter().chain(&self.scouting.ending);
        scouts.map(|scout| Pid::from_child(&scout.child))
    }

    /// Starts another scout when it is time, and tells workers how sources are.
    pub(super) fn keep_scout(&mut self, now: Instant) {
        let is_rested = self.scouting.told_at.is_none_or(|at| now >= at + TELL_EVERY);
        if self.scouting.is_new && is_rested {
            self.tell_sources(now);
        }
        self.start_scout_if_due(now);
    }

    fn start_scout_if_due(&mut self, now: Instant) {
        let is_due = self.scouting.start_due().is_some_and(|at| now >= at) && self.stopping.is_none();
        if let Some(bundle) = self.scouting.bundle.as_ref().filter(|_| is_due).map(Arc::clone) {
            self.start_scout(&bundle.config);
        }
    }

    fn give_scout_up(&mut self, why: &str) {
        if let Some(scout) = &mut self.scouting.scout {
            tracing::error!("the scout (pid {}) {why}; it is replaced", scout.child.id());
            scout.from = None;
            scout.kill();
        }
    }

    /// Replaces a scout that has died. Its answers hold.
    fn bury_scout(&mut self) {
        let Some(scout) = &mut self.scouting.scout else { return };
        let Ok(Some(status)) = scout.end() else { return };
        let (pid, lived) = (scout.child.id(), scout.started.elapsed());
        self.scouting.scout = None;
        let wait = self.scouting.backoff.died(lived);
        tracing::error!(
            "the scout (pid {pid}) died ({status}); servers stay as they are; {}",
            quarantine::next_attempt(wait)
        );
        self.scouting.start_at = Some(Instant::now() + wait);
        self.refuse_asked("the scout died; ask again", |_| true);
    }

    /// Tells the workers that serve how the sources of the configuration are; they show it.
    fn tell_sources(&mut self, now: Instant) {
        (self.scouting.is_new, self.scouting.told_at) = (false, Some(now));
        let status = self.scouting.status(&self.bundle.config);
        for idx in 0..self.generations.len() {
            if self.generations[idx].owe_lost() && self.applying.number > 0 {
                self.tell_acts_to(idx);
            }
        }
        let shows = |generation: &&mut Generation| generation.runs() && !generation.sources.is_empty();
        for generation in self.generations.iter_mut().filter(shows) {
            generation.tell_sources(status.clone());
        }
        self.tell_answers();
    }

    /// A worker could not open what was sent. It gets acts and answers again, at most as often as it is told how
    /// sources are.
    pub(super) fn has_lost(&mut self, idx: usize) {
        self.generations[idx].has_lost();
        self.scouting.is_new = true;
    }

    /// Another generation serves, which has not heard how sources are.
    pub(super) fn sources_are_new(&mut self) {
        self.scouting.is_new = true;
    }

    /// Has a source obey what it holds back.
    pub(super) fn accept(&mut self, client: ClientId, cluster: &str, name: &str) {
        let is_it = |source: &&KnownSource| source.spec.cluster == cluster && source.spec.name == name;
        let serves = |source: &&KnownSource| specs(&self.bundle.config).any(|spec| *spec == source.spec);
        let Some(source) = self.scouting.sources.iter().filter(is_it).find(serves) else {
            let known: Vec<String> =
                specs(&self.bundle.config).map(|spec| format!("{} {}", spec.cluster, spec.name)).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let text = format!("cluster \"{cluster}\" has no source \"{name}\" (there are: {known})");
            return self.answer(&[client], &Refused::failed(text));
        };
        let number = source.number;
        if self.scouting.scout.is_none() {
            return self.answer(&[client], &Refused::failed("no scout runs now; ask again"));
        }
        self.scouting.asked.push((client, number));
        self.scouting.tell(ToScout::Accept { source: number }, Vec::new());
    }

    fn accepted(&mut self, number: u64, n_members: Option<u32>) {
        let Some(source) = self.scouting.source(number) else { return };
        let what = format!("cluster \"{}\": source \"{}\"", source.spec.cluster, source.spec.name);
        let asked: Vec<_> = self.scouting.asked.extract_if(.., |(_, of)| *of == number).collect();
        for (client, _) in asked {
            match n_members {
                Some(n) => {
                    tracing::info!("{what}: accepted: {n} servers");
                    self.tell_and_end(client, &format!("{what}: accepted; it names {n} servers from now on"));
                }
                None => {
                    self.answer(&[client], &Refused::failed(format_args!("{what}: holds no answer back")));
                }
            }
        }
    }
}

impl Scouting {
    /// Descriptors to poll.
    pub(super) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        self.scout.iter().chain(&self.ending).flat_map(ScoutProcess::interests)
    }

    /// When there is something to do though nothing happens.
    pub(super) fn due(&self) -> Option<Instant> {
        let kills = self.scout.iter().chain(&self.ending).filter_map(|scout| scout.kill_at);
        kills.chain(self.start_due()).chain(self.tell_due()).min()
    }

    /// When a scout is to be started. Two of them would write the files of `state` at the same time: one that is killed gives
    /// them back when the kernel lets it.
    fn start_due(&self) -> Option<Instant> {
        let state = path_of(&self.state);
        let is_held = state.is_some() && self.ending.iter().any(|scout| path_of(&scout.state) == state);
        self.start_at.filter(|_| !is_held)
    }

    /// Opens a folder of state. A scout that did not end yet holds its lock: the files are those that it has.
    fn open_state(&self, path: &Path, patience: Duration) -> Result<StateFolder, String> {
        let scouts = self.scout.iter().chain(&self.ending);
        let held = scouts.filter_map(|scout| scout.state.as_ref()).find(|state| state.path() == path);
        held.map_or_else(|| StateFolder::open(path, patience), |state| Ok(state.clone()))
    }

    /// Terms of the scout's start, for the sources that are known.
    fn setup(&self, config: &Config) -> ScoutSetup {
        let starts_commands =
            self.sources.iter().any(|source| matches!(source.spec.kind, SourceKind::Exec { .. }));
        ScoutSetup::of(config, starts_commands)
    }

    /// When workers are to be told how sources are.
    fn tell_due(&self) -> Option<Instant> {
        let at = self.told_at.map_or_else(Instant::now, |at| at + TELL_EVERY);
        self.is_new.then_some(at)
    }

    /// Has the process end, with the commands that it has started.
    pub(super) fn end(&mut self) {
        if let Some(mut scout) = self.scout.take() {
            scout.ends_soon();
            self.ending.push(scout);
        }
        self.start_at = None;
    }

    /// Forgets processes that have ended as they were told, and kills those that have not.
    fn bury_ending(&mut self) {
        self.ending.retain_mut(|scout| matches!(scout.end(), Ok(None)));
    }

    /// For an operator: the sources of a configuration, in its order.
    pub(super) fn status(&self, config: &Config) -> Vec<SourceStatus> {
        let known = specs(config).filter_map(|spec| self.sources.iter().find(|source| source.spec == *spec));
        known.map(KnownSource::status).collect()
    }

    fn source(&mut self, number: u64) -> Option<&mut KnownSource> {
        self.sources.iter_mut().find(|source| source.number == number)
    }

    /// Adds a source, unless it is known. One that only asks in another way than one of the same name begins with that one's
    /// answer.
    fn follow(&mut self, spec: &SourceSpec) {
        if self.sources.iter().any(|source| source.spec == *spec) {
            return;
        }
        self.n_sources += 1;
        let is_before =
            |source: &&KnownSource| source.spec.cluster == spec.cluster && source.spec.name == spec.name;
        let before = self.sources.iter().rfind(is_before).and_then(|source| source.newest.as_ref());
        let newest = before.map(|before| NewestAnswer { memory: Arc::clone(&before.memory), ..*before });
        let most_members = newest.as_ref().map_or(0, |newest| newest.n_members as usize);
        let source =
            KnownSource { number: self.n_sources, spec: spec.clone(), newest, report: None, most_members };
        self.sources.push(source);
        self.tell_source(self.sources.len() - 1);
    }

    fn tell_source(&mut self, idx: usize) {
        let source = &self.sources[idx];
        let order = ToScout::Follow { source: source.number, spec: Box::new(source.spec.clone()) };
        let memory = source.newest.iter().map(|newest| Arc::clone(&newest.memory)).collect();
        self.tell(order, memory);
    }

    /// The file of the scout's log.
    pub(super) fn log_path(&self) -> Option<&Path> {
        self.scout.as_ref().and_then(|scout| scout.setup.log.file())
    }

    /// Has the scout write its log to this file.
    pub(super) fn reopen_log(&mut self, file: File) {
        self.tell(ToScout::ReopenOwnLog, vec![Arc::new(file.into())]);
    }

    /// Has the scout write these acts, in place of those that it did not take yet. False if there is none, or nowhere to write.
    pub(super) fn keep_acts(&mut self, number: u64, body: impl FnOnce() -> Option<String>) -> bool {
        let Some(scout) = self.scout.as_mut().filter(|scout| scout.state.is_some()) else { return false };
        scout.orders.retain(|(order, _)| !matches!(order, ToScout::KeepActs { .. }));
        if let Some(body) = body() {
            self.tell(ToScout::KeepActs { number, body }, Vec::new());
        }
        true
    }

    /// The folder for what is kept over restarts.
    pub(super) fn state(&self) -> Option<&StateFolder> {
        self.state.as_ref()
    }

    fn tell(&mut self, order: ToScout, descriptors: Vec<Arc<OwnedFd>>) {
        if let Some(scout) = &mut self.scout {
            scout.orders.push((order, descriptors));
            scout.tell_on();
        }
    }
}

impl KnownSource {
    fn status(&self) -> SourceStatus {
        let report = self.report.clone().unwrap_or_default();
        SourceStatus {
            cluster: self.spec.cluster.clone(),
            source: self.spec.name.clone(),
            kind: self.spec.kind.word().to_owned(),
            members: self.newest.as_ref().map(|newest| newest.n_members),
            answer: self.newest.as_ref().map(|newest| newest.number),
            age_s: self.newest.as_ref().map(|newest| newest.at.elapsed().as_secs()),
            held: report.is_held,
            answers: report.n_answers,
            errors: report.n_errors,
            holds: report.n_held,
            error: report.error,
        }
    }
}

impl ScoutProcess {
    fn spawn(
        config: &Config,
        setup: ScoutSetup,
        log_level: &str,
        log: Option<File>,
        state: Option<&StateFolder>,
    ) -> io::Result<Self> {
        let (here, there) = channel::pair()?;
        channel::set_nonblocking(&here)?;
        let mut child = start_process("scout", config, log_level, there)?;
        let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).inspect_err(|_| {
            // Without a descriptor its end would go unnoticed.
            let _ = child.kill().and_then(|()| child.wait());
        })?;
        let (to, from) = channel::connect(here);
        let mut told = setup.clone();
        if log.is_none() && told.log.file().is_some() {
            told.log.target = LogTarget::Stderr;
        }
        let log = log.map(|file| Arc::new(OwnedFd::from(file)));
        let files = log.into_iter().chain(state.iter().flat_map(|state| state.files())).collect();
        let orders = vec![(ToScout::Start(Box::new(told)), files)];
        let (to, from) = (Some(to), Some(from));
        let (state, started) = (state.cloned(), Instant::now());
        Ok(Self { setup, state, child, process, started, kill_at: None, to, from, orders })
    }

    fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let end = Some((self.process.as_fd(), PollFlags::IN));
        let words = self.from.as_ref().map(|from| (from.as_fd(), PollFlags::IN));
        let to = self.to.as_ref().filter(|_| !self.orders.is_empty());
        let room = to.map(|to| (to.as_fd(), PollFlags::OUT));
        [end, words, room].into_iter().flatten()
    }

    /// Sends what it did not take yet. Never waits.
    fn tell_on(&mut self) {
        let Some(to) = &self.to else { return };
        let mut n_sent = 0;
        for (order, descriptors) in &self.orders {
            let descriptors: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
            match to.send(order, &descriptors) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // If the channel is broken, its end is noticed elsewhere.
                Ok(()) | Err(_) => n_sent += 1,
            }
        }
        self.orders.drain(..n_sent);
    }

    /// It is killed, if it does not end by itself because nobody listens to it any more.
    fn ends_soon(&mut self) {
        (self.to, self.from) = (None, None);
        self.kill_at = Some(Instant::now() + END_TIMEOUT);
    }

    /// Its status, if it has ended. Never waits: where a disk does not answer, the kernel lets it end late.
    fn end(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.kill_at.take_if(|at| Instant::now() >= *at).is_some() {
            self.kill();
        }
        self.child.try_wait()
    }

    fn kill(&self) {
        // It may have ended by itself.
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }
}

impl Drop for ScoutProcess {
    /// One that still runs is dropped only where the supervisor itself ends.
    fn drop(&mut self) {
        let ends = |process: &OwnedFd| {
            let _ = poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&LAST_TIMEOUT));
        };
        if let Ok(None) = self.child.try_wait() {
            if self.to.is_none() {
                // There is a moment for commands to be ended.
                ends(&self.process);
            }
            self.kill();
            ends(&self.process);
            let _ = self.child.try_wait();
        }
    }
}

fn path_of(state: &Option<StateFolder>) -> Option<&Path> {
    state.as_ref().map(StateFolder::path)
}

/// The sources of a configuration, in its order.
fn specs(config: &Config) -> impl Iterator<Item = &SourceSpec> {
    config.clusters.iter().flat_map(|cluster| &cluster.discover).map(|discover| &discover.source)
}

/// The sources of a generation with their newest answers, as it is told of them at its start.
pub(super) fn descriptors_of(
    sources: &[(u64, Option<Arc<OwnedFd>>)],
) -> impl Iterator<Item = BorrowedFd<'_>> {
    sources.iter().filter_map(|(_, memory)| memory.as_ref().map(|memory| memory.as_fd()))
}

impl Generation {
    /// Notes the sources that it was started with.
    pub(super) fn has_sources(&mut self, sources: &[(u64, Option<Arc<OwnedFd>>)]) {
        self.sources = sources.iter().map(|(number, _)| *number).collect();
    }
}
