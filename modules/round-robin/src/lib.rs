//! `round_robin`: smooth weighted round robin, in nginx's sequence.
//!
//! Endpoints take turns; one of weight 3 takes three turns while one of weight 1 takes one, and its turns are spread out
//! rather than bunched. For each choice every endpoint's current weight, at first 0, rises by its weight; the largest is
//! chosen, the first of equals, and the sum of all weights is taken off it. With weights a=5, b=1, c=1:
//!
//! | choice | current weights (a, b, c) | chosen | afterwards |
//! |---|---|---|---|
//! | 1 | 5, 1, 1 | a | -2, 1, 1 |
//! | 2 | 3, 2, 2 | a | -4, 2, 2 |
//! | 3 | 1, 3, 3 | b | 1, -4, 3 |
//! | 4 | 6, -3, 4 | a | -1, -3, 4 |
//! | 5 | 4, -2, 5 | c | 4, -2, -2 |
//! | 6 | 9, -1, -1 | a | 2, -1, -1 |
//! | 7 | 7, 0, 0 | a | 0, 0, 0 |
//!
//! **The sequence is the process's**, not a thread's: one counter that all threads share says whose turn it is, so that
//! `n` requests one after the other see exactly the sequence, whatever threads they come by. That counter is what two
//! threads contend for.
//!
//! **What is balanced** are the endpoints that are available, by their effective weights. nginx lowers the weight of a
//! peer that fails and raises it again; here health and weights are the host's, and this module takes both as they are.
//! A name with several addresses is one endpoint with one endpoint's turns; nginx makes a peer of each address, and so does
//! the host with `resolve = "all"`.
//! A try that fails has its request choose again by the same rule among what it has not tried, as in nginx: the turns of a
//! server that fails go to all others by weight, and the sequence goes on from there. Only where that takes more than
//! some 30 microseconds (32,768 steps: the period times the number of endpoints), or where an endpoint was declined rather
//! than failed, does the request go on to the next endpoint of the sequence that it has not tried, and other requests'
//! turns stay where they are.
//!
//! **Sessions.** A request that the host takes to the server of its session costs that server a turn: its next one is passed over, so
//! that shares hold with sessions as they do without. nginx has such a pick take part in the current weights, unless those
//! of the server are as low already as one turn before its time makes them; here a server owes up to 16 turns. Sessions that
//! bring a server more than its share leave it nothing else, and are not paid back beyond that.
//!
//! **Cost.** The sequence repeats after as many choices as the weights, divided by what is common to them, sum up to: 7
//! above, `n` for `n` endpoints of any equal weight. A period of up to 65,536 (fewer where very many weights differ) is
//! kept as a table, where it fits into what the configured weights asked for, at least 1,024 entries; a choice is then a
//! look into it: constant time at any number of endpoints. A longer period, as slow start's fractions make it, is made up
//! to 1,024 choices at a time by whichever request needs the next of them, at a comparison for each *different* weight.
//! Either is made anew, from the beginning, by the first request that finds that an endpoint's state or effective weight
//! has changed; the others use the old one until then. See `sequence.rs` and `smooth.rs`.
//!
//! **When**: servers that are alike or whose strength is known, requests that cost about the same. **When not**: requests
//! that differ much in cost (count what is in flight instead), caches that want a key to stay with a server (hash), or
//! many proxies before the same few servers, which may march in step.
//!
//! **Settings**: none. **Source**: nginx, `src/http/ngx_http_upstream_round_robin.c`.
#![forbid(unsafe_code)]

mod debts;
mod peers;
mod sequence;
mod smooth;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lb_api::{
    Balancer, BuildCx, BuildError, Cluster, Endpoint, Live, Next, NextCx, Request, export_balancer,
};

use debts::Debts;
use sequence::Sequence;
use smooth::Smooth;

/// Turns that one request passes over, at most, because they are owed.
const MAX_PASSED_OVER: usize = 64;

/// The instance for one cluster.
#[derive(Debug)]
pub struct RoundRobin {
    cluster: Cluster,
    endpoints: Box<[Live]>,
    sequence: Sequence,
    turn: Turn,
    debts: Debts,
}

/// The counter of turns: written by every request, so that it has cache lines of its own, away from what all read.
#[derive(Debug)]
#[repr(align(128))]
struct Turn(AtomicU64);

/// Where a request stands in the sequence, once it has had a turn.
#[derive(Debug, Default)]
pub struct Position {
    entry: Option<u64>,
    /// Whether the last choice was one after a failure, which has no entry.
    is_after_failure: bool,
    /// The endpoint that owes a turn for this request, while the host may serve it there.
    charged: Option<u32>,
}

impl Balancer for RoundRobin {
    const ID: &'static str = "round_robin";
    const SUMMARY: &'static str = "smooth weighted round robin, in nginx's sequence";
    /// The turn, 64 bits, little-endian.
    const STATE_VERSION: u32 = 1;
    type Settings = ();
    type Trylist = Position;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        let endpoints = cx.endpoints();
        let saved = cx.saved().and_then(|turn| turn.try_into().ok());
        let configured = Smooth::new((0..).zip(endpoints.iter().map(Endpoint::weight)));
        Ok(Self {
            cluster: cx.cluster(),
            endpoints: endpoints.live(),
            sequence: Sequence::new(endpoints.len(), configured.period()),
            debts: Debts::new(endpoints.len()),
            // A reload is no reason for the first endpoint to be the first again.
            turn: Turn(AtomicU64::new(saved.map_or(0, u64::from_le_bytes))),
        })
    }

    #[inline]
    fn load_balance(&self, request: &Request<'_>) -> Position {
        let charged = request.preferred().and_then(|endpoint| self.debts.charge(endpoint));
        Position { charged, ..Position::default() }
    }

    #[inline]
    fn next(&self, position: &mut Position, cx: &NextCx<'_>) -> Next {
        if let Some(endpoint) = position.charged.take() {
            // It did not serve the request after all.
            self.debts.pay(endpoint);
        }
        match position.entry {
            // The turn is taken here and not in `load_balance`, because a request that the host sends to its preferred
            // endpoint takes the next one of that endpoint.
            None => match self.take_turn() {
                Some((entry, endpoint)) => {
                    position.entry = Some(entry);
                    self.unless_tried(endpoint, position, cx)
                }
                None => self.left_over(cx),
            },
            Some(entry) => match self.after_failure(cx) {
                Some(endpoint) => {
                    position.is_after_failure = true;
                    Next::Endpoint(endpoint)
                }
                None => self.walk_on(entry, position, cx),
            },
        }
    }

    fn save(&self) -> Option<Vec<u8>> {
        Some(self.turn.0.load(Relaxed).to_le_bytes().to_vec())
    }

    fn explain(&self, position: &Position) -> Option<String> {
        let entry = position.entry?;
        if position.is_after_failure {
            return Some("chosen anew, by the same rule, among those not tried".to_owned());
        }
        Some(match self.sequence.period() {
            Some(period) => format!("turn {entry} of the {period} after which the sequence repeats"),
            None => format!("turn {entry} of a batch of a long sequence"),
        })
    }
}

impl RoundRobin {
    /// The next turn of the sequence that is not owed; entry and endpoint.
    #[inline]
    fn take_turn(&self) -> Option<(u64, u32)> {
        let take = || {
            let turn = self.turn.0.fetch_add(1, Relaxed);
            self.sequence.at(turn, self.cluster.epoch(), || self.smooth())
        };
        let first = take()?;
        if self.debts.are_none() { Some(first) } else { self.take_turn_not_owed(first, take) }
    }

    #[cold]
    fn take_turn_not_owed(
        &self,
        mut taken: (u64, u32),
        take: impl Fn() -> Option<(u64, u32)>,
    ) -> Option<(u64, u32)> {
        for _ in 0..MAX_PASSED_OVER {
            if !self.debts.pay(taken.1) {
                break;
            }
            taken = take()?;
        }
        Some(taken)
    }

    /// What is balanced, with its weights.
    fn available(&self) -> impl Iterator<Item = (u32, u32)> {
        let available = (0..).zip(&self.endpoints).filter(|(_, live)| live.is_available());
        available.map(|(idx, live)| (idx, live.effective_weight()))
    }

    fn smooth(&self) -> Smooth {
        Smooth::new(self.available())
    }

    /// nginx's choice among what the request has not tried. Not where endpoints were declined, since this request began or
    /// before a wait in the queue: that servers are full is no rare thing, as failures are, and no reason to make everybody's
    /// turns anew.
    #[cold]
    fn after_failure(&self, cx: &NextCx<'_>) -> Option<usize> {
        if cx.n_tries() == 0 || cx.n_tried() != cx.n_tries() as usize {
            return None;
        }
        let (turn, epoch) = (self.turn.0.load(Relaxed), self.cluster.epoch());
        let fits = |endpoint: u32| {
            !cx.tried(endpoint as usize)
                && self.endpoints.get(endpoint as usize).is_some_and(|live| live.is_available())
        };
        self.sequence.retry(turn, epoch, self.available(), fits).map(|endpoint| endpoint as usize)
    }

    #[inline]
    fn unless_tried(&self, endpoint: u32, position: &mut Position, cx: &NextCx<'_>) -> Next {
        match position.entry {
            Some(entry) if cx.tried(endpoint as usize) => self.walk_on(entry, position, cx),
            _ => Next::Endpoint(endpoint as usize),
        }
    }

    /// The next of the sequence that is available and not tried. All walks of one request together pass each entry once
    /// or twice.
    #[cold]
    fn walk_on(&self, entry: u64, position: &mut Position, cx: &NextCx<'_>) -> Next {
        let fits = |endpoint: u32| {
            !cx.tried(endpoint as usize)
                && self.endpoints.get(endpoint as usize).is_some_and(|e| e.is_available())
        };
        match self.sequence.after(entry).find(|(_, endpoint)| fits(*endpoint)) {
            Some((entry, endpoint)) => {
                *position = Position { entry: Some(entry), ..Position::default() };
                Next::Endpoint(endpoint as usize)
            }
            None => self.left_over(cx),
        }
    }

    /// What is available without being in the sequence: endpoints of weight 0, and those of a long period's other
    /// batches.
    #[cold]
    fn left_over(&self, cx: &NextCx<'_>) -> Next {
        let fits = |idx: &usize| !cx.tried(*idx) && self.endpoints[*idx].is_available();
        (0..self.endpoints.len()).find(fits).map_or(Next::Exhausted, Next::Endpoint)
    }
}

export_balancer!(RoundRobin);

#[cfg(test)]
mod tests {
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
        for weights in [&[1, 1, 1][..], &[5, 1, 1], &[1, 2, 3, 4, 5, 6, 7], &[2; 40], &[300, 1, 20], &[1, 1]]
        {
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
}
