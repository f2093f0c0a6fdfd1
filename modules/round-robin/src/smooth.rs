//! Smooth weighted round robin, one choice after the other, exactly as nginx makes them.
//!
//! nginx (`ngx_http_upstream_round_robin.c`) keeps a current weight for every peer, at first 0. For each choice it adds
//! to each its weight, takes the peer with the largest, the first of equals, and takes the sum of all weights off that
//! one. A scan of all peers for each choice; but peers of equal weight are chosen in turn, because all that tells their
//! current weights apart is how often each was chosen. So it suffices to compare one candidate of each weight, and a
//! choice costs as many steps as there are *different* weights.
//!
//! A sequence can go on where another one stood, with other endpoints or weights. An endpoint then begins with its *credit*: the
//! current weight that it had, as a part of the sum of all weights. The members of a class take turns in the order of their
//! credits, which at most one whole turn parts.

use crate::peers::Peers;

/// The generator: endless, and back at its beginning after [`period`](Self::period) choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Smooth {
    classes: Vec<Class>,
    /// Sum of all weights.
    total: i64,
    /// All weights are multiplied by this, so that credits are no fractions.
    scale: i64,
}

/// The endpoints of one weight.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Class {
    weight: i64,
    /// In the order of their turns.
    members: Vec<u32>,
    /// The initial credit of each, in descending order; empty at the beginning of a sequence.
    offsets: Vec<i64>,
    /// Index of the member whose turn it is.
    turn: usize,
    /// Current weight, without its offset, of the member whose turn it is, and of those behind it.
    current: i64,
}

/// Bits of the sum of all weights where endpoints begin with credits.
const SCALED_BITS: u32 = 40;

impl Smooth {
    /// Over these endpoints with their weights, in ascending order. A weight of 0 is never chosen.
    pub(crate) fn new(weights: impl Iterator<Item = (u32, u32)>) -> Self {
        Self::unscaled(weights)
    }

    /// The same with a credit for each endpoint of the cluster, those without a weight included.
    pub(crate) fn going_on(weights: impl Iterator<Item = (u32, u32)>, credits: &[f64]) -> Self {
        let credit = |endpoint: u32| credits.get(endpoint as usize).copied().unwrap_or(0.0);
        let mut smooth = Self::unscaled(weights);
        let mut members = smooth.classes.iter().flat_map(|class| &class.members);
        if members.all(|endpoint| credit(*endpoint) == 0.0) {
            return smooth;
        }
        // A server that left took a credit along, or left a debt, so the others' sum need not be zero.
        let members = smooth.classes.iter().flat_map(|class| &class.members);
        let n_members = members.clone().count().max(1);
        let mean = members.map(|endpoint| credit(*endpoint)).sum::<f64>() / n_members as f64;
        smooth.scale = 1 << SCALED_BITS.saturating_sub(smooth.total.unsigned_abs().max(1).ilog2());
        smooth.total *= smooth.scale;
        let total = smooth.total;
        for class in &mut smooth.classes {
            class.weight *= smooth.scale;
            // Weights may have been greater, and turns would never make up for more than one.
            let offset =
                |endpoint: u32| ((credit(endpoint) - mean).clamp(-1.0, 1.0) * total as f64).round() as i64;
            let mut begin: Vec<(i64, u32)> =
                class.members.iter().map(|endpoint| (offset(*endpoint), *endpoint)).collect();
            begin.sort_by_key(|(offset, endpoint)| (std::cmp::Reverse(*offset), *endpoint));
            let most = begin.first().map_or(0, |(offset, _)| *offset);
            class.offsets = begin.iter().map(|(offset, _)| (*offset).max(most - total)).collect();
            class.members = begin.into_iter().map(|(_, endpoint)| endpoint).collect();
        }
        smooth
    }

    fn unscaled(weights: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut weighted: Vec<(u32, u32)> = weights.filter(|(_, weight)| *weight > 0).collect();
        let divisor = weighted.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
        // Stable, so that members stay in ascending order.
        weighted.sort_by_key(|(_, weight)| *weight);
        let classes: Vec<Class> = weighted
            .chunk_by(|a, b| a.1 == b.1)
            .map(|class| Class {
                weight: i64::from(class[0].1 / divisor),
                members: class.iter().map(|(endpoint, _)| *endpoint).collect(),
                offsets: Vec::new(),
                turn: 0,
                current: 0,
            })
            .collect();
        let total = classes.iter().map(|class| class.weight * class.members.len() as i64).sum();
        Self { classes, total, scale: 1 }
    }

    /// The same state in nginx's own form.
    pub(crate) fn peers(&self) -> Peers {
        let peers = self.classes.iter().flat_map(|class| {
            class.members.iter().enumerate().map(|(idx, endpoint)| {
                let taken = if idx < class.turn { self.total } else { 0 };
                (*endpoint, class.weight, class.current + class.offset(idx) - taken)
            })
        });
        Peers::standing(peers, self.scale)
    }

    /// How many endpoints there are.
    pub(crate) fn len(&self) -> u64 {
        self.classes.iter().map(|class| class.members.len() as u64).sum()
    }

    /// After so many choices it begins again.
    pub(crate) fn period(&self) -> u64 {
        (self.total / self.scale).unsigned_abs()
    }

    /// How many comparisons a choice takes.
    pub(crate) fn n_classes(&self) -> u64 {
        self.classes.len() as u64
    }
}

impl Class {
    #[inline]
    fn offset(&self, idx: usize) -> i64 {
        self.offsets.get(idx).copied().unwrap_or(0)
    }
}

impl Iterator for Smooth {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let mut best: Option<(i64, u32, usize)> = None;
        for (idx, class) in self.classes.iter_mut().enumerate() {
            class.current += class.weight;
            let endpoint = class.members[class.turn];
            let its = class.current + class.offset(class.turn);
            if best.is_none_or(|(current, first, _)| (its, first) > (current, endpoint)) {
                best = Some((its, endpoint, idx));
            }
        }
        let (_, endpoint, idx) = best?;
        let class = &mut self.classes[idx];
        class.turn += 1;
        if class.turn == class.members.len() {
            // All members were chosen equally often again, so that the sum comes off the next one's too.
            class.turn = 0;
            class.current -= self.total;
        }
        Some(endpoint)
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use lb_api::Rng;

    use super::*;

    /// nginx's own way, word for word, without its health.
    struct Nginx(Vec<(i64, i64)>);

    impl Nginx {
        fn new(weights: &[u32]) -> Self {
            Self(weights.iter().map(|weight| (i64::from(*weight), 0)).collect())
        }

        fn next(&mut self) -> u32 {
            let (mut best, mut total) = (None, 0);
            for (idx, (weight, current)) in self.0.iter_mut().enumerate() {
                *current += *weight;
                total += *weight;
                if best.is_none_or(|(_, most)| *current > most) {
                    best = Some((idx, *current));
                }
            }
            let (idx, _) = best.expect("there are peers");
            self.0[idx].1 -= total;
            idx as u32
        }
    }

    fn smooth(weights: &[u32]) -> Smooth {
        Smooth::new(weights.iter().enumerate().map(|(idx, weight)| (idx as u32, *weight)))
    }

    #[test]
    fn chooses_as_nginx_does_whatever_the_weights() {
        let mut rng = Rng::new(7);
        for round in 0..500 {
            let n = 1 + rng.below(12) as usize;
            // Few different weights, many, and such as slow start makes.
            let most = [3, 10, 1 << 20][round % 3];
            let weights: Vec<u32> = (0..n).map(|_| 1 + rng.below(most) as u32).collect();
            let mut nginx = Nginx::new(&weights);
            for (at, endpoint) in smooth(&weights).take(500).enumerate() {
                assert_eq!(endpoint, nginx.next(), "choice {at} for weights {weights:?}");
            }
        }
    }

    #[test]
    fn goes_on_where_another_stood_and_gives_each_its_share_in_every_period() {
        let mut rng = Rng::new(3);
        for round in 0..300 {
            let n = 1 + rng.below(12) as usize;
            let most = [1, 3, 10][round % 3];
            let weights: Vec<u32> = (0..n).map(|_| 1 + rng.below(most) as u32).collect();
            let mut before = smooth(&weights);
            let passed = rng.below(3 * before.period()) as usize;
            before.by_ref().take(passed).for_each(drop);
            let credits = before.peers().credits(n);
            // Of the same weights it is the same sequence.
            let numbered = || (0..).zip(weights.iter().copied());
            let same = Smooth::going_on(numbered(), &credits);
            let period = same.period() as usize;
            assert_eq!(
                same.clone().take(period).collect::<Vec<_>>(),
                before.take(period).collect::<Vec<_>>()
            );
            // With one more, and other weights, each gets its share.
            let more: Vec<u32> = (0..=n).map(|_| 1 + rng.below(most) as u32).collect();
            let other = Smooth::going_on((0..).zip(more.iter().copied()), &credits);
            let mut had = vec![0_i64; n + 1];
            other.clone().take(3 * other.period() as usize).for_each(|endpoint| had[endpoint as usize] += 1);
            for (had, weight) in had.iter().zip(&more) {
                let share = 3 * i64::from(*weight) * other.period() as i64
                    / more.iter().map(|w| i64::from(*w)).sum::<i64>();
                assert!(had.abs_diff(share) <= 2, "{had} for {share}: {weights:?}, then {more:?}");
            }
        }
    }

    #[test]
    fn begins_again_after_its_period() {
        for weights in [&[5, 1, 1][..], &[4, 6, 2, 2], &[3], &[7, 7, 7], &[1, 2, 3, 4, 5]] {
            let smooth = smooth(weights);
            let period = smooth.period() as usize;
            let two: Vec<_> = smooth.take(2 * period).collect();
            assert_eq!(two[..period], two[period..], "{weights:?}");
        }
    }

    #[test]
    fn reduces_weights_before_it_counts_the_period() {
        assert_eq!(smooth(&[5 << 16, 1 << 16, 1 << 16]).period(), 7);
        assert_eq!(smooth(&[40; 10]).period(), 10);
        assert_eq!(smooth(&[0, 6, 3]).period(), 3);
    }

    #[test]
    fn without_weights_there_is_no_choice() {
        assert_eq!(smooth(&[]).next(), None);
        assert_eq!(smooth(&[0, 0]).next(), None);
    }
}
