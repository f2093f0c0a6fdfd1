//! Smooth weighted round robin, one choice after the other, exactly as nginx makes them.
//!
//! nginx (`ngx_http_upstream_round_robin.c`) keeps a current weight for every peer, at first 0. For each choice it adds
//! to each its weight, takes the peer with the largest, the first of equals, and takes the sum of all weights off that
//! one. A scan of all peers for each choice; but peers of equal weight are chosen in turn, because all that tells their
//! current weights apart is how often each was chosen. So it suffices to compare one candidate of each weight, and a
//! choice costs as many steps as there are *different* weights.

/// The generator: endless, and back at its beginning after [`period`](Self::period) choices.
#[derive(Clone, Debug)]
pub(crate) struct Smooth {
    classes: Vec<Class>,
    /// Sum of all weights.
    total: i64,
}

/// The endpoints of one weight.
#[derive(Clone, Debug)]
struct Class {
    weight: i64,
    /// In ascending order.
    members: Vec<u32>,
    /// Index of the member whose turn it is.
    turn: usize,
    /// Current weight of the member whose turn it is, and of those behind it.
    current: i64,
}

impl Smooth {
    /// Over these endpoints with their weights, in ascending order. A weight of 0 is never chosen.
    pub(crate) fn new(weights: impl Iterator<Item = (u32, u32)>) -> Self {
        let mut weighted: Vec<(u32, u32)> = weights.filter(|(_, weight)| *weight > 0).collect();
        let divisor = weighted.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
        // Stable, so that members stay in ascending order.
        weighted.sort_by_key(|(_, weight)| *weight);
        let classes: Vec<Class> = weighted
            .chunk_by(|a, b| a.1 == b.1)
            .map(|class| Class {
                weight: i64::from(class[0].1 / divisor),
                members: class.iter().map(|(endpoint, _)| *endpoint).collect(),
                turn: 0,
                current: 0,
            })
            .collect();
        let total = classes.iter().map(|class| class.weight * class.members.len() as i64).sum();
        Self { classes, total }
    }

    /// After so many choices it begins again.
    pub(crate) fn period(&self) -> u64 {
        self.total as u64
    }

    /// How many comparisons a choice takes.
    pub(crate) fn n_classes(&self) -> u64 {
        self.classes.len() as u64
    }
}

impl Iterator for Smooth {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let mut best: Option<(i64, u32, usize)> = None;
        for (idx, class) in self.classes.iter_mut().enumerate() {
            class.current += class.weight;
            let endpoint = class.members[class.turn];
            if best.is_none_or(|(current, first, _)| (class.current, first) > (current, endpoint)) {
                best = Some((class.current, endpoint, idx));
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
