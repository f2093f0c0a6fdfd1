//! Workers that die or hang: they are replaced, and the module to blame is quarantined or rolled back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::blame::{Blame, Culprit};
use super::bundle::short_hash;
use super::generation::{Generation, GenerationPhase};
use super::pulse::PulseVerdict;
use super::start::StartReason;
use super::watchdog::{Finding, GONE};
use super::{Supervisor, quarantine};
use crate::observe::events::Event;
use crate::process::channel::message::ToWorker;
use crate::process::control::Refused;

impl Supervisor {
    /// A worker has died. It is no longer among the generations.
    pub(super) fn died(
        &mut self,
        generation: &Generation,
        text: &str,
        culprit: Culprit,
    ) -> Result<(), Refused> {
        let number = generation.number;
        tracing::error!("generation {number}: its worker (pid {}) {text}", generation.pid());
        let event = Event::now("death", format_args!("its worker (pid {}) {text}", generation.pid()));
        self.events.add(event.of_generation(number));
        // If another generation serves, this one only failed to start: its module may be the very file that serves.
        let counts = generation.ready.is_some() || self.serving.is_none();
        let is_held = counts && self.blame(generation, culprit, text);
        if let Some(stopping) = &mut self.stopping {
            let n = usize::try_from(generation.report.connections).unwrap_or(usize::MAX).max(1);
            stopping.cut_off = stopping.cut_off.saturating_add(n);
        }
        if self.serving == Some(number) {
            self.serving = None;
            return self.replace(generation, Some(culprit), is_held);
        }
        let is_of = |starting: &super::start::Starting| starting.is_of(number);
        if self.starting.as_ref().is_some_and(is_of) {
            let text = format!("generation {number} never served: its worker {text}");
            return self.start_failed(number, Refused::failed(text));
        }
        Ok(())
    }

    /// A worker has died that had said its last word: balancers are dropped then, and destructors of modules run. It is said, and
    /// nobody is held to account: nothing was lost.
    pub(super) fn died_after_all(&mut self, generation: &Generation, text: &str) {
        let number = generation.number;
        let text = format!("its worker (pid {}) had nothing left to do and {text}", generation.pid());
        tracing::warn!("generation {number}: {text}");
        self.events.add(Event::now("death", text).of_generation(number));
    }

    /// A worker that had said its last word did not end by itself, and is killed.
    pub(super) fn hung_after_all(&mut self, number: u64) {
        let Some(generation) = self.generation(number) else { return };
        let whose = generation.whose_end();
        let text =
            format!("its worker (pid {}) has nothing left to do and hangs{whose}; killed", generation.pid());
        tracing::warn!("generation {number}: {text}");
        self.events.add(Event::now("hang", text).of_generation(number));
    }

    /// Holds a module's file to account for a worker. True where it is in quarantine from now on.
    fn blame(&mut self, generation: &Generation, culprit: Culprit, text: &str) -> bool {
        let Some(blame) = culprit.blame() else { return false };
        let Some(copy) = generation.copies.get(blame.module) else { return false };
        let id = &generation.bundle.config.modules[blame.module].id;
        let limit = match (generation.bundle.config.supervision.module_deaths, culprit) {
            // One may be chance.
            (1, Culprit::Probable(_)) => 2,
            (limit, _) => limit,
        };
        let is_held = self.quarantine.died(copy.sha256, id, text, limit, Instant::now());
        if is_held {
            let event =
                Event::now("quarantine", format_args!("{limit} workers died of the module within 60 s"));
            self.events.add(event.of_generation(generation.number).of_module(id));
            tracing::error!(
                "module \"{id}\": {} ({}) is in quarantine: {limit} workers died of it within 60 s; the host chooses the \
                 servers of its clusters until the file changes or `trylist module release {id}`",
                copy.file.display(),
                short_hash(&copy.sha256)
            );
        }
        is_held
    }

    /// Starts a worker in place of the one that served. A configuration is rolled back once at most. `culprit` is absent where it
    /// is known that modules have nothing to do with it.
    fn replace(&mut self, dead: &Generation, culprit: Option<Culprit>, is_held: bool) -> Result<(), Refused> {
        if self.stopping.is_some() {
            return Ok(());
        }
        if self.starting.is_some() {
            // The generation that is starting takes over.
            return self.save_no_more();
        }
        if let Some((before, why)) = culprit.and_then(|culprit| self.roll_back_to(dead, culprit)) {
            let number = dead.number;
            tracing::error!(
                "generation {number} is rolled back: {why}; the files of the generation before serve again. Mend the current \
                 files and reload"
            );
            return self.begin(before, StartReason::RollBack, Vec::new());
        }
        let served = dead.ready.map_or(Duration::ZERO, |ready| ready.elapsed());
        // With the module gone, the next one has nothing to die of.
        let wait = if is_held { Duration::ZERO } else { self.backoff.died(served) };
        if wait.is_zero() {
            return self.begin(Arc::clone(&self.bundle), StartReason::Replace, Vec::new());
        }
        tracing::error!("workers keep dying; {}", quarantine::next_attempt(wait));
        self.replace_at = Some(Instant::now() + wait);
        Ok(())
    }

    /// The files to roll back to, and why: a new generation died within its probation, and what is new of its modules may be
    /// the reason.
    fn roll_back_to(
        &mut self,
        dead: &Generation,
        culprit: Culprit,
    ) -> Option<(Arc<super::Bundle>, &'static str)> {
        let served = dead.ready?.elapsed();
        // Once: what was rolled back to has another reason to be there, and there is no bundle before it.
        if dead.reason != StartReason::Reload || served >= dead.bundle.config.supervision.probation {
            return None;
        }
        let before = self.previous.as_ref()?;
        let now = &dead.bundle;
        let is_any_new = || now.has_new_files(before) || now.has_new_settings(before, None);
        let (is_to_blame, why) = match culprit {
            Culprit::Certain(blame) => {
                let is_new = !before.has_module(&dead.copies.get(blame.module)?.sha256);
                let id = now.config.modules.get(blame.module).map(|module| &*module.id);
                (is_new || now.has_new_settings(before, id), "a module killed it within its probation")
            }
            Culprit::Probable(_) => (is_any_new(), "a module probably killed it within its probation"),
            Culprit::Unknown => {
                (is_any_new(), "it died within its probation, and modules or their settings have changed")
            }
            Culprit::Killer => (
                now.has_new_files(before),
                "it was killed within its probation, and module files have changed",
            ),
        };
        let before = self.previous.take_if(|_| is_to_blame)?;
        Some((before, why))
    }

    /// Looks at what the threads of every worker do, if it is time to.
    pub(super) fn look_after_threads(&mut self) -> Result<(), Refused> {
        let now = Instant::now();
        let interval = self.generations.iter().map(Generation::look_interval).min();
        if interval.is_none_or(|interval| now < self.looked + interval) {
            return Ok(());
        }
        self.looked = now;
        for idx in 0..self.generations.len() {
            let generation = &self.generations[idx];
            if generation.runs() {
                generation.bundle.presence().look(&generation.board.look());
            }
            let (findings, verdicts) = self.generations[idx].look(now);
            for finding in findings {
                self.found(idx, finding)?;
            }
            self.judged(idx, &verdicts)?;
            let generation = &mut self.generations[idx];
            if matches!(generation.phase, GenerationPhase::Draining { .. })
                && generation.has_only_what_hangs()
            {
                let number = generation.number;
                tracing::warn!("generation {number}: only hanging calls are left; killing its worker");
                generation.give_up();
                self.are_loads_new = true;
            }
        }
        Ok(())
    }

    fn found(&mut self, idx: usize, finding: Finding) -> Result<(), Refused> {
        let generation = &mut self.generations[idx];
        let (crumb, charged, state) = match finding {
            Finding::Hang { crumb, charged, state, .. } => (crumb, charged, Some(state)),
            Finding::Overrun { crumb, charged, .. } => (crumb, charged, None),
        };
        let Some(blame) = generation.blame(crumb) else { return Ok(()) };
        let module = generation.bundle.config.modules[blame.module].id.to_string();
        let goes_on = state.is_some();
        let overrun = ToWorker::Overrun { cluster: blame.cluster, module, charged, goes_on };
        generation.tell(overrun, &[]);
        if !goes_on {
            return Ok(());
        }
        let (number, what) = (generation.number, generation.describe(blame));
        let text = match state {
            Some(GONE) => format!("has ended inside {what}, which never returns"),
            _ => format!("hangs inside {what} (for {charged:.1?} so far)"),
        };
        tracing::error!("generation {number}: a thread of its worker (pid {}) {text}", generation.pid());
        let event = Event::now("hang", format_args!("a thread of its worker {text}"));
        self.events.add(event.of_generation(number));
        let generation = &mut self.generations[idx];
        let is_first = generation.condemn(&text, true);
        if self.serving == Some(number) {
            self.serving_hangs(idx, blame, &text, is_first)
        } else if generation.is_leaving() {
            Ok(())
        } else {
            generation.give_up();
            let text = format!("generation {number} never served: its worker {text}");
            self.start_failed(number, Refused::failed(text))
        }
    }

    /// Another worker takes the place of one that hangs, which goes when the requests of its other threads have ended; at
    /// once where it has no other.
    fn serving_hangs(&mut self, idx: usize, blame: Blame, text: &str, is_first: bool) -> Result<(), Refused> {
        let generation = &mut self.generations[idx];
        let does_nothing = generation.do_all_hang();
        if does_nothing {
            let number = generation.number;
            tracing::error!("generation {number}: all threads hang; killing its worker");
            self.serving = None;
            generation.give_up();
        }
        if !is_first {
            return Ok(());
        }
        self.replace_one_that_runs(idx, Some((blame, text)))
    }

    /// Starts a worker in place of one whose process goes on, which drains then. `blame` is a module's, and what it did.
    fn replace_one_that_runs(&mut self, idx: usize, blame: Option<(Blame, &str)>) -> Result<(), Refused> {
        let generation = self.generations.remove(idx);
        let certain = |blame: (Blame, _)| Culprit::Certain(blame.0);
        let is_held = blame.is_some_and(|blame| self.blame(&generation, certain(blame), blame.1));
        let result = self.replace(&generation, blame.map(certain), is_held);
        // In its place, since the oldest come first.
        let idx = self.generations.partition_point(|other| other.number < generation.number);
        self.generations.insert(idx, generation);
        result
    }

    /// Acts on verdicts about threads outside of modules.
    fn judged(&mut self, idx: usize, verdicts: &[(usize, PulseVerdict)]) -> Result<(), Refused> {
        let generation = &mut self.generations[idx];
        let (number, pid) = (generation.number, generation.pid());
        let (mut is_any_stuck, mut traced, mut go_on) = (false, Vec::new(), Vec::new());
        for (place, verdict) in verdicts {
            match verdict {
                PulseVerdict::Stuck { .. } => is_any_stuck = true,
                PulseVerdict::Traced => traced.push(generation.thread_name(*place)),
                PulseVerdict::GoesOn => go_on.push(generation.thread_name(*place)),
            }
        }
        if !traced.is_empty() {
            let names = traced.join(", ");
            tracing::warn!(
                "generation {number}: a debugger has stopped threads of its worker (pid {pid}), which is left alone: {names}"
            );
        }
        if !go_on.is_empty() {
            let names = go_on.join(", ");
            tracing::info!("generation {number}: threads of its worker (pid {pid}) go on: {names}");
            if generation.stuck().is_empty() {
                generation.recovers();
            }
        }
        if !is_any_stuck {
            return Ok(());
        }
        // All of them, those that were found before too.
        let describe = |(place, state): (usize, char)| {
            format!("{} (state {state}: {})", generation.thread_name(place), meaning(state))
        };
        let stuck: Vec<String> = generation.stuck().into_iter().map(describe).collect();
        let text = format!("has stuck threads: {}", stuck.join(", "));
        let is_first = generation.condemn(&text, false);
        let is_replaced = is_first && self.serving == Some(number) && self.stopping.is_none();
        let what = if is_replaced { "; another worker takes over" } else { "" };
        tracing::error!("generation {number}: its worker (pid {pid}) {text}{what}");
        if is_replaced { self.replace_one_that_runs(idx, None) } else { Ok(()) }
    }

    /// A worker says what cannot be read, or too much. One that serves is replaced; what runs in it may end.
    pub(super) fn is_unheard(&mut self, idx: usize, why: &str) -> Result<(), Refused> {
        let generation = &mut self.generations[idx];
        let (number, pid) = (generation.number, generation.pid());
        let is_first = generation.condemn(why, true);
        // Its last load would count against others until its process ends.
        generation.load = None;
        self.are_loads_new = true;
        let generation = &mut self.generations[idx];
        tracing::error!(
            "generation {number}: its worker (pid {pid}) {why}; the supervisor ignores it from now on"
        );
        match generation.phase {
            GenerationPhase::Building { .. } | GenerationPhase::Opening { .. } => {
                generation.give_up();
                let text = format!("generation {number} never served: its worker {why}");
                self.start_failed(number, Refused::failed(text))
            }
            GenerationPhase::Serving if is_first => self.replace_one_that_runs(idx, None),
            GenerationPhase::Serving | GenerationPhase::Draining { .. } | GenerationPhase::Ended { .. } => {
                Ok(())
            }
        }
    }
}

/// A thread's state, in words.
fn meaning(state: char) -> &'static str {
    match state {
        'T' => "stopped by a signal",
        'D' => "waits for the kernel",
        'R' => "runs without end",
        GONE => "has ended",
        _ => "waits",
    }
}
