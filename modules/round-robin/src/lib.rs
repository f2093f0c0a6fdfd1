//! `round_robin`: smooth weighted round robin, in nginx's sequence.
//!
//! Servers take turns by weight, spread out evenly. Use it for servers that are alike, or whose strength is known, and
//! requests of about the same cost. A choice costs a counter and a look into a table. Source: nginx.
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
//! The first request that finds that an endpoint's state or effective weight has changed makes the table anew, the others use
//! the old one until then. See `sequence.rs` and `smooth.rs`.
//!
//! **Changes.** A new table goes on where the old one stands, as nginx's current weights do over a failure: an endpoint begins
//! with the current weight that it had, as a part of the sum of all. So does an instance with other endpoints or weights that
//! takes over from another one. The two share the counter of turns and the debts of sessions.
//!
//! **When**: servers that are alike or whose strength is known, requests that cost about the same. **When not**: requests
//! that differ much in cost (count what is in flight instead), caches that want a key to stay with a server (hash), or
//! many proxies before the same few servers, which may march in step.
//!
//! **Settings**: none. **Cost**: one counter, which all threads share, and a look into a table, at any number of endpoints.
//! **Source**: nginx, `src/http/ngx_http_upstream_round_robin.c`.
#![forbid(unsafe_code)]

mod debts;
mod peers;
mod sequence;
mod smooth;

use std::collections::HashMap;
use std::sync::Arc;
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
    ids: Box<[u64]>,
    endpoints: Box<[Live]>,
    sequence: Sequence,
    /// One for all instances that follow one another: a turn is taken once, whoever takes it.
    turn: Arc<Turn>,
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
        let ids: Box<[u64]> = endpoints.iter().map(Endpoint::id).collect();
        let period = Smooth::new((0..).zip(endpoints.iter().map(Endpoint::weight))).period();
        let (turn, credits, debts) = match cx.previous() {
            Some(previous) => previous.taken_over_by(&ids),
            None => {
                // A reload is no reason for the first endpoint to be the first again.
                let saved = cx.saved().and_then(|turn| turn.try_into().ok()).map_or(0, u64::from_le_bytes);
                (Arc::new(Turn(AtomicU64::new(saved))), vec![0.0; ids.len()].into(), Debts::new(ids.len()))
            }
        };
        let sequence = Sequence::new(credits, period);
        let it = Self { cluster: cx.cluster(), ids, endpoints: endpoints.live(), sequence, turn, debts };
        // Here rather than at the first request.
        it.sequence.fill(it.turn.0.load(Relaxed), it.cluster.epoch(), it.weights());
        Ok(it)
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
            self.sequence.at(turn, self.cluster.epoch(), || self.weights())
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

    /// The state that an instance with these endpoints starts from: the counter of turns, and credits and debts for each.
    fn taken_over_by(&self, ids: &[u64]) -> (Arc<Turn>, Box<[f64]>, Debts) {
        let credits = self.sequence.credits(self.turn.0.load(Relaxed));
        let places: HashMap<u64, usize> = self.ids.iter().copied().zip(0..).collect();
        let places = || ids.iter().map(|id| places.get(id).copied());
        let of_each =
            places().map(|place| place.and_then(|place| credits.get(place)).copied().unwrap_or(0.0));
        (Arc::clone(&self.turn), of_each.collect(), Debts::going_on(&self.debts, places()))
    }

    /// The available endpoints, with their weights.
    fn weights(&self) -> impl Iterator<Item = (u32, u32)> {
        let available = (0..).zip(&self.endpoints).filter(|(_, live)| live.is_available());
        available.map(|(idx, live)| (idx, live.effective_weight()))
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
        self.sequence.retry(turn, epoch, fits).map(|endpoint| endpoint as usize)
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

    /// Available endpoints that are not in the sequence: those of weight 0, and those of a long period's other
    /// batches.
    #[cold]
    fn left_over(&self, cx: &NextCx<'_>) -> Next {
        let fits = |idx: &usize| !cx.tried(*idx) && self.endpoints[*idx].is_available();
        (0..self.endpoints.len()).find(fits).map_or(Next::Exhausted, Next::Endpoint)
    }
}

export_balancer!(RoundRobin);

#[cfg(test)]
mod tests;
