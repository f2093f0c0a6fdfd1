//! Numbers that generations share: the load of all others, for limits; and earlier counts, for metrics.

use std::time::Instant;

use super::generation::{Generation, GenerationPhase};
use super::{LOADS_EVERY, Supervisor, loads};
use crate::observe::metrics::Totals;
use crate::process::channel::message::ToWorker;

impl Supervisor {
    /// Adds what a generation that has ended counted to what those before it did.
    pub(super) fn keep_totals(&mut self, totals: &Totals) {
        let mut totals = totals.clone();
        if let Some(serving) =
            self.generations.iter().find(|generation| Some(generation.number) == self.serving)
        {
            totals.move_gone(&serving.report.totals);
            self.totals.move_gone(&serving.report.totals);
        }
        if !self.totals.add_up_to(self.bundle.scope.max_kept_series(), &totals) {
            tracing::warn!("too many metrics of ended generations; new ones are not counted");
        }
    }

    /// The counts of all other generations. Servers that this generation does not have count as gone.
    pub(super) fn base_of(&self, number: u64) -> Totals {
        let mut base = self.totals.clone();
        for generation in self.generations.iter().filter(|generation| generation.number != number) {
            base.add(&generation.report.totals);
        }
        if let Some(own) = self.generations.iter().find(|generation| generation.number == number) {
            base.move_gone(&own.report.totals);
        }
        base
    }

    /// Hands what other generations counted to the one that serves.
    pub(super) fn tell_base(&mut self) {
        self.base_sent = Instant::now();
        let Some(serving) = self.serving else { return };
        let base = self.base_of(serving);
        // One that takes nothing now gets the next.
        let _ = self.generation(serving).map(|generation| generation.order(&ToWorker::Base(base), &[]));
    }

    /// Asks generations for their load while there are several, and tells each that runs the load of all others: at most
    /// every [`LOADS_EVERY`], and only where it has changed.
    pub(super) fn share_loads(&mut self) {
        let has_ended = |generation: &&Generation| matches!(generation.phase, GenerationPhase::Ended { .. });
        let n_alive = self.generations.len() - self.generations.iter().filter(has_ended).count();
        let is_shared = n_alive > 1 || self.starting.is_some();
        for generation in &mut self.generations {
            generation.ask_for_load(is_shared);
        }
        let now = Instant::now();
        if self.are_loads_new && now >= self.loads_told + LOADS_EVERY {
            self.loads_told = now;
            self.are_loads_new = false;
            self.tell_loads();
        }
    }

    /// The same, now.
    pub(super) fn tell_loads(&mut self) {
        let all = self.load_of_all();
        for generation in self.generations.iter_mut().filter(|generation| generation.runs()) {
            let elsewhere = all.without(generation.load.as_ref());
            if elsewhere != generation.told_elsewhere {
                match generation.order(&ToWorker::Elsewhere(elsewhere.clone()), &[]) {
                    Ok(()) => generation.told_elsewhere = elsewhere,
                    // It takes nothing now; one that is condemned may never.
                    Err(_) => self.are_loads_new |= generation.condemned().is_none(),
                }
            }
        }
    }

    pub(super) fn load_of_all(&self) -> loads::LoadSum {
        loads::sum(self.generations.iter().filter_map(|generation| generation.load.as_ref()))
    }
}
