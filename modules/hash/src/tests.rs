use lb_api::testkit::{Contract, FakeCluster, FakeRequest, TestBalancer};
use lb_api::{State, WEIGHT_ONE};

use super::*;

fn keyed(key: impl AsRef<[u8]>) -> FakeRequest {
    FakeRequest::get("/").key(key)
}

fn first(balancer: &TestBalancer<Hash>, key: impl AsRef<[u8]>) -> usize {
    let mut trylist = balancer.load_balance(keyed(key));
    let Next::Endpoint(endpoint) = trylist.next() else { panic!("no endpoint") };
    endpoint
}

#[test]
fn keeps_the_contract_where_requests_have_no_key() {
    Contract::<Hash>::new().skips_unavailable().keyed().check();
    // Draws: the smallest share is 500 of 20,000 with a deviation of 22.
    let counts = FakeCluster::weighted(&[5, 1, 1, 13, 20]).balancer::<Hash>().build().unwrap();
    for (count, weight) in counts.distribution(20_000).iter().zip([5, 1, 1, 13, 20]) {
        assert!(count.abs_diff(500 * weight) < 300 + 8 * weight, "{count} for weight {weight}");
    }
}

#[test]
fn an_empty_key_is_none() {
    let balancer = FakeCluster::equal(3).balancer::<Hash>().build().unwrap();
    let mut chosen: Vec<_> = (0..100).map(|_| first(&balancer, "")).collect();
    chosen.sort_unstable();
    chosen.dedup();
    assert_eq!(chosen, [0, 1, 2]);
}

#[test]
fn the_example_of_the_docs_comes_out() {
    let cluster = FakeCluster::weighted(&[2, 1]);
    let balancer = cluster.balancer::<Hash>().build().unwrap();
    assert_eq!(first(&balancer, "k0"), 0);
    cluster.set_state(0, State::Down);
    let mut trylist = balancer.load_balance(keyed("k0"));
    assert_eq!(trylist.next(), Next::Endpoint(1));
    assert_eq!(trylist.explain(), "hash 56129 mod 3, misses before: 1");
}

#[test]
fn offers_every_endpoint_once_to_every_key() {
    for n in [1, 2, 30, 130] {
        let cluster = FakeCluster::equal(n);
        let balancer = cluster.balancer::<Hash>().build().unwrap();
        cluster.set_state(n - 1, State::Ejected);
        for key in 0..20 {
            let mut offered = balancer.load_balance(keyed(key.to_string())).all();
            offered.sort_unstable();
            assert_eq!(offered, (0..n - 1).collect::<Vec<_>>());
        }
    }
}

#[test]
fn slow_start_brings_the_same_keys_back_one_after_the_other() {
    let cluster = FakeCluster::equal(4);
    let balancer = cluster.balancer::<Hash>().build().unwrap();
    let keys = || (0..4000).map(|key| first(&balancer, key.to_string()));
    let before: Vec<_> = keys().collect();
    let mut held = vec![false; 4000];
    for percent in [0, 10, 50, 100] {
        cluster.set_effective_weight(2, WEIGHT_ONE / 100 * percent + u32::from(percent == 100) * 36);
        let mut n_held = 0;
        for (key, now) in keys().enumerate() {
            // A key of 2 that is hashed again may come to 2 again, and be taken there.
            assert!(now == 2 || !held[key], "key {key} left at {percent} %");
            assert!(before[key] == 2 || now == before[key], "key {key} of another server moved");
            held[key] |= now == 2;
            n_held += usize::from(now == 2);
        }
        let share = n_held as f64 / before.iter().filter(|server| **server == 2).count() as f64;
        // Hashed again a quarter come back for another try: at most a third more.
        let (least, most) = (f64::from(percent) / 100.0 - 0.05, f64::from(percent) / 100.0 * 1.34 + 0.05);
        assert!((least..=most).contains(&share), "{share} at {percent} %");
    }
    assert_eq!(keys().collect::<Vec<_>>(), before);
}

#[test]
fn an_endpoint_of_weight_0_is_the_last_resort() {
    let cluster = FakeCluster::equal(3);
    let balancer = cluster.balancer::<Hash>().build().unwrap();
    cluster.set_effective_weight(1, 0);
    for key in 0..100 {
        assert_eq!(balancer.load_balance(keyed(key.to_string())).all().last(), Some(&1));
    }
}

#[test]
fn says_which_servers_the_hash_does_not_reach() {
    let cluster = FakeCluster::weighted(&[30_000, 2_768, 1]);
    let balancer = cluster.balancer::<Hash>().build().unwrap();
    let logged = balancer.logged();
    assert_eq!(logged.len(), 1);
    assert!(
        logged[0].contains("sum up to 32769") && logged[0].contains("http://10.0.0.3:8080"),
        "{logged:?}"
    );
    let fitting = FakeCluster::weighted(&[30_000, 2_768]).balancer::<Hash>().build().unwrap();
    assert_eq!(fitting.logged(), [""; 0]);
}

#[test]
fn takes_no_settings() {
    let refused = FakeCluster::equal(1).balancer::<Hash>().setting("key", "client").build().err().unwrap();
    assert_eq!(refused.to_string(), "key: unknown setting, this module has none");
}
