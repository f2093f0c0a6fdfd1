//! Bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2016), in the numbers of HAProxy's `hash-balance-factor`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::{ArcSwap, Guard};
use lb_api::{Cluster, Live};

/// How much each server may have on its way.
#[derive(Debug)]
pub(crate) struct Bound {
    /// Percent of its share that a server may have.
    factor: u64,
    /// Requests on their way.
    open: Arc<AtomicU64>,
    shares: ArcSwap<Shares>,
}

/// The available servers side by side by effective weight, as of one epoch.
#[derive(Debug)]
pub(crate) struct Shares {
    epoch: u64,
    /// Where each server ends.
    ends: Box<[u64]>,
}

/// A request on its way. Counted from its beginning to its drop, whatever happens to it.
#[derive(Debug)]
pub(crate) struct Open(Arc<AtomicU64>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Bound {
    /// Goes on counting where the previous one does: its requests are still on their way.
    pub(crate) fn new(factor: u64, previous: Option<&Self>) -> Self {
        let open = previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.open));
        let shares = Shares { epoch: u64::MAX, ends: Box::default() };
        Self { factor, open, shares: ArcSwap::from_pointee(shares) }
    }

    /// Counts a request.
    pub(crate) fn open(&self) -> Open {
        self.open.fetch_add(1, Relaxed);
        Open(Arc::clone(&self.open))
    }

    /// Brings the shares up to date.
    #[inline]
    pub(crate) fn refresh(&self, cluster: Cluster, lives: impl Iterator<Item = Live>) {
        let epoch = cluster.epoch();
        if self.shares.load().epoch == epoch {
            return;
        }
        let mut end = 0;
        let ends = lives.map(|live| {
            end += if live.is_available() { u64::from(live.effective_weight()) } else { 0 };
            end
        });
        self.shares.store(Arc::new(Shares { epoch, ends: ends.collect() }));
    }

    /// What servers have room for now.
    pub(crate) fn room(&self) -> Room {
        // HAProxy counts the request itself on top, which is among the open ones here.
        let slots = (self.open.load(Relaxed) * self.factor).div_ceil(100);
        Room { slots, shares: self.shares.load() }
    }
}

/// What servers may have on their way, as of one moment.
pub(crate) struct Room {
    slots: u64,
    shares: Guard<Arc<Shares>>,
}

impl Room {
    /// Whether this server has room for one more.
    #[inline]
    pub(crate) fn is_for(&self, server: usize, live: Live) -> bool {
        u64::from(live.in_flight()) < self.shares.slots(server, self.slots)
    }
}

impl Shares {
    /// This server's part of so many slots, at least one. All parts together are all slots: HAProxy divides the weight
    /// by the sum of all, and gives what is left by where the server begins and ends.
    fn slots(&self, server: usize, slots: u64) -> u64 {
        let end_of = |server: usize| self.ends.get(server).copied().unwrap_or(0);
        let (begin, end) = (server.checked_sub(1).map_or(0, end_of), end_of(server));
        let whole = u128::from(self.ends.last().copied().unwrap_or(0).max(1));
        let up_to = |place: u64| (u128::from(place) * u128::from(slots) / whole) as u64;
        (up_to(end) - up_to(begin)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use lb_api::Rng;

    use super::*;

    /// HAProxy's own form of it.
    fn haproxy(weights: &[u64], server: usize, tot: u64) -> u64 {
        let (weight, whole) = (weights[server], weights.iter().sum::<u64>());
        let before: u64 = weights[..server].iter().sum();
        let mut slots = weight * (tot / whole);
        let rest = tot % whole;
        slots += (before + weight) * rest / whole - before * rest / whole;
        slots.max(1)
    }

    #[test]
    fn gives_the_slots_that_haproxy_gives() {
        let mut rng = Rng::new(9);
        for _ in 0..2000 {
            let weights: Vec<u64> = (0..1 + rng.below(12)).map(|_| 1 + rng.below(256)).collect();
            let mut end = 0;
            let ends = weights.iter().map(|weight| {
                end += weight;
                end
            });
            let shares = Shares { epoch: 0, ends: ends.collect() };
            let slots = rng.below(5000);
            for server in 0..weights.len() {
                assert_eq!(
                    shares.slots(server, slots),
                    haproxy(&weights, server, slots),
                    "{weights:?} {slots}"
                );
            }
        }
    }
}
