//! Sources of servers, as `[[cluster.discover]]` configures them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The longest URL of a server that a source or an operator names: a whole host name, scheme and port fit into it. Labels of
/// metrics have a limit too.
pub(crate) const MAX_URL_BYTES: usize = 300;

/// All that a source is asked by. Two sources that are equal in this are one, also over a reload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSpec {
    /// Name of its cluster.
    pub cluster: String,
    /// Its own name, once in the cluster.
    pub name: String,
    /// Where it asks.
    pub kind: SourceKind,
    /// Servers that it may name.
    pub may_name: MayName,
    /// Meaning of an answer without servers, after one with some.
    pub empty: WhenEmpty,
    /// Minimum time between two of its answers.
    pub settle: Duration,
}

/// Where a source asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceKind {
    /// A file that somebody else writes.
    File {
        /// The file.
        path: PathBuf,
    },
    /// A program that writes an answer a line.
    Exec {
        /// The program and its arguments.
        command: Vec<String>,
        /// All of its environment.
        environment: Vec<(String, String)>,
    },
    /// A server that is asked by GET.
    Http {
        /// The kind of record to ask for.
        url: String,
        /// From the beginning of one request to that of the next.
        interval: Duration,
        /// Maximum time of one request.
        timeout: Duration,
        /// The file with the bearer token, read for each request.
        token_file: Option<PathBuf>,
        /// The file with the issuers of its certificate; by default those that the system trusts.
        ca: Option<PathBuf>,
    },
    /// Records of a name.
    Dns {
        /// The name.
        host: String,
        /// The port of its servers; an SRV record has its own.
        port: u16,
        /// Whether its servers are reached by https.
        is_secure: bool,
        /// Which records.
        record: DnsRecord,
    },
}

/// The records of a name that say who the servers are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DnsRecord {
    /// A and AAAA: each address is a server.
    #[default]
    Address,
    /// SRV: each record is a server, with its priority as tier and its weight.
    Srv,
}

/// Servers that a source may name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MayName {
    /// Those that are reached by http.
    pub http: bool,
    /// Those that are reached by https.
    pub https: bool,
    /// Unix sockets in these folders and below.
    pub unix: Vec<PathBuf>,
}

/// The meaning of an answer without servers, after one with some.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum WhenEmpty {
    /// A mistake: the servers of before stay, until an operator accepts it.
    #[default]
    Keep,
    /// There are none.
    Obey,
}

/// Values of a source's servers where it does not give them itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberTemplate {
    /// 1 to 65,535.
    pub weight: u16,
    /// Maximum concurrent requests; 0 means no limit.
    pub max_requests: u32,
    /// Tier.
    pub tier: u16,
    /// Pairs of text for the module.
    pub metadata: Vec<(Arc<str>, Arc<str>)>,
}

impl SourceKind {
    /// Its word in the configuration.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Exec { .. } => "exec",
            Self::Http { .. } => "http",
            Self::Dns { .. } => "dns",
        }
    }
}
