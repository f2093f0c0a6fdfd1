//! Requests for a new generation: reloads, and whatever else makes the same files be started again. One is started at a time;
//! what cannot start now waits, or is refused.

use std::sync::Arc;
use std::time::Instant;

use super::Supervisor;
use super::bundle::Bundle;
use super::commands::ClientId;
use super::generation::{Generation, GenerationPhase};
use super::pid_file::PidFile;
use super::start::StartReason;
use crate::observe::events::Event;
use crate::process::control::{self, ControlReply, Exit, Refused};

/// A request that starts once the present start is over and one more generation may drain.
#[derive(Default)]
pub(super) struct WaitingStart {
    /// Clients that wait for the result.
    asked: Vec<ClientId>,
    /// From the files as they are then; else from those that serve.
    is_reload: bool,
    /// It was asked for by a signal, to which nobody can answer: it is not refused, but waits. Several are one.
    signal: Option<&'static str>,
    /// As in [`Starting`].
    cuts_oldest: bool,
}

impl WaitingStart {
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

/// The source of a reload.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReloadSource {
    Signal(&'static str),
    /// Where too many generations drain, it is refused, or the oldest is cut off.
    Command {
        client: ClientId,
        cuts_oldest: bool,
    },
}

impl Supervisor {
    /// Begins a reload, has it wait for what is being started now, or refuses it because too many generations drain.
    pub(super) fn reload(&mut self, by: ReloadSource) -> Result<(), Refused> {
        let (asked, signal, cuts_oldest) = match by {
            ReloadSource::Signal(signal) => (Vec::new(), Some(signal), false),
            ReloadSource::Command { client, cuts_oldest } => (vec![client], None, cuts_oldest),
        };
        let why = signal.unwrap_or("trylist reload");
        if self.stopping.is_some() {
            self.answer(&asked, &Refused::failed("the proxy is stopping"));
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
                tracing::info!("{why}: merged with the reload that waits");
            } else {
                let (wait, first) = self.wait_for_room();
                tracing::warn!("{why}: the reload waits: {wait}{first}");
            }
            self.notify.reloading();
            self.notify.ready("a reload waits for generations that drain");
            return Ok(());
        }
        let text = "another generation is starting; the reload follows";
        tracing::info!("{why}: {text}");
        self.tell_all(&asked, text);
        Ok(())
    }

    fn reload_now(&mut self, asked: Vec<ClientId>, why: &str, cuts_oldest: bool) -> Result<(), Refused> {
        tracing::info!("{why}: starting a new generation from the current files");
        self.notify.reloading();
        match Bundle::read(&self.options.config) {
            Ok(bundle) => {
                let mut warnings = bundle.warnings.clone();
                let (control, pid_file) = (control::socket_of(&bundle.config), &bundle.config.pid_file);
                let has_pid_file = self.pid_file.as_ref().map(PidFile::path);
                if !self.commands.is_at(control.as_ref()) || pid_file.as_deref() != has_pid_file {
                    warnings.push("changes of control and pid_file take effect at the next start".to_owned());
                }
                for warning in warnings {
                    tracing::warn!("{warning}");
                    self.tell_all(&asked, &format!("{warning} (warning)"));
                }
                self.begin(Arc::new(bundle), StartReason::Reload, asked)?;
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
        lines.push("wait, or close the oldest with `trylist reload --cut-oldest`".to_owned());
        Err(Refused { exit: Exit::Failed, lines })
    }

    fn n_to_drain(&self) -> usize {
        let is_draining =
            |generation: &&Generation| matches!(generation.phase, GenerationPhase::Draining { .. });
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

    /// Starts a generation of the files that serve, because something else is new, or has that wait for what is being started
    /// now.
    pub(super) fn anew(&mut self, asked: Vec<ClientId>, why: &str) -> Result<(), Refused> {
        if self.stopping.is_some() {
            self.answer(&asked, &Refused::failed("the proxy is stopping"));
            return Ok(());
        }
        self.tell_all(&asked, why);
        if self.starting.is_some() {
            tracing::info!("{why}; another generation is starting, this one follows");
            self.tell_all(&asked, "another generation is starting; this one follows");
            self.waiting.get_or_insert_default().asked.extend(asked);
            return Ok(());
        }
        tracing::info!("{why}; starting a new generation of the same files");
        self.begin(Arc::clone(&self.bundle), StartReason::Anew, asked)
    }

    /// Nothing has changed, and whoever asked hears why.
    pub(super) fn reload_failed(&mut self, asked: &[ClientId], mut refused: Refused) -> Result<(), Refused> {
        for line in &refused.lines {
            tracing::error!("{line}");
        }
        let first = refused.lines.first().map_or("", String::as_str);
        self.events.add(Event::now("refused", format_args!("a new generation failed: {first}")));
        let text = match self.serving {
            Some(number) => format!("unchanged: generation {number} keeps serving"),
            None => "no generation serves".to_owned(),
        };
        tracing::error!("new generation failed; {text}");
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
        let WaitingStart { asked, is_reload, signal, cuts_oldest } = waiting;
        if !cuts_oldest && let Err(refused) = self.room() {
            self.answer(&asked, &refused);
            let asked = Vec::new();
            self.waiting = signal.map(|_| WaitingStart { asked, is_reload: true, signal, cuts_oldest });
            return Ok(());
        }
        match is_reload {
            true => self.reload_now(asked, "the reload that waited", cuts_oldest),
            false => self.anew(asked, "what waited"),
        }
    }

    pub(super) fn tell_all(&mut self, clients: &[ClientId], line: &str) {
        for client in clients {
            self.commands.say(*client, &ControlReply::Line(line.to_owned()));
        }
    }

    pub(super) fn answer(&mut self, clients: &[ClientId], refused: &Refused) {
        for client in clients {
            for line in &refused.lines {
                self.commands.say(*client, &ControlReply::Problem(line.clone()));
            }
            self.commands.say(*client, &ControlReply::End(refused.exit));
        }
    }
}
