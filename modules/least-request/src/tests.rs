use lb_api::testkit::{Contract, FakeCluster, FakeRequest, SettingValue, TestBalancer};
use lb_api::{Rng, State};

use super::*;

fn all(cluster: &FakeCluster) -> TestBalancer<LeastRequest> {
    cluster.balancer().setting("choices", "all").build().unwrap()
}

fn drawn(cluster: &FakeCluster, choices: i64) -> TestBalancer<LeastRequest> {
    cluster.balancer().setting("choices", choices).build().unwrap()
}

/// The first answer for a request.
fn choose(balancer: &TestBalancer<LeastRequest>) -> usize {
    match balancer.load_balance(FakeRequest::get("/")).next() {
        Next::Endpoint(endpoint) => endpoint,
        other => panic!("{other:?}"),
    }
}

#[test]
fn keeps_the_contract() {
    // The smallest share is 1 of 40: 500 of 20,000 draws, whose standard deviation is 22. Four of these are 18 %.
    Contract::<LeastRequest>::new().skips_unavailable().weighted(0.18).check();
    Contract::<LeastRequest>::new().setting("choices", 5).skips_unavailable().weighted(0.18).check();
    // Ties are smooth weighted round robin, exact but for a period that ends in its midst.
    Contract::<LeastRequest>::new().setting("choices", "all").skips_unavailable().weighted(0.01).check();
    let biased = Contract::<LeastRequest>::new().setting("active_request_bias", 1.0);
    biased.skips_unavailable().weighted(0.18).check();
}

#[test]
fn the_examples_of_the_docs_come_out() {
    let cluster = FakeCluster::weighted(&[2, 1, 1]);
    let balancer = all(&cluster);
    let mut in_flight = [0; 3];
    let chosen = [(); 5].map(|()| {
        let endpoint = choose(&balancer);
        in_flight[endpoint] += 1;
        cluster.set_in_flight(endpoint, in_flight[endpoint]);
        endpoint
    });
    assert_eq!(chosen, [0, 1, 2, 0, 2]);

    let cluster = FakeCluster::equal(3);
    (0..3).zip([3, 0, 5]).for_each(|(endpoint, n)| cluster.set_in_flight(endpoint, n));
    let counts = drawn(&cluster, 2).distribution(9_000);
    // The largest standard deviation is sqrt(9,000 · 5/9 · 4/9) = 47; four of these.
    for (count, expected) in counts.iter().zip([3_000, 5_000, 1_000]) {
        assert!(count.abs_diff(expected) < 190, "{counts:?}");
    }
}

/// nginx's `least_conn`, word for word, without its health and backup peers.
struct Nginx {
    peers: Vec<Peer>,
}

#[derive(Clone, Copy)]
struct Peer {
    down: bool,
    conns: i64,
    weight: i64,
    current_weight: i64,
}

impl Nginx {
    fn get(&mut self, tried: &mut [bool]) -> Option<usize> {
        let (mut best, mut many): (Option<usize>, bool) = (None, false);
        for (i, peer) in self.peers.iter().enumerate() {
            if tried[i] || peer.down {
                continue;
            }
            match best.map(|best| self.peers[best]) {
                None => (best, many) = (Some(i), false),
                Some(b) if peer.conns * b.weight < b.conns * peer.weight => (best, many) = (Some(i), false),
                Some(b) if peer.conns * b.weight == b.conns * peer.weight => many = true,
                Some(_) => {}
            }
        }
        let mut best = best?;
        let mut total = 0;
        if many {
            let from = best;
            for (i, tried) in tried.iter().enumerate().skip(from) {
                let (peer, b) = (self.peers[i], self.peers[best]);
                if *tried || peer.down || peer.conns * b.weight != b.conns * peer.weight {
                    continue;
                }
                self.peers[i].current_weight += peer.weight;
                total += peer.weight;
                if self.peers[i].current_weight > self.peers[best].current_weight {
                    best = i;
                }
            }
        }
        self.peers[best].current_weight -= total;
        tried[best] = true;
        Some(best)
    }
}

#[test]
fn chooses_as_nginx_s_least_conn_does_for_10_000_requests() {
    let mut rng = Rng::new(5);
    for weights in [&[1, 1, 1, 1][..], &[5, 1, 1], &[1, 2, 3, 4, 5, 6, 7], &[65_535, 1, 300], &[2; 70]] {
        let cluster = FakeCluster::weighted(weights);
        let balancer = all(&cluster);
        let peer = |weight: &u32| Peer { down: false, conns: 0, weight: (*weight).into(), current_weight: 0 };
        let mut nginx = Nginx { peers: weights.iter().map(peer).collect() };
        let mut open = Vec::new();
        for request in 0..10_000 {
            let mut tried = vec![false; weights.len()];
            let mut trylist = balancer.load_balance(FakeRequest::get("/"));
            // One try in ten fails, and the request goes on to another.
            let endpoint = loop {
                let answer = trylist.next();
                match nginx.get(&mut tried) {
                    Some(peer) => {
                        assert_eq!(answer, Next::Endpoint(peer), "request {request}, weights {weights:?}");
                        if rng.below(10) > 0 {
                            break Some(peer);
                        }
                        trylist.fail();
                    }
                    None => {
                        assert_eq!(answer, Next::Exhausted, "request {request}, weights {weights:?}");
                        break None;
                    }
                }
            };
            if let Some(endpoint) = endpoint {
                nginx.peers[endpoint].conns += 1;
                open.push(endpoint);
            }
            // Load goes up and down, to nothing now and then.
            while !open.is_empty() && rng.below(20) < [9, 11][request / 100 % 2] {
                let ended = open.swap_remove(rng.below(open.len() as u64) as usize);
                nginx.peers[ended].conns -= 1;
            }
            if rng.below(50) == 0 {
                let peer = rng.below(weights.len() as u64) as usize;
                let down = rng.below(2) == 0;
                nginx.peers[peer].down = down;
                cluster.set_state(peer, if down { State::Down } else { State::Available });
            }
            for (endpoint, peer) in nginx.peers.iter().enumerate() {
                cluster.set_in_flight(endpoint, peer.conns as u32);
            }
        }
    }
}

/// In flight of each endpoint after so many requests of which none ends.
fn pile_up(cluster: &FakeCluster, choices: i64, n_requests: u64) -> Vec<u32> {
    let balancer = drawn(cluster, choices);
    let mut in_flight = vec![0; cluster.len()];
    for _ in 0..n_requests {
        let endpoint = choose(&balancer);
        in_flight[endpoint] += 1;
        cluster.set_in_flight(endpoint, in_flight[endpoint]);
    }
    in_flight
}

#[test]
fn the_busiest_has_no_more_than_two_choices_promise() {
    // n requests on n endpoints: ln ln n / ln 2 + O(1), which for 4096 is 3.06; one draw leaves 6 or 7.
    for seed in 0..5 {
        let cluster = FakeCluster::equal(4096);
        cluster.seed(seed * 1_000_000);
        let most = pile_up(&cluster, 2, 4096).into_iter().max();
        assert!(most <= Some(4), "{most:?} with seed {seed}");
    }
    // And above the mean of 50 no more than when there are few (Berenbrink et al., 2000).
    let most = pile_up(&FakeCluster::equal(500), 2, 25_000).into_iter().max();
    assert!(most <= Some(54), "{most:?} for a mean of 50");
}

#[test]
fn in_flight_comes_to_follow_weights() {
    let in_flight = pile_up(&FakeCluster::weighted(&[1, 2, 4, 8]), 2, 15_000);
    for (n, expected) in in_flight.iter().zip([1_000, 2_000, 4_000, 8_000]) {
        assert!(n.abs_diff(expected) * 100 <= expected, "within 1 %: {in_flight:?}");
    }
}

/// Envoy's schedule by deadlines, word for word, for counts that do not change: the shares in so many picks.
fn envoy(weights: &[u32], active: &[u32], bias: f64, picks: usize) -> Vec<f64> {
    let weight = |i: usize| f64::from(weights[i]) / (f64::from(active[i]) + 1.0).powf(bias);
    let mut deadlines: Vec<(f64, u64, usize)> =
        (0..weights.len()).map(|i| (1.0 / weight(i), i as u64, i)).collect();
    let mut counts = vec![0.0; weights.len()];
    for pick in 0..picks {
        let first = (0..deadlines.len())
            .min_by(|a, b| {
                let (a, b) = (deadlines[*a], deadlines[*b]);
                a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))
            })
            .unwrap();
        let (now, _, host) = deadlines[first];
        counts[host] += 1.0 / picks as f64;
        deadlines[first] = (now + 1.0 / weight(host), (weights.len() + pick) as u64, host);
    }
    counts
}

#[test]
fn a_bias_weighs_as_envoy_s_schedule_does() {
    const PICKS: usize = 40_000;
    let (weights, active) = ([1, 2, 3, 4], [0, 1, 3, 9]);
    for (bias, choices, tolerance) in [(1.0, 64, 0.02), (0.5, 64, 0.02), (2.0, 64, 0.03), (0.0, 2, 0.01)] {
        let cluster = FakeCluster::weighted(&weights);
        (0..4).for_each(|endpoint| cluster.set_in_flight(endpoint, active[endpoint]));
        let builder = cluster.balancer::<LeastRequest>().setting("choices", choices);
        let counts = builder.setting("active_request_bias", bias).build().unwrap().distribution(PICKS);
        let shares: Vec<_> = counts.iter().map(|count| *count as f64 / PICKS as f64).collect();
        let expected = envoy(&weights, &active, bias, PICKS);
        let near = shares.iter().zip(&expected).all(|(share, expected)| (share - expected).abs() < tolerance);
        assert!(near, "bias {bias}: {shares:.3?}, Envoy's {expected:.3?}");
    }
}

#[test]
fn a_full_endpoint_is_passed_over_and_all_full_is_busy() {
    for choices in [SettingValue::from("all"), SettingValue::from(2)] {
        let cluster = FakeCluster::equal(3);
        let balancer = cluster.balancer::<LeastRequest>().setting("choices", choices).build().unwrap();
        (0..3).for_each(|endpoint| cluster.set_max_in_flight(endpoint, 2));
        cluster.set_in_flight(0, 2);
        cluster.set_in_flight(1, 2);
        assert_eq!(balancer.distribution(20), [0, 0, 20]);
        cluster.set_in_flight(2, 2);
        assert_eq!(balancer.load_balance(FakeRequest::get("/")).next(), Next::Busy);
        (0..3).for_each(|endpoint| cluster.set_state(endpoint, State::Down));
        assert_eq!(balancer.load_balance(FakeRequest::get("/")).next(), Next::Exhausted);
    }
}

#[test]
fn an_endpoint_of_weight_0_is_the_last_resort() {
    for choices in [SettingValue::from("all"), SettingValue::from(2)] {
        let cluster = FakeCluster::equal(3);
        cluster.set_effective_weight(0, 0);
        let balancer = cluster.balancer::<LeastRequest>().setting("choices", choices).build().unwrap();
        assert_eq!(balancer.distribution(100)[0], 0);
        assert_eq!(balancer.load_balance(FakeRequest::get("/")).all().last(), Some(&0));
    }
}

#[test]
fn a_second_try_goes_to_the_least_of_the_others() {
    let cluster = FakeCluster::equal(4);
    (0..4).for_each(|endpoint| cluster.set_in_flight(endpoint, 3 - endpoint as u32));
    assert_eq!(all(&cluster).load_balance(FakeRequest::get("/")).all(), [3, 2, 1, 0]);
}

#[test]
fn threads_that_break_ties_at_once_leave_nobody_out() {
    let balancer = all(&FakeCluster::equal(4));
    let counts: Vec<Vec<usize>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| balancer.distribution(5_000))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for endpoint in 0..4 {
        let count: usize = counts.iter().map(|of| of[endpoint]).sum();
        // Were all of it drawn, the standard deviation would be sqrt(20,000 · 1/4 · 3/4) = 61; four of these.
        assert!(count.abs_diff(5_000) < 250, "{counts:?}");
    }
}

#[test]
fn says_why() {
    let cluster = FakeCluster::equal(2);
    cluster.set_in_flight(0, 7);
    cluster.set_in_flight(1, 3);
    cluster.set_effective_weight(1, WEIGHT_ONE / 2);
    let balancer = all(&cluster);
    let mut trylist = balancer.load_balance(FakeRequest::get("/"));
    assert_eq!(trylist.explain(), "");
    assert_eq!(trylist.next(), Next::Endpoint(1));
    assert_eq!(trylist.explain(), "of all, endpoint 1 with 3 in flight and weight 0.5");
}

#[test]
fn refuses_settings_that_make_no_sense() {
    let refused = |settings: &[(&str, SettingValue)]| {
        let cluster = FakeCluster::equal(2);
        let builder = settings.iter().fold(cluster.balancer::<LeastRequest>(), |builder, (path, value)| {
            builder.setting(path, value.clone())
        });
        builder.build().err().unwrap().to_string()
    };
    let expected = "choices: expected an integer from 2 to 64 or \"all\", found";
    for (choices, shown) in [(1, "1"), (0, "0"), (-2, "-2"), (65, "65"), (1 << 40, "1099511627776")] {
        assert_eq!(refused(&[("choices", choices.into())]), format!("{expected} {shown}"));
    }
    assert_eq!(refused(&[("choices", "both".into())]), format!("{expected} \"both\""));
    assert_eq!(refused(&[("choices", 2.5.into())]), format!("{expected} 2.5"));
    assert_eq!(refused(&[("choices", true.into())]), format!("{expected} true"));
    for bias in [-0.5, 100.5, f64::NAN, f64::INFINITY] {
        assert_eq!(
            refused(&[("active_request_bias", bias.into())]),
            format!("active_request_bias: expected a number from 0 to 100, found {bias}")
        );
    }
    assert_eq!(
        refused(&[("choices", "all".into()), ("active_request_bias", 1.0.into())]),
        "active_request_bias: only where endpoints are drawn: leave it out, or give choices a number"
    );
    assert_eq!(
        refused(&[("choises", 2.into()), ("choices", "x".into())]),
        format!("{expected} \"x\"; choises: unknown setting (did you mean \"choices\"?)")
    );
}

#[test]
fn a_reload_goes_on_with_the_next_turn() {
    let cluster = FakeCluster::equal(3);
    let build = |saved: Vec<u8>| {
        let balancer = cluster.balancer::<LeastRequest>().setting("choices", "all");
        if saved.is_empty() { balancer } else { balancer.saved(saved) }.build().unwrap()
    };
    let (mut saved, mut chosen) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        let balancer = build(saved);
        chosen.extend(balancer.sequence(1));
        saved = balancer.save();
    }
    assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
}
