//! Why a request went where it went, for who asks and may: what the module saw, what it said, and what came of it.
//!
//! It is written down only for such a request; all others pay for a look at an empty pointer each try.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use lb_api::wire;

use super::{Step, Tried, Trylist};
use crate::cluster::endpoint;
use crate::observe::metrics;

/// Candidates of a tier that are listed. More are counted: who has ten thousand servers wants to know of those tried.
const MAX_CANDIDATES: usize = 16;
/// Steps that are told. More are counted.
const MAX_STEPS: usize = 32;
/// Bytes of a value. What a module says, and what servers are called, may be longer than anybody reads.
const MAX_VALUE_BYTES: usize = 400;
/// Bytes of all values together: clients and proxies before us commonly take heads of 8 KiB and more.
const MAX_BYTES: usize = 6 * 1024;

/// What was written down of a request.
#[derive(Debug, Default)]
pub(super) struct Why {
    candidates: Vec<Candidate>,
    /// Beyond [`MAX_CANDIDATES`].
    n_candidates: usize,
    steps: Vec<Event>,
    n_steps: usize,
    /// Who makes the choice that comes next.
    by: By,
}

/// An endpoint as the module saw it before its first choice.
#[derive(Debug)]
struct Candidate {
    endpoint: usize,
    state: u32,
    weight: u32,
    in_flight: u32,
}

/// Who chose.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum By {
    #[default]
    Module,
    /// The request is of a session that has its endpoint.
    Session,
    /// Where the module's answer cannot be used, or where it has none.
    Host,
}

/// What happened, in its order.
#[derive(Debug)]
enum Event {
    /// A try began. How it ended is in the list of tries.
    Try { endpoint: usize, by: By, in_flight: u32, words: String },
    /// An endpoint was chosen that takes nothing now.
    Declined { endpoint: usize, by: By, state: u32 },
    /// All are full.
    Busy,
    /// None is left.
    End { words: String },
}

impl Trylist<'_> {
    /// Has it write down why; before the first [`Trylist::next`].
    #[cold]
    pub fn explain(&mut self) {
        self.why = Some(Box::default());
        self.note_candidates();
    }

    /// Whether somebody asked why.
    #[inline]
    pub fn is_explained(&self) -> bool {
        self.why.is_some()
    }

    /// Why, as names and values of header lines: visible ASCII, and not more than a head has room for. Nothing where
    /// nobody asked.
    pub fn explanation(&self, now: Instant) -> Vec<(&'static str, String)> {
        match &self.why {
            Some(why) => self.fields(why, now),
            None => Vec::new(),
        }
    }

    /// The candidates of the tier that is entered.
    #[cold]
    pub(super) fn note_candidates(&mut self) {
        let Some(why) = &mut self.why else { return };
        let (first, n) = (self.tier.first, self.tier.n_endpoints);
        let listed = n.min(MAX_CANDIDATES);
        why.n_candidates += n - listed;
        why.candidates.extend(self.cluster.endpoints[first..first + listed].iter().zip(first..).map(
            |(of, endpoint)| Candidate {
                endpoint,
                state: of.counters.state.load(Relaxed),
                weight: of.effective_weight(),
                in_flight: of.counters.in_flight.load(Relaxed),
            },
        ));
    }

    /// Who makes the choice that is made now, where that is not the module.
    #[inline]
    pub(super) fn note_chooser(&mut self, by: By) {
        if let Some(why) = &mut self.why {
            why.by = by;
        }
    }

    /// An endpoint was declined.
    #[cold]
    pub(super) fn note_declined(&mut self, endpoint: usize) {
        let Some(why) = &mut self.why else { return };
        let state = self.cluster.endpoints[endpoint].counters.state.load(Relaxed);
        let by = why.by;
        why.push(Event::Declined { endpoint, by, state });
    }

    /// What was decided. Asked here, the module speaks of the choice that it has just made.
    #[cold]
    pub(super) fn note_step(&mut self, step: Step) {
        let event = match step {
            Step::Wait => Event::Busy,
            Step::Exhausted => Event::End { words: self.ask_why() },
            Step::Try(endpoint) => {
                let by = self.why.as_ref().map(|why| why.by).unwrap_or_default();
                let words = if matches!(by, By::Module) { self.ask_why() } else { String::new() };
                let in_flight = self.cluster.endpoints[endpoint].counters.in_flight.load(Relaxed);
                // Without this request itself.
                Event::Try { endpoint, by, in_flight: in_flight.saturating_sub(1), words }
            }
        };
        let Some(why) = &mut self.why else { return };
        why.by = By::Module;
        // Who waits asks again and again.
        if !matches!((&event, why.steps.last()), (Event::Busy, Some(Event::Busy))) {
            why.push(event);
        }
    }

    fn fields(&self, why: &Why, now: Instant) -> Vec<(&'static str, String)> {
        let config = &self.cluster.config;
        let mut fields = Fields::default();
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
                Event::Try { endpoint, by, in_flight, words } => {
                    let (name, result) = (self.name(*endpoint), self.result(tries.next(), now));
                    let by = by.text();
                    let mut text = format!("{name}: {result}; chosen by {by} with {in_flight} in flight");
                    if !words.is_empty() {
                        text = text + ": " + words;
                    }
                    fields.push("X-Trylist-Try", text.as_bytes());
                }
                Event::Declined { endpoint, by, state } => {
                    let state = if *state == wire::STATE_AVAILABLE { "full" } else { metrics::state(*state) };
                    let text = format!("{}: {state}; chosen by {}", self.name(*endpoint), by.text());
                    fields.push("X-Trylist-Declined", text.as_bytes());
                }
                Event::Busy => fields.push("X-Trylist-Wait", b"for a server to come free"),
                Event::End { words } if words.is_empty() => fields.push("X-Trylist-End", b"none left"),
                Event::End { words } => {
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
        let tiers = &self.cluster.tiers;
        let at = tiers.iter().rposition(|tier| tier.first <= endpoint).unwrap_or_default();
        let (idx, url) = (endpoint - tiers[at].first, &self.cluster.endpoints[endpoint].url);
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

impl Why {
    fn push(&mut self, event: Event) {
        self.n_steps += 1;
        if self.steps.len() < MAX_STEPS {
            self.steps.push(event);
        }
    }
}

impl By {
    fn text(self) -> &'static str {
        match self {
            Self::Module => "the module",
            Self::Session => "its session",
            Self::Host => "the host",
        }
    }
}

/// Header lines, as far as there is room.
#[derive(Debug, Default)]
struct Fields {
    done: Vec<(&'static str, String)>,
    bytes: usize,
}

impl Fields {
    fn push(&mut self, name: &'static str, value: &[u8]) {
        let value = plain(value);
        self.bytes += value.len();
        if self.bytes <= MAX_BYTES {
            self.done.push((name, value));
        }
    }
}

/// Text as a header's value may have it, wherever it comes from.
pub(super) fn plain(text: &[u8]) -> String {
    let visible = |c: char| match c {
        ' '..='~' => c,
        _ if c.is_control() => ' ',
        _ => '?',
    };
    // What is cut off is not looked at; no character has more than four bytes.
    let text = &text[..text.len().min(4 * MAX_VALUE_BYTES)];
    let mut plain: String = String::from_utf8_lossy(text).chars().map(visible).collect();
    if plain.len() > MAX_VALUE_BYTES {
        plain.truncate(MAX_VALUE_BYTES - 3);
        plain += "...";
    }
    plain.trim().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_gets_out_of_its_header_or_fills_the_head() {
        assert_eq!(plain(b" a\r\nSet-Cookie: x=1\0\x7f\t"), "a  Set-Cookie: x=1");
        assert_eq!(plain("größe \u{2028}\u{85}".as_bytes()), "gr??e ?");
        assert_eq!(plain(b"\xff\xfe"), "??");
        for long in ["x".repeat(10_000), "ß".repeat(10_000)] {
            let plain = plain(long.as_bytes());
            assert_eq!((plain.len(), &plain[MAX_VALUE_BYTES - 3..]), (MAX_VALUE_BYTES, "..."));
        }
        let mut fields = Fields::default();
        for _ in 0..1000 {
            fields.push("X", &[b'x'; 100]);
        }
        assert_eq!(fields.done.len(), MAX_BYTES / 100);
    }
}
