//! How a generation comes to serve: what the one before learned is saved, a worker builds, what is new is bound, the worker
//! serves, and only then the one before drains. Whatever fails leaves the one before as it is.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bundle::{Bundle, short_hash};
use super::commands::ClientId;
use super::generation::{Generation, Phase};
use super::held::{New, Reader};
use super::marks::Marks;
use super::oom::OomScore;
use super::pid_file::PidFile;
use super::{DRAIN_GRACE, STOP_TIMEOUT, Supervisor, quarantine};
use crate::cluster::learned::Learned;
use crate::config::AccessLogTarget;
use crate::observe::access_log;
use crate::process::channel::message::{ModuleSays, Start, ToWorker};
use crate::process::control::{self, Exit, Refused, Reply};

/// For a worker to hand over what it learned; the next one begins with what it sent by itself otherwise.
const SAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// A generation on its way.
pub(super) struct Starting {
    pub(super) bundle: Arc<Bundle>,
    pub(super) reason: Reason,
    /// Who waits to hear what becomes of it.
    pub(super) asked: Vec<ClientId>,
    pub(super) step: Step,
    /// What was said of servers before that which it is started for.
    pub(super) undo: Option<Marks>,
    /// Where too many generations would drain, the oldest is cut off.
    cuts_oldest: bool,
}

/// What is to be started when the present start is over, and one more generation may drain.
#[derive(Default)]
pub(super) struct Waiting {
    /// Who waits for it.
    asked: Vec<ClientId>,
    /// From the files as they are then; else from those that serve.
    is_reload: bool,
    /// It was asked for by a signal, to which nobody can answer: it is not refused, but waits. Several are one.
    signal: Option<&'static str>,
    /// As in [`Starting`].
    cuts_oldest: bool,
}

impl Waiting {
    pub(super) fn into_asked(self) -> Vec<ClientId> {
        self.asked
    }

    /// For an operator.
    pub(super) fn describe(&self) -> String {
        match (self.signal, self.is_reload) {
            (Some(signal), _) => format!("a reload ({signal})"),
            (None, true) => "a reload".to_owned(),
            (None, false) => "a new generation of the same files".to_owned(),
        }
    }
}

/// Who asks for a reload.
#[derive(Clone, Copy, Debug)]
pub(super) enum By {
    Signal(&'static str),
    /// Where too many generations drain, it is refused, or the oldest is cut off.
    Command {
        client: ClientId,
        cuts_oldest: bool,
    },
}

pub(super) enum Step {
    /// The one that serves is asked for what it learned.
    Saving { until: Instant },
    /// The worker of this generation builds, or begins to serve on what was bound for it.
    Worker { number: u64, new: Option<Box<New>> },
}

/// Why a generation is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    /// The proxy is.
    First,
    /// The files have changed.
    Reload,
    /// Something else has: a weight, the end of a quarantine.
    Anew,
    /// The one before died or hangs.
    Replace,
    /// The one before died of a module that the files before do not have.
    RollBack,
}

impl Starting {
    pub(super) fn due(&self) -> Option<Instant> {
        match self.step {
            Step::Saving { until } => Some(until),
            Step::Worker { .. } => None,
        }
    }

    pub(super) fn is_of(&self, number: u64) -> bool {
        matches!(self.step, Step::Worker { number: of, .. } if of == number)
    }
}

impl Supervisor {
    /// Begins a reload, has it wait for what is being started now, or refuses it because too many generations drain.
    pub(super) fn reload(&mut self, by: By) -> Result<(), Refused> {
        let (asked, signal, cuts_oldest) = match by {
            By::Signal(signal) => (Vec::new(), Some(signal), false),
            By::Command { client, cuts_oldest } => (vec![client], None, cuts_oldest),
        };
        let why = signal.unwrap_or("trylist reload");
        if self.stopping.is_some() {
            self.answer(&asked, &Refused::failed("it is stopping, so nothing is reloaded"));
            return Ok(());
        }
        let room = if cuts_oldest { Ok(()) } else { self.room() };
        if let Err(refused) = &room
            && signal.is_none()
        {
            for line in &refused.lines {
                tracing::error!("{why}: {line}");
            }
            self.answer(&asked, refused);
            return Ok(());
        }
        if self.starting.is_none() && room.is_ok() {
            return self.reload_now(asked, why, cuts_oldest);
        }
        let is_second = self.waiting.as_ref().is_some_and(|waiting| waiting.signal.is_some());
        let waiting = self.waiting.get_or_insert_default();
        waiting.asked.extend(&asked);
        waiting.is_reload = true;
        waiting.signal = waiting.signal.or(signal);
        waiting.cuts_oldest |= cuts_oldest;
        if room.is_err() {
            if is_second {
                tracing::info!("{why}: a reload waits already, and this one is the same");
            } else {
                let (wait, first) = self.wait_for_room();
                tracing::warn!("{why}: the reload waits: {wait}{first}");
            }
            self.notify.reloading();
            self.notify.ready("a reload waits for generations that drain");
            return Ok(());
        }
        let text = "another generation is being started; the reload follows it";
        tracing::info!("{why}: {text}");
        self.tell_all(&asked, text);
        Ok(())
    }

    fn reload_now(&mut self, asked: Vec<ClientId>, why: &str, cuts_oldest: bool) -> Result<(), Refused> {
        tracing::info!("{why}: a new generation is started from the files as they are now");
        self.notify.reloading();
        match Bundle::read(&self.options.config) {
            Ok(bundle) => {
                let mut warnings = bundle.warnings.clone();
                let (control, pid_file) = (control::path_of(&bundle.config), &bundle.config.pid_file);
                let has_pid_file = self.pid_file.as_ref().map(PidFile::path);
                if control != self.commands.path() || pid_file.as_deref() != has_pid_file {
                    warnings.push(
                        "control and pid_file stay as they are until the proxy is started anew".to_owned(),
                    );
                }
                for warning in warnings {
                    tracing::warn!("{warning}");
                    self.tell_all(&asked, &format!("{warning} (warning)"));
                }
                self.begin(Arc::new(bundle), Reason::Reload, asked)?;
                if let Some(starting) = &mut self.starting {
                    starting.cuts_oldest = cuts_oldest;
                }
                Ok(())
            }
            Err(refused) => self.reload_failed(&asked, refused),
        }
    }

    /// Whether one more generation may drain, beside those that do and the one that will when what is being started serves.
    /// Nothing is cut off before its drain's time: what would have too many drain is refused.
    ///
    /// # Errors
    /// Which generations drain, and until when.
    pub(super) fn room(&self) -> Result<(), Refused> {
        if self.serving.is_none() || self.n_to_drain() < self.bundle.config.supervision.max_draining {
            return Ok(());
        }
        let (now, (wait, _)) = (Instant::now(), self.wait_for_room());
        let mut lines = vec![wait];
        for generation in &self.generations {
            if let Some(left) = generation.drain_left(now) {
                lines.push(format!(
                    "generation {} drains for up to {:.1?} more (pid {}, {} connections)",
                    generation.number,
                    left,
                    generation.pid(),
                    generation.report.connections
                ));
            }
        }
        lines.push("wait, or cut the oldest off by trylist reload --cut-oldest".to_owned());
        Err(Refused { exit: Exit::Failed, lines })
    }

    fn n_to_drain(&self) -> usize {
        let is_draining = |generation: &&Generation| matches!(generation.phase, Phase::Draining { .. });
        let is_serving_replaced = self.starting.is_some() && self.serving.is_some();
        self.generations.iter().filter(is_draining).count() + usize::from(is_serving_replaced)
    }

    /// Why there is no room, and when there will be.
    pub(super) fn wait_for_room(&self) -> (String, String) {
        let most = self.bundle.config.supervision.max_draining;
        let n = self.n_to_drain();
        let count = if n == 1 { "1 generation drains".to_owned() } else { format!("{n} generations drain") };
        let why = format!("{count}, and max_draining is {most}");
        let now = Instant::now();
        let lefts =
            self.generations.iter().filter_map(|generation| Some((generation.drain_left(now)?, generation)));
        let first = lefts.min_by_key(|(left, _)| *left);
        let first = first
            .map(|(left, generation)| format!("; generation {} ends within {left:.1?}", generation.number));
        (why, first.unwrap_or_default())
    }

    /// Begins to start a generation. There is none on its way. Here and below, an error is the end of the proxy: it is the
    /// first generation that failed.
    pub(super) fn begin(
        &mut self,
        bundle: Arc<Bundle>,
        reason: Reason,
        asked: Vec<ClientId>,
    ) -> Result<(), Refused> {
        let step = Step::Saving { until: Instant::now() + SAVE_TIMEOUT };
        let starting = Starting { bundle, reason, asked, step, undo: None, cuts_oldest: false };
        self.starting = Some(starting);
        // Whatever was to be done about a dead worker, this is it.
        self.replace_at = None;
        let serving = self.serving.filter(|_| matches!(reason, Reason::Reload | Reason::Anew));
        match serving.and_then(|number| self.generation(number)) {
            Some(serving) => {
                serving.tell(ToWorker::Save, &[]);
                Ok(())
            }
            None => self.spawn(),
        }
    }

    /// Starts a generation of the files that serve, because something else is new, or has that wait for what is being started
    /// now. `undo` is what was said of servers before.
    pub(super) fn anew(
        &mut self,
        asked: Vec<ClientId>,
        why: &str,
        undo: Option<Marks>,
    ) -> Result<(), Refused> {
        if self.stopping.is_some() {
            self.answer(&asked, &Refused::failed("it is stopping, so nothing is started any more"));
            return Ok(());
        }
        self.tell_all(&asked, why);
        if self.starting.is_some() {
            tracing::info!("{why}; another generation is being started, and one more follows it");
            self.tell_all(&asked, "another generation is being started; one for this follows it");
            self.waiting.get_or_insert_default().asked.extend(asked);
            return Ok(());
        }
        tracing::info!("{why}; a new generation of the same files is started");
        self.begin(Arc::clone(&self.bundle), Reason::Anew, asked)?;
        if let Some(starting) = &mut self.starting {
            starting.undo = undo;
        }
        Ok(())
    }

    /// What a worker learned. It is kept for whoever comes next.
    pub(super) fn saved(&mut self, number: u64, state: Learned, is_answer: bool) -> Result<(), Refused> {
        if self.serving != Some(number) {
            return Ok(());
        }
        self.state.learn(state);
        let is_awaited = |starting: &Starting| matches!(starting.step, Step::Saving { .. });
        let is_due = is_answer && self.starting.as_ref().is_some_and(is_awaited);
        if is_due { self.spawn() } else { Ok(()) }
    }

    /// Whoever was asked for what it learned has died.
    pub(super) fn save_no_more(&mut self) -> Result<(), Refused> {
        let is_saving = |starting: &Starting| matches!(starting.step, Step::Saving { .. });
        if self.starting.as_ref().is_some_and(is_saving) { self.spawn() } else { Ok(()) }
    }

    pub(super) fn give_up_saving(&mut self, now: Instant) -> Result<(), Refused> {
        match &self.starting {
            Some(Starting { step: Step::Saving { until }, .. }) if now >= *until => {}
            _ => return Ok(()),
        }
        let serving = self.generations.iter().find(|generation| Some(generation.number) == self.serving);
        let inside = serving.and_then(|generation| Some(generation.describe(generation.inside_for_long()?)));
        tracing::warn!(
            "balancers did not save within {SAVE_TIMEOUT:?}{}; the next begin without the latest",
            inside.map(|inside| format!(" (a thread is inside {inside})")).unwrap_or_default()
        );
        self.spawn()
    }

    /// Starts the worker of the generation that is on its way.
    pub(super) fn spawn(&mut self) -> Result<(), Refused> {
        let Some(starting) = &mut self.starting else { return Ok(()) };
        self.n_generations += 1;
        let number = self.n_generations;
        starting.step = Step::Worker { number, new: None };
        let (bundle, reason) = (Arc::clone(&starting.bundle), starting.reason);
        match self.spawn_worker(number, &bundle, reason) {
            Ok(()) => Ok(()),
            Err(refused) => self.start_failed(number, refused),
        }
    }

    fn spawn_worker(&mut self, number: u64, bundle: &Arc<Bundle>, reason: Reason) -> Result<(), Refused> {
        let access_log = match &bundle.config.access_log {
            AccessLogTarget::File(path) => Some(access_log::append_to(path).map_err(|error| {
                Refused::failed(format_args!("access log \"{}\": {error}", path.display()))
            })?),
            AccessLogTarget::Off | AccessLogTarget::Stdout => None,
        };
        let copies = bundle.copies(|sha256| self.quarantine.holds(sha256));
        let start = Start {
            generation: number,
            n_threads: bundle.config.threads,
            config: self.options.config.clone(),
            files: bundle.files.clone(),
            modules: copies.clone(),
            has_access_log: access_log.is_some(),
            state: self.state.clone(),
            marks: self.marks.of(&bundle.config),
            base: self.base_of(number),
        };
        let cannot = |error| Refused::failed(format_args!("no process for generation {number}: {error}"));
        let oom_score_adj = self.oom_score.map(OomScore::of_workers);
        let log_level = &self.options.log_level;
        let generation =
            Generation::spawn(number, Arc::clone(bundle), copies, reason, log_level, oom_score_adj)
                .map_err(cannot)?;
        let open = bundle.modules.iter().zip(&generation.copies).filter(|(_, copy)| !copy.is_quarantined);
        let mut descriptors = vec![generation.board()];
        descriptors.extend(access_log.as_ref().map(File::as_fd));
        descriptors.extend(open.map(|(copied, _)| copied.image()));
        generation.order(&ToWorker::Start(Box::new(start)), &descriptors).map_err(cannot)?;
        tracing::info!("generation {number} is started (pid {})", generation.pid());
        self.generations.push(generation);
        Ok(())
    }

    /// The worker has built everything: now that nothing else can fail, what is new is bound.
    pub(super) fn built(
        &mut self,
        number: u64,
        modules: Vec<Option<ModuleSays>>,
        warnings: &[String],
    ) -> Result<(), Refused> {
        let is_it = |starting: &Starting| starting.is_of(number);
        let idx = self.generations.iter().position(|generation| generation.number == number);
        let Some(idx) = idx.filter(|_| self.starting.as_ref().is_some_and(is_it)) else { return Ok(()) };
        let bundle = Arc::clone(&self.generations[idx].bundle);
        self.generations[idx].says = modules;
        // Of the same files they were said when those were new.
        let is_new = |starting: &&Starting| matches!(starting.reason, Reason::First | Reason::Reload);
        if let Some(asked) = self.starting.as_ref().filter(is_new).map(|starting| starting.asked.clone()) {
            for warning in warnings {
                tracing::warn!("{warning}");
                self.tell_all(&asked, &format!("{warning} (warning)"));
            }
        }
        let new = match self.held.bind(&bundle.config) {
            Ok(new) => new,
            Err(errors) => {
                let lines = errors.iter().map(ToString::to_string).collect();
                self.generations[idx].give_up();
                return self.start_failed(number, Refused { exit: Exit::Failed, lines });
            }
        };
        let elsewhere = self.load_of_all().without(None);
        let (n_sockets, has_admin, descriptors) = self.held.of(&new, &bundle.config);
        let generation = &mut self.generations[idx];
        // Before it accepts, so that limits hold from the first request on.
        if generation.order(&ToWorker::Elsewhere(elsewhere.clone()), &[]).is_ok() {
            generation.told_elsewhere = elsewhere;
        }
        let told = generation.order(&ToWorker::Serve { n_sockets, has_admin }, &descriptors);
        let timeout = bundle.config.supervision.start_timeout;
        generation.phase = Phase::Opening { until: Instant::now() + timeout };
        if let Err(error) = told {
            generation.give_up();
            self.held.give_back(new, Some(number));
            let text = format!("the listening sockets cannot be handed to generation {number}: {error}");
            return self.start_failed(number, Refused::failed(text));
        }
        if let Some(starting) = &mut self.starting {
            starting.step = Step::Worker { number, new: Some(Box::new(new)) };
        }
        Ok(())
    }

    /// The worker serves: the one before drains, and whoever waits hears of it.
    pub(super) fn ready(&mut self, number: u64) -> Result<(), Refused> {
        let Some(starting) = self.starting.take_if(|starting| starting.is_of(number)) else { return Ok(()) };
        let Starting { bundle, reason, asked, step, undo: _, cuts_oldest } = starting;
        if let Step::Worker { new: Some(new), .. } = step {
            let readers = self.held.keep(*new, self.serving);
            self.tell_readers(&readers, true);
        }
        if reason == Reason::Reload {
            for line in self.held.allow(&bundle.config) {
                tracing::warn!("{line}");
                self.tell_all(&asked, &format!("{line} (warning)"));
            }
        }
        let before = self.serving.replace(number);
        // It looks names up itself, and says what is other than what it was made of.
        self.renewals.forget();
        let of_before = before.and_then(|before| self.generation(before));
        let of_before = of_before.map(|generation| (generation.number, Arc::clone(&generation.bundle)));
        let of_before = of_before.as_ref().map(|(number, bundle)| (*number, &bundle.config));
        let removed = self.held.let_go(of_before, &bundle.config);
        let mut lines = self.changes(before, number);
        lines.extend(self.marks.reconcile(&bundle.config));
        if let Some(generation) = self.generation(number) {
            generation.phase = Phase::Serving;
            generation.ready = Some(Instant::now());
        }
        if reason == Reason::Reload {
            self.previous = Some(std::mem::replace(&mut self.bundle, bundle));
            self.backoff.reset();
        } else {
            self.bundle = bundle;
        }
        match before {
            None if reason == Reason::First => {
                for address in self.held.addresses() {
                    tracing::info!("listening on {address}");
                }
                if let Some(address) = self.held.admin_address() {
                    tracing::info!("metrics on {address}");
                }
                self.held.warn_of_unread();
            }
            _ => {
                for line in lines {
                    tracing::info!("{line}");
                    self.tell_all(&asked, &line);
                }
            }
        }
        if let Some(before) = before {
            for line in self.hand_over(before, removed, cuts_oldest) {
                tracing::warn!("{line}");
                self.tell_all(&asked, &line);
            }
        }
        self.are_loads_new = true;
        self.notify.ready(&format!("generation {number} serves"));
        for client in asked {
            self.commands.say(client, &Reply::End(Exit::Done));
        }
        self.tell_base();
        self.start_waiting()
    }

    /// Tells generations that read listeners which were removed what becomes of these.
    pub(super) fn tell_readers(&mut self, readers: &[Reader], are_back: bool) {
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
            generation.phase = Phase::Draining { until };
            generation.tell(ToWorker::HandOver { removed }, &[]);
        }
        if !cuts_oldest {
            return Vec::new();
        }
        let most = self.bundle.config.supervision.max_draining;
        let is_draining = |generation: &&mut Generation| matches!(generation.phase, Phase::Draining { .. });
        let draining: Vec<&mut Generation> = self.generations.iter_mut().filter(is_draining).collect();
        let n_too_many = draining.len().saturating_sub(most);
        let cut = |generation: &mut Generation| {
            let left = generation.drain_left(now).unwrap_or_default();
            generation.phase = Phase::Draining { until: now + STOP_TIMEOUT };
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
        if let Step::Worker { new: Some(new), .. } = starting.step {
            self.held.give_back(*new, Some(number));
        }
        if let Some(before) = starting.undo {
            self.marks = before;
        }
        match starting.reason {
            Reason::First => return Err(refused),
            Reason::Reload | Reason::Anew => self.reload_failed(&starting.asked, refused)?,
            Reason::Replace | Reason::RollBack => {
                for line in &refused.lines {
                    tracing::error!("{line}");
                }
            }
        }
        if self.is_replacement_due() && self.starting.is_none() && self.stopping.is_none() {
            // Whatever it is, the sockets are held and it is tried again.
            let wait = self.backoff.died(Duration::ZERO);
            tracing::error!("no generation serves as it should; {}", quarantine::next_attempt(wait));
            self.replace_at = Some(Instant::now() + wait);
        }
        self.start_waiting()
    }

    /// Whether nobody serves, or one whose place another is to take.
    fn is_replacement_due(&self) -> bool {
        let serving = self.generations.iter().find(|generation| Some(generation.number) == self.serving);
        serving.is_none_or(|generation| generation.condemned().is_some())
    }

    /// Nothing has changed, and whoever asked hears why.
    fn reload_failed(&mut self, asked: &[ClientId], mut refused: Refused) -> Result<(), Refused> {
        for line in &refused.lines {
            tracing::error!("{line}");
        }
        let text = match self.serving {
            Some(number) => format!("nothing has changed: generation {number} goes on as it was"),
            None => "nothing has changed, and no generation serves".to_owned(),
        };
        tracing::error!("no new generation came of it; {text}");
        self.notify.ready(&format!("the last new generation failed; {text}"));
        refused.lines.push(text);
        self.answer(asked, &refused);
        self.start_waiting()
    }

    /// Starts what waits, if nothing else is being started. A command that would have too many generations drain is refused;
    /// a signal waits on.
    pub(super) fn start_waiting(&mut self) -> Result<(), Refused> {
        if self.starting.is_some() {
            return Ok(());
        }
        let Some(waiting) = self.waiting.take() else { return Ok(()) };
        let Waiting { asked, is_reload, signal, cuts_oldest } = waiting;
        if !cuts_oldest && let Err(refused) = self.room() {
            self.answer(&asked, &refused);
            let asked = Vec::new();
            self.waiting = signal.map(|_| Waiting { asked, is_reload: true, signal, cuts_oldest });
            return Ok(());
        }
        match is_reload {
            true => self.reload_now(asked, "the reload that waited", cuts_oldest),
            false => self.anew(asked, "what waited", None),
        }
    }

    /// What is to be said of a generation that takes over.
    fn changes(&mut self, before: Option<u64>, number: u64) -> Vec<String> {
        let find = |number: u64| self.generations.iter().find(|generation| generation.number == number);
        let Some(now) = find(number) else { return Vec::new() };
        let Some(before) = before.and_then(find) else { return vec![format!("generation {number} serves")] };
        let mut lines = vec![format!(
            "generation {number} serves (pid {}), generation {} drains",
            now.pid(),
            before.number
        )];
        for (idx, copy) in now.copies.iter().enumerate() {
            let id = &now.bundle.config.modules[idx].id;
            let is_it = |module: &crate::config::ModuleFile| module.id == *id;
            let was = before.bundle.config.modules.iter().position(is_it);
            let is = described(now, idx);
            match was.filter(|was| before.copies.get(*was).is_some()) {
                None => lines.push(format!("module {id} {is} is new")),
                Some(was) if before.copies[was].sha256 != copy.sha256 => {
                    lines.push(format!("module {id} {} → {is}", described(before, was)));
                }
                Some(was) if before.copies[was].is_quarantined != copy.is_quarantined => {
                    let what = if copy.is_quarantined { "is in quarantine" } else { "is out of quarantine" };
                    lines.push(format!("module {id} {is} {what}"));
                }
                Some(_) => {}
            }
        }
        for module in &before.bundle.config.modules {
            if !now.bundle.config.modules.iter().any(|other| other.id == module.id) {
                lines.push(format!("module {} is no longer loaded", module.id));
            }
        }
        lines
    }

    pub(super) fn tell_all(&mut self, clients: &[ClientId], line: &str) {
        for client in clients {
            self.commands.say(*client, &Reply::Line(line.to_owned()));
        }
    }

    pub(super) fn answer(&mut self, clients: &[ClientId], refused: &Refused) {
        for client in clients {
            for line in &refused.lines {
                self.commands.say(*client, &Reply::Problem(line.clone()));
            }
            self.commands.say(*client, &Reply::End(refused.exit));
        }
    }
}

/// `1.0.0 (3f2a…)`.
fn described(generation: &Generation, module: usize) -> String {
    let hash = short_hash(&generation.copies[module].sha256);
    match generation.says.get(module) {
        Some(Some(says)) => format!("{} ({hash})", says.version),
        _ => format!("({hash})"),
    }
}
