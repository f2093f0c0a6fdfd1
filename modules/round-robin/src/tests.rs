use lb_api::testkit::{Contract, FakeCluster, FakeRequest, TestBalancer};
use lb_api::{State, WEIGHT_ONE};

use super::*;

fn sequence(cluster: &FakeCluster, n: usize) -> String {
    letters(&cluster.balancer::<RoundRobin>().build().unwrap().sequence(n))
}

fn letters(endpoints: &[usize]) -> String {
    endpoints.iter().map(|endpoint| char::from(b'a' + *endpoint as u8)).collect()
}

#[test]
fn keeps_the_contract() {
    Contract::<RoundRobin>::new().skips_unavailable().weighted(0.001).check();
}

#[test]
fn chooses_in_nginx_s_sequence() {
    assert_eq!(sequence(&FakeCluster::weighted(&[5, 1, 1]), 14), "aabacaaaabacaa");
    assert_eq!(sequence(&FakeCluster::weighted(&[1, 2, 3]), 6), "cbacbc");
    assert_eq!(sequence(&FakeCluster::equal(4), 9), "abcdabcda");
    assert_eq!(sequence(&FakeCluster::weighted(&[40, 8, 8]), 7), "aabacaa");
}

#[test]
fn gives_each_its_share_exactly_in_every_period() {
    let balancer = FakeCluster::weighted(&[7, 3, 2, 8]).balancer::<RoundRobin>().build().unwrap();
    for _ in 0..10 {
        assert_eq!(balancer.distribution(20), [7, 3, 2, 8]);
    }
}

#[test]
fn leaves_out_what_is_unavailable_and_takes_it_back() {
    let cluster = FakeCluster::equal(3);
    let balancer = cluster.balancer::<RoundRobin>().build().unwrap();
    assert_eq!(letters(&balancer.sequence(3)), "abc");
    cluster.set_state(1, State::Ejected);
    assert_eq!(balancer.distribution(10), [5, 0, 5]);
    cluster.set_state(1, State::Available);
    assert_eq!(balancer.distribution(9), [3, 3, 3]);
}

#[test]
fn follows_slow_start_by_fractions_of_a_weight() {
    let cluster = FakeCluster::weighted(&[2, 2]);
    let balancer = cluster.balancer::<RoundRobin>().build().unwrap();
    for step in [WEIGHT_ONE / 10, WEIGHT_ONE / 3, WEIGHT_ONE, 2 * WEIGHT_ONE] {
        cluster.set_effective_weight(1, step);
        let share = 10_000.0 * f64::from(step) / f64::from(2 * WEIGHT_ONE + step);
        let count = balancer.distribution(10_000)[1] as f64;
        // The sequence of a long period may end in its midst.
        assert!((count - share).abs() <= 2.0, "{count} of {share}");
    }
}

/// nginx's own way, word for word, with `max_fails=0`: weights and current weights.
struct Nginx(Vec<(i64, i64)>);

impl Nginx {
    fn get(&mut self, tried: &mut [bool]) -> Option<usize> {
        let (mut best, mut total): (Option<usize>, i64) = (None, 0);
        for idx in (0..tried.len()).filter(|idx| !tried[*idx]) {
            let (weight, current) = &mut self.0[idx];
            *current += *weight;
            total += *weight;
            if best.is_none_or(|best| self.0[idx].1 > self.0[best].1) {
                best = Some(idx);
            }
        }
        let best = best?;
        self.0[best].1 -= total;
        tried[best] = true;
        Some(best)
    }
}

#[test]
fn chooses_as_nginx_does_where_tries_fail() {
    let mut rng = lb_api::Rng::new(11);
    for weights in [&[1, 1, 1][..], &[5, 1, 1], &[1, 2, 3, 4, 5, 6, 7], &[2; 40], &[300, 1, 20], &[1, 1]] {
        let balancer = FakeCluster::weighted(weights).balancer::<RoundRobin>().build().unwrap();
        let mut nginx = Nginx(weights.iter().map(|weight| (i64::from(*weight), 0)).collect());
        // Times without failures, with some, with a server that fails for long, and with all of them failing.
        for request in 0..10_000 {
            let mut tried = vec![false; weights.len()];
            let mut trylist = balancer.load_balance(FakeRequest::get("/"));
            loop {
                let expected = nginx.get(&mut tried).map_or(Next::Exhausted, Next::Endpoint);
                assert_eq!(trylist.next(), expected, "request {request}, weights {weights:?}");
                let Next::Endpoint(endpoint) = expected else { break };
                let fails = match request / 100 % 8 {
                    0..3 => false,
                    3 | 4 => rng.below(10) == 0,
                    5 | 6 => endpoint == 1,
                    _ => request % 10 == 0,
                };
                if !fails {
                    break;
                }
                trylist.fail();
            }
        }
    }
}

#[test]
fn a_failed_try_in_a_long_sequence_goes_on_along_it_and_disturbs_nobody() {
    let cluster = FakeCluster::weighted(&[5, 1, 1]);
    cluster.set_effective_weight(0, 5 * WEIGHT_ONE + 1);
    let balancer = cluster.balancer::<RoundRobin>().build().unwrap();
    assert_eq!(letters(&balancer.load_balance(FakeRequest::get("/")).all()), "abc");
    let mut second = balancer.load_balance(FakeRequest::get("/"));
    assert_eq!(second.next(), Next::Endpoint(0));
    second.fail();
    assert_eq!(letters(&balancer.sequence(2)), "ba");
    assert_eq!(letters(&second.all()), "bc");
}

#[test]
fn an_endpoint_that_was_declined_disturbs_nobody() {
    let balancer = FakeCluster::weighted(&[5, 1, 1]).balancer::<RoundRobin>().build().unwrap();
    let mut declined = balancer.load_balance(FakeRequest::get("/"));
    assert_eq!(declined.next(), Next::Endpoint(0));
    declined.mark_tried(1);
    assert_eq!(declined.next(), Next::Endpoint(2));
    assert_eq!(letters(&balancer.sequence(6)), "abacaa");
}

#[test]
fn a_request_that_has_waited_disturbs_nobody() {
    let balancer = FakeCluster::weighted(&[5, 1, 1]).balancer::<RoundRobin>().build().unwrap();
    let mut waiting = balancer.load_balance(FakeRequest::get("/"));
    // It walks along the sequence, whose turns stay those of the others.
    for expected in [0, 0, 1, 0] {
        assert_eq!(waiting.next(), Next::Endpoint(expected));
        waiting.decline_and_wait();
    }
    assert_eq!(letters(&balancer.sequence(6)), "abacaa");
}

#[test]
fn says_which_turn_it_was() {
    let cluster = FakeCluster::weighted(&[5, 1, 1]);
    let balancer = cluster.balancer::<RoundRobin>().build().unwrap();
    balancer.sequence(9);
    let mut trylist = balancer.load_balance(FakeRequest::get("/"));
    assert_eq!(trylist.explain(), "");
    assert_eq!(trylist.next(), Next::Endpoint(1));
    assert_eq!(trylist.explain(), "turn 2 of the 7 after which the sequence repeats");
    trylist.fail();
    assert_eq!(trylist.next(), Next::Endpoint(0));
    assert_eq!(trylist.explain(), "chosen anew, by the same rule, among those not tried");
    cluster.set_effective_weight(0, WEIGHT_ONE + 1);
    let mut trylist = balancer.load_balance(FakeRequest::get("/"));
    trylist.next();
    assert_eq!(trylist.explain(), "turn 0 of a batch of a long sequence");
}

/// Requests of which some are of sessions, and how many each endpoint served.
fn served(
    balancer: &TestBalancer<RoundRobin>,
    n: usize,
    session: impl Fn(usize) -> Option<usize>,
) -> Vec<usize> {
    let mut counts = vec![0; 3];
    for request in 0..n {
        let endpoint = match session(request) {
            Some(endpoint) => {
                balancer.load_balance(FakeRequest::get("/").preferred(endpoint)).serve();
                endpoint
            }
            None => balancer.sequence(1)[0],
        };
        counts[endpoint] += 1;
    }
    counts
}

#[test]
fn requests_of_sessions_take_turns_and_shares_hold() {
    let balancer = || FakeCluster::weighted(&[3, 2, 1]).balancer::<RoundRobin>().build().unwrap();
    // Half of all requests are of a's sessions, which is as much as a is to have; a sixth of b's; and of both at once.
    assert_eq!(served(&balancer(), 600, |i| (i % 2 == 0).then_some(0)), [300, 200, 100]);
    assert_eq!(served(&balancer(), 600, |i| (i % 6 == 0).then_some(1)), [300, 200, 100]);
    let mut rng = lb_api::Rng::new(5);
    let sessions: Vec<_> =
        (0..60_000).map(|_| [Some(0), Some(1), None, None, None][rng.below(5) as usize]).collect();
    let counts = served(&balancer(), sessions.len(), |i| sessions[i]);
    for (count, share) in counts.iter().zip([30_000_usize, 20_000, 10_000]) {
        assert!(count.abs_diff(share) < 100, "{counts:?}");
    }
}

#[test]
fn a_server_owes_no_more_than_some_turns() {
    let balancer = FakeCluster::equal(3).balancer::<RoundRobin>().build().unwrap();
    served(&balancer, 1_000, |_| Some(2));
    assert_eq!(letters(&balancer.sequence(35)), "ab".repeat(16) + "abc");
}

#[test]
fn a_request_whose_preferred_endpoint_takes_nothing_costs_it_nothing() {
    let balancer = FakeCluster::equal(3).balancer::<RoundRobin>().build().unwrap();
    for expected in [0, 1] {
        let mut trylist = balancer.load_balance(FakeRequest::get("/").preferred(2));
        trylist.mark_tried(2);
        assert_eq!(trylist.next(), Next::Endpoint(expected));
    }
    assert_eq!(letters(&balancer.sequence(3)), "cab");
}

#[test]
fn goes_on_after_a_reload_where_it_stood() {
    let cluster = FakeCluster::equal(3);
    let first = cluster.balancer::<RoundRobin>().build().unwrap();
    assert_eq!(letters(&first.sequence(4)), "abca");
    let second = cluster.balancer::<RoundRobin>().saved(first.save()).build().unwrap();
    assert_eq!(letters(&second.sequence(4)), "bcab");
}

#[test]
fn an_endpoint_of_weight_0_is_the_last_resort() {
    let cluster = FakeCluster::equal(3);
    cluster.set_effective_weight(0, 0);
    let balancer = cluster.balancer::<RoundRobin>().build().unwrap();
    assert_eq!(balancer.distribution(10), [0, 5, 5]);
    assert_eq!(letters(&balancer.load_balance(FakeRequest::get("/")).all()), "bca");
}

#[test]
fn threads_share_one_sequence() {
    let balancer = FakeCluster::weighted(&[5, 1, 1]).balancer::<RoundRobin>().build().unwrap();
    let counts: Vec<Vec<usize>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| balancer.distribution(700))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let sum = |endpoint: usize| counts.iter().map(|of| of[endpoint]).sum::<usize>();
    assert_eq!([sum(0), sum(1), sum(2)], [2000, 400, 400]);
}

#[test]
fn an_instance_that_takes_over_goes_on_where_the_one_before_stands() {
    let all = FakeCluster::weighted(&[5, 1, 1, 1]);
    let three = all.reordered(&[0, 1, 2]);
    let before = three.balancer::<RoundRobin>().build().unwrap();
    assert_eq!(letters(&before.sequence(3)), "aab");
    // The same servers in another order: the same turns.
    let reordered = all.reordered(&[2, 0, 1]);
    let after = reordered.balancer::<RoundRobin>().previous(&before).build().unwrap();
    assert_eq!(letters(&after.sequence(4)), "babb");
    // Both take turns of one sequence.
    assert_eq!((before.sequence(1), after.sequence(1), before.sequence(1)), (vec![0], vec![1], vec![1]));
    // One more, in the midst of the turns of the others, has its share.
    let more = all.reordered(&[3, 0, 1, 2]);
    let after = more.balancer::<RoundRobin>().previous(&after).build().unwrap();
    assert_eq!(after.distribution(8), [1, 5, 1, 1]);
    assert_eq!(after.distribution(800), [100, 500, 100, 100]);
}

#[test]
fn many_servers_that_change_often_are_all_served() {
    const SERVERS: usize = 2_000;
    for weights in [vec![1; SERVERS + 1], (0..=SERVERS).map(|idx| 1 + idx as u32 % 3).collect()] {
        let all = FakeCluster::weighted(&weights);
        let order: Vec<usize> = (0..=SERVERS).collect();
        // The last comes and goes as the first, so that every place changes; one is in slow start, which makes the sequence long.
        let clusters = [all.reordered(&order[..SERVERS]), {
            let mut order = order.clone();
            order.rotate_right(1);
            all.reordered(&order)
        }];
        clusters[0].set_effective_weight(7, WEIGHT_ONE / 3);
        let mut served = vec![0_u32; SERVERS + 1];
        let mut balancer = clusters[0].balancer::<RoundRobin>().build().unwrap();
        let total: u32 = weights.iter().sum();
        for step in 1..=total as usize / 50 {
            for at in balancer.sequence(50) {
                served[if step % 2 == 1 { at } else { (at + SERVERS) % (SERVERS + 1) }] += 1;
            }
            balancer = clusters[step % 2].balancer().previous(&balancer).build().unwrap();
        }
        for (server, (served, weight)) in served.iter().zip(&weights).enumerate().take(SERVERS) {
            let at_least = if server == 7 { 0 } else { weight - 1 };
            assert!((at_least..=weight + 1).contains(served), "server {server} of weight {weight}: {served}");
        }
        let unserved = served.iter().filter(|served| **served == 0).count();
        assert!(unserved < 20, "{unserved} of {SERVERS} were not served");
    }
}

#[test]
fn debts_of_sessions_are_shared_by_server() {
    let cluster = FakeCluster::equal(3);
    let before = cluster.balancer::<RoundRobin>().build().unwrap();
    let taken = || drop(before.load_balance(FakeRequest::get("/").preferred(2)));
    taken();
    let reordered = cluster.reordered(&[2, 0, 1]);
    let after = reordered.balancer::<RoundRobin>().previous(&before).build().unwrap();
    assert_eq!(letters(&after.sequence(3)), "bca", "the third, the first here, owes a turn");
    // Also what it owes since then.
    taken();
    assert_eq!(letters(&after.sequence(3)), "bcb");
    let without = cluster.reordered(&[0, 1]);
    let last = without.balancer::<RoundRobin>().previous(&after).build().unwrap();
    assert_eq!(last.distribution(4), [2, 2]);
}
