//! Memory that modules may keep pointing to: slots are lent, given back and lent again, and never freed.
//!
//! A module may read an endpoint's counters through a pointer of its own, also when the endpoint has gone. Such a pointer then
//! finds a slot that says "down, weight 0, none in flight", or the numbers of another endpoint, but always memory of this kind.
//! Slots come back into use in the order in which they were given back, so that one rests as long as possible.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Deref;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lb_api::wire;

/// Slots that are made at once.
const CHUNK: usize = 64;

/// A kind of numbers that modules see.
pub(crate) trait Shared: Sync + 'static {
    /// Numbers that nobody uses.
    fn unused() -> Self;
    /// The owner has gone: says so to all who still look.
    fn retire(&self);
}

impl Shared for wire::Counters {
    fn unused() -> Self {
        Self {
            size: size_of::<Self>() as u32,
            state: AtomicU32::new(wire::STATE_DOWN),
            effective_weight: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            in_flight_older: AtomicU32::new(0),
            max_in_flight: AtomicU32::new(0),
            latency_ns: AtomicU64::new(0),
        }
    }

    fn retire(&self) {
        self.state.store(wire::STATE_DOWN, SeqCst);
        self.effective_weight.store(0, Relaxed);
        self.in_flight.store(0, Relaxed);
        self.in_flight_older.store(0, Relaxed);
        self.max_in_flight.store(0, Relaxed);
        self.latency_ns.store(0, Relaxed);
    }
}

impl Shared for wire::ClusterState {
    fn unused() -> Self {
        Self { size: size_of::<Self>() as u32, n_available: AtomicU32::new(0), epoch: AtomicU64::new(0) }
    }

    /// The epoch goes on, so that whoever still looks sees that something has changed.
    fn retire(&self) {
        self.n_available.store(0, SeqCst);
        self.epoch.fetch_add(1, SeqCst);
    }
}

/// A slot fills a cache line of its own, so that traffic of one endpoint does not slow down reading another's numbers.
#[repr(align(64))]
struct ArenaSlot<T>(T);

/// Slots of one kind, all that there ever were.
pub(crate) struct Arena<T: 'static> {
    unused: Mutex<VecDeque<&'static T>>,
}

/// A slot that is lent until this is dropped.
pub(crate) struct Lent<T: Shared> {
    slot: &'static T,
    arena: Arc<Arena<T>>,
}

impl<T: Shared> Arena<T> {
    /// Without slots yet.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { unused: Mutex::default() })
    }

    /// Lends the slot that has been unused for longest, or a new one.
    pub(crate) fn lend(self: &Arc<Self>) -> Lent<T> {
        let mut unused = self.unused();
        if unused.is_empty() {
            let chunk: &'static [ArenaSlot<T>] =
                (0..CHUNK).map(|_| ArenaSlot(T::unused())).collect::<Vec<_>>().leak();
            unused.extend(chunk.iter().map(|slot| &slot.0));
        }
        let slot = unused.pop_front().expect("a chunk was made");
        drop(unused);
        Lent { slot, arena: Arc::clone(self) }
    }

    fn unused(&self) -> MutexGuard<'_, VecDeque<&'static T>> {
        self.unused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Shared> Lent<T> {
    /// The slot, for a module: readable for the life of the process, and its owner's as long as this is not dropped.
    pub(crate) fn get(&self) -> &'static T {
        self.slot
    }
}

impl<T: Shared> Deref for Lent<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.slot
    }
}

impl<T: Shared> Drop for Lent<T> {
    fn drop(&mut self) {
        self.slot.retire();
        self.arena.unused().push_back(self.slot);
    }
}

impl<T> fmt::Debug for Arena<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").finish_non_exhaustive()
    }
}

impl<T: Shared + fmt::Debug> fmt::Debug for Lent<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.slot.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::ptr;

    use super::*;
    use crate::cluster::random::Random;

    #[test]
    fn no_slot_has_two_owners_whatever_comes_and_goes() {
        let (arena, random) = (Arena::<wire::Counters>::new(), Random::new());
        let mut owners: Vec<(u32, Lent<wire::Counters>)> = Vec::new();
        let mut seen = BTreeSet::new();
        for round in 1..20_000_u32 {
            let grows = owners.is_empty() || (owners.len() < 500 && random.next() % 2 == 0);
            if grows {
                let slot = arena.lend();
                assert_eq!(slot.in_flight.load(Relaxed), 0, "a slot begins unused");
                slot.in_flight.store(round, Relaxed);
                seen.insert(ptr::from_ref(slot.get()).addr());
                owners.push((round, slot));
            } else {
                let idx = usize::try_from(random.next()).unwrap_or(0) % owners.len();
                let (number, slot) = owners.swap_remove(idx);
                assert_eq!(slot.in_flight.load(Relaxed), number, "nobody else has written to it");
                let kept = slot.get();
                drop(slot);
                assert_eq!(kept.state.load(Relaxed), wire::STATE_DOWN);
                assert_eq!((kept.effective_weight.load(Relaxed), kept.in_flight.load(Relaxed)), (0, 0));
            }
        }
        assert!(seen.len() <= 500 + CHUNK, "{} slots for 500 owners", seen.len());
        for (number, slot) in &owners {
            assert_eq!(slot.in_flight.load(Relaxed), *number);
        }
    }

    #[test]
    fn the_slot_that_rested_longest_is_lent_first() {
        let arena = Arena::<wire::ClusterState>::new();
        let first = arena.lend();
        let at = first.get();
        drop(first);
        let others: Vec<_> = (1..CHUNK).map(|_| arena.lend()).collect();
        assert!(others.iter().all(|slot| !ptr::eq(slot.get(), at)));
        assert!(ptr::eq(arena.lend().get(), at));
    }

    #[test]
    fn numbers_of_one_endpoint_have_a_cache_line_of_their_own() {
        let arena = Arena::<wire::Counters>::new();
        let (a, b) = (arena.lend(), arena.lend());
        assert!(ptr::from_ref(a.get()).addr().abs_diff(ptr::from_ref(b.get()).addr()) >= 64);
    }
}
