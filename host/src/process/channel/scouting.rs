//! The messages between supervisor and scout.
//!
//! ```text
//! supervisor                          scout
//! Start: whose rights it has ───────►  becomes that user
//! Follow: a source, its last answer ►  asks it from now on
//!             ◄───────────────────────  Answer, in sealed memory that the supervisor does not read
//!             ◄───────────────────────  Report, whenever something of it has changed
//! Accept ────────────────────────────►
//!             ◄───────────────────────  Accepted
//! Leave ─────────────────────────────►  asks it no more
//! KeepActs ──────────────────────────►  writes them to the files of `state`
//!             ◄───────────────────────  ActsKept
//! ```
//! The scout ends when the socket does; a supervisor that died has closed it too.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ChannelMessage;
use crate::config::{Config, Place, ResolverConfig, RunAs, SourceSpec};
use crate::discovery::follow::SourceReport;
use crate::os::log::LogSettings;

/// To the scout.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToScout {
    /// First of all. Descriptors: the log's file if it has one; the four files of [`ScoutSetup::state`].
    Start(Box<ScoutSetup>),
    /// Follow a source. Descriptor: its last answer, where one is known.
    Follow {
        /// Its number, never used again.
        source: u64,
        /// The source.
        spec: Box<SourceSpec>,
    },
    /// No generation has this source any more.
    Leave {
        /// Its number.
        source: u64,
    },
    /// Obey the answer that is held back.
    Accept {
        /// The number of the source.
        source: u64,
    },
    /// Operators' acts, to be on the disk over restarts. Those told later replace these.
    KeepActs {
        /// Their number.
        number: u64,
        /// The content of the file.
        body: String,
    },
    /// The log is to go on in another file. Descriptor: that file.
    ReopenOwnLog,
}

/// Terms of a scout's start. Where they change, another scout is started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ScoutSetup {
    user: Option<ScoutAccount>,
    group: Option<ScoutAccount>,
    /// Whether it may leave a core dump.
    pub(crate) core_dumps: bool,
    /// Whether it is confined as workers are: not where a source is a command.
    pub(crate) has_sandbox: bool,
    /// How it looks names up.
    pub(crate) resolver: ResolverConfig,
    /// Where it keeps the last answers.
    pub(crate) state: Option<PathBuf>,
    /// Its log.
    pub(crate) log: LogSettings,
}

/// A user or a group, and where the configuration names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct ScoutAccount {
    name: String,
    file: String,
    line: usize,
}

/// From the scout.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromScout {
    /// A complete answer. Descriptor: its memory, sealed.
    Answer {
        /// The number of the source.
        source: u64,
        /// How many servers it names.
        n_members: u32,
        /// How the source is with it.
        report: SourceReport,
    },
    /// How a source is.
    Report {
        /// The number of the source.
        source: u64,
        /// How it is.
        report: SourceReport,
    },
    /// The result of [`ToScout::Accept`].
    Accepted {
        /// The number of the source.
        source: u64,
        /// How many servers the answer names that was held back; `None` where none was.
        n_members: Option<u32>,
    },
    /// The result of [`ToScout::KeepActs`].
    ActsKept {
        /// Number of the acts that were written last.
        number: u64,
        /// Why they are not on the disk, if they are not.
        error: Option<String>,
    },
}

impl ScoutSetup {
    /// With the rights of workers, and that to start commands where a source is one.
    pub(crate) fn of(config: &Config, starts_commands: bool) -> Self {
        let Config { run_as, core_dumps, resolver, state, log, .. } = config;
        let account = |account: &Option<(Box<str>, Place)>| {
            account.as_ref().map(|(name, place)| ScoutAccount {
                name: name.to_string(),
                file: place.file.to_string(),
                line: place.line,
            })
        };
        Self {
            user: account(&run_as.user),
            group: account(&run_as.group),
            core_dumps: *core_dumps,
            has_sandbox: config.supervision.sandbox && !starts_commands,
            resolver: resolver.clone(),
            state: state.clone(),
            log: log.clone(),
        }
    }

    /// The user and group whose rights it has.
    pub(crate) fn run_as(self) -> RunAs {
        let account = |account: ScoutAccount| {
            (account.name.into(), Place { file: account.file.into(), line: account.line })
        };
        RunAs { user: self.user.map(account), group: self.group.map(account) }
    }
}

impl ChannelMessage for ToScout {
    /// Those of its start, and the one of the memory that a message would be in.
    const MOST_DESCRIPTORS: usize = 6;

    /// It comes from the supervisor, which a scout trusts.
    fn most_bytes(_: u8) -> u64 {
        1 << 30
    }
}

impl ChannelMessage for FromScout {
    /// The answer's, and the one of the memory that a message would be in.
    const MOST_DESCRIPTORS: usize = 2;

    /// A line of text at most.
    fn most_bytes(_: u8) -> u64 {
        16 << 10
    }
}
