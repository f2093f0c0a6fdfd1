//! Bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2016), in the numbers of HAProxy's `hash-balance-factor`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use lb_api::pick::{Epoch, Servers};
use lb_api::{Cluster, Live};

/// How much each server may have on its way.
#[derive(Debug)]
pub(crate) struct Bound {
    /// Percent of its share that a server may have.
    factor: u64,
    /// Requests on their way.
    open: Arc<AtomicU64>,
    /// The available servers side by side by effective weight: where each ends.
    ends: Box<[AtomicU64]>,
    /// Of the ends.
    epoch: Epoch,
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
    pub(crate) fn new(factor: u64, cluster: Cluster, servers: &Servers, previous: Option<&Self>) -> Self {
        let bound = Self {
            factor,
            open: previous.map_or_else(Arc::default, |previous| Arc::clone(&previous.open)),
            ends: (0..servers.len()).map(|_| AtomicU64::new(0)).collect(),
            epoch: Epoch::new(cluster),
        };
        bound.part(servers);
        bound
    }

    /// Counts a request.
    pub(crate) fn open(&self) -> Open {
        self.open.fetch_add(1, Relaxed);
        Open(Arc::clone(&self.open))
    }

    /// Room of the servers now.
    #[inline]
    pub(crate) fn room(&self, servers: &Servers) -> Room<'_> {
        self.epoch.follow(|| self.part(servers));
        // HAProxy counts the request itself on top, which is among the open ones here.
        let slots = (self.open.load(Relaxed) * self.factor).div_ceil(100);
        Room { slots, ends: &self.ends }
    }

    fn part(&self, servers: &Servers) {
        let mut end = 0;
        for (server, place) in self.ends.iter().enumerate() {
            let live = servers.live(server);
            end += if live.is_available() { u64::from(live.effective_weight()) } else { 0 };
            place.store(end, Relaxed);
        }
    }
}

/// Bounds of the servers' requests in flight, as of one moment.
pub(crate) struct Room<'a> {
    slots: u64,
    ends: &'a [AtomicU64],
}

impl Room<'_> {
    /// Whether this server has room for one more.
    #[inline]
    pub(crate) fn is_for(&self, server: usize, live: Live) -> bool {
        // Each has room for one, which need not be reckoned.
        let in_flight = u64::from(live.in_flight());
        in_flight == 0 || in_flight < self.of(server)
    }

    /// This server's part of the slots, at least one. All parts together are all slots: HAProxy divides the weight by
    /// the sum of all, and gives what is left by where the server begins and ends.
    fn of(&self, server: usize) -> u64 {
        let end_of = |server: usize| self.ends.get(server).map_or(0, |end| end.load(Relaxed));
        let whole = end_of(self.ends.len().wrapping_sub(1)).max(1);
        let up_to = |place: u64| match place.checked_mul(self.slots) {
            Some(product) => product / whole,
            None => (u128::from(place) * u128::from(self.slots) / u128::from(whole)) as u64,
        };
        // While the ends are replaced, one may be before that of the server before it.
        up_to(end_of(server)).saturating_sub(up_to(end_of(server.wrapping_sub(1)))).max(1)
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
            // Also with products that are too large for 64 bits.
            let scale = 1 << rng.below(44);
            let mut end = 0;
            let ends = weights.iter().map(|weight| {
                end += weight * scale;
                AtomicU64::new(end)
            });
            let ends: Vec<_> = ends.collect();
            let slots = rng.below(5000);
            let room = Room { slots, ends: &ends };
            for server in 0..weights.len() {
                assert_eq!(room.of(server), haproxy(&weights, server, slots), "{weights:?} {slots} {scale}");
            }
        }
    }
}
