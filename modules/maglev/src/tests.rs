use lb_api::State;
use lb_api::testkit::keyed::{self, KEYS, built, firsts};
use lb_api::testkit::{Contract, FakeCluster, FakeRequest};

use super::*;

#[test]
fn keeps_the_contract_where_requests_have_no_key() {
    Contract::<Maglev>::new().skips_unavailable().keyed().check();
    Contract::<Maglev>::new().setting("table_size", 131).skips_unavailable().check();
}

#[test]
fn requests_without_a_key_are_drawn_by_weight() {
    keyed::draws_by_weight_without_a_key::<Maglev>();
}

#[test]
fn looks_where_envoy_looks() {
    // xxHash64 of "a", from the function's own documentation.
    assert_eq!(xxh64(b"a", 0), 0xd24e_c4f1_a98c_6e5b);
    let balancer = built::<Maglev>(&FakeCluster::equal(3));
    let mut trylist = balancer.load_balance(FakeRequest::get("/").key("a"));
    let first = trylist.next();
    let slot = 0xd24e_c4f1_a98c_6e5b_u64 % 65_537;
    assert_eq!(trylist.explain(), format!("hash 0xd24ec4f1a98c6e5b, slot {slot} of 65537, looks before: 0"));
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
fn few_keys_but_its_own_move_when_one_of_n_leaves() {
    let all = FakeCluster::equal(20);
    let before = firsts(&built::<Maglev>(&all));
    let after =
        firsts(&built::<Maglev>(&all.reordered(&(0..20).filter(|idx| *idx != 7).collect::<Vec<_>>())));
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
    keyed::ignores_the_order::<Maglev>();
}

#[test]
fn only_keys_of_an_unavailable_server_move_and_spread_over_the_others() {
    let cluster = FakeCluster::equal(10);
    let balancer = built::<Maglev>(&cluster);
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
    let balancer = built::<Maglev>(&cluster);
    (2..200).for_each(|server| cluster.set_state(server, State::Down));
    let first = firsts(&balancer).into_iter().filter(|server| *server == 0).count();
    assert!(first.abs_diff(KEYS / 2) < KEYS / 40, "{first} of {KEYS}");
}

#[test]
fn slow_start_brings_the_same_keys_back_one_after_the_other() {
    keyed::returns_keys_in_slow_start::<Maglev>();
}

#[test]
fn an_endpoint_of_weight_0_is_the_last_resort() {
    keyed::keeps_weight_0_for_the_end::<Maglev>();
}

#[test]
fn a_key_in_the_metadata_keeps_the_place_when_the_address_changes() {
    keyed::follows_the_metadata::<Maglev>();
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
    assert_eq!(refused(3, "table_size", 0), "table_size: expected a prime number, found 0 (the next is 2)");
    assert_eq!(
        refused(130, "table_size", 127),
        "table_size: expected a slot for each of 130 servers, found 127 (at least 131, better 13001)"
    );
    assert_eq!(refused(3, "table_size", 5_000_077), "table_size: expected 5000011 or less, found 5000077");
    assert_eq!(
        refused(3, "table_size", -1),
        "table_size: expected an integer from 0 to 4294967295, found -1"
    );
    assert_eq!(refused(3, "size", 7), "size: unknown setting, expected one of \"table_size\"");
}
