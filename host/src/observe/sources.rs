//! How a source of servers is, as commands, the API and metrics show it.

use serde::{Deserialize, Serialize};

/// A source of servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Name of its cluster.
    pub cluster: String,
    /// Its own name.
    pub source: String,
    /// Its type, as in the configuration.
    pub kind: String,
    /// How many servers its last answer names; nothing before the first.
    pub members: Option<u32>,
    /// Number of that answer. Numbers rise with every answer of any source.
    pub answer: Option<u64>,
    /// Age of that answer, seconds.
    pub age_s: Option<u64>,
    /// An answer without servers is held back.
    pub held: bool,
    /// Answers that were news, since the scout was started.
    pub answers: u64,
    /// Failures since the scout was started.
    pub errors: u64,
    /// Answers without servers that were held back since then.
    pub holds: u64,
    /// The failure now.
    pub error: Option<String>,
}
