//! Shares of keys for modules that hash. An endpoint takes the part of its keys that its effective weight is of its configured
//! weight, from which its place was made.
//!
//! The live numbers of an endpoint fill a cache line of their own, which is rarely cached among thousands of endpoints. So a
//! choice reads one word of a table instead. The first request that finds a newer epoch rebuilds the table; the others use the
//! old one meanwhile.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::{BuildCx, Endpoint, Live};

use super::epoch::Epoch;

/// The endpoints of a balancer that hashes.
#[derive(Debug)]
pub struct Servers {
    lives: Box<[Live]>,
    /// As configured, in the fixed point of [`Live::effective_weight`].
    weights: Box<[u32]>,
    /// Number of the 2^32 hashes that each takes; none if it is unavailable.
    shares: Box<[AtomicU64]>,
    /// Of the shares.
    epoch: Epoch,
}

impl Servers {
    /// All endpoints of a balancer. O(servers).
    pub fn new<B>(cx: &BuildCx<'_, B>) -> Self {
        let endpoints = cx.endpoints();
        let servers = Self {
            epoch: Epoch::new(cx.cluster()),
            lives: endpoints.live(),
            weights: endpoints.iter().map(Endpoint::weight).map(|weight| weight << 16).collect(),
            shares: endpoints.iter().map(|_| AtomicU64::new(0)).collect(),
        };
        servers.make();
        servers
    }

    /// Brings the shares up to date.
    #[inline]
    pub fn refresh(&self) {
        self.epoch.follow(|| self.make());
    }

    /// Whether this endpoint takes requests of this hash. A larger effective weight takes all hashes that a smaller one takes, so
    /// slow start gives back the same keys one after the other.
    #[inline]
    pub fn takes(&self, server: usize, hash: u32) -> bool {
        u64::from(scattered(hash)) < self.shares[server].load(Relaxed)
    }

    /// Number of endpoints.
    #[inline]
    pub fn len(&self) -> usize {
        self.lives.len()
    }

    /// Whether there is none; a cluster has at least one.
    pub fn is_empty(&self) -> bool {
        self.lives.is_empty()
    }

    /// The live numbers of this endpoint.
    #[inline]
    pub fn live(&self, server: usize) -> Live {
        self.lives[server]
    }

    fn make(&self) {
        for ((share, live), weight) in self.shares.iter().zip(&self.lives).zip(&self.weights) {
            let effective = if live.is_available() { live.effective_weight() } else { 0 };
            share.store(share_of(effective, *weight), Relaxed);
        }
    }
}

/// Number of all hashes for an effective weight, given the configured one.
fn share_of(effective: u32, weight: u32) -> u64 {
    (u64::from(effective) << 32).div_ceil(u64::from(weight.max(1))).min(1 << 32)
}

/// Other bits than those that chose the place (the end of MurmurHash3, which spreads every bit over all).
#[inline]
fn scattered(mut hash: u32) -> u32 {
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use crate::Rng;

    use super::*;

    #[test]
    fn a_share_is_the_part_that_the_effective_weight_is() {
        assert_eq!(share_of(0, 1 << 16), 0);
        assert_eq!(share_of(1 << 15, 1 << 16), 1 << 31);
        assert_eq!([1 << 16, u32::MAX].map(|effective| share_of(effective, 1 << 16)), [1 << 32; 2]);
        let mut rng = Rng::new(1);
        for _ in 0..100_000 {
            let weight = (1 + rng.below(65_535) as u32) << 16;
            let effective = rng.below(u64::from(weight) * 5 / 4) as u32;
            let near = share_of(effective, weight).wrapping_add(rng.below(5)).wrapping_sub(2) as u32;
            for hash in [near, rng.bits() as u32, u32::MAX, 0] {
                let part = (u64::from(hash) * u64::from(weight)) >> 32;
                let expected = effective >= weight || part < u64::from(effective);
                assert_eq!(
                    u64::from(hash) < share_of(effective, weight),
                    expected,
                    "{effective} of {weight}"
                );
            }
        }
    }
}
