//! `random`: a weighted draw for each request.
//!
//! Sends each request to a server drawn at random, by weight. Use it with many proxies or many servers. A choice costs
//! a draw and writes nothing. Source: nginx's `random`, HAProxy's `random(1)`.
//!
//! Every request draws an endpoint, each with the probability that its effective weight is of the sum of all that are
//! available. Nothing is remembered from one request to the next: no counter that threads contend for, no order in which
//! many proxies before the same servers could march in step. In return the shares are right on average only: of `n`
//! requests an endpoint with share `p` gets `np` give or take `sqrt(np(1-p))`.
//!
//! A draw is one look into a table of as many slots as there are endpoints (the alias method: Walker 1977, Vose 1991):
//! pick a slot with equal chances, then, by the slot's threshold, the slot's own endpoint or the one other that shares the
//! slot with it. By hand, for weights a=5, b=1, c=1 (sum 7, so that a slot holds 7/3): b fills 3/7 of its slot and a the
//! rest, c likewise, and a's own slot is a's alone. So a is drawn with 1/3 + 2 · 1/3 · 4/7 = 5/7.
//!
//! The table is made by the first request that finds that the cluster's epoch has moved on, in time proportional to the
//! number of endpoints; others draw from the old one meanwhile. Each slot is one atomic word, so that a table that is just
//! being replaced is read as a mixture of both, slot by slot, which no single draw can tell.
//!
//! A request whose try failed draws again among those that it has not tried, with probabilities by weight: by drawing
//! until one fits, and where eight draws do not bring one, by adding up the weights of all that fit.
//!
//! **When**: many proxies, many endpoints, or weights whose round robin would have a long period. **When not**: few
//! requests, whose shares are then far from the weights, and wherever the exact turns of `round_robin` are wanted.
//!
//! **Settings**: none. **Cost**: one draw, at any number of endpoints; nothing is written. **Source**: nginx's `random` without `two`, HAProxy's `random(1)`.
#![forbid(unsafe_code)]

use lb_api::pick::Draws;
use lb_api::{Balancer, BuildCx, BuildError, Live, Next, NextCx, Request, Rng, WEIGHT_ONE, export_balancer};

/// Draws before the weights are added up instead. A fit is likelier than not unless the tried ones have most of the
/// weight.
const DRAWS: u32 = 8;

/// The instance for one cluster.
#[derive(Debug)]
pub struct Random {
    endpoints: Box<[Live]>,
    draws: Draws,
}

impl Balancer for Random {
    const ID: &'static str = "random";
    const SUMMARY: &'static str = "a weighted draw for each request";
    type Settings = ();
    type Trylist = ();

    fn build(cx: &BuildCx<'_, Self>, (): ()) -> Result<Self, BuildError> {
        let endpoints = cx.endpoints().live();
        Ok(Self { draws: Draws::new(cx.cluster(), &endpoints), endpoints })
    }

    #[inline]
    fn load_balance(&self, _: &Request<'_>) {}

    #[inline]
    fn next(&self, (): &mut (), cx: &NextCx<'_>) -> Next {
        self.draws.refresh(&self.endpoints);
        let mut rng = cx.rng();
        for _ in 0..DRAWS {
            match self.draws.draw(&mut rng) {
                Some(endpoint) if self.fits(endpoint, cx) => return Next::Endpoint(endpoint),
                Some(_) => {}
                None => break,
            }
        }
        self.add_up(&mut rng, cx)
    }

    fn explain(&self, (): &()) -> Option<String> {
        let available = || self.endpoints.iter().filter(|live| live.is_available());
        let total: u64 = available().map(|live| u64::from(live.effective_weight())).sum();
        let total = total as f64 / f64::from(WEIGHT_ONE);
        Some(format!(
            "drawn by weight from {} endpoints with a weight of {total} in all",
            available().count()
        ))
    }
}

impl Random {
    #[inline]
    fn fits(&self, endpoint: usize, cx: &NextCx<'_>) -> bool {
        !cx.tried(endpoint) && self.endpoints[endpoint].is_available()
    }

    /// A draw among all that fit, and if none has any weight, the first of them.
    #[cold]
    fn add_up(&self, rng: &mut Rng, cx: &NextCx<'_>) -> Next {
        let fitting = || (0..self.endpoints.len()).filter(|idx| self.fits(*idx, cx));
        let weight = |idx: usize| u64::from(self.endpoints[idx].effective_weight());
        let mut left = rng.below(fitting().map(weight).sum());
        let drawn = fitting().find(|idx| match left.checked_sub(weight(*idx)) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        });
        // Weights may have changed between adding up and drawing.
        drawn.or_else(|| fitting().next()).map_or(Next::Exhausted, Next::Endpoint)
    }
}

export_balancer!(Random);

#[cfg(test)]
mod tests {
    use lb_api::State;
    use lb_api::testkit::{Contract, FakeCluster, FakeRequest};

    use super::*;

    #[test]
    fn keeps_the_contract() {
        // The smallest share is 1 of 40: 500 of 20,000 draws, whose standard deviation is 22. Four of these are 18 %.
        Contract::<Random>::new().skips_unavailable().weighted(0.18).check();
    }

    #[test]
    fn draws_the_same_for_the_same_random_numbers() {
        let cluster = FakeCluster::weighted(&[5, 1, 1]);
        let balancer = cluster.balancer::<Random>().build().unwrap();
        cluster.seed(1);
        let first = balancer.sequence(30);
        cluster.seed(1);
        assert_eq!(balancer.sequence(30), first);
        assert_eq!(first[..12], [0, 0, 0, 0, 0, 0, 0, 2, 2, 0, 0, 0]);
    }

    #[test]
    fn says_what_it_drew_from() {
        let cluster = FakeCluster::weighted(&[5, 1, 2]);
        cluster.set_effective_weight(1, WEIGHT_ONE / 2);
        cluster.set_state(2, State::Down);
        let balancer = cluster.balancer::<Random>().build().unwrap();
        let mut trylist = balancer.load_balance(FakeRequest::get("/"));
        assert_eq!(trylist.explain(), "drawn by weight from 2 endpoints with a weight of 5.5 in all");
    }

    #[test]
    fn shares_are_within_four_standard_deviations() {
        const DRAWS: usize = 100_000;
        let weights = [1, 2, 3, 4, 10, 100];
        let counts =
            FakeCluster::weighted(&weights).balancer::<Random>().build().unwrap().distribution(DRAWS);
        for (weight, count) in weights.iter().zip(counts) {
            let p = f64::from(*weight) / 120.0;
            let (mean, deviation) = (DRAWS as f64 * p, (DRAWS as f64 * p * (1.0 - p)).sqrt());
            assert!((count as f64 - mean).abs() < 4.0 * deviation, "weight {weight}: {count}, mean {mean}");
        }
    }

    #[test]
    fn a_second_try_is_drawn_by_weight_among_the_others() {
        let cluster = FakeCluster::weighted(&[90, 6, 3, 1]);
        let balancer = cluster.balancer::<Random>().build().unwrap();
        let mut counts = [0_i32; 4];
        for _ in 0..20_000 {
            let mut trylist = balancer.load_balance(FakeRequest::get("/"));
            trylist.mark_tried(0);
            let Next::Endpoint(endpoint) = trylist.next() else { panic!("three are left") };
            counts[endpoint] += 1;
        }
        assert_eq!(counts[0], 0);
        for (endpoint, expected) in [(1, 12_000), (2, 6_000), (3, 2_000)] {
            let off = counts[endpoint] - expected;
            // Four standard deviations at most: sqrt(20,000 · 0.6 · 0.4) is 69.
            assert!(off.abs() < 280, "{counts:?}");
        }
    }

    #[test]
    fn an_endpoint_of_weight_0_is_the_last_resort() {
        let cluster = FakeCluster::equal(3);
        cluster.set_effective_weight(1, 0);
        let balancer = cluster.balancer::<Random>().build().unwrap();
        assert_eq!(balancer.distribution(1000)[1], 0);
        assert_eq!(balancer.load_balance(FakeRequest::get("/")).all().last(), Some(&1));
        cluster.set_state(0, State::Down);
        cluster.set_state(2, State::Down);
        assert_eq!(balancer.distribution(10), [0, 10, 0]);
        cluster.set_effective_weight(1, WEIGHT_ONE);
        cluster.set_state(2, State::Available);
        let counts = balancer.distribution(1000);
        assert!(counts[0] == 0 && counts[1] > 400 && counts[2] > 400, "{counts:?}");
    }
}
