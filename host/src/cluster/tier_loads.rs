//! The share of new requests that each tier gets with `spill = "health"`, by the numbers of Envoy's priority levels.
//!
//! A tier's health is 1.4 times the percentage of its servers that are available, at most 100: with 71 % it still takes all. What it
//! cannot take goes to the next tier. Where all tiers together have less than 100, each gets its part of what there is. All of it in
//! integers; what rounding leaves over is the first tier's.
//!
//! | available, % | share, % |
//! |---|---|
//! | 100 / 100 | 100, 0 |
//! | 71 / 71 | 99, 1 |
//! | 50 / 50 | 70, 30 |
//! | 25 / 100 | 35, 65 |
//! | 25 / 25 / 100 | 35, 35, 30 |
//! | 25 / 25 / 20 | 37, 35, 28 |
//!
//! Source: Envoy, "Priority levels" (`LoadBalancerBase::recalculatePerPriorityState`).

/// In percent: a tier with this part of its servers missing is not yet short of them.
const OVERPROVISIONING: u64 = 140;

/// How many servers of a tier are available, and how many it has.
pub(crate) type TierHealth = (u32, usize);

/// The share of each tier in percent, in their order; together 100. `None` where no server is available. Costs two passes.
pub(crate) fn loads(
    tiers: impl Iterator<Item = TierHealth> + Clone,
) -> Option<impl Iterator<Item = u64> + Clone> {
    let health = tiers.map(|(n_available, n_servers)| {
        // A tier has servers, or is none.
        let health = OVERPROVISIONING * u64::from(n_available) / (n_servers as u64).max(1);
        health.min(100)
    });
    let total = health.clone().sum::<u64>().min(100);
    if total == 0 {
        return None;
    }
    let shares = health.scan(100, move |left, health| {
        let share = (health * 100 / total).min(*left);
        *left -= share;
        Some(share)
    });
    let mut rest = 100 - shares.clone().sum::<u64>();
    Some(shares.map(move |share| if share > 0 { share + std::mem::take(&mut rest) } else { 0 }))
}

/// The tier of one request; `draw` is uniform, or the request's hash. `None` where no server is available.
pub(crate) fn tier_of(tiers: impl Iterator<Item = TierHealth> + Clone, draw: u64) -> Option<usize> {
    // The high bits, by a product: a remainder would favour small numbers.
    let mut draw = ((u128::from(draw) * 100) >> 64) as u64;
    loads(tiers)?.position(|share| {
        let is_it = draw < share;
        draw = draw.saturating_sub(share);
        is_it
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(available: &[u32]) -> Vec<u64> {
        loads(available.iter().map(|n| (*n, 100))).map(Iterator::collect).unwrap_or_default()
    }

    /// The first five of Envoy's documentation, the others by hand.
    #[test]
    fn shares_are_those_of_envoy() {
        assert_eq!(of(&[71, 71]), [99, 1]);
        assert_eq!(of(&[50, 50]), [70, 30]);
        assert_eq!(of(&[25, 100]), [35, 65]);
        assert_eq!(of(&[25, 25, 100]), [35, 35, 30]);
        assert_eq!(of(&[25, 25, 20]), [37, 35, 28]);
        assert_eq!(of(&[72, 100]), [100, 0]);
        assert_eq!(of(&[0, 100]), [0, 100]);
        assert_eq!(of(&[0, 1, 1]), [0, 50, 50]);
        assert_eq!(of(&[0, 1, 2]), [0, 34, 66]);
        assert!(of(&[0, 0]).is_empty(), "nobody is available");
    }

    #[test]
    fn draws_fall_into_the_shares() {
        let mut counts = [0; 3];
        for n in 0..100_u64 {
            let draw = n * (u64::MAX / 100) + u64::MAX / 200;
            counts[tier_of([(25, 100), (25, 100), (20, 100)].into_iter(), draw)
                .expect("some are available")] += 1;
        }
        assert_eq!(counts, [37, 35, 28]);
    }

    /// All clusters of three tiers with up to six servers each.
    #[test]
    fn every_request_has_a_tier_with_servers() {
        let of_one = || (1..=6).flat_map(|n_servers| (0..=n_servers).map(move |n| (n, n_servers as usize)));
        let draws = (0..=16).map(|n| (u64::MAX / 16) * n);
        for a in of_one() {
            for (b, c) in of_one().flat_map(|b| of_one().map(move |c| (b, c))) {
                let tiers = [a, b, c];
                if tiers.iter().all(|(n_available, _)| *n_available == 0) {
                    assert!(loads(tiers.into_iter()).is_none());
                    continue;
                }
                assert_eq!(
                    loads(tiers.into_iter()).expect("some are available").sum::<u64>(),
                    100,
                    "{tiers:?}"
                );
                for draw in draws.clone() {
                    let tier = tier_of(tiers.into_iter(), draw).expect("some are available");
                    assert!(tiers[tier].0 > 0, "{tiers:?}");
                }
            }
        }
    }
}
