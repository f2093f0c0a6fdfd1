//! `ring_hash`: a ketama ring, the same server as nginx's `hash $key consistent` for every key.
//!
//! Sends the same key to the same server as nginx's `hash … consistent`, and moves few keys when servers change. Use
//! it for caches, and beside or after such an nginx. A choice costs a hash and a look at one line of memory. Source:
//! nginx; HAProxy for the bound.
//!
//! Every server has 160 points for each unit of its weight on a ring of 2^32 places, where hashes of its name put them.
//! A request goes to the server of the first point at or behind the hash of its key (the cluster's `key`); where that
//! one is not available, or failed this request before, to that of the next point, and so on; after 20 points in vain
//! it takes turns with others of its kind among what is left, by nginx's round robin. So a server that is taken away
//! gives its keys to those whose points follow its own, and a server that comes takes keys from those: of `n` servers
//! about the `n`-th part of all keys moves, and the rest stays.
//!
//! The first point of a server is `crc32(host 0x00 port 0x00000000)`, each further one has the point before it in the
//! place of the last four bytes, least significant first. Host and port are those of the URL as written: `http://a` and
//! `http://a:80` have other points, as `server a;` and `server a:80;` have. The pair `hash_key = "…"` among a server's
//! metadata is taken instead of them, so that a server can keep its keys when its address changes. Endpoints of one
//! `hash_key` share its points and take turns by weight, as nginx's smooth round robin has it.
//!
//! **A name with several addresses** is one endpoint here, unless `resolve = "all"` makes each of them one: then each has
//! points of its own, those of `server ADDRESS:PORT;`, and a key stays with an address. nginx makes a peer of each
//! address, which share the points of the name, so that a key goes to all of them in turn; `hash_key` does that too.
//!
//! By hand, for `http://10.0.0.1:8080` and `http://10.0.0.2:8080`, each of weight 1: 320 points. The key `k0` has the
//! hash 0xe109903f. The first point at or behind it is 0xe2c0ab6c, the first server's. If that is down, 0xe2e8b325 is
//! its own too, and 0xe2ff0143 behind that is the second server's.
//!
//! **Weights** are those configured: the ring does not move while the process runs, whatever the health of the servers.
//! A server in slow start keeps as many of its keys as its effective weight is of the configured one, always the same
//! ones; the others go on around the ring. A weight changed at run time is a new generation's configured one. All
//! weights together may be 104,857 at most, 16 million points in 128 MiB: more is refused, and smaller weights in the
//! same proportion do as well.
//!
//! **A request without a key**, or with an empty one, goes to a point drawn at random, and so to a server by weight;
//! nginx would have it take turns.
//!
//! **Bounded loads** (`balance_factor`): no server gets a request while it has more than so many percent of its share
//! of the requests on their way; the request goes on around the ring. The numbers are those of HAProxy's
//! `hash-balance-factor`: the requests on their way, this one included, times the factor, rounded up, are parted among
//! the available servers by effective weight, at least one for each. 125 keeps most keys where they are and no server
//! more than a quarter above its share; the nearer to 100, the more keys move. It goes all the way around, not only 20
//! points; and where no server has room, which is found out by a look at all after a few points, the bound is left
//! aside. It makes every request count itself, which threads contend for; without it nothing is written.
//!
//! **When**: caches, and state in servers that come and go, or moving over from nginx. **When not**: shares that must
//! be even: with 160 points they are off by a tenth or so, which `maglev` and `rendezvous` do better.
//!
//! | setting | default | meaning |
//! |---|---|---|
//! | `balance_factor` | 0 | percent of its share that a server may have on its way: 101 to 65,535, or 0 for no bound |
//!
//! **Cost**: a look at one cache line of the ring, and at what each server takes, at any number of servers; more at
//! 10,000, whose ring of 13 MB no near cache holds. The first request after a change of a server's state or effective
//! weight looks at all of them. `build` makes the points: 1.6 million for 10,000 servers of weight 1 in less than 50
//! ms, and in proportion to the sum of the weights: keep them small. **Source**: nginx,
//! `src/http/modules/ngx_http_upstream_hash_module.c`, whose choices are in `tests/data`; the bound: HAProxy,
//! `src/lb_chash.c`.
#![forbid(unsafe_code)]

mod bound;
mod ring;

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use lb_api::pick::{Servers, Turns};
use lb_api::serde::Deserialize;
use lb_api::{Balancer, BuildCx, BuildError, Endpoint, Needs, Next, NextCx, Request, export_balancer};

use bound::{Bound, Open, Room};
use ring::{Owner, POINTS, Point, Ring};

/// Points of a ring, at most.
const MAX_POINTS: u64 = 1 << 24;

/// Points passed in vain after which nginx takes turns instead.
const MAX_PASSED: u32 = 20;

/// Points that a bounded request passes before it looks whether there is any server left for it at all: as many as cost
/// what the look does, and so many at most.
const BLIND_POINTS: usize = 64;

/// Servers that are looked at in the time that a point takes.
const SERVERS_A_POINT: usize = 8;

/// The module's settings.
#[derive(Debug, Default, Deserialize)]
#[serde(crate = "lb_api::serde", default)]
pub struct Settings {
    balance_factor: u16,
}

/// The instance for one cluster.
#[derive(Debug)]
pub struct RingHash {
    servers: Servers,
    ring: Ring,
    turns: Turns,
    bound: Option<Bound>,
    /// Points that a request passes before it takes turns.
    max_passed: u32,
}

/// Where a request stands on the ring.
#[derive(Debug)]
pub struct Position {
    /// Where it began, once that is known: a request without a key draws it at its first try.
    start: Option<Start>,
    /// Points passed in vain.
    passed: u32,
    /// Counts this request where loads are bounded.
    _open: Option<Open>,
}

#[derive(Clone, Copy, Debug)]
struct Start {
    hash: u32,
    first: Point,
    /// The point where it is now.
    now: Point,
}

impl Balancer for RingHash {
    const ID: &'static str = "ring_hash";
    const SUMMARY: &'static str = "a ketama ring, as nginx's `hash … consistent`; bounded loads if wanted";
    type Settings = Settings;
    type Trylist = Position;

    fn build(cx: &BuildCx<'_, Self>, settings: Settings) -> Result<Self, BuildError> {
        let endpoints = cx.endpoints();
        let names: Vec<Cow<'_, str>> = endpoints.iter().map(name).collect();
        let weights = endpoints.iter().map(Endpoint::weight);
        let named: Vec<(&str, u32)> = names.iter().map(|name| &**name).zip(weights).collect();
        let factor = match settings.balance_factor {
            factor @ 1..=100 => Err(BuildError::setting(
                "balance_factor",
                format!("expected 101 or more percent, or 0 for no bound, found {factor}"),
            )),
            factor => Ok(Some(u64::from(factor)).filter(|factor| *factor > 0)),
        };
        let total: u64 = named.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let fits = if total * POINTS <= MAX_POINTS {
            Ok(())
        } else {
            Err(BuildError::new(format!(
                "the weights sum up to {total}, expected {} at most ({POINTS} points for each unit); smaller weights in \
                 the same proportion do as well",
                MAX_POINTS / POINTS
            )))
        };
        let factor = match (factor, fits) {
            (Ok(factor), Ok(())) => factor,
            (Err(factor), Err(fits)) => return Err(factor.and(fits)),
            (Err(error), Ok(())) | (Ok(_), Err(error)) => return Err(error),
        };
        let ring = match cx.previous() {
            Some(previous) => Ring::after(&previous.ring, &named),
            None => Ring::new(&named),
        };
        let servers = Servers::new(cx);
        let previous = cx.previous().and_then(|previous| previous.bound.as_ref());
        let bound = factor.map(|factor| Bound::new(factor, cx.cluster(), &servers, previous));
        Ok(Self {
            servers,
            turns: Turns::new(endpoints.len()),
            // As HAProxy a bounded request goes all the way: many points in a row may be those of a full server.
            max_passed: if bound.is_some() { ring.len() as u32 } else { MAX_PASSED },
            bound,
            ring,
        })
    }

    fn needs(&self) -> Needs {
        Needs::default().key()
    }

    #[inline]
    fn load_balance(&self, request: &Request<'_>) -> Position {
        let start = request.key().filter(|key| !key.is_empty()).map(|key| {
            let hash = crc32fast::hash(key);
            Start::new(hash, self.ring.find(hash))
        });
        Position { start, passed: 0, _open: self.bound.as_ref().map(Bound::open) }
    }

    #[inline]
    fn next(&self, position: &mut Position, cx: &NextCx<'_>) -> Next {
        let Start { hash, now, .. } = position.start.get_or_insert_with(|| {
            let mut rng = cx.rng();
            Start::new(rng.bits() as u32, self.ring.draw(&mut rng))
        });
        self.servers.refresh();
        let room = self.bound.as_ref().map(|bound| bound.room(&self.servers));
        let choice = Choice { of: self, room, cx };
        let blind = position.passed + (self.servers.len() / SERVERS_A_POINT).clamp(1, BLIND_POINTS) as u32;
        while position.passed <= self.max_passed {
            if position.passed == blind && !choice.is_there_any() {
                break;
            }
            // Other bits at each point, or what several servers in slow start leave over would all be the same keys, and go to
            // the few that are not.
            let share = *hash ^ position.passed;
            let found = match self.ring.owner(*now) {
                Owner::One(server) => Some(server).filter(|server| choice.fits(*server, share)),
                Owner::Several(servers) => choice.turn(servers, share),
            };
            if let Some(server) = found {
                return Next::Endpoint(server);
            }
            position.passed += 1;
            *now = self.ring.behind(*now);
        }
        self.turns.among(&self.servers, cx)
    }

    fn explain(&self, position: &Position) -> Option<String> {
        let Start { hash, first, .. } = position.start?;
        Some(format!(
            "hash {hash:#010x}, point {:#010x}, points passed: {}",
            self.ring.hash(first),
            position.passed
        ))
    }
}

impl Start {
    #[inline]
    fn new(hash: u32, first: Point) -> Self {
        Self { hash, first, now: first }
    }
}

/// One choice: which servers fit.
struct Choice<'a> {
    of: &'a RingHash,
    room: Option<Room<'a>>,
    cx: &'a NextCx<'a>,
}

impl Choice<'_> {
    /// Whether this server takes the request at a point with these bits.
    #[inline]
    fn fits(&self, server: usize, share: u32) -> bool {
        self.of.servers.takes(server, share) && self.may_fit(server)
    }

    /// Whether it does at any point.
    #[inline]
    fn may_fit(&self, server: usize) -> bool {
        let live = self.of.servers.live(server);
        !self.cx.tried(server) && self.room.as_ref().is_none_or(|room| room.is_for(server, live))
    }

    /// A pass over all servers; where there is one, going on along the ring comes to it.
    #[cold]
    fn is_there_any(&self) -> bool {
        let gets_any = |server: usize| {
            let live = self.of.servers.live(server);
            live.is_available() && live.effective_weight() > 0
        };
        (0..self.of.servers.len()).any(|server| gets_any(server) && self.may_fit(server))
    }

    /// The turn among the endpoints of one name.
    fn turn(&self, servers: &[u32], share: u32) -> Option<usize> {
        let RingHash { servers: all, turns, .. } = self.of;
        let fitting =
            servers.iter().map(|server| *server as usize).filter(|server| self.fits(*server, share));
        turns.next(fitting.map(|server| (server, all.live(server).effective_weight())))
    }
}

/// Name of an endpoint on the ring: host and port as written; a Unix socket's with `unix:` before its path, or what
/// looks like a port there would be taken for one; one of a name's addresses by that.
fn name<'a>(endpoint: Endpoint<'a>) -> Cow<'a, str> {
    let authority = |url: &'a str| {
        if endpoint.port() == 0 {
            return url;
        }
        let behind = url.split_once("://").map_or(url, |(_, behind)| behind);
        behind.split(['/', '?']).next().unwrap_or(behind)
    };
    let given = endpoint.metadata().find(|(name, _)| *name == "hash_key").map(|(_, value)| value);
    let is_name = endpoint.name().parse::<IpAddr>().is_err();
    match (given, endpoint.address().filter(|_| is_name)) {
        (Some(given), _) => given.into(),
        (None, Some(address)) => SocketAddr::new(address.ip(), endpoint.port()).to_string().into(),
        (None, None) => authority(endpoint.url()).into(),
    }
}

export_balancer!(RingHash);

#[cfg(test)]
mod tests;
