//! Names of servers and their addresses. Names are looked up as often as their TTL says, beside the requests: a request waits
//! for a look-up only if its server's name has never had an address.
//!
//! IPv4 and IPv6 addresses (A and AAAA records) are two independent look-ups; `parts` merges them. A new generation begins with
//! the last addresses of the one before, so that it does not wait either.
//!
//! `resolver` asks the name servers, and `reach` is what connections have learned of one address.

mod error;
mod parts;
mod reach;
mod resolver;

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::Notify;

use self::parts::{Family, LookupEnd, News, Parts};
use crate::config::Families;

pub(crate) use self::error::ResolveError;
pub(crate) use self::parts::MAX_ADDRESSES;
pub(crate) use self::reach::Reach;
pub(crate) use self::resolver::{Resolver, SrvRecord};

/// A failed look-up is repeated after the shortest TTL, then after twice as long, and so on up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// When one family has addresses, the first look-up of the other is waited for no longer than this (RFC 8305 section 3).
const RESOLUTION_DELAY: Duration = Duration::from_millis(50);

/// Where an endpoint is.
#[derive(Debug)]
pub(crate) enum Addresses {
    /// It was written as an address.
    Fixed([SocketAddr; 1]),
    /// It was written as a name.
    Named(Arc<HostName>),
    /// A Unix socket.
    Unix(Arc<Path>),
}

/// A name and its addresses now.
#[derive(Debug)]
pub(crate) struct HostName {
    host: Box<str>,
    port: u16,
    answer: ArcSwapOption<Answer>,
    answered: Notify,
    /// The answer before the families are merged. Requests never look at it.
    parts: Mutex<Parts>,
}

/// The addresses of a name, or why there are none.
pub(crate) type Answer = Result<Box<[NamedAddress]>, ResolveError>;

/// One address of a name.
#[derive(Clone, Debug)]
pub(crate) struct NamedAddress {
    /// The address, with the server's port.
    pub(crate) address: SocketAddr,
    /// Its reachability, as connections have found it.
    pub(crate) reach: Arc<Reach>,
}

impl Addresses {
    /// A literal address.
    pub(crate) fn fixed(address: SocketAddr) -> Self {
        Self::Fixed([address])
    }

    /// A name, which has no address until [`HostName::keep_resolved`] has found one.
    pub(crate) fn named(host: &str, port: u16) -> Self {
        Self::Named(HostName::with(host, port, &[]))
    }

    /// The name, if it is one.
    pub(crate) fn name(&self) -> Option<&Arc<HostName>> {
        match self {
            Self::Named(name) => Some(name),
            Self::Fixed(_) | Self::Unix(_) => None,
        }
    }

    /// The address, if it is a literal one.
    pub(crate) fn as_fixed(&self) -> Option<SocketAddr> {
        match self {
            Self::Fixed([address]) => Some(*address),
            Self::Named(_) | Self::Unix(_) => None,
        }
    }

    /// Whether a connection to this address still is one to the endpoint.
    pub(crate) fn still_contain(&self, peer: Option<SocketAddr>) -> bool {
        match self {
            Self::Fixed(_) | Self::Unix(_) => true,
            Self::Named(_) => peer.is_some_and(|peer| self.contain(peer)),
        }
    }

    /// Whether this is an address of the endpoint.
    pub(crate) fn contain(&self, address: SocketAddr) -> bool {
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

impl HostName {
    /// A name with these addresses, or none yet.
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
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// Starts with addresses that an earlier generation knew, if of these families. To be called before the first look-up.
    pub(crate) fn recall(&self, known: &[IpAddr], families: Families) {
        let known: Vec<IpAddr> = known.iter().copied().filter(|ip| families.contain(*ip)).collect();
        *self.parts() = Parts::knowing(&known);
        self.publish();
    }

    /// The latest addresses; empty before the first.
    pub(crate) fn known(&self) -> Vec<IpAddr> {
        match self.answer.load().as_deref() {
            Some(Ok(places)) => places.iter().map(|place| place.address.ip()).collect(),
            Some(Err(_)) | None => Vec::new(),
        }
    }

    /// Waits until its addresses, sorted, differ from these.
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

    /// The latest answer. Waits only for the first.
    pub(crate) async fn addresses(&self) -> Arc<Answer> {
        loop {
            let answered = self.answered.notified();
            if let Some(answer) = self.answer.load_full() {
                return answer;
            }
            answered.await;
        }
    }

    /// Looks the name up for ever. One such task serves all threads. If a look-up fails, the last good answers are kept, so that a
    /// name server that is down does not take the servers with it.
    pub(crate) async fn keep_resolved(self: Arc<Self>, resolver: Arc<Resolver>) {
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
            let valid_for = match &outcome {
                LookupEnd::Has { valid_for, .. } => Some(*valid_for),
                // Most names have one family only. The other is looked up as often.
                LookupEnd::Without(_) => self.parts().other_valid_for(family),
                LookupEnd::Failed(_) => None,
            };
            let next = match valid_for {
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

    /// Records the result of a look-up and publishes it.
    async fn record(&self, family: Family, outcome: &LookupEnd) {
        let answered = self.answered.notified();
        let is_decided = {
            let mut parts = self.parts();
            parts.record(family, outcome);
            log(&self.host, family, parts.news(family));
            parts.is_decided()
        };
        if matches!(outcome, LookupEnd::Has { .. }) && !is_decided && self.answer.load().is_none() {
            let _ = tokio::time::timeout(RESOLUTION_DELAY, answered).await;
        }
        self.publish();
    }

    /// Shows requests the merged answer, if it is decided and new.
    fn publish(&self) {
        let parts = self.parts();
        let Some(merged) = parts.merged() else { return };
        let before = self.answer.load();
        let before = before.as_deref();
        let answer = match merged {
            Ok(addresses) => {
                let (addresses, n_left_out) = limited(addresses);
                let known = before.and_then(|answer| answer.as_ref().ok()).map_or(&[][..], |known| known);
                // Name servers change the order with each answer.
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

    /// With what was learned of it, if it is known.
    fn place(&self, ip: IpAddr, known: &[NamedAddress]) -> NamedAddress {
        let address = SocketAddr::new(ip, self.port);
        let reach = known.iter().find(|place| place.address == address).map(|place| Arc::clone(&place.reach));
        NamedAddress { address, reach: reach.unwrap_or_default() }
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

/// The addresses up to the maximum, always the same ones of the same ones, and how many are left out.
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

/// Sorted, because name servers change the order with each answer.
pub(crate) fn in_order(mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1));
    const TWO: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));
    const SIX: IpAddr = IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);

    fn has(addresses: &[IpAddr]) -> LookupEnd {
        LookupEnd::Has { addresses: addresses.to_vec(), valid_for: Duration::from_secs(9), depth: 0 }
    }

    fn error(text: &str) -> ResolveError {
        ResolveError::new(text)
    }

    async fn found(name: &HostName, addresses: &[IpAddr]) {
        name.record(Family::V4, &has(addresses)).await;
        name.record(Family::V6, &LookupEnd::Without(ResolveError::no_address())).await;
    }

    #[tokio::test]
    async fn keeps_the_last_good_answer() {
        let name = HostName::with("name.invalid", 80, &[]);
        name.record(Family::V4, &LookupEnd::Failed(error("first"))).await;
        name.record(Family::V6, &LookupEnd::Failed(error("second"))).await;
        assert_eq!(name.addresses().await.as_ref().as_ref().err(), Some(&error("first")));
        found(&name, &[ONE]).await;
        name.record(Family::V4, &LookupEnd::Failed(error("later"))).await;
        assert_eq!(name.known(), [ONE]);
    }

    #[tokio::test]
    async fn another_order_of_the_same_addresses_is_no_change() {
        let name = HostName::with("name.invalid", 80, &[]);
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
        let name = HostName::with("name.invalid", 80, &[]);
        let began = tokio::time::Instant::now();
        name.record(Family::V4, &has(&[ONE])).await;
        assert_eq!((name.known(), began.elapsed()), (vec![ONE], RESOLUTION_DELAY));
        name.record(Family::V4, &has(&[TWO])).await;
        assert_eq!((name.known(), began.elapsed()), (vec![TWO], RESOLUTION_DELAY));
        let both = HostName::with("name.invalid", 80, &[]);
        let (one, six) = (has(&[ONE]), has(&[SIX]));
        tokio::join!(both.record(Family::V4, &one), both.record(Family::V6, &six));
        assert_eq!((both.known(), began.elapsed()), (vec![ONE, SIX], RESOLUTION_DELAY));
    }

    #[tokio::test]
    async fn a_name_of_too_many_addresses_has_always_the_same_ones() {
        let all: Vec<IpAddr> = (0..300_u16).map(|i| [10, 0, (i / 256) as u8, i as u8].into()).collect();
        let name = HostName::with("name.invalid", 80, &[]);
        found(&name, &all).await;
        let first = name.known();
        assert_eq!((first.len(), &first[..]), (MAX_ADDRESSES, &all[..MAX_ADDRESSES]));
        let answer = name.answer.load_full().expect("an answer");
        let turned: Vec<IpAddr> = all[100..].iter().chain(&all[..100]).copied().collect();
        found(&name, &turned).await;
        assert!(Arc::ptr_eq(&answer, &name.answer.load_full().expect("an answer")));
        // As the next generation begins.
        let next = HostName::with("name.invalid", 80, &in_order(first));
        let answer = next.answer.load_full().expect("an answer");
        found(&next, &turned).await;
        assert!(Arc::ptr_eq(&answer, &next.answer.load_full().expect("an answer")));
    }

    #[tokio::test]
    async fn wakes_those_who_wait_for_the_first_answer() {
        let name = HostName::with("name.invalid", 80, &[]);
        let (answer, ()) = tokio::join!(name.addresses(), found(&name, &[ONE]));
        assert_eq!(answer.as_ref().as_ref().map(|places| places.len()), Ok(1));
    }
}
