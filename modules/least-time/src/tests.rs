use lb_api::testkit::{Contract, FakeCluster, FakeRequest, SettingValue, TestBalancer, TestTrylist};
use lb_api::{OutcomeKind, Rng, State, WEIGHT_ONE};

use super::*;

const MS: Duration = Duration::from_millis(1);

fn build(cluster: &FakeCluster) -> TestBalancer<LeastTime> {
    cluster.balancer().build().unwrap()
}

/// A trylist whose first answer is this endpoint.
fn to<'a>(
    balancer: &'a TestBalancer<LeastTime>,
    cluster: &FakeCluster,
    endpoint: usize,
) -> TestTrylist<'a, LeastTime> {
    let mut trylist = balancer.load_balance(FakeRequest::get("/"));
    (0..cluster.len()).filter(|other| *other != endpoint).for_each(|other| trylist.mark_tried(other));
    assert_eq!(trylist.next(), Next::Endpoint(endpoint));
    trylist
}

fn answers_after(balancer: &TestBalancer<LeastTime>, cluster: &FakeCluster, endpoint: usize, ms: u32) {
    let mut trylist = to(balancer, cluster, endpoint);
    trylist.observe(EventKind::ResponseHeaders, Some(200), None, ms * MS);
    trylist.observe(EventKind::TryEnded, Some(200), Some(TryResult::Served), ms * MS);
    trylist.finish(OutcomeKind::Served, Some(200));
}

/// The first answer for a request that then goes away.
fn choose(balancer: &TestBalancer<LeastTime>) -> usize {
    match balancer.load_balance(FakeRequest::get("/")).next() {
        Next::Endpoint(endpoint) => endpoint,
        other => panic!("{other:?}"),
    }
}

#[test]
fn keeps_the_contract() {
    Contract::<LeastTime>::new().skips_unavailable().check();
    let contract = Contract::<LeastTime>::new().setting("time", "last_byte").setting("inflight", true);
    contract.skips_unavailable().check();
}

#[test]
fn the_example_of_the_docs_comes_out() {
    let cluster = FakeCluster::equal(3);
    let balancer = build(&cluster);
    for (endpoint, ms) in [(0, 37), (1, 23), (2, 81)] {
        answers_after(&balancer, &cluster, endpoint, ms);
    }
    let in_flight = |counts: [u32; 3]| {
        (0..3).zip(counts).for_each(|(endpoint, n)| cluster.set_in_flight(endpoint, n));
    };
    in_flight([0, 1, 0]);
    let mut trylist = balancer.load_balance(FakeRequest::get("/"));
    assert_eq!(trylist.next(), Next::Endpoint(0));
    assert_eq!(trylist.explain(), "endpoint 0 should be done first, after 40 ms; its average is 37 ms");
    in_flight([1, 1, 0]);
    assert_eq!([(); 4].map(|()| choose(&balancer)), [0, 1, 0, 1]);
    in_flight([2, 2, 0]);
    assert_eq!([(); 2].map(|()| choose(&balancer)), [2, 2]);
}

/// nginx's `get_least_time_peer` and what it learns, word for word, without its health and backup peers.
struct Nginx {
    header: bool,
    use_inflight: bool,
    fail_timeout: i64,
    peers: Vec<NginxPeer>,
}

#[derive(Clone, Copy, Default)]
struct NginxPeer {
    down: bool,
    conns: u64,
    weight: i64,
    current_weight: i64,
    checked: i64,
    time: u64,
    inflight_reqs: u64,
    inflight_reqs_changed: u64,
    inflight_last: u64,
    inflight_time: u64,
}

fn response_time_avg(avg: &mut u64, v: u64) {
    *avg = if *avg > 0 { (0.5 + (v as f64 * 0.05 + *avg as f64 * 0.95)) as u64 } else { v };
}

impl Nginx {
    /// The wall clock of nginx: its zero is long before `checked`s of 0 are within any time-out.
    fn seconds(now_ms: u64) -> i64 {
        1_700_000_000 + (now_ms / 1000) as i64
    }

    fn eta(&self, peer: &NginxPeer, now_ms: u64) -> u64 {
        let mut rt = peer.time;
        let idle = Self::seconds(now_ms) - peer.checked;
        if idle > self.fail_timeout {
            let shift = idle / (self.fail_timeout + 1);
            rt = if shift < 64 { rt >> shift } else { 0 };
        }
        if peer.inflight_reqs > 0 {
            rt = rt.max(peer.inflight_time);
        }
        rt = if rt > 5000 { 5000 } else { rt + 20 - rt % 20 };
        rt * (1 + peer.conns)
    }

    fn get(&mut self, tried: &[usize], now_ms: u64) -> Option<usize> {
        let (mut best, mut best_eta, mut many): (Option<usize>, u64, bool) = (None, 0, false);
        for i in 0..self.peers.len() {
            if tried.contains(&i) || self.peers[i].down {
                continue;
            }
            let peer = &mut self.peers[i];
            if let Some(ift) = peer.inflight_last.checked_div(peer.inflight_reqs) {
                let ift = ift + (now_ms - peer.inflight_reqs_changed);
                response_time_avg(&mut peer.inflight_time, ift);
            }
            let (peer, eta) = (self.peers[i], self.eta(&self.peers[i], now_ms));
            let cross =
                |best: usize| (eta as i64 * self.peers[best].weight).cmp(&(best_eta as i64 * peer.weight));
            match best.map(cross) {
                None | Some(std::cmp::Ordering::Less) => (best, best_eta, many) = (Some(i), eta, false),
                Some(std::cmp::Ordering::Equal) => many = true,
                Some(std::cmp::Ordering::Greater) => {}
            }
        }
        let mut best = best?;
        let mut total = 0;
        if many {
            for i in (best..self.peers.len()).filter(|i| !tried.contains(i)) {
                let (peer, eta) = (self.peers[i], self.eta(&self.peers[i], now_ms));
                if peer.down || eta as i64 * self.peers[best].weight != best_eta as i64 * peer.weight {
                    continue;
                }
                self.peers[i].current_weight += peer.weight;
                total += peer.weight;
                if self.peers[i].current_weight > self.peers[best].current_weight {
                    // The one departure: nginx leaves `best_eta` as it is, see the crate's docs.
                    (best, best_eta) = (i, eta);
                }
            }
        }
        let (use_inflight, fail_timeout) = (self.use_inflight, self.fail_timeout);
        let best_peer = &mut self.peers[best];
        best_peer.current_weight -= total;
        if use_inflight {
            if best_peer.inflight_reqs > 0 {
                best_peer.inflight_last +=
                    (now_ms - best_peer.inflight_reqs_changed) * best_peer.inflight_reqs;
            }
            best_peer.inflight_reqs_changed = now_ms;
            best_peer.inflight_reqs += 1;
        }
        if Self::seconds(now_ms) - best_peer.checked > fail_timeout {
            best_peer.checked = Self::seconds(now_ms);
        }
        Some(best)
    }

    fn inflight_done(&mut self, i: usize, now_ms: u64, last: u64) {
        let peer = &mut self.peers[i];
        if peer.inflight_reqs == 1 {
            peer.inflight_last = 0;
        } else {
            // Unsigned, and below 0 for a moment.
            let passed = (now_ms - peer.inflight_reqs_changed) * peer.inflight_reqs;
            peer.inflight_last = peer.inflight_last.wrapping_add(passed).wrapping_sub(last);
            peer.inflight_reqs_changed = now_ms;
        }
        peer.inflight_reqs -= 1;
    }

    /// The response headers are here.
    fn notify(&mut self, i: usize, now_ms: u64, elapsed: u64) {
        if self.use_inflight && self.header {
            response_time_avg(&mut self.peers[i].time, elapsed);
            self.inflight_done(i, now_ms, elapsed);
        }
    }

    /// The try is over; with the time that the mode averages, where it was served.
    fn free(&mut self, i: usize, now_ms: u64, elapsed: u64, time: Option<u64>) {
        if self.use_inflight && (!self.header || time.is_none()) {
            self.inflight_done(i, now_ms, elapsed);
        }
        if let Some(time) = time.filter(|_| !(self.use_inflight && self.header)) {
            response_time_avg(&mut self.peers[i].time, time);
        }
    }
}

#[test]
fn chooses_as_nginx_s_least_time_does_for_10_000_requests() {
    for (header, use_inflight) in [(true, false), (false, false), (true, true), (false, true)] {
        for weights in [&[1, 1, 1, 1][..], &[5, 1, 2], &[1, 2, 3, 4, 5, 6, 7]] {
            like_nginx(header, use_inflight, weights);
        }
    }
}

fn like_nginx(header: bool, use_inflight: bool, weights: &[u32]) {
    let mut rng = Rng::new(23);
    let cluster = FakeCluster::weighted(weights);
    let builder = cluster.balancer::<LeastTime>().setting("inflight", use_inflight);
    let builder = builder.setting("time", if header { "header" } else { "last_byte" });
    let balancer = builder.setting("fail_timeout", "3s").build().unwrap();
    let peer = |weight: &u32| NginxPeer { weight: i64::from(*weight), ..NginxPeer::default() };
    let peers = weights.iter().map(peer).collect();
    let mut nginx = Nginx { header, use_inflight, fail_timeout: 3, peers };
    // The kit's clock starts at one second.
    let mut now = 1_000;
    let mut open: Vec<(u64, u64, bool, usize, TestTrylist<'_, LeastTime>)> = Vec::new();
    for request in 0..10_000 {
        let step = if rng.below(500) == 0 { rng.below(20_000) } else { rng.below(30) };
        cluster.advance(step as u32 * MS);
        now += step;
        // Requests that are due by now end.
        while let Some(due) = open.iter().position(|(end, ..)| *end <= now) {
            let (_, began, served, endpoint, mut trylist) = open.swap_remove(due);
            let elapsed = (now - began) as u32 * MS;
            if served {
                trylist.observe(EventKind::ResponseHeaders, Some(200), None, elapsed);
                nginx.notify(endpoint, now, now - began);
            }
            let (status, result) =
                if served { (Some(200), TryResult::Served) } else { (None, TryResult::TimedOut) };
            trylist.observe(EventKind::TryEnded, status, Some(result), elapsed);
            trylist.finish(OutcomeKind::Served, status);
            nginx.free(endpoint, now, now - began, served.then_some(now - began));
            nginx.peers[endpoint].conns -= 1;
        }
        for (endpoint, peer) in nginx.peers.iter().enumerate() {
            cluster.set_in_flight(endpoint, peer.conns as u32);
        }
        let (mut trylist, mut tried) = (balancer.load_balance(FakeRequest::get("/")), Vec::new());
        loop {
            let expected = nginx.get(&tried, now);
            let at =
                format!("request {request}, weights {weights:?}, header {header}, inflight {use_inflight}");
            assert_eq!(trylist.next(), expected.map_or(Next::Exhausted, Next::Endpoint), "{at}");
            let Some(endpoint) = expected else { break };
            if rng.below(20) == 0 {
                // Refused at once, and on to the next.
                trylist.fail();
                nginx.free(endpoint, now, 0, None);
                tried.push(endpoint);
                continue;
            }
            nginx.peers[endpoint].conns += 1;
            // The later in the list, the slower.
            let took = 5 + rng.below(40 * (endpoint as u64 + 1));
            open.push((now + took, now, rng.below(20) > 0, endpoint, trylist));
            break;
        }
        if rng.below(100) == 0 {
            let idx = rng.below(weights.len() as u64) as usize;
            nginx.peers[idx].down = rng.below(2) == 0;
            cluster.set_state(idx, if nginx.peers[idx].down { State::Down } else { State::Available });
        }
    }
}

#[test]
fn only_whole_responses_are_learned_from() {
    let cluster = FakeCluster::equal(1);
    let balancer = build(&cluster);
    let average = || {
        let said = to(&balancer, &cluster, 0).explain();
        said.rsplit(' ').nth(1).unwrap().to_owned()
    };
    answers_after(&balancer, &cluster, 0, 100);
    assert_eq!(average(), "100");
    for result in [TryResult::Broken, TryResult::Aborted, TryResult::TimedOut, TryResult::ClosedEarly] {
        to(&balancer, &cluster, 0).observe(EventKind::TryEnded, Some(200), Some(result), MS);
        assert_eq!(average(), "100", "{result:?}");
    }
    to(&balancer, &cluster, 0).fail();
    assert_eq!(average(), "100");
    answers_after(&balancer, &cluster, 0, 300);
    assert_eq!(average(), "110");
}

#[test]
fn a_server_that_hangs_is_seen_before_it_answers() {
    let cluster = FakeCluster::equal(2);
    for (inflight, expected) in [(true, 1), (false, 0)] {
        let balancer = cluster.balancer::<LeastTime>().setting("inflight", inflight).build().unwrap();
        answers_after(&balancer, &cluster, 0, 5);
        answers_after(&balancer, &cluster, 1, 50);
        let hanging = to(&balancer, &cluster, 0);
        cluster.advance(2_000 * MS);
        // Each look moves the average age by a twentieth; the first counts whole.
        assert_eq!(choose(&balancer), expected, "inflight {inflight}");
        drop(hanging);
        assert_eq!(choose(&balancer), 0);
    }
}

#[test]
fn whatever_becomes_of_a_request_it_does_not_stay_in_flight() {
    let cluster = FakeCluster::equal(1);
    let balancer = cluster.balancer::<LeastTime>().setting("inflight", true).build().unwrap();
    let expected = || {
        cluster.advance(1_000 * MS);
        let said = to(&balancer, &cluster, 0).explain();
        said.split(' ').nth(7).unwrap().to_owned()
    };
    drop(to(&balancer, &cluster, 0));
    assert_eq!(expected(), "20");
    to(&balancer, &cluster, 0).fail();
    assert_eq!(expected(), "20");
    to(&balancer, &cluster, 0).finish(OutcomeKind::Aborted, None);
    assert_eq!(expected(), "20");
    let mut declined = to(&balancer, &cluster, 0);
    assert_eq!(declined.next(), Next::Exhausted);
    assert_eq!(expected(), "20");
    // And as long as it does stay, it counts.
    let waiting = to(&balancer, &cluster, 0);
    assert_eq!(expected(), "1020");
    drop(waiting);
}

#[test]
fn remembers_over_reloads_and_restarts_by_id() {
    let cluster = FakeCluster::equal(3);
    let first = build(&cluster);
    for (endpoint, ms) in [(0, 100), (1, 200), (2, 300)] {
        answers_after(&first, &cluster, endpoint, ms);
    }
    let averages = |balancer: &TestBalancer<LeastTime>, cluster: &FakeCluster| -> Vec<String> {
        let said = (0..cluster.len()).map(|endpoint| to(balancer, cluster, endpoint).explain());
        said.map(|said| said.rsplit(' ').nth(1).unwrap().to_owned()).collect()
    };
    let reordered = cluster.reordered(&[2, 0]);
    let restarted = reordered.balancer::<LeastTime>().saved(first.save()).build().unwrap();
    assert_eq!(averages(&restarted, &reordered), ["300", "100"]);
    let second = reordered.balancer::<LeastTime>().previous(&first).build().unwrap();
    assert_eq!(averages(&second, &reordered), ["300", "100"]);
    // Later samples of an instance reach the one after it, with the same servers and with others.
    let third = reordered.balancer::<LeastTime>().previous(&second).build().unwrap();
    answers_after(&second, &reordered, 0, 700);
    assert_eq!(averages(&third, &reordered), ["320", "100"]);
    answers_after(&first, &cluster, 0, 200);
    assert_eq!(averages(&third, &reordered), ["320", "105"]);
    // Another time is not the same thing.
    let other = reordered.balancer::<LeastTime>().setting("time", "last_byte");
    let other = other.previous(&first).saved(first.save()).build().unwrap();
    assert_eq!(averages(&other, &reordered), ["0", "0"]);
}

#[test]
fn what_is_in_flight_counts_in_every_instance_that_follows() {
    let cluster = FakeCluster::equal(2);
    let first = cluster.balancer::<LeastTime>().setting("inflight", true).build().unwrap();
    let waiting = to(&first, &cluster, 1);
    let reordered = cluster.reordered(&[1]);
    let second =
        reordered.balancer::<LeastTime>().setting("inflight", true).previous(&first).build().unwrap();
    cluster.advance(1_000 * MS);
    assert!(to(&second, &reordered, 0).explain().contains("after 1020 ms"));
    drop(waiting);
    cluster.advance(1_000 * MS);
    assert!(to(&second, &reordered, 0).explain().contains("after 20 ms"));
}

#[test]
fn a_restored_slow_server_gets_another_chance() {
    let cluster = FakeCluster::equal(2);
    let first = build(&cluster);
    answers_after(&first, &cluster, 0, 10);
    answers_after(&first, &cluster, 1, 75);
    let second = cluster.balancer::<LeastTime>().saved(first.save()).build().unwrap();
    assert_eq!(second.distribution(10), [10, 0]);
    cluster.advance(11_000 * MS);
    assert_eq!(choose(&second), 0, "75 / 2 is still more than a step");
    cluster.advance(11_000 * MS);
    assert_eq!(second.distribution(4), [3, 1], "75 / 4 is the same step; once chosen it counts as 75 again");
}

#[test]
fn a_full_endpoint_is_passed_over_and_all_full_is_busy() {
    let cluster = FakeCluster::equal(2);
    let balancer = build(&cluster);
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
    cluster.set_effective_weight(1, WEIGHT_ONE / 4);
    let balancer = build(&cluster);
    // All idle and as fast: the heaviest, until it has something in flight.
    assert_eq!(balancer.distribution(10), [0, 0, 10]);
    cluster.set_in_flight(2, 4);
    assert_eq!(balancer.distribution(10), [0, 10, 0]);
    assert_eq!(balancer.load_balance(FakeRequest::get("/")).all().last(), Some(&0));
}

#[test]
fn refuses_settings_that_make_no_sense() {
    let refused = |path: &str, value: SettingValue| {
        let cluster = FakeCluster::equal(2);
        cluster.balancer::<LeastTime>().setting(path, value).build().err().unwrap().to_string()
    };
    for wrong in ["1500ms", "25h"] {
        assert_eq!(
            refused("fail_timeout", wrong.into()),
            format!("fail_timeout: expected whole seconds from \"0s\" to \"24h\", found \"{wrong}\"")
        );
    }
    assert_eq!(
        refused("fail_timeout", 10.into()),
        "fail_timeout: expected a duration such as \"250ms\", \"10s\", \"5m\" or \"1h\", found 10"
    );
    assert_eq!(
        refused("time", "first_byte".into()),
        "time: unknown value \"first_byte\" (did you mean \"last_byte\"?)"
    );
    assert_eq!(refused("inflight", 1.into()), "inflight: expected a boolean, found 1");
    assert_eq!(refused("in_flight", true.into()), "in_flight: unknown setting (did you mean \"inflight\"?)");
}

#[test]
fn a_reload_goes_on_with_the_next_turn() {
    let cluster = FakeCluster::equal(3);
    let build = |saved: Vec<u8>| {
        let balancer = cluster.balancer::<LeastTime>();
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
