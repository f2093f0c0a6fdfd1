//! The record of a trylist for a client that asks for an explanation, and its text.
//!
//! All other requests pay for a look at an empty pointer each try.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use lb_api::wire;

use super::Trylist;
use super::view::{NextTry, Tried};
use super::why::{Candidate, ChosenBy, ExplainedStep, Explanation, ExplanationFields, MAX_CANDIDATES};
use crate::cluster::endpoint;
use crate::observe::metrics;

impl Trylist<'_> {
    /// Begins to record; before the first [`Trylist::next`].
    #[cold]
    pub(crate) fn explain(&mut self) {
        self.why = Some(Box::default());
        self.note_candidates();
    }

    /// Whether the client asked why.
    #[inline]
    pub(crate) fn is_explained(&self) -> bool {
        self.why.is_some()
    }

    /// The explanation as names and values of header lines: visible ASCII, of limited length. Empty where the client did not
    /// ask.
    pub(crate) fn explanation(&self, now: Instant) -> Vec<(&'static str, String)> {
        match &self.why {
            Some(why) => self.fields(why, now),
            None => Vec::new(),
        }
    }

    /// Records the candidates of the tier that is entered.
    #[cold]
    pub(super) fn note_candidates(&mut self) {
        let Some(why) = &mut self.why else { return };
        let Some(tier) = self.members.tiers.get(self.tier_idx) else { return };
        let endpoints = self.members.endpoints_of(tier);
        let listed = endpoints.len().min(MAX_CANDIDATES);
        why.n_candidates += endpoints.len() - listed;
        why.candidates.extend(endpoints[..listed].iter().map(|of| Candidate {
            endpoint: of.place,
            state: of.counters.state.load(Relaxed),
            weight: of.effective_weight(),
            in_flight: of.counters.in_flight.load(Relaxed),
        }));
    }

    /// Records who makes the next choice, where that is not the module.
    #[inline]
    pub(super) fn note_chooser(&mut self, by: ChosenBy) {
        if let Some(why) = &mut self.why {
            why.by = by;
        }
    }

    /// Records that an endpoint was declined.
    #[cold]
    pub(super) fn note_declined(&mut self, endpoint: usize) {
        let state = self.member(endpoint).counters.state.load(Relaxed);
        let Some(why) = &mut self.why else { return };
        let by = why.by;
        why.push(ExplainedStep::Declined { endpoint, by, state });
    }

    /// Records what was decided. The module explains the choice that it has just made.
    #[cold]
    pub(super) fn note_step(&mut self, step: NextTry) {
        let event = match step {
            NextTry::Wait => ExplainedStep::Busy,
            NextTry::Exhausted => ExplainedStep::End { words: self.ask_why() },
            NextTry::Endpoint(endpoint) => {
                let by = self.why.as_ref().map(|why| why.by).unwrap_or_default();
                let words = if matches!(by, ChosenBy::Module) { self.ask_why() } else { String::new() };
                let in_flight = self.member(endpoint).counters.in_flight.load(Relaxed);
                // Without this request itself.
                ExplainedStep::Try { endpoint, by, in_flight: in_flight.saturating_sub(1), words }
            }
        };
        let Some(why) = &mut self.why else { return };
        why.by = ChosenBy::Module;
        // A request that waits asks again and again.
        if !matches!((&event, why.steps.last()), (ExplainedStep::Busy, Some(ExplainedStep::Busy))) {
            why.push(event);
        }
    }

    fn fields(&self, why: &Explanation, now: Instant) -> Vec<(&'static str, String)> {
        let config = &self.cluster.config;
        let mut fields = ExplanationFields::default();
        fields.push("X-Trylist-Cluster", config.name.as_bytes());
        fields.push("X-Trylist-Module", self.module().as_bytes());
        if let Some(key) = self.view.key {
            fields.push("X-Trylist-Key", key);
        }
        for Candidate { endpoint, state, weight, in_flight } in &why.candidates {
            let (name, state) = (self.name(*endpoint), metrics::state(*state));
            let weight = endpoint::shown_weight(*weight);
            let text = format!("{name}: {state}, weight {weight}, {in_flight} in flight");
            fields.push("X-Trylist-Candidate", text.as_bytes());
        }
        if why.n_candidates > 0 {
            fields.push("X-Trylist-Candidate", format!("and {} more", why.n_candidates).as_bytes());
        }
        let mut tries = self.tries().iter();
        for step in &why.steps {
            match step {
                ExplainedStep::Try { endpoint, by, in_flight, words } => {
                    let (name, result) = (self.name(*endpoint), self.result(tries.next(), now));
                    let by = by.text();
                    let mut text = format!("{name}: {result}; chosen by {by} with {in_flight} in flight");
                    if !words.is_empty() {
                        text = text + ": " + words;
                    }
                    fields.push("X-Trylist-Try", text.as_bytes());
                }
                ExplainedStep::Declined { endpoint, by, state } => {
                    let state = if *state == wire::STATE_AVAILABLE { "full" } else { metrics::state(*state) };
                    let text = format!("{}: {state}; chosen by {}", self.name(*endpoint), by.text());
                    fields.push("X-Trylist-Declined", text.as_bytes());
                }
                ExplainedStep::Busy => fields.push("X-Trylist-Wait", b"for a server to come free"),
                ExplainedStep::End { words } if words.is_empty() => {
                    fields.push("X-Trylist-End", b"none left");
                }
                ExplainedStep::End { words } => {
                    fields.push("X-Trylist-End", format!("none left; the module: {words}").as_bytes());
                }
            }
        }
        if why.n_steps > why.steps.len() {
            let n = why.n_steps - why.steps.len();
            fields.push("X-Trylist-Try", format!("and {n} more steps").as_bytes());
        }
        fields.done
    }

    /// An endpoint as the module calls it, and as the operator does.
    fn name(&self, endpoint: usize) -> String {
        let (tiers, url) = (&self.members.tiers, &self.member(endpoint).url);
        // A member that has left has no number any more.
        let Some(idx) = self.members.index_of_place(endpoint) else { return url.to_string() };
        let at = tiers.iter().rposition(|tier| tier.first <= idx).unwrap_or_default();
        let idx = idx - tiers[at].first;
        match tiers.len() {
            1 => format!("{idx} {url}"),
            _ => format!("tier {at} {idx} {url}"),
        }
    }

    /// How a try ended, or how far the current one has come.
    fn result(&self, tried: Option<&Tried>, now: Instant) -> String {
        let (result, time) = match (tried, &self.current) {
            (Some(tried), _) => {
                let text = match tried.failure {
                    Some(failure) => format!("not established ({})", metrics::failure(failure)),
                    None => metrics::try_result(tried.result).replace('_', " "),
                };
                (text, tried.total)
            }
            (None, Some(current)) => {
                let time = now.saturating_duration_since(current.started);
                (format!("answered {}", current.status), time)
            }
            (None, None) => return "under way".into(),
        };
        format!("{result} after {:.3} ms", time.as_secs_f64() * 1e3)
    }
}
