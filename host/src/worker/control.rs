//! The orders that a running worker takes, from threads that do not own it.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::observe::access_log::AccessLog;
use crate::serve::drain::{Idle, Phase};
use crate::serve::listener::{Fate, Gate};

/// A handle to a worker for whoever does not own it, such as a signal handler's thread.
#[derive(Clone, Debug)]
pub struct Control {
    pub(super) phase: Arc<watch::Sender<Phase>>,
    pub(super) drain_timeout: Duration,
    pub(super) access_log: Option<Arc<AccessLog>>,
    pub(super) gates: Arc<[Arc<Gate>]>,
}

impl Control {
    /// Accepts nothing more and lets running requests end, for as long as the configuration says.
    pub fn drain(&self, idle: Idle) {
        let until = Instant::now() + self.drain_timeout;
        self.enter(Phase::Draining { until, idle });
    }

    /// Accepts nothing more because another generation reads the sockets from now on, all but those of these listeners
    /// (by their place in the configuration), which are read until they are empty.
    pub(super) fn hand_over(&self, removed: &[usize]) {
        self.decide(removed, Fate::Removed);
        self.drain(Idle::AnswerOneMore);
    }

    /// Says what becomes of listeners that were removed when this worker handed over: another worker reads them again, or
    /// nobody does, so that this one reads until nobody waits there any more.
    pub(super) fn decide_removed(&self, listeners: &[usize], are_back: bool) {
        self.decide(listeners, if are_back { Fate::HandedOver } else { Fate::Last });
    }

    fn decide(&self, listeners: &[usize], fate: Fate) {
        for gate in listeners.iter().filter_map(|listener| self.gates.get(*listener)) {
            gate.decide(fate);
        }
    }

    /// Cuts everything off.
    pub fn stop(&self) {
        self.enter(Phase::Stopped);
    }

    /// Whether it was told to drain or to stop.
    pub(super) fn is_ending(&self) -> bool {
        self.phase.borrow().is_ending()
    }

    /// Opens the access log's file anew.
    pub fn reopen_access_log(&self) {
        if let Some(log) = &self.access_log {
            log.reopen();
        }
    }

    /// Goes on with this file as the access log, which somebody else has opened.
    pub(super) fn reopen_access_log_with(&self, file: File) {
        if let Some(log) = &self.access_log {
            log.reopen_with(file);
        }
    }

    fn enter(&self, next: Phase) {
        self.phase.send_if_modified(|phase| {
            let later = match (*phase, next) {
                (Phase::Stopped, _) | (_, Phase::Serving) => false,
                // Those that were promised one more answer close when nobody takes over any more.
                (Phase::Draining { idle, .. }, Phase::Draining { idle: then, .. }) => {
                    idle == Idle::AnswerOneMore && then == Idle::Close
                }
                (Phase::Serving | Phase::Draining { .. }, _) => true,
            };
            if later {
                *phase = next;
            }
            later
        });
    }
}
