//! `maglev`: a lookup table that servers fill in turns, as Envoy builds it.
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
mod tests {
    use lb_api::testkit::{Contract, FakeCluster, FakeRequest, TestBalancer};
    use lb_api::{State, WEIGHT_ONE};

    use super::*;

    const KEYS: usize = 20_000;

    fn keyed(key: usize) -> FakeRequest {
        FakeRequest::get("/").key(format!("/page/{key}"))
    }

    fn built(cluster: &FakeCluster) -> TestBalancer<Maglev> {
        cluster.balancer().build().unwrap()
    }

    fn firsts(balancer: &TestBalancer<Maglev>) -> Vec<usize> {
        let first = |key| match balancer.load_balance(keyed(key)).next() {
            Next::Endpoint(endpoint) => endpoint,
            other => panic!("{other:?}"),
        };
        (0..KEYS).map(first).collect()
    }

    #[test]
    fn keeps_the_contract_where_requests_have_no_key() {
        Contract::<Maglev>::new().skips_unavailable().keyed().check();
        Contract::<Maglev>::new().setting("table_size", 131).skips_unavailable().check();
    }

    #[test]
    fn requests_without_a_key_are_drawn_by_weight() {
        // Four deviations of 500 of 20,000 are 88, and those of the larger shares 15 for each unit at most.
        let counts = built(&FakeCluster::weighted(&[5, 1, 1, 13, 20])).distribution(20_000);
        for (count, weight) in counts.iter().zip([5, 1, 1, 13, 20]) {
            assert!(count.abs_diff(500 * weight) < 88 + 15 * weight, "{count} for weight {weight}");
        }
    }

    #[test]
    fn looks_where_envoy_looks() {
        // xxHash64 of "a", from the function's own documentation.
        assert_eq!(xxh64(b"a", 0), 0xd24e_c4f1_a98c_6e5b);
        let balancer = built(&FakeCluster::equal(3));
        let mut trylist = balancer.load_balance(FakeRequest::get("/").key("a"));
        let first = trylist.next();
        let slot = 0xd24e_c4f1_a98c_6e5b_u64 % 65_537;
        assert_eq!(
            trylist.explain(),
            format!("hash 0xd24ec4f1a98c6e5b, slot {slot} of 65537, looks before: 0")
        );
        let names = ["10.0.0.1:8080", "10.0.0.2:8080", "10.0.0.3:8080"];
        let slots = table::table(65_537, &names.map(|name| (name, 1)));
        assert_eq!(first, Next::Endpoint(slots[slot as usize] as usize));
        // The next try is where Envoy's next attempts lead.
        trylist.fail();
        let attempts =
            (1_u64..).map(|n| slots[((0xd24e_c4f1_a98c_6e5b ^ (!0 - n + 1)) % 65_537) as usize] as usize);
        let second = attempts.map(Next::Endpoint).find(|next| *next != first).unwrap();
        assert_eq!(trylist.next(), second);
    }

    #[test]
    fn offers_every_endpoint_once_to_every_key() {
        for n in [1, 2, 10, 130] {
            let balancer = built(&FakeCluster::equal(n));
            for key in 0..20 {
                let mut offered = balancer.load_balance(keyed(key)).all();
                offered.sort_unstable();
                assert_eq!(offered, (0..n).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn few_keys_but_its_own_move_when_one_of_n_leaves() {
        let all = FakeCluster::equal(20);
        let before = firsts(&built(&all));
        let after = firsts(&built(&all.reordered(&(0..20).filter(|idx| *idx != 7).collect::<Vec<_>>())));
        let moved = |own: bool| {
            let pairs = before.iter().zip(&after).filter(|(before, _)| (**before == 7) == own);
            pairs.filter(|(before, after)| **before != **after + usize::from(**after >= 7)).count()
        };
        // A twentieth must; the paper has some hundredths more for tables of this size.
        assert_eq!(moved(true), before.iter().filter(|server| **server == 7).count());
        assert!(moved(false) < KEYS / 25, "{} of {KEYS} keys of other servers moved", moved(false));
    }

    #[test]
    fn the_order_in_the_file_makes_no_difference() {
        let all = FakeCluster::weighted(&[1, 2, 3, 4]);
        let order = [2, 0, 3, 1];
        let (as_is, reordered) = (firsts(&built(&all)), firsts(&built(&all.reordered(&order))));
        assert!(as_is.iter().zip(reordered).all(|(as_is, reordered)| *as_is == order[reordered]));
    }

    #[test]
    fn only_keys_of_an_unavailable_server_move_and_spread_over_the_others() {
        let cluster = FakeCluster::equal(10);
        let balancer = built(&cluster);
        let before = firsts(&balancer);
        cluster.set_state(3, State::Ejected);
        let mut taken = [0_usize; 10];
        for (before, now) in before.iter().zip(firsts(&balancer)) {
            assert!(*before == 3 || now == *before, "a key of {before} moved");
            taken[now] += usize::from(*before == 3);
        }
        // A ninth of 2,000 each; four deviations are 56.
        assert!(taken.iter().enumerate().all(|(idx, n)| idx == 3 || n.abs_diff(222) < 60), "{taken:?}");
        assert_eq!(taken[3], 0);
    }

    #[test]
    fn spreads_the_keys_of_nearly_all_servers() {
        let cluster = FakeCluster::equal(200);
        let balancer = built(&cluster);
        (2..200).for_each(|server| cluster.set_state(server, State::Down));
        let first = firsts(&balancer).into_iter().filter(|server| *server == 0).count();
        assert!(first.abs_diff(KEYS / 2) < KEYS / 40, "{first} of {KEYS}");
    }

    #[test]
    fn slow_start_brings_the_same_keys_back_one_after_the_other() {
        let cluster = FakeCluster::equal(5);
        let balancer = built(&cluster);
        let before = firsts(&balancer);
        let own = before.iter().filter(|server| **server == 2).count() as f64;
        let mut held = vec![false; KEYS];
        for (weight, share) in [(0, 0.0), (WEIGHT_ONE / 10, 0.1), (WEIGHT_ONE / 2, 0.5), (WEIGHT_ONE, 1.0)] {
            cluster.set_effective_weight(2, weight);
            for (key, now) in firsts(&balancer).into_iter().enumerate() {
                assert!(now == 2 || !held[key], "key {key} left at a share of {share}");
                assert!(
                    now == before[key] || (before[key] == 2 && now != 2),
                    "key {key} of another server moved"
                );
                held[key] |= now == 2;
            }
            let n_held = held.iter().filter(|held| **held).count() as f64;
            // A fifth of what it leaves over comes to it again, for another try.
            let most = share / (1.0 - (1.0 - share) / 5.0);
            let held = n_held / own;
            assert!(
                (share - 0.03..most + 0.03).contains(&held),
                "{n_held} of {own} keys at a share of {share}"
            );
        }
    }

    #[test]
    fn an_endpoint_of_weight_0_is_the_last_resort() {
        let cluster = FakeCluster::equal(3);
        let balancer = built(&cluster);
        cluster.set_effective_weight(1, 0);
        for key in 0..100 {
            assert_eq!(balancer.load_balance(keyed(key)).all().last(), Some(&1));
        }
    }

    #[test]
    fn a_key_in_the_metadata_keeps_the_place_when_the_address_changes() {
        let before = FakeCluster::equal(3).metadata(0, "hash_key", "x").metadata(1, "hash_key", "y");
        let swapped = FakeCluster::equal(3).metadata(0, "hash_key", "y").metadata(1, "hash_key", "x");
        let (before, after) = (firsts(&built(&before)), firsts(&built(&swapped)));
        assert!(before.iter().zip(after).all(|(before, after)| [1, 0, 2][*before] == after));
    }

    #[test]
    fn refuses_tables_that_are_not_prime_or_too_small_or_too_large() {
        let refused = |n: usize, path: &str, value: i64| {
            let cluster = FakeCluster::equal(n);
            cluster.balancer::<Maglev>().setting(path, value).build().err().unwrap().to_string()
        };
        assert_eq!(
            refused(3, "table_size", 65_536),
            "table_size: expected a prime number, found 65536 (the next is 65537)"
        );
        assert_eq!(
            refused(3, "table_size", 0),
            "table_size: expected a prime number, found 0 (the next is 2)"
        );
        assert_eq!(
            refused(130, "table_size", 127),
            "table_size: expected a slot for each of 130 servers, found 127 (at least 131, better 13001)"
        );
        assert_eq!(
            refused(3, "table_size", 5_000_077),
            "table_size: expected 5000011 or less, found 5000077"
        );
        assert_eq!(
            refused(3, "table_size", -1),
            "table_size: expected an integer from 0 to 4294967295, found -1"
        );
        assert_eq!(refused(3, "size", 7), "size: unknown setting, expected one of \"table_size\"");
    }
}
