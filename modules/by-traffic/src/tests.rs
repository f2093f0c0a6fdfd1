use std::time::Duration;

use lb_api::testkit::{Contract, FakeCluster, FakeRequest, TestBalancer};
use lb_api::{OutcomeKind, Rng, State, TryResult};

use super::*;

const MS: Duration = Duration::from_millis(1);

#[test]
fn keeps_the_contract() {
    // Every request is alike in the contract, and each choice goes to who is behind.
    Contract::<ByTraffic>::new().skips_unavailable().check();
}

#[test]
fn the_example_of_the_docs_comes_out() {
    let balancer = FakeCluster::weighted(&[1, 2]).balancer::<ByTraffic>().build().unwrap();
    assert_eq!(balancer.sequence(3), [0, 1, 1]);
    let mut trylist = balancer.load_balance(FakeRequest::get("/"));
    assert_eq!(trylist.next(), Next::Endpoint(0));
    assert_eq!(trylist.explain(), "endpoint 0 has moved the least: 11 per lbfactor, which is 100");
}

/// httpd's `find_best_bytraffic`, word for word.
#[derive(Clone, Copy, Default)]
struct Worker {
    usable: bool,
    transferred: i64,
    read: i64,
    lbfactor: i64,
}

fn find_best(workers: &[Worker], tried: &[usize]) -> Option<usize> {
    let (mut best, mut min_traffic) = (None, 0);
    for (i, current) in workers.iter().enumerate() {
        if !current.usable || tried.contains(&i) {
            continue;
        }
        let traffic = current.transferred / current.lbfactor + current.read / current.lbfactor;
        if best.is_none() || traffic < min_traffic {
            (best, min_traffic) = (Some(i), traffic);
        }
    }
    best
}

#[test]
fn chooses_as_httpd_s_bytraffic_does_for_10_000_requests() {
    let mut rng = Rng::new(17);
    for weights in [&[1, 1, 1, 1][..], &[5, 1, 1], &[1, 2, 3, 4, 5, 6, 7], &[100, 1, 30], &[2; 70]] {
        let cluster = FakeCluster::weighted(weights);
        let balancer = cluster.balancer::<ByTraffic>().build().unwrap();
        let worker =
            |weight: &u32| Worker { usable: true, lbfactor: i64::from(*weight * 100), ..Worker::default() };
        let mut workers: Vec<_> = weights.iter().map(worker).collect();
        for request in 0..10_000 {
            let mut trylist = balancer.load_balance(FakeRequest::get("/"));
            let mut tried = Vec::new();
            loop {
                let expected = find_best(&workers, &tried);
                let at = format!("request {request}, weights {weights:?}");
                assert_eq!(trylist.next(), expected.map_or(Next::Exhausted, Next::Endpoint), "{at}");
                let Some(endpoint) = expected else { break };
                // The kit's tries have 100 bytes one way and, with a response, 1,000 the other.
                workers[endpoint].transferred += 100;
                if rng.below(5) > 0 {
                    workers[endpoint].read += 1000;
                    trylist.observe(EventKind::ResponseHeaders, Some(200), None, MS);
                    trylist.observe(EventKind::TryEnded, Some(200), Some(TryResult::Served), MS);
                    break;
                }
                tried.push(endpoint);
                trylist.observe(EventKind::TryEnded, None, Some(TryResult::ClosedEarly), MS);
            }
            if rng.below(50) == 0 {
                let idx = rng.below(weights.len() as u64) as usize;
                workers[idx].usable = rng.below(2) == 0;
                let state = if workers[idx].usable { State::Available } else { State::Down };
                cluster.set_state(idx, state);
            }
        }
    }
}

#[test]
fn bytes_come_to_follow_weights() {
    let counts = FakeCluster::weighted(&[1, 2, 5]).balancer::<ByTraffic>().build().unwrap();
    // All requests are alike here, so that what follows the weights is their number, but for what integers drop.
    let counts = counts.distribution(8_000);
    for (count, expected) in counts.iter().zip([1_000_usize, 2_000, 5_000]) {
        assert!(count.abs_diff(expected) <= 10, "{counts:?}");
    }
}

#[test]
fn follows_slow_start() {
    let cluster = FakeCluster::equal(2);
    cluster.set_effective_weight(1, WEIGHT_ONE / 4);
    let balancer = cluster.balancer::<ByTraffic>().build().unwrap();
    let counts = balancer.distribution(1_000);
    assert!(counts[1].abs_diff(200) <= 2, "{counts:?}");
}

#[test]
fn what_was_moved_before_slow_start_counts_as_it_did() {
    let cluster = FakeCluster::equal(2);
    let balancer = cluster.balancer::<ByTraffic>().build().unwrap();
    assert_eq!(balancer.distribution(100_000), [50_000, 50_000]);
    cluster.set_effective_weight(1, WEIGHT_ONE / 10);
    let counts = balancer.distribution(1_100);
    assert!(counts[1].abs_diff(100) <= 1, "{counts:?}");
    cluster.set_effective_weight(1, WEIGHT_ONE);
    let counts = balancer.distribution(1_000);
    assert!(counts[1].abs_diff(500) <= 10, "{counts:?}");
}

#[test]
fn counts_each_byte_of_a_try_once() {
    let cluster = FakeCluster::equal(1);
    let balancer = cluster.balancer::<ByTraffic>().build().unwrap();
    let mut trylist = balancer.load_balance(FakeRequest::get("/"));
    assert_eq!(trylist.next(), Next::Endpoint(0));
    for _ in 0..3 {
        trylist.observe(EventKind::ResponseHeaders, Some(200), None, MS);
    }
    trylist.observe(EventKind::TryEnded, Some(200), Some(TryResult::Served), MS);
    trylist.finish(OutcomeKind::Served, Some(200));
    // 100 / 100 + 1,000 / 100.
    assert_eq!(traffic(&balancer), 11);
}

/// A server that accepts requests and never answers looks as busy as what it was sent.
#[test]
fn one_that_never_answers_gets_its_share_of_requests_and_not_all() {
    let cluster = FakeCluster::equal(3);
    let balancer = cluster.balancer::<ByTraffic>().build().unwrap();
    let (mut hanging, mut counts) = (Vec::new(), [0; 3]);
    for _ in 0..240 {
        let mut trylist = balancer.load_balance(FakeRequest::get("/"));
        let Next::Endpoint(endpoint) = trylist.next() else { panic!("none") };
        counts[endpoint] += 1;
        if endpoint == 1 {
            hanging.push(trylist);
            continue;
        }
        trylist.observe(EventKind::ResponseHeaders, Some(200), None, MS);
        trylist.observe(EventKind::TryEnded, Some(200), Some(TryResult::Served), MS);
        trylist.finish(OutcomeKind::Served, Some(200));
    }
    // A request is 100 bytes, a response 1,000: what httpd charges a request, eleven for one.
    assert_eq!(counts[0].max(counts[2]) - counts[0].min(counts[2]), 0, "{counts:?}");
    assert!((200..=205).contains(&counts[1]), "{counts:?}");
}

#[test]
fn what_was_charged_is_taken_back_where_nothing_was_sent() {
    let cluster = FakeCluster::equal(2);
    let balancer = cluster.balancer::<ByTraffic>().build().unwrap();
    let mut trylist = balancer.load_balance(FakeRequest::get("/"));
    assert_eq!(trylist.next(), Next::Endpoint(0));
    assert_eq!(trylist.next(), Next::Endpoint(1), "the first was declined");
    trylist.finish(OutcomeKind::NoEndpoint, None);
    assert_eq!(traffic(&balancer), 0);
}

/// Of the one that has moved the least.
fn traffic(balancer: &TestBalancer<ByTraffic>) -> u64 {
    let mut trylist = balancer.load_balance(FakeRequest::get("/"));
    let _ = trylist.next();
    let text = trylist.explain();
    let number = text.split([':', ' ']).filter_map(|word| word.parse().ok()).nth(1);
    number.unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn remembers_over_reloads_and_restarts_by_id() {
    let cluster = FakeCluster::equal(3);
    let first = cluster.balancer::<ByTraffic>().build().unwrap();
    assert_eq!(first.sequence(5), [0, 1, 2, 0, 1]);
    // c is behind, whatever its index and whoever remembers.
    let reordered = cluster.reordered(&[0, 2, 1]);
    let restarted = reordered.balancer::<ByTraffic>().saved(first.save()).build().unwrap();
    assert_eq!(restarted.sequence(4), [1, 0, 1, 2]);
    let second = reordered.balancer::<ByTraffic>().previous(&first).build().unwrap();
    // The account is one: what the previous instance still counts is seen here.
    assert_eq!(first.sequence(1), [2]);
    assert_eq!(second.sequence(3), [0, 1, 2]);
}

#[test]
fn a_new_server_starts_level_and_is_not_flooded() {
    let cluster = FakeCluster::weighted(&[1, 1, 4]);
    let two = cluster.reordered(&[0, 1]);
    let first = two.balancer::<ByTraffic>().build().unwrap();
    let _ = first.sequence(2_000);
    for builder in [cluster.balancer::<ByTraffic>().previous(&first), cluster.balancer().saved(first.save())]
    {
        let counts = builder.build().unwrap().distribution(60);
        assert!(counts.iter().zip([10_usize, 10, 40]).all(|(n, share)| n.abs_diff(share) <= 1), "{counts:?}");
    }
}

#[test]
fn a_full_endpoint_is_passed_over_and_all_full_is_busy() {
    let cluster = FakeCluster::equal(2);
    let balancer = cluster.balancer::<ByTraffic>().build().unwrap();
    cluster.set_max_in_flight(0, 1);
    cluster.set_in_flight(0, 1);
    assert_eq!(balancer.sequence(3), [1, 1, 1]);
    cluster.set_max_in_flight(1, 1);
    cluster.set_in_flight(1, 1);
    assert_eq!(balancer.load_balance(FakeRequest::get("/")).next(), Next::Busy);
}

#[test]
fn an_endpoint_of_weight_0_is_the_last_resort() {
    let cluster = FakeCluster::equal(3);
    cluster.set_effective_weight(0, 0);
    let balancer = cluster.balancer::<ByTraffic>().build().unwrap();
    assert_eq!(balancer.distribution(10), [0, 5, 5]);
    assert_eq!(balancer.load_balance(FakeRequest::get("/")).all().last(), Some(&0));
}

#[test]
fn takes_no_settings() {
    let refused = FakeCluster::equal(1).balancer::<ByTraffic>().setting("bytes", 5).build().err().unwrap();
    assert_eq!(refused.to_string(), "bytes: unknown setting, this module has none");
}
