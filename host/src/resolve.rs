//! Names of servers, looked up as often as their TTL says, beside the requests: never on a request's way but for the first
//! time.
//!
//! A small resolver of our own thread would do what `getaddrinfo` does, but that does not tell how long an answer holds; so
//! this is hickory's stub resolver, with the system's name servers, search domains and hosts file (read at the start), or
//! with the name servers that the configuration names.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use tokio::sync::Notify;

use crate::{config, discovery};

/// A failed look-up is made again after the shortest TTL, then after twice as long, and so on up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Of the time for a whole look-up each question gets this part: two lost packets fit in.
const QUESTIONS: u32 = 3;

/// Who is asked for names.
pub struct Resolver {
    inner: TokioResolver,
    rules: config::Resolver,
}

/// Where an endpoint is.
#[derive(Debug)]
pub enum Addresses {
    /// It was written as an address.
    Fixed([SocketAddr; 1]),
    /// It was written as a name.
    Named(Arc<Name>),
    /// A Unix socket.
    Unix(Arc<Path>),
}

/// A name and what it stands for now.
#[derive(Debug)]
pub struct Name {
    host: Box<str>,
    port: u16,
    answer: ArcSwapOption<Answer>,
    answered: Notify,
}

/// What a look-up brought.
pub type Answer = Result<Vec<SocketAddr>, ResolveError>;

/// Why a name has no address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolveError(Box<str>);

impl Resolver {
    /// One that asks whom the configuration says, or else the system's name servers. It works on the runtime on which it is
    /// used first.
    ///
    /// # Errors
    /// What the system does not give.
    pub fn new(rules: &config::Resolver) -> io::Result<Self> {
        let of = |servers: Vec<NameServerConfig>| {
            let config = ResolverConfig::from_parts(None, Vec::new(), servers);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        };
        let mut builder = if rules.servers.is_empty() {
            TokioResolver::builder_tokio().unwrap_or_else(|e| {
                // As the system's own resolver does.
                tracing::warn!("/etc/resolv.conf names no name server, asking 127.0.0.1: {e}");
                of(vec![name_server((Ipv4Addr::LOCALHOST, 53).into())])
            })
        } else {
            of(rules.servers.iter().copied().map(name_server).collect())
        };
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.timeout = rules.timeout / QUESTIONS;
        options.attempts = QUESTIONS as usize - 1;
        options.positive_min_ttl = Some(rules.min_ttl);
        options.positive_max_ttl = Some(rules.max_ttl);
        // How often to ask again is said below, whatever the name server would have kept.
        options.negative_min_ttl = Some(Duration::ZERO);
        options.negative_max_ttl = Some(Duration::ZERO);
        let inner = builder.build().map_err(io::Error::other)?;
        Ok(Self { inner, rules: rules.clone() })
    }

    /// The addresses of a name, and for how long they hold.
    pub(crate) async fn look_up(&self, host: &str) -> Result<(Vec<IpAddr>, Duration), ResolveError> {
        let answer = match tokio::time::timeout(self.rules.timeout, self.inner.lookup_ip(host)).await {
            Ok(answer) => answer.map_err(|e| ResolveError::from(&e))?,
            Err(_) => return Err(ResolveError::no_answer()),
        };
        let valid_for = answer.valid_until().saturating_duration_since(Instant::now());
        let addresses: Vec<IpAddr> = answer.iter().collect();
        if addresses.is_empty() {
            return Err(ResolveError("the name has no address".into()));
        }
        Ok((addresses, valid_for.clamp(self.rules.min_ttl, self.rules.max_ttl)))
    }
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for connection in &mut server.connections {
        connection.port = address.port();
    }
    server
}

impl Addresses {
    /// Of an address as written.
    pub fn fixed(address: SocketAddr) -> Self {
        Self::Fixed([address])
    }

    /// Of a name, which has no address until [`Name::keep_resolved`] has found one.
    pub fn named(host: &str, port: u16) -> Self {
        Self::Named(Name::with(host, port, &[]))
    }

    /// The address as far as it is fixed.
    pub fn as_fixed(&self) -> Option<SocketAddr> {
        match self {
            Self::Fixed([address]) => Some(*address),
            Self::Named(_) | Self::Unix(_) => None,
        }
    }

    /// Whether a connection that goes there is one to the endpoint still, as far as that can change.
    pub fn still_contain(&self, peer: Option<SocketAddr>) -> bool {
        match self {
            Self::Fixed(_) | Self::Unix(_) => true,
            Self::Named(_) => peer.is_some_and(|peer| self.contain(peer)),
        }
    }

    /// Whether this is an address of the endpoint.
    pub fn contain(&self, address: SocketAddr) -> bool {
        match self {
            Self::Fixed(own) => own[0] == address,
            Self::Named(name) => match name.answer.load().as_deref() {
                Some(Ok(own)) => own.contains(&address),
                Some(Err(_)) | None => true,
            },
            Self::Unix(_) => false,
        }
    }
}

impl Name {
    /// One that has these addresses already, or none yet.
    pub(crate) fn with(host: &str, port: u16, known: &[IpAddr]) -> Arc<Self> {
        let known: Vec<_> = known.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        let answer = (!known.is_empty()).then(|| Arc::new(Ok(known)));
        Arc::new(Self { host: host.into(), port, answer: answer.into(), answered: Notify::new() })
    }

    /// The name itself.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Waits until its addresses, in order, are others than these.
    pub(crate) async fn changed_from(&self, known: &[IpAddr]) -> Vec<IpAddr> {
        loop {
            let answered = self.answered.notified();
            if let Some(Ok(found)) = self.answer.load_full().as_deref() {
                let found = discovery::in_order(found.iter().map(SocketAddr::ip).collect());
                if found != known {
                    return found;
                }
            }
            answered.await;
        }
    }

    /// The latest answer; waits only until there has been one.
    pub async fn addresses(&self) -> Arc<Answer> {
        loop {
            let answered = self.answered.notified();
            if let Some(answer) = self.answer.load_full() {
                return answer;
            }
            answered.await;
        }
    }

    /// Looks the name up for ever. One such task serves all threads. The last good answer is kept when a later look-up
    /// fails: a name server that is down should not take the servers with it.
    pub async fn keep_resolved(self: Arc<Self>, resolver: Arc<Resolver>) {
        let mut pause = resolver.rules.min_ttl;
        let mut failure = None;
        loop {
            let next = match resolver.look_up(&self.host).await {
                Ok((addresses, valid_for)) => {
                    pause = resolver.rules.min_ttl;
                    self.found(addresses, &mut failure);
                    valid_for
                }
                Err(e) => {
                    self.failed(e, &mut failure);
                    let this = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    this
                }
            };
            tokio::time::sleep(next).await;
        }
    }

    /// `failure` is that of the look-up before, if it failed.
    fn found(&self, addresses: Vec<IpAddr>, failure: &mut Option<ResolveError>) {
        let name = &*self.host;
        let addresses: Vec<_> = addresses.into_iter().map(|ip| SocketAddr::new(ip, self.port)).collect();
        let known = self.answer.load();
        let known = known.as_deref().and_then(|answer| answer.as_ref().ok());
        if failure.take().is_some() {
            tracing::info!(name, "look-up succeeds again");
        }
        // Name servers answer in another order each time.
        let is_the_same = |known: &Vec<SocketAddr>| {
            known.len() == addresses.len() && known.iter().all(|address| addresses.contains(address))
        };
        match known {
            Some(known) if is_the_same(known) => return,
            Some(_) => tracing::info!(name, "addresses have changed: now {}", list(&addresses)),
            None => tracing::debug!(name, "addresses: {}", list(&addresses)),
        }
        self.set(Ok(addresses));
    }

    fn failed(&self, error: ResolveError, failure: &mut Option<ResolveError>) {
        let name = &*self.host;
        let has_addresses = self.answer.load().as_deref().is_some_and(Result::is_ok);
        // A look-up that goes on failing is nothing new.
        if failure.as_ref() != Some(&error) {
            if has_addresses {
                tracing::warn!(name, "look-up failed, keeping the last addresses: {error}");
            } else {
                tracing::warn!(name, "look-up failed: {error}");
            }
        }
        if !has_addresses {
            self.set(Err(error.clone()));
        }
        *failure = Some(error);
    }

    fn set(&self, answer: Answer) {
        self.answer.store(Some(Arc::new(answer)));
        self.answered.notify_waiters();
    }
}

fn list(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(|address| address.ip().to_string()).collect::<Vec<_>>().join(", ")
}

impl ResolveError {
    fn no_answer() -> Self {
        Self("no name server answers".into())
    }
}

impl From<&NetError> for ResolveError {
    fn from(e: &NetError) -> Self {
        match e {
            NetError::Timeout => Self::no_answer(),
            NetError::Dns(DnsError::NoRecordsFound(none)) => match none.response_code {
                ResponseCode::NXDomain => Self("there is no such name".into()),
                _ => Self("the name has no address".into()),
            },
            NetError::Dns(DnsError::ResponseCode(code)) => {
                Self(format!("the name server answers {code:?}").into())
            }
            e => Self(e.to_string().replace('\n', " ").into()),
        }
    }
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("rules", &self.rules).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
    const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

    fn name() -> Arc<Name> {
        match Addresses::named("name.invalid", 80) {
            Addresses::Named(name) => name,
            Addresses::Fixed(_) | Addresses::Unix(_) => unreachable!(),
        }
    }

    fn error(text: &str) -> ResolveError {
        ResolveError(text.into())
    }

    #[test]
    fn keeps_the_last_good_answer() {
        let (name, mut failure) = (name(), None);
        name.failed(error("first"), &mut failure);
        assert_eq!(name.answer.load().as_deref(), Some(&Err(error("first"))));
        name.found(vec![ONE], &mut failure);
        assert_eq!(failure, None);
        name.failed(error("later"), &mut failure);
        assert_eq!(name.answer.load().as_deref(), Some(&Ok(vec![SocketAddr::new(ONE, 80)])));
        assert_eq!(failure, Some(error("later")));
    }

    #[test]
    fn another_order_of_the_same_addresses_is_no_change() {
        let (name, mut failure) = (name(), None);
        name.found(vec![ONE, TWO], &mut failure);
        let first = name.answer.load_full();
        name.found(vec![TWO, ONE], &mut failure);
        assert!(Arc::ptr_eq(&first.expect("an answer"), &name.answer.load_full().expect("an answer")));
        name.found(vec![TWO], &mut failure);
        let addresses = Addresses::Named(name);
        assert!(addresses.contain(SocketAddr::new(TWO, 80)));
        assert!(!addresses.contain(SocketAddr::new(ONE, 80)) && !addresses.contain(SocketAddr::new(TWO, 81)));
    }

    #[tokio::test]
    async fn wakes_those_who_wait_for_the_first_answer() {
        let name = name();
        let (answer, ()) = tokio::join!(name.addresses(), async { name.found(vec![ONE], &mut None) });
        assert_eq!(answer.as_ref().as_ref().map(Vec::len), Ok(1));
    }
}
