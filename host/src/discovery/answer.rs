//! All servers that one source names.

use serde::{Deserialize, Serialize};

use crate::config::MAX_SERVERS;

/// A source may name no more servers,
pub(crate) const MOST_MEMBERS: usize = MAX_SERVERS;
/// and say it in no more bytes.
pub(crate) const MOST_BYTES: usize = 32 << 20;
/// An answer in memory has a few bytes more for each field than its text had.
pub(crate) const MOST_SEALED_BYTES: u64 = 2 * MOST_BYTES as u64;

/// A complete answer, in the order of the source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceAnswer {
    /// Each server once.
    pub(crate) members: Vec<SourceMember>,
}

/// A server as its source describes it; `None` is what the source leaves to the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceMember {
    /// Its URL in the form that identifies it.
    pub(crate) url: String,
    /// 0 to 65,535; 0 means that it is drained.
    pub(crate) weight: Option<u16>,
    /// Its tier.
    pub(crate) tier: Option<u16>,
    /// Maximum concurrent requests; 0 means no limit.
    pub(crate) max_requests: Option<u32>,
    /// Where it is.
    pub(crate) zone: Option<String>,
    /// Its name in clients' sessions.
    pub(crate) route: Option<String>,
    /// The traffic that it is to be given.
    pub(crate) state: SourceState,
    /// Pairs of text for the module, by name.
    pub(crate) metadata: Vec<(String, String)>,
}

/// The traffic that a server is to be given, as its source says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SourceState {
    /// Requests.
    #[default]
    Ready,
    /// The sessions that it has.
    Draining,
    /// Nothing.
    Down,
}
