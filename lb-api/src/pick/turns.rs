//! nginx's round robin among some of the servers, for hashes that found no server.
//!
//! Every candidate's current weight, at first 0, rises by its weight; the largest is chosen, the first of equals, and
//! the sum of the candidates' weights is taken off it. Unlike in `round_robin` the candidates differ from request to
//! request, so there is no sequence to keep. Requests that come one after the other get exactly nginx's turns. Two requests at
//! the same time keep the proportions, in any order.

use std::sync::atomic::{AtomicI64, Ordering::Relaxed};

use crate::{Next, NextCx};

use super::servers::Servers;

/// The current weights.
#[derive(Debug)]
pub struct Turns {
    current: Box<[AtomicI64]>,
}

impl Turns {
    /// For so many servers, all at 0.
    pub fn new(n_servers: usize) -> Self {
        Self { current: (0..n_servers).map(|_| AtomicI64::new(0)).collect() }
    }

    /// The turn among the available, untried endpoints, by effective weight; the first of them if none has a weight.
    #[cold]
    pub fn among(&self, servers: &Servers, cx: &NextCx<'_>) -> Next {
        let left = || {
            let servers = (0..servers.len()).map(|server| (server, servers.live(server)));
            servers.filter(|(server, live)| !cx.tried(*server) && live.is_available())
        };
        let weighted = left().map(|(server, live)| (server, live.effective_weight()));
        self.next(weighted.filter(|(_, weight)| *weight > 0))
            .or_else(|| left().next().map(|(server, _)| server))
            .map_or(Next::Exhausted, Next::Endpoint)
    }

    /// The turn among these candidates with their weights; `None` without candidates.
    pub fn next(&self, candidates: impl Iterator<Item = (usize, u32)>) -> Option<usize> {
        let (mut total, mut best) = (0, None);
        for (server, weight) in candidates {
            let weight = i64::from(weight);
            total += weight;
            let current = self.current[server].fetch_add(weight, Relaxed) + weight;
            if best.is_none_or(|(most, _)| current > most) {
                best = Some((current, server));
            }
        }
        let (_, server) = best?;
        self.current[server].fetch_sub(total, Relaxed);
        Some(server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_nginx_s_turns() {
        let turns = Turns::new(3);
        let weights = [(0, 5), (1, 1), (2, 1)];
        let taken: Vec<_> = (0..8).map(|_| turns.next(weights.into_iter()).unwrap()).collect();
        assert_eq!(taken, [0, 0, 1, 0, 2, 0, 0, 0]);
    }

    #[test]
    fn who_is_no_candidate_keeps_its_current_weight() {
        let turns = Turns::new(3);
        assert_eq!(turns.next([(0, 1), (1, 1), (2, 1)].into_iter()), Some(0));
        // Now -2, 1, 1: without the second it is the third's turn, and then again the second's.
        assert_eq!(turns.next([(0, 1), (2, 1)].into_iter()), Some(2));
        assert_eq!(turns.next([(0, 1), (1, 1), (2, 1)].into_iter()), Some(1));
        assert_eq!(turns.next(std::iter::empty()), None);
    }
}
