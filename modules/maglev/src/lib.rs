//! `maglev`: a lookup table that servers fill in turns, as Envoy builds it.
//!
//! Sends the same key to the same server, with even shares and few moves when servers change. Use it for caches; it is
//! the cheapest hash for each request. A choice costs a hash and a look into a table. Source: Envoy; Eisenbud et al.,
//! 2016.
//!
//! A request's key (the cluster's `key`) is hashed; the hash modulo the size of a table, which is prime, is a slot, and
//! the slot belongs to a server. Servers choose the slots one after the other, each in an order of its own that hashes
//! of its name make, the next one that is still free. So all get the same number of slots to within one, or numbers by
//! weight, where a ring is off by a tenth; and most slots stay with their servers when one comes or goes, where a hash
//! modulo the number of servers changes nearly all. The rest is what a ring does better: of `n` servers the `n`-th part
//! must move when one leaves, and here up to a few hundredths more do.
//!
//! By hand, in a table of 7 slots: let a want 3, 0, 4, 1, 5, 2, 6 (offset 3, skip 4), b want 0, 2, 4, 6, 1, 3, 5
//! (offset 0, skip 2). a takes 3, b takes 0; a wants 0, which is taken, and takes 4; b takes 2; a takes 1; b wants 4,
//! which is taken, and takes 6; a takes 5. So the slots 0 to 6 are b a b a a a b's.
//!
//! Offset and skip are xxHash64 of the name, with the seeds 0 and 1, modulo the size and modulo the size less one plus
//! one; keys are hashed by xxHash64 too. The name is host and port as `host:port` (of a name of which each address is
//! a server, address and port), which for addresses is Envoy's, so that key and table are Envoy's slot for slot; the pair `hash_key = "…"` among a server's metadata is taken instead,
//! so that a server can keep its keys when its address changes. Servers take turns in the order of their names, so that
//! the order in the file makes no difference.
//!
//! **Where the slot's server is not available**, or failed this request before, the hash is changed as Envoy does for
//! its retries (the `n`-th time: exclusive-or with -`n`), which leads to another slot, as good as drawn. After 32 of
//! these the server of the highest weighted score of key and server is taken among all that are left. Envoy would build
//! a new table without the server that is down, which moves some keys of the others as well; here none of those moves.
//!
//! **Weights** are those configured: the table does not change while the process runs. A server in slow start
//! keeps as many of its keys as its effective weight is of the configured one, always the same ones; the others go to other slots,
//! and so by effective weight. A weight changed at run time is a new generation's configured one.
//!
//! **A request without a key** (an empty one is none) goes to a slot drawn at random, and so to a server by weight; the
//! cluster's `key_missing` can name another module for it.
//!
//! **When**: caches or state in many servers that are to have even shares. **When not**: tables with less than some
//! hundred slots for each server, whose shares are uneven and whose keys move more; few servers that come and go often
//! (`ring_hash` and `rendezvous` move less).
//!
//! | setting | default | meaning |
//! |---|---|---|
//! | `table_size` | 65537 | slots: a prime number from 2 to 5,000,011, and not below the number of servers |
//!
//! **Cost**: a look into a table at any number of servers; the first request after a change of a server's state or
//! effective weight looks at all of them. `build` takes some 15 looks for each slot. **Source**: Envoy,
//! `source/extensions/load_balancing_policies/maglev/maglev_lb.cc`; Eisenbud and others, NSDI 2016.
#![forbid(unsafe_code)]

mod table;

use lb_api::pick::{Servers, hash_name};
use lb_api::serde::Deserialize;
use lb_api::{Balancer, BuildCx, BuildError, Endpoint, Needs, Next, NextCx, Request, Rng, export_balancer};
use xxhash_rust::xxh64::xxh64;

/// Slots that a request looks at before it looks at all servers: at half of them down four thousand million requests
/// find one sooner.
const LOOKS: u32 = 32;

/// Envoy's limit, and the reason for it: a table of this size takes 20 MB and up to a second.
const MAX_SIZE: u32 = 5_000_011;

/// The module's settings.
#[derive(Debug, Deserialize)]
#[serde(crate = "lb_api::serde", default)]
pub struct Settings {
    table_size: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { table_size: 65_537 }
    }
}

/// The instance for one cluster.
#[derive(Debug)]
pub struct Maglev {
    servers: Servers,
    /// The server of each slot.
    slots: Box<[u32]>,
}

/// How far a request has come.
#[derive(Debug)]
pub struct Position {
    /// The key's hash, once it is known: that of a request without a key is drawn at its first try.
    hash: Option<u64>,
    /// Slots looked at in vain.
    looks: u32,
}

impl Balancer for Maglev {
    const ID: &'static str = "maglev";
    const SUMMARY: &'static str = "Maglev's lookup table, slot for slot as Envoy builds it";
    type Settings = Settings;
    type Trylist = Position;

    fn build(cx: &BuildCx<'_, Self>, settings: Settings) -> Result<Self, BuildError> {
        let (endpoints, size) = (cx.endpoints(), settings.table_size);
        check(size, endpoints.len())?;
        let names: Vec<String> = endpoints.iter().map(hash_name).collect();
        let weights = endpoints.iter().map(Endpoint::weight);
        let named: Vec<(&str, u32)> = names.iter().map(String::as_str).zip(weights).collect();
        Ok(Self { servers: Servers::new(cx), slots: table::table(size, &named) })
    }

    fn needs(&self) -> Needs {
        Needs::default().key()
    }

    #[inline]
    fn load_balance(&self, request: &Request<'_>) -> Position {
        Position { hash: request.key().map(|key| xxh64(key, 0)), looks: 0 }
    }

    #[inline]
    fn next(&self, position: &mut Position, cx: &NextCx<'_>) -> Next {
        let hash = *position.hash.get_or_insert_with(|| cx.random());
        self.servers.refresh();
        while position.looks < LOOKS {
            let server = self.server_of(hash, position.looks);
            // The upper half: the slot is made of all bits, and its remainder says little of these. Others at each look, or
            // what several servers in slow start leave over would all be the same keys, and go to the few that are not.
            if !cx.tried(server) && self.servers.takes(server, (hash >> 32) as u32 ^ position.looks) {
                return Next::Endpoint(server);
            }
            position.looks += 1;
        }
        self.highest(hash, cx)
    }

    fn explain(&self, position: &Position) -> Option<String> {
        let (hash, looks) = (position.hash?, position.looks);
        let slot = changed(hash, looks) % self.slots.len() as u64;
        Some(match looks {
            0..LOOKS => {
                format!("hash {hash:#018x}, slot {slot} of {}, looks before: {looks}", self.slots.len())
            }
            _ => format!("hash {hash:#018x}, the highest score, looks before: {looks}"),
        })
    }
}

impl Maglev {
    #[inline]
    fn server_of(&self, hash: u64, looks: u32) -> usize {
        self.slots[(changed(hash, looks) % self.slots.len() as u64) as usize] as usize
    }

    /// The highest weighted score of key and server among all that are left, so that the keys of many servers that are
    /// down spread over the others by weight.
    #[cold]
    fn highest(&self, hash: u64, cx: &NextCx<'_>) -> Next {
        let left = (0..self.servers.len())
            .filter(|server| !cx.tried(*server) && self.servers.live(*server).is_available());
        let score = |server: usize| {
            let drawn = Rng::new(hash ^ (server as u64) << 32).bits();
            let weight = f64::from(self.servers.live(server).effective_weight());
            // Of a number between 0 and 1, neither of them.
            -weight / (((drawn >> 12) as f64 + 0.5) / 2_f64.powi(52)).ln()
        };
        left.max_by(|a, b| score(*a).total_cmp(&score(*b))).map_or(Next::Exhausted, Next::Endpoint)
    }
}

/// The hash for the next look.
#[inline]
fn changed(hash: u64, looks: u32) -> u64 {
    match looks {
        0 => hash,
        looks => hash ^ u64::from(looks).wrapping_neg(),
    }
}

fn check(size: u32, n_servers: usize) -> Result<(), BuildError> {
    let refuse = |text: String| Err(BuildError::setting("table_size", text));
    if size > MAX_SIZE {
        return refuse(format!("expected {MAX_SIZE} or less, found {size}"));
    }
    if !table::is_prime(size) {
        return refuse(format!(
            "expected a prime number, found {size} (the next is {})",
            table::next_prime(size)
        ));
    }
    if (size as usize) < n_servers {
        let (least, good) = (table::next_prime(n_servers as u32), table::next_prime(n_servers as u32 * 100));
        return refuse(format!(
            "expected a slot for each of {n_servers} servers, found {size} (at least {least}, better {})",
            good.min(MAX_SIZE)
        ));
    }
    Ok(())
}

export_balancer!(Maglev);

#[cfg(test)]
mod tests;
