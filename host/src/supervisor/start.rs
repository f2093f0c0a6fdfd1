//! How a generation comes to serve. The generation before saves its state; a new worker builds; new addresses are bound; the
//! worker serves; then the generation before drains. A failure at any step leaves the generation before unchanged.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::bundle::Bundle;
use super::commands::ClientId;
use super::generation::{Generation, GenerationPhase};
use super::held::{ListenerReader, NewSockets};
use super::oom::OomScore;
use super::scouting::descriptors_of;
use super::{DRAIN_GRACE, STOP_TIMEOUT, Supervisor, quarantine};
use crate::cluster::learned::Learned;
use crate::config::AccessLogTarget;
use crate::observe::access_log;
use crate::observe::events::Event;
use crate::process::channel::message::{ModuleSays, Start, ToWorker};
use crate::process::control::{ControlReply, Exit, Refused};
use crate::process::sandbox::Confinement;

/// For a worker to hand over what it learned; the next one begins with what it sent by itself otherwise.
const SAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A start waits no longer for the first answers of new sources of servers.
const FIRST_ANSWERS: Duration = Duration::from_secs(5);

/// A generation on its way.
pub(super) struct Starting {
    pub(super) bundle: Arc<Bundle>,
    pub(super) reason: StartReason,
    /// Clients that wait for the result.
    pub(super) asked: Vec<ClientId>,
    pub(super) step: StartStep,
    /// Where too many generations would drain, the oldest is cut off.
    pub(super) cuts_oldest: bool,
}

pub(super) enum StartStep {
    /// The one that serves is asked for what it learned.
    Saving { until: Instant },
    /// New sources are asked for their servers.
    Discovering { until: Instant },
    /// The worker of this generation builds, or begins to serve on what was bound for it.
    Worker { number: u64, new: Option<Box<NewSockets>> },
}

/// Why a generation is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StartReason {
    /// The proxy is.
    First,
    /// The files have changed.
    Reload,
    /// A module was released from quarantine.
    Anew,
    /// The one before died or hangs.
    Replace,
    /// The one before died of a module that the files before do not have.
    RollBack,
}

impl Starting {
    pub(super) fn due(&self) -> Option<Instant> {
        match self.step {
            StartStep::Saving { until } | StartStep::Discovering { until } => Some(until),
            StartStep::Worker { .. } => None,
        }
    }

    pub(super) fn is_of(&self, number: u64) -> bool {
        matches!(self.step, StartStep::Worker { number: of, .. } if of == number)
    }
}

impl Supervisor {
    /// Begins to start a generation. There is none on its way. Here and below, an error is the end of the proxy: it is the
    /// first generation that failed.
    pub(super) fn begin(
        &mut self,
        bundle: Arc<Bundle>,
        reason: StartReason,
        asked: Vec<ClientId>,
    ) -> Result<(), Refused> {
        let step = StartStep::Saving { until: Instant::now() + SAVE_TIMEOUT };
        let starting = Starting { bundle, reason, asked, step, cuts_oldest: false };
        match reason {
            StartReason::First => {
                self.scout_for(&starting.bundle)?;
                self.recall_acts();
            }
            StartReason::Reload => {
                if let Err(refused) = self.scout_for(&starting.bundle) {
                    return self.reload_failed(&starting.asked, refused);
                }
            }
            StartReason::Anew | StartReason::Replace | StartReason::RollBack => {
                self.scout_anyhow_for(&starting.bundle);
            }
        }
        self.starting = Some(starting);
        // A start may be faster than their next turn, and its limits hold from its first request on.
        self.generations.iter_mut().for_each(Generation::ask_for_load_now);
        // This start replaces a dead worker, too.
        self.replace_at = None;
        let serving = self.serving.filter(|_| matches!(reason, StartReason::Reload | StartReason::Anew));
        match serving.and_then(|number| self.generation(number)) {
            Some(serving) => {
                serving.ask_for_save();
                Ok(())
            }
            None => self.spawn(),
        }
    }

    /// Keeps the state that a worker saved, for the next generation.
    pub(super) fn saved(&mut self, number: u64, state: Learned, is_answer: bool) -> Result<(), Refused> {
        if self.serving != Some(number) {
            return Ok(());
        }
        if self.state.answers() != state.answers() {
            self.applying.saving.names_are_new();
        }
        self.state.learn(state);
        let is_awaited = |starting: &Starting| matches!(starting.step, StartStep::Saving { .. });
        let is_due = is_answer && self.starting.as_ref().is_some_and(is_awaited);
        if is_due { self.spawn() } else { Ok(()) }
    }

    /// The generation that was asked to save has died.
    pub(super) fn save_no_more(&mut self) -> Result<(), Refused> {
        let is_saving = |starting: &Starting| matches!(starting.step, StartStep::Saving { .. });
        if self.starting.as_ref().is_some_and(is_saving) { self.spawn() } else { Ok(()) }
    }

    pub(super) fn give_up_saving(&mut self, now: Instant) -> Result<(), Refused> {
        match &self.starting {
            Some(Starting { step: StartStep::Saving { until }, .. }) if now >= *until => {}
            _ => return Ok(()),
        }
        let serving = self.generations.iter().find(|generation| Some(generation.number) == self.serving);
        let inside = serving.and_then(|generation| Some(generation.describe(generation.inside_for_long()?)));
        tracing::warn!(
            "balancers did not save within {SAVE_TIMEOUT:?}{}; the new generation starts without the latest state",
            inside.map(|inside| format!(" (a thread is inside {inside})")).unwrap_or_default()
        );
        self.spawn()
    }

    /// Starts the worker of the generation that is on its way, when the servers of its sources are known. Nobody waits for that
    /// in place of a worker that died.
    pub(super) fn spawn(&mut self) -> Result<(), Refused> {
        let Some(starting) = &self.starting else { return Ok(()) };
        let is_replacement = matches!(starting.reason, StartReason::Replace | StartReason::RollBack);
        if is_replacement || self.have_answered(&starting.bundle.config) {
            return self.spawn_now();
        }
        if let Some(starting) = &mut self.starting {
            starting.step = StartStep::Discovering { until: Instant::now() + FIRST_ANSWERS };
        }
        Ok(())
    }

    /// Starts that worker with what is known.
    pub(super) fn spawn_now(&mut self) -> Result<(), Refused> {
        let Some(starting) = &mut self.starting else { return Ok(()) };
        self.n_generations += 1;
        let number = self.n_generations;
        starting.step = StartStep::Worker { number, new: None };
        let (bundle, reason) = (Arc::clone(&starting.bundle), starting.reason);
        match self.spawn_worker(number, &bundle, reason) {
            Ok(()) => Ok(()),
            Err(refused) => self.start_failed(number, refused),
        }
    }

    /// A start that waits for first answers goes on when they are here.
    pub(super) fn first_answers_came(&mut self) -> Result<(), Refused> {
        let waits = |starting: &Starting| matches!(starting.step, StartStep::Discovering { .. });
        let bundle =
            self.starting.as_ref().filter(|starting| waits(starting)).map(|starting| &starting.bundle);
        match bundle.map(Arc::clone) {
            Some(bundle) if self.have_answered(&bundle.config) => self.spawn_now(),
            _ => Ok(()),
        }
    }

    /// A start waits no longer.
    pub(super) fn give_up_discovering(&mut self, now: Instant) -> Result<(), Refused> {
        match &self.starting {
            Some(Starting { step: StartStep::Discovering { until }, .. }) if now >= *until => {
                tracing::warn!(
                    "sources of servers have not answered within {FIRST_ANSWERS:?}; starting without"
                );
                self.spawn_now()
            }
            _ => Ok(()),
        }
    }

    fn spawn_worker(
        &mut self,
        number: u64,
        bundle: &Arc<Bundle>,
        reason: StartReason,
    ) -> Result<(), Refused> {
        let access_log = match &bundle.config.access_log {
            AccessLogTarget::File(path) => Some(access_log::append_to(path).map_err(|error| {
                Refused::failed(format_args!("access log \"{}\": {error}", path.display()))
            })?),
            AccessLogTarget::Off | AccessLogTarget::Stdout => None,
        };
        let log = self.own_log.file_for(&bundle.config.log)?;
        let copies = bundle.copies(|sha256| self.quarantine.holds(sha256));
        let sources = self.sources_of(&bundle.config);
        let start = Start {
            generation: number,
            n_threads: bundle.config.threads,
            config: self.options.config.clone(),
            modules: copies.clone(),
            has_access_log: access_log.is_some(),
            is_leaving: self.leaving.is_some(),
            state: self.state.clone(),
            acts: self.acts.of(&bundle.config, SystemTime::now()),
            sources: sources.iter().map(|(number, memory)| (*number, memory.is_some())).collect(),
            must_serve: matches!(reason, StartReason::Replace | StartReason::RollBack),
            base: self.base_of(number),
        };
        let cannot = |error| Refused::failed(format_args!("no process for generation {number}: {error}"));
        let oom_score_adj = self.oom_score.map(OomScore::of_workers);
        let log_level = self.own_log.level_of(&bundle.config.log);
        let mut generation =
            Generation::spawn(number, Arc::clone(bundle), copies, reason, log_level, oom_score_adj)
                .map_err(cannot)?;
        generation.has_sources(&sources);
        generation.expect_added(self.n_further(&generation.sources));
        generation.started_with = self.applying.number;
        let open = bundle.modules.iter().zip(&generation.copies).filter(|(_, copy)| !copy.is_quarantined);
        let mut descriptors = vec![generation.board(), bundle.files.as_fd()];
        descriptors.extend(access_log.as_ref().map(File::as_fd));
        descriptors.extend(log.as_ref().map(File::as_fd));
        descriptors.extend(open.map(|(copied, _)| copied.image()));
        descriptors.extend(descriptors_of(&sources));
        generation.order(&ToWorker::Start(Box::new(start)), &descriptors).map_err(cannot)?;
        tracing::info!("generation {number} started (pid {})", generation.pid());
        self.generations.push(generation);
        Ok(())
    }

    /// The worker has built everything: now that nothing else can fail, what is new is bound.
    pub(super) fn built(
        &mut self,
        number: u64,
        modules: Vec<Option<ModuleSays>>,
        confinement: Confinement,
        warnings: &[String],
    ) -> Result<(), Refused> {
        let is_it = |starting: &Starting| starting.is_of(number);
        let idx = self.generations.iter().position(|generation| generation.number == number);
        let Some(idx) = idx.filter(|_| self.starting.as_ref().is_some_and(is_it)) else { return Ok(()) };
        let bundle = Arc::clone(&self.generations[idx].bundle);
        self.generations[idx].says = modules;
        let lacks = confinement.lacks();
        self.generations[idx].confinement = Some(confinement);
        // Warnings about the same files were logged before.
        let is_new =
            |starting: &&Starting| matches!(starting.reason, StartReason::First | StartReason::Reload);
        if let Some(asked) = self.starting.as_ref().filter(is_new).map(|starting| starting.asked.clone()) {
            if !lacks.is_empty() {
                // Nobody who reloads can mend the kernel.
                tracing::warn!("modules are not wholly confined (supervision.sandbox): {}", lacks.join("; "));
            }
            for warning in warnings {
                tracing::warn!("{warning}");
                self.tell_all(&asked, &format!("{warning} (warning)"));
            }
        }
        match self.held.bind(&bundle.config) {
            Ok(new) => self.hand_sockets_over(idx, &bundle, new),
            Err(errors) => {
                let lines = errors.iter().map(ToString::to_string).collect();
                self.generations[idx].give_up();
                self.start_failed(number, Refused { exit: Exit::Failed, lines })
            }
        }
    }

    fn hand_sockets_over(&mut self, idx: usize, bundle: &Bundle, new: NewSockets) -> Result<(), Refused> {
        let elsewhere = self.load_of_all().without(None);
        let (n_sockets, has_admin, descriptors) = self.held.of(&new, &bundle.config);
        let generation = &mut self.generations[idx];
        let number = generation.number;
        // Before it accepts, so that limits hold from the first request on.
        if generation.order(&ToWorker::Elsewhere(elsewhere.clone()), &[]).is_ok() {
            generation.told_elsewhere = elsewhere;
        }
        let told = generation.order(&ToWorker::Serve { n_sockets, has_admin }, &descriptors);
        let timeout = bundle.config.supervision.start_timeout;
        generation.phase = GenerationPhase::Opening { until: Instant::now() + timeout };
        if let Err(error) = told {
            generation.give_up();
            self.held.give_back(new, Some(number));
            let text = format!("the listening sockets cannot be handed to generation {number}: {error}");
            return self.start_failed(number, Refused::failed(text));
        }
        if let Some(starting) = &mut self.starting {
            starting.step = StartStep::Worker { number, new: Some(Box::new(new)) };
        }
        Ok(())
    }

    /// The worker serves: the one before drains, and whoever waits hears of it.
    pub(super) fn ready(&mut self, number: u64) -> Result<(), Refused> {
        let Some(starting) = self.starting.take_if(|starting| starting.is_of(number)) else { return Ok(()) };
        let Starting { bundle, reason, asked, step, cuts_oldest } = starting;
        if let StartStep::Worker { new: Some(new), .. } = step {
            let readers = self.held.keep(*new, self.serving);
            self.tell_readers(&readers, true);
        }
        if reason == StartReason::Reload {
            let refused = self.held.allow(&bundle.config);
            self.warn_all(&asked, refused.iter().map(|line| format!("{line} (warning)")));
        }
        let before = self.serving.replace(number);
        let removed = self.let_go_of_listeners(before, &bundle);
        let mut lines = self.changes(before, number);
        lines.extend(self.acts.reconcile(&bundle.config, SystemTime::now()));
        self.serve_with(number, bundle, reason);
        self.sources_are_new();
        if before.is_none() && reason == StartReason::First {
            self.log_addresses();
        } else {
            for line in lines {
                tracing::info!("{line}");
                self.tell_all(&asked, &line);
            }
        }
        if let Some(before) = before {
            let cut_off = self.hand_over(before, removed, cuts_oldest);
            self.warn_all(&asked, cut_off);
        }
        // Its limits hold from its first request on.
        self.tell_loads();
        self.are_loads_new = true;
        let started_with = self.generation(number).map_or(0, |generation| generation.started_with);
        self.started_with(started_with);
        self.notify.ready(&format!("generation {number} serves"));
        self.events.add(Event::now("reload", "it serves").of_generation(number));
        for client in asked {
            self.commands.say(client, &ControlReply::End(Exit::Done));
        }
        self.tell_base();
        self.start_waiting()
    }

    fn let_go_of_listeners(&mut self, before: Option<u64>, now: &Bundle) -> Vec<usize> {
        let of_before = before.and_then(|before| self.generation(before));
        let of_before = of_before.map(|generation| (generation.number, Arc::clone(&generation.bundle)));
        let of_before = of_before.as_ref().map(|(number, bundle)| (*number, &bundle.config));
        self.held.let_go(of_before, &now.config)
    }

    /// New connections are this generation's from now on.
    fn serve_with(&mut self, number: u64, bundle: Arc<Bundle>, reason: StartReason) {
        if let Some(generation) = self.generation(number) {
            generation.phase = GenerationPhase::Serving;
            generation.ready = Some(Instant::now());
        }
        self.log_as_configured(&bundle.config);
        let before = std::mem::replace(&mut self.bundle, bundle);
        if reason == StartReason::Reload {
            self.previous = Some(before);
            self.backoff.reset();
        }
    }

    fn log_addresses(&self) {
        for address in self.held.addresses() {
            tracing::info!("listening on {address}");
        }
        if let Some(address) = self.held.admin_address() {
            tracing::info!("metrics on {address}");
        }
        self.held.warn_of_unread();
    }

    fn warn_all(&mut self, clients: &[ClientId], lines: impl IntoIterator<Item = String>) {
        for line in lines {
            tracing::warn!("{line}");
            self.tell_all(clients, &line);
        }
    }

    /// Tells generations that read listeners which were removed what becomes of these.
    pub(super) fn tell_readers(&mut self, readers: &[ListenerReader], are_back: bool) {
        for reader in readers {
            if let Some(generation) = self.generation(reader.generation) {
                generation.tell(ToWorker::Removed { listeners: vec![reader.listener], are_back }, &[]);
            }
        }
    }

    /// Has a generation drain because another one serves, and cuts the oldest off where too many drain and that was asked
    /// for. A line for each that is cut off.
    fn hand_over(&mut self, number: u64, removed: Vec<usize>, cuts_oldest: bool) -> Vec<String> {
        let now = Instant::now();
        if let Some(generation) = self.generation(number) {
            let until = now + generation.bundle.config.timeouts.drain + DRAIN_GRACE;
            generation.phase = GenerationPhase::Draining { until };
            generation.tell(ToWorker::HandOver { removed }, &[]);
        }
        if !cuts_oldest {
            return Vec::new();
        }
        let most = self.bundle.config.supervision.max_draining;
        let is_draining =
            |generation: &&mut Generation| matches!(generation.phase, GenerationPhase::Draining { .. });
        let draining: Vec<&mut Generation> = self.generations.iter_mut().filter(is_draining).collect();
        let n_too_many = draining.len().saturating_sub(most);
        let cut = |generation: &mut Generation| {
            let left = generation.drain_left(now).unwrap_or_default();
            generation.phase = GenerationPhase::Draining { until: now + STOP_TIMEOUT };
            generation.tell(ToWorker::Stop, &[]);
            format!(
                "generation {} is cut off, {left:.1?} before its drain's end ({} connections)",
                generation.number, generation.report.connections
            )
        };
        draining.into_iter().take(n_too_many).map(cut).collect()
    }

    /// A generation never came to serve. Of the first there is nothing to go on with.
    pub(super) fn start_failed(&mut self, number: u64, refused: Refused) -> Result<(), Refused> {
        let Some(starting) = self.starting.take_if(|starting| starting.is_of(number)) else { return Ok(()) };
        if let StartStep::Worker { new: Some(new), .. } = starting.step {
            self.held.give_back(*new, Some(number));
        }
        if starting.reason != StartReason::First {
            self.scout_as_before();
        }
        match starting.reason {
            StartReason::First => return Err(refused),
            StartReason::Reload | StartReason::Anew => self.reload_failed(&starting.asked, refused)?,
            StartReason::Replace | StartReason::RollBack => {
                for line in &refused.lines {
                    tracing::error!("{line}");
                }
            }
        }
        if self.is_replacement_due() && self.starting.is_none() && self.stopping.is_none() {
            // The sockets are held; the start is tried again.
            let wait = self.backoff.died(Duration::ZERO);
            tracing::error!("no healthy generation serves; {}", quarantine::next_attempt(wait));
            self.replace_at = Some(Instant::now() + wait);
        }
        self.start_waiting()
    }

    /// Whether nobody serves, or one whose place another is to take.
    fn is_replacement_due(&self) -> bool {
        let serving = self.generations.iter().find(|generation| Some(generation.number) == self.serving);
        serving.is_none_or(|generation| generation.condemned().is_some())
    }
}
