use lb_api::testkit::keyed::{self, KEYS, built, firsts, request};
use lb_api::testkit::{Contract, FakeCluster};
use lb_api::{State, WEIGHT_ONE};

use super::*;

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
    firsts(&built::<Rendezvous>(&FakeCluster::weighted(&weights)))
        .into_iter()
        .for_each(|server| counts[server] += 1);
    for (count, weight) in counts.iter().zip(weights) {
        let (share, n) = (f64::from(weight) / 20.0, KEYS as f64);
        let four_deviations = 4.0 * (n * share * (1.0 - share)).sqrt();
        assert!((*count as f64 - n * share).abs() < four_deviations, "{counts:?}");
    }
}

#[test]
fn exactly_the_keys_of_one_that_leaves_move_to_their_second_choices() {
    let all = FakeCluster::weighted(&[1, 2, 3, 4, 5]);
    let balancer = built::<Rendezvous>(&all);
    let both: Vec<_> = (0..2000).map(|key| balancer.load_balance(request(key)).all()).collect();
    let order = [0, 1, 3, 4];
    let left = firsts(&built::<Rendezvous>(&all.reordered(&order)));
    all.set_state(2, State::Down);
    for (key, (both, (left, down))) in both.iter().zip(left.iter().zip(firsts(&balancer))).enumerate() {
        let expected = if both[0] == 2 { both[1] } else { both[0] };
        assert_eq!((order[*left], down), (expected, expected), "key {key}");
    }
}

#[test]
fn a_change_of_one_weight_moves_keys_only_to_or_from_that_server() {
    let cluster = FakeCluster::equal(5);
    let balancer = built::<Rendezvous>(&cluster);
    let mut before = firsts(&balancer);
    for (weight, grows) in [(0, false), (WEIGHT_ONE / 10, true), (4 * WEIGHT_ONE, true), (WEIGHT_ONE, false)]
    {
        cluster.set_effective_weight(2, weight);
        let now = firsts(&balancer);
        for (before, now) in before.iter().zip(&now) {
            assert!(now == before || if grows { *now == 2 } else { *before == 2 }, "{before}, then {now}");
        }
        let share = now.iter().filter(|server| **server == 2).count() as f64 / KEYS as f64;
        let weight = f64::from(weight) / f64::from(WEIGHT_ONE);
        assert!((share - weight / (weight + 4.0)).abs() < 0.015, "{share} at weight {weight}");
        before = now;
    }
}

#[test]
fn an_endpoint_of_weight_0_is_the_last_resort() {
    keyed::keeps_weight_0_for_the_end::<Rendezvous>();
}

#[test]
fn the_order_in_the_file_and_the_address_behind_a_key_make_no_difference() {
    keyed::ignores_the_order::<Rendezvous>();
    keyed::follows_the_metadata::<Rendezvous>();
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
    let refused = FakeCluster::equal(1).balancer::<Rendezvous>().setting("seed", 1).build().err().unwrap();
    assert_eq!(refused.to_string(), "seed: unknown setting, this module has none");
}
