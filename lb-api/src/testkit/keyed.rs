//! Checks that balancers of hashed keys have in common, beyond [`Contract::keyed`](super::Contract::keyed).
//!
//! All use the same [`KEYS`] keys. A balancer without a promise of one of these checks leaves it out.

use super::balancer::TestBalancer;
use super::cluster::{FakeCluster, FakeRequest};
use crate::balancer::Balancer;
use crate::endpoint::WEIGHT_ONE;
use crate::trylist::Next;

/// Number of keys.
pub const KEYS: usize = 20_000;

/// The request with the key of this number.
pub fn request(key: usize) -> FakeRequest {
    FakeRequest::get("/").key(format!("/page/{key}"))
}

/// A balancer of default settings.
///
/// # Panics
/// It refuses the cluster.
pub fn built<B: Balancer>(cluster: &FakeCluster) -> TestBalancer<B> {
    cluster.balancer().build().unwrap_or_else(|error| panic!("{error}"))
}

/// The first choice for a key.
///
/// # Panics
/// There is none.
pub fn first<B>(balancer: &TestBalancer<B>, key: usize) -> usize {
    match balancer.load_balance(request(key)).next() {
        Next::Endpoint(endpoint) => endpoint,
        other => panic!("{other:?} for key {key}"),
    }
}

/// The first choice for each key.
///
/// # Panics
/// There is none.
pub fn firsts<B>(balancer: &TestBalancer<B>) -> Vec<usize> {
    (0..KEYS).map(|key| first(balancer, key)).collect()
}

/// Requests without a key are drawn by weight.
///
/// # Panics
/// They are not.
pub fn draws_by_weight_without_a_key<B: Balancer>() {
    // Four deviations of 500 of 20,000 are 88, and those of the larger shares 15 for each unit at most.
    let counts = built::<B>(&FakeCluster::weighted(&[5, 1, 1, 13, 20])).distribution(20_000);
    for (count, weight) in counts.iter().zip([5, 1, 1, 13, 20]) {
        assert!(count.abs_diff(500 * weight) < 88 + 15 * weight, "{count} for weight {weight}");
    }
}

/// A server in slow start gets its own keys back one after the other, and no key leaves it again.
///
/// # Panics
/// It does not.
pub fn returns_keys_in_slow_start<B: Balancer>() {
    let cluster = FakeCluster::equal(5);
    let balancer = built::<B>(&cluster);
    let before = firsts(&balancer);
    let own = before.iter().filter(|server| **server == 2).count() as f64;
    let mut held = vec![false; KEYS];
    for (weight, share) in [(0, 0.0), (WEIGHT_ONE / 10, 0.1), (WEIGHT_ONE / 2, 0.5), (WEIGHT_ONE, 1.0)] {
        cluster.set_effective_weight(2, weight);
        for (key, now) in firsts(&balancer).into_iter().enumerate() {
            assert!(now == 2 || !held[key], "key {key} left at a share of {share}");
            let is_own = before[key] == 2;
            assert!(now == before[key] || (is_own && now != 2), "key {key} of another server moved");
            held[key] |= now == 2;
        }
        let n_held = held.iter().filter(|held| **held).count() as f64;
        // A fifth of what it leaves over comes to it again, for another try.
        let most = share / (1.0 - (1.0 - share) / 5.0);
        let held = n_held / own;
        assert!((share - 0.03..most + 0.03).contains(&held), "{n_held} of {own} keys at a share of {share}");
    }
}

/// An endpoint of weight 0 is the last one of every trylist.
///
/// # Panics
/// It is not.
pub fn keeps_weight_0_for_the_end<B: Balancer>() {
    let cluster = FakeCluster::equal(3);
    let balancer = built::<B>(&cluster);
    cluster.set_effective_weight(1, 0);
    for key in 0..100 {
        assert_eq!(balancer.load_balance(request(key)).all().last(), Some(&1));
    }
}

/// The order of the endpoints does not matter.
///
/// # Panics
/// It does.
pub fn ignores_the_order<B: Balancer>() {
    let all = FakeCluster::weighted(&[1, 2, 3, 4]);
    let order = [2, 0, 3, 1];
    let (as_is, reordered) = (firsts(&built::<B>(&all)), firsts(&built::<B>(&all.reordered(&order))));
    assert!(as_is.iter().zip(reordered).all(|(as_is, reordered)| *as_is == order[reordered]));
}

/// Keys follow the name in the metadata `hash_key` of an endpoint to another address.
///
/// # Panics
/// They do not.
pub fn follows_the_metadata<B: Balancer>() {
    let named = |a, b| {
        let cluster = FakeCluster::equal(3).metadata(0, "hash_key", a).metadata(1, "hash_key", b);
        firsts(&built::<B>(&cluster))
    };
    let (before, swapped) = (named("x", "y"), named("y", "x"));
    assert!(before.iter().zip(swapped).all(|(before, after)| [1, 0, 2][*before] == after));
}
