//! The phases of a worker: serving, draining, stopped.

use std::time::Instant;

use serde::{Deserialize, Serialize};

/// The phase of a worker. It only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It accepts and serves.
    Serving,
    /// It accepts nothing; running requests may go on until `until`.
    Draining {
        /// When requests that still run are cut off.
        until: Instant,
        /// The treatment of idle connections.
        idle: Idle,
    },
    /// Everything is cut off.
    Stopped,
}

/// The treatment of idle connections when a drain begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Idle {
    /// They close at once: no other generation takes over.
    Close,
    /// They stay for one more request, answered with `Connection: close`: a client that is just sending one is never
    /// cut off while another generation takes over. The listening sockets are that generation's too, so this one lets go
    /// of them at once.
    AnswerOneMore,
}

impl Phase {
    /// Whether responses announce the end of their connection.
    pub fn is_ending(self) -> bool {
        self != Self::Serving
    }

    /// Whether another generation takes over.
    pub fn answers_one_more(self) -> bool {
        matches!(self, Self::Draining { idle: Idle::AnswerOneMore, .. })
    }
}
