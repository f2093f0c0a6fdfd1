//! Messages of workers, and the supervisor's reactions.

use super::Supervisor;
use super::generation::HearingTurn;
use crate::observe::metrics::Totals;
use crate::process::channel::message::{ToSupervisor, WorkerReport};
use crate::process::control::{Exit, Refused};
use crate::process::sockets::Shortage;

impl Supervisor {
    /// Reads messages of workers, and sends them pending orders.
    pub(super) fn hear(&mut self) -> Result<(), Refused> {
        for idx in 0..self.generations.len() {
            self.generations[idx].tell_on();
            self.hear_one(idx, HearingTurn::default())?;
        }
        Ok(())
    }

    pub(super) fn hear_one(&mut self, idx: usize, mut turn: HearingTurn) -> Result<(), Refused> {
        loop {
            let number = self.generations[idx].number;
            let message = match self.generations[idx].hear(&mut turn) {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(why) => return self.is_unheard(idx, &why),
            };
            match message {
                ToSupervisor::Built { modules, confinement, warnings } => {
                    self.built(number, modules, confinement, &warnings)?;
                }
                ToSupervisor::Failed { exit, lines } => {
                    self.generations[idx].has_ended();
                    self.start_failed(number, Refused { exit: Exit::of(exit), lines })?;
                }
                ToSupervisor::Ready { shortage } => {
                    self.told_of_shortage(shortage);
                    self.ready(number)?;
                }
                ToSupervisor::Report(report) => self.reported(idx, *report),
                ToSupervisor::Applied { number, result } => self.applied(idx, number, &result),
                ToSupervisor::Saved { state, is_answer } => self.saved(number, state, is_answer)?,
                ToSupervisor::Ended { cut_off, totals } => self.ended(idx, cut_off, totals),
                ToSupervisor::AskStatus => self.asked_for_status(idx),
                ToSupervisor::Events(events) => self.told_events(idx, events),
                ToSupervisor::Lost => self.has_lost(idx),
                ToSupervisor::State { number, json } => self.told_state(number, &json),
                ToSupervisor::Load { is_draining, load } => {
                    self.generations[idx].told_load(load, is_draining);
                    self.are_loads_new = true;
                }
            }
        }
    }

    /// A worker has too few descriptors: logged once for each change.
    fn told_of_shortage(&mut self, shortage: Option<Shortage>) {
        if self.shortage != shortage {
            self.shortage = shortage;
            self.shortage.as_ref().inspect(|shortage| tracing::warn!("{shortage}"));
        }
    }

    /// A worker's report.
    fn reported(&mut self, idx: usize, report: WorkerReport) {
        let generation = &mut self.generations[idx];
        match generation.bundle.scope.check_report(&report, generation.n_added) {
            Ok(()) => generation.report = report,
            Err(what) => generation.ignore(&what),
        }
    }

    /// A worker's last message.
    fn ended(&mut self, idx: usize, cut_off: usize, totals: Totals) {
        let generation = &mut self.generations[idx];
        let (number, pid) = (generation.number, generation.pid());
        if cut_off > 0 && self.stopping.is_none() {
            tracing::warn!("generation {number}: {cut_off} connections closed by the drain timeout");
        }
        tracing::info!("generation {number} has ended (pid {pid})");
        match generation.bundle.scope.check_totals(&totals, generation.n_added) {
            Ok(()) => generation.report.totals = totals,
            Err(what) => generation.ignore(&what),
        }
        generation.load = None;
        generation.has_ended();
        if let Some(stopping) = &mut self.stopping {
            stopping.cut_off = stopping.cut_off.saturating_add(cut_off);
        }
        self.are_loads_new = true;
    }
}
