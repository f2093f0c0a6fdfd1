//! Random bits for balancing and jitter, and nothing that has to be secret.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};

/// A source of uniform bits (SplitMix64), begun differently each time.
#[derive(Debug)]
pub(crate) struct Random(Cell<u64>);

impl Random {
    /// A new one.
    pub(crate) fn new() -> Self {
        Self(Cell::new(RandomState::new().hash_one(0)))
    }

    /// The next 64 bits.
    #[inline]
    pub(crate) fn next(&self) -> u64 {
        let state = self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// A number from 0 up to, but not, 1, made of random bits.
pub(crate) fn fraction(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fractions_stay_below_one() {
        assert_eq!(fraction(0), 0.0);
        assert!(fraction(u64::MAX) < 1.0);
        let random = Random::new();
        let mean = (0..10_000).map(|_| fraction(random.next())).sum::<f64>() / 10_000.0;
        // Ten standard deviations of the mean.
        assert!((mean - 0.5).abs() < 0.03, "{mean}");
    }
}
