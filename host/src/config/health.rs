//! Types of a cluster's ejection and health checks.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

/// When a server whose tries fail is left alone, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub struct Ejection {
    /// Tries that fail one after the other; 0 is never.
    pub failures: u32,
    /// Responses that count as failures.
    pub statuses: CountedStatuses,
    /// Percentage of an interval's tries that fail; 0 is never.
    pub failure_percent: u8,
    /// How often the percentage is looked at.
    pub interval: Duration,
    /// With fewer tries in an interval the percentage says nothing.
    pub min_requests: u32,
    /// How long a first ejection lasts; the n-th in a row lasts n times as long.
    pub time: Duration,
    /// But no longer than this.
    pub max_time: Duration,
    /// Percentage of a tier's servers that may be ejected at once, where no other tier has one available. At least one may.
    pub max_percent: u8,
}

/// Statuses of responses that count as failed tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountedStatuses {
    /// None: whoever answers is well.
    None,
    /// 502, 503 and 504: what a gateway says of servers behind it, and an overloaded server of itself.
    Gateway,
    /// 500 to 599.
    All5xx,
}

/// How the servers of a cluster are asked whether they are well.
#[derive(Clone, Debug, PartialEq)]
pub struct HealthCheck {
    /// The question that is asked.
    pub probe: Probe,
    /// From the end of one check to the next.
    pub interval: Duration,
    /// For a whole check, connection included.
    pub timeout: Duration,
    /// Checks in a row that pass before a server that is down is up.
    pub rise: u32,
    /// Checks in a row that fail before a server that is up is down.
    pub fall: u32,
    /// Where checks go, if not to the server's own port.
    pub port: Option<u16>,
}

/// The question of a check.
#[derive(Clone, Debug, PartialEq)]
pub enum Probe {
    /// Whether it can be connected to.
    Tcp,
    /// For a response.
    Http(HttpProbe),
    /// `grpc.health.v1.Health/Check`, over HTTP/2 with prior knowledge.
    Grpc {
        /// The service asked for; empty for the server as a whole.
        service: Arc<str>,
    },
}

/// A request, and the response that says that a server is well.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpProbe {
    /// GET or HEAD.
    pub method: ProbeMethod,
    /// Path and query.
    pub path: Arc<str>,
    /// `Host`; the server's own name where there is none.
    pub host: Option<Arc<str>>,
    /// Of these the response's status must be one.
    pub statuses: Vec<RangeInclusive<u16>>,
    /// Text that the response's body must contain, in its first 64 KiB.
    pub body: Option<Arc<str>>,
}

/// Method of an HTTP check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeMethod {
    /// GET.
    Get,
    /// HEAD.
    Head,
}

impl Default for Ejection {
    /// Suits most clusters: connections that fail eject, statuses do not. Like nginx, a server that was ejected is tried again
    /// after 10 s.
    fn default() -> Self {
        Self {
            failures: 5,
            statuses: CountedStatuses::None,
            failure_percent: 0,
            interval: Duration::from_secs(10),
            min_requests: 50,
            time: Duration::from_secs(10),
            max_time: Duration::from_secs(300),
            max_percent: 50,
        }
    }
}

impl CountedStatuses {
    /// Whether it is one of them.
    #[inline]
    pub fn contain(self, status: u16) -> bool {
        match self {
            Self::None => false,
            Self::Gateway => (502..=504).contains(&status),
            Self::All5xx => (500..=599).contains(&status),
        }
    }
}

impl ProbeMethod {
    /// As requests have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("connect"),
            Self::Http(http) => write!(f, "{} {}", http.method.as_str(), http.path),
            Self::Grpc { service } => write!(f, "gRPC health of {service:?}"),
        }
    }
}
