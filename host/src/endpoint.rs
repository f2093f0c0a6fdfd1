//! One server address of a cluster: what is fixed about it, and its live numbers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use lb_api::wire;
use sha2::{Digest, Sha256};

use crate::config;
use crate::resolve::Addresses;

/// One server of a cluster.
#[derive(Debug)]
pub struct Endpoint {
    /// Stable over reloads; see [`wire::Endpoint::id`].
    pub id: u64,
    /// The URL as written.
    pub url: Arc<str>,
    /// Host name or address, without brackets.
    pub name: Arc<str>,
    /// Port.
    pub port: u16,
    /// 1 to 65,535.
    pub weight: u16,
    /// Pairs for the module.
    pub metadata: Vec<(Arc<str>, Arc<str>)>,
    /// What the server is called in a `Host` header of its own.
    pub authority: Box<str>,
    /// Where it is.
    pub addresses: Addresses,
    /// Its live numbers.
    pub counters: &'static wire::Counters,
}

/// A request on its way to an endpoint: counted from the accepted answer until this is dropped.
#[derive(Debug)]
pub struct InFlight(&'static wire::Counters);

/// A slot fills a cache line of its own, so that traffic of one endpoint does not slow down reading another's numbers.
#[repr(align(64))]
struct Slot(wire::Counters);

impl Endpoint {
    /// The endpoints of a cluster, in the order of the configuration, each with a slot of its own.
    ///
    /// Slots are never freed, as the ABI promises modules. A worker makes them once, so they do not add up.
    pub fn of_cluster(cluster: &config::Cluster) -> Box<[Self]> {
        let occurrence =
            |i: usize| cluster.servers[..i].iter().filter(|s| s.url == cluster.servers[i].url).count();
        cluster
            .servers
            .iter()
            .enumerate()
            .map(|(i, server)| Self::new(cluster, server, occurrence(i)))
            .collect()
    }

    /// Whether it takes a request now.
    #[inline]
    pub fn is_available(&self) -> bool {
        let max = self.counters.max_in_flight.load(Relaxed);
        self.counters.state.load(Relaxed) == wire::STATE_AVAILABLE
            && (max == 0 || self.counters.in_flight.load(Relaxed) < max)
    }

    /// Effective weight in 16.16 fixed point.
    pub fn effective_weight(&self) -> u32 {
        self.counters.effective_weight.load(Relaxed)
    }

    /// Counts a request as on its way.
    #[inline]
    pub fn enter(&self) -> InFlight {
        self.counters.in_flight.fetch_add(1, Relaxed);
        InFlight(self.counters)
    }

    /// Takes the time to the response headers of one try into the smoothed latency, with a weight of 1/8 (the gain that
    /// RFC 6298 gives round trips). Two threads at once may lose a sample; none is worth a lock.
    #[inline]
    pub fn learn_latency(&self, ns: u64) {
        let old = self.counters.latency_ns.load(Relaxed);
        let new = if old == 0 { ns } else { old - old / 8 + ns / 8 };
        self.counters.latency_ns.store(new.max(1), Relaxed);
    }

    fn new(cluster: &config::Cluster, server: &config::Server, occurrence: usize) -> Self {
        let literal: Option<IpAddr> = server.host.parse().ok();
        let authority = match literal {
            Some(IpAddr::V6(address)) => format!("[{address}]:{}", server.port),
            _ => format!("{}:{}", server.host, server.port),
        };
        let authority = authority.strip_suffix(":80").unwrap_or(&authority).into();
        Self {
            id: id(&cluster.name, &server.url, occurrence, literal),
            url: Arc::clone(&server.url),
            name: Arc::clone(&server.host),
            port: server.port,
            weight: server.weight,
            metadata: server.metadata.clone(),
            authority,
            addresses: match literal {
                Some(address) => Addresses::fixed(SocketAddr::new(address, server.port)),
                None => Addresses::named(&server.host, server.port),
            },
            counters: new_slot(server.weight),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

fn new_slot(weight: u16) -> &'static wire::Counters {
    let slot: &'static Slot = Box::leak(Box::new(Slot(wire::Counters {
        size: size_of::<wire::Counters>() as u32,
        state: AtomicU32::new(wire::STATE_AVAILABLE),
        effective_weight: AtomicU32::new(u32::from(weight) << 16),
        in_flight: AtomicU32::new(0),
        in_flight_older: AtomicU32::new(0),
        max_in_flight: AtomicU32::new(0),
        latency_ns: AtomicU64::new(0),
    })));
    &slot.0
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
    use super::*;

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
}
