//! Asks name servers for the addresses of one family.
//!
//! `getaddrinfo` on threads of our own would look up names too, but does not tell how long an answer holds. So this is
//! hickory's stub resolver, with the system's name servers, search domains and hosts file (read at the start), or with the
//! name servers that the configuration names.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name as DnsName, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use tokio::time::error::Elapsed;

use super::error::ResolveError;
use super::parts::{Family, LookupEnd};
use crate::config;

/// Attempts within the time for a whole look-up: two packets may be lost.
const QUESTIONS: u32 = 3;

/// Asks name servers.
pub(crate) struct Resolver {
    inner: TokioResolver,
    pub(super) rules: config::ResolverConfig,
    /// Search domains for names with few dots, in order.
    search: Vec<DnsName>,
    /// Names with so many dots are first looked up as they are.
    ndots: usize,
}

/// Records of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FoundRecords<T> {
    /// All of them; none where the name has none, or is none.
    pub(crate) records: Vec<T>,
    /// For how long they hold; of none nobody says so.
    pub(crate) valid_for: Option<Duration>,
}

/// One record of type SRV (RFC 2782).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SrvRecord {
    /// The lowest is tried first.
    pub(crate) priority: u16,
    /// The share within a priority.
    pub(crate) weight: u16,
    /// The port.
    pub(crate) port: u16,
    /// The name of the server; `.` where there decidedly is none.
    pub(crate) target: String,
}

/// How a look-up of records ended.
enum RecordsEnd<T> {
    Has { records: Vec<T>, valid_for: Duration, depth: usize },
    Without(ResolveError),
    Failed(ResolveError),
}

impl Resolver {
    /// Uses the name servers of the configuration, or else the system's. It works on the runtime on which it is used first.
    ///
    /// # Errors
    /// The system's resolver cannot be set up.
    pub(crate) fn new(rules: &config::ResolverConfig) -> io::Result<Self> {
        let of = |servers| (ResolverConfig::from_parts(None, Vec::new(), servers), ResolverOpts::default());
        let (config, system) = if rules.servers.is_empty() {
            read_system_conf().unwrap_or_else(|e| {
                // As the system's own resolver does.
                tracing::warn!("/etc/resolv.conf names no name server, asking 127.0.0.1: {e}");
                of(vec![name_server((Ipv4Addr::LOCALHOST, 53).into())])
            })
        } else {
            of(rules.servers.iter().copied().map(name_server).collect())
        };
        let search = config.domain.iter().chain(&config.search).cloned().collect();
        let ndots = system.ndots;
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        *options = system;
        options.timeout = rules.timeout / QUESTIONS;
        options.attempts = QUESTIONS as usize - 1;
        options.positive_min_ttl = Some(rules.min_ttl);
        options.positive_max_ttl = Some(rules.max_ttl);
        // Failed look-ups are repeated as `HostName` says.
        options.negative_min_ttl = Some(Duration::ZERO);
        options.negative_max_ttl = Some(Duration::ZERO);
        let inner = builder.build().map_err(io::Error::other)?;
        Ok(Self { inner, rules: rules.clone(), search, ndots })
    }

    /// The addresses of one family, within the time for a look-up.
    pub(super) async fn look_up(&self, host: &str, family: Family) -> LookupEnd {
        let asked = tokio::time::timeout(self.rules.timeout, self.ask(host, family));
        asked.await.unwrap_or_else(|_| LookupEnd::Failed(ResolveError::no_answer()))
    }

    async fn ask(&self, host: &str, family: Family) -> LookupEnd {
        let record = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        match self.first_with(host, record, RData::ip_addr).await {
            RecordsEnd::Has { records, valid_for, depth } => {
                LookupEnd::Has { addresses: records, valid_for, depth }
            }
            RecordsEnd::Without(e) => LookupEnd::Without(e),
            RecordsEnd::Failed(e) => LookupEnd::Failed(e),
        }
    }

    /// The SRV records of a name, within the time for a look-up; none if there are none.
    ///
    /// # Errors
    /// The look-up failed.
    pub(crate) async fn services(&self, host: &str) -> Result<FoundRecords<SrvRecord>, ResolveError> {
        let service = |data: &RData| match data {
            RData::SRV(srv) => Some(SrvRecord {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                target: srv.target.to_utf8(),
            }),
            _ => None,
        };
        let asked = self.first_with(host, RecordType::SRV, service);
        self.found(tokio::time::timeout(self.rules.timeout, asked).await)
    }

    /// The addresses of a name in one family, in the same way. None where that family is not to be looked up.
    ///
    /// # Errors
    /// The look-up failed.
    pub(crate) async fn addresses(
        &self,
        host: &str,
        is_v6: bool,
    ) -> Result<FoundRecords<IpAddr>, ResolveError> {
        let (family, record) =
            if is_v6 { (Family::V6, RecordType::AAAA) } else { (Family::V4, RecordType::A) };
        if !family.is_of(self.rules.family) {
            return Ok(FoundRecords { records: Vec::new(), valid_for: None });
        }
        let asked = self.first_with(host, record, RData::ip_addr);
        self.found(tokio::time::timeout(self.rules.timeout, asked).await)
    }

    fn found<T>(&self, end: Result<RecordsEnd<T>, Elapsed>) -> Result<FoundRecords<T>, ResolveError> {
        match end {
            Ok(RecordsEnd::Has { records, valid_for, .. }) => {
                Ok(FoundRecords { records, valid_for: Some(valid_for) })
            }
            Ok(RecordsEnd::Without(_)) => Ok(FoundRecords { records: Vec::new(), valid_for: None }),
            Ok(RecordsEnd::Failed(e)) => Err(e),
            Err(_) => Err(ResolveError::no_answer()),
        }
    }

    /// Tries the candidates of the search list until one has records of this type.
    async fn first_with<T>(
        &self,
        host: &str,
        record: RecordType,
        read: impl Fn(&RData) -> Option<T>,
    ) -> RecordsEnd<T> {
        let names = match self.candidates(host) {
            Ok(names) => names,
            Err(e) => return RecordsEnd::Failed(e),
        };
        let (mut failed, mut without) = (None, None);
        for (depth, name) in names.into_iter().enumerate() {
            match self.inner.lookup(name, record).await {
                Ok(answer) => {
                    let records: Vec<T> =
                        answer.answers().iter().filter_map(|record| read(&record.data)).collect();
                    if records.is_empty() {
                        without = Some(ResolveError::no_address());
                        continue;
                    }
                    let valid_for = answer.valid_until().saturating_duration_since(Instant::now());
                    let valid_for = valid_for.clamp(self.rules.min_ttl, self.rules.max_ttl);
                    return RecordsEnd::Has { records, valid_for, depth };
                }
                Err(NetError::Dns(DnsError::NoRecordsFound(none))) => match none.response_code {
                    ResponseCode::NXDomain => {
                        without.get_or_insert_with(ResolveError::no_such_name);
                    }
                    _ => without = Some(ResolveError::no_address()),
                },
                Err(e) => {
                    failed.get_or_insert_with(|| ResolveError::from(&e));
                }
            }
        }
        match failed {
            Some(e) => RecordsEnd::Failed(e),
            None => RecordsEnd::Without(without.unwrap_or_else(ResolveError::no_address)),
        }
    }

    /// The names that a name as written may stand for, in order: resolv.conf(5), `search` and `ndots`.
    fn candidates(&self, host: &str) -> Result<Vec<DnsName>, ResolveError> {
        let name = DnsName::from_utf8(host).map_err(ResolveError::new)?;
        if name.is_fqdn() {
            return Ok(vec![name]);
        }
        let as_it_is = {
            let mut name = name.clone();
            name.set_fqdn(true);
            name
        };
        let is_first = usize::from(name.num_labels()) > self.ndots || name.is_localhost();
        let mut names = Vec::new();
        if is_first {
            names.push(as_it_is.clone());
        }
        for domain in &self.search {
            // A name too long with the domain is not in it.
            if let Ok(candidate) = name.clone().append_domain(domain)
                && !names.contains(&candidate)
            {
                names.push(candidate);
            }
        }
        if !is_first && !names.contains(&as_it_is) {
            names.push(as_it_is);
        }
        Ok(names)
    }
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("rules", &self.rules).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_few_dots_are_looked_up_in_the_search_domains_first() {
        let domain = |text: &str| DnsName::from_utf8(text).expect("a name");
        let mut resolver = Resolver::new(&config::ResolverConfig {
            servers: vec![([127, 0, 0, 1], 53).into()],
            ..config::ResolverConfig::default()
        })
        .expect("a resolver");
        let names = |resolver: &Resolver, host: &str| {
            let names = resolver.candidates(host).expect("a good name");
            names.iter().map(DnsName::to_string).collect::<Vec<_>>()
        };
        assert_eq!(names(&resolver, "app"), ["app."]);
        resolver.search = vec![domain("a.example."), domain("example.")];
        resolver.ndots = 2;
        assert_eq!(names(&resolver, "app.b"), ["app.b.a.example.", "app.b.example.", "app.b."]);
        assert_eq!(names(&resolver, "app.b.c"), ["app.b.c.", "app.b.c.a.example.", "app.b.c.example."]);
        assert_eq!(names(&resolver, "app."), ["app."]);
    }
}
