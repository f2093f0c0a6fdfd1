//! The last events: changes of servers' states, ejections, reloads, deaths, refusals.
//!
//! ```text
//! worker: note ─► relay ─► supervisor: numbers those of all processes, and keeps them over crashes
//!                              │
//!         push ◄───────────────┘   without a supervisor, the worker numbers them itself
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::observe::time::{rfc3339, unix_ms};

/// So many are kept.
pub(crate) const MAX_EVENTS: usize = 200;
/// The longest text and name of an event.
const MAX_TEXT_BYTES: usize = 512;

/// Kinds of events. The supervisor may have others of a worker of a later version.
pub(crate) const KINDS: [&str; 9] =
    ["server", "panic", "refused", "quarantine", "slow", "reload", "death", "hang", "act"];

/// Something that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number. A later event has a higher one, also after a restart; 0 before it has one.
    pub id: u64,
    /// When it happened: RFC 3339, UTC.
    pub at: String,
    /// One of `KINDS`.
    pub kind: String,
    /// Number of the generation.
    pub generation: Option<u64>,
    /// Name of the cluster.
    pub cluster: Option<String>,
    /// URL of the server.
    pub server: Option<String>,
    /// ID of the module.
    pub module: Option<String>,
    /// The event, in words.
    pub text: String,
}

impl Event {
    /// Of now.
    pub(crate) fn now(kind: &str, text: impl ToString) -> Self {
        Self::at(unix_ms(SystemTime::now()), kind, text)
    }

    #[expect(clippy::needless_pass_by_value, reason = "most callers have just made it")]
    pub(crate) fn at(at_ms: u64, kind: &str, text: impl ToString) -> Self {
        debug_assert!(KINDS.contains(&kind), "{kind}");
        Self {
            at: rfc3339(at_ms),
            kind: kind.to_owned(),
            text: shortened(text.to_string()),
            ..Self::default()
        }
    }

    #[must_use]
    pub(crate) fn of_generation(mut self, generation: u64) -> Self {
        self.generation = Some(generation);
        self
    }

    #[must_use]
    pub(crate) fn of_cluster(mut self, cluster: &str) -> Self {
        self.cluster = Some(shortened(cluster.to_owned()));
        self
    }

    #[must_use]
    pub(crate) fn of_server(mut self, server: &str) -> Self {
        self.server = Some(shortened(server.to_owned()));
        self
    }

    #[must_use]
    pub(crate) fn of_module(mut self, module: &str) -> Self {
        self.module = Some(shortened(module.to_owned()));
        self
    }

    /// Whether its kind is a word, and nothing of it is longer than events are: it may be another process's.
    pub(crate) fn is_sound(&self) -> bool {
        let is_word = |kind: &str| {
            !kind.is_empty() && kind.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
        };
        let optional = [&self.cluster, &self.server, &self.module];
        let texts = [&self.at, &self.kind, &self.text].into_iter();
        let mut texts = texts.chain(optional.into_iter().flatten());
        is_word(&self.kind) && texts.all(|text| text.len() <= MAX_TEXT_BYTES)
    }
}

fn shortened(mut text: String) -> String {
    let end = (0..=MAX_TEXT_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    text.truncate(end.unwrap_or(0));
    text
}

/// The last events, in the order of their numbers.
#[derive(Debug)]
pub(crate) struct Numbered {
    last: VecDeque<Event>,
    newest: u64,
}

impl Default for Numbered {
    /// Numbers begin at the time, so that they go on after a restart.
    fn default() -> Self {
        let seconds = unix_ms(SystemTime::now()) / 1000;
        Self { last: VecDeque::new(), newest: seconds * 1000 }
    }
}

impl Numbered {
    /// One more, which gets the next number.
    pub(crate) fn add(&mut self, mut event: Event) {
        event.id = self.newest + 1;
        self.put(event);
    }

    /// One that has a number.
    fn put(&mut self, event: Event) {
        self.newest = event.id;
        if self.last.len() >= MAX_EVENTS {
            self.last.pop_front();
        }
        self.last.push_back(event);
    }

    /// Number of the newest.
    pub(crate) fn newest(&self) -> u64 {
        self.newest
    }

    /// Those with a higher number than this.
    pub(crate) fn after(&self, id: u64) -> Vec<Event> {
        let first = self.last.partition_point(|event| event.id <= id);
        self.last.range(first..).cloned().collect()
    }
}

/// The events as a worker shows them.
pub struct EventLog {
    events: Mutex<Numbered>,
    newest: watch::Sender<u64>,
    /// Takes those of this worker, to be numbered elsewhere.
    relay: Option<Box<dyn Fn(Vec<Event>) + Send + Sync>>,
}

impl EventLog {
    /// Without any.
    pub(crate) fn new(relay: Option<Box<dyn Fn(Vec<Event>) + Send + Sync>>) -> Self {
        Self { events: Mutex::default(), newest: watch::channel(0).0, relay }
    }

    /// Something has happened here.
    pub(crate) fn note(&self, events: Vec<Event>) {
        match &self.relay {
            Some(relay) => relay(events),
            None => {
                let mut known = self.events();
                events.into_iter().for_each(|event| known.add(event));
                self.newest.send_replace(known.newest());
            }
        }
    }

    /// These have numbers.
    pub(crate) fn push(&self, events: Vec<Event>) {
        let mut known = self.events();
        events.into_iter().for_each(|event| known.put(event));
        self.newest.send_replace(known.newest());
    }

    /// Those with a higher number than this.
    pub(crate) fn after(&self, id: u64) -> Vec<Event> {
        self.events().after(id)
    }

    /// Says when there are more.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    fn events(&self) -> MutexGuard<'_, Numbered> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for EventLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventLog").field("newest", &*self.newest.borrow()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_are_kept_and_their_numbers_rise() {
        let log = EventLog::new(None);
        log.note((0..MAX_EVENTS + 5).map(|n| Event::now("act", n)).collect());
        let all = log.after(0);
        assert_eq!((all.len(), all[0].text.as_str()), (MAX_EVENTS, "5"));
        assert!(all.windows(2).all(|two| two[1].id == two[0].id + 1));
        let newest = all[MAX_EVENTS - 1].id;
        assert_eq!((log.after(newest - 2).len(), log.after(newest).len()), (2, 0));
        assert!(newest < 1 << 53, "JSON's numbers are exact");
    }

    #[test]
    fn a_long_text_is_cut_where_a_character_ends() {
        let event = Event::now("act", "é".repeat(MAX_TEXT_BYTES));
        assert!(event.is_sound() && event.text.len() >= MAX_TEXT_BYTES - 1);
        // A line of its own in a stream of events.
        assert!(!Event { kind: "act\ndata: x".into(), ..event.clone() }.is_sound());
        assert!(!Event { kind: String::new(), ..event.clone() }.is_sound());
        assert!(!Event { text: "x".repeat(MAX_TEXT_BYTES + 1), ..event }.is_sound());
    }
}
