//! Scores of key and server, in Envoy's arithmetic, and the highest of many.
//!
//! With a hash of key and server as `u` between 0 and 1, a server of weight `w` has the score `-w / ln u`: the highest
//! of these is each server's with a probability by weight (Thaler and Ravishankar, 1998; Schindelhauer and Schomaker,
//! 2005). A division and a logarithm for each server would take most of the time, and are not needed: `-ln u` is never
//! less than `1 - u`, so that a server with `w <= best · (1 - u)` cannot win. Of `n` servers only about `ln n` get
//! further.

use std::f64::consts::LN_2;

/// A little below 1, for what the logarithm below is off by and what rounding adds: such a server is computed in vain.
const MARGIN: f64 = 0.999;

/// The bits of key and server that the score is made of, as a number from 0 to 1 (xorshift*; Marsaglia 2003, Vigna
/// 2016).
#[inline]
fn mixed(key: u64, server: u64) -> f64 {
    let mut x = key ^ server;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    x = x.wrapping_mul(2_685_821_657_736_338_717);
    (x & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
}

/// The score of this number at this weight.
fn score(u: f64, weight: f64) -> f64 {
    -weight / (log2(u) * LN_2)
}

/// Envoy's logarithm: a fraction of two polynomials for numbers near 1, and the exponent. Off by less than one part in
/// a thousand; but it is the same, and so are the choices.
fn log2(x: f64) -> f64 {
    let bits = x.to_bits();
    let (exponent, mantissa) = (bits >> 52 & 0x7ff, bits & ((1 << 52) - 1));
    // So that the number near 1 is from 0.75 to 1.5.
    let near = 1023 ^ mantissa >> 51;
    let t = f64::from_bits(near << 52 | mantissa) - 1.0;
    exponent as f64 - near as f64 + t * (0.338_953 * t + 2.198_599) / (t + 1.523_692)
}

/// The server with the highest score for this key, the first of equals, among those that `fits` accepts. It is asked
/// only about those that would win so far. A weight of 0 has no score.
#[inline]
pub(crate) fn highest(
    key: u64,
    servers: impl Iterator<Item = (u64, u32)>,
    fits: impl Fn(usize) -> bool,
) -> Option<usize> {
    let (mut best, mut most) = (None, 0.0);
    for (server, (hash, weight)) in servers.enumerate() {
        let (u, weight) = (mixed(key, hash), f64::from(weight));
        if weight > most * (1.0 - u) * MARGIN {
            let score = score(u, weight);
            if score > most && fits(server) {
                (best, most) = (Some(server), score);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use lb_api::Rng;

    use super::*;

    /// Envoy's own way: the score of every server, with weights as parts of their sum.
    fn envoy(key: u64, servers: &[(u64, u32)]) -> usize {
        let sum: f64 = servers.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let score = |(hash, weight): (u64, u32)| {
            let mut x = key ^ hash;
            x ^= x >> 12;
            x ^= x << 25;
            x ^= x >> 27;
            let x = x.wrapping_mul(2_685_821_657_736_338_717) & 0x001f_ffff_ffff_ffff;
            let normalized = x as f64 * (1.0 / 9_007_199_254_740_992.0);
            let bits = normalized.to_bits();
            let exponent = (bits & 0x7ff << 52) >> 52;
            let mantissa = bits & 0x000f_ffff_ffff_ffff;
            let new_exponent = 1023 ^ (mantissa >> 51);
            let t = f64::from_bits(new_exponent << 52 | mantissa) - 1.0;
            let approx = t * (0.338953 * t + 2.198599) / (t + 1.523692);
            let log2 = (exponent as f64 - new_exponent as f64) + approx;
            -(f64::from(weight) / sum) / (log2 * LN_2)
        };
        let mut best = 0;
        for server in 1..servers.len() {
            if score(servers[server]) > score(servers[best]) {
                best = server;
            }
        }
        best
    }

    #[test]
    fn is_the_highest_score_of_all() {
        let mut rng = Rng::new(13);
        for round in 0..20_000 {
            let most = [1, 2, 100, u32::MAX.into()][round % 4];
            let servers: Vec<_> =
                (0..1 + rng.below(60)).map(|_| (rng.bits(), 1 + rng.below(most) as u32)).collect();
            let key = rng.bits();
            assert_eq!(highest(key, servers.iter().copied(), |_| true), Some(envoy(key, &servers)));
        }
    }

    #[test]
    fn the_short_cut_never_cuts_a_winner() {
        let mut rng = Rng::new(17);
        let bound = |u: f64| assert!(-log2(u) * LN_2 >= (1.0 - u) * MARGIN, "{u}");
        (0..1_000_000).map(|_| rng.bits() as f64 / 2_f64.powi(64)).filter(|u| *u < 1.0).for_each(bound);
        // Near both ends too.
        (1..=1_000_000_u64).map(|n| 1.0 - n as f64 / 2_f64.powi(53)).for_each(bound);
        (0..=1_000_000_u64).map(|n| n as f64 / 2_f64.powi(53)).for_each(bound);
    }

    #[test]
    fn who_does_not_fit_is_passed_over_for_the_second_highest() {
        let mut rng = Rng::new(19);
        for _ in 0..1000 {
            let mut servers: Vec<_> = (0..20).map(|_| (rng.bits(), 1 + rng.below(9) as u32)).collect();
            let key = rng.bits();
            let first = highest(key, servers.iter().copied(), |_| true).unwrap();
            let second = highest(key, servers.iter().copied(), |server| server != first).unwrap();
            servers[first].1 = 0;
            assert_eq!(highest(key, servers.iter().copied(), |_| true), Some(second));
        }
    }

    #[test]
    fn without_weights_there_is_no_score() {
        assert_eq!(highest(1, [(2, 0), (3, 0)].into_iter(), |_| true), None);
    }
}
