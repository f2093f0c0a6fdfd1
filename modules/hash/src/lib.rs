//! `hash`: nginx's `hash $key`, a key's hash modulo the sum of the weights.
//!
//! Sends the same key to the same server as an nginx without `consistent`. Use it beside or after such an nginx;
//! otherwise prefer `ring_hash` or `maglev`, which move far fewer keys when servers change. A choice costs a hash and
//! a look into a table. Source: nginx.
//!
//! Servers stand side by side, each as long as its weight; the hash of the request's key (the cluster's `key`) is
//! divided by the whole length, and the remainder is a place that belongs to one of them. The hash is that of
//! Cache::Memcached: `(crc32(key) >> 16) & 0x7fff`. Where that server is not available, or failed this request before,
//! the hash is made again with a number in front of the key (`1key`, `2key`, …) and *added* to the one before; after 20
//! misses in all the request takes turns with others of its kind among what is left, by nginx's round robin.
//!
//! By hand, for servers a=2, b=1 (sum 3): the key `k0` has the CRC 0xe109903f, of which 0x6109 = 24841 is left, and
//! 24841 mod 3 = 1 is a place of a's. If a is down: `1k0` has 0x7a38d475, so 0x7a38 = 31288 is added, and
//! 56129 mod 3 = 2 is b's.
//!
//! **Weights** are those configured: the places do not move while the process runs, whatever the health of the servers.
//! A server in slow start keeps as many of its keys as its effective weight is of the configured one, always the same
//! ones, more and more as the weight rises; the others are hashed again. A weight changed at run time is a new
//! generation's configured one.
//!
//! **A name with several addresses** is one server here, with one server's places; nginx makes a peer of each address. With
//! `resolve = "all"` each address is a server here too.
//!
//! **A request without a key**, or with an empty one, is drawn by weight, where nginx would have it take turns
//! (the cluster's `key_missing = "round_robin"` does).
//!
//! **When**: clients or servers that compute the same hash, as a farm of memcached with Cache::Memcached, or moving
//! over from nginx. **When not**: wherever servers come and go: a change of their number or weights moves nearly every
//! key to another server; `ring_hash`, `maglev` and `rendezvous` move as few as possible. Nor with weights that sum up
//! to more than 32,768, which is how many values the hash has: the servers behind that get no key at first (a line in
//! the log says so).
//!
//! **Settings**: none. **Cost**: constant, whatever the number of servers; nothing is written but in the turns after 20
//! misses. The first request after a change of a server's state or effective weight looks at all of them. **Source**: nginx, `src/http/modules/ngx_http_upstream_hash_module.c`; `tests/data` has its choices.
#![forbid(unsafe_code)]

use lb_api::pick::{Places, Servers, Turns};
use lb_api::{Balancer, BuildCx, BuildError, Needs, Next, NextCx, Request, export_balancer};

/// Misses after which nginx takes turns instead.
const MAX_MISSES: u32 = 20;

/// How many values the hash of a key has.
const VALUES: u64 = 1 << 15;

/// The instance for one cluster.
#[derive(Debug)]
pub struct Hash {
    servers: Servers,
    places: Places,
    turns: Turns,
}

/// How far a request has come.
#[derive(Debug, Default)]
pub struct Position {
    /// The sum of the hashes so far.
    hash: u32,
    /// How many hashes that is.
    n_hashes: u32,
    misses: u32,
}

impl Balancer for Hash {
    const ID: &'static str = "hash";
    const SUMMARY: &'static str = "a key's hash modulo the weights, as nginx's `hash`";
    type Settings = ();
    type Trylist = Position;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        let endpoints = cx.endpoints();
        let places = Places::new(endpoints.iter().map(|e| e.weight().into()));
        if places.total() > VALUES {
            cx.log().warn(format_args!(
                "the weights sum up to {}, but this hash has only {VALUES} values: servers from \"{}\" on get no key at \
                 first; smaller weights, ring_hash or maglev would give them theirs",
                places.total(),
                endpoints.get(places.at(VALUES)).url(),
            ));
        }
        Ok(Self { servers: Servers::new(cx), places, turns: Turns::new(endpoints.len()) })
    }

    fn needs(&self) -> Needs {
        Needs::default().key()
    }

    #[inline]
    fn load_balance(&self, _: &Request<'_>) -> Position {
        Position::default()
    }

    #[inline]
    fn next(&self, position: &mut Position, cx: &NextCx<'_>) -> Next {
        let key = cx.request().key().filter(|key| !key.is_empty());
        let mut rng = cx.rng();
        self.servers.refresh();
        while position.misses <= MAX_MISSES {
            let (place, share) = match key {
                Some(key) => position.hash_again(key),
                // Draws instead of hashes; the rest is the same.
                None => (rng.bits() as u32, rng.bits() as u32),
            };
            let server = self.places.at(u64::from(place) % self.places.total());
            if !cx.tried(server) && self.servers.takes(server, share) {
                return Next::Endpoint(server);
            }
            position.misses += 1;
        }
        self.turns.among(&self.servers, cx)
    }

    fn explain(&self, position: &Position) -> Option<String> {
        let Position { hash, n_hashes, misses } = position;
        (*n_hashes > 0).then(|| match misses {
            0..=MAX_MISSES => format!("hash {hash} mod {}, misses before: {misses}", self.places.total()),
            _ => format!("a turn of round robin, misses before: {misses}"),
        })
    }
}

impl Position {
    /// The hash for the next place, and the bits that say whether a server takes its share of it.
    #[inline]
    fn hash_again(&mut self, key: &[u8]) -> (u32, u32) {
        let crc = match self.n_hashes {
            0 => crc32fast::hash(key),
            n => numbered(n, key),
        };
        self.n_hashes += 1;
        self.hash = self.hash.wrapping_add(crc >> 16 & 0x7fff);
        (self.hash, crc)
    }
}

/// CRC of the number as text and the key behind it.
#[cold]
fn numbered(n: u32, key: &[u8]) -> u32 {
    let (mut digits, mut at, mut left) = ([0; 10], 10, n);
    while left > 0 {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&digits[at..]);
    crc.update(key);
    crc.finalize()
}

export_balancer!(Hash);

#[cfg(test)]
mod tests;
