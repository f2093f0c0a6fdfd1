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
    let named = |a, b| built(&FakeCluster::equal(2).metadata(0, "hash_key", a).metadata(1, "hash_key", b));
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
    let refused = FakeCluster::equal(1).balancer::<Rendezvous>().setting("seed", 1).build().err().unwrap();
    assert_eq!(refused.to_string(), "seed: unknown setting, this module has none");
}
