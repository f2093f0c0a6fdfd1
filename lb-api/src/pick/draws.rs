//! Weighted draws among the available endpoints: one look into a table that follows the cluster's epoch.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::{Cluster, Live, Rng};

use super::alias::{self, Slot};
use super::epoch::Epoch;

/// The table. Reading it takes no lock and writes nothing.
#[derive(Debug)]
pub struct Draws {
    /// Of the slots.
    epoch: Epoch,
    /// One for each endpoint.
    slots: Box<[AtomicU64]>,
    /// Whether there is any weight to draw from.
    drawable: AtomicBool,
}

impl Draws {
    /// A table over these endpoints. O(endpoints).
    pub fn new(cluster: Cluster, endpoints: &[Live]) -> Self {
        let draws = Self {
            epoch: Epoch::new(cluster),
            slots: endpoints.iter().map(|_| AtomicU64::new(0)).collect(),
            drawable: AtomicBool::new(false),
        };
        draws.make(endpoints);
        draws
    }

    /// Rebuilds the table if an endpoint's state or weight has changed. One thread rebuilds it; the others use the old one.
    #[inline]
    pub fn refresh(&self, endpoints: &[Live]) {
        self.epoch.follow(|| self.make(endpoints));
    }

    /// Draws an endpoint by weight; `None` if no available endpoint has a weight.
    #[inline]
    pub fn draw(&self, rng: &mut Rng) -> Option<usize> {
        if !self.drawable.load(Relaxed) {
            return None;
        }
        let own = rng.below(self.slots.len() as u64) as usize;
        // Other bits than those that picked the slot.
        Some(Slot(self.slots[own].load(Relaxed)).draw(own, rng.bits() as u32))
    }

    fn make(&self, endpoints: &[Live]) {
        let weight = |live: &Live| if live.is_available() { live.effective_weight() } else { 0 };
        let table = alias::table(endpoints.iter().map(weight));
        self.drawable.store(table.is_some(), Relaxed);
        for (slot, made) in self.slots.iter().zip(table.iter().flatten()) {
            slot.store(made.0, Relaxed);
        }
    }
}
