//! One server address of a cluster: what is fixed about it, and its live numbers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};

use lb_api::wire;
use rustc_hash::FxHashMap;
use rustls::pki_types::ServerName;
use sha2::{Digest, Sha256};

use crate::cluster::health::Health;
use crate::cluster::live::{Live, ON_TRIAL};
use crate::cluster::names::Addresses;
use crate::config;

/// One server of a cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// Stable over reloads; see [`wire::Endpoint::id`].
    pub id: u64,
    /// [`config::Server::url`].
    pub url: Arc<str>,
    /// [`config::Server::address`].
    pub address: Option<IpAddr>,
    /// Host name or address, without brackets; the path of a Unix socket.
    pub name: Arc<str>,
    /// Port; 0 for a Unix socket.
    pub port: u16,
    /// The name that its certificate must be for, if it is reached over TLS.
    pub(crate) tls_name: Option<ServerName<'static>>,
    /// The same for its checks.
    pub(crate) check_name: Option<ServerName<'static>>,
    /// 1 to 65,535.
    pub weight: u16,
    /// Used when no endpoint of a lower tier is left.
    pub tier: u16,
    /// Concurrent requests that it may have; 0 is no limit.
    pub limit: u32,
    /// Its name in clients' sessions.
    pub(crate) route: Option<Arc<str>>,
    /// Pairs for the module.
    pub(crate) metadata: Vec<(Arc<str>, Arc<str>)>,
    /// The `Host` header for this server; `localhost` for a Unix socket.
    pub(crate) authority: Box<str>,
    /// Where it is.
    pub(crate) addresses: Arc<Addresses>,
    /// Its place in the worker's tables of this cluster.
    pub place: usize,
    /// Its live numbers.
    pub counters: &'static wire::Counters,
    /// Its health.
    pub health: Arc<Health>,
    /// The state that it shares with the same member of other memberships.
    pub(crate) live: Arc<Live>,
}

/// A request on its way to an endpoint: counted from the accepted answer until this is dropped.
#[derive(Debug)]
pub(crate) struct InFlight(&'static wire::Counters);

/// Which endpoints a request may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those that are available.
    Available,
    /// All but those that drain, because none is available.
    NotDraining,
    /// Those that keep their sessions, for a request of such a session.
    Session,
}

/// An endpoint takes no request now, because of its state or its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Declined;

impl Endpoint {
    /// Whether this URL, as an operator writes it, names it: by its own, or by that of the name whose address it has.
    pub(crate) fn is_of(&self, url: &str) -> bool {
        *self.url == *url || self.address.is_some_and(|address| *self.url == config::url_at(url, address))
    }

    /// Whether its state lets it take requests.
    #[inline]
    pub(crate) fn is_usable(&self, which: Which) -> bool {
        match (self.counters.state.load(Relaxed), which) {
            (wire::STATE_AVAILABLE, _) => true,
            (state, Which::NotDraining) => state != wire::STATE_DRAINING,
            (state, Which::Session) => state == wire::STATE_DRAINING && self.health.keeps_sessions(),
            (_, Which::Available) => false,
        }
    }

    /// Whether it takes a request now.
    #[inline]
    pub(crate) fn takes(&self, which: Which) -> bool {
        self.is_usable(which) && !self.has_its_limit()
    }

    /// Whether nothing but its limit keeps it from taking a request now.
    pub(crate) fn is_full(&self, which: Which) -> bool {
        self.is_usable(which) && self.has_its_limit()
    }

    #[inline]
    fn has_its_limit(&self) -> bool {
        let max = self.counters.max_in_flight.load(Relaxed) & !ON_TRIAL;
        max != 0 && self.in_flight() >= max
    }

    /// Requests on their way to it, including those of other generations.
    #[inline]
    pub(crate) fn in_flight(&self) -> u32 {
        // In one order with the count of the queue: either the request that waits sees the place that came free, or the one that
        // ends sees it wait.
        let older = self.counters.in_flight_older.load(SeqCst);
        self.counters.in_flight.load(SeqCst).saturating_add(older)
    }

    /// Effective weight in 16.16 fixed point. Public for tests.
    pub fn effective_weight(&self) -> u32 {
        self.counters.effective_weight.load(Relaxed)
    }

    /// Counts a request as on its way, if the endpoint takes one now.
    ///
    /// # Errors
    /// The endpoint takes none, or is on trial.
    #[inline]
    pub(crate) fn enter(&self, which: Which) -> Result<InFlight, Declined> {
        match self.counters.max_in_flight.load(Relaxed) {
            max if max & ON_TRIAL != 0 => Err(Declined),
            max => self.enter_within(max, which),
        }
    }

    /// The same for an endpoint on trial, whether or not it has a request already.
    pub(crate) fn enter_on_trial(&self, which: Which) -> Result<InFlight, Declined> {
        self.enter_within(self.counters.max_in_flight.load(Relaxed) & !ON_TRIAL, which)
    }

    /// Whether it is on trial.
    pub(crate) fn is_on_trial(&self) -> bool {
        self.counters.max_in_flight.load(Relaxed) & ON_TRIAL != 0
    }

    /// Puts it on trial, or ends that.
    pub(crate) fn set_on_trial(&self, is_on_trial: bool) {
        match is_on_trial {
            true => self.counters.max_in_flight.fetch_or(ON_TRIAL, SeqCst),
            false => self.counters.max_in_flight.fetch_and(!ON_TRIAL, SeqCst),
        };
    }

    #[inline]
    fn enter_within(&self, max: u32, which: Which) -> Result<InFlight, Declined> {
        if !self.is_usable(which) {
            return Err(Declined);
        }
        let in_flight = &self.counters.in_flight;
        match max {
            0 => {
                in_flight.fetch_add(1, Relaxed);
            }
            // To add first and take back what is too much would decline others meanwhile.
            max => {
                let older = self.counters.in_flight_older.load(SeqCst);
                let next = |n: u32| (n.saturating_add(older) < max).then(|| n + 1);
                in_flight.fetch_update(SeqCst, SeqCst, next).map_err(|_| Declined)?;
            }
        }
        Ok(InFlight(self.counters))
    }

    /// Adds the time to the response headers of one try to the smoothed latency, with a weight of 1/8 (as RFC 6298 does for round
    /// trips). Two threads at once may lose a sample, which is not worth a lock.
    #[inline]
    pub(crate) fn learn_latency(&self, ns: u64) {
        let old = self.counters.latency_ns.load(Relaxed);
        let new = if old == 0 { ns } else { old - old / 8 + ns / 8 };
        self.counters.latency_ns.store(new.max(1), Relaxed);
    }

    /// A server of this cluster, with what lives on of it from an earlier membership, if anything does.
    pub(super) fn new(server: &config::Server, id: u64, live: &Arc<Live>) -> Self {
        let literal: Option<IpAddr> = server.host.parse().ok();
        let authority = match literal {
            _ if server.unix.is_some() => "localhost".to_owned(),
            Some(IpAddr::V6(address)) => format!("[{address}]:{}", server.port),
            _ => format!("{}:{}", server.host, server.port),
        };
        let default = if server.tls_name.is_some() { ":443" } else { ":80" };
        let authority = authority.strip_suffix(default).unwrap_or(&authority).into();
        Self {
            id,
            url: Arc::clone(&server.url),
            address: server.address,
            name: Arc::clone(&server.host),
            port: server.port,
            tls_name: server.tls_name.clone(),
            check_name: server.check_name.clone(),
            weight: server.weight,
            tier: server.tier,
            limit: server.max_requests,
            route: server.route.clone(),
            metadata: server.metadata.clone(),
            authority,
            addresses: Arc::clone(&live.addresses),
            place: live.place.number(),
            counters: live.counters.get(),
            health: Arc::clone(&live.health),
            live: Arc::clone(live),
        }
    }

    /// Whether a source says the same of it as when it was made. Sources that change at once do not count.
    pub(super) fn is_as(&self, server: &config::Server) -> bool {
        self.weight == server.weight
            && self.tier == server.tier
            && self.limit == server.max_requests
            && self.route == server.route
            && self.metadata == server.metadata
    }

    /// The IDs of these servers of a cluster, in their order.
    pub(super) fn ids<'a>(cluster: &str, servers: impl IntoIterator<Item = &'a config::Server>) -> Vec<u64> {
        let mut seen = FxHashMap::<&str, usize>::default();
        let id = |server: &'_ config::Server, seen: usize| id(cluster, &server.url, seen, address_of(server));
        servers
            .into_iter()
            .map(|server| {
                let occurrences = seen.entry(&*server.url).or_default();
                *occurrences += 1;
                id(server, *occurrences - 1)
            })
            .collect()
    }
}

/// The address of a server, where it is known for good.
fn address_of(server: &config::Server) -> Option<IpAddr> {
    server.address.or_else(|| server.host.parse().ok())
}

/// Where a server is.
pub(super) fn addresses_of(server: &config::Server) -> Addresses {
    match (address_of(server), &server.unix) {
        (_, Some(path)) => Addresses::Unix(Arc::clone(path)),
        (Some(address), None) => Addresses::fixed(SocketAddr::new(address, server.port)),
        (None, None) => Addresses::named(&server.host, server.port),
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // In one order with `Queue`'s count; see `has_its_limit`.
        self.0.in_flight.fetch_sub(1, SeqCst);
    }
}

/// An effective weight for people, to four decimals: in 16.16 fixed point a tenth is 0.0999908447265625.
pub(crate) fn shown_weight(effective: u32) -> f64 {
    (f64::from(effective) / 65536.0 * 1e4).round() / 1e4
}

/// A hash that is the same in every process and every release.
fn id(cluster: &str, url: &str, occurrence: usize, address: Option<IpAddr>) -> u64 {
    let mut hash = Sha256::new();
    for part in [cluster, url, &occurrence.to_string(), &address.map_or(String::new(), |a| a.to_string())] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digest = hash.finalize();
    u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::cluster::live::Arenas;

    #[test]
    fn ids_tell_servers_apart_and_stay() {
        let a = id("api", "http://a", 0, None);
        assert_eq!(a, id("api", "http://a", 0, None));
        for other in
            [id("web", "http://a", 0, None), id("api", "http://a", 1, None), id("api", "http://b", 0, None)]
        {
            assert_ne!(a, other);
        }
        assert_ne!(id("ab", "c", 0, None), id("a", "bc", 0, None));
    }

    #[test]
    fn weights_are_shown_as_they_were_meant() {
        let tenth = (f64::from(1 << 16) * 0.1) as u32;
        assert_eq!([tenth, 1 << 16, 3 << 15, u32::MAX, 0].map(shown_weight), [0.1, 1.0, 1.5, 65536.0, 0.0]);
    }

    fn endpoint(max_requests: u32) -> Endpoint {
        let text = format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[load_module]\na = \"a.so\"\n[[cluster]]\nname = \"c\"\n\
             servers = [{{ url = \"http://127.0.0.1\", max_requests = {max_requests} }}]\n\
             [[route]]\npath = \"/\"\ncluster = \"c\"\n"
        );
        let (config, _) = config::parse("t.toml", &text, config::Syntax::Toml).expect("a good file");
        let (arenas, server) = (Arenas::default(), &config.clusters[0].servers[0]);
        let place = arenas.places.take().expect("there is room");
        let live = Live::new(place, &arenas.counters, addresses_of(server), 0);
        live.set_limit(max_requests);
        Endpoint::new(server, 1, &live)
    }

    #[test]
    fn takes_as_many_as_its_limit_and_one_more_when_one_has_left() {
        let endpoint = endpoint(2);
        let first = endpoint.enter(Which::Available).expect("room for two");
        assert!(endpoint.takes(Which::Available) && !endpoint.is_full(Which::Available));
        let _second = endpoint.enter(Which::Available).expect("room for two");
        assert_eq!(endpoint.enter(Which::Available).err(), Some(Declined));
        assert!(endpoint.is_full(Which::Available) && !endpoint.takes(Which::Available));
        drop(first);
        assert!(endpoint.enter(Which::Available).is_ok());
        endpoint.counters.state.store(wire::STATE_DOWN, Relaxed);
        assert_eq!(endpoint.enter(Which::Available).err(), Some(Declined));
        assert!(!endpoint.is_full(Which::Available));
    }

    #[test]
    fn requests_of_older_generations_count_towards_the_limit() {
        let endpoint = endpoint(3);
        assert_eq!(endpoint.live.set_in_flight_older(2), 0);
        let one = endpoint.enter(Which::Available).expect("room for one");
        assert_eq!(endpoint.in_flight(), 3);
        assert_eq!(endpoint.enter(Which::Available).err(), Some(Declined));
        assert!(endpoint.is_full(Which::Available) && !endpoint.takes(Which::Available));
        drop(one);
        assert_eq!(
            endpoint.live.set_in_flight_older(5),
            0,
            "more than the limit, which may have been lowered"
        );
        assert!(endpoint.is_full(Which::Available));
        assert_eq!(endpoint.live.set_in_flight_older(1), 4);
        let _two = [(); 2].map(|()| endpoint.enter(Which::Available).expect("room for two"));
        assert_eq!(endpoint.enter(Which::Available).err(), Some(Declined));
        endpoint.live.set_in_flight_older(u32::MAX);
        assert_eq!(endpoint.in_flight(), u32::MAX);
    }

    #[test]
    fn many_threads_at_once_do_not_get_past_the_limit() {
        let endpoint = endpoint(3);
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        if let Ok(in_flight) = endpoint.enter(Which::Available) {
                            assert!(inside.fetch_add(1, SeqCst) < 3);
                            inside.fetch_sub(1, SeqCst);
                            drop(in_flight);
                        }
                    }
                });
            }
        });
        assert_eq!(endpoint.counters.in_flight.load(Relaxed), 0);
    }

    #[test]
    fn an_endpoint_that_is_down_is_tried_where_all_are_but_one_that_drains_is_not() {
        let endpoint = endpoint(1);
        endpoint.counters.state.store(wire::STATE_DOWN, Relaxed);
        assert!(!endpoint.takes(Which::Available) && endpoint.takes(Which::NotDraining));
        let _one = endpoint.enter(Which::NotDraining).expect("down is not draining");
        assert_eq!(endpoint.enter(Which::NotDraining).err(), Some(Declined));
        endpoint.counters.state.store(wire::STATE_DRAINING, Relaxed);
        assert_eq!(endpoint.enter(Which::NotDraining).err(), Some(Declined));
    }
}
