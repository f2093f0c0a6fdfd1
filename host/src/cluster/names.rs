//! Names of servers, looked up as often as their TTL says, beside the requests: a request waits for a look-up only while its
//! server's name has never had an address.
//!
//! IPv4 and IPv6 addresses (A and AAAA records) are two look-ups that know nothing of each other; `parts` merges them. A
//! new generation begins with the last addresses of the one before, so that it waits for nobody either.
//!
//! A small resolver of our own thread would do what `getaddrinfo` does, but that does not tell how long an answer holds; so
//! this is hickory's stub resolver, with the system's name servers, search domains and hosts file (read at the start), or
//! with the name servers that the configuration names.

mod parts;
mod reach;

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name as DnsName, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use tokio::sync::Notify;

use self::parts::{Family, News, Outcome, Parts};
use crate::config;
use crate::config::Families;

pub(crate) use self::parts::MAX_ADDRESSES;
pub use self::reach::Reach;

/// A failed look-up is made again after the shortest TTL, then after twice as long, and so on up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Of the time for a whole look-up each question gets this part: two lost packets fit in.
const QUESTIONS: u32 = 3;
/// Where one family has come and nothing is known of the other, it is waited for no longer than this before the name is
/// used. RFC 8305 section 3 has the same time.
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// Asks name servers.
pub struct Resolver {
    inner: TokioResolver,
    rules: config::Resolver,
    /// Domains that names with few dots are looked up in, the first one first.
    search: Vec<DnsName>,
    /// Names with so many dots are looked up as they are first.
    ndots: usize,
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
    /// What the answer is made of. Requests never look at it.
    parts: Mutex<Parts>,
}

/// What look-ups brought.
pub type Answer = Result<Box<[Place]>, ResolveError>;

/// One address of a name.
#[derive(Clone, Debug)]
pub struct Place {
    /// The address, with the server's port.
    pub address: SocketAddr,
    /// What is known of connections to it.
    pub reach: Arc<Reach>,
}

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
        // How often to ask again is said below, whatever the name server would have kept.
        options.negative_min_ttl = Some(Duration::ZERO);
        options.negative_max_ttl = Some(Duration::ZERO);
        let inner = builder.build().map_err(io::Error::other)?;
        Ok(Self { inner, rules: rules.clone(), search, ndots })
    }

    /// The addresses of one family, within the time for a look-up.
    async fn look_up(&self, host: &str, family: Family) -> Outcome {
        let asked = tokio::time::timeout(self.rules.timeout, self.ask(host, family));
        asked.await.unwrap_or_else(|_| Outcome::Failed(ResolveError::no_answer()))
    }

    /// Goes through the list of search domains until one of them has the name.
    async fn ask(&self, host: &str, family: Family) -> Outcome {
        let names = match self.candidates(host) {
            Ok(names) => names,
            Err(e) => return Outcome::Failed(e),
        };
        let record = match family {
            Family::V4 => RecordType::A,
            Family::V6 => RecordType::AAAA,
        };
        let (mut failed, mut without) = (None, None);
        for (depth, name) in names.into_iter().enumerate() {
            match self.inner.lookup(name, record).await {
                Ok(answer) => {
                    let addresses: Vec<IpAddr> =
                        answer.answers().iter().filter_map(|record| record.data.ip_addr()).collect();
                    if addresses.is_empty() {
                        without = Some(ResolveError::no_address());
                        continue;
                    }
                    let valid_for = answer.valid_until().saturating_duration_since(Instant::now());
                    let valid_for = valid_for.clamp(self.rules.min_ttl, self.rules.max_ttl);
                    return Outcome::Has { addresses, valid_for, depth };
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
            Some(e) => Outcome::Failed(e),
            None => Outcome::Without(without.unwrap_or_else(ResolveError::no_address)),
        }
    }

    /// What a name as written may mean, the likeliest first: resolv.conf(5), `search` and `ndots`.
    fn candidates(&self, host: &str) -> Result<Vec<DnsName>, ResolveError> {
        let name = DnsName::from_utf8(host).map_err(|e| ResolveError(e.to_string().into()))?;
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
            // One that gets too long with it is in no domain.
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

impl Addresses {
    /// Of an address as written.
    pub fn fixed(address: SocketAddr) -> Self {
        Self::Fixed([address])
    }

    /// Of a name, which has no address until [`Name::keep_resolved`] has found one.
    pub fn named(host: &str, port: u16) -> Self {
        Self::Named(Name::with(host, port, &[]))
    }

    /// The name, where it is one.
    pub fn name(&self) -> Option<&Arc<Name>> {
        match self {
            Self::Named(name) => Some(name),
            Self::Fixed(_) | Self::Unix(_) => None,
        }
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
                Some(Ok(own)) => own.iter().any(|place| place.address == address),
                Some(Err(_)) | None => true,
            },
            Self::Unix(_) => false,
        }
    }
}

impl Name {
    /// One that has these addresses already, or none yet.
    pub(crate) fn with(host: &str, port: u16, known: &[IpAddr]) -> Arc<Self> {
        let name = Self {
            host: host.into(),
            port,
            answer: ArcSwapOption::empty(),
            answered: Notify::new(),
            parts: Mutex::new(Parts::knowing(&[])),
        };
        name.recall(known, Families::Any);
        Arc::new(name)
    }

    /// The name itself.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Has it begin with what an earlier generation knew, as far as it is of these families. To be called before it is looked
    /// up.
    pub(crate) fn recall(&self, known: &[IpAddr], families: Families) {
        let known: Vec<IpAddr> = known.iter().copied().filter(|ip| families.contain(*ip)).collect();
        *self.parts() = Parts::knowing(&known);
        self.publish();
    }

    /// The last addresses that it had; none before the first.
    pub(crate) fn known(&self) -> Vec<IpAddr> {
        match self.answer.load().as_deref() {
            Some(Ok(places)) => places.iter().map(|place| place.address.ip()).collect(),
            Some(Err(_)) | None => Vec::new(),
        }
    }

    /// Waits until its addresses, in order, are others than these.
    pub(crate) async fn changed_from(&self, known: &[IpAddr]) -> Vec<IpAddr> {
        loop {
            let answered = self.answered.notified();
            let found = in_order(self.known());
            if !found.is_empty() && found != known {
                return found;
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

    /// Looks the name up for ever. One such task serves all threads. The last good answers are kept when a later look-up
    /// fails: a name server that is down should not take the servers with it.
    pub async fn keep_resolved(self: Arc<Self>, resolver: Arc<Resolver>) {
        let families = resolver.rules.family;
        self.parts().ask(families);
        self.publish();
        let keep = async |family: Family| {
            if family.is_of(families) {
                self.keep_family(family, &resolver).await;
            }
        };
        tokio::join!(keep(Family::V4), keep(Family::V6));
    }

    async fn keep_family(&self, family: Family, resolver: &Resolver) {
        let mut pause = resolver.rules.min_ttl;
        loop {
            let outcome = resolver.look_up(&self.host, family).await;
            self.record(family, &outcome).await;
            let is_of_no_use = match &outcome {
                Outcome::Has { valid_for, .. } => Some(*valid_for),
                // Most names have one family alone; the other one is asked for as often.
                Outcome::Without(_) => self.parts().other_valid_for(family),
                Outcome::Failed(_) => None,
            };
            let next = match is_of_no_use {
                Some(valid_for) => {
                    pause = resolver.rules.min_ttl;
                    valid_for
                }
                None => {
                    let this = pause;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    this
                }
            };
            tokio::time::sleep(next).await;
        }
    }

    /// Takes in what a look-up brought, and has requests see it.
    async fn record(&self, family: Family, outcome: &Outcome) {
        let answered = self.answered.notified();
        let is_decided = {
            let mut parts = self.parts();
            parts.record(family, outcome);
            log(&self.host, family, parts.news(family));
            parts.is_decided()
        };
        if matches!(outcome, Outcome::Has { .. }) && !is_decided && self.answer.load().is_none() {
            let _ = tokio::time::timeout(RESOLUTION_DELAY, answered).await;
        }
        self.publish();
    }

    /// Has requests see what the parts are merged to, where that is decided and new.
    fn publish(&self) {
        let parts = self.parts();
        let Some(merged) = parts.merged() else { return };
        let before = self.answer.load();
        let before = before.as_deref();
        let answer = match merged {
            Ok(addresses) => {
                let (addresses, n_left_out) = limited(addresses);
                let known = before.and_then(|answer| answer.as_ref().ok()).map_or(&[][..], |known| known);
                // Name servers answer in another order each time.
                let is_known = |ip: &IpAddr| known.iter().any(|place| place.address.ip() == *ip);
                if known.len() == addresses.len() && addresses.iter().all(is_known) {
                    return;
                }
                let name = &*self.host;
                if n_left_out > 0 {
                    tracing::warn!(
                        name,
                        "{n_left_out} addresses are left out: a name has {MAX_ADDRESSES} at most"
                    );
                }
                if known.is_empty() {
                    tracing::debug!(name, "addresses: {}", list(&addresses));
                } else {
                    tracing::info!(name, "addresses have changed: now {}", list(&addresses));
                }
                Ok(addresses.into_iter().map(|ip| self.place(ip, known)).collect())
            }
            Err(e) if before.is_some_and(|answer| answer.as_ref().err() == Some(&e)) => return,
            Err(e) => Err(e),
        };
        self.answer.store(Some(Arc::new(answer)));
        drop(parts);
        self.answered.notify_waiters();
    }

    /// With what was learned of it, if it is no new one.
    fn place(&self, ip: IpAddr, known: &[Place]) -> Place {
        let address = SocketAddr::new(ip, self.port);
        let reach = known.iter().find(|place| place.address == address).map(|place| Arc::clone(&place.reach));
        Place { address, reach: reach.unwrap_or_default() }
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn log(name: &str, family: Family, news: News) {
    let family = family.name();
    match news {
        News::Nothing => {}
        News::Again => tracing::info!(name, family, "look-up succeeds again"),
        News::Kept(e) => tracing::warn!(name, family, "look-up failed, keeping the last addresses: {e}"),
        News::NoAddress(e) => tracing::warn!(name, "look-up failed: {e}"),
    }
}

/// As many as a name may have, always the same of the same ones, and how many are left out.
fn limited(mut addresses: Vec<IpAddr>) -> (Vec<IpAddr>, usize) {
    let n_left_out = addresses.len().saturating_sub(MAX_ADDRESSES);
    if n_left_out > 0 {
        addresses.sort_unstable();
        addresses.truncate(MAX_ADDRESSES);
    }
    (addresses, n_left_out)
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

impl ResolveError {
    fn no_answer() -> Self {
        Self("no name server answers".into())
    }

    fn no_such_name() -> Self {
        Self("there is no such name".into())
    }

    fn no_address() -> Self {
        Self("the name has no address".into())
    }
}

impl From<&NetError> for ResolveError {
    fn from(e: &NetError) -> Self {
        match e {
            NetError::Timeout => Self::no_answer(),
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

/// As they come, name servers begin with another one each time.
pub(crate) fn in_order(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
    const TWO: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    const SIX: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    fn has(addresses: &[IpAddr]) -> Outcome {
        Outcome::Has { addresses: addresses.to_vec(), valid_for: Duration::from_secs(9), depth: 0 }
    }

    fn error(text: &str) -> ResolveError {
        ResolveError(text.into())
    }

    async fn found(name: &Name, addresses: &[IpAddr]) {
        name.record(Family::V4, &has(addresses)).await;
        name.record(Family::V6, &Outcome::Without(ResolveError::no_address())).await;
    }

    #[tokio::test]
    async fn keeps_the_last_good_answer() {
        let name = Name::with("name.invalid", 80, &[]);
        name.record(Family::V4, &Outcome::Failed(error("first"))).await;
        name.record(Family::V6, &Outcome::Failed(error("second"))).await;
        assert_eq!(name.addresses().await.as_ref().as_ref().err(), Some(&error("first")));
        found(&name, &[ONE]).await;
        name.record(Family::V4, &Outcome::Failed(error("later"))).await;
        assert_eq!(name.known(), [ONE]);
    }

    #[tokio::test]
    async fn another_order_of_the_same_addresses_is_no_change() {
        let name = Name::with("name.invalid", 80, &[]);
        found(&name, &[ONE, TWO]).await;
        let first = name.answer.load_full().expect("an answer");
        found(&name, &[TWO, ONE]).await;
        assert!(Arc::ptr_eq(&first, &name.answer.load_full().expect("an answer")));
        let learned = first.as_ref().as_ref().map(|places| Arc::clone(&places[1].reach)).expect("addresses");
        found(&name, &[TWO]).await;
        let kept = name.addresses().await;
        let kept = kept.as_ref().as_ref().expect("addresses");
        assert!(Arc::ptr_eq(&kept[0].reach, &learned), "what was learned of it stays");
        let addresses = Addresses::Named(name);
        assert!(addresses.contain(SocketAddr::new(TWO, 80)));
        assert!(!addresses.contain(SocketAddr::new(ONE, 80)) && !addresses.contain(SocketAddr::new(TWO, 81)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_answer_waits_a_moment_for_the_other_family_and_later_ones_do_not() {
        let name = Name::with("name.invalid", 80, &[]);
        let began = tokio::time::Instant::now();
        name.record(Family::V4, &has(&[ONE])).await;
        assert_eq!((name.known(), began.elapsed()), (vec![ONE], RESOLUTION_DELAY));
        name.record(Family::V4, &has(&[TWO])).await;
        assert_eq!((name.known(), began.elapsed()), (vec![TWO], RESOLUTION_DELAY));
        let both = Name::with("name.invalid", 80, &[]);
        let (one, six) = (has(&[ONE]), has(&[SIX]));
        tokio::join!(both.record(Family::V4, &one), both.record(Family::V6, &six));
        assert_eq!((both.known(), began.elapsed()), (vec![ONE, SIX], RESOLUTION_DELAY));
    }

    #[tokio::test]
    async fn a_name_of_too_many_addresses_has_always_the_same_ones() {
        let all: Vec<IpAddr> = (0..300_u16).map(|i| [10, 0, (i / 256) as u8, i as u8].into()).collect();
        let name = Name::with("name.invalid", 80, &[]);
        found(&name, &all).await;
        let first = name.known();
        assert_eq!((first.len(), &first[..]), (MAX_ADDRESSES, &all[..MAX_ADDRESSES]));
        let answer = name.answer.load_full().expect("an answer");
        let turned: Vec<IpAddr> = all[100..].iter().chain(&all[..100]).copied().collect();
        found(&name, &turned).await;
        assert!(Arc::ptr_eq(&answer, &name.answer.load_full().expect("an answer")));
        // As the next generation begins.
        let next = Name::with("name.invalid", 80, &in_order(first));
        let answer = next.answer.load_full().expect("an answer");
        found(&next, &turned).await;
        assert!(Arc::ptr_eq(&answer, &next.answer.load_full().expect("an answer")));
    }

    #[tokio::test]
    async fn wakes_those_who_wait_for_the_first_answer() {
        let name = Name::with("name.invalid", 80, &[]);
        let (answer, ()) = tokio::join!(name.addresses(), found(&name, &[ONE]));
        assert_eq!(answer.as_ref().as_ref().map(|places| places.len()), Ok(1));
    }

    #[test]
    fn names_with_few_dots_are_looked_up_in_the_search_domains_first() {
        let domain = |text: &str| DnsName::from_utf8(text).expect("a name");
        let mut resolver = Resolver::new(&config::Resolver {
            servers: vec![([127, 0, 0, 1], 53).into()],
            ..config::Resolver::default()
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
