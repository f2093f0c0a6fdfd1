//! `ip_hash`: nginx's `ip_hash`, the client's address modulo the sum of the weights.
//!
//! Sends the clients of one IPv4 network of 256 addresses, or one IPv6 address, to the same server as nginx does. Use
//! it beside or after such an nginx; otherwise use sessions (`sticky`) or `ring_hash`. A choice costs a hash and a
//! look into a table. Source: nginx.
//!
//! Servers stand side by side, each as long as its weight. The hash begins at 89; for each byte it is multiplied by
//! 113, the byte is added, and the remainder by 6271 is kept. Of an IPv4 address the first three bytes count, so that
//! the clients of a network of 256 addresses, which often are one client behind several, have one server; of an IPv6
//! address all 16. The hash modulo the sum of the weights is a place that belongs to one of the servers. Where that one
//! is not available, or failed this request before, hashing goes on from where it was over the same bytes; after 20
//! misses in all the request takes turns with others of its kind among what is left, by nginx's round robin.
//!
//! By hand, for 192.0.2.1 and servers a=2, b=1 (sum 3): 89 · 113 + 192 = 10249, less 6271 is 3978;
//! 3978 · 113 + 0 = 449514, of which 4273 is left (71 · 6271 less); 4273 · 113 + 2 = 482851, of which 6255 is left.
//! 6255 mod 3 = 0 is a place of a's.
//!
//! **Weights** are those configured: the places do not move while the process runs, whatever the health of the servers.
//! A server in slow start keeps as many of its clients as its effective weight is of the configured one, always the same
//! ones. A weight changed at run time is a new generation's configured one.
//!
//! **A name with several addresses** is one server here, with one server's places; nginx makes a peer of each address. With
//! `resolve = "all"` each address is a server here too.
//!
//! **A client without an address** (there is none over TCP; nginx takes 0.0.0.0 for it, which is one server for all) is
//! drawn by weight. The cluster's `key` plays no part.
//!
//! **When**: sessions kept in the servers, and clients that take no cookies, or moving over from nginx. **When not**:
//! clients behind few addresses (a mobile network, another proxy); and wherever servers come and go, because a change
//! of their number or weights moves nearly every client to another server: `ring_hash`, `maglev` and `rendezvous` with
//! `key = "client"` move as few as possible. Nor with weights that sum up to more than 6,271, which is how many values
//! the hash has: the servers behind that get no client at first (a line in the log says so).
//!
//! **Settings**: none. **Cost**: constant, whatever the number of servers; nothing is written but in the turns after 20
//! misses. The first request after a change of a server's state or effective weight looks at all of them. **Source**: nginx, `src/http/modules/ngx_http_upstream_ip_hash_module.c`; `tests/data` has its choices.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use lb_api::pick::{Places, Servers, Turns};
use lb_api::{Balancer, BuildCx, BuildError, Next, NextCx, Request, export_balancer};

/// Misses after which nginx takes turns instead.
const MAX_MISSES: u32 = 20;

/// Initial value of the hash.
const SEED: u32 = 89;

/// How many values it has.
const VALUES: u32 = 6271;

/// The instance for one cluster.
#[derive(Debug)]
pub struct IpHash {
    servers: Servers,
    places: Places,
    turns: Turns,
}

/// How far a request has come.
#[derive(Debug)]
pub struct Position {
    hash: u32,
    misses: u32,
}

impl Balancer for IpHash {
    const ID: &'static str = "ip_hash";
    const SUMMARY: &'static str = "the client's address modulo the weights, as nginx's `ip_hash`";
    type Settings = ();
    type Trylist = Position;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        let endpoints = cx.endpoints();
        let places = Places::new(endpoints.iter().map(|e| e.weight().into()));
        if places.total() > VALUES.into() {
            cx.log().warn(format_args!(
                "the weights sum up to {}, but this hash has only {VALUES} values: servers from \"{}\" on get no client \
                 at first; smaller weights, ring_hash or maglev would give them theirs",
                places.total(),
                endpoints.get(places.at(VALUES.into())).url(),
            ));
        }
        Ok(Self { servers: Servers::new(cx), places, turns: Turns::new(endpoints.len()) })
    }

    #[inline]
    fn load_balance(&self, _: &Request<'_>) -> Position {
        Position { hash: SEED, misses: 0 }
    }

    #[inline]
    fn next(&self, position: &mut Position, cx: &NextCx<'_>) -> Next {
        let client = cx.request().client().map(|client| client.ip());
        let share = client.map(share);
        let mut rng = cx.rng();
        self.servers.refresh();
        while position.misses <= MAX_MISSES {
            let place = match client {
                Some(client) => {
                    position.hash = hashed(position.hash, client);
                    position.hash
                }
                None => rng.bits() as u32,
            };
            let server = self.places.at(u64::from(place) % self.places.total());
            // Other bits after each miss, or what several servers in slow start leave over would all be the same clients, and
            // go to the few that are not.
            let share = share.unwrap_or_else(|| rng.bits() as u32) ^ position.misses;
            if !cx.tried(server) && self.servers.takes(server, share) {
                return Next::Endpoint(server);
            }
            position.misses += 1;
        }
        self.turns.among(&self.servers, cx)
    }

    fn explain(&self, position: &Position) -> Option<String> {
        let Position { hash, misses } = position;
        Some(match misses {
            0..=MAX_MISSES => format!("hash {hash} mod {}, misses before: {misses}", self.places.total()),
            _ => format!("a turn of round robin, misses before: {misses}"),
        })
    }
}

/// The hash of these bytes, going on from this one.
#[inline]
fn hashed(seed: u32, client: IpAddr) -> u32 {
    let step = |hash: u32, byte: &u8| (hash * 113 + u32::from(*byte)) % VALUES;
    match client {
        IpAddr::V4(ip) => ip.octets()[..3].iter().fold(seed, step),
        IpAddr::V6(ip) => ip.octets().iter().fold(seed, step),
    }
}

/// Bits that say whether a server takes its share of this client: of the bytes that are hashed, since clients of one
/// network belong together.
#[inline]
fn share(client: IpAddr) -> u32 {
    match client {
        IpAddr::V4(ip) => ip.to_bits() >> 8,
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            let half = bits as u64 ^ (bits >> 64) as u64;
            half as u32 ^ (half >> 32) as u32
        }
    }
}

export_balancer!(IpHash);

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use lb_api::WEIGHT_ONE;
    use lb_api::testkit::{Contract, FakeCluster, FakeRequest, TestBalancer};

    use super::*;

    fn from(client: [u8; 4]) -> FakeRequest {
        FakeRequest::get("/").client(SocketAddr::from((client, 40_000)))
    }

    fn first(balancer: &TestBalancer<IpHash>, client: [u8; 4]) -> usize {
        let mut trylist = balancer.load_balance(from(client));
        let Next::Endpoint(endpoint) = trylist.next() else { panic!("no endpoint") };
        endpoint
    }

    #[test]
    fn keeps_the_contract() {
        Contract::<IpHash>::new().skips_unavailable().keyed().check();
    }

    #[test]
    fn the_example_of_the_docs_comes_out() {
        assert_eq!(hashed(SEED, IpAddr::from([192, 0, 2, 1])), 6255);
        let balancer = FakeCluster::weighted(&[2, 1]).balancer::<IpHash>().build().unwrap();
        let mut trylist = balancer.load_balance(from([192, 0, 2, 1]));
        assert_eq!(trylist.next(), Next::Endpoint(0));
        assert_eq!(trylist.explain(), "hash 6255 mod 3, misses before: 0");
    }

    #[test]
    fn clients_of_one_network_have_one_server() {
        let balancer = FakeCluster::equal(50).balancer::<IpHash>().build().unwrap();
        for network in 0..100 {
            let servers: Vec<_> = (0..=255).map(|host| first(&balancer, [10, network, 7, host])).collect();
            assert!(servers.iter().all(|server| *server == servers[0]), "{servers:?}");
        }
    }

    #[test]
    fn a_server_in_slow_start_has_part_of_its_clients() {
        let cluster = FakeCluster::equal(4);
        let balancer = cluster.balancer::<IpHash>().build().unwrap();
        let clients = || (0..=255).flat_map(|a| (0..=15).map(move |b| [a, 7, b, 1]));
        let held = || clients().filter(|client| first(&balancer, *client) == 1).count();
        let all = held();
        cluster.set_effective_weight(1, WEIGHT_ONE / 4);
        // A quarter, and a quarter of the rest that is hashed again comes back for another try, without success.
        let quarter = held() as f64 / all as f64;
        assert!((0.2..=0.35).contains(&quarter), "{quarter} of {all}");
        cluster.set_effective_weight(1, 0);
        assert_eq!(held(), 0);
        cluster.set_effective_weight(1, WEIGHT_ONE);
        assert_eq!(held(), all);
    }

    #[test]
    fn says_which_servers_the_hash_does_not_reach() {
        let cluster = FakeCluster::weighted(&[6000, 271, 1]);
        let logged = cluster.balancer::<IpHash>().build().unwrap().logged();
        assert_eq!(logged.len(), 1);
        assert!(
            logged[0].contains("sum up to 6272") && logged[0].contains("http://10.0.0.3:8080"),
            "{logged:?}"
        );
    }

    #[test]
    fn takes_no_settings() {
        let refused = FakeCluster::equal(1).balancer::<IpHash>().setting("bits", 24).build().err().unwrap();
        assert_eq!(refused.to_string(), "bits: unknown setting, this module has none");
    }
}
