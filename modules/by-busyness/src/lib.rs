//! `by_busyness`: the server with the fewest requests in flight, ties in turns by weight.
//!
//! httpd's `lbmethod=bybusyness`. For each choice every candidate's `lbstatus`, at first 0, rises by its `lbfactor`, which is
//! 100 times its weight. The candidate with the fewest requests in flight is chosen; of several, the one with the largest
//! lbstatus, the first of equals. The sum of all candidates' lbfactors is taken off the lbstatus of the one chosen, so that
//! the sum of all stays what it was. What is not available, full or already tried is no candidate, and is not advanced.
//!
//! By hand, for weights a=2, b=1 (lbfactors 200, 100; sum 300), where the first request does not end:
//!
//! | request | in flight (a, b) | lbstatus (a, b) | chosen | afterwards |
//! |---|---|---|---|---|
//! | 1, stays | 0, 0 | 200, 100 | a | -100, 100 |
//! | 2 | 1, 0 | 100, 200 | b, as it has fewer | 100, -100 |
//! | 3 | 1, 0 | 300, 0 | b, as it has fewer | 300, -300 |
//! | 1 ends; 4 | 0, 0 | 500, -200 | a | 200, -200 |
//! | 5 | 0, 0 | 400, -100 | a | 100, -100 |
//!
//! So weights decide between equals only: a server of weight 2 is not given twice the requests of one of weight 1 while
//! both are busy. `least_request` counts requests per weight; and where nginx advances only those that are tied, httpd
//! advances all candidates, so that whoever was passed over for being busy has a claim to the ties that come after (above:
//! requests 4 and 5).
//!
//! **Sessions.** A request that the host takes to the server of its session is charged to that server as if it had been
//! chosen, as in httpd, so that others get the ties that come after. It is charged when it begins, unless the books are in
//! use just then.
//!
//! **Threads.** A choice reads and writes the lbstatus of all candidates as one step, so that they stand behind a lock. It is
//! only tried: who finds it taken draws by weight among those with the fewest in flight, which gives idle servers the same
//! shares on average, and leaves the books alone. (httpd holds a mutex within each process, and between processes just races.)
//!
//! **Departures from httpd.** `busy` is the host's count, which rises when it has accepted the answer, not in the same step
//! with the choice. Weights are the host's effective ones with slow start, to 1/100. Sets, spares and standbys are the host's
//! tiers, errors and retries its health. lbstatus goes on over a reload, as over httpd's graceful restart.
//!
//! **When**: to go on as with httpd; few servers of about the same strength. **When not**: servers of different strength, or
//! many servers (`least_request`). **Settings**: none. **Cost**: a look at every endpoint. **Source**: httpd,
//! `modules/proxy/balancers/mod_lbmethod_bybusyness.c`, and `proxy_balancer_get_best_worker` in `proxy_util.c`.
#![forbid(unsafe_code)]

use std::sync::{Mutex, PoisonError, TryLockError};

use lb_api::pick;
use lb_api::{
    Balancer, BuildCx, BuildError, Endpoint, Live, Next, NextCx, Request, Rng, WEIGHT_ONE, export_balancer,
};

/// The instance for one cluster.
#[derive(Debug)]
pub struct ByBusyness {
    endpoints: Box<[Live]>,
    /// Of the endpoints.
    ids: Box<[u64]>,
    /// One for each endpoint.
    lbstatus: Mutex<Box<[i64]>>,
}

/// What a request remembers, to explain it: its last answer.
#[derive(Debug, Default)]
pub struct Chosen(Option<Candidate>);

#[derive(Clone, Copy, Debug)]
struct Candidate {
    endpoint: usize,
    busy: u32,
    lbstatus: i64,
}

impl Balancer for ByBusyness {
    const ID: &'static str = "by_busyness";
    const SUMMARY: &'static str =
        "the fewest requests in flight, ties in turns by weight, as httpd's bybusyness";
    /// lbstatus of each endpoint, as [`pick::save_numbers`] has it.
    const STATE_VERSION: u32 = 1;
    type Settings = ();
    type Trylist = Chosen;

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        let ids: Box<[u64]> = cx.endpoints().iter().map(Endpoint::id).collect();
        let endpoints = cx.endpoints().live();
        let total = cx.endpoints().iter().map(|endpoint| i64::from(endpoint.weight()) * 100).sum();
        let before = cx.previous().and_then(Self::save);
        let before = before.as_deref().or(cx.saved()).unwrap_or_default();
        let lbstatus = Mutex::new(pick::restore_currents(before, &ids, total));
        Ok(Self { endpoints, ids, lbstatus })
    }

    #[inline]
    fn load_balance(&self, request: &Request<'_>) -> Chosen {
        if let Some(endpoint) = request.preferred() {
            self.charge(endpoint);
        }
        Chosen::default()
    }

    #[inline]
    fn next(&self, chosen: &mut Chosen, cx: &NextCx<'_>) -> Next {
        chosen.0 = match self.lbstatus.try_lock() {
            Ok(mut lbstatus) => self.by_the_books(cx, &mut lbstatus),
            // Who panicked here left books that are as good as any.
            Err(TryLockError::Poisoned(poisoned)) => self.by_the_books(cx, &mut poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => self.by_chance(cx),
        };
        match chosen.0 {
            Some(best) => Next::Endpoint(best.endpoint),
            None => pick::left_over(&self.endpoints, cx),
        }
    }

    fn save(&self) -> Option<Vec<u8>> {
        let lbstatus = self.lbstatus.lock().unwrap_or_else(PoisonError::into_inner);
        Some(pick::save_numbers(&self.ids, &lbstatus))
    }

    fn explain(&self, chosen: &Chosen) -> Option<String> {
        let Candidate { endpoint, busy, lbstatus } = chosen.0?;
        Some(format!("endpoint {endpoint} is the least busy, with {busy} in flight and lbstatus {lbstatus}"))
    }
}

impl ByBusyness {
    /// Advances the books by a choice that was made elsewhere.
    #[cold]
    fn charge(&self, endpoint: usize) {
        let mut lbstatus = match self.lbstatus.try_lock() {
            Ok(lbstatus) => lbstatus,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if !self.endpoints.get(endpoint).is_some_and(|live| live.is_available() && !live.is_full()) {
            return;
        }
        let mut total = 0;
        for (live, lbstatus) in self.endpoints.iter().zip(&mut *lbstatus) {
            if live.is_available() && !live.is_full() {
                *lbstatus += i64::from(lbfactor(*live));
                total += i64::from(lbfactor(*live));
            }
        }
        lbstatus[endpoint] -= total;
    }

    fn by_the_books(&self, cx: &NextCx<'_>, lbstatus: &mut [i64]) -> Option<Candidate> {
        let first = cx.is_first();
        let (mut best, mut total): (Option<Candidate>, i64) = (None, 0);
        for (endpoint, (live, lbstatus)) in self.endpoints.iter().zip(&mut *lbstatus).enumerate() {
            let fits = |_: &u32| live.is_available() && (first || !cx.tried(endpoint));
            let Some(busy) = live.in_flight_if_room().filter(fits) else { continue };
            let lbfactor = lbfactor(*live);
            if lbfactor == 0 {
                continue;
            }
            *lbstatus += i64::from(lbfactor);
            total += i64::from(lbfactor);
            let it = Candidate { endpoint, busy, lbstatus: *lbstatus };
            let better = |best: Candidate| {
                it.busy < best.busy || (it.busy == best.busy && it.lbstatus > best.lbstatus)
            };
            if best.is_none_or(better) {
                best = Some(it);
            }
        }
        lbstatus[best?.endpoint] -= total;
        best
    }

    /// Without a look at the books: a reservoir of one among those with the fewest in flight.
    #[cold]
    fn by_chance(&self, cx: &NextCx<'_>) -> Option<Candidate> {
        let mut rng: Rng = cx.rng();
        let (mut best, mut total): (Option<Candidate>, u64) = (None, 0);
        for (endpoint, live) in self.endpoints.iter().enumerate().filter(|(idx, _)| self.fits(*idx, cx)) {
            let (busy, lbfactor) = (live.in_flight_of_all(), u64::from(lbfactor(*live)));
            match best {
                _ if lbfactor == 0 => continue,
                Some(best) if best.busy < busy => continue,
                Some(best) if best.busy == busy => total += lbfactor,
                _ => total = lbfactor,
            }
            if rng.below(total) < lbfactor {
                best = Some(Candidate { endpoint, busy, lbstatus: 0 });
            }
        }
        best
    }

    fn fits(&self, endpoint: usize, cx: &NextCx<'_>) -> bool {
        let live = self.endpoints[endpoint];
        !cx.tried(endpoint) && live.is_available() && !live.is_full()
    }
}

/// httpd's: 100 for a weight of 1. Any weight but 0 counts for something.
#[inline]
fn lbfactor(live: Live) -> u32 {
    let weight = u64::from(live.effective_weight());
    (weight * 100).div_ceil(u64::from(WEIGHT_ONE)) as u32
}

export_balancer!(ByBusyness);

#[cfg(test)]
mod tests {
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
        let refused =
            FakeCluster::equal(1).balancer::<ByBusyness>().setting("busy", 5).build().err().unwrap();
        assert_eq!(refused.to_string(), "busy: unknown setting, this module has none");
    }
}
