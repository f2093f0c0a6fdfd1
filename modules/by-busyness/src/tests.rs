use lb_api::State;
use lb_api::testkit::{Contract, FakeCluster, FakeRequest};

use super::*;

#[test]
fn keeps_the_contract() {
    Contract::<ByBusyness>::new().skips_unavailable().weighted(0.01).check();
}

#[test]
fn the_example_of_the_docs_comes_out() {
    let cluster = FakeCluster::weighted(&[2, 1]);
    let balancer = cluster.balancer::<ByBusyness>().build().unwrap();
    let mut first = balancer.load_balance(FakeRequest::get("/"));
    assert_eq!(first.next(), Next::Endpoint(0));
    assert_eq!(first.explain(), "endpoint 0 is the least busy, with 0 in flight and lbstatus 200");
    cluster.set_in_flight(0, 1);
    assert_eq!(balancer.sequence(2), [1, 1]);
    cluster.set_in_flight(0, 0);
    let explained = |endpoint| {
        let mut trylist = balancer.load_balance(FakeRequest::get("/"));
        assert_eq!(trylist.next(), Next::Endpoint(endpoint));
        trylist.explain().rsplit(' ').next().unwrap().to_owned()
    };
    assert_eq!([explained(0), explained(0)], ["500", "400"]);
}

#[test]
fn a_reload_goes_on_with_the_next_turn() {
    let cluster = FakeCluster::equal(3);
    let mut balancer = cluster.balancer::<ByBusyness>().build().unwrap();
    let mut chosen = Vec::new();
    for _ in 0..6 {
        chosen.extend(balancer.sequence(1));
        balancer = cluster.balancer::<ByBusyness>().saved(balancer.save()).build().unwrap();
    }
    assert_eq!(chosen, [0, 1, 2, 0, 1, 2]);
}

/// httpd's `find_best_bybusyness` with its callback, word for word, for one set without spares and standbys.
struct Httpd {
    workers: Vec<Worker>,
}

#[derive(Clone, Copy)]
struct Worker {
    usable: bool,
    busy: u32,
    lbfactor: i32,
    lbstatus: i32,
}

impl Httpd {
    fn find_best(&mut self, tried: &[usize]) -> Option<usize> {
        let mut total_factor = 0;
        let mut best: Option<usize> = None;
        for i in 0..self.workers.len() {
            if !self.workers[i].usable || tried.contains(&i) {
                continue;
            }
            self.workers[i].lbstatus += self.workers[i].lbfactor;
            total_factor += self.workers[i].lbfactor;
            let current = self.workers[i];
            let is_best = match best.map(|best| self.workers[best]) {
                None => true,
                Some(best) => {
                    current.busy < best.busy
                        || (current.busy == best.busy && current.lbstatus > best.lbstatus)
                }
            };
            if is_best {
                best = Some(i);
            }
        }
        self.workers[best?].lbstatus -= total_factor;
        best
    }
}

#[test]
fn chooses_as_httpd_s_bybusyness_does_for_10_000_requests() {
    let mut rng = Rng::new(11);
    for weights in [&[1, 1, 1, 1][..], &[5, 1, 1], &[1, 2, 3, 4, 5, 6, 7], &[100, 1, 30], &[2; 70]] {
        let cluster = FakeCluster::weighted(weights);
        let balancer = cluster.balancer::<ByBusyness>().build().unwrap();
        let worker =
            |weight: &u32| Worker { usable: true, busy: 0, lbfactor: *weight as i32 * 100, lbstatus: 0 };
        let mut httpd = Httpd { workers: weights.iter().map(worker).collect() };
        let mut open = Vec::new();
        for request in 0..10_000 {
            let mut trylist = balancer.load_balance(FakeRequest::get("/"));
            let mut tried = Vec::new();
            loop {
                let answer = trylist.next();
                let expected = httpd.find_best(&tried);
                let at = format!("request {request}, weights {weights:?}");
                assert_eq!(answer, expected.map_or(Next::Exhausted, Next::Endpoint), "{at}");
                let Some(endpoint) = expected else { break };
                // One try in ten fails, and the request goes on to another.
                if rng.below(10) > 0 {
                    httpd.workers[endpoint].busy += 1;
                    open.push(endpoint);
                    break;
                }
                tried.push(endpoint);
                trylist.fail();
            }
            // Load goes up and down, to nothing now and then.
            while !open.is_empty() && rng.below(20) < [9, 11][request / 100 % 2] {
                let ended = open.swap_remove(rng.below(open.len() as u64) as usize);
                httpd.workers[ended].busy -= 1;
            }
            if rng.below(50) == 0 {
                let idx = rng.below(weights.len() as u64) as usize;
                httpd.workers[idx].usable = rng.below(2) == 0;
                let state = if httpd.workers[idx].usable { State::Available } else { State::Down };
                cluster.set_state(idx, state);
            }
            for (endpoint, worker) in httpd.workers.iter().enumerate() {
                cluster.set_in_flight(endpoint, worker.busy);
            }
        }
    }
}

#[test]
fn the_books_stay_balanced() {
    let cluster = FakeCluster::weighted(&[3, 1, 4, 1, 5]);
    let balancer = cluster.balancer::<ByBusyness>().build().unwrap();
    // 14 choices are a period of the idle cluster, and give each exactly its weight, again and again.
    for _ in 0..20 {
        assert_eq!(balancer.distribution(14), [3, 1, 4, 1, 5]);
    }
}

#[test]
fn requests_of_sessions_are_charged_and_shares_hold() {
    let cluster = FakeCluster::weighted(&[2, 1]);
    let balancer = cluster.balancer::<ByBusyness>().build().unwrap();
    let mut counts = [0; 2];
    for request in 0..3_000 {
        // A third of all is of a's sessions.
        if request % 3 == 0 {
            balancer.load_balance(FakeRequest::get("/").preferred(0)).serve();
            counts[0] += 1;
        } else {
            counts[balancer.sequence(1)[0]] += 1;
        }
    }
    assert_eq!(counts, [2_000, 1_000]);
    // One that takes nothing is not charged.
    cluster.set_state(0, State::Down);
    balancer.load_balance(FakeRequest::get("/").preferred(0));
    cluster.set_state(0, State::Available);
    assert_eq!(balancer.distribution(3), [2, 1]);
}

#[test]
fn shares_among_idle_servers_follow_slow_start() {
    let cluster = FakeCluster::equal(2);
    cluster.set_effective_weight(1, WEIGHT_ONE / 4);
    let balancer = cluster.balancer::<ByBusyness>().build().unwrap();
    assert_eq!(balancer.distribution(500), [400, 100]);
}

#[test]
fn threads_that_meet_at_the_books_keep_the_shares_of_idle_servers() {
    let cluster = FakeCluster::weighted(&[5, 1, 2]);
    let balancer = cluster.balancer::<ByBusyness>().build().unwrap();
    let counts = || -> [usize; 3] {
        let of_threads: Vec<Vec<usize>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| balancer.distribution(10_000))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        std::array::from_fn(|endpoint| of_threads.iter().map(|of| of[endpoint]).sum())
    };
    for (count, expected) in counts().iter().zip([25_000_usize, 5_000, 10_000]) {
        // Were all of it drawn, the largest standard deviation would be sqrt(40,000 · 5/8 · 3/8) = 97; four of these.
        assert!(count.abs_diff(expected) < 390, "{count} of {expected}");
    }
    // Whichever way a choice is made, it is of the least busy.
    cluster.set_in_flight(0, 1);
    let [busy, idle @ ..] = counts();
    assert_eq!((busy, idle.iter().sum()), (0, 40_000));
}

#[test]
fn a_full_endpoint_is_no_candidate_and_all_full_is_busy() {
    let cluster = FakeCluster::equal(2);
    let balancer = cluster.balancer::<ByBusyness>().build().unwrap();
    cluster.set_in_flight(0, 5);
    cluster.set_max_in_flight(0, 6);
    cluster.set_in_flight(1, 3);
    cluster.set_max_in_flight(1, 3);
    assert_eq!(balancer.sequence(3), [0, 0, 0]);
    cluster.set_in_flight(0, 6);
    assert_eq!(balancer.load_balance(FakeRequest::get("/")).next(), Next::Busy);
}

#[test]
fn an_endpoint_of_weight_0_is_the_last_resort() {
    let cluster = FakeCluster::equal(3);
    cluster.set_effective_weight(0, 0);
    let balancer = cluster.balancer::<ByBusyness>().build().unwrap();
    assert_eq!(balancer.distribution(10), [0, 5, 5]);
    assert_eq!(balancer.load_balance(FakeRequest::get("/")).all().last(), Some(&0));
}

#[test]
fn takes_no_settings() {
    let refused = FakeCluster::equal(1).balancer::<ByBusyness>().setting("busy", 5).build().err().unwrap();
    assert_eq!(refused.to_string(), "busy: unknown setting, this module has none");
}
