//! `rendezvous`: the highest score of key and server (highest random weight), with weights, as Envoy computes it.
//!
//! For each server a hash of the request's key (the cluster's `key`) and the server's name makes a number `u` between 0
//! and 1, and with its weight `w` the score `-w / ln u`; the request goes to the highest score. There is no table, so
//! nothing is approximate: shares are exactly by weight, a server that leaves gives away its own keys only, one that
//! comes takes only what it then keeps, and a change of one weight moves keys only to or from that server.
//!
//! By hand: let the hashes of a key with a, b and c be 0.5, 0.8 and 0.6. With weights 1, 1, 1 the scores are 1.44, 4.48
//! and 1.96: b's. With a weight of 3 for c its score is 5.87, and the key is c's. Where c is down the key is b's again,
//! the second highest, and so on.
//!
//! Key and name are hashed by xxHash64; their exclusive-or is spread by xorshift*, and the logarithm is Envoy's
//! approximation: the server is Envoy's for every key. The name is host and port as `host:port` (of a name of
//! which each address is a server, address and port), which for addresses is Envoy's; the pair `hash_key = "…"` among a server's metadata is taken instead, so that a server can keep its keys
//! when its address changes.
//!
//! **Where that server is not available**, or failed this request before, the next highest score is taken; Envoy would
//! change the hash and draw again. **Weights** are the effective ones: slow start and other weights move as few keys
//! as can be, and always the same ones. **A request without a key** (an empty one is none) is drawn by weight,
//! unless the cluster's `key_missing` names another module for it.
//!
//! **When**: caches or state in servers that come, go and change their weights, up to some hundred of them. **When
//! not**: thousands of servers: every choice looks at all of them, at 2 to 3 ns each, where `maglev` and `ring_hash`
//! take the same time at any number.
//!
//! **Settings**: none. **Cost**: a pass over hashes and weights of all servers, side by side in memory; they are
//! brought up to date by the first request that finds that the cluster's epoch has moved on. **Source**: Envoy,
//! `source/extensions/load_balancing_policies/rendezvous_hash/rendezvous_hash_lb.cc`; Thaler and Ravishankar, 1998.
#![forbid(unsafe_code)]

mod score;

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use lb_api::pick::{Epoch, hash_name};
use lb_api::{Balancer, BuildCx, BuildError, Live, Needs, Next, NextCx, Request, export_balancer};
use xxhash_rust::xxh64::xxh64;

/// The instance for one cluster.
#[derive(Debug)]
pub struct Rendezvous {
    lives: Box<[Live]>,
    /// Of the servers' names.
    hashes: Box<[u64]>,
    /// Effective weights, 0 for what is not available. Each is read by itself: a choice while they are
    /// replaced is one that either the old or the new ones could have made of each server.
    weights: Box<[AtomicU32]>,
    /// Of the weights.
    epoch: Epoch,
}

impl Balancer for Rendezvous {
    const ID: &'static str = "rendezvous";
    const SUMMARY: &'static str = "the highest weighted score of key and server, as Envoy's rendezvous hash";
    type Settings = ();
    /// The key's hash, once it is known: that of a request without a key is drawn at its first try.
    type Trylist = Option<u64>;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        let endpoints = cx.endpoints();
        let rendezvous = Self {
            epoch: Epoch::new(cx.cluster()),
            lives: endpoints.live(),
            hashes: endpoints.iter().map(|endpoint| xxh64(hash_name(endpoint).as_bytes(), 0)).collect(),
            weights: endpoints.iter().map(|_| AtomicU32::new(0)).collect(),
        };
        warn_of_twins(cx, &rendezvous.hashes);
        rendezvous.make();
        Ok(rendezvous)
    }

    fn needs(&self) -> Needs {
        Needs::default().key()
    }

    #[inline]
    fn load_balance(&self, request: &Request<'_>) -> Option<u64> {
        request.key().map(|key| xxh64(key, 0))
    }

    #[inline]
    fn next(&self, hash: &mut Option<u64>, cx: &NextCx<'_>) -> Next {
        self.epoch.follow(|| self.make());
        let hash = *hash.get_or_insert_with(|| cx.random());
        match score::highest(hash, self.weighted(), |_| true) {
            Some(server) if !cx.tried(server) && self.lives[server].is_available() => Next::Endpoint(server),
            _ => self.next_highest(hash, cx),
        }
    }

    fn explain(&self, hash: &Option<u64>) -> Option<String> {
        hash.map(|hash| format!("hash {hash:#018x}, the highest score of {} servers", self.hashes.len()))
    }
}

/// Of two servers of one name the first has the higher score for every key.
fn warn_of_twins(cx: &BuildCx<'_, Rendezvous>, hashes: &[u64]) {
    let mut order: Vec<usize> = (0..hashes.len()).collect();
    order.sort_by_key(|server| hashes[*server]);
    let url = |server: usize| cx.endpoints().get(server).url();
    let twins = order.windows(2).filter(|pair| hashes[pair[0]] == hashes[pair[1]]);
    let (first, n) = (twins.clone().map(|pair| (url(pair[0]), url(pair[1]))).next(), twins.count());
    if let Some((one, other)) = first {
        cx.log().warn(format_args!(
            "servers \"{one}\" and \"{other}\" have one name, so that the second gets no key while the first is there \
             ({n} such in all); a hash_key of its own among its metadata would give it some"
        ));
    }
}

impl Rendezvous {
    #[inline]
    fn weighted(&self) -> impl Iterator<Item = (u64, u32)> {
        self.hashes.iter().copied().zip(self.weights.iter().map(|weight| weight.load(Relaxed)))
    }

    /// The highest of what is left, and without any weight the first of that.
    #[cold]
    fn next_highest(&self, hash: u64, cx: &NextCx<'_>) -> Next {
        let left = |server: usize| !cx.tried(server) && self.lives[server].is_available();
        score::highest(hash, self.weighted(), left)
            .or_else(|| (0..self.lives.len()).find(|server| left(*server)))
            .map_or(Next::Exhausted, Next::Endpoint)
    }

    fn make(&self) {
        for (weight, live) in self.weights.iter().zip(&self.lives) {
            weight.store(if live.is_available() { live.effective_weight() } else { 0 }, Relaxed);
        }
    }
}

export_balancer!(Rendezvous);

#[cfg(test)]
mod tests {
    use lb_api::testkit::{Contract, FakeCluster, FakeRequest, TestBalancer};
    use lb_api::{State, WEIGHT_ONE};

    use super::*;

    const KEYS: usize = 20_000;

    fn keyed(key: usize) -> FakeRequest {
        FakeRequest::get("/").key(format!("/page/{key}"))
    }

    fn built(cluster: &FakeCluster) -> TestBalancer<Rendezvous> {
        cluster.balancer().build().unwrap()
    }

    fn firsts(balancer: &TestBalancer<Rendezvous>) -> Vec<usize> {
        let first = |key| match balancer.load_balance(keyed(key)).next() {
            Next::Endpoint(endpoint) => endpoint,
            other => panic!("{other:?}"),
        };
        (0..KEYS).map(first).collect()
    }

    #[test]
    fn keeps_the_contract() {
        // Requests without a key: the smallest share is 1 of 40, as for `random`.
        Contract::<Rendezvous>::new().skips_unavailable().keyed().weighted(0.18).check();
    }

    #[test]
    fn the_example_of_the_docs_comes_out() {
        let score = |u: f64, weight: f64| -weight / u.ln();
        let scores = [score(0.5, 1.0), score(0.8, 1.0), score(0.6, 1.0), score(0.6, 3.0)];
        assert_eq!(scores.map(|score| (score * 100.0).round()), [144.0, 448.0, 196.0, 587.0]);
    }

    #[test]
    fn keys_are_shared_by_weight() {
        let weights = [1, 2, 3, 4, 10];
        let mut counts = [0_usize; 5];
        firsts(&built(&FakeCluster::weighted(&weights))).into_iter().for_each(|server| counts[server] += 1);
        for (count, weight) in counts.iter().zip(weights) {
            let (share, n) = (f64::from(weight) / 20.0, KEYS as f64);
            let four_deviations = 4.0 * (n * share * (1.0 - share)).sqrt();
            assert!((*count as f64 - n * share).abs() < four_deviations, "{counts:?}");
        }
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
    fn exactly_the_keys_of_one_that_leaves_move_to_their_second_choices() {
        let all = FakeCluster::weighted(&[1, 2, 3, 4, 5]);
        let balancer = built(&all);
        let both: Vec<_> = (0..2000).map(|key| balancer.load_balance(keyed(key)).all()).collect();
        let order = [0, 1, 3, 4];
        let left = firsts(&built(&all.reordered(&order)));
        all.set_state(2, State::Down);
        for (key, (both, (left, down))) in both.iter().zip(left.iter().zip(firsts(&balancer))).enumerate() {
            let expected = if both[0] == 2 { both[1] } else { both[0] };
            assert_eq!((order[*left], down), (expected, expected), "key {key}");
        }
    }

    #[test]
    fn a_change_of_one_weight_moves_keys_only_to_or_from_that_server() {
        let cluster = FakeCluster::equal(5);
        let balancer = built(&cluster);
        let mut before = firsts(&balancer);
        for (weight, grows) in
            [(0, false), (WEIGHT_ONE / 10, true), (4 * WEIGHT_ONE, true), (WEIGHT_ONE, false)]
        {
            cluster.set_effective_weight(2, weight);
            let now = firsts(&balancer);
            for (before, now) in before.iter().zip(&now) {
                assert!(
                    now == before || if grows { *now == 2 } else { *before == 2 },
                    "{before}, then {now}"
                );
            }
            let share = now.iter().filter(|server| **server == 2).count() as f64 / KEYS as f64;
            let weight = f64::from(weight) / f64::from(WEIGHT_ONE);
            assert!((share - weight / (weight + 4.0)).abs() < 0.015, "{share} at weight {weight}");
            before = now;
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
    fn the_order_in_the_file_and_the_address_behind_a_key_make_no_difference() {
        let all = FakeCluster::weighted(&[1, 2, 3, 4]);
        let order = [2, 0, 3, 1];
        let (as_is, reordered) = (firsts(&built(&all)), firsts(&built(&all.reordered(&order))));
        assert!(as_is.iter().zip(reordered).all(|(as_is, reordered)| *as_is == order[reordered]));
        let named =
            |a, b| built(&FakeCluster::equal(2).metadata(0, "hash_key", a).metadata(1, "hash_key", b));
        let (before, after) = (firsts(&named("x", "y")), firsts(&named("y", "x")));
        assert!(before.iter().zip(after).all(|(before, after)| 1 - before == after));
    }

    #[test]
    fn says_which_servers_get_no_key() {
        let twins = FakeCluster::equal(3).metadata(0, "hash_key", "x").metadata(2, "hash_key", "x");
        let logged = twins.balancer::<Rendezvous>().build().unwrap().logged();
        let expected = "servers \"http://10.0.0.1:8080\" and \"http://10.0.0.3:8080\" have one name";
        assert!(logged.len() == 1 && logged[0].contains(expected), "{logged:?}");
        assert_eq!(FakeCluster::equal(3).balancer::<Rendezvous>().build().unwrap().logged(), [""; 0]);
    }

    #[test]
    fn takes_no_settings() {
        let refused =
            FakeCluster::equal(1).balancer::<Rendezvous>().setting("seed", 1).build().err().unwrap();
        assert_eq!(refused.to_string(), "seed: unknown setting, this module has none");
    }
}
