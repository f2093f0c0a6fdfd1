//! `by_busyness`: the server with the fewest requests in flight, ties in turns by weight.
//!
//! Sends each request to the server with the fewest requests in flight, ties by weight. Use it to move from httpd's
//! `lbmethod=bybusyness`; otherwise `least_request` does the same job. A choice looks at every server. Source: httpd.
//!
//! httpd's `lbmethod=bybusyness`. For each choice every candidate's `lbstatus`, at first 0, rises by its `lbfactor`, which is
//! 100 times its weight. The candidate with the fewest requests in flight is chosen; of several, the one with the largest
//! lbstatus, the first of equals. The sum of all candidates' lbfactors is taken off the lbstatus of the one chosen, so that
//! the sum of all stays what it was. Servers that are unavailable, full or already tried are no candidates, and are not advanced.
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

/// A request's last answer, for `explain`.
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
            // A panic here leaves books that are as good as any.
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
mod tests;
