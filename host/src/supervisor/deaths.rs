//! What becomes of a worker that dies or hangs, and of the module that is to blame for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bundle::short_hash;
use super::generation::{Blame, Generation};
use super::start::Reason;
use super::watchdog::Finding;
use super::{Supervisor, quarantine};
use crate::channel::message::ToWorker;
use crate::control::Refused;

impl Supervisor {
    /// A worker has died. It is no longer among the generations.
    pub(super) fn died(
        &mut self,
        generation: &Generation,
        text: &str,
        blame: Option<Blame>,
    ) -> Result<(), Refused> {
        let number = generation.number;
        tracing::error!("generation {number}: its worker (pid {}) {text}", generation.pid());
        // What never served while another does has only failed to start: the file may be the very one that serves.
        let counts = generation.ready.is_some() || self.serving.is_none();
        let is_held = blame.is_some_and(|blame| counts && self.blame(generation, blame, text));
        if let Some(stopping) = &mut self.stopping {
            stopping.cut_off += usize::try_from(generation.report.connections).unwrap_or(usize::MAX).max(1);
        }
        if self.serving == Some(number) {
            self.serving = None;
            return self.replace(generation, blame, is_held);
        }
        let is_of = |starting: &super::start::Starting| starting.is_of(number);
        if self.starting.as_ref().is_some_and(is_of) {
            let text = format!("generation {number} never served: its worker {text}");
            return self.start_failed(number, Refused::failed(text));
        }
        Ok(())
    }

    /// Holds a module's file to account for a worker. True where it is in quarantine from now on.
    fn blame(&mut self, generation: &Generation, blame: Blame, text: &str) -> bool {
        let Some(copy) = generation.copies.get(blame.module) else { return false };
        let id = &generation.bundle.config.modules[blame.module].id;
        let limit = generation.bundle.config.supervision.module_deaths;
        let is_held = self.quarantine.died(copy.sha256, id, text, limit, Instant::now());
        if is_held {
            tracing::error!(
                "module \"{id}\": {} ({}) is in quarantine: it brought down {limit} workers within 60 s; no worker opens it, and \
                 requests of its clusters go to servers chosen by the host, until the file changes or `trylist module \
                 release {id}`",
                copy.file.display(),
                short_hash(&copy.sha256)
            );
        }
        is_held
    }

    /// Starts a worker in place of the one that served. What was rolled back once is not again.
    fn replace(&mut self, dead: &Generation, blame: Option<Blame>, is_held: bool) -> Result<(), Refused> {
        if self.stopping.is_some() {
            return Ok(());
        }
        if self.starting.is_some() {
            // Whatever is being started takes over all the sooner.
            return self.save_no_more();
        }
        if let Some(before) = blame.and_then(|blame| self.roll_back_to(dead, blame)) {
            let number = dead.number;
            tracing::error!(
                "generation {number} is rolled back: a module killed it within its probation; what served before it is \
                 started again, and the files as they are now are not served (mend them and reload)"
            );
            return self.begin(before, Reason::RollBack, Vec::new());
        }
        let served = dead.ready.map_or(Duration::ZERO, |ready| ready.elapsed());
        // With the module gone, the next one has nothing to die of.
        let wait = if is_held { Duration::ZERO } else { self.backoff.died(served) };
        if wait.is_zero() {
            return self.begin(Arc::clone(&self.bundle), Reason::Replace, Vec::new());
        }
        tracing::error!("workers die one after the other; {}", quarantine::next_attempt(wait));
        self.replace_at = Some(Instant::now() + wait);
        Ok(())
    }

    /// What served before, if a module that was not in it killed a new generation within its probation.
    fn roll_back_to(&mut self, dead: &Generation, blame: Blame) -> Option<Arc<super::Bundle>> {
        let served = dead.ready?.elapsed();
        // Once: what was rolled back to has another reason to be there, and there is no bundle before it.
        if dead.reason != Reason::Reload || served >= dead.bundle.config.supervision.probation {
            return None;
        }
        let condemned = dead.copies.get(blame.module)?.sha256;
        self.previous.take_if(|previous| !previous.has_module(&condemned))
    }

    /// Looks after the calls into modules of every worker, if it is time to.
    pub(super) fn look_after_calls(&mut self) -> Result<(), Refused> {
        let now = Instant::now();
        let interval = self.generations.iter().map(Generation::look_interval).min();
        if interval.is_none_or(|interval| now < self.looked + interval) {
            return Ok(());
        }
        self.looked = now;
        for idx in 0..self.generations.len() {
            for finding in self.generations[idx].look(now) {
                self.found(idx, finding)?;
            }
        }
        Ok(())
    }

    fn found(&mut self, idx: usize, finding: Finding) -> Result<(), Refused> {
        let generation = &mut self.generations[idx];
        let (crumb, charged, goes_on) = match finding {
            Finding::Hang { crumb, charged, .. } => (crumb, charged, true),
            Finding::Overrun { crumb, charged, .. } => (crumb, charged, false),
        };
        let Some(blame) = generation.blame(crumb) else { return Ok(()) };
        let module = generation.bundle.config.modules[blame.module].id.to_string();
        let overrun = ToWorker::Overrun { cluster: blame.cluster, module, charged, goes_on };
        generation.tell(&overrun, &[]);
        if !goes_on {
            return Ok(());
        }
        let (number, what) = (generation.number, generation.describe(blame));
        let text = format!("hangs inside {what} (for {charged:.1?} so far)");
        tracing::error!("generation {number}: a thread of its worker (pid {}) {text}", generation.pid());
        let is_first = generation.hang.replace(blame).is_none();
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
        let mut generation = self.generations.remove(idx);
        let number = generation.number;
        let is_held = is_first && self.blame(&generation, blame, text);
        if generation.do_all_hang() {
            tracing::error!("generation {number}: all of its threads hang, so its worker is killed");
            self.serving = None;
            generation.give_up();
        }
        let result = if is_first { self.replace(&generation, Some(blame), is_held) } else { Ok(()) };
        // In its place, since the oldest come first.
        let idx = self.generations.partition_point(|other| other.number < number);
        self.generations.insert(idx, generation);
        result
    }
}
